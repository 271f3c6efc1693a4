"""What the store tells of each exposure, as the report's table shows it."""

import math
import re
import statistics
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from skylevel.errors import SettingsError
from skylevel.io.names import printable
from skylevel.kernels.pattern import ColorPattern
from skylevel.program.ledger import Ledger
from skylevel.program.plan import Exposure
from skylevel.program.view import states_of

#: Units of a metric: the exposure's own, its square, and a part of 1, which is shown in percent.
OWN, SQUARED, PART = "", "²", "part"

#: What metrics are called on the page, with a unit, or None where there is none. Others go under their own names.
LABELS: Mapping[str, tuple[str, str | None]] = {
    "masked_fraction": ("pixels in sources", PART),
    "unlevelled": ("rows or columns left as they were", None),
    "exclude_percentile": ("pixels a box may lack", "%"),
    "row_level_std": ("scatter of the levels subtracted", OWN),
    "sky_gradient": ("change of the sky across the frame", PART),
    "scatter_after": ("scatter of neighbours after, over that of white noise", None),
    "source_flux": ("light of sources before (sample)", OWN),
    "source_flux_after": ("light of sources after (sample)", OWN),
    "n_amplifiers": ("amplifiers", None),
    "believed": ("model of sky and sources believed", None),
    "misfit": ("scatter about the model, over that of white noise", None),
    "used": ("good pixels in the fit", PART),
    "sky_level": ("level of the sky", OWN),
    "white_noise": ("noise of a pixel", OWN),
    "stripes_common": ("power of the stripes that amplifiers share", SQUARED),
    "stripes_own": ("power of each amplifier's own stripes", SQUARED),
    "stripes_exponent": ("exponent of the stripes' power", None),
    "background_median": ("median background", OWN),
    "uneven": ("unevenness of the background (rms)", OWN),
    "uneven_noise": ("unevenness expected of noise (rms)", OWN),
    "boxes_left_out": ("boxes left out", PART),
    "gradient_before": ("sky's gradient before (rms)", OWN),
    "gradient_after": ("sky's gradient after (rms)", OWN),
    "gradient_noise": ("gradient expected of noise (rms)", OWN),
}
# Told with the stripes.
_GREW = "stripes_grew"
_STRIPES = re.compile(r"(stripe\w*)_before\Z")
_TOLD_ELSEWHERE = ("seconds", "peaks_mib", _GREW)
# Exposures of a kind that tell what is usual, and how many standard deviations are not.
_ENOUGH, _FAR = 5, 5.0
_MAD_TO_STD = 1.4826
#: What stands for a number that is not known.
UNKNOWN = "–"
# Characters of a list.
_LONGEST = 200


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """An exposure on the page.

    Attributes
    ----------
    exposure : Exposure
    state, reason : str
        As `skylevel.program.view.ExposureState`.
    record : mapping
        Its commit record without the picture; empty where it is not measured.
    """

    exposure: Exposure
    state: str
    reason: str
    record: Mapping[str, Any] = field(repr=False)

    @property
    def name(self) -> str:
        """Its name."""
        return self.exposure.name

    @property
    def kind(self) -> tuple[str, str]:
        """Detector or camera, and filter; empty where unknown."""
        return self.exposure.facts.instrument if self.exposure.facts else ("", "")

    @property
    def unit(self) -> str:
        """Of its pixels."""
        return str(self.record.get("facts", {}).get("unit") or "")

    @property
    def date(self) -> str:
        """When it began, as its header says; empty where it does not."""
        return str(self.record.get("facts", {}).get("date_obs") or "")

    @property
    def metrics(self) -> dict[str, Any]:
        """What its job says of it."""
        return {k: v for k, v in self.record.get("metrics", {}).items() if k not in _TOLD_ELSEWHERE}

    @property
    def stripes(self) -> tuple[float, float]:
        """Stripes before and after, as the job measured them, or else by its lines' scatter; NaN where unknown."""
        metrics = self.metrics
        for key in metrics:
            if (found := _STRIPES.match(key)) and f"{found[1]}_after" in metrics:
                return number(metrics[key]), number(metrics[f"{found[1]}_after"])
        scatter = self._exported.get("line_scatter")
        known = scatter if isinstance(scatter, dict) else {}
        return number(known.get("before")), number(known.get("after"))

    @property
    def stripes_grew(self) -> bool:
        """Whether its stripes are more than before, as its job judged them."""
        return self.record.get("metrics", {}).get(_GREW) is True

    @property
    def further_metrics(self) -> dict[str, Any]:
        """Those that are not its stripes."""
        found = [match[1] for name in self.metrics if (match := _STRIPES.match(name))]
        shown = {f"{stripe}_{when}" for stripe in found for when in ("before", "after")}
        return {name: value for name, value in self.metrics.items() if name not in shown}

    @property
    def channels(self) -> list[str]:
        """Its colours, in the order of its metrics; empty where it has none."""
        rows = self.record.get("facts", {}).get("color_filter_array")
        try:
            return ColorPattern.of(rows).channels if rows else []
        except SettingsError:
            return []

    @property
    def sources(self) -> float:
        """Share of its pixels in sources; NaN where unknown."""
        return number(self.metrics.get("masked_fraction"))

    @property
    def stages(self) -> dict[str, float]:
        """Seconds of each stage, by name."""
        first = _numbers(self.record.get("metrics", {}).get("seconds"))
        last = _numbers(self._exported.get("seconds"))
        # Of a group's member, or one that was exported anew, each of the two tasks read the file.
        again = first.get("read", 0.0) if "measure" not in last else 0.0
        return {**first, **last, **({"read": last["read"] + again} if "read" in last else {})}

    @property
    def seconds(self) -> float:
        """What it took; NaN where unknown."""
        return sum(self.stages.values()) if self.stages else math.nan

    @property
    def peak(self) -> float:
        """The most memory, in MiB, that its workers had held; NaN where unknown."""
        return max(_numbers(self._exported.get("peaks_mib")).values(), default=math.nan)

    @property
    def _exported(self) -> Mapping[str, Any]:
        exported = self.record.get("export_metrics")
        return exported if isinstance(exported, dict) else {}


def entries_of(ledger: Ledger, failures: Mapping[str, str]) -> list[Entry]:
    """Return every exposure of a plan, in its order."""
    states = states_of(ledger, failures)
    return [
        Entry(exposure=exposure, state=state.state, reason=state.reason, record=ledger.records.get(exposure.name, {}))
        for exposure, state in zip(ledger.plan, states, strict=True)
    ]


def by_kind(entries: Sequence[Entry]) -> dict[tuple[str, str], list[Entry]]:
    """Return exposures by detector (or camera) and filter, sorted; within each in order of time."""
    kinds: dict[tuple[str, str], list[Entry]] = defaultdict(list)
    for entry in entries:
        kinds[entry.kind].append(entry)
    return {kind: sorted(kinds[kind], key=lambda entry: (entry.date, entry.name)) for kind in sorted(kinds)}


@dataclass(frozen=True, slots=True)
class Outlier:
    """An exposure that stands out of its kind: in what, its value, what is usual, and the unit of both."""

    entry: Entry
    what: str
    value: float
    usual: float
    unit: str | None = OWN


def outliers(entries: Sequence[Entry]) -> list[Outlier]:
    """Return the exposures that stand out of those of their detector and filter, the farthest first."""
    found = [
        (far, Outlier(some[i], what, values[i], usual, unit))
        for some in by_kind(entries).values()
        for (what, unit), values in _compared(some)
        for i, far, usual in _far(values)
    ]
    return [outlier for _, outlier in sorted(found, key=lambda pair: -pair[0])]


def _compared(entries: Sequence[Entry]) -> Iterator[tuple[tuple[str, str | None], list[float]]]:
    yield ("stripes before", OWN), [entry.stripes[0] for entry in entries]
    yield ("stripes after", OWN), [entry.stripes[1] for entry in entries]
    for name in dict.fromkeys(name for entry in entries for name in entry.metrics):
        if not _STRIPES.match(name) and not name.endswith("_after"):
            yield label(name), [number(entry.metrics.get(name)) for entry in entries]


def _far(values: Sequence[float]) -> Iterator[tuple[int, float, float]]:
    """Yield which values are far from the others, how far in standard deviations, and the median."""
    known = [value for value in values if math.isfinite(value)]
    if len(known) < _ENOUGH:
        return
    usual = statistics.median(known)
    # Where most are the same, such as no line left out, a tenth of them is as good as a standard deviation.
    spread = max(_MAD_TO_STD * statistics.median(abs(value - usual) for value in known), 0.02 * abs(usual)) or math.inf
    for i, value in enumerate(values):
        if abs(value - usual) > _FAR * spread:
            yield i, abs(value - usual) / spread, usual


def label(name: str) -> tuple[str, str | None]:
    """Return what a metric is called, and its unit: `OWN`, `PART`, its own, or None where it has none."""
    return LABELS.get(name, (name.replace("_", " "), None))


def number(value: Any) -> float:
    """Return a number from the store as float; NaN for anything else."""
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else math.nan


def told(value: Any, unit: str | None, entry: Entry) -> str:
    """Return a metric of an exposure as text with its unit, whatever its job made it; of channels, each by name."""
    if isinstance(value, list):
        names = entry.channels if len(entry.channels) == len(value) else [""] * len(value)
        listed = ", ".join(f"{name} {_told(one, unit)}".strip() for name, one in zip(names, value, strict=True))
        return f"{printable(listed, limit=_LONGEST)} {_unit(unit, entry)}".strip()
    text = _told(value, unit)
    return text if text == UNKNOWN else f"{text} {_unit(unit, entry)}".strip()


def _told(value: Any, unit: str | None) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        known = math.isfinite(value)
        return f"{100 * value if unit == PART else value:.4g}" if known else UNKNOWN
    return UNKNOWN if value is None else str(value)


def _unit(unit: str | None, entry: Entry) -> str:
    named = {None: "", OWN: entry.unit, SQUARED: f"({entry.unit})²" if entry.unit else "", PART: "%"}
    return named.get(unit, str(unit))


def _numbers(values: Any) -> dict[str, float]:
    known = values.items() if isinstance(values, dict) else ()
    return {str(name): number(value) for name, value in known if math.isfinite(number(value))}
