"""FITS files as runs of bytes: where each HDU stands, copying one untouched, writing one with its checksum.

astropy reads and builds headers. The walk over the file is done here, because a file that is cut short or damaged must
be refused in words before any pixel is read, and because an HDU that nothing changes is best copied as it is. The
checksum is summed here while the pixels are written: through astropy it takes a second pass and a second image.
"""

import gzip
import math
import os
import re
import stat
import zlib
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import IO, Any

import numpy as np
from astropy.io import fits
from numpy.typing import NDArray

from skylevel.errors import OutputError, SettingsError, ShapeError, UnreadableFrameError
from skylevel.io.atomic import replacing
from skylevel.io.cards import ascii_text, read_header

BLOCK = 2880
CARD = 80
PIECE = 1 << 20
FITS_MAGIC = b"SIMPLE  ="
GZIP_MAGIC = b"\x1f\x8b"
PRINTABLE = bytes(range(32, 127))
# Cards that say what an HDU is and how long, also of a tile-compressed image.
_STRUCTURE = (
    b"SIMPLE", b"BITPIX", b"NAXIS", b"PCOUNT", b"GCOUNT", b"GROUPS", b"XTENSION", b"EXTNAME",
    b"ZIMAGE", b"ZBITPIX", b"ZNAXIS", b"ZTILE", b"TFIELDS",
)  # fmt: skip
_BITPIX = (8, 16, 32, 64, -32, -64)
# The standard's own bound, of axes and of a table's columns.
_MOST_AXES = 999

# Bounds on what a file can make this process do before any pixel is asked for. Headers: the longest seen, of a drizzled
# image that names each of its inputs, has 0.3 MB.
MOST_HEADER_BYTES = 2 << 20
MOST_HEADERS_BYTES = 64 << 20
# What is claimed may be far more than what is stored, as in a mask of few values; but not in something large.
_PLAUSIBLE_BYTES = 2 << 30
_PLAUSIBLE_RATIO = 20
_QUOTED = re.compile(r" *'((?:[^']|'')*)'")
CHECKSUM_COMMENT = "set by skylevel"
CHECKSUM_CARDS = ("DATASUM", "CHECKSUM")

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
    data_end : int
        Where its data end; `end` is up to a block further.
    name : str
        EXTNAME in capitals; empty where there is none.
    shape : tuple of int
        Axes in NumPy's order; empty where there is no image.
    bits : int
        BITPIX of the image: bits of a pixel, negative for floating-point numbers.
    is_compressed : bool
        The image is stored in compressed tiles, in a table.
    """

    text: bytes
    start: int
    end: int
    data_end: int
    name: str
    shape: tuple[int, ...]
    bits: int
    is_compressed: bool = False

    @cached_property
    def header(self) -> fits.Header:
        """The header as astropy has it: dear to make, and mostly not needed of every HDU."""
        return read_header(self.text)

    @property
    def data_start(self) -> int:
        """Where its data begin."""
        return self.start + len(self.text)

    @property
    def is_floating(self) -> bool:
        """Whether the pixels are stored as floating-point numbers."""
        return self.bits < 0


@contextmanager
def open_bytes(path: str | Path) -> Iterator[IO[bytes]]:
    """Open a file to read its bytes, decompressed where it is gzip.

    Raises
    ------
    UnreadableFrameError
        It is no regular file: reading a pipe or a device may wait for ever, or never end.
    """
    if not stat.S_ISREG(Path(path).stat().st_mode):
        what = "a folder" if Path(path).is_dir() else "a pipe, a socket or a device"
        raise UnreadableFrameError(f"{path}: is {what}, not a file")
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
        raise UnreadableFrameError(f"{path}: {_missing(path)}") from error
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise UnreadableFrameError(f"{path}: its gzip compression is cut short or damaged: {error}") from error
    except OSError as error:
        raise UnreadableFrameError(f"{path}: cannot be read: {error.strerror or error}") from error
    except ValueError as error:
        # A NUL in the name.
        raise UnreadableFrameError(f"{path!s}: is no name of a file: {error}") from error


def _missing(path: str | Path) -> str:
    if not Path(path).is_symlink():
        return "there is no such file"
    return f"is a link to {Path(path).readlink()}, which is not there"


def read_start(path: str | Path) -> bytes:
    """Read the first bytes of a file, enough to tell FITS; decompressed where it is gzip.

    Raises
    ------
    UnreadableFrameError
        The file is missing, unreadable, empty, or no regular file.
    """
    with reading(path), open_bytes(path) as stream:
        start = stream.read(len(FITS_MAGIC))
    if not start:
        raise UnreadableFrameError(f"{path}: the file is empty")
    return start


def read_hdus(path: str | Path, *, is_ours: bool = False) -> list[Hdu]:
    """Find every HDU of a FITS file, from its headers alone.

    Parameters
    ----------
    path : str or Path
    is_ours : bool
        This process just wrote it: some file systems do not know yet what it takes on the disk.

    Raises
    ------
    UnreadableFrameError
        A header is damaged or too long, the file ends before its data do, or it claims far more data than it holds.

    Notes
    -----
    Peak memory: the headers, which are bounded.
    """
    hdus: list[Hdu] = []
    position = total = 0
    with reading(path), open_bytes(path) as stream:
        while text := _header_text(stream, f"{path}: HDU {len(hdus)}"):
            label = f"{path}: HDU {len(hdus)}"
            total += len(text)
            if total > MOST_HEADERS_BYTES:
                raise UnreadableFrameError(f"{label}: the headers up to here have {total} bytes, too many to be true")
            hdus.append(_hdu(text, position, label))
            position = hdus[-1].end
            _require_length(stream, position, label, is_ours=is_ours)
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
        if len(blocks) * BLOCK >= MOST_HEADER_BYTES:
            raise UnreadableFrameError(f"{label}: its header is damaged: no END in {MOST_HEADER_BYTES} bytes")
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
        if not (start or _is_true(cards, "SIMPLE")):
            raise ValueError("it says itself that the file is no FITS (SIMPLE)")
        axes, bits = _axes(cards, "NAXIS"), _bits(cards, "BITPIX")
        data_end = start + len(text) + _data_length(cards, axes, bits)
        end = start + len(text) + _padded(data_end - start - len(text))
        name = _text(cards.get("EXTNAME", "''")).upper()
        if _is_compressed(cards):
            shape, bits = _axes(cards, "ZNAXIS"), _bits(cards, "ZBITPIX")
            _require_tiles(cards, shape, abs(bits) // 8, end - start)
            return Hdu(text, start, end, data_end, name, shape, bits, is_compressed=True)
    except ValueError as error:
        raise UnreadableFrameError(f"{label}: its header is damaged: {error}") from error
    is_image = _text(cards.get("XTENSION", "'IMAGE'")) == "IMAGE"
    return Hdu(text, start, end, data_end, name, axes if is_image else (), bits)


def _structure(text: bytes) -> dict[str, str]:
    """The values, as they are written, of the cards that say what an HDU is and how long.

    Of thousands of headers in a program hardly another card is looked at, and astropy takes its time for each.
    """
    cards: dict[str, str] = {}
    for i in range(0, len(text), CARD):
        if text.startswith(_STRUCTURE, i) and text[i + 8 : i + 10] == b"= ":
            keyword, value = text[i : i + 8].decode().rstrip(), text[i + 10 : i + CARD].decode()
            # One reader takes the first, another the last.
            if cards.setdefault(keyword, value) != value and keyword != "EXTNAME":
                raise ValueError(f"it has two {keyword}")
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


def _is_true(cards: Mapping[str, str], keyword: str) -> bool:
    return cards.get(keyword, "").partition("/")[0].strip() == "T"


def _axes(cards: Mapping[str, str], keyword: str) -> tuple[int, ...]:
    """The axes in NumPy's order."""
    count = _integer(cards, keyword)
    if not 0 <= count <= _MOST_AXES:
        raise ValueError(f"{keyword} is {count}")
    axes = tuple(_integer(cards, f"{keyword}{i}") for i in range(count, 0, -1))
    if min(axes, default=0) < 0:
        raise ValueError(f"its axes are {axes}")
    return axes


def _bits(cards: Mapping[str, str], keyword: str) -> int:
    bits = _integer(cards, keyword)
    if bits not in _BITPIX:
        raise ValueError(f"{keyword} is {bits!r}")
    return bits


def _data_length(cards: Mapping[str, str], axes: tuple[int, ...], bits: int) -> int:
    """Bytes of the data unit without its padding (FITS standard 4.0, equations 1, 2 and 4)."""
    groups, parameters = _integer(cards, "GCOUNT", "1"), _integer(cards, "PCOUNT", "0")
    if parameters < 0 or groups < 0:
        raise ValueError(f"PCOUNT is {parameters}, GCOUNT {groups}")
    is_grouped = _is_true(cards, "GROUPS") and axes[-1:] == (0,)
    if _text(cards.get("XTENSION", "'IMAGE'")) == "IMAGE" and not is_grouped and (parameters, groups) != (0, 1):
        raise ValueError(f"PCOUNT is {parameters} and GCOUNT {groups}, of an image")
    count = groups * (parameters + math.prod(axes[:-1] if is_grouped else axes)) if axes else 0
    return abs(bits) // 8 * count


def _is_compressed(cards: Mapping[str, str]) -> bool:
    return _is_true(cards, "ZIMAGE") and _text(cards.get("XTENSION", "''")) == "BINTABLE"


def _require_tiles(cards: Mapping[str, str], shape: tuple[int, ...], itemsize: int, stored: int) -> None:
    """Refuse a compressed image whose table cannot hold it: reading it would allocate what its header says."""
    require_plausible(itemsize * math.prod(shape), stored)
    default = [1] * (len(shape) - 1) + list(shape[-1:])
    tile = [_integer(cards, f"ZTILE{len(shape) - i}", str(n)) for i, n in enumerate(default)]
    if min(tile, default=1) < 1:
        raise ValueError(f"its tiles are {tuple(tile)}")
    n_tiles = math.prod(-(-n // t) for n, t in zip(shape, tile, strict=True))
    rows, columns = _integer(cards, "NAXIS2"), _integer(cards, "TFIELDS")
    if rows != n_tiles or not 1 <= columns <= _MOST_AXES:
        raise ValueError(f"it has {rows} compressed tiles of {n_tiles}, in {columns} columns")


def _padded(length: int) -> int:
    return -(-length // BLOCK) * BLOCK


def require_plausible(claimed: int, stored: int) -> None:
    """Refuse what claims many times the bytes that are stored, before anything is allocated or unpacked for it.

    Raises
    ------
    ValueError
        With the numbers.
    """
    if claimed > max(_PLAUSIBLE_BYTES, _PLAUSIBLE_RATIO * stored):
        raise ValueError(f"it claims {claimed} bytes and stores {stored}")


def _require_length(stream: IO[bytes], end: int, label: str, *, is_ours: bool) -> None:
    """Leave `stream` at `end`, having seen that the file reaches it and can hold that much."""
    plain = stream.fileobj if isinstance(stream, gzip.GzipFile) else stream
    status = os.fstat(plain.fileno())
    try:
        require_plausible(end, status.st_size if is_ours else _stored(status))
    except ValueError as error:
        raise UnreadableFrameError(f"{label}: its header is damaged, or the file is mostly a hole: {error}") from error
    if isinstance(stream, gzip.GzipFile):
        stream.seek(end - 1)
        length = end if stream.read(1) else stream.seek(0, os.SEEK_END)
    else:
        length = status.st_size
        stream.seek(min(end, length))
    if length < end:
        raise UnreadableFrameError(f"{label}: the file is cut short: it has {length} bytes and needs at least {end}")


def _stored(status: os.stat_result) -> int:
    """Bytes that a file takes on its disk, or its size where the file system does not tell."""
    blocks = 512 * getattr(status, "st_blocks", 0)
    # A file that was moved to tape leaves hardly a block behind, and is no lie.
    return min(blocks, status.st_size) if blocks >= BLOCK else status.st_size


@dataclass(frozen=True, slots=True)
class Written:
    """Where an HDU was written, and the sum of its data; the latter None where they were copied inside the kernel."""

    start: int
    end: int
    datasum: int | None = None


def copy_hdu(hdu: Hdu, source: IO[bytes], target: IO[bytes]) -> Written:
    """Append the HDU's bytes as they are: inside the kernel where it can (Linux), else through memory."""
    start = target.tell()
    position = hdu.start if isinstance(source, gzip.GzipFile) else _copy_in_kernel(hdu, source, target)
    source.seek(position)
    while position < hdu.end:
        piece = source.read(min(1 << 22, hdu.end - position))
        if not piece:
            raise UnreadableFrameError(f"{source.name}: the file became shorter while it was copied")
        target.write(piece)
        position += len(piece)
    return Written(start, start + hdu.end - hdu.start)


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
    """The bytes from `start` to `end`, whole blocks at a time."""
    stream.seek(start)
    for position in range(start, end, BLOCK * 364):
        piece = stream.read(min(BLOCK * 364, end - position))
        if not piece:
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


def read_back(path: Path, written: Sequence[Written], *, name: Path) -> None:
    """See that a file is what was written, by its own headers' account and by the sums of its data.

    Raises
    ------
    OutputError
        It is not.

    Notes
    -----
    Where an HDU was copied inside the kernel, its place and length are compared, not its bytes.
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
