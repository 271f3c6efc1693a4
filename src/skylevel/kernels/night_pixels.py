"""A camera frame's pixels without the smooth background of their channels, and behind an even lens if asked."""

from typing import NamedTuple, Self

import numpy as np
from numpy.typing import NDArray

from skylevel.errors import NoBackgroundError, ShapeError
from skylevel.kernels.night_sky import Float32, Grid, Surface, mesh_of
from skylevel.kernels.pattern import ColorPattern

# Rows of one phase that are levelled at a time, so that they stay in a core's cache.
_STRIP_ROWS = 32

# A divisor is nowhere less: what the lens lets through of so little light is noise.
_LEAST_DIVISOR = 0.05


class Levelling(NamedTuple):
    """What is done to a mosaic's pixels, by channel in the order of `ColorPattern.channels`.

    Attributes
    ----------
    background : ndarray (channel, order_y, order_x) float32
        Coefficients of what is subtracted, as in `night_sky.Background`.
    divisor : ndarray (channel, order_y, order_x) float32 or None
        Coefficients of the share of light: a night's vignetting, or `divisor_of` a background. None subtracts alone.
    norms : list of float
        Factor of each channel.
    pedestal : float
        Added last, in the units of the mosaic.
    """

    background: Float32
    divisor: Float32 | None
    norms: list[float]
    pedestal: float = 0.0

    @classmethod
    def of(
        cls,
        light: Float32,
        black_level: Float32,
        *,
        divisor: Float32 | None = None,
        norms: list[float],
        pedestal: float = 0.0,
    ) -> Self:
        """Return what takes off a background that is known above the black level (), (channel, order_y, order_x)."""
        background = light.copy()
        background[:, 0, 0] += black_level
        return cls(background, divisor, norms, pedestal)


class _Phase(NamedTuple):
    """One place of the pattern: where its pixels begin, and its channel's surfaces and factor."""

    y: int
    x: int
    background: Surface
    divisor: Surface | None
    norm: float


def level_pixels(
    mosaic: NDArray[np.number],
    pattern: ColorPattern,
    levelling: Levelling,
    *,
    origin: tuple[int, int] = (0, 0),
    shape: tuple[int, int],
) -> Float32:
    """Return a mosaic less each channel's background at its own pixels, divided by how much light came there.

    Parameters
    ----------
    mosaic : ndarray (y, x)
        The mosaic or a tile of it; not modified.
    pattern : ColorPattern
    levelling : Levelling
    origin : tuple of int
        Indices (y, x) in the whole mosaic of the first pixel.
    shape : tuple of int
        Of the whole mosaic (y, x).

    Returns
    -------
    ndarray (y, x) float32
        In the units of `mosaic`; the sky is at the pedestal. The same bits for any tile.

    Raises
    ------
    ShapeError
        Backgrounds, divisors or norms are not as many as the pattern's channels.

    Notes
    -----
    Extra memory: 4 bytes for each pixel of the result, and 44 for each pixel of a row of it.
    """
    phases = _phases(mosaic.shape, pattern, levelling, origin, shape)
    result = np.empty(mosaic.shape, np.float32)
    step = _STRIP_ROWS * pattern.period[0]
    # All phases of a strip before the next: every line of the result is in the cache when it is written again.
    for top in range(0, mosaic.shape[0], step):
        for phase in phases:
            rows = np.arange(top + phase.y, min(top + step, mosaic.shape[0]), pattern.period[0])
            if rows.size:
                here = np.s_[rows[0] : rows[-1] + 1 : pattern.period[0], phase.x :: pattern.period[1]]
                result[here] = _levelled(mosaic[here], phase, rows + origin[0], levelling.pedestal)
    return result


def _phases(
    size: tuple[int, ...],
    pattern: ColorPattern,
    levelling: Levelling,
    origin: tuple[int, int],
    shape: tuple[int, int],
) -> list[_Phase]:
    """Return what levels each place of the pattern, counted from the tile's first pixel."""
    background, divisor, norms, _ = levelling
    n = len(pattern.channels)
    if not len(background) == len(norms) == len(norms if divisor is None else divisor) == n:
        raise ShapeError(f"{n} channels need as many backgrounds, divisors and norms")
    local = pattern.seen_from(*origin)
    phases = []
    for k, channel in enumerate(pattern.channels):
        for y, x in np.argwhere(local.owned(channel)):
            columns = np.arange(x, size[1], pattern.period[1]) + origin[1]
            below = Surface(background[k], columns, shape=shape)
            share = None if divisor is None else Surface(divisor[k], columns, shape=shape)
            phases.append(_Phase(int(y), int(x), below, share, norms[k]))
    return phases


def _levelled(pixels: NDArray[np.number], phase: _Phase, rows: NDArray[np.intp], pedestal: float) -> Float32:
    """Return one channel's pixels (y, x) in some rows of the frame."""
    level = phase.background.at(rows)
    np.subtract(pixels, level, out=level, casting="same_kind", dtype=np.float32)
    if phase.divisor is not None:
        level /= np.maximum(phase.divisor.at(rows), np.float32(_LEAST_DIVISOR))
    level *= phase.norm
    level += pedestal
    return level


def divisor_of(background: Float32, grid: Grid, *, black_level: float = 0.0) -> Float32:
    """Return the share of light that a frame's own background tells, where no night tells the lens's.

    Parameters
    ----------
    background : ndarray (channel, order_y, order_x) float32
        Coefficients, as in `night_sky.Background`.
    grid : Grid
    black_level : float
        What a pixel without light reads, in the units of `background`.

    Returns
    -------
    ndarray (channel, order_y, order_x) float32
        Coefficients of the background above the black level, 1 at the brightest box.

    Raises
    ------
    NoBackgroundError
        A channel's background is nowhere above the black level.
    """
    light = background.astype(np.float64)
    light[:, 0, 0] -= black_level
    brightest = np.array([mesh_of(channel, grid).max() for channel in light], np.float64)
    if not (brightest > 0).all():
        raise NoBackgroundError(f"a channel's background is nowhere above the black level, {black_level:g}")
    return (light / brightest[:, None, None]).astype(np.float32)
