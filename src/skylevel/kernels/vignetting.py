"""A night's frames solved together: what the lens and the sky give to all of them, and each frame's own gradient.

Differences between frames hold no galaxy, nebula or star, as these stand still: a frame's own part is seen everywhere.
What the frames share is seen in their mean, whose noise is less, so that fainter light is told from the sky.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from skylevel.errors import NoBackgroundError, ShapeError
from skylevel.kernels.linear import solve_positive
from skylevel.kernels.night_sky import (
    DIFFERENCES,
    NEAR_LIGHT,
    Background,
    Bool,
    Fitting,
    Float,
    Float32,
    Grid,
    SurfaceFit,
    as_background,
    chebyshev,
    check_boxes,
    fit_background,
    fit_surfaces,
    fit_table,
    level_error,
    mesh_of,
)
from skylevel.kernels.own_boxes import OwnBoxes
from skylevel.kernels.wings import Wings

# A box of one frame this many standard deviations from what all frames say counts half.
_OUTLIER = 4.0

# A box of constant value has no error: no level is known better than to this part of it, or of its usual error.
_LEAST_OF_LEVEL, _LEAST_OF_ERROR = 1e-5, 1e-2

# A frame with so many times the night's light or noise, or with so little, is in another unit or has another zero.
_UNLIKE = 10.0
# A sky is never taken for less than this many standard deviations of a pixel.
_LEAST_SKY = 25.0

# Of so many frames a majority tells who disagrees.
_A_FEW = 4

# Times that large objects' shifts between frames are found, and the frames' own parts without them.
_SHIFT_ROUNDS = 2

# Of the boxes beside bright light that stand out, wings that are there explain all but this share, and wings that are
# not there no more than leaves that one. What lies between is neither.
_WINGS, _NO_WINGS = 0.25, 0.6

# Powers of the squared distance from the frame's centre that make up a vignetting, and the degree of the sky before it.
_VIGNETTING_POWERS = 4
_SKY_DEGREE = 3

# Penalty on the sky's curvature in the logarithm, for each box: lets the lens have what both could explain.
_CURVATURE_RIDGE = 1e-6

# Light that the lens lets through anywhere, of that on its axis, at least.
_LEAST_LIGHT = 0.05


class Night(NamedTuple):
    """What a night's frames know together.

    Attributes
    ----------
    coefficients : ndarray (frame, channel, order_y, order_x) float32
        Each frame's background, as in `Background`; of a frame that disagrees, its background alone.
    shared : Background or None
        The mean of the agreeing frames' backgrounds; None where fewer than two agree.
    vignetting : ndarray (channel, order_y, order_x) float32
        Share of the light that the lens lets through, 1 where it is most; coefficients of a `Surface`.
    gradient : ndarray (frame, channel, 2) float32
        How the sky before the lens changes from the frame's centre to its edge along y and x, as a share of its level.
    shift : ndarray (frame, 2) float32
        How far along y and x the large objects stand from where they are in the mean, in pixels; NaN where a frame
        disagrees, about 0 where there is no such object.
    rejected_share : ndarray (frame,) float32
        Share of a frame's boxes that the night's mean and a gradient of the frame's own do not describe, though they do
        in most frames.
    agrees : ndarray (frame,) bool
        False where a frame was left to itself.
    """

    coefficients: Float32
    shared: Background | None
    vignetting: Float32
    gradient: Float32
    shift: Float32
    rejected_share: Float32
    agrees: Bool

    def background(self, frame: int, grid: Grid) -> Float32:
        """Return a frame's background (channel, mesh_y, mesh_x) float32 at the boxes' centres."""
        return np.stack([mesh_of(channel, grid) for channel in self.coefficients[frame]])


def solve_night(
    frames: Sequence[OwnBoxes],
    grid: Grid,
    fitting: Fitting | None = None,
    *,
    black_level: float = 0.0,
    disagreement: float = 0.15,
) -> Night:
    """Return a night's backgrounds and vignetting, from the boxes of its frames.

    Parameters
    ----------
    frames : sequence of OwnBoxes
        Of frames of one camera, lens and pointing; arrays (channel, mesh_y, mesh_x). Their order does not matter.
    grid : Grid
    fitting : Fitting, optional
        Of the night's mean and of what frames differ by from it; the mean of n frames is believed to
        ``tolerance / sqrt(n)``.
    black_level : float
        What a pixel without light reads, in the units of the frames. The vignetting alone depends on it.
    disagreement : float
        A frame of whose boxes more than this share differ from the mean otherwise is left to itself.

    Returns
    -------
    Night
        Where fewer than two frames agree, all are left to themselves, as by `fit_background`.

    Raises
    ------
    NoBackgroundError
        There is no frame, or a channel of one has no box with a pixel.
    ShapeError
        Boxes of a frame are not those of `grid`.
    SettingsError
        As of `fit_background`.

    Notes
    -----
    Extra memory: 20 bytes for each box of each frame, and some 100 for each of a channel's boxes and large source.
    """
    fitting = (fitting or Fitting()).check()
    _check_alike(frames)
    for boxes in frames:
        check_boxes(boxes, grid)
    alike = _alike(frames, black_level)
    share, own = _compared(frames, alike, grid, fitting)
    agrees = _agreeing(np.where(alike, share, np.inf), disagreement)
    members = np.flatnonzero(agrees).tolist()
    together = (
        _solve_together([frames[k] for k in members], [own[k] for k in members], grid, fitting) if members else None
    )
    own_of = dict(zip(members, together.own if together else [], strict=True))
    backgrounds = [
        together.shared.coefficients + own_of[k].coefficients.astype(np.float32)
        if together and k in own_of
        else fit_background(boxes, grid, fitting).coefficients
        for k, boxes in enumerate(frames)
    ]
    shift = np.full((len(frames), 2), np.nan, np.float32)
    if together:
        shift[agrees] = together.shift * grid.box_size
    coefficients = np.stack(backgrounds)
    night_sky = coefficients[agrees if agrees.any() else slice(None)].mean(axis=0, dtype=np.float64)
    lens = np.stack([_vignetting(channel, grid, black_level, fitting.degree) for channel in night_sky])
    gradient = np.stack([_gradients(background, lens, grid, black_level) for background in coefficients])
    return Night(coefficients, together.shared if together else None, lens, gradient, shift, share, agrees)


def _check_alike(frames: Sequence[OwnBoxes]) -> None:
    """Raise what `solve_night` says of frames that are no night."""
    if not frames:
        raise NoBackgroundError("a night without a frame has no background")
    if len(channels := {len(boxes.level) for boxes in frames}) > 1:
        raise ShapeError(f"frames of one night have different numbers of channels: {sorted(channels)}")


def _alike(frames: Sequence[OwnBoxes], black_level: float) -> Bool:
    """Return which frames (frame,) have about the night's light and noise: no other is compared with the night."""
    light = np.array([np.nanmedian(boxes.level) for boxes in frames]) - black_level
    noise = np.array([np.nanmedian(boxes.rms) for boxes in frames], np.float64)
    usual_light, usual_noise = _usual(light), _usual(noise)
    if usual_light > (least := _LEAST_SKY * usual_noise):
        near = _about(light, usual_light)
    else:
        # Of a sky that was subtracted what is left is noise, of either sign.
        near = np.abs(light - usual_light) <= _UNLIKE * least
    return near & (_about(noise, usual_noise) | (usual_noise <= 0))


def _usual(values: Float) -> float:
    """Return a frame's value that is in the middle of all frames': one of a frame, not between two."""
    return float(np.sort(values)[len(values) // 2])


def _about(values: Float, usual: float) -> Bool:
    return (values > usual / _UNLIKE) & (values < usual * _UNLIKE)


def _compared(
    frames: Sequence[OwnBoxes], alike: Bool, grid: Grid, fitting: Fitting
) -> tuple[Float32, dict[int, SurfaceFit]]:
    """Return the share (frame,) of boxes by which each differs from the night, and by what surface those alike do."""
    share, at = np.ones(len(frames), np.float32), np.flatnonzero(alike).tolist()
    if len(at) < 2:
        return share, {}
    compared = [frames[k] for k in at]
    own = _own_parts(compared, grid, fitting)
    share[at] = _rejected_share(compared, own)
    return share, dict(zip(at, own, strict=True))


def _own_parts(frames: Sequence[OwnBoxes], grid: Grid, fitting: Fitting) -> list[SurfaceFit]:
    """Return the surface by which each frame differs from the night."""
    # A mean of skies that move is smooth, a median is not; of what is left without their motion a median is, and no
    # frame that disagrees is in it.
    mean = _mean(np.stack([boxes.level for boxes in frames]))
    moved = [_difference(boxes, mean, grid, fitting) for boxes in frames]
    still = np.stack([boxes.level - part.surface for boxes, part in zip(frames, moved, strict=True)])
    middle = _median(still)
    return [_difference(boxes, middle, grid, fitting) for boxes in frames]


def _difference(boxes: OwnBoxes, night: Float, grid: Grid, fitting: Fitting) -> SurfaceFit:
    """Return the surface by which a frame differs from the night.

    Light that stands still is in no difference: boxes are judged alike on both sides, and each by itself, as those that
    differ are where a star crosses from one into the next.
    """
    free = fitting._replace(rejection=_OUTLIER, tolerance=0.0)
    return fit_surfaces(boxes.level - night, level_error(boxes), grid, free, DIFFERENCES)


def _mean(stack: Float32) -> Float:
    """Return the mean over the first axis of what is not NaN; NaN where all are."""
    good = np.isfinite(stack)
    n = good.sum(axis=0)
    total = np.where(good, stack, 0.0).sum(axis=0)
    return np.where(n > 0, total / np.maximum(n, 1), np.nan)


def _median(stack: Float) -> Float:
    """Return the median over the first axis of what is not NaN; NaN where all are."""
    ordered = np.sort(stack, axis=0)
    n = np.isfinite(ordered).sum(axis=0, keepdims=True)
    low, high = (np.take_along_axis(ordered, at, axis=0)[0] for at in (np.maximum(n - 1, 0) // 2, n // 2))
    return np.asarray((low + high) / 2)


def _rejected_share(frames: Sequence[OwnBoxes], own: list[SurfaceFit]) -> Float32:
    """Return the share (frame,) of a frame's boxes that its surface does not describe, though most frames' do."""
    seen = np.stack([np.isfinite(boxes.level) for boxes in frames])
    rejected = seen & (np.stack([part.weight for part in own]) < 0.5)
    if len(frames) >= _A_FEW:
        # Steep light that moves with the dithers is nobody's disagreement.
        rejected &= rejected.mean(axis=0) <= 0.5
    return np.asarray(rejected.sum(axis=(1, 2, 3)) / seen.sum(axis=(1, 2, 3)), np.float32)


def _agreeing(rejected_share: Float, disagreement: float) -> Bool:
    """Return which frames agree (frame,): none where it is but one."""
    agrees = rejected_share <= disagreement
    return np.asarray(agrees & (agrees.sum() > 1))


class _Together(NamedTuple):
    """The agreeing frames' mean background, the surfaces by which they differ from it, and their shifts in boxes."""

    shared: Background
    own: list[SurfaceFit]
    shift: Float


def _solve_together(
    frames: list[OwnBoxes], own: list[SurfaceFit], grid: Grid, fitting: Fitting
) -> _Together:
    """Return what frames share and how they differ, large objects moved to where they stand in the mean.

    A surface would take the difference between an object and its shifted self for the sky's.
    """
    # What a surface cannot follow stays as it is, however many frames there are; what was seen of it does not.
    believed = fitting._replace(tolerance=fitting.tolerance / float(np.sqrt(len(frames))))
    moved, shift, known = frames, np.zeros((len(frames), 2)), None
    for left in reversed(range(_SHIFT_ROUNDS + 1)):
        mean, error = _night_mean(moved, own)
        fit = fit_surfaces(mean, error, grid, believed, start=known)
        known = fit.weight.max(axis=0)
        if not left:
            break
        slopes = _slopes(mean, fit)
        shift = np.stack([_shift(boxes, part, mean, slopes) for boxes, part in zip(frames, own, strict=True)])
        moved = [_moved(boxes, slopes, by) for boxes, by in zip(frames, shift, strict=True)]
        own = [_difference(boxes, mean, grid, fitting) for boxes in moved]
    return _Together(as_background(_apart_from_wings(mean, error, fit, grid, believed), grid), own, shift)


def _apart_from_wings(mean: Float, error: Float, fit: SurfaceFit, grid: Grid, fitting: Fitting) -> SurfaceFit:
    """Return a better fit to the night's mean where large sources allow it, or the fit itself.

    The noise of a mean is so little that most of a frame stands beside light, and is left out. Where light has wings,
    as a galaxy's, they are fitted too. Where it ends sharply, as a nebula's, boxes beside it count.
    """
    near = fit_surfaces(mean, error, grid, fitting, NEAR_LIGHT, start=fit.weight.max(axis=0))
    wings = Wings.around(mean - near.surface, error)
    if wings is None:
        return fit
    beyond = fit_surfaces(mean, error, grid, fitting, NEAR_LIGHT, wings=wings)
    left_out, left_without = (np.sum(one.weight[:, wings.surroundings()] < 0.5) for one in (beyond, near))
    if left_out < _WINGS * left_without:
        return beyond
    return near if left_out > _NO_WINGS * left_without else fit


def _slopes(mean: Float, fit: SurfaceFit) -> Float:
    """Return how large objects' light changes from box to box along y and x (2, channel, mesh_y, mesh_x)."""
    light = np.where(np.isfinite(mean) & (fit.weight < 0.5), mean - fit.surface, 0.0)
    slopes = np.zeros((2, *mean.shape))
    for axis in (1, 2):
        if mean.shape[axis] > 1:
            slopes[axis - 1] = np.gradient(light, axis=axis)
    return slopes


def _shift(boxes: OwnBoxes, own: SurfaceFit, mean: Float, slopes: Float) -> Float:
    """Return how far (2,) a frame's large objects stand from where the mean has them, in boxes."""
    seen = np.isfinite(boxes.level) & np.isfinite(mean)
    difference = np.where(seen, boxes.level - own.surface - mean, 0.0)
    # The steeper the light, the less a shift alone describes it.
    error = np.maximum(np.where(seen, level_error(boxes), 1.0), _least_error(boxes))
    variance = error**2 + 0.01 * np.sum(slopes**2, axis=0)
    weight = np.where(seen, 1.0 / variance, 0.0)
    matrix = np.array([[np.sum(weight * one * other) for other in slopes] for one in slopes])
    matrix[np.diag_indices(2)] += 1.0 + 1e-9 * np.trace(matrix)
    return solve_positive(matrix, -np.array([np.sum(weight * slope * difference) for slope in slopes]))


def _moved(boxes: OwnBoxes, slopes: Float, shift: Float) -> OwnBoxes:
    """Return a frame's boxes with large objects where the mean has them."""
    return boxes._replace(level=boxes.level + (shift[0] * slopes[0] + shift[1] * slopes[1]).astype(np.float32))


def _least_error(boxes: OwnBoxes) -> float:
    """Return what a level's error is at the least, whatever the unit of the frame."""
    usual = _LEAST_OF_ERROR * float(np.median(level_error(boxes)[np.isfinite(boxes.level)]))
    return max(_LEAST_OF_LEVEL * abs(float(np.nanmedian(boxes.level))), usual, 1e-30)


def _night_mean(frames: list[OwnBoxes], own: list[SurfaceFit]) -> tuple[Float, Float]:
    """Return the mean (channel, mesh_y, mesh_x) of frames less their own parts, and its error."""
    total, weight = np.zeros(frames[0].level.shape), np.zeros(frames[0].level.shape)
    for boxes, part in zip(frames, own, strict=True):
        good = np.isfinite(boxes.level)
        precision = np.where(good, part.weight / np.maximum(level_error(boxes), _least_error(boxes)) ** 2, 0.0)
        total += precision * np.where(good, boxes.level - part.surface, 0.0)
        weight += precision
    seen = weight > 0
    weight = np.where(seen, weight, 1.0)
    return np.where(seen, total / weight, np.nan), np.where(seen, 1.0 / np.sqrt(weight), np.inf)


def _vignetting(night_sky: Float, grid: Grid, black_level: float, degree: int) -> Float32:
    """Return a channel's vignetting (order_y, order_x): what of the sky's logarithm depends on the radius alone.

    The sky before the lens is a slope and a curvature; of the curvature, what is the same in all directions is the
    lens's.
    """
    light = _light(night_sky, grid, black_level)
    v, u = grid.centres(0)[:, None], grid.centres(1)[None, :]
    (height, width), diagonal = grid.shape, float(np.hypot(*grid.shape))
    r2 = (v * height / diagonal) ** 2 + (u * width / diagonal) ** 2
    lens = [r2**power for power in range(1, _VIGNETTING_POWERS + 1)]
    orders = [(i, j) for i in range(_SKY_DEGREE + 1) for j in range(_SKY_DEGREE + 1 - i)]
    polynomials = [chebyshev(axis, _SKY_DEGREE + 1) for axis in (v, u)]
    sky = [polynomials[0][i] * polynomials[1][j] * np.ones_like(r2) for i, j in orders]
    # Enough to decide between curvatures that the lens and the sky could both have given.
    ridge = [0.0] * len(lens) + [_CURVATURE_RIDGE * r2.size * (i + j > 1) for i, j in orders]
    found = _least_squares(lens + sky, np.log(light / light.max()), ridge)
    dimming = sum(a * term for a, term in zip(found, lens, strict=False))
    share = np.maximum(np.exp(dimming - np.max(dimming)), _LEAST_LIGHT)
    return fit_table(share, grid, degree).astype(np.float32)


def _light(background: NDArray[np.floating], grid: Grid, black_level: float) -> Float:
    """Return a channel's background above the black level, above 0 everywhere."""
    light = mesh_of(background, grid).astype(np.float64) - black_level
    return np.maximum(light, max(1e-3 * float(light.max()), 1e-30))


def _least_squares(terms: list[Float], values: Float, ridge: list[float]) -> Float:
    """Return the terms' coefficients, with a penalty on their squares."""
    matrix = np.array([[np.sum(one * other) for other in terms] for one in terms])
    matrix[np.diag_indices_from(matrix)] += np.array(ridge) + 1e-12 * values.size
    return solve_positive(matrix, np.array([np.sum(term * values) for term in terms]))


def _gradients(background: Float32, lens: Float32, grid: Grid, black_level: float) -> Float32:
    """Return each channel's slope (channel, 2) along y and x of a frame's sky before the lens, by its level."""
    slopes = []
    for channel, vignetting in zip(background, lens, strict=True):
        sky = _light(channel, grid, black_level) / mesh_of(vignetting, grid)
        table = np.pad(fit_table(sky, grid, 1), ((0, 1), (0, 1)))
        slopes.append((table[1, 0] / table[0, 0], table[0, 1] / table[0, 0]))
    return np.array(slopes, np.float32)
