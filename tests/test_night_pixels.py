"""A frame's pixels levelled by surfaces: subtraction, division, and the same bits for any tile."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from scenes import RGGB, XTRANS, make_mosaic
from skylevel.errors import NoBackgroundError, ShapeError
from skylevel.kernels.night_pixels import Levelling, divisor_of, level_pixels
from skylevel.kernels.night_sky import Grid, Surface, mesh_of
from skylevel.kernels.pattern import ColorPattern

UNITY = [1.0, 1.0, 1.0]


def letters_of(pattern):
    return ColorPattern.of(pattern)


def levelled(mosaic, pattern, table, *, shape, origin=(0, 0), divisor=None, norms=UNITY, pedestal=0.0):
    how = Levelling(table, divisor, norms, pedestal)
    return level_pixels(mosaic, letters_of(pattern), how, origin=origin, shape=shape)


def tables(seed=0, level=1000.0):
    """Smooth backgrounds of three channels."""
    table = np.random.default_rng(seed).normal(scale=10.0, size=(3, 5, 5))
    table[:, 0, 0] = level * np.array([0.6, 1.0, 0.5])
    return table.astype(np.float32)


def surfaces_at_own_pixels(table, pattern, shape):
    letters = np.tile(letters_of(pattern).letters, [-(-n // len(pattern)) for n in shape])[: shape[0], : shape[1]]
    values = [Surface(one, np.arange(shape[1]), shape=shape).at(np.arange(shape[0])) for one in table]
    return np.select([letters == channel for channel in "RGB"], values)


@pytest.mark.parametrize("pattern", [RGGB, XTRANS], ids=["Bayer", "X-Trans"])
@pytest.mark.parametrize("shape", [(100, 130), (97, 131), (1, 1), (5, 3)])
def test_each_channels_background_is_subtracted_at_its_own_pixels(pattern, shape):
    mosaic, table = make_mosaic(shape, stars=0, hot=0), tables()
    found = levelled(mosaic, pattern, table, shape=shape)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, mosaic - surfaces_at_own_pixels(table, pattern, shape), atol=1e-3)


def test_norms_and_the_pedestal_come_last():
    shape, table = (60, 70), tables()
    mosaic = make_mosaic(shape, stars=0)
    plain = levelled(mosaic, RGGB, table, shape=shape)
    found = levelled(mosaic, RGGB, table, norms=[2.0, 1.0, 3.0], pedestal=50.0, shape=shape)
    np.testing.assert_allclose(found[::2, ::2], 2 * plain[::2, ::2] + 50, rtol=1e-5, atol=1e-3)
    np.testing.assert_allclose(found[1::2, 1::2], 3 * plain[1::2, 1::2] + 50, rtol=1e-5, atol=1e-3)


def test_division_makes_the_same_star_as_bright_anywhere():
    grid, table = Grid((96, 120), (24, 24)), tables()
    background = surfaces_at_own_pixels(table, RGGB, grid.shape)
    divisor = divisor_of(table, grid, black_level=100.0)
    share = surfaces_at_own_pixels(divisor, RGGB, grid.shape)
    assert [mesh_of(one, grid).max() for one in divisor] == pytest.approx([1.0, 1.0, 1.0])
    found = levelled(background + 500 * share, RGGB, table, divisor=divisor, shape=grid.shape)
    np.testing.assert_allclose(found, 500.0, atol=0.01)


def test_a_divisor_is_nowhere_near_nothing():
    dark = np.zeros((3, 1, 1), np.float32)
    found = levelled(np.full((6, 6), 7.0), RGGB, dark, divisor=dark, shape=(6, 6))
    np.testing.assert_allclose(found, 140.0)


@given(st.data())
def test_any_tile_has_the_frames_bits(data):
    pattern, shape = data.draw(st.sampled_from([RGGB, XTRANS])), (90, 101)
    mosaic, table, divisor = make_mosaic(shape), tables(), tables(1, 1.0) / 100 + tables(1, 1.0)
    settings = {"divisor": divisor, "norms": [1.3, 1.0, 1.2], "pedestal": 5.0, "shape": shape}
    whole = levelled(mosaic, pattern, table, **settings)
    (top, bottom), (left, right) = (
        sorted(data.draw(st.lists(st.integers(0, n), min_size=2, max_size=2))) for n in shape
    )
    tile = levelled(mosaic[top:bottom, left:right], pattern, table, origin=(top, left), **settings)
    np.testing.assert_array_equal(tile, whole[top:bottom, left:right])


def test_inputs_are_not_modified():
    mosaic, table = make_mosaic((40, 40)), tables()
    before = mosaic.copy(), table.copy()
    levelled(mosaic, RGGB, table, divisor=table, shape=(40, 40))
    np.testing.assert_array_equal(mosaic, before[0])
    np.testing.assert_array_equal(table, before[1])


def test_what_does_not_belong_together_is_refused():
    mosaic, table = make_mosaic((40, 40)), tables()
    for wrong in ({"norms": [1.0]}, {"divisor": table[:2]}):
        with pytest.raises(ShapeError):
            levelled(mosaic, RGGB, table, shape=(40, 40), **wrong)
    with pytest.raises(ShapeError):
        levelled(mosaic, RGGB, table[:2], shape=(40, 40))
    with pytest.raises(NoBackgroundError, match="black level"):
        divisor_of(table, Grid((40, 40), (10, 10)), black_level=5000.0)
