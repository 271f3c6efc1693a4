"""What is done under which key, and so what is left."""

import os
from collections import defaultdict
from collections.abc import Collection, Sequence
from concurrent.futures import ThreadPoolExecutor
from enum import Flag, auto
from typing import Any

from skylevel.io.store import ProgramStore
from skylevel.program.plan import Exposure
from skylevel.program.verify import damage_of_outputs, damage_of_store, is_there
from skylevel.recipes import canonical_hash

Group = tuple[str, str]


class Steps(Flag):
    """What is to do for an exposure."""

    NOTHING = 0
    # Find its sources, whatever mask is stored.
    DETECT = auto()
    # Measure it and store what was measured, from a stored mask that still holds.
    MEASURE = auto()
    # Level it by what is stored, and write its files.
    EXPORT = auto()
    # Measure it where what is stored is damaged.
    REPAIR = auto()


class Ledger:
    """What a store holds of a plan, as it stands when it is made.

    Parameters
    ----------
    store : ProgramStore
    plan : sequence of Exposure
        With places.
    verify : collection of str
        Names of the exposures at whose chunks and outputs it looks too, which reads all of them.
    """

    def __init__(self, store: ProgramStore, plan: Sequence[Exposure], *, verify: Collection[str] = ()) -> None:
        self.plan = plan
        self._store = store
        by_place = {exposure.place: exposure for exposure in plan if exposure.place}
        found = store.read_records(by_place)
        self._found, lost = found, store.lost(found)
        #: The commit record of each exposure that is measured under its present key, by name.
        self.records: dict[str, dict[str, Any]] = {
            exposure.name: found[place]
            for place, exposure in by_place.items()
            if place in found and place not in lost and _fits(found[place], exposure)
        }
        #: What is wrong with what is stored or written of an exposure, by name, as far as was looked.
        self.damage: dict[str, str] = {}
        if verify:
            self._verify(store, verify)
        self._group_keys = {group: self._group_key(members) for group, members in self.groups().items()}
        stored = {group: _key_of(store.read_group(*group)) for group in self._group_keys}
        #: The groups whose members are not those that were combined.
        self.stale_groups: set[Group] = {group for group, key in self._group_keys.items() if stored[group] != key}

    def _verify(self, store: ProgramStore, names: Collection[str]) -> None:
        """Look at contents; an exposure whose stored chunks are damaged is not measured."""
        measured = [exposure for exposure in self.measured() if exposure.name in names]
        # Reading and summing wait for the disk, and let each other run.
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            of_store = list(pool.map(lambda e: damage_of_store(e, self.records[e.name], store), measured))
            written = [e for e in measured if self._is_exported(e)]
            of_outputs = list(pool.map(lambda e: damage_of_outputs(e, self.records[e.name]), written))
        self.damage = {e.name: damage for e, damage in zip(written, of_outputs, strict=True) if damage}
        for exposure, damage in zip(measured, of_store, strict=True):
            if damage:
                self.damage[exposure.name] = damage
                del self.records[exposure.name]

    def _is_exported(self, exposure: Exposure) -> bool:
        record = self.records[exposure.name]
        return record.get("exported") is not None and is_there(exposure, record)

    def why_unmeasured(self, exposure: Exposure) -> str:
        """Return why nothing can be made of what is stored of an exposure."""
        if exposure.name in self.damage:
            return self.damage[exposure.name]
        record = self._found.get(exposure.place) if exposure.place else None
        if record is not None:
            fits = _fits(record, exposure)
            return "a stored chunk of it is missing" if fits else "what is stored was measured otherwise"
        is_damaged = exposure.place is not None and self._store.has_record(exposure.place)
        return "what is stored of it is damaged" if is_damaged else "not measured yet"

    def measured(self) -> list[Exposure]:
        """Return the exposures that are measured."""
        return [exposure for exposure in self.plan if exposure.name in self.records]

    def groups(self) -> dict[Group, list[Exposure]]:
        """Return the measured members of each group that is combined."""
        groups: dict[Group, list[Exposure]] = defaultdict(list)
        for exposure in self.plan:
            if exposure.group and exposure.name in self.records:
                groups[exposure.group].append(exposure)
        return dict(groups)

    def group_key(self, group: Group | None) -> str | None:
        """Return the key of a group, which is that of its measured members."""
        return self._group_keys.get(group) if group else None

    def steps(self, exposure: Exposure) -> Steps:
        """Return what is left to do for an exposure: measured under the same key, with its outputs there, nothing."""
        record = self.records.get(exposure.name)
        if record is None:
            return Steps.MEASURE | Steps.EXPORT
        if exposure.group in self.stale_groups:
            return Steps.EXPORT | Steps.REPAIR
        exported = record.get("exported") == exposure.export_key(self.group_key(exposure.group))
        there = exported and exposure.name not in self.damage and is_there(exposure, record)
        return Steps.NOTHING if there else Steps.EXPORT | Steps.REPAIR

    def work_left(self) -> dict[str, Steps]:
        """Return what is left to do, by name."""
        return {exposure.name: self.steps(exposure) for exposure in self.plan}

    @staticmethod
    def _group_key(members: Sequence[Exposure]) -> str:
        settings = members[0].recipe.settings_of("group")
        return canonical_hash([settings, sorted([member.name, member.key] for member in members)])


def _fits(record: dict[str, Any], exposure: Exposure) -> bool:
    return record.get("name") == exposure.name and record.get("key") == exposure.key


def _key_of(stored: tuple[str, Any] | None) -> str | None:
    return stored[0] if stored else None

