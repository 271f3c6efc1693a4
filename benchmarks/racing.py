"""Contenders in processes of their own, run in turns; and the tables of what came out."""

import importlib.util
import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from statistics import median
from typing import Any, Self

HERE = Path(__file__).resolve().parent
CONTENDER = HERE / "contender.py"

# One thread each; the contenders' modules and those of the tests can be imported.
ENVIRONMENT = {
    **os.environ,
    "OMP_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
    "PYTHONPATH": os.pathsep.join(filter(None, [os.environ.get("PYTHONPATH"), str(HERE), str(HERE.parent / "tests")])),
}
PACKAGES = (
    "numpy", "scipy", "astropy", "photutils", "xarray", "dask", "distributed", "zarr", "rawpy", "sep", "bottleneck",
)  # fmt: skip


class Contender:
    """A process that prepares a function and runs it when asked; see `contender`.

    Of NumPy's names of what processors can do, it does without those in `without`.
    """

    def __init__(
        self, modules: str, function: str, *arguments: object, python: str = sys.executable, without: str = ""
    ) -> None:
        command = [python, str(CONTENDER), modules, function, *map(str, arguments)]
        self.name = f"{modules} {function}"
        env = ENVIRONMENT | ({"NPY_DISABLE_CPU_FEATURES": without} if without else {})
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=env)
        self._is_ready = False

    def ready(self) -> None:
        """Wait until it is prepared: several prepare themselves at once."""
        if not self._is_ready:
            self._is_ready = True
            self.answer()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.stdin.close()
        self._process.wait()

    def ask(self, request: str) -> None:
        self.ready()
        self._process.stdin.write(f"{request}\n")
        self._process.stdin.flush()

    def answer(self) -> Any:
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError(f"{self.name} ended with status {self._process.wait()}")
        return json.loads(line)

    def run(self) -> dict[str, Any]:
        self.ask("run")
        return self.answer()

    def peak(self) -> dict[str, float]:
        """MB that the rounds so far took above what the prepared process held, and in all."""
        self.ask("peak")
        return self.answer()

    def profile(self) -> str:
        """Where the time goes, in words."""
        self.ask("profile")
        return ", ".join(f"`{name}` {100 * share:.0f} %" for name, share in self.answer())


class Command:
    """A command that is started anew in every round."""

    def __init__(self, *command: object, clean: Callable[[], object] | None = None) -> None:
        self._command = [str(word) for word in command]
        self._clean = clean

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def ready(self) -> None:
        """It starts when it is run."""

    def run(self) -> dict[str, Any]:
        start = time.perf_counter()
        process = subprocess.Popen(self._command, stdout=subprocess.DEVNULL, env=ENVIRONMENT)
        _, status, usage = os.wait4(process.pid, 0)
        wall = time.perf_counter() - start
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode:
            raise RuntimeError(f"{' '.join(self._command)} ended with status {process.returncode}")
        if self._clean:
            self._clean()
        return {"wall": wall, "cpu": usage.ru_utime + usage.ru_stime, "system": usage.ru_stime}


@dataclass(frozen=True)
class Times:
    """Median seconds of a contender's rounds."""

    wall: float
    cpu: float
    system: float

    def __add__(self, other: "Times") -> "Times":
        return Times(self.wall + other.wall, self.cpu + other.cpu, self.system + other.system)

    def __rmul__(self, factor: float) -> "Times":
        return Times(factor * self.wall, factor * self.cpu, factor * self.system)


def race(
    contenders: Sequence[Contender | Command], rounds: int, *, slow: Sequence[Contender] = (), settle: bool = False
) -> list[Times]:
    """Run contenders in turns, A B A B, after one round of each, but of the `slow` ones, that does not count.

    With `settle`, two rounds at each turn, the second of which counts.
    """
    for contender in contenders:
        contender.ready()
    for contender in contenders:
        if contender not in slow:
            contender.run()
    seen = [[[contender.run() for _ in range(1 + settle)][-1] for contender in contenders] for _ in range(rounds)]
    keys = ("wall", "cpu", "system")
    return [Times(*(median(r[key] for r in results) for key in keys)) for results in zip(*seen, strict=True)]


def seconds(value: float) -> str:
    return f"{value:.2f} s" if value >= 1 else f"{1e3 * value:.0f} ms" if value >= 0.02 else f"{1e3 * value:.1f} ms"


def both(times: Times) -> str:
    return f"{seconds(times.cpu)} / {seconds(times.wall)}"


def verdict(cpu: float, wall: float, limit: float) -> str:
    """Whether ratios keep a limit; "missed" where one of the two does not."""
    ratio = f"CPU {cpu:.3f}, wall {wall:.3f}"
    if max(cpu, wall) <= limit:
        return f"{ratio}: met"
    return f"{ratio}: **missed**" + (" (CPU alone keeps it)" if cpu <= limit else "")


def versus(what: str, ours: Times, against: str, theirs: Times, limit: float | None, words: str = "") -> list[str]:
    """One row of a table of comparisons; a limit in `words` that speaks of CPU is held to CPU alone."""
    cpu, wall = ours.cpu / theirs.cpu, ours.wall / theirs.wall
    measured = f"CPU {cpu:.3f}, wall {wall:.3f}"
    if "CPU" in words:
        measured += f": {'met' if cpu < limit else '**missed**'}"
    elif limit:
        measured = verdict(cpu, wall, limit)
    bound = words or (f"<= {limit:.3g}" if limit else "none")
    return [what, both(ours), against, both(theirs), bound, measured]


COMPARED = ("measured", "CPU / wall", "against", "CPU / wall", "limit", "ratio")


def table(header: Iterable[str], rows: Iterable[Sequence[str]]) -> str:
    header = list(header)
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def machine() -> str:
    """What the numbers were measured on, without saying whose it is."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    versions = ", ".join(f"{name} {_version(name)}" for name in PACKAGES)
    load = ", ".join(f"{value:.2f}" for value in os.getloadavg())
    return (
        f"Machine: {_cpu_model()}, {len(os.sched_getaffinity(0))} cores, {memory:.0f} GiB; "
        f"{platform.system()} {platform.machine()}, Python {platform.python_version()}.\n"
        f"Load of the machine over 1, 5 and 15 minutes when this was written: {load}.\n"
        f"Versions: skylevel {_version('skylevel')}, {versions}."
    )


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "(not installed)"


def _cpu_model() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    found = {line.split(":")[0].strip(): line.split(":")[1].strip() for line in lines if line.count(":") == 1}
    if "model name" not in found:
        return platform.processor() or "unknown processor"
    family = f"family {found['cpu family']}, model {found['model']}" if "cpu family" in found else ""
    return f"{found['model name']} ({family})" if family else found["model name"]


def importable(name: str) -> bool:
    return importlib.util.find_spec(name) is not None
