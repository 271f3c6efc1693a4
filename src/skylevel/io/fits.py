"""FITS files as runs of bytes: where each HDU stands, copying one untouched, writing one with its checksum.

astropy reads and builds headers. The walk over the file is done here, because a file that is cut short or damaged must
be refused in words before any pixel is read, and because an HDU that nothing changes is best copied as it is. The
checksum is summed here while the pixels are written: through astropy it takes a second pass and a second image.
"""

import gzip
import math
import os
import re
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import IO, Any

import numpy as np
from astropy.io import fits
from numpy.typing import NDArray

from skylevel.errors import SettingsError, ShapeError, UnreadableFrameError

BLOCK = 2880
CARD = 80
PIECE = 1 << 20
FITS_MAGIC = b"SIMPLE  ="
GZIP_MAGIC = b"\x1f\x8b"
PRINTABLE = bytes(range(32, 127))
# Cards that say what an HDU is and how long.
_STRUCTURE = (b"BITPIX", b"NAXIS", b"PCOUNT", b"GCOUNT", b"XTENSION", b"EXTNAME")
_QUOTED = re.compile(r" *'((?:[^']|'')*)'")
CHECKSUM_COMMENT = "set by skylevel"

Card = tuple[str, str | int | float | bool | None, str]


@dataclass(frozen=True)
class Hdu:
    """One header and data unit of a FITS file.

    Attributes
    ----------
    text : bytes
        Its header's cards.
    start, end : int
        Where it stands in the (decompressed) file.
    name : str
        EXTNAME in capitals; empty where there is none.
    shape : tuple of int
        Axes in NumPy's order; empty where there is no image.
    bits : int
        BITPIX: bits of a pixel, negative for floating-point numbers.
    """

    text: bytes
    start: int
    end: int
    name: str
    shape: tuple[int, ...]
    bits: int

    @cached_property
    def header(self) -> fits.Header:
        """The header as astropy has it: dear to make, and mostly not needed of every HDU."""
        return fits.Header.fromstring(self.text)

    @property
    def is_floating(self) -> bool:
        """Whether the pixels are stored as floating-point numbers."""
        return self.bits < 0


@contextmanager
def open_bytes(path: str | Path) -> Iterator[IO[bytes]]:
    """Open a file to read its bytes, decompressed where it is gzip."""
    with Path(path).open("rb") as plain:
        compressed = plain.read(2) == GZIP_MAGIC
        plain.seek(0)
        yield gzip.GzipFile(fileobj=plain) if compressed else plain  # type: ignore[misc]


@contextmanager
def reading(path: str | Path) -> Iterator[None]:
    """Turn what the system says about a file that cannot be read into an `UnreadableFrameError` that names it."""
    try:
        yield
    except UnreadableFrameError:
        raise
    except FileNotFoundError as error:
        raise UnreadableFrameError(f"{path}: there is no such file") from error
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise UnreadableFrameError(f"{path}: its gzip compression is cut short or damaged: {error}") from error
    except OSError as error:
        raise UnreadableFrameError(f"{path}: cannot be read: {error.strerror or error}") from error


def read_start(path: str | Path) -> bytes:
    """Read the first bytes of a file, enough to tell FITS; decompressed where it is gzip.

    Raises
    ------
    UnreadableFrameError
        The file is missing, unreadable or empty.
    """
    with reading(path), open_bytes(path) as stream:
        start = stream.read(len(FITS_MAGIC))
    if not start:
        raise UnreadableFrameError(f"{path}: the file is empty")
    return start


def read_hdus(path: str | Path) -> list[Hdu]:
    """Find every HDU of a FITS file, from its headers alone.

    Raises
    ------
    UnreadableFrameError
        A header is damaged, or the file ends before its data do.
    """
    hdus: list[Hdu] = []
    position = 0
    with reading(path), open_bytes(path) as stream:
        while text := _header_text(stream, f"{path}: HDU {len(hdus)}"):
            hdus.append(_hdu(text, position, f"{path}: HDU {len(hdus)}"))
            position = hdus[-1].end
            _require_length(stream, position, f"{path}: HDU {len(hdus) - 1}")
    return hdus


def _header_text(stream: IO[bytes], label: str) -> bytes:
    """Read the blocks of the header that begins here; none at the end of the file."""
    blocks: list[bytes] = []
    while block := stream.read(BLOCK):
        # Some writers fill up the end of a file with zeros: nothing stands there.
        if not blocks and not block.strip(b"\0 "):
            return b""
        if len(block) < BLOCK or block.translate(None, PRINTABLE):
            raise UnreadableFrameError(f"{label}: its header is damaged or cut short")
        blocks.append(block)
        if any(block[i : i + CARD].rstrip() == b"END" for i in range(0, BLOCK, CARD)):
            return b"".join(blocks)
    if blocks:
        raise UnreadableFrameError(f"{label}: the file ends inside its header")
    return b""


def _hdu(text: bytes, start: int, label: str) -> Hdu:
    if not text.startswith(b"XTENSION=" if start else FITS_MAGIC):
        raise UnreadableFrameError(f"{label}: its header is damaged: it begins with {text[:9].decode()!r}")
    try:
        cards = _structure(text)
        axes = tuple(_integer(cards, f"NAXIS{i}") for i in range(_integer(cards, "NAXIS"), 0, -1))
        bits = _integer(cards, "BITPIX")
        end = start + len(text) + _padded(_data_length(cards, axes, bits))
    except ValueError as error:
        raise UnreadableFrameError(f"{label}: its header is damaged: {error}") from error
    is_image = _text(cards.get("XTENSION", "'IMAGE'")) == "IMAGE"
    return Hdu(text, start, end, _text(cards.get("EXTNAME", "''")).upper(), axes if is_image else (), bits)


def _structure(text: bytes) -> dict[str, str]:
    """The values, as they are written, of the cards that say what an HDU is and how long.

    Of thousands of headers in a program hardly another card is looked at, and astropy takes its time for each.
    """
    cards: dict[str, str] = {}
    for i in range(0, len(text), CARD):
        if text.startswith(_STRUCTURE, i) and text[i + 8 : i + 10] == b"= ":
            cards.setdefault(text[i : i + 8].decode().rstrip(), text[i + 10 : i + CARD].decode())
    return cards


def _integer(cards: Mapping[str, str], keyword: str, default: str | None = None) -> int:
    value = cards.get(keyword, default)
    if value is None:
        raise ValueError(f"it has no {keyword}")
    number = value.partition("/")[0].strip()
    if not number.removeprefix("-").removeprefix("+").isdecimal():
        raise ValueError(f"{keyword} is {number!r}")
    return int(number)


def _text(value: str) -> str:
    """A quoted value without its quotes and the blanks that follow it."""
    found = _QUOTED.match(value)
    return found.group(1).replace("''", "'").strip() if found else ""


def _data_length(cards: Mapping[str, str], axes: tuple[int, ...], bits: int) -> int:
    """Bytes of the data unit without its padding (FITS standard 4.0, equation 2)."""
    if bits not in (8, 16, 32, 64, -32, -64):
        raise ValueError(f"BITPIX is {bits!r}")
    groups, parameters = _integer(cards, "GCOUNT", "1"), _integer(cards, "PCOUNT", "0")
    count = groups * (parameters + math.prod(axes)) if axes else 0
    if count < 0 or min(axes, default=0) < 0:
        raise ValueError(f"its axes are {axes}")
    return abs(bits) // 8 * count


def _padded(length: int) -> int:
    return -(-length // BLOCK) * BLOCK


def _require_length(stream: IO[bytes], end: int, label: str) -> None:
    """Leave `stream` at `end`, having seen that the file reaches it."""
    stream.seek(end - 1)
    if stream.read(1):
        return
    length = stream.seek(0, os.SEEK_END)
    raise UnreadableFrameError(f"{label}: the file is cut short: it has {length} bytes and needs at least {end}")


def copy_hdu(hdu: Hdu, source: IO[bytes], target: IO[bytes]) -> None:
    """Append the HDU's bytes as they are: inside the kernel where it can (Linux), else through memory."""
    position = hdu.start if isinstance(source, gzip.GzipFile) else _copy_in_kernel(hdu, source, target)
    source.seek(position)
    while position < hdu.end:
        piece = source.read(min(1 << 22, hdu.end - position))
        if not piece:
            raise UnreadableFrameError(f"{source.name}: the file became shorter while it was copied")
        target.write(piece)
        position += len(piece)


def _copy_in_kernel(hdu: Hdu, source: IO[bytes], target: IO[bytes]) -> int:
    """Copy as much as the system can; returns the source position reached."""
    position = hdu.start
    target.flush()
    out = target.tell()
    try:
        while position < hdu.end:
            copied = os.copy_file_range(source.fileno(), target.fileno(), hdu.end - position, position, out)
            if copied == 0:
                break
            position, out = position + copied, out + copied
    except (AttributeError, OSError):
        # Not this system, or not between these two file systems: the caller copies the rest.
        pass
    target.seek(out)
    return position


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


def write_hdu(target: IO[bytes], header: fits.Header, pixels: Image | None = None) -> None:
    """Append an HDU with its CHECKSUM and DATASUM.

    Parameters
    ----------
    target : binary stream
        Can be sought: the header is written again once the sum of the pixels is known.
    header : Header
        Complete; the two cards are set in it.
    pixels : ndarray or RowBlocks, optional
        In this machine's byte order, 4 or 8 bytes each, as `header` declares them.

    Notes
    -----
    Peak extra memory: 1 MiB. The cards' comments carry no time, so that the same pixels give the same bytes.
    """
    start = target.tell()
    _write_header(target, header, 0)
    if pixels is not None:
        datasum = _write_pixels(target, pixels)
        end = target.tell()
        target.seek(start)
        _write_header(target, header, datasum)
        target.seek(end)


def _write_header(target: IO[bytes], header: fits.Header, datasum: int) -> None:
    header["DATASUM"] = (str(datasum), CHECKSUM_COMMENT)
    header["CHECKSUM"] = ("0" * 16, CHECKSUM_COMMENT)
    words = np.frombuffer(header.tostring().encode("ascii"), ">u4")
    header["CHECKSUM"] = _checksum_text(_folded(int(words.sum(dtype=np.uint64)) + datasum))
    target.write(header.tostring().encode("ascii"))


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
    target.write(bytes(_padded(n_bytes) - n_bytes))
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
    return np.ascontiguousarray(pixels, dtype=dtype)


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


def ascii_text(text: str) -> str:
    """Reduce text to what a FITS header can hold: printable ASCII, with ``?`` for anything else."""
    return "".join(c if c.isascii() and c.isprintable() else "?" for c in text)


def require_other_file(output: Path, source: str) -> None:
    """Refuse to write an output over the exposure it comes from.

    Raises
    ------
    SettingsError
        `output` is the file `source`.
    """
    if output.exists() and Path(source).exists() and output.samefile(source):
        raise SettingsError(f"{output}: is the exposure itself; the output needs another name or folder")
