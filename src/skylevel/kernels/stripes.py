"""Levels of detector rows."""

import numpy as np
from numpy.typing import NDArray

from skylevel.errors import ShapeError

# Rows are sorted in blocks of about this many pixels, which stay in a core's cache.
_BLOCK_PIXELS = 250_000


def row_level(
    image: NDArray[np.floating], mask: NDArray[np.bool_], *, positive_only: bool = True
) -> NDArray[np.floating]:
    """Level of each detector row: the median of its unmasked pixels.

    Parameters
    ----------
    image : ndarray (y, x) float
        In the units of the exposure; not modified.
    mask : ndarray (y, x) bool
        True = excluded. NaN pixels are always excluded.
    positive_only : bool
        Only pixels above 0 count.

    Returns
    -------
    ndarray (y,) of `image`'s dtype
        In the units of `image`; NaN where no pixel was left.

    Raises
    ------
    ShapeError
        `mask` and `image` differ in shape.

    Notes
    -----
    From the NIRCam notebook, whose median averages the two middle values in the image's own precision.
    """
    if mask.shape != image.shape:
        raise ShapeError(f"the mask {mask.shape} and the image {image.shape} differ in shape")
    step = max(1, _BLOCK_PIXELS // max(1, image.shape[1]))
    blocks = range(0, image.shape[0], step)
    return np.concatenate(
        [_medians(image[y : y + step], mask[y : y + step], positive_only) for y in blocks]
        or [np.empty(0, image.dtype)]
    )


def _medians(
    image: NDArray[np.floating], mask: NDArray[np.bool_], positive_only: bool
) -> NDArray[np.floating]:
    counted = (image > 0) if positive_only else ~np.isnan(image)
    counted &= ~mask
    ordered = image.copy()
    np.copyto(ordered, np.nan, where=~counted)
    ordered.sort(axis=1)
    # In bits: counting along an axis is slow.
    n = np.bitwise_count(np.packbits(counted, axis=1)).sum(axis=1, dtype=np.intp)
    rows = np.arange(len(image))
    lower = ordered[rows, np.maximum(n - 1, 0) // 2]
    upper = ordered[rows, np.minimum(n // 2, image.shape[1] - 1)]
    return np.where(n > 0, (lower + upper) / 2, np.asarray(np.nan, image.dtype))
