"""The kernels inside a worker process of Dask, started as any local cluster starts one."""

import functools
from collections.abc import Callable
from typing import Any

from distributed import Client, LocalCluster


def timed_in_worker(function: str, arguments: tuple[str, ...]) -> dict[str, float]:
    """Runs in the worker, which alone imports the kernels."""
    from contender import timed

    return timed(_prepared(function, arguments))


@functools.cache
def _prepared(function: str, arguments: tuple[str, ...]) -> Callable[[], Any]:
    from contenders import kernels

    return getattr(kernels, function)(*arguments)


def keeping(function: str, *arguments: str) -> Callable[[], dict[str, float]]:
    client = _client()
    return lambda: client.submit(timed_in_worker, function, arguments, pure=False).result()


def returning(function: str, *arguments: str) -> Callable[[], dict[str, float]]:
    """Freed memory goes back to the system as the nanny asks for."""
    client = _client()
    client.run(_return_memory)
    return lambda: client.submit(timed_in_worker, function, arguments, pure=False).result()


def _return_memory() -> None:
    from contenders import return_memory

    return_memory.here()


def _client() -> Client:
    return Client(LocalCluster(n_workers=1, threads_per_worker=1, host="127.0.0.1", dashboard_address="127.0.0.1:0"))
