"""From what a user names to files: folders, globs, lists, associations and URLs, each file once."""

import glob
import json
import logging
import os
import stat
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlsplit

from skylevel.errors import PlanError
from skylevel.files import cause, read_text
from skylevel.io.frame import FITS_SUFFIXES
from skylevel.io.names import number_of
from skylevel.io.remote import file_system
from skylevel.io.urls import is_remote, public_url, url_name, without_secrets

log = logging.getLogger("skylevel")

RAW_SUFFIXES = (
    ".3fr", ".arw", ".cr2", ".cr3", ".crw", ".dcr", ".dng", ".erf", ".fff", ".iiq", ".kdc", ".mef", ".mos", ".mrw",
    ".nef", ".nrw", ".orf", ".pef", ".raf", ".raw", ".rw2", ".rwl", ".sr2", ".srf", ".srw", ".x3f",
)  # fmt: skip

# Our own outputs, which a folder or a glob does not take in again.
_OUTPUT_ENDINGS = ("_rowbgsub.fits", "_masked.fits", "_background.fits", ".bkg_subtracted.fits", ".bkg_background.fits")
_OUTPUT_STARTS = ("detections_segm_",)
_STORE_NAME = "program.zarr"


class Input(NamedTuple):
    """A file to level.

    Attributes
    ----------
    source : str
        Absolute path, or URL without what is its server's alone: what is shown and stored.
    access : str
        What it is read by: the same, or the URL with all that was given.
    folder : tuple of str
        Below the folder that was named, those in which it was found.
    """

    source: str
    access: str
    folder: tuple[str, ...] = ()


def expand_inputs(inputs: Iterable[str], *, recursive: bool = False) -> Iterator[Input]:
    """Yield the files behind each input.

    Parameters
    ----------
    inputs : iterable of str
        Files, folders, globs, JWST associations (``*_asn.json``), ``@list.txt``, URLs.
    recursive : bool
        Look into a folder's folders too; else how many there are is logged.

    Raises
    ------
    PlanError
        An input matches nothing, or a list or association cannot be read.
    """
    for given in inputs:
        if given.startswith("@"):
            yield from expand_inputs(_listed(Path(given[1:])), recursive=recursive)
        elif given.startswith("file://"):
            yield from expand_inputs([given.removeprefix("file://")], recursive=recursive)
        elif is_remote(given):
            yield from _remote(given, recursive=recursive)
        else:
            yield from _local(given, recursive=recursive)


def named_associations(inputs: Iterable[str]) -> set[Path]:
    """Return the associations among the inputs, and among those that a list names."""
    each = [one for given in inputs for one in (_listed(Path(given[1:])) if given.startswith("@") else [given])]
    found = {Path(given.removeprefix("file://")) for given in each if given.endswith("_asn.json")}
    return {path for path in found if stat.S_ISREG(_mode(path))}


def read_association(path: Path) -> Any:
    """Read an association as it stands.

    Raises
    ------
    OSError, ValueError, RecursionError
        It cannot be read.
    """
    # Names in it may be any that a file can have.
    return json.loads(read_text(path, "surrogateescape"))


def _local(given: str, *, recursive: bool) -> Iterator[Input]:
    mode = _mode(given)
    if stat.S_ISDIR(mode):
        yield from _folder(given, recursive=recursive)
    elif given.endswith("_asn.json"):
        yield from _associated(Path(given))
    elif mode:
        # Also a pipe or a device, which is refused alone when it is read.
        yield _file(Path(given))
    else:
        # Not Path.glob: a pattern may be absolute.
        matches = glob.glob(given, recursive=True)  # noqa: PTH207
        yield from _some(given, [_file(path) for path in map(Path, matches) if _is_levelable(path)])


def _mode(path: str | Path) -> int:
    """Return what the system says a path is; 0 where there is nothing, and of a name that nothing can have."""
    try:
        return Path(path).stat().st_mode
    except (OSError, ValueError):
        return 0


def _folder(given: str, *, recursive: bool) -> list[Input]:
    """Return the files of a folder, and of those below where it is asked for; without our own outputs."""
    found: list[Input] = []
    below = 0
    for here, folders, files in os.walk(given, onerror=_refuse):
        folders[:] = sorted(name for name in folders if not _is_ours(Path(here, name)))
        inner = Path(here).relative_to(given).parts
        found += [_file(Path(here, name), inner) for name in files if _is_levelable_name(name)]
        if not recursive:
            below = len(folders)
            break
    if not found:
        hint = f"; --recursive looks into its {number_of(below, 'subfolder')}" if below else ""
        raise PlanError(f"{given}: nothing matches it: a folder's files must be FITS or camera raw{hint}")
    if below:
        log.info("%s: %s skipped; --recursive looks into them", given, number_of(below, "subfolder"))
    return found


def _refuse(error: OSError) -> None:
    raise PlanError(f"{error.filename}: cannot be listed: {error.strerror}") from error


def _is_ours(folder: Path) -> bool:
    """Return whether a folder holds no exposures: a store, what a run wrote, or something hidden."""
    return folder.name.startswith(".") or folder.suffix == ".zarr" or (folder / _STORE_NAME).exists()


def _some(given: str, found: list[Input]) -> list[Input]:
    if not found:
        raise PlanError(f"{public_url(given)}: no such file, and nothing matches it")
    return found


def _is_levelable(path: Path) -> bool:
    """Return whether a path that a pattern matched is to be levelled; one that leads nowhere fails when it is read."""
    return _is_levelable_name(path.name) and not stat.S_ISDIR(_mode(path))


def _is_levelable_name(name: str) -> bool:
    lower = name.lower()
    is_output = lower.endswith(_OUTPUT_ENDINGS) or lower.startswith(_OUTPUT_STARTS)
    return lower.endswith((*FITS_SUFFIXES, *RAW_SUFFIXES)) and not is_output


def _file(path: Path, folder: tuple[str, ...] = ()) -> Input:
    """One spelling for a file; a link keeps its own name, under which its outputs are asked for."""
    # Path.resolve raises where links go in circles.
    source = str(Path(os.path.realpath(path.parent), path.name))
    return Input(source, source, folder)


def _listed(path: Path) -> list[str]:
    """Return the inputs in a text file, one a line; blank lines and those after ``#`` do not count."""
    try:
        lines = [line.strip() for line in read_text(path, "surrogateescape").split("\n")]
    except (OSError, ValueError) as error:
        raise PlanError(f"@{path}: cannot read the list: {cause(error)}") from error
    named = [line for line in lines if line and not line.startswith("#")]
    if any(line.startswith("@") for line in named):
        raise PlanError(f"@{path}: names another list; name each list in the command")
    # Names in a list are relative to the list, as in an association.
    return [line if is_remote(line) else str(path.parent / line) for line in named]


def _associated(path: Path) -> list[Input]:
    """Science members of a JWST association, beside which they lie."""
    try:
        products = read_association(path)["products"]
        members = [member for product in products for member in product["members"]]
        names = [_member(member) for member in members if member.get("exptype", "science") == "science"]
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise PlanError(f"{path}: not a JWST association: {type(error).__name__}: {cause(error)}") from error
    if not names:
        raise PlanError(f"{path}: the association has no science member")
    # A member that is missing fails alone, when it is read.
    return [_file(path.parent / name) for name in names]


def _member(member: dict[str, Any]) -> str:
    name = member["expname"]
    if not isinstance(name, str) or not Path(name).name or "\0" in name:
        raise ValueError(f"{name!r} is no name of a file")
    return name


def _remote(given: str, *, recursive: bool) -> list[Input]:
    """Files behind a URL: itself, a folder's files or a glob's matches."""
    try:
        files, path = file_system(given)
        if "*" in public_url(given):
            found = files.glob(path)
        elif _is_file_of_the_web(given) or not files.isdir(path):
            # One spelling for a file, however it was asked for; a chained URL has no other.
            access = given if "::" in given else _url(files, path, given)
            return [_remote_file(access)]
        else:
            found = files.find(path) if recursive else files.ls(path, detail=False)
    except Exception as error:  # Each protocol has errors of its own.
        raise PlanError(f"{public_url(given)}: cannot be listed: {without_secrets(str(error), given)}") from error
    named = [str(name) for name in found if _is_levelable_name(url_name(str(name)))]
    return _some(given, [_remote_file(_url(files, name, given), _folders(name, path)) for name in named])


def _remote_file(access: str, folder: tuple[str, ...] = ()) -> Input:
    return Input(public_url(access), access, folder)


def _folders(path: str, top: str) -> tuple[str, ...]:
    """Return the folders between a folder and a file below it; none where a pattern was asked for."""
    below = path.removeprefix(top.rstrip("/") + "/")
    return () if below == path else tuple(below.split("/")[:-1])


def _is_file_of_the_web(url: str) -> bool:
    """Return whether a web address is a file's: asked whether it is a folder, a server would send all of it."""
    return url.startswith(("http://", "https://")) and not urlsplit(url).path.endswith("/")


def _url(files: Any, path: str, given: str) -> str:
    """Return the URL of a path on the file system of another URL; some file systems leave out host and user."""
    spelled = str(files.unstrip_protocol(path))
    if file_system(spelled)[0] == files:
        return spelled
    return urlsplit(given)._replace(path=f"/{path.lstrip('/')}").geturl()
