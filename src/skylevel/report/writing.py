"""The report's files: the page beside the outputs, and the pictures of a large program beside the page.

Everything stands in the page, but the pictures of more than `PER_PACK` exposures: those stand in scripts beside it, so
many exposures in each, which the page loads when one of them is opened. A page of thousands is small, and an exposure
costs no file. Scripts rather than data, as a page that is opened from a disk may load nothing else.
"""

import hashlib
import itertools
import json
import re
from collections.abc import Iterator, Sequence
from contextlib import suppress
from os import PathLike, fspath
from pathlib import Path

from markupsafe import Markup

from skylevel.errors import OutputError
from skylevel.io.atomic import aside_of, replacing
from skylevel.io.remote import file_system, local_output, output_size, remove_leftovers
from skylevel.io.store import ProgramStore
from skylevel.io.urls import is_remote, public_url
from skylevel.program.ledger import Ledger
from skylevel.program.plan import read_plan, store_url
from skylevel.report.entries import Entry, entries_of
from skylevel.report.page import PAGE_TEMPLATE, PER_PACK, context, fragments, templates

PAGE, PACKS = "report.html", "report"

_PACK_NAME = re.compile(r"[0-9a-f]{12}-\d+\.js")


def write_report(output: str | PathLike[str]) -> str:
    """Write a page on a program into its output folder, from the store alone.

    Parameters
    ----------
    output : str or path-like
        Folder or URL of a program's outputs.

    Returns
    -------
    str
        Path or URL of the page.

    Raises
    ------
    StoreError
        No program was run into `output`.
    OutputError
        The page cannot be written.

    Notes
    -----
    The page asks nothing of a network, and can be opened from a disk. The pictures of more than 100 exposures stand
    in the folder ``report`` beside it; move both together.
    """
    folder = fspath(output).rstrip("/") or "/"
    store = ProgramStore(store_url(folder))
    ledger = Ledger(store, read_plan(store))
    entries = entries_of(ledger, store.failures())
    found = templates()
    pictures = fragments(found, store, entries)
    inline, digest = [], ""
    try:
        # Pages that are written at once would remove each other's pictures.
        with store.locked():
            if len(entries) <= PER_PACK:
                inline = list(pictures)
            else:
                digest = _digest(entries)
                _write_packs(folder, digest, pictures)
            page = found.get_template(PAGE_TEMPLATE)
            told = context(folder, store, ledger, entries)
            _write(f"{folder}/{PAGE}", page.render(digest=digest, inline=map(Markup, inline), **told))
            _remove_packs(folder, digest)
            remove_leftovers([f"{folder}/{PAGE}"])
    except OSError as error:
        raise OutputError(f"{public_url(folder)}: the report cannot be written: {error.strerror or error}") from error
    return f"{folder}/{PAGE}"


def has_report(output: str | PathLike[str]) -> str | None:
    """Return where a program's page is; None where there is none."""
    url = f"{fspath(output).rstrip('/')}/{PAGE}"
    return url if output_size(url) is not None else None


def _digest(entries: Sequence[Entry]) -> str:
    """Return a name for these pictures: those of a page that is still open somewhere are not mixed with others."""
    told = json.dumps([[entry.name, entry.state, entry.record] for entry in entries], default=str)
    return hashlib.sha256(told.encode("utf-8", "surrogatepass")).hexdigest()[:12]


def _write_packs(folder: str, digest: str, pictures: Iterator[str]) -> None:
    """Write the pictures beside the page."""
    if not is_remote(folder) and Path(folder, PACKS).is_symlink():
        raise OutputError(f"{folder}/{PACKS}: is a link, and the report's pictures are to stand there: remove it")
    for number in itertools.count():
        pack = list(itertools.islice(pictures, PER_PACK))
        if not pack:
            return
        text = f"skylevelPictures({number * PER_PACK}, {json.dumps(pack)});\n"
        _write(f"{folder}/{PACKS}/{digest}-{number}.js", text)


def _write(url: str, text: str) -> None:
    with local_output(url) as path, replacing(path) as new:
        new.write_text(text, encoding="utf-8")


def _remove_packs(folder: str, digest: str) -> None:
    """Remove the pictures of earlier pages, and their folder where nothing is left in it."""
    system, root = file_system(f"{folder}/{PACKS}")
    if not system.isdir(root):
        return
    for found in system.ls(root, detail=False):
        name = str(found).rsplit("/", 1)[-1]
        # Or what a writer that was killed left on the way to one.
        if _PACK_NAME.fullmatch(aside_of(name) or name) and not (digest and name.startswith(f"{digest}-")):
            system.rm_file(found)
    if not is_remote(folder):
        with suppress(OSError):
            Path(root).rmdir()
