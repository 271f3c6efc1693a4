"""Whether what was written is still what was written: the contents of outputs and of stored chunks."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from skylevel.errors import SkylevelError
from skylevel.io.fits import require_unchanged, unsigned_crcs
from skylevel.io.remote import local_input, output_size
from skylevel.io.store import ProgramStore
from skylevel.program.plan import Exposure


def written_output(path: Path) -> dict[str, Any]:
    """Return what tells later whether an output is still the file just written: for the commit record."""
    return {"size": path.stat().st_size, "crc32c": unsigned_crcs(path)}


def is_there(exposure: Exposure, record: Mapping[str, Any]) -> bool:
    """Return whether all outputs are there, in the size in which they were written."""
    sizes = {kind: output_size(url) for kind, url in exposure.outputs.items()}
    return all(size is not None and size == _size(record, kind, size) for kind, size in sizes.items())


def _size(record: Mapping[str, Any], kind: str, default: int) -> Any:
    return _noted(record, kind).get("size", default)


def _noted(record: Mapping[str, Any], kind: str) -> Mapping[str, Any]:
    """Return what is noted of an output; nothing where an earlier skylevel wrote it."""
    noted = record.get("outputs")
    found = noted.get(kind) if isinstance(noted, dict) else None
    return found if isinstance(found, dict) else {}


def damage_of_store(exposure: Exposure, record: Mapping[str, Any] | None, store: ProgramStore) -> str:
    """Return what is wrong with the stored chunks of an exposure; empty where nothing is.

    However large the exposure is, one chunk of it is held.
    """
    try:
        store.require_sound(exposure.place, record)
    except SkylevelError as error:
        return str(error)
    return ""


def damage_of_outputs(exposure: Exposure, record: Mapping[str, Any]) -> str:
    """Return what is wrong with the outputs of an exposure, which are there; empty where nothing is."""
    for kind, url in exposure.outputs.items():
        crcs = _noted(record, kind).get("crc32c")
        try:
            with local_input(url) as path:
                require_unchanged(path, crcs if isinstance(crcs, dict) else {})
        except (SkylevelError, OSError) as error:
            return str(error)
    return ""
