"""Smoothing, connected pixels, labels and deblending, against astropy and photutils."""

import numpy as np
import pytest
from astropy.convolution import convolve
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from photutils.segmentation import detect_sources, make_2dgaussian_kernel

from reference import quiet, rows_reference, smoothed
from scenes import make_image, make_scene
from skylevel.kernels.deblending import deblend
from skylevel.kernels.mesh import Mesh
from skylevel.kernels.sources import Detection, above_threshold, connected, label_sources, smooth

pytestmark = pytest.mark.packages

SHAPES = hnp.array_shapes(min_dims=2, max_dims=2, min_side=1, max_side=14)


def kept_by_photutils(detected, n_pixels):
    with quiet():
        found = detect_sources(detected.astype(float), 0.5, n_pixels=n_pixels)
    return np.zeros(detected.shape, bool) if found is None else found.data != 0


@pytest.mark.parametrize(
    "shape", [(64, 64), (51, 70), (1, 40), (40, 1), (2, 2), (1, 1)], ids=lambda shape: "x".join(map(str, shape))
)
@pytest.mark.parametrize("border", [0, 3])
def test_smoothing_equals_astropys_convolution(shape, border):
    image = make_image(shape, nan_fraction=0.05 if min(shape) > 2 else 0.0, seed=5).image
    if border and min(shape) > 2 * border:
        image[:border] = image[:, -border:] = np.nan
    expected = smoothed(image)
    found = smooth(image, fwhm=3.0, size=3)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, expected, rtol=1e-6)


@pytest.mark.parametrize(("fwhm", "size"), [(3.0, 3), (2.0, 5), (5.0, 11), (0.5, 1)])
def test_smoothing_takes_any_kernel(fwhm, size):
    image = make_image((60, 45), nan_fraction=0.1, seed=2).image
    with quiet():
        expected = convolve(image, make_2dgaussian_kernel(fwhm, size=size))
    np.testing.assert_allclose(smooth(image, fwhm=fwhm, size=size), expected, rtol=1e-6)


@pytest.mark.parametrize(("fwhm", "size"), [(3.0, 3), (3.0, 7), (2.0, 9), (2.0, 11)])
def test_smoothing_into_a_gap_equals_astropy(fwhm, size):
    image = make_image((40, 41), nan_fraction=0.0).image
    image[8:33, 9:30] = np.nan
    with quiet():
        expected = convolve(image, make_2dgaussian_kernel(fwhm, size=size))
    np.testing.assert_allclose(smooth(image, fwhm=fwhm, size=size), expected, rtol=1e-3)


def test_a_gap_wider_than_the_kernel_stays_nan():
    image = np.ones((20, 20), np.float32)
    image[5:12, 5:12] = np.nan
    found = smooth(image, fwhm=3.0, size=3)
    expected = np.zeros(image.shape, bool)
    expected[6:11, 6:11] = True
    np.testing.assert_array_equal(np.isnan(found), expected)


@pytest.mark.parametrize("seed", range(3))
def test_smoothing_sees_its_neighbourhood_alone(seed):
    image = make_image((50, 60), seed=seed, nan_fraction=0.1).image
    whole = smooth(image, fwhm=3.0, size=3)
    tile = smooth(image[9:31, 14:41], fwhm=3.0, size=3)
    np.testing.assert_array_equal(tile[1:-1, 1:-1], whole[10:30, 15:40])


@given(hnp.arrays(np.float32, SHAPES, elements=st.floats(-100, 100, width=32) | st.just(np.float32("nan"))))
def test_smoothing_does_not_modify_its_input(image):
    before = image.copy()
    smooth(image, fwhm=3.0, size=3)
    np.testing.assert_array_equal(image, before)


def mesh_of(reference):
    meshes = (np.float32(reference.background_mesh), np.float32(reference.background_rms_mesh))
    return Mesh(*meshes, reference.exclude_percentile)


@pytest.mark.parametrize("threshold", [2.0, 5.0, -1.0])
@pytest.mark.parametrize("shape", [(260, 240), (131, 177), (1, 90)], ids=str)
def test_detection_equals_photutils(shape, threshold):
    image = make_image(shape, sources=80, gradient=0.3, nan_fraction=0.02).image
    reference = rows_reference(image)
    detection = Detection(threshold, 3.0, 3, 1)
    found = above_threshold(image, mesh_of(reference), detection, box_size=(min(50, shape[0]), 50))
    expected = smoothed(image) > reference.background + threshold * reference.background_rms
    assert 0 < expected.mean() < 1
    assert found.dtype == bool
    assert np.count_nonzero(found != expected) <= 1e-5 * found.size


def test_a_gap_in_the_image_is_no_detection():
    image = np.full((30, 30), 5.0, np.float32)
    image[10:20, 10:20] = np.nan
    mesh = Mesh(np.ones((1, 1), np.float32), np.ones((1, 1), np.float32), 10.0)
    found = above_threshold(image, mesh, Detection(0.0, 3.0, 3, 1), box_size=(30, 30))
    np.testing.assert_array_equal(found, ~np.isnan(smooth(image, fwhm=3.0, size=3)))


@given(st.data(), st.sampled_from([1, 3, 7]))
def test_a_tile_is_detected_with_the_frames_bits(data, size):
    image = make_image((90, 95), sources=60, gradient=0.3, nan_fraction=0.03).image
    detection = Detection(0.5, 3.0, size, 1)
    mesh = mesh_of(rows_reference(image))
    whole = above_threshold(image, mesh, detection, box_size=(50, 50))
    (top, bottom), (left, right) = (
        sorted(data.draw(st.lists(st.integers(0, n), min_size=2, max_size=2, unique=True))) for n in image.shape
    )
    half = size // 2
    y, x = max(top - half, 0), max(left - half, 0)
    part = image[y : bottom + half, x : right + half]
    tile = above_threshold(part, mesh, detection, box_size=(50, 50), origin=(y, x))
    np.testing.assert_array_equal(
        tile[top - y : bottom - y, left - x : right - x], whole[top:bottom, left:right]
    )


@pytest.mark.parametrize(("length", "kept"), [(4, False), (5, True), (6, True)])
@pytest.mark.parametrize(
    "draw", [np.eye, lambda n: np.eye(n)[::-1], lambda n: np.ones((1, n)), lambda n: np.ones((n, 1))]
)
def test_edges_and_corners_connect(length, kept, draw):
    detected = np.zeros((9, 9), bool)
    line = draw(length).astype(bool)
    detected[1 : 1 + line.shape[0], 2 : 2 + line.shape[1]] = line
    np.testing.assert_array_equal(connected(detected, 5), detected if kept else np.zeros_like(detected))


def test_opposite_edges_do_not_connect():
    detected = np.zeros((12, 12), bool)
    detected[4, :3] = detected[4, -2:] = detected[:3, 6] = detected[-2:, 6] = True
    assert not connected(detected, 5).any()


def test_pieces_that_nearly_touch_do_not_add_up():
    detected = np.zeros((5, 9), bool)
    detected[2, :4] = detected[2, 5:] = True
    assert not connected(detected, 5).any()


@pytest.mark.parametrize("turn", [False, True])
def test_what_winds_is_one_source(turn):
    """A path through all of the image, to and fro; and the teeth of a comb, which only its back joins."""
    path = np.zeros((41, 40), bool)
    path[::2] = path[1::4, -1] = path[3::4, 0] = True
    comb = np.zeros((41, 40), bool)
    comb[:, ::2] = comb[-1 if turn else 0] = True
    for detected in (path.T if turn else path, comb):
        np.testing.assert_array_equal(connected(detected, int(detected.sum())), detected)
        assert not connected(detected, int(detected.sum()) + 1).any()


@given(
    shape=SHAPES, density=st.floats(0.05, 0.8), n_pixels=st.integers(1, 12), seed=st.integers(0, 2**32 - 1)
)
def test_connected_pixels_equal_photutils(shape, density, n_pixels, seed):
    detected = np.random.default_rng(seed).random(shape) < density
    before = detected.copy()
    kept = connected(detected, n_pixels)
    assert kept.dtype == bool
    np.testing.assert_array_equal(kept, kept_by_photutils(detected, n_pixels))
    np.testing.assert_array_equal(detected, before)


@pytest.mark.parametrize("density", [0.02, 0.15, 0.4])
@pytest.mark.parametrize("n_pixels", [1, 2, 5, 30])
def test_connected_pixels_equal_photutils_on_a_large_field(density, n_pixels):
    detected = np.random.default_rng(9).random((300, 411)) < density
    np.testing.assert_array_equal(connected(detected, n_pixels), kept_by_photutils(detected, n_pixels))


def test_an_overlap_of_n_minus_1_decides_a_tile():
    detected = np.random.default_rng(4).random((90, 90)) < 0.3
    whole = connected(detected, 5)
    tile = connected(detected[26:64, 16:54], 5)[4:-4, 4:-4]
    np.testing.assert_array_equal(tile, whole[30:60, 20:50])


def test_labels_equal_photutils():
    detected = np.random.default_rng(8).random((80, 95)) < 0.25
    with quiet():
        expected = detect_sources(detected.astype(float), 0.5, n_pixels=5).data
    np.testing.assert_array_equal(label_sources(connected(detected, 5)), expected)


def test_no_source_has_no_label():
    empty = np.zeros((6, 7), bool)
    assert not label_sources(empty).any()
    assert not deblend(np.ones((6, 7), np.float32), empty, n_pixels=5, n_levels=32, contrast=0.001).any()


def test_deblending_equals_photutils_and_keeps_the_mask():
    image = make_scene("crowded", 200, seed=3).image
    plain, deblended = rows_reference(image), rows_reference(image, deblend=True)
    found = deblend(smooth(image, fwhm=3.0, size=3), plain.source_mask, n_pixels=5, n_levels=32, contrast=0.001)
    assert deblended.segmentation.max() > plain.segmentation.max()
    np.testing.assert_array_equal(found, deblended.segmentation)
    np.testing.assert_array_equal(found != 0, plain.source_mask)
