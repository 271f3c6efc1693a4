"""What notebooks show of settings and results."""

import dataclasses
import sys
from types import SimpleNamespace

import pytest

import skylevel as sl
from programs import write_truncated
from skylevel.html import table
from skylevel.program.notebook_bar import NotebookBar, notebook_bar
from skylevel.program.run import ProgramResult
from skylevel.program.view import ExposureState, ExposureStates

pytestmark = pytest.mark.packages

HOSTILE = "<script>alert('x')</script>"


def test_text_in_a_table_is_text():
    html = table(HOSTILE, [HOSTILE], [[HOSTILE]])
    assert "<script" not in html
    assert html.count("&lt;script&gt;") == 3


@pytest.mark.parametrize("recipe", [sl.Rows(threshold=3.25), sl.Channels()], ids=lambda recipe: recipe.name)
def test_settings_show_every_field(recipe):
    html = recipe._repr_html_()
    for field in dataclasses.fields(recipe):
        assert f">{field.name}</td>" in html
    assert recipe.name == "channels" or ">3.25</td>" in html


def test_a_result_shows_what_failed_first_with_its_reason():
    result = ProgramResult("out", failed={"b": HOSTILE}, skipped=["a"])
    html = result._repr_html_()
    assert "out: 0 done, 1 done before, 1 failed" in html
    assert html.index(">b<") < html.index(">a<")
    assert HOSTILE not in html


def test_states_show_what_failed_first_with_its_reason():
    html = ExposureStates([ExposureState("a", "done"), ExposureState("b", "failed", HOSTILE)])._repr_html_()
    assert "1 failed, 0 left, 1 done" in html
    assert html.index(">b<") < html.index(">a<")
    assert HOSTILE not in html


def test_no_bar_outside_a_notebook(monkeypatch):
    monkeypatch.setitem(sys.modules, "IPython", SimpleNamespace(get_ipython=lambda: None))
    assert notebook_bar() is None
    monkeypatch.delitem(sys.modules, "IPython")
    assert notebook_bar() is None


def test_the_bar_links_to_the_dashboard(monkeypatch):
    shown = []
    display = SimpleNamespace(HTML=str, display=lambda html, **_: shown.append(html))
    monkeypatch.setitem(sys.modules, "IPython.display", display)
    bar = NotebookBar()
    bar.dashboard = '/proxy/8787/status"onclick=x'
    bar(1, 2)
    assert '<a href="/proxy/8787/status&quot;onclick=x" target="_blank">dashboard</a>' in shown[0]
    assert '<progress value="1" max="2"></progress> 1 of 2 exposures' in shown[0]


def test_the_bar_of_a_run_counts_what_failed(tmp_path, monkeypatch, client):
    shown = []
    display = SimpleNamespace(HTML=str, display=lambda html, **_: shown.append(html))
    monkeypatch.setitem(sys.modules, "IPython.display", display)
    truncated = write_truncated(tmp_path / "a_cal.fits")
    sl.run(truncated, tmp_path / "out", client=client, progress=NotebookBar())
    assert "1 of 1 exposures, 1 failed" in shown[-1]
