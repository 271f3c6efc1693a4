"""One exposure without a cluster: the same outputs, and nothing that its worker does, or dies of, harms the run."""

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import psutil
import pytest

from conftest import PRELOAD
from programs import (
    finish,
    measured_in,
    pixels_of,
    skylevel,
    stored,
    wait_until,
    write_exposure,
    write_exposures,
    write_raw,
)
from skylevel.errors import SkylevelError, StoreError, WorkerDiedError
from skylevel.io.store import ProgramStore
from skylevel.program.own_worker import OwnWorker

pytestmark = pytest.mark.once

PLENTY = 1 << 40
STOPPED = "skylevel: stopped. What is done is stored; run the same command again to do the rest."


@pytest.fixture(scope="module")
def exposure(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small one; read only."""
    return write_exposure(tmp_path_factory.mktemp("in") / "e00.fits", shape=(120, 150))


@pytest.fixture(scope="module")
def done(exposure: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The output of a run without any worker; read only."""
    output = tmp_path_factory.mktemp("done")
    assert skylevel("run", exposure, "--output", output, "--partition", "1/1").returncode == 0
    return output


def start_slowly(*arguments: object) -> subprocess.Popen[str]:
    """The command line, whose workers read slowly, and die of a file that is named so."""
    code = f"{PRELOAD}\nfrom skylevel.__main__ import main; main()"
    command = [sys.executable, "-c", code, *map(str, arguments)]
    pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen(command, start_new_session=True, **pipes)


def children_of(process: subprocess.Popen[str]) -> list[psutil.Process]:
    return psutil.Process(process.pid).children(recursive=True)


def said(process: subprocess.CompletedProcess[str]) -> list[str]:
    return [line for line in process.stderr.splitlines() if line and not re.match(r"\d{4}-\d\d-\d\d ", line)]


class TestRun:
    def test_the_outputs_are_those_of_any_other_run(self, exposure: Path, done: Path, tmp_path: Path) -> None:
        ended = skylevel("run", exposure, "--output", tmp_path)
        assert (ended.returncode, said(ended)) == (0, [])
        assert pixels_of(tmp_path) == pixels_of(done)
        assert stored(tmp_path, "e00").identical(stored(done, "e00"))
        told = [line.split(" ", 2)[2] for line in (tmp_path / "skylevel.log").read_text().splitlines()]
        assert told[:2] == ["INFO 1 exposure: 0 done already, to do: 1 rows", "INFO 1 worker on this machine"]
        assert [line.split()[2] for line in told[2:]] == ["read", "measured", "wrote"]

    def test_of_a_camera_raw_says_nothing_else(self, tmp_path: Path) -> None:
        raw = write_raw(tmp_path / "night.dng")
        ended = skylevel("run", raw, "--output", tmp_path / "out")
        assert (ended.returncode, said(ended)) == (0, [])
        assert skylevel("run", raw, "--output", tmp_path / "quiet", "--quiet").stderr == ""

    def test_opening_a_raw_starts_no_thread(self, tmp_path: Path) -> None:
        """One of OpenMP's would make forking a worker unsafe."""
        code = (
            "import os, sys; from skylevel.io.camera import peek_raw; before = len(os.listdir('/proc/self/task'));"
            "peek_raw(sys.argv[1]); print(len(os.listdir('/proc/self/task')) - before)"
        )
        command = [sys.executable, "-c", code, str(write_raw(tmp_path / "night.dng"))]
        assert subprocess.run(command, capture_output=True, text=True, check=True).stdout == "0\n"

    def test_of_several_the_last_one_that_is_left(self, tmp_path: Path) -> None:
        write_exposures(tmp_path / "in", 2, shape=(120, 150))
        assert skylevel("run", tmp_path / "in" / "e00.fits", "--output", tmp_path / "out").returncode == 0
        again = skylevel("run", tmp_path / "in", "--output", tmp_path / "out")
        assert again.returncode == 0
        assert "dashboard" not in again.stderr
        assert measured_in(tmp_path / "out") == ["e00", "e01"]

    def test_a_group_of_one(self, exposure: Path, tmp_path: Path) -> None:
        ended = skylevel("run", exposure, "--output", tmp_path, "--preset", "program")
        assert ended.returncode == 0
        assert ": combined 1 exposure" in ended.stderr

    def test_one_that_cannot_be_read_is_named(self, tmp_path: Path) -> None:
        (tmp_path / "bad.fits").write_bytes(b"no image")
        ended = skylevel("run", tmp_path / "bad.fits", "--output", tmp_path / "out")
        assert ended.returncode == 1
        assert said(ended)[-1].startswith(f"failed: {tmp_path / 'bad.fits'}: ")


class TestDeaths:
    def test_of_one_file_every_time(self, exposure: Path, tmp_path: Path) -> None:
        killer = write_exposure(tmp_path / "killer.fits")
        ended = finish(start_slowly("run", killer, "--output", tmp_path / "out"))
        assert ended.returncode == 1
        died = "its worker died each time it was tried, the last time alone (out of memory?)"
        assert said(ended) == [f"failed: {killer}: {died}"]
        assert ProgramStore(str(tmp_path / "out" / "program.zarr")).failures() == {"killer": f"{killer}: {died}"}
        assert not [path for path in (tmp_path / "out").rglob("*") if path.name.endswith((".tmp", ".partial", "lock"))]

    def test_of_a_worker_is_made_good(self, exposure: Path, done: Path, tmp_path: Path) -> None:
        process = start_slowly("run", exposure, "--output", tmp_path / "out")
        wait_until(lambda: "1 worker" in log_of(tmp_path / "out"), what="the start of its work")
        (worker,) = children_of(process)
        worker.kill()
        assert finish(process).returncode == 0
        assert pixels_of(tmp_path / "out") == pixels_of(done)

    @pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
    def test_stopped_in_the_middle(self, exposure: Path, tmp_path: Path, number: signal.Signals) -> None:
        """Sent to all, as a terminal does; the command says so, once, and takes its worker along."""
        process = start_slowly("run", exposure, "--output", tmp_path / "out")
        wait_until(lambda: "1 worker" in log_of(tmp_path / "out"), what="the start of its work")
        workers = children_of(process)
        os.killpg(process.pid, number)
        ended = finish(process, timeout=30)
        assert (ended.returncode, said(ended)) == (128 + number, [STOPPED])
        assert not any(worker.is_running() for worker in workers)
        assert not list((tmp_path / "out").rglob("*lock"))

    def test_of_the_command(self, exposure: Path, tmp_path: Path) -> None:
        process = start_slowly("run", exposure, "--output", tmp_path / "out")
        wait_until(lambda: "1 worker" in log_of(tmp_path / "out"), what="the start of its work")
        workers = children_of(process)
        process.kill()
        process.communicate()
        wait_until(lambda: not any(worker.is_running() for worker in workers), seconds=15, what="the worker's end")


def log_of(output: Path) -> str:
    path = output / "skylevel.log"
    return path.read_text() if path.exists() else ""


class OddError(Exception):
    """An exception that cannot be made again from what is pickled of it."""

    def __init__(self, one: int, two: int) -> None:
        super().__init__(f"{one} and {two}")


def _raise(error: Exception) -> None:
    raise error


def _raise_odd() -> None:
    raise OddError(1, 2)


def _hold(n_bytes: int) -> None:
    held = bytearray(b"x") * n_bytes
    time.sleep(30)
    del held


def _freeze_at_first(mark: Path) -> str:
    if not mark.exists():
        mark.touch()
        os.kill(os.getpid(), signal.SIGSTOP)
    return "done"


class TestCalls:
    @pytest.fixture
    def worker(self) -> Iterator[OwnWorker]:
        started = OwnWorker()
        yield started
        started.end()

    def test_results_and_exceptions_come_back(self, worker: OwnWorker) -> None:
        worker.get_ready()
        assert worker.call(partial(max, 1, 2), memory=PLENTY) == 2
        with pytest.raises(StoreError, match="x: no"):
            worker.call(partial(_raise, StoreError("x: no")), memory=PLENTY)
        with pytest.raises(SkylevelError, match=r"^OddError: 1 and 2$"):
            worker.call(_raise_odd, memory=PLENTY)
        assert worker.call(os.getpid, memory=PLENTY) not in (os.getpid(), None)

    def test_more_memory_than_a_worker_has_ends_it(self, worker: OwnWorker) -> None:
        enough = psutil.Process().memory_info().rss + (200 << 20)
        assert worker.call(partial(max, 1, 2), memory=PLENTY) == 2
        with pytest.raises(WorkerDiedError, match="out of memory"):
            worker.call(partial(_hold, 500 << 20), memory=enough)

    def test_a_frozen_one_is_given_up(
        self, worker: OwnWorker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("skylevel.program.own_worker._FROZEN_FOR", 1.0)
        assert worker.call(partial(_freeze_at_first, tmp_path / "frozen"), memory=PLENTY) == "done"

    def test_signals_are_for_the_command_alone(self, worker: OwnWorker) -> None:
        process = psutil.Process(worker.call(os.getpid, memory=PLENTY))
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            process.send_signal(number)
        assert worker.call(os.getpid, memory=PLENTY) == process.pid
