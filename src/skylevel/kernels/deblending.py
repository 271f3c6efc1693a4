"""Deblending of sources, by photutils; for the segmentation product alone."""

from typing import Any

import numpy as np
import photutils
from numpy.typing import NDArray
from photutils.segmentation import SegmentationImage, deblend_sources

from skylevel.kernels.sources import Bool, label_sources

# Photutils 3.1 and later have no progress bar, and warn of being told so.
_NO_BAR: dict[str, Any] = {"progress_bar": False} if photutils.__version__.startswith("3.0.") else {}


def deblend(
    smoothed: NDArray[np.floating], mask: Bool, *, n_pixels: int, n_levels: int, contrast: float
) -> NDArray[np.uint32]:
    """Label map of a source mask with overlapping sources parted, by photutils' ``deblend_sources``.

    Parameters
    ----------
    smoothed : ndarray (y, x) float
        The smoothed image in which the sources were found.
    mask : ndarray (y, x) bool
        True = source.
    n_pixels, n_levels : int
    contrast : float
        See `skylevel.Rows`.

    Returns
    -------
    ndarray (y, x) uint32
        0 where `mask` is False, consecutive labels elsewhere.
    """
    labels = label_sources(mask)
    if not labels.any():
        return labels.astype(np.uint32)
    segments = deblend_sources(
        smoothed, SegmentationImage(labels), n_pixels=n_pixels, n_levels=n_levels, contrast=contrast, **_NO_BAR
    )
    return np.asarray(segments.data, np.uint32)
