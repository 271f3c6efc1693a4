"""Sky, large sources and slow streams, solved together on coarse cells."""

import numpy as np
import pytest
from numpy.polynomial import legendre

from skylevel.kernels.amplifiers import Grid, amplifier_layout
from skylevel.kernels.sky import (
    CoarseCells,
    Priors,
    SkyInformation,
    SkyPrior,
    Splines,
    coarse_model,
    shape_posterior,
    sky_posterior,
    sky_terms,
    solve_coarse,
)
from skylevel.kernels.streams import StreamNoise

pytestmark = pytest.mark.packages

QUIET, LOUD = StreamNoise(1e-12, 1e-12, 1.0), StreamNoise(4e-6, 1e-6, 1.0)


def model(n_y=512, n_x=2048, degree=3):
    return coarse_model(Grid((n_y, n_x), amplifier_layout(n_x)), degree, 128)


def test_terms_begin_with_the_constant():
    assert sky_terms(2) == ((0, 0), (1, 0), (0, 1), (2, 0), (1, 1), (0, 2))


def test_a_sky_is_its_legendre_polynomials():
    m, rng = model(), np.random.default_rng(1)
    coefficients = rng.normal(size=len(m.terms))
    u, v = (np.arange(512) + 0.5) / 256 - 1, (np.arange(64) + 0.5) / 32 - 1
    expected = sum(
        c * np.outer(legendre.Legendre.basis(j)(u), legendre.Legendre.basis(i)(v))
        for c, (i, j) in zip(coefficients, m.terms, strict=True)
    )
    # Cells average over 32 pixels, so curved terms differ a little from their middle.
    np.testing.assert_allclose(m.sky(coefficients), expected, atol=2e-3)


def test_splines_of_one_height_are_flat():
    m = model()
    np.testing.assert_allclose(m.sources(np.ones(m.node_shape)), 1, atol=1e-5)


def test_sky_and_large_sources_are_found_where_there_are_no_stripes():
    m, rng = model(), np.random.default_rng(2)
    true_sky = np.r_[0.5, 0.005 * rng.normal(size=len(m.terms) - 1)]
    nodes = np.zeros(m.node_shape, bool)
    nodes[2:5, 6:10] = True
    heights = rng.uniform(0.1, 0.5, int(nodes.sum()))
    everywhere = np.zeros(m.node_shape)
    everywhere[nodes] = heights
    light = m.sky(true_sky) + m.sources(everywhere)
    cells = light.reshape(32, 16, 32, 2).mean(axis=(1, 3)).astype(float)
    weights = np.full(cells.shape, 1e8)
    splines = Splines(nodes, np.full(heights.size, 1.0))
    fit = solve_coarse(m, CoarseCells(cells, weights), Priors(QUIET, SkyPrior(), 0.5), splines=splines)
    np.testing.assert_allclose(fit.sky, true_sky, atol=2e-5)
    np.testing.assert_allclose(fit.nodes, heights, atol=2e-3)
    np.testing.assert_allclose(fit.fit, cells, atol=1e-4)
    np.testing.assert_allclose(fit.slow, 0, atol=1e-4)


def test_slow_stripes_are_told_from_a_sky_along_x():
    m, rng = model(), np.random.default_rng(3)
    slow = np.cumsum(rng.normal(size=(32, 4)), axis=0) * 1e-3
    sky = m.sky(np.r_[0.5, 0.01, np.zeros(len(m.terms) - 2)])
    cells = sky.reshape(32, 16, 32, 2).mean(axis=(1, 3)) + np.repeat(slow, 8, axis=1)
    fit = solve_coarse(m, CoarseCells(cells, np.full(cells.shape, 1e8)), Priors(LOUD, SkyPrior(), 0.5))
    assert fit.sky[m.terms.index((1, 0))] == pytest.approx(0.01, abs=5e-4)
    rest = fit.slow - slow
    assert (rest - rest.mean()).std() < 0.5 * slow.std()


def test_a_known_shape_is_kept():
    m = model()
    shape = np.linspace(-0.01, 0.01, len(m.terms) - 1)
    cells = np.full((32, 32), 0.7)
    fit = solve_coarse(m, CoarseCells(cells, np.full(cells.shape, 1e6)), Priors(LOUD, SkyPrior(), 0.5), shape=shape)
    np.testing.assert_array_equal(fit.sky[1:], shape)
    assert fit.sky[0] == pytest.approx(0.7, abs=0.02)


def test_what_changes_along_x_tells_how_much_may_be_sky_along_y():
    """Of two exposures with the same vertical gradient, the one that is steep along x keeps more of it as sky."""
    terms = sky_terms(3)
    along_y = terms.index((0, 1))
    found = []
    for slope in (0.0, 0.02):
        matrix = np.diag([1e8 if i or not j else 1 / 0.004**2 for i, j in terms])
        said = np.zeros(len(terms))
        said[0], said[terms.index((1, 0))], said[along_y] = 0.5, slope, 0.004
        found.append(sky_posterior(SkyInformation(matrix, matrix @ said), terms, SkyPrior(), 0.5)[along_y])
    assert found[0] < 0.6 * found[1]


def test_the_mean_of_shapes_is_that_of_coefficients():
    terms = sky_terms(3)
    matrix = np.diag(np.linspace(1e3, 1e6, len(terms)))
    said = SkyInformation(matrix, matrix @ np.linspace(0.5, -0.01, len(terms)))
    mean, covariance = shape_posterior(said, terms, SkyPrior(), 0.5)
    np.testing.assert_array_equal(mean, sky_posterior(said, terms, SkyPrior(), 0.5))
    assert np.all(np.linalg.eigvalsh(covariance) > 0)


def test_the_level_is_marginalised_as_algebra_says():
    rng = np.random.default_rng(5)
    root = rng.normal(size=(6, 6))
    matrix, vector = root @ root.T, rng.normal(size=6)
    said = SkyInformation(matrix, vector).without_level()
    np.testing.assert_allclose(np.linalg.solve(said.matrix, said.vector), np.linalg.solve(matrix, vector)[1:])


def test_nothing_measured_says_nothing():
    said = SkyInformation(np.zeros((3, 3)), np.zeros(3)).without_level()
    assert not said.matrix.any()
    assert not said.vector.any()


@pytest.mark.parametrize(("steepness", "least", "most"), [(1.0, 0.4, 0.6), (0.0, 0.0, 0.02)])
def test_where_nothing_changes_along_x_next_to_nothing_along_y_is_sky(steepness, least, most):
    """A gradient along y that is known as badly as it is large: half of it is sky where the rest is as steep."""
    terms, prior, sky = sky_terms(3), SkyPrior(), 0.5
    usual = np.r_[sky, [sky * prior.fractions[i + j - 1] for i, j in terms[1:]]]
    is_known = np.array([bool(i) or not j for i, j in terms])
    said = np.where(is_known, steepness * usual, usual)
    said[0] = sky
    matrix = np.diag(np.where(is_known, 1e10, 1 / usual**2))
    found = sky_posterior(SkyInformation(matrix, matrix @ said), terms, prior, sky)
    part = found[~is_known] / usual[~is_known]
    assert np.all((part > least) & (part < most))
