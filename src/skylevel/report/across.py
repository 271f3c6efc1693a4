"""What a report shows across exposures: levels over time, stripes by kind, and what groups know together."""

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from skylevel.errors import StoreError
from skylevel.io.names import number_of
from skylevel.io.store import ProgramStore
from skylevel.program.ledger import Ledger
from skylevel.report.drawing import Axis, Plane, Plot, axis_over, line_plot, plane_plot
from skylevel.report.entries import Entry, by_kind

Values = NDArray[Any]

# Exposures of a kind whose dots are drawn; of more, the range within which eight of ten are.
_MOST_DOTS = 60
# Values of a group's variable that are listed.
_LISTED = 12


class Spread(NamedTuple):
    """Stripes of a kind of exposures: the medians before and after, their ranges, and dots, in units of a drawing."""

    name: str
    text: str
    before: float
    after: float
    before_range: tuple[float, float]
    after_range: tuple[float, float]
    before_dots: list[float]
    after_dots: list[float]


class Stripes(NamedTuple):
    """Stripes by detector and filter, of exposures of one unit, over one axis."""

    axis: Axis
    rows: list[Spread]


class GroupView(NamedTuple):
    """What a group knows together: of each variable a plot, or its values as text."""

    name: str
    identity: str
    members: list[str]
    plots: list[Plot | Plane]
    values: list[tuple[str, str]]


def title_of(kind: tuple[str, str]) -> str:
    """Return what a detector and filter are called on the page."""
    return " · ".join(part for part in kind if part) or "unknown"


def stripes_by_kind(entries: Sequence[Entry]) -> list[Stripes]:
    """Return the stripes before and after by detector and filter, a drawing for each unit."""
    # None at all after is as good as it gets, though a logarithmic axis has no place for it but its end.
    known = [entry for entry in entries if entry.stripes[0] > 0 and entry.stripes[1] >= 0]
    drawings = []
    for unit in sorted({entry.unit for entry in known}):
        some = [entry for entry in known if entry.unit == unit]
        values = [value for entry in some for value in entry.stripes]
        axis = axis_over(values, 560, f"stripes / {unit}" if unit else "stripes", log=True)
        drawings.append(Stripes(axis, [_spread(kind, of_kind, axis) for kind, of_kind in by_kind(some).items()]))
    return drawings


def _spread(kind: tuple[str, str], entries: Sequence[Entry], axis: Axis) -> Spread:
    values = np.array([entry.stripes for entry in entries])
    medians = np.median(values, axis=0)
    low, high = np.percentile(values, (10, 90), axis=0)
    at = np.round(_on(axis, values), 1)
    dots = (at[:, 0].tolist(), at[:, 1].tolist()) if len(entries) <= _MOST_DOTS else ([], [])
    x = [np.round(_on(axis, of), 1).tolist() for of in (medians, low, high)]
    text = f"{medians[0]:.3g} before, {medians[1]:.3g} after ({number_of(len(entries), 'exposure')})"
    median, low, high = x
    return Spread(
        title_of(kind), text, median[0], median[1], (low[0], high[0]), (low[1], high[1]), dots[0], dots[1]
    )


def _on(axis: Axis, values: Values) -> Values:
    """Return where values stand on an axis, at its end where they are beyond."""
    return np.clip(axis.at(values), 0.0, axis.length)


def levels_over_time(store: ProgramStore, entries: Sequence[Entry]) -> Iterator[Plane | Plot]:
    """Yield for each node of the store what its exposures' levels did over time.

    Of rows, or columns, a plane (exposure, line) of each exposure's levels less their median; of colours, lines of
    each channel's median background. Exposures follow each other in time. A node with one exposure shows nothing new.
    """
    for node, some in _by_node(entries).items():
        try:
            dataset = store.open_node(node)
        except (OSError, KeyError, ValueError):
            # Its exposures' states say so.
            continue
        order = [entry.exposure.place.index for entry in some if entry.exposure.place]
        if "row_level" in dataset:
            yield _waterfall(some, dataset["row_level"], order)
        elif "channel" in dataset.get("background", xr.DataArray()).dims:
            yield _channels_over_time(some, dataset["background"], order)


def _by_node(entries: Sequence[Entry]) -> dict[str, list[Entry]]:
    nodes: dict[str, list[Entry]] = {}
    for some in by_kind([entry for entry in entries if entry.record]).values():
        for entry in some:
            if entry.exposure.place:
                nodes.setdefault(entry.exposure.place.node, []).append(entry)
    return {node: some for node, some in nodes.items() if len(some) > 1}


def _waterfall(entries: Sequence[Entry], levels: xr.DataArray, order: list[int]) -> Plane:
    line = next((str(dim) for dim in ("y", "x") if dim in levels.dims), "y")
    known = _readable(levels, order)
    others = tuple(i for i, dim in enumerate(levels.dims) if dim not in ("exposure", line))
    with np.errstate(invalid="ignore"):
        plane = _nan_mean(known, others)
        plane = plane - _nan_median(plane)[:, None]
    what = "row" if line == "y" else "column"
    ends = f"first {entries[0].name}, last {entries[-1].name}"
    title = f"{title_of(entries[0].kind)}: {number_of(len(entries), 'exposure')}"
    return plane_plot(
        title, plane, f"detector {what}", "exposure", entries[0].unit, notes=(ends,),
        size=(560, min(max(8 * len(entries), 80), 320)),
    )  # fmt: skip


def _channels_over_time(entries: Sequence[Entry], background: xr.DataArray, order: list[int]) -> Plot:
    known = _readable(background, order)
    medians = _nan_median(known.reshape(*known.shape[:2], -1))
    names = [str(channel) for channel in background["channel"].values]
    styles = [{"R": 2, "G": 3, "B": 0}.get(name, 4 + i % 4) for i, name in enumerate(names)]
    return line_plot(
        f"{title_of(entries[0].kind)}: {number_of(len(entries), 'exposure')}",
        ("exposure, in time", np.arange(1, len(entries) + 1)),
        f"median background / {entries[0].unit or 'ADU'}",
        [(name, medians[:, i]) for i, name in enumerate(names)],
        dots=len(entries) <= _MOST_DOTS,
        styles=styles,
    )


def _readable(array: xr.DataArray, order: Sequence[int]) -> Values:
    """Return an array of a node's exposures in an order; NaN where a chunk is damaged."""
    try:
        return np.asarray(array.isel(exposure=list(order)).to_numpy(), float)
    except (OSError, ValueError, RuntimeError):
        return np.stack([_one(array, index) for index in order])


def _one(array: xr.DataArray, index: int) -> Values:
    try:
        return np.asarray(array.isel(exposure=index).to_numpy(), float)
    except (OSError, ValueError, RuntimeError):
        return np.full(array.shape[1:], np.nan)


def _nan_mean(values: Values, axes: tuple[int, ...]) -> Values:
    known = np.isfinite(values)
    count = known.sum(axis=axes)
    return np.where(count > 0, np.where(known, values, 0.0).sum(axis=axes) / np.maximum(count, 1), np.nan)


def _nan_median(values: Values) -> Values:
    """Return the median of finite values along the last axis; NaN where there is none."""
    known = np.isfinite(values)
    some = np.asarray(known.any(axis=-1))
    medians = np.nanmedian(np.where(known, values, np.where(some[..., None], np.nan, 0.0)), axis=-1)
    return np.where(some, medians, np.nan)


def group_views(store: ProgramStore, ledger: Ledger) -> Iterator[GroupView]:
    """Yield what each group of exposures knows together, as its stored variables say it."""
    for (node, name), members in sorted(ledger.groups().items()):
        try:
            found = store.read_group(node, name)
        except StoreError:
            found = None
        if found is not None:
            plots, values = _group_variables(found[1])
            instrument = members[0].facts.instrument if members[0].facts else ("", "")
            named = [member.name for member in members]
            yield GroupView(title_of(instrument), f"{node}, {name}", named, plots, values)


def _group_variables(result: xr.Dataset) -> tuple[list[Plot | Plane], list[tuple[str, str]]]:
    """Return plots of a group's larger variables, and the values of the others as text, by their names."""
    plots: list[Plot | Plane] = []
    values: list[tuple[str, str]] = []
    for key, variable in result.data_vars.items():
        if str(variable.attrs.get("drawn_as")) in result:
            # Coefficients of a surface that is drawn.
            continue
        about = str(variable.attrs.get("long_name") or str(key).replace("_", " "))
        unit = str(variable.attrs.get("units") or "")
        unit = "" if unit == "1" else unit
        drawn = list(_variable_plots(about, unit, variable))
        plots += drawn
        if not drawn:
            values.append((about, f"{_text(variable.values)} {unit}".strip()))
    return plots, values


def _variable_plots(about: str, unit: str, variable: xr.DataArray) -> Iterator[Plot | Plane]:
    """Yield plots of a variable with one or two dimensions, or of each plane of one with three; of others, none."""
    if variable.dtype.kind not in "fiub" or variable.size <= _LISTED or not np.isfinite(variable.values).any():
        return
    values, dims = np.asarray(variable.values, float), [str(dim).replace("_", " ") for dim in variable.dims]
    if values.ndim == 1:
        yield line_plot(about, (dims[0], np.arange(len(values))), unit, [(about, values)])
    elif values.ndim == 2:
        yield _group_plane(about, values, dims, unit)
    elif values.ndim == 3 and len(values) <= 8:
        labels = variable[variable.dims[0]].values if variable.dims[0] in variable.coords else range(len(values))
        for label, plane in zip(labels, values, strict=True):
            yield _group_plane(f"{about}, {dims[0]} {label}", plane, dims[1:], unit)


def _group_plane(title: str, plane: Values, dims: list[str], unit: str) -> Plane:
    side = 260.0
    tall = min(max(side * plane.shape[0] / plane.shape[1], 60.0), 360.0)
    return plane_plot(title, plane, dims[1], dims[0], unit, size=(side, tall), upwards=True)


def _text(values: Any) -> str:
    flat = np.asarray(values).ravel()
    if flat.dtype.kind == "f" and not np.isfinite(flat).any():
        return "–"
    listed = (f"{value:.4g}" if isinstance(value, float) else str(value) for value in flat[:_LISTED].tolist())
    return ", ".join(listed) + (f", … ({flat.size} values)" if flat.size > _LISTED else "")
