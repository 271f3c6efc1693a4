"""Levels of detector rows, as well as one exposure can tell them: sky, sources and stripes solved together.

1. A smooth level and the rows' medians are taken off; what stands out is masked; the rest is averaged in cells.
2. On coarse cells, sky, large sources and slow streams are solved for together, and the quick streams beside them.
3. Both again, from the flatter residual that these leave.
4. Where blocks scatter about the model by more than their noise, it is not believed: only what changes from row to
   row is taken off, with the steps between amplifiers.
"""

from dataclasses import dataclass
from itertools import pairwise
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from skylevel.errors import NoBackgroundError, ShapeError
from skylevel.kernels.amplifiers import CELL_WIDTH, COARSE_CELLS, COARSE_ROWS, Amplifiers, Grid
from skylevel.kernels.cells import (
    Rejection,
    block_level,
    cell_means,
    cells_of_blocks,
    source_mask,
    spread,
    stretch_rows,
    subtract_cells,
)
from skylevel.kernels.large_sources import LargeSources, find_large_sources, spline_rms
from skylevel.kernels.row_to_row import border_steps, octave_levels, step_levels
from skylevel.kernels.sky import (
    NO_WEIGHT,
    CoarseCells,
    CoarseFit,
    CoarseModel,
    Priors,
    SkyShape,
    Splines,
    coarse_model,
    sky_prior,
    solve_coarse,
)
from skylevel.kernels.streams import (
    LagScatter,
    StreamNoise,
    StripePrior,
    estimate_noise,
    lag_scatter,
    nearest_lags,
    smooth_streams,
)

Bool = NDArray[np.bool_]
Float32 = NDArray[np.float32]
Float64 = NDArray[np.float64]

# Sides of the blocks that the first flat residual and the sources' surroundings are taken from, in pixel.
_WIDE, _LOCAL = 64, 32
# Bins by which sources are grown, at each scale.
_GROWTH = (2, 1, 1)
# The sky's level is never taken for less than this many standard deviations of a pixel: one that was subtracted
# before may still have a gradient.
_LEAST_SKY = 25.0
# Noise is never taken for less than this part of the level, or this: a frame may hold one value only.
_LEAST_NOISE, _NO_NOISE = 1e-6, 1e-12
# What float32 can reckon with: beyond, squares and weights leave its range.
_REACH = 1e-10, 1e15
# Pixels nearer to a row's level than this tell it; rows as far from the others as this are first taken off whole: in
# a pixel's noise.
_NEAR, _FAR = 5.0, 2.5
# Rows and columns between the pixels that decide an exposure's level and noise.
_SAMPLE_ROWS, _SAMPLE_COLUMNS = 8, 3
# Where a large source is brighter than this (in a pixel's noise), cells are trusted less: its splines do not follow it.
_FAINT, _TOLERANCE = 0.25, 2.0
# How high splines may be before any were found, in a pixel's noise.
_FREE_HEIGHT = 100.0
# Residuals of coarse cells beyond this many standard deviations lose weight.
_ROBUST = 2.5
# How often sky and streams are fitted below what may be a large source.
_LOWER_ROUNDS = 2
# For the first streams, and for the last: solutions of the coarse model (each with the weights and spline heights of
# the one before), and steps of conjugate gradients.
_FIRST_EFFORT, _LAST_EFFORT = (2, 3), (3, 8)
LAST_STEPS = _LAST_EFFORT[1]
# Neighbouring rows do not tell the exponent.
_CERTAIN = 1e-3
# Levels of rows with less than this part of their pixels are not compared with their neighbours', unless most rows have
# less: then those with less than this part of what is usual.
_LEAST_PIXELS, _USUAL_SHARE = 0.6, 0.9
# Blocks with less than this part of their pixels do not tell whether the model holds.
_LEAST_BLOCK = 0.1


@dataclass(frozen=True, slots=True)
class StreamMeasurement:
    """What was measured of one exposure; plain arrays that can be stored, enough to level again with its group's sky.

    Attributes
    ----------
    level : ndarray (y, amplifier) float32
        Of the stripes, in the image's unit; its mean is 0. What is subtracted.
    cell, weight : ndarray (grid_y, cell) float32
        Means of a row's cells of 32 pixels with sky, large sources and stripes in them, and their inverse variances.
    coarse_cell, coarse_weight : ndarray (coarse_y, coarse_x) float32
        Means of 16 rows by 64 pixels without the quick part of the stripes, and their inverse variances.
    sky : ndarray (term,) float32
        Legendre coefficients as `skylevel.kernels.sky.sky_terms` orders them.
    node : ndarray (node_y, node_x) float32
        Heights of the large sources' splines; NaN where none is.
    scatter : ndarray (3, lag) float32
        `LagScatter`'s common, own and error.
    n_rows : int
        Rows behind it.
    noise : StreamNoise
        What the exposure's own scatter says.
    sky_level, white_noise : float
        The sky's level and the standard deviation of a pixel.
    misfit : float
        Scatter of blocks of 64 pixels about the model, in standard deviations of their white noise: below 1 where the
        model holds, several and more in a nebula.
    believed : bool
        Whether the model was used; if not, `level` is the row-to-row part alone, with the steps between amplifiers.
    used : float
        Part of the good pixels that the cells kept.
    source_mask : ndarray (y, x) bool or None
        What stood out of the flat residual; None of a measurement that was stored.
    """

    level: Float32
    cell: Float32
    weight: Float32
    coarse_cell: Float32
    coarse_weight: Float32
    sky: Float32
    node: Float32
    scatter: Float32
    n_rows: int
    noise: StreamNoise
    sky_level: float
    white_noise: float
    misfit: float
    believed: bool
    used: float
    source_mask: Bool | None = None


class StreamSettings(NamedTuple):
    """How an exposure is measured, and its group combined."""

    rejection: Rejection = Rejection()
    sky: SkyShape = SkyShape()
    large_sources: LargeSources = LargeSources()
    stripes: StripePrior = StripePrior()
    #: Where blocks scatter more than this about the model, only what changes from row to row is taken off.
    misfit_limit: float = 2.0


class _Method(NamedTuple):
    """The settings of a measurement, and what follows from them for one exposure."""

    settings: StreamSettings
    model: CoarseModel
    sky_level: float
    white_noise: float

    @property
    def grid(self) -> Grid:
        return self.model.grid

    def priors(self, noise: StreamNoise) -> Priors:
        return Priors(noise, sky_prior(self.settings.sky.steepness), self.sky_level)


class _Cells(NamedTuple):
    """Cells with everything in them, the pixels behind each, the smooth level of the sky, and the mask of sources."""

    mean: Float32
    n_pixels: Float32
    smooth: Float32
    sources: Bool


class _Solution(NamedTuple):
    """Streams, sky and light of large sources at the cells, and how they were found."""

    streams: Float32
    sky: Float32
    light: Float32
    weight: Float32
    coarse: CoarseCells
    nodes: Bool
    fit: CoarseFit
    scatter: LagScatter
    noise: StreamNoise
    misfit: float


_DEFAULTS = StreamSettings()


def measure_streams(
    image: NDArray[np.floating],
    bad: Bool,
    *,
    amplifiers: Amplifiers,
    settings: StreamSettings = _DEFAULTS,
) -> StreamMeasurement:
    """Measure the stripes of one exposure beside its sky and its large sources.

    Parameters
    ----------
    image : ndarray (y, x) float
        Stripes along x. In any unit; not modified.
    bad : ndarray (y, x) bool
        True = excluded. Pixels that are not finite always are.
    amplifiers : Amplifiers
        As `amplifier_layout` gives.
    settings : StreamSettings

    Returns
    -------
    StreamMeasurement

    Raises
    ------
    ShapeError
        `image` is not two-dimensional, or `bad` has another shape.
    NoBackgroundError
        There are too few good pixels side by side to tell the noise, or no cell has enough; or the unit makes the noise
        less than 1e-10 or more than 1e15.

    Notes
    -----
    Amplifiers share a 1/f stream and have one each (spacetelescope/jwst#7262); destriping with the streams' covariance
    as a prior follows TOAST and Madam. Peak extra memory is some 5 times a float32 image; the result takes 7 % of one.
    """
    if image.ndim != 2 or bad.shape != image.shape:
        raise ShapeError(f"the image {image.shape} and the mask {bad.shape} are not two equal planes")
    grid = Grid((image.shape[0], image.shape[1]), amplifiers)
    with np.errstate(over="ignore"):
        # What is too large for it does not count, as what is infinite.
        image = image.astype(np.float32, copy=False)
    good = grid.place(np.isfinite(image) & ~bad, fill=False)
    data = np.where(good, grid.place(image, fill=0), np.float32(0))
    sky_level, white_noise = _level_and_noise(data, good)
    method = _Method(
        settings, coarse_model(grid, settings.sky.degree, settings.large_sources.spacing),
        max(abs(sky_level), _LEAST_SKY * white_noise), white_noise,
    )  # fmt: skip
    return _measure(data, good, sky_level, method)


def _level_and_noise(data: Float32, good: Bool) -> tuple[float, float]:
    """Median and white noise of the good pixels: the noise from neighbours along x, which one stripe holds."""
    for step in (_SAMPLE_ROWS, 1):
        rows, kept = data[::step], good[::step]
        pairs = kept[:, 1:] & kept[:, :-1]
        if pairs.any():
            level = float(np.median(rows[:, 1:][pairs][::_SAMPLE_COLUMNS]))
            noise = spread((rows[:, 1:] - rows[:, :-1])[pairs])[1] / 2**0.5
            noise = max(noise, _LEAST_NOISE * abs(level))
            if noise and not _REACH[0] <= noise <= _REACH[1]:
                reach = "noise between {:.0e} and {:.0e}".format(*_REACH)
                raise NoBackgroundError(f"its noise is {noise:.2g} and streams take {reach}: give it another unit")
            return level, noise or _NO_NOISE
    raise NoBackgroundError("no two good pixels stand side by side: there is no row level to measure")


def _measure(data: Float32, good: Bool, sky_level: float, method: _Method) -> StreamMeasurement:
    grid, noise, misfit_limit = method.grid, method.white_noise, method.settings.misfit_limit
    smooth = cells_of_blocks(block_level(data, good, side=_WIDE), (grid.rows, grid.cells))
    rest = subtract_cells(data, smooth, sloping=True)
    far = _far_rows(rest, good, noise, grid)
    if far.any():
        # Such rows leave their mark in the smooth level too, where it would be taken for light.
        slow = np.median(smooth, axis=1, keepdims=True) - np.float32(sky_level)
        smooth, far = smooth - slow, far + slow
        rest = subtract_cells(data, smooth + far, sloping=True)
    streams = _median_cells(cell_means(rest, good, clip=_NEAR * noise)[0], grid)
    rest, streams = subtract_cells(rest, streams, sloping=False), far + streams
    cells = _measure_cells(rest, good, smooth, streams, method)
    first = _solve(cells, streams, np.maximum(smooth - sky_level, 0), method, _FIRST_EFFORT)
    if first.misfit > misfit_limit:
        return _summary(data, good, cells, first, method)
    smooth = first.sky + first.light
    rest = subtract_cells(data, smooth + first.streams, sloping=True)
    cells = _measure_cells(rest, good, smooth, first.streams, method)
    last = _solve(cells, first.streams, first.light, method, _LAST_EFFORT)
    return _summary(data, good, cells, last, method)


def _far_rows(rest: Float32, good: Bool, noise: float, grid: Grid) -> Float32:
    """Return the level (y, cell) of rows that are far from the others, and would be clipped whole; 0 elsewhere."""
    level = _median_cells(cell_means(rest, good, clip=np.inf)[0], grid)
    level[np.abs(level) < _FAR * noise] = 0
    return level


def _median_cells(mean: Float32, grid: Grid) -> Float32:
    """Return the median of each row's and amplifier's cells, at each of them."""
    return _of_amplifiers(np.median(mean.reshape(grid.rows, grid.amplifiers.count, -1), axis=2), grid)


def _of_amplifiers(level: Float32, grid: Grid) -> Float32:
    return np.repeat(level, grid.slots, axis=1)


def _measure_cells(rest: Float32, good: Bool, smooth: Float32, streams: Float32, method: _Method) -> _Cells:
    """Mask sources in a residual and average what is left in cells, with what was subtracted put back."""
    noise, rejection = method.white_noise, method.settings.rejection
    thresholds = (rejection.source_threshold,) * 3
    sources = source_mask(rest, good, noise=noise, thresholds=thresholds, growth=_GROWTH)
    usable = good & ~sources
    local = cells_of_blocks(block_level(rest, usable, side=_LOCAL), smooth.shape)
    rest = subtract_cells(rest, local, sloping=True)
    mean, count = cell_means(rest, usable, clip=rejection.sigma_clip * noise)
    count[count < rejection.min_pixels] = 0
    if not count.any():
        few = f"no {CELL_WIDTH} pixels of a row hold {rejection.min_pixels} of their surroundings' level"
        raise NoBackgroundError(few)
    return _Cells(mean + local + smooth + streams, count, smooth, sources)


def _row_levels(values: Float32, count: Float32, grid: Grid) -> tuple[Float32, Float32]:
    """Mean (y, amplifier) of the cells, by their pixels, and the number of these."""
    shape = grid.rows, grid.amplifiers.count, grid.slots
    total = count.reshape(shape).sum(axis=2)
    mean = (values * count).reshape(shape).sum(axis=2) / np.maximum(total, np.float32(1))
    return mean.astype(np.float32, copy=False), total


def _enough(count: Float32, grid: Grid) -> Float32:
    """Return how many pixels (amplifier,) a row's level needs to be compared: fewer where most rows have no more."""
    usual = np.maximum(_USUAL_SHARE * np.median(count[: grid.shape[0]], axis=0), CELL_WIDTH)
    return np.asarray(np.minimum(_LEAST_PIXELS * grid.amplifiers.width, usual), np.float32)


def _coarse_sums(values: Float32, grid: Grid) -> Float64:
    n_y, n_x = grid.coarse_shape
    return np.asarray(values.reshape(n_y, COARSE_ROWS, n_x, COARSE_CELLS).sum(axis=(1, 3), dtype=np.float64))


def _at_cells(coarse: Float64, rows: int = COARSE_ROWS, cells: int = COARSE_CELLS) -> Float32:
    return np.repeat(np.repeat(coarse, rows, axis=0), cells, axis=1).astype(np.float32)


def amplifier_means(streams: Float32, grid: Grid) -> Float32:
    """Return the mean (y, amplifier) of the cells (y, cell) that each amplifier reads in a row."""
    return np.asarray(streams.reshape(grid.rows, grid.amplifiers.count, -1).mean(axis=2))


def _slow(streams: Float32, grid: Grid) -> Float64:
    """Mean of the streams over coarse rows (coarse_y, amplifier)."""
    n_y, n = grid.coarse_shape[0], grid.amplifiers.count
    return np.asarray(streams.reshape(n_y, COARSE_ROWS, n, -1).mean(axis=(1, 3), dtype=np.float64))


def _solve(cells: _Cells, streams: Float32, light: Float32, method: _Method, effort: tuple[int, int]) -> _Solution:
    """Solve for sky, large sources and streams, given streams and light that are nearly right."""
    grid = method.grid
    level, count = _row_levels(cells.mean - cells.smooth, cells.n_pixels, grid)
    scatter = lag_scatter(level, count, white_noise=method.white_noise, enough=_enough(count, grid))
    noise = _noise(scatter, method)
    weight = _weights(cells.n_pixels, light, method.white_noise)
    slow = _slow(streams, grid)
    rest = cells.mean - (streams - _at_cells(slow, COARSE_ROWS, grid.slots))
    coarse_weight = _coarse_sums(weight, grid)
    coarse = CoarseCells(_coarse_sums(rest * weight, grid) / np.maximum(coarse_weight, NO_WEIGHT), coarse_weight)
    nodes = find_large_sources(
        method.model, coarse, method.priors(noise), sought=method.settings.large_sources, rounds=_LOWER_ROUNDS
    )
    fit, robust = _fit_robustly(coarse, nodes, noise, method, effort[0])
    sky, light = method.model.sky(fit.sky), method.model.sources(node_heights(nodes, fit.nodes))
    weight = weight * _at_cells(robust)
    streams = streams_beside(cells.mean - sky - light, weight, fit, noise, grid, effort[1])
    misfit = _misfit(cells, sky + light + streams, method.white_noise, grid)
    robust_coarse = CoarseCells(coarse.value, coarse.weight * robust)
    return _Solution(streams, sky, light, weight, robust_coarse, nodes, fit, scatter, noise, misfit)


def streams_beside(
    rest: Float32, weight: Float32, fit: CoarseFit, noise: StreamNoise, grid: Grid, n_steps: int
) -> Float32:
    """Streams (y, cell) of what sky and light leave, from the slow ones that were found with them on."""
    slow = stretch_rows(fit.slow.astype(np.float32), grid.rows)
    return smooth_streams(
        rest,
        weight,
        noise=noise,
        right_to_left=grid.amplifiers.right_to_left,
        n_steps=n_steps,
        start=_of_amplifiers(slow, grid),
    )


def _noise(scatter: LagScatter, method: _Method) -> StreamNoise:
    return estimate_noise(
        scatter, slots=method.grid.slots, white_noise=method.white_noise, prior=method.settings.stripes
    )


def _weights(count: Float32, light: Float32, noise: float) -> Float32:
    """Inverse variances of cells: white noise, and what the splines may miss of a large source."""
    excess = np.maximum(light - np.float32(_FAINT * noise), 0)
    variance = noise**2 / np.maximum(count, 1) + (excess * excess / np.float32(_TOLERANCE * noise)) ** 2
    return np.where(count > 0, 1 / variance, 0).astype(np.float32)


def _fit_robustly(
    cells: CoarseCells, nodes: Bool, noise: StreamNoise, method: _Method, n_rounds: int
) -> tuple[CoarseFit, Float64]:
    """Solve the coarse model in rounds: cells that stand out lose weight, splines may be as high as they were found.

    Returns the last fit and the weights' factors (coarse_y, coarse_x).
    """
    value, weight = cells
    robust, rms = np.ones_like(value), np.full(int(nodes.sum()), _FREE_HEIGHT * method.white_noise)
    for _ in range(n_rounds):
        splines = Splines(nodes, rms) if rms.size else None
        fit = solve_coarse(method.model, CoarseCells(value, weight * robust), method.priors(noise), splines=splines)
        rest = (value - fit.fit) * np.sqrt(weight)
        scale = max(spread(rest[weight > 0])[1], 1.0) if (weight > 0).any() else 1.0
        used, robust = robust, np.minimum(_ROBUST * scale / np.maximum(np.abs(rest), 1e-9), 1)
        rms = spline_rms(nodes, fit.nodes, noise=method.white_noise)
    return fit, used


def node_heights(nodes: Bool, heights: Float64) -> Float64:
    """Return splines' heights (node,) at their nodes (node_y, node_x); 0 where none is."""
    everywhere = np.zeros(nodes.shape)
    everywhere[nodes] = heights
    return everywhere


def _misfit(cells: _Cells, model: Float32, noise: float, grid: Grid) -> float:
    """Scatter of blocks of 64 pixels about the model, in standard deviations of their white noise."""
    rest = (cells.mean - model) * cells.n_pixels
    total, count = (v.reshape(grid.rows // _WIDE, _WIDE, -1, 2).sum(axis=(1, 3)) for v in (rest, cells.n_pixels))
    known = count > _LEAST_BLOCK * _WIDE**2
    return spread(total[known] / (np.sqrt(count[known]) * noise))[1] if known.any() else 0.0


def _row_to_row(data: Float32, good: Bool, cells: _Cells, method: _Method) -> Float32:
    """Take the levels' row-to-row part, and steps between amplifiers, where slow stripes cannot be told from light."""
    grid = method.grid
    level, count = _row_levels(cells.mean - cells.smooth, cells.n_pixels, grid)
    # Where light leaves but few pixels in most rows, what they differ by is light.
    enough = _enough(good.reshape(grid.rows, grid.amplifiers.count, -1).sum(axis=2, dtype=np.float32), grid)
    scatter = lag_scatter(level, count, white_noise=method.white_noise, enough=enough)
    prior = method.settings.stripes._replace(exponent_rms=_CERTAIN)
    noise = estimate_noise(
        nearest_lags(scatter), slots=grid.slots, white_noise=method.white_noise, prior=prior
    )
    steps = border_steps(data, good & ~cells.sources, grid, white_noise=method.white_noise)
    own = step_levels(steps, noise, grid)
    white = method.white_noise**2 / max(_LEAST_PIXELS * grid.amplifiers.width, 1)
    lit, fraction = _lit_cells(cells, grid)
    return own + octave_levels(lit - _of_amplifiers(own, grid), fraction, noise, grid, white=white)


def _lit_cells(cells: _Cells, grid: Grid) -> tuple[Float32, Float32]:
    """Cells with all their light, and the part of each that was measured: the rest is smooth, as high as its row."""
    above, count = _row_levels(cells.mean - cells.smooth, cells.n_pixels, grid)
    known = count > _LEAST_PIXELS / 4 * grid.amplifiers.width
    fraction = cells.n_pixels / np.float32(CELL_WIDTH)
    level = _of_amplifiers(_interpolated(above, known), grid)
    return cells.smooth + fraction * (cells.mean - cells.smooth) + (1 - fraction) * level, fraction


def _interpolated(level: Float32, known: Bool) -> Float32:
    """Return levels (y, amplifier) with gaps filled along y, linearly; 0 for an amplifier that has none."""
    rows = np.arange(len(level))
    filled = [
        np.interp(rows, rows[there], values[there]) if there.any() else np.zeros(len(rows))
        for values, there in zip(level.T, known.T, strict=True)
    ]
    return np.stack(filled, axis=1).astype(np.float32)


def _summary(data: Float32, good: Bool, cells: _Cells, solution: _Solution, method: _Method) -> StreamMeasurement:
    node = np.full(solution.nodes.shape, np.nan, np.float32)
    node[solution.nodes] = solution.fit.nodes
    grid, scatter = method.grid, solution.scatter
    believed = solution.misfit <= method.settings.misfit_limit
    level = amplifier_means(solution.streams, grid) if believed else _row_to_row(data, good, cells, method)
    level = level[: grid.shape[0]]
    common, own, error, n_rows = scatter
    return StreamMeasurement(
        level=(level - level.mean()).astype(np.float32),
        cell=np.where(solution.weight > 0, cells.mean, np.float32(0)),
        weight=solution.weight,
        coarse_cell=solution.coarse.value.astype(np.float32),
        coarse_weight=solution.coarse.weight.astype(np.float32),
        sky=solution.fit.sky.astype(np.float32),
        node=node,
        scatter=np.stack([common, own, error]).astype(np.float32),
        n_rows=n_rows,
        noise=solution.noise,
        sky_level=method.sky_level,
        white_noise=method.white_noise,
        misfit=solution.misfit,
        believed=believed,
        used=float(cells.n_pixels.sum() / max(int(np.count_nonzero(good)), 1)),
        source_mask=grid.take(cells.sources & good),
    )


def subtract_levels(image: NDArray[np.floating], level: Float32, *, amplifiers: Amplifiers) -> NDArray[np.floating]:
    """Subtract the stripes; the sky stays.

    Parameters
    ----------
    image : ndarray (y, x) float
        Not modified.
    level : ndarray (y, amplifier) float32
        In the image's unit; where it is NaN the pixels keep their values.
    amplifiers : Amplifiers

    Returns
    -------
    ndarray (y, x) of `image`'s dtype

    Raises
    ------
    ShapeError
        `level` has not a row for each of the image's and a column for each amplifier.
    """
    if image.ndim != 2 or level.shape != (image.shape[0], amplifiers.count):
        raise ShapeError(f"levels {level.shape} do not fit an image {image.shape} of {amplifiers.count} amplifiers")
    levelled = image.copy()
    edges = amplifiers.edges(image.shape[1])
    offset = np.nan_to_num(level).astype(image.dtype)
    for k, (start, stop) in enumerate(pairwise(edges)):
        levelled[:, start:stop] -= offset[:, k, None]
    return levelled
