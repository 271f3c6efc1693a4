"""Dask plumbing of `skylevel.level`: whole boxes, small results gathered, tiles with what stands around them."""

from collections.abc import Callable, Sequence
from typing import Any

import dask.array as da
import numpy as np
from dask._task_spec import TaskRef, convert_legacy_graph
from dask.core import flatten
from dask.delayed import Delayed, delayed

from skylevel.kernels.tile import Tile

# Chunks that are put together at a time.
_TOGETHER = 4

Chunks = Sequence[tuple[int, ...]]


def read_again(image: da.Array) -> da.Array:
    """The same image, made once more when it is computed.

    A mesh needs every pixel before anything that follows it can begin: with one image for both, Dask would keep all of
    it meanwhile. As ``dask.graph_manipulation.clone``, which leaves tasks under their old names (dask#12455).
    """
    graph = image.dask.to_dict()
    # What a cluster holds already is referred to, not made.
    names = {key: _renamed(key) for key, task in graph.items() if not isinstance(task, TaskRef)}
    if next(flatten(image.__dask_keys__())) not in names:
        return image
    tasks = convert_legacy_graph(graph)
    again = {name: tasks[key].substitute(names, key=name) for key, name in names.items()}
    held = {key: task for key, task in graph.items() if key not in names}
    return da.Array(again | held, _renamed(image.name), image.chunks, meta=image._meta)


def _renamed(key: Any) -> Any:
    """A task's key, or an array's name, that no other has."""
    return (_renamed(key[0]), *key[1:]) if isinstance(key, tuple) else f"{key}-again"


def whole_boxes(image: da.Array, box_size: tuple[int, int]) -> da.Array:
    """The image in chunks of about the same sizes that hold whole boxes."""
    chunks = []
    for sizes, side in zip(image.chunks, box_size, strict=True):
        cuts = {min(-(-int(end) // side) * side, sum(sizes)) for end in np.cumsum(sizes)}
        chunks.append(tuple(np.diff([0, *sorted(cuts)]).tolist()))
    return image.rechunk(tuple(chunks))


def mesh_chunks(boxes: da.Array, box_size: tuple[int, int]) -> list[tuple[int, ...]]:
    """How many boxes each chunk of `whole_boxes` holds, by axis."""
    return [tuple(-(-size // side) for size in sizes) for sizes, side in zip(boxes.chunks, box_size, strict=True)]


def gathered(array: da.Array) -> Delayed:
    """A small Dask array as one delayed NumPy array.

    It is put together a few chunks at a time: of such a tree Dask finishes one part before it begins another, and holds
    few of the pixels that the chunks are made from.
    """
    for axis in reversed(range(array.ndim)):
        while (sizes := array.chunks[axis])[1:]:
            together = tuple(sum(sizes[i : i + _TOGETHER]) for i in range(0, len(sizes), _TOGETHER))
            array = array.rechunk({axis: together})
    # Under a name, as a chunk's own key is not found where another array's function is given it.
    return delayed(np.asarray)(array.to_delayed().item())


def starts(image: da.Array) -> list[list[int]]:
    """Index of each chunk's first pixel, by axis."""
    return [np.cumsum([0, *sizes[:-1]]).tolist() for sizes in image.chunks]


def map_tiles(
    function: Callable[..., Any],
    image: da.Array,
    *args: Any,
    halo: int,
    dtype: Any,
    leading: tuple[int, ...] = (),
    chunks: Chunks | None = None,
) -> da.Array:
    """Map a function over an image's chunks, each with the pixels around it.

    Parameters
    ----------
    function : callable
        Called with a `Tile` and `args`, some of which may be delayed; gives an array (*leading, y, x).
    image : dask array (y, x)
    halo : int
        Pixels around each chunk, where the image has them. They may reach over several narrow chunks, which
        ``dask.array.overlap`` refuses.
    dtype : dtype
        Of the result.
    leading : tuple of int
        Dimensions of the result before y and x.
    chunks : sequence of tuple of int, optional
        Sizes of the result along y and x, by chunk; by default, the image's own.

    Returns
    -------
    dask array (*leading, y, x)
    """
    shape, sizes = image.shape, chunks or image.chunks

    def one(y: int, n_y: int, x: int, n_x: int, size: tuple[int, int]) -> da.Array:
        origin = (max(y - halo, 0), max(x - halo, 0))
        around = image[origin[0] : y + n_y + halo, origin[1] : x + n_x + halo]
        pixels = around.rechunk(-1).to_delayed().item()
        tile = delayed(Tile)(pixels, origin, shape, (slice(y, y + n_y), slice(x, x + n_x)))
        return da.from_delayed(delayed(function)(tile, *args), (*leading, *size), dtype)

    (y_starts, x_starts), (y_sizes, x_sizes) = starts(image), image.chunks
    rows = zip(y_starts, y_sizes, sizes[0], strict=True)
    columns = list(zip(x_starts, x_sizes, sizes[1], strict=True))
    return da.block([[one(y, n_y, x, n_x, (out_y, out_x)) for x, n_x, out_x in columns] for y, n_y, out_y in rows])
