"""Levels of detector rows where sky and light cannot be told from slow stripes, as in a nebula that fills the frame.

1. Light goes on across the border of two amplifiers, their levels do not: steps there tell the levels that amplifiers
   do not share, slow ones too.
2. What is left is split into octaves along y. In each, cells count the more the calmer their surroundings are, and so
   much is taken for stripes as stripes of their strength are expected to be of what is seen.
"""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import scipy
from numpy.typing import NDArray

from skylevel.kernels.amplifiers import Grid
from skylevel.kernels.linear import solve_positive
from skylevel.kernels.streams import StreamNoise, mixtures, row_power, strengths

Bool = NDArray[np.bool_]
Float32 = NDArray[np.float32]
Float64 = NDArray[np.float64]

# A step is measured on so many rows, and columns on each side of a border. What light alone does is seen at as wide
# places that begin so many columns beside it: further than a step's own columns reach.
_ROWS, _COLUMNS = 32, 8
_BESIDE = (-40, -32, -24, 24, 32, 40)
_REACH = max(_BESIDE) + _COLUMNS
# Columns with less than this part of their rows tell nothing.
_LEAST_ROWS = 0.25
# So many places of usual scatter stand beside those that are near.
_USUAL = 2.0
_MEDIAN_SQUARE = 0.455
# Slowest modes along y by which steps are told.
_MODES = 64
# Ends of the octaves: standard deviations of Gaussians along y, in rows.
_SCALES = (2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0)
# How far around a cell its surroundings reach: along y in scales of the octave, along x in cells; and the least that
# is taken for their variance, as part of the mean.
_AROUND_Y, _AROUND_X, _CALMEST = 2.0, 2.0, 0.03
# A cell without pixels counts as if it had this part of them: something has to stand for its row.
_LEAST_FRACTION = 0.01
_NOTHING = 1e-300


class Steps(NamedTuple):
    """By how much levels rise from an amplifier to the next one.

    Attributes
    ----------
    value, weight : ndarray (block, border) float64
        Of blocks of 32 rows, and their inverse variances: white noise, and what light changes by beside the border. The
        weight is 0 where too few pixels stand there.
    """

    value: Float64
    weight: Float64


def border_steps(image: Float32, usable: Bool, grid: Grid, *, white_noise: float) -> Steps:
    """Measure the steps at the borders of amplifiers.

    Parameters
    ----------
    image : ndarray (y, x) float32
        On the grid; finite.
    usable : ndarray (y, x) bool
    grid : Grid
    white_noise : float
        Standard deviation of a pixel.

    Returns
    -------
    Steps

    Notes
    -----
    A step is what remains of the difference between the columns on both sides after a slope that they share.
    """
    n_borders = grid.amplifiers.count - 1
    value, weight = np.zeros((2, grid.rows // _ROWS, n_borders))
    if grid.amplifiers.width < _REACH:
        return Steps(value, weight)
    across = _step_weights()
    least = white_noise**2 * float(across @ across) / _ROWS
    for k in range(n_borders):
        last, first = k * grid.width + grid.amplifiers.width, (k + 1) * grid.width
        columns = np.r_[last - _REACH : last, first : first + _REACH]
        profile = _profile(image[:, columns], usable[:, columns])
        found, *beside = (
            profile[:, _REACH + at - _COLUMNS : _REACH + at + _COLUMNS] @ across for at in (0, *_BESIDE)
        )
        known = np.isfinite(found)
        value[known, k] = found[known]
        weight[known, k] = 1 / np.maximum(_scatter(np.stack(beside, axis=1)), least)[known]
    return Steps(value, weight)


def _step_weights() -> Float64:
    """Weights of columns, in order along x, that sum to a step between their halves, whatever the slope."""
    x = np.arange(-_COLUMNS, _COLUMNS) + 0.5
    straight = np.stack([np.ones_like(x), x, np.sign(x) / 2])
    return np.asarray(solve_positive(straight @ straight.T, straight)[2])


def _profile(image: Float32, usable: Bool) -> Float64:
    """Means (block, column) of blocks of rows; NaN where too few pixels are usable."""
    blocks = (-1, _ROWS, image.shape[1])
    count = usable.reshape(blocks).sum(axis=1)
    total = np.where(usable, image, 0).reshape(blocks).sum(axis=1, dtype=np.float64)
    return np.where(count >= _LEAST_ROWS * _ROWS, total / np.maximum(count, 1), np.nan)


def _scatter(beside: Float64) -> Float64:
    """Variance (block,) of what light alone does beside a border (block, place), near each block."""
    known = np.isfinite(beside)
    if not known.any():
        return np.full(len(beside), np.inf)
    square = np.where(known, beside, 0) ** 2
    usual = float(np.median(square[known])) / _MEDIAN_SQUARE
    near, count = (_smoothed(v.sum(axis=1, dtype=np.float64), 1.0, axis=0) for v in (square, known))
    return np.asarray((near + _USUAL * usual) / (count + _USUAL))


def step_levels(steps: Steps, noise: StreamNoise, grid: Grid) -> Float32:
    """Return the levels that amplifiers do not share, as steps tell them.

    Parameters
    ----------
    steps : Steps
    noise : StreamNoise
        The stripes' strength, which says how slow levels are.
    grid : Grid

    Returns
    -------
    ndarray (y, amplifier) float32
        The most probable ones; over the amplifiers they sum to 0.
    """
    n, n_amplifiers = grid.rows, grid.amplifiers.count
    own = mixtures(n_amplifiers)[1:].astype(np.float64)
    strength = float(strengths(noise, n_amplifiers)[-1, 0])
    if strength <= 0 or not steps.weight.any():
        return np.zeros((n, n_amplifiers), np.float32)
    n_modes = min(_MODES, len(steps.value))
    power = strength * row_power(2 * n, grid.slots, noise.exponent)[:n_modes]
    modes = scipy.fft.idct(np.eye(n)[:n_modes], axis=1, norm="ortho")
    of_blocks = modes.reshape(n_modes, -1, _ROWS).mean(axis=2).T
    # Of each step, by the coefficients of the modes of each mixture.
    response = (np.diff(own, axis=1).T[None, :, :, None] * of_blocks[:, None, None, :]).reshape(
        steps.value.size, own.shape[0] * n_modes
    )
    weighted = response * steps.weight.reshape(-1, 1)
    matrix = response.T @ weighted + np.diag(np.tile(1 / power, len(own)))
    found = solve_positive(matrix, weighted.T @ steps.value.ravel()).reshape(len(own), n_modes)
    return np.asarray((own.T @ found @ modes).T, np.float32)


def octave_levels(cells: Float32, fraction: Float32, noise: StreamNoise, grid: Grid, *, white: float) -> Float32:
    """Return what of the rows' levels changes from row to row as stripes do, octave by octave.

    Parameters
    ----------
    cells : ndarray (y, cell) float32
        Stripes and whatever light there is; where pixels are missing, what stands in for them.
    fraction : ndarray (y, cell) float32
        Part of each cell's pixels that it was measured on.
    noise : StreamNoise
        The stripes', from rows close to one another.
    grid : Grid
    white : float
        Variance of a row's level in an amplifier from white noise.

    Returns
    -------
    ndarray (y, amplifier) float32

    Notes
    -----
    What varies more in an octave than stripes and white noise is light. The part of an octave that is taken off is
    Wiener's, for what amplifiers share and for what they do not.
    """
    n, n_amplifiers = len(cells), grid.amplifiers.count
    mix = mixtures(n_amplifiers)
    power = strengths(noise, n_amplifiers) * row_power(2 * n, grid.slots, noise.exponent)[:n]
    taken = np.zeros((n_amplifiers, n), np.float32)
    for octave, kept, scale in _octaves(cells):
        weight = _calmness(octave, scale, grid) * np.maximum(fraction, _LEAST_FRACTION)
        found = mix @ _amplifier_means(octave, weight, n_amplifiers).T
        found[0] = n_amplifiers**0.5 * _amplifier_means(octave, weight, 1)[:, 0]
        for of in (slice(0, 1), slice(1, None)):
            if found[of].size:
                # A mode of no frequency is in no octave.
                stripes, others = (float((p * kept)[1:].mean()) for p in (power[of][0], white))
                light = max(float(np.mean(np.square(found[of], dtype=np.float64))) - stripes - others, 0.0)
                taken[of] += np.float32(stripes / max(stripes + others + light, _NOTHING)) * found[of]
    return np.asarray((mix.T @ taken).T)


def _octaves(cells: Float32) -> Iterator[tuple[Float32, Float64, float]]:
    """Give the octaves of cells along y, quickest first, with the power that each keeps of a mode, and its scale."""
    modes = scipy.fft.dct(cells, axis=0, norm="ortho")
    above = np.ones(len(cells))
    for scale in _SCALES:
        below = _gaussian(len(cells), scale)
        response = above - below
        yield scipy.fft.idct(modes * response.astype(np.float32)[:, None], axis=0, norm="ortho"), response**2, scale
        above = below


def _gaussian(n: int, scale: float) -> Float64:
    """What a Gaussian leaves of each of n modes."""
    return np.asarray(np.exp(-0.5 * (np.pi * np.arange(n) / n * scale) ** 2))


def _smoothed(values: NDArray[np.floating], scale: float, axis: int) -> NDArray[np.floating]:
    """Smooth with a Gaussian; values beyond the ends are those within, mirrored."""
    response = np.moveaxis(_gaussian(values.shape[axis], scale)[(...,) + (None,) * (values.ndim - 1)], 0, axis)
    modes = scipy.fft.dct(values, axis=axis, norm="ortho") * response.astype(values.dtype)
    return np.asarray(scipy.fft.idct(modes, axis=axis, norm="ortho"))


def _calmness(octave: Float32, scale: float, grid: Grid) -> Float32:
    """How much less than usual each cell's surroundings vary about their rows' and amplifiers' levels."""
    rows = octave.reshape(len(octave), grid.amplifiers.count, -1)
    # Whatever the unit, its square is no float32.
    square = np.square(rows - rows.mean(axis=2, keepdims=True), dtype=np.float64).reshape(octave.shape)
    near = _smoothed(_smoothed(square, _AROUND_Y * scale, axis=0), _AROUND_X, axis=1)
    usual = float(square.mean())
    return np.asarray((usual + _NOTHING) / (np.maximum(near, 0) + _CALMEST * usual + _NOTHING), np.float32)


def _amplifier_means(cells: Float32, weight: Float32, n_amplifiers: int) -> Float32:
    """Weighted mean (y, amplifier) of each row's cells."""
    total, each = (v.reshape(len(cells), n_amplifiers, -1).sum(axis=2) for v in (cells * weight, weight))
    return np.asarray(total / each)
