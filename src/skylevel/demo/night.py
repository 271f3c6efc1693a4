"""Camera raw frames of the night sky: airglow, a light dome over the horizon, stars and noise."""

from pathlib import Path

import numpy as np

from skylevel.demo.dng import BLACK_LEVEL, RAW_PLANES, WHITE_LEVEL, write_dng
from skylevel.demo.drawing import Image, Random, add_star, random_stream
from skylevel.demo.schedule import Night
from skylevel.demo.truth import RAW_STEP, rounded, write_truth

RAW_SHAPE = (2000, 3000)
RAW_GAIN = 1.3  # electrons per ADU
RAW_READ_NOISE = 4.0  # ADU
RAW_SKY = {"R": 760.0, "G": 1180.0, "B": 640.0}  # ADU above the black level
DOME = {"R": 0.65, "G": 0.45, "B": 0.30}  # the light dome's factor on it, at the lower edge
N_RAW_STARS = 6000


def write_night(folder: Path, night: Night, *, seed: int, index: int) -> Path:
    """Simulate a raw frame and write its DNG and its truth.

    Parameters
    ----------
    folder : Path
        The program's.
    night : Night
    seed : int
        The program's. The stars follow from it alone, but for their drift.
    index : int
        The frame's place among the raw frames. Its noise follows from it and the seed.

    Returns
    -------
    Path
        Of the raw frame.
    """
    rng = random_stream(seed, 4, index)
    sky = _night_sky(night)
    stars = _draw_stars(night, random_stream(seed, 3))
    electrons = rng.poisson((sky + stars) * np.float32(RAW_GAIN))
    noise = rng.standard_normal(RAW_SHAPE, dtype=np.float32) * np.float32(RAW_READ_NOISE)
    counts = electrons / np.float32(RAW_GAIN) + noise + BLACK_LEVEL
    path = folder / f"{night.stem}.dng"
    write_dng(path, np.clip(np.rint(counts), 0, WHITE_LEVEL).astype(np.uint16), night.start)
    write_truth(folder, night.stem, {"sky": sky + np.float32(BLACK_LEVEL)})
    return path


def _raw_axes() -> tuple[Image, Image]:
    """Distance of each row (y, 1) and column (1, x) from the centre, in half frame heights; y grows downwards."""
    height, width = RAW_SHAPE
    y = (np.arange(height, dtype=np.float32)[:, None] - height / 2) / (height / 2)
    x = (np.arange(width, dtype=np.float32)[None, :] - width / 2) / (height / 2)
    return y.astype(np.float32), x.astype(np.float32)


def _vignetting(y: Image, x: Image) -> Image:
    """Light lost towards the corners of a fast lens, as cos**4 of the angle from its axis."""
    return ((1.0 + 0.09 * (x**2 + y**2)) ** -2).astype(np.float32)


def _night_sky(night: Night) -> Image:
    """Make the sky above the black level in ADU, colour by colour: airglow, a slope, a light dome over the horizon."""
    y, x = _raw_axes()
    sky = np.empty(RAW_SHAPE, np.float32)
    for colour, i, j in RAW_PLANES:
        v, u = y[i::2], x[:, j::2]
        dome = DOME[colour] * np.exp((v - 1.0) / 0.7) * np.exp(-((u - night.dome_centre) ** 2) / 2.2)
        slope = 0.05 * u - 0.04 * v if colour != "B" else 0.03 * u + 0.02 * v
        level = np.float32(RAW_SKY[colour] * night.brightness)
        sky[i::2, j::2] = level * (1.0 + slope + dome) * _vignetting(v, u)
    return rounded(sky, RAW_STEP)


def _draw_stars(night: Night, rng: Random) -> Image:
    """Stars in ADU as each pixel's colour sees them; the same stars in every frame, shifted by its drift."""
    height, width = RAW_SHAPE
    flux = np.minimum(500.0 * (1.0 - rng.random(N_RAW_STARS)) ** (-1.0 / 0.95), 2e6)
    x = rng.uniform(-60, width + 60, N_RAW_STARS) + night.drift[0]
    y = rng.uniform(-60, height + 60, N_RAW_STARS) + night.drift[1]
    redness = rng.uniform(-0.4, 0.5, N_RAW_STARS)
    light, red_light = np.zeros(RAW_SHAPE, np.float32), np.zeros(RAW_SHAPE, np.float32)
    for k in range(N_RAW_STARS):
        add_star(light, x[k], y[k], flux[k], core=1.9, faintest=0.5)
        add_star(red_light, x[k], y[k], flux[k] * (1.0 + redness[k]), core=1.9, faintest=0.5)
    light[0::2, 0::2] = 0.75 * red_light[0::2, 0::2]
    # As a star's red grows its blue falls.
    light[1::2, 1::2] = 0.8 * (2.0 * light[1::2, 1::2] - red_light[1::2, 1::2])
    return light * _vignetting(*_raw_axes())
