"""A program seen through its store: its state, and what was measured across exposures, lazily."""

import shutil
from pathlib import Path

import dask
import dask.array as da
import numpy as np
import pytest
import xarray as xr
from distributed import Client

import skylevel as sl
from programs import chunks_of, write_exposure, write_exposures, write_raw, write_truncated
from skylevel.errors import StoreError
from skylevel.io.store import ProgramStore
from skylevel.level import estimate_rows
from skylevel.program.view import ExposureState, program_status


@pytest.fixture(scope="module")
def output(tmp_path_factory: pytest.TempPathFactory, client: Client) -> Path:
    """Two filters of one detector, another detector with vertical stripes, two raws; read only."""
    root = tmp_path_factory.mktemp("view")
    write_exposures(root / "in", 3)
    write_exposure(root / "in" / "f1.fits", 11, cards={"FILTER": "F115W"})
    write_exposure(root / "in" / "nis1.fits", 12, cards={"INSTRUME": "NIRISS", "DETECTOR": "NIS", "FASTAXIS": -2})
    write_raw(root / "in" / "night1.dng", 1)
    write_raw(root / "in" / "night2.dng", 2)
    assert not sl.run(root / "in", root / "out", client=client).failed
    return root / "out"


class TestOpenProgram:
    def test_a_node_for_each_detector_and_filter(self, output: Path) -> None:
        tree = sl.open_program(output)
        found = {node.path: node["exposure"].values.tolist() for node in tree.leaves}
        assert found == {
            "/NRCA1/F200W": ["e00", "e01", "e02"],
            "/NRCA1/F115W": ["f1"],
            "/NIS/F200W": ["nis1"],
            "/skylevel Demo RGGB": ["night1", "night2"],
        }

    def test_it_is_lazy_until_it_is_computed(self, output: Path, tmp_path: Path) -> None:
        shutil.copytree(output, tmp_path / "out")
        node = sl.open_program(tmp_path / "out")["NRCA1/F200W"]
        read = {str(name) for name, variable in node.data_vars.items() if not isinstance(variable.data, da.Array)}
        # What the records hold, which is read with them.
        assert all(node[name].dims == ("exposure",) for name in read)
        chunks_of(tmp_path / "out", "e01")["row_level"].write_bytes(b"damaged later")
        with dask.config.set(scheduler="synchronous"):
            assert np.isfinite(node["background"].compute()).all()
            with pytest.raises(ValueError, match="checksum"):
                node["row_level"].compute()

    def test_its_values_are_what_was_measured(self, output: Path) -> None:
        node = sl.open_program(output)["NRCA1/F200W"].to_dataset()
        assert dict(node.sizes) == {"exposure": 3, "y": 160, "x": 200, "mesh_y": 4, "mesh_x": 4}
        for name in ("e00", "e02"):
            frame = sl.open_frame(output.parent / "in" / f"{name}.fits").load()
            measured = node.sel(exposure=name).reset_coords(drop=True).drop_attrs().compute(scheduler="synchronous")
            assert measured["n_amplifiers"] == 1
            measured = measured.drop_vars("n_amplifiers")
            xr.testing.assert_identical(measured, estimate_rows(frame, sl.Rows()).drop_attrs())

    def test_header_facts_stand_beside_the_exposures(self, output: Path) -> None:
        tree = sl.open_program(output)
        rows, channels = tree["NRCA1/F200W"], tree["skylevel Demo RGGB"]
        assert rows["date_obs"].values.tolist() == [f"2024-01-01T00:00:0{i}" for i in range(3)]
        assert rows["exposure_time"].values.tolist() == [107.4] * 3
        assert rows.attrs["unit"] == "MJy/sr"
        assert channels["iso"].values.tolist() == [1600.0] * 2
        assert channels["channel"].values.tolist() == ["R", "G", "B"]
        assert channels["background"].dims == ("exposure", "channel", "mesh_y", "mesh_x")

    def test_every_variable_says_what_it_is(self, output: Path) -> None:
        for node in sl.open_program(output).leaves:
            unnamed = [name for name, variable in node.variables.items() if not variable.attrs.get("long_name")]
            assert unnamed == []

    def test_vertical_stripes_have_a_level_for_each_column(self, output: Path) -> None:
        assert sl.open_program(output)["NIS/F200W"]["row_level"].dims == ("exposure", "x")

    def test_a_fact_that_only_some_headers_have(self, tmp_path: Path, client: Client) -> None:
        write_exposures(tmp_path / "in", 2)
        write_exposure(tmp_path / "in" / "undated.fits", 9, cards={"DATE-BEG": None, "EFFEXPTM": None})
        sl.run(tmp_path / "in", tmp_path / "out", client=client)
        node = sl.open_program(tmp_path / "out")["NRCA1/F200W"]
        assert node["exposure"].values.tolist() == ["e00", "e01", "undated"]
        assert node["date_obs"].values.tolist() == ["2024-01-01T00:00:00", "2024-01-01T00:00:01", ""]
        np.testing.assert_array_equal(node["exposure_time"], [107.4, 107.4, np.nan])

    def test_frames_of_several_shapes_stand_side_by_side(self, tmp_path: Path, client: Client) -> None:
        write_exposures(tmp_path / "in", 2)
        write_exposure(tmp_path / "in" / "sub.fits", shape=(100, 120))
        sl.run(tmp_path / "in", tmp_path / "out", client=client)
        found = {node.path: node.sizes["exposure"] for node in sl.open_program(tmp_path / "out").leaves}
        assert sorted(found.values()) == [1, 2]
        assert all(path.startswith("/NRCA1/F200W/") for path in found)

    @pytest.mark.parametrize("other", [sl.Rows(box_size=40), sl.Rows(axis="columns")])
    def test_measured_under_several_settings(self, tmp_path: Path, client: Client, other: sl.Rows) -> None:
        first, second = write_exposures(tmp_path / "in", 2)
        sl.run(first, tmp_path / "out", client=client)
        sl.run(second, tmp_path / "out", client=client, recipe=other)
        found = [node["exposure"].values.tolist() for node in sl.open_program(tmp_path / "out").leaves]
        assert sorted(found) == [["e00"], ["e01"]]

    def test_what_is_torn_is_left_out(self, output: Path, tmp_path: Path) -> None:
        shutil.copytree(output, tmp_path / "out")
        chunks_of(tmp_path / "out", "e01")["record"].unlink()
        assert sl.open_program(tmp_path / "out")["NRCA1/F200W"]["exposure"].values.tolist() == ["e00", "e02"]

    def test_a_folder_that_was_never_run(self, tmp_path: Path) -> None:
        with pytest.raises(StoreError, match=r"program\.zarr: holds no measured exposure"):
            sl.open_program(tmp_path)


class TestStatus:
    def test_all_done(self, output: Path) -> None:
        names = ["e00", "e01", "e02", "f1", "night1", "night2", "nis1"]
        assert program_status(output) == [ExposureState(name, "done") for name in names]

    def test_done_failed_and_left(self, tmp_path: Path, client: Client) -> None:
        write_exposures(tmp_path / "in", 2)
        write_truncated(tmp_path / "in" / "cut.fits")
        result = sl.run(tmp_path / "in", tmp_path / "out", client=client)
        (tmp_path / "out" / "e01_rowbgsub.fits").unlink()
        assert program_status(tmp_path / "out") == [
            ExposureState("cut", "failed", result.failed["cut"]),
            ExposureState("e00", "done"),
            ExposureState("e01", "left"),
        ]

    def test_it_needs_no_inputs(self, tmp_path: Path, client: Client) -> None:
        write_exposures(tmp_path / "in", 1)
        sl.run(tmp_path / "in", tmp_path / "out", client=client)
        shutil.rmtree(tmp_path / "in")
        assert program_status(tmp_path / "out") == [ExposureState("e00", "done")]

    def test_a_folder_that_was_never_run(self, tmp_path: Path) -> None:
        with pytest.raises(StoreError, match="no program was run into this folder"):
            program_status(tmp_path)

    @pytest.mark.parametrize("text", ["{", "[]", '{"format": 2}', '{"format": 2, "recipes": [], "exposures": [3]}',
                                      '{"format": 2, "recipes": [], "exposures": [{"name": "e00"}]}'])  # fmt: skip
    def test_a_damaged_index(self, tmp_path: Path, text: str) -> None:
        ProgramStore(str(tmp_path / "program.zarr")).write_plan({})
        (tmp_path / "program.zarr" / "plan.json").write_text(text)
        with pytest.raises(StoreError, match=r"plan\.json is damaged"):
            program_status(tmp_path)
