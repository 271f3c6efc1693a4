"""One thread for BLAS and OpenMP, whose pools would fight over the cores of other workers, and add in another order."""

from contextlib import AbstractContextManager
from functools import cache
from importlib import import_module

from threadpoolctl import ThreadpoolController


def in_one_thread(*parts: str) -> AbstractContextManager[object]:
    """Keep the pools of BLAS and OpenMP to one thread while the block runs.

    Parameters
    ----------
    *parts : str
        Modules with a pool of their own that the block uses and that are imported on first use, as SciPy's are.
    """
    return _pools(parts).limit(limits=1)


@cache
def _pools(parts: tuple[str, ...]) -> ThreadpoolController:
    for part in parts:
        import_module(part)
    return ThreadpoolController()
