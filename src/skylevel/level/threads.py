"""One thread for BLAS and OpenMP, whose pools would fight over the cores of other workers, and add in another order."""

from contextlib import AbstractContextManager
from functools import cache
from importlib import import_module

from threadpoolctl import ThreadpoolController


def in_one_thread() -> AbstractContextManager[object]:
    """Keep the pools of BLAS and OpenMP to one thread while the block runs."""
    return _pools().limit(limits=1)


@cache
def _pools() -> ThreadpoolController:
    # SciPy's parts are imported on first use: now, so that its pool is one of them.
    import_module("scipy.linalg")
    return ThreadpoolController()
