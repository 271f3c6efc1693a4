"""The verbs in which a method is written, for NumPy and Dask arrays alike.

This is the only place that asks which of the two an array is. With a NumPy array everything is done at once and in one
piece; with a Dask array the same functions are mapped over its chunks, later, and give the same bits. Of an `Unread`
array nothing is done: it tells the form of what would come out.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import dask
import numpy as np
from dask.delayed import Delayed, delayed
from numpy.typing import NDArray

from skylevel.kernels.tile import Tile
from skylevel.level.dask_internals import under_new_names

if TYPE_CHECKING:
    import dask.array as da

# Chunks that are put together at a time.
_TOGETHER = 4

Array = Any


class Output(NamedTuple):
    """What a function that is mapped over tiles gives for each: an array (*leading, y, x)."""

    dtype: Any
    leading: tuple[int, ...] = ()
    # Pixels (y, x) of the image that become one of the result.
    per: tuple[int, int] = (1, 1)


@dataclass(frozen=True, slots=True)
class Unread:
    """An image (or a part of one) that nobody reads: its shape and dtype, and so those of what is made of it.

    To xarray it is an array; what is done with it but by these verbs is refused.
    """

    shape: tuple[int, ...]
    dtype: np.dtype[Any]

    @property
    def ndim(self) -> int:
        """Number of axes."""
        return len(self.shape)

    @property
    def T(self) -> "Unread":  # noqa: N802 (as NumPy has it)
        """The array with its axes reversed."""
        return self.transpose(range(self.ndim)[::-1])

    def transpose(self, axes: Sequence[int]) -> "Unread":
        """Return the array with its axes in another order."""
        return Unread(tuple(self.shape[axis] for axis in axes), self.dtype)

    def __getitem__(self, index: Any) -> "Unread":
        # A view: no element is made.
        return Unread(np.broadcast_to(np.zeros((), self.dtype), self.shape)[index].shape, self.dtype)

    def __array__(self, *_: Any, **__: Any) -> NDArray[Any]:
        raise TypeError("nobody reads these pixels")

    # What xarray knows an array by; NumPy's functions refuse it for them.
    __array_function__ = __array_ufunc__ = None


def zeros(shape: tuple[int, ...], rows: int) -> "da.Array":
    """Return float64 zeros (y, x) in chunks of so many rows."""
    return _dask_array().zeros(shape, chunks=(rows, -1))


def _dask_array() -> Any:
    """Return ``dask.array``, which takes as long to import as a small frame to level: only chunked ones need it."""
    import dask.array  # noqa: PLC0415

    return dask.array


def _is_chunked(array: Array) -> bool:
    return dask.is_dask_collection(array) and not isinstance(array, Delayed)


def is_lazy(value: Any) -> bool:
    """Return whether a value is computed later."""
    return dask.is_dask_collection(value)


def later(function: Callable[..., Any], *args: Any) -> Any:
    """Call a function: now, or where some argument is computed later, then."""
    if any(isinstance(value, Unread) for value in args):
        return Unread((), np.dtype(object))
    return delayed(function)(*args) if any(map(is_lazy, args)) else function(*args)


def gather(array: Array) -> Any:
    """Return a small array in one piece; of a Dask array, delayed.

    It is put together a few chunks at a time: of such a tree Dask finishes one part before it begins another, and holds
    few of the pixels that the chunks are made from.
    """
    if not _is_chunked(array):
        return array
    for axis in reversed(range(array.ndim)):
        while (sizes := array.chunks[axis])[1:]:
            together = tuple(sum(sizes[i : i + _TOGETHER]) for i in range(0, len(sizes), _TOGETHER))
            array = array.rechunk({axis: together})
    # Under a name, as a chunk's own key is not found where another array's function is given it.
    return delayed(np.asarray)(array.to_delayed().item())


def as_array(value: Any, shape: tuple[int, ...], dtype: Any) -> Array:
    """Return what `later` gave as an array of that shape and dtype."""
    if isinstance(value, Unread):
        return Unread(tuple(shape), np.dtype(dtype))
    if isinstance(value, Delayed):
        return _dask_array().from_delayed(delayed(np.asarray)(value), shape, dtype)
    return np.asarray(value, dtype)


def beside(image: Array, function: Callable[..., Any], *args: Any, dtype: Any) -> Array:
    """Return an array of an image's shape that a function gives: now, or of a Dask array, later."""
    if isinstance(image, Unread):
        return Unread(image.shape, np.dtype(dtype))
    if _is_chunked(image):
        return _dask_array().from_delayed(delayed(function)(*args), image.shape, dtype).rechunk(image.chunks)
    return function(*args)


def stack(arrays: Sequence[Array]) -> Array:
    """Stack arrays along a new first axis."""
    if isinstance(first := arrays[0], Unread):
        return Unread((len(arrays), *first.shape), first.dtype)
    return _dask_array().stack(arrays) if any(map(is_lazy, arrays)) else np.stack(arrays)


def read_separately(image: Array) -> Array:
    """Return the same image, which a Dask array reads once more when it is computed.

    A mesh needs every pixel before anything that follows it can begin: with one image for both, Dask would keep all of
    it meanwhile.
    """
    return under_new_names(image) if _is_chunked(image) else image


def whole_boxes(image: Array, box_size: tuple[int, int]) -> Array:
    """Return the image in chunks of about the same sizes that hold whole boxes."""
    if not _is_chunked(image):
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
    if isinstance(image, Unread):
        sides = (-(-n // per) for n, per in zip(image.shape, output.per, strict=True))
        return Unread((*output.leading, *sides), np.dtype(output.dtype))
    if not _is_chunked(image):
        return function(Tile.whole(image), *args)
    dask_array, shape = _dask_array(), image.shape

    def one(y: int, n_y: int, x: int, n_x: int) -> "da.Array":
        origin = (max(y - halo, 0), max(x - halo, 0))
        around = image[origin[0] : y + n_y + halo, origin[1] : x + n_x + halo]
        pixels = around.rechunk(-1).to_delayed().item()
        tile = delayed(Tile)(pixels, origin, shape, (slice(y, y + n_y), slice(x, x + n_x)))
        size = (-(-n_y // output.per[0]), -(-n_x // output.per[1]))
        return dask_array.from_delayed(delayed(function)(tile, *args), (*output.leading, *size), output.dtype)

    (tops, lefts), (heights, widths) = _chunk_starts(image), image.chunks
    rows, columns = zip(tops, heights, strict=True), list(zip(lefts, widths, strict=True))
    return dask_array.block([[one(y, n_y, x, n_x) for x, n_x in columns] for y, n_y in rows])


def map_rows(function: Callable[..., Any], image: Array, mask: Array) -> Array:
    """Map a function of rows (y, x) of an image and their mask, which gives a value (y,), over blocks of rows."""
    if isinstance(image, Unread):
        return Unread(image.shape[:1], image.dtype)
    if not is_lazy(image) and not is_lazy(mask):
        return function(image, mask)
    dask_array = _dask_array()
    image = dask_array.asarray(image)
    # Whole rows, as many pixels of them as a chunk has now.
    rows = max(image.chunksize[0] * image.chunksize[1] // image.shape[1], 1)
    whole = image.rechunk({0: rows, 1: -1})
    masked = dask_array.asarray(mask).rechunk(whole.chunks)
    meta = np.empty(0, image.dtype)
    return dask_array.map_blocks(function, whole, masked, drop_axis=1, dtype=image.dtype, meta=meta)


def row_blocks(image: Array) -> Iterator[NDArray[Any]]:
    """Yield an image's chunks of whole rows one after the other, each computed in this process; or all of it."""
    if not _is_chunked(image):
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
    if not _is_chunked(array):
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


def _chunk_starts(image: "da.Array") -> list[list[int]]:
    """Return the index of each chunk's first pixel, by axis."""
    return [np.cumsum([0, *sizes[:-1]]).tolist() for sizes in image.chunks]
