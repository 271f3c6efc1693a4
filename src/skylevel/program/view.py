"""Look at a program through its store: its state, and what was measured across exposures."""

from collections import defaultdict
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
        A node for each kind of exposure: ``/<detector>/<filter>``, or for raws ``/<camera>``; where frames of several
        shapes stand side by side, ``/<detector>/<filter>/<shape>``. Each is a Dataset with the dimension `exposure`
        and the exposures' names and header facts as coordinates.

    Raises
    ------
    StoreError
        No exposure is measured there.
    """
    store = ProgramStore(store_url(output))
    groups: dict[str, list[xr.Dataset]] = defaultdict(list)
    for name in store.names():
        attributes = store.read_attributes(name)
        if attributes is not None:
            groups[_node(attributes["facts"])].append(_labelled(store.read_estimate(name), name, attributes["facts"]))
    if not groups:
        raise StoreError(f"{store.url}: holds no measured exposure")
    return xr.DataTree.from_dict(dict(_nodes(groups)))


def _node(facts: dict[str, Any]) -> str:
    parts = [facts.get("detector"), facts.get("filter")] if facts["kind"] == "jwst" else [facts.get("camera", "camera")]
    return "/".join(str(part).replace("/", "-") for part in parts if part) or "unknown"


def _labelled(estimate: xr.Dataset, name: str, facts: dict[str, Any]) -> xr.Dataset:
    labels = {key: ("exposure", [facts[key]]) for key in _COORDINATES if key in facts}
    lazily = estimate.chunk().drop_attrs().expand_dims(exposure=[name])
    return lazily.assign_coords(labels).assign_attrs(unit=facts.get("unit", ""))


def _nodes(groups: dict[str, list[xr.Dataset]]) -> list[tuple[str, xr.Dataset]]:
    nodes = []
    for node, estimates in groups.items():
        by_shape: dict[str, list[xr.Dataset]] = defaultdict(list)
        for estimate in estimates:
            by_shape[_shape(estimate)].append(estimate)
        for shape, alike in by_shape.items():
            path = node if len(by_shape) == 1 else f"{node}/{shape}"
            nodes.append((f"/{path}", xr.concat(alike, dim="exposure", join="exact", combine_attrs="drop_conflicts")))
    return nodes


def _shape(estimate: xr.Dataset) -> str:
    sizes = estimate.sizes
    return f"{sizes['y']}x{sizes['x']}" if "y" in sizes else f"mesh{sizes['mesh_y']}x{sizes['mesh_x']}"
