"""Levels of rows beside sky and sources, for one exposure and for a group, against known truth."""

from dataclasses import asdict

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scenes import real_file
from skylevel.errors import NoBackgroundError, ShapeError
from skylevel.kernels.amplifiers import amplifier_layout
from skylevel.kernels.best_rows import measure_streams, subtract_levels
from skylevel.kernels.group_rows import combine_group, relevel
from skylevel.kernels.streams import slot_power

pytestmark = pytest.mark.packages

ONE = amplifier_layout(512, n_outputs=1)
FOUR = amplifier_layout(2048, n_outputs=4)
NOISE = 0.02


def pink(rng, n, rms):
    """Stripes (row,) cut from 1/f noise four times as long."""
    root = np.sqrt(slot_power(4 * n, 1.0))
    rows = np.fft.irfft(root * (rng.normal(size=root.size) + 1j * rng.normal(size=root.size)))[:n]
    return rms * rows / rows.std()


def make(shape=(512, 512), *, seed=1, stripes=0.01, gradient=0.01, stars=20, galaxy=0.0, n_amplifiers=1):
    """An exposure, its bad pixels, and the stripes (y, amplifier) in it."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[: shape[0], : shape[1]]
    image = 0.5 * (1 + gradient * (x / shape[1] - 0.5) - gradient * (y / shape[0] - 0.5))
    for flux, sy, sx in zip(10 ** rng.uniform(0, 2, stars), *rng.uniform(0, 1, (2, stars)), strict=True):
        image += flux / 10 * (1 + ((y - sy * shape[0]) ** 2 + (x - sx * shape[1]) ** 2) / 3) ** -2.5
    image += galaxy * np.exp(-np.hypot(y - 0.45 * shape[0], x - 0.55 * shape[1]) / (0.1 * shape[0]))
    common = pink(rng, shape[0], stripes)
    rows = np.stack([common + pink(rng, shape[0], stripes / 2) for _ in range(n_amplifiers)], axis=1)
    image = image + np.repeat(rows, shape[1] // n_amplifiers, axis=1) + NOISE * rng.normal(size=shape)
    bad = rng.random(shape) < 0.005
    image[bad] += 3
    return image.astype(np.float32), bad, rows


def error(level, stripes):
    rest = level - stripes
    return (rest - rest.mean()).std()


@pytest.mark.parametrize(("galaxy", "limit"), [(0.0, 0.35), (1.0, 0.6)])
def test_stripes_are_found_and_the_sky_is_kept(galaxy, limit):
    errors = []
    for seed in range(4):
        image, bad, stripes = make(seed=seed, galaxy=galaxy)
        measured = measure_streams(image, bad, amplifiers=ONE)
        assert measured.believed
        assert measured.misfit < 1.5
        errors.append(error(measured.level, stripes) / stripes.std())
    assert np.mean(errors) < limit


@pytest.mark.parametrize("lost", ["half of the columns", "pixels everywhere", "columns an amplifier has not"])
def test_stripes_are_found_where_rows_have_few_pixels(lost):
    image, bad, stripes = make(stripes=0.02)
    amplifiers = ONE
    if lost == "half of the columns":
        bad[:, 256:] = True
    elif lost == "pixels everywhere":
        bad |= np.random.default_rng(2).random(bad.shape) < 0.6
    else:
        image, bad = image[:, :250], bad[:, :250]
        amplifiers = amplifier_layout(250, n_outputs=4)
    level = measure_streams(image, bad, amplifiers=amplifiers).level
    assert error(level, stripes) < 0.35 * stripes.std()


def test_pixels_too_large_for_float32_do_not_count():
    image, bad, _ = make(stripes=0.02)
    large = image.astype(np.float64)
    large[5, 5], large[300, 7] = 1.7e308, -1.7e308
    bad_too = bad.copy()
    bad_too[[5, 300], [5, 7]] = True
    expected = measure_streams(image, bad_too, amplifiers=ONE).level
    np.testing.assert_array_equal(measure_streams(large, bad, amplifiers=ONE).level, expected)


@pytest.mark.parametrize("side", [256, 512])
def test_an_image_that_is_turned_in_memory_has_the_same_levels(side):
    image, bad, _ = make((side, 512), stripes=0.02)
    expected = measure_streams(image, bad, amplifiers=ONE).level
    turned = measure_streams(np.asfortranarray(image), np.asfortranarray(bad), amplifiers=ONE).level
    np.testing.assert_array_equal(turned, expected)


def test_amplifiers_have_levels_of_their_own():
    image, bad, stripes = make((256, 2048), n_amplifiers=4, stars=40, stripes=0.02)
    measured = measure_streams(image, bad, amplifiers=FOUR)
    assert measured.level.shape == (256, 4)
    assert measured.level.dtype == np.float32
    own = stripes - stripes.mean(axis=1, keepdims=True)
    found = measured.level - measured.level.mean(axis=1, keepdims=True)
    assert (found - own).std() < 0.5 * own.std()


def test_a_frame_without_stripes_is_left_alone():
    image, bad, _ = make(stripes=0.0)
    level = measure_streams(image, bad, amplifiers=ONE).level
    assert np.sqrt(np.mean(level**2)) < 0.1 * NOISE / np.sqrt(512)


def test_without_stripes_a_sky_that_no_polynomial_follows_is_left_alone():
    image, bad, _ = make((2048, 512), stripes=0.0)
    image += (0.005 * np.cos(6 * np.arange(2048) / 2048)).astype(np.float32)[:, None]
    level = measure_streams(image, bad, amplifiers=ONE).level
    assert np.sqrt(np.mean(level**2)) < 0.1 * NOISE / np.sqrt(512)


def make_nebula(stripes, brightness):
    image, bad, rows = make((1024, 512), stars=0, seed=3, stripes=stripes)
    y, x = np.mgrid[:1024, :512] / 512
    rng = np.random.default_rng(5)
    for k in rng.uniform(-25, 25, (40, 2)):
        image += (brightness / (1 + np.hypot(*k)) * np.cos(k[0] * x + k[1] * y + rng.uniform(0, 6))).astype(np.float32)
    return image, bad, rows


def test_in_a_nebula_only_what_changes_from_row_to_row_is_taken():
    image, bad, stripes = make_nebula(0.01, 0.8)
    measured = measure_streams(image, bad, amplifiers=ONE)
    assert not measured.believed
    assert measured.misfit > 2
    assert error(measured.level, stripes) < stripes.std()


def test_in_a_nebula_slow_levels_of_amplifiers_show_at_their_borders():
    image, bad, stripes = make((1024, 2048), n_amplifiers=4, stars=0, seed=3)
    y, x = np.mgrid[:1024, :2048] / 512
    image += (0.3 * np.cos(9 * x + 14 * y) + 0.2 * np.sin(23 * x - 7 * y) + 0.2 * np.cos(11 * y)).astype(np.float32)
    measured = measure_streams(image, bad, amplifiers=FOUR)
    assert not measured.believed
    own, found = (level - level.mean(axis=1, keepdims=True) for level in (stripes, measured.level))
    slow, found = (level.reshape(16, 64, 4).mean(axis=1) for level in (own, found))
    assert (found - slow).std() < 0.5 * slow.std()


def test_a_nebula_without_stripes_is_left_alone():
    image, bad, _ = make_nebula(0.0, 0.1)
    measured = measure_streams(image, bad, amplifiers=ONE)
    assert not measured.believed
    assert np.sqrt(np.mean(measured.level**2)) < 0.1 * NOISE / np.sqrt(512)


@pytest.mark.parametrize("unit", [1e-25, 1e-12, 1e18, 1e30])
def test_one_that_leaves_the_range_of_numbers_is_refused(unit):
    image, bad, _ = make(shape=(64, 64))
    with pytest.raises(NoBackgroundError, match="another unit"):
        measure_streams((unit * image.astype(np.float64)).astype(np.float32), bad, amplifiers=amplifier_layout(64))


def test_groups_know_the_sky_better_than_one_exposure():
    exposures = [make(seed=20 + k, gradient=0.05) for k in range(6)]
    measured = [measure_streams(image, bad, amplifiers=ONE) for image, bad, _ in exposures]
    group = combine_group(measured, shape=(512, 512), amplifiers=ONE)
    assert group is not None
    assert group.member.all()
    again = [relevel(m, group, shape=(512, 512), amplifiers=ONE) for m in measured]
    alone, together = (
        np.mean([error(level, stripes) for level, (_, _, stripes) in zip(found, exposures, strict=True)])
        for found in ([m.level for m in measured], again)
    )
    assert together < alone


def test_an_exposure_that_disagrees_is_left_to_itself():
    measured = [measure_streams(*make(seed=30 + k)[:2], amplifiers=ONE) for k in range(5)]
    image, bad, _ = make(seed=40, gradient=0.1)
    measured.append(measure_streams(image, bad, amplifiers=ONE))
    group = combine_group(measured, shape=(512, 512), amplifiers=ONE)
    assert group is not None
    np.testing.assert_array_equal(group.member, [True] * 5 + [False])
    assert group.distance[-1] == group.distance.max()


def test_one_exposure_is_no_group():
    measured = measure_streams(*make()[:2], amplifiers=ONE)
    assert combine_group([measured], shape=(512, 512), amplifiers=ONE) is None


def test_the_order_of_a_group_hardly_matters():
    measured = [measure_streams(*make(seed=50 + k)[:2], amplifiers=ONE) for k in range(3)]
    groups = [combine_group(m, shape=(512, 512), amplifiers=ONE) for m in (measured, measured[::-1])]
    np.testing.assert_allclose(groups[0].shape, groups[1].shape, rtol=1e-6, atol=1e-9)


def test_what_is_measured_is_small_and_plain():
    image, bad, _ = make()
    measured = asdict(measure_streams(image, bad, amplifiers=ONE))
    assert measured.pop("source_mask").dtype == bool
    arrays = [value for value in measured.values() if isinstance(value, np.ndarray)]
    assert all(a.dtype == np.float32 for a in arrays)
    assert sum(a.nbytes for a in arrays) < 0.1 * image.nbytes


def test_measuring_twice_gives_the_same_bits():
    image, bad, _ = make(galaxy=1.0)
    a, b = (asdict(measure_streams(image, bad, amplifiers=ONE)) for _ in range(2))
    for name in a:
        np.testing.assert_array_equal(a[name], b[name])


def test_inputs_are_not_modified():
    image, bad, _ = make()
    before = image.copy(), bad.copy()
    measured = measure_streams(image, bad, amplifiers=ONE)
    subtract_levels(image, measured.level, amplifiers=ONE)
    np.testing.assert_array_equal(image, before[0])
    np.testing.assert_array_equal(bad, before[1])


def test_bad_pixels_are_irrelevant():
    image, bad, _ = make()
    other = np.where(bad, np.float32(np.nan), image)
    a, b = (measure_streams(i, bad, amplifiers=ONE).level for i in (image, other))
    np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("unit", [2.0**50, 2.0**-27])
def test_the_unit_is_irrelevant(unit):
    image, bad, _ = make(galaxy=1.0)
    a = measure_streams(image, bad, amplifiers=ONE).level
    b = measure_streams(image * np.float32(unit), bad, amplifiers=ONE).level
    np.testing.assert_allclose(b / unit, a, atol=1e-3 * a.std())


def test_a_few_good_rows_are_enough_to_begin():
    image, bad, _ = make()
    bad[:] = True
    bad[5:9] = False
    level = measure_streams(image, bad, amplifiers=ONE).level
    assert np.isfinite(level).all()


def test_rows_without_pixels_are_carried_by_their_neighbours():
    image, bad, stripes = make(stripes=0.03)
    bad[200:203] = True
    level = measure_streams(image, bad, amplifiers=ONE).level
    assert np.isfinite(level).all()
    rest = level - stripes
    assert np.abs(rest[200:203] - rest.mean()).max() < 3 * stripes.std()


@settings(max_examples=25)
@given(st.integers(1, 140), st.integers(1, 300), st.sampled_from([1, 4]), st.integers(0, 5), st.floats(0, 1))
def test_any_crop_is_measured_or_refused(n_y, n_x, n_outputs, seed, missing):
    rng = np.random.default_rng(seed)
    image = (0.5 + NOISE * rng.normal(size=(n_y, n_x))).astype(np.float32)
    image[rng.random(image.shape) < missing**3] = np.nan
    layout = amplifier_layout(n_x, n_outputs=n_outputs, first_column=int(rng.integers(0, 2048 - n_x)))
    bad = np.zeros(image.shape, bool)
    try:
        measured = measure_streams(image, bad, amplifiers=layout)
    except NoBackgroundError:
        return
    assert measured.level.shape == (n_y, layout.count)
    assert np.isfinite(measured.level).all()
    group = combine_group([measured, measured], shape=image.shape, amplifiers=layout)
    if group is not None:
        assert np.isfinite(relevel(measured, group, shape=image.shape, amplifiers=layout)).all()
    assert subtract_levels(image, measured.level, amplifiers=layout).shape == image.shape


@pytest.mark.parametrize("value", [0.0, 0.5, -3.0, 1e6])
def test_a_constant_frame_has_no_stripes(value):
    image = np.full((100, 200), value, np.float32)
    layout = amplifier_layout(200, n_outputs=1)
    level = measure_streams(image, np.zeros(image.shape, bool), amplifiers=layout).level
    np.testing.assert_allclose(level, 0, atol=1e-6 * max(abs(value), 1))


@pytest.mark.parametrize("shape", [(1, 1), (300, 1), (1, 8)])
def test_what_cannot_be_measured_is_refused(shape):
    image = np.full(shape, np.nan if shape[1] > 1 else 1, np.float32)
    layout = amplifier_layout(shape[1], n_outputs=1)
    with pytest.raises(NoBackgroundError):
        measure_streams(image, np.zeros(shape, bool), amplifiers=layout)


def test_shapes_that_do_not_fit_are_refused():
    image = np.ones((64, 512), np.float32)
    with pytest.raises(ShapeError):
        measure_streams(image, np.zeros((64, 511), bool), amplifiers=ONE)
    with pytest.raises(ShapeError):
        measure_streams(image[None], np.zeros((1, 64, 512), bool), amplifiers=ONE)
    with pytest.raises(ShapeError):
        subtract_levels(image, np.zeros((64, 2), np.float32), amplifiers=ONE)


def test_subtracting_keeps_what_has_no_level():
    image = np.ones((2, 2048), np.float32)
    level = np.array([[1, 2, np.nan, 4]] * 2, np.float32)
    levelled = subtract_levels(image, level, amplifiers=FOUR)
    np.testing.assert_array_equal(levelled[0, ::512], [0, -1, 1, -3])


@pytest.mark.parametrize(
    "name",
    [
        "nircam_tso/jw01185002001_01101_00001-seg006_nrca3_rateints_I01226.fits",
        "nircam_tso/jw01366002001_01101_00001-seg004_nrca3_rateints_I00372.fits",
    ],
)
def test_rows_kept_out_of_the_fit_scatter_as_their_noise_on_real_frames(name):
    fits = pytest.importorskip("astropy.io.fits")
    image = fits.getdata(real_file(name)).astype(np.float32)
    image = image[0] if image.ndim == 3 else image
    held = np.zeros(image.shape, bool)
    held[:, 16::32] = held[:, 17::32] = held[:, 18::32] = held[:, 19::32] = True
    level = measure_streams(image, held, amplifiers=FOUR).level
    before, after = (_held_out_scatter(i, held) for i in (image, subtract_levels(image, level, amplifiers=FOUR)))
    assert after <= 1.3
    assert after < before


def _held_out_scatter(image, held):
    """Scatter of neighbouring rows' differences on columns kept out, over what their pixels' noise gives."""
    columns = image[4:-4, held[0]].reshape(image.shape[0] - 8, 4, -1)
    difference = np.diff(columns, axis=0)
    kept = np.abs(difference - np.nanmedian(difference)) < 5 * 1.4826 * np.nanmedian(np.abs(difference))
    n = kept.sum(axis=2)
    middle = np.where(kept, difference, 0).sum(axis=2) / np.maximum(n, 1)
    inside = np.where(kept, difference - middle[..., None], np.nan)
    expected = np.sqrt(np.nanmean(inside**2) / np.median(n))
    return 1.4826 * np.median(np.abs(middle - np.median(middle, axis=0))) / expected
