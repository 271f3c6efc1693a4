"""The program store: what is written comes back, any client opens it, and what is torn or damaged does not count."""

import json
import os
import shutil
import tracemalloc
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any
from uuid import uuid4

import dask
import fsspec
import numpy as np
import pytest
import xarray as xr
import zarr

from skylevel.errors import StoreError
from skylevel.io.nodes import ArraySpec, Layout, Place
from skylevel.io.records import FORMAT, decode_record, encode_record, is_small, small_values
from skylevel.io.store import ProgramStore
from skylevel.level import estimate_channels, estimate_rows
from skylevel.level.arrays import compute_here, write_chunks
from skylevel.recipes import Channels, Rows

NODE = "NRCA1/F200W/120x140-mesh3x3"
PLACE = Place(NODE, 1)
RECORD = {"name": "b", "key": "k", "facts": {"detector": "NRCA1"}, "metrics": {}}


@pytest.fixture(scope="module")
def rows(make_frame: Callable[..., xr.Dataset]) -> xr.Dataset:
    """What was measured of a frame with a row of which nothing was left: NaN and all."""
    frame = make_frame(seed=3)
    frame["sci"][7] = -1.0
    return estimate_rows(frame, Rows())


@pytest.fixture(scope="module")
def channels(make_raw_frame: Callable[..., xr.Dataset]) -> xr.Dataset:
    return estimate_channels(make_raw_frame(), Channels(box_size=50))


def layout_of(estimate: xr.Dataset, node: str = NODE) -> Layout:
    arrays = {
        str(name): ArraySpec(tuple(map(str, v.dims)), v.shape, v.dtype.name, v.attrs)
        for name, v in estimate.items()
        if not is_small(v)
    }
    return Layout(tuple(node.split("/")), arrays, {str(name): v.variable for name, v in estimate.coords.items()})


def prepared(url: str, estimate: xr.Dataset, names: tuple[str, ...] = ("a", "b", "c")) -> ProgramStore:
    store = ProgramStore(url)
    with store.locked():
        store.prepare({NODE: layout_of(estimate)}, {NODE: list(names)})
    return store


@pytest.fixture
def store(tmp_path: Path, rows: xr.Dataset) -> ProgramStore:
    """Room for three exposures of rows."""
    return prepared(str(tmp_path / "program.zarr"), rows)


def write_now(arrays: list[Any]) -> None:
    compute_here([later for array in arrays if (later := write_chunks(*array)) is not None])


def write(store: ProgramStore, estimate: xr.Dataset, place: Place = PLACE, **more: Any) -> dict[str, Any]:
    checksums = store.write_arrays(place, estimate, write_now)
    return store.write_record(place, {**RECORD, "checksums": checksums, "small": small_values(estimate), **more})


def read(store: ProgramStore, place: Place = PLACE) -> xr.Dataset:
    record = store.read_records([place]).get(place)
    return store.load(store.read_estimate(place, record))


def chunk(store: ProgramStore, array: str, place: Place = PLACE) -> Path:
    (found,) = [p for p in Path(store.url, place.node, array).iterdir() if p.name.split(".")[0] == str(place.index)]
    return found


def is_there(store: ProgramStore, place: Place = PLACE) -> bool:
    records = store.read_records([place])
    return place in records and not store.lost(records)


class TestRoundtrip:
    def test_rows_come_back_bit_for_bit(self, store: ProgramStore, rows: xr.Dataset) -> None:
        write(store, rows)
        again = read(store)
        assert int(again["row_level"].isnull().sum()) == 1
        xr.testing.assert_identical(again.drop_attrs(), rows.drop_attrs())
        assert {v: again[v].dtype for v in again} == {v: rows[v].dtype for v in rows}
        assert again["row_level"].attrs["long_name"] == "level of each row"

    def test_channels_come_back_with_their_letters(self, tmp_path: Path, channels: xr.Dataset) -> None:
        store = prepared(str(tmp_path / "program.zarr"), channels)
        write(store, channels)
        again = read(store)
        assert again["channel"].values.tolist() == ["R", "G", "B"]
        xr.testing.assert_equal(again.drop_attrs(), channels.drop_attrs())

    def test_on_a_url_too(self, channels: xr.Dataset) -> None:
        store = prepared(f"memory://{uuid4().hex}/program.zarr", channels)
        write(store, channels)
        assert is_there(store)
        xr.testing.assert_equal(read(store).drop_attrs(), channels.drop_attrs())

    def test_in_the_chunks_of_a_dask_array(self, store: ProgramStore, rows: xr.Dataset) -> None:
        chunked = {"source_mask": rows["source_mask"].chunk(y=33, x=50), "row_level": rows["row_level"].chunk(y=9)}
        write(store, rows.assign(chunked))
        xr.testing.assert_identical(read(store).drop_attrs(), rows.drop_attrs())

    def test_a_large_frame_has_a_chunk_a_block(
        self, tmp_path: Path, rows: xr.Dataset, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("skylevel.io.nodes.LARGEST_CHUNK", 4000)
        store = prepared(str(tmp_path / "program.zarr"), rows)
        write(store, rows.assign(source_mask=rows["source_mask"].chunk(y=25)))
        n_chunks = len(list(Path(store.url, NODE, "source_mask").glob("1.*")))
        assert n_chunks == 120 // 7 + 1
        xr.testing.assert_identical(read(store).drop_attrs(), rows.drop_attrs())
        Path(store.url, NODE, "source_mask", "1.3.0").unlink()
        assert not is_there(store)

    def test_it_is_read_lazily(self, store: ProgramStore, rows: xr.Dataset) -> None:
        write(store, rows)
        lazy = store.read_estimate(PLACE, store.read_records([PLACE])[PLACE])
        chunk(store, "source_mask").write_bytes(b"damaged later")
        xr.testing.assert_identical(lazy["row_level"].drop_attrs().load(), rows["row_level"].drop_attrs())
        with pytest.raises(StoreError, match="a stored chunk is damaged"):
            store.load(lazy)

    def test_records_become_plain_values(self, store: ProgramStore, rows: xr.Dataset) -> None:
        given = {"n": np.int64(3), "levels": np.array([1.5, np.nan]), "inner": {"inf": np.inf, "t": (1, 2)}}
        written = write(store, rows, **given)
        found = store.read_records([PLACE])[PLACE]
        assert found == written
        expected = {"n": 3, "levels": [1.5, None], "inner": {"inf": None, "t": [1, 2]}}
        assert {key: found[key] for key in expected} == expected

    def test_each_writes_its_own_place_alone(self, store: ProgramStore, rows: xr.Dataset) -> None:
        other = rows.assign(row_level=rows["row_level"] + 1)
        write(store, rows)
        before = {path: path.read_bytes() for path in Path(store.url).rglob("*") if path.is_file()}
        write(store, other, Place(NODE, 0))
        assert all(path.read_bytes() == content for path, content in before.items())
        xr.testing.assert_equal(read(store, Place(NODE, 0))["row_level"], other["row_level"])
        xr.testing.assert_equal(read(store)["row_level"], rows["row_level"])

    def test_writing_twice_changes_nothing(self, store: ProgramStore, rows: xr.Dataset) -> None:
        contents = []
        for _ in range(2):
            write(store, rows)
            contents.append({path: path.read_bytes() for path in Path(store.url).rglob("*") if path.is_file()})
        assert contents[0] == contents[1]

    def test_an_exposure_takes_five_files_and_no_folder(self, tmp_path: Path, rows: xr.Dataset) -> None:
        counts = []
        for n in (10, 60):
            url = str(tmp_path / f"{n}.zarr")
            store = prepared(url, rows, tuple(f"e{i}" for i in range(n)))
            for i in range(n):
                write(store, rows, Place(NODE, i))
            counts.append(len(list(Path(url).rglob("*"))))
        assert (counts[1] - counts[0]) / 50 == 5


class TestGrowing:
    def test_what_is_there_stays(self, store: ProgramStore, rows: xr.Dataset) -> None:
        write(store, rows)
        for names in (["a", "b", "c", "d"], ["a", "b", "c", "d", "e", "f"]):
            assert not store.has_room({NODE: layout_of(rows)}, {NODE: len(names)})
            store.prepare({NODE: layout_of(rows)}, {NODE: names})
            assert store.has_room({NODE: layout_of(rows)}, {NODE: len(names)})
            xr.testing.assert_identical(read(store).drop_attrs(), rows.drop_attrs())
        write(store, rows, Place(NODE, 5))
        xr.testing.assert_identical(read(store, Place(NODE, 5)).drop_attrs(), rows.drop_attrs())

    def test_a_place_that_nobody_has_any_more_is_empty(self, store: ProgramStore, rows: xr.Dataset) -> None:
        write(store, rows)
        store.prepare({NODE: layout_of(rows)}, {NODE: ["a", "", "c"]})
        assert not is_there(store)
        assert not chunk_exists(store, "source_mask")

    def test_a_node_that_nobody_has_any_more_is_gone(self, store: ProgramStore, rows: xr.Dataset) -> None:
        write(store, rows)
        other = "NRCB1/F200W/120x140-mesh3x3"
        store.prepare({other: layout_of(rows, other)}, {other: ["x"]})
        assert store.nodes() == [other]
        assert not Path(store.url, NODE).exists()

    @pytest.mark.parametrize("damage", [b"", b"{", b"[]", b"\xff\x00", b'{"zarr_format": 9}'])
    @pytest.mark.parametrize("of", ["", "NRCA1", NODE, f"{NODE}/row_level", f"{NODE}/record", f"{NODE}/mesh_y"])
    def test_damaged_metadata_are_made_anew(
        self, store: ProgramStore, rows: xr.Dataset, of: str, damage: bytes
    ) -> None:
        Path(store.url, of, "zarr.json").write_bytes(damage)
        store.prepare({NODE: layout_of(rows)}, {NODE: ["a", "b", "c"]})
        assert store.has_room({NODE: layout_of(rows)}, {NODE: 3})
        write(store, rows)
        xr.testing.assert_identical(read(store).drop_attrs(), rows.drop_attrs())

    def test_an_estimate_of_another_form_is_refused(self, store: ProgramStore, rows: xr.Dataset) -> None:
        write(store, rows)
        with pytest.raises(StoreError, match="the exposure changed since the run was planned"):
            write(store, rows.isel(y=slice(50)))
        assert is_there(store)


def chunk_exists(store: ProgramStore, array: str, place: Place = PLACE) -> bool:
    return any(p.name.split(".")[0] == str(place.index) for p in Path(store.url, place.node, array).iterdir())


class TestAnyClient:
    def test_xarray_opens_it_without_skylevel_and_without_a_warning(
        self, store: ProgramStore, rows: xr.Dataset
    ) -> None:
        write(store, rows)
        store.write_plan({"format": FORMAT})
        store.write_failure("c", "reason")
        store.describe(NODE, [{}, {"date_obs": "2024-01-01", "exposure_time": 107.4}], {})
        store.finish("key")
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            node = xr.open_datatree(store.url, engine="zarr")[NODE].to_dataset().load()
        assert node["exposure"].values.tolist() == ["a", "b", "c"]
        assert node["source_mask"].dims == ("exposure", "y", "x")
        np.testing.assert_array_equal(node["source_mask"][1], rows["source_mask"])
        np.testing.assert_array_equal(node["row_level"][1], rows["row_level"])
        assert node["row_level"][0].isnull().all()
        assert node["date_obs"].values.tolist() == ["", "2024-01-01", ""]
        assert {"exposure", "date_obs", "exposure_time"} <= set(node.coords)
        assert set(read(store).coords) == {"mesh_y", "mesh_x"}
        assert json.loads(str(node["record"].values[1]))["name"] == "b"
        assert [str(text) for text in node["record"].values[[0, 2]]] == ["", ""]

    def test_every_chunk_has_a_checksum(self, store: ProgramStore, rows: xr.Dataset) -> None:
        write(store, rows)
        group = zarr.open_group(f"{store.url}/{NODE}", mode="r")
        for array in ("source_mask", "row_level", "background", "background_rms", "record"):
            path = chunk(store, array)
            content = bytearray(path.read_bytes())
            content[len(content) // 2] ^= 1
            path.write_bytes(content)
            with pytest.raises(ValueError, match="checksum"):
                group[array][1]


TEARS: dict[str, Callable[[ProgramStore], object]] = {
    "no record": lambda store: chunk(store, "record").unlink(),
    "record cut short": lambda store: os.truncate(chunk(store, "record"), 40),
    "record empty": lambda store: os.truncate(chunk(store, "record"), 0),
    "record of another form": lambda store: chunk(store, "record").write_bytes(encode_record({"key": "k"})),
    "record no object": lambda store: chunk(store, "record").write_bytes(encode_record([])),  # type: ignore[arg-type]
    "an array gone": lambda store: shutil.rmtree(Path(store.url, NODE, "row_level")),
    "levels gone": lambda store: chunk(store, "row_level").unlink(),
    "mask gone": lambda store: chunk(store, "source_mask").unlink(),
}


class TestTorn:
    @pytest.mark.parametrize("tear", TEARS.values(), ids=TEARS)
    def test_what_is_torn_is_not_there(self, store: ProgramStore, rows: xr.Dataset, tear: Callable) -> None:
        write(store, rows)
        assert is_there(store)
        tear(store)
        assert not is_there(store)
        with pytest.raises(StoreError):
            read(store)
        store.prepare({NODE: layout_of(rows)}, {NODE: ["a", "b", "c"]})
        write(store, rows)
        xr.testing.assert_identical(read(store).drop_attrs(), rows.drop_attrs())

    def test_any_flipped_bit_of_a_record_is_seen(self) -> None:
        encoded = encode_record({**RECORD, "format": FORMAT, "checksums": {}, "small": {}})
        assert decode_record(encoded) is not None
        for byte in range(len(encoded)):
            damaged = bytearray(encoded)
            damaged[byte] ^= 1 << byte % 8
            assert decode_record(bytes(damaged)) is None

    def test_a_chunk_of_another_measurement_is_not_taken(self, store: ProgramStore, rows: xr.Dataset) -> None:
        """Whole, with its checksum right, but not the one that the record tells of."""
        write(store, rows.assign(row_level=rows["row_level"] + 1))
        other = chunk(store, "row_level").read_bytes()
        write(store, rows)
        chunk(store, "row_level").write_bytes(other)
        with pytest.raises(StoreError, match="a chunk is not the one that was written"):
            read(store)

    def test_all_zeros_are_not_taken_for_torn(self, store: ProgramStore, rows: xr.Dataset) -> None:
        """Zarr would write no chunk where all is the fill value."""
        nothing = rows.map(xr.zeros_like, keep_attrs=True).assign_coords(rows.coords)
        write(store, nothing)
        assert is_there(store)
        xr.testing.assert_identical(read(store).drop_attrs(), nothing.drop_attrs())

    def test_an_exposure_that_was_never_measured(self, store: ProgramStore) -> None:
        assert not is_there(store)
        with pytest.raises(StoreError, match="holds no complete measurement"):
            read(store)

    def test_a_write_that_fails_half_way_is_not_there(self, store: ProgramStore, rows: xr.Dataset) -> None:
        write(store, rows)

        def fail_after_the_first(arrays: list[Any]) -> None:
            write_now(arrays[:1])
            raise OSError("no more space")

        with pytest.raises(OSError, match="no more space"):
            store.write_arrays(PLACE, rows, fail_after_the_first)
        assert not is_there(store)

    def test_a_cluster_that_is_near_is_not_asked(self, store: ProgramStore, rows: xr.Dataset) -> None:
        def cluster(*_: Any, **__: Any) -> None:
            raise AssertionError("asked")

        with dask.config.set(scheduler=cluster):
            write(store, rows.assign(source_mask=rows["source_mask"].chunk(y=30)))


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

    @pytest.mark.parametrize("name", ["", "..", "../up", ".hidden", "a/b", "x" * 240, "n\x1b[31m", "\udcff", "é"])
    def test_a_name_is_never_a_path(self, store: ProgramStore, name: str) -> None:
        before = {path for path in Path(store.url).parent.rglob("*") if "failed" not in str(path)}
        store.write_failure(name, "reason")
        assert list(store.failures()) == [name]
        assert {path for path in Path(store.url).parent.rglob("*") if "failed" not in str(path)} == before
        store.forget_failure(name)
        assert store.failures() == {}

    @pytest.mark.parametrize("content", ["", "{", "[]", "{}", "null"])
    def test_a_damaged_note_says_nothing(self, store: ProgramStore, content: str) -> None:
        store.write_failure("a", "reason")
        store.write_failure("b", "reason")
        Path(store.url, "failed", "a.json").write_text(content)
        assert store.failures() == {"b": "reason"}

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

    def test_a_folder_that_was_never_run(self, tmp_path: Path) -> None:
        with pytest.raises(StoreError, match=r"program\.zarr: no program was run into this folder"):
            ProgramStore(str(tmp_path / "program.zarr")).read_plan()

    @pytest.mark.parametrize("written", [{"format": FORMAT + 1}, {"format": 1}, {"format": None}, {}])
    def test_another_format_is_refused(self, store: ProgramStore, written: dict) -> None:
        store.write_plan({"exposures": [], **written})
        with pytest.raises(StoreError, match="written by another version of skylevel"):
            store.read_plan()


class TestGroups:
    def test_what_a_group_knows_comes_back_under_its_key(self, store: ProgramStore) -> None:
        result = xr.Dataset({"sky": (("term",), np.array([1.0, np.nan, 3.0])), "n": ((), 3)})
        assert store.read_group(NODE, "night 1") is None
        store.write_group(NODE, "night 1", result, "key")
        key, again = store.read_group(NODE, "night 1")
        assert key == "key"
        xr.testing.assert_equal(again, result)

    def test_a_damaged_one_is_not_there(self, store: ProgramStore) -> None:
        store.write_group(NODE, "g", xr.Dataset({"sky": (("term",), np.arange(3.0))}), "key")
        (content,) = [p for p in Path(store.url, NODE, "groups", "g", "sky", "c").rglob("*") if p.is_file()]
        damaged = bytearray(content.read_bytes())
        damaged[3] ^= 8
        content.write_bytes(damaged)
        assert store.read_group(NODE, "g") is None


def test_a_url_nobody_knows() -> None:
    assert "nosuch" not in fsspec.available_protocols()
    with pytest.raises(StoreError, match="nosuch"):
        ProgramStore("nosuch://bucket/program.zarr")


def test_looking_at_chunks_holds_one_of_them(tmp_path: Path) -> None:
    pixels = np.random.default_rng(1).integers(0, 256, (12_000, 8_000)).astype(np.uint8)
    estimate = xr.Dataset({"dq": (("y", "x"), pixels)})
    store = prepared(str(tmp_path / "program.zarr"), estimate)
    record = write(store, estimate)
    chunks = sorted((tmp_path / "program.zarr" / NODE / "dq").glob("1.*"))
    assert sum(chunk.stat().st_size for chunk in chunks) > 90e6
    tracemalloc.start()
    try:
        store.require_sound(PLACE, record)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 25e6
    with chunks[-1].open("r+b") as stream:
        stream.seek(1000)
        stream.write(b"damage")
    with pytest.raises(StoreError, match="a stored chunk is damaged: the checksum of dq is another"):
        store.require_sound(PLACE, record)
