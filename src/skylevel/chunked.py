"""Dask plumbing of `skylevel.level`: whole boxes, small results gathered, tiles with what stands around them."""

from collections.abc import Callable, Sequence
from typing import Any

import dask.array as da
import numpy as np
from dask.delayed import Delayed, delayed

from skylevel.kernels.tile import Tile

Chunks = Sequence[tuple[int, ...]]


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
    """A small Dask array as one delayed NumPy array."""
    return array.rechunk(-1).to_delayed().item()


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
        pixels = gathered(image[origin[0] : y + n_y + halo, origin[1] : x + n_x + halo])
        tile = delayed(Tile)(pixels, origin, shape, (slice(y, y + n_y), slice(x, x + n_x)))
        return da.from_delayed(delayed(function)(tile, *args), (*leading, *size), dtype)

    (y_starts, x_starts), (y_sizes, x_sizes) = starts(image), image.chunks
    rows = zip(y_starts, y_sizes, sizes[0], strict=True)
    columns = list(zip(x_starts, x_sizes, sizes[1], strict=True))
    return da.block([[one(y, n_y, x, n_x, (out_y, out_x)) for x, n_x, out_x in columns] for y, n_y, out_y in rows])
