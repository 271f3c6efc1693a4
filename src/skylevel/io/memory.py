"""Memory that a C library is handed, filled with a known byte: what it leaves unwritten can then be told."""

import ctypes
import os
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager

# From glibc's malloc.h: fill what malloc hands out with the complement of a byte.
_M_PERTURB = -6
_ONE_AT_A_TIME = threading.Lock()


@contextmanager
def filled_memory(byte: int) -> Iterator[bool]:
    """Let malloc hand out memory full of a byte, in this process, until the block ends; one thread at a time.

    Parameters
    ----------
    byte : int
        From 0 to 254.

    Yields
    ------
    bool
        Whether it could be done: False on systems without glibc, where memory is as it happens to be.

    Notes
    -----
    Other threads' memory is filled too meanwhile, which costs them time and nothing else.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform.startswith("linux") else None
    with _ONE_AT_A_TIME:
        filled = bool(mallopt and mallopt(_M_PERTURB, byte ^ 0xFF))
        try:
            yield filled
        finally:
            if filled and mallopt:
                mallopt(_M_PERTURB, _asked_for())


def _asked_for() -> int:
    """Return what the user wants of malloc, by glibc's own variable."""
    value = os.environ.get("MALLOC_PERTURB_", "0")
    return int(value) if value.isdecimal() else 0
