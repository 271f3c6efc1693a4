"""Where splines for large sources stand."""

import numpy as np
import pytest

from skylevel.kernels.amplifiers import Grid, amplifier_layout
from skylevel.kernels.large_sources import LargeSources, find_large_sources, spline_rms
from skylevel.kernels.sky import CoarseCells, Priors, SkyPrior, coarse_model
from skylevel.kernels.streams import StreamNoise

NOISE = StreamNoise(4e-6, 1e-6, 1.0)


@pytest.fixture(scope="module")
def model():
    return coarse_model(Grid((1024, 1024), amplifier_layout(1024, n_outputs=1)), 3, 128)


def find(model, cells, weights=None):
    weights = np.full(cells.shape, 16 * 64 / 0.02**2) if weights is None else weights
    priors = Priors(NOISE, SkyPrior(), 0.5)
    return find_large_sources(model, CoarseCells(cells, weights), priors, sought=LargeSources(2.5, 128, 6), rounds=4)


def flat(model, seed=1):
    return 0.5 + np.random.default_rng(seed).normal(size=model.grid.coarse_shape) * 0.02 / 32


def galaxy(model, radius=100.0):
    n_y, n_x = model.grid.coarse_shape
    y, x = (np.arange(n_y)[:, None] + 0.5) * 16 - 500, (np.arange(n_x) + 0.5) * 64 - 600
    return np.exp(-np.hypot(y, x) / radius)


def test_a_large_galaxy_is_covered_and_the_corners_are_not(model):
    nodes = find(model, flat(model) + galaxy(model))
    assert nodes[3:7, 4:8].all()
    assert not nodes[[0, 0, -1, -1], [0, -1, 0, -1]].any()


def test_a_flat_sky_holds_none(model):
    assert not find(model, flat(model)).any()


def test_a_stripe_is_no_source(model):
    cells = flat(model)
    cells[20:36] += 0.01
    assert not find(model, cells).any()


def test_a_frame_of_few_blocks_holds_none():
    small = coarse_model(Grid((128, 256), amplifier_layout(256, n_outputs=1)), 3, 128)
    assert not find(small, flat(small) + galaxy(small)[: small.grid.coarse_shape[0]]).any()


def test_splines_may_rise_as_high_as_they_were_found():
    nodes = np.zeros((8, 8), bool)
    nodes[2:6, 2:6] = True
    rms = spline_rms(nodes, np.where(np.arange(16) == 5, 3.0, -1.0), noise=0.02)
    assert rms.argmax() == 5
    assert rms.min() >= 0.01 * 0.02
