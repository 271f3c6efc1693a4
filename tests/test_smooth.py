"""Channels of method "smooth": alone and by nights, from arrays to FITS; the same bits for any chunks."""

import warnings
from datetime import datetime
from pathlib import Path

import numpy as np
import pytest
import xarray as xr
from astropy.io import fits
from hypothesis import given, settings
from hypothesis import strategies as st

import skylevel as sl
from programs import image_of, place_of, record_of, skylevel, skylevel_here, stored
from scenes import RGGB, XTRANS, make_mosaic, make_mosaic_sky, make_raw_frame, tiled
from skylevel.demo.dng import write_dng
from skylevel.errors import NoBackgroundError, SettingsError
from skylevel.io.store import ProgramStore
from skylevel.jobs import JOBS, Facts
from skylevel.kernels.night_sky import Surface
from skylevel.level.channels import estimate_channels, level_channels, subtract_channels
from skylevel.level.smooth import combine_night, vignetting_in_corners, with_night
from skylevel.program.plan import read_plan, store_url
from skylevel.recipes import Channels

pytestmark = pytest.mark.packages

SHAPE = (720, 960)
BEST = Channels.preset("best").replace({"box_size": 24, "norms": {}})
NIGHT = BEST.replace({"together": True})
JOB = JOBS["channels"]


def galaxy(shape=SHAPE, peak=900.0):
    v, u = np.meshgrid(*(np.linspace(-1, 1, n) for n in shape), indexing="ij")
    return peak * np.exp(-np.hypot((u - 0.1) / 0.09, (v + 0.1) / 0.07))


def frame_of(seed=0, *, light=0.0, sky=1.0, pattern=RGGB, shape=SHAPE, **attrs):
    """A frame whose sky, brighter by `sky`, has some light above it."""
    rng = np.random.default_rng(seed)
    electrons = 1.2 * (sky * make_mosaic_sky(shape, pattern) + light)
    mosaic = rng.poisson(electrons) / 1.2 + rng.normal(scale=4.0, size=shape) + 512
    raw = np.clip(np.rint(mosaic), 0, 16383).astype(np.uint16)
    return make_raw_frame(raw, pattern=pattern).assign_attrs(attrs)


def sky_error(levelled, frame, *, light=0.0, sky=1.0, pattern=RGGB):
    """Rms of the background that was taken off against the sky, by blocks of 24 pixels."""
    taken = frame["raw"].values.astype(float) - levelled
    error = taken - 512 - sky * make_mosaic_sky(taken.shape, pattern)
    return float(np.sqrt(np.mean(error**2)))


# --- one frame


def test_a_galaxy_stays():
    frame = frame_of(light=galaxy())
    best = sky_error(level_channels(frame, BEST)["sci"].values, frame)
    default = sky_error(level_channels(frame, Channels(norms={}))["sci"].values, frame)
    assert best < 3.0
    assert best < default / 10


@pytest.mark.parametrize("pattern", [RGGB, XTRANS], ids=["Bayer", "X-Trans"])
def test_what_is_measured_has_names_and_units(pattern):
    frame = frame_of(pattern=pattern)
    found = estimate_channels(frame, BEST)
    assert {name: v.dims for name, v in found.items()} == {
        **dict.fromkeys(
            ["background", "background_rms", "sky_level", "box_n_pixels", "box_mask"], ("channel", "mesh_y", "mesh_x")
        ),
        "background_coefficients": ("channel", "order_y", "order_x"),
        **dict.fromkeys(["gradient_before", "gradient_after", "gradient_noise"], ("channel",)),
        "black_level": (),
    }
    assert all("long_name" in v.attrs for v in found.values())
    counts = {"box_n_pixels", "box_mask"}
    assert {v.attrs.get("units") for name, v in found.items() if name not in counts} == {""}
    assert found["background"].dtype == found["black_level"].dtype == np.float32
    # The surface above the black level is the background at a box's centre.
    table = found["background_coefficients"].values[1]
    at = Surface(table, np.array([11, 12]), shape=SHAPE).at(np.array([11, 12])).mean() + 512
    assert at == pytest.approx(float(found["background"][1, 0, 0]), abs=0.05)


def test_what_is_left_of_the_gradient_is_told_without_the_truth():
    found = estimate_channels(frame_of(), BEST)
    before, after, noise = (found[f"gradient_{name}"].values for name in ("before", "after", "noise"))
    assert (before > 50).all()
    np.testing.assert_allclose(after, noise, rtol=0.15)
    # A surface that cannot follow the sky leaves more than noise, and that is told.
    stiff = estimate_channels(frame_of(), BEST.replace({"degree": 1}))
    assert (stiff["gradient_after"] > 2 * noise).all()


def test_the_background_image_is_what_was_taken_off():
    frame = frame_of()
    out = level_channels(frame, BEST)
    image = sl.background_image(out).compute(scheduler="synchronous")
    np.testing.assert_allclose(frame["raw"] - image, out["sci"], atol=1e-3)


def test_division_makes_a_star_as_bright_anywhere():
    share = make_mosaic_sky(SHAPE, RGGB)
    for letter in "RGB":
        own = tiled(RGGB, SHAPE) == letter
        share[own] /= share[own].max()
    # A star adds the same everywhere, less where less light comes; in every 60th row and column.
    star = np.zeros(SHAPE)
    star[30::60, 30::60] = 3000.0
    frame = frame_of(light=star * share)
    plain, divided = (
        level_channels(frame, BEST.replace({"correction": c}))["sci"].values[30::60, 30::60]
        for c in ("subtract", "divide")
    )
    assert divided.std() < 0.5 * plain.std()
    assert divided.mean() == pytest.approx(3000, rel=0.03)


@pytest.mark.parametrize(
    "changed",
    [{"degree": 3}, {"stiffness": 30.0}, {"rejection": 0.5}, {"box_size": 48}, {"correction": "divide"}],
    ids=str,
)
def test_every_setting_changes_the_result(changed):
    frame = frame_of(light=galaxy())
    before, after = (level_channels(frame, recipe)["sci"].values for recipe in (BEST, BEST.replace(changed)))
    assert not np.array_equal(before, after)


def test_the_black_level_is_the_files_or_else_the_recipes():
    frame, divide = frame_of(), BEST.replace({"correction": "divide"})
    untold = frame.drop_attrs().assign_attrs({k: v for k, v in frame.attrs.items() if k != "black_level"})
    known = level_channels(untold, divide.replace({"black_level": 512}))
    np.testing.assert_array_equal(known["sci"], level_channels(frame, divide)["sci"])
    assert not np.array_equal(known["sci"], level_channels(untold, divide)["sci"])
    by_colour = frame.assign_attrs(black_level=[510, 512, 514, 512])
    np.testing.assert_array_equal(level_channels(by_colour, BEST)["sci"], level_channels(frame, BEST)["sci"])


def test_pixels_that_are_not_finite_or_saturated_do_not_count():
    frame = frame_of()
    pixels = frame["raw"].values.astype(np.float32)
    pixels[100:200, 100:300], pixels[300:350, 400:500] = np.nan, 16383
    holed = frame.assign(raw=(("y", "x"), pixels))
    found = level_channels(holed, BEST)
    assert bool(found["box_mask"][:, 5:8, 5:12].all())
    assert np.array_equal(np.isnan(found["sci"]), np.isnan(pixels))
    assert np.nanmedian(np.abs(found["sci"] - level_channels(frame, BEST)["sci"])) < 1.0
    with pytest.raises(NoBackgroundError, match="saturated"):
        level_channels(frame.assign(raw=(("y", "x"), np.full(SHAPE, 16383, np.uint16))), BEST)


@pytest.mark.parametrize("shape", [(2, 2), (3, 50), (47, 49), (97, 2)])
@pytest.mark.parametrize("correction", ["subtract", "divide"])
def test_tiny_frames(shape, correction):
    frame = make_raw_frame(make_mosaic(shape, stars=0, hot=0))
    out = level_channels(frame, Channels.preset("best").replace({"correction": correction}))
    assert out["sci"].shape == shape
    assert np.isfinite(out["sci"]).all()
    assert np.isfinite(sl.background_image(out).compute(scheduler="synchronous")).all()


def test_one_colour_alone():
    mosaic = make_mosaic(SHAPE, stars=0)
    out = level_channels(mosaic, BEST, color_filter_array=["M"])
    assert out.shape == SHAPE
    assert abs(np.median(out)) < 60


def test_more_boxes_than_memory_are_refused():
    with pytest.raises(SettingsError, match=r"AAA.*box_size = 1 makes 2000000 boxes of it: use 2 or more"):
        estimate_channels(
            make_raw_frame(np.ones((1000, 2000), np.uint16)).assign_attrs(path="AAA"), BEST.replace({"box_size": 1})
        )


@settings(max_examples=8, deadline=None)
@given(
    y=st.integers(20, 200), x=st.integers(20, 200), pattern=st.sampled_from([RGGB, XTRANS]),
    correction=st.sampled_from(["subtract", "divide"]), box_size=st.sampled_from([24, 17]),
)  # fmt: skip
def test_any_chunks_give_the_same_bits(y, x, pattern, correction, box_size):
    frame = make_raw_frame(make_mosaic((130, 201), pattern), pattern=pattern)
    recipe = BEST.replace({"box_size": box_size, "correction": correction})
    lazy = level_channels(frame.chunk(y=y, x=x), recipe)
    assert lazy["sci"].chunks is not None
    assert lazy["background_coefficients"].chunks is not None
    whole = level_channels(frame, recipe)
    computed = lazy.compute(scheduler="synchronous")
    xr.testing.assert_identical(computed, whole)
    for name in whole:
        assert computed[name].dtype == whole[name].dtype


@pytest.mark.parametrize("asked", ["correction=divide", "together=true"])
def test_what_only_a_smooth_background_can_do_is_refused_for_others(asked, tmp_path: Path, capsys) -> None:
    write_dng(tmp_path / "r.dng", make_mosaic((64, 64)), datetime(2024, 8, 12))
    assert skylevel_here("run", tmp_path / "r.dng", "--output", tmp_path / "out", "--set", asked) == 2
    assert "needs method = 'smooth'" in " ".join(capsys.readouterr().err.split())


# --- a night


def night_of(count=4, **attrs):
    """Frames whose skies differ, with a galaxy in all, and what was measured of them."""
    frames = [frame_of(k, light=galaxy(), sky=1 + 0.02 * k, **attrs) for k in range(count)]
    members = xr.concat([estimate_channels(frame, NIGHT) for frame in frames], dim="exposure")
    return frames, members.assign_coords(exposure=[f"e{k}" for k in range(count)])


def test_a_night_is_closer_to_its_skies_than_each_frame():
    frames, members = night_of(6)
    night = combine_night(members, NIGHT)
    assert bool(night["agrees"].all())
    alone, together = [], []
    for k, frame in enumerate(frames):
        estimate = members.isel(exposure=k).drop_vars("exposure")
        known = with_night(estimate, night.isel(member=k))
        alone.append(sky_error(subtract_channels(frame, estimate, NIGHT).values, frame, sky=1 + 0.02 * k))
        together.append(sky_error(subtract_channels(frame, known, NIGHT).values, frame, sky=1 + 0.02 * k))
    assert np.mean(together) < 0.8 * np.mean(alone)


def test_what_a_night_knows_has_names_and_units():
    night = combine_night(night_of()[1], NIGHT)
    assert {name: v.dims for name, v in night.items()} == {
        "shared_sky": ("channel", "sky_y", "sky_x"),
        "lens": ("channel", "sky_y", "sky_x"),
        "background_coefficients": ("member", "channel", "order_y", "order_x"),
        "shared_coefficients": ("channel", "order_y", "order_x"),
        "vignetting": ("channel", "order_y", "order_x"),
        "sky_slope": ("member", "channel", "axis"),
        "shift": ("member", "axis"),
        "rejected_share": ("member",),
        "agrees": ("member",),
    }
    assert all("long_name" in v.attrs for v in night.values())
    assert night["member"].values.tolist() == ["e0", "e1", "e2", "e3"]
    # Of the light the most comes in the middle.
    middle = {name: night.sizes[name] // 2 for name in ("sky_y", "sky_x")}
    assert (night["lens"].isel(middle) > night["lens"].isel(sky_y=0, sky_x=0)).all()
    assert night["shared_sky"].notnull().all()
    # Of the light 0.57 comes to the corners, the sky's own curvature included.
    assert (vignetting_in_corners(night) < 0.8).all()


def test_a_frame_that_disagrees_and_one_alone_are_levelled_as_by_best():
    _, members = night_of(4)
    clouded = members.copy(deep=True)
    v, u = np.meshgrid(*(np.linspace(-1, 1, n) for n in members["sky_level"].shape[-2:]), indexing="ij")
    clouded["sky_level"][2] += (80 * np.sin(9 * u + 7 * v) * np.cos(8 * v)).astype(np.float32)
    night = combine_night(clouded, NIGHT)
    assert night["agrees"].values.tolist() == [True, True, False, True]
    trusting = combine_night(clouded, NIGHT.replace({"disagreement": 1.0}))
    assert bool(trusting["agrees"].all())
    one = combine_night(members.isel(exposure=[1]), NIGHT)
    assert not bool(one["agrees"].any())
    np.testing.assert_array_equal(one["background_coefficients"][0], members["background_coefficients"][1])


# --- the job


def facts(**attributes):
    return Facts("camera", SHAPE, attributes)


def test_a_group_is_a_night_of_one_lens_setting():
    name = {"date_obs": "2024-08-12T01:00:00", "exposure_time": 29.97, "iso": 1600.0, "focal_length": 24}
    assert JOB.group(NIGHT, facts(**name)) == "2024-08-11-24mm-30s-1600iso"
    assert JOB.group(NIGHT, facts(**name | {"date_obs": "2024-08-11T22:30:00"})) == JOB.group(NIGHT, facts(**name))
    for changed in ({"date_obs": "2024-08-12T22:00:00"}, {"exposure_time": 60.0}, {"focal_length": 50}):
        assert JOB.group(NIGHT, facts(**name | changed)) != JOB.group(NIGHT, facts(**name))
    for unread in ("", "yesterday", "0001-01-01"):
        assert JOB.group(NIGHT, facts(date_obs=unread)) == "undated"
    assert JOB.group(BEST, facts(**name)) is None
    assert JOB.group(Channels(together=True), facts(**name)) is None


def metrics_of(recipe, **frame):
    return JOB.metrics(estimate_channels(frame_of(**frame), recipe))


def test_a_background_that_is_not_smooth_suggests_better():
    uneven, smooth = metrics_of(Channels(), light=galaxy(peak=3000)), metrics_of(BEST, light=galaxy(peak=3000))
    assert "--preset best" in JOB.advice([uneven], Channels())
    assert "4 of 4" in JOB.advice([uneven] * 4, Channels())
    assert "--preset program" in JOB.advice([uneven] * 4, Channels())
    assert "--preset program" in JOB.advice([smooth] * 4, BEST)
    assert JOB.advice([smooth], BEST) == JOB.advice([smooth] * 4, NIGHT) == JOB.advice([], Channels()) == ""
    # What a damaged or older record lacks is no reason.
    assert JOB.advice([{}, {"uneven": [None], "uneven_noise": [1.0], "background_median": [0.0]}], Channels()) == ""
    assert JOB.advice([{}] * 4, BEST) == ""


def test_the_finding_says_what_is_left():
    text = JOB.finding(estimate_channels(frame_of(light=galaxy()), BEST), BEST)
    assert "boxes left out; of the sky's gradient" in text


# --- programs


def write_night(folder: Path, count: int = 4, shape=(288, 384)) -> Path:
    folder.mkdir()
    for k in range(count):
        frame = frame_of(k, light=galaxy(shape), sky=1 + 0.02 * k, shape=shape)
        write_dng(folder / f"r{k}.dng", frame["raw"].values, datetime(2024, 8, 12, 1, 0, k))
    return folder


def write_fits_night(folder: Path, count: int = 3, **cards) -> Path:
    folder.mkdir()
    for k in range(count):
        frame = frame_of(k, light=galaxy((288, 384)), shape=(288, 384))
        header = fits.Header({"BAYERPAT": "RGGB", "ROWORDER": "TOP-DOWN", "INSTRUME": "cam", **cards})
        fits.PrimaryHDU(frame["raw"].values, header).writeto(folder / f"f{k}.fits")
    return folder


def group_of(output: Path, name: str) -> xr.Dataset:
    store = ProgramStore(store_url(output))
    (exposure,) = [e for e in read_plan(store) if e.name == name]
    assert exposure.group is not None
    found = store.read_group(*exposure.group)
    assert found is not None
    return found[1]


def test_a_night_of_raws(tmp_path: Path) -> None:
    raws, out = write_night(tmp_path / "in"), tmp_path / "out"
    run = ("run", raws, "--output", out, "--partition", "1/1", "--keep", "background", "--preset", "program")
    run = (*run, "--set", "norms.R=1", "--set", "norms.B=1")
    assert skylevel_here(*run) == 0
    group = group_of(out, "r2")
    assert group["member"].values.tolist() == ["r0", "r1", "r2", "r3"]
    assert bool(group["agrees"].all())
    assert group["shift"].attrs["units"] == "pixel"
    for k in range(4):
        raw = sl.open_frame(raws / f"r{k}.dng")["raw"].values
        taken = fits.getdata(out / f"r{k}.bkg_background.fits")
        np.testing.assert_allclose(raw - taken, image_of(out / f"r{k}.bkg_subtracted.fits"), atol=1e-3)
        metrics = record_of(out, f"r{k}")["metrics"]
        assert len(metrics["gradient_after"]) == 3
    kept = stored(out, "r1")
    assert kept["background_coefficients"].shape == (3, 11, 11)
    # Any client sees it, and nothing of it brings a warning.
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        tree = xr.open_datatree(store_url(out), engine="zarr")
    assert "sky_level" in tree[place_of(out, "r0").node]


def test_a_change_to_each_alone_measures_nothing_again(tmp_path: Path) -> None:
    raws, out = write_night(tmp_path / "in", 2), tmp_path / "out"
    run = ("run", raws, "--output", out, "--partition", "1/1", "--preset")
    assert skylevel_here(*run, "program") == 0
    together, record = image_of(out / "r0.bkg_subtracted.fits"), record_of(out, "r0")
    assert skylevel_here(*run, "best") == 0
    assert not np.array_equal(image_of(out / "r0.bkg_subtracted.fits"), together)
    assert record_of(out, "r0")["metrics"] == record["metrics"]


def test_a_night_of_fits_divided_by_its_vignetting(tmp_path: Path) -> None:
    mosaics, out = write_fits_night(tmp_path / "in", **{"DATE-OBS": "2024-08-12T01:00:00"}), tmp_path / "out"
    options = ("--set", "correction=divide", "--set", "black_level=512", "--keep", "background")
    assert skylevel_here("run", mosaics, "--output", out, "--partition", "1/1", "--preset", "program", *options) == 0
    header = fits.getheader(out / "f0.bkg_background.fits")
    assert header["SKYDIVID"] == "its night's vignetting"
    lens = group_of(out, "f1")["vignetting"].values
    raw, taken = fits.getdata(mosaics / "f1.fits"), fits.getdata(out / "f1.bkg_background.fits")
    green = Surface(lens[1], np.arange(1, 384, 2), shape=(288, 384)).at(np.arange(0, 288, 2))
    expected = (raw - taken)[::2, 1::2] / green
    np.testing.assert_allclose(image_of(out / "f1.bkg_subtracted.fits")[::2, 1::2], expected, atol=0.01)


def test_mosaics_without_a_time_are_one_night(tmp_path: Path) -> None:
    mosaics, out = write_fits_night(tmp_path / "in", 2), tmp_path / "out"
    assert skylevel_here("run", mosaics, "--output", out, "--partition", "1/1", "--preset", "program") == 0
    assert group_of(out, "f0").sizes["member"] == 2


@pytest.mark.slow
@pytest.mark.parametrize("preset", ["best", "program"])
def test_workers_give_the_same_bits(tmp_path: Path, preset: str) -> None:
    raws = write_night(tmp_path / "in", 3)
    assert skylevel_here("run", raws, "--output", tmp_path / "here", "--partition", "1/1", "--preset", preset) == 0
    done = skylevel("run", raws, "--output", tmp_path / "there", "--workers", "2", "--preset", preset)
    assert done.returncode == 0
    for k in range(3):
        here, there = (image_of(tmp_path / place / f"r{k}.bkg_subtracted.fits") for place in ("here", "there"))
        np.testing.assert_array_equal(here, there)
