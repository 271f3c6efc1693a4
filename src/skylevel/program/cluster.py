"""Where to run: this machine, a scheduler's address, or SLURM."""

import errno
import logging
import math
import os
import shutil
import signal
import socket
import stat
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager, suppress
from http import HTTPStatus
from http.client import HTTPConnection, HTTPException
from multiprocessing import forkserver, resource_tracker
from pathlib import Path
from typing import Any

import dask
from dask.system import CPU_COUNT
from dask.utils import parse_timedelta
from distributed import Client, LocalCluster, Security, Status
from distributed.comm import get_address_host_port
from distributed.utils import LoopRunner, get_mp_context
from tornado.ioloop import PeriodicCallback

from skylevel.errors import ClusterError, SchedulerLostError
from skylevel.io.names import number_of
from skylevel.kernels.sorting import slow_instructions
from skylevel.program.fan_out import GONE
from skylevel.program.tasks import require_version
from skylevel.version import __version__

log = logging.getLogger("skylevel")

# A worker is handed one task ahead, so that it does not wait for the scheduler between two, and no more: one that dies
# takes few of its neighbours' tasks along. One that stops answering is given up after a while.
SCHEDULER_SETTINGS = {
    "distributed.scheduler.worker-saturation": 1.1,
    "distributed.scheduler.worker-ttl": "60 s",
    "distributed.scheduler.allowed-failures": 2,
}
# On one machine, what Dask does whether there is work or not takes from the workers: looking 100 times a second at what
# each thread does, 50 times whether a loop is late, 10 times at the memory. It does so less often there.
LOCAL_SETTINGS = {
    "distributed.admin.tick.interval": "500 ms",
    # A worker that died is back when its process has started, however long a busy machine takes for that. After 15 s
    # Dask would give up its place for good, and a run whose last place is given up would wait for ever.
    "distributed.deploy.lost-worker-timeout": "7 d",
    # Looking can freeze a worker in Python 3.11, in the middle of a garbage collection (dask/distributed#8616).
    "distributed.worker.profile.enabled": sys.version_info >= (3, 12),
    "distributed.worker.profile.interval": "200 ms",
    "distributed.worker.profile.cycle": "5 s",
    "distributed.worker.memory.monitor-interval": "250 ms",
    # What a browser on this machine may look at; nothing of it changes anything.
    "distributed.scheduler.http.routes": [
        f"distributed.http.{page}" for page in ("scheduler.info", "scheduler.json", "health", "statics")
    ],
}
_CONNECT_TIMEOUT = "20 s"
_FIRST_WORKER_TIMEOUT = "120 s"
_LOOPBACK = "127.0.0.1"
_NOT_STARTED = (ImportError, MemoryError, OSError, RuntimeError)
_CANNOT_START = "cannot start workers on this machine"
_ASK_WORKERS_TIMES = 3
# Milliseconds between two looks at whether any worker is left, and what says that one is not.
_LOOK_FOR_WORKERS_EVERY = 5000
_ENDED = (Status.closing, Status.closed, Status.failed)
# Seconds in which a client sees that its scheduler is gone.
_SCHEDULER_IS_MISSED_WITHIN = 1.0
# Seconds in which a scheduler says whether it has pages.
_PAGE_TIMEOUT = 2.0
_SQUEUE_EVERY = (1.0, 30.0)
# What every worker here imports, and seconds after which a folder of sockets is nobody's if none of them answers.
_IMPORTED = ["distributed", "distributed.nanny", "dask.array", "skylevel.program.tasks", "scipy.spatial"]
_YOUNG = 3600.0
_METHOD = "distributed.worker.multiprocessing-method"


@contextmanager
def connect(cluster: str, *, workers: int | None, n_exposures: int, own_process: bool = False) -> Iterator[Client]:
    """Connect a client to a cluster, which is started first where it is not an address.

    Parameters
    ----------
    cluster : str
        ``local`` (processes of one thread on this machine, on the loopback alone), ``slurm`` (dask-jobqueue with its
        own configuration; encrypted), or a scheduler's address, ``tcp://HOST:PORT`` or ``tls://HOST:PORT`` (TLS from
        Dask's configuration).
    workers : int, optional
        How many processes (local) or jobs (slurm); by default one a core, or two jobs.
    n_exposures : int
        No more workers are started than there are exposures.
    own_process : bool
        This process is skylevel's command, and its signals, environment and limits do not change.

    Raises
    ------
    ClusterError
        The cluster cannot be reached or started, or no worker comes.
    """
    if cluster == "local":
        with _local(workers, n_exposures, own_process=own_process) as client:
            yield client
    elif cluster == "slurm":
        with _slurm(min(workers or 2, n_exposures)) as client:
            yield client
    else:
        with _existing(cluster) as client:
            yield client


def check_workers(client: Client) -> int:
    """Wait for the first worker, and see that all run this version of skylevel.

    Returns
    -------
    int
        How many threads there are, or will be once every job of a cluster that was asked for has begun.

    Raises
    ------
    ClusterError
        No worker comes, or one runs another version or none.
    SchedulerLostError
        The scheduler is gone.

    Notes
    -----
    ``skylevel.first-worker-timeout`` of Dask's configuration says how long it waits (120 s).
    """
    for _ in range(_ASK_WORKERS_TIMES):
        try:
            return _count_workers(client)
        except OSError as error:
            # Whoever was asked died meanwhile: the scheduler, or a worker, in whose place another one comes.
            lost = error
            time.sleep(_SCHEDULER_IS_MISSED_WITHIN)
            if client.status != "running":
                raise SchedulerLostError(GONE) from error
    raise ClusterError(f"the workers die as soon as they are asked: {_one_line(lost)}") from lost


def _count_workers(client: Client) -> int:
    """`check_workers`, once."""
    timeout = dask.config.get("skylevel.first-worker-timeout", _FIRST_WORKER_TIMEOUT)
    try:
        client.wait_for_workers(1, timeout=parse_timedelta(timeout))
    except TimeoutError as error:
        raise ClusterError(
            f"{client.scheduler.address}: no worker came within {timeout}; see the workers' own logs"
        ) from error
    try:
        client.run(require_version, __version__)
    except (ClusterError, OSError):
        raise
    except Exception as error:
        raise ClusterError(f"a worker cannot import skylevel: {error}") from error
    asked_for = len(client.cluster.plan) if client.cluster else 0
    return max(sum(client.nthreads().values()), asked_for)


def worker_memory(client: Client) -> int:
    """Bytes that the smallest worker may use; 0 where there is no limit."""
    limits = [worker["memory_limit"] for worker in client.scheduler_info(n_workers=-1)["workers"].values()]
    return min((int(limit) for limit in limits if limit), default=0)


@contextmanager
def _local(workers: int | None, n_exposures: int, *, own_process: bool) -> Iterator[Client]:
    n_workers, folder = max(1, min(workers or CPU_COUNT, n_exposures)), private_folder()
    environment = _environment()
    is_served = own_process and _start_server_of_workers(folder, environment)
    own = {
        "temporary-directory": folder,
        "distributed.nanny.pre-spawn-environ": environment,
        _METHOD: "forkserver" if is_served else dask.config.get(_METHOD),
    }
    with (
        dask.config.set(SCHEDULER_SETTINGS | LOCAL_SETTINGS | own),
        _loop_deaf_to_interrupts() as loop,
        _local_cluster(n_workers, loop) as cluster,
        Client(cluster, set_as_default=False) as client,
        _given_up_without_workers(cluster, client),
    ):
        log.info("%s on this machine%s", number_of(n_workers, "worker"), _and_dashboard(client))
        yield client


def _environment() -> dict[str, str]:
    """Return the variables workers on this machine start with: Dask's, and what NumPy is faster without.

    Of NumPy's own variables no two go together; what the user has set holds.
    """
    given = dict(dask.config.get("distributed.nanny.pre-spawn-environ"))
    if any(name in os.environ for name in ("NPY_DISABLE_CPU_FEATURES", "NPY_ENABLE_CPU_FEATURES")):
        return given
    slow = slow_instructions()
    return given | ({"NPY_DISABLE_CPU_FEATURES": " ".join(slow)} if slow else {})


def _start_server_of_workers(folder: str, environment: Mapping[str, Any]) -> bool:
    """Start what forks workers on this machine, with what they need imported, and return whether there is one.

    They start in half the time, and one that died is back at once. But the server keeps the environment, limits and
    signals that it began with, so it is for the command's own process, where they do not change. Its socket stands in
    `folder`, which no other user enters.
    """
    if sys.platform != "linux" or dask.config.get(_METHOD) != "spawn":
        return False
    _remove_dead_sockets(Path(folder))
    # As Dask does when it starts a worker; and a module in the current folder is none of ours.
    for name, value in {**environment, "PYTHONSAFEPATH": 1}.items():
        if value is not None:
            os.environ.setdefault(name, str(value))
    with dask.config.set({_METHOD: "forkserver"}):
        # The first call names Dask's own imports, which would take the place of these.
        get_mp_context()
    forkserver.set_forkserver_preload(_IMPORTED)
    _start_resource_tracker()
    before, tempfile.tempdir = tempfile.tempdir, folder
    try:
        with _interrupts_blocked():
            forkserver.ensure_running()
    except OSError:
        # The folder's path is too long for a socket, or its disk has none.
        return False
    finally:
        tempfile.tempdir = before
    return True


def _remove_dead_sockets(folder: Path) -> None:
    """Remove what drivers left here that were killed."""
    for sockets in folder.glob("pymp-*"):
        with suppress(OSError):
            if time.time() - sockets.stat().st_mtime > _YOUNG and not any(map(_answers, sockets.iterdir())):
                shutil.rmtree(sockets)


def _answers(path: Path) -> bool:
    """Return whether anybody listens at a socket; one that would be connected to would end the server behind it."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as client:
        return client.connect_ex(str(path)) not in (errno.ECONNREFUSED, errno.ENOENT)


def _local_cluster(n_workers: int, loop: Any) -> LocalCluster:
    """Start workers on this machine; once more where one of them ended on the way, as one that is killed does."""
    _require_loopback()
    try:
        return _start_local(n_workers, loop)
    except _NOT_STARTED as error:
        if not _ended_on_the_way(error):
            raise ClusterError(f"{_CANNOT_START}: {_cause(error)}") from error
    log.warning("a worker ended while it was started; starting again")
    try:
        return _start_local(n_workers, loop)
    except _NOT_STARTED as error:
        cause = "a worker ends while it is started (out of memory?)" if _ended_on_the_way(error) else _cause(error)
        raise ClusterError(f"{_CANNOT_START}: {cause}") from error


def _start_local(n_workers: int, loop: Any) -> LocalCluster:
    """Start processes on the loopback, which speak to nobody but those that have this run's own certificate.

    Every user of this machine reaches the loopback, and whoever reaches a scheduler or worker runs code as its owner.
    """
    return LocalCluster(
        n_workers=n_workers,
        threads_per_worker=1,
        processes=True,
        host=_LOOPBACK,
        security=Security.temporary(),
        dashboard_address=f"{_LOOPBACK}:0",
        silence_logs=logging.CRITICAL,
        loop=loop,
    )


@contextmanager
def _given_up_without_workers(cluster: LocalCluster, client: Client) -> Iterator[None]:
    """Close the client once no worker is left and none will come: what cannot start one again has closed for good."""

    async def look() -> None:
        if all(nanny.status in _ENDED for nanny in cluster.workers.values()):
            log.error("every worker has ended, and none can be started in its place")
            watch.stop()
            await client.close()

    watch = PeriodicCallback(look, _LOOK_FOR_WORKERS_EVERY)
    cluster.loop.add_callback(watch.start)
    try:
        yield
    finally:
        cluster.loop.add_callback(watch.stop)


def _require_loopback() -> None:
    """See that the loopback answers; workers would try for a minute before they said so."""
    try:
        with socket.create_server((_LOOPBACK, 0)) as server, socket.create_connection(server.getsockname(), timeout=5):
            pass
    except OSError as error:
        raise ClusterError(f"{_CANNOT_START}: its loopback interface does not answer: {error}") from error


@contextmanager
def _loop_deaf_to_interrupts() -> Iterator[Any]:
    """Give an event loop whose workers never see Ctrl-C.

    A terminal sends it to every process, and it is for the driver alone, which ends its workers in order. A process
    begins with the signals blocked that the thread blocked which started it.
    """
    _start_resource_tracker()
    runner = LoopRunner()
    with _interrupts_blocked():
        runner.start()
    try:
        yield runner.loop
    finally:
        runner.stop()


@contextmanager
def _interrupts_blocked() -> Iterator[None]:
    blocked = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, blocked)


def _start_resource_tracker() -> None:
    """Start Python's tracker of semaphores, which the first process to be started would start too.

    That would unblock Ctrl-C. The tracker removes what a killed driver leaves, and need not say so.
    """
    before = os.environ.get("PYTHONWARNINGS")
    os.environ["PYTHONWARNINGS"] = ",".join(filter(None, (before, "ignore:resource_tracker")))
    try:
        resource_tracker.ensure_running()
    finally:
        if before is None:
            del os.environ["PYTHONWARNINGS"]
        else:
            os.environ["PYTHONWARNINGS"] = before


def private_folder() -> str:
    """Return a folder for temporary files that no other user can enter or take the place of.

    What a worker has no memory for it writes there, and reads again as code would be read. The folder is this user's,
    and stays: Dask removes what killed workers left in it.
    """
    parent = Path(dask.config.get("temporary-directory", None) or tempfile.gettempdir())
    folder = parent / f"skylevel-{os.getuid()}"
    with suppress(FileExistsError):
        folder.mkdir(mode=0o700)
    found = folder.lstat()
    if stat.S_ISDIR(found.st_mode) and found.st_uid == os.getuid() and not found.st_mode & 0o077:
        return str(folder)
    # Somebody else was there first.
    return tempfile.mkdtemp(prefix="skylevel-", dir=parent)


def dashboard(client: Client) -> str:
    """Return where a browser sees what goes on; empty where no page answers.

    Behind a proxy, as a notebook's server may be one, ``distributed.dashboard.link`` of Dask's configuration says what
    a browser asks for, such as ``/proxy/{port}/status``.
    """
    host, _ = get_address_host_port(client.scheduler.address)
    port = client.scheduler_info(n_workers=0)["services"].get("dashboard")
    if not (port and _has_pages(host, port)):
        return ""
    try:
        return str(client.dashboard_link)
    except KeyError:
        # The configuration names a variable that this process's environment does not have.
        return f"http://{host}:{port}/status"


def _has_pages(host: str, port: int) -> bool:
    """Return whether a scheduler has Bokeh, without which its pages only say so; and a page is slow to make."""
    connection = HTTPConnection(host, port, timeout=_PAGE_TIMEOUT)
    with closing(connection), suppress(OSError, HTTPException):
        connection.request("HEAD", "/static/js/bokeh.min.js")
        return connection.getresponse().status == HTTPStatus.OK
    return False


def _and_dashboard(client: Client) -> str:
    link = dashboard(client)
    return f"; dashboard {link}" if link else ""


@contextmanager
def _existing(address: str) -> Iterator[Client]:
    timeout = dask.config.get("skylevel.connect-timeout", _CONNECT_TIMEOUT)
    try:
        _require_address(address)
        client = Client(address, timeout=timeout, set_as_default=False)
    except (OSError, ValueError) as error:
        how = "; once one does, run the same command again" if isinstance(error, OSError) else ""
        raise ClusterError(f"{address}: no scheduler answers: {error}{how}") from error
    with client:
        log.info("scheduler %s%s", address, _and_dashboard(client))
        if address.startswith("tcp://"):
            log.warning("%s is open: whoever reaches it can run code as its owner; tls:// lets nobody else in", address)
        yield client


def _require_address(address: str) -> None:
    """Refuse what no client can connect to, before one is made: one that never began to connect hangs when it ends."""
    get_address_host_port(address, strict=True)
    if address.startswith("tls://") and not Security().get_connection_args("client").get("ssl_context"):
        raise ValueError("TLS needs the certificates of distributed.comm.tls in Dask's configuration")


@contextmanager
def _slurm(jobs: int) -> Iterator[Client]:
    with (
        dask.config.set(SCHEDULER_SETTINGS),
        _slurm_cluster() as cluster,
        Client(cluster, set_as_default=False) as client,
    ):
        try:
            _submit(cluster, jobs)
            log.info("SLURM, jobs submitted: %d%s", len(_job_ids(cluster)), _and_dashboard(client))
            _await_first_job(cluster, client)
            # As many as were asked for, all along: adapting replaces the jobs that are lost.
            cluster.adapt(minimum_jobs=jobs, maximum_jobs=jobs, interval="2 s")
            yield client
        finally:
            _give_up_refused(cluster)
            _remove_certificates(cluster)


def _slurm_cluster() -> Any:
    """Return a dask-jobqueue cluster without jobs, by its own configuration."""
    sigint = signal.getsignal(signal.SIGINT)
    try:
        from dask_jobqueue import SLURMCluster  # noqa: PLC0415 (an optional extra)

        # Importing it makes Ctrl-C exit with status 0.
        if signal.getsignal(signal.SIGINT) is not sigint:
            signal.signal(signal.SIGINT, sigint)
        # Whoever reaches an open scheduler runs code as its owner: a certificate of this run's own keeps it closed,
        # unless Dask's configuration names one.
        return SLURMCluster(
            security=None if dask.config.get("distributed.comm.tls.ca-file", None) else True,
            shared_temp_directory=dask.config.get("jobqueue.slurm.shared-temp-directory", None) or ".",
        )
    except ImportError as error:
        raise ClusterError(f"--cluster slurm: {_one_line(error)}: pip install dask-jobqueue") from error
    except (OSError, RuntimeError, ValueError) as error:
        raise ClusterError(f"dask-jobqueue cannot start: {_one_line(error)}; see deploy/slurm/jobqueue.yaml") from error


def _submit(cluster: Any, jobs: int) -> None:
    """Submit the jobs. As `scale` does, which would leave the refusal of one to the event loop's log."""

    async def submit() -> None:
        await cluster

    for _ in range(jobs):
        cluster.worker_spec.update(cluster.new_worker_spec())
    try:
        cluster.sync(submit)
    except (OSError, RuntimeError, ValueError) as error:
        reason = _one_line(str(error).rpartition("stderr:")[2])
        if not (taken := len(_job_ids(cluster))):
            raise ClusterError(f"SLURM takes no job: {reason}; see jobqueue.slurm in Dask's configuration") from error
        log.warning("SLURM took %d of %d jobs: %s", taken, jobs, reason)


def _give_up_refused(cluster: Any) -> None:
    """Mark the jobs that SLURM did not take: they were never begun, and a cluster does not close with such."""
    for job in cluster.workers.values():
        if not job.job_id:
            job.status = Status.failed


def _remove_certificates(cluster: Any) -> None:
    """Remove the files with the run's own key that its jobs have read: dask-jobqueue keeps them until Python ends."""
    for name, held in vars(cluster).items():
        if name.startswith("_job_") and hasattr(held, "close"):
            held.close()


def _await_first_job(cluster: Any, client: Client) -> None:
    """Wait for a worker for as long as SLURM has a job of ours in its queue, however long that is."""
    told, deadline = "", math.inf
    pause, longest_pause = _SQUEUE_EVERY
    while time.monotonic() < deadline:
        with suppress(TimeoutError):
            client.wait_for_workers(1, timeout=pause)
            return
        states = _queue_states(_job_ids(cluster))
        if not states:
            raise ClusterError(f"every SLURM job ended before its worker came; {_last_words(cluster)}")
        if states != told:
            log.info("waiting for SLURM: %s", states)
        if deadline == math.inf and "RUNNING" in states:
            timeout = dask.config.get("skylevel.first-worker-timeout", _FIRST_WORKER_TIMEOUT)
            deadline = time.monotonic() + parse_timedelta(timeout)
        told, pause = states, min(1.5 * pause, longest_pause)
    raise ClusterError(f"SLURM runs the job, but no worker came; {_last_words(cluster)}")


def _job_ids(cluster: Any) -> list[str]:
    return [job.job_id for job in cluster.workers.values() if job.job_id]


def _queue_states(job_ids: Sequence[str]) -> str:
    """State of each job and why it waits, as squeue has them; empty when none is in the queue any more."""
    command = ["squeue", "--noheader", "--jobs", ",".join(job_ids), "--format", "%i %T (%r)"]
    asked = subprocess.run(command, capture_output=True, text=True, check=False)
    if asked.returncode and "Invalid job id" not in asked.stderr:
        return f"squeue: {_one_line(asked.stderr)}"
    return ", ".join(asked.stdout.replace(" (None)", "").splitlines())


def _last_words(cluster: Any) -> str:
    """Return where a job's own messages are, and the last of them."""
    for job in cluster.workers.values():
        if not (job.job_id and job.log_directory):
            continue
        path = Path(job.log_directory, f"{job.job_name}-{job.job_id}.err")
        with suppress(OSError):
            lines = path.read_text(encoding="utf-8", errors="replace").split("\n")
            return f"see {path}: {next((line.strip() for line in reversed(lines) if line.strip()), 'empty')}"
    return "see the job's own .err or .out file"


def _one_line(error: object) -> str:
    return " ".join(str(error).split())


def _cause(error: BaseException) -> str:
    """Return what was at the bottom of an error, which Dask wraps: what the system said, where it said something."""
    chain = _chain(error)
    bottom = [each for each in chain if isinstance(each, OSError) and each.errno] or chain
    return _one_line(bottom[-1]) or type(bottom[-1]).__name__


def _ended_on_the_way(error: BaseException) -> bool:
    """Return whether a worker's process ended before it answered, in Dask's words."""
    return any("failed to start worker process" in str(each) for each in _chain(error))


def _chain(error: BaseException) -> list[BaseException]:
    below = error.__cause__ or error.__context__
    return [error, *(_chain(below) if below else [])]
