"""Refuse pages that ask another machine for anything: fonts, scripts, pictures. Links to click on are none of that."""

import re
from collections.abc import Iterator
from pathlib import Path

from sphinx.application import Sphinx
from sphinx.errors import SphinxError

_LOADS = re.compile(
    r"<(?:script|img|iframe|source|video|audio|object|embed)\b[^>]*\s(?:src|srcset|data)\s*=\s*[\"']?\s*(?:https?:)?//"
    r"|<link\b(?![^>]*rel=[\"']?(?:canonical|next|prev|index|search))[^>]*href\s*=\s*[\"']?\s*(?:https?:)?//"
    r"|@import\s+[^;]*//|url\(\s*[\"']?\s*(?:https?:)?//",
    re.IGNORECASE,
)


def requests(folder: Path) -> Iterator[str]:
    """Yield each thing under a folder that a browser would fetch from elsewhere."""
    for path in sorted(folder.rglob("*")):
        if path.suffix in (".html", ".css", ".svg"):
            text = path.read_text(encoding="utf-8")
            yield from (f"{path}: {match.group()[:200]}" for match in _LOADS.finditer(text))


def check(app: Sphinx, exception: Exception | None) -> None:
    """Fail the build where there is one."""
    found = [] if exception else list(requests(Path(app.outdir)))
    if found:
        raise SphinxError("pages must not ask other machines for anything:\n" + "\n".join(found))


def setup(app: Sphinx) -> dict[str, bool]:
    """Look once all is written."""
    app.connect("build-finished", check)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
