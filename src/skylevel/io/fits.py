"""FITS files written HDU by HDU: one copied untouched, one with its checksum, all read back.

astropy builds headers. An HDU that nothing changes is best copied as it is, and the checksum is summed here while the
pixels are written: through astropy it takes a second pass and a second image.
"""

import functools
import re
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
from astropy.io import fits
from google_crc32c import extend
from numpy.typing import NDArray

from skylevel.errors import OutputError, SettingsError, ShapeError, UnreadableFrameError
from skylevel.io.atomic import replacing
from skylevel.io.cards import ascii_text
from skylevel.io.hdus import BLOCK, CARD, FITS_MAGIC, Hdu, open_bytes, padded, read_hdus, read_start

PIECE = 1 << 20
CHECKSUM_COMMENT = "set by skylevel"
CHECKSUM_CARDS = ("DATASUM", "CHECKSUM")
_OUR_CHECKSUM = re.compile(rb"CHECKSUM= '[0-9A-Za-z]{16}' *(/ " + CHECKSUM_COMMENT.encode() + b")")
# The sum of an HDU whose CHECKSUM is true.
_WHOLE = 0xFFFFFFFF

# The file that was written last here, and the CRCs of the HDUs that were copied into it.
_last_copies: ContextVar[tuple[Path | None, Mapping[int, int]]] = ContextVar("_last_copies", default=(None, {}))

Card = tuple[str, str | int | float | bool | None, str]


@dataclass(frozen=True, slots=True)
class Written:
    """Where an HDU was written, and the sum of its data; of one that was copied as it is, its CRC instead."""

    start: int
    end: int
    datasum: int | None = None
    crc: int | None = None


def copy_hdu(hdu: Hdu, source: IO[bytes], target: IO[bytes]) -> Written:
    """Append the HDU's bytes as they are.

    They go through memory for the sake of their CRC, without which nothing tells later whether they are still the same.
    """
    start, crc = target.tell(), 0
    for piece in _pieces(source, hdu.start, hdu.end):
        target.write(piece)
        crc = extend(crc, piece)
    return Written(start, target.tell(), crc=crc)


@dataclass(frozen=True, slots=True)
class RowBlocks:
    """An image that comes in blocks of rows, for one that is too large to hold.

    Attributes
    ----------
    shape : tuple of int
        Of the whole image (y, x).
    dtype : dtype
    blocks : iterable of ndarray (y, x)
        In order; together, the image.
    """

    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    blocks: Iterable[NDArray[Any]]


Image = NDArray[Any] | RowBlocks


@dataclass(frozen=True, slots=True)
class StoredData:
    """The data unit of an HDU, to be copied as it is under a header that changed.

    Attributes
    ----------
    hdu : Hdu
    source : binary stream
        The file that it stands in.
    """

    hdu: Hdu
    source: IO[bytes]


def write_hdu(
    target: IO[bytes],
    header: fits.Header,
    pixels: Image | StoredData | None = None,
    *,
    sums: Collection[str] = CHECKSUM_CARDS,
) -> Written:
    """Append an HDU.

    Parameters
    ----------
    target : binary stream
        Can be sought: the header is written again once the sum of the pixels is known.
    header : Header
        Complete; the cards of `sums` are set in it.
    pixels : ndarray, RowBlocks or StoredData, optional
        In this machine's byte order, 4 or 8 bytes each, as `header` declares them.
    sums : collection of {"CHECKSUM", "DATASUM"}
        The cards to set; both by default.

    Notes
    -----
    Peak extra memory: 1 MiB. The cards' comments carry no time, so that the same pixels give the same bytes.
    """
    start = target.tell()
    _write_header(target, header, 0, sums)
    if pixels is None:
        return Written(start, target.tell(), 0)
    datasum = _copy_data(target, pixels) if isinstance(pixels, StoredData) else _write_pixels(target, pixels)
    end = target.tell()
    target.seek(start)
    _write_header(target, header, datasum, sums)
    target.seek(end)
    return Written(start, end, datasum)


def _write_header(target: IO[bytes], header: fits.Header, datasum: int, sums: Collection[str]) -> None:
    if "DATASUM" in sums:
        header["DATASUM"] = (str(datasum), CHECKSUM_COMMENT)
    if "CHECKSUM" in sums:
        header["CHECKSUM"] = ("0" * 16, CHECKSUM_COMMENT)
        words = np.frombuffer(header.tostring().encode("ascii"), ">u4")
        header["CHECKSUM"] = _checksum_text(_folded(int(words.sum(dtype=np.uint64)) + datasum))
    target.write(header.tostring().encode("ascii"))


def _copy_data(target: IO[bytes], data: StoredData) -> int:
    """Append a data unit as it is; returns its datasum."""
    total = 0
    for piece in _pieces(data.source, data.hdu.data_start, data.hdu.end):
        target.write(piece)
        total += _sum_of(piece)
    return _folded(total)


def _pieces(stream: IO[bytes], start: int, end: int) -> Iterator[bytes]:
    """Yield the bytes from `start` to `end`, whole blocks at a time."""
    stream.seek(start)
    for position in range(start, end, BLOCK * 364):
        wanted = min(BLOCK * 364, end - position)
        if len(piece := stream.read(wanted)) < wanted:
            raise UnreadableFrameError(f"{stream.name}: the file became shorter while it was read")
        yield piece


def _sum_of(piece: bytes) -> int:
    return int(np.frombuffer(piece, ">u4").sum(dtype=np.uint64))


@contextmanager
def fits_output(output: Path) -> Iterator[tuple[IO[bytes], list[Written]]]:
    """A file to append HDUs to, with the list of what was written: read back, and put in its place, when all is there.

    Raises
    ------
    OutputError
        What reads back is not what was written.
    """
    with replacing(output) as temporary:
        written: list[Written] = []
        with temporary.open("xb") as target:
            yield target, written
        read_back(temporary, written, name=output)
    _last_copies.set((output, {i: w.crc for i, w in enumerate(written) if w.crc is not None}))


def read_back(path: Path, written: Sequence[Written], *, name: Path) -> None:
    """See that a file is what was written, by its own headers' account and by the sums of its data.

    Raises
    ------
    OutputError
        It is not.

    Notes
    -----
    Where an HDU was copied as it is, its place and length are compared, not its bytes.
    """
    try:
        hdus = read_hdus(path, is_ours=True)
        with path.open("rb") as stream:
            summed = [(hdu, w.datasum) for hdu, w in zip(hdus, written, strict=False) if w.datasum is not None]
            wrong = [hdu for hdu, datasum in summed if _datasum(stream, hdu) != datasum]
    except UnreadableFrameError as error:
        raise OutputError(f"{name}: reads back damaged after it was written: {error}") from error
    places = [(hdu.start, hdu.end) for hdu in hdus]
    if wrong or places != [(w.start, w.end) for w in written] or path.stat().st_size != places[-1][1]:
        raise OutputError(f"{name}: reads back other than it was written: the disk or its file system is at fault")


def unsigned_crcs(path: Path) -> dict[str, int]:
    """Return the CRC-32C of each HDU of a file that was just written here, by index; of those with our CHECKSUM, none.

    Together with the cards they tell later whether the file is still what was written; see `require_unchanged`.
    """
    if read_start(path) != FITS_MAGIC:
        return {}
    last, copied = _last_copies.get()
    known = copied if last == path else {}
    with open_bytes(path) as stream:
        return {
            str(i): known[i] if i in known else _crc_of_hdu(stream, hdu)
            for i, hdu in enumerate(read_hdus(path, is_ours=True))
            if i in known or not _is_signed(hdu)
        }


def require_unchanged(path: Path, crcs: Mapping[str, int]) -> None:
    """Refuse an output that is not what was written.

    Parameters
    ----------
    path : Path
    crcs : mapping of str to int
        What `unsigned_crcs` told when it was written.

    Raises
    ------
    OutputError, UnreadableFrameError
        It is damaged, with the HDU.
    """
    if not crcs and read_start(path) != FITS_MAGIC:
        return
    with open_bytes(path) as stream:
        for i, hdu in enumerate(read_hdus(path)):
            wanted = crcs.get(str(i))
            is_same = _crc_of_hdu(stream, hdu) == wanted if wanted is not None else True
            if not is_same or (wanted is None and _is_signed(hdu) and _sum_of_hdu(stream, hdu) != _WHOLE):
                raise OutputError(f"{path}: HDU {i} is not what was written")


def _is_signed(hdu: Hdu) -> bool:
    """Return whether an HDU carries a CHECKSUM that was set here; others' may never have been true."""
    return _OUR_CHECKSUM.search(hdu.text) is not None


def _sum_of_hdu(stream: IO[bytes], hdu: Hdu) -> int:
    return _folded(sum(map(_sum_of, _pieces(stream, hdu.start, hdu.end))))


def _crc_of_hdu(stream: IO[bytes], hdu: Hdu) -> int:
    return functools.reduce(extend, _pieces(stream, hdu.start, hdu.end), 0)


def _datasum(stream: IO[bytes], hdu: Hdu) -> int:
    return _folded(sum(map(_sum_of, _pieces(stream, hdu.data_start, hdu.end))))


def _checksum_text(total: int) -> str:
    """Write the complement of an HDU's sum as 16 characters, which bring it to -0 (FITS standard 4.0, appendix J)."""
    columns = [_four_characters(byte) for byte in (total ^ 0xFFFFFFFF).to_bytes(4, "big")]
    text = "".join(chr(column[row]) for row in range(4) for column in columns)
    # The value begins one byte before a word does, behind its quote.
    return text[-1] + text[:-1]


def _four_characters(byte: int) -> list[int]:
    """Split a byte into four letters or digits whose excess over "0" adds up to it."""
    quarter, rest = divmod(byte, 4)
    codes = [ord("0") + quarter + rest, *[ord("0") + quarter] * 3]
    for first in (0, 2):
        while not all(chr(code).isalnum() for code in codes[first : first + 2]):
            codes[first] += 1
            codes[first + 1] -= 1
    return codes


def _write_pixels(target: IO[bytes], pixels: Image) -> int:
    """Append a data unit, turned to big-endian in pieces that stay in the processor's cache; returns its datasum."""
    total, n_bytes = 0, 0
    swapped = np.empty(PIECE // pixels.dtype.itemsize, pixels.dtype.newbyteorder(">"))
    for block in pixels.blocks if isinstance(pixels, RowBlocks) else [pixels]:
        flat = np.ascontiguousarray(block, dtype=pixels.dtype).reshape(-1)
        for first in range(0, flat.size, swapped.size):
            piece = flat[first : first + swapped.size]
            swapped[: piece.size] = piece
            target.write(swapped[: piece.size].data)
            # A word is the same number in either order, so the sum needs no swapping.
            total += int(piece.view(np.uint32).sum(dtype=np.uint64))
        n_bytes += flat.nbytes
    target.write(bytes(padded(n_bytes) - n_bytes))
    return _folded(total)


def _folded(total: int) -> int:
    """Bring what runs over 32 bits back in at the low end: the sum in ones' complement."""
    while total >> 32:
        total = (total & 0xFFFFFFFF) + (total >> 32)
    return total


def as_stored(pixels: Any, shape: tuple[int, ...], *, dtype: type[np.generic] = np.float32) -> NDArray[Any]:
    """Bring an image to write into the type in which it is stored.

    Parameters
    ----------
    pixels : ndarray
        NumPy alone: astropy writes zeros for a Dask array while a cluster of processes is active (astropy#11159).
    shape : tuple of int
        What the shape must be.
    dtype : type
        The type to store.

    Raises
    ------
    ShapeError
        `pixels` is no NumPy array, or of another shape.
    """
    require_image(pixels, shape)
    with np.errstate(over="ignore"):
        # What does not fit is found by `require_finite`, which can name the file.
        return np.ascontiguousarray(pixels, dtype=dtype)


def require_finite(levelled: NDArray[Any], original: NDArray[Any], name: str | Path) -> None:
    """Refuse an image that lost finite pixels: numbers near the largest that there are overflow.

    Parameters
    ----------
    levelled, original : ndarray
        Of one shape.
    name : str or Path
        The exposure, for the message.

    Raises
    ------
    OutputError
        A pixel of `original` is finite and that of `levelled` is not.
    """
    lost = ~np.isfinite(levelled)
    if lost.any():
        lost &= np.isfinite(original)
    if count := int(lost.sum()):
        raise OutputError(
            f"{name}: {count} finite pixels are not finite once levelled: the exposure holds numbers too large to level"
        )


def require_image(pixels: Any, shape: tuple[int, ...]) -> None:
    """Refuse what cannot be written as the image of an exposure of that shape; see `as_stored`."""
    if not isinstance(pixels, np.ndarray):
        raise ShapeError(f"writing needs a NumPy array, not {type(pixels).__name__}: compute it first")
    require_shape(pixels.shape, shape)


def require_shape(found: tuple[int, ...], shape: tuple[int, ...]) -> None:
    """Refuse an image of another shape than its exposure's."""
    if found != shape:
        raise ShapeError(f"the image to write has shape {found}, its exposure {shape}")


def add_provenance(header: fits.Header, output: Path, cards: Sequence[Card], history: Sequence[str]) -> None:
    """Set `cards`, append HISTORY lines, and let FILENAME (where there is one) say the output's name.

    Old checksums go: `write_hdu` sets them anew.
    """
    for keyword in ("CHECKSUM", "DATASUM"):
        header.remove(keyword, ignore_missing=True, remove_all=True)
    if "FILENAME" in header:
        cards = [*cards, ("FILENAME", output.name, header.comments["FILENAME"])]
    for keyword, value, comment in cards:
        text = ascii_text(value) if isinstance(value, str) else value
        header[keyword] = (text, _fitting(text, ascii_text(comment)))
    for line in history:
        header.add_history(ascii_text(line))


def announce_extensions(header: fits.Header) -> None:
    """Say in a primary header that HDUs follow.

    astropy adds the card to what it reads where it is absent, and finds the checksum wrong then.
    """
    header.set("EXTEND", True, after=f"NAXIS{header['NAXIS'] or ''}")


def _fitting(value: Any, comment: str) -> str:
    """Cut a comment to what its card has room for, which astropy would do with a warning."""
    quoted = len(value.replace("'", "''")) + 2 if isinstance(value, str) else 0
    return comment[: max(0, CARD - len("KEYWORD = ") - max(20, quoted) - len(" / "))]


def require_other_file(output: Path, source: str) -> None:
    """Refuse to write an output over the exposure it comes from.

    Raises
    ------
    SettingsError
        `output` is the file `source`.
    """
    if output.exists() and Path(source).exists() and output.samefile(source):
        raise SettingsError(f"{output}: is the exposure itself; the output needs another name or folder")
