"""The command line. Heavy modules are imported by the commands that need them, so that ``--help`` answers at once."""

import io
import shutil
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from click.shell_completion import CompletionItem

from skylevel import __version__
from skylevel.errors import ClusterError, SchedulerLostError, SettingsError, SkylevelError, require_cluster
from skylevel.interrupts import STOPPED
from skylevel.recipes import RECIPES, Recipe, nearest
from skylevel.terminal import errors, logging_to, paths, print_json, reporting, say, terminal_handler

if TYPE_CHECKING:
    from distributed import Client

    from skylevel.program.plan import Exposure
    from skylevel.program.run import ProgramResult

FAILED, WRONG, INTERRUPTED = 1, 2, 130

_PRESET_NAMES = dict.fromkeys(name for recipe in RECIPES.values() for name in recipe.presets)
_PRESETS = "; ".join(f"{name}: {', '.join(recipe.presets)}" for name, recipe in RECIPES.items())


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
        say(f"skylevel: {error}", to=errors)
        return FAILED if isinstance(error, SchedulerLostError) else WRONG
    except (KeyboardInterrupt, click.Abort) as error:
        errors.print(STOPPED)
        return getattr(error.__cause__ or error, "status", INTERRUPTED)
    except OSError as error:
        # Such as an output folder that cannot be made.
        say(f"skylevel: {error}", to=errors)
    return WRONG


def _known_cluster(context: click.Context, parameter: click.Parameter, value: str) -> str:
    """Check where to run before anything is done, as far as a word tells."""
    try:
        require_cluster(value)
    except ClusterError as error:
        raise click.BadParameter(str(error), context, parameter) from error
    return value


def _among(*words: str) -> Any:
    """Return what completes one of these words on a shell's command line."""
    return lambda _context, _parameter, incomplete: [word for word in words if word.startswith(incomplete)]


def _path(kind: str) -> Any:
    """Return what has a shell complete a path, of a "file" or a "dir", itself."""
    return lambda _context, _parameter, incomplete: [CompletionItem(incomplete, type=kind)]


def _examples(*lines: str) -> str:
    """Return what ends a command's help, as it stands."""
    return "\n".join(("\b", "Examples:", *(f"  {line}" for line in lines)))


@click.group(
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    epilog=_examples("skylevel demo", "skylevel run jw04250/*_cal.fits --output levelled", "skylevel run --help"),
)
@click.version_option(__version__, prog_name="skylevel")
def commands() -> None:
    """Level the sky of whole observing programs: JWST exposures and camera raw frames, in parallel with Dask."""


def _output_argument(function: Callable[..., int]) -> Callable[..., int]:
    return click.argument("output", default="skylevel-output", shell_complete=_path("dir"))(function)


def _json_option(function: Callable[..., int]) -> Callable[..., int]:
    return click.option("--json", "as_json", is_flag=True, help="Print one JSON document instead of tables.")(function)


def _where_options(function: Callable[..., int]) -> Callable[..., int]:
    """Options of every command that works on a cluster."""
    for option in (
        click.option("--quiet", is_flag=True, help="Print only what failed, and the final table."),
        click.option(
            "--workers", type=click.IntRange(min=1), help="Processes (local; one a core) or jobs (slurm; 2)."
        ),
        click.option(
            "--cluster", default="local", show_default=True, metavar="local|slurm|tcp://HOST:PORT",
            help="Where to run.", shell_complete=_among("local", "slurm"), callback=_known_cluster,
        ),
    ):  # fmt: skip
        function = option(function)
    return function


@commands.command(
    epilog=_examples(
        "skylevel run jw04250/*_cal.fits --output levelled",
        "skylevel run ~/Pictures/Andromeda --preset best --dry-run",
        "skylevel run jw04250/*_asn.json --set box_size=64 --set threshold=3",
        "skylevel run @list.txt --cluster slurm --workers 8",
        "skylevel run program --json | jq '.failed[].reason'",
    )
)
@click.argument("inputs", nargs=-1, required=True, metavar="INPUT...", shell_complete=_path("file"))
@click.option(
    "--output", default="skylevel-output", show_default=True, metavar="DIR", help="Folder or URL.",
    shell_complete=_path("dir"),
)
@click.option(
    "--recipe",
    callback=_known_recipe,
    metavar="auto|rows|channels",
    default="auto",
    show_default=True,
    help="auto: rows for FITS, channels for camera raws.",
    shell_complete=_among("auto", *RECIPES),
)
@click.option(
    "--preset", metavar="NAME", help=f"Settings by name. {_PRESETS}",
    shell_complete=_among(*_PRESET_NAMES),
)
@click.option("--config", type=click.Path(path_type=Path), metavar="FILE.toml", help="As 'skylevel config' prints it.")
@click.option("--set", "settings", multiple=True, metavar="FIELD=VALUE", help="box_size=64, norms.R=1 ...; repeatable.")
@click.option(
    "--layout",
    type=click.Choice(["full", "primary"]),
    default="full",
    show_default=True,
    help="full: every HDU of the input. primary: one HDU.",
)
@click.option(
    "--keep", default="", metavar="LIST", help="Also write segmentation,masked,background (any of them).",
    shell_complete=_among("segmentation", "masked", "background"),
)
@click.option("--overwrite", is_flag=True, help="Do again what is done.")
@click.option("--again", is_flag=True, help="Level also what skylevel or another tool levelled before.")
@click.option("--recursive", is_flag=True, help="Look into the folders of a folder too.")
@click.option("--verify", is_flag=True, help="Look at the contents of what is done; do again what is damaged.")
@click.option("--dry-run", is_flag=True, help="Print the plan and stop.")
@click.option("--partition", metavar="I/N", help="Do only the I-th of N shares, in this process: for job arrays.")
@click.option("--no-report", is_flag=True, help="Write no report.html at the end.")
@_json_option
@_where_options
def run(inputs: tuple[str, ...], output: str, **options: Any) -> int:
    """Level every INPUT: files, folders, globs, associations (*_asn.json), @list.txt, URLs."""
    # Before the heavy imports: a mistake is answered at once.
    recipes = _recipes(options["recipe"], options["preset"], options["config"], options["settings"])
    share = _share(options["partition"])
    paths.learn(inputs, output)
    from skylevel.program.own_worker import let_xarray_ask, own_worker

    let_xarray_ask()
    from skylevel.program.associations import write_associations
    from skylevel.program.plan import make_plan

    # It shares what is imported by now; the rest is not for it, and is imported while it gets ready.
    own = click.get_current_context().with_resource(
        own_worker(
            wanted=not share and not options["dry_run"] and options["cluster"] == "local",
            at_once=len(inputs) == 1 and Path(inputs[0]).is_file(),
            meanwhile=None if options["no_report"] else _import_report,
        )
    )
    from skylevel.program.run import Target, run_partition, run_plan
    from skylevel.tables import print_plan, print_result, report_of

    with logging_to([terminal_handler(options["quiet"])]):
        plan = make_plan(
            inputs,
            output,
            recipe=list(recipes.values()) if options["recipe"] == "auto" else recipes[options["recipe"]],
            layout=options["layout"],
            keep=_kept(options["keep"]),
            recursive=options["recursive"],
            again=options["again"],
        )
    _remark_on_unused(options, plan)
    what = {"overwrite": options["overwrite"], "verify": options["verify"]}
    if options["dry_run"]:
        with logging_to([terminal_handler()]):
            print_plan(plan, output, **what, as_json=options["as_json"])
        return 0
    with reporting(output, quiet=options["quiet"]) as progress:
        if share:
            result = run_partition(plan, output, share, **what, progress=progress)
        else:
            target = Target(cluster=options["cluster"], workers=options["workers"], own=own, own_process=True)
            result = run_plan(plan, output, target=target, **what, progress=progress)
        write_associations(inputs, plan, output, result.failed)
    write_report = partial(report_of, result, shared={exposure.name for exposure in plan} if share else ())
    print_result(result, as_json=options["as_json"], write_report=None if options["no_report"] else write_report)
    return FAILED if result.failed else 0


def _import_report() -> None:
    from skylevel.report.page import get_ready

    get_ready()


def _remark_on_unused(options: Mapping[str, Any], plan: "list[Exposure]") -> None:
    """Say which options change nothing, as no exposure is of the kind that they are for."""
    levelled_by = {exposure.recipe.name for exposure in plan}
    for option, names in _addressed(options):
        if not levelled_by & set(names):
            say(
                f"skylevel: {option} changes nothing: it is one of {' and '.join(names)}, "
                "and no exposure is levelled by that",
                to=errors,
            )
    known = [exposure.facts.attributes.get("color_filter_array") or () for exposure in plan if exposure.facts]
    for setting in options["settings"]:
        field, _, color = setting.partition("=")[0].removeprefix("channels.").partition(".")
        if field == "norms" and any(known) and color not in set("".join("".join(rows) for rows in known)):
            say(f"skylevel: --set {setting} changes nothing: no exposure has that colour", to=errors)


def _addressed(options: Mapping[str, Any]) -> Iterator[tuple[str, list[str]]]:
    """Yield each option that is not for every exposure, and the recipes that it is for."""
    from skylevel.jobs import JOBS

    if preset := options["preset"]:
        yield f"--preset {preset}", [name for name, recipe in RECIPES.items() if preset in recipe.presets]
    if tables := _settings_of(options["config"]):
        yield f"--config {options['config']}", list(tables)
    for setting in options["settings"]:
        prefix = setting.partition("=")[0].partition(".")[0]
        having = [name for name, recipe in RECIPES.items() if prefix in recipe.__dataclass_fields__]
        yield f"--set {setting}", [prefix] if prefix in RECIPES else having
    for word in _kept(options["keep"]):
        yield f"--keep {word}", [name for name, job in JOBS.items() if word in job.products]


def _kept(words: str) -> list[str]:
    return [word.strip() for word in words.split(",") if word.strip()]


@commands.command(
    epilog=_examples("skylevel export levelled", "skylevel export levelled --json | jq '.done[].name'")
)
@_output_argument
@_json_option
@_where_options
def export(output: str, as_json: bool, cluster: str, workers: int | None, quiet: bool) -> int:
    """Write the FITS files of OUTPUT again from its store, without measuring."""
    paths.learn((), output)
    from skylevel.io.store import ProgramStore
    from skylevel.program.plan import read_plan, store_url
    from skylevel.program.run import Target, export_program
    from skylevel.tables import print_result

    # Where there is no program, no log of it is begun.
    read_plan(ProgramStore(store_url(output)))
    with reporting(output, quiet=quiet) as progress:
        target = Target(cluster=cluster, workers=workers, own_process=True)
        result = export_program(output, target=target, progress=progress)
    print_result(result, as_json=as_json)
    return FAILED if result.failed else 0


@commands.command(
    epilog=_examples(
        "skylevel status levelled",
        "skylevel status levelled --verify",
        "skylevel status levelled --json | jq .failed",
    )
)
@_output_argument
@click.option("--verify", is_flag=True, help="Look at the contents of stored chunks and outputs too.")
@_json_option
def status(output: str, verify: bool, as_json: bool) -> int:
    """Print what is done, failed and left in OUTPUT."""
    paths.learn((), output)
    from skylevel.program.view import program_status
    from skylevel.tables import print_status

    states = program_status(output, verify=verify)
    print_status(states, output, as_json=as_json)
    return FAILED if any(exposure.state == "failed" for exposure in states) else 0


@commands.command(epilog=_examples("skylevel report levelled"))
@_output_argument
def report(output: str) -> int:
    """Write OUTPUT/report.html, a page on what was run and how it went, from the store alone."""
    paths.learn((), output)
    from skylevel.report import write_report

    say(write_report(output))
    return 0


@commands.command(
    epilog=_examples(
        "skylevel config rows > rows.toml",
        "skylevel config channels --preset best > night.toml",
        "skylevel config rows --json | jq '.settings.box_size'",
    )
)
@click.argument("recipe", callback=_known_recipe, metavar="rows|channels", shell_complete=_among(*RECIPES))
@click.option(
    "--preset", default="notebook", show_default=True, metavar="NAME",
    shell_complete=_among(*_PRESET_NAMES),
)
@_json_option
def config(recipe: str, preset: str, as_json: bool) -> int:
    """Print a recipe's settings as commented TOML, to edit and give to 'run --config'."""
    chosen = RECIPES[recipe].preset(preset)
    if as_json:
        print_json({"recipe": recipe, "preset": preset, "settings": chosen.to_dict()})
    else:
        from skylevel.settings_file import to_toml

        click.echo(to_toml(chosen), nl=False)
    return 0


@commands.command(epilog=_examples("skylevel demo", "skylevel demo --output /scratch/demo --workers 2"))
@click.option(
    "--output", default="skylevel-demo", show_default=True, metavar="DIR", help="Folder for the demo.",
    shell_complete=_path("dir"),
)
@_json_option
@_where_options
def demo(output: str, as_json: bool, cluster: str, workers: int | None, quiet: bool) -> int:
    """Write a small program with known truth, level it by each preset, and compare what came out with the truth."""
    paths.learn((), output)
    from skylevel.demo import draw_comparison, measure_comparison, write_program
    from skylevel.program.cluster import connect
    from skylevel.tables import print_comparison, print_result, report_of

    program, levelled = Path(output, "program"), Path(output, "levelled")
    if not quiet:
        say(f"Writing three NIRCam exposures and two raw frames of the night sky to {program} ...", to=errors)
    sources = write_program(program)
    with (
        reporting(str(levelled), quiet=quiet) as progress,
        connect(cluster, workers=workers, n_exposures=len(sources)) as client,
    ):
        results = _level_demo(sources, levelled, client, progress)
    if failed := [result for result in results.values() if result.failed]:
        print_result(failed[0], as_json=as_json, write_report=partial(report_of, failed[0]))
        return FAILED
    folders = {preset: Path(result.output) for preset, result in results.items()}
    picture = draw_comparison(program, folders, Path(output, "demo.png"))
    measured = measure_comparison(program, folders)
    report = report_of(results["default"])
    print_comparison(measured, {"report": report, "picture": str(picture)}, as_json=as_json)
    if not as_json:
        say(f"again    {_own_name()} status {levelled}")
    return 0


def _level_demo(
    sources: Sequence[Path], levelled: Path, client: "Client", progress: Callable[[int, int], None]
) -> "dict[str, ProgramResult]":
    """Level the demo by the default and the better presets, each into a folder of its own."""
    from skylevel.program.run import run as run_program

    results = {}
    for preset in ("notebook", "best", "program"):
        recipes = [RECIPES[name].preset(preset) for name in ("rows", "channels")]
        name = "default" if preset == "notebook" else preset
        folder = levelled if preset == "notebook" else levelled.with_name(f"levelled-{preset}")
        results[name] = run_program(sources, folder, recipe=recipes, client=client, progress=progress)
    return results


def _own_name() -> str:
    """Return what starts this command again: its name where a shell finds it by that, else its path from here."""
    path = Path(sys.argv[0])
    if shutil.which(path.name) == str(path):
        return path.name
    return str(path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path)


def _recipes(
    recipe: str, preset: str | None, config: Path | None, settings: tuple[str, ...]
) -> Mapping[str, Recipe]:
    """Return the recipes with a preset, then a file's settings, then single settings applied."""
    names = list(RECIPES) if recipe == "auto" else [recipe]
    made = {name: RECIPES[name]() for name in names}
    if preset:
        made.update(_preset(preset, names))
    for name, table in _settings_of(config).items():
        if name in made:
            made[name] = made[name].replace(table)
    for setting in settings:
        made.update(_with_setting(made, setting))
    return made


def _settings_of(config: Path | None) -> Mapping[str, Mapping[str, Any]]:
    if config is None:
        return {}
    from skylevel.settings_file import read_settings

    return read_settings(config)


def _preset(preset: str, names: list[str]) -> dict[str, Recipe]:
    knowing = [name for name in names if preset in RECIPES[name].presets]
    if not knowing:
        known = sorted({known for name in names for known in RECIPES[name].presets})
        raise SettingsError(f"unknown preset {preset!r}; known: {', '.join(known)}{nearest(preset, known)}")
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
    # More digits than these are no share, and more than Python reads.
    if not all(number.isdecimal() and len(number) < 10 for number in (index, count)):
        raise SettingsError(f"--partition {text}: needs I/N, such as 3/16")
    return int(index), int(count)
