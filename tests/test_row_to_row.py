"""Levels where sky cannot be told from slow stripes: steps at the borders of amplifiers, and octaves along y."""

import numpy as np
import pytest

from skylevel.kernels.amplifiers import Grid, amplifier_layout
from skylevel.kernels.row_to_row import Steps, border_steps, octave_levels, step_levels
from skylevel.kernels.streams import StreamNoise
from test_streams import levels

pytestmark = pytest.mark.packages

WHITE = 0.02


def grid_of(n_rows, n_columns, n_outputs):
    return Grid((n_rows, n_columns), amplifier_layout(n_columns, n_outputs=n_outputs))


FULL = grid_of(2048, 2048, 4)
ONE = grid_of(512, 512, 1)
NOISE = StreamNoise(9e-6, 4e-6, 1.0)


def light(shape, seed, rms):
    """Clouds whose power falls with the cube of the frequency, by cells of 32 columns."""
    rng = np.random.default_rng(seed)
    f = np.hypot(np.fft.fftfreq(shape[0])[:, None], np.fft.rfftfreq(shape[1]) / 32)
    f[0, 0] = np.inf
    clouds = np.fft.irfft2(np.fft.rfft2(rng.normal(size=shape)) * f**-1.5, s=shape)
    return (rms * clouds / clouds.std()).astype(np.float32)


def left(taken, truth):
    """What is left of levels, in parts of them, constants of amplifiers aside."""
    rest = truth - taken
    return (rest - rest.mean(axis=0)).std() / (truth - truth.mean(axis=0)).std()


class TestSteps:
    def frame(self, rows=512, step=0.01):
        """White noise on a slope that goes on across borders where levels rise by a step; amplifiers of 512 columns."""
        rng = np.random.default_rng(4)
        x = np.arange(2048)
        image = 0.001 * x + step * (x // 512) + WHITE * rng.normal(size=(rows, 2048))
        return image.astype(np.float32), np.ones(image.shape, bool), grid_of(rows, 2048, 4)

    def test_a_step_is_found_and_a_slope_is_none(self):
        image, usable, grid = self.frame()
        value, weight = border_steps(image, usable, grid, white_noise=WHITE)
        assert value.shape == weight.shape == (16, 3)
        error = 1 / np.sqrt(weight)
        assert abs(np.mean((value - 0.01) / error)) < 0.5
        assert 0.5 < np.std((value - 0.01) / error) < 1.5
        assert error.mean() < 0.01

    def test_light_beside_a_border_makes_it_tell_less(self):
        image, usable, grid = self.frame()
        y, x = np.mgrid[:512, :2048]
        image[:, :700] += (0.3 * np.sin(x / 9 + y / 50))[:, :700].astype(np.float32)
        weight = border_steps(image, usable, grid, white_noise=WHITE).weight
        assert weight[:, 0].max() < 0.25 * weight[:, 2].min()

    def test_one_without_pixels_tells_nothing(self):
        image, usable, grid = self.frame()
        usable[:, 510] = False
        usable[64:96, 1000:1100] = False
        usable[:, 1536 - 100 : 1536 + 100] = False
        value, weight = border_steps(image, usable, grid, white_noise=WHITE)
        assert not weight[:, 0].any()
        assert weight[2, 1] == value[2, 1] == 0
        assert np.count_nonzero(weight[:, 1]) == 15
        assert not weight[:, 2].any()

    def test_a_frame_without_noise(self):
        image, usable, grid = self.frame()
        value, weight = border_steps(np.zeros_like(image), usable, grid, white_noise=1e-12)
        assert not value.any()
        assert np.isfinite(weight).all()

    @pytest.mark.parametrize("grid", [ONE, Grid((128, 160), amplifier_layout(160, n_outputs=64))])
    def test_one_amplifier_and_narrow_ones_have_none(self, grid):
        image = np.ones((grid.rows, grid.columns), np.float32)
        steps = border_steps(image, image > 0, grid, white_noise=WHITE)
        assert not steps.weight.any()
        np.testing.assert_array_equal(step_levels(steps, NOISE, grid), np.zeros((grid.rows, grid.amplifiers.count)))


class TestLevelsOfSteps:
    def test_slow_levels_of_amplifiers_are_found_from_them(self):
        level, _ = levels(12, white=0)
        own = level - level.mean(axis=1, keepdims=True)
        rng = np.random.default_rng(1)
        value = np.diff(own, axis=1).reshape(64, 32, 3).mean(axis=1) + 5e-4 * rng.normal(size=(64, 3))
        found = step_levels(Steps(value, np.full(value.shape, 5e-4**-2)), StreamNoise(9e-6, 2e-6, 1.0), FULL)
        assert found.dtype == np.float32
        np.testing.assert_allclose(found.sum(axis=1), 0, atol=1e-8)
        slow = own.reshape(64, 32, 4).mean(axis=1)
        assert np.std(found.reshape(64, 32, 4).mean(axis=1) - slow) < 0.3 * slow.std()

    def test_what_is_uncertain_changes_nothing(self):
        value = np.full((64, 3), 0.01)
        found = step_levels(Steps(value, np.full(value.shape, 1e-3)), NOISE, FULL)
        assert np.abs(found).max() < 1e-4

    def test_without_stripes_there_are_none(self):
        steps = Steps(np.full((64, 3), 0.01), np.full((64, 3), 1e9))
        assert not step_levels(steps, StreamNoise(0.0, 0.0, 1.0), FULL).any()


class TestOctaves:
    def test_quick_stripes_are_taken_and_slow_light_is_left(self):
        level, _ = levels(10, exponent=0.3, common=3e-3, own=1e-3, white=0)
        slow = 0.3 * np.sin(np.arange(2048) / 300)[:, None].astype(np.float32)
        cells = np.repeat(level, 16, axis=1) + slow
        noise = StreamNoise(9e-6, 1e-6, 0.3)
        taken = octave_levels(cells, np.ones_like(cells), noise, FULL, white=1e-9)
        assert taken.dtype == np.float32
        assert left(taken, level) < 0.5

    def test_calm_cells_count_more(self):
        level, _ = levels(11, white=0)
        cells = np.repeat(level, 16, axis=1) + light((2048, 64), 2, 0.01)
        noise = StreamNoise(9e-6, 2e-6, 1.0)
        shared = level.mean(axis=1)

        def error():
            taken = octave_levels(cells, np.ones_like(cells), noise, FULL, white=1e-9)
            return left(taken.mean(axis=1), shared)

        even = error()
        # A quarter of the frame is full of clouds.
        cells[:, 24:40] += light((2048, 16), 3, 1.0)
        assert error() < 1.2 * even

    def test_without_stripes_nothing_is_taken(self):
        cells = light((2048, 64), 4, 0.1)
        none = StreamNoise(0.0, 0.0, 1.0)
        assert not octave_levels(cells, np.ones_like(cells), none, FULL, white=1e-6).any()

    def test_what_is_level_has_none(self):
        cells = np.ones((512, 16), np.float32)
        taken = octave_levels(cells, np.zeros_like(cells), NOISE, ONE, white=1e-6)
        assert np.abs(taken).max() < 1e-6
