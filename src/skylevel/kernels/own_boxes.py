"""Levels of small boxes from each channel's own pixels, as a surface is fitted through them.

A box is described by order statistics alone: its level is a mean of quartiles, its noise is taken from the side that
stars do not reach. Nothing of a box depends on other boxes, so that an image gives the same numbers however it is cut.
"""

from collections.abc import Iterator
from typing import Any, NamedTuple, Self

import numpy as np
from numpy.typing import NDArray

from skylevel.kernels.pattern import ColorPattern
from skylevel.kernels.sorting import sort_rows
from skylevel.kernels.tile import Tile

Float = NDArray[np.float64]
Float32 = NDArray[np.float32]
Int = NDArray[np.intp]
Pixels = NDArray[np.number]

# Boxes are gathered and sorted in batches of about this many pixels of the mosaic, which stay in a core's cache.
_BATCH_PIXELS = 600_000

# Where a Gaussian's distribution stands one standard deviation below its median.
_ONE_BELOW = 0.15865525393145707

_CLIP = 2.5
_ROUNDS = 3

# A level is a mean of three quantiles with these weights: nearly as little of it is stars' as of a median, and a
# seventh less of it noise.
_QUARTILES = ((0.25, 0.3), (0.5, 0.4), (0.75, 0.3))

#: Error of such a level over that of a mean, of Gaussian noise.
LEVEL_ERROR = 1.0818


class OwnBoxes(NamedTuple):
    """What is known of every box: arrays (channel, mesh_y, mesh_x) float32.

    Attributes
    ----------
    level : ndarray
        The sky's level, in the units of the image; NaN where a box has no pixel.
    rms : ndarray
        Scatter of single pixels about it; NaN where a box has no pixel.
    n_good : ndarray
        Pixels that the level was taken from; in fractions, as those of a whole number at a bound count in part.
    """

    level: Float32
    rms: Float32
    n_good: Float32

    @classmethod
    def joined(cls, rows: list[list[Self]]) -> Self:
        """Return the boxes of a whole image, from those of its tiles, row by row of tiles."""
        wide = [[np.concatenate(field, axis=2) for field in zip(*row, strict=True)] for row in rows]
        return cls(*(np.concatenate(field, axis=1) for field in zip(*wide, strict=True)))


def measure_boxes(
    tile: Tile, pattern: ColorPattern, *, box_size: tuple[int, int], saturation: float | None = None
) -> OwnBoxes:
    """Return the level, scatter and count of each channel's own pixels in every box of a tile.

    Parameters
    ----------
    tile : Tile
        A mosaic (y, x) of any integer or floating type, or a rectangle of it that starts at a box's first pixel and
        ends with a box's last one or at the mosaic's edge; not modified. Value 0 is a gap, as are NaN and infinity.
    pattern : ColorPattern
        Repeats over the mosaic from its first pixel.
    box_size : tuple of int
        Sides (y, x) of a box in pixels of the mosaic. Whole periods of the pattern take a third of others' time.
    saturation : float, optional
        Pixels at or above this do not count, in the units of the mosaic.

    Returns
    -------
    OwnBoxes
        Channels in the order of `ColorPattern.channels`; boxes at the far edges may be partial.

    Notes
    -----
    A level is a mean of median and quartiles after three rounds of clipping at 2.5 standard deviations, which are
    measured on the faint side, where there are no stars. Among whole numbers a quantile is found to fractions, from how
    many of the pixels that have its value lie below it. Extra memory: some 10 MB and 12 bytes a box, whatever the
    size of the tile.
    """
    width = tile.core[1].stop - tile.core[1].start
    height = max(1, _BATCH_PIXELS // (width * box_size[0])) * box_size[0]
    parts = [
        np.stack([_statistics(values) for values in _gather(piece, pattern, box_size, saturation)], axis=1)
        for row in tile.cut(height, width, box_size[0])
        for piece in row
    ]
    fields = np.concatenate(parts, axis=2)
    return OwnBoxes(*fields.reshape(3, fields.shape[1], -1, -(-width // box_size[1])))


def _gather(
    piece: Tile, pattern: ColorPattern, box_size: tuple[int, int], saturation: float | None
) -> Iterator[Pixels]:
    """Copy each channel's own pixels in rows of boxes as an array (box, pixel); what does not count is `_nothing`."""
    pixels = _marked(piece.core_pixels(), saturation)
    for channel in pattern.channels:
        own = pattern.owned(channel)
        if not pattern.divides(box_size):
            # Such boxes hold different numbers of a channel's pixels: all are taken, and the others' marked.
            at = (np.arange(c.start, c.stop) % n for c, n in zip(piece.core, pattern.period, strict=True))
            yield _boxes([np.where(own[np.ix_(*at)], pixels, _nothing(pixels.dtype))], pixels.shape, box_size, (1, 1))
        else:
            planes = [pixels[y :: own.shape[0], x :: own.shape[1]] for y, x in np.argwhere(own)]
            yield _boxes(planes, pixels.shape, box_size, own.shape)


def _marked(pixels: Pixels, saturation: float | None) -> Pixels:
    """Return a copy with `_nothing` for pixels that do not count."""
    bad = (pixels == 0) | ~np.isfinite(pixels)
    if saturation is not None:
        bad |= pixels >= saturation
    return np.where(bad, _nothing(pixels.dtype), pixels)


def _nothing(dtype: np.dtype[Any]) -> np.number:
    """Return the value of a type that sorts last: NaN, or the largest number, which a full converter gives."""
    return dtype.type(np.nan if dtype.kind == "f" else np.iinfo(dtype).max)


def _boxes(planes: list[Pixels], shape: tuple[int, ...], box_size: tuple[int, int], step: tuple[int, ...]) -> Pixels:
    """Copy planes of every `step`-th pixel of rows of boxes as an array (box, pixel).

    A box's statistics do not depend on the order of its pixels, so those of a plane stay together.
    """
    n_y, n_x = (-(-n // side) for n, side in zip(shape, box_size, strict=True))
    height, width = (side // n for side, n in zip(box_size, step, strict=True))
    values = np.full((n_y, n_x, len(planes), height, width), _nothing(planes[0].dtype))
    for k, plane in enumerate(planes):
        # Only a single row of boxes may be shorter than a box.
        tall, whole = len(plane) // n_y, plane.shape[1] // width
        rows = plane[: n_y * tall].reshape(n_y, tall, plane.shape[1])
        values[:, :whole, k, :tall] = rows[..., : whole * width].reshape(n_y, tall, whole, width).swapaxes(1, 2)
        if whole < n_x:
            values[:, whole, k, :tall, : plane.shape[1] - whole * width] = rows[..., whole * width :]
    return values.reshape(n_y * n_x, -1)


def _statistics(values: Pixels) -> Float32:
    """Return level, scatter and count (3, box) of boxes (box, pixel), which are sorted in place."""
    sort_rows(values)
    boxes = _SortedBoxes(values)
    first, last = np.zeros(len(values)), boxes.n_good.astype(np.float64)
    lo, hi = first, last
    for _ in range(_ROUNDS):
        level = boxes.quantile(0.5, lo, hi)
        reach = _CLIP * (level - boxes.quantile(_ONE_BELOW, first, hi))
        below, above = boxes.rank(level - reach), boxes.rank(level + reach)
        kept = above > below
        lo, hi = np.where(kept, below, lo), np.where(kept, above, hi)
    quantiles = [boxes.quantile(share, lo, hi) for share, _ in _QUARTILES]
    level = np.sum([weight * quantile for (_, weight), quantile in zip(_QUARTILES, quantiles, strict=True)], axis=0)
    rms = quantiles[1] - boxes.quantile(_ONE_BELOW, first, hi)
    return np.stack([level, rms, hi - lo]).astype(np.float32)


class _SortedBoxes:
    """Quantiles and ranks in each row of sorted values (box, pixel).

    A whole number stands for all numbers that round to it, so that its pixels lie evenly from half below to half above.
    """

    def __init__(self, values: Pixels) -> None:
        self._flat = values.reshape(-1)
        self._start = np.arange(len(values)) * values.shape[1]
        self._whole = values.dtype.kind != "f"
        self.n_good = np.full(len(values), values.shape[1], np.intp)
        self.n_good = self._count_below(np.full(len(values), float(_nothing(values.dtype)) if self._whole else np.inf))

    def rank(self, bound: Float) -> Float:
        """Return how many good values of each box lie below a bound, or at it; in fractions for whole numbers."""
        if not self._whole:
            return self._count_below(np.nextafter(bound, np.inf)).astype(np.float64)
        value = np.floor(bound + 0.5)
        below = self._count_below(value)
        return below + (self._count_below(value + 1) - below) * (bound + 0.5 - value)

    def quantile(self, share: float, lo: Float, hi: Float) -> Float:
        """Return the value that a share of the values from rank `lo` to `hi` lie below; NaN where there are none."""
        place = lo + share * (hi - lo)
        if self._whole:
            value = self._value(place)
            below = self._count_below(value)
            within = value + (place - below) / np.maximum(self._count_below(value + 1) - below, 1) - 0.5
            # Between two numbers it may lie anywhere from one to the other.
            found = np.where(place == below, (self._value(place - 1) + value) / 2, within)
        else:
            lower = np.floor(place - 0.5)
            found = self._value(lower)
            found = found + (self._value(lower + 1) - found) * (place - 0.5 - lower)
        return np.where(hi > lo, found, np.nan)

    def _value(self, rank: Float) -> Float:
        within = np.clip(np.floor(rank), 0, np.maximum(self.n_good - 1, 0)).astype(np.intp)
        return self._flat.take(self._start + within, mode="clip").astype(np.float64)

    def _count_below(self, bound: Float) -> Int:
        low, high = np.zeros_like(self.n_good), self.n_good
        for _ in range(int(self.n_good.max()).bit_length()):
            middle = (low + high) >> 1
            below = (self._flat.take(self._start + middle, mode="clip") < bound) & (middle < high)
            low, high = np.where(below, middle + 1, low), np.where(below, high, middle)
        return low
