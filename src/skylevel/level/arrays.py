"""The verbs in which a method is written, for NumPy and Dask arrays alike.

This is the only place that asks which of the two an array is. With a NumPy array everything is done at once and in one
piece; with a Dask array the same functions are mapped over its chunks, later, and give the same bits.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import dask
import dask.array as da
import numpy as np
from dask.delayed import Delayed, delayed
from numpy.typing import NDArray

from skylevel.kernels.tile import Tile
from skylevel.level.dask_internals import under_new_names

# Chunks that are put together at a time.
_TOGETHER = 4

Array = Any


class Output(NamedTuple):
    """What a function that is mapped over tiles gives for each: an array (*leading, y, x)."""

    dtype: Any
    leading: tuple[int, ...] = ()
    # Pixels (y, x) of the image that become one of the result.
    per: tuple[int, int] = (1, 1)


def is_lazy(value: Any) -> bool:
    """Return whether a value is computed later."""
    return isinstance(value, da.Array | Delayed)


def later(function: Callable[..., Any], *args: Any) -> Any:
    """Call a function: now, or where some argument is computed later, then."""
    return delayed(function)(*args) if any(map(is_lazy, args)) else function(*args)


def gather(array: Array) -> Any:
    """Return a small array in one piece; of a Dask array, delayed.

    It is put together a few chunks at a time: of such a tree Dask finishes one part before it begins another, and holds
    few of the pixels that the chunks are made from.
    """
    if not isinstance(array, da.Array):
        return array
    for axis in reversed(range(array.ndim)):
        while (sizes := array.chunks[axis])[1:]:
            together = tuple(sum(sizes[i : i + _TOGETHER]) for i in range(0, len(sizes), _TOGETHER))
            array = array.rechunk({axis: together})
    # Under a name, as a chunk's own key is not found where another array's function is given it.
    return delayed(np.asarray)(array.to_delayed().item())


def as_array(value: Any, shape: tuple[int, ...], dtype: Any) -> Array:
    """Return what `later` gave as an array of that shape and dtype."""
    if isinstance(value, Delayed):
        return da.from_delayed(delayed(np.asarray)(value), shape, dtype)
    return np.asarray(value, dtype)


def beside(image: Array, function: Callable[..., Any], *args: Any, dtype: Any) -> Array:
    """Return an array of an image's shape that a function gives: now, or of a Dask array, later."""
    if isinstance(image, da.Array):
        return da.from_delayed(delayed(function)(*args), image.shape, dtype).rechunk(image.chunks)
    return function(*args)


def stack(arrays: Sequence[Array]) -> Array:
    """Stack arrays along a new first axis."""
    return da.stack(arrays) if any(map(is_lazy, arrays)) else np.stack(arrays)


def read_separately(image: Array) -> Array:
    """Return the same image, which a Dask array reads once more when it is computed.

    A mesh needs every pixel before anything that follows it can begin: with one image for both, Dask would keep all of
    it meanwhile.
    """
    return under_new_names(image) if isinstance(image, da.Array) else image


def whole_boxes(image: Array, box_size: tuple[int, int]) -> Array:
    """Return the image in chunks of about the same sizes that hold whole boxes."""
    if not isinstance(image, da.Array):
        return image
    chunks = []
    for sizes, side in zip(image.chunks, box_size, strict=True):
        cuts = {min(-(-int(end) // side) * side, sum(sizes)) for end in np.cumsum(sizes)}
        chunks.append(tuple(np.diff([0, *sorted(cuts)]).tolist()))
    return image.rechunk(tuple(chunks))


def map_tiles(function: Callable[..., Any], image: Array, *args: Any, output: Output, halo: int = 0) -> Array:
    """Map a function over an image's tiles, each with the pixels around it.

    Parameters
    ----------
    function : callable
        Called with a `Tile` and `args`, some of which may be computed later; gives an array (*leading, y, x).
    image : array (y, x)
    output : Output
        What it gives for each tile.
    halo : int
        Pixels around each tile, where the image has them. They may reach over several narrow chunks, which
        ``dask.array.overlap`` refuses.

    Returns
    -------
    array (*leading, y, x)
    """
    if not isinstance(image, da.Array):
        return function(Tile.whole(image), *args)
    shape = image.shape

    def one(y: int, n_y: int, x: int, n_x: int) -> da.Array:
        origin = (max(y - halo, 0), max(x - halo, 0))
        around = image[origin[0] : y + n_y + halo, origin[1] : x + n_x + halo]
        pixels = around.rechunk(-1).to_delayed().item()
        tile = delayed(Tile)(pixels, origin, shape, (slice(y, y + n_y), slice(x, x + n_x)))
        size = (-(-n_y // output.per[0]), -(-n_x // output.per[1]))
        return da.from_delayed(delayed(function)(tile, *args), (*output.leading, *size), output.dtype)

    (tops, lefts), (heights, widths) = _chunk_starts(image), image.chunks
    rows, columns = zip(tops, heights, strict=True), list(zip(lefts, widths, strict=True))
    return da.block([[one(y, n_y, x, n_x) for x, n_x in columns] for y, n_y in rows])


def map_rows(function: Callable[..., Any], image: Array, mask: Array) -> Array:
    """Map a function of rows (y, x) of an image and their mask, which gives a value (y,), over blocks of rows."""
    if not is_lazy(image) and not is_lazy(mask):
        return function(image, mask)
    image = da.asarray(image)
    # Whole rows, as many pixels of them as a chunk has now.
    rows = max(image.chunksize[0] * image.chunksize[1] // image.shape[1], 1)
    whole = image.rechunk({0: rows, 1: -1})
    masked = da.asarray(mask).rechunk(whole.chunks)
    meta = np.empty(0, image.dtype)
    return da.map_blocks(function, whole, masked, drop_axis=1, dtype=image.dtype, meta=meta)


def row_blocks(image: Array) -> Iterator[NDArray[Any]]:
    """Yield an image's chunks of whole rows one after the other, each computed in this process; or all of it."""
    if not isinstance(image, da.Array):
        yield image
        return
    for top, height in zip(_chunk_starts(image)[0], image.chunks[0], strict=True):
        # Named, as without it the cluster of the task that asks would do it.
        yield np.asarray(image[top : top + height].compute(scheduler="synchronous"))


def write_chunks(array: Array, sizes: tuple[int, ...], write: Callable[[tuple[slice, ...], NDArray[Any]], None]) -> Any:
    """Hand an array over in chunks of given sizes: now, or delayed, each by whoever computes it.

    Parameters
    ----------
    array : array
    sizes : tuple of int
        Of a chunk; the last one along an axis may be smaller.
    write : callable
        Called with a chunk's place in the array, and its values.

    Returns
    -------
    Delayed or None
        What is to be computed.
    """
    if not isinstance(array, da.Array):
        write(tuple(slice(0, n) for n in array.shape), np.asarray(array))
        return None
    chunked = array.rechunk(sizes)
    starts = _chunk_starts(chunked)
    blocks = chunked.to_delayed()
    writes = []
    for index in np.ndindex(blocks.shape):
        corner = [start[i] for start, i in zip(starts, index, strict=True)]
        ends = [start + n[i] for start, n, i in zip(corner, chunked.chunks, index, strict=True)]
        writes.append(delayed(write)(tuple(map(slice, corner, ends)), blocks[index]))
    return delayed(list)(writes)


def compute_here(value: Any) -> Any:
    """Compute what is delayed in this thread, whatever cluster is near."""
    return dask.compute(value, scheduler="synchronous")[0]


def _chunk_starts(image: da.Array) -> list[list[int]]:
    """Return the index of each chunk's first pixel, by axis."""
    return [np.cumsum([0, *sizes[:-1]]).tolist() for sizes in image.chunks]
