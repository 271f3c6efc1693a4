"""level_rows and level_channels: the notebooks' numbers, on any size, lazily, and the same for any chunks."""

import dask
import dask.array as da
import numpy as np
import pytest
import rawpy
import xarray as xr
import zarr
from astropy.io import fits
from dask.callbacks import Callback
from hypothesis import example, given, settings
from hypothesis import strategies as st

import skylevel as sl
from reference import background_of, channels_reference, row_levels_given_mask, rows_reference, tiled
from scenes import (
    GRBG,
    RGGB,
    STRIPE,
    XTRANS,
    make_frame,
    make_image,
    make_mosaic,
    make_raw_frame,
    make_scene,
    real_file,
)
from skylevel.errors import NoBackgroundError, SkylevelError
from skylevel.level import (
    estimate_channels,
    estimate_rows,
    level_channels,
    level_rows,
    subtract_channels,
    subtract_rows,
)
from skylevel.level.frames import JUDGED
from skylevel.recipes import Channels, Rows

pytestmark = pytest.mark.packages

SCENES = {"flat": 512, "sparse": 600, "extended": 777, "crowded": 1024}
ROWS_VARIABLES = {"sci", "row_level", "source_mask", "background", "background_rms", "exclude_percentile"}
CHANNELS_VARIABLES = {"sci", "background", "background_rms", "exclude_percentile"}
MASK_AGREEMENT = 0.99999
CLOSE_IN_ADU = 0.01
PATTERNS = {"RGGB": RGGB, "GRBG": GRBG, "X-Trans": XTRANS}
REAL_EXPOSURES = [
    "niriss_1093/jw01093014001_03102_00001_nis_cal.fits",
    "niriss_1093/jw01093020001_03102_00009_nis_cal.fits",
    "nircam_tso/jw01185002001_01101_00001-seg006_nrca3_rateints_I01226.fits",
    "nircam_tso/jw01366002001_01101_00001-seg004_nrca3_rateints_I00372.fits",
    "nircam_i2d/jw01288-o001_t011_nircam_clear-f480m_cropped.fits",
    "miri/jw01288015001_04101_00001_mirimage_i2d.fits",
]


def computing_is_an_error(*args, **kwargs):
    raise AssertionError("something was computed while the graph was being built")


def assert_rows_are_the_notebooks(out, image, *, columns=False, empty=False, **settings):
    """The mask to 99.999 %, and, given the mask, levels and image exactly, but where there are no data."""
    expected = rows_reference(image, columns=columns, **settings)
    mask = out.source_mask.values
    assert np.mean(mask == expected.source_mask) >= MASK_AGREEMENT
    turn = np.transpose if columns else np.asarray
    levels, sci = row_levels_given_mask(
        turn(image), turn(mask), positive_only=settings.get("positive_only", True)
    )
    assert out.row_level.dims == (("x",) if columns else ("y",))
    np.testing.assert_array_equal(out.row_level, levels)
    np.testing.assert_array_equal(out.sci, np.where(empty, image, turn(sci)))
    assert out.exclude_percentile.item() == expected.exclude_percentile
    scale = np.abs(expected.background_mesh).max()
    np.testing.assert_allclose(out.background, expected.background_mesh, rtol=2e-6, atol=1e-6 * scale)
    np.testing.assert_allclose(out.background_rms, expected.background_rms_mesh, rtol=2e-5, atol=1e-6 * scale)
    return expected


def assert_same_bits(one, other):
    """Every variable of two datasets: dims, type and bits."""
    assert set(one.variables) == set(other.variables)
    for name in one.variables:
        assert one[name].dims == other[name].dims, name
        assert one[name].dtype == other[name].dtype, name
        np.testing.assert_array_equal(one[name].values, other[name].values, err_msg=name)
    assert one.attrs == other.attrs


@st.composite
def chunks_of(draw, n, most=5):
    """Chunk lengths of a dimension of n pixels."""
    cuts = sorted(draw(st.sets(st.integers(1, n - 1), max_size=most - 1)))
    return tuple(np.diff([0, *cuts, n]).tolist())


# --- rows: the notebook's numbers ---


@pytest.mark.parametrize("kind", SCENES)
def test_rows_of_a_scene_are_the_notebooks(kind):
    image = make_scene(kind, SCENES[kind]).image
    expected = assert_rows_are_the_notebooks(level_rows(make_frame(image)), image)
    assert expected.source_mask.any()
    assert np.isnan(expected.row_level).sum() == 8


def test_a_full_frame_is_the_notebooks():
    image = make_scene("sparse", 2048, seed=5).image
    assert_rows_are_the_notebooks(level_rows(make_frame(image)), image)


@pytest.mark.parametrize("name", REAL_EXPOSURES, ids=lambda name: name.split("/")[0])
def test_rows_of_a_real_exposure_are_the_notebooks(name):
    path = real_file(name)
    with fits.open(path) as hdus:
        image = next(hdu.data for hdu in hdus if hdu.data is not None).astype(np.float32)
        columns = abs(hdus[0].header.get("FASTAXIS", 1)) == 2
    frame = sl.open_frame(path)
    empty = (image == 0) & bool(frame.attrs.get("resampled"))
    expected = assert_rows_are_the_notebooks(level_rows(frame), image, columns=columns, empty=empty)
    assert columns == name.startswith("niriss")
    assert expected.exclude_percentile == (40.0 if columns else 10.0)


@pytest.mark.parametrize(
    "shape",
    [(1, 300), (300, 1), (1, 1), (7, 9), (49, 51), (50, 50), (130, 171), (37, 260), (251, 60)],
    ids=lambda shape: "x".join(map(str, shape)),
)
def test_rows_of_any_size_are_the_notebooks(shape):
    image = make_image(shape, sources=20 if min(shape) > 5 else 1, seed=7, nan_fraction=0.0).image
    assert_rows_are_the_notebooks(level_rows(make_frame(image)), image)


@pytest.mark.parametrize(
    "changed",
    [
        {"box_size": 30},
        {"filter_size": 1},
        {"filter_size": 7},
        {"sigma_clip": 2.0},
        {"threshold": 5.0},
        {"kernel_fwhm": 5.0},
        {"kernel_size": 7},
        {"n_pixels": 25},
        {"n_pixels": 1},
        {"exclude_percentile": 3.0},
        {"positive_only": False},
    ],
    ids=str,
)
def test_every_setting_does_what_it_does_in_the_notebook(changed):
    image = make_image((180, 210), sources=80, seed=11, sky=0.02, gradient=0.3, galaxy=0.1).image
    out = level_rows(make_frame(image), Rows(**changed))
    assert_rows_are_the_notebooks(out, image, **changed)
    default = level_rows(make_frame(image))
    assert any((out[name] != default[name]).any() for name in ("source_mask", "row_level", "exclude_percentile"))


@pytest.mark.parametrize(
    ("fast_axis", "axis", "columns"),
    [
        (1, "auto", False), (-1, "auto", False), (2, "auto", True), (-2, "auto", True), (None, "auto", False),
        (-1, "columns", True), (2, "rows", False),
    ],
)  # fmt: skip
def test_the_stripes_direction_is_the_fast_axis_or_as_said(fast_axis, axis, columns):
    image = make_image((90, 120), seed=2).image
    out = level_rows(make_frame(image, fast_axis=fast_axis), Rows(axis=axis))
    assert_rows_are_the_notebooks(out, image, columns=columns)


def test_the_stripes_are_gone():
    scene = make_scene("flat", 512)
    out = level_rows(make_frame(scene.image))
    truth = scene.stripes[4:-4, 0]
    found = out.row_level.values[4:-4]
    assert np.std((found - found.mean()) - (truth - truth.mean())) < 0.15 * STRIPE


def test_the_percentile_is_relaxed_where_no_box_passes():
    image = make_image((100, 150), sources=3, nan_fraction=0.3).image
    out = level_rows(make_frame(image))
    assert out.exclude_percentile.item() == 40.0
    assert_rows_are_the_notebooks(out, image)


def test_a_frame_without_noise_has_no_source():
    image = np.zeros((80, 90), np.float32)
    out = level_rows(make_frame(image))
    assert not out.source_mask.any()
    assert np.isnan(out.row_level).all()
    np.testing.assert_array_equal(out.sci, image)


def test_infinite_pixels_are_the_notebooks():
    image = make_image((150, 160), seed=3).image
    image[20, 30], image[70, 80], image[110, 20:24] = np.inf, -np.inf, np.inf
    out = level_rows(make_frame(image))
    assert_rows_are_the_notebooks(out, image)


def test_a_frame_of_nan_is_an_error_that_says_so():
    image = np.full((60, 70), np.nan, np.float32)
    with pytest.raises(NoBackgroundError):
        level_rows(make_frame(image))


def test_a_lazy_frame_of_nan_is_an_error_when_computed():
    lazy = level_rows(make_frame(np.full((60, 70), np.nan, np.float32)).chunk(y=20))
    with pytest.raises(NoBackgroundError):
        lazy.compute(scheduler="synchronous")


def test_a_row_without_pixels_keeps_its_values():
    image = make_image((100, 120), sources=0, nan_fraction=0.0).image
    image[40] = 50.0
    image[60] -= 5.0
    image[80] = np.nan
    out = level_rows(make_frame(image))
    assert out.source_mask.values[40].all()
    without = np.isnan(out.row_level.values)
    # Smoothing makes the bright row's neighbours a source as well.
    np.testing.assert_array_equal(np.flatnonzero(without), [39, 40, 41, 60, 80])
    np.testing.assert_array_equal(out.sci.values[without], image[without])
    assert_rows_are_the_notebooks(out, image)


# --- rows: what comes out ---


def test_rows_have_the_agreed_schema():
    frame = make_frame(make_image((103, 121)).image)
    out = level_rows(frame)
    assert set(out.data_vars) >= ROWS_VARIABLES | {"err", "dq"}
    types = {name: out[name].dtype for name in ROWS_VARIABLES}
    assert types == {
        "sci": np.float32, "row_level": np.float32, "source_mask": bool, "background": np.float32,
        "background_rms": np.float32, "exclude_percentile": np.float64,
    }  # fmt: skip
    assert out.background.dims == out.background_rms.dims == ("mesh_y", "mesh_x")
    assert out.background.shape == (3, 3)
    assert out.exclude_percentile.dims == ()
    assert out.sci.dims == out.source_mask.dims == ("y", "x")
    assert frame.attrs.items() <= out.attrs.items()
    xr.testing.assert_identical(out[["err", "dq"]].drop_attrs(), frame[["err", "dq"]].drop_attrs())
    assert all(isinstance(out[name].data, np.ndarray) for name in out.data_vars)


def test_rows_need_the_image_alone():
    image = make_image((60, 70)).image
    out = level_rows(make_frame(image, err=False, dq=False))
    assert set(out.data_vars) == ROWS_VARIABLES | set(JUDGED)
    assert_rows_are_the_notebooks(out, image)


def test_estimating_and_subtracting_is_levelling_of_rows():
    frame = make_frame(make_image((90, 80), seed=4).image)
    estimate = estimate_rows(frame, Rows())
    assert "sci" not in estimate
    xr.testing.assert_equal(subtract_rows(frame, estimate), level_rows(frame).sci)
    other = frame.assign(sci=frame.sci + 1)
    expected = other.sci.values - estimate.row_level.values[:, None]
    np.testing.assert_array_equal(subtract_rows(other, estimate), expected)


def test_columns_are_subtracted_along_x():
    frame = make_frame(make_image((90, 80), seed=4).image, fast_axis=2)
    estimate = estimate_rows(frame, Rows())
    expected = frame.sci.values - estimate.row_level.values[None, :]
    np.testing.assert_array_equal(subtract_rows(frame, estimate), expected)


def test_a_camera_frame_has_no_rows_to_level():
    with pytest.raises(SkylevelError):
        level_rows(make_raw_frame(shape=(40, 40)))


def test_an_exposure_has_no_channels_to_level():
    with pytest.raises(SkylevelError):
        level_channels(make_frame(shape=(40, 40)))


# --- rows: properties ---

small_images = st.builds(
    lambda seed, shape, sources: make_image(shape, seed=seed, sources=sources, nan_fraction=0.0).image,
    st.integers(0, 10_000),
    st.tuples(st.integers(20, 80), st.integers(20, 80)),
    st.integers(0, 20),
)
SMALL = Rows(box_size=20)


@given(small_images)
def test_transposing_swaps_rows_and_columns(image):
    rows = level_rows(make_frame(image), SMALL.replace({"axis": "rows"}))
    columns = level_rows(make_frame(image.T.copy()), SMALL.replace({"axis": "columns"}))
    np.testing.assert_array_equal(columns.source_mask.values.T, rows.source_mask)
    np.testing.assert_array_equal(columns.row_level.values, rows.row_level.values)
    np.testing.assert_array_equal(columns.sci.values.T, rows.sci)
    np.testing.assert_allclose(columns.background.values.T, rows.background, rtol=1e-6)


@given(small_images, st.sampled_from([0.25, 1.0, 3.5]))
def test_a_constant_added_moves_only_the_background(image, constant):
    # Away from the edge, where smoothing counts the zeros beyond it, and in steps that float32 holds exactly.
    image = np.round((image + 1) * 4096) / np.float32(4096)
    # SciPy's spline of fewer boxes a side is off by a part of the mesh's values, and so moves with a constant.
    recipe = Rows(box_size=4, kernel_size=1)
    before, after = (level_rows(make_frame(im), recipe) for im in (image, image + np.float32(constant)))
    assert np.mean(after.source_mask.values == before.source_mask.values) > 0.999
    same = (after.source_mask.values == before.source_mask.values).all(axis=1)
    np.testing.assert_allclose(after.row_level.values[same], before.row_level.values[same] + constant, rtol=3e-7)
    np.testing.assert_allclose(after.sci.values[same], before.sci.values[same], atol=2e-6)
    np.testing.assert_allclose(after.background, before.background + constant, rtol=1e-5)
    np.testing.assert_allclose(after.background_rms, before.background_rms, rtol=1e-2)


@given(small_images, st.sampled_from(["rows", "columns"]))
def test_a_frame_is_not_modified_by_levelling_its_rows(image, axis):
    frame = make_frame(image)
    before = frame.copy(deep=True)
    level_rows(frame, SMALL.replace({"axis": axis}))
    xr.testing.assert_identical(frame, before)


# --- rows: Dask ---


def crowded_frame():
    return make_frame(make_image((58, 67), sources=45, seed=3, border=2, nan_fraction=0.01, gradient=0.3).image)


@pytest.mark.parametrize("axis", ["rows", "columns"])
def test_lazy_rows_stay_lazy(axis):
    frame = crowded_frame().chunk(y=20, x=30)
    recipe = SMALL.replace({"axis": axis})
    with dask.config.set(scheduler=computing_is_an_error):
        out = level_rows(frame, recipe)
        estimate = estimate_rows(frame, recipe)
        levelled = subtract_rows(frame, estimate)
    lazy = [*out.data_vars.values(), *estimate.data_vars.values(), levelled]
    assert all(dask.is_dask_collection(variable.data) for variable in lazy)


@pytest.mark.parametrize("axis", ["rows", "columns"])
@given(y=chunks_of(58), x=chunks_of(67), n_pixels=st.sampled_from([1, 5, 12]))
@example(y=(58,), x=(1,) * 5 + (62,), n_pixels=12)
@example(y=(1,) * 8 + (3, 47), x=(67,), n_pixels=12)
@example(y=(20, 20, 18), x=(20, 20, 20, 7), n_pixels=5)
@settings(max_examples=10)
def test_rows_have_the_same_bits_for_any_chunks(axis, y, x, n_pixels):
    frame, recipe = crowded_frame(), SMALL.replace({"axis": axis, "n_pixels": n_pixels})
    lazy = level_rows(frame.chunk(y=y, x=x), recipe)
    assert_same_bits(lazy.compute(scheduler="synchronous"), level_rows(frame, recipe))


def test_a_relaxed_percentile_is_the_same_for_any_chunks():
    frame = make_frame(make_image((100, 150), sources=9, nan_fraction=0.3).image)
    lazy = level_rows(frame.chunk(y=33, x=41))
    assert_same_bits(lazy.compute(scheduler="synchronous"), level_rows(frame))


def test_a_larger_frame_on_threads_has_the_same_bits():
    frame = make_frame(make_scene("crowded", 600).image)
    lazy = level_rows(frame.chunk(y=190, x=333))
    assert_same_bits(lazy.compute(scheduler="threads", num_workers=2), level_rows(frame))


class Discarded:
    """A place to store pixels that keeps none."""

    def __setitem__(self, key, value):
        pass


def most_bytes_held(levelled):
    """The most bytes of pixels that Dask holds between two tasks while an image is computed and stored."""
    held = []

    def watch(_key, _result, _graph, state, _worker):
        pixels = (getattr(value, "pixels", value) for value in state["cache"].values())
        held.append(sum(array.nbytes for array in pixels if isinstance(array, np.ndarray)))

    with Callback(posttask=watch), dask.config.set(scheduler="synchronous"):
        da.store(levelled.data, Discarded(), lock=False)
    return max(held)


@pytest.mark.once
@pytest.mark.parametrize("job", ["rows", "channels"])
def test_what_is_held_of_a_chunked_frame_does_not_grow_with_it(job, tmp_path):
    def held(n_y):
        image = np.random.default_rng(1).normal(500, 5, (n_y, 400))
        # Chunks that are not whole boxes: the mesh needs other ones.
        zarr.create_array(tmp_path / f"{n_y}.zarr", data=image.astype(np.uint16), chunks=(90, 90))
        stored = da.from_zarr(tmp_path / f"{n_y}.zarr")
        if job == "rows":
            return most_bytes_held(level_rows(make_frame(stored.astype(np.float32))).sci)
        return most_bytes_held(level_channels(make_raw_frame(stored)).sci)

    # Some rows of chunks, though four times the pixels; Dask's order of the tasks is not quite the same.
    assert held(3200) < 2 * held(800)


def test_channels_made_of_other_arrays_have_the_same_bits():
    raw = make_mosaic((230, 340), RGGB)
    lazy = (da.from_array(raw, chunks=60) - 0).rechunk(110).astype(np.uint16)
    assert_same_bits(level_channels(make_raw_frame(lazy)).compute(), level_channels(make_raw_frame(raw)))


def test_lazy_variables_of_a_frame_are_carried_along():
    frame = crowded_frame()
    frame = frame.assign(dq=frame.dq.chunk(y=10))
    with dask.config.set(scheduler=computing_is_an_error):
        out = level_rows(frame, SMALL)
    assert isinstance(out.sci.data, np.ndarray)
    xr.testing.assert_equal(out.dq.compute(), frame.dq.compute())


# --- channels: the notebook's numbers ---


def assert_channels_are_the_notebooks(out, raw, pattern, **settings):
    expected = channels_reference(raw, tiled(pattern, raw.shape), **settings)
    assert out.sci.dtype == np.float32
    np.testing.assert_allclose(out.sci, expected, rtol=0, atol=CLOSE_IN_ADU)


@pytest.mark.parametrize("pattern", PATTERNS.values(), ids=PATTERNS)
@pytest.mark.parametrize("shape", [(611, 808), (600, 800)], ids=str)
def test_channels_are_the_notebooks(pattern, shape):
    raw = make_mosaic(shape, pattern, seed=2, stars=200, zeros=100)
    assert_channels_are_the_notebooks(level_channels(make_raw_frame(raw, pattern=pattern)), raw, pattern)


@pytest.mark.parametrize("pattern", PATTERNS.values(), ids=PATTERNS)
@pytest.mark.parametrize("shape", [(1, 260), (260, 1), (13, 8), (99, 101), (250, 121)], ids=str)
def test_channels_of_any_size_are_the_notebooks(pattern, shape):
    raw = make_mosaic(shape, pattern, zeros=3, stars=2, hot=1)
    # A frame narrower than the pattern may lack a colour; the notebook then has nothing to measure in it.
    present = set(tiled(pattern, shape).flat)
    if present == {"R", "G", "B"}:
        assert_channels_are_the_notebooks(level_channels(make_raw_frame(raw, pattern=pattern)), raw, pattern)
    else:
        own = tiled(pattern, shape)
        out = level_channels(make_raw_frame(raw, pattern=pattern)).sci.values
        np.testing.assert_allclose(out, channels_reference(raw, own), rtol=0, atol=CLOSE_IN_ADU)


@pytest.mark.parametrize(
    "changed",
    [
        {"box_size": 40},
        {"box_size": 33},
        {"filter_size": 3},
        {"sigma_clip": 2.0},
        {"estimator": "median"},
        {"estimator": "mean"},
        {"exclude_percentile": 80.0},
        {"kernel_stddev": 0.8},
        {"norms": {"R": 2.0, "B": 0.5}},
    ],
    ids=str,
)
def test_every_channel_setting_does_what_it_does_in_the_notebook(changed):
    raw = make_mosaic((240, 333), RGGB, seed=9, stars=80, zeros=20)
    out = level_channels(make_raw_frame(raw), Channels(**changed))
    assert_channels_are_the_notebooks(out, raw, RGGB, **changed)
    assert (out.sci != level_channels(make_raw_frame(raw)).sci).any()


@pytest.mark.parametrize("name", ["imageio_Blackmagic.dng", "rawpy_RAW_KODAK_DC50.KDC"])
def test_channels_of_a_real_raw_are_the_notebooks(name):
    path = real_file(f"camera/{name}")
    with rawpy.imread(str(path)) as opened:
        raw = opened.raw_image_visible.copy()
        colours = np.array(list(opened.color_desc.decode()))[opened.raw_colors_visible]
    out = level_channels(sl.open_frame(path))
    expected = channels_reference(raw, colours)
    # A 16-bit frame's own rounding to float32 is 0.004 and more.
    rounding = 1.5 * np.spacing(np.float32(raw.max()))
    np.testing.assert_allclose(out.sci, expected, rtol=0, atol=max(CLOSE_IN_ADU, rounding))


def test_channel_meshes_are_background2ds():
    raw = make_mosaic((240, 333), GRBG, seed=9, stars=80)
    out = level_channels(make_raw_frame(raw, pattern=GRBG), Channels(box_size=50, filter_size=3, method="filled"))
    assert list(out.channel.values) == ["R", "G", "B"]
    whole = background_of(
        raw.astype(float), box_size=50, filter_size=3, sigma_clip=5.0, max_rounds=5, estimator="mode"
    )
    assert out.background.shape == out.background_rms.shape == (3, *whole.background_mesh.shape)
    truth = {"R": 900, "G": 1500, "B": 800}
    for channel, level in truth.items():
        centre = out.background.sel(channel=channel).values[2, 3]
        assert 0.8 * level < centre - 512 < 1.05 * level


def test_the_pedestal_is_added_last():
    raw = make_mosaic((120, 130))
    plain, raised = (level_channels(make_raw_frame(raw), Channels(pedestal=p)).sci for p in (0.0, 256.0))
    np.testing.assert_allclose(raised, plain + 256, atol=1e-3)


def test_negative_values_are_kept():
    assert level_channels(make_raw_frame(make_mosaic((200, 200)))).sci.min() < -10


def test_planes_are_not_pulled_low_at_the_frames_edge():
    raw = np.rint(np.random.default_rng(1).normal(1000, 10, (401, 402))).astype(np.uint16)
    at_edge = {}
    for method in ("planes", "filled"):
        recipe = Channels(method=method, norms={}, estimator="mean", box_size=24, filter_size=1)
        out = level_channels(make_raw_frame(raw, pattern=XTRANS), recipe)
        at_edge[method] = abs(np.mean(out.sci.values[:12]))
    assert at_edge["planes"] < 0.5
    assert at_edge["filled"] > 1.5


# --- channels: what comes out ---


def test_channels_have_the_agreed_schema():
    frame = make_raw_frame(make_mosaic((151, 230)))
    out = level_channels(frame, Channels(box_size=50))
    assert set(out.data_vars) == CHANNELS_VARIABLES
    assert out.background.dims == out.background_rms.dims == ("channel", "mesh_y", "mesh_x")
    assert out.background.shape == (3, 4, 5)
    assert out.exclude_percentile.dims == ("channel",)
    assert {out[name].dtype for name in ("sci", "background", "background_rms")} == {np.dtype("float32")}
    assert frame.attrs.items() <= out.attrs.items()
    assert all(isinstance(out[name].data, np.ndarray) for name in out.data_vars)


def test_estimating_and_subtracting_is_levelling_of_channels():
    frame, recipe = make_raw_frame(make_mosaic((120, 134), zeros=3)), Channels(box_size=40)
    estimate = estimate_channels(frame, recipe)
    assert "sci" not in estimate
    xr.testing.assert_equal(subtract_channels(frame, estimate, recipe), level_channels(frame, recipe).sci)


def test_a_mosaic_of_zeros_is_not_silently_levelled_to_nan():
    frame = make_raw_frame(np.zeros((120, 120), np.uint16))
    out = level_channels(frame)
    assert (out.sci == 0).all()


def test_planes_without_a_pixel_above_0_are_an_error():
    with pytest.raises(NoBackgroundError):
        level_channels(make_raw_frame(np.zeros((120, 120), np.uint16)), Channels(method="planes"))


@pytest.mark.parametrize("method", ["filled", "planes"])
def test_a_frame_is_not_modified_by_levelling_its_channels(method):
    frame = make_raw_frame(make_mosaic((60, 62), zeros=5))
    before = frame.copy(deep=True)
    level_channels(frame, Channels(box_size=20, method=method))
    xr.testing.assert_identical(frame, before)


# --- channels: Dask ---


@pytest.mark.parametrize("method", ["filled", "planes"])
def test_lazy_channels_stay_lazy(method):
    frame, recipe = make_raw_frame(shape=(60, 70)).chunk(y=13, x=31), Channels(box_size=20, method=method)
    with dask.config.set(scheduler=computing_is_an_error):
        out = level_channels(frame, recipe)
        estimate = estimate_channels(frame, recipe)
        levelled = subtract_channels(frame, estimate, recipe)
    lazy = [*out.data_vars.values(), *estimate.data_vars.values(), levelled]
    assert all(dask.is_dask_collection(variable.data) for variable in lazy)


@pytest.mark.parametrize("method", ["filled", "planes"])
@given(
    y=chunks_of(50),
    x=chunks_of(63),
    pattern=st.sampled_from(list(PATTERNS.values())),
    zeros=st.sampled_from([0, 9]),
)
@example(y=(1, 2, 3, 44), x=(63,), pattern=XTRANS, zeros=9)
@example(y=(20, 20, 10), x=(20, 20, 20, 3), pattern=XTRANS, zeros=0)
@example(y=(50,), x=(1, 1, 1, 60), pattern=RGGB, zeros=9)
@example(y=(50,), x=(41, 22), pattern=RGGB, zeros=0)
@settings(max_examples=10)
def test_channels_have_the_same_bits_for_any_chunks(method, y, x, pattern, zeros):
    frame = make_raw_frame(shape=(50, 63), pattern=pattern, zeros=zeros, stars=6)
    recipe = Channels(box_size=20, filter_size=3, method=method)
    lazy = level_channels(frame.chunk(y=y, x=x), recipe)
    assert_same_bits(lazy.compute(scheduler="synchronous"), level_channels(frame, recipe))


def test_a_larger_mosaic_on_threads_has_the_same_bits():
    frame = make_raw_frame(shape=(420, 505), pattern=XTRANS, zeros=40)
    lazy = level_channels(frame.chunk(y=130, x=201))
    assert_same_bits(lazy.compute(scheduler="threads", num_workers=2), level_channels(frame))


@pytest.mark.parametrize(("odd", "unit"), [(np.inf, 1), (-np.inf, 1), (np.nan, 1), (9, 1e30)])
def test_rows_of_odd_numbers_warn_of_nothing(odd: float, unit: float) -> None:
    """They are left out where they are no numbers, and reckoned with where they are large."""
    image = make_image((120, 200)).image * np.float32(unit)
    image[5:50, 20:90] = odd
    assert np.isfinite(level_rows(image)).sum() == np.isfinite(image).sum()
