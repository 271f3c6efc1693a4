"""sep, Source Extractor's background as a library."""

from collections.abc import Callable
from typing import Any

import numpy as np
import sep

PHASES = [(y, x) for y in (0, 1) for x in (0, 1)]


def planes_mesh(path: str) -> Callable[[], Any]:
    """The background of the four planes of a mosaic, which are float32 and contiguous already."""
    mosaic = np.load(path)
    planes = [np.ascontiguousarray(mosaic[y::2, x::2], np.float32) for y, x in PHASES]
    return lambda: [sep.Background(plane, bw=50, bh=50) for plane in planes]


def planes(path: str) -> Callable[[], Any]:
    """From a mosaic to a levelled mosaic."""
    mosaic = np.load(path)

    def run() -> np.ndarray:
        levelled = np.empty(mosaic.shape, np.float32)
        for y, x in PHASES:
            plane = mosaic[y::2, x::2].astype(np.float32, order="C")
            sep.Background(plane, bw=50, bh=50).subfrom(plane)
            levelled[y::2, x::2] = plane
        return levelled

    return run


def rows_mesh(path: str) -> Callable[[], Any]:
    image = np.load(path)
    invalid = np.isnan(image)
    return lambda: sep.Background(image, mask=invalid, bw=50, bh=50)
