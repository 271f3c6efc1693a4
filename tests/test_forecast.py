"""What a plan is projected to need: never less than it takes, and refused with the numbers where it is not there."""

import json
import shutil
import subprocess
import sys
from datetime import datetime
from pathlib import Path

import numpy as np
import pytest
from astropy.io import fits
from distributed import Client, LocalCluster

import skylevel as sl
from programs import write_exposures, write_raw
from skylevel import Rows
from skylevel.demo.dng import write_dng
from skylevel.errors import PlanError
from skylevel.level import detect_rows
from skylevel.program import forecast as module
from skylevel.program.forecast import Need, forecast, impossible, require_disk, summarize, too_large
from skylevel.program.plan import make_plan
from skylevel.program.run import run_partition

# Levels one exposure in a fresh process, as a worker does, and says the peak memory after the imports and at the end.
LEVEL_ONE = """
import json, sys
import skylevel, skylevel.io.frame
from skylevel.memory import peak_memory
from skylevel.io.store import ProgramStore
from skylevel.program.ledger import Steps
from skylevel.program.places import settle
from skylevel.program.plan import make_plan, store_url
from skylevel.program.tasks import Where, level_exposure
imported = peak_memory()
source, output, keep, preset = sys.argv[1:]
recipe = skylevel.Rows.preset(preset) if preset else "auto"
(exposure,) = make_plan([source], output, recipe=recipe, keep=[word for word in keep.split(",") if word])
(exposure,) = settle([exposure], ProgramStore(store_url(output)))
level_exposure(exposure, Where(store_url(output), skylevel.__version__), Steps.MEASURE | Steps.EXPORT)
print(json.dumps([imported, peak_memory()]))
"""


def peak_memory(source: Path, output: Path, keep: str = "", preset: str = "") -> tuple[int, int]:
    command = [sys.executable, "-c", LEVEL_ONE, str(source), str(output), keep, preset]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    imported, peak = json.loads(done.stdout)
    return imported, peak


def write_image(path: Path, shape: tuple[int, int]) -> Path:
    rng = np.random.default_rng(3)
    image = rng.standard_normal(shape, np.float32) * np.float32(0.02) + np.float32(0.5)
    # Sources by the hundred, so that segmentation has something to deblend.
    for y, x in rng.integers(0, np.array(shape) - 9, (300, 2)):
        image[y : y + 9, x : x + 9] += np.float32(0.3)
    fits.HDUList([fits.PrimaryHDU(), fits.ImageHDU(image, name="SCI")]).writeto(path)
    return path


def projected(source: Path, output: Path, keep: str = "", preset: str = "notebook") -> int:
    recipe = Rows.preset(preset) if preset != "notebook" else "auto"
    plan = make_plan([str(source)], str(output), recipe=recipe, keep=[word for word in keep.split(",") if word])
    return next(iter(forecast(plan).values())).memory


@pytest.mark.slow
@pytest.mark.parametrize(
    ("side", "keep"), [(512, ""), (2048, ""), (4096, ""), (2048, "segmentation,masked,background")]
)
def test_an_exposure_takes_no_more_memory_than_projected(tmp_path, side, keep):
    source = write_image(tmp_path / "image.fits", (side, side))
    imported, peak = peak_memory(source, tmp_path / "out", keep)
    assert peak <= projected(source, tmp_path / "out", keep)
    if side == 2048 and not keep:
        assert peak - imported < 400e6


@pytest.mark.slow
@pytest.mark.parametrize("side", [512, 2048, 4096])
def test_streams_take_no_more_memory_than_projected(tmp_path, side):
    source = write_image(tmp_path / "image.fits", (side, side))
    with fits.open(source, mode="append") as hdus:
        hdus.append(fits.ImageHDU(np.zeros((side, side), np.uint32), name="DQ"))
    _, peak = peak_memory(source, tmp_path / "out", "masked,background", "best")
    assert peak <= projected(source, tmp_path / "out", "masked,background", "best")


@pytest.mark.slow
def test_a_24_megapixel_raw_takes_less_than_a_gigabyte(tmp_path):
    rng = np.random.default_rng(4)
    mosaic = rng.normal(1500, 35, (4000, 6000)).astype(np.uint16)
    source = tmp_path / "night.dng"
    write_dng(source, mosaic, datetime(2024, 1, 1))
    _, peak = peak_memory(source, tmp_path / "out", "background")
    assert peak < 1e9
    assert peak <= projected(source, tmp_path / "out", "background")


def test_kinds_are_counted(tmp_path):
    write_exposures(tmp_path, 2)
    write_raw(tmp_path / "night.dng", 1)
    (tmp_path / "broken.fits").write_bytes(b"no FITS")
    plan = make_plan([str(tmp_path)], str(tmp_path / "out"))
    counts = {kind[0]: 0 for kind, _ in summarize(forecast(plan))}
    for kind, count in summarize(forecast(plan)):
        counts[kind[0]] += count
    assert counts == {"rows": 3, "channels": 1}
    assert sum(count for kind, count in summarize(forecast(plan)) if kind[1]) >= 2


def test_outputs_are_projected_within_a_tenth(tmp_path):
    write_image(tmp_path / "image.fits", (1000, 1200))
    plan = make_plan([str(tmp_path / "image.fits")], str(tmp_path / "out"))
    run_partition(plan, str(tmp_path / "out"), (1, 1))
    written = (tmp_path / "out" / "image_rowbgsub.fits").stat().st_size
    assert 0.9 < forecast(plan)["image"].output / written < 1.2


def test_a_plan_that_does_not_fit_on_the_disk_is_refused(tmp_path, monkeypatch):
    write_exposures(tmp_path, 1)
    plan = make_plan([str(tmp_path)], str(tmp_path / "out"))
    monkeypatch.setattr(module, "free_disk", lambda _: 1000)
    with pytest.raises(PlanError, match=r"outputs need about .* and 1\.0 kB are free"):
        require_disk(forecast(plan), str(tmp_path / "out"))


def test_what_cannot_be_done_in_blocks_is_refused(tmp_path):
    write_raw(tmp_path / "night.dng", 1)
    (raw,) = make_plan([str(tmp_path)], str(tmp_path / "out"))
    needs = {"night": Need(("channels", "", ""), 5_000_000_000, 0)}
    with pytest.raises(PlanError, match=r"night\.dng: needs about 5\.00 GB of memory, a worker has 2\.00 GB"):
        impossible([raw], needs, 2_000_000_000)
    needs = forecast([raw])
    assert too_large(needs, 1 << 20) == ["night"]
    assert too_large(needs, 0) == []


@pytest.mark.slow
def test_a_mosaic_too_large_for_a_worker_has_the_same_bits(tmp_path, monkeypatch):
    def detect_again(frame, recipe):
        # The form of what will be measured is asked for with an image that has no file.
        assert "path" not in frame.attrs, "the stored mask still holds"
        return detect_rows(frame, recipe)

    source = write_image(tmp_path / "mosaic_i2d.fits", (9000, 8000))
    with (
        LocalCluster(
            n_workers=2, threads_per_worker=1, memory_limit="1100MiB", host="127.0.0.1", dashboard_address="127.0.0.1:0"
        ) as cluster,
        Client(cluster, set_as_default=False) as client,
    ):
        result = sl.run([source], tmp_path / "out", client=client)
        shutil.copytree(tmp_path / "out", tmp_path / "all")
        monkeypatch.setattr("skylevel.level.rows.detect_rows", detect_again)
        all_pixels = sl.Rows(positive_only=False)
        again = sl.run([source], tmp_path / "all", client=client, recipe=all_pixels)
    monkeypatch.undo()
    assert (result.failed, again.failed) == ({}, {})
    # That it went in blocks: one piece is read, not opened.
    assert any("blocks of rows" in text for text in result.done[0].messages)
    levelled = sl.level_rows(sl.open_frame(source)[["sci"]].load())
    with fits.open(tmp_path / "out" / "mosaic_i2d_rowbgsub.fits", checksum=True) as hdus:
        np.testing.assert_array_equal(hdus["SCI"].data, levelled.sci)
    stored = sl.open_program(tmp_path / "out")
    (node,) = [node for node in stored.subtree if node.has_data]
    np.testing.assert_array_equal(node["source_mask"][0], levelled.source_mask)
    np.testing.assert_array_equal(node["row_level"][0], levelled.row_level)
    levelled = sl.level_rows(sl.open_frame(source)[["sci"]].load(), all_pixels)
    np.testing.assert_array_equal(fits.getdata(tmp_path / "all" / "mosaic_i2d_rowbgsub.fits", "SCI"), levelled.sci)


def test_the_peak_of_a_process_is_its_own(tmp_path):
    ballast = np.ones(100_000_000)
    code = "from skylevel.memory import peak_memory; x = bytearray(b'x') * 50_000_000; print(peak_memory())"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert 50e6 < int(done.stdout) < 400e6 < ballast.nbytes
