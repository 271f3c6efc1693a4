"""A night's frames solved together: their backgrounds, the lens they share, and frames that disagree."""

import numpy as np
import pytest

from skylevel.errors import NoBackgroundError, SettingsError, ShapeError
from skylevel.kernels.night_sky import Fitting, Grid, fit_background, mesh_of
from skylevel.kernels.own_boxes import LEVEL_ERROR, OwnBoxes
from skylevel.kernels.vignetting import solve_night

pytestmark = pytest.mark.packages

GRID = Grid((2000, 3000), (48, 48))
BLACK = 512.0


def axes():
    return GRID.centres(0)[:, None], GRID.centres(1)[None, :]


def lens():
    v, u = axes()
    return 1 / (1 + 0.35 * (2.25 * u**2 + v**2) / 3.25) ** 2


def sky(hour, level=1500.0):
    """The sky behind the lens (mesh_y, mesh_x): a slope that turns and brightens with the hour."""
    v, u = axes()
    slope = 0.12 * u * np.cos(hour) - 0.08 * v * np.sin(hour) + 0.03 * np.sin(2 * u + v + hour)
    return BLACK + lens() * level * (1 + 0.05 * hour + slope)


def galaxy(peak, y=0.0, x=0.0):
    v, u = axes()
    return peak * lens() * np.exp(-np.hypot((u - 0.1 - x) / 0.06, (v - y) / 0.08))


def make_frame(hour, light=0.0, *, noise=1.2, n_good=500.0, seed=0):
    """Boxes of two channels, the second of half the sky and light."""
    rng = np.random.default_rng([seed, round(1000 * hour)])
    level = np.stack([sky(hour) + light, sky(hour, 750.0) + light / 2])
    rms = np.full(level.shape, noise * np.sqrt(n_good) / LEVEL_ERROR, np.float32)
    level += rng.normal(scale=noise, size=level.shape)
    return OwnBoxes(level.astype(np.float32), rms, np.full(level.shape, n_good, np.float32))


HOURS = np.linspace(0.0, 1.5, 8)


def truth(hour):
    return np.stack([sky(hour), sky(hour, 750.0)])


def rms(values):
    return float(np.sqrt(np.mean(np.square(values))))


def errors_of(night, hours=HOURS):
    return np.stack([night.background(k, GRID) - truth(hour) for k, hour in enumerate(hours)])


def test_a_nights_backgrounds_are_closer_than_each_alone():
    frames = [make_frame(hour, galaxy(600)) for hour in HOURS]
    night = solve_night(frames, GRID, black_level=BLACK)
    alone = np.stack([fit_background(f, GRID).background - truth(h) for f, h in zip(frames, HOURS, strict=True)])
    assert night.agrees.all()
    assert rms(errors_of(night)) < 0.8 * rms(alone)
    assert rms(errors_of(night)) < 1.0


def in_unit(boxes, scale, zero=0.0):
    """A frame's boxes in another unit, or with another zero."""
    return boxes._replace(
        level=(scale * boxes.level + zero).astype(np.float32), rms=(scale * boxes.rms).astype(np.float32)
    )


@pytest.mark.parametrize(("scale", "zero"), [(65535, 0), (1 / 65535, 0), (1e33, 0), (1, -30_000), (1, 1e9)])
def test_a_frame_in_another_unit_spoils_no_other(scale, zero):
    frames = [make_frame(hour, galaxy(600)) for hour in HOURS]
    expected = solve_night(frames[1:], GRID, black_level=BLACK)
    night = solve_night([in_unit(frames[0], scale, zero), *frames[1:]], GRID, black_level=BLACK)
    np.testing.assert_array_equal(night.agrees, [False] + [True] * (len(HOURS) - 1))
    np.testing.assert_array_equal(night.coefficients[1:], expected.coefficients)
    np.testing.assert_array_equal(night.vignetting, expected.vignetting)


def test_a_frame_in_another_unit_agrees_by_no_setting():
    frames = [make_frame(hour, galaxy(600)) for hour in HOURS]
    night = solve_night([in_unit(frames[0], 1000), *frames[1:]], GRID, black_level=BLACK, disagreement=1.0)
    np.testing.assert_array_equal(night.agrees, [False] + [True] * (len(HOURS) - 1))


def test_where_nothing_is_alike_all_are_left_to_themselves():
    light, noise = (make_frame(hour, galaxy(600)) for hour in HOURS[:2])
    light, noise = light._replace(level=100 * light.level), noise._replace(rms=100 * noise.rms)
    night = solve_night([light, noise], GRID, black_level=BLACK)
    assert not night.agrees.any()
    for found, boxes in zip(night.coefficients, (light, noise), strict=True):
        np.testing.assert_array_equal(found, fit_background(boxes, GRID).coefficients)


def test_frames_whose_sky_was_subtracted_are_a_night():
    """What is left of it is of either sign."""
    frames = [make_frame(hour, galaxy(600)) for hour in HOURS]
    zeros = [-np.median(boxes.level) + (-1) ** k * 0.1 for k, boxes in enumerate(frames)]
    night = solve_night([in_unit(boxes, 1, zero) for boxes, zero in zip(frames, zeros, strict=True)], GRID)
    assert night.agrees.all()


@pytest.mark.parametrize("scale", [2.0**-16, 2.0**16])
def test_the_unit_of_a_night_does_not_matter(scale):
    frames = [make_frame(hour, galaxy(600)) for hour in HOURS]
    expected = solve_night(frames, GRID, black_level=BLACK)
    night = solve_night([in_unit(boxes, scale) for boxes in frames], GRID, black_level=scale * BLACK)
    assert night.agrees.all()
    for k in range(len(HOURS)):
        np.testing.assert_allclose(night.background(k, GRID) / scale, expected.background(k, GRID), rtol=1e-5)


def cloud(peak, y=0.0, x=0.0):
    """A bright nebula with filaments, which ends sharply."""
    v, u = axes()
    across, down = (u - x - 0.1) / 0.6, (v - y + 0.1) / 0.7
    waves = 1 + 0.5 * np.cos(9 * (v - y) + 5 * (u - x)) + 0.5 * np.cos(7 * (u - x) - 11 * (v - y))
    return peak * lens() * np.maximum(1 - across**2 - down**2, 0) ** 2 * waves


def plate(peak):
    """Light that ends sharply."""
    v, u = axes()
    return peak * lens() * (np.hypot((u - 0.1) / 0.6, (v + 0.1) / 0.7) < 1)


@pytest.mark.parametrize("light", [galaxy(600), 0.5 * galaxy(600, 0.3, 0.4), plate(100)])
def test_a_nights_error_is_half_of_each_frames(light):
    frames = [make_frame(hour, light, noise=0.6) for hour in HOURS]
    alone = np.stack([fit_background(f, GRID).background - truth(h) for f, h in zip(frames, HOURS, strict=True)])
    assert rms(errors_of(solve_night(frames, GRID, black_level=BLACK))) < 0.5 * rms(alone)


def test_steep_light_that_moves_is_nobodys_disagreement():
    shifts = np.random.default_rng(2).uniform(-12, 12, (len(HOURS), 2)) * 2 / GRID.shape
    frames = [make_frame(h, cloud(2000, *by), noise=0.6) for h, by in zip(HOURS, shifts, strict=True)]
    night = solve_night(frames, GRID, black_level=BLACK)
    assert night.agrees.all()
    assert rms(errors_of(night)) < 2.0


def test_the_vignetting_is_the_lenss():
    night = solve_night([make_frame(hour) for hour in HOURS], GRID, black_level=BLACK)
    for channel in night.vignetting:
        found = mesh_of(channel, GRID)
        assert found.max() == pytest.approx(1.0, abs=2e-3)
        ratio = found / lens()
        assert ratio.std() / ratio.mean() < 0.01


def test_gradients_are_those_of_the_sky_before_the_lens():
    v, u = axes()
    frames = []
    for slope in (-0.1, 0.0, 0.05, 0.2):
        level = BLACK + 1000 * lens() * (1 + slope * u - 0.05 * v)
        boxes = make_frame(0.0, noise=0.5)
        frames.append(boxes._replace(level=np.stack([level, level]).astype(np.float32)))
    found = solve_night(frames, GRID, black_level=BLACK).gradient
    assert found.shape == (4, 2, 2)
    np.testing.assert_allclose(found[:, 0, 1], [-0.1, 0.0, 0.05, 0.2], atol=0.01)
    np.testing.assert_allclose(found[:, 0, 0], -0.05, atol=0.01)


def test_shifts_of_a_large_object_are_found():
    shifts = [(0.0, 0.0), (10.0, -8.0), (-12.0, 4.0), (2.0, 4.0)]
    frames = [
        make_frame(hour, galaxy(2000, 2 * dy / GRID.shape[0], 2 * dx / GRID.shape[1]), seed=1)
        for hour, (dy, dx) in zip(HOURS, shifts, strict=False)
    ]
    found = solve_night(frames, GRID, black_level=BLACK).shift
    expected = np.array(shifts) - np.mean(shifts, axis=0)
    # Somewhat too small: what a shift does to the steepest boxes does not count.
    np.testing.assert_allclose(found - found.mean(axis=0), expected, atol=4.0)


def test_a_frame_that_disagrees_is_left_to_itself():
    v, u = axes()
    clouds = 80 * np.sin(9 * u + 7 * v) * np.cos(8 * v)
    frames = [make_frame(hour) for hour in HOURS]
    frames[3] = make_frame(HOURS[3], clouds + 100)
    night = solve_night(frames, GRID, black_level=BLACK)
    assert night.agrees.tolist() == [k != 3 for k in range(len(HOURS))]
    assert night.rejected_share[3] > 0.15 > np.delete(night.rejected_share, 3).max()
    np.testing.assert_array_equal(night.background(3, GRID), fit_background(frames[3], GRID).background)
    assert np.isnan(night.shift[3]).all()
    assert rms(np.delete(errors_of(night), 3, axis=0)) < 0.5


def test_a_frame_alone_falls_back():
    frame = make_frame(0.3)
    night = solve_night([frame], GRID, black_level=BLACK)
    assert not night.agrees.any()
    assert night.shared is None
    np.testing.assert_array_equal(night.coefficients[0], fit_background(frame, GRID).coefficients)


def test_frames_with_nothing_in_common_are_left_to_themselves():
    upper, lower = make_frame(0.0), make_frame(0.5)
    upper.level[:, 20:], lower.level[:, :20] = np.nan, np.nan
    upper.n_good[:, 20:], lower.n_good[:, :20] = 0, 0
    night = solve_night([upper, lower], GRID, black_level=BLACK)
    assert np.isfinite(night.coefficients).all()


def test_the_order_of_frames_is_irrelevant():
    frames = [make_frame(hour, galaxy(600)) for hour in HOURS[:4]]
    one, other = solve_night(frames, GRID), solve_night(frames[::-1], GRID)
    np.testing.assert_allclose(one.coefficients, other.coefficients[::-1], atol=0.05)


def test_boxes_without_a_pixel_are_filled_by_other_frames():
    frames = [make_frame(hour) for hour in HOURS]
    for k, frame in enumerate(frames):
        hole = np.s_[:, 10:20, 5 * k : 5 * k + 8]
        frame.level[hole], frame.n_good[hole] = np.nan, 0
    assert rms(errors_of(solve_night(frames, GRID))) < 0.4


@pytest.mark.parametrize("shape", [(1, 1), (30, 50), (1, 400), (300, 2)])
def test_tiny_and_constant_nights(shape):
    grid = Grid(shape, (48, 48))
    full = (1, *grid.mesh_shape())
    boxes = OwnBoxes(*(np.full(full, value, np.float32) for value in (700, 0, 9)))
    night = solve_night([boxes] * 3, grid, black_level=512.0)
    np.testing.assert_allclose(night.background(0, grid), 700, rtol=1e-5)
    np.testing.assert_allclose(mesh_of(night.vignetting[0], grid), 1.0, atol=1e-3)
    np.testing.assert_allclose(night.gradient, 0.0, atol=1e-3)


def test_what_is_no_night_is_refused():
    frame = make_frame(0.0)
    with pytest.raises(NoBackgroundError):
        solve_night([], GRID)
    with pytest.raises(ShapeError, match="channels"):
        solve_night([frame, OwnBoxes(*(field[:1] for field in frame))], GRID)
    with pytest.raises(ShapeError):
        solve_night([frame], Grid((100, 100), (48, 48)))
    with pytest.raises(SettingsError, match="degree"):
        solve_night([frame], GRID, Fitting(degree=-1))
    frame.level[:] = np.nan
    with pytest.raises(NoBackgroundError):
        solve_night([frame, make_frame(0.1)], GRID)


def test_inputs_are_not_modified():
    frames = [make_frame(hour, galaxy(300)) for hour in HOURS[:3]]
    before = [[field.copy() for field in frame] for frame in frames]
    solve_night(frames, GRID)
    for frame, fields in zip(frames, before, strict=True):
        for one, other in zip(frame, fields, strict=True):
            np.testing.assert_array_equal(one, other)
