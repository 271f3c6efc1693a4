"""Level of each detector row, against NumPy medians and the notebook's own loops."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from reference import notebook_rows, row_levels_given_mask
from scenes import KINDS, make_image, make_scene
from skylevel.errors import ShapeError
from skylevel.kernels.stripes import row_level

POSITIVE = st.floats(0.0078125, 1000.0, width=32)
SHAPES = hnp.array_shapes(min_dims=2, max_dims=2, min_side=1, max_side=12)


@st.composite
def images_and_masks(draw, elements=POSITIVE):
    image = draw(hnp.arrays(np.float32, SHAPES, elements=elements))
    return image, draw(hnp.arrays(bool, image.shape))


ANY_VALUES = st.floats(-100, 100, width=32) | st.just(np.float32("nan"))


@pytest.mark.parametrize("kind", KINDS)
def test_levels_equal_numpy_medians_on_a_scene(kind):
    scene = make_scene(kind, 512)
    mask = scene.sources > 0.04
    expected, _ = row_levels_given_mask(scene.image, mask)
    levels = row_level(scene.image, mask, positive_only=True)
    assert levels.dtype == np.float32
    assert np.isnan(levels).sum() == 8
    np.testing.assert_array_equal(levels, expected)


def test_levels_equal_the_notebooks_loops():
    image = make_image((61, 83), sky=0.01, border=2).image
    mask = np.random.default_rng(1).random(image.shape) < 0.3
    levels = row_level(image, mask, positive_only=True)
    levelled = np.where(np.isnan(levels)[:, None], image, image - levels[:, None])
    np.testing.assert_array_equal(levelled, notebook_rows(image, mask.astype(int)))


def test_levels_find_the_stripes():
    scene = make_image((200, 2000), sources=0, gradient=0.0, stripes=0.05)
    found = row_level(scene.image, np.zeros(scene.image.shape, bool), positive_only=True)
    np.testing.assert_allclose(found - 0.5, scene.stripes[:, 0], atol=5 * 1.25 * 0.02 / np.sqrt(2000))


def test_only_positive_pixels_enter_under_the_notebooks_rule():
    image = np.array([[-5, -1, 0, 2, 4], [-3, -2, -1, 0, -9]], np.float32)
    mask = np.zeros(image.shape, bool)
    np.testing.assert_array_equal(row_level(image, mask, positive_only=True), np.float32([3, np.nan]))
    np.testing.assert_array_equal(row_level(image, mask, positive_only=False), np.float32([0, -2]))


@pytest.mark.parametrize("positive_only", [True, False])
def test_a_row_without_pixels_has_no_level(positive_only):
    image = np.ones((4, 6), np.float32)
    mask = np.zeros(image.shape, bool)
    mask[1] = True
    image[2] = np.nan
    levels = row_level(image, mask, positive_only=positive_only)
    np.testing.assert_array_equal(levels, np.float32([1, np.nan, np.nan, 1]))


@pytest.mark.parametrize("shape", [(1, 1), (1, 7), (1, 8), (9, 1)])
def test_frames_of_one_row_or_column(shape):
    image = np.random.default_rng(3).random(shape, np.float32) + 1
    mask = np.zeros(shape, bool)
    levels = row_level(image, mask, positive_only=True)
    assert levels.shape == shape[:1]
    np.testing.assert_array_equal(levels, np.median(image, axis=1))


def test_a_mask_of_another_shape_is_refused():
    with pytest.raises(ShapeError):
        row_level(np.ones((4, 6), np.float32), np.zeros((6, 4), bool), positive_only=True)


@given(images_and_masks(ANY_VALUES), st.booleans())
def test_levels_equal_numpy_medians(image_and_mask, positive_only):
    image, mask = image_and_mask
    expected, _ = row_levels_given_mask(image, mask, positive_only=positive_only)
    np.testing.assert_array_equal(row_level(image, mask, positive_only=positive_only), expected)


@given(images_and_masks(), st.integers(0, 2**32 - 1))
def test_masked_values_are_irrelevant(image_and_mask, seed):
    image, mask = image_and_mask
    noise = np.random.default_rng(seed).choice(np.float32([-1e9, 0, 1e9, np.nan, np.inf]), image.shape)
    np.testing.assert_array_equal(
        row_level(np.where(mask, noise, image), mask, positive_only=True),
        row_level(image, mask, positive_only=True),
    )


@given(images_and_masks(), st.floats(0, 1000, width=32))
def test_a_constant_added_moves_the_levels_by_it(image_and_mask, constant):
    image, mask = image_and_mask
    moved = row_level(image + np.float32(constant), mask, positive_only=True)
    expected = row_level(image, mask, positive_only=True) + np.float32(constant)
    np.testing.assert_allclose(moved, expected, rtol=3e-7)


@given(images_and_masks(), st.integers(0, 2**32 - 1))
def test_the_order_of_a_rows_pixels_is_irrelevant(image_and_mask, seed):
    image, mask = image_and_mask
    order = np.random.default_rng(seed).permutation(image.shape[1])
    np.testing.assert_array_equal(
        row_level(image[:, order], mask[:, order], positive_only=True), row_level(image, mask, positive_only=True)
    )


@given(images_and_masks())
def test_a_level_is_its_own_rows_alone(image_and_mask):
    image, mask = image_and_mask
    together = row_level(image, mask, positive_only=True)
    alone = [row_level(image[[y]], mask[[y]], positive_only=True)[0] for y in range(len(image))]
    np.testing.assert_array_equal(together, alone)


@given(images_and_masks(ANY_VALUES), st.booleans())
def test_inputs_are_not_modified(image_and_mask, positive_only):
    image, mask = image_and_mask
    before = image.copy(), mask.copy()
    row_level(image, mask, positive_only=positive_only)
    np.testing.assert_array_equal(image, before[0])
    np.testing.assert_array_equal(mask, before[1])
