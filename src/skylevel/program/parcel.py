"""Tasks that travel as bytes, which only the worker opens.

A scheduler unpickles the tasks it is handed, and so would import all that skylevel imports: twice its own memory.
This module imports nothing of the kind.
"""

import pickle
from collections.abc import Callable
from typing import Any


def wrap(call: Callable[[], Any]) -> bytes:
    """Pack a call, such as a ``functools.partial``, for `unwrap`."""
    return pickle.dumps(call)


def unwrap(parcel: bytes) -> Any:
    """Make the call that `wrap` packed."""
    return pickle.loads(parcel)()
