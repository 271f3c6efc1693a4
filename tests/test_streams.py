"""Time streams: their spectrum, how its strength and slope are found, and their smoothing against dense algebra."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import fft, linalg

from skylevel.kernels.streams import (
    LAGS,
    StreamNoise,
    StripePrior,
    block_precision,
    estimate_noise,
    from_time,
    lag_scatter,
    lag_variance,
    nearest_lags,
    pool_scatters,
    row_power,
    slot_power,
    smooth_streams,
    to_time,
)

pytestmark = pytest.mark.packages

WHITE = 0.02


def draw(rng, n_rows, slots, exponent, *, longer=4):
    """A stream (row, slot) of unit power, cut from a longer one."""
    n = longer * n_rows * slots
    root = np.sqrt(slot_power(n, exponent) * n / 2)
    spectrum = root * (rng.normal(size=root.size) + 1j * rng.normal(size=root.size))
    return fft.irfft(spectrum, n)[: n_rows * slots].reshape(n_rows, slots)


def levels(seed, exponent=1.0, common=3e-3, own=1.5e-3, n_rows=2048, white=WHITE / 512**0.5):
    rng = np.random.default_rng(seed)
    shared = common * draw(rng, n_rows, 16, exponent).mean(axis=1)
    rows = [shared + own * draw(rng, n_rows, 16, exponent).mean(axis=1) for _ in range(4)]
    level = np.stack(rows, axis=1) + white * rng.normal(size=(n_rows, 4))
    return level.astype(np.float32), np.full(level.shape, 512, np.float32)


def test_the_spectrum_falls_as_its_exponent_says():
    f, power = fft.rfftfreq(4096), slot_power(4096, 1.2)
    slow = slice(1, 40)
    slope = np.polyfit(np.log(f[slow]), np.log(power[slow]), 1)[0]
    assert slope == pytest.approx(-1.2, abs=0.01)


@pytest.mark.parametrize("exponent", [0.7, 1.0, 1.3])
def test_lag_variances_are_those_of_drawn_streams(exponent):
    rng = np.random.default_rng(1)
    rows = np.stack([draw(rng, 2048, 16, exponent).mean(axis=1) for _ in range(40)])
    found = [np.mean((rows[:, lag:] - rows[:, :-lag]) ** 2) for lag in LAGS]
    np.testing.assert_allclose(found, lag_variance(16, exponent), rtol=0.08)


def test_row_power_adds_up_to_what_row_means_vary():
    power = row_power(1024, 16, 1.0)
    rows = slot_power(1024 * 16, 1.0) * np.r_[1, np.ones(512 * 16)]
    response = np.sinc(16 * fft.rfftfreq(1024 * 16)) / np.sinc(fft.rfftfreq(1024 * 16))
    expected = (rows * response**2)[1:].sum() * 2 / (1024 * 16)
    assert power[1:].sum() * 2 / 1024 == pytest.approx(expected, rel=0.01)


def test_block_precision_is_the_inverse_of_a_covariance():
    precision = block_precision(32, 256, 1.0)
    covariance = linalg.inv(precision)
    assert np.all(np.diff(covariance[0]) < 0)
    np.testing.assert_allclose(np.diag(covariance), covariance[0, 0], rtol=1e-6)


@pytest.mark.parametrize("exponent", [0.8, 1.0, 1.2])
def test_strength_and_slope_are_found(exponent):
    found = []
    for seed in range(6):
        scatter = lag_scatter(*levels(seed, exponent), white_noise=WHITE, enough=300)
        found.append(estimate_noise(scatter, slots=16, white_noise=WHITE, prior=StripePrior(1.0, 0.3, 2.0)))
    mean = np.mean(found, axis=0)
    assert mean[2] == pytest.approx(exponent, abs=0.12)
    for value, truth in ((mean[0], 3e-3**2), (mean[1], 1.5e-3**2)):
        assert 0.5 < value / truth < 2


def test_white_noise_is_taken_for_none():
    level, count = levels(3, common=0, own=0)
    scatter = lag_scatter(level, count, white_noise=WHITE, enough=300)
    noise = estimate_noise(scatter, slots=16, white_noise=WHITE, prior=StripePrior(1.0, 0.2, 2.0))
    assert noise.common < 1e-6 * WHITE**2
    assert noise.own < 1e-6 * WHITE**2


def test_rows_with_few_pixels_are_not_compared():
    level, count = levels(4)
    count[:] = 10
    scatter = lag_scatter(level, count, white_noise=WHITE, enough=300)
    assert np.isnan(scatter.common).all()
    noise = estimate_noise(scatter, slots=16, white_noise=WHITE, prior=StripePrior(1.1, 0.2, 2.0))
    assert noise == (noise.common, noise.common, 1.1)


def test_one_amplifier_has_all_for_its_own_stream():
    level, count = levels(5)
    scatter = lag_scatter(level[:, :1], count[:, :1], white_noise=WHITE, enough=300)
    assert np.all(scatter.common > 0)
    np.testing.assert_array_equal(scatter.own, 0)


def test_pooled_scatter_is_the_mean_of_those_seen():
    a, b = (lag_scatter(*levels(seed), white_noise=WHITE, enough=300) for seed in (1, 2))
    pooled = pool_scatters([a, nearest_lags(b)])
    np.testing.assert_allclose(pooled.common[:2], (a.common[:2] + b.common[:2]) / 2)
    np.testing.assert_allclose(pooled.common[2:], a.common[2:])
    assert pooled.error[0] < a.error[0]


@given(st.integers(1, 4), st.integers(1, 6), st.integers(1, 5), st.integers(0, 2**32 - 1))
def test_cells_in_time_come_back(n_amplifiers, n_rows, slots, seed):
    rng = np.random.default_rng(seed)
    directions = tuple(bool(d) for d in rng.random(n_amplifiers) < 0.5)
    cells = rng.random((n_rows, n_amplifiers * slots), np.float32)
    np.testing.assert_array_equal(from_time(to_time(cells, directions), cells.shape, directions), cells)


def test_an_amplifier_read_from_right_to_left_runs_backwards_in_time():
    cells = np.arange(8, dtype=np.float32).reshape(2, 4)
    np.testing.assert_array_equal(to_time(cells, (False, True)), [[0, 1, 4, 5], [3, 2, 7, 6]])


def dense_streams(cells, weights, noise, directions):
    """The same by dense algebra over the padded streams."""
    z, w = (to_time(a, directions).astype(float) for a in (cells, weights))
    n = z.shape[1]
    length = fft.next_fast_len(n + n // 4 + 1, real=True)
    unit = linalg.toeplitz(fft.irfft(slot_power(length, noise.exponent), length)[:n])
    count = len(directions)
    covariance = np.kron(noise.common * np.ones((count, count)) + noise.own * np.eye(count), unit)
    precision = linalg.inv(covariance) + np.diag(w.ravel())
    return from_time(linalg.solve(precision, (w * z).ravel()).reshape(z.shape), cells.shape, directions)


def test_smoothing_is_that_of_dense_algebra():
    rng, directions = np.random.default_rng(7), (False, True)
    noise = StreamNoise(2.0, 0.5, 1.1)
    cells = rng.normal(size=(20, 8)).astype(np.float32)
    weights = rng.uniform(0.2, 2, cells.shape).astype(np.float32)
    weights[5:8, :4] = 0
    found = smooth_streams(cells, weights, noise=noise, right_to_left=directions, n_steps=150)
    np.testing.assert_allclose(found, dense_streams(cells, weights, noise, directions), atol=2e-3)


def test_values_without_weight_are_irrelevant():
    rng = np.random.default_rng(9)
    cells = rng.normal(size=(16, 8)).astype(np.float32)
    weights = (rng.random(cells.shape) < 0.6).astype(np.float32)
    noise = StreamNoise(1.0, 0.3, 1.0)
    settings = {"noise": noise, "right_to_left": (False, False), "n_steps": 5}
    other = np.where(weights > 0, cells, np.float32(1e6))
    np.testing.assert_array_equal(
        smooth_streams(cells, weights, **settings), smooth_streams(other, weights, **settings)
    )
