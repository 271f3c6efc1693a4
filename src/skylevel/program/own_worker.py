"""A worker for a run of one exposure, which needs no cluster: a child of this process, which it may not take along."""

import multiprocessing
import os
import pickle
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from multiprocessing.connection import Connection
from typing import Any

import psutil
import xarray as xr
from dask.system import CPU_COUNT

from skylevel.errors import ClusterError, SkylevelError, WorkerDiedError
from skylevel.memory import collect_as_usual, process_memory
from skylevel.program.sealed import open_sealed, seal
from skylevel.program.tasks import get_ready
from skylevel.program.workers import DIED

# What a worker of Dask's has of a machine's memory, and where Dask ends it; and how often a call that kills its worker
# is tried, as on a cluster.
_ENDS_AT = 0.95
_LOOK_EVERY = 0.2
_ATTEMPTS = 3

# No call is without bytes.
_GET_READY = b""

_Answer = tuple[bool, Any]


def own_memory() -> int:
    """Bytes that a worker of this machine may use, of as many workers as there are cores."""
    return process_memory() // CPU_COUNT


@contextmanager
def own_worker(*, wanted: bool) -> Iterator["OwnWorker | None"]:
    """Give a worker that waits, at next to no cost, and ends with the block; None where nothing can be forked safely.

    It is forked, so that it need not import again what is imported: before there is another thread, whose locks it
    would find taken for ever.
    """
    if not wanted or threading.active_count() > 1:
        yield None
        return
    worker = OwnWorker()
    try:
        yield worker
    finally:
        worker.end()


def let_xarray_ask() -> None:
    """Let xarray ask what Dask's arrays are while there are none: for a process that is all skylevel's.

    It does so at the first variable, once and for all, and would import ``dask.array`` for it, which takes longer than
    to level a small exposure. It asks because such an array may hold masked ones, which none here does.
    """
    if "dask.array" not in sys.modules:
        sys.modules["dask.array"] = None  # type: ignore[assignment]
        try:
            xr.Variable((), 0)
        finally:
            del sys.modules["dask.array"]


class OwnWorker:
    """A forked process that makes one call at a time."""

    def __init__(self) -> None:
        self._start()

    def _start(self) -> None:
        context = multiprocessing.get_context("fork")
        here, there = context.Pipe()
        process = context.Process(target=_serve, args=(there, here), name="skylevel worker", daemon=True)
        # A terminal sends them to all, and a batch system too: they are for this process, which ends its worker.
        blocked = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGTERM, signal.SIGHUP})
        try:
            process.start()
        except OSError as error:
            raise ClusterError(f"cannot start workers on this machine: {error}") from error
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, blocked)
        there.close()
        self._process, self._connection = process, here

    def get_ready(self) -> None:
        """Let it import, while this process does something else, what an exposure needs and a plan does not."""
        # Where it was killed, the first call finds out.
        with suppress(OSError):
            self._connection.send_bytes(_GET_READY)

    def call(self, call: Callable[[], Any]) -> Any:
        """Return what a call gives that the worker makes.

        Raises
        ------
        WorkerDiedError
            It died each time it was tried.
        Exception
            What the call raised.
        """
        for attempt in range(_ATTEMPTS):
            if attempt:
                self.end()
                # By now there are other threads: none of them holds what a worker takes.
                self._start()
            with suppress(EOFError, OSError):
                self._connection.send_bytes(seal(call))
                is_result, value = self._answer()
                break
        else:
            raise WorkerDiedError(DIED)
        if not is_result:
            raise value
        return value

    def _answer(self) -> _Answer:
        """Wait for an answer, and see meanwhile that the worker keeps to its memory."""
        most = _ENDS_AT * own_memory()
        while not self._connection.poll(_LOOK_EVERY):
            with suppress(psutil.Error):
                if psutil.Process(self._process.pid).memory_info().rss > most:
                    self._process.kill()
        return pickle.loads(self._connection.recv_bytes())

    def end(self) -> None:
        """End it, whatever it does."""
        self._process.kill()
        self._process.join()
        self._connection.close()


def _serve(calls: Connection, others_end: Connection) -> None:
    """Make the calls that come, until there is nobody any more who would send one."""
    others_end.close()
    threading.Thread(target=_end_with_parent, daemon=True).start()
    with suppress(EOFError, OSError):
        while True:
            if (sealed := calls.recv_bytes()) == _GET_READY:
                get_ready()
            else:
                collect_as_usual()
                calls.send_bytes(_made(sealed))


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def _made(sealed: bytes) -> bytes:
    """Make a call, and return whether it gave a result, and that or the exception."""
    try:
        return pickle.dumps((True, open_sealed(sealed)))
    except Exception as error:
        return _sealed_error(error)


def _sealed_error(error: Exception) -> bytes:
    """Return an exception as it travels; in words, where it is one that would not arrive."""
    try:
        sealed = pickle.dumps((False, error))
        pickle.loads(sealed)
    except Exception:
        return pickle.dumps((False, SkylevelError(f"{type(error).__name__}: {error}")))
    return sealed
