"""Cells of pixels, blocks' medians and masks of sources, against plain NumPy."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import ndimage

from skylevel.kernels.cells import (
    bin_sums,
    block_level,
    cell_means,
    cells_of_blocks,
    fill_from_nearest,
    grown,
    source_mask,
    spread,
    stretch_rows,
    subtract_cells,
)

pytestmark = pytest.mark.packages

SEEDS = st.integers(0, 2**32 - 1)


def noise(seed, shape=(128, 192)):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


@given(SEEDS, st.floats(0.1, 5))
def test_cell_means_are_means_of_what_is_usable_and_near(seed, clip):
    rest = noise(seed)
    usable = np.random.default_rng(seed + 1).random(rest.shape) < 0.7
    mean, count = cell_means(rest, usable, clip=clip)
    kept = np.where(usable & (np.abs(rest) < np.float32(clip)), rest, np.nan).reshape(128, 6, 32)
    np.testing.assert_array_equal(count, np.isfinite(kept).sum(axis=2))
    expected = np.nansum(kept, axis=2) / np.maximum(count, 1)
    np.testing.assert_allclose(mean, expected, atol=1e-5)


def test_bin_sums_are_sums_over_squares():
    values = noise(1)
    np.testing.assert_allclose(bin_sums(values, 8), values.reshape(16, 8, 24, 8).sum(axis=(1, 3)), atol=1e-4)


def test_levels_and_slopes_of_cells_are_taken_off():
    x = np.arange(192)
    plane = np.broadcast_to(0.01 * x, (64, 192)).astype(np.float32)
    level = plane.reshape(64, 6, 32).mean(axis=2)
    rest = subtract_cells(plane, level, sloping=True)
    np.testing.assert_allclose(rest, 0, atol=1e-5)
    flat = subtract_cells(plane, level, sloping=False)
    np.testing.assert_allclose(flat, (plane.reshape(64, 6, 32) - level[..., None]).reshape(64, 192))


def test_a_blocks_level_withstands_a_source_and_gaps():
    rest, usable = noise(2, (128, 128)) * np.float32(0.01) + 3, np.ones((128, 128), bool)
    rest[10:20, 10:20] = 1000
    usable[64:, :64] = False
    level = block_level(np.where(usable, rest, 0).astype(np.float32), usable, side=64)
    np.testing.assert_allclose(level, 3, atol=0.01)


def test_blocks_of_nothing_are_zero():
    assert not block_level(np.zeros((64, 64), np.float32), np.zeros((64, 64), bool), side=32).any()


def test_gaps_take_the_nearest():
    values, known = np.array([[1, 0, 0, 4]], np.float32), np.array([[True, False, False, True]])
    np.testing.assert_array_equal(fill_from_nearest(values, known), [[1, 1, 4, 4]])


@given(SEEDS)
def test_a_plane_of_blocks_is_a_plane_between_their_centres(seed):
    a, b, c = np.random.default_rng(seed).normal(size=3)
    y, x = np.mgrid[:4, :3]
    at_y, at_x = (np.arange(64) + 0.5) / 16 - 0.5, (np.arange(6) + 0.5) / 2 - 0.5
    expected = a + b * np.clip(at_y, 0, 3)[:, None] + c * np.clip(at_x, 0, 2)
    np.testing.assert_allclose(cells_of_blocks((a + b * y + c * x).astype(np.float32), (64, 6)), expected, atol=1e-5)


def test_rows_are_stretched_linearly():
    blocks = np.array([[0.0], [16.0]], np.float32)
    np.testing.assert_allclose(stretch_rows(blocks, 32)[8:24, 0], np.arange(16) + 0.5)


@given(SEEDS, st.floats(-5, 5), st.floats(0.1, 10))
def test_spread_is_that_of_the_normal_distribution(seed, middle, sigma):
    found = spread(middle + sigma * np.random.default_rng(seed).normal(size=20_000))
    np.testing.assert_allclose(found, (middle, sigma), atol=0.05 * sigma)


@pytest.mark.parametrize("radius", [1.5, 6, 25])
def test_sources_of_every_scale_are_masked_and_the_sky_is_not(radius):
    y, x = np.mgrid[:512, :512]
    rest = noise(3, (512, 512))
    light = 400 / radius * np.exp(-0.5 * ((y - 300) ** 2 + (x - 200) ** 2) / radius**2)
    mask = source_mask(
        rest + light.astype(np.float32), np.ones(rest.shape, bool), noise=1.0, thresholds=(3.5,) * 3, growth=(2, 1, 1)
    )
    assert mask[light > 2].all()
    assert mask[light < 1e-3].mean() < 0.05


def test_nothing_good_masks_nothing():
    rest = noise(4, (64, 64))
    good = np.zeros(rest.shape, bool)
    assert not source_mask(rest, good, noise=1.0, thresholds=(3.5,) * 3, growth=(2, 1, 1)).any()


@given(SEEDS, st.integers(1, 4), st.integers(1, 12), st.integers(1, 12))
def test_growing_is_dilation(seed, n, n_y, n_x):
    mask = np.random.default_rng(seed).random((n_y, n_x)) < 0.1
    np.testing.assert_array_equal(grown(mask, n), ndimage.binary_dilation(mask, np.ones((3, 3)), iterations=n))
    np.testing.assert_array_equal(grown(mask, 0), mask)
