"""Small frames with known truth, made in memory: exposures with stripes, and colour-filter mosaics."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xarray as xr

from reference import tiled

DATA = Path(__file__).resolve().parents[2] / "shared" / "data"

SKY, NOISE, STRIPE = 0.5, 0.02, 0.012
RGGB = ("RG", "GB")
GRBG = ("GR", "BG")
XTRANS = ("GGRGGB", "GGBGGR", "BRGRBG", "GGBGGR", "GGRGGB", "RBGBRG")
KINDS = ("flat", "sparse", "extended", "crowded")


@dataclass(frozen=True)
class Scene:
    """An exposure and what it is the sum of; `image` float32, NaN at its border and bad pixels."""

    image: np.ndarray
    sky: np.ndarray
    sources: np.ndarray
    stripes: np.ndarray


def real_file(name: str) -> Path:
    """A real file under shared/data; the test is skipped, saying so, where it is absent."""
    path = DATA / name
    if not path.exists():
        pytest.skip(f"no real data here: {name} is absent")
    return path


def make_image(
    shape: tuple[int, int] = (120, 140),
    *,
    seed: int = 0,
    sky: float = SKY,
    noise: float = NOISE,
    stripes: float = STRIPE,
    gradient: float = 0.03,
    sources: int = 12,
    galaxy: float = 0.0,
    nan_fraction: float = 0.002,
    border: int = 0,
) -> Scene:
    """An exposure with horizontal stripes; `stripes` is their rms, `galaxy` the peak of a large one, `border` NaN."""
    rng = np.random.default_rng(seed)
    y, x = (np.arange(n)[at] for n, at in zip(shape, ((slice(None), None), (None, slice(None))), strict=True))
    smooth_sky = sky * (1 + gradient * (x / shape[1] - 0.5) - gradient * np.cos(2.5 * y / shape[0]))
    light = _stars(rng, shape, sources) + galaxy * _galaxy(y, x, shape)
    drift = stripes * _row_noise(rng, shape[0])[:, None]
    image = smooth_sky + light + drift + rng.normal(size=shape) * np.sqrt(noise**2 + 2e-4 * light)
    image[rng.random(shape) < nan_fraction] = np.nan
    if border:
        inside = np.zeros(shape, bool)
        inside[border:-border, border:-border] = True
        image[~inside] = np.nan
    return Scene(image.astype(np.float32), np.broadcast_to(smooth_sky, shape), light, np.broadcast_to(drift, shape))


def make_scene(kind: str, size: int = 512, *, seed: int = 1) -> Scene:
    """One of four NIRCam-like skies with a 4-pixel NaN border: flat, sparse, extended or crowded."""
    area = (size / 512) ** 2
    settings: dict[str, dict[str, Any]] = {
        "flat": {"sources": int(120 * area), "gradient": 0.0},
        "sparse": {"sources": int(120 * area)},
        "extended": {"sources": int(80 * area), "galaxy": 1.5},
        "crowded": {"sources": int(1500 * area)},
    }
    return make_image((size, size), seed=seed, border=4, nan_fraction=0.004, **settings[kind])


def make_mosaic(
    shape: tuple[int, int] = (240, 260),
    pattern: Sequence[str] = RGGB,
    seed: int = 0,
    *,
    stars: int = 25,
    zeros: int = 0,
    hot: int = 20,
) -> np.ndarray:
    """A 14-bit night-sky mosaic (uint16): another gradient in each colour, vignetting, stars, hot pixels, raw zeros."""
    rng = np.random.default_rng(seed)
    mosaic = make_mosaic_sky(shape, pattern) + 2000 * _stars(rng, shape, stars)
    mosaic = rng.poisson(mosaic * 1.2) / 1.2 + rng.normal(scale=4.0, size=shape) + 512
    for count, value in ((hot, 16383), (zeros, 0)):
        mosaic.flat[rng.choice(mosaic.size, count, replace=False)] = value
    return np.clip(np.rint(mosaic), 0, 16383).astype(np.uint16)


def make_mosaic_sky(shape: tuple[int, int], pattern: Sequence[str]) -> np.ndarray:
    """The smooth sky of `make_mosaic`, without its black level of 512."""
    v, u = np.meshgrid(*(np.linspace(-1, 1, n) for n in shape), indexing="ij")
    vignetting = 1 / (1 + 0.1 * (2.25 * u**2 + v**2)) ** 2
    colours = tiled(pattern, shape)
    sky = np.zeros(shape)
    for letter, level, slope in (("R", 900.0, 0.3), ("G", 1500.0, -0.15), ("B", 800.0, 0.1)):
        sky += (colours == letter) * level * (1 + slope * u - 0.08 * v + 0.1 * v**2)
    return sky * vignetting


def make_frame(
    image: np.ndarray | None = None, *, err: bool = True, dq: bool = True, fast_axis: int | None = -1, **scene: Any
) -> xr.Dataset:
    """A JWST frame in memory, of the schema of `open_frame`; `image`, or the settings of `make_image`."""
    sci = make_image(**scene).image if image is None else image
    variables: dict[str, Any] = {"sci": (("y", "x"), sci)}
    if err:
        variables["err"] = (("y", "x"), np.full(sci.shape, NOISE, np.float32))
    if dq:
        variables["dq"] = (("y", "x"), np.isnan(sci).astype(np.uint32))
    attrs: dict[str, Any] = {
        "kind": "jwst", "path": "/data/jw00000000000_00000_00000_nrca1_cal.fits", "unit": "MJy/sr",
        "instrument": "NIRCAM", "detector": "NRCA1", "filter": "F200W", "n_outputs": 4,
    }  # fmt: skip
    if fast_axis is not None:
        attrs["fast_axis"] = fast_axis
    return xr.Dataset(variables, attrs=attrs)


def make_raw_frame(raw: np.ndarray | None = None, *, pattern: Sequence[str] = RGGB, **mosaic: Any) -> xr.Dataset:
    """A camera raw frame in memory, of the schema of `open_frame`; `raw`, or the settings of `make_mosaic`."""
    values = make_mosaic(pattern=pattern, **mosaic) if raw is None else raw
    attrs = {
        "kind": "camera", "path": "/data/DSC00001.ARW", "unit": "ADU", "color_filter_array": list(pattern),
        "camera": "SONY ILCE-7S", "iso": 6400, "exposure_time": 16.0, "black_level": 512, "white_level": 16383,
    }  # fmt: skip
    return xr.Dataset({"raw": (("y", "x"), values)}, attrs=attrs)


def _row_noise(rng: np.random.Generator, n_rows: int) -> np.ndarray:
    """Unit-rms drift with a 1/f spectrum, one value a row."""
    if n_rows < 4:
        return rng.normal(size=n_rows)
    spectrum = rng.normal(size=n_rows // 2 + 1) + 1j * rng.normal(size=n_rows // 2 + 1)
    drift = np.fft.irfft(spectrum / np.sqrt(np.maximum(np.arange(spectrum.size), 1)), n_rows)
    return (drift - drift.mean()) / drift.std()


def _stars(rng: np.random.Generator, shape: tuple[int, int], count: int) -> np.ndarray:
    """Moffat stars of power-law fluxes, anywhere on the frame and just outside it."""
    light = np.zeros(shape)
    for flux, y, x in zip(
        0.5 * (rng.pareto(0.8, count) + 1), *(rng.uniform(-2, n + 2, count) for n in shape), strict=True
    ):
        reach = 30 if flux > 50 else 12
        rows = np.arange(max(0, int(y) - reach), min(shape[0], int(y) + reach + 1))[:, None]
        columns = np.arange(max(0, int(x) - reach), min(shape[1], int(x) + reach + 1))[None, :]
        profile = (1 + ((rows - y) ** 2 + (columns - x) ** 2) / 1.6**2) ** -2.5
        light[rows, columns] += min(flux, 500.0) * 0.18 * profile
    return light


def _galaxy(y: np.ndarray, x: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    dy, dx = y - 0.46 * shape[0], x - 0.54 * shape[1]
    along, across = dx * np.cos(0.3) + dy * np.sin(0.3), (dy * np.cos(0.3) - dx * np.sin(0.3)) / 0.6
    return np.exp(-1.678 * np.hypot(along, across) / (0.107 * shape[1]))
