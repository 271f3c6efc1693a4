"""The command line. Heavy modules are imported by the commands that need them, so that ``--help`` answers at once."""

import io
import logging
import os
import stat
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from skylevel import __version__
from skylevel.errors import PlanError, SchedulerLostError, SettingsError, SkylevelError
from skylevel.interrupts import STOPPED, stop_in_order
from skylevel.io.urls import shown
from skylevel.recipes import RECIPES, Recipe
from skylevel.settings_file import read_settings, to_toml

if TYPE_CHECKING:
    from skylevel.program.plan import Exposure
    from skylevel.program.run import ProgramResult

FAILED, WRONG, INTERRUPTED = 1, 2, 130

_TIME_FORMAT = "%Y-%m-%d %H:%M:%S"
_PRESETS = "; ".join(f"{name}: {', '.join(recipe.presets)}" for name, recipe in RECIPES.items())

console = Console(highlight=False, soft_wrap=True)
errors = Console(stderr=True, highlight=False, soft_wrap=True)


def _known_recipe(context: click.Context, parameter: click.Parameter, value: str) -> str:
    """Check the name of a recipe when the command is run: jobs may be registered after this module is imported."""
    known = [*(["auto"] if parameter.default == "auto" else []), *RECIPES]
    if value not in known:
        raise click.BadParameter(f"{value!r} is not one of {', '.join(map(repr, known))}", context, parameter)
    return value


def main() -> None:
    """Run the command line: exit status 0 all done, 1 some exposures failed, 2 the command was wrong."""
    sys.exit(run_command())


def run_command() -> int:
    """Run the command that was given, and return the status to end with; an error that a user can cause is one line."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            # Of a terminal that cannot show every character.
            stream.reconfigure(errors="backslashreplace")
    try:
        return int(commands.main(standalone_mode=False) or 0)
    except click.exceptions.Exit as stop:
        return stop.exit_code
    except click.ClickException as error:
        error.show()
    except SkylevelError as error:
        errors.print(f"skylevel: {shown(str(error))}", markup=False)
        return FAILED if isinstance(error, SchedulerLostError) else WRONG
    except (KeyboardInterrupt, click.Abort) as error:
        errors.print(STOPPED)
        return getattr(error.__cause__ or error, "status", INTERRUPTED)
    except OSError as error:
        # Such as an output folder that cannot be made.
        errors.print(f"skylevel: {shown(str(error))}", markup=False)
    return WRONG


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(__version__, prog_name="skylevel")
def commands() -> None:
    """Level the sky of whole observing programs: JWST exposures and camera raw frames, in parallel with Dask."""


def _output_argument(function: Callable[..., int]) -> Callable[..., int]:
    return click.argument("output", default="skylevel-output")(function)


def _where_options(function: Callable[..., int]) -> Callable[..., int]:
    """Options of every command that works on a cluster."""
    for option in (
        click.option("--quiet", is_flag=True, help="Print only what failed, and the final table."),
        click.option(
            "--workers", type=click.IntRange(min=1), help="Processes (local; one a core) or jobs (slurm; 2)."
        ),
        click.option(
            "--cluster", default="local", show_default=True, metavar="local|slurm|tcp://HOST:PORT", help="Where to run."
        ),
    ):
        function = option(function)
    return function


@commands.command()
@click.argument("inputs", nargs=-1, required=True, metavar="INPUT...")
@click.option("--output", default="skylevel-output", show_default=True, metavar="DIR", help="Folder or URL.")
@click.option(
    "--recipe",
    callback=_known_recipe,
    metavar="auto|rows|channels",
    default="auto",
    show_default=True,
    help="auto: rows for FITS, channels for camera raws.",
)
@click.option("--preset", metavar="NAME", help=f"Settings by name. {_PRESETS}")
@click.option("--config", type=click.Path(path_type=Path), metavar="FILE.toml", help="As 'skylevel config' prints it.")
@click.option("--set", "settings", multiple=True, metavar="FIELD=VALUE", help="box_size=64, norms.R=1 ...; repeatable.")
@click.option(
    "--layout",
    type=click.Choice(["full", "primary"]),
    default="full",
    show_default=True,
    help="full: every HDU of the input. primary: one HDU.",
)
@click.option("--keep", default="", metavar="LIST", help="Also write segmentation,masked,background (any of them).")
@click.option("--overwrite", is_flag=True, help="Do again what is done.")
@click.option("--again", is_flag=True, help="Level also what skylevel or another tool levelled before.")
@click.option("--recursive", is_flag=True, help="Look into the folders of a folder too.")
@click.option("--verify", is_flag=True, help="Look at the contents of what is done; do again what is damaged.")
@click.option("--dry-run", is_flag=True, help="Print the plan and stop.")
@click.option("--partition", metavar="I/N", help="Do only the I-th of N shares, in this process: for job arrays.")
@click.option("--no-report", is_flag=True, help="Write no report.html at the end.")
@_where_options
def run(inputs: tuple[str, ...], output: str, **options: Any) -> int:
    """Level every INPUT: files, folders, globs, associations (*_asn.json), @list.txt, URLs."""
    # Before the heavy imports: a mistake is answered at once.
    recipes = _recipes(options["recipe"], options["preset"], options["config"], options["settings"])
    share = _share(options["partition"])
    from skylevel.program.own_worker import let_xarray_ask, own_worker

    # Before the heavy imports too: what one exposure needs is imported in two processes at once.
    own = click.get_current_context().with_resource(
        own_worker(
            wanted=not share and not options["dry_run"] and options["cluster"] == "local",
            at_once=len(inputs) == 1 and Path(inputs[0]).is_file() and not Path(output, "program.zarr").exists(),
        )
    )
    from skylevel.program.associations import write_associations
    from skylevel.program.plan import make_plan
    from skylevel.program.run import Target, run_partition, run_plan

    let_xarray_ask()
    with _logging([_terminal_handler(options["quiet"])]):
        plan = make_plan(
            inputs,
            output,
            recipe=list(recipes.values()) if options["recipe"] == "auto" else recipes[options["recipe"]],
            layout=options["layout"],
            keep=[word.strip() for word in options["keep"].split(",") if word.strip()],
            recursive=options["recursive"],
            again=options["again"],
        )
    _remark_on_preset(options["preset"], plan)
    if options["dry_run"]:
        return _print_plan(plan, output, verify=options["verify"])
    what = {"overwrite": options["overwrite"], "verify": options["verify"]}
    with _reporting(output, quiet=options["quiet"]) as progress:
        if share:
            result = run_partition(plan, output, share, **what, progress=progress)
        else:
            target = Target(cluster=options["cluster"], workers=options["workers"], own=own)
            result = run_plan(plan, output, target=target, **what, progress=progress)
        write_associations(inputs, plan, output, result.failed)
    code = _print_result(result)
    if not options["no_report"]:
        _report(result, share)
    return code


def _remark_on_preset(preset: str | None, plan: "list[Exposure]") -> None:
    """Say where a preset changes nothing, as no exposure is of its kind."""
    knowing = [name for name, recipe in RECIPES.items() if preset in recipe.presets]
    if preset and not any(exposure.recipe.name in knowing for exposure in plan):
        errors.print(
            f"skylevel: --preset {preset} changes nothing: it is one of {' and '.join(knowing)}, "
            "and no exposure is levelled by that",
            markup=False,
        )


@commands.command()
@_output_argument
@_where_options
def export(output: str, cluster: str, workers: int | None, quiet: bool) -> int:
    """Write the FITS files of OUTPUT again from its store, without measuring."""
    from skylevel.program.run import Target, export_program

    with _reporting(output, quiet=quiet) as progress:
        result = export_program(output, target=Target(cluster=cluster, workers=workers), progress=progress)
    return _print_result(result)


@commands.command()
@_output_argument
@click.option("--verify", is_flag=True, help="Look at the contents of stored chunks and outputs too.")
def status(output: str, verify: bool) -> int:
    """Print what is done, failed and left in OUTPUT."""
    from skylevel.program.view import program_status

    states = program_status(output, verify=verify)
    count = {state: sum(s.state == state for s in states) for state in ("done", "failed", "left")}
    console.print(shown(f"{output}: " + ", ".join(f"{n} {state}" for state, n in count.items())), markup=False)
    for exposure in states:
        if exposure.state != "done":
            console.print(shown(f"  {exposure.state}  {exposure.name}  {exposure.reason}".rstrip()), markup=False)
    return FAILED if count["failed"] else 0


@commands.command()
@_output_argument
def report(output: str) -> int:
    """Write OUTPUT/report.html, a page on what was run and how it went, from the store alone."""
    from skylevel.report import write_report

    console.print(write_report(output), markup=False)
    return 0


@commands.command()
@click.argument("recipe", callback=_known_recipe, metavar="rows|channels")
@click.option("--preset", default="notebook", show_default=True, metavar="NAME")
def config(recipe: str, preset: str) -> int:
    """Print a recipe's settings as commented TOML, to edit and give to 'run --config'."""
    click.echo(to_toml(RECIPES[recipe].preset(preset)), nl=False)
    return 0


@commands.command()
@click.option("--output", default="skylevel-demo", show_default=True, metavar="DIR", help="Folder for the demo.")
@_where_options
def demo(output: str, cluster: str, workers: int | None, quiet: bool) -> int:
    """Write a small program with known truth, run it, and print what came out against the truth."""
    from skylevel.demo import measure_levels, summary, write_program
    from skylevel.program.run import run as run_program

    program, levelled = Path(output, "program"), Path(output, "levelled")
    console.print(f"Writing three NIRCam exposures and two raw frames of the night sky to {program} ...", markup=False)
    paths = write_program(program)
    with _reporting(str(levelled), quiet=quiet) as progress:
        result = run_program(map(str, paths), str(levelled), cluster=cluster, workers=workers, progress=progress)
    code = _print_result(result)
    if not result.failed:
        console.print("\nRMS of the stripes and of the sky's gradient against the truth, before and after:\n")
        console.print(summary(measure_levels(program, levelled)), markup=False)
        console.print(f"\nLook again with: {sys.argv[0]} status {levelled}; its page shows it:", markup=False)
    _report(result)
    return code


def _recipes(
    recipe: str, preset: str | None, config: Path | None, settings: tuple[str, ...]
) -> Mapping[str, Recipe]:
    """Return the recipes with a preset, then a file's settings, then single settings applied."""
    names = list(RECIPES) if recipe == "auto" else [recipe]
    made = {name: RECIPES[name]() for name in names}
    if preset:
        made.update(_preset(preset, names))
    for name, table in (read_settings(config) if config else {}).items():
        if name in made:
            made[name] = made[name].replace(table)
    for setting in settings:
        made.update(_with_setting(made, setting))
    return made


def _preset(preset: str, names: list[str]) -> dict[str, Recipe]:
    knowing = [name for name in names if preset in RECIPES[name].presets]
    if not knowing:
        known = sorted({known for name in names for known in RECIPES[name].presets})
        raise SettingsError(f"unknown preset {preset!r}; known: {', '.join(known)}")
    return {name: RECIPES[name].preset(preset) for name in knowing}


def _with_setting(recipes: Mapping[str, Recipe], setting: str) -> dict[str, Recipe]:
    """Apply FIELD=VALUE to each recipe that has the field; ``rows.FIELD`` names one recipe."""
    field, equals, value = setting.partition("=")
    if not equals:
        raise SettingsError(f"--set {setting}: needs FIELD=VALUE")
    prefix, _, rest = field.partition(".")
    if prefix in RECIPES:
        recipes, field = {name: r for name, r in recipes.items() if name == prefix}, rest
    having = {name: r for name, r in recipes.items() if field.partition(".")[0] in r.to_dict()}
    # Where none has it, the first one's refusal names what is known.
    return {name: r.replace({field: value}) for name, r in (having or recipes).items()}


def _share(text: str | None) -> tuple[int, int] | None:
    if text is None:
        return None
    index, _, count = text.partition("/")
    if not (index.isdigit() and count.isdigit()):
        raise SettingsError(f"--partition {text}: needs I/N, such as 3/16")
    return int(index), int(count)


@contextmanager
def _reporting(output: str, *, quiet: bool) -> Iterator[Callable[[int, int], None]]:
    """Log lines to the terminal and to OUTPUT/skylevel.log, and show a progress bar on a terminal."""
    from skylevel.memory import collect_as_usual

    collect_as_usual()
    # What becomes of a cluster is said in our own lines, not in the tracebacks that Dask logs.
    for name in ("asyncio", "distributed", "distributed.client", "tornado.application"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
    bar = Progress(
        TextColumn("levelling"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TimeRemainingColumn(),
        console=errors, transient=True, disable=quiet or not errors.is_terminal,
    )  # fmt: skip
    with _logging([_terminal_handler(quiet), *_file_handlers(output)]), bar, stop_in_order():
        task = bar.add_task("levelling", total=None)
        yield lambda count, total: bar.update(task, completed=count, total=total)


@contextmanager
def _logging(handlers: list[logging.Handler]) -> Iterator[None]:
    """Give the log's lines to these handlers."""
    logger = logging.getLogger("skylevel")
    logger.setLevel(logging.INFO)
    for handler in handlers:
        logger.addHandler(handler)
    try:
        yield
    finally:
        for handler in handlers:
            logger.removeHandler(handler)
            handler.close()


class _Line(logging.Formatter):
    """A line of the log, in which nothing from outside acts on a terminal, and no URL gives itself away."""

    def format(self, record: logging.LogRecord) -> str:
        return shown(super().format(record))


class _TerminalHandler(logging.Handler):
    """Print log lines above the progress bar, without breaking them; the final table names what failed, once."""

    def emit(self, record: logging.LogRecord) -> None:
        if record.levelno < logging.ERROR:
            errors.print(self.format(record), markup=False)


class _LogFile(logging.FileHandler):
    """A log that ends where the disk is full: what is done and what failed is on the terminal and in the store."""

    def _open(self) -> Any:
        return open(self.baseFilename, self.mode, encoding=self.encoding, errors=self.errors, opener=_own_file)

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802 (logging's name)
        pass

    def close(self) -> None:
        with suppress(OSError):
            super().close()


def _own_file(path: str, flags: int) -> int:
    """Open a file that is none of another's: no link, pipe or device."""
    extra = getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0)
    try:
        descriptor = os.open(path, flags | extra, 0o666)
    except OSError as error:
        if Path(path).is_symlink():
            raise PlanError(f"{path}: is a link, and a log has none: remove it, and run again") from error
        raise
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise PlanError(f"{path}: is no file: remove it, and run again")
    return descriptor


def _terminal_handler(quiet: bool) -> logging.Handler:
    handler = _TerminalHandler(logging.CRITICAL if quiet else logging.INFO)
    handler.setFormatter(_Line("%(asctime)s  %(message)s", _TIME_FORMAT))
    return handler


def _file_handlers(output: str) -> list[logging.Handler]:
    if "://" in output:
        return []
    Path(output).mkdir(parents=True, exist_ok=True)
    handler = _LogFile(Path(output, "skylevel.log"), encoding="utf-8", errors="backslashreplace")
    handler.setFormatter(_Line("%(asctime)s %(levelname)s %(message)s", _TIME_FORMAT))
    return [handler]


def _print_plan(plan: "list[Exposure]", output: str, *, verify: bool) -> int:
    """Print what there is to do, of which kinds, and what it needs."""
    from skylevel.io.store import ProgramStore
    from skylevel.io.urls import is_remote
    from skylevel.program.forecast import cautions, forecast, free_disk, gigabytes, require_disk, summarize
    from skylevel.program.ledger import Steps
    from skylevel.program.places import work_left
    from skylevel.program.plan import store_url

    with _logging([_terminal_handler(quiet=False)]):
        work = work_left(plan, ProgramStore(store_url(output)), verify=verify)
    left = [exposure for exposure in plan if work[exposure.name]]
    needs = forecast(left)
    fails = {e.name: e.trouble for e in left if e.trouble} | require_disk(needs, output)
    rows = [("exposure", "recipe", "size", "to do", "output")]
    for exposure in plan:
        size = exposure.identity.get("size")
        names = {Steps.MEASURE: "measure", Steps.EXPORT: "export"}
        todo = ", ".join(text for step, text in names.items() if step in work[exposure.name]) or "-"
        todo = "nothing: fails" if exposure.name in fails else todo
        big = gigabytes(size) if size else "?"
        rows.append((exposure.name, exposure.recipe.name, big, todo, exposure.outputs["levelled"]))
    _print_columns(rows)
    if needs:
        kinds = [("recipe", "detector or camera", "filter", "exposures")]
        console.print()
        _print_columns(kinds + [(*kind, str(count)) for kind, count in summarize(needs)])
    total, memory = sum(need.output for need in needs.values()), max((n.memory for n in needs.values()), default=0)
    free = "" if is_remote(output) else f" ({gigabytes(free_disk(output))} free)"
    console.print()
    _print_columns(
        [
            ("exposures", f"{len(plan)}, {len(plan) - len(left)} done already"),
            ("outputs", f"about {gigabytes(total)}{free}"),
            ("memory", f"up to {gigabytes(memory)} for a worker"),
        ]
    )
    for line in [*cautions(left), *(f"would fail: {fails[name]}" for name in sorted(fails))]:
        errors.print(shown(line), markup=False)
    return 0


def _report(result: "ProgramResult", share: tuple[int, int] | None = None) -> None:
    """Write a run's report; of shares the last one does, and without work the earlier one stands. It fails no run."""
    from skylevel.program.view import program_status
    from skylevel.report import has_report, write_report

    try:
        if share and any(exposure.state == "left" for exposure in program_status(result.output)):
            return
        earlier = None if result.done or result.failed else has_report(result.output)
        console.print(f"report   {earlier or write_report(result.output)}", markup=False)
    except SkylevelError as error:
        errors.print(f"no report: {error}", markup=False)


def _print_result(result: "ProgramResult") -> int:
    """Print the final table: done, failed with reasons, where the files are."""
    before = [("done before", str(len(result.skipped)))] if result.skipped else []
    done, failed = (str(len(some)) for some in (result.done, result.failed))
    took = [("work", _work(result))] if result.done else []
    where = [("outputs", result.output), ("store", result.store)]
    _print_columns([("done", done), *before, ("failed", failed), *took, *where])
    for advice in result.advice:
        console.print(advice, markup=False)
    for reason in result.failed.values():
        errors.print(shown(f"failed: {reason}"), markup=False)
    return FAILED if result.failed else 0


def _work(result: "ProgramResult") -> str:
    """Return where the workers' time went, and the most memory that one held."""
    seconds: Counter[str] = Counter()
    for record in result.done:
        seconds.update(record.seconds)
    stages = ", ".join(f"{stage} {total:.1f} s" for stage, total in seconds.items())
    slowest = max(result.done, key=lambda record: sum(record.seconds.values()))
    peak = max(record.peak_mib for record in result.done)
    return f"{stages}; slowest {slowest.name} {sum(slowest.seconds.values()):.1f} s; a worker held up to {peak:.0f} MiB"


def _print_columns(rows: Sequence[tuple[str, ...]]) -> None:
    """Print a table whose paths stay whole, however narrow the terminal: they are there to be copied."""
    rows = [tuple(map(shown, row)) for row in rows]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        cells = (cell.ljust(width) for cell, width in zip(row, widths, strict=True))
        console.print("  ".join(cells).rstrip(), markup=False)
