"""How the command line begins and ends: signals, streams that nobody reads, limits of the system, and another run.

Whatever happens, it is one clear line, in bounded time, with nothing left running.
"""

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import psutil
import pytest

from programs import (
    SKYLEVEL,
    end_session,
    finish,
    pixels_of,
    skylevel,
    skylevel_here,
    wait_until,
    workers_of,
    write_exposures,
)
from skylevel.memory import process_memory

pytestmark = pytest.mark.once

STOPPED = "skylevel: stopped. What is done is stored; run the same command again to do the rest."
COUNT = 12
STATUS = {signal.SIGINT: 130, signal.SIGTERM: 143, signal.SIGHUP: 129}

Start = Callable[..., subprocess.Popen[str]]


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Small exposures; read only."""
    folder = tmp_path_factory.mktemp("program")
    write_exposures(folder, COUNT, shape=(120, 150))
    return folder


@pytest.fixture(scope="module")
def done(program: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The output of a run that nothing disturbed; read only."""
    output = tmp_path_factory.mktemp("done")
    assert skylevel("run", program, "--output", output, "--partition", "1/1").returncode == 0
    return output


@pytest.fixture
def in_shell() -> Iterator[Callable[..., subprocess.CompletedProcess[str]]]:
    """Run a line of shell in a session of its own, with ``$SKYLEVEL`` as the command."""
    sessions = []

    def run(line: str, *, timeout: float = 120) -> subprocess.CompletedProcess[str]:
        process = subprocess.Popen(
            ["bash", "-c", line], env={**os.environ, "SKYLEVEL": str(SKYLEVEL)}, stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True,
        )  # fmt: skip
        sessions.append(process.pid)
        return finish(process, timeout=timeout)

    yield run
    for session in sessions:
        end_session(session)


def catches(process: subprocess.Popen[str], number: signal.Signals) -> bool:
    """Whether a process has a handler of its own for a signal."""
    text = Path(f"/proc/{process.pid}/status").read_text()
    return bool(int(re.search(r"SigCgt:\s*(\w+)", text)[1], 16) >> (number - 1) & 1)


def said(process: subprocess.CompletedProcess[str]) -> list[str]:
    """What was printed as errors, without the log's lines."""
    return [line for line in process.stderr.splitlines() if line and not re.match(r"\d{4}-\d\d-\d\d ", line)]


def assert_nothing_runs(session: int) -> None:
    def running() -> list[psutil.Process]:
        found = []
        for process in psutil.process_iter():
            try:
                if os.getsid(process.pid) == session and process.status() != psutil.STATUS_ZOMBIE:
                    found.append(process)
            except (ProcessLookupError, psutil.NoSuchProcess):
                pass
        return found

    wait_until(lambda: not running(), seconds=15, what="the end of every process")


class TestSignals:
    @pytest.mark.parametrize("number", STATUS)
    @pytest.mark.parametrize("delay", [0.0, 0.1, 0.3])
    def test_at_the_very_start(
        self, program: Path, tmp_path: Path, start: Start, number: signal.Signals, delay: float
    ) -> None:
        process = start("run", program, "--output", tmp_path / "out")
        # The last of them; before that it is Python that starts, and not yet skylevel.
        wait_until(lambda: catches(process, signal.SIGHUP), what="its first line")
        time.sleep(delay)
        os.killpg(process.pid, number)
        ended = finish(process, timeout=15)
        assert ended.returncode == STATUS[number]
        assert said(ended) == [STOPPED]
        assert_nothing_runs(process.pid)

    @pytest.mark.slow
    @pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
    @pytest.mark.parametrize("workers", [0, 1, 2])
    def test_while_workers_start(
        self, program: Path, tmp_path: Path, start: Start, number: signal.Signals, workers: int
    ) -> None:
        """Sent to all, as a terminal does, and sent again at once, as the impatient do."""
        process = start("run", program, "--output", tmp_path / "out", "--workers", 2)
        wait_until((tmp_path / "out" / "program.zarr").exists, what="the start of its work")
        wait_until(lambda: len(workers_of(process)) >= workers, what="workers")
        os.killpg(process.pid, number)
        time.sleep(0.2 * workers)
        with suppress(ProcessLookupError):
            os.killpg(process.pid, number)
        ended = finish(process, timeout=30)
        assert ended.returncode == STATUS[number]
        assert said(ended) == [STOPPED]
        assert_nothing_runs(process.pid)
        # Nothing is to be removed by hand.
        assert skylevel("run", program, "--output", tmp_path / "out", "--partition", "1/1").returncode == 0

    @pytest.mark.slow
    def test_terminated_in_the_middle(self, program: Path, tmp_path: Path, slow: dict, start: Start) -> None:
        process = start("run", program, "--output", tmp_path / "out", "--workers", 2, env=slow)
        wait_until(lambda: list((tmp_path / "out").glob("*.fits")), what="an output")
        # To it alone, as `kill` does.
        process.terminate()
        ended = finish(process, timeout=30)
        assert ended.returncode == 143
        assert said(ended) == [STOPPED]
        assert_nothing_runs(process.pid)
        assert not list((tmp_path / "out").rglob("*lock"))

    @pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
    def test_after_the_table(self, program: Path, tmp_path: Path, start: Start, number: signal.Signals) -> None:
        run = ("run", program, "--output", tmp_path / "out", "--partition", "1/1")
        process = start(*run, env={"PYTHONUNBUFFERED": "1"})
        while not process.stdout.readline().startswith("store "):
            assert process.poll() is None
        os.killpg(process.pid, number)
        ended = finish(process, timeout=15)
        # It may have ended before.
        assert (ended.returncode, said(ended)) in [(STATUS[number], [STOPPED]), (0, [])]

    def test_one_that_is_ignored_stays_so(self, program: Path, tmp_path: Path, start: Start) -> None:
        """As under nohup."""
        process = start("run", program, "--output", tmp_path / "out", "--partition", "1/1",
                        preexec_fn=lambda: signal.signal(signal.SIGHUP, signal.SIG_IGN))  # fmt: skip
        wait_until(lambda: catches(process, signal.SIGTERM), what="its first line")
        os.killpg(process.pid, signal.SIGHUP)
        assert finish(process).returncode == 0


class TestStreams:
    @pytest.mark.parametrize("streams", ["2>&1 | head -1", "2>/dev/full", "2>&-", "2>&1 | true"])
    def test_the_work_goes_on(
        self, program: Path, done: Path, tmp_path: Path, in_shell: Callable, streams: str
    ) -> None:
        run = f"$SKYLEVEL run {program} --output {tmp_path} --partition 1/1"
        ended = in_shell(f"{run} {streams}; echo ${{PIPESTATUS[0]}}")
        assert ended.stdout.splitlines()[-1] == "0"
        assert ended.stderr == ""
        assert pixels_of(tmp_path) == pixels_of(done)

    def test_what_could_not_be_printed_is_told(
        self, program: Path, done: Path, tmp_path: Path, in_shell: Callable
    ) -> None:
        ended = in_shell(f"$SKYLEVEL run {program} --output {tmp_path} --partition 1/1 >/dev/full")
        assert ended.returncode == 1
        assert said(ended) == ["skylevel: standard output: No space left on device: not all was printed"]
        assert pixels_of(tmp_path) == pixels_of(done)
        ended = in_shell(f"$SKYLEVEL status {done} >/dev/full")
        assert (ended.returncode, len(said(ended))) == (1, 1)

    @pytest.mark.parametrize("closed", ["<&-", ">&-", "2>&-", "<&- >&- 2>&-"])
    def test_closed_ones(self, done: Path, in_shell: Callable, closed: str) -> None:
        ended = in_shell(f"$SKYLEVEL status {done} {closed}")
        assert (ended.returncode, ended.stderr) == (0, "")

    @pytest.mark.slow
    def test_on_a_cluster(self, program: Path, done: Path, tmp_path: Path, in_shell: Callable) -> None:
        ended = in_shell(f"$SKYLEVEL run {program} --output {tmp_path} --workers 2 2>&1 | head -1")
        assert (ended.returncode, ended.stderr) == (0, "")
        assert pixels_of(tmp_path) == pixels_of(done)


class TestLimits:
    @pytest.mark.parametrize(
        ("limit", "cause"),
        [("-n 12", "Too many open files"), ("-n 30", "Too many open files"), ("-v 400000", ""), ("-v 600000", "")],
    )
    def test_of_the_shell(self, program: Path, tmp_path: Path, in_shell: Callable, limit: str, cause: str) -> None:
        ended = in_shell(f"ulimit {limit}; $SKYLEVEL run {program} --output {tmp_path / 'out'} --workers 2", timeout=60)
        assert ended.returncode == 2
        (line,) = said(ended)
        assert line.startswith("skylevel: ")
        assert cause in line

    def test_no_loopback(self, program: Path, tmp_path: Path, in_shell: Callable) -> None:
        if subprocess.run(["unshare", "-n", "true"], capture_output=True, check=False).returncode:
            pytest.skip("a network namespace needs root")
        ended = in_shell(f"unshare -n $SKYLEVEL run {program} --output {tmp_path / 'out'}", timeout=40)
        assert ended.returncode == 2
        (line,) = said(ended)
        assert "cannot start workers on this machine: its loopback interface does not answer: " in line

    def test_a_share_that_does_not_fit_is_refused(
        self, program: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
    ) -> None:
        """By name and with the numbers, before it is read."""
        # No machine has so much.
        monkeypatch.setattr("skylevel.program.forecast._BASE_BYTES", 1 << 60)
        assert skylevel_here("run", program, "--output", tmp_path / "out", "--partition", "1/1") == 1
        failed = [line for line in capfd.readouterr().err.splitlines() if line.startswith("failed: ")]
        assert len(failed) == COUNT
        assert re.search(r"/e00\.fits: needs about [\d.]+ GB of memory, this process has [\d.]+ GB: give it", failed[0])
        assert list((tmp_path / "out").rglob("*.fits")) == []

    def test_the_memory_of_a_process_is_what_limits_leave_it(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        code = "from skylevel.memory import process_memory; print(process_memory())"
        asked = ["bash", "-c", f"ulimit -v 1000000; {sys.executable} -c '{code}'"]
        assert int(subprocess.run(asked, capture_output=True, text=True, check=True).stdout) == 1000000 << 10
        assert 1 << 30 < process_memory() <= psutil.virtual_memory().total
        for line in Path("/proc/self/cgroup").read_text().splitlines():
            _, controllers, path = line.split(":", 2)
            if not controllers or "memory" in controllers.split(","):
                group = tmp_path / ("memory" if controllers else "") / path.lstrip("/")
                group.mkdir(parents=True, exist_ok=True)
                (group / ("memory.limit_in_bytes" if controllers else "memory.max")).write_text("123456789\n")
        monkeypatch.setattr("skylevel.memory._GROUPS", tmp_path)
        assert process_memory() == 123456789


@pytest.mark.slow
class TestWorkersThatDoNotStart:
    def test_one_is_killed(self, program: Path, done: Path, tmp_path: Path, start: Start) -> None:
        process = start("run", program, "--output", tmp_path / "out", "--workers", 2)
        wait_until(lambda: workers_of(process), what="a worker")[0].kill()
        ended = finish(process)
        assert ended.returncode == 0
        assert pixels_of(tmp_path / "out") == pixels_of(done)

    def test_every_one_is_killed(self, program: Path, tmp_path: Path, start: Start) -> None:
        process = start("run", program, "--output", tmp_path / "out", "--workers", 2)
        while process.poll() is None:
            try:
                for worker in workers_of(process):
                    worker.kill()
            except psutil.NoSuchProcess:
                pass
            time.sleep(0.05)
        ended = finish(process)
        assert ended.returncode == 2
        assert said(ended) == [
            "skylevel: cannot start workers on this machine: a worker ends while it is started (out of memory?)"
        ]
        assert_nothing_runs(process.pid)


@pytest.mark.slow
class TestTwoRuns:
    def test_one_has_it_and_the_other_says_so(
        self, program: Path, done: Path, tmp_path: Path, slow: dict, start: Start
    ) -> None:
        output = tmp_path / "out"
        first = start("run", program, "--output", output, "--workers", 2, env=slow)
        wait_until(lambda: list(output.glob("*.fits")), what="an output")
        # It stands still meanwhile, and keeps what it has.
        first.send_signal(signal.SIGSTOP)
        for command in (
            ("run", program, "--output", output),
            ("run", program, "--output", output, "--partition", "1/2"),
            ("export", output),
        ):
            other = skylevel(*command)
            assert other.returncode == 2
            (line,) = said(other)
            assert f"in use by another run (process {first.pid} on " in line
        assert "done" in skylevel("status", output).stdout
        first.send_signal(signal.SIGCONT)
        assert finish(first).returncode == 0
        assert pixels_of(output) == pixels_of(done)

    def test_after_a_killed_one_the_next_begins_at_once(
        self, program: Path, done: Path, tmp_path: Path, slow: dict, start: Start
    ) -> None:
        output = tmp_path / "out"
        first = start("run", program, "--output", output, "--workers", 2, env=slow)
        wait_until(lambda: list(output.glob("*.fits")), what="an output")
        first.kill()
        assert skylevel("run", program, "--output", output, "--partition", "1/1").returncode == 0
        assert pixels_of(output) == pixels_of(done)
        assert not list(output.rglob("*lock"))
        assert_nothing_runs(first.pid)

    def test_shares_work_together(self, program: Path, done: Path, tmp_path: Path, start: Start) -> None:
        output = tmp_path / "out"
        shares = [start("run", program, "--output", output, "--partition", f"{i}/3") for i in (1, 2, 3)]
        assert [finish(share).returncode for share in shares] == [0, 0, 0]
        assert pixels_of(output) == pixels_of(done)
