"""The JWST pipeline, where it is installed (`make test-jwst`): the hook, and levelled exposures in its third stage.

Nothing is fetched: CRDS is given a cache that holds no reference file, and the steps that need one are skipped.
"""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from astropy import units
from astropy.coordinates import ICRS
from astropy.modeling import models as transforms

from skylevel.errors import UnsupportedFrameError
from skylevel.pipeline import level
from skylevel.recipes import Rows

pytest.importorskip("jwst", reason="the jwst package is not installed: make test-jwst")

gwcs = pytest.importorskip("gwcs")
datamodels = pytest.importorskip("stdatamodels.jwst.datamodels")

# What other packages warn of is theirs.
pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]

SHAPE = (256, 256)
SCALE = 0.031 / 3600
SKY = 5.0
NAMES = [f"jw01234001001_02101_{number:05d}_nrcb1_cal.fits" for number in (1, 2, 3, 4)]
DITHERS = [(0, 0), (5, 3), (-4, 7), (9, -6)]
PRODUCT = "jw01234-o001_t001_nircam_clear-f200w"
BIN = Path(sys.executable).parent


@pytest.fixture(scope="module")
def offline(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The environment of a pipeline without its server: a cache that knows the name of a context, and no file of it."""
    cache = tmp_path_factory.mktemp("crds")
    known = {"observatory": "jwst", "operational_context": "jwst_1300.pmap", "bad_files_set": [],
             "force_remote_mode": False, "last_synced": "never", "crds_version": {"str": "0"}}  # fmt: skip
    (cache / "config" / "jwst").mkdir(parents=True)
    (cache / "config" / "jwst" / "server_config").write_text(repr(known))
    return dict(os.environ) | {
        "CRDS_PATH": str(cache), "CRDS_SERVER_URL": "https://crds-serverless-mode.stsci.edu",
        "CRDS_CONTEXT": "jwst_1300.pmap", "STPIPE_DISABLE_CRDS_STEPPARS": "true",
    }  # fmt: skip


def stars() -> Iterator[tuple[float, float]]:
    yield from np.random.default_rng(7).uniform(20, 236, (25, 2))


def image(number: int) -> np.ndarray:
    """Stars on a sky, with stripes."""
    random = np.random.default_rng(number)
    y, x = np.indices(SHAPE)
    dx, dy = DITHERS[number]
    scene = sum(20 * np.exp(-((x - sx - dx) ** 2 + (y - sy - dy) ** 2) / 2.9) for sx, sy in stars())
    stripes = random.normal(0, 0.3, SHAPE[0])[:, None]
    return (SKY + scene + stripes + random.normal(0, 0.02, SHAPE)).astype(np.float32)


def world(number: int) -> Any:
    """A tangential projection without distortion, as assign_wcs would attach a better one."""
    dx, dy = DITHERS[number]
    pixels = units.pix, units.pix
    detector = gwcs.coordinate_frames.Frame2D(name="detector", axes_order=(0, 1), unit=pixels)
    sky = gwcs.coordinate_frames.CelestialFrame(reference_frame=ICRS(), name="world", unit=(units.deg, units.deg))
    centred = transforms.Shift(-128.0 - dx) & transforms.Shift(-128.0 - dy)
    scaled = transforms.Scale(-SCALE) & transforms.Scale(SCALE)
    to_sky = centred | scaled | transforms.Pix2Sky_TAN() | transforms.RotateNative2Celestial(150.0, 2.0, 180.0)
    found = gwcs.WCS([(detector, to_sky), (sky, None)])
    found.bounding_box = ((-0.5, SHAPE[1] - 0.5), (-0.5, SHAPE[0] - 0.5))
    return found


def facts(number: int) -> dict[str, Any]:
    """What the pipeline's steps ask of an exposure's header."""
    dx, dy = DITHERS[number]
    start = 60000 + 0.01 * number
    return {
        "filename": NAMES[number], "bunit_data": "MJy/sr", "bunit_err": "MJy/sr",
        "instrument": {"name": "NIRCAM", "detector": "NRCB1", "channel": "SHORT", "module": "B", "filter": "F200W",
                       "pupil": "CLEAR"},
        "subarray": {"name": "FULL", "fastaxis": -1, "slowaxis": 2, "xstart": 1, "ystart": 1, "xsize": SHAPE[1],
                     "ysize": SHAPE[0]},
        "exposure": {"type": "NRC_IMAGE", "exposure_time": 100.0, "measurement_time": 100.0, "noutputs": 4,
                     "effective_exposure_time": 100.0, "start_time": start, "mid_time": start + 0.0005,
                     "end_time": start + 0.001},
        "observation": {"program_number": "01234", "observation_number": "001", "visit_number": "001",
                        "visit_group": "02", "sequence_id": "1", "activity_id": "01",
                        "exposure_number": str(number + 1), "date": "2024-01-01", "time": "00:00:00"},
        "photometry": {"pixelarea_steradians": np.radians(SCALE) ** 2, "pixelarea_arcsecsq": 0.031**2,
                       "conversion_megajanskys": 2.0},
        "wcsinfo": {"vparity": -1, "v3yangle": 0.0, "roll_ref": 0.0, "ra_ref": 150.0, "dec_ref": 2.0, "wcsaxes": 2,
                    "crval1": 150.0, "crval2": 2.0, "crpix1": 129.0 + dx, "crpix2": 129.0 + dy, "cdelt1": SCALE,
                    "cdelt2": SCALE, "ctype1": "RA---TAN", "ctype2": "DEC--TAN", "pc1_1": -1.0, "pc1_2": 0.0,
                    "pc2_1": 0.0, "pc2_2": 1.0},
    }  # fmt: skip


def exposure(number: int) -> Any:
    from jwst.assign_wcs.util import update_s_region_imaging  # noqa: PLC0415 (an optional extra)

    model = datamodels.ImageModel(image(number))
    model.err = np.full(SHAPE, 0.02, np.float32)
    model.dq = np.zeros(SHAPE, np.uint32)
    model.var_rnoise = np.full(SHAPE, 4e-4, np.float32)
    model.var_poisson = np.zeros(SHAPE, np.float32)
    model.var_flat = np.zeros(SHAPE, np.float32)
    model.area = np.ones(SHAPE, np.float32)
    model.update({"meta": facts(number)})
    model.meta.wcs = world(number)
    update_s_region_imaging(model)
    return model


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four dithered exposures and their association, in which a fifth is named that is not there."""
    folder = tmp_path_factory.mktemp("program")
    for number, name in enumerate(NAMES):
        exposure(number).save(folder / name)
    members = [{"expname": name, "exptype": "science"} for name in [*NAMES, "jw01234001001_02101_00005_nrcb1_cal.fits"]]
    association = {
        "asn_type": "image3", "asn_rule": "DMS_Level3_Base", "asn_pool": "none", "asn_id": "a3001", "target": "1",
        "program": "01234", "products": [{"name": PRODUCT, "members": members}],
    }  # fmt: skip
    (folder / "jw01234_image3_asn.json").write_text(json.dumps(association))
    return folder


def run(*command: object, env: dict[str, str], cwd: Path) -> subprocess.CompletedProcess[str]:
    words = [str(BIN / str(command[0])), *map(str, command[1:])]
    return subprocess.run(words, env=env, cwd=cwd, capture_output=True, text=True, timeout=300, check=False)


class TestHook:
    def test_the_same_numbers_as_of_the_file(self, program, offline, tmp_path):
        """In calwebb_image2, of which only the step with the hook is not skipped."""
        skipped = [f"--steps.{step}.skip=true" for step in ("bkg_subtract", "assign_wcs", "flat_field", "resample")]
        hook = ["post_hooks=skylevel.pipeline.level,", "override_photom=N/A", "override_area=N/A"]
        done = run(
            "strun", "calwebb_image2", program / NAMES[0], *skipped, *(f"--steps.photom.{word}" for word in hook),
            "--save_results=true", f"--output_dir={tmp_path}", env=offline, cwd=tmp_path,
        )  # fmt: skip
        assert done.returncode == 0, done.stdout + done.stderr
        of_file = run("skylevel", "run", program / NAMES[0], "--workers", 1, env=offline, cwd=tmp_path)
        assert of_file.returncode == 0, of_file.stderr
        name = NAMES[0].removesuffix(".fits")
        with (
            datamodels.open(tmp_path / f"{name}.fits") as hooked,
            datamodels.open(tmp_path / "skylevel-output" / f"{name}_rowbgsub.fits") as levelled,
        ):
            np.testing.assert_array_equal(hooked.data, levelled.data)
            assert np.ptp(np.median(hooked.data, axis=1)) < 0.1 < np.ptp(np.median(image(0), axis=1))
            cards = {keyword: value for keyword, value, *_ in hooked.extra_fits.PRIMARY.header}
            assert cards["SKYRECIP"] == "rows"
            assert any("skylevel" in entry["description"] for entry in hooked.history)

    def test_everything_else_stays(self):
        model = exposure(0)
        before = model.data.copy()
        levelled = level(model, Rows(box_size=64))
        np.testing.assert_array_equal(model.data, before)
        assert levelled.meta.wcs is not None
        np.testing.assert_array_equal(levelled.err, model.err)
        assert levelled.meta.filename == NAMES[0]
        assert "box_size=64" in str(levelled.history)

    def test_the_header_says_where_the_stripes_run(self):
        model = exposure(0)
        model.data = image(0).T.copy()
        model.meta.subarray.fastaxis = 2
        np.testing.assert_array_equal(level(model).data, level(exposure(0)).data.T)

    def test_what_it_refuses_is_named(self):
        levelled = level(exposure(0))
        with pytest.raises(UnsupportedFrameError, match=f"{NAMES[0]}: was levelled before, by skylevel"):
            level(levelled)
        cleaned = exposure(0)
        cleaned.meta.cal_step.clean_flicker_noise = "COMPLETE"
        with pytest.raises(UnsupportedFrameError, match="by clean_flicker_noise"):
            level(cleaned)
        for other in (datamodels.CubeModel((2, 16, 16)), (levelled, levelled), None):
            with pytest.raises(UnsupportedFrameError, match=r"not one image \(y, x\)"):
                level(other)


@pytest.fixture(scope="module")
def levelled(program: Path, offline: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("levelled")
    done = run("skylevel", "run", program / "jw01234_image3_asn.json", "--partition", "1/1", "--output", output,
               env=offline, cwd=output)  # fmt: skip
    assert done.returncode == 1, "the fifth member is missing"
    return output


def image3(association: Path, output: Path, env: dict[str, str]) -> np.ndarray:
    """What calwebb_image3 makes of an association: the mosaic; and outliers are flagged in output's _crf files."""
    # These need reference files, or say nothing of the levels.
    skipped = [f"--steps.{step}.skip=true" for step in ("tweakreg", "source_catalog")]
    done = run("strun", "calwebb_image3", association, *skipped, f"--output_dir={output}", env=env, cwd=output)
    assert done.returncode == 0, done.stdout + done.stderr
    for step in ("skymatch", "outlier_detection", "resample"):
        assert f"Step {step} done" in done.stdout + done.stderr
    with datamodels.open(output / f"{PRODUCT}_i2d.fits") as mosaic:
        return mosaic.data.copy()


def outliers(output: Path) -> float:
    flagged = []
    for path in sorted(output.glob("*_crf.fits")):
        with datamodels.open(path) as model:
            flagged.append(np.mean(model.dq & datamodels.dqflags.pixel["OUTLIER"] > 0))
    assert len(flagged) == len(NAMES)
    return float(np.mean(flagged))


class TestThirdStage:
    def test_runs_on_the_association_as_it_stands(self, program, levelled, offline, tmp_path):
        before, after = tmp_path / "before", tmp_path / "after"
        before.mkdir()
        after.mkdir()
        four = json.loads((program / "jw01234_image3_asn.json").read_text())
        del four["products"][0]["members"][4]
        (program / "four_asn.json").write_text(json.dumps(four))
        striped = image3(program / "four_asn.json", before, offline)
        level = image3(levelled / "jw01234_image3_rowbgsub_asn.json", after, offline)
        assert level.shape == striped.shape

        # Stripes are taken for outliers; without them, next to nothing is.
        assert outliers(after) < 0.02 < 0.2 < outliers(before)
        rows = [np.nanstd(np.nanmedian(mosaic, axis=1)) for mosaic in (striped, level)]
        assert rows[1] < rows[0] / 5

        # The stars' flux stays, and the sky has gone with the rows.
        peaks = [np.nanpercentile(mosaic, 99.99) - np.nanmedian(mosaic) for mosaic in (striped, level)]
        assert peaks[1] == pytest.approx(peaks[0], rel=0.05)
        assert np.nanmedian(level) == pytest.approx(0, abs=0.01)
