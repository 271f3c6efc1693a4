"""The demo program: what its files promise, whether its truth is true, and whether the measure of a run is fair."""

import dataclasses
import filecmp
import itertools
import json
import math
import shutil
import warnings
from collections.abc import Callable, Iterator, Mapping
from datetime import datetime
from pathlib import Path

import numpy as np
import pytest
import rawpy
from astropy.io import fits
from astropy.wcs import WCS, FITSFixedWarning
from astropy.wcs.utils import proj_plane_pixel_area
from PIL import Image
from scipy.ndimage import maximum_filter

from programs import skylevel_here
from skylevel import demo
from skylevel.demo import nircam, schedule
from skylevel.demo.dng import BLACK_LEVEL, RAW_PLANES
from skylevel.demo.night import RAW_GAIN, RAW_READ_NOISE
from skylevel.errors import OutputError, ShapeError, UnreadableFrameError
from skylevel.recipes import Channels

NRCB1_A = "jw99999001001_02101_00001_nrcb1_cal"
NRCB1_B = "jw99999001001_02101_00002_nrcb1_cal"
NRCBLONG = "jw99999001001_04101_00001_nrcblong_cal"
EXPOSURES = (NRCB1_A, NRCB1_B, NRCBLONG)
NIGHTS = ("night_0001", "night_0002")
NORMS = Channels().norms
EXTENSIONS = ["PRIMARY", "SCI", "ERR", "DQ", "AREA", "VAR_POISSON", "VAR_RNOISE", "VAR_FLAT", "ASDF"]

each_exposure = pytest.mark.parametrize("stem", EXPOSURES)
each_night = pytest.mark.parametrize("stem", NIGHTS)


@pytest.fixture(scope="session")
def program(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The folder of a demo program, written once and read only; gone afterwards, as it is large."""
    folder = tmp_path_factory.mktemp("demo") / "program"
    demo.write_program(folder)
    yield folder
    shutil.rmtree(folder)


@pytest.fixture
def write_output(program: Path, tmp_path: Path) -> Iterator[Callable[..., Path]]:
    """Factory of what a run would leave: the input minus parts of the truth, times the norms. Gone after the test."""
    output = tmp_path / "output"
    output.mkdir()

    def write(*, stripes: float = 0.0, sky_rows: float = 0.0, sky: float = 0.0, pedestal: float = 0.0,
              norms: Mapping[str, float] = NORMS) -> Path:  # fmt: skip
        for stem in (visit.stem for visit in schedule.VISITS):
            known = truth_of(program, stem)
            levelled = image_of(program, stem) - stripes * known["stripes"] - sky_rows * known["sky_rows"][:, None]
            write_image(output / f"{stem}_rowbgsub.fits", levelled, name="SCI")
        for stem in (night.stem for night in schedule.NIGHTS):
            left = raw_of(program, stem) - sky * truth_of(program, stem)["sky"]
            write_image(output / f"{stem}.bkg_subtracted.fits", left * factors(left.shape, norms) + pedestal)
        return output

    yield write
    shutil.rmtree(output)


@pytest.fixture
def one_of_each(monkeypatch: pytest.MonkeyPatch) -> None:
    """The program's first exposure and first raw frame alone, where that is enough: the test takes a third."""
    monkeypatch.setattr(schedule, "VISITS", schedule.VISITS[:1])
    monkeypatch.setattr(schedule, "NIGHTS", schedule.NIGHTS[:1])


def truth_of(program: Path, stem: str) -> dict[str, np.ndarray]:
    with np.load(program / "truth" / f"{stem}.npz") as archive:
        return dict(archive)


def image_of(program: Path, stem: str, extension: str = "SCI") -> np.ndarray:
    return fits.getdata(program / f"{stem}.fits", extension)


def header_of(program: Path, stem: str, extension: str | int = "SCI") -> fits.Header:
    return fits.getheader(program / f"{stem}.fits", extension)


def wcs_of(program: Path, stem: str) -> WCS:
    with warnings.catch_warnings():
        # As in real exposures: MJD-BEG and OBSGEO-X stand there without the forms that astropy derives from them.
        warnings.simplefilter("ignore", FITSFixedWarning)
        return WCS(header_of(program, stem))


def raw_of(program: Path, stem: str) -> np.ndarray:
    with rawpy.imread(str(program / f"{stem}.dng")) as raw:
        return raw.raw_image_visible.astype(np.float64)


def factors(shape: tuple[int, ...], norms: Mapping[str, float]) -> np.ndarray:
    """Each pixel's norm in an RGGB mosaic."""
    factor = np.ones(shape)
    factor[0::2, 0::2], factor[1::2, 1::2] = norms.get("R", 1.0), norms.get("B", 1.0)
    return factor


def write_image(path: Path, image: np.ndarray, *, name: str | None = None) -> None:
    hdus = [fits.PrimaryHDU(), fits.ImageHDU(image.astype(np.float32), name=name)]
    fits.HDUList(hdus).writeto(path, overwrite=True)


# ---- what is written


def test_the_program_is_three_exposures_and_two_raw_frames_with_their_truth(program: Path) -> None:
    exposures = [f"{stem}.fits" for stem in EXPOSURES] + [f"{stem}.dng" for stem in NIGHTS]
    assert sorted(path.name for path in program.iterdir()) == sorted([*exposures, "truth"])
    assert sorted(path.stem for path in (program / "truth").iterdir()) == sorted(EXPOSURES + NIGHTS)
    assert sum(path.stat().st_size for path in (program / "truth").iterdir()) < 40e6


def test_a_seed_gives_the_same_bytes_and_returns_the_paths(program: Path, tmp_path: Path) -> None:
    paths = demo.write_program(tmp_path / "again" / "deeper")
    assert [path.stem for path in paths] == [*EXPOSURES, *NIGHTS]
    for path in (path for path in program.rglob("*") if path.is_file()):
        assert filecmp.cmp(path, tmp_path / "again" / "deeper" / path.relative_to(program), shallow=False), path.name
    shutil.rmtree(tmp_path / "again")


def test_another_seed_gives_another_program(program: Path, tmp_path: Path, one_of_each: None) -> None:
    demo.write_program(tmp_path, seed=2)
    assert not np.array_equal(truth_of(tmp_path, NRCB1_A)["stripes"], truth_of(program, NRCB1_A)["stripes"])
    assert not np.array_equal(truth_of(tmp_path, NRCB1_A)["scene"], truth_of(program, NRCB1_A)["scene"])
    assert not np.array_equal(raw_of(tmp_path, NIGHTS[0]), raw_of(program, NIGHTS[0]))


# ---- exposures


@each_exposure
def test_an_exposure_has_the_pipelines_extensions(program: Path, stem: str) -> None:
    with fits.open(program / f"{stem}.fits") as hdus:
        hdus.verify("exception")
        assert [hdu.name for hdu in hdus] == EXTENSIONS
        assert hdus[0].data is None
        assert all(hdu.ver == 1 for hdu in hdus)
        for name in EXTENSIONS[1:-1]:
            assert hdus[name].shape == (2048, 2048)
            assert hdus[name].data.dtype == (np.uint32 if name == "DQ" else np.dtype(">f4"))


@each_exposure
def test_dq_is_stored_as_offset_integers(program: Path, stem: str) -> None:
    with fits.open(program / f"{stem}.fits", do_not_scale_image_data=True) as hdus:
        header = hdus["DQ"].header
        assert (header["BITPIX"], header["BZERO"], header["BSCALE"]) == (32, 2**31, 1)
        assert hdus["DQ"].data.dtype == np.dtype(">i4")


@each_exposure
def test_the_asdf_extension_is_one_row_that_points_at_the_images(program: Path, stem: str) -> None:
    with fits.open(program / f"{stem}.fits") as hdus:
        table = hdus["ASDF"]
        assert table.columns.names == ["ASDF_METADATA"]
        assert len(table.data) == 1
        assert table.data["ASDF_METADATA"].dtype == np.uint8
        document = bytes(table.data["ASDF_METADATA"][0]).decode("ascii")
    assert document.startswith("#ASDF 1.0.0\n")
    assert document.endswith("\n...\n")
    assert all(f"source: 'fits:{name},1'" in document for name in EXTENSIONS[1:-1])
    assert f"filename: {stem}.fits" in document


@each_exposure
def test_unusable_pixels_are_nan_and_no_others(program: Path, stem: str) -> None:
    dq = image_of(program, stem, "DQ")
    unusable = (dq & nircam.DO_NOT_USE) > 0
    for name in ("SCI", "ERR", "VAR_POISSON", "VAR_RNOISE", "VAR_FLAT"):
        np.testing.assert_array_equal(np.isnan(image_of(program, stem, name)), unusable)
    border = np.ones(dq.shape, bool)
    border[4:-4, 4:-4] = False
    np.testing.assert_array_equal((dq & nircam.REFERENCE_PIXEL) > 0, border)
    assert unusable[border].all()
    assert 0.002 < unusable[~border].mean() < 0.02
    for flag in (nircam.SATURATED, nircam.HOT, nircam.DEAD, nircam.LOW_QE):
        assert unusable[(dq & flag) > 0].all()
        assert ((dq & flag) > 0).any()
    jump = (dq & nircam.JUMP_DET) > 0
    assert 0.005 < (jump & ~unusable).mean() < 0.03


def test_bad_pixels_belong_to_the_detector_and_cosmic_rays_to_the_exposure(program: Path) -> None:
    first, second = (image_of(program, stem, "DQ") for stem in (NRCB1_A, NRCB1_B))
    lasting = np.uint32(nircam.HOT | nircam.DEAD | nircam.LOW_QE | nircam.REFERENCE_PIXEL)
    np.testing.assert_array_equal(first & lasting, second & lasting)
    assert not np.array_equal(first & nircam.JUMP_DET, second & nircam.JUMP_DET)
    assert not np.array_equal(first & lasting, image_of(program, NRCBLONG, "DQ") & lasting)


@pytest.mark.parametrize(
    ("stem", "expected"),
    [
        (NRCB1_A, {"DETECTOR": "NRCB1", "CHANNEL": "SHORT", "FILTER": "F200W"}),
        (NRCB1_B, {"DETECTOR": "NRCB1", "CHANNEL": "SHORT", "FILTER": "F200W", "PATT_NUM": 2}),
        (NRCBLONG, {"DETECTOR": "NRCBLONG", "CHANNEL": "LONG", "FILTER": "F277W"}),
    ],
)
def test_the_primary_header_says_what_a_reader_asks(program: Path, stem: str, expected: dict[str, object]) -> None:
    header = header_of(program, stem, 0)
    common = {
        "TELESCOP": "JWST", "INSTRUME": "NIRCAM", "MODULE": "B", "PUPIL": "CLEAR", "EXP_TYPE": "NRC_IMAGE",
        "SUBARRAY": "FULL", "SUBSTRT1": 1, "SUBSTRT2": 1, "SUBSIZE1": 2048, "SUBSIZE2": 2048, "FASTAXIS": 1,
        "SLOWAXIS": -2, "NOUTPUTS": 4, "DATAMODL": "ImageModel", "PROGRAM": "99999", "OBSERVTN": "001",
        "VISIT": "001", "DATE-OBS": "2023-01-01", "FILENAME": f"{stem}.fits",
    }  # fmt: skip
    assert {key: header[key] for key in common | expected} == common | expected
    assert header["R_GAIN"].startswith("crds://")
    assert header["EFFEXPTM"] == header_of(program, stem)["XPOSURE"] > 0
    assert len(header["TITLE"]) > 68
    with (program / f"{stem}.fits").open("rb") as file:
        assert b"CONTINUE" in file.read(2880 * 3)
    assert len(header["HISTORY"]) == 2


@each_exposure
def test_the_photometry_agrees_with_itself_and_with_the_coordinates(program: Path, stem: str) -> None:
    header = header_of(program, stem)
    assert header["BUNIT"] == header_of(program, stem, "ERR")["BUNIT"] == "MJy/sr"
    arcsec2 = math.radians(1 / 3600) ** 2
    assert header["PIXAR_SR"] == pytest.approx(header["PIXAR_A2"] * arcsec2, rel=1e-9)
    assert header["PHOTUJA2"] == pytest.approx(header["PHOTMJSR"] * 1e12 * arcsec2, rel=1e-9)
    assert header["PIXAR_A2"] == pytest.approx(proj_plane_pixel_area(wcs_of(program, stem)) * 3600**2, rel=1e-6)


@each_exposure
def test_the_coordinates_are_a_valid_distorted_projection(program: Path, stem: str) -> None:
    wcs = wcs_of(program, stem)
    assert list(wcs.wcs.ctype) == ["RA---TAN-SIP", "DEC--TAN-SIP"]
    pixel = np.array([[4.0, 4.0], [2040.0, 10.0], [1023.5, 1023.5], [700.0, 2040.0], [2040.0, 2040.0]])
    np.testing.assert_allclose(wcs.all_world2pix(wcs.all_pix2world(pixel, 0), 0), pixel, atol=1e-3)
    # SIP counts from the reference pixel.
    focal = wcs.sip_pix2foc(pixel, 0)
    undistorted = wcs.sip_foc2pix(focal, 0)
    np.testing.assert_allclose(undistorted, pixel, atol=0.005)
    assert np.abs(focal + wcs.wcs.crpix - 1 - pixel).max() > 1.0


@each_exposure
def test_the_footprint_is_that_of_the_coordinates(program: Path, stem: str) -> None:
    corners = np.array(header_of(program, stem)["S_REGION"].split()[2:], float).reshape(4, 2)
    np.testing.assert_allclose(corners, wcs_of(program, stem).calc_footprint(axes=(2048, 2048)), atol=1e-8)


@pytest.mark.parametrize("other", [NRCB1_B, NRCBLONG])
def test_exposures_show_the_same_sources_where_their_coordinates_say(program: Path, other: str) -> None:
    scene, seen = (truth_of(program, stem)["scene"] for stem in (NRCB1_A, other))
    peaks = np.argwhere((scene == maximum_filter(scene, size=41)) & (scene > 1.0))
    world = wcs_of(program, NRCB1_A).all_pix2world(peaks[:, ::-1], 0)
    x, y = wcs_of(program, other).all_world2pix(world, 0).T
    inside = (x > 20) & (x < 2027) & (y > 20) & (y < 2027)
    assert inside.sum() >= 10
    near = [seen[round(v) - 8 : round(v) + 9, round(u) - 8 : round(u) + 9] for u, v in zip(x, y, strict=True)]
    found = [np.unravel_index(np.argmax(cut), cut.shape) for cut in itertools.compress(near, inside)]
    distance = np.hypot(*(np.array(found) - 8).T)
    # A neighbour on the larger pixels may outshine one or two.
    assert np.mean(distance < 1.5) >= 0.85
    assert np.hypot(x - peaks[:, 1], y - peaks[:, 0]).min() > 100


# ---- truth


@each_exposure
def test_what_is_neither_scene_nor_stripes_is_noise_of_the_stated_variance(program: Path, stem: str) -> None:
    known = truth_of(program, stem)
    assert all(array.dtype == np.float32 for array in known.values())
    variance = image_of(program, stem, "VAR_POISSON") + image_of(program, stem, "VAR_RNOISE")
    noise = (image_of(program, stem) - known["stripes"] - known["scene"]) / np.sqrt(variance)
    noise = noise[np.isfinite(noise)]
    assert np.mean(noise) == pytest.approx(0.0, abs=0.003)
    assert np.std(noise) == pytest.approx(1.0, abs=0.003)
    err = image_of(program, stem, "ERR")
    np.testing.assert_allclose(err**2, variance + image_of(program, stem, "VAR_FLAT"), rtol=1e-4)


@pytest.mark.parametrize(
    ("stem", "common", "own"), [(NRCB1_A, 0.010, 0.004), (NRCB1_B, 0.010, 0.004), (NRCBLONG, 0.0040, 0.0016)]
)
def test_stripes_are_one_over_f_noise_of_four_amplifiers(program: Path, stem: str, common: float, own: float) -> None:
    stripes = truth_of(program, stem)["stripes"].astype(float)
    levels = stripes.reshape(2048, 4, 512).mean(axis=2)
    shared = levels.mean(axis=1)
    assert np.std(shared) == pytest.approx(math.hypot(common, own / 2), rel=0.15)
    assert np.std(levels - shared[:, None]) == pytest.approx(own * math.sqrt(3 / 4), rel=0.25)
    power = np.abs(np.fft.rfft(shared)) ** 2
    assert 25 < power[4:40].mean() / power[400:1000].mean() < 120  # 1/f alone gives 42, white noise 1, 1/f**2 2000
    assert 0 < np.std(stripes - np.repeat(levels, 512, axis=1)) < common
    np.testing.assert_array_equal(stripes[:, 0], stripes[:, 31])


@each_exposure
def test_sky_rows_are_the_scenes_level_between_the_sources(program: Path, stem: str) -> None:
    known = truth_of(program, stem)
    between = np.median(known["scene"], axis=1)
    np.testing.assert_allclose(between, known["sky_rows"], rtol=0.01)
    assert 0.005 < np.ptp(known["sky_rows"]) / known["sky_rows"].mean() < 0.1


# ---- raw frames


@each_night
def test_libraw_reads_a_flat_rggb_mosaic_with_its_levels(program: Path, stem: str) -> None:
    with rawpy.imread(str(program / f"{stem}.dng")) as raw:
        assert raw.raw_type is rawpy.RawType.Flat
        assert raw.raw_image_visible.shape == raw.raw_image.shape == (2000, 3000)
        assert raw.raw_image.dtype == np.uint16
        letters = [[raw.color_desc.decode()[i] for i in row] for row in raw.raw_colors_visible[:2, :2]]
        assert letters == [["R", "G"], ["G", "B"]]
        assert raw.black_level_per_channel == [512] * 4
        assert raw.white_level == raw.raw_image.max() == 16383
        assert raw.raw_image.min() > 512


@pytest.mark.parametrize(("stem", "minute"), [("night_0001", 40), ("night_0002", 52)])
def test_libraw_reads_how_the_frame_was_taken(program: Path, stem: str, minute: int) -> None:
    with rawpy.imread(str(program / f"{stem}.dng")) as raw:
        other = raw.other
    assert (other.iso_speed, other.shutter_speed, other.focal_length) == (1600, 30, 24)
    assert other.aperture == pytest.approx(2.8)
    assert other.timestamp == datetime(2023, 9, 14, 23, minute)
    assert b"skylevel Demo RGGB" in (program / f"{stem}.dng").read_bytes()[:2048]


def test_libraw_develops_a_frame_to_a_picture(program: Path) -> None:
    with rawpy.imread(str(program / "night_0001.dng")) as raw:
        picture = raw.postprocess(half_size=True, use_camera_wb=True, no_auto_bright=True, output_bps=16)
    assert picture.shape == (1000, 1500, 3)
    red, green, blue = np.median(picture, axis=(0, 1))
    assert red == pytest.approx(green, rel=0.3)
    assert blue == pytest.approx(green, rel=0.5)


@each_night
def test_a_raw_frame_is_its_sky_with_poisson_and_read_noise_and_stars(program: Path, stem: str) -> None:
    sky = truth_of(program, stem)["sky"].astype(float)
    rest = raw_of(program, stem) - sky
    expected = np.sqrt((sky - BLACK_LEVEL) / RAW_GAIN + RAW_READ_NOISE**2 + 1 / 12)
    low, middle, high = np.percentile(rest / expected, (15.866, 50, 84.134))
    assert middle == pytest.approx(0.0, abs=0.05)
    assert middle - low == pytest.approx(1.0, abs=0.03)
    assert high - middle > middle - low  # stars only add
    assert (rest > 2000).sum() > 1000


@each_night
def test_the_sky_slopes_differently_in_each_colour_and_darkens_to_the_corners(program: Path, stem: str) -> None:
    sky = truth_of(program, stem)["sky"] - BLACK_LEVEL
    red, green, other_green, blue = (sky[i::2, j::2] / sky[i::2, j::2].mean() for _, i, j in RAW_PLANES)
    np.testing.assert_allclose(green, other_green, atol=0.005)
    assert np.std(red - green) > 0.01
    assert np.std(blue - green) > 0.01
    corners = np.array([green[0, 0], green[0, -1], green[-1, 0], green[-1, -1]])
    assert (corners < 0.9).all()
    assert green[-1].max() > 1.1  # the light dome over the horizon


def test_the_stars_of_the_second_night_frame_have_drifted(program: Path) -> None:
    drift_x, drift_y = schedule.NIGHTS[1].drift
    greens = [(raw_of(program, stem) - truth_of(program, stem)["sky"])[0::2, 1::2] for stem in NIGHTS]
    bright = [np.clip(green, 300, 3000) for green in greens]
    product = np.fft.rfft2(bright[1]) * np.conj(np.fft.rfft2(bright[0]))
    correlation = np.fft.irfft2(product, s=bright[0].shape)
    correlation[0, 0] = 0.0
    y, x = np.unravel_index(np.argmax(correlation), correlation.shape)
    assert (2 * x, 2 * y) == (pytest.approx(drift_x, abs=2.5), pytest.approx(drift_y, abs=2.5))


# ---- the measure


@pytest.mark.parametrize("sky_rows", [0.0, 1.0])
def test_a_perfect_output_leaves_nothing(program: Path, write_output: Callable[..., Path], sky_rows: float) -> None:
    results = demo.measure_levels(program, write_output(stripes=1.0, sky_rows=sky_rows, sky=1.0))
    assert [(r.name, r.quantity, r.unit) for r in results] == [
        *((stem, "stripes", "MJy/sr") for stem in EXPOSURES), *((stem, "gradient", "ADU") for stem in NIGHTS)
    ]  # fmt: skip
    for result in results:
        assert result.rms_after < 1e-5 * result.rms_before
        assert result.removed == pytest.approx(1.0, abs=1e-5)


def test_an_unchanged_output_leaves_everything(program: Path, write_output: Callable[..., Path]) -> None:
    for result in demo.measure_levels(program, write_output()):
        assert result.rms_after == pytest.approx(result.rms_before, rel=1e-5)


def test_half_the_correction_leaves_half_and_a_constant_does_not_count(
    program: Path, write_output: Callable[..., Path], one_of_each: None
) -> None:
    output = write_output(stripes=0.5, sky_rows=1.0, sky=0.5, pedestal=100.0, norms={"R": 2.0})
    for result in demo.measure_levels(program, output, norms={"R": 2.0}):
        assert result.removed == pytest.approx(0.5, abs=1e-4)


def test_too_much_correction_is_worse_than_none(
    program: Path, write_output: Callable[..., Path], one_of_each: None
) -> None:
    assert all(r.removed < -0.4 for r in demo.measure_levels(program, write_output(stripes=2.5, sky=2.5)))


def test_norms_that_were_not_applied_show(
    program: Path, write_output: Callable[..., Path], one_of_each: None
) -> None:
    results = demo.measure_levels(program, write_output(stripes=1.0, sky=1.0, norms={}))
    assert all(r.rms_after > 10 for r in results if r.quantity == "gradient")


def test_before_is_the_spread_of_the_injected_structure(
    program: Path, write_output: Callable[..., Path], one_of_each: None
) -> None:
    results = {r.name: r.rms_before for r in demo.measure_levels(program, write_output())}
    rows = truth_of(program, NRCB1_A)["stripes"][4:-4, 4:-4].mean(axis=1, dtype=float)
    # What the sky's own profile explains is taken out: never more than a part.
    assert 0.5 * rows.std() < results[NRCB1_A] < 1.01 * rows.std()
    sky = truth_of(program, NIGHTS[0])["sky"].astype(float)
    variances = [sky[i::2, j::2].var() for _, i, j in RAW_PLANES]
    assert results[NIGHTS[0]] == pytest.approx(math.sqrt(np.mean(variances)), rel=1e-3)


def test_a_lost_row_is_not_a_clean_one(
    program: Path, write_output: Callable[..., Path], one_of_each: None
) -> None:
    output = write_output(stripes=1.0, sky=1.0)
    with fits.open(output / f"{NRCB1_A}_rowbgsub.fits", mode="update") as hdus:
        hdus["SCI"].data[700] = np.nan
    results = demo.measure_levels(program, output)
    assert math.isnan(results[0].rms_after)
    assert math.isnan(results[0].removed)
    assert not any(math.isnan(result.rms_after) for result in results[1:])


def test_a_missing_output_is_named(program: Path, tmp_path: Path) -> None:
    with pytest.raises(UnreadableFrameError, match=f"{NRCB1_A}_rowbgsub.fits"):
        demo.measure_levels(program, tmp_path)


def test_a_damaged_output_is_named(
    program: Path, write_output: Callable[..., Path], one_of_each: None
) -> None:
    output = write_output()
    (output / "night_0001.bkg_subtracted.fits").write_text("not a FITS file")
    with pytest.raises(UnreadableFrameError, match=r"night_0001\.bkg_subtracted\.fits"):
        demo.measure_levels(program, output)


@pytest.mark.parametrize("name", [f"{NRCB1_A}_rowbgsub.fits", "night_0001.bkg_subtracted.fits"])
def test_an_output_of_another_shape_is_refused(
    program: Path, write_output: Callable[..., Path], one_of_each: None, name: str
) -> None:
    output = write_output()
    write_image(output / name, np.zeros((10, 20)), name="SCI")
    with pytest.raises(ShapeError, match=name.replace(".", r"\.")):
        demo.measure_levels(program, output)


def test_a_folder_without_a_program_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UnreadableFrameError, match=r"truth.*write the demo anew"):
        demo.measure_levels(tmp_path, tmp_path)


# ---- what is printed


def test_the_summary_has_a_line_per_exposure_with_units() -> None:
    stripes = demo.DemoResult(
        name="jw1_nrcb1_cal", quantity="stripes", rms_before=0.0090458, rms_after=0.00081340, unit="MJy/sr"
    )
    gradient = demo.DemoResult(name="night", quantity="gradient", rms_before=1139.0, rms_after=36.42, unit="ADU")
    assert demo.summary([stripes, gradient]).splitlines() == [
        "exposure       what      rms before   rms after  unit    removed",
        "jw1_nrcb1_cal  stripes      0.00905    0.000813  MJy/sr    91.0%",
        "night          gradient        1139        36.4  ADU       96.8%",
    ]
    assert demo.summary([dataclasses.replace(stripes, rms_after=0.0)]).endswith(" 0  MJy/sr   100.0%")
    assert "nan" in demo.summary([dataclasses.replace(stripes, rms_after=math.nan)])


def test_presets_stand_beside_each_other_in_numbers_and_as_a_picture(
    program: Path, write_output: Callable[..., Path], one_of_each: None, tmp_path: Path
) -> None:
    half = write_output(stripes=0.5, sky=0.5)
    all_of_it = shutil.copytree(half, tmp_path / "all")
    for path in all_of_it.iterdir():
        path.unlink()
    half = half.rename(tmp_path / "half")
    (tmp_path / "output").mkdir()
    for path in write_output(stripes=1.0, sky=1.0).iterdir():
        path.rename(all_of_it / path.name)
    outputs = {"default": half, "best": all_of_it}
    compared = demo.measure_comparison(program, outputs)
    assert [(one.name, one.quantity) for one in compared] == [
        (NRCB1_A, "stripes"), (NRCB1_A, "amplifiers"), ("night_0001", "gradient")
    ]  # fmt: skip
    for one in compared:
        assert one.after["default"] == pytest.approx(one.before / 2, rel=1e-3)
        assert one.after["best"] < 1e-4 * one.before
    # What averages out along a row counts in each amplifier.
    assert compared[1].before > 1.03 * compared[0].before
    with Image.open(demo.draw_comparison(program, outputs, tmp_path / "demo.png")) as picture:
        grey = np.asarray(picture, float)
    assert grey.shape[1] == 8 + 3 * 308
    columns = [grey[:, 8 + k * 308 : 308 + k * 308] for k in range(3)]
    for i in range(1, 4, 2):
        top = 8 + i * 238 + 23
        before, default, best = (column[top : top + 200].std() for column in columns)
        assert before > default > best
        assert best < 0.1 * before


@pytest.mark.parametrize(("options", "first"), [([], "Writing three"), (["--quiet"], "skylevel: no room")])
def test_the_command_is_quiet_where_asked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], options: list[str], first: str
) -> None:
    def refused(_folder: Path) -> list[Path]:
        raise OutputError("no room")

    monkeypatch.setattr(demo, "write_program", refused)
    assert skylevel_here("demo", "--output", tmp_path, *options) == 2
    assert capsys.readouterr().err.startswith(first)


@pytest.mark.slow
def test_the_command_ends_with_the_presets_numbers_the_report_and_the_picture(
    one_of_each: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert skylevel_here("demo", "--json") == 0
    told = json.loads(capsys.readouterr().out)
    assert (told["report"], told["picture"]) == ("skylevel-demo/levelled/report.html", "skylevel-demo/demo.png")
    assert Path(told["report"]).exists()
    assert Path(told["picture"]).exists()
    _, amplifiers, gradient = told["compared"]
    assert set(gradient["after"]) == {"default", "best", "program"}
    assert amplifiers["after"]["best"] < 0.6 * amplifiers["after"]["default"]
    assert gradient["after"]["program"] < 0.02 * gradient["after"]["default"]
    shutil.rmtree(tmp_path / "skylevel-demo")
