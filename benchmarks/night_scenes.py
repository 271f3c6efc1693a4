"""Camera raw frames of the night sky with known truth: a frame alone, or a night of frames through one lens.

A frame is ``black level + vignetting x (sky + stars + galaxy or nebula)``, as an RGGB mosaic with Poisson and read
noise; its truth is black level and vignetted sky alone. The frames of a night share lens, stars and large object,
shifted by some pixels from frame to frame; each has a sky of its own: gradient and light dome move, its brightness
drifts.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from skylevel.kernels.pattern import ColorPattern

Image = NDArray[np.float32]
Random = np.random.Generator

PATTERN = ColorPattern(("RG", "GB"))
BLACK_LEVEL, WHITE_LEVEL = 512, 16383
GAIN = 1.2  # electrons per ADU
READ_NOISE = 4.0  # ADU

SKY = {"R": 900.0, "G": 1500.0, "B": 800.0}  # ADU above the black level
DOME = {"R": 0.45, "G": 0.30, "B": 0.18}  # the light dome's share of it
STARS = {"R": 0.7, "G": 1.0, "B": 0.65}  # a mean star's light by channel, relative to green; so for the others
GALAXY = {"R": 0.75, "G": 1.0, "B": 0.6}
NEBULA = {"R": 1.0, "G": 0.35, "B": 0.45}
NEBULA_PEAK = 450.0  # ADU, in red
STARS_OF_24_MP = 12000


@dataclass(frozen=True, slots=True, kw_only=True)
class Night:
    """What a night is drawn from; all else follows from the seed.

    Attributes
    ----------
    seed : int
        Of stars, nebula and noise.
    large : {"", "galaxy", "nebula"}
        A large object in every frame.
    n_frames : int
    shape : tuple of int
        Of a frame (y, x).
    phase : float
        Direction of the first frame's gradient, in radian.
    moves : float
        How far gradient and dome move from the first frame to the last, in radian of that direction.
    drift : float
        Largest relative change of the sky's brightness.
    dither : float
        Largest shift of stars and large object against the first frame, in pixels.
    decentre : float
        Distance of the lens's axis from the frame's centre, as a share of half the frame.
    """

    seed: int
    large: str = ""
    n_frames: int = 12
    shape: tuple[int, int] = (4000, 6000)
    phase: float = 0.0
    moves: float = 2.0
    drift: float = 0.06
    dither: float = 12.0
    decentre: float = 0.03


@dataclass(frozen=True, slots=True)
class Frame:
    """A raw frame (y, x) uint16, and its black level and sky (y, x) float32, which a background should equal."""

    raw: NDArray[np.uint16]
    truth: Image


def single_frame(seed: int, *, large: str = "", phase: float = 0.0, shape: tuple[int, int] = (4000, 6000)) -> Frame:
    """Draw a frame alone, its lens's axis at the centre."""
    return next(frames(Night(seed=seed, large=large, n_frames=1, phase=phase, shape=shape, decentre=0.0)))


def frames(night: Night) -> Iterator[Frame]:
    """Draw a night's frames, one after the other."""
    field = _Field(night)
    for k in range(night.n_frames):
        rng = np.random.default_rng([night.seed, 1, k])
        hour = k / max(night.n_frames - 1, 1)
        shift = rng.uniform(-night.dither, night.dither, 2) if k else np.zeros(2)
        sky = _sky(night, hour) * field.vignetting
        light = sky + field.light(shift)
        counts = rng.poisson(light * np.float32(GAIN)).astype(np.float32) / np.float32(GAIN)
        counts += rng.standard_normal(night.shape, dtype=np.float32) * np.float32(READ_NOISE)
        counts += np.float32(BLACK_LEVEL)
        raw = np.clip(np.rint(counts, out=counts), 0, WHITE_LEVEL).astype(np.uint16)
        yield Frame(raw, sky + np.float32(BLACK_LEVEL))


def lens(night: Night) -> Image:
    """Share of the light that a night's lens lets through (y, x)."""
    return _Field(night).vignetting


def own_pixels(channel: str) -> list[tuple[slice, slice]]:
    """The channel's pixels, as slices (y, x) of a mosaic."""
    return [(slice(int(y), None, 2), slice(int(x), None, 2)) for y, x in np.argwhere(PATTERN.owned(channel))]


class _Field:
    """What a night's frames share: the lens, the stars and the large object."""

    def __init__(self, night: Night) -> None:
        rng = np.random.default_rng([night.seed, 0])
        self._night = night
        angle = rng.uniform(0, 2 * np.pi)
        self.vignetting = _vignetting(night.shape, night.decentre * np.cos(angle), night.decentre * np.sin(angle))
        n = round(STARS_OF_24_MP * night.shape[0] * night.shape[1] / 24e6)
        self._flux = np.minimum(200.0 * (rng.pareto(0.9, n) + 1.0), 3e6)
        # Wider than the frame, so that a shift brings in others.
        self._y, self._x = (rng.uniform(-20, side + 20, n) for side in night.shape)
        self._redness = rng.normal(0.0, 0.25, n)
        self._waves = np.column_stack([rng.normal(scale=5.0, size=(12, 2)), rng.uniform(0, 2 * np.pi, 12)])

    def light(self, shift: NDArray[np.float64]) -> Image:
        """Stars and large object of a frame in ADU, behind the lens."""
        light = np.zeros(self._night.shape, np.float32)
        for y, x, flux, redness in zip(self._y + shift[0], self._x + shift[1], self._flux, self._redness, strict=True):
            _add_star(light, y, x, flux, redness)
        if self._night.large:
            light += self._large(shift) * self.vignetting
        return light

    def _large(self, shift: NDArray[np.float64]) -> Image:
        height, width = self._night.shape
        y = (np.arange(height, dtype=np.float32) - np.float32(shift[0]))[:, None]
        x = (np.arange(width, dtype=np.float32) - np.float32(shift[1]))[None, :]
        if self._night.large == "galaxy":
            return _by_channel(_galaxy(y, x, height, width), GALAXY)
        return _by_channel(_nebula(2 * y / height - 1, 2 * x / width - 1, self._waves), NEBULA)


def _axes(shape: tuple[int, int]) -> tuple[Image, Image]:
    """Rows (y, 1) and columns (1, x), from -1 to 1."""
    v, u = (np.arange(n, dtype=np.float32) * np.float32(2 / n) - np.float32(1) for n in shape)
    return v[:, None], u[None, :]


def _vignetting(shape: tuple[int, int], axis_y: float, axis_x: float) -> Image:
    """Light that a fast lens lets through: 1 on its axis, about 0.55 in the corners."""
    v, u = _axes(shape)
    r2 = ((u - np.float32(axis_x)) ** 2 * 2.25 + (v - np.float32(axis_y)) ** 2) / 3.25
    return (1.0 / (1.0 + 0.35 * r2) ** 2).astype(np.float32)


def _sky(night: Night, hour: float) -> Image:
    """The sky before the lens in ADU: a level of each channel, with a gradient, a light dome and a slow wave."""
    v, u = _axes(night.shape)
    phase = np.float32(night.phase + night.moves * hour)
    brightness = np.float32(1.0 + night.drift * np.sin(2.5 * hour))
    gradient = 0.12 * u * np.cos(phase) - 0.08 * v + 0.05 * np.sin(2.2 * u + 1.1 * v + phase)
    # The dome moves with the gradient; a frame alone has it where phase 0 has it.
    centre = np.float32(0.6 - 0.1 * night.moves * hour)
    dome = np.exp(-((u - centre) ** 2 / 0.8 + (v - 1.1) ** 2 / 0.5))
    sky = np.empty(night.shape, np.float32)
    for channel, level in SKY.items():
        for at in own_pixels(channel):
            sky[at] = level * brightness * (1.0 + gradient[at] + np.float32(DOME[channel]) * dome[at])
    return sky


def _galaxy(y: Image, x: Image, height: int, width: int) -> Image:
    """An inclined disc with a bulge, in ADU; its size is a share of the frame's width."""
    scale = width / 6000
    dy, dx = y - np.float32(0.48 * height), x - np.float32(0.45 * width)
    cos, sin = np.cos(np.deg2rad(np.float32(35))), np.sin(np.deg2rad(np.float32(35)))
    along, across = (dx * cos + dy * sin) / (700 * scale), (dy * cos - dx * sin) / (260 * scale)
    r = np.sqrt(along**2 + across**2, dtype=np.float32)
    return 600 * np.exp(-1.6 * r) + 4000 * np.exp(-14 * r)


def _nebula(v: Image, u: Image, waves: NDArray[np.float64]) -> Image:
    """Clouds of a dozen waves in an ellipse that covers 40 % of the frame, in ADU of red light."""
    across, down = (u - np.float32(0.15)) / np.float32(0.7), (v + np.float32(0.1)) / np.float32(0.75)
    ellipse = np.maximum(1 - across**2 - down**2, 0)
    clouds = np.zeros_like(ellipse)
    for fy, fx, at in waves.astype(np.float32):
        clouds += np.cos(fy * v + fx * u + at)
    return np.float32(NEBULA_PEAK / 3) * ellipse**2 * np.maximum(clouds / np.float32(2) + 1, 0)


def _by_channel(light: Image, factors: dict[str, float]) -> Image:
    result = np.empty_like(light)
    for channel, factor in factors.items():
        for at in own_pixels(channel):
            result[at] = light[at] * np.float32(factor)
    return result


def _add_star(light: Image, y: float, x: float, flux: float, redness: float) -> None:
    """Add a Moffat profile in place, in the colours of the mosaic."""
    reach = 24 if flux > 2e4 else 10
    (top, bottom), (left, right) = (
        (max(0, int(c) - reach), min(n, int(c) + reach + 1)) for c, n in zip((y, x), light.shape, strict=True)
    )
    if top >= bottom or left >= right:
        return
    rows, columns = np.arange(top, bottom)[:, None], np.arange(left, right)[None, :]
    core2 = 2.2**2
    profile = (1.0 + ((rows - y) ** 2 + (columns - x) ** 2) / core2) ** -2.8 * (flux * 1.8 / (np.pi * core2))
    red = np.clip(STARS["R"] * (1 + redness), 0.1, 2.0)
    blue = np.clip(STARS["B"] * (1 - redness), 0.1, 2.0)
    even_y, even_x = rows % 2 == 0, columns % 2 == 0
    profile *= np.where(even_y & even_x, red, np.where(~even_y & ~even_x, blue, STARS["G"]))
    light[top:bottom, left:right] += profile
