"""Run the notebooks and store them with what they gave: `make notebooks`.

What differs from run to run without meaning anything (times of cells, random names of HTML elements, places of
temporary folders) is taken out, and pictures are made small, so that a change of a notebook is a change that one sees.
"""

import base64
import io
import os
import re
import sys
from collections.abc import Callable, Mapping
from itertools import count
from pathlib import Path
from typing import Any

import nbformat
from nbclient import NotebookClient
from PIL import Image

HERE = Path(__file__).parent
TIMEOUT_SECONDS = 600
LARGEST_BYTES = 400_000

_UUID = re.compile(r"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}")
# Places of temporary folders, and ports of dashboards.
_ANY_PLACE = re.compile(r"(?P<folder>/skylevel-)\w+|(?P<host>127\.0\.0\.1:)\d+")
_JPEG_QUALITY = 72


def execute(
    notebook: nbformat.NotebookNode, folder: Path, environment: Mapping[str, str] | None = None
) -> nbformat.NotebookNode:
    """Run a notebook in a folder, from top to bottom; an exception in a cell is one here."""
    client = NotebookClient(notebook, timeout=TIMEOUT_SECONDS, resources={"metadata": {"path": str(folder)}})
    client.execute(env={**(environment or os.environ)})
    return notebook


def settle(notebook: nbformat.NotebookNode) -> nbformat.NotebookNode:
    """Take out of a notebook's outputs what means nothing, and make its pictures small."""
    numbered = _numbering()
    for cell in notebook.cells:
        cell.metadata.pop("execution", None)
        for output in cell.get("outputs", ()):
            data = output.get("data", {})
            if "image/png" in data:
                data.update(_smaller(data.pop("image/png")))
            for container, key in ((output, "text"), (data, "text/plain"), (data, "text/html")):
                if key in container:
                    container[key] = _ANY_PLACE.sub(_one_place, _UUID.sub(numbered, container[key]))
    notebook.metadata.get("language_info", {}).pop("version", None)
    return notebook


def _numbering() -> Callable[[re.Match[str]], str]:
    """Return what replaces random names by their number."""
    names: dict[str, str] = {}
    numbers = count(1)

    def number(match: re.Match[str]) -> str:
        if match.group() not in names:
            names[match.group()] = f"id-{next(numbers)}"
        return names[match.group()]

    return number


def _one_place(match: re.Match[str]) -> str:
    return "/skylevel" if match["folder"] else f"{match['host']}8787"


def _smaller(png: str) -> dict[str, Any]:
    """Return a picture as the smaller one of JPEG and PNG of few colours; noise is small as JPEG, lines are as PNG."""
    drawn = Image.open(io.BytesIO(base64.b64decode(png)))
    if drawn.mode == "P":
        return {"image/png": png}
    picture = drawn.convert("RGB")
    as_jpeg, as_png = io.BytesIO(), io.BytesIO()
    picture.save(as_jpeg, "jpeg", quality=_JPEG_QUALITY, optimize=True)
    picture.quantize(64, dither=Image.Dither.NONE).save(as_png, "png", optimize=True)
    name, smaller = min(("image/jpeg", as_jpeg), ("image/png", as_png), key=lambda made: made[1].tell())
    return {name: base64.b64encode(smaller.getvalue()).decode("ascii") + "\n"}


def main(names: list[str]) -> None:
    """Run those that are named, or all."""
    for path in sorted(HERE.glob("*.ipynb")):
        if names and path.stem not in names:
            continue
        notebook = settle(execute(nbformat.read(path, as_version=4), HERE))
        nbformat.write(notebook, path)
        print(f"{path.name}: {path.stat().st_size / 1000:.0f} kB")


if __name__ == "__main__":
    main(sys.argv[1:])
