"""Where to run: this machine, a scheduler's address, or SLURM."""

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import version

import dask
from distributed import Client, LocalCluster

from skylevel.errors import ClusterError
from skylevel.program.tasks import require_version

log = logging.getLogger("skylevel")

# A worker is handed no task before it is idle, so that one that dies takes no neighbour's task along; one that stops
# answering is given up after a while; a cluster without workers is an error, not a wait without end.
_SCHEDULER_SETTINGS = {
    "distributed.scheduler.worker-saturation": 1.0,
    "distributed.scheduler.worker-ttl": "60 s",
    "distributed.scheduler.allowed-failures": 2,
}
_CONNECT_TIMEOUT = "20 s"
_FIRST_WORKER_TIMEOUT = 120.0


@contextmanager
def connect(cluster: str, *, workers: int | None, n_exposures: int) -> Iterator[Client]:
    """Connect a client to a cluster, which is started first where it is not an address.

    Parameters
    ----------
    cluster : str
        ``local`` (processes of one thread on this machine, on the loopback alone), ``slurm`` (dask-jobqueue with its
        own configuration), or a scheduler's address, ``tcp://HOST:PORT`` or ``tls://HOST:PORT`` (TLS from Dask's
        configuration).
    workers : int, optional
        How many processes (local) or jobs at the most (slurm); by default one a core, or two jobs.
    n_exposures : int
        No more local workers are started than there are exposures.

    Raises
    ------
    ClusterError
        The cluster cannot be reached or started, or no worker comes.
    """
    if cluster == "local":
        with _local(workers, n_exposures) as client:
            yield client
    elif cluster == "slurm":
        with _slurm(workers or 2) as client:
            yield client
    elif "://" in cluster:
        with _existing(cluster) as client:
            yield client
    else:
        raise ClusterError(f"unknown cluster {cluster!r}: needs local, slurm or an address such as tcp://HOST:PORT")


def check_workers(client: Client) -> int:
    """Wait for the first worker, and see that all run this version of skylevel; gives the number of their threads.

    Raises
    ------
    ClusterError
        No worker comes, or one runs another version or none.
    """
    try:
        client.wait_for_workers(1, timeout=_FIRST_WORKER_TIMEOUT)
    except TimeoutError as error:
        raise ClusterError(
            f"{client.scheduler.address}: no worker came within {_FIRST_WORKER_TIMEOUT:g} s; see the workers' own logs"
        ) from error
    try:
        client.run(require_version, version("skylevel"))
    except ClusterError:
        raise
    except Exception as error:
        raise ClusterError(f"a worker cannot import skylevel: {error}") from error
    return sum(client.nthreads().values())


@contextmanager
def _local(workers: int | None, n_exposures: int) -> Iterator[Client]:
    n_workers = max(1, min(workers or len(os.sched_getaffinity(0)), n_exposures))
    with (
        dask.config.set(_SCHEDULER_SETTINGS),
        LocalCluster(
            n_workers=n_workers,
            threads_per_worker=1,
            processes=True,
            host="127.0.0.1",
            dashboard_address="127.0.0.1:0",
            silence_logs=logging.CRITICAL,
        ) as cluster,
        Client(cluster, set_as_default=False) as client,
    ):
        log.info("%d workers on this machine; dashboard %s", n_workers, client.dashboard_link)
        yield client


@contextmanager
def _existing(address: str) -> Iterator[Client]:
    try:
        client = Client(address, timeout=_CONNECT_TIMEOUT, set_as_default=False)
    except (OSError, ValueError) as error:
        raise ClusterError(f"{address}: no scheduler answers: {error}") from error
    with client:
        log.info("scheduler %s; dashboard %s", address, client.dashboard_link)
        yield client


@contextmanager
def _slurm(jobs: int) -> Iterator[Client]:
    try:
        from dask_jobqueue import SLURMCluster  # noqa: PLC0415 (an optional extra)
    except ImportError as error:
        raise ClusterError("--cluster slurm needs dask-jobqueue: pip install 'skylevel[slurm]'") from error
    with dask.config.set(_SCHEDULER_SETTINGS):
        try:
            cluster = SLURMCluster()
        except (ValueError, OSError) as error:
            raise ClusterError(f"dask-jobqueue cannot start: {error}; see deploy/slurm/jobqueue.yaml") from error
        with cluster, Client(cluster, set_as_default=False) as client:
            cluster.adapt(minimum=1, maximum=jobs, interval="2 s", wait_count=5)
            log.info("SLURM, up to %d jobs; dashboard %s", jobs, client.dashboard_link)
            yield client
