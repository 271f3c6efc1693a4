"""The background mesh: clipped statistics of boxes, and the smooth surface through them.

The method is that of photutils' ``Background2D`` (3.0) with its default spline zoom, evaluated so that no result
depends on how the image was cut: a box knows only its own pixels, and a surface is summed element by element.
"""

from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import spline_filter
from scipy.spatial import cKDTree

from skylevel.errors import NoBackgroundError

Float = NDArray[np.float64]
Float32 = NDArray[np.float32]
Int = NDArray[np.intp]
T = TypeVar("T", np.float32, np.float64)

RELAXED_PERCENTILES = (10.0, 20.0, 40.0, 80.0, 100.0)

# Boxes are gathered and sorted in batches of about this many values: large enough that NumPy's call overhead
# vanishes, small enough that a batch stays in a core's cache.
_BATCH_VALUES = 500_000

# Neighbours of an empty box that fill it, and the leaf size of their search: photutils' values. The leaf size
# decides between neighbours at equal distance.
_IDW_NEIGHBOURS = 10
_IDW_LEAF_SIZE = 10


class BoxStatistics(NamedTuple):
    """Clipped statistics of every box, each an array (mesh_y, mesh_x)."""

    level: Float
    rms: Float
    n_good: Float


class Mesh(NamedTuple):
    """The finished meshes (mesh_y, mesh_x), and the exclusion that was used, in percent."""

    background: Float32
    background_rms: Float32
    exclude_percentile: float


def clip_box_size(box_size: int, shape: tuple[int, ...]) -> tuple[int, int]:
    """Sides (y, x) of a box in pixels: `box_size`, but no longer than the image (y, x)."""
    return min(box_size, shape[0]), min(box_size, shape[1])


def box_statistics(
    image: NDArray[np.floating],
    *,
    box_size: tuple[int, int],
    sigma_clip: float,
    max_rounds: int,
    estimator: str,
) -> BoxStatistics:
    """Level and scatter of each box after sigma clipping.

    Parameters
    ----------
    image : ndarray (y, x) float
        Boxes start at its first pixel; those at the far edges may be partial. NaN and infinite pixels are left out.
    box_size : tuple of int
        Sides (y, x) of a box in pixels.
    sigma_clip : float
        Clipping distance from the median, in standard deviations.
    max_rounds : int
        Clipping stops after this many rounds, or when one clips nothing.
    estimator : {"mode", "median", "mean"}
        What a box's level is; "mode" is 3 median - 2 mean.

    Returns
    -------
    BoxStatistics
        In the units of `image`, float64; NaN where a box has no pixel.

    Notes
    -----
    Extra memory: some 30 MB, whatever the image's size.
    """
    n_y, n_x = (-(-n // side) for n, side in zip(image.shape, box_size, strict=True))
    per_batch = max(1, _BATCH_VALUES // (box_size[0] * n_x * box_size[1]))
    # The last row of boxes may be shorter than the others, so it is a batch of its own.
    whole = image.shape[0] // box_size[0]
    edges = [*range(0, whole, per_batch), whole, n_y]
    parts = [
        clipped_statistics(
            _boxes(image[start * box_size[0] : stop * box_size[0]], box_size, n_x),
            sigma_clip=sigma_clip,
            max_rounds=max_rounds,
            estimator=estimator,
        )
        for start, stop in pairwise(edges)
        if stop > start
    ]
    return BoxStatistics(*(np.concatenate(field).reshape(n_y, n_x) for field in zip(*parts, strict=True)))


def _boxes(strip: NDArray[np.floating], box_size: tuple[int, int], n_x: int) -> NDArray[np.floating]:
    """Copy whole rows of boxes as an array (box, pixel), with NaN for pixels that do not count."""
    missing = n_x * box_size[1] - strip.shape[1]
    finite = np.isfinite(strip)
    if not finite.all():
        strip = np.where(finite, strip, np.nan)
    if missing:
        strip = np.pad(strip, ((0, 0), (0, missing)), constant_values=np.nan)
    height = min(box_size[0], strip.shape[0])
    rows = strip.reshape(-1, height, n_x, box_size[1]).transpose(0, 2, 1, 3)
    return rows.reshape(-1, height * box_size[1], copy=True)


def clipped_statistics(
    values: NDArray[np.number], *, sigma_clip: float, max_rounds: int, estimator: str, first: Int | None = None
) -> BoxStatistics:
    """Level, scatter and count of each row of `values` after sigma clipping.

    Parameters
    ----------
    values : ndarray (box, pixel)
        Sorted in place. NaN do not count.
    sigma_clip, max_rounds, estimator
        As in `box_statistics`.
    first : ndarray (box,) int, optional
        How many of the smallest values of each box do not count.

    Returns
    -------
    BoxStatistics
        Arrays (box,) float64.

    Notes
    -----
    Once a box is sorted, what a round keeps is a range of it, found by bisection. As in astropy's ``SigmaClip``,
    each round measures what all rounds before it kept, and the last round's bounds are applied to all values.
    """
    values.sort(axis=1)
    lo = np.zeros(len(values), np.intp) if first is None else first.astype(np.intp)
    hi = _count_finite(values)
    # Sums about a value inside the box lose no digits to its level.
    pivot = _median(values, lo, hi)
    centred = np.subtract(values, np.nan_to_num(pivot)[:, None], dtype=np.float64)
    squares = np.square(centred)
    kept_lo, kept_hi = _clip(values, centred, squares, lo, hi, sigma_clip, max_rounds)
    median = _median(values, kept_lo, kept_hi)
    mean, rms = _moments(centred, squares, kept_lo, kept_hi)
    level = {"median": median, "mean": pivot + mean, "mode": 3 * median - 2 * (pivot + mean)}[estimator]
    return BoxStatistics(level, rms, (kept_hi - kept_lo).astype(np.float64))


def _clip(
    values: NDArray[np.number],
    centred: Float,
    squares: Float,
    first: Int,
    last: Int,
    sigma_clip: float,
    max_rounds: int,
) -> tuple[Int, Int]:
    """The range of each sorted box that the last round's bounds keep."""
    lo, hi = first.copy(), last.copy()
    kept_lo, kept_hi = first.copy(), last.copy()
    active = np.flatnonzero(hi > lo)
    for _ in range(max_rounds):
        if not active.size:
            break
        a_lo, a_hi = lo[active], hi[active]
        median = _median(values, a_lo, a_hi, active)
        reach = sigma_clip * _moments(centred, squares, a_lo, a_hi, active)[1]
        k_lo, k_hi = _bisect(values, median - reach, median + reach, first[active], last[active], active)
        kept_lo[active], kept_hi[active] = k_lo, k_hi
        lo[active], hi[active] = np.maximum(a_lo, k_lo), np.minimum(a_hi, k_hi)
        changed = (lo[active] != a_lo) | (hi[active] != a_hi)
        active = active[changed & (hi[active] > lo[active])]
    return kept_lo, kept_hi


def _count_finite(values: NDArray[np.number]) -> Int:
    """How many values of each sorted row are not NaN."""
    count = np.full(len(values), values.shape[1], np.intp)
    with_nan = np.flatnonzero(np.isnan(values[:, -1]))
    if with_nan.size:
        count[with_nan] = np.count_nonzero(~np.isnan(values[with_nan]), axis=1)
    return count


def _median(values: NDArray[np.number], lo: Int, hi: Int, rows: Int | None = None) -> Float:
    """Median of ``values[row, lo:hi]`` of sorted rows; NaN where the range is empty."""
    rows = np.arange(len(values)) if rows is None else rows
    size = hi - lo
    last = values.shape[1] - 1
    lower = values[rows, np.minimum(lo + np.maximum(size - 1, 0) // 2, last)].astype(np.float64)
    upper = values[rows, np.minimum(lo + size // 2, last)].astype(np.float64)
    return np.where(size > 0, 0.5 * (lower + upper), np.nan)


def _moments(
    centred: Float, squares: Float, lo: Int, hi: Int, rows: Int | None = None
) -> tuple[Float, Float]:
    """Mean and standard deviation of ``centred[row, lo:hi]``; NaN where the range is empty."""
    rows = np.arange(len(centred)) if rows is None else rows
    size = hi - lo
    with np.errstate(invalid="ignore", divide="ignore"):
        mean = _range_sums(centred, rows, lo, hi) / size
        variance = _range_sums(squares, rows, lo, hi) / size - mean**2
    return mean, np.sqrt(np.maximum(variance, 0.0))


def _range_sums(table: Float, rows: Int, lo: Int, hi: Int) -> Float:
    """Sum of ``table[row, lo:hi]`` for each row, pairwise, the same whatever rows stand beside it."""
    # reduceat sums from each index to the next; every second sum is the gap between two ranges. An empty range
    # would give the element at its start instead of 0, and the last range may end at the table's end.
    start = rows * table.shape[1]
    indices = np.stack([start + lo, start + hi], axis=1).ravel()
    flat = table.reshape(-1)
    if indices.size and indices[-1] == flat.size:
        indices = indices[:-1]
    # A range that starts at the table's end is empty as well.
    sums = np.add.reduceat(flat, np.minimum(indices, flat.size - 1))[::2]
    return np.where(hi > lo, sums, 0.0)


def _bisect(
    values: NDArray[np.number], lower: Float, upper: Float, first: Int, last: Int, rows: Int
) -> tuple[Int, Int]:
    """The range of ``values[row, first:last]`` of sorted rows that lies within `lower` and `upper`, both included."""
    flat = values.reshape(-1)
    start = np.tile(rows * values.shape[1], 2)
    bound = np.concatenate([lower, upper])
    is_upper = np.arange(bound.size) >= lower.size
    low, high = np.tile(first, 2), np.tile(last, 2)
    for _ in range(int(values.shape[1]).bit_length()):
        middle = (low + high) // 2
        at = flat[np.minimum(start + middle, flat.size - 1)]
        below = ((at < bound) | (is_upper & (at == bound))) & (middle < high)
        low = np.where(below, middle + 1, low)
        high = np.where(below, high, middle)
    return low[: lower.size], low[lower.size :]


def finish_mesh(
    statistics: BoxStatistics, *, box_n_pixels: float, exclude_percentile: float, filter_size: int
) -> Mesh:
    """Leave out poor boxes, fill their places, and median-filter the mesh.

    Parameters
    ----------
    statistics : BoxStatistics
        Arrays (mesh_y, mesh_x).
    box_n_pixels : float
        Pixels of a whole box.
    exclude_percentile : float
        A box with more than this percentage of its pixels masked or clipped is left out. Where no box is left it is
        relaxed through 10, 20, 40, 80, 100 until one is.
    filter_size : int
        Side of the median filter, in boxes; one-sided at the mesh's edge.

    Returns
    -------
    Mesh
        Arrays (mesh_y, mesh_x) float32 without NaN, and the exclusion used.

    Raises
    ------
    NoBackgroundError
        No box has a single usable pixel.
    """
    for percentile in (exclude_percentile, *(p for p in RELAXED_PERCENTILES if p > exclude_percentile)):
        good = statistics.n_good > (1.0 - percentile / 100.0) * box_n_pixels
        if good.any():
            break
    else:
        raise NoBackgroundError("no box of the background mesh has a usable pixel; all pixels are masked or not finite")
    background, rms = (
        _median_filter(_fill_empty(field, good), filter_size).astype(np.float32)
        for field in (statistics.level, statistics.rms)
    )
    return Mesh(background, rms, percentile)


def _fill_empty(mesh: Float, good: NDArray[np.bool_]) -> Float:
    """Boxes that are not good, from the ten nearest good ones weighted by inverse distance."""
    if good.all():
        return mesh
    points = np.argwhere(good)
    k = _IDW_NEIGHBOURS
    distance, index = cKDTree(points, leafsize=_IDW_LEAF_SIZE).query(np.argwhere(~good), k=k)
    found = np.isfinite(distance)
    weight = np.where(found, 1.0 / distance, 0.0)
    neighbours = mesh[good][np.where(found, index, 0)]
    filled = mesh.copy()
    filled[~good] = (weight * neighbours).sum(axis=1) / weight.sum(axis=1)
    return filled


def _median_filter(mesh: Float, size: int) -> Float:
    """Median over a square window; at the edge, over the part of it inside the mesh."""
    if size == 1:
        return mesh
    half = size // 2
    padded = np.pad(mesh, half, constant_values=np.nan)
    windows = np.lib.stride_tricks.sliding_window_view(padded, (size, size)).reshape(-1, size * size, copy=True)
    windows.sort(axis=1)
    n_inside = _count_finite(windows)
    return _median(windows, np.zeros_like(n_inside), n_inside).reshape(mesh.shape)


class Surface:
    """Cubic-spline surface through a mesh, along given columns of the image.

    Parameters
    ----------
    mesh : ndarray (mesh_y, mesh_x)
        Values at the boxes' centres.
    x : ndarray (x,) int
        Columns of the image, ascending.
    box_size : tuple of int
        Sides (y, x) of a box in pixels.

    Notes
    -----
    Equals ``scipy.ndimage.zoom(mesh, box_size, order=3, mode="reflect", grid_mode=True)``, clipped to the mesh's
    range, to float32 rounding. Each pixel is the sum of four products along x, then of four along y, in a fixed order:
    the same bits whatever pixels are asked for with it.
    """

    def __init__(self, mesh: Float32, x: Int, *, box_size: tuple[int, int]) -> None:
        self._range = mesh.min(), mesh.max()
        self._side = box_size[0]
        coefficients = np.pad(spline_filter(mesh, order=3, mode="reflect", output=np.float64), 2, mode="symmetric")
        first, weights = _spline_weights(x, box_size[1])
        along_x = weighted_sum(weights[:, None, :], [coefficients[:, first + k] for k in range(4)])
        # Indexing columns leaves them contiguous along y; rows are read from here on.
        self._along_x = along_x.astype(np.float32, order="C")

    def at(self, y: Int) -> Float32:
        """Values (len(y), len(x)) float32 in the given rows of the image, ascending."""
        first, exact = _spline_weights(y, self._side)
        weights = exact.astype(np.float32)
        result = np.empty((len(y), self._along_x.shape[1]), np.float32)
        # Rows between the centres of two rows of boxes share their four rows of coefficients.
        cuts = [0, *(np.flatnonzero(np.diff(first)) + 1), len(y)]
        for start, stop in pairwise(cuts):
            if stop > start:
                terms = self._along_x[first[start] : first[start] + 4, None, :]
                result[start:stop] = weighted_sum(weights[:, start:stop, None], terms)
        return np.clip(result, *self._range, out=result)


def _spline_weights(index: Int, side: int) -> tuple[Int, Float]:
    """First of four coefficients (of those padded by 2) for each pixel, and the four weights (4, pixel)."""
    position = (index + 0.5) / side - 0.5
    cell = np.floor(position)
    t = position - cell
    s = 1.0 - t
    weights = np.stack([s**3, 4 - 3 * t**2 * (2 - t), 4 - 3 * s**2 * (2 - s), t**3]) / 6.0
    return cell.astype(np.intp) + 1, weights


def weighted_sum(weights: NDArray[T], terms: Sequence[NDArray[T]] | NDArray[T]) -> NDArray[T]:
    """Sum of ``weights[k] * terms[k]`` in the order of k."""
    total = weights[0] * terms[0]
    product = np.empty_like(total)
    for weight, term in zip(weights[1:], terms[1:], strict=True):
        total += np.multiply(weight, term, out=product)
    return total
