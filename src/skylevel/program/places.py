"""Where in the store each exposure stands: places that stay, room for new ones, and none that two could share."""

import logging
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

from skylevel.errors import PlanError, StoreError
from skylevel.io.nodes import Layout, Place
from skylevel.io.remote import is_there
from skylevel.io.store import ProgramStore
from skylevel.io.urls import is_remote
from skylevel.jobs.form import layout_of
from skylevel.program.ledger import Ledger, Steps
from skylevel.program.plan import Exposure, plan_index, read_plan, spelling_in

log = logging.getLogger("skylevel")


def settle(plan: Sequence[Exposure], store: ProgramStore) -> list[Exposure]:
    """Give every exposure its place, make room for it, and write the plan into the store.

    What earlier runs into the same output measured beside it stays, and what they did not as long as its input does.
    Several processes may do this at once with the same plan, as the shares of a job array do: one at a time, and the
    others find it done.

    Returns
    -------
    list of Exposure
        All that is in the store's plan now, by name, with places.
    """
    with store.locked():
        earlier = earlier_plan(store)
        others = _others(earlier, plan, store)
        dropped = _gone(others, store)
        whole = in_order([*with_places(plan, earlier), *(e for e in others if e.name not in dropped)])
        layouts, held = _room_for(whole)
        counts = {node: len(names) for node, names in held.items()}
        if whole != in_order(earlier) or not store.has_room(layouts, counts):
            store.prepare(layouts, held)
            store.write_plan(plan_index(whole))
    return whole


def work_left(
    plan: Sequence[Exposure], store: ProgramStore, *, overwrite: bool = False, verify: bool = False
) -> dict[str, Steps]:
    """Return what is left to do for each exposure of a plan, by name, as the store stands now; nothing is written.

    Raises
    ------
    PlanError
        An exposure would take the outputs of another file's, unless that is asked for (`overwrite`).
    """
    names = {exposure.name for exposure in plan}
    if overwrite:
        return dict.fromkeys(names, Steps.DETECT | Steps.MEASURE | Steps.EXPORT)
    earlier = earlier_plan(store)
    _refuse_other_files(plan, earlier, store)
    # Groups have members of earlier runs too.
    whole = [*with_places(plan, earlier), *_others(earlier, plan, store)]
    ledger = Ledger(store, whole, verify=names if verify else ())
    for name, damage in ledger.damage.items():
        log.warning("%s: done again: %s", name, damage)
    return {name: steps for name, steps in ledger.work_left().items() if name in names}


def _others(earlier: Iterable[Exposure], plan: Sequence[Exposure], store: ProgramStore) -> list[Exposure]:
    """Return the exposures of an earlier plan that are not in this one, nor their sources under other names."""
    spelling = spelling_in(store.url)
    names, sources = {spelling(exposure.name) for exposure in plan}, {exposure.source for exposure in plan}
    return [exposure for exposure in earlier if spelling(exposure.name) not in names and exposure.source not in sources]


def _gone(exposures: Iterable[Exposure], store: ProgramStore) -> set[str]:
    """Return the names of those that were never measured and whose input is gone."""
    # To look at one on this machine costs less than to read a record; one elsewhere costs a request.
    unsure = [exposure for exposure in exposures if is_remote(exposure.source) or not is_there(exposure.source)]
    measured = Ledger(store, unsure).records
    return {one.name for one in unsure if one.name not in measured and not is_there(one.source)}


def _refuse_other_files(plan: Sequence[Exposure], earlier: Iterable[Exposure], store: ProgramStore) -> None:
    """Refuse a plan of which an exposure would take the place of another file's, which is measured and still there."""
    spelling, sources = spelling_in(store.url), {exposure.source for exposure in plan}
    # One that is in this plan has another name now.
    before = {spelling(other.name): other for other in earlier if other.source not in sources}
    found = [(before.get(spelling(exposure.name)), exposure) for exposure in plan]
    others = {exposure.source: other for other, exposure in found if other and _is_another_file(other, exposure)}
    measured = Ledger(store, list(others.values())).records
    for source, other in others.items():
        if other.name in measured:
            raise PlanError(
                f"{source}: would write the same outputs ({other.name}...) as {other.source}, which was run into this "
                "folder before; run it into a different folder, or with --overwrite (overwrite=True)"
            )


def _is_another_file(other: Exposure, exposure: Exposure) -> bool:
    """Return whether an earlier exposure is of another file, which is still there: not of one that moved or changed."""
    # Of files elsewhere some servers tell no time of change: any of the same size would be the same.
    tells = exposure.identity.get("changed") not in (None, "None")
    if (tells and other.identity == exposure.identity) or not is_there(other.source):
        return False
    with suppress(OSError):
        return not Path(other.source).samefile(exposure.source)
    return True


def earlier_plan(store: ProgramStore) -> list[Exposure]:
    """Return the plan of an earlier run; where it is damaged or of another format, none, with a warning."""
    if not store.has_plan():
        return []
    try:
        return read_plan(store)
    except StoreError as error:
        log.warning("%s", error)
        return []


def with_places(plan: Sequence[Exposure], earlier: Iterable[Exposure]) -> list[Exposure]:
    """Return the plan with a place for each exposure: its earlier one where it still fits, else the next free one."""
    taken = {exposure.name: exposure.place for exposure in earlier if exposure.place}
    spelled: dict[str, str] = {}
    for earlier_place in taken.values():
        _as_spelled(earlier_place.node, spelled)
    nodes = {exposure.name: _as_spelled(_node(exposure), spelled) for exposure in plan}
    # Earlier exposures that are not in this plan keep theirs.
    kept = {name: place for name, place in taken.items() if nodes.get(name, place.node) == place.node}
    used = set(kept.values())
    free: dict[str, int] = {}
    placed = []
    for exposure in plan:
        node = nodes[exposure.name]
        place = kept.get(exposure.name) if node else None
        while node and place is None:
            index = free.get(node, 0)
            free[node] = index + 1
            place = Place(node, index) if Place(node, index) not in used else None
        placed.append(replace(exposure, place=place))
    return placed


def _node(exposure: Exposure) -> str | None:
    """Return the node that has room for an exposure; None for one that fails when it is run."""
    facts = exposure.facts
    return layout_of(exposure.recipe, facts).path if facts and facts.kind == exposure.job.kind else None


def _as_spelled(node: str | None, spelled: dict[str, str]) -> str | None:
    """Return a node's path with each part in the spelling in which it came first.

    Some file systems, and zarr where it gathers metadata, take names for the same that differ in case alone.
    """
    if node is None:
        return None
    path = ""
    for part in node.split("/"):
        key = f"{path}/{part}".casefold()
        path = f"{path}/{spelled.setdefault(key, part)}"
    return path[1:]


def in_order(plan: Iterable[Exposure]) -> list[Exposure]:
    """Return exposures sorted by name."""
    return sorted(plan, key=lambda exposure: exposure.name)


def _room_for(plan: Sequence[Exposure]) -> tuple[dict[str, Layout], dict[str, list[str]]]:
    """Return the layout of each node, and the exposure at each of its places; empty text where there is none."""
    layouts: dict[str, Layout] = {}
    held: dict[str, dict[int, str]] = {}
    for exposure in plan:
        if exposure.place and exposure.facts:
            node, index = exposure.place
            layouts.setdefault(node, layout_of(exposure.recipe, exposure.facts))
            held.setdefault(node, {})[index] = exposure.name
    names = {node: [some.get(index, "") for index in range(max(some) + 1)] for node, some in held.items()}
    return layouts, names
