"""A worker for a run of one exposure, which needs no cluster: a child of this process, which it may not take along."""

import multiprocessing
import os
import pickle
import signal
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from importlib import import_module
from multiprocessing.connection import Connection
from typing import Any

import psutil

from skylevel.errors import DIED, ClusterError, SkylevelError, WorkerDiedError
from skylevel.memory import collect_as_usual
from skylevel.program.sealed import open_sealed, seal

# Where a worker is ended that takes more of its memory, and how often a call that kills its worker is tried: as on a
# cluster of Dask's.
_ENDS_AT = 0.95
_LOOK_EVERY = 0.2
_ATTEMPTS = 3
# One that is frozen for so many seconds is given up, as there.
_FROZEN_FOR = 60.0

# No call is without bytes.
_GET_READY = b""

_Answer = tuple[bool, Any]


@contextmanager
def own_worker(
    *, wanted: bool, at_once: bool = False, meanwhile: Callable[[], None] | None = None
) -> Iterator["OwnWorker | None"]:
    """Give a worker that ends with the block; None where it is not wanted, or nothing can be forked safely.

    It is forked before there is another thread, whose locks it would find taken for ever, and waits at next to no cost
    until it is told to get ready: `at_once`, where there will probably be work. While it makes its first call, this
    process calls `meanwhile`.
    """
    # Other systems' own libraries do not bear it.
    if not wanted or threading.active_count() > 1 or not sys.platform.startswith("linux"):
        yield None
        return
    worker = OwnWorker(meanwhile)
    try:
        if at_once:
            worker.get_ready()
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
            import_module("xarray").Variable((), 0)
        finally:
            del sys.modules["dask.array"]


class OwnWorker:
    """A forked process that makes one call at a time."""

    def __init__(self, meanwhile: Callable[[], None] | None = None) -> None:
        self._meanwhile = meanwhile
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
        """Let it import what an exposure needs, while this process does something else."""
        # Where it was killed, the first call finds out.
        with suppress(OSError):
            self._connection.send_bytes(_GET_READY)

    def call(self, call: Callable[[], Any], *, memory: int) -> Any:
        """Return what a call gives that the worker makes, which may use so many bytes.

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
                self._do_meanwhile()
                is_result, value = self._answer(_ENDS_AT * memory)
                break
        else:
            raise WorkerDiedError(DIED)
        if not is_result:
            raise value
        return value

    def _do_meanwhile(self) -> None:
        meanwhile, self._meanwhile = self._meanwhile, None
        if meanwhile is not None:
            # What cannot be made ready, whoever needs it will say.
            with suppress(Exception):
                meanwhile()

    def _answer(self, most: float) -> _Answer:
        """Wait for an answer, and see meanwhile that the worker keeps to its memory, and is not frozen for long."""
        went_on = time.monotonic()
        while not self._connection.poll(_LOOK_EVERY):
            with suppress(psutil.Error):
                process = psutil.Process(self._process.pid)
                if process.status() != psutil.STATUS_STOPPED:
                    went_on = time.monotonic()
                if process.memory_info().rss > most or time.monotonic() - went_on > _FROZEN_FOR:
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
    # OpenMP's threads make a fork unsafe for rawpy, and who forks has none: it opens raws for their headers alone.
    warnings.filterwarnings("ignore", "rawpy is being used in a process created by multiprocessing", RuntimeWarning)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    with suppress(EOFError, OSError):
        while True:
            if (sealed := calls.recv_bytes()) == _GET_READY:
                # What cannot be imported, the call that needs it will say.
                with suppress(Exception):
                    import_module("skylevel.program.tasks").get_ready()
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
