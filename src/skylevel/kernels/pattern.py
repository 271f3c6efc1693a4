"""Colour-filter arrays: which pixel of a mosaic has which colour."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Self

import numpy as np
from numpy.typing import NDArray

from skylevel.errors import SettingsError

Bool = NDArray[np.bool_]

# Red, green, blue, cyan, magenta, yellow, white, emerald, teal and luminance: all that LibRaw and FITS name.
COLORS = frozenset("RGBCMYWETL")

_WANTED = "needs rows of colours of one length, such as ('RG', 'GB'), or a square as one text, such as 'RGGB'"


@dataclass(frozen=True)
class ColorPattern:
    """A colour-filter array, which repeats over a mosaic: 2x2 Bayer, 6x6 X-Trans or any other.

    Attributes
    ----------
    rows : tuple of str
        Colour letters, row by row from the mosaic's first pixel, such as ``("RG", "GB")``; all of one length.
    """

    rows: tuple[str, ...]

    @classmethod
    def of(cls, rows: Sequence[str]) -> Self:
        """Make a pattern from its rows, as a frame's attribute `color_filter_array` has them.

        Parameters
        ----------
        rows : sequence of str
            Or all rows of a square in one text, as BAYERPAT has them. Small letters count as capitals.

        Raises
        ------
        SettingsError
            They are no rectangle of colours.
        """
        given = _rows_of_square(rows) if isinstance(rows, str) else rows
        # As a file may hold them, they are an array.
        texts = list(given) if isinstance(given, Sequence | np.ndarray) else []
        if not texts or not all(isinstance(row, str) and row for row in texts):
            raise SettingsError(f"color_filter_array = {rows!r}: {_WANTED}")
        capitals = tuple(str(row).upper() for row in texts)
        if len(set(map(len, capitals))) > 1 or not set("".join(capitals)) <= COLORS:
            raise SettingsError(f"color_filter_array = {rows!r}: {_WANTED}")
        return cls(capitals)

    @cached_property
    def letters(self) -> NDArray[np.str_]:
        """The letters (period_y, period_x)."""
        return np.array([list(row) for row in self.rows])

    @property
    def period(self) -> tuple[int, int]:
        """Pixels (y, x) after which it repeats."""
        return len(self.rows), len(self.rows[0])

    @cached_property
    def channels(self) -> list[str]:
        """The colours: R, G and B first, then any other in alphabetical order."""
        found = set("".join(self.rows))
        return [c for c in "RGB" if c in found] + sorted(found - set("RGB"))

    def owned(self, channel: str) -> Bool:
        """Return which pixels of one period (period_y, period_x) are of a colour."""
        return self.letters == channel

    def share(self, channel: str) -> float:
        """Return the part of all pixels that are of a colour."""
        return int(np.count_nonzero(self.owned(channel))) / self.letters.size

    def seen_from(self, y: int, x: int) -> Self:
        """Return the pattern as it begins at the pixel (y, x) of the mosaic."""
        turned = np.roll(self.letters, (-(y % self.period[0]), -(x % self.period[1])), (0, 1))
        return type(self)(tuple("".join(row) for row in turned))

    def colors_at(self, y: NDArray[np.intp], x: NDArray[np.intp]) -> NDArray[np.str_]:
        """Return the letters (len(y), len(x)) at some rows and columns of the mosaic."""
        return self.letters[np.ix_(y % self.period[0], x % self.period[1])]

    def divides(self, sides: tuple[int, int]) -> bool:
        """Return whether a rectangle of these sides (y, x) holds whole periods."""
        return all(side % period == 0 for side, period in zip(sides, self.period, strict=True))


def _rows_of_square(letters: str) -> list[str]:
    """Return the rows of a square pattern in one text; none where it is no square."""
    side = math.isqrt(len(letters))
    return [letters[k : k + side] for k in range(0, len(letters), side)] if side**2 == len(letters) > 1 else []
