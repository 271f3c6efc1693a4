"""From inputs to exposures: which files are taken, what is refused, shares, and the keys that decide what is done."""

import json
import os
from collections import Counter
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

import fsspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from programs import skylevel_here, write_exposure
from skylevel.errors import PlanError
from skylevel.io.nodes import Place
from skylevel.io.store import ProgramStore
from skylevel.jobs import Facts
from skylevel.program.inputs import expand_inputs
from skylevel.program.plan import Exposure, make_plan, partition, read_plan, store_url
from skylevel.program.view import program_status
from skylevel.recipes import Channels, Rows


@pytest.fixture
def night(tmp_path: Path) -> Path:
    """A folder of inputs, our own outputs among them, and what is no exposure."""
    folder = tmp_path / "night"
    folder.mkdir()
    inputs = ("b_cal.fits", "a_cal.fits", "c.FITS", "d.fits.gz", "DSC1.ARW", "x.dng")
    outputs = (
        "a_cal_rowbgsub.fits", "a_cal_masked.fits", "a_cal_background.fits", "detections_segm_a_cal.fits",
        "x.bkg_subtracted.fits", "x.bkg_background.fits",
    )  # fmt: skip
    for name in (*inputs, *outputs, "notes.txt", "preview.jpg"):
        (folder / name).write_bytes(b"content of " + name.encode())
    (folder / "folder.fits").mkdir()
    return folder


INPUTS = ["DSC1.ARW", "a_cal.fits", "b_cal.fits", "c.FITS", "d.fits.gz", "x.dng"]


def names(*inputs: object) -> list[str]:
    """File names of what the inputs stand for, in the order of the plan."""
    return [Path(exposure.source).name for exposure in make_plan(map(str, inputs), "out")]


def write_list(path: Path, *lines: object) -> str:
    path.write_text("\n".join(map(str, lines)) + "\n", encoding="utf-8")
    return f"@{path}"


def write_association(path: Path, *members: tuple[str, str]) -> Path:
    listed = [{"expname": name, "exptype": kind} for name, kind in members]
    path.write_text(json.dumps({"asn_type": "image2", "products": [{"name": "p", "members": listed}]}))
    return path


@pytest.fixture
def one(tmp_path: Path) -> Path:
    path = tmp_path / "one.fits"
    path.write_bytes(b"pixels")
    return path


def exposure_of(path: Path, **settings: object) -> Exposure:
    (exposure,) = make_plan([str(path)], "out", **settings)
    return exposure


class TestInputs:
    def test_a_folder_gives_its_exposures_without_our_own_outputs(self, night: Path) -> None:
        assert names(night) == INPUTS

    def test_a_glob_leaves_our_own_outputs_out_too(self, night: Path) -> None:
        assert names(f"{night}/*") == INPUTS
        assert names(f"{night}/a_cal*") == ["a_cal.fits"]

    def test_a_recursive_glob_goes_down(self, night: Path) -> None:
        assert names(f"{night.parent}/**/*.dng") == ["x.dng"]

    def test_a_file_that_is_named_is_taken_whatever_its_name(self, night: Path) -> None:
        assert names(night / "a_cal_rowbgsub.fits", night / "notes.txt") == ["a_cal_rowbgsub.fits", "notes.txt"]

    def test_relative_inputs_become_absolute(self, night: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.chdir(night)
        found = expand_inputs(["x.dng", "*.dng", "../night/x.dng"])
        assert [one.source for one in found] == [str(night / "x.dng")] * 3

    def test_inputs_are_sorted_and_each_file_taken_once(self, night: Path) -> None:
        given = (night / "x.dng", night, f"{night}/*_cal.fits", night / "a_cal.fits")
        assert names(*given) == names(*reversed(given)) == INPUTS

    def test_a_link_keeps_its_own_name(self, night: Path, tmp_path: Path) -> None:
        """As in a folder that a data manager fills with links into a store of contents."""
        (tmp_path / "linked").mkdir()
        (tmp_path / "linked" / "first.fits").symlink_to(night / "a_cal.fits")
        assert names(tmp_path / "linked") == ["first.fits"]

    def test_a_list_names_inputs_relative_to_itself(self, night: Path) -> None:
        given = write_list(night / "list.txt", "# the good ones", "", "a_cal.fits", "  x.*  ", night / "c.FITS")
        assert names(given) == ["a_cal.fits", "c.FITS", "x.dng"]

    def test_an_association_gives_its_science_members_beside_it(self, night: Path) -> None:
        asn = write_association(night / "jw1_asn.json", ("b_cal.fits", "science"), ("a_cal.fits", "background"))
        assert [exposure.source for exposure in make_plan([str(asn)], "out")] == [str(night / "b_cal.fits")]

    def test_a_missing_member_stays_in_the_plan_to_fail_alone(self, night: Path) -> None:
        asn = write_association(night / "jw1_asn.json", ("gone.fits", "science"), ("a_cal.fits", "science"))
        assert names(asn) == ["a_cal.fits", "gone.fits"]

    def test_file_urls_are_paths(self, night: Path) -> None:
        assert [one.source for one in expand_inputs([f"file://{night}/a_cal.fits"])] == [str(night / "a_cal.fits")]
        assert names(f"file://{night}", night) == INPUTS

    @pytest.fixture
    def remote_night(self) -> str:
        files = fsspec.filesystem("memory")
        for name in ("a.fits", "b.dng", "b.bkg_subtracted.fits", "notes.txt"):
            files.pipe_file(f"/remote-night/{name}", b"content")
        return "memory://remote-night"

    @pytest.mark.parametrize("how", ["", "/", "/*"])
    def test_a_remote_folder_or_glob(self, remote_night: str, how: str) -> None:
        assert names(remote_night + how) == ["a.fits", "b.dng"]

    def test_a_remote_file_is_one_file_however_it_is_asked_for(self, remote_night: str) -> None:
        assert names(f"{remote_night}/a.fits", remote_night) == ["a.fits", "b.dng"]

    def test_recipes_by_kind_of_file(self, night: Path) -> None:
        rows = {Path(e.source).name for e in make_plan([str(night)], "out") if e.recipe.name == "rows"}
        assert rows == {"a_cal.fits", "b_cal.fits", "c.FITS", "d.fits.gz"}

    def test_one_recipe_for_all(self, night: Path) -> None:
        assert Counter(e.recipe.name for e in make_plan([str(night)], "out", recipe="channels")) == {"channels": 6}


class TestRefusals:
    @pytest.mark.parametrize("given", ["{}/none.fits", "{}/*.nothing", "{}/folder.fits", "{}/night/none/*.fits"])
    def test_an_input_that_matches_nothing_is_named(self, night: Path, given: str) -> None:
        with pytest.raises(PlanError, match="nothing matches it") as refused:
            make_plan([given.format(night)], "out")
        assert given.format(night) in str(refused.value)

    def test_a_folder_without_exposures_says_what_is_looked_for(self, night: Path) -> None:
        with pytest.raises(PlanError, match="must be FITS or camera raw"):
            make_plan([str(night / "folder.fits")], "out")

    def test_a_list_that_is_absent_or_no_text(self, night: Path) -> None:
        (night / "list").write_bytes(b"\xff\xfe\x00")
        for name in ("gone.txt", "list"):
            with pytest.raises(PlanError, match=f"{name}: cannot read the list"):
                make_plan([f"@{night / name}"], "out")

    @pytest.mark.parametrize("content", ["{", "[]", '{"products": 3}', '{"products": [{"members": [{}]}]}', "\\udcff"])
    def test_a_damaged_association(self, night: Path, content: str) -> None:
        (night / "jw1_asn.json").write_text(content)
        with pytest.raises(PlanError, match=r"jw1_asn\.json: not a JWST association"):
            make_plan([str(night / "jw1_asn.json")], "out")

    def test_an_association_without_science(self, night: Path) -> None:
        asn = write_association(night / "jw1_asn.json", ("a_cal.fits", "background"))
        with pytest.raises(PlanError, match="no science member"):
            make_plan([str(asn)], "out")

    def test_a_protocol_nobody_knows(self) -> None:
        with pytest.raises(PlanError, match=r"nosuch://a/b\.fits: cannot be listed: Protocol not known"):
            make_plan(["nosuch://a/b.fits"], "out")

    def test_two_inputs_with_the_same_outputs(self, night: Path) -> None:
        (night.parent / "again").mkdir()
        (night.parent / "again" / "a_cal.fits").write_bytes(b"another night")
        with pytest.raises(PlanError, match="would write the same outputs") as refused:
            make_plan([str(night), str(night.parent / "again")], "out")
        assert str(night / "a_cal.fits") in str(refused.value)
        assert str(night.parent / "again" / "a_cal.fits") in str(refused.value)

    def test_an_input_that_an_output_would_overwrite(self, night: Path) -> None:
        given = [str(night / "a_cal.fits"), str(night / "a_cal_rowbgsub.fits")]
        with pytest.raises(PlanError, match=r"a_cal_rowbgsub\.fits: would be overwritten"):
            make_plan(given, str(night))
        assert len(make_plan(given, str(night.parent / "elsewhere"))) == 2

    @pytest.mark.parametrize(("wrong", "known"), [({"layout": "flat"}, "full, primary"),
                                                  ({"keep": ["masks"]}, "segmentation, masked, background"),
                                                  ({"recipe": "columns"}, "auto, rows, channels")])  # fmt: skip
    def test_an_unknown_word_is_refused_with_the_known_ones(self, one: Path, wrong: dict, known: str) -> None:
        with pytest.raises(PlanError, match=known):
            make_plan([str(one)], "out", **wrong)


class TestOutputs:
    def test_names_of_the_notebooks(self, night: Path) -> None:
        keep = ["segmentation", "masked", "background"]
        plan = make_plan([str(night / "a_cal.fits"), str(night / "x.dng")], "/out/", keep=keep)
        assert [dict(exposure.outputs) for exposure in plan] == [
            {
                "levelled": "/out/a_cal_rowbgsub.fits",
                "segmentation": "/out/detections_segm_a_cal.fits",
                "masked": "/out/a_cal_masked.fits",
                "background": "/out/a_cal_background.fits",
            },
            {"levelled": "/out/x.bkg_subtracted.fits", "background": "/out/x.bkg_background.fits"},
        ]

    def test_only_the_levelled_file_unless_more_is_kept(self, night: Path) -> None:
        assert all(list(exposure.outputs) == ["levelled"] for exposure in make_plan([str(night)], "out"))

    def test_compressed_inputs_give_plain_names(self, night: Path) -> None:
        assert exposure_of(night / "d.fits.gz").outputs["levelled"].endswith("out/d_rowbgsub.fits")

    def test_a_url_for_the_outputs(self, one: Path) -> None:
        (exposure,) = make_plan([str(one)], "s3://bucket/out/")
        assert exposure.outputs["levelled"] == "s3://bucket/out/one_rowbgsub.fits"


def spread(counts: Iterable[int]) -> int:
    listed = list(counts)
    return max(listed) - min(listed)


@given(st.integers(0, 60), st.integers(1, 12), st.data())
def test_shares_are_fair_and_cover_all(n_exposures: int, count: int, data: st.DataObject) -> None:
    kinds = data.draw(st.lists(st.sampled_from([Rows(), Channels()]), min_size=n_exposures, max_size=n_exposures))
    plan = [
        Exposure(name=f"e{i:02d}", source=f"/e{i:02d}", recipe=kind, outputs={}, layout="full", identity={})
        for i, kind in enumerate(kinds)
    ]
    shares = [partition(plan, index, count) for index in range(1, count + 1)]
    assert sorted(e.name for share in shares for e in share) == [e.name for e in plan]
    assert spread(len(share) for share in shares) <= 1
    for kind in ("rows", "channels"):
        assert spread(sum(e.recipe.name == kind for e in share) for share in shares) <= 1


@pytest.mark.parametrize(("index", "count"), [(0, 2), (3, 2), (1, 0), (-1, 2)])
def test_a_share_that_does_not_exist(index: int, count: int) -> None:
    with pytest.raises(PlanError, match=f"partition {index}/{count}"):
        partition([], index, count)


class TestKeys:
    def keys(self, path: Path, **settings: object) -> tuple[str, str, str]:
        exposure = exposure_of(path, recipe=Rows(**settings))
        return exposure.key, exposure.mask_key, exposure.export_key()

    def changed(self, path: Path, **settings: object) -> tuple[bool, ...]:
        """Whether key, mask_key and export_key differ from those of the default settings."""
        return tuple(a != b for a, b in zip(self.keys(path), self.keys(path, **settings), strict=True))

    def test_the_same_plan_has_the_same_keys(self, one: Path) -> None:
        assert self.changed(one) == (False, False, False)

    @pytest.mark.parametrize("settings", [{"box_size": 40}, {"threshold": 3}, {"n_pixels": 6}, {"kernel_fwhm": 2.0},
                                          {"exclude_percentile": 20}, {"sigma_clip": 4.0}])  # fmt: skip
    def test_a_detection_setting_changes_all(self, one: Path, settings: dict) -> None:
        assert self.changed(one, **settings) == (True, True, True)

    @pytest.mark.parametrize("settings", [{"positive_only": False}, {"axis": "columns"}])
    def test_a_level_setting_leaves_the_mask_alone(self, one: Path, settings: dict) -> None:
        assert self.changed(one, **settings) == (True, False, True)

    @pytest.mark.parametrize("settings", [{"n_levels": 16}, {"contrast": 0.1}])
    def test_a_product_setting_asks_for_the_outputs_alone(self, one: Path, settings: dict) -> None:
        assert self.changed(one, **settings) == (False, False, True)

    def test_another_file_under_the_same_name(self, one: Path) -> None:
        before = self.keys(one)
        one.write_bytes(b"other pixels")
        assert not set(before) & set(self.keys(one))

    def test_a_file_changed_in_place(self, one: Path) -> None:
        before = self.keys(one)
        os.utime(one, ns=(0, one.stat().st_mtime_ns + 1))
        assert not set(before) & set(self.keys(one))

    def test_a_file_that_moved_is_the_same(self, one: Path, tmp_path: Path) -> None:
        before = self.keys(one)
        (tmp_path / "moved").mkdir()
        assert self.keys(one.rename(tmp_path / "moved" / one.name)) == before

    def test_rows_and_channels_do_not_share_keys(self, one: Path) -> None:
        assert exposure_of(one, recipe="rows").key != exposure_of(one, recipe="channels").key

    @pytest.mark.parametrize("change", [{"layout": "primary"}, {"keep": ["masked"]}])
    def test_other_outputs_need_no_new_measurement(self, one: Path, change: dict) -> None:
        before, after = exposure_of(one), exposure_of(one, **change)
        assert (after.key, after.mask_key) == (before.key, before.mask_key)
        assert after.export_key() != before.export_key()

    def test_an_exposure_survives_the_index(self, one: Path) -> None:
        exposure = exposure_of(one, recipe=Channels(norms={"R": 2.0}), keep=["background"])
        exposure = replace(exposure, facts=Facts("camera", (4, 6), {"dtype": "uint16"}), place=Place("a/b", 3))
        again = Exposure.from_dict(json.loads(json.dumps(exposure.to_dict())), exposure.recipe)
        assert again == exposure
        assert again.key == exposure.key
        assert again != replace(exposure, layout="primary")


def test_a_source_keeps_its_name(tmp_path: Path) -> None:
    """Whatever stands beside it in a later command: its outputs and what was measured of it are under that name."""
    night, first, second = tmp_path / "in", tmp_path / "in" / "a" / "e.fits", tmp_path / "in" / "b" / "e.fits"
    for seed, path in enumerate((first, second)):
        write_exposure(path, seed)

    def run(*inputs: Path, output: str) -> dict[str, str]:
        folder = tmp_path / output
        arguments = ("run", *inputs, "--output", folder, "--recursive", "--partition", "1/1")
        assert skylevel_here(*arguments) == 0
        assert {path.name for path in folder.glob("*.fits")} == {
            f"{state.name}_rowbgsub.fits" for state in program_status(folder)
        }
        return {exposure.source: exposure.name for exposure in read_plan(ProgramStore(store_url(folder)))}

    assert run(night, output="all first") == {str(first): "a-e", str(second): "b-e"}
    assert run(first, output="all first") == {str(first): "a-e", str(second): "b-e"}
    assert run(first, output="one first") == {str(first): "e"}
    assert run(night, output="one first") == {str(first): "e", str(second): "b-e"}
