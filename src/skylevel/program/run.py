"""Run a program: plan, measure, combine, export; collect what tasks say, and leave nothing behind unfinished."""

import logging
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager, nullcontext
from dataclasses import dataclass, field
from functools import partial
from os import PathLike, fspath
from typing import TYPE_CHECKING, Any, TypedDict, Unpack

from skylevel.errors import PlanError, SettingsError, SkylevelError, StoreError, require_cluster
from skylevel.html import table
from skylevel.io.lock import Lock, Share
from skylevel.io.names import number_of, printable
from skylevel.io.remote import remove_leftovers
from skylevel.io.store import ProgramStore
from skylevel.io.urls import without_secrets
from skylevel.jobs import job_of
from skylevel.memory import process_memory
from skylevel.program.associations import write_associations
from skylevel.program.forecast import Need, cautions, forecast, impossible, own_memory, require_disk, too_large
from skylevel.program.ledger import Group, Ledger, Steps
from skylevel.program.notebook_bar import NotebookBar, notebook_bar
from skylevel.program.own_worker import OwnWorker
from skylevel.program.places import settle, work_left
from skylevel.program.plan import Exposure, RecipeChoice, make_plan, partition, read_plan, store_url, summarize
from skylevel.program.tasks import Record
from skylevel.program.verify import damage_of_store
from skylevel.program.view import describe_program
from skylevel.program.workers import OneByOne, Outcome, Workers

if TYPE_CHECKING:
    from distributed import Client

log = logging.getLogger("skylevel")

Progress = Callable[[int, int], None]


class RunOptions(TypedDict, total=False):
    """Options of `run`, which explains them."""

    layout: str
    keep: Sequence[str]
    overwrite: bool
    recursive: bool
    again: bool
    verify: bool
    progress: Progress | None


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
    advice : list of str
        What their jobs suggest for those that were worked on, by what was measured.
    """

    output: str
    done: list[Record] = field(default_factory=list)
    failed: dict[str, str] = field(default_factory=dict)
    skipped: list[str] = field(default_factory=list)
    advice: list[str] = field(default_factory=list)

    @property
    def store(self) -> str:
        """Path or URL of the program store."""
        return store_url(self.output)

    def _repr_html_(self) -> str:
        """Return a table of the exposures for a notebook: those that failed first, with their reasons."""
        rows = [(name, "failed", reason) for name, reason in self.failed.items()]
        rows += [(record.name, "done", "") for record in self.done]
        rows += [(name, "done before", "") for name in self.skipped]
        count = f"{len(self.done)} done, {len(self.skipped)} done before, {len(self.failed)} failed"
        return table(f"{self.output}: {count}", ("exposure", "state", "reason"), rows)


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """Where to run: a client that is connected, or a cluster to start or connect to, with so many workers.

    One exposure that fits into memory is done by `own`, where that is given, instead of a cluster of this machine. In
    the command's own process (`own_process`) workers are made ready in a way that other programs might be surprised by.
    """

    client: "Client | None" = None
    cluster: str = "local"
    workers: int | None = None
    own: OwnWorker | None = None
    own_process: bool = False

    def __post_init__(self) -> None:
        """Refuse a cluster that is none, before a run begins."""
        if self.client is None:
            require_cluster(self.cluster)

    def get_ready(self, needs: Mapping[str, Need]) -> None:
        """Begin to make ready whoever will do exposures with such needs, if that can be begun."""
        if self.own and self._does_alone(needs):
            self.own.get_ready()

    @contextmanager
    def work(self, url: str, exposures: Sequence[Exposure], needs: Mapping[str, Need]) -> Iterator[Workers]:
        """Give who does exposures of the store at a URL; a cluster that is started for it is closed again."""
        if self.own and self._does_alone(needs):
            log.info("1 worker on this machine")
            yield OneByOne(url, {}, partial(self.own.call, memory=own_memory()))
            return
        # One exposure needs no cluster, and to import one takes as long as to level it.
        from skylevel.program.cluster import connect  # noqa: PLC0415
        from skylevel.program.on_cluster import ClusterWorkers  # noqa: PLC0415

        given = nullcontext(self.client) if self.client is not None else None
        start = partial(connect, self.cluster, workers=self.workers, own_process=self.own_process)
        with given or start(n_exposures=len(exposures)) as client:
            yield ClusterWorkers(client, url, exposures, needs)

    def _does_alone(self, needs: Mapping[str, Need]) -> bool:
        is_here = self.client is None and self.cluster == "local"
        return is_here and len(needs) == 1 and not too_large(needs, own_memory())


def run(
    inputs: str | PathLike[str] | Iterable[str | PathLike[str]],
    output: str | PathLike[str] = "skylevel-output",
    *,
    recipe: RecipeChoice = "auto",
    client: "Client | None" = None,
    cluster: str = "local",
    workers: int | None = None,
    **options: Unpack[RunOptions],
) -> ProgramResult:
    """Level every exposure of a program.

    Parameters
    ----------
    inputs : str, path-like or iterable of them
        Files, folders, globs, associations, ``@list.txt``, URLs.
    output : str or path-like
        Folder or URL of the outputs; the store is its ``program.zarr``.
    recipe : {"auto", "rows", "channels"}, Recipe or iterable of Recipe
        What to do with each input. "auto" decides by kind of file; so do several recipes, which also give settings. A
        single one is for every input.
    client : distributed.Client, optional
        Where to run; by default a cluster is started as `cluster` says, and closed again.
    cluster : str
        ``local``, ``slurm``, or a scheduler's address.
    workers : int, optional
        Processes (local) or jobs at the most (slurm).
    layout : {"full", "primary"}
        Of the levelled FITS files; "full" by default.
    keep : sequence of {"segmentation", "masked", "background"}
        Further products to write; none by default.
    overwrite : bool
        Do again what is done; False by default.
    recursive : bool
        Look into the folders of a folder too; False by default.
    again : bool
        Level also what skylevel or another tool levelled before; False by default.
    verify : bool
        Look at the contents of what is done, and do again what is damaged; False by default.
    progress : callable, optional
        Called with how many exposures are finished, and of how many. By default a bar, where this runs in a notebook.

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
    if unknown := options.keys() - RunOptions.__annotations__.keys():
        raise SettingsError(f"unknown option {sorted(unknown)[0]!r}; known: {', '.join(RunOptions.__annotations__)}")
    target = Target(client=client, cluster=cluster, workers=workers)
    given = [inputs] if isinstance(inputs, str | PathLike) else inputs
    output = fspath(output)
    paths = [fspath(path) for path in given]
    plan = make_plan(
        paths,
        output,
        recipe=recipe,
        layout=options.get("layout", "full"),
        keep=options.get("keep", ()),
        recursive=options.get("recursive", False),
        again=options.get("again", False),
    )
    progress = options.get("progress") or notebook_bar()
    overwrite, verify = options.get("overwrite", False), options.get("verify", False)
    result = run_plan(plan, output, target=target, overwrite=overwrite, verify=verify, progress=progress)
    write_associations(paths, plan, output, result.failed)
    return result


def run_plan(
    plan: Sequence[Exposure],
    output: str,
    *,
    target: Target | None = None,
    overwrite: bool = False,
    verify: bool = False,
    progress: Progress | None = None,
) -> ProgramResult:
    """Do what is left of a plan; see `run`."""
    target = target or Target()
    with _begun(plan, output, overwrite=overwrite, verify=verify, get_ready=target.get_ready) as session:
        left, skipped = session.left(), session.result.skipped
        counts = ", ".join(f"{n} {name}" for name, n in sorted(summarize(left).items())) or "nothing"
        log.info("%s: %d done already, to do: %s", number_of(len(plan), "exposure"), len(skipped), counts)
        if left:
            with target.work(session.store.url, left, session.needs) as workers:
                if isinstance(progress, NotebookBar):
                    progress.dashboard, progress.failed = workers.dashboard, session.result.failed
                _execute(session, workers, progress)
        _finish(session)
    return session.result


def run_partition(
    plan: Sequence[Exposure],
    output: str,
    share: Share,
    *,
    overwrite: bool = False,
    verify: bool = False,
    progress: Progress | None = None,
) -> ProgramResult:
    """Do the I-th of N shares of a plan in this process, without a scheduler: an element of a job array.

    What is combined over shares is done by whichever share is the last to have measured its own.
    """
    with _begun(plan, output, share, overwrite=overwrite, verify=verify) as session:
        left, skipped = session.left(), session.result.skipped
        count = number_of(len(left) + len(skipped), "exposure")
        log.info("share %d of %d: %s, %d done already", *share, count, len(skipped))
        if left:
            refused = impossible(left, session.needs, process_memory(), in_blocks=False)
            _execute(session, OneByOne(session.store.url, refused), progress)
        _finish(session)
    return session.result


def export_program(
    output: str, *, target: Target | None = None, progress: Progress | None = None
) -> ProgramResult:
    """Write the FITS files of every measured exposure again, without measuring.

    Raises
    ------
    StoreError
        No program was run into `output`.
    """
    store = ProgramStore(store_url(output))
    # Before a store is looked for that may not be there.
    read_plan(store)
    with store.reserved() as lock:
        return _export(store, lock, output, target or Target(), progress)


def _export(
    store: ProgramStore, lock: Lock, output: str, target: Target, progress: Progress | None
) -> ProgramResult:
    plan, result = read_plan(store), ProgramResult(output)
    ledger, failures = Ledger(store, plan), store.failures()
    measured = ledger.measured()
    for exposure in plan:
        if exposure.name not in ledger.records:
            why = f"{exposure.source}: {ledger.why_unmeasured(exposure)}: run the program again"
            result.failed[exposure.name] = failures.get(exposure.name, why)
    if measured:
        steps = dict.fromkeys((exposure.name for exposure in measured), Steps.EXPORT)
        session = _Session(store, lock, measured, plan, steps, forecast(measured), result)
        with target.work(store.url, measured, session.needs) as workers:
            _execute(session, workers, progress)
        _finish(session)
    return result


@dataclass(slots=True)
class _Session:
    """One run: what it is of, and what else there is; what is left to do, what that needs, and what became of it."""

    store: ProgramStore
    lock: Lock
    plan: Sequence[Exposure]
    whole: Sequence[Exposure]
    steps: dict[str, Steps]
    needs: Mapping[str, Need]
    result: ProgramResult
    measured: dict[str, Record] = field(default_factory=dict)

    def left(self) -> list[Exposure]:
        """Return the exposures for which something is to do."""
        return [exposure for exposure in self.plan if self.steps.get(exposure.name, Steps.NOTHING)]


@contextmanager
def _begun(
    plan: Sequence[Exposure],
    output: str,
    share: Share | None = None,
    *,
    overwrite: bool,
    verify: bool,
    get_ready: Callable[[Mapping[str, Need]], None] = lambda _: None,
) -> Iterator[_Session]:
    """Keep the store for a run of a plan or a share of it, find what is left, see that it fits, store the plan."""
    store = ProgramStore(store_url(output))
    names = {exposure.name for exposure in (partition(plan, *share) if share else plan)}
    with store.reserved(share) as lock:
        work = work_left(plan, store, overwrite=overwrite, verify=verify)
        steps = {name: some for name, some in work.items() if name in names}
        left = [exposure for exposure in plan if steps.get(exposure.name)]
        needs = forecast(left)
        refused = require_disk(needs, output)
        get_ready(needs)
        skipped = [name for name, some in steps.items() if not some]
        whole, asked_for = settle(plan, store), {exposure.name for exposure in plan}
        own = [exposure for exposure in whole if exposure.name in asked_for]
        session = _Session(store, lock, own, whole, steps, needs, ProgramResult(output, skipped=skipped))
        for caution in cautions(left):
            log.warning("%s", caution)
        _refuse(session, refused)
        yield session


def _refuse(session: _Session, reasons: Mapping[str, str]) -> None:
    """Let exposures fail that cannot be done here, before anything is begun for them."""
    for exposure in session.left():
        if exposure.name in reasons:
            _fail(session, exposure, PlanError(reasons[exposure.name]))
            session.steps[exposure.name] = Steps.NOTHING


def _execute(session: _Session, workers: Workers, progress: Progress | None) -> None:
    """Do what is left: each exposure alone; then what groups know together, and the files of their members."""
    _refuse(session, workers.refused)
    left = session.left()
    total, combined = len(left), [exposure for exposure in left if exposure.group]
    alone = [exposure for exposure in left if not exposure.group]
    first = {exposure.name: session.steps[exposure.name] for exposure in alone}
    # Those that are measured already have nothing to do until their group is combined.
    first |= {e.name: session.steps[e.name] & ~Steps.EXPORT for e in combined if Steps.MEASURE in session.steps[e.name]}
    with closing(workers.run([exposure for exposure in left if exposure.name in first], first, {})) as outcomes:
        _collect(session, outcomes, counted(progress, 0, total))
    if combined:
        # The last two shares may both be the last to have measured their own.
        with session.store.combining():
            _execute_groups(session, workers, counted(progress, len(alone), total))


def _finish(session: _Session) -> None:
    """Describe what was measured, ask jobs for advice, and remove what killed workers left, of earlier runs too."""
    _describe(session)
    session.result.advice.extend(_advice(session))
    # Those that another share is writing are not this run's.
    own = [exposure for exposure in session.plan if exposure.name in session.steps]
    session.store.remove_leftovers([e.place for e in own if e.place], {exposure.name for exposure in own})
    remove_leftovers(url for exposure in own for url in exposure.outputs.values())


def _describe(session: _Session) -> None:
    """Write what is known of the exposures beside what was measured of them, unless an earlier run did."""
    try:
        describe_program(session.store, session.whole)
    except (OSError, StoreError) as error:
        # Such as a full disk: what is measured is stored without it, and the next run writes it.
        log.warning("%s: names and header facts are not written: %s", session.store.name, error)


def _advice(session: _Session) -> list[str]:
    """Return what jobs suggest for the exposures that were worked on."""
    done = {record.name for record in session.result.done}
    placed = {e.place: e for e in session.plan if e.place and e.name in done}
    metrics: dict[str, list[Mapping[str, Any]]] = defaultdict(list)
    recipes = {}
    for place, record in session.store.read_records(placed).items():
        recipe = placed[place].recipe
        recipes[recipe.hash] = recipe
        metrics[recipe.hash].append(record["metrics"])
    return [text for key, recipe in recipes.items() if (text := job_of(recipe).advice(metrics[key], recipe))]


def _execute_groups(session: _Session, workers: Workers, progress: Progress) -> None:
    """Combine the groups that have new members, and write the files of all members that are stale now.

    Members of earlier runs count, and their files are left to those who ask for them again.
    """
    ledger = Ledger(session.store, session.whole)
    groups = {exposure.group for exposure in session.plan if exposure.group} - _incomplete(session, ledger)
    stale = ledger.stale_groups & groups
    for group in stale:
        try:
            _combine_again_if_damaged(session, workers, ledger, group)
        except StoreError as error:
            # Its members' own trouble, not the other exposures'.
            for exposure in session.plan:
                if exposure.group == group and exposure.name not in session.result.failed:
                    _fail(session, exposure, error)
    ledger = Ledger(session.store, session.whole)
    measured, asked_for = ledger.groups(), {exposure.name for exposure in session.left()}
    members = [exposure for group in measured.keys() & groups for exposure in measured[group]]
    own = {exposure.name for exposure in session.plan}
    if others := sum(exposure.group in stale and exposure.name not in own for exposure in members):
        count = number_of(others, "exposure")
        log.warning("%s of earlier runs left: other members of its group came or changed; run the whole again", count)
    exposures = [
        exposure
        for exposure in members
        if exposure.name in own - session.result.failed.keys()
        and (exposure.group in stale or exposure.name in asked_for)
    ]
    steps = {exposure.name: Steps.EXPORT for exposure in exposures}
    keys = {exposure.name: str(ledger.group_key(exposure.group)) for exposure in exposures}
    with closing(workers.run(exposures, steps, keys)) as outcomes:
        _collect(session, outcomes, progress)


def _combine_again_if_damaged(session: _Session, workers: Workers, ledger: Ledger, group: Group) -> None:
    try:
        _combine(workers, ledger, group, session.store.url)
    except StoreError as error:
        _measure_damaged(session, workers, ledger, group, error)
        _combine(workers, Ledger(session.store, session.whole), group, session.store.url)


def _combine(workers: Workers, ledger: Ledger, group: Group, url: str) -> None:
    if members := ledger.groups().get(group):
        found = workers.combine(group, members, str(ledger.group_key(group)), url)
        log.info("%s: %s", "/".join(group), found)


def _measure_damaged(
    session: _Session, workers: Workers, ledger: Ledger, group: Group, error: StoreError
) -> None:
    """Measure the members of a group anew whose stored chunks are damaged.

    Raises
    ------
    StoreError
        None is: `error`, which kept the group from being combined, has another cause.
    """
    members, records = ledger.groups()[group], ledger.records
    damaged = [member for member in members if damage_of_store(member, records[member.name], session.store)]
    if not damaged:
        raise error
    steps = dict.fromkeys((exposure.name for exposure in damaged), Steps.DETECT | Steps.MEASURE)
    log.warning("%s: of %s what is stored is damaged", "/".join(group), number_of(len(damaged), "exposure"))
    for exposure in damaged:
        # Of one whose input is gone nothing else will: the others do without it.
        if exposure.place:
            session.store.remove_record(exposure.place)
    with closing(workers.run(damaged, steps, {})) as outcomes:
        _collect(session, outcomes, lambda *_: None)


def _incomplete(session: _Session, ledger: Ledger) -> set[Group]:
    """Return the groups of which some member is another process's to measure, and not measured or failed yet."""
    failed = session.store.failures()
    return {
        exposure.group
        for exposure in session.plan
        if exposure.group
        and exposure.name not in ledger.records
        and exposure.name not in session.steps
        and exposure.name not in failed
    }


def counted(progress: Progress | None, before: int, total: int) -> Progress:
    """Return what reports progress after so many exposures were finished, of so many."""
    return lambda count, _: progress(before + count, total) if progress else None


def _collect(session: _Session, outcomes: Iterable[Outcome], progress: Progress) -> None:
    """Log and keep each exposure's outcome as it comes."""
    store = session.store
    failed_before = store.failures()
    for count, (exposure, outcome) in enumerate(outcomes, 1):
        session.lock.require()
        if isinstance(outcome, Record):
            _collect_record(session, exposure, outcome)
            if exposure.name in failed_before:
                store.forget_failure(exposure.name)
        else:
            _fail(session, exposure, outcome)
        progress(count, 0)


def _fail(session: _Session, exposure: Exposure, error: BaseException) -> None:
    reason = _reason(exposure, error)
    session.result.failed[exposure.name] = reason
    log.error("%s", printable(f"{exposure.name}: failed: {reason}"))
    _remember_failure(session.store, exposure.name, reason)


def _collect_record(session: _Session, exposure: Exposure, record: Record) -> None:
    # Under the time at which they came: the log's times run forward, whatever the workers' clocks say.
    for text in record.messages:
        log.info("%s", printable(f"{exposure.name}: {text}"))
    # What is only measured yet is done once its group is combined and its files are written.
    if "export" in record.seconds:
        measured = session.measured.pop(exposure.name, None)
        session.result.done.append(record if measured is None else measured.followed_by(record))
    else:
        session.measured[exposure.name] = record


def _remember_failure(store: ProgramStore, name: str, reason: str) -> None:
    """Keep the reason for a later look; without, where the disk is full that failed the exposure."""
    try:
        store.write_failure(name, reason)
    except OSError as error:
        log.warning("%s: the reason is not kept: %s", name, error)


def _reason(exposure: Exposure, error: BaseException) -> str:
    """Return one line that names the file and the cause."""
    if isinstance(error, SkylevelError):
        cause = str(error)
    else:
        log.debug("%s", exposure.source, exc_info=error)
        cause = f"{type(error).__name__}: {error}"
    # What other libraries say may hold the whole URL.
    text = without_secrets(cause, exposure.access)
    name = printable(exposure.source)
    return text if name in text else f"{name}: {text}"
