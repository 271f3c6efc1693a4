"""What a small picture of an image is drawn from: means of blocks, the level of each line, and its power spectrum.

A picture is to cost next to nothing beside the measurement, so an image is read once, as sums of the cells in which the
blocks cut its lines; everything else is made of those. It shows what was done, and no number of it is used again.
"""


from typing import Any

import numpy as np
from numpy.typing import NDArray

from skylevel.kernels.pattern import ColorPattern

Float32 = NDArray[np.float32]
Bool = NDArray[np.bool_]

# Pixels of a picture along its longer side; along the shorter one at least so many, where the image has them.
_SIDE, _SHORT_SIDE = 200, 50
# Rows of a mosaic's block that are looked at, in periods of its pattern.
_PERIODS = 4
# Cells further than this from the median, in standard deviations, do not count for a line's level.
_CLIP = 5.0
# Values of which a median is taken, evenly spaced among all: enough for a picture.
_SAMPLE = 1 << 13
_LARGEST = np.finfo(np.float32).max
# Bins of a power spectrum, evenly spaced in the frequency's logarithm.
_BINS = 28
# From the median absolute deviation to the standard deviation of a normal distribution.
_MAD_TO_STD = 1.4826


def block_sides(shape: tuple[int, int], period: tuple[int, int] = (1, 1)) -> tuple[int, int]:
    """Return the sides (y, x) of the blocks of an image (y, x) that become a picture's pixels, in whole periods."""
    longest = -(-max(shape) // _SIDE)
    sides = (max(min(longest, size // _SHORT_SIDE), 1) for size in shape)
    y, x = (-(-side // step) * step for side, step in zip(sides, period, strict=True))
    return y, x


def cell_means(image: NDArray[np.floating], *, width: int) -> Float32:
    """Average an image (line, x) in cells of `width` pixels of one line; what is left over at the end is left out.

    Returns
    -------
    ndarray (line, cell) float32
        In the units of the image; NaN where a pixel of the cell is.
    """
    return np.einsum("ijk->ij", _in_cells(image, width), dtype=np.float32, casting="same_kind") * np.float32(1 / width)


def masked_cells(mask: Bool, *, width: int) -> Bool:
    """Return the cells (line, cell), as `cell_means` has them, of which some pixel is excluded."""
    counter = np.uint8 if width < 256 else np.uint32
    return np.einsum("ijk->ij", _in_cells(mask.view(np.uint8), width), dtype=counter) > 0


def _in_cells(plane: NDArray[Any], width: int) -> NDArray[Any]:
    count = plane.shape[1] // width
    return plane[:, : count * width].reshape(len(plane), count, width)


def block_means(cells: Float32, *, height: int) -> Float32:
    """Average cells (line, cell) over every `height` lines; NaN where there is none in a block."""
    count = len(cells) // height
    blocks = cells[: count * height].reshape(count, height, -1)
    finite = np.isfinite(blocks)
    sums = np.where(finite, blocks, np.float32(0)).sum(axis=1)
    n = finite.sum(axis=1, dtype=np.float32)
    return np.where(n > 0, sums / np.maximum(n, 1), np.float32(np.nan))


def masked_blocks(masked: Bool, *, height: int) -> Bool:
    """Return the blocks, as `block_means` has them, of which half of the cells (line, cell) or more are masked."""
    count = len(masked) // height
    return 2 * np.count_nonzero(masked[: count * height].reshape(count, height, -1), axis=1) >= height


def line_levels(cells: Float32, masked: Bool) -> Float32:
    """Return the mean (line,) of each line's cells that are neither masked nor outliers; NaN where there is none."""
    some = (slice(None), slice(None, None, max(cells.size // _SAMPLE, 1)))
    centre, spread = center_and_spread(np.where(masked[some], np.float32(np.nan), cells[some]))
    if not np.isfinite(centre):
        centre, spread = center_and_spread(np.where(masked, np.float32(np.nan), cells))
    # A comparison with NaN is false.
    good = np.abs(cells - np.float32(centre)) <= (_CLIP * spread if spread > 0 else _LARGEST)
    good &= ~masked
    n = np.count_nonzero(good, axis=1).astype(np.float32)
    sums = np.einsum("ij->i", np.where(good, cells, np.float32(0)))
    return np.where(n > 0, sums / np.maximum(n, 1), np.float32(np.nan))


def center_and_spread(values: NDArray[np.floating]) -> tuple[float, float]:
    """Return the median of some of the values and their standard deviation, as outliers hardly change it.

    Values that are not finite do not count; NaN where there is none.
    """
    flat = values.ravel()
    some = flat[:: max(flat.size // _SAMPLE, 1)]
    some = some[np.isfinite(some)]
    if not some.size:
        some = flat[np.isfinite(flat)]
    if not some.size:
        return np.nan, np.nan
    some = some.astype(np.float64)
    centre = float(np.median(some))
    return centre, _MAD_TO_STD * float(np.median(np.abs(some - centre)))


def power_spectrum(levels: Float32) -> tuple[Float32, Float32]:
    """Return frequencies and the power of levels (line,) there, averaged in bins.

    Parameters
    ----------
    levels : ndarray (line,)
        NaN counts as the mean.

    Returns
    -------
    frequency : ndarray (bin,) float32
        In cycles a line, up to 0.5.
    power : ndarray (bin,) float32
        In the square of the levels' unit: levels that are white noise of variance v have v everywhere. The zero
        frequency is left out, and a Hann window keeps a slope's power at low ones.
    """
    n = len(levels)
    finite = np.isfinite(levels)
    if n < 8 or not finite.any():
        return np.empty(0, np.float32), np.empty(0, np.float32)
    window = np.hanning(n)
    steady = np.where(finite, levels - levels[finite].mean(dtype=np.float64), 0.0)
    power = np.abs(np.fft.rfft(steady * window))[1:] ** 2 / np.sum(window**2)
    frequency = np.arange(1, len(power) + 1) / n
    edges = np.geomspace(frequency[0], frequency[-1] * (1 + 1e-9), _BINS + 1)
    bins = np.clip(np.searchsorted(edges, frequency, side="right") - 1, 0, _BINS - 1)
    count = np.bincount(bins, minlength=_BINS)
    held = count > 0
    mean = [np.bincount(bins, weights=of, minlength=_BINS)[held] / count[held] for of in (frequency, power)]
    return mean[0].astype(np.float32), mean[1].astype(np.float32)


def mosaic_means(mosaic: NDArray[Any], pattern: ColorPattern, *, sides: tuple[int, int]) -> Float32:
    """Average each colour of a mosaic (y, x) in blocks, of which the first rows are looked at.

    Parameters
    ----------
    mosaic : ndarray (y, x)
        Finite.
    pattern : ColorPattern
    sides : tuple of int
        Of a block (y, x), in whole periods.

    Returns
    -------
    ndarray (channel, block_y, block_x) float32
        In the order of the pattern's channels.
    """
    count = [size // side for size, side in zip(mosaic.shape, sides, strict=True)]
    trimmed = mosaic[: count[0] * sides[0], : count[1] * sides[1]]
    blocks = trimmed.reshape(count[0], sides[0], count[1], sides[1])[:, : _PERIODS * pattern.period[0]]
    sums = np.zeros((len(pattern.channels), *count), np.float32)
    pixels = np.zeros(len(pattern.channels))
    for i, j in np.ndindex(pattern.period):
        of_one = blocks[:, i :: pattern.period[0], :, j :: pattern.period[1]]
        channel = pattern.channels.index(str(pattern.letters[i, j]))
        sums[channel] += np.einsum("ajbk->ab", of_one, dtype=np.float32, casting="same_kind")
        pixels[channel] += of_one.shape[1] * of_one.shape[3]
    return (sums / pixels[:, None, None]).astype(np.float32)


def outline(mask: Bool) -> Bool:
    """Return the pixels (y, x) around a mask: those beside or across a corner of it, which hide nothing of it."""
    tall = np.pad(mask, 1)
    tall = tall[:-2] | tall[1:-1] | tall[2:]
    return (tall[:, :-2] | tall[:, 1:-1] | tall[:, 2:]) & ~mask
