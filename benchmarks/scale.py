"""How a program grows: workers, memory, many exposures, running again; and what saturates first. Writes scale.md."""

import math
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from shutil import disk_usage, rmtree
from statistics import median
from typing import Any

import psutil
from racing import ENVIRONMENT, Command, Contender, seconds, table
from speed import Bench

from skylevel.program.cluster import LOCAL_SETTINGS, SCHEDULER_SETTINGS

# A program's own clusters have these; in the form in which Dask takes them from the environment.
SETTINGS = {
    f"DASK_{key.replace('.', '__').replace('-', '_').upper()}": str(value)
    for key, value in (SCHEDULER_SETTINGS | LOCAL_SETTINGS).items()
}
MILLION = 1_000_000
# An exposure's outputs.
OUTPUT_BYTES = 130e6
IN_MEMORY = Path("/dev/shm")


@dataclass(frozen=True)
class Costs:
    """What one exposure takes of each thing that all exposures share, and of a worker; seconds unless said."""

    worker: float
    scheduler: float
    client: float
    wall: float
    plan: float
    work_left: float
    bytes_held: float
    bytes_written: float
    entries: float


def report(bench: Bench) -> str:
    print("scale: two workers", flush=True)
    programs, worker = two_workers(bench)
    print("scale: many exposures", flush=True)
    many, fanned = many_exposures(bench)
    print("scale: running again", flush=True)
    again, kept = running_again(bench)
    costs = Costs(worker=worker, **fanned, **kept)
    return "\n\n".join([programs, many, again, predicted(costs)])


def met(kept: bool) -> str:
    return "met" if kept else "**missed**"


# ---- two workers


@dataclass(frozen=True)
class Scaling:
    """A program on one and on two workers, then on one and two plain processes; medians of some rounds."""

    place: str
    count: int
    first: tuple[dict[str, Any], ...]
    last: tuple[dict[str, Any], ...]
    wall: tuple[float, float]
    cpu: tuple[float, float]
    plain: tuple[float, float]

    @property
    def ratio(self) -> float:
        return self.wall[1] / (self.wall[0] / 2)

    @property
    def plain_ratio(self) -> float:
        return self.plain[1] / (self.plain[0] / 2)

    def lines(self) -> list[list[str]]:
        limits = ["", "", "<= 1.15", f"{self.ratio:.2f}: {met(self.ratio <= 1.15)}"]
        shown = [
            ["one worker", self.wall[0], f"{self.cpu[0] / self.count:.3f} s", *limits[:2]],
            ["two workers", self.wall[1], f"{self.cpu[1] / self.count:.3f} s", *limits[2:]],
            ["one plain process", self.plain[0], "", "", ""],
            ["two plain processes", self.plain[1], "", "what the machine gives", f"{self.plain_ratio:.2f}"],
        ]
        return [[self.place, who, f"{wall:.1f} s", f"{self.count / wall:.2f}", *rest] for who, wall, *rest in shown]


def two_workers(bench: Bench) -> tuple[str, float]:
    """The page's section, and a worker's CPU seconds for one exposure."""
    count, rounds = _count_that_fits(bench), 2 if bench.quick else 3
    sources = bench.path("full")
    with Contender("contenders.tiny_inputs", "links", bench.path("program"), sources, count) as links:
        links.run()
    measured = [_scaling("disk", sources, bench.folder, count, rounds)]
    if not bench.quick and psutil.virtual_memory().available > 4 * OUTPUT_BYTES * count and IN_MEMORY.is_dir():
        with tempfile.TemporaryDirectory(prefix="skylevel-bench-", dir=IN_MEMORY) as folder:
            measured.append(_scaling("memory", sources, Path(folder), count, rounds))
    on_disk, best = measured[0], measured[-1]
    header = (
        "outputs on", "where", "wall", "exposures/s", "CPU of workers an exposure", "limit", "time over half of one's",
    )  # fmt: skip
    text = f"""## A program on one and two workers of this machine

{count} full-frame `_cal` (117 MB each, links to three files), each read, measured, stored and exported with all its
HDUs; the clusters are started beforehand, one program of each does not count, then they alternate ({rounds} each),
medians. Every program overwrites what the one before wrote. The plain processes run the same program with
`--partition`'s function, one or two shares, without Dask: what the machine itself gives. A disk's writing back goes on
beside the programs, and takes from two workers what one leaves free; in memory (a tmpfs) it does not.

{table(header, [line for scaling in measured for line in scaling.lines()])}

Seconds of an exposure by stage, one worker: {_stages(best.last[0])}; two workers: {_stages(best.last[1])}.

{_memory(*on_disk.first, on_disk.last[0], 1 + rounds)}

What limits it now: of the ratio of {best.ratio:.2f}, {best.plain_ratio:.2f} is the machine's own: memory bus, disk and
what else runs. The rest is the driver and the scheduler, which have no core of their own here, reading the headers
before the first exposure begins, and the last exposure, which one worker waits for. CPU of an exposure grows by
{100 * (best.cpu[1] / best.cpu[0] - 1):.0f} % beside another. What the next factor would take: writing less;
{0.117 * count:.1f} GB were read and as much written."""
    return text, best.cpu[0] / count


def _scaling(place: str, sources: str, folder: Path, count: int, rounds: int) -> Scaling:
    outputs = [folder / name for name in ("one", "two")]
    with (
        Contender("contenders.programs", "local", sources, outputs[0], 1) as one,
        Contender("contenders.programs", "local", sources, outputs[1], 2) as two,
    ):
        # The first program of a worker imports skylevel: it shows in memory, not in time.
        first = (one.run(), two.run())
        runs = [(one.run(), two.run()) for _ in range(rounds)]
    for output in outputs:
        rmtree(output)
    walls, cpus = ([median(run[k][of] for run in runs) for k in (0, 1)] for of in ("wall", "cpu"))
    plain = [_plain_processes(sources, folder / f"plain{n}", n, rounds) for n in (1, 2)]
    return Scaling(place, count, first, runs[-1], tuple(walls), tuple(cpus), tuple(plain))


def _count_that_fits(bench: Bench) -> int:
    """24, or 8 for a quick pass, but no more than half of the free disk holds twice."""
    wanted = 8 if bench.quick else 24
    return max(4, min(wanted, int(disk_usage(bench.folder).free / 4 / OUTPUT_BYTES)))


def _plain_processes(sources: str, output: Path, count: int, rounds: int) -> float:
    """Median wall time of a program in `count` processes that know nothing of each other."""
    shares = [Contender("contenders.programs", "share", sources, output, i + 1, count) for i in range(count)]
    walls = []
    for _ in range(1 + rounds):
        start = time.perf_counter()
        for share in shares:
            share.ask("run")
        walls.append(max(start + share.answer()["wall"] for share in shares) - start)
    for share in shares:
        share.__exit__()
    rmtree(output)
    # The first one writes where nothing stands yet.
    return median(walls[1:])


def _stages(run: dict[str, Any]) -> str:
    return ", ".join(f"{name} {seconds(value)}" for name, value in run["stages"].items())


def _memory(one: dict[str, Any], two: dict[str, Any], last: dict[str, Any], programs: int) -> str:
    lines = []
    for name, run in (("one worker", one), ("two workers, the larger", two)):
        held, peak = run["held"], run["peak"]
        fifth = min(4, len(held) - 1)
        lines.append(
            [name, f"{held[fifth]:.0f} MB", f"{max(held[-3:]):.0f} MB", f"{peak[fifth]:.0f} MB", f"{max(peak):.0f} MB"]
        )
    header = ("first program", "held after the 5th", "held at the end", "peak after the 5th", "peak at the end")
    return f"""Memory of a worker (resident, sampled as each exposure is done; peaks from the records):

{table(header, lines)}

The one worker holds {last["held"][-1]:.0f} MB after {programs} programs, {programs * len(one["held"])} exposures."""


# ---- many exposures


def many_exposures(bench: Bench) -> tuple[str, dict[str, float]]:
    """The page's section, and the shared costs of one exposure."""
    count = 2_000 if bench.quick else 20_000
    with _cluster(bench.folder) as (file, scheduler, workers), _watching(scheduler) as sizes:
        with Contender("contenders.programs", "fan", file, count) as client:
            cpu, spent = _cpu([scheduler]), _cpu(workers)
            done = client.run()
        cpu, spent = _cpu([scheduler]) - cpu, _cpu(workers) - spent
    per, largest = done["wall"] / count, max(sizes)
    lines = [
        ["an exposure", f"{1e3 * per:.2f} ms", "< 3 ms", met(per < 3e-3)],
        ["scheduler's memory: at first, with the first tasks, at the most",
         f"{sizes[0]:.0f}, {_with_tasks(sizes):.0f}, {largest:.0f} MB", "< 150 MB", met(largest < 150)],
        ["client's memory at the most", f"{done['client_mb']:.0f} MB", "< 300 MB", met(done["client_mb"] < 300)],
        ["CPU of the scheduler, an exposure", f"{1e3 * cpu / count:.2f} ms", "", ""],
        ["CPU of the client, an exposure", f"{1e3 * done['cpu'] / count:.2f} ms", "", ""],
        ["CPU of the two workers, an exposure", f"{1e3 * spent / count:.2f} ms", "", ""],
    ]  # fmt: skip
    text = f"""## Exposures without pixels

{count:,} through `skylevel.program.fan_out`, with 8 in flight, over a scheduler (dashboard on) and two workers in
processes of their own, and a client in another: what Dask itself costs. Four processes share this machine's two cores
here, so an exposure takes longer than the scheduler's own time.

{table(("measured", "result", "limit", ""), lines)}

What limits it now: Dask's messages, some for each task whatever it does. Tasks travel as bytes that only the worker
opens, so that the scheduler, which unpickles what it is handed, imports nothing of what skylevel imports. What the next
factor would take: several exposures in a task, at the price of losing several when a worker dies."""
    return text, {"scheduler": cpu / count, "client": done["cpu"] / count, "wall": per}


def _with_tasks(sizes: list[float]) -> float:
    """Two seconds after the largest step upwards: the first tasks have come."""
    steps = [after - before for before, after in pairwise(sizes)]
    return sizes[min(steps.index(max(steps)) + 10, len(sizes) - 1)]


@contextmanager
def _cluster(folder: Path) -> Iterator[tuple[str, psutil.Process, list[psutil.Process]]]:
    """A scheduler and two workers on the loopback; gives the file that names the scheduler, and the processes."""
    file = folder / "scheduler.json"
    file.unlink(missing_ok=True)
    dask = [sys.executable, "-m", "dask"]
    quiet: dict[str, Any] = {"env": ENVIRONMENT | SETTINGS, "stderr": subprocess.DEVNULL, "cwd": folder}
    local = ["--host", "127.0.0.1", "--dashboard-address", "127.0.0.1:0", "--scheduler-file", str(file)]
    scheduler = subprocess.Popen([*dask, "scheduler", "--port", "0", *local], **quiet)
    workers = []
    try:
        while not file.exists() or not file.read_text().endswith("}"):
            time.sleep(0.1)
        workers = [subprocess.Popen([*dask, "worker", "--nthreads", "1", *local], **quiet) for _ in range(2)]
        while not all(_children(worker) for worker in workers):
            time.sleep(0.1)
        yield str(file), psutil.Process(scheduler.pid), [child for worker in workers for child in _children(worker)]
    finally:
        for process in (*workers, scheduler):
            process.terminate()
        for process in (*workers, scheduler):
            process.wait()


def _children(nanny: subprocess.Popen[bytes]) -> list[psutil.Process]:
    return psutil.Process(nanny.pid).children(recursive=True)


def _cpu(processes: list[psutil.Process]) -> float:
    return sum(sum(process.cpu_times()[:2]) for process in processes)


@contextmanager
def _watching(process: psutil.Process) -> Iterator[list[float]]:
    """The process's resident memory in MB, five times a second."""
    sizes: list[float] = []
    over = threading.Event()

    def watch() -> None:
        while not over.wait(0.2):
            sizes.append(process.memory_info().rss / 1e6)

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield sizes
    finally:
        over.set()
        thread.join()


# ---- running again


def running_again(bench: Bench) -> tuple[str, dict[str, float]]:
    """The page's section, and what one exposure costs in the plan and the store."""
    count = 200 if bench.quick else 1_000
    sources, output = bench.path("tiny"), bench.path("tiny-out")
    with Contender("contenders.tiny_inputs", "tiny", sources, count) as links:
        links.run()
    with Contender("contenders.programs", "tiny", sources, output) as first:
        made = first.run()
    with Contender("contenders.programs", "resume", sources, output) as second:
        parts = second.run()
    skylevel = Path(sys.executable).with_name("skylevel")
    runs = [Command(skylevel, "run", sources, "--output", output, "--quiet").run() for _ in range(3)]
    again = median(run["wall"] for run in runs)
    with Contender("contenders.programs", "plan_of_many", 100_000) as many:
        plan = many.run()
    per_group = ", ".join(f"{name[2:]} {seconds(made[name])}" for name in made if name.startswith("s_"))
    text = f"""## Running again when all is done

{count:,} exposures of 64 x 64 pixels, so that only what surrounds the pixels counts.

- The first run, one process: {seconds(made["wall"] / count)} an exposure ({per_group}).
- The same command again, `skylevel run` in a fresh process: {again:.2f} s (limit: seconds), of which planning
  {seconds(parts["plan"] * count)} and reading what is done {seconds(parts["work"] * count)}.
- Files and folders in the store: {made["entries"]:.1f} an exposure, and one FITS file beside it.
- The driver's plan: {plan["bytes_held"]:.0f} bytes of memory an exposure, {plan["bytes_written"]:.0f} bytes in
  `plan.json`, written whole at every start.

What limits it now: a small file's reads, one after the other: an exposure's group, its chunks' presence, its record of
export, its outputs. What the next factor would take: reading them with a few threads, which helps most where each
costs a network's round trip; then the driver's index of what is done, kept at the end of each run."""
    kept = {
        "plan": parts["plan"], "work_left": parts["work"], "entries": made["entries"],
        "bytes_held": plan["bytes_held"], "bytes_written": plan["bytes_written"],
    }  # fmt: skip
    return text, kept


# ---- what saturates first


def predicted(costs: Costs) -> str:
    """From the costs above, for workers like this machine's."""
    shared = max(costs.scheduler, costs.client)
    lines = [_predicted(costs, workers, shared) for workers in (2, 100, 1000)]
    header = (
        "workers", "exposures/s they ask for", "scheduler's load", "client's load", "file system: read and written",
        "1,000,000 exposures", "what saturates first in Dask",
    )  # fmt: skip
    feeds = 1 / shared * costs.worker
    start = MILLION * (costs.plan + costs.work_left)
    return f"""## What this predicts

For full-frame `_cal` exposures of {seconds(costs.worker)} of CPU on a worker, a scheduler of
{1e3 * costs.scheduler:.2f} ms and a client of {1e3 * costs.client:.2f} ms of CPU an exposure, each on a core of its
own. Predicted, not run: no more than two workers were measured. The file system's part is for tasks that never wait
for it, 234 MB read and written an exposure.

{table(header, lines)}

- One scheduler and one client feed about {math.floor(feeds / 10) * 10:.0f} workers of such exposures, at
  {1 / shared:.0f} exposures/s; where an exposure takes ten times as long (raws, mosaics, slow file systems), ten times
  as many.
- The file system is asked for {234 * 1 / costs.worker:.0f} MB/s by each worker, read and written together. A shared one
  of 10 GB/s is full at about {10_000 / (234 / costs.worker):.0f} workers: in practice it saturates before Dask does.
- A million exposures in one plan: {MILLION * costs.bytes_held / 1e9:.1f} GB of the driver's memory and a `plan.json`
  of {MILLION * costs.bytes_written / 1e9:.1f} GB. Planning and reading what is done take {start / 60:.0f} minutes
  before the first exposure on a local disk, all of it in one process. The store holds
  {MILLION * costs.entries / 1e6:.0f} million files and folders, with a million entries in one folder.

What to do then: split the inputs into programs of some ten thousand exposures each (an observation or a night), with
outputs of their own, and run each as a job array, `skylevel run ... --partition I/N`: no scheduler and no client, each
element plans and skips by itself. Note that every element plans the whole program and reads the store for its own
share: with N elements, planning is paid N times."""


def _predicted(costs: Costs, workers: int, shared: float) -> list[str]:
    asked = workers / costs.worker
    rate = min(asked, 1 / shared)
    loads = {"scheduler": asked * costs.scheduler, "client": asked * costs.client}
    name, load = max(loads.items(), key=lambda pair: pair[1])
    first = f"the {name}, at {rate:.0f} exposures/s" if load > 1 else "the workers"
    hours = MILLION / rate / 3600
    return [
        str(workers), f"{asked:.0f}", *(f"{100 * value:.0f} %" for value in loads.values()),
        f"{asked * 0.234:.1f} GB/s", f"{hours:.1f} h" if hours < 48 else f"{hours / 24:.0f} days", first,
    ]  # fmt: skip
