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
    values = image[counted]
    # In bits: counting along an axis is slow.
    n = np.bitwise_count(np.packbits(counted, axis=1)).sum(axis=1, dtype=np.intp)
    middle = np.full((2, len(image)), np.nan, image.dtype)
    stop = np.cumsum(n)
    for y in np.flatnonzero(n):
        middle[:, y] = _middle(values[stop[y] - n[y] : stop[y]])
    return np.asarray(middle.sum(axis=0) / 2, image.dtype)


def _middle(values: NDArray[np.floating]) -> tuple[np.floating, np.floating]:
    """Return the two values that stand in the middle, or twice the one that does; puts `values` in another order.

    Which stand there is found faster than the order of all, and below the upper one only its neighbour is looked for.
    """
    half = values.size // 2
    values.partition(half)
    upper = values[half]
    return (upper if values.size % 2 else values[:half].max()), upper
