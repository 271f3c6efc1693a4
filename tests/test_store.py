"""The program store: what is written comes back, and what is torn, damaged or foreign does not count."""

import errno
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from uuid import uuid4

import fsspec
import numpy as np
import pytest
import xarray as xr

from skylevel.errors import StoreError
from skylevel.io.records import FORMAT
from skylevel.io.store import ProgramStore
from skylevel.level import estimate_channels, estimate_rows
from skylevel.recipes import Channels, Rows

NAME = "jw01_nrca1_cal"


@pytest.fixture
def store(tmp_path: Path) -> ProgramStore:
    return ProgramStore(str(tmp_path / "program.zarr"))


@pytest.fixture(scope="module")
def rows(make_frame: Callable[..., xr.Dataset]) -> xr.Dataset:
    """What was measured of a frame with a row of which nothing was left: NaN and all."""
    frame = make_frame(seed=3)
    frame["sci"][7] = -1.0
    return estimate_rows(frame, Rows())


@pytest.fixture(scope="module")
def channels(make_raw_frame: Callable[..., xr.Dataset]) -> xr.Dataset:
    return estimate_channels(make_raw_frame(), Channels(box_size=50))


def group_of(store: ProgramStore, name: str = NAME) -> Path:
    return Path(store.url, "exposures", name)


def files_below(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


class TestRoundtrip:
    def test_rows_come_back_bit_for_bit(self, store: ProgramStore, rows: xr.Dataset) -> None:
        store.write_estimate(NAME, rows, {"key": "k"})
        again = store.read_estimate(NAME).load()
        assert int(again["row_level"].isnull().sum()) == 1
        xr.testing.assert_identical(again.drop_attrs(), rows.drop_attrs())
        assert {v: again[v].dtype for v in again} == {v: rows[v].dtype for v in rows}

    def test_channels_come_back_with_their_letters(self, store: ProgramStore, channels: xr.Dataset) -> None:
        store.write_estimate(NAME, channels, {"key": "k"})
        again = store.read_estimate(NAME).load()
        assert again["channel"].values.tolist() == ["R", "G", "B"]
        xr.testing.assert_identical(again.drop_attrs(), channels.drop_attrs())

    def test_on_a_url_too(self, channels: xr.Dataset) -> None:
        store = ProgramStore(f"memory://{uuid4().hex}/program.zarr")
        store.write_estimate(NAME, channels, {"key": "k"})
        xr.testing.assert_identical(store.read_estimate(NAME).load().drop_attrs(), channels.drop_attrs())
        assert store.names() == [NAME]

    def test_it_is_read_lazily(self, store: ProgramStore, rows: xr.Dataset) -> None:
        store.write_estimate(NAME, rows, {})
        lazy = store.read_estimate(NAME)
        (group_of(store) / "source_mask" / "c" / "0" / "0").write_bytes(b"damaged later")
        xr.testing.assert_identical(lazy["row_level"].drop_attrs().load(), rows["row_level"])
        with pytest.raises(RuntimeError, match="blosc"):
            lazy["source_mask"].load()

    def test_attributes_become_plain_values(self, store: ProgramStore, rows: xr.Dataset) -> None:
        given = {"key": "k", "n": np.int64(3), "levels": np.array([1.5, np.nan]), "inner": {"inf": np.inf, "t": (1, 2)}}
        store.write_estimate(NAME, rows, given)
        read = store.read_attributes(NAME)
        expected = {"key": "k", "n": 3, "levels": [1.5, None], "inner": {"inf": None, "t": [1, 2]}}
        assert {key: read[key] for key in expected} == expected

    def test_a_later_estimate_takes_the_place_of_an_earlier_one(
        self, store: ProgramStore, rows: xr.Dataset, channels: xr.Dataset
    ) -> None:
        store.write_estimate(NAME, rows, {"key": "old"})
        store.write_estimate(NAME, channels, {"key": "new"})
        xr.testing.assert_identical(store.read_estimate(NAME).load().drop_attrs(), channels.drop_attrs())
        assert not (group_of(store) / "row_level").exists()
        assert os.listdir(group_of(store).parent) == [NAME]  # noqa: PTH208 (hidden ones too)

    def test_writing_twice_changes_nothing(self, store: ProgramStore, rows: xr.Dataset) -> None:
        contents = []
        for _ in range(2):
            store.write_estimate(NAME, rows, {"key": "k"})
            contents.append({name: (group_of(store) / name).read_bytes() for name in files_below(group_of(store))})
        assert contents[0] == contents[1]

    def test_names_are_sorted_and_asides_are_none(self, store: ProgramStore, channels: xr.Dataset) -> None:
        assert store.names() == []
        for name in ("b", "a.x", "a"):
            store.write_estimate(name, channels, {})
        shutil.copytree(group_of(store, "a"), group_of(store, ".c.0123"))
        assert store.names() == ["a", "a.x", "b"]


def no_mark(group: Path) -> None:
    metadata = json.loads((group / "zarr.json").read_text())
    del metadata["attributes"]["complete"]
    (group / "zarr.json").write_text(json.dumps(metadata))


def cut(group: Path) -> None:
    text = (group / "zarr.json").read_bytes()
    (group / "zarr.json").write_bytes(text[: len(text) // 2])


TEARS: dict[str, Callable[[Path], object]] = {
    "without the mark": no_mark,
    "no metadata": lambda group: (group / "zarr.json").unlink(),
    "metadata cut short": cut,
    "metadata empty": lambda group: (group / "zarr.json").write_bytes(b""),
    "metadata no JSON": lambda group: (group / "zarr.json").write_bytes(b"\xff\x00"),
    "metadata of another form": lambda group: (group / "zarr.json").write_text("[]"),
    "an array gone": lambda group: shutil.rmtree(group / "row_level"),
    "pixels gone": lambda group: shutil.rmtree(group / "row_level" / "c"),
    "mask gone": lambda group: (group / "source_mask" / "c" / "0" / "0").unlink(),
}


class TestTorn:
    @pytest.mark.parametrize("tear", TEARS.values(), ids=TEARS)
    def test_a_torn_group_is_not_there(self, store: ProgramStore, rows: xr.Dataset, tear: Callable) -> None:
        store.write_estimate(NAME, rows, {"key": "k"})
        assert store.read_attributes(NAME) is not None
        tear(group_of(store))
        assert store.read_attributes(NAME) is None
        with pytest.raises(StoreError, match=f"no complete measurement of {NAME}"):
            store.read_estimate(NAME)
        store.write_estimate(NAME, rows, {"key": "k"})
        xr.testing.assert_identical(store.read_estimate(NAME).load().drop_attrs(), rows.drop_attrs())

    def test_all_zeros_are_not_taken_for_torn(self, store: ProgramStore, rows: xr.Dataset) -> None:
        """Zarr would write no chunk where all is the fill value."""
        nothing = rows.map(xr.zeros_like)
        store.write_estimate(NAME, nothing, {})
        xr.testing.assert_identical(store.read_estimate(NAME).load().drop_attrs(), nothing.drop_attrs())

    def test_an_exposure_that_was_never_measured(self, store: ProgramStore) -> None:
        assert store.read_attributes("other") is None
        with pytest.raises(StoreError, match="no complete measurement of other; run the program again"):
            store.read_estimate("other")

    def test_a_write_that_fails_leaves_what_stood_there(
        self, store: ProgramStore, rows: xr.Dataset, channels: xr.Dataset
    ) -> None:
        store.write_estimate(NAME, rows, {"key": "k"})
        before = files_below(Path(store.url))
        with pytest.raises(TypeError, match="Invalid attribute"):
            store.write_estimate(NAME, channels, {"key": object()})
        assert files_below(Path(store.url)) == before
        assert store.read_attributes(NAME)["key"] == "k"

    def test_a_write_that_fails_half_way_leaves_nothing(self, store: ProgramStore, rows: xr.Dataset) -> None:
        """The mask is written first, then an array that Zarr cannot hold."""
        broken = rows[["source_mask"]].assign(zzz=("y", np.array([object()] * rows.sizes["y"])))
        with pytest.raises((TypeError, ValueError)):
            store.write_estimate(NAME, broken, {})
        assert files_below(Path(store.url)) == []
        assert os.listdir(group_of(store).parent) == []  # noqa: PTH208 (hidden ones too)


class TestFailures:
    def test_remembered_and_forgotten(self, store: ProgramStore) -> None:
        assert store.failures() == {}
        store.write_failure("a", "a.fits: cut short")
        store.write_failure("b.1", "b.1.fits: damaged")
        store.write_failure("a", "a.fits: is empty")
        assert store.failures() == {"a": "a.fits: is empty", "b.1": "b.1.fits: damaged"}
        store.forget_failure("a")
        store.forget_failure("never-failed")
        assert store.failures() == {"b.1": "b.1.fits: damaged"}

    def test_exports_likewise(self, store: ProgramStore) -> None:
        assert store.export_keys() == {}
        store.write_export("a", "key", {})
        assert store.export_keys() == {"a": "key"}

    @pytest.mark.parametrize("content", ["", "{", "[]", "{}", "null"])
    def test_a_damaged_record_says_nothing(self, store: ProgramStore, content: str) -> None:
        store.write_export("a", "key", {})
        store.write_export("b", "key", {})
        Path(store.url, "exported", "a.json").write_text(content)
        assert store.export_keys() == {"b": "key"}

    def test_a_record_that_cannot_be_written_leaves_nothing(self, store: ProgramStore) -> None:
        store.write_failure("a", "reason")
        Path(store.url, "failed", "b.json").mkdir()
        with pytest.raises(OSError, match="directory") as failed:
            store.write_failure("b", "reason")
        assert failed.value.errno in (errno.EISDIR, errno.ENOTDIR, errno.EEXIST)
        assert sorted(os.listdir(Path(store.url, "failed"))) == ["a.json", "b.json"]  # noqa: PTH208 (hidden ones too)

    def test_on_a_url_too(self) -> None:
        store = ProgramStore(f"memory://{uuid4().hex}/program.zarr")
        store.write_failure("a", "reason")
        assert store.failures() == {"a": "reason"}
        store.forget_failure("a")
        assert store.failures() == {}


class TestPlan:
    def test_the_index_comes_back(self, store: ProgramStore) -> None:
        store.write_plan({"format": FORMAT, "exposures": [{"name": "a", "size": np.int64(3)}]})
        assert store.read_plan()["exposures"] == [{"name": "a", "size": 3}]

    def test_a_folder_that_was_never_run(self, store: ProgramStore) -> None:
        with pytest.raises(StoreError, match=r"program\.zarr: no program was run into this folder"):
            store.read_plan()

    @pytest.mark.parametrize("written", [{"format": FORMAT + 1}, {"format": None}, {}])
    def test_another_format_is_refused(self, store: ProgramStore, written: dict) -> None:
        store.write_plan({"exposures": [], **written})
        with pytest.raises(StoreError, match="written by another version of skylevel"):
            store.read_plan()


def test_a_url_nobody_knows() -> None:
    assert "nosuch" not in fsspec.available_protocols()
    with pytest.raises(StoreError, match="nosuch"):
        ProgramStore("nosuch://bucket/program.zarr")


def test_small_things_are_attributes_and_come_back_as_they_were(tmp_path):
    mesh = (("mesh_y", "mesh_x"), np.ones((9, 9), np.float32))
    measured = {"exclude_percentile": ("channel", [10.0, np.nan]), "background": mesh}
    small = xr.Dataset(measured, coords={"channel": ["R", "G"]})
    store = ProgramStore(str(tmp_path / "program.zarr"))
    store.write_estimate("night", small, {})
    folders = sorted(path.name for path in (tmp_path / "program.zarr/exposures/night").iterdir() if path.is_dir())
    assert folders == ["background"]
    xr.testing.assert_identical(store.read_estimate("night").load().drop_attrs(), small)
