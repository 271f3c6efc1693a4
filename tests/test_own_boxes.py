"""Levels of boxes from each channel's own pixels."""

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from reference import tiled
from scenes import GRBG, RGGB, XTRANS, make_mosaic, make_mosaic_sky
from skylevel.kernels.own_boxes import LEVEL_ERROR, OwnBoxes, measure_boxes
from skylevel.kernels.pattern import ColorPattern
from skylevel.kernels.tile import Tile

pytestmark = pytest.mark.packages

FOURS = ("RGRG", "GBGB", "RGRG", "GBGB")
PATTERNS = [RGGB, GRBG, XTRANS, FOURS, ("M",), ("RGB", "GBR")]


def letters_of(pattern):
    return ColorPattern.of(pattern)


def boxes_of(mosaic, pattern=RGGB, side=24, **settings):
    return measure_boxes(Tile.whole(mosaic), letters_of(pattern), box_size=(side, side), **settings)


def plain_medians(mosaic, pattern, side):
    """Every channel's median in every box, the long way."""
    letters = tiled(pattern, mosaic.shape)
    n_y, n_x = (-(-n // side) for n in mosaic.shape)
    levels = np.full((len(letters_of(pattern).channels), n_y, n_x), np.nan)
    for c, channel in enumerate(letters_of(pattern).channels):
        for y, x in np.ndindex(n_y, n_x):
            box = np.s_[y * side : (y + 1) * side, x * side : (x + 1) * side]
            own = mosaic[box][(letters[box] == channel) & (mosaic[box] != 0) & np.isfinite(mosaic[box])]
            if own.size:
                levels[c, y, x] = np.median(own)
    return levels


@pytest.mark.parametrize("pattern", PATTERNS, ids=lambda p: "".join(p))
@pytest.mark.parametrize("side", [24, 17])
@pytest.mark.parametrize("shape", [(96, 120), (95, 118), (24, 24), (5, 40), (1, 1), (2, 3)])
def test_a_level_is_about_the_median_of_a_channels_own_pixels(pattern, side, shape):
    mosaic = np.random.default_rng(1).poisson(1500, shape).astype(np.uint16)
    found, expected = boxes_of(mosaic, pattern, side), plain_medians(mosaic, pattern, side)
    np.testing.assert_array_equal(np.isfinite(found.level), np.isfinite(expected))
    # Clipping moves a median by no more than its error.
    error = 2.0 * np.sqrt(1500) / np.sqrt(np.maximum(found.n_good, 1)) + 1.0
    assert (np.abs(np.nan_to_num(found.level - expected)) <= error).all()
    assert all(field.dtype == np.float32 for field in found)


def test_levels_and_errors_are_those_of_the_sky():
    mosaic, sky = make_mosaic((960, 960), stars=0), make_mosaic_sky((960, 960), RGGB) + 512
    found = boxes_of(mosaic, side=48)
    for c, own in enumerate([np.s_[::2, ::2], None, np.s_[1::2, 1::2]]):
        if own is not None:
            truth = sky[own].reshape(20, 24, 20, 24).mean(axis=(1, 3))
            deviation = (found.level[c] - truth) / (LEVEL_ERROR * found.rms[c] / np.sqrt(found.n_good[c]))
            assert 0.85 < deviation.std() < 1.15
            assert abs(deviation.mean()) < 0.25


def test_stars_hardly_raise_a_level():
    without, crowded = boxes_of(make_mosaic(stars=0)), boxes_of(make_mosaic(stars=200))
    assert np.median(crowded.level - without.level) < 0.1 * np.median(without.rms)


def test_gaps_saturated_and_missing_pixels_do_not_count():
    mosaic = make_mosaic((48, 48), stars=0, hot=0)
    before = boxes_of(mosaic)
    spoiled = mosaic.copy()
    spoiled[:8, :24:3], spoiled[9:12, 24:] = 0, 15000
    found = boxes_of(spoiled, saturation=15000)
    assert (found.n_good < before.n_good).any()
    np.testing.assert_allclose(found.level, before.level, atol=12.0)
    as_float = np.where(spoiled == 15000, np.inf, spoiled).astype(np.float32)
    as_float[spoiled == 0] = np.nan
    np.testing.assert_allclose(boxes_of(as_float).level, found.level, atol=2.0)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.int16, np.int32, np.float32, np.float64, np.dtype(">u2")])
def test_any_type_of_a_constant_frame(dtype):
    found = boxes_of(np.full((50, 40), 77, dtype))
    np.testing.assert_array_equal(found.level, np.full((3, 3, 2), 77.0, np.float32))
    # A whole number may have been any that rounds to it.
    assert (found.rms < 0.35).all()
    assert (found.rms == 0).all() or dtype not in (np.float32, np.float64)


@pytest.mark.parametrize("dtype", [np.uint16, np.float32])
def test_a_frame_without_light_has_no_level(dtype):
    found = boxes_of(np.zeros((50, 40), dtype))
    assert np.isnan(found.level).all()
    assert np.isnan(found.rms).all()
    assert (found.n_good == 0).all()


def test_whole_numbers_have_levels_between_them():
    rng = np.random.default_rng(1)
    levels = np.linspace(100.0, 101.0, 9)
    frames = [boxes_of(np.rint(rng.normal(level, 0.7, (240, 240))).astype(np.uint16), ("M",), 240) for level in levels]
    np.testing.assert_allclose([frame.level[0, 0, 0] for frame in frames], levels, atol=0.06)


@given(st.data())
def test_any_cut_at_boxes_gives_the_frames_bits(data):
    pattern = data.draw(st.sampled_from(PATTERNS))
    side = data.draw(st.sampled_from([12, 13]))
    mosaic = make_mosaic((100, 90), RGGB, seed=data.draw(st.integers(0, 50)), zeros=60)
    n_y, n_x = (-(-n // side) for n in mosaic.shape)
    cuts = [sorted({0, n, *data.draw(st.lists(st.integers(1, n - 1), max_size=2))}) for n in (n_y, n_x)]
    rows, columns = ([min(c * side, n) for c in cut] for cut, n in zip(cuts, mosaic.shape, strict=True))
    tiles = [
        [
            measure_boxes(
                Tile(mosaic[top:bottom, left:right], (top, left), (100, 90), (slice(top, bottom), slice(left, right))),
                letters_of(pattern),
                box_size=(side, side),
            )
            for left, right in pairwise(columns)
        ]
        for top, bottom in pairwise(rows)
    ]
    for one, other in zip(OwnBoxes.joined(tiles), boxes_of(mosaic, pattern, side), strict=True):
        np.testing.assert_array_equal(one, other)


@given(st.integers(0, 1000))
def test_pixels_of_other_channels_are_irrelevant_and_the_input_is_left_alone(seed):
    mosaic = make_mosaic((60, 50), seed=seed)
    before = mosaic.copy()
    found = boxes_of(mosaic)
    np.testing.assert_array_equal(mosaic, before)
    mosaic[::2, ::2] = 9999
    np.testing.assert_array_equal(boxes_of(mosaic).level[1:], found.level[1:])


@given(st.integers(0, 1000), st.integers(1, 2000))
def test_a_constant_added_moves_the_level_alone(seed, constant):
    mosaic = make_mosaic((50, 50), seed=seed)
    before, after = boxes_of(mosaic), boxes_of(mosaic + np.uint16(constant))
    np.testing.assert_allclose(after.level, before.level + constant, rtol=1e-6)
    np.testing.assert_allclose(after.rms, before.rms, rtol=1e-5, atol=1e-4)
