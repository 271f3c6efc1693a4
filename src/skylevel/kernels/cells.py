"""Pixels to cells of one row: their means, what is masked in them, and the smooth levels they are measured from."""

from typing import NamedTuple

import numpy as np
import scipy
from numpy.typing import NDArray

from skylevel.kernels.amplifiers import CELL_WIDTH

Bool = NDArray[np.bool_]
Float32 = NDArray[np.float32]

_MAD_PER_STDDEV = 0.6744897501960817
# Sides of the bins of the finest sources, and of medians' bins, in pixel.
_FINE, _BIN = 2, 8
# A median's bin needs this many pixels, and a block this many bins.
_FEWEST_PIXELS, _FEWEST_BINS = 16, 3
# A smoothed bin counts where it has this part of the pixels of the fullest one.
_LEAST_COVERAGE = 0.2
# Fine bins that stand out by this many times a pixel's noise are kept out of the coarser ones.
_HOT = 8.0
# Every so many smoothed bins decide what their median and scatter are.
_SAMPLING = 7
# Rows that are worked on at a time: they stay in a core's cache.
_STRIP_ROWS = 64
_ALONG = ((np.arange(CELL_WIDTH) + 0.5) / CELL_WIDTH - 0.5).astype(np.float32)
_ONES = np.ones(CELL_WIDTH, np.float32)


class Rejection(NamedTuple):
    """Which pixels are left out, and how many must be left.

    Attributes
    ----------
    source_threshold : float
        Sources stand out by this many standard deviations of the smoothed image.
    sigma_clip : float
        Pixels further than this many standard deviations from their surroundings are left out.
    min_pixels : int
        Pixels of a cell (of 32) that are enough.
    """

    source_threshold: float = 3.5
    sigma_clip: float = 3.0
    min_pixels: int = 6


def spread(values: NDArray[np.floating]) -> tuple[float, float]:
    """Return the median of `values` and their standard deviation, from the median of absolute deviations."""
    middle = np.median(values)
    return float(middle), float(np.median(np.abs(values - middle)) / _MAD_PER_STDDEV)


def subtract_cells(image: Float32, level: Float32, *, sloping: bool) -> Float32:
    """Subtract from the pixels of each cell its level, and what it changes along x where it slopes.

    Parameters
    ----------
    image : ndarray (y, x) float32
        On the grid.
    level : ndarray (y, cell) float32
    sloping : bool
        Whether the level changes along a cell as neighbouring ones say, or stays the same.

    Returns
    -------
    ndarray (y, x) float32
    """
    rest = np.empty_like(image)
    slope = np.gradient(level, axis=1).astype(np.float32) if sloping and level.shape[1] > 1 else None
    for y in range(0, len(image), _STRIP_ROWS):
        rows = slice(y, y + _STRIP_ROWS)
        cells = image[rows].reshape(-1, level.shape[1], CELL_WIDTH) - level[rows, :, None]
        if slope is not None:
            cells -= slope[rows, :, None] * _ALONG
        rest[rows] = cells.reshape(-1, image.shape[1])
    return rest


def cell_means(rest: Float32, usable: Bool, *, clip: float) -> tuple[Float32, Float32]:
    """Mean of each cell's usable pixels within `clip` of zero, and their number.

    Parameters
    ----------
    rest : ndarray (y, x) float32
        What is left after subtraction; finite.
    usable : ndarray (y, x) bool
    clip : float
        In the unit of `rest`.

    Returns
    -------
    mean, count : ndarray (y, cell) float32
        The mean is 0 where no pixel was left.
    """
    shape = len(rest), rest.shape[1] // CELL_WIDTH
    mean, count = np.empty(shape, np.float32), np.empty(shape, np.float32)
    for y in range(0, len(rest), _STRIP_ROWS):
        rows = slice(y, y + _STRIP_ROWS)
        kept = np.abs(rest[rows]) < clip
        kept &= usable[rows]
        n = np.bitwise_count(np.packbits(kept, axis=1).view(np.uint32)).astype(np.float32)
        total = (rest[rows] * kept).reshape(-1, CELL_WIDTH) @ _ONES
        count[rows] = n
        mean[rows] = total.reshape(n.shape) / np.maximum(n, 1)
    return mean, count


def bin_sums(values: Float32, side: int) -> Float32:
    """Return the sums over squares of `side` pixels."""
    by_rows = values.reshape(-1, side, values.shape[1]).sum(axis=1)
    return np.asarray(by_rows.reshape(len(by_rows), -1, side).sum(axis=2))


def _pair_sums(values: NDArray[np.float32]) -> Float32:
    rows = values[::2] + values[1::2]
    return np.asarray(rows[:, ::2] + rows[:, 1::2])


def block_level(rest: Float32, usable: Bool, *, side: int) -> Float32:
    """Level of each block: the median of its bins' means.

    Parameters
    ----------
    rest : ndarray (y, x) float32
        Finite; 0 where it is not usable.
    usable : ndarray (y, x) bool
    side : int
        Of a block, in pixel.

    Returns
    -------
    ndarray (block_y, block_x) float32
        The nearest block's where too few bins were left; 0 where none had any.
    """
    total, count = bin_sums(rest * usable, _BIN), bin_sums(usable.view(np.uint8).astype(np.float32), _BIN)
    mean = np.where(count > _FEWEST_PIXELS, total / np.maximum(count, 1), np.nan).astype(np.float32)
    n = side // _BIN
    n_y, n_x = len(mean) // n, mean.shape[1] // n
    bins = mean.reshape(n_y, n, n_x, n).transpose(0, 2, 1, 3).reshape(n_y, n_x, -1)
    level, n_bins = _row_medians(bins)
    return fill_from_nearest(level, n_bins >= _FEWEST_BINS)


def _row_medians(values: Float32) -> tuple[Float32, NDArray[np.intp]]:
    """Median along the last axis without NaN (NaN where nothing is left), and how many were left."""
    ordered = np.sort(values, axis=-1)
    n = np.isfinite(values).sum(axis=-1)
    at = np.stack([np.maximum(n - 1, 0) // 2, np.minimum(n // 2, values.shape[-1] - 1)], axis=-1)
    return np.take_along_axis(ordered, at, axis=-1).mean(axis=-1), n


def fill_from_nearest(values: Float32, known: Bool) -> Float32:
    """Return `values` with the nearest known one wherever one is not known; zeros where none is."""
    if known.all():
        return values
    if not known.any():
        return np.zeros_like(values)
    nearest = scipy.ndimage.distance_transform_edt(~known, return_distances=False, return_indices=True)
    return np.asarray(values[tuple(nearest)])


def cells_of_blocks(blocks: Float32, shape: tuple[int, int]) -> Float32:
    """Return a map of blocks at the cells, `shape` of them, linear in between."""
    along_y, along_x = (_tents(n, k) for n, k in zip(shape, blocks.shape, strict=True))
    return np.asarray(along_y @ blocks @ along_x.T)


def stretch_rows(blocks: Float32, n: int) -> Float32:
    """Return blocks of rows (block, column) at n rows, linear in between."""
    return np.asarray(_tents(n, len(blocks)) @ blocks)


def _tents(n: int, k: int) -> Float32:
    """Weights (n, k) that interpolate k even blocks at n even places, constant beyond the outermost centres."""
    at = np.clip((np.arange(n) + 0.5) / n * k - 0.5, 0, k - 1)
    return np.maximum(1 - np.abs(at[:, None] - np.arange(k)), 0).astype(np.float32)


def source_mask(
    rest: Float32, good: Bool, *, noise: float, thresholds: tuple[float, float, float], growth: tuple[int, int, int]
) -> Bool:
    """Find what stands above a flat residual at three scales: 2, 8 and 16 pixels, smoothed.

    Parameters
    ----------
    rest : ndarray (y, x) float32
        Sky and stripes subtracted; finite.
    good : ndarray (y, x) bool
    noise : float
        Standard deviation of a pixel.
    thresholds : tuple of float
        For each scale, in standard deviations of the smoothed bins below their median.
    growth : tuple of int
        For each scale, by how many bins what was found is grown.

    Returns
    -------
    ndarray (y, x) bool

    Notes
    -----
    A coarser scale looks at what the finer ones have left.
    """
    count, total = _pair_sums(good.view(np.uint8).astype(np.float32)), _pair_sums(rest * good)
    masked = _above(total, count, thresholds[0], growth[0])
    empty = masked | (np.abs(total) > _HOT * noise)
    total[empty] = count[empty] = 0
    total, count = bin_sums(total, _BIN // _FINE), bin_sums(count, _BIN // _FINE)
    found = _above(total, count, thresholds[1], growth[1])
    total[found] = count[found] = 0
    coarse = _above(_pair_sums(total), _pair_sums(count), thresholds[2], growth[2])
    found |= _enlarged(coarse, 2)
    masked |= _enlarged(found, _BIN // _FINE)
    return _enlarged(masked, _FINE)


def _enlarged(mask: Bool, times: int) -> Bool:
    return np.asarray(np.repeat(np.repeat(mask, times, axis=1), times, axis=0))


def _above(total: Float32, count: Float32, threshold: float, growth: int) -> Bool:
    """Return where smoothed bins stand above their median by a multiple of what they scatter below it, grown."""
    total, count = _tent_smoothed(total), _tent_smoothed(count)
    covered = count > _LEAST_COVERAGE * count.max()
    value = total / np.maximum(count, np.float32(1e-3))
    sample = value[covered][::_SAMPLING]
    if not sample.size:
        return np.zeros(value.shape, bool)
    middle = np.median(sample)
    below = sample[sample < middle]
    scatter = np.median(middle - below) / _MAD_PER_STDDEV if below.size else 0.0
    above = (value - middle > threshold * scatter) & covered
    return grown(above, growth)


def grown(mask: Bool, n: int) -> Bool:
    """Return a mask grown by n pixels along both axes, over corners too."""
    rows = mask.copy()
    for k in range(1, n + 1):
        rows[k:] |= mask[:-k]
        rows[:-k] |= mask[k:]
    both = rows.copy()
    for k in range(1, n + 1):
        both[:, k:] |= rows[:, :-k]
        both[:, :-k] |= rows[:, k:]
    return both


def _tent_smoothed(values: Float32) -> Float32:
    """Return sums weighted 1, 2, 1 along both axes, edges repeated."""
    padded = np.pad(values, 1, mode="edge")
    rows = padded[:-2] + padded[2:]
    rows += 2 * padded[1:-1]
    columns = rows[:, :-2] + rows[:, 2:]
    columns += 2 * rows[:, 1:-1]
    return np.asarray(columns)
