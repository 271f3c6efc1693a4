"""How well rows were levelled, without knowing the truth: on pixels that had no part in it."""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Bool = NDArray[np.bool_]
Floats = NDArray[np.floating]

_MAD_PER_STDDEV = 0.6744897501960817
# Pixels further than this many standard deviations from their row's median are no part of its mean.
_CLIP = 3.0
# What such clipping leaves of a Gaussian's variance.
_CLIPPED_VARIANCE = 0.9733
# Rows with fewer pixels say nothing.
_FEWEST_PIXELS = 4


class Scatter(NamedTuple):
    """How much neighbouring rows differ.

    Attributes
    ----------
    rms : float
        Of a row's level against its neighbour's, white noise taken off; in the image's unit; NaN where it is unknown.
    ratio : float
        The scatter of their differences over that of white noise alone.
    """

    rms: float
    ratio: float


def neighbour_scatter(pairs: Floats, kept: Bool) -> Scatter:
    """Scatter between the levels of neighbouring rows.

    Parameters
    ----------
    pairs : ndarray (pair, 2, part, pixel) float
        Of two neighbouring rows each; a part (an amplifier's columns) has a level of its own.
    kept : ndarray (pair, 2, part, pixel) bool
        Pixels that count.

    Returns
    -------
    Scatter
    """
    if not pairs.size:
        return Scatter(np.nan, np.nan)
    known = kept & np.isfinite(pairs)
    both: Floats = np.full(pairs[:, 0].shape, np.nan, pairs.dtype)
    np.subtract(pairs[:, 1], pairs[:, 0], out=both, where=known[:, 0] & known[:, 1])
    middle, n = _row_medians(both)
    usable = n >= _FEWEST_PIXELS
    if not usable.any():
        return Scatter(np.nan, np.nan)
    rest = np.abs(both - middle[..., None])
    noise = np.median(rest[np.isfinite(rest)]) / _MAD_PER_STDDEV
    inside = rest <= _CLIP * noise
    n = inside.sum(axis=-1)
    usable = n >= _FEWEST_PIXELS
    if not usable.any() or not noise > 0:
        return Scatter(np.nan, np.nan)
    mean = np.where(inside, both, 0).sum(axis=-1)[usable] / n[usable]
    clipped = both[inside] - np.repeat(np.where(usable, middle, 0)[..., None], both.shape[-1], axis=-1)[inside]
    white = float(np.mean(clipped.astype(np.float64) ** 2) / _CLIPPED_VARIANCE * np.mean(1 / n[usable]))
    variance = (np.median(np.abs(mean - np.median(mean))) / _MAD_PER_STDDEV) ** 2
    return Scatter(float(np.sqrt(max(variance - white, 0) / 2)), float(np.sqrt(variance / white)))


def _row_medians(values: Floats) -> tuple[Floats, NDArray[np.intp]]:
    ordered = np.sort(values, axis=-1)
    n = np.isfinite(values).sum(axis=-1)
    middle = np.take_along_axis(ordered, np.maximum(n - 1, 0)[..., None] // 2, axis=-1)[..., 0]
    return middle, n


class SourceFlux(NamedTuple):
    """Light of the masked pixels above the sky, before and after levels were subtracted; in the image's unit."""

    before: float
    after: float


def source_flux(image: Floats, sources: Bool, sky: Bool, level: Floats) -> SourceFlux:
    """Light of sources above the sky, before and after.

    Parameters
    ----------
    image : ndarray (y, x) float
        As it was.
    sources, sky : ndarray (y, x) bool
        Pixels of sources, and of the sky beside them.
    level : ndarray (y, x) float
        What is subtracted.

    Returns
    -------
    SourceFlux
        NaN where there is no source or no sky.
    """
    n, n_sky = np.count_nonzero(sources), np.count_nonzero(sky)
    if not n or not n_sky:
        return SourceFlux(np.nan, np.nan)
    before = image[sources].sum(dtype=np.float64) - n * float(np.median(image[sky]))
    taken = level[sources].sum(dtype=np.float64) - n * level[sky].mean(dtype=np.float64)
    return SourceFlux(float(before), float(before - taken))


def judged_stripes(before: Floats, after: Floats, kept: Bool, n_parts: int) -> dict[str, float]:
    """Judge levels by pixels that had no part in them.

    Parameters
    ----------
    before, after : ndarray (pair, 2, pixel) float
        Pixels of neighbouring rows, and the same less their levels.
    kept : ndarray (pair, 2, pixel) bool
        Those that count.
    n_parts : int
        Amplifiers, which have levels of their own; where they do not part the pixels evenly, rows are not parted.

    Returns
    -------
    dict of str to float
        ``stripes_before``, ``stripes_after`` and ``scatter_after``.
    """
    parts = n_parts if before.shape[-1] % n_parts == 0 else 1
    shape = (*before.shape[:2], parts, before.shape[-1] // parts)
    first, last = (neighbour_scatter(values.reshape(shape), kept.reshape(shape)) for values in (before, after))
    return {"stripes_before": first.rms, "stripes_after": last.rms, "scatter_after": last.ratio}


def judged_light(image: Floats, sources: Bool, level: Floats) -> dict[str, float]:
    """Judge levels by the light of sources above the sky, ``source_flux`` before and ``source_flux_after``.

    All are arrays (y, x): the image as it was, where sources are, and what is subtracted.
    """
    known = np.isfinite(image)
    flux = source_flux(image, sources & known, ~sources & known, np.nan_to_num(level))
    return {"source_flux": flux.before, "source_flux_after": flux.after}
