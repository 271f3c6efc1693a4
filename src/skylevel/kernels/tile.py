"""A piece of a larger image, and what stands around it."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any, Self

from numpy.typing import NDArray


@dataclass(frozen=True, slots=True)
class Tile:
    """A rectangle of a larger image, with the pixels around it that a kernel needs, where there are any.

    Attributes
    ----------
    pixels : ndarray (y, x)
        The rectangle and the pixels around it.
    origin : tuple of int
        Indices (y, x) in the image of the first of `pixels`.
    shape : tuple of int
        Shape (y, x) of the image.
    core : tuple of slice
        The rectangle (y, x), in indices of the image.
    """

    pixels: NDArray[Any]
    origin: tuple[int, int]
    shape: tuple[int, int]
    core: tuple[slice, slice]

    @classmethod
    def whole(cls, image: NDArray[Any]) -> Self:
        """Return an image (y, x) as one tile."""
        n_y, n_x = image.shape
        return cls(image, (0, 0), (n_y, n_x), (slice(0, n_y), slice(0, n_x)))

    def cut(self, height: int, width: int, unit: int) -> Iterator[Iterator[Self]]:
        """Cut the tile into rows of pieces.

        Parameters
        ----------
        height, width : int
            Pixels of a piece at the most; whole multiples of `unit`, but for pieces at the far edges.
        unit : int
            Side of a box along y. What is left of less than this at the far edge is a row of its own.
        """
        rows, columns = self.core
        whole = rows.start + (rows.stop - rows.start) // unit * unit
        tops = sorted({*range(rows.start, whole, height), whole, rows.stop})
        for top, bottom in pairwise(tops):
            yield (
                replace(self, core=(slice(top, bottom), slice(left, min(left + width, columns.stop))))
                for left in range(columns.start, columns.stop, width)
            )

    def trim(self, result: NDArray[Any]) -> NDArray[Any]:
        """Return the rectangle's part of an array that stands for all of `pixels`."""
        (rows, columns), (y, x) = self.core, self.origin
        return result[rows.start - y : rows.stop - y, columns.start - x : columns.stop - x]

    def core_pixels(self) -> NDArray[Any]:
        """Return the rectangle's pixels alone."""
        return self.trim(self.pixels)

    def around(self, margin: tuple[int, int]) -> tuple[NDArray[Any], tuple[slice, slice]]:
        """The pixels there are within `margin` (y, x) of the rectangle, and where they stand in what `padded` gives."""
        spans = [
            (max(c.start - m, 0), min(c.stop + m, n), c.start - m)
            for c, m, n in zip(self.core, margin, self.shape, strict=True)
        ]
        y, x = (slice(start - o, stop - o) for (start, stop, _), o in zip(spans, self.origin, strict=True))
        to_y, to_x = (slice(start - first, stop - first) for start, stop, first in spans)
        return self.pixels[y, x], (to_y, to_x)
