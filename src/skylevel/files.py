"""Files that a user names beside exposures (settings, lists, masks): regular ones, of a size that they can have."""

import hashlib
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from io import BufferedReader
from pathlib import Path

# A list or association of a hundred thousand names has a tenth of it.
MOST_TEXT_BYTES = 64 << 20


@contextmanager
def open_regular(path: Path, most: int) -> Iterator[BufferedReader]:
    """Open a file to read, and refuse what would have a reader wait, or read, without end.

    Raises
    ------
    OSError
        There is none that can be read, or it is a pipe, a device or a folder.
    ValueError
        It has more than `most` bytes, or its name cannot be one.
    """
    found = path.stat()
    if not stat.S_ISREG(found.st_mode):
        raise OSError("is no regular file")
    if found.st_size > most:
        raise ValueError("is too long")
    with path.open("rb") as stream:
        yield stream


def read_text(path: Path, errors: str = "strict") -> str:
    """Read a text in UTF-8, with or without a mark that says so; `errors` as for ``bytes.decode``.

    Raises
    ------
    OSError, ValueError
        See `open_regular`; or it is no text.
    """
    with open_regular(path, MOST_TEXT_BYTES) as stream:
        content = stream.read(MOST_TEXT_BYTES)
    if b"\0" in content:
        raise ValueError("is no text")
    return content.decode("utf-8-sig", errors)


def digest(path: Path, most: int) -> str:
    """Return the SHA-256 (64 hex digits) of a file's content.

    Raises
    ------
    OSError, ValueError
        See `open_regular`.
    """
    with open_regular(path, most) as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def cause(error: Exception) -> str:
    """Return on one line what is wrong with a file, for a message that names it itself."""
    return " ".join(str(getattr(error, "strerror", None) or error or type(error).__name__).split())
