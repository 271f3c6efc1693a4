"""The channels of a mosaic: the gaps between a colour's pixels filled, each channel's statistics and subtraction."""

from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from skylevel.kernels.mesh import (
    BoxStatistics,
    Clipping,
    Float,
    Float32,
    Int,
    Surface,
    clipped_statistics,
    gather_boxes,
)
from skylevel.kernels.pattern import Bool, ColorPattern
from skylevel.kernels.sources import gaussian_taps
from skylevel.kernels.tile import Tile

Phases = dict[tuple[int, int], NDArray[np.number]]
# Sums along y, by column phase of the pattern.
Lines = dict[int, Float]

# Weights of the fill that sum to less than this are rounding: no pixel of the channel is within the kernel.
_NO_WEIGHT = 1e-12

# Pixels of the mosaic in a batch of boxes of own pixels, and columns of a piece that is filled: as much as stays in a
# core's cache with all that is made of it, whatever the mosaic's width.
_PLANES_PIXELS = 3_600_000
_FILLED_WIDTH = 6000

# Rows of one phase that are subtracted at a time, so that they stay in a core's cache.
_STRIP_ROWS = 32


def halo_needed(stddev: float, pattern: ColorPattern) -> int:
    """Return how many pixels around a tile filling looks at: half a kernel, in whole periods of the pattern."""
    return _kernel_size(stddev) // 2 + max(pattern.period)


def _kernel_size(stddev: float) -> int:
    """Side of the fill's kernel: the odd number of pixels at or above 8 standard deviations, as astropy's."""
    return int(np.ceil(8 * stddev)) | 1


class _Window:
    """A tile and the margin around it, parted by column phase of a pattern counted from the tile's first pixel.

    Parameters
    ----------
    pixels : ndarray (margin + y + margin, margin + x + margin)
        The tile with its margin; both margins, and the length along x, in whole periods.
    size : tuple of int
        Of the tile (y, x).
    margin, period : tuple of int
    """

    def __init__(
        self, pixels: NDArray[np.generic], size: tuple[int, int], margin: tuple[int, int], period: tuple[int, int]
    ) -> None:
        self.size, self.margin, self.period = size, margin, period
        self.planes = [pixels[:, x :: period[1]].astype(np.float64, order="C") for x in range(period[1])]

    def along_y(self, own: Bool, taps: Float, y: int) -> Lines:
        """Weighted sums along y of a channel's pixels, at the rows of phase y, by column phase."""
        half, period = len(taps) // 2, self.period[0]
        n_rows = len(range(y, self.size[0], period))
        sums = {}
        for x, plane in enumerate(self.planes):
            near = [d for d in range(-half, half + 1) if own[(y + d) % period, x]]
            if near:
                first = [self.margin[0] + y + d for d in near]
                rows = [plane[r : r + (n_rows - 1) * period + 1 : period] for r in first]
                sums[x] = _tap_sum(taps[np.add(near, half)], rows)
        return sums

    def along_x(self, lines: Lines, taps: Float, x: int) -> Float:
        """Weighted sums along x of what `along_y` gave, at the columns of phase x."""
        half, period = len(taps) // 2, self.period[1]
        n_columns = len(range(x, self.size[1], period))
        near = [d for d in range(-half, half + 1) if (x + d) % period in lines]
        first = [(self.margin[1] + x + d) // period for d in near]
        columns = [lines[(x + d) % period][:, c : c + n_columns] for d, c in zip(near, first, strict=True)]
        return _tap_sum(taps[np.add(near, half)], columns)


class _Holes:
    """Pixels of value 0 in a window: the columns near one, put side by side, since mostly there are few.

    Parameters
    ----------
    empty : ndarray (margin + y + margin, margin + x + margin) bool
        True at the holes; none beyond the mosaic's edges.
    window : _Window
        What they are holes in.
    """

    def __init__(self, empty: Bool, window: _Window) -> None:
        period, reach = window.period[1], window.margin[1] // window.period[1]
        columns = empty.reshape(len(empty), -1, period)
        # Along y first: along two axes at once it takes ten times as long.
        near = _within(np.any(np.any(empty, axis=0).reshape(-1, period), axis=1), reach)
        near[:reach] = near[len(near) - reach :] = False
        # Periods of columns whose fill sees a hole, counted from the tile's first; and all that fill sees, counted
        # from the window's first.
        self._near = np.flatnonzero(near) - reach
        self._seen = np.flatnonzero(_within(near, reach))
        self._at = np.searchsorted(self._seen, self._near)
        size = (window.size[0], (self._seen.size - 2 * reach) * period)
        pixels = columns[:, self._seen].reshape(len(empty), -1)
        self._window = _Window(pixels, size, window.margin, window.period)

    def along_y(self, lines: Lines, own: Bool, taps: Float, y: int) -> tuple[Lines, Lines]:
        """What the columns near a hole see of `lines`, which `_Window.along_y` gave, and the same sums of the holes."""
        return {x: line[:, self._seen] for x, line in lines.items()}, self._window.along_y(own, taps, y)

    def fill(
        self, phase: NDArray[np.number], weight: Float, near: tuple[Lines, Lines], taps: Float, x: int, *, own: bool
    ) -> Float:
        """Return a phase (y, x) of a channel, its pixels near a hole filled anew from what the holes leave of `weight`.

        `near` is what `along_y` gave; of the channel's own pixels, the holes alone are filled.
        """
        filled = phase.astype(np.float64, copy=own)
        columns = self._near[self._near < filled.shape[1]]
        total, lost = (self._window.along_x(lines, taps, x)[:, self._at[: columns.size]] for lines in near)
        left = np.broadcast_to(weight, filled.shape)[:, columns] - lost
        left[left <= _NO_WEIGHT] = np.inf
        here = phase[:, columns]
        filled[:, columns] = np.where(here == 0, total / left, here) if own else total / left
        return filled


def _within(flags: Bool, reach: int) -> Bool:
    """Return where a flag is set within `reach` places."""
    return np.asarray(np.convolve(flags, np.ones(2 * reach + 1, int), mode="same") > 0)


def _tap_sum(weights: Float, terms: list[Float]) -> Float:
    """Sum of ``weights[k] * terms[k]``; terms of equal weight at the two ends are added first."""
    total = np.zeros_like(terms[0])
    work = np.empty_like(total)
    first, last = 0, len(terms) - 1
    while first <= last:
        if first < last and weights[first] == weights[last]:
            np.add(terms[first], terms[last], out=work)
            last -= 1
        else:
            np.copyto(work, terms[first])
        work *= weights[first]
        total += work
        first += 1
    return total


def fill_gaps(tile: Tile, pattern: ColorPattern, *, stddev: float) -> Iterator[tuple[str, Float]]:
    """Yield each channel at every pixel of a tile: its own pixels, and a Gaussian-weighted mean of them elsewhere.

    Parameters
    ----------
    tile : Tile
        Pixels with value 0 are gaps too.
    pattern : ColorPattern
    stddev : float
        Of the Gaussian, in pixels.

    Yields
    ------
    str
        The channel.
    ndarray (y, x) float64
        The tile's rectangle; 0 where the kernel covers no pixel of the channel.

    Notes
    -----
    Equals astropy's ``interpolate_replace_nans`` on the whole mosaic with the channel's gaps set to NaN, as in the
    night-sky notebook, to rounding: beyond the mosaic's edges stand zeros that count, so that filled pixels at the
    edge are pulled low. The Gaussian is separable and the pattern periodic, so that each phase of the pattern is a
    convolution with few taps.
    """
    for channel, phases in _filled_phases(tile, pattern, stddev):
        result = np.empty(tile.core_pixels().shape)
        for (y, x), plane in phases.items():
            result[y :: pattern.period[0], x :: pattern.period[1]] = plane
        yield channel, result


def _filled_phases(tile: Tile, pattern: ColorPattern, stddev: float) -> Iterator[tuple[str, Phases]]:
    """`fill_gaps`, with each channel parted by phase of the pattern, counted from the tile's first pixel."""
    taps = gaussian_taps(stddev, _kernel_size(stddev))
    window, holes = _surroundings(tile, pattern.period, len(taps) // 2)
    weights = _EdgeWeights(tile, pattern.period, taps)
    pixels = tile.core_pixels()
    local = pattern.seen_from(tile.core[0].start, tile.core[1].start)
    for channel in pattern.channels:
        yield channel, _fill_channel(pixels, local.owned(channel), taps, window, holes, weights)


def _surroundings(tile: Tile, period: tuple[int, int], half: int) -> tuple[_Window, _Holes | None]:
    """A tile with `half` a kernel around it, zeros beyond the mosaic's edges; and its holes, where there are any."""
    rows, columns = tile.core
    size = (rows.stop - rows.start, columns.stop - columns.start)
    # A margin of whole periods keeps the phases where they are.
    margin = (-(-half // period[0]) * period[0], -(-half // period[1]) * period[1])
    pixels, here = tile.around(margin)
    shape = (size[0] + 2 * margin[0], -(-size[1] // period[1]) * period[1] + 2 * margin[1])
    padded = np.zeros(shape)
    padded[here] = pixels
    window = _Window(padded, size, margin, period)
    if pixels.all():
        return window, None
    empty = np.zeros(shape, bool)
    empty[here] = pixels == 0
    return window, _Holes(empty, window)


def _fill_channel(
    pixels: NDArray[np.number], own: Bool, taps: Float, window: _Window, holes: _Holes | None, weights: "_EdgeWeights"
) -> Phases:
    """One channel of `_filled_phases`."""
    phases: Phases = {}
    # A tile narrower than the pattern has no pixel of some phases.
    for y in range(min(own.shape[0], pixels.shape[0])):
        lines = window.along_y(own, taps, y)
        near = holes.along_y(lines, own, taps, y) if holes else None
        for x in range(min(own.shape[1], pixels.shape[1])):
            is_own = bool(own[y, x])
            phases[y, x] = pixels[y :: own.shape[0], x :: own.shape[1]]
            if is_own and not holes:
                continue
            weight = weights.at(own, y, x)
            if not is_own:
                phases[y, x] = window.along_x(lines, taps, x) / weight
            if holes and near:
                phases[y, x] = holes.fill(phases[y, x], weight, near, taps, x, own=is_own)
    return phases


class _EdgeWeights:
    """Sum of the kernel's weights that count around each pixel of a tile: a channel's own, and those off the mosaic."""

    def __init__(self, tile: Tile, period: tuple[int, int], taps: Float) -> None:
        self._rows, self._columns = (
            _axis_weights(core, n, p, taps) for core, n, p in zip(tile.core, tile.shape, period, strict=True)
        )
        self._period = period
        self._start = (tile.core[0].start, tile.core[1].start)

    def at(self, own: Bool, y: int, x: int) -> Float:
        """Weights at phase (y, x), infinite where there is none; of length 1 along an axis where all are the same."""
        of_y, of_x = self._rows[y][:, :, None], self._columns[x][:, None, :]
        total = 1.0 - (1.0 - of_y[-1]) * (1.0 - of_x[-1])
        # In the mosaic's own order, whatever phase the tile starts at: the same bits.
        mosaic_order = np.argwhere(np.roll(own, self._start, (0, 1)))
        for p_y, p_x in (mosaic_order - self._start) % self._period:
            total = total + of_y[p_y] * of_x[p_x]
        return np.where(total > _NO_WEIGHT, total, np.inf)


def _axis_weights(core: slice, n: int, period: int, taps: Float) -> list[Float]:
    """Along one axis, the taps' sums around the pixels of each phase, (period + 1, pixel) or (period + 1, 1).

    A sum for each phase inside the mosaic, and the last one off it.
    """
    half = len(taps) // 2
    position = np.arange(core.start, core.stop)[:, None] + np.arange(-half, half + 1)
    off = (position < 0) | (position >= n)
    phase = (position - core.start) % period
    inside = [np.where(~off & (phase == p), taps, 0.0).sum(axis=1) for p in range(period)]
    sums = np.stack([*inside, np.where(off, taps, 0.0).sum(axis=1)])
    return [_collapsed(sums[:, p::period]) for p in range(period)]


def _collapsed(weights: Float) -> Float:
    """Return the first column alone where all columns are the same."""
    return weights[:, :1] if (weights == weights[:, :1]).all() else weights


def channel_statistics(
    tile: Tile,
    pattern: ColorPattern,
    *,
    method: str,
    stddev: float,
    box_size: tuple[int, int],
    clipping: Clipping,
) -> list[BoxStatistics]:
    """Return statistics of each channel's boxes in a tile that starts at a box's first pixel.

    Parameters
    ----------
    tile : Tile
    pattern : ColorPattern
    method : {"filled", "planes"}
        Measure the filled channel, or its own pixels (those above 0) alone.
    stddev : float
        Of the fill's Gaussian, in pixels.
    box_size : tuple of int
        Sides (y, x) of a box on the mosaic, in pixels.
    clipping : Clipping

    Returns
    -------
    list of BoxStatistics
        In the order of `ColorPattern.channels`.

    Notes
    -----
    Extra memory: about 50 bytes for each pixel of one row of boxes.
    """
    parts: dict[str, list[NDArray[np.float64]]] = {channel: [] for channel in pattern.channels}
    n_rows = 1 if method == "filled" else max(1, _PLANES_PIXELS // (tile.core_pixels().shape[1] * box_size[0]))
    width = max(_FILLED_WIDTH // box_size[1], 1) * box_size[1] if method == "filled" else tile.core_pixels().shape[1]
    for row in tile.cut(n_rows * box_size[0], width, box_size[0]):
        pieces: dict[str, list[NDArray[np.float64]]] = {channel: [] for channel in parts}
        for piece in row:
            n_x = -(-piece.core_pixels().shape[1] // box_size[1])
            for channel, values, first in _box_values(piece, pattern, box_size, method, stddev):
                statistics = clipped_statistics(values, clipping, first=first)
                pieces[channel].append(np.stack(statistics).reshape(3, -1, n_x))
        for channel, found in pieces.items():
            parts[channel].append(np.concatenate(found, axis=2))
    return [BoxStatistics(*np.concatenate(rows, axis=1)) for rows in parts.values()]


def _box_values(
    strip: Tile, pattern: ColorPattern, box_size: tuple[int, int], method: str, stddev: float
) -> Iterator[tuple[str, NDArray[np.number], Int | None]]:
    """Yield what is measured of each channel in rows of boxes: values (box, pixel), and how many zeros do not count."""
    if method == "planes":
        for channel, values in own_values(strip, pattern, box_size):
            yield channel, values, np.count_nonzero(values == 0, axis=1)
    elif pattern.divides(box_size):
        for channel, phases in _filled_phases(strip, pattern, stddev):
            yield channel, _boxes_of_phases(phases, strip, pattern, box_size, np.nan), None
    else:
        for channel, filled in fill_gaps(strip, pattern, stddev=stddev):
            yield channel, gather_boxes(filled, box_size), None


def own_values(
    strip: Tile, pattern: ColorPattern, box_size: tuple[int, int]
) -> Iterator[tuple[str, NDArray[np.number]]]:
    """Yield each channel's own pixels in rows of boxes, as an array (box, pixel) filled up with zeros."""
    if not pattern.divides(box_size):
        # Such boxes hold different numbers of a channel's pixels.
        yield from _own_values_of_any_box(strip, pattern, box_size)
        return
    pixels = strip.core_pixels()
    for channel in pattern.channels:
        owned = [(int(y), int(x)) for y, x in np.argwhere(pattern.owned(channel))]
        phases = {(y, x): pixels[y :: pattern.period[0], x :: pattern.period[1]] for y, x in owned}
        yield channel, _boxes_of_phases(phases, strip, pattern, box_size, pixels.dtype.type(0))


def _boxes_of_phases(
    phases: Phases, strip: Tile, pattern: ColorPattern, box_size: tuple[int, int], fill: Any
) -> NDArray[np.number]:
    """Copy phases of rows of boxes as an array (box, pixel); `fill` stands beyond the mosaic's edge.

    A box's statistics do not depend on the order of its pixels, so those of a phase stay together.
    """
    n_y, n_x = (-(-n // side) for n, side in zip(strip.core_pixels().shape, box_size, strict=True))
    height, width = (side // period for side, period in zip(box_size, pattern.period, strict=True))
    values = np.full((n_y, n_x, len(phases), height, width), fill)
    for k, plane in enumerate(phases.values()):
        # Only a single row of boxes may be shorter than a box.
        tall, whole = len(plane) // n_y, plane.shape[1] // width
        rows = plane.reshape(n_y, tall, -1) if plane.size else plane[None]
        values[:, :whole, k, :tall] = rows[..., : whole * width].reshape(n_y, tall, whole, width).swapaxes(1, 2)
        if whole < n_x:
            rest = rows[..., whole * width :]
            values[:, whole, k, :tall, : rest.shape[2]] = rest
    return values.reshape(n_y * n_x, -1)


def _own_values_of_any_box(
    strip: Tile, pattern: ColorPattern, box_size: tuple[int, int]
) -> Iterator[tuple[str, NDArray[np.number]]]:
    pixels = strip.core_pixels()
    n_y, n_x = (-(-n // side) for n, side in zip(pixels.shape, box_size, strict=True))
    letters = pattern.colors_at(*(np.arange(core.start, core.stop) for core in strip.core))
    padding = ((0, 0), (0, n_x * box_size[1] - pixels.shape[1]))
    for channel in pattern.channels:
        own = np.pad(np.where(letters == channel, pixels, 0), padding)
        boxes = own.reshape(n_y, -1, n_x, box_size[1]).swapaxes(1, 2)
        yield channel, boxes.reshape(n_y * n_x, -1, copy=True)


def box_n_pixels(pattern: ColorPattern, channel: str, *, method: str, box_size: tuple[int, int]) -> float:
    """Return how many pixels of a whole box a channel could use."""
    share = pattern.share(channel) if method == "planes" else 1.0
    return box_size[0] * box_size[1] * share


def subtract_backgrounds(
    mosaic: NDArray[np.number],
    pattern: ColorPattern,
    meshes: list[Float32],
    *,
    box_size: tuple[int, int],
    norms: list[float],
    pedestal: float,
    origin: tuple[int, int] = (0, 0),
) -> Float32:
    """Subtract each channel's background at its own pixels, scale it, and add the pedestal.

    Parameters
    ----------
    mosaic : ndarray (y, x)
        The mosaic, or a tile of it.
    pattern : ColorPattern
    meshes : list of ndarray (mesh_y, mesh_x)
        Background of each channel, in the order of `ColorPattern.channels`, for the whole mosaic.
    box_size : tuple of int
        Sides (y, x) of a box in pixels.
    norms : list of float
        Factor of each channel.
    pedestal : float
        In the units of `mosaic`.
    origin : tuple of int
        Indices (y, x) in the whole mosaic of the first pixel.

    Returns
    -------
    ndarray (y, x) float32
    """
    period, local = pattern.period, pattern.seen_from(*origin)
    n_y, n_x = mosaic.shape
    every_row = range(origin[0], origin[0] + n_y)
    phases = [
        (y, x, Surface(mesh, every_row, np.arange(x, n_x, period[1]) + origin[1], box_size=box_size), norm)
        for channel, mesh, norm in zip(pattern.channels, meshes, norms, strict=True)
        for y, x in np.argwhere(local.owned(channel))
    ]
    result = np.empty(mosaic.shape, np.float32)
    step = _STRIP_ROWS * period[0]
    # All phases of a strip before the next: every line of the result is in the cache when it is written again.
    for top in range(0, n_y, step):
        for y, x, surface, norm in phases:
            rows = np.arange(top + y, min(top + step, n_y), period[0])
            if rows.size:
                here = np.s_[rows[0] : rows[-1] + 1 : period[0], x :: period[1]]
                level = surface.at(rows + origin[0])
                np.subtract(mosaic[here], level, out=level, casting="same_kind", dtype=np.float32)
                level *= norm
                level += pedestal
                result[here] = level
    return result
