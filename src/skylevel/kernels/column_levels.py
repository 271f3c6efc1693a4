"""Levels of detector columns, where they carry power: what is left across rows that were levelled."""

import numpy as np
import scipy
from numpy.typing import NDArray

from skylevel.kernels.cells import spread

# Columns within which sky and sources count as even.
_AROUND = 65
# A median of n values has this times the standard error of their mean.
_MEDIAN_INEFFICIENCY = 1.2533
# A column with less than this part of the rows has no level.
_LEAST_ROWS = 0.25


def column_level(image: NDArray[np.floating], kept: NDArray[np.bool_], *, gate: float) -> NDArray[np.float32]:
    """Level of each column against those around it, as far as it is known to be no noise.

    Parameters
    ----------
    image : ndarray (y, x) float
        Stripes along x taken off.
    kept : ndarray (y, x) bool
        Pixels of the sky.
    gate : float
        Scatter of the columns below this many standard errors above that of white noise is taken for none.

    Returns
    -------
    ndarray (x,) float32
        In the image's unit; 0 everywhere where columns carry no power. Medians of columns, less a running median of
        theirs, shrunk by the part of their scatter that white noise explains.
    """
    # Columns side by side in memory are sorted faster.
    values = np.where(kept, image, np.nan).T.astype(np.float32, order="C")
    n = np.isfinite(values).sum(axis=1)
    known = n > _LEAST_ROWS * image.shape[0]
    nothing = np.zeros(image.shape[1], np.float32)
    if known.sum() < _AROUND:
        return nothing
    values.sort(axis=1)
    at = np.stack([np.maximum(n - 1, 0) // 2, np.minimum(n // 2, values.shape[1] - 1)], axis=1)
    middle = np.take_along_axis(values, at, axis=1).mean(axis=1)
    middle[~known] = np.median(middle[known])
    rest = middle - scipy.ndimage.median_filter(middle, _AROUND, mode="nearest")
    first, third = (values[np.arange(len(n)), (n * part).astype(np.intp)][known] for part in (0.1587, 0.8413))
    expected = float(np.mean(_MEDIAN_INEFFICIENCY**2 * ((third - first) / 2) ** 2 / n[known]))
    found = spread(rest[known])[1] ** 2
    if found - expected <= gate * expected * (2 / known.sum()) ** 0.5 or found <= 0:
        return nothing
    return np.where(known, rest * (1 - expected / found), 0).astype(np.float32)
