"""Look at a program through its store: its state, and what was measured across exposures."""

import math
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from os import PathLike
from typing import Any

import xarray as xr

from skylevel.errors import StoreError
from skylevel.io.store import ProgramStore
from skylevel.program.run import read_plan, store_url, work_left

# Facts that become coordinates along `exposure`.
_COORDINATES = ("date_obs", "exposure_time", "filter", "pupil", "detector", "iso", "camera")


@dataclass(frozen=True, slots=True)
class ExposureState:
    """Where an exposure stands: "done", "failed" (with the reason) or "left"."""

    name: str
    state: str
    reason: str = ""


def program_status(output: str | PathLike[str]) -> list[ExposureState]:
    """The state of every exposure of a program's last plan, from the store alone.

    Raises
    ------
    StoreError
        No program was run into `output`.
    """
    store = ProgramStore(store_url(output))
    plan = read_plan(store)
    failures = store.failures()
    states = []
    for name, work in work_left(plan, store).items():
        if work == "nothing":
            states.append(ExposureState(name, "done"))
        elif name in failures:
            states.append(ExposureState(name, "failed", failures[name]))
        else:
            states.append(ExposureState(name, "left"))
    return states


def open_program(output: str | PathLike[str]) -> xr.DataTree:
    """What was measured, across exposures, lazily.

    Parameters
    ----------
    output : str or path-like
        Folder or URL of a program's outputs.

    Returns
    -------
    DataTree
        A node for each kind of exposure: ``/<detector>/<filter>``, or for raws ``/<camera>``; where what was measured
        differs in its shape, ``/<detector>/<filter>/<shape>``. Each is a Dataset with the dimension `exposure` and the
        exposures' names and header facts as coordinates; a fact that only some headers have is empty or NaN elsewhere.

    Raises
    ------
    StoreError
        No exposure is measured there.
    """
    store = ProgramStore(store_url(output))
    groups: dict[str, list[_Measured]] = defaultdict(list)
    for name in store.names():
        attributes = store.read_attributes(name)
        if attributes is not None:
            estimate = store.read_estimate(name).chunk().drop_attrs()
            groups[_node(attributes["facts"])].append(_Measured(name, attributes["facts"], estimate))
    if not groups:
        raise StoreError(f"{store.url}: holds no measured exposure")
    return xr.DataTree.from_dict(dict(_nodes(groups)))


@dataclass(frozen=True, slots=True)
class _Measured:
    """One exposure's name, header facts and estimate."""

    name: str
    facts: dict[str, Any]
    estimate: xr.Dataset


def _node(facts: dict[str, Any]) -> str:
    parts = [facts.get("detector"), facts.get("filter")] if facts["kind"] == "jwst" else [facts.get("camera", "camera")]
    return "/".join(str(part).replace("/", "-") for part in parts if part) or "unknown"


def _nodes(groups: dict[str, list[_Measured]]) -> Iterator[tuple[str, xr.Dataset]]:
    for node, exposures in groups.items():
        by_shape: dict[str, list[_Measured]] = defaultdict(list)
        for exposure in exposures:
            by_shape[_shape(exposure.estimate)].append(exposure)
        for shape, alike in by_shape.items():
            yield f"/{node}" if len(by_shape) == 1 else f"/{node}/{shape}", _stacked(alike)


def _shape(estimate: xr.Dataset) -> str:
    """Text that estimates share which can be stacked: size of the frame and the mesh, direction or channels."""
    sizes = estimate.sizes
    frame = [f"{sizes['y']}x{sizes['x']}"] if "y" in sizes else []
    columns = ["columns"] if "row_level" in estimate and "x" in estimate["row_level"].dims else []
    channels = ["".join(estimate["channel"].values)] if "channel" in estimate else []
    return "-".join([*frame, f"mesh{sizes['mesh_y']}x{sizes['mesh_x']}", *columns, *channels])


def _stacked(alike: Sequence[_Measured]) -> xr.Dataset:
    estimates = [exposure.estimate.expand_dims(exposure=[exposure.name]) for exposure in alike]
    stacked = xr.concat(estimates, dim="exposure", join="exact")
    known = [key for key in _COORDINATES if any(key in exposure.facts for exposure in alike)]
    labels = {key: ("exposure", _fact(key, alike)) for key in known}
    units = {exposure.facts.get("unit", "") for exposure in alike}
    return stacked.assign_coords(labels).assign_attrs(unit=units.pop() if len(units) == 1 else "")


def _fact(key: str, exposures: Sequence[_Measured]) -> list[Any]:
    """A fact of each exposure; where its header does not have it, NaN for a number and else nothing."""
    values = [exposure.facts.get(key) for exposure in exposures]
    is_text = any(isinstance(value, str) for value in values)
    return [("" if is_text else math.nan) if value is None else value for value in values]
