"""Which columns amplifiers read, in which direction, and images put on their grid."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from skylevel.errors import ShapeError
from skylevel.kernels.amplifiers import CELL_WIDTH, Grid, amplifier_layout


def test_a_full_frame_has_four_amplifiers_that_read_in_turn():
    layout = amplifier_layout(2048, n_outputs=4, fast_axis=-1, slow_axis=2)
    assert layout.right_to_left == (False, True, False, True)
    assert layout.edges(2048) == [0, 512, 1024, 1536, 2048]


def test_turning_time_around_turns_every_amplifier():
    forwards = amplifier_layout(2048, slow_axis=2).right_to_left
    assert amplifier_layout(2048, slow_axis=-2).right_to_left == tuple(not d for d in forwards)


@pytest.mark.parametrize(("fast", "slow", "backwards"), [(1, 2, False), (-1, 2, True), (1, -2, True), (-1, -2, False)])
def test_one_output_reads_as_the_axes_say(fast, slow, backwards):
    layout = amplifier_layout(160, n_outputs=1, fast_axis=fast, slow_axis=slow)
    assert layout.right_to_left == (backwards,)
    assert layout.edges(160) == [0, 160]


def test_a_crop_begins_within_an_amplifier():
    layout = amplifier_layout(1100, n_outputs=4, first_column=300)
    assert layout.edges(1100) == [0, 212, 724, 1100]
    assert layout.right_to_left == (False, True, False)


@pytest.mark.parametrize(("n_x", "n_outputs"), [(0, 4), (100, 0)])
def test_no_column_or_no_output_is_refused(n_x, n_outputs):
    with pytest.raises(ShapeError):
        amplifier_layout(n_x, n_outputs=n_outputs)


def test_a_full_frame_is_not_copied():
    image = np.zeros((128, 2048), np.float32)
    assert Grid(image.shape, amplifier_layout(2048)).place(image, fill=0) is image


@given(
    st.integers(1, 150), st.integers(1, 2048), st.integers(0, 2047), st.sampled_from([1, 4]), st.integers(0, 2**32 - 1)
)
def test_every_pixel_stands_once_on_the_grid_at_its_own_x(n_y, n_x, first, n_outputs, seed):
    first = min(first, 2048 - n_x)
    image = np.random.default_rng(seed).random((n_y, n_x), np.float32)
    grid = Grid(image.shape, amplifier_layout(n_x, n_outputs=n_outputs, first_column=first))
    placed = grid.place(image, fill=np.nan)
    assert placed.shape == (grid.rows, grid.columns)
    assert grid.columns % (2 * CELL_WIDTH) == 0
    there = np.isfinite(placed[0])
    np.testing.assert_array_equal(grid.x()[there], np.arange(n_x))
    np.testing.assert_array_equal(placed[:n_y, there], image)
    assert np.isnan(placed[n_y:]).all()
