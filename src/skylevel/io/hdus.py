"""FITS files as runs of bytes: where each HDU stands, found without reading any pixel.

astropy reads headers. The walk over the file is done here, because a file that is cut short, damaged or lying must be
refused in words, before anything is allocated for it.
"""

import gzip
import math
import os
import re
import stat
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import IO

from astropy.io import fits

from skylevel.errors import UnreadableFrameError
from skylevel.io.cards import read_header

BLOCK = 2880
CARD = 80
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
    mode = Path(path).stat().st_mode
    # A folder cannot be opened, which the system says by itself.
    if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):
        raise UnreadableFrameError(f"{path}: is a pipe, a socket or a device, not a file")
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
        end = start + len(text) + padded(data_end - start - len(text))
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
    """Return the values, as they are written, of the cards that say what an HDU is and how long.

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
    """Return a quoted value without its quotes and the blanks that follow it."""
    found = _QUOTED.match(value)
    return found.group(1).replace("''", "'").strip() if found else ""


def _is_true(cards: Mapping[str, str], keyword: str) -> bool:
    return cards.get(keyword, "").partition("/")[0].strip() == "T"


def _axes(cards: Mapping[str, str], keyword: str) -> tuple[int, ...]:
    """Return the axes in NumPy's order."""
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


def padded(length: int) -> int:
    """Bytes that so many take in a file: whole blocks."""
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
