"""Channels of colour-filter arrays: filling, statistics and subtraction, against the night-sky notebook's calls."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from reference import NORMS, background_of, channels_reference, filled_reference, tiled
from scenes import GRBG, RGGB, XTRANS, make_mosaic
from skylevel.kernels.mesh import Clipping, clip_box_size, finish_mesh
from skylevel.kernels.mosaic import (
    Tile,
    box_n_pixels,
    channel_statistics,
    fill_gaps,
    halo_needed,
    subtract_backgrounds,
)
from skylevel.kernels.pattern import ColorPattern

pytestmark = pytest.mark.packages

PATTERNS = {"RGGB": RGGB, "GRBG": GRBG, "X-Trans": XTRANS}
MONO = ("L",)
every_pattern = pytest.mark.parametrize("pattern", PATTERNS.values(), ids=PATTERNS)


def letters_of(pattern):
    return ColorPattern.of(pattern)


def filled(mosaic, pattern, stddev=1.0):
    return dict(fill_gaps(Tile.whole(mosaic), letters_of(pattern), stddev=stddev))


def cut(mosaic, rows, columns, halo):
    """A tile of a mosaic that sees no pixel but its own and `halo` around them."""
    spans = [
        slice(max(part.start - halo, 0), min(part.stop + halo, n))
        for part, n in zip((rows, columns), mosaic.shape, strict=True)
    ]
    return Tile(mosaic[tuple(spans)], (spans[0].start, spans[1].start), mosaic.shape, (rows, columns))


def statistics_of(tile, pattern, box_size, *, method="filled", estimator="mode", sigma_clip=5.0, max_rounds=5):
    return channel_statistics(
        tile,
        letters_of(pattern),
        method=method,
        stddev=1.0,
        box_size=box_size,
        clipping=Clipping(sigma_clip, max_rounds, estimator),
    )


def levelled(mosaic, pattern, *, box_size=100, filter_size=11, method="filled", pedestal=0.0, norms=NORMS):
    """The whole job by its kernels alone."""
    letters, sides = letters_of(pattern), clip_box_size(box_size, mosaic.shape)
    meshes = [
        finish_mesh(
            statistics,
            box_n_pixels=box_n_pixels(letters, channel, method=method, box_size=sides),
            exclude_percentile=10.0,
            filter_size=filter_size,
        ).background
        for channel, statistics in zip(
            letters.channels, statistics_of(Tile.whole(mosaic), pattern, sides, method=method), strict=True
        )
    ]
    factors = [norms.get(channel, 1.0) for channel in letters.channels]
    return subtract_backgrounds(mosaic, letters, meshes, box_size=sides, norms=factors, pedestal=pedestal)


@pytest.mark.parametrize(
    ("pattern", "names"),
    [(RGGB, "RGB"), (GRBG, "RGB"), (XTRANS, "RGB"), (("BG", "GR"), "RGB"), (MONO, "L"), (("RG", "EB"), "RGBE")],
)
def test_channels_stand_in_the_order_of_r_g_b(pattern, names):
    assert letters_of(pattern).channels == list(names)


@every_pattern
@pytest.mark.parametrize("shape", [(60, 72), (61, 73), (13, 8), (6, 6), (1, 30), (30, 1)], ids=str)
@pytest.mark.parametrize("zeros", [0, 12], ids=["no zeros", "zeros"])
def test_filling_equals_astropys_interpolation(pattern, shape, zeros):
    mosaic = make_mosaic(shape, pattern, zeros=min(zeros, shape[0] * shape[1] // 3), stars=3, hot=2)
    colours = tiled(pattern, shape)
    for channel, values in filled(mosaic, pattern).items():
        np.testing.assert_allclose(values, filled_reference(mosaic, colours == channel), rtol=1e-11, atol=1e-9)


def test_filling_finds_every_channel_of_the_pattern():
    assert list(filled(make_mosaic((20, 20), XTRANS), XTRANS)) == ["R", "G", "B"]


@pytest.mark.parametrize("stddev", [0.4, 0.7, 1.5, 2.0])
def test_filling_takes_any_kernel(stddev):
    mosaic = make_mosaic((50, 46), RGGB, zeros=20)
    for channel, values in filled(mosaic, RGGB, stddev).items():
        expected = filled_reference(mosaic, tiled(RGGB, mosaic.shape) == channel, kernel_stddev=stddev)
        np.testing.assert_allclose(values, expected, rtol=1e-9, atol=1e-7)


@every_pattern
@pytest.mark.parametrize("stddev", [0.4, 1.0, 1.3])
def test_a_hole_wider_than_the_kernel_is_zero(pattern, stddev):
    mosaic = make_mosaic((60, 60), pattern)
    mosaic[15:45, 13:43] = 0
    for channel, values in filled(mosaic, pattern, stddev).items():
        expected = filled_reference(mosaic, tiled(pattern, mosaic.shape) == channel, kernel_stddev=stddev)
        assert (expected == 0).any()
        np.testing.assert_array_equal(values == 0, expected == 0)
        np.testing.assert_allclose(values, expected, rtol=1e-6, atol=1e-6)


def test_a_channels_own_pixels_are_kept():
    mosaic = make_mosaic((40, 44), XTRANS)
    for channel, values in filled(mosaic, XTRANS).items():
        own = tiled(XTRANS, mosaic.shape) == channel
        np.testing.assert_array_equal(values[own], mosaic[own])


@every_pattern
def test_other_channels_pixels_are_irrelevant(pattern):
    mosaic = make_mosaic((40, 44), pattern)
    other = mosaic.copy()
    red = tiled(pattern, mosaic.shape) == "R"
    other[~red] = np.random.default_rng(0).integers(1, 16383, (~red).sum())
    np.testing.assert_array_equal(filled(mosaic, pattern)["R"], filled(other, pattern)["R"])


@given(data=st.data(), pattern=st.sampled_from(list(PATTERNS.values())), zeros=st.sampled_from([0, 30]))
def test_a_tile_is_filled_with_the_frames_bits(data, pattern, zeros):
    mosaic = make_mosaic((47, 52), pattern, zeros=zeros)
    rows, columns = (
        slice(*sorted(data.draw(st.lists(st.integers(0, n), min_size=2, max_size=2, unique=True))))
        for n in mosaic.shape
    )
    whole = filled(mosaic, pattern)
    tile = cut(mosaic, rows, columns, halo_needed(1.0, letters_of(pattern)))
    for channel, values in fill_gaps(tile, letters_of(pattern), stddev=1.0):
        np.testing.assert_array_equal(values, whole[channel][rows, columns])


@every_pattern
@pytest.mark.parametrize("estimator", ["mode", "median", "mean"])
def test_statistics_equal_background2d_of_the_filled_channel(pattern, estimator):
    mosaic = make_mosaic((130, 171), pattern, zeros=40)
    colours = tiled(pattern, mosaic.shape)
    found = statistics_of(Tile.whole(mosaic), pattern, (50, 50), estimator=estimator)
    for channel, statistics in zip("RGB", found, strict=True):
        expected = background_of(
            filled_reference(mosaic, colours == channel),
            box_size=50, filter_size=1, sigma_clip=5.0, max_rounds=5, estimator=estimator, exclude_percentile=100.0,
        )  # fmt: skip
        np.testing.assert_allclose(statistics.level, expected.background_mesh, rtol=1e-9)
        np.testing.assert_allclose(statistics.rms, expected.background_rms_mesh, rtol=1e-7)
        np.testing.assert_array_equal(statistics.n_good, expected.n_pixels_mesh)


@every_pattern
@pytest.mark.parametrize("box_size", [(24, 36), (25, 31)])
def test_planes_measure_a_channels_own_pixels(pattern, box_size):
    mosaic = make_mosaic((70, 100), pattern, zeros=50)
    colours = tiled(pattern, mosaic.shape)
    found = statistics_of(
        Tile.whole(mosaic), pattern, box_size, method="planes", estimator="median", sigma_clip=1e6
    )
    for channel, statistics in zip("RGB", found, strict=True):
        own = np.where((colours == channel) & (mosaic > 0), mosaic, np.nan)
        for my, mx in np.ndindex(statistics.level.shape):
            box = own[my * box_size[0] : (my + 1) * box_size[0], mx * box_size[1] : (mx + 1) * box_size[1]]
            assert statistics.n_good[my, mx] == np.isfinite(box).sum()
            np.testing.assert_allclose(statistics.level[my, mx], np.nanmedian(box), rtol=1e-12)
            np.testing.assert_allclose(statistics.rms[my, mx], np.nanstd(box), rtol=1e-9)


@every_pattern
@pytest.mark.parametrize("method", ["filled", "planes"])
def test_a_tile_of_whole_boxes_has_the_frames_statistics(pattern, method):
    mosaic = make_mosaic((100, 131), pattern, zeros=20)
    whole = statistics_of(Tile.whole(mosaic), pattern, (25, 25), method=method)
    tile = cut(mosaic, slice(25, 75), slice(50, 131), halo_needed(1.0, letters_of(pattern)))
    for one, other in zip(whole, statistics_of(tile, pattern, (25, 25), method=method), strict=True):
        for expected, found in zip(one, other, strict=True):
            np.testing.assert_array_equal(found, expected[1:3, 2:])


@every_pattern
@pytest.mark.parametrize(
    ("shape", "box_size", "filter_size", "zeros"),
    [((300, 400), 50, 3, 0), ((307, 411), 50, 3, 60), ((251, 333), 100, 11, 60), ((90, 80), 100, 11, 5)],
)
def test_the_levelled_mosaic_is_the_notebooks(pattern, shape, box_size, filter_size, zeros):
    mosaic = make_mosaic(shape, pattern, zeros=zeros)
    expected = channels_reference(mosaic, tiled(pattern, shape), box_size=box_size, filter_size=filter_size)
    found = levelled(mosaic, pattern, box_size=box_size, filter_size=filter_size)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, expected, rtol=0, atol=0.01)


@pytest.mark.parametrize("pattern", [MONO, ("RG", "EB"), ("RGRB", "GRBG", "RBGR", "BGRG")])
def test_any_pattern_is_levelled(pattern):
    mosaic = make_mosaic((121, 134), RGGB, zeros=5)
    expected = channels_reference(mosaic, tiled(pattern, mosaic.shape), box_size=30, filter_size=3)
    np.testing.assert_allclose(levelled(mosaic, pattern, box_size=30, filter_size=3), expected, rtol=0, atol=0.01)


@given(
    y=st.lists(st.integers(0, 90), min_size=2, max_size=2, unique=True).map(sorted),
    x=st.lists(st.integers(0, 81), min_size=2, max_size=2, unique=True).map(sorted),
    pattern=st.sampled_from(list(PATTERNS.values())),
)
def test_a_tile_is_subtracted_with_the_frames_bits(y, x, pattern):
    mosaic = make_mosaic((90, 81), pattern)
    meshes = [np.random.default_rng(k).uniform(500, 900, (5, 5)).astype(np.float32) for k in range(3)]
    settings = {"box_size": (20, 20), "norms": [1.34, 1.0, 1.25], "pedestal": 7.5}
    whole = subtract_backgrounds(mosaic, letters_of(pattern), meshes, **settings)
    window = np.s_[y[0] : y[1], x[0] : x[1]]
    tile = subtract_backgrounds(mosaic[window], letters_of(pattern), meshes, origin=(y[0], x[0]), **settings)
    np.testing.assert_array_equal(tile, whole[window])


def test_norms_and_pedestal_follow_the_subtraction():
    mosaic = np.full((12, 14), 100, np.uint16)
    meshes = [np.full((1, 1), level, np.float32) for level in (90, 80, 110)]
    found = subtract_backgrounds(
        mosaic, letters_of(RGGB), meshes, box_size=(12, 14), norms=[2.0, 3.0, 0.5], pedestal=1.0
    )
    expected = {"R": 21.0, "G": 61.0, "B": -4.0}
    np.testing.assert_array_equal(found, np.vectorize(expected.get, otypes=["f4"])(tiled(RGGB, mosaic.shape)))


@pytest.mark.parametrize("method", ["filled", "planes"])
def test_the_mosaic_is_not_modified(method):
    mosaic = make_mosaic((60, 62), zeros=10)
    before = mosaic.copy()
    levelled(mosaic, RGGB, box_size=20, filter_size=3, method=method)
    np.testing.assert_array_equal(mosaic, before)


def test_planes_are_not_pulled_low_at_the_frames_edge():
    mosaic = np.full((100, 100), 1000, np.uint16)
    settings = {"box_size": 20, "filter_size": 1, "norms": {}}
    assert np.abs(levelled(mosaic, RGGB, method="planes", **settings)).max() == 0
    assert np.abs(levelled(mosaic, RGGB, method="filled", **settings)).max() > 0
