"""The background mesh: clipped statistics of boxes, and the smooth surface through them.

The method is that of photutils' ``Background2D`` (3.0) with its default spline zoom, evaluated so that no result
depends on how the image was cut: a box knows only its own pixels, and a surface is summed element by element.
"""

from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple, TypeVar

import numpy as np
import scipy
from numpy.typing import NDArray

from skylevel.errors import NoBackgroundError
from skylevel.kernels.sorting import sort_rows

Float = NDArray[np.float64]
Float32 = NDArray[np.float32]
Int = NDArray[np.intp]
T = TypeVar("T", np.float32, np.float64)

RELAXED_PERCENTILES = (10.0, 20.0, 40.0, 80.0, 100.0)

# Boxes are gathered and sorted in batches of about this many bytes: large enough that NumPy's call overhead vanishes,
# small enough that a batch stays in a core's cache.
_BATCH_BYTES = 8_000_000

# A tail of a sorted box, in which clipping mostly ends, is one of this many parts of it.
_TAIL_SHARE = 64

# Relative error that a sum of a few float32 products stays below.
_ROUNDING = np.float32(1e-6)

# Of the filter that makes a cubic spline's coefficients, and how many of its powers are more than rounding.
_POLE, _POLE_TERMS = 3.0**0.5 - 2.0, 30
# Before SciPy 1.18, what had been summed so far stood in place of a line's first value (scipy/scipy#24550): in short
# lines it can be seen, and photutils shows it.
_ALIASED = tuple(map(int, scipy.__version__.split(".")[:2])) < (1, 18)

# Neighbours of an empty box that fill it, and the leaf size of their search: photutils' values. The leaf size
# decides between neighbours at equal distance.
_IDW_NEIGHBOURS = 10
_IDW_LEAF_SIZE = 10


class Clipping(NamedTuple):
    """How a box is clipped and measured.

    Attributes
    ----------
    sigma : float
        Clipping distance from the median, in standard deviations.
    max_rounds : int
        Clipping stops after this many rounds, or when one clips nothing.
    estimator : {"mode", "median", "mean"}
        What a box's level is; "mode" is 3 median - 2 mean.
    """

    sigma: float
    max_rounds: int
    estimator: str


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
    clipping: Clipping,
) -> BoxStatistics:
    """Return the level and scatter of each box after sigma clipping.

    Parameters
    ----------
    image : ndarray (y, x) float
        Boxes start at its first pixel; those at the far edges may be partial. NaN and infinite pixels are left out.
    box_size : tuple of int
        Sides (y, x) of a box in pixels.
    clipping : Clipping

    Returns
    -------
    BoxStatistics
        In the units of `image`, float64; NaN where a box has no pixel.

    Notes
    -----
    Extra memory: some 50 MB, whatever the image's size.
    """
    n_y, n_x = (-(-n // side) for n, side in zip(image.shape, box_size, strict=True))
    per_batch = max(1, _BATCH_BYTES // (image.dtype.itemsize * box_size[0] * n_x * box_size[1]))
    # The last row of boxes may be shorter than the others, so it is a batch of its own.
    whole = image.shape[0] // box_size[0]
    edges = [*range(0, whole, per_batch), whole, n_y]
    parts = [
        clipped_statistics(gather_boxes(image[start * box_size[0] : stop * box_size[0]], box_size), clipping)
        for start, stop in pairwise(edges)
        if stop > start
    ]
    return BoxStatistics(*(np.concatenate(field).reshape(n_y, n_x) for field in zip(*parts, strict=True)))


def gather_boxes(strip: NDArray[np.floating], box_size: tuple[int, int]) -> NDArray[np.floating]:
    """Copy whole rows of boxes as an array (box, pixel), with NaN for pixels that do not count.

    One row of boxes may be shorter than a box; several may not.
    """
    n_x = -(-strip.shape[1] // box_size[1])
    missing = n_x * box_size[1] - strip.shape[1]
    infinite = np.isinf(strip)
    if infinite.any():
        strip = np.where(infinite, np.nan, strip)
    if missing:
        strip = np.pad(strip, ((0, 0), (0, missing)), constant_values=np.nan)
    height = min(box_size[0], strip.shape[0])
    rows = strip.reshape(-1, height, n_x, box_size[1]).transpose(0, 2, 1, 3)
    return rows.reshape(-1, height * box_size[1], copy=True)


def clipped_statistics(
    values: NDArray[np.number], clipping: Clipping, *, first: Int | None = None
) -> BoxStatistics:
    """Return level, scatter and count of each row of `values` after sigma clipping.

    Parameters
    ----------
    values : ndarray (box, pixel)
        Sorted in place. NaN do not count.
    clipping : Clipping
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
    sort_rows(values)
    lo = np.zeros(len(values), np.intp) if first is None else first.astype(np.intp)
    hi = _count_finite(values)
    # Sums about a value inside the box lose no digits to its level.
    pivot = _median(values, lo, hi)
    centred = values.astype(np.float64)
    centred -= np.nan_to_num(pivot)[:, None]
    moments = _Moments(centred, lo, hi)
    kept_lo, kept_hi = _clip(values, moments, clipping, lo, hi)
    median = _median(values, kept_lo, kept_hi)
    mean, rms = moments.mean_and_std(np.arange(len(values)), kept_lo, kept_hi)
    level = {"median": median, "mean": pivot + mean, "mode": 3 * median - 2 * (pivot + mean)}[
        clipping.estimator
    ]
    return BoxStatistics(level, rms, (kept_hi - kept_lo).astype(np.float64))


def _clip(
    values: NDArray[np.number], moments: "_Moments", clipping: Clipping, first: Int, last: Int
) -> tuple[Int, Int]:
    """Return the range of each sorted box, of that from `first` to `last`, which the last round's bounds keep."""
    lo, hi = first.copy(), last.copy()
    kept_lo, kept_hi = first.copy(), last.copy()
    rows = np.flatnonzero(last > first)
    for _ in range(clipping.max_rounds):
        if not rows.size:
            break
        median = _median(values, lo[rows], hi[rows], rows)
        reach = clipping.sigma * moments.mean_and_std(rows, lo[rows], hi[rows])[1]
        below, above = _kept_range(values, median - reach, median + reach, first[rows], last[rows], rows)
        kept_lo[rows], kept_hi[rows] = below, above
        below, above = np.maximum(below, lo[rows]), np.minimum(above, hi[rows])
        changed = ((below != lo[rows]) | (above != hi[rows])) & (above > below)
        rows = rows[changed]
        lo[rows], hi[rows] = below[changed], above[changed]
    return kept_lo, kept_hi


class _Moments:
    """Mean and standard deviation of ranges of sorted boxes' values, as clipping asks for them.

    Clipping mostly moves a range's ends a little. What is kept is therefore the sums over a box's middle, to which
    those over the short tails are added: what a round clips was never in them, and no digits are lost to it. Where a
    range ends within the middle, what leaves it is subtracted.
    """

    def __init__(self, values: Float, lo: Int, hi: Int) -> None:
        self._values = values
        tail = (hi - lo) // _TAIL_SHARE
        self._lo, self._hi = lo + tail, hi - tail
        self._sums = self._sum_anew(np.arange(len(values)), self._lo, self._hi)

    def mean_and_std(self, rows: Int, lo: Int, hi: Int) -> tuple[Float, Float]:
        """Of ``values[row, lo:hi]`` for each of some rows, ascending; NaN where it is empty."""
        middle_lo, middle_hi = np.maximum(lo, self._lo[rows]), np.minimum(hi, self._hi[rows])
        leaving = self._ends(rows, self._lo[rows], middle_lo, middle_hi, self._hi[rows])
        # Where it held most of the scatter, what is left would lose its digits, and is summed anew.
        anew = np.flatnonzero((leaving[1] > 0.5 * self._sums[1, rows]) | (middle_hi <= middle_lo))
        middle_lo[anew], middle_hi[anew] = lo[anew], hi[anew]
        self._sums[:, rows] -= leaving
        self._sums[:, rows[anew]] = self._sum_anew(rows[anew], lo[anew], hi[anew])
        self._lo[rows], self._hi[rows] = middle_lo, middle_hi
        sums = self._sums[:, rows] + self._ends(rows, lo, middle_lo, middle_hi, hi)
        size = hi - lo
        with np.errstate(invalid="ignore", divide="ignore"):
            mean = sums[0] / size
            variance = sums[1] / size - mean**2
        return mean, np.sqrt(np.maximum(variance, 0.0))

    def _sum_anew(self, rows: Int, lo: Int, hi: Int) -> Float:
        """Sums (2, row) over ``values[row, lo:hi]`` of the values and of their squares."""
        some = self._values if rows.size == len(self._values) else self._values[rows]
        return np.stack([_range_sums(some, lo, hi), _range_sums(np.square(some), lo, hi)])

    def _ends(self, rows: Int, start: Int, middle_start: Int, middle_stop: Int, stop: Int) -> Float:
        """As `_sum_anew`, over the two short ranges that a middle leaves of a range; none where it is the wider one."""
        first = np.concatenate([start, middle_stop])
        length = np.concatenate([middle_start - start, stop - middle_stop])
        length = np.maximum(length, 0)
        end = np.cumsum(length)
        if not end.size or end[-1] == 0:
            return np.zeros((2, rows.size))
        first += np.tile(rows * self._values.shape[1], 2)
        index = np.arange(end[-1]) + np.repeat(first - (end - length), length)
        # A zero after the last value lets an empty range at the end start somewhere.
        values = np.append(self._values.reshape(-1).take(index), 0.0)
        sums = np.stack([np.add.reduceat(table, end - length) for table in (values, np.square(values))])
        sums[:, length == 0] = 0.0
        return sums[:, : rows.size] + sums[:, rows.size :]


def _count_finite(values: NDArray[np.number]) -> Int:
    """Return how many values of each sorted row are not NaN."""
    n, width = values.shape
    if not np.isnan(values[:, -1]).any():
        return np.full(n, width, np.intp)
    every = np.full(n, np.inf)
    return _kept_range(values, -every, every, np.zeros(n, np.intp), np.full(n, width), np.arange(n))[1]


def _median(values: NDArray[np.number], lo: Int, hi: Int, rows: Int | None = None) -> Float:
    """Median of ``values[row, lo:hi]`` of sorted rows; NaN where the range is empty."""
    rows = np.arange(len(values)) if rows is None else rows
    size = hi - lo
    last = values.shape[1] - 1
    lower = values[rows, np.minimum(lo + np.maximum(size - 1, 0) // 2, last)].astype(np.float64)
    upper = values[rows, np.minimum(lo + size // 2, last)].astype(np.float64)
    return np.where(size > 0, 0.5 * (lower + upper), np.nan)


def _range_sums(table: Float, lo: Int, hi: Int) -> Float:
    """Sum of ``table[row, lo:hi]`` for each row, pairwise, the same whatever rows stand beside it."""
    # reduceat sums from each index to the next; every second sum is the gap between two ranges. An empty range
    # would give the element at its start instead of 0, and the last range may end at the table's end.
    start = np.arange(len(table)) * table.shape[1]
    indices = np.stack([start + lo, start + hi], axis=1).ravel()
    flat = table.reshape(-1)
    if indices.size and indices[-1] == flat.size:
        indices = indices[:-1]
    # A range that starts at the table's end is empty as well.
    sums = np.add.reduceat(flat, np.minimum(indices, flat.size - 1))[::2]
    return np.where(hi > lo, sums, 0.0)


def _kept_range(
    values: NDArray[np.number], lower: Float, upper: Float, first: Int, last: Int, rows: Int
) -> tuple[Int, Int]:
    """The range of ``values[row, first:last]`` of sorted rows that lies within `lower` and `upper`, both included."""
    flat = values.reshape(-1)
    start = np.tile(rows * values.shape[1], 2)
    # A value is at most `upper` where it is less than the next number above it.
    bound = np.concatenate([lower, np.nextafter(upper, np.inf)])
    low, high = start + np.tile(first, 2), start + np.tile(last, 2)
    for _ in range(int(values.shape[1]).bit_length()):
        middle = (low + high) >> 1
        below = flat.take(middle, mode="clip") < bound
        below &= middle < high
        low = np.where(below, middle + 1, low)
        high = np.where(below, high, middle)
    low -= start
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
    distance, index = scipy.spatial.cKDTree(points, leafsize=_IDW_LEAF_SIZE).query(np.argwhere(~good), k=k)
    found = np.isfinite(distance)
    weight = np.where(found, 1.0 / distance, 0.0)
    neighbours = mesh[good][np.where(found, index, 0)]
    filled = mesh.copy()
    filled[~good] = (weight * neighbours).sum(axis=1) / weight.sum(axis=1)
    return filled


def _median_filter(mesh: Float, size: int) -> Float:
    """Median over a square window; at the edge, over the part of it inside the mesh."""
    # What is wider reaches over all of the mesh from any of its boxes.
    size = min(size, 2 * max(mesh.shape) - 1)
    if size == 1:
        return mesh
    half = size // 2
    padded = np.pad(mesh, half, constant_values=np.nan)
    windows = np.lib.stride_tricks.sliding_window_view(padded, (size, size)).reshape(-1, size * size, copy=True)
    windows.sort(axis=1)
    n_inside = _count_finite(windows)
    return _median(windows, np.zeros_like(n_inside), n_inside).reshape(mesh.shape)


class Surface:
    """Cubic-spline surface through a mesh, over a rectangle of the image.

    Parameters
    ----------
    mesh : ndarray (mesh_y, mesh_x)
        Values at the boxes' centres.
    y : range
        Rows of the image that will be asked for.
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

    def __init__(self, mesh: Float32, y: range, x: Int, *, box_size: tuple[int, int]) -> None:
        self._range = mesh.min(), mesh.max()
        self._side = box_size[0]
        coefficients = np.pad(_spline_coefficients(mesh), 2, mode="symmetric")
        # A tile needs no more rows of the mesh than those about it, however many there are.
        ends, _ = _spline_weights(np.array([y.start, y.stop - 1]), box_size[0])
        self._first_row = ends[0]
        near = coefficients[ends[0] : ends[1] + 4]
        first, weights = _spline_weights(x, box_size[1])
        along_x = weighted_sum(weights[:, None, :], [near[:, first + k] for k in range(4)])
        # Indexing columns leaves them contiguous along y; rows are read from here on.
        self._along_x = along_x.astype(np.float32, order="C")

    def at(self, y: Int) -> Float32:
        """Values (len(y), len(x)) float32 in the given rows of the image, ascending."""
        first, exact = self._along_y(y)
        weights = exact.astype(np.float32)
        result = np.empty((len(y), self._along_x.shape[1]), np.float32)
        # Rows between the centres of two rows of boxes share their four rows of coefficients.
        cuts = [0, *(np.flatnonzero(np.diff(first)) + 1), len(y)]
        for start, stop in pairwise(cuts):
            if stop > start:
                terms = self._along_x[first[start] : first[start] + 4, None, :]
                result[start:stop] = weighted_sum(weights[:, start:stop, None], terms)
        return np.clip(result, *self._range, out=result)

    def bounds(self, y: Int) -> tuple[Float32, Float32]:
        """At most the least and at least the greatest value (len(x),) of each column in the given rows, ascending."""
        first, _ = self._along_y(y[[0, -1]])
        terms = self._along_x[first[0] : first[1] + 4]
        # The four weights are positive and sum to 1; the slack covers their rounding.
        slack = _ROUNDING * np.abs(terms).max(axis=0)
        return np.clip(terms.min(axis=0) - slack, *self._range), np.clip(terms.max(axis=0) + slack, *self._range)

    def at_points(self, y: Int, at_y: Int, at_x: Int) -> Float32:
        """Values (n,) float32, the same bits as ``at(y)[at_y, at_x]``, for a few points of many."""
        first, exact = self._along_y(y)
        weights = exact.astype(np.float32)[:, at_y]
        n_x = self._along_x.shape[1]
        index = (first * n_x)[at_y] + at_x
        terms = [self._along_x.reshape(-1).take(index + k * n_x) for k in range(4)]
        return np.clip(weighted_sum(weights, terms), *self._range)

    def _along_y(self, y: Int) -> tuple[Int, Float]:
        """First of four rows of `_along_x` for each row of the image, and the four weights (4, y)."""
        first, weights = _spline_weights(y, self._side)
        return first - self._first_row, weights


def _spline_coefficients(mesh: NDArray[np.floating]) -> Float:
    """Return the coefficients (mesh_y, mesh_x) of the cubic spline through a mesh that is mirrored at its edges.

    Equals ``scipy.ndimage.spline_filter`` of the SciPy that is installed, to rounding; to import that would take longer
    than to level a small frame.
    """
    coefficients = mesh.astype(np.float64)
    for lines in (coefficients, coefficients.T):
        if len(lines) > 1:
            _filter_spline(lines)
    return coefficients


def _filter_spline(lines: Float) -> None:
    """Turn values along the first axis into coefficients: Unser's recursive filter (1999), forward and back."""
    lines *= (1.0 - _POLE) * (1.0 - 1.0 / _POLE)
    # Products, not powers, whose last bits differ between processors.
    powers = np.cumprod([1.0, *[_POLE] * len(lines)])
    beyond = powers[-1]
    # What the mirrored values before the first one add up to.
    pairs = lines[:-1] + beyond * lines[:0:-1]
    before = weighted_sum(powers[:-2, None][:_POLE_TERMS], pairs[:_POLE_TERMS])
    before += powers[-2] * (lines[-1] + beyond * (before if _ALIASED else lines[0]))
    lines[0] += before * (_POLE / (1.0 - beyond**2))
    for line, last in zip(lines[1:], lines, strict=False):
        line += _POLE * last
    lines[-1] *= _POLE / (_POLE - 1.0)
    for line, last in zip(lines[-2::-1], lines[::-1], strict=False):
        np.subtract(last, line, out=line)
        line *= _POLE


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
