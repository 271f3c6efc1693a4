"""Everything that is measured: writes quality.md, speed.md and scale.md beside this file.

``--quick`` for a fast, rougher pass.
"""

import argparse
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import quality
import quality_night
import scale
import speed
from racing import HERE, Contender, machine

HOW = """Written by `python benchmarks/run.py{flags}` (`make bench`), in {minutes:.1f} minutes. {machine}

{about}

How to run: `make bench`, or `python benchmarks/run.py --quick` for fewer rounds, with `--only quality`, `--only speed`
or `--only scale` for one page. Nothing here passes or fails: these are reports, and a limit that is missed says so.
"""

QUALITY = """How far levelled frames are from the truth, on scenes that anyone can draw again; the other tools are what
pip installs. `SKYLEVEL_BENCH_JWST_PYTHON` names a Python that has the package jwst, where this one has not."""

SPEED = """One thread: OMP, OpenBLAS and MKL are held to one. Every contender is a process of its own, prepared before
it is timed, and they run in turns (A B A B), so that what else the machine does falls on all of them; times are medians
of the rounds, CPU before wall time, and a limit is kept only where both ratios keep it. Peak memory is the largest a
process ever held, less what it held when prepared with its input loaded. "Where the time goes" is each function's own
share in a profiled round; NumPy's arithmetic counts for the function that does it.
`SKYLEVEL_BENCH_JWST_PYTHON` names a Python that has the package jwst, where this one has not."""

SCALE = """Times of whole programs are wall times; where other work shares the machine, the same work done by plain
processes stands beside them. Every scheduler, worker and client listens on the loopback alone."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="fewer rounds and smaller programs")
    parser.add_argument("--only", choices=("quality", "speed", "scale"))
    chosen = parser.parse_args()
    if chosen.only in (None, "quality"):
        write_page("quality", partial(quality_tables, quick=chosen.quick), QUALITY, chosen)
    if chosen.only == "quality":
        return
    with tempfile.TemporaryDirectory(prefix="skylevel-bench-") as name:
        bench = speed.Bench(Path(name), chosen.quick)
        with Contender("contenders.inputs", "write", name, "small" if chosen.quick else "all") as inputs:
            inputs.run()
        for page, module, about in (("speed", speed, SPEED), ("scale", scale, SCALE)):
            if chosen.only in (None, page):
                write_page(page, partial(module.report, bench), about, chosen)


def quality_tables(*, quick: bool) -> str:
    """Rows, and channels where their measuring is there."""
    parts = [module.tables(quick=quick) for module in (quality, quality_night) if hasattr(module, "tables")]
    return "\n\n".join(parts)


def write_page(page: str, report: Callable[[], str], about: str, chosen: argparse.Namespace) -> None:
    start = time.monotonic()
    text = report()
    flags = (" --quick" if chosen.quick else "") + (f" --only {chosen.only}" if chosen.only else "")
    minutes = (time.monotonic() - start) / 60
    head = HOW.format(flags=flags, minutes=minutes, machine=machine(), about=about)
    (HERE / f"{page}.md").write_text(f"# {page.capitalize()}\n\n{head}\n{text}\n")


if __name__ == "__main__":
    main()
