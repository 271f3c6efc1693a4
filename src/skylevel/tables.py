"""What commands tell of a run, a plan and a program's state: each a document, printed as JSON or as tables."""

import dataclasses
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from skylevel.errors import SkylevelError
from skylevel.io.store import ProgramStore
from skylevel.io.urls import is_remote
from skylevel.program.forecast import cautions, forecast, free_disk, gigabytes, require_disk, summarize
from skylevel.program.ledger import Steps
from skylevel.program.places import work_left
from skylevel.program.plan import Exposure, store_url
from skylevel.program.run import ProgramResult
from skylevel.program.view import ExposureState, program_status
from skylevel.report import has_report, write_report
from skylevel.terminal import console, errors, print_columns, print_facts, print_json, say

if TYPE_CHECKING:
    # It draws.
    from skylevel.demo import Comparison

_TO_DO = {Steps.MEASURE: "measure", Steps.EXPORT: "export"}


def print_result(
    result: ProgramResult, *, as_json: bool, write_report: Callable[[], str | None] | None = None
) -> None:
    """Print what became of a run: what is done, what failed and why, where the files are.

    The table stands first, in one piece; its last line, the report, may be some time in coming.
    """
    if as_json:
        print_json(result_document(result, write_report() if write_report else None))
    else:
        width = _print_result(result_document(result, None))
        if write_report and (report := write_report()):
            print_facts([("report", report)], width)
    for reason in result.failed.values():
        say(f"failed: {reason}", to=errors)
    if not as_json:
        for advice in result.advice:
            say(advice)


def result_document(result: ProgramResult, report: str | None) -> dict[str, Any]:
    """Return what became of a run, as the documentation's page on commands lists it."""
    return {
        "output": result.output,
        "store": result.store,
        "report": report,
        "done": [{"name": r.name, "seconds": r.seconds, "peak_mib": r.peak_mib} for r in result.done],
        "done_before": result.skipped,
        "failed": [{"name": name, "reason": reason} for name, reason in result.failed.items()],
        "advice": result.advice,
    }


def _print_result(told: Mapping[str, Any]) -> int:
    before = [("done before", str(len(told["done_before"])))] if told["done_before"] else []
    took = [("work", _work(told["done"]))] if told["done"] else []
    done, failed = (str(len(told[state])) for state in ("done", "failed"))
    where = [("outputs", told["output"]), ("store", told["store"])]
    return print_facts([("done", done), *before, ("failed", failed), *took, *where])


def _work(done: Sequence[Mapping[str, Any]]) -> str:
    """Return where the workers' time went, and the most memory that one held."""
    seconds: Counter[str] = Counter()
    for record in done:
        seconds.update(record["seconds"])
    stages = ", ".join(f"{stage} {total:.1f} s" for stage, total in seconds.items())
    slowest = max(done, key=lambda record: sum(record["seconds"].values()))
    peak = max(record["peak_mib"] for record in done)
    took = f"slowest {slowest['name']} {sum(slowest['seconds'].values()):.1f} s"
    return f"{stages}; {took}; a worker held up to {gigabytes(peak * (1 << 20))}"


def report_of(result: ProgramResult, *, shared: Collection[str] = ()) -> str | None:
    """Write a run's report, unless the earlier one stands, as nothing was done. It fails no run.

    Of shares, which have these exposures together, the last one writes it.
    """
    try:
        if shared and any(one.state == "left" and one.name in shared for one in program_status(result.output)):
            return None
        earlier = None if result.done or result.failed else has_report(result.output)
        return earlier or write_report(result.output)
    except SkylevelError as error:
        say(f"no report: {error}", to=errors)
        return None


def print_plan(plan: Sequence[Exposure], output: str, *, overwrite: bool, verify: bool, as_json: bool) -> None:
    """Print what there is to do, of which kinds, and what it needs."""
    told = plan_document(plan, output, overwrite=overwrite, verify=verify)
    (print_json if as_json else _print_plan)(told)
    fails = sorted((e["name"], e["fails"]) for e in told["exposures"] if e["fails"])
    for line in [*told["cautions"], *(f"would fail: {reason}" for _, reason in fails)]:
        say(line, to=errors)


def plan_document(plan: Sequence[Exposure], output: str, *, overwrite: bool, verify: bool) -> dict[str, Any]:
    """Return what there is to do, as the documentation's page on commands lists it."""
    work = work_left(plan, ProgramStore(store_url(output)), overwrite=overwrite, verify=verify)
    left = [exposure for exposure in plan if work[exposure.name]]
    needs = forecast(left)
    fails = {e.name: e.trouble for e in left if e.trouble} | require_disk(needs, output)
    return {
        "output": output,
        "exposures": [
            {
                "name": exposure.name,
                "source": exposure.source,
                "recipe": exposure.recipe.name,
                "bytes": exposure.identity.get("size"),
                "to_do": [text for step, text in _TO_DO.items() if step in work[exposure.name]],
                "outputs": dict(exposure.outputs),
                "fails": fails.get(exposure.name),
            }
            for exposure in plan
        ],
        "kinds": [
            {"recipe": recipe, "detector": detector, "filter": band, "exposures": count}
            for (recipe, detector, band), count in summarize({n: need for n, need in needs.items() if n not in fails})
        ],
        "output_bytes": sum(need.output for need in needs.values()),
        "free_bytes": None if is_remote(output) else free_disk(output),
        "worker_bytes": max((need.memory for need in needs.values()), default=0),
        "cautions": cautions(left),
    }


def _print_plan(told: Mapping[str, Any]) -> None:
    exposures = told["exposures"]
    print_columns([("exposure", "recipe", "size", "to do"), *map(_planned, exposures)])
    if told["kinds"]:
        console.print()
        kinds = [(*map(str, kind.values()),) for kind in told["kinds"]]
        print_columns([("recipe", "detector or camera", "filter", "exposures"), *kinds])
    done, fail = sum(not e["to_do"] for e in exposures), sum(e["fails"] is not None for e in exposures)
    free = f" ({gigabytes(told['free_bytes'])} free)" if told["free_bytes"] is not None else ""
    console.print()
    print_facts(
        [
            ("exposures", f"{len(exposures)}, {done} done already" + (f", {fail} would fail" if fail else "")),
            ("outputs", f"about {gigabytes(told['output_bytes'])}{free}"),
            ("into", told["output"]),
            ("memory", f"up to {gigabytes(told['worker_bytes'])} for a worker"),
        ]
    )


def _planned(exposure: Mapping[str, Any]) -> tuple[str, str, str, str]:
    size = "?" if exposure["bytes"] is None else gigabytes(exposure["bytes"])
    to_do = "nothing: fails" if exposure["fails"] else ", ".join(exposure["to_do"]) or "-"
    return exposure["name"], exposure["recipe"], size, to_do


def print_status(states: Sequence[ExposureState], output: str, *, as_json: bool) -> None:
    """Print how many exposures are done, and by name what failed and what is left."""
    told = status_document(states, output)
    (print_json if as_json else _print_status)(told)


def status_document(states: Sequence[ExposureState], output: str) -> dict[str, Any]:
    """Return the state of a program, as the documentation's page on commands lists it."""
    count = Counter(state.state for state in states)
    return {
        "output": output,
        **{state: count[state] for state in ("done", "failed", "left")},
        "exposures": [{"name": s.name, "state": s.state, "reason": s.reason or None} for s in states],
    }


def _print_status(told: Mapping[str, Any]) -> None:
    say(f"{told['output']}: " + ", ".join(f"{told[state]} {state}" for state in ("done", "failed", "left")))
    for exposure in told["exposures"]:
        if exposure["state"] != "done":
            said = f"  {exposure['state']}  {exposure['name']}  {exposure['reason'] or ''}"
            say(said.rstrip(), indent=10)


def print_comparison(compared: "Sequence[Comparison]", pages: Mapping[str, str | None], *, as_json: bool) -> None:
    """Print how much of the demo's structure each preset left, and where its report and its picture are."""
    if as_json:
        print_json({**pages, "compared": [dataclasses.asdict(one) for one in compared]})
        return
    say("Structure of each exposure, as rms against the truth: of its rows' levels (stripes), of each amplifier's rows")
    say("(amplifiers), of a raw frame's sky (gradient); and what each preset leaves of it:")
    console.print()
    print_columns([("exposure", "what", "before", *compared[0].after, "unit"), *map(_compared, compared)])
    console.print()
    print_facts([(name, place) for name, place in pages.items() if place])


def _compared(one: "Comparison") -> tuple[str, ...]:
    from skylevel.demo.measure import three_digits  # noqa: PLC0415 (it draws: none but the demo needs it)

    return one.name, one.quantity, *map(three_digits, (one.before, *one.after.values())), one.unit
