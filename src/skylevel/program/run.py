"""Run a program: fan its exposures out over a cluster, collect what they say, and leave nothing behind unfinished."""

import logging
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from functools import partial
from itertools import chain
from os import PathLike, fspath
from pathlib import Path
from typing import Literal
from uuid import uuid4

from distributed import Client, Future, KilledWorker

from skylevel.errors import SkylevelError, StoreError
from skylevel.io.remote import is_remote, output_exists, remove_leftovers
from skylevel.io.store import FORMAT, ProgramStore
from skylevel.program.cluster import check_workers, connect, worker_memory
from skylevel.program.fan_out import fan_out
from skylevel.program.forecast import Need, forecast, require_disk, too_large
from skylevel.program.large import export_large, measure_large, require_possible
from skylevel.program.parcel import unwrap, wrap
from skylevel.program.plan import Exposure, make_plan, partition, summarize
from skylevel.program.tasks import Record, level_exposure
from skylevel.recipes import Recipe
from skylevel.version import __version__

log = logging.getLogger("skylevel")

Work = Literal["measure", "export", "nothing"]
Progress = Callable[[int, int], None]

STORE_NAME = "program.zarr"

# Enough in flight that no worker waits for the driver, few enough that the scheduler stays small.
_IN_FLIGHT_PER_THREAD = 4
_COUNT_WORKERS_EVERY = 5.0


@dataclass(slots=True)
class ProgramResult:
    """What became of a program's exposures.

    Attributes
    ----------
    output : str
        Folder or URL of the outputs and the store.
    done : list of Record
        Exposures that were worked on and have their outputs.
    failed : dict of str
        Why each other one failed, by name.
    skipped : list of str
        Exposures that were done already.
    """

    output: str
    done: list[Record] = field(default_factory=list)
    failed: dict[str, str] = field(default_factory=dict)
    skipped: list[str] = field(default_factory=list)

    @property
    def store(self) -> str:
        """Path or URL of the program store."""
        return store_url(self.output)


def run(
    inputs: str | PathLike[str] | Iterable[str | PathLike[str]],
    output: str | PathLike[str] = "skylevel-output",
    *,
    recipe: str | Recipe = "auto",
    recipes: Mapping[str, Recipe] | None = None,
    client: Client | None = None,
    cluster: str = "local",
    workers: int | None = None,
    layout: str = "full",
    keep: Sequence[str] = (),
    overwrite: bool = False,
    progress: Progress | None = None,
) -> ProgramResult:
    """Level every exposure of a program.

    Parameters
    ----------
    inputs : str, path-like or iterable of them
        Files, folders, globs, associations, ``@list.txt``, URLs.
    output : str or path-like
        Folder or URL of the outputs; the store is its ``program.zarr``.
    recipe : {"auto", "rows", "channels"} or Recipe
        What to do with each input; "auto" decides by file.
    recipes : mapping of str to Recipe, optional
        Settings by recipe name.
    client : distributed.Client, optional
        Where to run; by default a cluster is started as `cluster` says, and closed again.
    cluster : str
        ``local``, ``slurm``, or a scheduler's address.
    workers : int, optional
        Processes (local) or jobs at the most (slurm).
    layout : {"full", "primary"}
        Of the levelled FITS files.
    keep : sequence of {"segmentation", "masked", "background"}
        Further products to write.
    overwrite : bool
        Do again what is done.
    progress : callable, optional
        Called with how many exposures are finished, and of how many.

    Returns
    -------
    ProgramResult
        An exposure that cannot be levelled is in ``failed`` with its reason, and everything else is done.

    Raises
    ------
    PlanError, SettingsError
        The inputs or settings are wrong; nothing was run.
    ClusterError
        There is nowhere to run.
    """
    if isinstance(recipe, Recipe):
        recipes, recipe = {**(recipes or {}), recipe.name: recipe}, recipe.name
    given = [inputs] if isinstance(inputs, str | PathLike) else inputs
    output = fspath(output)
    plan = make_plan([fspath(path) for path in given], output, recipe=recipe, recipes=recipes, layout=layout, keep=keep)
    return run_plan(
        plan, output, client=client, cluster=cluster, workers=workers, overwrite=overwrite, progress=progress
    )


def run_plan(
    plan: Sequence[Exposure],
    output: str,
    *,
    client: Client | None = None,
    cluster: str = "local",
    workers: int | None = None,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> ProgramResult:
    """Do what is left of a plan; see `run`."""
    store, result, work, left, needs = _begin(plan, plan, output, overwrite=overwrite)
    counts = ", ".join(f"{n} {name}" for name, n in sorted(summarize(left).items())) or "nothing"
    log.info("%d exposures: %d done already, to do: %s", len(plan), len(result.skipped), counts)
    if left:
        with connected(client, cluster, workers, len(left)) as here:
            _execute(here, left, needs, work, result, store, fresh=overwrite, progress=progress)
    return result


def _begin(
    plan: Sequence[Exposure], share: Sequence[Exposure], output: str, *, overwrite: bool
) -> tuple[ProgramStore, ProgramResult, Mapping[str, Work], list[Exposure], Mapping[str, Need]]:
    """Write the plan into the store, and find what is left of a share of it, and what that needs."""
    store = ProgramStore(store_url(output))
    work: dict[str, Work] = dict.fromkeys((e.name for e in share), "measure") if overwrite else work_left(share, store)
    left = [exposure for exposure in share if work[exposure.name] != "nothing"]
    needs = forecast(left)
    require_disk(needs, output)
    store.write_plan(plan_index(_with_earlier(plan, store)))
    result = ProgramResult(output, skipped=[name for name, what in work.items() if what == "nothing"])
    return store, result, work, left, needs


def _with_earlier(plan: Sequence[Exposure], store: ProgramStore) -> list[Exposure]:
    """The plan, and what earlier runs into the same output measured beside it."""
    names = {exposure.name for exposure in plan}
    earlier = read_plan(store) if store.has_plan() else []
    kept = (exposure for exposure in earlier if exposure.name not in names and _is_measured(exposure, store))
    return sorted([*kept, *plan], key=lambda exposure: exposure.name)


def _execute(
    client: Client,
    exposures: Sequence[Exposure],
    needs: Mapping[str, Need],
    work: Mapping[str, Work],
    result: ProgramResult,
    store: ProgramStore,
    *,
    fresh: bool = False,
    progress: Progress | None = None,
) -> None:
    """Fan the exposures out, then do those that no worker can hold."""
    in_flight = _room(client)
    large = _large(exposures, needs, worker_memory(client))
    names = {exposure.name for exposure in large}
    small = [exposure for exposure in exposures if exposure.name not in names]
    submit = _submitter(client, work, store.url, fresh=fresh)
    # Closed before the client, whatever ends this: what has not begun is taken back while that can be said.
    with closing(fan_out(client, submit, small, in_flight=in_flight)) as outcomes:
        every = chain(outcomes, _run_large(client, large, work, store.url, fresh=fresh))
        _collect(every, result, store, len(exposures), progress)


def _large(exposures: Sequence[Exposure], needs: Mapping[str, Need], available: int) -> list[Exposure]:
    """The exposures that no worker can hold."""
    names = too_large(needs, available)
    large = [exposure for exposure in exposures if exposure.name in names]
    for exposure in large:
        require_possible(exposure, needs[exposure.name].memory, available)
    return large


def _run_large(
    client: Client, exposures: Sequence[Exposure], work: Mapping[str, Work], url: str, *, fresh: bool
) -> Iterator[tuple[Exposure, Record | Exception]]:
    """One after another, each with all workers."""
    for exposure in exposures:
        try:
            is_measured = work[exposure.name] == "export"
            record = None if is_measured else measure_large(client, exposure, url, fresh=fresh)
            yield exposure, client.submit(export_large, exposure, record, url, __version__, pure=False).result()
        except Exception as error:
            yield exposure, error


def export_program(
    output: str, *, cluster: str = "local", workers: int | None = None, progress: Progress | None = None
) -> ProgramResult:
    """Write the FITS files of every measured exposure again, without measuring.

    Raises
    ------
    StoreError
        No program was run into `output`.
    """
    store = ProgramStore(store_url(output))
    result = ProgramResult(output)
    measured: list[Exposure] = []
    for exposure in read_plan(store):
        if _is_measured(exposure, store):
            measured.append(exposure)
        else:
            result.failed[exposure.name] = f"{exposure.source}: not measured yet: run the program again"
    if measured:
        work: dict[str, Work] = dict.fromkeys((exposure.name for exposure in measured), "export")
        with connect(cluster, workers=workers, n_exposures=len(measured)) as client:
            _execute(client, measured, forecast(measured), work, result, store, progress=progress)
    return result


def run_partition(
    plan: Sequence[Exposure],
    output: str,
    index: int,
    count: int,
    *,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> ProgramResult:
    """Do one of `count` shares of a plan in this process, without a scheduler: an element of a job array."""
    share = partition(plan, index, count)
    store, result, work, left, _ = _begin(plan, share, output, overwrite=overwrite)
    log.info("share %d of %d: %d exposures, %d done already", index, count, len(share), len(result.skipped))
    _collect(_in_this_process(left, work, store.url, fresh=overwrite), result, store, len(left), progress)
    return result


def store_url(output: str | PathLike[str]) -> str:
    """Path or URL of the store of an output folder; absolute, as a worker may run in another folder."""
    folder = fspath(output)
    return f"{folder.rstrip('/') if is_remote(folder) else Path(folder).absolute()}/{STORE_NAME}"


def plan_index(plan: Sequence[Exposure]) -> dict[str, object]:
    """A plan as the store keeps it: its outputs are named by their files, which may move together with the store."""
    exposures = [exposure.to_dict() for exposure in plan]
    for values in exposures:
        values["outputs"] = {kind: url.rsplit("/", 1)[-1] for kind, url in values["outputs"].items()}
    return {"format": FORMAT, "skylevel_version": __version__, "exposures": exposures}


def read_plan(store: ProgramStore) -> list[Exposure]:
    """The plan that a store keeps; its outputs stand beside the store.

    Raises
    ------
    StoreError
        There is none, or it cannot be read.
    """
    folder = store.url.rsplit("/", 1)[0]
    try:
        exposures = store.read_plan()["exposures"]
        for values in exposures:
            values["outputs"] = {kind: f"{folder}/{name}" for kind, name in values["outputs"].items()}
        return [Exposure.from_dict(values) for values in exposures]
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise StoreError(f"{store.url}: its plan.json is damaged: {error}") from error


def work_left(plan: Sequence[Exposure], store: ProgramStore) -> dict[str, Work]:
    """What is to do for each exposure: measured under the same key, with its outputs there, it is done."""
    exported = store.export_keys()
    work: dict[str, Work] = {}
    for exposure in plan:
        if not _is_measured(exposure, store):
            work[exposure.name] = "measure"
        elif exported.get(exposure.name) == exposure.export_key and all(map(output_exists, exposure.outputs.values())):
            work[exposure.name] = "nothing"
        else:
            work[exposure.name] = "export"
    return work


def _is_measured(exposure: Exposure, store: ProgramStore) -> bool:
    stored = store.read_attributes(exposure.name)
    return stored is not None and stored.get("key") == exposure.key


def _room(client: Client) -> Callable[[], int]:
    """How many exposures may be in flight, by the workers there are; they are counted anew every few seconds."""
    room = _IN_FLIGHT_PER_THREAD * check_workers(client)
    counted = time.monotonic()

    def now() -> int:
        nonlocal room, counted
        if time.monotonic() - counted > _COUNT_WORKERS_EVERY:
            room = _IN_FLIGHT_PER_THREAD * max(sum(client.nthreads().values()), 1)
            counted = time.monotonic()
        return room

    return now


@contextmanager
def connected(client: Client | None, cluster: str, workers: int | None, n_exposures: int) -> Iterator[Client]:
    """The client that was given, or one to a cluster that is closed again."""
    if client is not None:
        yield client
        return
    with connect(cluster, workers=workers, n_exposures=n_exposures) as started:
        yield started


def _submitter(
    client: Client, work: Mapping[str, Work], url: str, *, fresh: bool = False
) -> Callable[[Exposure], Future]:
    """Submits an exposure's task."""
    # Keys of an earlier run into the same scheduler must not answer for this one.
    token = uuid4().hex[:8]

    def submit(exposure: Exposure) -> Future:
        call = wrap(_task(exposure, work, url, fresh=fresh))
        return client.submit(unwrap, call, key=f"level-{token}-{exposure.name}", pure=False)

    return submit


def _task(exposure: Exposure, work: Mapping[str, Work], url: str, *, fresh: bool) -> Callable[[], Record]:
    """What is left of an exposure, as a call."""
    measured = work[exposure.name] == "export"
    return partial(level_exposure, exposure, url, __version__, measured=measured, fresh=fresh)


def _in_this_process(
    exposures: Iterable[Exposure], work: Mapping[str, Work], url: str, *, fresh: bool
) -> Iterator[tuple[Exposure, Record | Exception]]:
    for exposure in exposures:
        try:
            yield exposure, _task(exposure, work, url, fresh=fresh)()
        except Exception as error:
            yield exposure, error


def _collect(
    outcomes: Iterable[tuple[Exposure, Record | Exception]],
    result: ProgramResult,
    store: ProgramStore,
    total: int,
    progress: Progress | None,
) -> None:
    """Log and keep each exposure's outcome as it comes."""
    failed_before = store.failures()
    worked: list[Exposure] = []
    for count, (exposure, outcome) in enumerate(outcomes, 1):
        if isinstance(outcome, Record):
            result.done.append(outcome)
            for when, text in outcome.steps:
                _log_at(when, logging.INFO, f"{exposure.name}: {text}")
            if exposure.name in failed_before:
                store.forget_failure(exposure.name)
        else:
            reason = _reason(exposure, outcome)
            result.failed[exposure.name] = reason
            _log_at(time.time(), logging.ERROR, f"{exposure.name}: failed: {reason}")
            _remember_failure(store, exposure.name, reason)
        worked.append(exposure)
        if progress:
            progress(count, total)
    store.remove_leftovers({exposure.name for exposure in worked})
    remove_leftovers(url for exposure in worked for url in exposure.outputs.values())


def _remember_failure(store: ProgramStore, name: str, reason: str) -> None:
    """Keep the reason for a later look; without, where the disk is full that failed the exposure."""
    try:
        store.write_failure(name, reason)
    except OSError as error:
        log.warning("%s: the reason is not kept: %s", name, error)


def _reason(exposure: Exposure, error: BaseException) -> str:
    """One line that names the file and the cause."""
    if isinstance(error, KilledWorker):
        return f"{exposure.source}: its worker died each time it was tried, the last time alone (out of memory?)"
    if isinstance(error, SkylevelError):
        cause = str(error)
    else:
        log.debug("%s", exposure.source, exc_info=error)
        cause = f"{type(error).__name__}: {error}"
    text = " ".join(cause.split())
    return text if exposure.source in text else f"{exposure.source}: {text}"


def _log_at(when: float, level: int, text: str) -> None:
    """Log a line under the time at which its step was done on the worker."""
    if log.isEnabledFor(level):
        line = log.makeRecord(log.name, level, __file__, 0, text, (), None)
        line.created = when
        log.handle(line)
