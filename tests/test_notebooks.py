"""The notebooks run from top to bottom, and are stored as they ran: small, and with nothing of one run alone."""

import re
from pathlib import Path

import nbformat
import pytest

from execute import LARGEST_BYTES, execute, settle

pytestmark = pytest.mark.once

FOLDER = Path(__file__).parents[1] / "notebooks"
NOTEBOOKS = sorted(FOLDER.glob("*.ipynb"))
each_notebook = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
# Those without a picture, which a cluster does not give.
WITHOUT_PICTURES = ("04_cluster",)


def outputs_of(notebook):
    return [output for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs]


def has_picture(notebook):
    return any(kind.startswith("image/") for output in outputs_of(notebook) for kind in output.get("data", {}))


def test_all_are_there():
    assert [path.stem for path in NOTEBOOKS] == ["01_one_exposure", "02_program", "03_better_levels", "04_cluster"]


@pytest.mark.slow
@each_notebook
def test_it_runs(path, tmp_path):
    notebook = settle(execute(nbformat.read(path, as_version=4), tmp_path))
    # A warning goes to stderr: a reader should see none.
    assert [output.text for output in outputs_of(notebook) if output.get("name") == "stderr"] == []
    assert has_picture(notebook) or path.stem in WITHOUT_PICTURES


@each_notebook
def test_it_is_stored_as_it_ran(path):
    notebook = nbformat.read(path, as_version=4)
    cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
    assert has_picture(notebook) or path.stem in WITHOUT_PICTURES
    assert not [output for output in outputs_of(notebook) if output.get("name") == "stderr"]


def test_a_run_shows_a_bar_and_its_result():
    outputs = outputs_of(nbformat.read(FOLDER / "02_program.ipynb", as_version=4))
    html = "".join(output.get("data", {}).get("text/html", "") for output in outputs)
    assert '<progress value="5" max="5"></progress> 5 of 5 exposures' in html
    assert "5 done, 0 done before, 0 failed" in html


@each_notebook
def test_what_is_stored_is_small_and_of_no_run_alone(path):
    text = path.read_text()
    assert len(text) < LARGEST_BYTES
    assert re.findall(r"127\.0\.0\.1:(?!8787|0\b)\d+| at 0x[0-9a-f]+|/home/|/root/", text) == []


def test_settling_twice_changes_nothing():
    notebook = nbformat.read(NOTEBOOKS[0], as_version=4)
    before = nbformat.writes(notebook)
    assert nbformat.writes(settle(notebook)) == before
