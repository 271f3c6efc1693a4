"""Wings of large sources, fitted with the sky under them."""

import numpy as np
import pytest

from skylevel.kernels.night_sky import NEAR_LIGHT, Fitting, Grid, fit_surfaces
from skylevel.kernels.wings import Wings

pytestmark = pytest.mark.packages

GRID = Grid((2000, 3000), (48, 48))
NOISE = 0.3


def axes():
    return GRID.centres(0)[:, None], 1.5 * GRID.centres(1)[None, :]


def sky():
    v, u = axes()
    level = 1000 * (1 + 0.1 * u - 0.08 * v + 0.03 * np.sin(2 * u + v)) / (1 + 0.1 * (u**2 + v**2)) ** 2
    return np.stack([level, 0.6 * level])


def disc(peak, scale=0.12, y=0.1, x=-0.2, turned=0.5, flat=0.6):
    """An inclined disc, whose light falls by e within `scale` half frame heights along its longer axis."""
    v, u = axes()[0] - y, axes()[1] - x
    along, across = u * np.cos(turned) + v * np.sin(turned), v * np.cos(turned) - u * np.sin(turned)
    light = peak * np.exp(-np.hypot(along, across / flat) / scale)
    return np.stack([light, 0.5 * light])


def observed(light, seed=0):
    level = sky() + light
    return level + np.random.default_rng(seed).normal(scale=NOISE, size=level.shape), np.full(level.shape, NOISE)


def rms(values):
    return float(np.sqrt(np.mean(np.square(values))))


def error_of(light, *, with_wings):
    level, error = observed(light)
    wings = Wings.around(level - sky(), error) if with_wings else None
    return rms(fit_surfaces(level, error, GRID, Fitting(), NEAR_LIGHT, wings=wings).surface - sky())


@pytest.mark.parametrize(
    "shape", [{}, {"scale": 0.2, "flat": 0.9}, {"scale": 0.08, "turned": -1.0}, {"y": 0.6, "x": 1.1}]
)
def test_a_surface_does_not_take_the_wings_for_sky(shape):
    light = disc(500, **shape)
    assert error_of(light, with_wings=True) < 0.5
    assert error_of(light, with_wings=True) < 0.5 * error_of(light, with_wings=False)


def test_two_sources_have_wings_of_their_own():
    light = disc(500, y=-0.4, x=-0.7) + disc(800, y=0.4, x=0.8, turned=-0.7, scale=0.1)
    assert error_of(light, with_wings=True) < 0.3


def test_the_core_is_where_it_is_bright_alone():
    light = disc(500)
    level, error = observed(light)
    core = Wings.around(level - sky(), error).core
    assert light[0][core].min() > 10 * NOISE
    assert light[0][~core].max() < 200 * NOISE


@pytest.mark.parametrize("light", [np.zeros((2, 42, 63)), disc(5.0)])
def test_without_a_bright_source_there_are_none(light):
    level, error = observed(light)
    assert Wings.around(level - sky(), error) is None


def test_boxes_without_a_level_are_no_source():
    level, error = observed(disc(500))
    level[:, 5:15, 40:55], error[:, 5:15, 40:55] = np.nan, np.inf
    wings = Wings.around(level - sky(), error)
    assert not wings.core[5:15, 40:55].any()
    assert rms(fit_surfaces(level, error, GRID, Fitting(), NEAR_LIGHT, wings=wings).surface - sky()) < 0.5


def test_surroundings_are_beside_the_core():
    level, error = observed(disc(500))
    wings = Wings.around(level - sky(), error)
    beside = wings.surroundings()
    assert not (beside & wings.core).any()
    assert 1.5 * wings.core.sum() < beside.sum() < 4 * wings.core.sum()
