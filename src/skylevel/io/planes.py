"""Image planes of FITS files, read when they are indexed."""

import warnings
import zlib
from dataclasses import dataclass
from typing import Any

import numpy as np
import xarray as xr
from astropy.io import fits
from numpy.typing import NDArray
from xarray.backends import BackendArray
from xarray.core import indexing

from skylevel.errors import UnreadableFrameError
from skylevel.io.cards import first_value, legal_header, require_legible, without_warnings
from skylevel.io.hdus import Hdu, open_bytes, reading

# Bytes read at a time: they stay in the processor's cache.
_PIECE = 1 << 20
SCALING_CARDS = ("BSCALE", "BZERO", "BLANK")


@dataclass(frozen=True, slots=True)
class Scaling:
    """How stored numbers become values: BSCALE, BZERO, and the stored number that means no value."""

    scale: float = 1.0
    zero: float = 0.0
    blank: int | None = None

    @classmethod
    def of(cls, hdu: Hdu, path: str) -> "Scaling":
        """Read it from a header.

        Raises
        ------
        UnreadableFrameError
            A card of the scaling cannot be read: the pixels' values are unknown.
        """
        require_legible(SCALING_CARDS, [hdu.header], path)
        scale, zero, blank = (first_value([keyword], [hdu.header]) for keyword in SCALING_CARDS)
        try:
            whole = blank if isinstance(blank, int) and not hdu.is_floating else None
            return cls(1.0 if scale is None else float(scale), float(zero or 0), whole)
        except (TypeError, ValueError, OverflowError) as error:
            raise UnreadableFrameError(f"{path}: its header is damaged: BSCALE {scale!r}, BZERO {zero!r}") from error

    def values(self, stored: NDArray[Any], dtype: np.dtype[Any]) -> NDArray[Any]:
        """Turn stored numbers into values, as astropy does: 8 and 16 bits in float32, more in float64.

        The type is `dtype` but where nothing is to be scaled: then it is as stored.
        """
        if self == Scaling():
            return stored
        if dtype.kind in "iu":
            return _shifted(stored, int(self.zero)).astype(dtype, copy=False)
        values = stored.astype(_working(stored.dtype))
        if self.scale != 1:
            values *= self.scale
        if self.zero != 0:
            values += self.zero
        if self.blank is not None:
            values[stored == self.blank] = np.nan
        return values.astype(dtype, copy=False)


def _working(stored: np.dtype[Any]) -> np.dtype[Any]:
    if stored.kind == "f":
        return stored.newbyteorder("=")
    return np.dtype(np.float32 if stored.itemsize <= 2 else np.float64)


def _shifted(stored: NDArray[Any], zero: int) -> NDArray[Any]:
    """Stored integers with a whole BZERO, which is how FITS keeps unsigned ones; modulo their width."""
    bits = 8 * stored.dtype.itemsize
    unsigned = stored.astype(stored.dtype.newbyteorder("=")).view(f"u{stored.dtype.itemsize}")
    unsigned += unsigned.dtype.type(zero % (1 << bits))
    return unsigned


class FitsPlane(BackendArray):
    """One image plane of a FITS file, read when it is indexed, and only the rows asked for.

    It holds no open file and no header, so it pickles, and several threads or processes may read it at once.
    """

    def __init__(self, path: str, extension: int, hdu: Hdu, dtype: np.dtype[Any]) -> None:
        self.path = path
        self.extension = extension
        self.shape = hdu.shape[-2:]
        self.dtype = dtype
        self._n_leading = len(hdu.shape) - 2
        self._header_at = hdu.start, len(hdu.text)
        self._header_sum = zlib.crc32(hdu.text)
        self._stored = np.dtype(f">{'f' if hdu.is_floating else 'u' if hdu.bits == 8 else 'i'}{abs(hdu.bits) // 8}")
        self._scaling = None if hdu.is_compressed else Scaling.of(hdu, path)

    def __getitem__(self, key: indexing.ExplicitIndexer) -> Any:
        return indexing.explicit_indexing_adapter(key, self.shape, indexing.IndexingSupport.BASIC, self._read)

    def _read(self, key: tuple[int | slice, ...]) -> NDArray[Any]:
        rows, columns = key
        first, stop = _span(rows, self.shape[0])
        if first == stop:
            return np.empty(self.shape, self.dtype)[key]
        self._require_same_header()
        block = self._tiles(first, stop) if self._scaling is None else self._rows(self._scaling, first, stop)
        return np.asarray(block[_within(rows), columns], order="C")

    def _require_same_header(self) -> None:
        start, length = self._header_at
        try:
            with reading(self.path), open_bytes(self.path) as stream:
                stream.seek(start)
                is_same = zlib.crc32(stream.read(length)) == self._header_sum
        except UnreadableFrameError as error:
            cause = str(error).removeprefix(f"{self.path}: ")
            raise UnreadableFrameError(f"{self.path}: changed since it was opened: {cause}") from error
        if not is_same:
            raise UnreadableFrameError(f"{self.path}: changed since it was opened: its image has another header")

    def _rows(self, scaling: Scaling, first: int, stop: int) -> NDArray[Any]:
        """Whole rows, which are one run of the file, in pieces that stay in the processor's cache."""
        values = np.empty((stop - first, self.shape[1]), self.dtype)
        row_bytes = self.shape[1] * self._stored.itemsize
        step = max(_PIECE // row_bytes, 1)
        piece = np.empty((min(step, stop - first), self.shape[1]), self._stored)
        with reading(self.path), open_bytes(self.path) as stream, np.errstate(all="ignore"):
            stream.seek(sum(self._header_at) + first * row_bytes)
            for y in range(0, stop - first, step):
                stored = piece[: stop - first - y]
                if stream.readinto(stored.reshape(-1).view(np.uint8)) < stored.nbytes:  # type: ignore[attr-defined]
                    raise UnreadableFrameError(f"{self.path}: changed since it was opened: its image is cut short")
                values[y : y + step] = scaling.values(stored, self.dtype)
        return values

    def _tiles(self, first: int, stop: int) -> NDArray[Any]:
        """Whole rows of a compressed image, from the tiles that they touch."""
        try:
            with without_warnings(), np.errstate(all="ignore"), fits.open(self.path) as hdus:
                # What a decoder only warns of is damage too.
                warnings.filterwarnings("error", message="decompression")
                block = hdus[self.extension].section[(0,) * self._n_leading + (slice(first, stop),)]
                return np.asarray(block).astype(self.dtype)
        except Exception as error:
            # What a damaged tile leads to is up to each of astropy's decoders.
            cause = " ".join(str(error).split())
            said = f"{self.path}: its compressed tiles are damaged: {cause or type(error).__name__}"
            raise UnreadableFrameError(said) from error


def _span(rows: int | slice, n_rows: int) -> tuple[int, int]:
    """First row, and the row after the last, of a basic index that goes upwards."""
    selected = range(n_rows)[rows] if isinstance(rows, slice) else [range(n_rows)[rows]]
    return (selected[0], selected[-1] + 1) if len(selected) else (0, 0)


def _within(rows: int | slice) -> int | slice:
    """Turn an index into the image into one into the rows that were read."""
    return slice(None, None, rows.step) if isinstance(rows, slice) else 0


def variable(path: str, extension: int, hdu: Hdu, dtype: np.dtype[Any]) -> xr.Variable:
    """Return an HDU's image as a lazy variable.

    Raises
    ------
    UnreadableFrameError
        Its header does not tell its pixels' values.
    """
    return xr.Variable(("y", "x"), indexing.LazilyIndexedArray(FitsPlane(path, extension, hdu, dtype)))


def image_header(path: str, extension: int, hdu: Hdu) -> fits.Header:
    """Return an image's header, legal; of a tile-compressed image, that of the image which was compressed.

    Raises
    ------
    UnreadableFrameError
        astropy does not find the compressed image.
    """
    if not hdu.is_compressed:
        return legal_header(hdu.text)
    try:
        with without_warnings(), fits.open(path) as hdus:
            return legal_header(hdus[extension].header)
    except Exception as error:
        cause = " ".join(str(error).split())
        raise UnreadableFrameError(f"{path}: its compressed image cannot be read: {cause}") from error
