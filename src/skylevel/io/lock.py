"""One process at a time: locks beside a store, which a dead owner does not keep for ever.

A lock is a small file, on any file system, that tells who holds it and when that one last renewed it. An owner on this
machine is looked for among its processes. One elsewhere is dead where its lock was not renewed for long, and is not
while it is watched: clocks differ.
"""

import json
import os
import re
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from hashlib import sha256
from pathlib import Path
from typing import Any
from uuid import uuid4

import psutil

from skylevel.errors import StoreError
from skylevel.io.atomic import aside, aside_of
from skylevel.io.remote import file_system
from skylevel.io.urls import is_remote

# Seconds. An owner elsewhere renews its lock so often; has died where it did not for so long, and does not while it is
# watched for three times as long as it should take.
_RENEWED_EVERY = 10.0
_EXPIRES = 60.0
_WATCHED = 3 * _RENEWED_EVERY
_PAUSE = 0.05
_PATIENCE = 60.0
# What nobody can be writing any more, whatever the clocks.
_ABANDONED = 3600.0
# A run that was just killed, or has just ended, may take so long to be gone.
_ENDING = 2.0
# A process's start is known to within the clock's corrections.
_SAME_START = 5.0

_RUN = re.compile(r"run(?:-(\d+)-of-(\d+))?\.lock")
Share = tuple[int, int]
Owner = dict[str, Any]


class Lock:
    """A lock that is held, and renewed by a thread of its own.

    Parameters
    ----------
    url : str
        Of its file.
    mine : dict
        What the file says.
    """

    def __init__(self, url: str, mine: Owner) -> None:
        self._url, self._mine = url, mine
        self._lost = False
        self._released = threading.Event()
        threading.Thread(target=self._renew, name=f"lock {url}", daemon=True).start()

    def require(self) -> None:
        """See that it is still held.

        Raises
        ------
        StoreError
            This process slept for so long that another one took it over.
        """
        if self._lost:
            raise StoreError(f"{self._url}: taken over by {_described(_owner(self._url))} while this process slept")

    def release(self) -> None:
        """Give it up."""
        self._released.set()
        if self._is_mine():
            _remove(self._url)

    def _is_mine(self) -> bool:
        return (_owner(self._url) or {}).get("token") == self._mine["token"]

    def _renew(self) -> None:
        while not self._released.wait(_RENEWED_EVERY):
            # What cannot be read or written for a moment is tried again.
            with suppress(OSError):
                self._lost = not self._is_mine()
                if self._lost:
                    return
                _write(self._url, self._mine | {"renewed": time.time()})


@contextmanager
def locked(url: str, *, patience: float = _PATIENCE) -> Iterator[Lock]:
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
    deadline, watch = time.monotonic() + patience, _Watch(url)
    while (lock := _take(url)) is None:
        if not watch.is_free() and time.monotonic() > deadline and not watch.doubts:
            raise StoreError(f"{url}: held by {_described(watch.owner)}; run again when it has ended")
        time.sleep(_PAUSE)
    try:
        yield lock
    finally:
        lock.release()


@contextmanager
def reserved(folder: str, share: Share | None = None) -> Iterator[Lock]:
    """Keep a store for one run while the block runs, or for shares of one program, each for one process.

    Parameters
    ----------
    folder : str
        Path or URL of the store, which exists.
    share : (int, int), optional
        The I-th of N: others of the same N may work beside it, and nobody else.

    Raises
    ------
    StoreError
        Another run has it: the message says which, where and since when.
    """
    files, root = file_system(folder)
    if not is_remote(folder):
        _remove_asides(Path(root))
    mine = "run.lock" if share is None else f"run-{share[0]}-of-{share[1]}.lock"
    with locked(f"{folder}/lock"):
        for name in sorted(str(path).rstrip("/").rsplit("/", 1)[-1] for path in files.ls(root, detail=False)):
            if (found := _RUN.fullmatch(name)) and (name == mine or share is None or found[2] != str(share[1])):
                _require_free(folder, name)
        lock = _take(f"{folder}/{mine}")
    if lock is None:
        raise StoreError(f"{folder}/{mine}: cannot be made")
    try:
        yield lock
    finally:
        lock.release()


def _remove_asides(folder: Path) -> None:
    """Remove what owners that were killed left on the way to a lock."""
    for path in folder.glob(".*.tmp"):
        if "lock" in aside_of(path.name):
            owner = _owner(str(path)) or {}
            dead = owner.get("machine") == _machine() and not _runs(owner)
            with suppress(OSError):
                if dead or time.time() - path.stat().st_mtime > _ABANDONED:
                    path.unlink()


def _require_free(folder: str, name: str) -> None:
    """Refuse a run beside the one that holds a lock, unless that one is dead, whose lock is removed."""
    deadline, watch = time.monotonic() + _ENDING, _Watch(f"{folder}/{name}")
    while not watch.is_free():
        if time.monotonic() > deadline and not watch.doubts:
            share = _RUN.fullmatch(name)
            what = f"share {share[1]} of {share[2]}, " if share and share[1] else ""
            raise StoreError(
                f"{folder}: in use by another run ({what}{_described(watch.owner)}); run again when it has ended, "
                "or choose another output"
            )
        time.sleep(_PAUSE)


class _Watch:
    """Look at a lock again and again, until it is known whether its owner lives.

    Attributes
    ----------
    owner : dict or None
        As it was seen last.
    doubts : bool
        It is elsewhere, and too old; whether it is renewed will be seen.
    """

    def __init__(self, url: str) -> None:
        self._url = url
        self._unchanged_since = time.monotonic()
        self.owner: Owner | None = None
        self.doubts = False

    def is_free(self) -> bool:
        """Look once: nobody holds it, or a dead owner did, whose lock is removed."""
        owner = _owner(self._url)
        if owner != self.owner:
            self.owner, self._unchanged_since = owner, time.monotonic()
        if owner is None:
            return True
        if owner.get("machine") == _machine():
            self.doubts, dead = False, not _runs(owner)
        else:
            self.doubts = abs(time.time() - _number(owner.get("renewed"))) > _EXPIRES
            dead = self.doubts and time.monotonic() - self._unchanged_since > _WATCHED
        if dead:
            _take_over(self._url, owner)
        return dead


def _take_over(url: str, dead: Owner) -> None:
    """Remove a dead owner's lock: one process does, and never the lock of whoever came after."""
    # Named by what was seen, not by a token that may be no name.
    seen = sha256(json.dumps(dead, sort_keys=True).encode()).hexdigest()[:16]
    with locked(f"{url}.{seen}"):
        if _owner(url) == dead:
            _remove(url)


def _take(url: str) -> Lock | None:
    """Create a lock's file, unless it is there."""
    now = time.time()
    mine = {
        "host": socket.gethostname(), "machine": _machine(), "process": os.getpid(),
        "started": psutil.Process().create_time(), "since": now, "renewed": now, "token": uuid4().hex,
    }  # fmt: skip
    return Lock(url, mine) if _write(url, mine, new=True) else None


def _write(url: str, content: Owner, *, new: bool = False) -> bool:
    """Write a lock's file, whole for whoever finds it; a new one only where there is none."""
    text = json.dumps(content).encode()
    if is_remote(url):
        files, name = file_system(url)
        if not new:
            files.pipe_file(name, text)
            return True
        try:
            files.pipe_file(name, text, mode="create")
        except (FileExistsError, OSError):
            return False
        return True
    path = Path(url)
    written = aside(path)
    try:
        written.write_bytes(text)
        if not new:
            written.replace(path)
            return True
        try:
            os.link(written, path)
        except FileExistsError:
            raise
        except OSError:
            # A disk without hard links, such as exFAT: there it appears before it is whole.
            with path.open("xb") as file:
                file.write(text)
    except FileExistsError:
        return False
    finally:
        written.unlink(missing_ok=True)
    return True


def _owner(url: str) -> Owner | None:
    """Return who holds a lock; None where nobody does, nothing known of one that cannot be read.

    Raises
    ------
    StoreError
        A folder stands in its place, which no owner made, and none will take away.
    """
    try:
        files, path = file_system(url)
        found = json.loads(files.cat_file(path))
    except FileNotFoundError:
        return None
    except IsADirectoryError as error:
        raise StoreError(f"{url}: is a folder, where a lock is to stand: remove it, and run again") from error
    except (ValueError, OSError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def _machine() -> str:
    """Return what tells apart the process numbers of two machines, or of two containers of one."""
    parts = [socket.gethostname()]
    with suppress(OSError):
        parts.append(Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip())
        parts.append(str(Path("/proc/self/ns/pid").readlink()))
    return " ".join(parts)


def _runs(owner: Owner) -> bool:
    """Return whether an owner's process runs on this machine; another one may have its number since."""
    try:
        process = psutil.Process(int(_number(owner.get("process"))))
        same = abs(process.create_time() - _number(owner.get("started"))) < _SAME_START
        return same and process.status() != psutil.STATUS_ZOMBIE
    except psutil.AccessDenied:
        return True
    except (psutil.NoSuchProcess, ValueError, OverflowError):
        return False


def _number(value: object) -> float:
    return float(value) if isinstance(value, int | float) else 0.0


def _described(owner: Owner | None) -> str:
    if not owner:
        return "an unknown process"
    when = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(_number(owner.get("since"))))
    return f"process {owner.get('process')} on {owner.get('host')} since {when}"


def _remove(url: str) -> None:
    files, path = file_system(url)
    with suppress(FileNotFoundError):
        files.rm_file(path)
