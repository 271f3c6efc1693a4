"""What the page says: entries, drawings and pictures, filled into templates that escape all text."""

import base64
import hashlib
import math
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from functools import cache
from importlib.resources import files
from typing import Any, NamedTuple

import jinja2
from markupsafe import Markup

from skylevel.io.names import number_of, printable
from skylevel.io.records import PICTURE
from skylevel.io.store import ProgramStore
from skylevel.io.urls import public_url, url_name
from skylevel.program.forecast import gigabytes
from skylevel.program.ledger import Ledger
from skylevel.report.across import group_views, levels_over_time, stripes_by_kind, title_of
from skylevel.report.drawing import CIVIDIS
from skylevel.report.entries import OWN, UNKNOWN, Entry, by_kind, label, outliers, told
from skylevel.report.pictures import picture_from
from skylevel.version import __version__

PAGE_TEMPLATE, EXPOSURE_TEMPLATE = "page.html.j2", "exposure.html.j2"

#: Exposures whose pictures stand in one script.
PER_PACK = 100

_MOST_OUTLIERS = 30
# What a header tells of an exposure, by the names under which it is shown, with units.
_FACTS = {
    "exposure_time": ("exposure time", "s"), "pupil": ("pupil", ""), "subarray": ("subarray", ""), "iso": ("ISO", ""),
}  # fmt: skip
# Name, key and whether it is a number, of the table's columns.
_COLUMNS = (
    ("exposure", "name", False), ("state", "state", False), ("detector or camera", "detector", False),
    ("filter", "filter", False), ("stripes before", "before", True), ("after", "after", True),
    ("in sources", "sources", True), ("seconds", "seconds", True), ("reason of failure", "reason", False),
)  # fmt: skip


class Cell(NamedTuple):
    """Of the table: what is shown, what it is sorted by where that is another, and whether it is worse than before."""

    text: str
    sort: float | str | None = None
    worse: bool = False


@cache
def templates() -> jinja2.Environment:
    """Return what fills in templates: all text is escaped, and what a template needs and is not given is an error."""
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("skylevel.report"), autoescape=True, undefined=jinja2.StrictUndefined,
        trim_blocks=False, finalize=_shown,
    )  # fmt: skip
    environment.filters |= {
        "title_of": title_of, "number_of": number_of, "short": lambda text, limit: printable(text, limit=limit),
    }  # fmt: skip
    return environment


def get_ready() -> None:
    """Compile the templates, which takes longer than to fill them in for a small program."""
    for name in (PAGE_TEMPLATE, EXPOSURE_TEMPLATE):
        templates().get_template(name)


def _shown(value: Any) -> Any:
    """Return text from outside without controls or marks of direction, which would disturb what stands around it."""
    return printable(value) if type(value) is str and not value.isprintable() else value


def fragments(found: jinja2.Environment, store: ProgramStore, entries: Sequence[Entry]) -> Iterator[str]:
    """Yield what is shown when an exposure is opened, as HTML; few of the pictures are held at a time."""
    template = found.get_template(EXPOSURE_TEMPLATE)
    for first in range(0, len(entries), PER_PACK):
        some = entries[first : first + PER_PACK]
        places = [entry.exposure.place for entry in some if entry.exposure.place and entry.record]
        kept = store.read_records(places, pictures=True)
        pictures = {place: picture_from(record.get(PICTURE)) for place, record in kept.items()}
        for entry in some:
            picture = pictures.get(entry.exposure.place) if entry.exposure.place else None
            yield template.render(entry=entry, picture=picture, facts=list(_facts(entry)))


def _facts(entry: Entry) -> Iterator[tuple[str, str]]:
    """Yield what is known of an exposure, by the names under which people look for it."""
    yield "file", url_name(public_url(entry.exposure.source))
    yield "recipe", entry.exposure.recipe.name
    facts = entry.record.get("facts", {})
    for name, (text, unit) in _FACTS.items():
        if facts.get(name) not in (None, ""):
            yield text, f"{facts[name]} {unit}".strip()
    before, after = entry.stripes
    if math.isfinite(before):
        yield "stripes before", told(before, OWN, entry)
        yield "stripes after", told(after, OWN, entry) + (", more than before" if entry.stripes_grew else "")
    for name, value in entry.further_metrics.items():
        text, unit_of = label(name)
        yield text, told(value, unit_of, entry)
    for stage, seconds in entry.stages.items():
        yield f"time to {stage}", f"{seconds:.3g} s"


def context(folder: str, store: ProgramStore, ledger: Ledger, entries: Sequence[Entry]) -> dict[str, Any]:
    """Return what the page's template fills in, but its pictures."""
    style, script = (_static(name) for name in ("page.css", "page.js"))
    columns = _columns(entries)
    return {
        "title": public_url(folder).rsplit("/", 1)[-1] or "program",
        "version": __version__,
        "written": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "per": PER_PACK,
        "style": Markup(style),
        "script": Markup(script),
        "style_hash": _hash(style),
        "script_hash": _hash(script),
        "counts": {state: sum(e.state == state for e in entries) for state in ("done", "failed", "left")},
        "totals": _totals(entries),
        "kinds": _kinds(entries),
        "recipes": _recipes(entries),
        "stages": _stages(entries),
        "columns": columns,
        "rows": [_row(entry)[: len(columns)] for entry in entries],
        "choices": _choices(entries),
        "worse": any(entry.stripes_grew for entry in entries),
        **_outliers(entries),
        "stripes": stripes_by_kind(entries),
        "over_time": list(levels_over_time(store, entries)),
        "groups": list(group_views(store, ledger)),
        "cividis": CIVIDIS,
    }


def _static(name: str) -> str:
    return files("skylevel.report").joinpath("templates", name).read_text(encoding="utf-8")


def _outliers(entries: Sequence[Entry]) -> dict[str, Any]:
    """Return the exposures that stand out, each with what it does in."""
    index = {entry.name: i for i, entry in enumerate(entries)}
    found: dict[str, list[str]] = {}
    for outlier in outliers(entries):
        value, usual = (told(one, outlier.unit, outlier.entry) for one in (outlier.value, outlier.usual))
        found.setdefault(outlier.entry.name, []).append(f"{outlier.what} {value} (others {usual})")
    shown = [(index[name], name, in_what) for name, in_what in found.items()][:_MOST_OUTLIERS]
    return {"outliers": shown, "more_outliers": len(found) - len(shown)}


def _hash(text: str) -> str:
    """Return what a content security policy names an inline text by."""
    return f"sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}"


def _totals(entries: Sequence[Entry]) -> list[tuple[str, str]]:
    seconds = [entry.seconds for entry in entries if math.isfinite(entry.seconds)]
    peaks = [entry.peak for entry in entries if math.isfinite(entry.peak)]
    totals = []
    if seconds:
        totals.append((_duration(sum(seconds)), "of work"))
        totals.append((f"{sorted(seconds)[len(seconds) // 2]:.2g} s", "an exposure (median)"))
    if peaks:
        totals.append((gigabytes(max(peaks) * (1 << 20)), "a worker held at most"))
    return totals


def _duration(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.3g} s"
    return f"{seconds / 60:.3g} min" if seconds < 7200 else f"{seconds / 3600:.3g} h"


def _stages(entries: Sequence[Entry]) -> list[tuple[str, str]]:
    """Return what each stage took in all exposures, the longest first."""
    sums: dict[str, float] = {}
    for entry in entries:
        for stage, seconds in entry.stages.items():
            sums[stage] = sums.get(stage, 0.0) + seconds
    return [(stage, _duration(total)) for stage, total in sorted(sums.items(), key=lambda pair: -pair[1])]


def _kinds(entries: Sequence[Entry]) -> list[dict[str, Any]]:
    """Return how many exposures there are of each recipe, detector and filter, and their median stripes."""
    rows = []
    for kind, of_kind in by_kind(entries).items():
        for recipe in sorted({entry.exposure.recipe.name for entry in of_kind}):
            some = [entry for entry in of_kind if entry.exposure.recipe.name == recipe]
            done = sum(entry.state == "done" for entry in some)
            rows.append(
                {"recipe": recipe, "kind": kind, "count": len(some), "done": done, "stripes": _median_stripes(some)}
            )
    return rows


def _median_stripes(entries: Sequence[Entry]) -> str:
    known = [entry for entry in entries if all(map(math.isfinite, entry.stripes))]
    if not known:
        return ""
    before, after = (sorted(entry.stripes[i] for entry in known)[len(known) // 2] for i in (0, 1))
    return f"{before:.3g} → {after:.3g} {known[0].unit}".rstrip()


def _recipes(entries: Sequence[Entry]) -> list[dict[str, Any]]:
    """Return the settings that were used: each recipe, what of it is no default, and how many exposures had it."""
    counts: dict[Any, int] = {}
    for entry in entries:
        key = (entry.exposure.recipe.name, entry.exposure.recipe.hash)
        counts[key] = counts.get(key, 0) + 1
    shown = []
    for (name, digest), count in counts.items():
        recipe = next(e.exposure.recipe for e in entries if e.exposure.recipe.hash == digest)
        default = type(recipe)().to_dict()
        settings = [(key, str(value), value == default[key]) for key, value in recipe.to_dict().items()]
        changed = [f"{key} = {value}" for key, value, is_default in settings if not is_default]
        shown.append({"name": name, "count": count, "settings": settings, "changed": changed})
    return shown


def _columns(entries: Sequence[Entry]) -> list[tuple[str, str, bool]]:
    """Return the table's columns; the stripes' unit stands there, where all have one."""
    units = {entry.unit for entry in entries if math.isfinite(entry.stripes[0])}
    unit = f", {units.pop()}" if len(units) == 1 else ""
    columns = [(name + (unit if key == "before" else ""), key, is_number) for name, key, is_number in _COLUMNS]
    return columns if any(entry.reason for entry in entries) else columns[:-1]


def _row(entry: Entry) -> list[Cell]:
    before, after = entry.stripes
    return [
        Cell(entry.name), Cell(entry.state), *(Cell(name or UNKNOWN, name) for name in entry.kind),
        _number_cell(before, "{:.3g}"), _number_cell(after, "{:.3g}")._replace(worse=entry.stripes_grew),
        _number_cell(entry.sources, "{:.1%}"), _number_cell(entry.seconds, "{:.2f}"), Cell(entry.reason),
    ]  # fmt: skip


def _number_cell(value: float, form: str) -> Cell:
    return Cell(form.format(value), float(f"{value:.6g}")) if math.isfinite(value) else Cell(UNKNOWN, "")


def _choices(entries: Sequence[Entry]) -> Mapping[str, list[str]]:
    """Return what the table can be filtered by, where there is a choice."""
    columns = {
        "state": {entry.state for entry in entries}, "detector": {entry.kind[0] for entry in entries},
        "filter": {entry.kind[1] for entry in entries},
    }  # fmt: skip
    return {name: sorted(values - {""}) for name, values in columns.items() if len(values) > 1}
