"""Output files appear whole or not at all."""

import os
import re
import shutil
import uuid
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path

from skylevel.io.names import safe_component

_ASIDE = re.compile(r"\.(.+)\..{32}\.tmp", re.DOTALL)
# Of the 255 bytes that a name may have nearly everywhere, what ours leave.
_MOST_BYTES = 200


def aside(path: Path) -> Path:
    """Return a name beside `path`, for what is to take its place once it is whole."""
    return path.with_name(f".{_short(path.name)}.{uuid.uuid4().hex}.tmp")


def aside_of(name: str) -> str:
    """Return what a file of this name was to take the place of; empty where it is nothing's aside."""
    found = _ASIDE.fullmatch(name)
    return found[1] if found else ""


def _short(name: str) -> str:
    return name if len(os.fsencode(name)) <= _MOST_BYTES else safe_component(name, limit=_MOST_BYTES)


def remove_asides(folder: Path, names: Collection[str]) -> None:
    """Remove what writers that were killed left in a folder on the way to these names; nothing may be writing them."""
    short = set(map(_short, names))
    for path in folder.glob(".*.tmp"):
        if aside_of(path.name) in short:
            # A link is removed, not what it leads to.
            shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink(missing_ok=True)


@contextmanager
def replacing(output: Path) -> Iterator[Path]:
    """Write beside `output`, and take its place when the block ends without an error.

    Parameters
    ----------
    output : Path
        The file to write; its folder exists. What stood there stays until the new file is whole.

    Yields
    ------
    Path
        The name to write to, in the same folder, so that the renaming is one step of the file system. It is removed
        when the block raises, whatever it raises.

    Raises
    ------
    OSError
        The folder does not exist or cannot be written.
    """
    # Not tempfile: its files are readable by their owner alone, and the renamed output would stay so.
    temporary = aside(output)
    try:
        yield temporary
        temporary.replace(output)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
