"""Where light reaches further than masks do: large galaxies, described by splines beside the sky."""

from typing import NamedTuple

import numpy as np
import scipy
from numpy.typing import NDArray

from skylevel.kernels.amplifiers import CELL_WIDTH, COARSE_CELLS, COARSE_ROWS
from skylevel.kernels.cells import grown, spread
from skylevel.kernels.sky import NO_WEIGHT, CoarseCells, CoarseModel, Priors, solve_coarse

Bool = NDArray[np.bool_]
Float64 = NDArray[np.float64]

# A block of 64 x 64 pixels.
_BLOCK_ROWS = 64 // COARSE_ROWS
_BLOCK_COLUMNS = 64 // (COARSE_CELLS * CELL_WIDTH)
# Fewer blocks than this hold no large source that could be told from the sky.
_FEWEST_BLOCKS = 36
_PLANE_ROUNDS = 15
# Blocks of less than this part of the median weight say nothing.
_LEAST_WEIGHT = 0.2
# Groups are kept where this part of their blocks stands above sky and streams too.
_LEAST_SHARE = 0.3
# What is left of a block's weight where it stands above the sky.
_HIGH_WEIGHT = 0.01
# A spline belongs to a block where it reaches this part of its sum.
_LEAST_SPLINE = 0.02
# A block that stands out alone does so by this many times what its neighbours and it need together.
_ALONE = 1.6
_ANY_SIDE = np.ones((3, 3), bool)
# Blocks by which what was found is grown.
_GROWTH = 2


class LargeSources(NamedTuple):
    """What counts as a large source, and how it is described.

    Attributes
    ----------
    threshold : float
        By how many standard deviations (of what lies below) its blocks of 64 pixels stand out.
    spacing : int
        Of its splines, in pixel.
    n_blocks : int
        Connected blocks that it has at least.
    """

    threshold: float = 2.5
    spacing: int = 128
    n_blocks: int = 6


def find_large_sources(
    model: CoarseModel, cells: CoarseCells, priors: Priors, *, sought: LargeSources, rounds: int
) -> Bool:
    """Splines that may hold a large source.

    Parameters
    ----------
    model : CoarseModel
    cells : CoarseCells
    priors : Priors
    sought : LargeSources
    rounds : int
        How often sky and streams are fitted to what does not stand out.

    Returns
    -------
    ndarray (node_y, node_x) bool

    Notes
    -----
    What stands above a plane is looked at; it is kept where it also stands above sky and streams fitted to the lower
    side: a slow stripe stands above a plane, not above the streams.
    """
    none = np.zeros(model.node_shape, bool)
    value, weight = _blocks(*cells)
    known = weight > _LEAST_WEIGHT * np.median(weight)
    if known.sum() < _FEWEST_BLOCKS:
        return none
    above_plane = _grouped(_above_plane(value, known, sought.threshold) | ~known, sought.n_blocks)
    if not above_plane.any():
        return none
    high = ~known
    for _ in range(rounds):
        kept = np.where(np.repeat(np.repeat(high, _BLOCK_ROWS, 0), _BLOCK_COLUMNS, 1), _HIGH_WEIGHT, 1.0)
        fit = solve_coarse(model, CoarseCells(cells.value, cells.weight * kept), priors).fit
        high = _above_streams(_blocks(cells.value - fit, cells.weight)[0], known, sought.threshold) | ~known
    labels, _ = scipy.ndimage.label(above_plane, _ANY_SIDE)
    share = np.bincount(labels.ravel(), weights=high.ravel()) / np.maximum(np.bincount(labels.ravel()), 1)
    sources = above_plane & (share[labels] > _LEAST_SHARE)
    return _touching_splines(model, grown(sources, _GROWTH))


def _blocks(cells: Float64, weights: Float64) -> tuple[Float64, Float64]:
    n_y, n_x = cells.shape[0] // _BLOCK_ROWS, cells.shape[1] // _BLOCK_COLUMNS

    def sums(values: Float64) -> Float64:
        return np.asarray(values.reshape(n_y, _BLOCK_ROWS, n_x, _BLOCK_COLUMNS).sum(axis=(1, 3)))

    weight = sums(weights)
    return sums(cells * weights) / np.maximum(weight, NO_WEIGHT), weight


def _scatter_below(values: Float64) -> float:
    below = -values[values < 0]
    return spread(np.concatenate([below, -below]))[1] if below.size else 0.0


def _above_plane(value: Float64, known: Bool, threshold: float) -> Bool:
    """Blocks above a plane that is fitted to those which do not stand out."""
    y, x = (np.linspace(-1, 1, n) for n in value.shape)
    design = np.stack(np.broadcast_arrays(1.0, x[None, :], y[:, None]), axis=-1)
    kept, rest, scatter = known, value, 0.0
    for _ in range(_PLANE_ROUNDS):
        plane = np.linalg.lstsq(design[kept], value[kept])[0]
        rest = value - design @ plane
        scatter = _scatter_below(rest[known])
        kept = known & (rest < 2 * scatter) & (rest > -4 * scatter)
        if kept.sum() < _FEWEST_BLOCKS // 2:
            break
    return np.asarray(rest > threshold * scatter)


def _above_streams(rest: Float64, known: Bool, threshold: float) -> Bool:
    """Blocks that stand out of a residual, alone or with their neighbours."""
    size = np.abs(rest[known])
    rest = rest - np.median(rest[known & (rest <= 3 * np.median(size))])
    scatter = _scatter_below(rest[known])
    together = scipy.ndimage.uniform_filter(rest, 3) > threshold * scatter
    return np.asarray(together | (rest > _ALONE * threshold * scatter))


def _grouped(mask: Bool, n_blocks: int) -> Bool:
    labels, n = scipy.ndimage.label(mask, _ANY_SIDE)
    return np.asarray(mask & (np.bincount(labels.ravel(), minlength=n + 1)[labels] >= n_blocks))


def _touching_splines(model: CoarseModel, blocks: Bool) -> Bool:
    rows, columns = model.coarse_splines()
    reach_y = rows.reshape(len(blocks), _BLOCK_ROWS, -1).mean(axis=1) > _LEAST_SPLINE
    reach_x = columns.reshape(blocks.shape[1], _BLOCK_COLUMNS, -1).mean(axis=1) > _LEAST_SPLINE
    return np.asarray(reach_y.T.astype(float) @ blocks @ reach_x.astype(float) > 0)


def spline_rms(nodes: Bool, heights: Float64, *, noise: float, factor: float = 1.4, floor: float = 0.01) -> Float64:
    """Return how high the splines of large sources may be: a multiple of how high they and their neighbours were found.

    Parameters
    ----------
    nodes : ndarray (node_y, node_x) bool
    heights : ndarray (node,) float64
    noise : float
        Standard deviation of a pixel.
    factor : float
    floor : float
        Least height, in standard deviations of a pixel.

    Returns
    -------
    ndarray (node,) float64
    """
    found = np.zeros(nodes.shape)
    found[nodes] = np.maximum(heights, 0)
    return np.asarray(factor * np.maximum(scipy.ndimage.gaussian_filter(found, 0.7)[nodes], floor * noise))
