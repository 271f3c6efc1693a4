"""The report: written from the store alone, by every run, and safe whatever stands in headers, names and stores."""

import json
import re
import shutil
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
from distributed import Client

import skylevel as sl
from programs import (
    place_of,
    skylevel,
    skylevel_here,
    stamps,
    write_exposure,
    write_exposures,
    write_raw,
    write_truncated,
)
from skylevel.errors import OutputError, StoreError
from skylevel.io.records import PICTURE
from skylevel.io.store import ProgramStore
from skylevel.program.plan import read_plan, store_url
from skylevel.report import writing
from skylevel.report.drawing import axis_over, colored, path
from skylevel.report.entries import Entry, entries_of, outliers
from skylevel.report.pictures import picture_from

pytestmark = pytest.mark.packages

# As a header or a name may have it: markup, script, an end of what it stands in, and a mark of direction.
HOSTILE = "<script>hacked=1</script>\"'><img src=x onerror=hacked=2>{{7*7}}\u202e"


# A picture of the form that is written, without an image.
FORM = {"shape": [9, 9], "stretch": [0, 1], "unit": "", "images": {}, "meshes": []}


class _Page(HTMLParser):
    """Tags of a page, the texts of its table, and what could run."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.rows: list[list[str]] = []
        self._cell = False
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag == "tr" and "data-index" in dict(attrs):
            self.rows.append([])
        self._cell = self._cell or (tag in ("td", "th") and bool(self.rows))
        if tag in ("td", "th") and self.rows:
            self.rows[-1].append("")

    def handle_endtag(self, tag: str) -> None:
        self._cell = self._cell and tag not in ("td", "th")

    def handle_data(self, data: str) -> None:
        if self._cell:
            self.rows[-1][-1] += data.strip()


def page_of(output: Path) -> _Page:
    return _Page((output / "report.html").read_text(encoding="utf-8"))


def rewrite(output: Path, name: str, **changes: Any) -> None:
    """Change what the store keeps of an exposure."""
    store, place = ProgramStore(store_url(output)), place_of(output, name)
    store.write_record(place, store.read_records([place], pictures=True)[place] | changes)


@pytest.fixture(scope="module")
def output(tmp_path_factory: pytest.TempPathFactory, client: Client) -> Path:
    """Six exposures in two filters, a raw, and one that failed; read only."""
    root = tmp_path_factory.mktemp("report")
    write_exposures(root / "in", 5)
    write_exposure(root / "in" / "f1.fits", 11, cards={"FILTER": "F115W"})
    write_raw(root / "in" / "night1.dng", 1)
    write_truncated(root / "in" / "cut.fits")
    assert list(sl.run(root / "in", root / "out", client=client).failed) == ["cut"]
    return root / "out"


@pytest.fixture
def own(output: Path, tmp_path: Path) -> Path:
    """The same, to be changed."""
    shutil.copytree(output, tmp_path / "out")
    return tmp_path / "out"


class TestPage:
    def test_it_is_written_from_the_store_alone(self, own: Path) -> None:
        for file in own.iterdir():
            if file.name != "program.zarr":
                file.unlink()
        assert sl.write_report(own) == str(own / "report.html")
        page = page_of(own)
        assert [row[0] for row in page.rows] == ["cut", "e00", "e01", "e02", "e03", "e04", "f1", "night1"]
        # Each exposure's picture: before, after, what was subtracted, and the outline over each of them.
        assert sum(tag == "img" for tag, _ in page.tags) == 6 * 6 + 5

    def test_each_exposure_has_its_row(self, own: Path) -> None:
        sl.write_report(own)
        rows = {row[0]: row[1:] for row in page_of(own).rows}
        assert rows["e00"][:3] == ["done", "NRCA1", "F200W"]
        before, after = (float(text) for text in rows["e00"][3:5])
        assert 0 < after < before
        assert rows["f1"][2] == "F115W"
        assert rows["night1"][3:6] == ["–"] * 3
        assert rows["cut"][0] == "failed"
        assert "cut.fits" in rows["cut"][-1]

    def test_each_number_stands_once_with_its_unit(self, own: Path) -> None:
        rewrite(own, "e00", metrics={
            "stripes_before": 0.1, "stripes_after": 0.2, "scatter_after": 1.5, "stripes_grew": True,
            "source_flux": None, "sky_gradient": None, "masked_fraction": 0.0, "exclude_percentile": 10.0,
        })  # fmt: skip
        sl.write_report(own)
        text = (own / "report.html").read_text(encoding="utf-8")
        listed = [text.split(f'<template id="x{i}">')[1].split("</dl>")[0] for i in (1, 7)]
        facts, raw = (dict(re.findall(r"<dt>([^<]*)</dt><dd>([^<]*)</dd>", one)) for one in listed)
        assert facts["stripes before"] == "0.1 MJy/sr"
        assert facts["stripes after"] == "0.2 MJy/sr, more than before"
        assert facts["exposure time"] == "107.4 s"
        assert facts["light of sources before (sample)"] == facts["change of the sky across the frame"] == "–"
        assert (facts["pixels in sources"], facts["pixels a box may lack"]) == ("0 %", "10 %")
        assert not [name for name in facts if "_" in name or "neighbouring rows" in name or name == "stripes grew"]
        assert re.fullmatch(r"R [\d.]+, G [\d.]+, B [\d.]+ ADU", raw["median background"])
        assert re.fullmatch(r"R [\d.]+, G [\d.]+, B [\d.]+ ADU", raw["unevenness of the background (rms)"])

    def test_stripes_that_grew_are_marked(self, own: Path) -> None:
        rewrite(own, "e00", metrics={"stripes_before": 0.1, "stripes_after": 0.2, "stripes_grew": True})
        sl.write_report(own)
        after = {row[0]: row[5] for row in page_of(own).rows}
        # By more than a colour, and in words for who hears the page.
        assert re.fullmatch("▲ ?more than before: ?0.2", after["e00"])
        assert "▲" not in after["e01"]
        assert "better left as it was" in (own / "report.html").read_text(encoding="utf-8")

    def test_every_stage_is_told(self, own: Path) -> None:
        sl.write_report(own)
        told = re.search(r"Where the time went: ([^<]*)\.<", (own / "report.html").read_text(encoding="utf-8"))
        assert told is not None
        assert {part.split()[0] for part in told[1].split(", ")} >= {"read", "measure", "store", "export", "picture"}

    def test_nothing_is_left_beside_it(self, own: Path) -> None:
        before = set(own.iterdir())
        sl.write_report(own)
        sl.write_report(own)
        assert set(own.iterdir()) - before == {own / "report.html"}

    def test_what_is_measured_and_not_exported(self, own: Path) -> None:
        (own / "e01_rowbgsub.fits").unlink()
        sl.write_report(own)
        assert {row[0]: row[1] for row in page_of(own).rows}["e01"] == "left"

    def test_a_folder_that_was_never_run(self, tmp_path: Path) -> None:
        with pytest.raises(StoreError, match="no program was run into this folder"):
            sl.write_report(tmp_path)
        assert list(tmp_path.iterdir()) == []

    def test_levels_over_time_stripes_and_channels_are_drawn(self, own: Path) -> None:
        sl.write_report(own)
        labels = [attrs["aria-label"] or "" for tag, attrs in page_of(own).tags if attrs.get("role") == "img"]
        assert any(label.startswith("NRCA1 · F200W: 5 exposures") for label in labels)
        assert "stripes before and after, by detector and filter" in labels

    def test_a_damaged_level_leaves_the_others(self, own: Path) -> None:
        place = place_of(own, "e02")
        (own / "program.zarr" / place.node / "row_level" / f"{place.index}.0").write_bytes(b"damaged")
        sl.write_report(own)
        assert "5 exposures" in (own / "report.html").read_text(encoding="utf-8")

    def test_what_a_group_knows_is_shown_by_name(self, tmp_path: Path, client: Client) -> None:
        import toy_job  # noqa: PLC0415 (registers the job)

        recipe = toy_job.Median(together=True)
        write_exposures(tmp_path / "in", 3)
        with patch.dict("os.environ"):
            client.run(lambda: __import__("toy_job"))
            assert not sl.run(tmp_path / "in", tmp_path / "out", recipe=recipe, client=client).failed
        sl.write_report(tmp_path / "out")
        text = (tmp_path / "out" / "report.html").read_text(encoding="utf-8")
        assert re.search(r"everyone-\w+: e00, e01, e02", text)
        assert "<dt>level</dt>" in text

    def test_it_asks_for_no_cluster(self, own: Path) -> None:
        heavy = {"distributed", "matplotlib"}
        code = f"import sys, skylevel; skylevel.write_report({str(own)!r}); print({heavy} & {{*sys.modules}})"
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
        assert done.stdout.strip() == "set()"


class TestHostile:
    @pytest.fixture
    def hostile(self, tmp_path: Path, client: Client) -> Path:
        name = "<img src=x onerror=hacked=3>&'\".fits"
        write_exposure(tmp_path / "in" / name, cards={"DETECTOR": "<script>hacked=1</script>", "FILTER": "\"><b>'"})
        write_truncated(tmp_path / "in" / "<svg onload=hacked=4>.fits")
        result = sl.run(tmp_path / "in", tmp_path / "out", client=client)
        assert len(result.done) == 1
        return tmp_path / "out"

    def test_headers_and_names_are_text(self, hostile: Path) -> None:
        (exposure,) = [e for e in read_plan(ProgramStore(store_url(hostile))) if e.facts and "img" in e.name]
        rewrite(hostile, exposure.name, metrics={HOSTILE: HOSTILE, "stripe_before": HOSTILE}, facts={"unit": HOSTILE})
        ProgramStore(store_url(hostile)).write_failure("<svg onload=hacked=4>", HOSTILE)
        sl.write_report(hostile)
        text = (hostile / "report.html").read_text(encoding="utf-8")
        page = _Page(text)
        assert sum(tag == "script" for tag, _ in page.tags) == 1
        assert all(not name.startswith("on") for _, attrs in page.tags for name in attrs)
        assert all((attrs["src"] or "").startswith("data:") for tag, attrs in page.tags if tag == "img")
        assert "onerror=hacked" in text
        assert "49" not in re.findall(r"hacked=2&gt;(\S*)", text)
        assert "\u202e" not in text
        assert re.search(r"default-src 'none'.*base-uri 'none'", text)

    @pytest.mark.parametrize("picture", [
        "x", 3, [], {"shape": 1}, FORM | {"shape": [0, 0]}, FORM | {"images": {"before": HOSTILE}},
        FORM | {"images": {"before": "PHN2Zz48L3N2Zz4="}}, FORM | {"meshes": [{"name": 1}]},
    ])  # fmt: skip
    def test_a_picture_that_is_none(self, own: Path, picture: Any) -> None:
        assert picture_from(picture) is None
        rewrite(own, "e00", **{PICTURE: picture})
        sl.write_report(own)
        assert (own / "report.html").read_text(encoding="utf-8").count("No picture of it is kept") == 2

    @pytest.mark.parametrize("change", [
        {"metrics": {"seconds": 3, "masked_fraction": "many", "row_level_std": None, "x": [[1]]}},
        {"export_metrics": "none"},
        {"export_metrics": {"seconds": [], "peaks_mib": 1, "line_scatter": {"before": "a"}}},
        {"facts": {"unit": 5, "date_obs": ["now"]}},
    ])  # fmt: skip
    def test_a_record_of_another_form(self, own: Path, change: dict[str, Any]) -> None:
        rewrite(own, "e01", **change)
        sl.write_report(own)
        assert [row[1] for row in page_of(own).rows if row[0] == "e01"] == ["done"] or "export_metrics" not in change


class TestManyPictures:
    def test_those_of_a_large_program_stand_beside_the_page(self, own: Path) -> None:
        with patch.object(writing, "PER_PACK", 3):
            sl.write_report(own)
            packs = sorted((own / "report").iterdir())
            assert [path.name[-5:] for path in packs] == ["-0.js", "-1.js", "-2.js"]
            assert not any(tag == "template" for tag, _ in page_of(own).tags)
            first = re.fullmatch(r"skylevelPictures\(0, (.*)\);\n", packs[0].read_text(encoding="utf-8"))
            assert first is not None
            assert len(json.loads(first[1])) == 3

    def test_earlier_ones_are_removed_and_nothing_else(self, own: Path) -> None:
        with patch.object(writing, "PER_PACK", 3):
            sl.write_report(own)
            earlier = set((own / "report").iterdir())
            (own / "report" / "mine.js").write_text("kept")
            rewrite(own, "e00", metrics={})
            sl.write_report(own)
            now = set((own / "report").iterdir())
        assert len(now) == 4
        assert not earlier & now
        sl.write_report(own)
        assert [path.name for path in (own / "report").iterdir()] == ["mine.js"]

    def test_what_a_killed_writer_left_is_removed(self, own: Path) -> None:
        with patch.object(writing, "PER_PACK", 3):
            sl.write_report(own)
            whole = {*own.rglob("*")}
            token = "0123456789abcdef" * 2
            (own / f".report.html.{token}.tmp").touch()
            (own / "report" / f".{next((own / 'report').iterdir()).name}.{token}.tmp").touch()
            sl.write_report(own)
        assert {*own.rglob("*")} == whole

    def test_they_are_not_written_through_a_link(self, own: Path, tmp_path: Path) -> None:
        (tmp_path / "elsewhere").mkdir()
        (own / "report").symlink_to(tmp_path / "elsewhere")
        with patch.object(writing, "PER_PACK", 3), pytest.raises(OutputError, match="is a link"):
            sl.write_report(own)
        assert list((tmp_path / "elsewhere").iterdir()) == []


class TestStripes:
    def test_an_exposure_with_none_left_counts(self, own: Path) -> None:
        for name, after in (("e00", 0.0), ("e01", 0.0), ("e02", 0.0), ("e03", 0.01), ("e04", 0.02)):
            rewrite(own, name, metrics={"stripes_before": 0.1, "stripes_after": after})
        sl.write_report(own)
        text = (own / "report.html").read_text(encoding="utf-8")
        assert "NRCA1 · F200W: 0.1 before, 0 after (5 exposures)" in text


@pytest.mark.parametrize("given", [None, [], "RGXB", ["RG", "B"], [1, 2], {"a": 1}, 5])
def test_colours_that_are_none(own: Path, given: Any) -> None:
    """As in a damaged record, which spoils no page."""
    entry = entries_of(sl_ledger(ProgramStore(store_url(own))), {})[0]
    record = {**entry.record, "facts": {"color_filter_array": given}}
    assert Entry(exposure=entry.exposure, state="done", reason="", record=record).channels == []


class TestOutliers:
    def test_one_that_stands_out_is_named(self, output: Path) -> None:
        entries = self._entries(output, [0.1, 0.11, 0.1, 0.12, 0.5])
        (found,) = [outlier for outlier in outliers(entries) if outlier.what == "pixels in sources"]
        assert (found.entry.name, found.value, found.usual) == ("e04", 0.5, 0.11)

    @pytest.mark.parametrize("values", [[0.1, 0.11, 0.1, 0.12, 0.13], [0.1] * 5, [None] * 5, [0.1, 0.5]])
    def test_none_does(self, output: Path, values: list[float]) -> None:
        assert not outliers(self._entries(output, values))

    @staticmethod
    def _entries(output: Path, values: list[Any]) -> list[Entry]:
        store = ProgramStore(store_url(output))
        some = [entry for entry in entries_of(sl_ledger(store), {}) if entry.name.startswith("e0")]
        return [
            Entry(exposure=entry.exposure, state="done", reason="", record={"metrics": {"masked_fraction": value}})
            for entry, value in zip(some, values, strict=False)
        ]


def sl_ledger(store: ProgramStore) -> Any:
    from skylevel.program.ledger import Ledger  # noqa: PLC0415

    return Ledger(store, read_plan(store))


class TestStore:
    def test_pictures_are_read_only_when_asked_for(self, output: Path) -> None:
        store, place = ProgramStore(store_url(output)), place_of(output, "e00")
        assert PICTURE not in store.read_records([place])[place]
        assert picture_from(store.read_records([place], pictures=True)[place][PICTURE]) is not None

    def test_a_picture_costs_no_file(self, output: Path) -> None:
        node, index = place_of(output, "e03")
        chunks = (output / "program.zarr" / node).glob(f"*/{index}*")
        assert len({*chunks, *output.glob("e03*")}) == 6

    def test_an_exposure_without_a_picture_is_done_all_the_same(self, tmp_path: Path) -> None:
        write_exposures(tmp_path / "in", 1)
        with patch("skylevel.program.tasks.picture_of", side_effect=ValueError("odd")):
            assert skylevel_here("run", tmp_path / "in", "--output", tmp_path / "out", "--partition", "1/1") == 0
        assert "No picture of it is kept" in (tmp_path / "out" / "report.html").read_text(encoding="utf-8")
        assert "has no picture: ValueError: odd" in (tmp_path / "out" / "skylevel.log").read_text()


@pytest.mark.once
class TestCommandLine:
    def test_a_run_ends_with_it(self, tmp_path: Path) -> None:
        write_exposures(tmp_path / "in", 2)
        ran = skylevel("run", tmp_path / "in", "--output", tmp_path / "out", "--workers", 1)
        assert re.search(rf"report +{re.escape(str(tmp_path / 'out' / 'report.html'))}", ran.stdout)
        before = stamps(tmp_path / "out")
        assert skylevel_here("run", tmp_path / "in", "--output", tmp_path / "out") == 0
        assert stamps(tmp_path / "out")["report.html"] == before["report.html"]

    def test_or_without(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        write_exposures(tmp_path / "in", 1)
        arguments = ("run", tmp_path / "in", "--output", tmp_path / "out", "--partition", "1/1")
        assert skylevel_here(*arguments, "--no-report") == 0
        assert not (tmp_path / "out" / "report.html").exists()
        assert skylevel_here("report", tmp_path / "out") == 0
        assert capsys.readouterr().out.rstrip().endswith("report.html")
        assert len(page_of(tmp_path / "out").rows) == 1

    def test_of_shares_the_last_one_writes_it(self, tmp_path: Path) -> None:
        write_exposures(tmp_path / "in", 2)
        for share in (1, 2):
            assert not (tmp_path / "out" / "report.html").exists()
            skylevel_here("run", tmp_path / "in", "--output", tmp_path / "out", "--partition", f"{share}/2")
        assert [row[1] for row in page_of(tmp_path / "out").rows] == ["done", "done"]

    def test_where_there_is_no_program(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        assert skylevel_here("report", tmp_path) == 2
        assert "no program was run into this folder" in capsys.readouterr().err

    def test_a_run_whose_report_cannot_be_written(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        write_exposures(tmp_path / "in", 1)
        (tmp_path / "out" / "report.html").mkdir(parents=True)
        assert skylevel_here("run", tmp_path / "in", "--output", tmp_path / "out", "--partition", "1/1") == 0
        assert "the report cannot be written" in capsys.readouterr().err


class TestDrawing:
    @pytest.mark.parametrize(("low", "high"), [(0.0, 1.0), (-3e-9, 2e-9), (5.0, 5.0), (1e6, 1.2e6)])
    def test_ticks_stand_on_the_axis(self, low: float, high: float) -> None:
        axis = axis_over([low, high], 100)
        assert 2 <= len(axis.ticks) <= 7
        assert all(0 <= at <= 100 for at, _ in axis.ticks)

    @pytest.mark.parametrize("values", [[1e-9, 1e9], [0.01, 0.02], [3.0, 3.0], [0.0, -1.0]])
    def test_ticks_of_a_logarithmic_one(self, values: list[float]) -> None:
        axis = axis_over(values, 100, log=True)
        assert all(-1e-6 <= at <= 100.1 for at, _ in axis.ticks)

    def test_a_line_is_broken_where_nothing_is_known(self) -> None:
        nan = float("nan")
        assert path([0, 1, 2, 3], [1.0, nan, 3.0, 4.0]) == "M0 1M2 3L3 4"

    def test_a_large_plane_is_drawn_small(self) -> None:
        import numpy as np  # noqa: PLC0415

        assert len(colored(np.zeros((5000, 20)), 0.0, 0.0)) < 20000
