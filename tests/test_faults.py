"""Whatever dies on the way, no exposure is lost, none is half-written, and what is left is done by the same command.

Real processes throughout: the command line, its workers, schedulers of their own, and a real full disk. Workers load a
module first that makes each reading slow, so that there is a middle of the run in which to disturb it.
"""

import json
import logging
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

import dask
import psutil
import pytest
from distributed import Client, Future, KilledWorker, LocalCluster

from programs import (
    end_session,
    finish,
    image_of,
    measured_in,
    pixels_of,
    skylevel,
    wait_until,
    workers_of,
    write_exposures,
)
from skylevel.errors import SchedulerLostError
from skylevel.io.store import ProgramStore
from skylevel.program.cluster import check_workers, connect
from skylevel.program.fan_out import fan_out
from skylevel.program.plan import make_plan
from skylevel.program.run import run, run_partition

pytestmark = pytest.mark.slow

COUNT = 16
NAMES = [f"e{i:02d}" for i in range(COUNT)]

@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Exposures that are small, and slow to read; read only."""
    folder = tmp_path_factory.mktemp("program")
    write_exposures(folder, COUNT, shape=(120, 150))
    return folder


@pytest.fixture(scope="module")
def undisturbed(program: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """The levelled pixels of each output, from a run in which nothing happened."""
    output = tmp_path_factory.mktemp("undisturbed")
    run_partition(make_plan([str(program)], str(output)), str(output), (1, 1))
    return pixels_of(output)


def n_written(output: Path) -> int:
    return len(list(output.glob("*_rowbgsub.fits")))


def wait_for_outputs(output: Path, count: int) -> None:
    wait_until(lambda: n_written(output) >= count, what=f"{count} outputs")


def assert_survivors(output: Path, undisturbed: dict[str, bytes]) -> None:
    """Every output that is there opens, and is the one of an undisturbed run."""
    for path in output.glob("*.fits"):
        assert image_of(path).tobytes() == undisturbed[path.name], path.name


def assert_whole(output: Path, undisturbed: dict[str, bytes]) -> None:
    """Every exposure is there, as in an undisturbed run, and nothing else is."""
    assert pixels_of(output) == undisturbed
    assert measured_in(output) == NAMES
    assert ProgramStore(str(output / "program.zarr")).failures() == {}
    hidden = [path for path in output.rglob("*") if path.name.endswith((".tmp", ".partial", "lock"))]
    assert hidden == []


def done_in(process: subprocess.CompletedProcess[str]) -> int:
    return int(re.search(r"^done +(\d+)\s*$", process.stdout, re.M)[1])


class TestWorkersDie:
    def test_every_one_in_turn(
        self, program: Path, undisturbed: dict, slow: dict, tmp_path: Path, start: Callable
    ) -> None:
        process = start("run", program, "--output", tmp_path / "out", "--workers", 2, env=slow)
        wait_for_outputs(tmp_path / "out", 2)
        for worker in workers_of(process):
            worker.kill()
            wait_until(lambda: len(workers_of(process)) == 2, what="a worker in its place")
        ended = finish(process)
        assert (ended.returncode, done_in(ended)) == (0, COUNT)
        assert_whole(tmp_path / "out", undisturbed)

    def test_of_one_file_every_time(
        self, program: Path, undisturbed: dict, slow: dict, tmp_path: Path, start: Callable
    ) -> None:
        """It alone fails, by name; those that were in flight beside it are done, however late workers are back."""
        shutil.copytree(program, tmp_path / "in")
        shutil.copy2(program / "e05.fits", tmp_path / "in" / "e05killer.fits")
        impatient = {**slow, "DASK_DISTRIBUTED__DEPLOY__LOST_WORKER_TIMEOUT": "100 ms"}
        process = start("run", tmp_path / "in", "--output", tmp_path / "out", "--workers", 2, env=impatient)
        ended = finish(process)
        assert (ended.returncode, done_in(ended)) == (1, COUNT)
        failed = [line for line in ended.stderr.splitlines() if line.startswith("failed: ")]
        assert len(failed) == 1
        assert str(tmp_path / "in" / "e05killer.fits") in failed[0]
        assert "its worker died each time it was tried" in failed[0]
        assert set(ProgramStore(str(tmp_path / "out" / "program.zarr")).failures()) == {"e05killer"}
        assert pixels_of(tmp_path / "out") == undisturbed


    def test_and_none_can_be_started_again(self) -> None:
        """The run ends, and says what to do; nothing waits for a worker that never comes."""
        with connect("local", workers=1, n_exposures=1) as client:
            (nanny,) = client.cluster.workers.values()

            def submit(item: int) -> Future:
                client.cluster.loop.add_callback(nanny.close)
                return client.submit(time.sleep, 600)

            with pytest.raises(SchedulerLostError, match="run the same command again"):
                list(fan_out(client, submit, [0], in_flight=lambda: 1))


def _sleep_or_die(item: int) -> int:
    time.sleep(0.5)
    if item == 0:
        os._exit(1)
    time.sleep(1.0)
    return item


def test_a_neighbour_of_the_guilty_is_tried_again_alone() -> None:
    """Here both run in one worker, whose first death counts against both."""
    with (
        dask.config.set({"distributed.scheduler.allowed-failures": 0}),
        LocalCluster(
            n_workers=1, threads_per_worker=2, host="127.0.0.1", dashboard_address="127.0.0.1:0",
            silence_logs=logging.CRITICAL,
        ) as cluster,
        Client(cluster, set_as_default=False) as client,
    ):  # fmt: skip
        tried: list[int] = []

        def submit(item: int) -> Future:
            tried.append(item)
            return client.submit(_sleep_or_die, item, pure=False)

        outcomes = dict(fan_out(client, submit, [0, 1], in_flight=lambda: 2))
    assert isinstance(outcomes[0], KilledWorker)
    assert outcomes[1] == 1
    assert sorted(tried) == [0, 0, 1, 1]


class Dask:
    """A scheduler and workers in processes of their own, as on somebody's cluster."""

    def __init__(self, folder: Path, env: dict[str, str], stack: ExitStack, *of_workers: str) -> None:
        self.folder = folder
        self.env = {**os.environ, **env}
        self.stack = stack
        folder.mkdir()
        self.scheduler = self.start("scheduler", "--host", "127.0.0.1", "--port", "0", "--dashboard-address",
                                    "127.0.0.1:0", "--scheduler-file", str(folder / "scheduler.json"))  # fmt: skip
        self.address = str(json.loads(wait_until(self.read, what="a scheduler"))["address"])
        worker = ("worker", self.address, "--nthreads", "1", "--no-dashboard", *of_workers)
        self.workers = [self.start(*worker) for _ in range(2)]

    def start(self, *arguments: str) -> subprocess.Popen[bytes]:
        log = self.stack.enter_context((self.folder / "log").open("ab"))
        command = [str(Path(sys.executable).with_name("dask")), *arguments]
        process = subprocess.Popen(
            command, env=self.env, cwd=self.folder, stdout=log, stderr=log, start_new_session=True
        )
        self.stack.callback(process.wait)
        self.stack.callback(end_session, process.pid)
        return process

    def read(self) -> str:
        path = self.folder / "scheduler.json"
        text = path.read_text() if path.exists() else ""
        return text if text.rstrip().endswith("}") else ""

    def worker_pids(self) -> list[int]:
        with Client(self.address, set_as_default=False) as client:
            client.wait_for_workers(2)
            return list(client.run(os.getpid).values())


class TestSchedulerDies:
    def test_what_is_left_is_done_on_another(
        self, program: Path, undisturbed: dict, slow: dict, tmp_path: Path, start: Callable, clean_up: ExitStack
    ) -> None:
        output = tmp_path / "out"
        first = Dask(tmp_path / "first", slow, clean_up)
        process = start("run", program, "--output", output, "--cluster", first.address, env=slow)
        wait_for_outputs(output, 4)
        first.scheduler.kill()
        ended = finish(process, timeout=120)
        assert ended.returncode == 1
        said = [line for line in ended.stderr.splitlines() if not re.match(r"\d{4}-\d\d-\d\d ", line)]
        assert said == ["skylevel: the scheduler is gone; what was done is stored: run the same command again"]
        assert n_written(output) < COUNT
        assert_survivors(output, undisturbed)

        second = Dask(tmp_path / "second", slow, clean_up)
        again = skylevel("run", program, "--output", output, "--cluster", second.address)
        assert again.returncode == 0
        assert 0 < done_in(again) < COUNT
        assert_whole(output, undisturbed)

    def test_none_of_the_frames_that_are_done_in_blocks_has_failed(
        self, program: Path, tmp_path: Path, clean_up: ExitStack, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Neither the one that was under way, nor those that were still to come."""
        # Every frame is larger than a worker then.
        monkeypatch.setattr("skylevel.program.forecast._BASE_BYTES", 2 << 30)
        other = Dask(tmp_path / "dask", {}, clean_up, "--memory-limit", "1100MiB")
        output, count = tmp_path / "out", 0

        def kill(finished: int, _: int) -> None:
            nonlocal count
            count = finished
            other.scheduler.kill()
            other.scheduler.wait()

        with (
            dask.config.set({"distributed.comm.timeouts.connect": "3 s"}),
            Client(other.address, set_as_default=False) as client,
            pytest.raises(SchedulerLostError, match=r"^the scheduler is gone; what was done is stored"),
        ):
            run([str(program)], str(output), client=client, progress=kill)
        assert count == 1
        assert measured_in(output) == NAMES[:1]
        assert ProgramStore(str(output / "program.zarr")).failures() == {}
        assert not list(output.rglob("*lock"))


class TestAskedForTheirVersion:
    """Before the first exposure, the workers are asked: who is asked may die just then."""

    @pytest.fixture
    def cluster(self, tmp_path: Path, clean_up: ExitStack) -> Dask:
        started = Dask(tmp_path / "dask", {}, clean_up)
        started.worker_pids()
        return started

    def ask(self, cluster: Dask, kill: Callable[[], None]) -> int:
        with Client(cluster.address, set_as_default=False) as client:
            run, killed = client.run, []

            def run_and_kill(*arguments: Any) -> Any:
                if not killed:
                    killed.append(kill())
                return run(*arguments)

            client.run = run_and_kill
            return check_workers(client)

    def test_the_scheduler_dies(self, cluster: Dask) -> None:
        with pytest.raises(SchedulerLostError, match="run the same command again"):
            self.ask(cluster, lambda: kill_and_wait(cluster.scheduler.pid))

    def test_a_worker_dies(self, cluster: Dask) -> None:
        assert self.ask(cluster, lambda: kill_and_wait(cluster.worker_pids()[0])) >= 1


def kill_and_wait(pid: int) -> None:
    process = psutil.Process(pid)
    process.kill()
    wait_until(lambda: not process.is_running() or process.status() == psutil.STATUS_ZOMBIE)


class TestWorkerFreezes:
    def test_the_others_do_its_work(
        self, program: Path, undisturbed: dict, slow: dict, tmp_path: Path, start: Callable, clean_up: ExitStack
    ) -> None:
        ttl = {"DASK_DISTRIBUTED__SCHEDULER__WORKER_TTL": "4s"}
        other = Dask(tmp_path / "dask", slow | ttl, clean_up)
        frozen = other.worker_pids()[0]
        process = start("run", program, "--output", tmp_path / "out", "--cluster", other.address, env=slow)
        wait_for_outputs(tmp_path / "out", 4)
        os.kill(frozen, signal.SIGSTOP)
        ended = finish(process)
        assert (ended.returncode, done_in(ended)) == (0, COUNT)
        assert_whole(tmp_path / "out", undisturbed)


class TestCommandEnds:
    def test_killed(self, program: Path, undisturbed: dict, slow: dict, tmp_path: Path, start: Callable) -> None:
        output = tmp_path / "out"
        process = start("run", program, "--output", output, "--workers", 2, env=slow)
        wait_for_outputs(output, 4)
        workers = workers_of(process)
        process.kill()
        process.wait()
        wait_until(lambda: not any(worker.is_running() for worker in workers), what="the end of its workers")
        assert n_written(output) < COUNT
        assert_survivors(output, undisturbed)
        again = skylevel("run", program, "--output", output, "--workers", 2)
        assert again.returncode == 0
        assert "2 workers on this machine; dashboard http://127.0.0.1:" in again.stderr
        assert 0 < done_in(again) < COUNT
        assert_whole(output, undisturbed)

    def test_interrupted(
        self, program: Path, undisturbed: dict, slow: dict, tmp_path: Path, start: Callable
    ) -> None:
        """With Ctrl-C, which a terminal sends to the command and to its workers alike."""
        output = tmp_path / "out"
        process = start("run", program, "--output", output, "--workers", 2, env=slow)
        wait_for_outputs(output, 4)
        workers = workers_of(process)
        assert len(workers) == 2
        began = time.monotonic()
        os.killpg(process.pid, signal.SIGINT)
        ended = finish(process, timeout=60)
        assert time.monotonic() - began < 15
        assert ended.returncode == 130
        said = [line for line in ended.stderr.splitlines() if line and not re.match(r"\d{4}-\d\d-\d\d ", line)]
        assert said == ["skylevel: stopped. What is done is stored; run the same command again to do the rest."]
        assert not any(worker.is_running() for worker in workers)
        assert n_written(output) < COUNT
        assert_survivors(output, undisturbed)
        again = skylevel("run", program, "--output", output, "--workers", 2)
        assert again.returncode == 0
        assert_whole(output, undisturbed)


@contextmanager
def small_disk(folder: Path, size: str) -> Iterator[Path]:
    """A file system of its own, of a few hundred KB."""
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={size}", "skylevel-test", str(folder)], capture_output=True, check=False
    )
    if mounted.returncode:
        pytest.skip("mounting a small file system needs root")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


def test_a_full_disk(
    program: Path, undisturbed: dict, slow: dict, tmp_path: Path, start: Callable, clean_up: ExitStack
) -> None:
    disk = clean_up.enter_context(small_disk(tmp_path / "disk", "16m"))
    output = disk / "out"
    run = ("run", program, "--output", output, "--workers", 2)
    process = start(*run, env=slow)
    wait_for_outputs(output, 4)
    filler = fill(disk)
    full = finish(process)
    assert full.returncode == 1
    failed = [line for line in full.stderr.splitlines() if line.startswith("failed: ")]
    assert len(failed) + done_in(full) == COUNT
    # Each of two workers may have written an output, and not what is known of it.
    assert 2 <= done_in(full) < COUNT
    assert all("No space left on device" in line and str(program) in line for line in failed)
    assert_survivors(output, undisturbed)
    assert n_written(output) >= done_in(full)

    filler.unlink()
    again = skylevel(*run)
    assert again.returncode == 0
    assert done_in(again) == len(failed)
    assert_whole(output, undisturbed)


def fill(disk: Path) -> Path:
    """Take all the space that is left, as somebody else's program would."""
    path = disk / "filler"
    with path.open("wb", buffering=0) as stream:
        for piece in (b"x" * (1 << 16), b"x" * 512):
            with suppress(OSError):
                while True:
                    stream.write(piece)
    return path
