"""Box statistics, the mesh of boxes and its surface, against photutils' Background2D."""

import numpy as np
import photutils
import pytest
from astropy.stats import sigma_clip as astropys_clip
from hypothesis import given
from hypothesis import strategies as st
from scipy import ndimage

from reference import background_of
from scenes import make_image
from skylevel.errors import NoBackgroundError
from skylevel.kernels.mesh import Clipping, Surface, box_statistics, clipped_statistics, finish_mesh

pytestmark = pytest.mark.packages


def box_within(image, box_size):
    """The box, no larger than the frame: as photutils takes it."""
    return tuple(min(box_size, n) for n in image.shape)


def statistics_of(image, box_size=50, *, sigma_clip=3.0, max_rounds=10, estimator="median"):
    return box_statistics(
        image,
        box_size=box_within(image, box_size),
        clipping=Clipping(sigma_clip, max_rounds, estimator),
    )


def mesh_of(image, box_size=50, *, filter_size=3, exclude_percentile=10.0, **statistics):
    return finish_mesh(
        statistics_of(image, box_size, **statistics),
        box_n_pixels=int(np.prod(box_within(image, box_size))),
        exclude_percentile=exclude_percentile,
        filter_size=filter_size,
    )


def surface_of(values, image, box_size=50):
    y, x = (np.arange(n) for n in image.shape)
    return Surface(values, range(image.shape[0]), x, box_size=box_within(image, box_size)).at(y)


def photutils_of(image, box_size=50, **settings):
    defaults = {"filter_size": 3, "sigma_clip": 3.0, "max_rounds": 10, "estimator": "median"}
    return background_of(image.astype(float), box_size=box_size, **(defaults | settings))


def assert_equal_to_photutils(image, box_size=50, **settings):
    """Meshes and surfaces to the rounding of float32."""
    mesh, expected = mesh_of(image, box_size, **settings), photutils_of(image, box_size, **settings)
    scale = np.abs(expected.background_mesh).max()
    assert mesh.background.dtype == mesh.background_rms.dtype == np.float32
    assert mesh.exclude_percentile == expected.exclude_percentile
    np.testing.assert_allclose(mesh.background, expected.background_mesh, rtol=2e-7, atol=2e-7 * scale)
    np.testing.assert_allclose(mesh.background_rms, expected.background_rms_mesh, rtol=1e-6, atol=2e-7 * scale)
    for values, full in ((mesh.background, expected.background), (mesh.background_rms, expected.background_rms)):
        np.testing.assert_allclose(surface_of(values, image, box_size), full, rtol=0, atol=1e-6 * scale)


@pytest.mark.parametrize(
    "shape",
    [(200, 250), (130, 171), (50, 50), (49, 51), (37, 260), (1, 300), (300, 1), (7, 9), (1, 1)],
    ids=lambda shape: "x".join(map(str, shape)),
)
def test_any_size_equals_photutils(shape):
    assert_equal_to_photutils(make_image(shape, sources=30 if min(shape) > 5 else 0, gradient=0.2).image)


@pytest.mark.parametrize("estimator", ["median", "mean", "mode"])
@pytest.mark.parametrize(("sigma_clip", "max_rounds"), [(3.0, 10), (5.0, 5), (1.5, 1), (2.0, 3)])
def test_any_clipping_and_estimator_equals_photutils(estimator, sigma_clip, max_rounds):
    image = make_image((210, 190), sources=150, gradient=0.2).image
    assert_equal_to_photutils(
        image, 40, estimator=estimator, sigma_clip=sigma_clip, max_rounds=max_rounds, exclude_percentile=80.0
    )


@pytest.mark.parametrize("sigma_clip", [1.05, 1.2, 1.5, 2.0])
@pytest.mark.parametrize("side", [1, -1])
def test_bounds_that_widen_again_equal_photutils(sigma_clip, side):
    # Skewed boxes of few pixels: a later round's bounds may reach beyond an earlier round's.
    image = np.float32(side) * np.random.default_rng(6).lognormal(sigma=1.5, size=(120, 120)).astype(np.float32)
    found = statistics_of(image, 6, sigma_clip=sigma_clip)
    settings = {"sigma_clip": sigma_clip, "filter_size": 1, "exclude_percentile": 100.0}
    expected = photutils_of(image, 6, **settings)
    np.testing.assert_array_equal(found.n_good, expected.n_pixels_mesh)
    np.testing.assert_allclose(found.level, expected.background_mesh, rtol=1e-6)


@pytest.mark.parametrize("filter_size", [1, 3, 5, 11])
def test_any_filter_equals_photutils(filter_size):
    image = make_image((200, 260), gradient=0.5, sources=60).image
    assert_equal_to_photutils(image, 25, filter_size=filter_size)


@pytest.mark.parametrize("box_size", [1, 7, 32, 500])
def test_any_box_equals_photutils(box_size):
    assert_equal_to_photutils(make_image((66, 71), nan_fraction=0.0).image, box_size)


def test_a_nan_border_and_holes_equal_photutils():
    image = make_image((260, 240), border=4, gradient=0.2).image
    image[60:140, 90:190] = np.nan
    assert_equal_to_photutils(image, 20)


def test_boxes_left_out_are_filled_from_their_neighbours():
    image = make_image((160, 160), sources=0, gradient=0.5, nan_fraction=0.0).image
    image[40:80, 40:80] = np.nan
    mesh = mesh_of(image, 40, filter_size=1)
    assert statistics_of(image, 40).n_good[1, 1] == 0
    assert mesh.background[0:3, 0:3].min() < mesh.background[1, 1] < mesh.background[0:3, 0:3].max()
    assert_equal_to_photutils(image, 40, filter_size=1)


def test_infinite_pixels_count_as_bad():
    image = make_image((100, 150), sources=0, gradient=0.3).image
    image[3, 4], image[60, 70], image[60, 140:143] = np.inf, -np.inf, np.inf
    np.testing.assert_array_equal(statistics_of(image).n_good, photutils_of(image).n_pixels_mesh)
    assert_equal_to_photutils(image, 50, filter_size=1)


@pytest.mark.parametrize(("bad", "relaxed"), [(0.02, 10.0), (0.15, 20.0), (0.3, 40.0), (0.6, 80.0), (0.95, 100.0)])
def test_the_percentile_is_relaxed_until_a_box_passes(bad, relaxed):
    image = make_image((100, 150), sources=0, nan_fraction=bad).image
    assert mesh_of(image).exclude_percentile == relaxed
    assert_equal_to_photutils(image)


@pytest.mark.parametrize(
    ("bad", "asked", "used"),
    [(0.07, 0.0, 10.0), (0.07, 5.0, 10.0), (0.18, 15.0, 20.0), (0.18, 50.0, 50.0), (0.07, 100.0, 100.0)],
)
def test_a_percentile_that_was_asked_for_is_tried_first(bad, asked, used):
    image = make_image((100, 150), sources=0, nan_fraction=bad, seed=2).image
    assert mesh_of(image, exclude_percentile=asked).exclude_percentile == used


def test_a_box_at_the_limit_is_left_out():
    image = np.add.outer(np.zeros(10), np.arange(30) // 10).astype(np.float32)
    image[0, :10] = np.nan
    if photutils.__version__.startswith("3.0."):  # later ones leave it in
        assert_equal_to_photutils(image, 10, filter_size=1)
    assert mesh_of(image, 10, filter_size=1).background[0, 0] > 0


def test_nothing_to_measure_is_an_error():
    image = np.full((60, 60), np.nan, np.float32)
    with pytest.raises(NoBackgroundError):
        mesh_of(image, 20)


def test_counts_equal_photutils():
    image = make_image((130, 171), sources=60, border=3).image
    np.testing.assert_array_equal(statistics_of(image).n_good, photutils_of(image).n_pixels_mesh)


def test_without_clipping_a_box_has_its_plain_median_and_scatter():
    image = make_image((60, 90), nan_fraction=0.0).image
    found = statistics_of(image, 30, sigma_clip=1e6)
    boxes = image.reshape(2, 30, 3, 30).swapaxes(1, 2).reshape(2, 3, -1).astype(float)
    np.testing.assert_allclose(found.level, np.median(boxes, axis=-1), rtol=1e-7)
    np.testing.assert_allclose(found.rms, boxes.std(axis=-1), rtol=1e-6)
    np.testing.assert_array_equal(found.n_good, np.full((2, 3), 900))


def test_scatter_survives_a_large_level():
    rng = np.random.default_rng(0)
    image = (65000 + rng.integers(-2, 3, (100, 100))).astype(np.float32)
    expected = photutils_of(image, filter_size=1).background_rms_mesh
    np.testing.assert_allclose(statistics_of(image).rms, expected, rtol=1e-5)


@pytest.mark.parametrize("value", [0.0, 3.25, -7.0])
def test_a_constant_frame_is_its_own_background(value):
    image = np.full((120, 130), value, np.float32)
    mesh = mesh_of(image)
    assert (surface_of(mesh.background, image) == value).all()
    assert (surface_of(mesh.background_rms, image) == 0).all()


@given(st.integers(0, 2**32 - 1), st.sampled_from(["median", "mean", "mode"]))
def test_the_order_of_a_boxs_pixels_is_irrelevant(seed, estimator):
    rng = np.random.default_rng(seed)
    image = make_image((20, 20), seed=seed % 1000, nan_fraction=0.05).image
    shuffled = rng.permutation(image.ravel()).reshape(image.shape)
    for one, other in zip(
        statistics_of(image, 20, estimator=estimator), statistics_of(shuffled, 20, estimator=estimator), strict=True
    ):
        np.testing.assert_array_equal(one, other)


@given(st.integers(0, 1000), st.integers(1, 64))
def test_a_constant_added_moves_the_level_alone(seed, constant):
    image = np.round(make_image((60, 70), seed=seed, noise=0.2).image * 256) / 256
    before, after = statistics_of(image, 25), statistics_of(image + np.float32(constant), 25)
    np.testing.assert_array_equal(after.n_good, before.n_good)
    np.testing.assert_allclose(after.level, before.level + constant, rtol=2e-7)
    np.testing.assert_allclose(after.rms, before.rms, rtol=1e-4)


@given(st.integers(0, 1000))
def test_transposing_swaps_rows_and_columns(seed):
    image = make_image((63, 78), seed=seed).image
    for one, other in zip(statistics_of(image, 20), statistics_of(image.T, 20), strict=True):
        np.testing.assert_array_equal(one, other.T)


@given(st.integers(0, 1000), st.sampled_from(["median", "mean", "mode"]))
def test_inputs_are_not_modified(seed, estimator):
    image = make_image((45, 52), seed=seed, nan_fraction=0.05).image
    before = image.copy()
    mesh_of(image, 20, estimator=estimator)
    np.testing.assert_array_equal(image, before)


def test_whole_boxes_of_a_tile_have_the_frames_statistics():
    image = make_image((130, 171), sources=40).image
    whole, tile = statistics_of(image, 20), statistics_of(image[40:130, 60:171], 20)
    for one, other in zip(whole, tile, strict=True):
        np.testing.assert_array_equal(one[2:, 3:], other)


@given(st.data())
def test_a_tile_of_the_surface_has_the_frames_bits(data):
    image = make_image((77, 91), gradient=0.5, seed=6).image
    mesh = mesh_of(image, 10, filter_size=1).background
    whole = surface_of(mesh, image, 10)
    y, x = (np.sort(data.draw(st.lists(st.integers(0, n - 1), min_size=2, max_size=2))) for n in image.shape)
    rows, columns = np.arange(y[0], y[1] + 1), np.arange(x[0], x[1] + 1)
    tile = Surface(mesh, range(rows[0], rows[-1] + 1), columns, box_size=(10, 10))
    np.testing.assert_array_equal(tile.at(rows), whole[np.ix_(rows, columns)])


def test_rows_of_the_surface_may_be_asked_for_one_by_one():
    mesh = mesh_of(make_image((77, 91), gradient=0.5, seed=6).image, 10, filter_size=1).background
    found = Surface(mesh, range(77), np.arange(91), box_size=(10, 10))
    one_by_one = np.concatenate([found.at(np.array([y])) for y in range(77)])
    np.testing.assert_array_equal(one_by_one, found.at(np.arange(77)))
    assert found.at(np.arange(0)).shape == (0, 91)


def test_the_surface_stays_within_the_mesh():
    mesh = np.zeros((6, 7), np.float32)
    mesh[2, 3] = 1.0
    found = Surface(mesh, range(60), np.arange(70), box_size=(10, 10)).at(np.arange(60))
    assert found.dtype == np.float32
    assert found.min() == 0.0
    assert 0.9 < found.max() <= 1.0


@pytest.mark.parametrize("rows", [np.arange(100), np.arange(30, 75), np.array([99])])
def test_a_surface_is_within_its_bounds_and_its_points_are_its_bits(rows):
    rng = np.random.default_rng(5)
    # A steep mesh: the spline overshoots it, and the surface is clipped to its range.
    mesh = np.where(rng.random((5, 4)) < 0.5, 0.0, 1000.0).astype(np.float32)
    surface = Surface(mesh, range(100), np.arange(77), box_size=(20, 20))
    whole = surface.at(rows)
    least, most = surface.bounds(rows)
    assert (least <= whole).all()
    assert (whole <= most).all()
    at_y, at_x = rng.integers(0, len(rows), 50), rng.integers(0, 77, 50)
    np.testing.assert_array_equal(surface.at_points(rows, at_y, at_x), whole[at_y, at_x])


def test_a_smooth_surfaces_bounds_are_close_to_it():
    y, x = np.mgrid[:6, :5]
    surface = Surface((100.0 + y + 3 * x).astype(np.float32), range(120), np.arange(100), box_size=(20, 20))
    rows = np.arange(40, 60)
    least, most = surface.bounds(rows)
    assert (surface.at(rows).min(axis=0) - least).max() < 2.0
    assert (most - surface.at(rows).max(axis=0)).max() < 2.0


@pytest.mark.parametrize("share", [0.005, 0.03, 0.2, 0.45], ids="{:.1%} outliers".format)
@pytest.mark.parametrize("outlier", [50.0, 1e6])
def test_clipping_is_astropys_however_deep_it_goes(share, outlier):
    # The tails are summed apart; these outliers, above or below, reach far beyond them.
    rng = np.random.default_rng(11)
    boxes = rng.normal(1000.0, 2.0, (8, 2500))
    for k, box in enumerate(boxes):
        n = int(share * box.size)
        box[:n] += rng.normal(outlier, 0.3 * outlier, n) * (-1) ** k
    clipped = astropys_clip(boxes, sigma=2.0, maxiters=10, axis=1, stdfunc="std", cenfunc="median")
    found = clipped_statistics(boxes.copy(), Clipping(2.0, 10, "mean"))
    np.testing.assert_array_equal(found.n_good, clipped.count(axis=1))
    np.testing.assert_allclose(found.level, clipped.mean(axis=1), rtol=1e-12)
    np.testing.assert_allclose(found.rms, clipped.std(axis=1), rtol=1e-9)


@pytest.mark.parametrize("shape", [(1, 1), (1, 7), (2, 2), (2, 9), (3, 40), (41, 41)])
def test_a_surface_is_scipys_spline(shape):
    """Of short meshes too, along which an older SciPy's spline is none of a mirrored mesh, but what photutils gives."""
    mesh = np.random.default_rng(shape).normal(100.0, 10.0, shape).astype(np.float32)
    rows, columns = range(10 * shape[0]), np.arange(10 * shape[1])
    found = Surface(mesh, rows, columns, box_size=(10, 10)).at(np.array(rows))
    expected = ndimage.zoom(mesh.astype(np.float64), 10, order=3, mode="reflect", grid_mode=True)
    np.testing.assert_allclose(found, np.clip(expected, mesh.min(), mesh.max()), rtol=1e-6)
