"""The process of the command line: ready for signals and for streams that nobody reads before anything is imported."""

import atexit
import gc
import io
import os
import sys

from skylevel.interrupts import stop_at_once, stop_where_nothing_else_can

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import TextIO

    from _typeshed import ReadableBuffer

_FAILED, _WRONG = 1, 2
_SELDOM = 100_000
# How systems say that there is no memory or thread left: for a library, for Python, for an array.
_NO_ROOM = ("failed to map segment", "cannot allocate memory", "Cannot allocate memory", "can't start new thread")


def main() -> None:
    """Run the command line in this process, which ends with its status."""
    stop_at_once()
    # Imports make many objects and no garbage: looking for it as often as usual took a sixth of the start.
    gc.set_threshold(_SELDOM)
    sys.unraisablehook = stop_where_nothing_else_can
    _open_standard_streams()
    printed, told = _Dropping(1, "wb", closefd=False), _Dropping(2, "wb", closefd=False)
    sys.stdout, sys.stderr = _over(printed, sys.stdout), _over(told, sys.stderr)
    status = _status()
    sys.stdout.flush()
    if printed.lost:
        sys.stderr.write(f"skylevel: standard output: {printed.lost.strerror}: not all was printed\n")
        status = status or _FAILED
    sys.stderr.flush()
    # Not left to the interpreter: while it ends, a signal would still find it, and a thread could keep it. Where a
    # signal ended the work, what was half begun is not ended politely: it ends with this process.
    if status < 128:
        atexit._run_exitfuncs()
    os._exit(status)


def _status() -> int:
    """Run the command, and return the status to end with; where the system leaves it no room, say so in one line."""
    try:
        from skylevel.cli import run_command  # noqa: PLC0415 (only now is it known what to do with a signal)

        return run_command()
    except (ImportError, MemoryError, RuntimeError) as error:
        text = " ".join(str(error).split())
        if not (isinstance(error, MemoryError) or any(words in text for words in _NO_ROOM)):
            raise
        sys.stderr.write(f"skylevel: this process may have no more: {text or 'out of memory'}; see 'ulimit -a'\n")
        return _WRONG


class _Dropping(io.FileIO):
    """A standard stream that drops what cannot be written: a reader that is gone, or a full disk, stops no work.

    Attributes
    ----------
    lost : OSError or None
        Why something was dropped, unless the reader just wanted no more.
    """

    lost: OSError | None = None

    def write(self, data: "ReadableBuffer") -> int:
        try:
            return super().write(data) or 0
        except BrokenPipeError:
            pass
        except OSError as error:
            self.lost = error
        return memoryview(data).nbytes


def _over(raw: _Dropping, stream: "TextIO") -> io.TextIOWrapper:
    """Return a text stream over another descriptor, as the given one is over its own."""
    through = getattr(stream, "write_through", False)
    return io.TextIOWrapper(
        raw if through else io.BufferedWriter(raw),
        encoding=stream.encoding,
        errors=stream.errors,
        line_buffering=bool(stream.line_buffering),
        write_through=through,
    )


def _open_standard_streams() -> None:
    """Open what is closed of the first three descriptors, which the next file would take, and get what is printed."""
    for descriptor, name in enumerate(("stdin", "stdout", "stderr")):
        try:
            os.fstat(descriptor)
        except OSError:
            # The lowest that is free is this one.
            os.open(os.devnull, os.O_RDWR)
        if getattr(sys, name) is None:
            setattr(sys, name, open(descriptor, "r" if descriptor == 0 else "w", closefd=False))  # noqa: SIM115


if __name__ == "__main__":
    main()
