"""One contender of a benchmark, in a process of its own: ``contender.py MODULE[,MODULE...] FUNCTION [ARGUMENT...]``.

The modules are imported in their order; FUNCTION of the last one prepares the contender and gives what is timed, alone
or with what cleans up after each round. Every line of standard input is a request; its answer is one line of JSON.
"""

import cProfile
import gc
import importlib
import json
import os
import resource
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any


def cpu_seconds() -> tuple[float, float]:
    """User and system time of this process and of the children it waited for."""
    usages = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(usage.ru_utime for usage in usages), sum(usage.ru_stime for usage in usages)


def peak_mb() -> float:
    """The most memory this process held: Linux's own mark, where there is one.

    `ru_maxrss` begins with what the process held that started this one, which may be more.
    """
    try:
        return int(Path("/proc/self/status").read_text().partition("VmHWM:")[2].split()[0]) * 1024 / 1e6
    except OSError:
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6


def timed(run: Callable[[], Any]) -> dict[str, float]:
    """Seconds of one round; a contender that is measured elsewhere gives its own."""
    gc.collect()
    before, wall = cpu_seconds(), time.perf_counter()
    result = run()
    wall = time.perf_counter() - wall
    user, system = (now - then for now, then in zip(cpu_seconds(), before, strict=True))
    times = {"wall": wall, "cpu": user + system, "system": system}
    return times | result if type(result) is dict else times


def shares(run: Callable[[], Any]) -> list[tuple[str, float]]:
    """Each function's own share of the time, largest first. NumPy's arithmetic counts for the function that does it."""
    profile = cProfile.Profile()
    profile.runcall(run)
    times: dict[str, float] = {}
    for entry in profile.getstats():
        times[_name(entry.code)] = times.get(_name(entry.code), 0.0) + entry.inlinetime
    total = sum(times.values())
    return sorted(((name, seconds / total) for name, seconds in times.items()), key=lambda pair: -pair[1])[:6]


def _name(code: Any) -> str:
    if isinstance(code, str):
        words = code.strip("<>").replace("built-in method ", "").split("'")
        return f"{words[3].removeprefix('numpy.')}.{words[1]}" if len(words) > 3 else words[0].strip()
    return f"{os.path.basename(code.co_filename).removesuffix('.py')}.{code.co_name}"  # noqa: PTH119


def main(modules: str, function: str, *arguments: str) -> None:
    # What a library prints must not stand among the answers.
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    module = [importlib.import_module(name) for name in modules.split(",")][-1]
    prepared = getattr(module, function)(*arguments)
    run, clean = prepared if isinstance(prepared, tuple) else (prepared, None)
    baseline = peak_mb()
    requests = {
        "run": lambda: timed(run),
        "peak": lambda: {"mb": peak_mb() - baseline, "total_mb": peak_mb()},
        "profile": lambda: shares(run),
    }
    print(json.dumps("ready"), file=answers, flush=True)
    for line in sys.stdin:
        answer = requests[line.strip()]()
        if clean and line.strip() != "peak":
            clean()
        print(json.dumps(answer), file=answers, flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
