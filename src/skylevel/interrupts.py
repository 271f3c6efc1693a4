"""Signals that ask a process to end: Ctrl-C, and what systems and terminals send.

It imports next to nothing: what a signal does should be settled before anything takes time.
"""

from __future__ import annotations

import os
import signal
import sys
from contextlib import contextmanager

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator
    from types import FrameType
    from typing import Any

STOPPED = "skylevel: stopped. What is done is stored; run the same command again to do the rest."

_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class Stopped(KeyboardInterrupt):
    """A signal asked the process to end; `status` is the one to end with, as shells count it."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.status = 128 + number


def stop_at_once() -> None:
    """From here on, a signal ends the process with one line: nothing is under way that would have to be ended."""
    for number in _SIGNALS:
        # Whoever started the process may have made it deaf to one, as nohup does.
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, _end)


@contextmanager
def stop_in_order() -> Iterator[None]:
    """Within the block, the first signal raises `Stopped`, so that what is under way is ended; the next one ends all.

    Workers of this machine end with the process that started them.
    """
    before = {number: signal.getsignal(number) for number in _SIGNALS}
    for number, handler in before.items():
        if handler is not signal.SIG_IGN:
            signal.signal(number, _raise)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def stop_where_nothing_else_can(unraisable: Any) -> None:
    """End the process when `Stopped` was raised where nothing passes it on, as in a destructor; a hook."""
    if isinstance(unraisable.exc_value, Stopped):
        _end(unraisable.exc_value.status - 128, None)
    sys.__unraisablehook__(unraisable)


def _raise(number: int, _: FrameType | None) -> None:
    stop_at_once()
    raise Stopped(number)


def _end(number: int, _: FrameType | None) -> None:
    try:
        os.write(2, f"{STOPPED}\n".encode())
    finally:
        os._exit(128 + number)
