"""Associations once more, for the levelled exposures: the JWST pipeline's third stage runs on them as they stand."""

import json
import logging
import os
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from skylevel.errors import StoreError
from skylevel.io.atomic import replacing
from skylevel.io.remote import local_output, remove_leftovers
from skylevel.io.store import ProgramStore
from skylevel.program.inputs import named_associations, read_association
from skylevel.program.plan import Exposure, store_url

log = logging.getLogger("skylevel")

_ENDING = "_asn.json"
_SCIENCE = "science"


def write_associations(inputs: Iterable[str], plan: Sequence[Exposure], output: str, failed: Collection[str]) -> None:
    """Write, beside the outputs, each association among the inputs with the levelled exposures as its members.

    Parameters
    ----------
    inputs : iterable of str
        Those of which `plan` was made.
    plan : sequence of Exposure
    output : str
        Folder or URL of the outputs; ``jw1_asn.json`` becomes ``jw1_rowbgsub_asn.json`` in it.
    failed : collection of str
        Names of the exposures without an output: they are left out, which is logged, as is an association without
        any other.

    Notes
    -----
    All else stays: products, kinds of exposures, further members (with their absolute paths). Files of the layout
    ``primary`` are no members: the pipeline does not open them.
    """
    # Those of the plan's other shares too.
    store = ProgramStore(store_url(output))
    without = {*failed, *store.failures()}
    written = [exposure for exposure in plan if exposure.layout == "full" and exposure.name not in without]
    levelled = {exposure.source: Path(exposure.outputs["levelled"]).name for exposure in written}
    for path in sorted(named_associations(inputs)):
        url = f"{output.rstrip('/')}/{path.name.removesuffix(_ENDING)}_rowbgsub{_ENDING}"
        try:
            # Shares of a program that end at once write the same.
            with store.locked():
                _write(path, url, levelled)
                remove_leftovers([url])
        except (OSError, StoreError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            # Such as a full disk: the exposures are done without it.
            log.warning("%s: is not written again for the levelled exposures: %s", path, error)


def _write(path: Path, url: str, levelled: Mapping[str, str]) -> None:
    association = read_association(path)
    members = _Members(path.parent, levelled)
    products = [{**product, "members": members.of(product)} for product in association["products"]]
    kept = [product for product in products if any(map(_is_science, product["members"]))]
    if members.left_out:
        log.warning("%s: left out, as they failed: %s", url, ", ".join(members.left_out))
    if not kept:
        log.warning("%s: not written: no exposure of it was levelled", url)
        return
    with local_output(url) as target, replacing(target) as new:
        new.write_text(json.dumps({**association, "products": kept}, indent=4), encoding="utf-8")


def _is_science(member: Mapping[str, Any]) -> bool:
    return member.get("exptype", _SCIENCE) == _SCIENCE


@dataclass(slots=True)
class _Members:
    """Members of a product as they are written; remembers which of them have no levelled file."""

    folder: Path
    levelled: Mapping[str, str]
    left_out: list[str] = field(default_factory=list)

    def of(self, product: Mapping[str, Any]) -> list[dict[str, Any]]:
        """Return a product's members with the names of their levelled files."""
        found = []
        for member in product["members"]:
            source = self._absolute(member["expname"])
            # A catalogue of sources is found beside the association too.
            beside = {key: self._absolute(member[key]) for key in ("tweakreg_catalog",) if member.get(key)}
            if not _is_science(member):
                found.append({**member, **beside, "expname": source})
            elif source in self.levelled:
                found.append({**member, **beside, "expname": self.levelled[source]})
            else:
                self.left_out.append(member["expname"])
        return found

    def _absolute(self, name: str) -> str:
        """Return a member's path as the plan has it."""
        path = self.folder / name
        return str(Path(os.path.realpath(path.parent), path.name))
