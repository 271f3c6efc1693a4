"""What exposures and raw frames are drawn with: random streams, and the profiles of stars and galaxies."""

import math

import numpy as np
from numpy.typing import NDArray

Image = NDArray[np.float32]
Values = NDArray[np.float64]
Random = np.random.Generator


def random_stream(seed: int, *key: int) -> Random:
    """Make an independent stream for each part of the program, so that no part depends on what was drawn before.

    Parameters
    ----------
    seed : int
        The program's; not negative.
    *key : int
        The part's own numbers; the first tells its kind. Not negative.

    Returns
    -------
    numpy.random.Generator
    """
    return np.random.default_rng([seed, *key])


def add_star(image: Image, x: float, y: float, flux: float, *, core: float, faintest: float) -> None:
    """Add a Moffat profile (exponent 2.5) in place, out to where it falls below `faintest`.

    Parameters
    ----------
    image : ndarray (y, x) float32
        Modified.
    x, y : float
        Centre in pixel, from 0 at the middle of the first one; it may lie outside.
    flux : float
        Sum of the whole profile, before it is cut, over the pixels; in the units of `image`.
    core : float
        Core radius in pixel.
    faintest : float
        In the units of `image`. The profile is cut at 4 pixels from the centre at least and at 150 at most.
    """
    peak = flux * 1.5 / (math.pi * core**2)
    half = int(np.clip(core * (peak / faintest) ** 0.2, 4, 150))
    window, dy, dx = _window(image, x, y, half)
    t = 1.0 + (dy**2 + dx**2) / core**2
    image[window] += peak / (t * t * np.sqrt(t))


def add_galaxy(
    image: Image, x: float, y: float, flux: float, *, shape: tuple[float, float, float], faintest: float
) -> None:
    """Add an inclined exponential disc in place, out to where it falls below `faintest`.

    Parameters
    ----------
    image : ndarray (y, x) float32
        Modified.
    x, y : float
        Centre in pixel, from 0 at the middle of the first one; it may lie outside.
    flux : float
        Sum of the whole profile, before it is cut, over the pixels; in the units of `image`.
    shape : tuple of float
        Half-light radius in pixel, axis ratio, and angle in radian from x.
    faintest : float
        In the units of `image`. The profile is cut at 4 pixels from the centre at least and at 150 at most.
    """
    radius, ratio, angle = shape
    length = radius / 1.678
    peak = flux / (2.0 * math.pi * length**2 * ratio)
    half = int(np.clip(length * math.log(max(peak / faintest, math.e)), 4, 150))
    window, dy, dx = _window(image, x, y, half)
    along = dx * math.cos(angle) + dy * math.sin(angle)
    across = (dy * math.cos(angle) - dx * math.sin(angle)) / ratio
    image[window] += peak * np.exp(-np.sqrt(along**2 + across**2) / length)


def _window(image: Image, x: float, y: float, half: int) -> tuple[tuple[slice, slice], Image, Image]:
    """Find the part of the image within `half` pixels of (x, y), and its pixels' distances along y and x from there."""
    rows, columns = (
        slice(max(round(c) - half, 0), max(min(round(c) + half + 1, n), 0))
        for c, n in zip((y, x), image.shape, strict=True)
    )
    dy = (np.arange(rows.start, max(rows.start, rows.stop)) - y).astype(np.float32)
    dx = (np.arange(columns.start, max(columns.start, columns.stop)) - x).astype(np.float32)
    return (rows, columns), dy[:, None], dx[None, :]
