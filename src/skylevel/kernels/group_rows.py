"""What exposures of one detector and filter know together: the sky that they share, and how strong their stripes are.

`combine_group` finds it from what `skylevel.kernels.best_rows.measure_streams` measured of each; `relevel` takes the
levels of one exposure again, with it, from the stored cells and without pixels.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from skylevel.kernels.amplifiers import Amplifiers, Grid
from skylevel.kernels.best_rows import (
    LAST_STEPS,
    StreamMeasurement,
    StreamSettings,
    amplifier_means,
    node_heights,
    streams_beside,
)
from skylevel.kernels.large_sources import spline_rms
from skylevel.kernels.sky import (
    CoarseCells,
    CoarseFit,
    CoarseModel,
    Priors,
    SkyInformation,
    SkyPrior,
    Splines,
    coarse_model,
    shape_posterior,
    sky_prior,
    solve_coarse,
)
from skylevel.kernels.streams import LagScatter, StreamNoise, estimate_noise, pool_scatters

Bool = NDArray[np.bool_]
Float32 = NDArray[np.float32]
Float64 = NDArray[np.float64]

# An exposure whose sky is further from its group's is left to itself, in units of what is expected; nearer ones lose
# weight from the second number on.
_DISAGREES, _SUSPECT = 50.0, 9.0
_GROUP_ROUNDS = 5
# One whose noise or sky is so many times the group's, or so little of it, is in another unit or of another kind.
_UNLIKE_NOISE, _UNLIKE_SKY = 100.0, 1000.0
_DEFAULTS = StreamSettings()


@dataclass(frozen=True, slots=True)
class GroupSky:
    """What exposures of one detector and filter know together.

    Attributes
    ----------
    shape : ndarray (term - 1,) float64
        The sky's coefficients but the first, as a part of `reference`.
    reference : float
        The sky's level that `shape` was scaled to.
    noise : StreamNoise
        Of the stripes, pooled.
    distance : ndarray (exposure,) float32
        How far each exposure's sky is from the shared one, 1 being expected; NaN where nothing could be compared.
    member : ndarray (exposure,) bool
        Whether the exposure takes the shared sky; the others are left to themselves.
    """

    shape: Float64
    reference: float
    noise: StreamNoise
    distance: Float32
    member: Bool


def combine_group(
    measurements: Sequence[StreamMeasurement],
    *,
    shape: tuple[int, int],
    amplifiers: Amplifiers,
    settings: StreamSettings = _DEFAULTS,
) -> GroupSky | None:
    """Find the sky that exposures of one detector and filter share.

    Parameters
    ----------
    measurements : sequence of StreamMeasurement
        Of one shape and layout; `cell` and `weight` are not looked at.
    shape : tuple of int
        Rows and columns of the images.
    amplifiers : Amplifiers
    settings : StreamSettings
        As `measure_streams` was given.

    Returns
    -------
    GroupSky or None
        None where fewer than two exposures can be compared: each is left to itself.

    Notes
    -----
    Exposures share the sky (and what the flat left), not the stripes: what each says of the sky's shape, its own level
    and all else marginalised, is summed. How strong the stripes are and how their spectrum falls is pooled first; an
    exposure's own estimate would give those that drift most the greatest weight.
    """
    at = _comparable(measurements)
    believed = [m for m, compared in zip(measurements, at, strict=True) if compared]
    if len(believed) < 2:
        return None
    grid = Grid(shape, amplifiers)
    model = _model(grid, settings)
    prior = sky_prior(settings.sky.steepness)
    reference = float(np.median([m.sky_level for m in believed]))
    noise = _pooled_noise(believed, grid, settings)
    said = [_shape_information(m, model, noise, prior, reference) for m in believed]
    common, distance = _agreed_shape(said, model, prior, reference)
    everyone = np.full(len(measurements), np.nan, np.float32)
    everyone[at] = distance
    member = at & (np.nan_to_num(everyone, nan=np.inf) < _DISAGREES)
    return GroupSky(common / reference, reference, noise, everyone, member)


def _comparable(measurements: Sequence[StreamMeasurement]) -> Bool:
    """Return which exposures (exposure,) a model describes that have about the group's noise and sky."""
    at = np.array([m.believed for m in measurements], bool)
    scales = np.array([(m.white_noise, m.sky_level) for m in measurements]).reshape(-1, 2)
    if at.any():
        # Of a member, not between two.
        usual = np.sort(scales[at], axis=0)[at.sum() // 2]
        ratio = np.maximum(scales, 1e-300) / np.maximum(usual, 1e-300)
        reach = np.array([_UNLIKE_NOISE, _UNLIKE_SKY])
        at &= ((ratio < reach) & (ratio > 1 / reach)).all(axis=1)
    return at


def _model(grid: Grid, settings: StreamSettings) -> CoarseModel:
    return coarse_model(grid, settings.sky.degree, settings.large_sources.spacing)


def _pooled_noise(measurements: Sequence[StreamMeasurement], grid: Grid, settings: StreamSettings) -> StreamNoise:
    scatter = pool_scatters([_lag_scatter_of(m) for m in measurements])
    white = float(np.median([m.white_noise for m in measurements]))
    return estimate_noise(scatter, slots=grid.slots, white_noise=white, prior=settings.stripes)


def _lag_scatter_of(measurement: StreamMeasurement) -> LagScatter:
    common, own, error = measurement.scatter.astype(np.float64)
    return LagScatter(common, own, error, measurement.n_rows)


def _shape_information(
    measurement: StreamMeasurement, model: CoarseModel, noise: StreamNoise, prior: SkyPrior, reference: float
) -> SkyInformation:
    """What an exposure says of the sky's shape at the reference level."""
    fit = _solve_again(measurement, model, noise, prior)
    scale = measurement.sky_level / reference
    matrix, vector = fit.information.without_level()
    return SkyInformation(matrix * scale**2, vector * scale)


def _solve_again(
    measurement: StreamMeasurement,
    model: CoarseModel,
    noise: StreamNoise,
    prior: SkyPrior,
    shape: Float64 | None = None,
) -> CoarseFit:
    """Solve the coarse model of a measurement with other noise, or with a known sky."""
    nodes = np.isfinite(measurement.node)
    heights = measurement.node[nodes].astype(np.float64)
    rms = spline_rms(nodes, heights, noise=measurement.white_noise)
    cells = CoarseCells(measurement.coarse_cell.astype(np.float64), measurement.coarse_weight.astype(np.float64))
    priors = Priors(noise, prior, measurement.sky_level)
    return solve_coarse(model, cells, priors, splines=Splines(nodes, rms) if rms.size else None, shape=shape)


def _agreed_shape(
    said: Sequence[SkyInformation], model: CoarseModel, prior: SkyPrior, reference: float
) -> tuple[Float64, Float64]:
    """Sum what exposures say, those that differ with less weight; also how far each is from the sum."""
    weight, n = np.ones(len(said)), len(model.terms) - 1
    for _ in range(_GROUP_ROUNDS):
        total = SkyInformation(
            np.asarray(sum(w * s.matrix for w, s in zip(weight, said, strict=True))),
            np.asarray(sum(w * s.vector for w, s in zip(weight, said, strict=True))),
        )
        shape, covariance = shape_posterior(total, model.terms[1:], prior, reference)
        distance = np.array([_distance(s, shape, covariance) for s in said]) / n
        weight = np.minimum(1, _SUSPECT / np.maximum(distance, 1e-9))
    return shape, distance


def _distance(said: SkyInformation, shape: Float64, covariance: Float64) -> float:
    """Squared distance of what one exposure says from the shared shape, in units of what is expected."""
    rest = said.vector - said.matrix @ shape
    expected = said.matrix + said.matrix @ covariance @ said.matrix
    # What an exposure says nothing of cannot differ.
    return float(rest @ np.linalg.pinv(expected, hermitian=True) @ rest)


def relevel(
    measurement: StreamMeasurement,
    group: GroupSky,
    *,
    shape: tuple[int, int],
    amplifiers: Amplifiers,
    settings: StreamSettings = _DEFAULTS,
) -> Float32:
    """Levels of an exposure's rows where the sky is its group's.

    Parameters
    ----------
    measurement : StreamMeasurement
        Of a member of the group.
    group : GroupSky
    shape : tuple of int
        Rows and columns of the image.
    amplifiers : Amplifiers
    settings : StreamSettings
        As `measure_streams` was given.

    Returns
    -------
    ndarray (y, amplifier) float32
        In the image's unit; its mean is 0.
    """
    grid = Grid(shape, amplifiers)
    model = _model(grid, settings)
    coefficients = group.shape * measurement.sky_level
    fit = _solve_again(measurement, model, group.noise, SkyPrior(), coefficients)
    nodes = np.isfinite(measurement.node)
    smooth = model.sky(fit.sky) + model.sources(node_heights(nodes, fit.nodes))
    streams = streams_beside(measurement.cell - smooth, measurement.weight, fit, group.noise, grid, LAST_STEPS)
    level = amplifier_means(streams, grid)[: shape[0]]
    return (level - level.mean()).astype(np.float32)
