"""Runs of whole programs on real files and real workers: every readable file levelled, every other one named."""

import asyncio
import errno
import json
import logging
import os
import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import fsspec
import numpy as np
import pytest
from astropy.io import fits
from distributed import Client, Future
from threadpoolctl import threadpool_info

import skylevel as sl
from programs import (
    chunks_of,
    image_of,
    measured_in,
    pixels_of,
    place_of,
    record_of,
    skylevel_here,
    stamps,
    stored,
    write_exposure,
    write_exposures,
    write_raw,
    write_truncated,
)
from skylevel.errors import ClusterError, PlanError, StoreError, UnreadableFrameError
from skylevel.io.store import ProgramStore
from skylevel.level import estimate_rows
from skylevel.level.arrays import write_chunks
from skylevel.program.fan_out import fan_out
from skylevel.program.ledger import Steps
from skylevel.program.plan import Exposure, make_plan, store_url
from skylevel.program.run import ProgramResult, Target, export_program, run_partition
from skylevel.program.tasks import Record, Where, is_transient, level_exposure, require_version, task
from skylevel.program.view import program_status

GOOD = ("e00", "e01", "e02", "night1", "night2")
BAD = {
    "cut": "cut.fits: HDU 2: the file is cut short",
    "damaged": "damaged.dng: is neither FITS nor a raw that LibRaw knows",
    "dark": "dark.fits: ",
    "empty": "empty.fits: the file is empty",
    "empty_raw": "empty_raw.arw: the file is empty",
    "text": "text.fits: is named as FITS but does not begin as FITS",
}


def write_program(folder: Path) -> Path:
    """Both kinds of exposure, and files that cannot be levelled, each for another reason."""
    write_exposures(folder, 3)
    write_raw(folder / "night1.dng", 1)
    write_raw(folder / "night2.dng", 2)
    write_truncated(folder / "cut.fits")
    write_exposure(folder / "dark.fits", nan_fraction=1.0)
    (folder / "damaged.dng").write_bytes(bytes(range(256)) * 30)
    (folder / "empty.fits").touch()
    (folder / "empty_raw.arw").touch()
    (folder / "text.fits").write_text("This is no FITS file.\n" * 200)
    (folder / "folder.fits").mkdir()
    return folder


@dataclass
class Program:
    """A program that was run once; `folder` and `output` are read only."""

    folder: Path
    output: Path
    result: ProgramResult
    log: list[str]
    progress: list[tuple[int, int]]


class _Lines(logging.Handler):
    def __init__(self) -> None:
        super().__init__()
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(record.getMessage())


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory, client: Client) -> Program:
    root = tmp_path_factory.mktemp("program")
    folder, output = write_program(root / "in"), root / "out"
    heard, progress = _Lines(), []
    logger = logging.getLogger("skylevel")
    logger.addHandler(heard)
    logger.setLevel(logging.INFO)
    try:
        result = sl.run(folder, output, client=client, progress=lambda *counts: progress.append(counts))
    finally:
        logger.removeHandler(heard)
        logger.setLevel(logging.NOTSET)
    return Program(folder, output, result, heard.lines, progress)


@pytest.fixture
def copied(program: Program, tmp_path: Path) -> Program:
    """The good files of the program, as if they had been run here: to change and run again."""
    folder, output = tmp_path / "in", tmp_path / "out"
    folder.mkdir()
    for path in program.folder.iterdir():
        if path.stem in GOOD:
            shutil.copy2(path, folder)
    shutil.copytree(program.output, output)
    return Program(folder, output, program.result, [], [])


@pytest.fixture
def exposures(tmp_path: Path) -> Path:
    write_exposures(tmp_path / "in", 3)
    return tmp_path / "in"


def measurements(output: Path) -> dict[str, dict[str, tuple[int, int]]]:
    """Time of change and inode of each file of every measured exposure's arrays, by exposure and array."""
    return {
        name: {
            array: (path.stat().st_mtime_ns, path.stat().st_ino)
            for array, path in chunks_of(output, name).items()
            if array != "record"
        }
        for name in measured_in(output)
    }


def write_now(arrays: list) -> None:
    for array in arrays:
        write_chunks(*array)


def outputs(output: Path) -> dict[str, tuple[int, int]]:
    return {name: stamp for name, stamp in stamps(output).items() if name.endswith(".fits")}


class TestFirstRun:
    def test_every_readable_file_is_levelled(self, program: Program) -> None:
        assert sorted(record.name for record in program.result.done) == sorted(GOOD)
        assert sorted(path.name for path in program.output.glob("*.fits")) == [
            "e00_rowbgsub.fits", "e01_rowbgsub.fits", "e02_rowbgsub.fits",
            "night1.bkg_subtracted.fits", "night2.bkg_subtracted.fits",
        ]  # fmt: skip

    def test_every_other_file_is_named_with_its_cause_on_one_line(self, program: Program) -> None:
        assert set(program.result.failed) == set(BAD)
        for name, cause in BAD.items():
            reason = program.result.failed[name]
            assert cause in reason
            assert str(program.folder) in reason
            assert "\n" not in reason

    @pytest.mark.parametrize("stem", ["e00", "e01", "e02"])
    def test_rows_are_those_of_level_rows(self, program: Program, stem: str) -> None:
        levelled = sl.level_rows(sl.open_frame(program.folder / f"{stem}.fits"))["sci"].to_numpy()
        assert image_of(program.output / f"{stem}_rowbgsub.fits").tobytes() == levelled.astype(">f4").tobytes()

    def test_channels_are_those_of_level_channels(self, program: Program) -> None:
        levelled = sl.level_channels(sl.open_frame(program.folder / "night1.dng"))["sci"].to_numpy()
        assert image_of(program.output / "night1.bkg_subtracted.fits").tobytes() == levelled.astype(">f4").tobytes()

    def test_stripes_are_gone(self, program: Program) -> None:
        before, after = (image_of(path) for path in (program.folder / "e00.fits", program.output / "e00_rowbgsub.fits"))
        assert np.nanstd(np.nanmedian(after, axis=1)) < 0.3 * np.nanstd(np.nanmedian(before, axis=1))

    def test_outputs_say_where_they_come_from(self, program: Program) -> None:
        with fits.open(program.output / "e00_rowbgsub.fits", checksum=True) as hdus:
            assert [hdu.name for hdu in hdus] == ["PRIMARY", "SCI", "ERR", "DQ"]
            assert hdus[0].header["SKYLEVEL"] == sl.__version__
            assert hdus[0].header["SKYHASH"] == sl.Rows().hash[:16]

    def test_the_store_says_what_was_measured_of_what(self, program: Program) -> None:
        assert measured_in(program.output) == sorted(GOOD)
        assert ProgramStore(program.result.store).failures() == program.result.failed
        attributes = record_of(program.output, "e01")
        assert attributes["source"]["path"] == str(program.folder / "e01.fits")
        assert attributes["settings"] == sl.Rows().to_dict()
        assert attributes["facts"]["detector"] == "NRCA1"
        assert 0 < attributes["metrics"]["masked_fraction"] < 0.5
        assert {"read", "measure"} <= set(attributes["metrics"]["seconds"])

    def test_each_step_is_told_and_each_failure(self, program: Program) -> None:
        assert program.log[0] == f"{program.folder}: 1 subfolder skipped; --recursive looks into them"
        assert program.log[1] == "11 exposures: 0 done already, to do: 4 channels, 7 rows"
        for name in GOOD:
            steps = [line.partition(": ")[2].split()[0] for line in program.log if line.startswith(f"{name}: ")]
            assert steps == ["read", "measured", "wrote"]
        assert sorted(line for line in program.log if ": failed: " in line) == sorted(
            f"{name}: failed: {reason}" for name, reason in program.result.failed.items()
        )

    def test_progress_counts_every_exposure(self, program: Program) -> None:
        assert program.progress == [(count, 11) for count in range(1, 12)]

    def test_nothing_half_written_is_left(self, program: Program) -> None:
        left = sorted(path.name for path in program.output.iterdir())
        assert left == sorted([*(path.name for path in program.output.glob("*.fits")), "program.zarr"])
        hidden = [path for path in program.output.rglob("*") if path.name.startswith(".") or path.suffix == ".partial"]
        assert hidden == []
        assert not (program.output / "program.zarr" / "lock").exists()

    @pytest.mark.usefixtures("program")
    def test_the_client_that_was_given_stays_open(self, client: Client) -> None:
        assert client.status == "running"
        assert client.scheduler_info()["type"] == "Scheduler"

    @pytest.mark.usefixtures("program")
    def test_nothing_is_held_in_the_workers(self, client: Client) -> None:
        deadline = time.monotonic() + 20
        while (held := client.run_on_scheduler(_tasks)) and time.monotonic() < deadline:
            time.sleep(0.1)
        assert held == []


def _tasks(dask_scheduler: Any) -> list[str]:
    return [str(key) for key in dask_scheduler.tasks]


class TestAgain:
    def test_an_identical_run_does_nothing(self, copied: Program, client: Client) -> None:
        before = measurements(copied.output) | outputs(copied.output)
        again = sl.run(copied.folder, copied.output, client=client)
        assert (again.done, again.failed, sorted(again.skipped)) == ([], {}, sorted(GOOD))
        assert measurements(copied.output) | outputs(copied.output) == before
        before = stamps(copied.output)
        sl.run(copied.folder, copied.output, client=client)
        assert stamps(copied.output) == before

    def test_a_run_that_ended_before_its_last_step_is_finished(
        self, exposures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """All is done but that the store tells of dates and detectors: the next run finds nothing else to do."""
        plan, output = make_plan([str(exposures)], str(tmp_path / "out")), str(tmp_path / "out")
        with monkeypatch.context() as killed:
            killed.setattr(ProgramStore, "describe", Mock(side_effect=KeyboardInterrupt))
            with pytest.raises(KeyboardInterrupt):
                run_partition(plan, output, (1, 1))
        assert "date_obs" not in sl.open_program(output)["NRCA1/F200W"]
        assert run_partition(plan, output, (1, 1)).done == []
        assert "date_obs" in sl.open_program(output)["NRCA1/F200W"]

    def test_it_needs_no_cluster(self, copied: Program) -> None:
        assert len(sl.run(copied.folder, copied.output, cluster="tcp://127.0.0.1:1").skipped) == len(GOOD)

    def test_failed_ones_are_tried_again(self, program: Program, copied: Program, client: Client) -> None:
        shutil.copy2(program.folder / "cut.fits", copied.folder)
        again = sl.run(copied.folder, copied.output, client=client)
        assert set(again.failed) == {"cut"}
        shutil.copy2(program.folder / "e00.fits", copied.folder / "cut.fits")
        repaired = sl.run(copied.folder, copied.output, client=client)
        assert [record.name for record in repaired.done] == ["cut"]
        assert "cut" not in ProgramStore(repaired.store).failures()

    def test_a_deleted_output_is_exported_without_measuring(self, copied: Program, client: Client) -> None:
        measured, written = measurements(copied.output), outputs(copied.output)
        pixels = pixels_of(copied.output)
        (copied.output / "e01_rowbgsub.fits").unlink()
        again = sl.run(copied.folder, copied.output, client=client)
        assert [record.name for record in again.done] == ["e01"]
        assert measurements(copied.output) == measured
        now = outputs(copied.output)
        assert {name for name in written if now[name] != written[name]} == {"e01_rowbgsub.fits"}
        assert pixels_of(copied.output) == pixels

    def test_overwrite_does_all_of_it_again(self, copied: Program, client: Client) -> None:
        before, written, pixels = measurements(copied.output), outputs(copied.output), pixels_of(copied.output)
        again = sl.run(copied.folder, copied.output, client=client, overwrite=True)
        assert sorted(record.name for record in again.done) == sorted(GOOD)
        after, now = measurements(copied.output), outputs(copied.output)
        assert [name for name in written if now[name] == written[name]] == []
        assert [(n, a) for n, arrays in before.items() for a, stamp in arrays.items() if after[n][a] == stamp] == []
        assert pixels_of(copied.output) == pixels

    def test_overwrite_detects_sources_again(self, copied: Program, client: Client) -> None:
        fake_mask(copied.output, "e00")
        pixels = pixels_of(copied.output)
        sl.run(copied.folder, copied.output, client=client, overwrite=True)
        assert pixels_of(copied.output) == pixels
        assert not stored(copied.output, "e00")["source_mask"][:, :150].all()

    def test_a_file_that_changed_is_measured_anew(self, copied: Program, client: Client) -> None:
        # What it was copied from is still there.
        assert sl.run(copied.folder, copied.output, client=client).done == []
        (copied.folder / "e00.fits").unlink()
        write_exposure(copied.folder / "e00.fits", 77)
        again = sl.run(copied.folder, copied.output, client=client)
        assert [record.name for record in again.done] == ["e00"]
        levelled = sl.level_rows(sl.open_frame(copied.folder / "e00.fits"))["sci"].to_numpy()
        np.testing.assert_array_equal(image_of(copied.output / "e00_rowbgsub.fits"), levelled)

    @pytest.mark.parametrize("part", ["record", "row_level", "source_mask"])
    def test_a_torn_measurement_is_measured_anew(self, copied: Program, client: Client, part: str) -> None:
        before, pixels = measurements(copied.output), pixels_of(copied.output)
        chunks_of(copied.output, "e02")[part].unlink()
        (copied.output / "e02_rowbgsub.fits").unlink()
        again = sl.run(copied.folder, copied.output, client=client)
        assert [record.name for record in again.done] == ["e02"]
        after = measurements(copied.output)
        assert {name for name in before if before[name] != after[name]} == {"e02"}
        assert pixels_of(copied.output) == pixels

    @pytest.mark.parametrize("part", ["record", "row_level", "source_mask", "background"])
    def test_a_flipped_bit_is_found_and_measured_anew(self, copied: Program, client: Client, part: str) -> None:
        pixels, damaged = pixels_of(copied.output), chunks_of(copied.output, "e01")[part]
        content = bytearray(damaged.read_bytes())
        content[len(content) // 2] ^= 4
        damaged.write_bytes(content)
        (copied.output / "e01_rowbgsub.fits").unlink()
        assert "e01" in export_program(str(copied.output), target=Target(client=client)).failed
        assert "e01" in [record.name for record in sl.run(copied.folder, copied.output, client=client).done]
        assert pixels_of(copied.output) == pixels

    def test_an_older_formats_store_is_measured_anew(self, copied: Program, client: Client) -> None:
        store = copied.output / "program.zarr"
        shutil.rmtree(store)
        (store / "exposures" / "e00").mkdir(parents=True)
        (store / "plan.json").write_text(json.dumps({"format": 1, "exposures": []}))
        with pytest.raises(StoreError, match=r"of format 1, .* run the program again: it is measured anew in format 2"):
            program_status(copied.output)
        again = sl.run(copied.folder, copied.output, client=client)
        assert sorted(record.name for record in again.done) == sorted(GOOD)
        assert not (store / "exposures").exists()


def fake_mask(output: Path, name: str) -> np.ndarray:
    """Replace a stored mask by one that no detection would give; returns it."""
    store, place, record = ProgramStore(store_url(output)), place_of(output, name), record_of(output, name)
    estimate = stored(output, name)
    mask = np.ones(estimate["source_mask"].shape, bool)
    mask[:, 150:] = False
    estimate["source_mask"] = (("y", "x"), mask)
    checksums = store.write_arrays(place, estimate, write_now)
    store.write_record(place, record | {"checksums": checksums})
    return mask


class TestLeftovers:
    """What a killed worker left on the way to an output goes with the next run of its exposure, done or not."""

    def test_of_its_own_exposures_alone(self, copied: Program, client: Client) -> None:
        token = "0123456789abcdef" * 2
        store, (path, index) = copied.output / "program.zarr", place_of(copied.output, "e00")
        node = store / path
        own = [
            copied.output / f".e00_rowbgsub.fits.{token}.tmp",
            node / "record" / f".{index}.{token}.tmp",
            node / "row_level" / f"{index}.{token}.partial",
            store / "failed" / f".e00.json.{token}.tmp",
        ]
        others = [
            copied.output / f".e01_rowbgsub.fits.{token}.tmp",
            node / "record" / f".{index + 1}.{token}.tmp",
            node / "row_level" / f"{index + 1}.{token}.partial",
        ]
        (store / "failed").mkdir(exist_ok=True)
        for path in (*own, *others):
            path.touch()
        sl.run(copied.folder / "e00.fits", copied.output, client=client)
        assert [path for path in (*own, *others) if path.exists()] == others
        sl.run(copied.folder, copied.output, client=client)
        assert not [path for path in others if path.exists()]

    def test_of_shapes_and_facts_go_with_the_next_driver(self, copied: Program, client: Client) -> None:
        token = "0123456789abcdef" * 2
        store, (path, index) = copied.output / "program.zarr", place_of(copied.output, "e00")
        places = [path.relative_to(store).parent for path in sorted(store.rglob("zarr.json"))]
        assert {Path(), Path(path), Path(path, "record"), Path(path, "exposure"), Path(path, "mesh_y")} <= {*places}
        left = [store / place / f"zarr.{token}.partial" for place in places]
        left += [store / path / name / f"{index}.{token}.partial" for name in ("exposure", "filter", "mesh_y")]
        left += [store / f".plan.json.{token}.tmp", store / f".described.{token}.tmp"]
        # Somebody may be writing it: the next run of this exposure removes it.
        chunk = store / path / "row_level" / f"{index + 1}.{token}.partial"
        for partial in (*left, chunk):
            partial.touch()
        # As if killed before the end.
        (store / "described").unlink()
        sl.run(copied.folder / "e00.fits", copied.output, client=client)
        assert [partial for partial in (*left, chunk) if partial.exists()] == [chunk]


class TestChangedSettings:
    def test_a_level_setting_takes_the_stored_mask(self, copied: Program, client: Client) -> None:
        mask = fake_mask(copied.output, "e00")
        recipe = sl.Rows(positive_only=False)
        sl.run(copied.folder / "e00.fits", copied.output, client=client, recipe=recipe)
        frame = sl.open_frame(copied.folder / "e00.fits").load()
        expected = estimate_rows(frame, recipe).assign(source_mask=(("y", "x"), mask))
        expected = estimate_rows(frame, recipe, detection=expected)["row_level"]
        assert not np.array_equal(expected, estimate_rows(frame, recipe)["row_level"])
        np.testing.assert_array_equal(stored(copied.output, "e00")["row_level"], expected)
        np.testing.assert_array_equal(stored(copied.output, "e00")["source_mask"], mask)

    def test_a_detection_setting_does_not(self, copied: Program, client: Client) -> None:
        fake_mask(copied.output, "e00")
        recipe = sl.Rows(threshold=4.0)
        sl.run(copied.folder / "e00.fits", copied.output, client=client, recipe=recipe)
        levelled = sl.level_rows(sl.open_frame(copied.folder / "e00.fits"), recipe)["sci"].to_numpy()
        np.testing.assert_array_equal(image_of(copied.output / "e00_rowbgsub.fits"), levelled)

    def test_a_product_setting_writes_the_product_without_measuring(self, tmp_path: Path, client: Client) -> None:
        crowd, output = write_exposure(tmp_path / "crowd.fits", sources=150), tmp_path / "out"
        segmentation = output / "detections_segm_crowd.fits"
        sl.run(crowd, output, client=client, keep=["segmentation"])
        before, labels = measurements(output), fits.getdata(segmentation)
        recipe = sl.Rows(contrast=1.0)
        assert len(sl.run(crowd, output, client=client, recipe=recipe, keep=["segmentation"]).done) == 1
        assert measurements(output) == before
        assert fits.getdata(segmentation).max() < labels.max()

    def test_one_layout_then_the_other(self, exposures: Path, client: Client) -> None:
        output = exposures.parent / "out"
        sl.run(exposures, output, client=client)
        before, pixels = measurements(output), pixels_of(output)
        sl.run(exposures, output, client=client, layout="primary")
        assert measurements(output) == before
        assert pixels_of(output) == pixels
        with fits.open(output / "e00_rowbgsub.fits") as hdus:
            assert len(hdus) == 1
            assert (hdus[0].header["DETECTOR"], hdus[0].header["BUNIT"]) == ("NRCA1", "MJy/sr")

    def test_products_under_the_notebooks_names(self, copied: Program, client: Client) -> None:
        before = measurements(copied.output)
        sl.run(copied.folder, copied.output, client=client, keep=["segmentation", "masked", "background"])
        written = {path.name for path in copied.output.glob("*.fits")}
        assert written >= {"detections_segm_e00.fits", "e00_masked.fits", "e00_background.fits"}
        assert "night1.bkg_background.fits" in written
        assert measurements(copied.output) == before
        image, masked, labels = (
            fits.getdata(folder / name)
            for folder, name in (
                (copied.folder, "e00.fits"), (copied.output, "e00_masked.fits"),
                (copied.output, "detections_segm_e00.fits"),
            )
        )  # fmt: skip
        np.testing.assert_array_equal(masked, np.where(labels > 0, 0, image))
        assert abs(np.median(fits.getdata(copied.output / "e00_background.fits")) - 0.5) < 0.05

    def test_settings_by_recipe(self, copied: Program, client: Client) -> None:
        channels = sl.Channels(norms={"R": 1.0, "G": 1.0, "B": 1.0})
        measured = measurements(copied.output)
        again = sl.run(copied.folder, copied.output, client=client, recipe=[channels])
        assert sorted(record.name for record in again.done) == ["night1", "night2"]
        # They scale the levelled image alone: nothing is measured again.
        assert all("measure" not in record.seconds for record in again.done)
        assert measurements(copied.output) == measured
        levelled = sl.level_channels(sl.open_frame(copied.folder / "night1.dng"), channels)["sci"]
        np.testing.assert_array_equal(image_of(copied.output / "night1.bkg_subtracted.fits"), levelled)

    def test_a_recipe_for_another_kind_of_file_fails_by_name(self, copied: Program, client: Client) -> None:
        result = sl.run([copied.folder / "night1.dng"], copied.output.parent / "other", client=client, recipe="rows")
        assert "the recipe 'rows' does not level this kind of file" in result.failed["night1"]
        result = sl.run([copied.folder / "e00.fits"], copied.output.parent / "other", client=client, recipe="channels")
        assert "the recipe 'channels' does not level this kind of file" in result.failed["e00"]


@pytest.mark.packages
class TestExport:
    def test_files_are_written_again_from_the_store(self, copied: Program) -> None:
        pixels, measured = pixels_of(copied.output), measurements(copied.output)
        sl.run(copied.folder, copied.output, cluster="tcp://127.0.0.1:1")
        for path in copied.output.glob("*.fits"):
            path.unlink()
        result = export_program(str(copied.output), target=Target(workers=2))
        assert sorted(record.name for record in result.done) == sorted(GOOD)
        assert pixels_of(copied.output) == pixels
        assert measurements(copied.output) == measured

    def test_a_folder_that_moved_is_exported_where_it_is_now(self, copied: Program) -> None:
        pixels, moved = pixels_of(copied.output), copied.output.with_name("moved")
        copied.output.rename(moved)
        assert sorted(state.name for state in program_status(moved) if state.state == "done") == sorted(GOOD)
        for path in moved.glob("*.fits"):
            path.unlink()
        again = export_program(str(moved), target=Target(workers=1))
        assert sorted(record.name for record in again.done) == sorted(GOOD)
        assert pixels_of(moved) == pixels
        assert not copied.output.exists()

    def test_what_is_not_measured_is_named(self, copied: Program, client: Client) -> None:
        write_truncated(copied.folder / "cut.fits")
        sl.run(copied.folder, copied.output, client=client)
        shutil.rmtree(copied.output / "program.zarr" / "NRCA1")
        shutil.rmtree(copied.output / "program.zarr" / "skylevel Demo RGGB")
        result = export_program(str(copied.output))
        assert set(result.failed) == {*GOOD, *BAD}
        assert result.failed["e00"] == f"{copied.folder / 'e00.fits'}: not measured yet: run the program again"

    def test_a_folder_that_was_never_run(self, tmp_path: Path) -> None:
        with pytest.raises(StoreError, match="no program was run into this folder"):
            export_program(str(tmp_path))


class TestSameNumbersEverywhere:
    def test_in_shares_without_a_scheduler(self, program: Program, tmp_path: Path) -> None:
        plan = make_plan([str(program.folder)], str(tmp_path))
        results = [run_partition(plan, str(tmp_path), (index, 3)) for index in (1, 2, 3)]
        assert sorted(record.name for result in results for record in result.done) == sorted(GOOD)
        assert {name for result in results for name in result.failed} == set(BAD)
        assert pixels_of(tmp_path) == pixels_of(program.output)

    def test_a_share_is_done_once_unless_told_to(self, exposures: Path, tmp_path: Path) -> None:
        plan = make_plan([str(exposures)], str(tmp_path / "out"))
        for overwrite, n_done in ((False, 2), (False, 0), (True, 2)):
            result = run_partition(plan, str(tmp_path / "out"), (1, 2), overwrite=overwrite)
            assert (len(result.done), len(result.skipped)) == (n_done, 2 - n_done)

    @pytest.mark.slow
    def test_with_one_worker(self, program: Program, tmp_path: Path) -> None:
        paths = [program.folder / f"{name}.dng" for name in GOOD[3:]]
        paths += [program.folder / f"{name}.fits" for name in GOOD[:3]]
        assert not sl.run(paths, tmp_path, workers=1).failed
        assert pixels_of(tmp_path) == pixels_of(program.output)


class TestVersions:
    def test_a_worker_of_another_version_says_so(self, client: Client) -> None:
        with pytest.raises(ClusterError, match=r"this worker runs skylevel .*, the client 99\.0: install the same"):
            client.run(require_version, "99.0")

    def test_a_worker_that_joined_later_refuses_its_exposure(self, exposures: Path, client: Client) -> None:
        (exposure, *_) = make_plan([str(exposures)], str(exposures.parent))
        where = Where(str(exposures.parent / "program.zarr"), "99.0")
        future = client.submit(level_exposure, exposure, where, Steps.MEASURE, pure=False)
        with pytest.raises(ClusterError, match="install the same version on both"):
            future.result()
        assert not (exposures.parent / "program.zarr").exists()


@pytest.mark.parametrize(("cluster", "cause"), [("nearby", "unknown cluster 'nearby'"), ("tcp://", "missing port"),
                                                ("http://127.0.0.1:1", "unknown address scheme"),
                                                ("tls://127.0.0.1:1", "TLS needs the certificates")])  # fmt: skip
def test_no_such_cluster(exposures: Path, cluster: str, cause: str) -> None:
    with pytest.raises(ClusterError, match=cause):
        sl.run(exposures, exposures.parent / "out", cluster=cluster)
    if cluster == "nearby":
        # A word tells before a folder is made.
        assert not (exposures.parent / "out").exists()


class Submissions:
    """Submits items, and counts how many futures are not released."""

    def __init__(self, client: Client, function: Callable[[int], Any]) -> None:
        self.client = client
        self.function = function
        self.futures: list[Future] = []
        self.most = 0

    def __call__(self, item: int) -> Future:
        future = self.client.submit(self.function, item, pure=False)
        self.futures.append(future)
        # The client's loop has then seen every release that came before.
        self.client.sync(asyncio.sleep, 0)
        self.most = max(self.most, sum(f.key in self.client.futures for f in self.futures))
        return future


def _double_or_fail(item: int) -> int:
    if item % 7 == 3:
        raise UnreadableFrameError(f"file {item}: damaged")
    return 2 * item


def _wait_a_little(item: int) -> int:
    time.sleep(0.2)
    return item


class TestFanOut:
    def test_every_item_comes_back_once_with_its_own_outcome(self, client: Client) -> None:
        submit = Submissions(client, _double_or_fail)
        outcomes = dict(fan_out(client, submit, range(50), in_flight=lambda: 6))
        assert sorted(outcomes) == list(range(50))
        for item, outcome in outcomes.items():
            if item % 7 == 3:
                assert isinstance(outcome, UnreadableFrameError)
                assert str(outcome) == f"file {item}: damaged"
            else:
                assert outcome == 2 * item

    @pytest.mark.parametrize("in_flight", [1, 5])
    def test_no_more_in_flight_than_was_said(self, client: Client, in_flight: int) -> None:
        submit = Submissions(client, _double_or_fail)
        assert len(list(fan_out(client, submit, range(30), in_flight=lambda: in_flight))) == 30
        assert submit.most == in_flight

    def test_items_are_taken_as_they_are_needed(self, client: Client) -> None:
        taken: list[int] = []

        def items() -> Iterator[int]:
            for item in range(40):
                taken.append(item)
                yield item

        outcomes = fan_out(client, Submissions(client, _double_or_fail), items(), in_flight=lambda: 4)
        for count in range(1, 11):
            next(outcomes)
            assert len(taken) <= count + 4
        outcomes.close()

    def test_left_early_it_takes_back_what_has_not_begun(self, client: Client) -> None:
        submit = Submissions(client, _wait_a_little)
        outcomes = fan_out(client, submit, range(100), in_flight=lambda: 20)
        next(outcomes)
        outcomes.close()
        assert len(submit.futures) <= 21
        deadline = time.monotonic() + 20
        while any(future.status == "pending" for future in submit.futures) and time.monotonic() < deadline:
            time.sleep(0.05)
        assert {future.status for future in submit.futures} <= {"finished", "cancelled"}
        assert sum(future.status == "finished" for future in submit.futures) <= 5

    def test_no_items(self, client: Client) -> None:
        assert list(fan_out(client, Submissions(client, _double_or_fail), [], in_flight=lambda: 4)) == []


class TestTrials:
    """A task is tried again after an error that may pass, a bounded number of times, and after no other."""

    @staticmethod
    def tried(error: Exception, times: int) -> tuple[int, Exception | Record]:
        """How often a task that fails so many times was called, and what came of it."""
        calls = []

        def failing(exposure: Exposure) -> Record:
            calls.append(exposure)
            if len(calls) <= times:
                raise error
            return Record("done")

        retried = task(failing)
        retried.retry.sleep = lambda _: None
        try:
            outcome = retried(None)
        except type(error) as raised:
            outcome = raised
        return len(calls), outcome

    @staticmethod
    def caused(cause: OSError) -> UnreadableFrameError:
        error = UnreadableFrameError("x.fits: cannot be read")
        error.__cause__ = cause
        return error

    @pytest.mark.parametrize("code", [errno.EIO, errno.ESTALE, errno.ETIMEDOUT, errno.ECONNRESET])
    @pytest.mark.parametrize("times", [1, 3])
    def test_what_may_pass_is_tried_again(self, code: int, times: int) -> None:
        for error in (OSError(code, "it hiccuped"), self.caused(OSError(code, "it hiccuped"))):
            assert self.tried(error, times) == (times + 1, Record("done"))

    def test_but_not_for_ever(self) -> None:
        error = OSError(errno.EIO, "it is broken")
        assert self.tried(error, 1000) == (4, error)

    @pytest.mark.parametrize(
        "error",
        [
            OSError(errno.ENOSPC, "No space left on device"),
            FileNotFoundError(errno.ENOENT, "no such file"),
            PermissionError(errno.EACCES, "not allowed"),
            UnreadableFrameError("x.fits: the file is cut short"),
            ValueError("bad input"),
            MemoryError(),
        ],
        ids=lambda error: type(error).__name__,
    )
    def test_what_stays_so_is_not(self, error: Exception) -> None:
        assert self.tried(error, 1000) == (1, error)
        assert not is_transient(error)


@pytest.mark.slow
def test_a_program_on_s3(program: Program, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Inputs, store and outputs in a bucket; and what this process listed before is not taken for what is there now."""
    s3fs = pytest.importorskip("s3fs")
    server = pytest.importorskip("moto.server").ThreadedMotoServer("127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    for name, value in {"ENDPOINT_URL": f"http://{host}:{port}", "ACCESS_KEY_ID": "testing",
                        "SECRET_ACCESS_KEY": "testing", "DEFAULT_REGION": "us-east-1"}.items():  # fmt: skip
        monkeypatch.setenv(f"AWS_{name}", value)
    # An earlier test's file system would go on without these credentials.
    s3fs.S3FileSystem.clear_instance_cache()
    try:
        _run_on_s3(program, tmp_path)
    finally:
        server.stop()


def _run_on_s3(program: Program, tmp_path: Path) -> None:
    files = fsspec.filesystem("s3")
    files.mkdir("sky")
    for path in program.folder.iterdir():
        if path.stem in (*GOOD, "cut"):
            files.put_file(str(path), f"sky/in/{path.name}")
    result = sl.run("s3://sky/in", "s3://sky/out", workers=2)
    assert sorted(record.name for record in result.done) == sorted(GOOD)
    assert set(result.failed) == {"cut"}
    assert result.failed["cut"].startswith("s3://sky/in/cut.fits: ")
    # Nor does it name where it was fetched to.
    assert result.failed["cut"].count("cut.fits") == 1
    fetched = tmp_path / "fetched"
    fetched.mkdir()
    files.invalidate_cache()
    for name in files.glob("sky/out/*.fits"):
        files.get_file(name, str(fetched / Path(name).name))
    assert pixels_of(fetched) == pixels_of(program.output)

    files.rm("sky/in/cut.fits")
    again = sl.run("s3://sky/in/*", "s3://sky/out", cluster="tcp://127.0.0.1:1")
    assert (again.done, sorted(again.skipped)) == ([], sorted(GOOD))
    assert {state.name: state.state for state in program_status("s3://sky/out")} == dict.fromkeys(
        GOOD, "done"
    )
    assert sorted(sl.open_program("s3://sky/out")["NRCA1/F200W"]["exposure"].values) == sorted(GOOD[:3])

    # A chunk that was lost is measured again, not read as zeros.
    place = place_of("s3://sky/out", "e01")
    lost = f"sky/out/program.zarr/{place.node}/source_mask/{place.index}.0.0"
    files.rm(lost)
    repaired = sl.run("s3://sky/in/*", "s3://sky/out", workers=1)
    assert [record.name for record in repaired.done] == ["e01"]
    assert files.exists(lost)


def test_a_second_run_into_the_same_output_keeps_what_the_first_did(tmp_path: Path, client: Client) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    for folder in (first, second):
        folder.mkdir()
    write_exposure(first / "a.fits")
    write_truncated(first / "broken.fits")
    write_exposure(second / "b.fits")
    for folder in (first, second):
        sl.run(folder, tmp_path / "out", client=client)
    assert states_in(tmp_path / "out") == {"a": "done", "b": "done", "broken": "failed"}


def states_in(output: Path) -> dict[str, str]:
    return {state.name: state.state for state in program_status(output)}


class TestAnotherFileOfTheSameName:
    """Into the folder of one that is measured and still there it goes only where that is asked for."""

    @pytest.fixture
    def nights(self, tmp_path: Path) -> tuple[Path, Path]:
        folders = tmp_path / "n1", tmp_path / "n2"
        for seed, folder in enumerate(folders):
            write_exposure(folder / "e.fits", seed)
        assert self.run(folders[0]).failed == {}
        return folders

    def run(self, given: Path, **options: bool) -> ProgramResult:
        output = str(given.parent / "out")
        return run_partition(make_plan([str(given)], output), output, (1, 1), **options)

    def test_it_is_refused_by_name(self, nights: tuple[Path, Path], capfd: pytest.CaptureFixture[str]) -> None:
        first, second = nights
        before = outputs(first.parent / "out")
        for extra in ((), ("--dry-run",)):
            command = ("run", second, "--output", first.parent / "out", "--partition", "1/1", *extra)
            assert skylevel_here(*command) == 2
            (line,) = capfd.readouterr().err.splitlines()
            assert f"{second}/e.fits: would write the same outputs (e...) as {first}/e.fits, which was run" in line
        assert outputs(first.parent / "out") == before
        assert skylevel_here(*command, "--overwrite") == 0
        assert self.run(first).skipped == ["e"]

    def test_unless_that_is_asked_for(self, nights: tuple[Path, Path]) -> None:
        first, second = nights
        assert [record.name for record in self.run(second, overwrite=True).done] == ["e"]
        assert self.run(second).skipped == ["e"]
        assert record_of(first.parent / "out", "e")["source"]["path"] == f"{second}/e.fits"

    def test_or_the_other_one_is_gone(self, nights: tuple[Path, Path]) -> None:
        first, second = nights
        (first / "e.fits").unlink()
        assert [record.name for record in self.run(second).done] == ["e"]

    def test_or_failed(self, nights: tuple[Path, Path]) -> None:
        write_truncated(nights[0] / "cut.fits")
        write_exposure(nights[1] / "cut.fits")
        assert self.run(nights[0]).failed.keys() == {"cut"}
        (nights[1] / "e.fits").unlink()
        assert [record.name for record in self.run(nights[1]).done] == ["cut"]

    def test_one_that_moved_or_was_copied_is_the_same(self, nights: tuple[Path, Path]) -> None:
        first, second = nights
        shutil.rmtree(second)
        shutil.copytree(first, second)
        assert self.run(second).skipped == ["e"]
        shutil.rmtree(second)
        assert self.run(first.rename(second)).skipped == ["e"]

    def test_a_link_leads_to_the_same_file_though_that_changed(self, nights: tuple[Path, Path]) -> None:
        first, second = nights
        (second / "e.fits").unlink()
        (second / "e.fits").symlink_to(first / "e.fits")
        assert self.run(second).skipped == ["e"]
        assert self.run(first).skipped == ["e"]
        os.utime(first / "e.fits", (0, 0))
        assert [record.name for record in self.run(second).done] == ["e"]

    def test_nor_is_one_that_has_another_name_now(self, nights: tuple[Path, Path]) -> None:
        first, second = nights
        shutil.rmtree(second)
        write_exposure(first / "below" / "f.fits")
        output = str(first.parent / "out")
        for _ in range(2):
            plan = make_plan([str(first)], output, recursive=True)
            assert run_partition(plan, output, (1, 1)).failed == {}
            (first / "f.fits").exists() or write_exposure(first / "f.fits", 5)
        assert states_in(first.parent / "out") == {"below-f": "done", "e": "done", "f": "done"}

    def test_urls(self, tmp_path: Path) -> None:
        files, output = fsspec.filesystem("memory"), str(tmp_path / "out")
        for seed, night in enumerate(("n1", "n2")):
            local = write_exposure(tmp_path / night / "e.fits", seed)
            files.pipe_file(f"/of-one-name/{night}/e.fits", local.read_bytes())
        first, second = ([f"memory://of-one-name/{night}/e.fits"] for night in ("n1", "n2"))
        assert run_partition(make_plan(first, output), output, (1, 1)).failed == {}
        with pytest.raises(PlanError, match=r"n2/e\.fits: would write the same outputs .* as memory:///of-one-name/n1/e"):
            run_partition(make_plan(second, output), output, (1, 1))


class TestSmallerRuns:
    """A run of some exposures forgets none of the others."""

    def run(self, inputs: Path, *, recursive: bool = False) -> ProgramResult:
        output = str(inputs.parent / "out") if inputs.suffix == "" else str(inputs.parents[1] / "out")
        return run_partition(make_plan([str(inputs)], output, recursive=recursive), output, (1, 1))

    def test_what_failed_and_what_is_left_stays(
        self, exposures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        write_truncated(exposures / "broken.fits")
        with monkeypatch.context() as killed:
            killed.setattr("skylevel.program.run._collect", Mock(side_effect=KeyboardInterrupt))
            with pytest.raises(KeyboardInterrupt):
                self.run(exposures)
        (exposures / "e02.fits").rename(tmp_path / "e02.fits")
        assert self.run(exposures / "broken.fits").failed.keys() == {"broken"}
        again = self.run(exposures / "e00.fits")
        assert ([record.name for record in again.done], again.failed) == (["e00"], {})
        # The input of e02 is gone, and nothing is known of it.
        expected = {"broken": "failed", "e00": "done", "e01": "left"}
        assert states_in(tmp_path / "out") == expected
        assert self.run(exposures / "e00.fits").skipped == ["e00"]
        assert states_in(tmp_path / "out") == expected
        for path in exposures.iterdir():
            path.unlink()
        (tmp_path / "e02.fits").rename(exposures / "e02.fits")
        self.run(exposures / "e02.fits")
        assert states_in(tmp_path / "out") == {"e00": "done", "e02": "done"}

    def test_header_facts_of_the_others_stay(self, exposures: Path, tmp_path: Path) -> None:
        self.run(exposures)
        before = sl.open_program(tmp_path / "out")["NRCA1/F200W"]["date_obs"].values.tolist()
        write_exposure(exposures / "e03.fits", 3)
        self.run(exposures / "e03.fits")
        assert sl.open_program(tmp_path / "out")["NRCA1/F200W"]["date_obs"].values.tolist()[:3] == before

    def test_an_input_with_a_new_neighbour_is_the_same_exposure(self, tmp_path: Path) -> None:
        folder = tmp_path / "in"
        write_exposure(folder / "n1" / "e.fits", 1)
        self.run(folder, recursive=True)
        write_exposure(folder / "n2" / "e.fits", 2)
        assert [record.name for record in self.run(folder, recursive=True).done] == ["n2-e"]
        assert states_in(tmp_path / "out") == {"e": "done", "n2-e": "done"}
        assert sl.open_program(tmp_path / "out")["NRCA1/F200W"]["exposure"].values.tolist() == ["e", "n2-e"]


def test_each_stages_time_and_memory_are_kept(tmp_path: Path) -> None:
    write_exposure(tmp_path / "a.fits")
    plan = make_plan([str(tmp_path)], str(tmp_path / "out"))
    (record,) = run_partition(plan, str(tmp_path / "out"), (1, 1)).done
    assert list(record.seconds) == list(record.peaks_mib) == ["read", "measure", "store", "export", "picture"]
    assert all(0 < seconds < 60 for seconds in record.seconds.values())
    assert record.peak_mib == record.peaks_mib["picture"] > 50
    kept = record_of(tmp_path / "out", "a")["export_metrics"]
    assert {name: kept[name] for name in ("seconds", "peaks_mib")} == record.metrics()


def test_a_task_works_in_one_thread() -> None:
    @task
    def threads(exposure: Exposure) -> Record:
        numpy_pools = [pool["num_threads"] for pool in threadpool_info() if pool["user_api"] == "blas"]
        return Record("threads", seconds=dict(enumerate(numpy_pools)))  # type: ignore[arg-type]

    assert set(threads(None).seconds.values()) == {1}
