"""Anything may be killed at any moment: the same command then does what is left, to the same bytes.

Real processes, `kill -9`, random victims and moments: starting, planning, measuring, writing, ending. Ten rounds, or
SKYLEVEL_CHAOS_ROUNDS; the seed is printed, and SKYLEVEL_CHAOS_SEED sets it (`make chaos`). The soak is run where
SKYLEVEL_SOAK_EXPOSURES says how many (`make soak`).
"""

import os
import random
import re
import subprocess
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, suppress
from pathlib import Path
from statistics import median

import psutil
import pytest

from programs import SKYLEVEL, image_of, write_exposures, write_raw
from skylevel.io.store import ProgramStore
from skylevel.program.plan import read_plan, store_url
from skylevel.program.view import program_status
from test_faults import Dask, end_session, wait_until, workers_of

pytestmark = pytest.mark.slow

ROUNDS = int(os.environ.get("SKYLEVEL_CHAOS_ROUNDS", "10"))
SEED = int(os.environ.get("SKYLEVEL_CHAOS_SEED", str(random.SystemRandom().randrange(10**6))))
SOAK = int(os.environ.get("SKYLEVEL_SOAK_EXPOSURES", "0"))
N_ROWS, N_RAWS = 14, 4
# Nothing that a killed command started may outlive it by more.
ORPHANS_END_WITHIN = 15.0
# What tells of the time and not of the exposures: files; and DATE, on which CHECKSUM hangs, but not DATASUM.
DIFFERS = re.compile(r"skylevel\.log|report\.html|.*/record/\d+")
WRITTEN_WHEN = re.compile(rb"(DATE    |CHECKSUM)= '[^']*'")


class Command:
    """`skylevel` in a session of its own, what it and its workers say in a file."""

    def __init__(self, folder: Path, *arguments: object, log: str) -> None:
        self.log = folder / log
        temporary = folder / "tmp"
        temporary.mkdir(exist_ok=True)
        with self.log.open("wb") as stream:
            self.process = subprocess.Popen(
                [str(SKYLEVEL), *map(str, arguments)], env={**os.environ, "TMPDIR": str(temporary)},
                stdout=stream, stderr=stream, start_new_session=True,
            )  # fmt: skip

    def said(self) -> str:
        return self.log.read_text(encoding="utf-8", errors="replace")

    def runs(self) -> bool:
        return self.process.poll() is None

    def end(self) -> int:
        """Wait until it has ended, and all that it started: status."""
        try:
            status = self.process.wait(timeout=240)
            wait_until(lambda: not session_of(self.process.pid), seconds=ORPHANS_END_WITHIN, what="no orphan")
        finally:
            end_session(self.process.pid)
            self.process.wait()
        assert "Traceback" not in self.said(), self.said()
        return status


def session_of(session: int) -> list[int]:
    """Processes of a session that still run."""
    found = []
    for process in psutil.process_iter():
        with suppress(ProcessLookupError, psutil.NoSuchProcess):
            if os.getsid(process.pid) == session and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process.pid)
    return found


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Small exposures of both jobs; read only."""
    folder = tmp_path_factory.mktemp("chaos")
    write_exposures(folder, N_ROWS, shape=(240, 300))
    for i in range(N_RAWS):
        write_raw(folder / f"n{i}.dng", i)
    return folder


@pytest.fixture(scope="module")
def undisturbed(program: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, bytes], float]:
    """Every file of a run in which nothing happened, and how long that took."""
    folder = tmp_path_factory.mktemp("undisturbed")
    began = time.monotonic()
    command = Command(folder, "run", program, "--output", folder / "out", "--workers", 2, log="log")
    assert command.end() == 0, command.said()
    return files_of(folder / "out"), time.monotonic() - began


def files_of(output: Path) -> dict[str, bytes]:
    """The bytes of every file below a folder, but for those that tell of the time."""
    files = {str(path.relative_to(output)): path for path in sorted(output.rglob("*")) if not path.is_dir()}
    return {
        name: b"" if DIFFERS.fullmatch(name) else WRITTEN_WHEN.sub(b"", path.read_bytes())
        for name, path in files.items()
    }


@pytest.fixture(scope="module")
def theirs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[], Dask]]:
    """Gives somebody's cluster; a new one where its scheduler was killed."""
    with ExitStack() as stack:
        clusters: list[Dask] = []

        def cluster() -> Dask:
            if not clusters or clusters[-1].scheduler.poll() is not None:
                folder = tmp_path_factory.mktemp("cluster") / "dask"
                clusters.append(Dask(folder, {"DASK_SKYLEVEL__CONNECT_TIMEOUT": "10s"}, stack))
            return clusters[-1]

        yield cluster


class Chaos:
    """One round's disturbances, by a generator of its own."""

    def __init__(self, seed: str, folder: Path, duration: float) -> None:
        self.random = random.Random(seed)
        self.folder, self.duration = folder, duration
        self.killed: list[str] = []

    def disturb(self, command: Command, cluster: Dask | None) -> None:
        """Kill one to three of what works, at moments of the run's whole length."""
        for _ in range(self.random.choice((1, 1, 2, 3))):
            self._wait(command)
            victim, process = self._choose(command, cluster)
            if not command.runs() or process is None:
                return
            with suppress(psutil.NoSuchProcess):
                process.kill()
            self.killed.append(victim)
            if victim in ("client", "scheduler"):
                return

    def _wait(self, command: Command) -> None:
        """For a while, or for a number of outputs, or for the plan, and a little longer."""
        of_time = self.random.random() < 0.5
        n_written = self.random.randrange(N_ROWS + N_RAWS)
        if of_time:
            self._sleep(command, self.random.uniform(0, self.duration))
            return
        output = self.folder / "out"
        while command.runs() and len(list(output.glob("*.fits"))) < n_written:
            if n_written == 0 and (output / "program.zarr").exists():
                break
            time.sleep(0.002)
        self._sleep(command, self.random.uniform(0, 0.1))

    @staticmethod
    def _sleep(command: Command, seconds: float) -> None:
        end = time.monotonic() + seconds
        while command.runs() and time.monotonic() < end:
            time.sleep(0.002)

    def _choose(self, command: Command, cluster: Dask | None) -> tuple[str, psutil.Process | None]:
        others = ("worker", "scheduler", "scheduler") if cluster else ("worker", "worker")
        victim = self.random.choice(("client", *others))
        with suppress(psutil.NoSuchProcess):
            if victim == "worker":
                workers = workers_of(command.process) if cluster is None else children_of(cluster)
                if workers:
                    return victim, self.random.choice(workers)
            if victim == "scheduler" and cluster:
                return victim, psutil.Process(cluster.scheduler.pid)
            return "client", psutil.Process(command.process.pid)
        return victim, None


def children_of(cluster: Dask) -> list[psutil.Process]:
    """The workers that somebody's nannies started."""
    return [child for nanny in cluster.workers for child in psutil.Process(nanny.pid).children(recursive=True)]


def counts(said: str) -> Counter[str]:
    """What the final table says."""
    return Counter({key: int(n) for key, n in re.findall(r"^(done|done before|failed) +(\d+)\s*$", said, re.M)})


@pytest.mark.parametrize("number", range(ROUNDS))
def test_killed_at_random(
    number: int, program: Path, undisturbed: tuple, theirs: Callable, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    files, duration = undisturbed
    with capsys.disabled():
        print(f"\nround {number} of seed {SEED}", end=": ", flush=True)  # noqa: T201
    chaos = Chaos(f"{SEED}-{number}", tmp_path, duration)
    run = ("run", program, "--output", tmp_path / "out")
    for attempt in range(chaos.random.choice((1, 1, 2))):
        # Ten rounds meet each kind of cluster.
        cluster = theirs() if (number + attempt) % 3 == 2 else None
        where = ("--cluster", cluster.address) if cluster else ("--workers", 2)
        command = Command(tmp_path, *run, *where, log=f"log{attempt}")
        try:
            chaos.disturb(command, cluster)
        finally:
            status = command.end()
        told = counts(command.said())
        # It was killed, or said that the scheduler is gone, or did everything.
        if "failed" in told:
            assert told.total() == N_ROWS + N_RAWS, command.said()
            assert told["failed"] == 0, command.said()
        else:
            assert status == -9 or "run the same command again" in command.said(), command.said()
    with capsys.disabled():
        print("killed", ", ".join(chaos.killed) or "nobody", end=" ", flush=True)  # noqa: T201

    again = Command(tmp_path, *run, *(("--partition", "1/1") if number % 2 else ("--workers", "2")), log="last")
    assert again.end() == 0, again.said()
    told = counts(again.said())
    assert (told.total(), told["failed"]) == (N_ROWS + N_RAWS, 0), again.said()
    assert {state.state for state in program_status(tmp_path / "out")} == {"done"}
    found = files_of(tmp_path / "out")
    assert found.keys() == files.keys()
    assert [name for name in files if found[name] != files[name]] == []
    assert leftovers(tmp_path / "tmp") == []


def leftovers(temporary: Path) -> list[Path]:
    """What stands in a folder for temporary files; Dask leaves the locks by which it finds what is stale."""
    return [path for path in temporary.rglob("*") if path.is_file() and path.suffix not in (".lock", ".dirlock")]


# ---- soak


@pytest.mark.skipif(not SOAK, reason="an endurance test: make soak")
def test_soak(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Thousands of exposures while workers are killed: memory stays, every checksum holds."""
    sources = write_exposures(tmp_path / "sources", 16, shape=(64, 64), sources=0)
    (tmp_path / "in").mkdir()
    kinds = {f"s{i:05d}": sources[i % len(sources)] for i in range(SOAK)}
    for name, source in kinds.items():
        (tmp_path / "in" / f"{name}.fits").hardlink_to(source)
    generator = random.Random(SEED)
    with ExitStack() as stack:
        cluster = Dask(tmp_path / "dask", {}, stack)
        cluster.worker_pids()
        began = time.monotonic()
        run = ("run", tmp_path / "in", "--output", tmp_path / "out", "--cluster", cluster.address, "--quiet")
        command = Command(tmp_path, *run, log="log")
        samples, kills = watched(command, cluster, generator)
        assert command.end() == 0, command.said()
        seconds = time.monotonic() - began
    told = counts(command.said())
    assert (told["done"], told["failed"]) == (SOAK, 0), command.said()
    with capsys.disabled():
        print(report(samples, kills, seconds))  # noqa: T201
    assert_right(tmp_path / "out", kinds, tmp_path)
    for who, sizes in samples.items():
        early, late = halves(sizes)
        assert late < 1.15 * early + 10, f"{who} grew from {early:.0f} to {late:.0f} MB"


def watched(
    command: Command, cluster: Dask, generator: random.Random
) -> tuple[dict[str, list[float]], int]:
    """Resident MB of everybody, four times a second, while a worker is killed now and then."""
    samples: dict[str, list[float]] = {"client": [], "scheduler": [], "the larger worker": []}
    kills, following = 0, time.monotonic() + 10
    while command.runs():
        with suppress(psutil.NoSuchProcess):
            client, scheduler = (psutil.Process(p.pid) for p in (command.process, cluster.scheduler))
            workers = children_of(cluster)
            sizes = [p.memory_info().rss / 1e6 for p in (client, scheduler)]
            sizes.append(max((worker.memory_info().rss / 1e6 for worker in workers), default=0.0))
            for who, size in zip(samples, sizes, strict=True):
                samples[who].append(size)
            if workers and time.monotonic() > following:
                generator.choice(workers).kill()
                kills += 1
                following = time.monotonic() + generator.uniform(3, 12)
        time.sleep(0.25)
    return samples, kills


def halves(sizes: list[float]) -> tuple[float, float]:
    """Medians of the third and of the last eighth of what was sampled: the first is of imports and planning."""
    eighth = max(len(sizes) // 8, 1)
    return median(sizes[2 * eighth : 3 * eighth]), median(sizes[-eighth:])


def report(samples: Mapping[str, list[float]], kills: int, seconds: float) -> str:
    lines = [f"{SOAK} exposures in {seconds:.0f} s, {kills} workers killed, seed {SEED}; resident MB:"]
    for who, sizes in samples.items():
        early, late = halves(sizes)
        lines.append(f"  {who}: early {early:.0f}, at the end {late:.0f}, at the most {max(sizes):.0f}")
    return "\n" + "\n".join(lines)


def assert_right(output: Path, kinds: Mapping[str, Path], folder: Path) -> None:
    """Every stored chunk has its checksum, and every output the pixels of an undisturbed run's."""
    run = ("run", folder / "sources", "--output", folder / "alone", "--partition", "1/1")
    command = Command(folder, *run, log="log-alone")
    assert command.end() == 0, command.said()
    right = {path: image_of(folder / "alone" / f"{path.stem}_rowbgsub.fits").tobytes() for path in set(kinds.values())}
    store = ProgramStore(store_url(output))
    plan = read_plan(store)
    records = store.read_records(exposure.place for exposure in plan if exposure.place)
    assert sorted(exposure.name for exposure in plan) == sorted(kinds)
    for exposure in plan:
        store.load(store.read_estimate(exposure.place, records[exposure.place]))
        assert image_of(exposure.outputs["levelled"]).tobytes() == right[kinds[exposure.name]], exposure.name
    assert leftovers(folder / "tmp") == []
