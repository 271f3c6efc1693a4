"""Look at a program through its store: its state, and what was measured across exposures. Needs no cluster."""

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from os import PathLike
from typing import Any

import xarray as xr

from skylevel.errors import StoreError
from skylevel.html import table
from skylevel.io.names import safe_component
from skylevel.io.nodes import RECORD, Place, location, without_remarks
from skylevel.io.records import plain, stacked_small
from skylevel.io.store import ProgramStore
from skylevel.io.urls import without_secrets
from skylevel.level.frames import unit_power
from skylevel.program.ledger import Ledger, Steps
from skylevel.program.plan import Exposure, read_plan, store_url
from skylevel.recipes import canonical_hash

# Facts of an exposure, and numbers measured of it, that become coordinates along `exposure`.
FACTS = {
    "date_obs": {"long_name": "start of the exposure (of a camera, by its clock)"},
    "exposure_time": {"units": "s", "long_name": "exposure time"},
    "filter": {"long_name": "filter"},
    "pupil": {"long_name": "pupil wheel"},
    "detector": {"long_name": "detector"},
    "iso": {"long_name": "ISO speed"},
    "camera": {"long_name": "camera"},
}
METRICS = {
    "masked_fraction": {"units": "1", "long_name": "share of the pixels in sources"},
    "unlevelled": {"units": "1", "long_name": "rows or columns left as they were"},
    "boxes_left_out": {"units": "1", "long_name": "share of the boxes that hold light, or no pixel"},
}
# Arrays in powers of the unit of the exposure.
_POWERS = {
    **dict.fromkeys(("row_level", "background", "background_rms", "cell", "coarse_cell", "node"), 1),
    **dict.fromkeys(("sky_level", "background_coefficients"), 1),
    **dict.fromkeys(("weight", "coarse_weight"), -2),
}


@dataclass(frozen=True, slots=True)
class ExposureState:
    """Where an exposure stands: "done", "failed" (with the reason) or "left"."""

    name: str
    state: str
    reason: str = ""


class ExposureStates(list[ExposureState]):
    """States of a plan's exposures, which a notebook shows as a table."""

    def _repr_html_(self) -> str:
        """Return the table: what failed first, with its reasons, then what is left."""
        counts = {state: sum(s.state == state for s in self) for state in ("failed", "left", "done")}
        rows = [(s.name, s.state, s.reason) for state in counts for s in self if s.state == state]
        title = ", ".join(f"{n} {state}" for state, n in counts.items())
        return table(title, ("exposure", "state", "reason"), rows)


def program_status(output: str | PathLike[str], *, verify: bool = False) -> ExposureStates:
    """Return the state of every exposure of a program, from the store alone.

    Parameters
    ----------
    output : str or path-like
        Folder or URL of the outputs.
    verify : bool
        Look at the contents of stored chunks and outputs too: what is damaged is left to do.

    Raises
    ------
    StoreError
        No program was run into `output`.
    """
    store = ProgramStore(store_url(output))
    plan = read_plan(store)
    return states_of(Ledger(store, plan, verify=[e.name for e in plan] if verify else ()), store.failures())


def states_of(ledger: Ledger, failures: Mapping[str, str]) -> ExposureStates:
    """Return the state of every exposure of a plan, by what is done and why others failed."""
    states = ExposureStates()
    for name, steps in ledger.work_left().items():
        if steps is Steps.NOTHING:
            states.append(ExposureState(name, "done"))
        elif name in failures:
            states.append(ExposureState(name, "failed", failures[name]))
        else:
            states.append(ExposureState(name, "left", ledger.damage.get(name, "")))
    return states


def open_program(output: str | PathLike[str]) -> xr.DataTree:
    """Return what was measured, across exposures, lazily.

    Parameters
    ----------
    output : str or path-like
        Folder or URL of a program's outputs.

    Returns
    -------
    DataTree
        A node for each kind of exposure: ``/<detector>/<filter>``, or for raws ``/<camera>``; where what was measured
        differs in its form, ``/<detector>/<filter>/<form>``. Each is a Dataset with the dimension `exposure` and the
        exposures' names and header facts as coordinates; a fact that only some headers have is empty or NaN elsewhere.
        What is not measured is left out. What exposures know together stands below, in ``groups``.

    Raises
    ------
    StoreError
        No exposure is measured there, or the store is damaged.

    Notes
    -----
    ``xarray.open_datatree(".../program.zarr", engine="zarr")`` shows the same arrays, every place of them, with the
    form as a level of its own.
    """
    store = ProgramStore(store_url(output))
    ledger = Ledger(store, read_plan(store)) if store.has_plan() else None
    measured: dict[str, list[Exposure]] = defaultdict(list)
    for exposure in ledger.measured() if ledger else ():
        if exposure.place:
            measured[exposure.place.node].append(exposure)
    if not ledger or not measured:
        raise StoreError(f"{store.name}: holds no measured exposure")
    try:
        with without_remarks():
            tree = xr.open_datatree(location(store.url), engine="zarr", chunks={})
        nodes = {node: _stacked(tree[node].to_dataset(), measured[node], ledger.records) for node in sorted(measured)}
        named, together = dict(_named(nodes)), {(node, safe_component(group)) for node, group in ledger.groups()}
        groups = {
            f"{path}/groups/{name}": group.to_dataset()
            for path, node in zip(named, nodes, strict=True)
            for name, group in (tree[node]["groups"].children.items() if "groups" in tree[node].children else ())
            # Others are of settings that were changed since.
            if (node, name) in together
        }
        return xr.DataTree.from_dict(named | groups)
    except Exception as error:
        raise _damaged(store, error) from error


def _damaged(store: ProgramStore, error: Exception) -> StoreError:
    """Say that a store is damaged: zarr and xarray have errors of every kind for metadata that are none."""
    cause = without_secrets(str(error), store.url) or type(error).__name__
    return StoreError(f"{store.name}: is damaged: {cause}; run the program again")


def describe_program(store: ProgramStore, plan: Sequence[Exposure]) -> None:
    """Write what is known of the measured exposures beside their arrays, for any client to see; the driver's last step.

    Where that is written already nothing is. A run that was killed before it got here leaves it to the next one, which
    may find nothing else to do.

    Parameters
    ----------
    store : ProgramStore
    plan : sequence of Exposure
        All that the store has places for.

    Raises
    ------
    StoreError
        The store's metadata are damaged.
    """
    with store.locked():
        nodes: dict[str, list[Exposure]] = defaultdict(list)
        for exposure in plan:
            if exposure.place:
                nodes[exposure.place.node].append(exposure)
        told: dict[str, tuple[list[dict[str, Any]], dict[str, dict[str, Any]]]] = {}
        try:
            for node, exposures in nodes.items():
                records = store.read_records(exposure.place for exposure in exposures if exposure.place)
                told[node] = _facts(exposures, records), _attributes(records)
            key = canonical_hash(plain(told))
            if store.described() == key:
                return
            for node, (facts, attributes) in told.items():
                store.describe(node, facts, attributes)
            store.finish(key)
        except OSError:
            raise
        except Exception as error:
            raise _damaged(store, error) from error


def _facts(exposures: Sequence[Exposure], records: Mapping[Place, Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return what is told of the exposure at each place."""
    count = max(exposure.place.index for exposure in exposures if exposure.place) + 1
    by_index: list[dict[str, Any]] = [{} for _ in range(count)]
    for place, record in records.items():
        by_index[place.index] = {key: record["facts"].get(key) for key in FACTS}
        by_index[place.index] |= {key: record["metrics"].get(key) for key in METRICS}
    return by_index


def _attributes(records: Mapping[Place, Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    units = {str(record.get("facts", {}).get("unit", "")) for record in records.values()}
    unit = units.pop() if len(units) == 1 else ""
    return {**FACTS, **METRICS, **{name: {"units": unit_power(unit, power)} for name, power in _POWERS.items()}}


def _stacked(node: xr.Dataset, measured: Sequence[Exposure], records: Mapping[str, Mapping[str, Any]]) -> xr.Dataset:
    """Return a node's measured exposures, by name, with what their records alone hold."""
    in_order = sorted(measured, key=lambda exposure: exposure.name)
    places = [exposure.place.index for exposure in in_order if exposure.place]
    dataset = node.drop_vars(RECORD)
    if places != list(range(dataset.sizes["exposure"])):
        dataset = dataset.isel(exposure=places)
    of_records = [records[exposure.name] for exposure in in_order]
    units = {str(record["facts"].get("unit", "")) for record in of_records}
    facts = [name for name in (*FACTS, *METRICS) if name in dataset]
    return (
        dataset.assign(stacked_small(of_records))
        .assign_coords(exposure=("exposure", [exposure.name for exposure in in_order], {"long_name": "exposure"}))
        .set_coords(facts)
        .assign_attrs(unit=units.pop() if len(units) == 1 else "")
    )


def _named(nodes: Mapping[str, xr.Dataset]) -> Iterator[tuple[str, xr.Dataset]]:
    """Yield each node without its form where that leaves a name of its own, above no other node."""
    forms = defaultdict(list)
    for path in nodes:
        forms[path.rpartition("/")[0]].append(path)
    for instrument, paths in forms.items():
        # Such as a detector with and without a filter.
        is_above = any(other.startswith(f"{instrument}/") for other in forms)
        for path in paths:
            yield f"/{instrument if len(paths) == 1 and not is_above else path}", nodes[path]
