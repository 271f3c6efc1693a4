"""NIRCam-like exposures whose truth is known: what the levels of detector rows are measured on.

Five kinds of scene, 2048 x 2048 pixels, four amplifiers; the sky's level is 0.5, a pixel's white noise 0.02:

flat      sparse sources on a constant sky
sparse    150 stars and 800 galaxies
crowded   6000 stars and 200 galaxies
extended  sparse, and a galaxy over a quarter of the frame
nebula    sparse, and emission over the whole frame (rms 0.1) that leaves no flat sky anywhere

Stripes are 1/f noise at the detector's own cadence (512 pixels and 12 clocks a row, every second amplifier read from
right to left), cut from a stream four frames long so that they drift: one stream that amplifiers share (rms 0.008 of a
row) and one of each (0.004), each within a factor of 1.25, with powers that fall as f^-0.8 to f^-1.2.
The sky is a plane of some percent, a curve and a wave; exposures of one `sky` are a group that shares it.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

SIZE, N_AMPLIFIERS, OVERHEAD = 2048, 4, 12
SKY, WHITE, COMMON, OWN = 0.5, 0.02, 0.008, 0.004
KINDS = ("flat", "sparse", "crowded", "extended", "nebula")
BORDER = 4

_STARS = {"flat": 150, "sparse": 150, "crowded": 6000, "extended": 150, "nebula": 150}
_GALAXIES = {"flat": 800, "sparse": 800, "crowded": 200, "extended": 400, "nebula": 300}
_BRIGHTEST = {"crowded": 5e2}
_NEBULA_KNOT = 2

Image = NDArray[np.float32]


@dataclass(frozen=True)
class Exposure:
    """What a tool sees (`image`, `bad`), and the truth: `image` is `clean` and `stripes` together."""

    image: Image
    bad: NDArray[np.bool_]
    clean: Image
    stripes: Image
    sources: Image


def make_exposure(
    kind: str,
    seed: int,
    *,
    sky: int | None = None,
    steepness: float = 1.0,
    stripes: float = 1.0,
    exponent: float | None = None,
) -> Exposure:
    """Draw an exposure of a kind.

    Parameters
    ----------
    kind : str
        One of `KINDS`.
    seed : int
        Of sources, noise and stripes.
    sky : int, optional
        Seed of the sky's shape; `seed` if not given.
    steepness, stripes : float
        Factors on the sky's structure and on the stripes.
    exponent : float, optional
        Of the stripes' spectrum, in place of a drawn one.
    """
    rng = np.random.default_rng([KINDS.index(kind), seed])
    light = draw_sources(rng, kind)
    shape = 0 if kind == "flat" else steepness * sky_shape(seed if sky is None else sky)
    noise = rng.normal(size=light.shape) * np.sqrt(WHITE**2 + 2e-4 * light)
    clean = SKY * (1 + shape) + light + noise
    rows = stripes * draw_stripes(rng, exponent)
    bad, lost = draw_bad_pixels(rng)
    clean[bad & (rng.random(bad.shape) < 0.3)] += 5
    clean[lost] = np.nan
    image, clean, rows, light = (a.astype(np.float32) for a in (clean + rows, clean, rows, light))
    return Exposure(image, bad, clean, rows, light)


def make_group(kind: str, seed: int, n: int = 8) -> Iterator[Exposure]:
    """Draw exposures that share one sky, and nothing else."""
    return (make_exposure(kind, 1000 * seed + k, sky=seed) for k in range(n))


def draw_bad_pixels(rng: np.random.Generator) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Bad pixels with the border of reference pixels, and those of them that hold no value."""
    border = np.ones((SIZE, SIZE), bool)
    border[BORDER:-BORDER, BORDER:-BORDER] = False
    bad = (rng.random(border.shape) < 0.004) | border
    return bad, (bad & (rng.random(border.shape) < 0.5)) | border


def draw_stripes(rng: np.random.Generator, exponent: float | None = None) -> NDArray[np.float64]:
    """Stripes of a frame, mean 0."""
    slope = rng.uniform(0.8, 1.2) if exponent is None else exponent
    width = SIZE // N_AMPLIFIERS
    shared = COMMON * _stream(rng, slope)
    read = [shared + OWN * _stream(rng, slope) for _ in range(N_AMPLIFIERS)]
    rows = np.hstack([r[:, :width][:, :: -1 if k % 2 else 1] for k, r in enumerate(read)])
    return rows - rows.mean()


def _stream(rng: np.random.Generator, exponent: float) -> NDArray[np.float64]:
    """A quarter of a 1/f stream, as rows of pixels, whose row means have an rms of 1 within a factor of 1.25."""
    clocks = SIZE // N_AMPLIFIERS + OVERHEAD
    n = 4 * SIZE * clocks
    f = np.fft.rfftfreq(n)
    f[0] = f[1]
    spectrum = (rng.normal(size=f.size) + 1j * rng.normal(size=f.size)) * f ** (-exponent / 2)
    rows = np.fft.irfft(spectrum, n)[: n // 4].reshape(SIZE, clocks)[:, :-OVERHEAD]
    return rows / rows.mean(axis=1).std() * 1.25 ** rng.uniform(-1, 1)


def sky_shape(seed: int, step: tuple[int, int] = (1, 1)) -> NDArray[np.float64]:
    """The sky over its level, less 1: at every pixel, or in the middle of cells of `step` rows and columns."""
    rng = np.random.default_rng([1, seed])
    y, x = (np.mgrid[: SIZE : step[0], : SIZE : step[1]] + (np.array(step)[:, None, None] - 1) / 2) / SIZE - 0.5
    across, along, xx, xy, yy, wave = rng.normal(size=6) * (0.03, 0.03, 0.012, 0.012, 0.012, 0.01)
    turn, phase = rng.uniform(0, 2 * np.pi, 2)
    ripple = np.cos(rng.uniform(2, 5) * (x * np.cos(turn) + y * np.sin(turn)) + phase)
    return across * x + along * y + xx * x**2 + xy * x * y + yy * y**2 + wave * ripple


def draw_sources(rng: np.random.Generator, kind: str) -> NDArray[np.float64]:
    """Light of stars (Moffat profiles), galaxies (exponential discs), and what the kind has beside them."""
    image = np.zeros((SIZE, SIZE))
    for flux, x, y in _draw_stars(rng, _STARS[kind], _BRIGHTEST.get(kind, 2e3)):
        _add(image, x, y, 100 if flux > 50 else 25, lambda u, v, flux=flux: flux * _star(u, v))
    for _ in range(_GALAXIES[kind]):
        radius, flux = 10 ** rng.uniform(0.3, 1.1), 10 ** rng.uniform(0, 2.2)
        ratio, angle = rng.uniform(0.3, 1), rng.uniform(0, np.pi)
        peak = flux / (2 * np.pi * ratio * (radius / 1.678) ** 2)
        disc = lambda u, v, s=(peak, radius, ratio, angle): s[0] * _disc(u, v, *s[1:])  # noqa: E731
        _add(image, *rng.uniform(0, SIZE, 2), int(10 * radius), disc)
    y, x = np.mgrid[:SIZE, :SIZE]
    if kind == "extended":
        image += 1.5 * _disc(x - 1100, y - 950, 220.0, 0.6, 0.3)
    return image + _nebula(rng) if kind == "nebula" else image


def _draw_stars(rng: np.random.Generator, n: int, brightest: float) -> Iterator[tuple[float, float, float]]:
    """Fluxes by a power law from 0.5 to the brightest, and places."""
    low, high = 0.5**-0.7, brightest**-0.7
    flux = (low + rng.random(n) * (high - low)) ** (-1 / 0.7)
    return zip(flux, rng.uniform(0, SIZE, n), rng.uniform(0, SIZE, n), strict=True)


def _add(image, x, y, half, profile):
    """Add a profile within `half` pixels of a place."""
    top, left = max(round(y) - half, 0), max(round(x) - half, 0)
    window = image[top : round(y) + half + 1, left : round(x) + half + 1]
    if window.size:
        v, u = np.ogrid[: window.shape[0], : window.shape[1]]
        window += profile(u + left - x, v + top - y)


def _star(u, v):
    """A Moffat profile of exponent 2 and flux 1, that ends within 100 pixels."""
    r2 = u**2 + v**2
    return (1 + r2 / 1.6**2) ** -2.0 / (np.pi * 1.6**2) * np.clip((100 - np.sqrt(r2)) / 20, 0, 1)


def _disc(u, v, radius, ratio, angle):
    """An inclined exponential disc of half-light radius `radius` and height 1."""
    along = u * np.cos(angle) + v * np.sin(angle)
    across = (v * np.cos(angle) - u * np.sin(angle)) / ratio
    return np.exp(-1.678 * np.hypot(along, across) / radius)


def _nebula(rng: np.random.Generator) -> NDArray[np.float64]:
    """Log-normal emission of rms 0.1 whose logarithm has a power spectrum of k^-3, down to twice the frame."""
    n = 2 * SIZE // _NEBULA_KNOT
    k = np.hypot(np.fft.fftfreq(n)[:, None], np.fft.rfftfreq(n))
    k[0, 0] = np.inf
    field = np.fft.irfft2(np.fft.rfft2(rng.normal(size=(n, n))) * k**-1.5, s=(n, n))
    clouds = np.exp(0.65 * (field - field.mean()) / field.std())
    inside = clouds[: SIZE // _NEBULA_KNOT + 1, : SIZE // _NEBULA_KNOT + 1] / clouds.std()
    at = np.mgrid[:SIZE, :SIZE] / _NEBULA_KNOT
    return 0.1 * ndimage.map_coordinates(inside, at, order=3, prefilter=False, mode="nearest")
