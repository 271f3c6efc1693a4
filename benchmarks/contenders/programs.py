"""Whole programs: many exposures through the program's own functions, and what they cost beside the pixels."""

import json
import time
from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

import psutil
from distributed import Client, Future

from contenders.no_op import level_nothing
from skylevel.io.store import ProgramStore
from skylevel.memory import peak_memory
from skylevel.program.cluster import connect
from skylevel.program.fan_out import fan_out
from skylevel.program.ledger import Steps
from skylevel.program.places import work_left
from skylevel.program.plan import Exposure, make_plan, plan_index, read_plan, store_url
from skylevel.program.run import Target, run_partition, run_plan
from skylevel.program.sealed import open_sealed, seal
from skylevel.program.tasks import Where
from skylevel.recipes import Rows

MB = 1e6

# Clusters that live as long as this process.
_started = ExitStack()
# As in skylevel.program.run.
IN_FLIGHT = 4 * 2


def local(folder: str, output: str, workers: str) -> Callable[[], Any]:
    """A program on a local cluster, which is started beforehand; later rounds overwrite what the first one wrote."""
    plan = make_plan([folder], output)
    client = _started.enter_context(connect("local", workers=int(workers), n_exposures=len(plan)))
    processes = [psutil.Process(pid) for pid in client.run(_pid).values()]
    held: list[float] = []

    def watch(*_: int) -> None:
        held.append(_largest(processes))

    def run() -> dict[str, Any]:
        held.clear()
        cpu, wall = _cpu(processes), time.perf_counter()
        result = run_plan(plan, output, target=Target(client=client), overwrite=True, progress=watch)
        times = {"wall": time.perf_counter() - wall, "cpu": _cpu(processes) - cpu}
        assert not result.failed, result.failed
        stages = {stage: sum(r.seconds[stage] for r in result.done) / len(plan) for stage in result.done[0].seconds}
        return times | {"held": list(held), "peak": [r.peak_mib * 1.048576 for r in result.done], "stages": stages}

    return run


def share(folder: str, output: str, index: str, count: str) -> Callable[[], Any]:
    """One share of a program in this process, without Dask: an element of a job array. Overwrites as `local` does."""
    plan = make_plan([folder], output)

    def run() -> None:
        result = run_partition(plan, output, (int(index), int(count)), overwrite=True)
        assert not result.failed, result.failed

    return run


def _pid() -> int:
    return psutil.Process().pid


def _cpu(processes: list[psutil.Process]) -> float:
    return sum(sum(p.cpu_times()[:2]) for p in processes)


def _largest(processes: list[psutil.Process]) -> float:
    return max(p.memory_info().rss for p in processes) / MB


def fan(scheduler_file: str, count: str) -> Callable[[], dict[str, float]]:
    """Exposures without pixels through `fan_out`, each a task as in a program."""

    def run() -> dict[str, float]:
        client = Client(scheduler_file=scheduler_file, set_as_default=False)
        client.wait_for_workers(2)
        exposures = [_exposure(i) for i in range(int(count))]
        cpu, wall = time.process_time(), time.perf_counter()
        finished = sum(1 for _ in fan_out(client, _submitter(client), exposures, in_flight=lambda: IN_FLIGHT))
        assert finished == len(exposures)
        wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
        return {"wall": wall, "cpu": cpu, "client_mb": peak_memory() / MB}

    return run


def _submitter(client: Client) -> Callable[[Exposure], Future]:
    def submit(exposure: Exposure) -> Future:
        call = seal(partial(level_nothing, exposure, Where("store", "version"), Steps.MEASURE | Steps.EXPORT))
        return client.submit(open_sealed, call, key=f"level-{exposure.name}", pure=False)

    return submit


def _exposure(i: int) -> Exposure:
    stem = f"jw{i:011d}_03101_00001_nrcb1_cal"
    return Exposure(
        name=stem,
        source=f"/archive/program/{stem}.fits",
        recipe=Rows(),
        outputs={"levelled": f"/archive/levelled/{stem}_rowbgsub.fits"},
        layout="full",
        identity={"name": f"{stem}.fits", "size": 117_000_000, "changed": 1_700_000_000_000_000_000},
    )


def plan_of_many(count: str) -> Callable[[], dict[str, float]]:
    """What a plan of many exposures takes in the driver's memory and in its index."""

    def run() -> dict[str, float]:
        start = time.perf_counter()
        before = psutil.Process().memory_info().rss
        plan = [_exposure(i) for i in range(int(count))]
        held = psutil.Process().memory_info().rss - before
        text = json.dumps(plan_index(plan))
        return {
            "wall": time.perf_counter() - start, "cpu": 0.0,
            "bytes_held": held / len(plan), "bytes_written": len(text) / len(plan),
        }  # fmt: skip

    return run


def tiny(folder: str, output: str) -> Callable[[], dict[str, float]]:
    """The first run of many small exposures in this process: what one costs beside its pixels."""

    def run() -> dict[str, float]:
        start = time.perf_counter()
        plan = make_plan([folder], output)
        planned = time.perf_counter() - start
        result = run_partition(plan, output, (1, 1))
        assert not result.failed, result.failed
        n = len(plan)
        store = Path(store_url(output))
        per_stage = {f"s_{k}": sum(r.seconds[k] for r in result.done) / n for k in result.done[0].seconds}
        entries = list(store.rglob("*"))
        return per_stage | {"plan": planned / n, "entries": len(entries) / n, "n": n}

    return run


def resume(folder: str, output: str) -> Callable[[], dict[str, float]]:
    """The steps of a second run when all is done."""

    def run() -> dict[str, float]:
        start = time.perf_counter()
        plan = make_plan([folder], output)
        planned = time.perf_counter()
        work = work_left(plan, ProgramStore(store_url(output)))
        found = time.perf_counter()
        assert set(work.values()) == {Steps.NOTHING}
        read_plan(ProgramStore(store_url(output)))
        return {"plan": (planned - start) / len(plan), "work": (found - planned) / len(plan)}

    return run
