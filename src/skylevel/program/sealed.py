"""Tasks that travel as bytes, which only the worker opens.

A scheduler unpickles the tasks it is handed, and so would import all that skylevel imports: twice its own memory.
This module imports nothing of the kind.
"""

import pickle
from collections.abc import Callable
from typing import Any


def seal(call: Callable[[], Any]) -> bytes:
    """Return a call, such as a ``functools.partial``, as bytes for `open_sealed`."""
    return pickle.dumps(call)


def open_sealed(sealed: bytes) -> Any:
    """Make the call that `seal` packed."""
    return pickle.loads(sealed)()
