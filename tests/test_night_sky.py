"""The smooth surface through boxes: how close it comes to the sky, what it leaves out, and its bits."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from scenes import RGGB, XTRANS, make_mosaic, make_mosaic_sky
from skylevel.errors import NoBackgroundError, SettingsError, ShapeError
from skylevel.kernels.night_sky import (
    Fitting,
    Grid,
    Surface,
    chebyshev,
    fit_background,
    fit_table,
    frame_coordinate,
    level_error,
    mesh_of,
)
from skylevel.kernels.own_boxes import LEVEL_ERROR, OwnBoxes, measure_boxes
from skylevel.kernels.pattern import ColorPattern
from skylevel.kernels.tile import Tile

pytestmark = pytest.mark.packages

SHAPE, SIDE = (960, 1200), 24


def grid_of(shape, side=SIDE):
    return Grid(shape, (side, side))


def background_of(mosaic, pattern=RGGB, side=SIDE, **settings):
    letters = ColorPattern.of(pattern)
    boxes = measure_boxes(Tile.whole(mosaic), letters, box_size=(side, side))
    return fit_background(boxes, grid_of(mosaic.shape, side), Fitting(**settings))


def surface_of(coefficients, shape):
    return Surface(coefficients, np.arange(shape[1]), shape=shape).at(np.arange(shape[0]))


def errors_of(found, pattern, shape):
    """Estimate minus the sky of `make_mosaic` (y, x), at each channel's own pixels."""
    letters = np.tile([list(row) for row in pattern], [-(-n // len(pattern)) for n in shape])[: shape[0], : shape[1]]
    estimate = np.zeros(shape)
    for channel, table in zip("RGB", found.coefficients, strict=True):
        estimate += (letters == channel) * surface_of(table, shape)
    return estimate - make_mosaic_sky(shape, pattern) - 512


def make_boxes(sky, *, noise=1.0, n_good=500, seed=0):
    """Boxes of one channel whose levels have an error of `noise`."""
    rng = np.random.default_rng(seed)
    rms = np.full(sky.shape, noise * np.sqrt(n_good) / LEVEL_ERROR, np.float32)
    level = (sky + rng.normal(scale=noise, size=sky.shape)).astype(np.float32)
    return OwnBoxes(*(field[None] for field in (level, rms, np.full(sky.shape, n_good, np.float32))))


def axes_of(grid):
    return grid.centres(0)[:, None], grid.centres(1)[None, :]


def steep_sky(grid):
    v, u = axes_of(grid)
    return 1500 * (1 + 0.3 * u - 0.2 * v + 0.1 * u * v) / (1 + 0.2 * (u**2 + v**2)) ** 2


@pytest.mark.parametrize("pattern", [RGGB, XTRANS], ids=["Bayer", "X-Trans"])
@pytest.mark.parametrize("stars", [0, 150])
def test_a_frames_background_is_its_sky(pattern, stars):
    error = errors_of(background_of(make_mosaic(SHAPE, pattern, stars=stars), pattern), pattern, SHAPE)
    # Of 35 ADU of noise in a pixel and 2.5 in a box.
    assert error.std() < 0.8
    assert abs(error.mean()) < 0.6


@pytest.mark.parametrize("shape", [(4000, 6000), (1333, 2000)])
@pytest.mark.parametrize("peak", [3.0, 30.0, 300.0, 3000.0])
def test_a_galaxy_is_left_out(peak, shape):
    grid = grid_of(shape, 48)
    v, u = axes_of(grid)
    galaxy = peak * np.exp(-np.hypot((u + 0.1) / 0.08, v / 0.06))
    found = fit_background(make_boxes(steep_sky(grid) + galaxy), grid)
    error = found.background[0] - steep_sky(grid)
    assert np.sqrt(np.mean(error**2)) < 0.4 + 0.2 * np.log10(peak)
    assert found.rejected[0][galaxy > 10].all()


def test_the_border_is_as_good_as_any():
    grid = grid_of((2000, 3000), 48)
    errors = np.stack([fit_background(make_boxes(steep_sky(grid), seed=k), grid).background[0] for k in range(8)])
    square = np.mean((errors - steep_sky(grid)) ** 2, axis=0)
    inside = square[2:-2, 2:-2]
    border = (square.sum() - inside.sum()) / (square.size - inside.size)
    assert border < 2.5**2 * inside.mean()


def test_light_is_left_out_of_every_channel():
    grid = grid_of((2000, 3000), 48)
    sky, blob = steep_sky(grid), np.zeros(grid.mesh_shape())
    blob[20:30, 30:40] = 40.0
    boxes = [make_boxes(sky + blob), make_boxes(sky, seed=1)]
    found = fit_background(OwnBoxes(*(np.concatenate(field) for field in zip(*boxes, strict=True))), grid)
    assert found.rejected[:, 21:29, 31:39].all()


def test_a_surface_through_noise_alone_is_not_biased():
    grid = grid_of((2000, 3000), 48)
    offsets = [
        (fit_background(make_boxes(steep_sky(grid), seed=k), grid).background[0] - steep_sky(grid)).mean()
        for k in range(10)
    ]
    assert abs(np.mean(offsets)) < 0.05


def test_stiffness_and_degree_hold_the_surface():
    grid = grid_of((2000, 3000), 48)
    v, u = axes_of(grid)
    waves = make_boxes(1000 + 20 * np.cos(6 * u) * np.cos(5 * v), noise=0.1)
    free = fit_background(waves, grid, Fitting(degree=14, stiffness=0.0))
    plane = fit_background(waves, grid, Fitting(degree=1))
    assert plane.coefficients.shape == (1, 2, 2)
    assert free.residual_rms[0] < 1.0 < plane.residual_rms[0]
    held = [np.abs(fit_background(waves, grid, Fitting(stiffness=s)).coefficients[0, 7:]).sum() for s in (0.1, 1e3)]
    assert held[1] < 0.2 * held[0]


@pytest.mark.parametrize("shape", [(1, 1), (2, 3), (1, 300), (300, 1), (24, 24), (30, 70), (97, 50)])
@pytest.mark.parametrize("value", [None, 700])
def test_tiny_and_constant_frames(shape, value):
    mosaic = make_mosaic(shape, stars=0, hot=0) if value is None else np.full(shape, value, np.uint16)
    letters = ColorPattern.of(["M"])
    found = fit_background(measure_boxes(Tile.whole(mosaic), letters, box_size=(SIDE, SIDE)), grid_of(shape))
    assert np.isfinite(found.coefficients).all()
    assert found.background.shape == (1, *grid_of(shape).mesh_shape())
    spread = max(float(np.ptp(mosaic)), 1e-3)
    assert (found.background >= mosaic.min() - spread).all()
    assert (found.background <= mosaic.max() + spread).all()


def test_a_channel_without_light_is_an_error():
    mosaic = make_mosaic((100, 100))
    mosaic[::2, ::2] = 0
    with pytest.raises(NoBackgroundError, match="no pixel that counts"):
        background_of(mosaic)


def test_boxes_without_a_pixel_are_bridged():
    mosaic = make_mosaic(SHAPE, stars=0)
    mosaic[200:400, 300:600] = 0
    found = background_of(mosaic)
    assert found.rejected[:, 9:16, 13:25].all()
    assert errors_of(found, RGGB, SHAPE)[200:400, 300:600].std() < 3.0


@pytest.mark.parametrize(
    "settings", [{"degree": -1}, {"stiffness": -0.1}, {"tolerance": -1e-3}, {"rejection": 0.0}, {"stiffness": np.nan}]
)
def test_settings_out_of_range_are_refused(settings):
    with pytest.raises(SettingsError, match=next(iter(settings))):
        background_of(make_mosaic((100, 100)), **settings)


def test_boxes_of_another_frame_are_refused():
    grid = grid_of((200, 200))
    with pytest.raises(ShapeError):
        fit_background(make_boxes(np.ones((3, 3))), grid)


@given(st.data())
def test_a_tile_of_a_surface_has_the_frames_bits(data):
    table = np.random.default_rng(2).normal(size=(11, 11)).astype(np.float32)
    whole = surface_of(table, (77, 91))
    (top, bottom), (left, right) = (
        sorted(data.draw(st.lists(st.integers(0, n), min_size=2, max_size=2))) for n in whole.shape
    )
    tile = Surface(table, np.arange(left, right), shape=whole.shape).at(np.arange(top, bottom))
    np.testing.assert_array_equal(tile, whole[top:bottom, left:right])


def test_a_mesh_is_its_surface_at_the_boxes_centres():
    grid = grid_of((100, 130), 15)
    table = np.random.default_rng(3).normal(size=(5, 5)).astype(np.float32)
    found = surface_of(table, grid.shape)
    whole = mesh_of(table, grid)
    # Of an odd box, the centre is a pixel; the last ones are partial.
    np.testing.assert_allclose(whole[:6, :8], found[7:90:15, 7:120:15], rtol=1e-5, atol=1e-5)


def test_polynomials_are_numpys():
    at = frame_coordinate(np.arange(50), 50)
    assert at[0] == -at[-1] == pytest.approx(-0.98)
    np.testing.assert_allclose(chebyshev(at, 9), np.polynomial.chebyshev.chebvander(at, 8).T, atol=1e-12)


def test_a_table_gives_its_surface_back():
    grid = grid_of((900, 700))
    table = np.tril(np.random.default_rng(4).normal(size=(6, 6)))[::-1]
    found = fit_table(mesh_of(table, grid).astype(float), grid, 5)
    np.testing.assert_allclose(found, table, atol=1e-5)


def test_an_error_is_that_of_a_level():
    boxes = make_boxes(np.full((3, 4), 100.0), noise=2.0)
    boxes.n_good[0, 1, 1] = 0
    error = level_error(boxes)
    assert error[0, 1, 1] == np.inf
    np.testing.assert_allclose(error[np.isfinite(error)], 2.0, rtol=1e-5)


@given(st.integers(0, 1000), st.floats(-400, 400))
def test_a_constant_added_moves_only_the_constant(seed, constant):
    grid = grid_of((600, 700))
    boxes = make_boxes(steep_sky(grid), seed=seed)
    exact = Fitting(tolerance=0.0)
    before = fit_background(boxes, grid, exact)
    after = fit_background(boxes._replace(level=boxes.level + np.float32(constant)), grid, exact)
    np.testing.assert_allclose(after.background, before.background + constant, atol=0.1)


@given(st.integers(0, 1000))
def test_transposing_swaps_rows_and_columns(seed):
    grid = grid_of((600, 720))
    boxes = make_boxes(steep_sky(grid), seed=seed)
    turned = OwnBoxes(*(field.swapaxes(1, 2) for field in boxes))
    found = fit_background(turned, Grid(grid.shape[::-1], grid.box_size))
    np.testing.assert_allclose(found.background.swapaxes(1, 2), fit_background(boxes, grid).background, atol=0.02)
