"""What is done under which key, and so what is left."""

from collections import defaultdict
from collections.abc import Sequence
from enum import Flag, auto
from typing import Any

from skylevel.io.remote import output_exists
from skylevel.io.store import ProgramStore
from skylevel.program.plan import Exposure
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
    """

    def __init__(self, store: ProgramStore, plan: Sequence[Exposure]) -> None:
        self.plan = plan
        by_place = {exposure.place: exposure for exposure in plan if exposure.place}
        found = store.read_records(by_place)
        lost = store.lost(found)
        #: The commit record of each exposure that is measured under its present key, by name.
        self.records: dict[str, dict[str, Any]] = {
            exposure.name: found[place]
            for place, exposure in by_place.items()
            if place in found and place not in lost and _fits(found[place], exposure)
        }
        self._group_keys = {group: self._group_key(members) for group, members in self.groups().items()}
        stored = {group: _key_of(store.read_group(*group)) for group in self._group_keys}
        #: The groups whose members are not those that were combined.
        self.stale_groups: set[Group] = {group for group, key in self._group_keys.items() if stored[group] != key}

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
        there = exported and all(map(output_exists, exposure.outputs.values()))
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

