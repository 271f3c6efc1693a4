"""A sky of low degree, large sources and slow streams, solved together on coarse cells."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import product
from typing import NamedTuple

import numpy as np
import scipy
from numpy.polynomial import hermite_e, legendre
from numpy.typing import NDArray

from skylevel.kernels.amplifiers import CELL_WIDTH, COARSE_CELLS, COARSE_ROWS, Grid
from skylevel.kernels.streams import StreamNoise, block_precision

Bool = NDArray[np.bool_]
Float32 = NDArray[np.float32]
Float64 = NDArray[np.float64]
Floats = NDArray[np.floating]

# The sky's mean level is not held by any prior.
_FREE = 1e3
# Divided by in place of nothing.
NO_WEIGHT = 1e-300
# Places at which the steepness of the sky is tried, for all degrees together and for each.
_USUAL_NODES, _RARE_NODES, _OWN_NODES = 7, 6, 3


class SkyPrior(NamedTuple):
    """How steep a sky may be.

    Attributes
    ----------
    fractions : tuple of float
        For each degree from 1, what a Legendre coefficient is expected to be, as a part of the sky's level.
    common_spread, own_spread : float
        By how many e-foldings the steepness of all degrees together, and of each, may differ from that (rms). How
        steep this sky is, is read from what the data say of all its terms.
    rare_share, rare_spread : float
        Of so many skies nothing is expected but this spread of the steepness of all degrees: some are flat.
    """

    fractions: tuple[float, ...] = (0.015, 0.004, 0.001)
    common_spread: float = 0.35
    own_spread: float = 0.25
    rare_share: float = 0.05
    rare_spread: float = 1.4


class SkyShape(NamedTuple):
    """What a sky may look like.

    Attributes
    ----------
    degree : int
        Of its Legendre polynomial, both directions together.
    steepness : float
        How large a gradient is expected, as a part of the sky's level (the rms coefficient of degree 1). How steep a
        sky is, is read from the data; this says where to begin.
    """

    degree: int = 3
    steepness: float = 0.015


class CoarseCells(NamedTuple):
    """Means of 16 rows by 64 pixels, and their inverse variances: ndarrays (coarse_y, coarse_x) float64."""

    value: Float64
    weight: Float64


class Priors(NamedTuple):
    """What is expected before the coarse model is solved.

    Attributes
    ----------
    noise : StreamNoise
        Of the streams.
    sky : SkyPrior
    level : float
        The sky's, that its prior is a part of.
    """

    noise: StreamNoise
    sky: SkyPrior
    level: float


class Splines(NamedTuple):
    """Where a large source may be, and how high.

    Attributes
    ----------
    at : ndarray (node_y, node_x) bool
    rms : ndarray (node,) float64
        Of the height of each that may be.
    """

    at: Bool
    rms: Float64


def sky_prior(steepness: float) -> SkyPrior:
    """Return the prior of a sky whose coefficients of degree 1 are expected to be this part of its level."""
    return SkyPrior((steepness, steepness / 4, steepness / 15))


class SkyInformation(NamedTuple):
    """What an exposure says about the sky, all else marginalised.

    Attributes
    ----------
    matrix : ndarray (term, term) float64
        Inverse covariance of the coefficients.
    vector : ndarray (term,) float64
        `matrix` times the coefficients that fit best.
    """

    matrix: Float64
    vector: Float64

    def without_level(self) -> "SkyInformation":
        """Return what is said about the shape (term - 1,), the exposure's own level marginalised."""
        m, v = self.matrix, self.vector
        share = m[1:, 0] / max(float(m[0, 0]), NO_WEIGHT)
        return SkyInformation(m[1:, 1:] - np.outer(share, m[0, 1:]), v[1:] - share * v[0])


class CoarseFit(NamedTuple):
    """Sky, large sources and slow streams of one exposure.

    Attributes
    ----------
    sky : ndarray (term,) float64
    information : SkyInformation
    nodes : ndarray (node,) float64
        Heights of the large sources' splines.
    fit : ndarray (coarse_y, coarse_x) float64
        Everything together at the coarse cells.
    slow : ndarray (coarse_y, amplifier) float64
        The streams in it.
    """

    sky: Float64
    information: SkyInformation
    nodes: Float64
    fit: Float64
    slow: Float64


def sky_terms(degree: int) -> tuple[tuple[int, int], ...]:
    """Return the degrees (along x, along y) of the sky's terms, the constant first."""
    return tuple((i, j) for total in range(degree + 1) for j in range(total + 1) for i in (total - j,))


def _legendre(at: Floats, n: int, degree: int) -> Float64:
    """Legendre polynomials (place, degree + 1) at pixel positions of an axis of n pixels."""
    return np.asarray(legendre.legvander((at + 0.5) / n * 2 - 1, degree))


def _spline(at: Floats) -> Float64:
    """Cubic B-spline, knots at whole numbers."""
    a = np.abs(at)
    return np.where(a < 1, 2 / 3 - a**2 + a**3 / 2, np.where(a < 2, (2 - a) ** 3 / 6, 0))


def _means(values: Float64, n: int) -> Float64:
    """Means over n consecutive places of the first axis."""
    return np.asarray(values.reshape(-1, n, *values.shape[1:]).mean(axis=1))


@dataclass(frozen=True, eq=False)
class CoarseModel:
    """The linear model of a grid's coarse cells.

    Attributes
    ----------
    grid : Grid
    terms : tuple
        As `sky_terms` gives.
    along_y, along_x : ndarray (y or cell, degree + 1) float64
        Legendre polynomials at rows and cells.
    node_rows, node_cells : ndarray (y or cell, node) float64
        Splines of large sources at rows and cells.
    """

    grid: Grid
    terms: tuple[tuple[int, int], ...]
    along_y: Float64
    along_x: Float64
    node_rows: Float64
    node_cells: Float64

    @property
    def node_shape(self) -> tuple[int, int]:
        """Nodes of the splines along y and x."""
        return self.node_rows.shape[1], self.node_cells.shape[1]

    def design(self) -> Float64:
        """Return the sky's terms at the coarse cells (coarse cell, term)."""
        y, x = _means(self.along_y, COARSE_ROWS), _means(self.along_x, COARSE_CELLS)
        return np.stack([np.outer(y[:, j], x[:, i]).ravel() for i, j in self.terms], axis=1)

    def coarse_splines(self) -> tuple[Float64, Float64]:
        """Return the splines at the coarse rows and columns."""
        return _means(self.node_rows, COARSE_ROWS), _means(self.node_cells, COARSE_CELLS)

    def sky(self, coefficients: Float64) -> Float32:
        """Return the sky (y, cell) of coefficients (term,)."""
        shape = np.zeros((self.along_y.shape[1], self.along_x.shape[1]))
        for c, (i, j) in zip(coefficients, self.terms, strict=True):
            shape[j, i] = c
        return np.asarray(self.along_y @ shape @ self.along_x.T, np.float32)

    def sources(self, heights: Float64) -> Float32:
        """Return the light (y, cell) of splines of `heights` (node_y, node_x)."""
        return np.asarray(self.node_rows @ heights @ self.node_cells.T, np.float32)


@lru_cache(maxsize=8)
def coarse_model(grid: Grid, degree: int, node_spacing: int) -> CoarseModel:
    """Return the model of a grid; `node_spacing` of the large sources' splines in pixel."""
    n_y, n_x = grid.shape
    y, x = np.arange(grid.rows, dtype=np.float64), grid.x()
    rows, columns = _splines(y, n_y, node_spacing), _splines(x, n_x, node_spacing)
    return CoarseModel(
        grid,
        sky_terms(degree),
        _legendre(y, n_y, degree),
        _means(_legendre(x, n_x, degree), CELL_WIDTH),
        rows,
        _means(columns, CELL_WIDTH),
    )


def smooth_surface(
    coefficients: Floats, heights: Floats, at: Sequence[Floats], *, shape: Sequence[int], degree: int, spacing: int
) -> Float64:
    """Sky and large sources at some rows and columns.

    Parameters
    ----------
    coefficients : ndarray (term,) float
        Of the sky, as `sky_terms` orders them.
    heights : ndarray (node_y, node_x) float
        Of the splines; NaN where none is.
    at : pair of ndarray float
        Rows (row,) and columns (column,) in pixel.
    shape : pair of int
        Rows and columns of the image.
    degree, spacing : int
        Of the sky's polynomial, and of the splines in pixel.

    Returns
    -------
    ndarray (row, column) float64
    """
    splines = [_splines(a, n, spacing) for a, n in zip(at, shape, strict=True)]
    along_y, along_x = (_legendre(a, n, degree) for a, n in zip(at, shape, strict=True))
    terms = zip(coefficients, sky_terms(degree), strict=True)
    sky = sum(float(c) * np.outer(along_y[:, j], along_x[:, i]) for c, (i, j) in terms)
    return np.asarray(sky + splines[0] @ np.nan_to_num(heights).astype(np.float64) @ splines[1].T)


def _splines(at: Floats, n: int, spacing: int) -> Float64:
    """Splines (place, node) of an axis of n pixels at pixel positions."""
    return _spline((at[:, None] + 0.5) / spacing + 1 - np.arange(-(-n // spacing) + 3))


def solve_coarse(
    model: CoarseModel,
    cells: CoarseCells,
    priors: Priors,
    *,
    splines: Splines | None = None,
    shape: Float64 | None = None,
) -> CoarseFit:
    """Solve for sky, large sources and slow streams, the most probable together.

    Parameters
    ----------
    model : CoarseModel
    cells : CoarseCells
    priors : Priors
    splines : Splines, optional
        Of large sources.
    shape : ndarray (term - 1,) float64, optional
        The sky's coefficients but the first where they are known: only the level is solved for.

    Returns
    -------
    CoarseFit
    """
    design, n_terms = model.design(), len(model.terms)
    if splines is not None:
        design = np.hstack([design, _node_design(model, splines.at)])
    streams = _Streams(model.grid, priors.noise, cells.weight)
    inner = streams.eliminate(design, *cells)
    matrix, vector = inner.matrix, inner.vector
    if splines is not None:
        at = np.arange(n_terms, design.shape[1])
        matrix[at, at] += 1 / splines.rms**2
    information, heights = _marginalised(matrix, vector, n_terms)
    if shape is not None:
        sky = _at_shape(information, shape)
    else:
        sky = sky_posterior(information, model.terms, priors.sky, priors.level)
    everything = np.concatenate([sky, heights[:, -1] - heights[:, :-1] @ sky])
    slow = streams.levels(inner, everything).reshape(-1, model.grid.coarse_shape[0]).T
    per_amplifier = model.grid.coarse_shape[1] // slow.shape[1]
    fit = (design @ everything).reshape(cells.value.shape) + np.repeat(slow, per_amplifier, axis=1)
    return CoarseFit(sky, information, everything[n_terms:], fit, slow)


def _node_design(model: CoarseModel, nodes: Bool) -> Float64:
    along_y, along_x = model.coarse_splines()
    iy, ix = np.nonzero(nodes)
    return np.asarray((along_y[:, None, iy] * along_x[None, :, ix]).reshape(-1, len(iy)))


class _Eliminated(NamedTuple):
    """Normal equations without the streams, and what gives the streams back."""

    matrix: Float64
    vector: Float64
    half: Float64


class _Streams:
    """Slow streams: one level for each amplifier and coarse row."""

    def __init__(self, grid: Grid, noise: StreamNoise, weights: Float64) -> None:
        n, n_y = grid.amplifiers.count, grid.coarse_shape[0]
        self.n_amplifiers = n
        shared = np.full((n, n), 1 / n)
        precision = block_precision(n_y, COARSE_ROWS * grid.slots, noise.exponent)
        prior = np.kron(shared / (n * noise.common + noise.own) + (np.eye(n) - shared) / noise.own, precision)
        weight = self.sums(weights.reshape(-1, 1), weights.shape)[:, 0]
        self.factor = scipy.linalg.cholesky(prior + np.diag(weight), lower=True, check_finite=False, overwrite_a=True)

    def sums(self, columns: Float64, shape: tuple[int, ...]) -> Float64:
        """Sums (amplifier and coarse row, column) over each amplifier's coarse cells."""
        n_y, n_x = shape
        by_amplifier = columns.reshape(n_y, self.n_amplifiers, n_x // self.n_amplifiers, -1).sum(axis=2)
        return np.asarray(by_amplifier.transpose(1, 0, 2).reshape(self.n_amplifiers * n_y, -1))

    def eliminate(self, design: Float64, cells: Float64, weights: Float64) -> _Eliminated:
        root = np.sqrt(weights).reshape(-1, 1)
        # A product of an array with itself takes half the time of one of two arrays.
        everything = np.hstack([design, cells.reshape(-1, 1)]) * root
        half = scipy.linalg.solve_triangular(self.factor, self.sums(everything * root, cells.shape), lower=True)
        normal = everything.T @ everything - half.T @ half
        return _Eliminated(normal[:-1, :-1], normal[:-1, -1], half)

    def levels(self, inner: _Eliminated, coefficients: Float64) -> Float64:
        """Return the streams (amplifier and coarse row) beside the design's coefficients."""
        rest = inner.half[:, -1] - inner.half[:, :-1] @ coefficients
        return np.asarray(scipy.linalg.solve_triangular(self.factor, rest, lower=True, trans="T"))


def _marginalised(matrix: Float64, vector: Float64, n: int) -> tuple[SkyInformation, Float64]:
    """Information on the first n unknowns; the others as a linear function of them (other, n + 1), constant last."""
    if len(vector) == n:
        return SkyInformation(matrix, vector), np.zeros((0, n + 1))
    others = scipy.linalg.solve(matrix[n:, n:], np.column_stack([matrix[n:, :n], vector[n:]]), assume_a="pos")
    inner = matrix[:n, :n] - matrix[:n, n:] @ others[:, :-1]
    return SkyInformation((inner + inner.T) / 2, vector[:n] - matrix[:n, n:] @ others[:, -1]), others


def _at_shape(information: SkyInformation, shape: Float64) -> Float64:
    level = (information.vector[0] - information.matrix[0, 1:] @ shape) / max(information.matrix[0, 0], NO_WEIGHT)
    return np.concatenate([[level], shape])


def sky_posterior(
    information: SkyInformation, terms: tuple[tuple[int, int], ...], prior: SkyPrior, level: float
) -> Float64:
    """Return the mean coefficients (term,) of the sky: `shape_posterior` without the covariance."""
    weight, mean, _ = _at_steepnesses(information, terms, prior, level)
    return np.asarray(weight @ mean)


def shape_posterior(
    information: SkyInformation, terms: tuple[tuple[int, int], ...], prior: SkyPrior, level: float
) -> tuple[Float64, Float64]:
    """Mean and covariance of the sky's coefficients, over how steep it may be as far as the data allow.

    Parameters
    ----------
    information : SkyInformation
    terms : tuple
        Degrees of each term, as `sky_terms` gives them (with or without the first).
    prior : SkyPrior
    level : float
        The sky's.

    Returns
    -------
    mean : ndarray (term,) float64
    covariance : ndarray (term, term) float64

    Notes
    -----
    Terms that change along x are known far better than the stripes' noise; they tell how steep a sky this is, and so
    how much of what changes along y may be sky. Steepnesses are summed over, each by the evidence for it.
    """
    weight, mean, posterior = _at_steepnesses(information, terms, prior, level)
    covariance = np.linalg.inv(np.tensordot(weight, posterior, 1))
    return np.asarray(weight @ mean), np.asarray(covariance, np.float64)


def _at_steepnesses(
    information: SkyInformation, terms: tuple[tuple[int, int], ...], prior: SkyPrior, level: float
) -> tuple[Float64, Float64, Float64]:
    """Return each steepness' probability (steepness,), mean (steepness, term) and inverse covariance."""
    matrix, vector = information
    rms, weight = _steepnesses(terms, prior)
    precision = 1 / (rms * level) ** 2
    posterior = matrix + precision[:, :, None] * np.eye(len(terms))
    right = np.broadcast_to(vector[:, None], (len(rms), len(vector), 1))
    mean = np.asarray(np.linalg.solve(posterior, right)[..., 0], np.float64)
    evidence = mean @ vector / 2 - np.linalg.slogdet(posterior)[1] / 2 + np.log(precision).sum(axis=1) / 2
    weight = weight * np.exp(evidence - evidence.max())
    return weight / weight.sum(), mean, posterior


@lru_cache(maxsize=8)
def _steepnesses(terms: tuple[tuple[int, int], ...], prior: SkyPrior) -> tuple[Float64, Float64]:
    """Rms of each term (steepness, term) as a part of the sky's level, and each steepness' probability."""
    degrees = [i + j for i, j in terms]
    top = max(degrees)
    usual = _spread_nodes(_USUAL_NODES, prior.common_spread, 1 - prior.rare_share)
    rare = _spread_nodes(_RARE_NODES, prior.rare_spread, prior.rare_share)
    axes = [np.hstack([usual, rare]), *[_spread_nodes(_OWN_NODES, prior.own_spread, 1.0)] * top]
    at = np.array(list(product(*(nodes for nodes, _ in axes))))
    weight = np.array([np.prod(w) for w in product(*(w for _, w in axes))])
    fractions = np.array(prior.fractions)[np.minimum(np.arange(top), len(prior.fractions) - 1)]
    by_degree = fractions * np.exp(at[:, :1] + at[:, 1:])
    rms = np.column_stack([np.full(len(at), _FREE), by_degree])[:, degrees]
    return rms, weight


def _spread_nodes(n: int, spread: float, share: float) -> Float64:
    """Return `n` places of a normal distribution about 0, and what each stands for of a whole of `share`: (2, n)."""
    nodes, weight = hermite_e.hermegauss(n)
    return np.stack([spread * nodes, share * weight / weight.sum()])
