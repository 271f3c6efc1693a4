"""One process at a time: a lock beside a store, which a dead owner does not keep for ever."""

import json
import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any
from uuid import uuid4

from skylevel.errors import StoreError
from skylevel.io.remote import file_system
from skylevel.io.urls import is_remote

# A lock that nobody renewed for so long has no owner any more, wherever that one ran.
_EXPIRES = 120.0
_PAUSE = 0.05
_PATIENCE = 60.0


@contextmanager
def locked(url: str, *, patience: float = _PATIENCE) -> Iterator[None]:
    """Hold a lock, a file at a path or URL, while the block runs.

    Parameters
    ----------
    url : str
        Its folder exists.
    patience : float
        Seconds to wait for another owner.

    Raises
    ------
    StoreError
        Another process holds it: the message says which, where and since when.
    """
    mine = {"host": socket.gethostname(), "process": os.getpid(), "since": time.time(), "token": uuid4().hex}
    deadline = time.monotonic() + patience
    while not _taken(url, mine):
        owner = _owner(url)
        if owner is not None and _is_dead(owner):
            _remove(url)
        elif time.monotonic() > deadline:
            raise StoreError(f"{url}: held by {_described(owner)}; wait for it, or remove that file")
        else:
            time.sleep(_PAUSE)
    try:
        yield
    finally:
        if (_owner(url) or {}).get("token") == mine["token"]:
            _remove(url)


def _taken(url: str, mine: dict[str, Any]) -> bool:
    """Create the file, unless it is there."""
    text = json.dumps(mine).encode()
    if not is_remote(url):
        # Written aside and linked, so that whoever finds it finds all of it.
        path = Path(url)
        new = path.with_name(f".{path.name}.{mine['token']}.tmp")
        try:
            new.write_bytes(text)
            os.link(new, path)
        except FileExistsError:
            return False
        finally:
            new.unlink(missing_ok=True)
        return True
    files, name = file_system(url)
    try:
        files.pipe_file(name, text, mode="create")
    except (FileExistsError, OSError):
        return False
    return True


def _owner(url: str) -> dict[str, Any] | None:
    """Return who holds the lock; None where nobody does."""
    try:
        files, path = file_system(url)
        found = json.loads(files.cat_file(path))
    except FileNotFoundError:
        return None
    except (ValueError, OSError):
        return {}
    return found if isinstance(found, dict) else {}


def _is_dead(owner: dict[str, Any]) -> bool:
    process, since = owner.get("process"), owner.get("since")
    if owner.get("host") == socket.gethostname() and isinstance(process, int):
        return not _runs(process)
    return not isinstance(since, int | float) or time.time() - since > _EXPIRES


def _runs(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def _described(owner: dict[str, Any] | None) -> str:
    if not owner:
        return "another process"
    since = owner.get("since")
    when = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(since)) if isinstance(since, int | float) else "?"
    return f"process {owner.get('process')} on {owner.get('host')} since {when}"


def _remove(url: str) -> None:
    files, path = file_system(url)
    with suppress(FileNotFoundError):
        files.rm_file(path)
