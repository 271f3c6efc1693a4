"""The documentation: what it promises to hold, and that what is generated is all there."""

import dataclasses
import re
import tomllib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from astropy.io import fits

import skylevel
from generated import command_pages, presets, settings
from no_requests import requests
from programs import write_exposure
from skylevel.recipes import RECIPES

pytestmark = pytest.mark.once

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
LARGEST_PICTURE_BYTES = 150_000

# Links of Markdown, and the files that they name.
LINKS = re.compile(r"\]\((?!https?:|#|\()([^)#\s]+)[^)]*\)")
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted(DOCS.glob("*.md"))]


@pytest.mark.parametrize("recipe", RECIPES.values(), ids=RECIPES)
def test_every_setting_and_preset_is_described(recipe):
    described, listed = "\n".join(settings(recipe)), "\n".join(presets(recipe))
    for field in dataclasses.fields(recipe):
        assert f"`{field.name}` = " in described
        assert field.metadata["doc"] in described
    assert all(f"| `{name}` |" in listed for name in recipe.presets)


def test_every_command_is_described():
    described = "\n".join(command_pages())
    assert all(f"## skylevel {name}\n" in described for name in ("run", "demo", "status", "export", "config"))


def test_every_public_name_is_in_the_api():
    api = (DOCS / "api.md").read_text()
    public = [name for name in skylevel.__all__ if not name.endswith("Error")]
    assert [name for name in public if f":: skylevel.{name}\n" not in api] == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page):
    """In the repository, where pages are read too; those of folders that the site copies are beside the site's."""
    for target in LINKS.findall(page.read_text()):
        assert (page.parent / target).exists() or (ROOT / target).exists(), target


def test_every_page_is_in_the_menu():
    menu = (DOCS / "index.md").read_text()
    hidden = [page.stem for page in DOCS.glob("*.md") if not re.search(rf"^{page.stem}$", menu, re.MULTILINE)]
    assert hidden == ["index"]


def test_pictures_are_small():
    sizes = {path.name: path.stat().st_size for path in (DOCS / "_static").glob("*.webp")}
    assert sizes
    assert max(sizes.values()) < LARGEST_PICTURE_BYTES


@pytest.mark.parametrize(
    "loads",
    [
        '<script src="https://cdn.example/x.js"></script>',
        "<link rel='stylesheet' href='//fonts.example/css'>",
        '<img alt="" src="http://example/x.png">',
        "@import 'https://example/x.css';",
        "a { background: url(https://example/x.png) }",
    ],
)
def test_what_a_page_would_fetch_is_found(tmp_path, loads):
    (tmp_path / "page.html").write_text(f"<p>{loads}</p>")
    assert len(list(requests(tmp_path))) == 1


def test_links_to_click_on_and_own_files_are_none(tmp_path):
    text = '<a href="https://www.dask.org">Dask</a><img src="_static/x.webp"><link rel="stylesheet" href="x.css">'
    (tmp_path / "page.html").write_text(text)
    assert list(requests(tmp_path)) == []


def test_the_citation_is_of_this_version():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert [citation[key] for key in ("title", "version", "license")] == [
        project[key] for key in ("name", "version", "license")
    ]


def test_readme_holds_the_commands_that_are_run():
    readme = (ROOT / "README.md").read_text()
    assert all(command in readme for command in ("make test", "make demo", "pip install .", "skylevel run"))


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("fast_axis", [1, 2])
def test_levelling_is_undone_as_the_page_says(tmp_path, monkeypatch, fast_axis, dtype):
    """Of rows and of columns; by what stands in the page."""
    (source,) = re.findall(r"```python\n(.*?)```", (DOCS / "questions.md").read_text(), re.DOTALL)
    name, filter_ = re.findall(r'name = "(.+)"', source)[0], re.findall(r"/(F\w+)\"", source)[0]
    cards = {"DETECTOR": "NRCB1", "FILTER": filter_, "FASTAXIS": fast_axis}
    path = write_exposure(tmp_path / f"{name}.fits", shape=(120, 140), cards=cards)
    with fits.open(path, mode="update") as hdus:
        hdus["SCI"].data = hdus["SCI"].data.astype(dtype)
    assert not skylevel.run(path, tmp_path / "levelled", cluster="local", workers=1).failed
    monkeypatch.chdir(tmp_path)
    known: dict[str, Any] = {}
    exec(compile(source, "questions.md", "exec"), known)
    before, levelled = skylevel.open_frame(path)["sci"].to_numpy(), known["levelled"].to_numpy()
    assert known["image"].dtype == dtype
    assert np.nanmax(abs(levelled - before)) > 0.1
    rounding = np.finfo(dtype).eps * np.nanmax(abs(before))
    np.testing.assert_allclose(known["image"].to_numpy(), before, rtol=0, atol=rounding)


def test_python_of_the_pages_is_python():
    """It is written down once more in the notebooks, which run."""
    for page in PAGES:
        for source in re.findall(r"```python\n(.*?)```", page.read_text(), re.DOTALL):
            compile(source, str(page), "exec")
