"""Which columns each output amplifier reads, in which direction, and the grid that their cells stand on."""

from dataclasses import dataclass
from itertools import pairwise
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from skylevel.errors import ShapeError

# Pixels along x that one cell averages: few enough for sources to leave some, enough to say something.
CELL_WIDTH = 32
# Rows and cells that one coarse cell sums: the sky, large sources and slow streams change little across it.
COARSE_ROWS, COARSE_CELLS = 16, 2
# Blocks of medians, bins of every scale, and coarse cells all divide this.
_ALIGNMENT = 64
_DETECTOR_WIDTH = 2048

_T = TypeVar("_T", bound=np.generic)


@dataclass(frozen=True, slots=True)
class Amplifiers:
    """How a detector's columns are shared among its outputs.

    Attributes
    ----------
    first : int
        Image column of the first amplifier's first pixel; negative where a crop begins within it.
    width : int
        Columns that each one reads, in pixel.
    right_to_left : tuple of bool
        For each amplifier, whether its pixels were read towards smaller x where rows count upwards in time.
    """

    first: int
    width: int
    right_to_left: tuple[bool, ...]

    @property
    def count(self) -> int:
        """Number of amplifiers in the image."""
        return len(self.right_to_left)

    def edges(self, n_x: int) -> list[int]:
        """Return the image columns where amplifiers begin and the last one ends."""
        return [min(max(self.first + self.width * k, 0), n_x) for k in range(self.count + 1)]


def amplifier_layout(
    n_x: int, *, n_outputs: int = 4, fast_axis: int = 1, slow_axis: int = 2, first_column: int = 0
) -> Amplifiers:
    """Find the amplifiers of an image from its header's cards.

    Parameters
    ----------
    n_x : int
        Columns of the image; of one whose stripes run along columns, after it was transposed.
    n_outputs : int
        NOUTPUTS: 1 for most subarrays, 4 for full frames and stripe subarrays.
    fast_axis, slow_axis : int
        FASTAXIS and SLOWAXIS; only their signs count.
    first_column : int
        Detector column of the image's first pixel, from 0: SUBSTRT1 - 1.

    Returns
    -------
    Amplifiers

    Raises
    ------
    ShapeError
        The image has no column, or there is no output.

    Notes
    -----
    The four outputs of a HAWAII-2RG read towards the right and the left in turn, in every orientation. Turning time
    around is the same as reading every row the other way.
    """
    if n_x < 1 or n_outputs < 1:
        raise ShapeError(f"an image of {n_x} columns and {n_outputs} outputs has no amplifier")
    backwards = slow_axis < 0
    if n_outputs == 1:
        return Amplifiers(0, n_x, ((fast_axis < 0) != backwards,))
    width = max(_DETECTOR_WIDTH, n_x) // n_outputs
    start, last = first_column // width, (first_column + n_x - 1) // width
    directions = tuple((k % 2 == 1) != backwards for k in range(start, last + 1))
    return Amplifiers(start * width - first_column, width, directions)


@dataclass(frozen=True, slots=True)
class Grid:
    """The padded array that an image is put on so that amplifiers, cells and blocks fit into it evenly.

    Attributes
    ----------
    shape : tuple of int
        Rows and columns of the image.
    amplifiers : Amplifiers
    """

    shape: tuple[int, int]
    amplifiers: Amplifiers

    @property
    def rows(self) -> int:
        """Rows of the padded array."""
        return -(-self.shape[0] // _ALIGNMENT) * _ALIGNMENT

    @property
    def width(self) -> int:
        """Columns of an amplifier in the padded array."""
        return -(-self.amplifiers.width // _ALIGNMENT) * _ALIGNMENT

    @property
    def columns(self) -> int:
        """Columns of the padded array."""
        return self.width * self.amplifiers.count

    @property
    def slots(self) -> int:
        """Cells of one amplifier in a row."""
        return self.width // CELL_WIDTH

    @property
    def cells(self) -> int:
        """Cells in a row."""
        return self.columns // CELL_WIDTH

    @property
    def coarse_shape(self) -> tuple[int, int]:
        """Coarse cells along y and x."""
        return self.rows // COARSE_ROWS, self.cells // COARSE_CELLS

    def place(self, image: NDArray[_T], fill: float) -> NDArray[_T]:
        """Return `image` on the grid, `fill` where it has no pixel, row after row in memory.

        The image itself where nothing is to be padded.
        """
        if image.shape == (self.rows, self.columns):
            return np.ascontiguousarray(image)
        placed = np.full((self.rows, self.columns), fill, image.dtype)
        edges = self.amplifiers.edges(image.shape[1])
        for k, (start, stop) in enumerate(pairwise(edges)):
            at = k * self.width + start - (self.amplifiers.first + k * self.amplifiers.width)
            placed[: image.shape[0], at : at + stop - start] = image[:, start:stop]
        return placed

    def take(self, placed: NDArray[_T]) -> NDArray[_T]:
        """Return the image's part of an array on the grid: what `place` undoes."""
        if placed.shape == self.shape:
            return placed
        first, width = self.amplifiers.first, self.amplifiers.width
        parts = []
        for k, (start, stop) in enumerate(pairwise(self.amplifiers.edges(self.shape[1]))):
            at = k * self.width + start - (first + k * width)
            parts.append(placed[: self.shape[0], at : at + stop - start])
        return np.hstack(parts)

    def x(self) -> NDArray[np.float64]:
        """Return the image's x at every column (columns,) of the grid, in pixel."""
        amplifier, inside = np.divmod(np.arange(self.columns), self.width)
        return self.amplifiers.first + amplifier * self.amplifiers.width + inside + 0.0
