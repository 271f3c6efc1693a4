"""The smooth sky of a camera frame, fitted through its boxes with stars, galaxies and nebulae left out.

A surface is a sum of products of Chebyshev polynomials over the frame: some sixty numbers, from which it is evaluated
at any pixel, element by element in a fixed order, so that the bits do not depend on how an image was cut.
"""

from dataclasses import dataclass
from typing import NamedTuple, Self

import numpy as np
import scipy
from numpy.typing import NDArray

from skylevel.errors import NoBackgroundError, SettingsError, ShapeError
from skylevel.kernels.linear import solve_positive, solve_with_variance
from skylevel.kernels.mesh import weighted_sum
from skylevel.kernels.own_boxes import LEVEL_ERROR, OwnBoxes
from skylevel.kernels.wings import DOUBT, Wings

Float = NDArray[np.float64]
Float32 = NDArray[np.float32]
Int = NDArray[np.intp]
Bool = NDArray[np.bool_]

# Boxes are compared with the surface one by one, and in means over neighbours within Gaussians of these widths (boxes):
# the fainter light is, the larger it must be to be seen.
WIDTHS = (0.0, 1.0, 2.0, 4.0)

# Wider than this share of the mesh's shorter side, neighbours are no neighbourhood: nearly all boxes would be left out.
_WIDEST = 1 / 12

# What is left out is decided step by step, from what stands out most to what barely does; in the last rounds boxes
# below the surface are judged as those above it, without which noise would pull the surface down.
_ROUNDS, _EVEN_ROUNDS = 25, 4

# Where it begins with weights that are nearly right, so many rounds are left out.
_KNOWN_ROUNDS = 13
_STEP = 0.7

# Weights that change by less have settled.
_SETTLED = 0.02

# A background is not taken from less than this share of the boxes: where fewer would be left, light is left out no
# further, or the surface would be free between them and ever more boxes would stand above it.
_LEAST_SHARE = 0.42

# Boxes for each coefficient, at least.
_BOXES_PER_TERM = 3

# Degrees whose coefficients tell how fast a sky's coefficients fall; and the rates that are believed.
_TELLING = (2, 6)
_RATES = (0.2, 0.7)


class Fitting(NamedTuple):
    """How a surface is fitted.

    Attributes
    ----------
    degree : int
        Of the surface in x and y together, at most. Fewer boxes than three a coefficient lower it.
    stiffness : float
        How strongly coefficients are held to the rate at which the frame's own fall with their degree: 1 expects them
        to be as large as that, 2 half as large; 0 leaves them free.
    rejection : float
        Boxes this far above the surface lose half their weight, in standard deviations.
    tolerance : float
        Error that a surface may have, as a share of the channel's median level: boxes are not believed any better.
    """

    degree: int = 10
    stiffness: float = 1.0
    rejection: float = 3.0
    tolerance: float = 2e-4

    def check(self) -> Self:
        """Return itself.

        Raises
        ------
        SettingsError
            A number is out of range.
        """
        for name in ("degree", "stiffness", "tolerance"):
            if not getattr(self, name) >= 0:
                raise SettingsError(f"{name} = {getattr(self, name)}: must be 0 or more")
        if not self.rejection > 0:
            raise SettingsError(f"rejection = {self.rejection}: must be above 0")
        return self


class Judging(NamedTuple):
    """How boxes are judged that a surface does not describe.

    Attributes
    ----------
    widths : tuple of float
        Of the Gaussians within which neighbouring boxes are judged together, in boxes; 0 for a box alone.
    one_sided : bool
        Judge boxes below the surface as those above it only at the end; or from the beginning.
    by_weight : bool
        Neighbours that are left out are none: a box is not left out for standing beside light.
    """

    widths: tuple[float, ...] = WIDTHS
    one_sided: bool = True
    by_weight: bool = False


#: For light above the sky; for differences, in which there is none; and for light that was found already.
LIGHT, DIFFERENCES, NEAR_LIGHT = Judging(), Judging((0.0,), one_sided=False), Judging(by_weight=True)


class HeldOut(NamedTuple):
    """What a surface leaves of boxes that it was not fitted to: arrays (channel,), NaN where there are none.

    Attributes
    ----------
    before : ndarray
        Scatter (rms) of their levels about the median, the sky's gradient; in the units of the image.
    after : ndarray
        Of their levels about a surface through the others; with the boxes' own noise.
    noise : ndarray
        Of this the part that is expected of their pixels' noise.
    """

    before: Float32
    after: Float32
    noise: Float32


class Background(NamedTuple):
    """The smooth background of each channel of a frame.

    Attributes
    ----------
    coefficients : ndarray (channel, order_y, order_x) float32
        Of the Chebyshev polynomials over the frame; in the units of the image. See `Surface`.
    background : ndarray (channel, mesh_y, mesh_x) float32
        The surface at the boxes' centres.
    residual_rms : ndarray (channel,) float32
        Scatter of the accepted boxes about the surface.
    rejected : ndarray (channel, mesh_y, mesh_x) bool
        True where a box was left out: it holds no pixel, or light that is not the sky's.
    held_out : HeldOut
        Of one accepted box in five.
    """

    coefficients: Float32
    background: Float32
    residual_rms: Float32
    rejected: Bool
    held_out: HeldOut


class SurfaceFit(NamedTuple):
    """Surfaces through boxes, of every channel.

    `coefficients` (channel, order_y, order_x); at the boxes (channel, mesh_y, mesh_x) the `surface` and their `weight`
    of 0 to 1; `residual_rms` (channel,) of the boxes by weight; `held_out` (channel, 3), the fields of `HeldOut`.
    """

    coefficients: Float
    surface: Float
    weight: Float
    residual_rms: Float
    held_out: Float


@dataclass(frozen=True, slots=True)
class Grid:
    """Where boxes stand in a frame.

    Attributes
    ----------
    shape : tuple of int
        Of the frame (y, x).
    box_size : tuple of int
        Sides (y, x) of a box in pixels.
    """

    shape: tuple[int, int]
    box_size: tuple[int, int]

    def mesh_shape(self) -> tuple[int, int]:
        """Return how many boxes there are (y, x)."""
        return -(-self.shape[0] // self.box_size[0]), -(-self.shape[1] // self.box_size[1])

    def centres(self, axis: int) -> Float:
        """Return the boxes' centres along an axis in frame coordinates; of the last one, that of the part there is."""
        side, n = self.box_size[axis], self.shape[axis]
        start = np.arange(0, n, side)
        return frame_coordinate((start + np.minimum(start + side, n) - 1) / 2, n)


def frame_coordinate(index: NDArray[np.number], n: int) -> Float:
    """Return where pixels stand along an axis of `n` pixels, from -1 to 1 at the frame's edges."""
    return np.asarray((2.0 * index + 1.0) / n - 1.0)


def chebyshev(position: Float, n_orders: int) -> Float:
    """Return the Chebyshev polynomials (order, position) at positions from -1 to 1."""
    values = [np.ones_like(position), position]
    while len(values) < n_orders:
        values.append(2.0 * position * values[-1] - values[-2])
    return np.stack(values[:n_orders])


class Surface:
    """A smooth surface over a rectangle of a frame.

    Parameters
    ----------
    coefficients : ndarray (order_y, order_x) float
        Coefficient [i, j] belongs to ``T_i(v) T_j(u)``, with v and u from -1 to 1 over the frame's rows and columns.
    x : ndarray (x,) int
        Columns of the frame that will be asked for.
    shape : tuple of int
        Of the frame (y, x).

    Notes
    -----
    The same bits whatever pixels are asked for with a pixel: sums are made element by element, in a fixed order.
    """

    def __init__(self, coefficients: NDArray[np.floating], x: Int, *, shape: tuple[int, int]) -> None:
        self._n_y = shape[0]
        along = chebyshev(frame_coordinate(x, shape[1]), coefficients.shape[1])
        rows = [weighted_sum(row, along) for row in coefficients.astype(np.float64)]
        self._along_x = np.stack(rows).astype(np.float32)

    def at(self, y: Int) -> Float32:
        """Return the values (len(y), len(x)) float32 in the given rows of the frame."""
        along = chebyshev(frame_coordinate(y, self._n_y), len(self._along_x)).astype(np.float32)
        return weighted_sum(along[:, :, None], self._along_x[:, None, :])


def fit_background(boxes: OwnBoxes, grid: Grid, fitting: Fitting | None = None) -> Background:
    """Return the smooth background of each channel of a frame alone.

    Parameters
    ----------
    boxes : OwnBoxes
        Arrays (channel, mesh_y, mesh_x).
    grid : Grid
    fitting : Fitting, optional

    Returns
    -------
    Background

    Raises
    ------
    NoBackgroundError
        A channel has no box with a pixel.
    ShapeError
        `boxes` and `grid` differ in shape.
    SettingsError
        A number of `fitting` is out of range.

    Notes
    -----
    Light that is not the sky's is only ever added to it, and is not as smooth. Boxes above the surface are left out,
    those that stand out most first, alone or with their neighbours; then the surface is fitted anew. It sinks to what
    the boxes below it hold up, and ever fainter light is seen above it. Extra memory: some 100 bytes a box.
    """
    fitting = (fitting or Fitting()).check()
    check_boxes(boxes, grid)
    return as_background(fit_surfaces(boxes.level.astype(np.float64), level_error(boxes), grid, fitting), grid)


def as_background(fit: SurfaceFit, grid: Grid) -> Background:
    """Return a fit as it is kept, its mesh evaluated from the coefficients' float32."""
    coefficients = fit.coefficients.astype(np.float32)
    mesh = np.stack([mesh_of(channel, grid) for channel in coefficients])
    held_out = HeldOut(*fit.held_out.T.astype(np.float32))
    return Background(coefficients, mesh, fit.residual_rms.astype(np.float32), fit.weight < 0.5, held_out)


def check_boxes(boxes: OwnBoxes, grid: Grid) -> None:
    """Raise what `fit_background` says of boxes it cannot use."""
    if boxes.level.shape[1:] != grid.mesh_shape():
        raise ShapeError(f"boxes (y, x) {boxes.level.shape[1:]} are not those of a frame, {grid.mesh_shape()}")
    if not np.isfinite(boxes.level).any(axis=(1, 2)).all():
        raise NoBackgroundError("a channel has no pixel that counts; all are 0, saturated or not finite")


def level_error(boxes: OwnBoxes) -> Float:
    """Return the standard error of boxes' levels, in the shape of `boxes`; infinite where a box has no pixel."""
    with np.errstate(divide="ignore", invalid="ignore"):
        error = LEVEL_ERROR * boxes.rms.astype(np.float64) / np.sqrt(boxes.n_good)
    return np.where(boxes.n_good > 0, error, np.inf)


def mesh_of(coefficients: NDArray[np.floating], grid: Grid) -> Float32:
    """Return a surface (mesh_y, mesh_x) float32 at the boxes' centres."""
    y, x = (chebyshev(grid.centres(axis), n) for axis, n in enumerate(coefficients.shape))
    return _surface(coefficients.astype(np.float64), y, x).astype(np.float32)


def fit_table(values: Float, grid: Grid, degree: int) -> Float:
    """Return the coefficients (order_y, order_x) of the surface through values (mesh_y, mesh_x) that have no noise."""
    basis = _Basis(grid, degree, most_terms=values.size)
    return basis.table(basis.fit(values, np.ones_like(values), basis.no_ridge()), degree + 1)


def _surface(table: Float, y: Float, x: Float) -> Float:
    """Return the sum of ``table[i, j] * y[i] * x[j]`` (y, x)."""
    along_x = np.stack([weighted_sum(row, x) for row in table])
    return weighted_sum(y[:, :, None], along_x[:, None, :])


def fit_surfaces(
    level: Float,
    error: Float,
    grid: Grid,
    fitting: Fitting,
    judging: Judging = LIGHT,
    *,
    start: Float | None = None,
    wings: Wings | None = None,
) -> SurfaceFit:
    """Return the smooth surfaces through boxes, what stands above any of them left out of all.

    Parameters
    ----------
    level, error : ndarray (channel, mesh_y, mesh_x)
        Boxes' levels, NaN where there is none, and their standard errors; at least one level in each channel.
    grid : Grid
    fitting : Fitting
    judging : Judging
    start : ndarray (mesh_y, mesh_x), optional
        Weights to begin with, nearly right.
    wings : Wings, optional
        Of large sources, which are fitted with the surfaces, and changed; in their cores no box counts.
    """
    fits = [_ChannelFit(*channel, grid, fitting, judging) for channel in zip(level, error, strict=True)]
    outside: Float = np.ones(grid.mesh_shape())
    if wings is not None:
        outside[wings.core] = 0.0
    weight: Float = outside if start is None else start * outside
    limits = np.zeros(0)
    for n in range(0 if start is None else _KNOWN_ROUNDS, _ROUNDS):
        if wings is not None:
            wings.fit(list(fits), weight)
        views = _all_views([fit.deviations(weight) for fit in fits])
        # A surface that light or few boxes have led astray leaves boxes far below it: it does not judge by noise alone.
        least = _faint_side(views) if judging.one_sided or not limits.size else 1.0
        limits = np.maximum(np.maximum(_STEP * limits if limits.size else 1.0, least), 1.0)
        both_sides = not judging.one_sided or n >= _ROUNDS - _EVEN_ROUNDS
        found = _acceptance(np.abs(views) if both_sides else views, fitting.rejection * limits) * outside
        if found.mean() < _LEAST_SHARE:
            break
        settled = both_sides and (limits == 1.0).all() and np.abs(found - weight).max() < _SETTLED
        weight = found
        if settled:
            break
    finished = [fit.finished(weight, fitting.degree) for fit in fits]
    return SurfaceFit(*(np.stack(field) for field in zip(*finished, strict=True)))


def _all_views(channels: list[Float]) -> Float:
    """Return the deviations (view, mesh_y, mesh_x) of each channel, and of all channels together."""
    together = np.sum(channels, axis=0) / np.sqrt(len(channels))
    return np.concatenate([*channels, together])


def _faint_side(deviations: Float) -> Float:
    """Return the scatter (view,) of deviations, from those below 0."""
    return np.asarray(np.sqrt(2.0 * np.mean(np.minimum(deviations, 0.0) ** 2, axis=(1, 2))))


def _acceptance(deviations: Float, limits: Float) -> Float:
    """Return each box's weight, by the view in which it deviates most: 1/2 at a limit, and soon nothing."""
    worst = np.max(deviations / limits[:, None, None], axis=0)
    return np.asarray(1.0 / (1.0 + np.maximum(worst, 0.0) ** 4))


class _ChannelFit:
    """One channel's boxes and the surface through them, as weights are found; a `skylevel.kernels.wings.Channel`."""

    def __init__(self, level: Float, error: Float, grid: Grid, fitting: Fitting, judging: Judging) -> None:
        self._good = np.isfinite(level)
        self.level = np.where(self._good, level, 0.0)
        self.wings = np.zeros_like(self.level)
        self._stiffness, self._by_weight = fitting.stiffness, judging.by_weight
        scale = float(np.abs(np.median(level[self._good])))
        # Never 0: a constant frame has no error at all.
        floor = np.hypot(fitting.tolerance * scale, 1e-6 * max(scale, float(np.abs(self.level).max())) + 1e-30)
        known_error = self._error = np.where(self._good, error, 0.0)
        self._variance = known_error**2 + floor**2
        near = [width for width in judging.widths if width <= _WIDEST * min(level.shape)]
        n_good = int(self._good.sum())
        self._basis = _Basis(grid, fitting.degree, most_terms=n_good // _BOXES_PER_TERM)
        # The surface has an error of its own, from the noise of all boxes.
        own_error = float(np.median(known_error[self._good])) * np.sqrt(self._basis.n_terms / n_good)
        self._views = [_View(self._good, known_error, float(np.hypot(floor, own_error)), width) for width in near]
        self._ridge = self._basis.no_ridge()

    def precision(self, weight: Float) -> Float:
        """Return 1 over the boxes' variances, by weight."""
        return np.where(self._good, 1.0 / (self._variance + (DOUBT * self.wings) ** 2), 0.0) * weight

    def without_sky(self, values: Float, weight: Float) -> Float:
        """Return values (n, mesh_y, mesh_x) less the surface through each of them."""
        precision = self.precision(weight)
        coefficients = self._basis.fit(values, precision, self._ridge)
        return values - np.stack([self._basis.surface(one) for one in coefficients])

    def deviations(self, weight: Float) -> Float:
        """Return how far the boxes stand above the surface (view, mesh_y, mesh_x) that is fitted with these weights."""
        precision, sky = self.precision(weight), self.level - self.wings
        coefficients, variance = self._basis.fit_with_variance(sky, precision, self._ridge)
        self._ridge = self._basis.ridge(coefficients, variance, self._stiffness)
        residual = np.where(self._good, sky - self._basis.surface(coefficients), 0.0)
        near = residual * weight if self._by_weight else residual
        doubt = DOUBT * self.wings
        return np.stack([view.deviations(near if view.width else residual, doubt) for view in self._views])

    def finished(self, weight: Float, degree: int) -> SurfaceFit:
        """Return a `SurfaceFit` of this channel, without its first dimension."""
        weight, sky = np.where(self._good, weight, 0.0), self.level - self.wings
        coefficients = self._basis.fit(sky, self.precision(weight), self._ridge)
        surface = self._basis.surface(coefficients)
        rms = np.sqrt(np.sum(weight * (sky - surface) ** 2) / np.sum(weight))
        table = self._basis.table(coefficients, degree + 1)
        return SurfaceFit(table, surface, weight, np.asarray(rms), self._held_out(weight, sky))

    def _held_out(self, weight: Float, sky: Float) -> Float:
        """Return the fields of `HeldOut` (3,)."""
        out = _spread_out(weight.shape)
        tested = out & (weight >= 0.5)
        if not tested.any() or tested.sum() + self._basis.n_terms > (weight > 0).sum():
            return np.full(3, np.nan)
        surface = self._basis.surface(self._basis.fit(sky, self.precision(weight) * ~out, self._ridge))
        level = sky[tested]
        return np.array([_rms(level - np.median(level)), _rms(level - surface[tested]), _rms(self._error[tested])])


class _View:
    """Residuals as they look in means over neighbouring boxes, in standard deviations."""

    def __init__(self, good: Bool, error: Float, floor: float, width: float) -> None:
        self.width = width
        self._share = np.maximum(_blurred(good.astype(np.float64), width), 1e-9)
        # The square of a Gaussian is one of 1/sqrt(2) its width.
        variance = _blurred(error**2, width / np.sqrt(2.0)) / (4.0 * np.pi * width**2 if width else 1.0)
        self._sigma = np.sqrt(variance / self._share**2 + floor**2)

    def deviations(self, residual: Float, doubt: Float) -> Float:
        """Return the residuals' means (mesh_y, mesh_x); a box that is not good has residual 0 and does not count."""
        return _blurred(residual, self.width) / self._share / np.hypot(self._sigma, doubt)


def _blurred(values: Float, width: float) -> Float:
    """Return sums over neighbours within a Gaussian, nothing beyond the mesh's edges."""
    return np.asarray(scipy.ndimage.gaussian_filter(values, width, mode="constant")) if width else values


class _Basis:
    """Products of Chebyshev polynomials at the boxes' centres, up to a total degree; at most so many, if told."""

    def __init__(self, grid: Grid, degree: int, most_terms: int | None = None) -> None:
        self._pairs = _terms(grid.mesh_shape(), degree)
        while most_terms is not None and len(self._pairs) > max(most_terms, 1):
            degree -= 1
            self._pairs = _terms(grid.mesh_shape(), degree)
        # A product of two polynomials is the mean of two others, of the orders' sum and difference.
        self._y, self._x = (chebyshev(grid.centres(axis), 2 * int(self._pairs[:, axis].max()) + 1) for axis in (0, 1))
        self._degree = self._pairs.sum(axis=1)

    @property
    def n_terms(self) -> int:
        """Number of coefficients."""
        return len(self._pairs)

    def fit(self, values: Float, weight: Float, ridge: Float) -> Float:
        """Return the coefficients (..., term) of least squares with a penalty `ridge` (term,) on their squares.

        Values may be as many as wanted (..., mesh_y, mesh_x).
        """
        each = values.reshape(-1, *weight.shape)
        right = np.stack([self._moments(weight * one, 1)[*self._pairs.T] for one in each], axis=1)
        return solve_positive(self._normal(weight, ridge), right).T.reshape(*values.shape[:-2], -1)

    def fit_with_variance(self, values: Float, weight: Float, ridge: Float) -> tuple[Float, Float]:
        """Return such coefficients, and the variances (term,) they have where weights are 1 over variances."""
        return solve_with_variance(self._normal(weight, ridge), self._moments(weight * values, 1)[*self._pairs.T])

    def _normal(self, weight: Float, ridge: Float) -> Float:
        matrix = self._products(weight)
        matrix[np.diag_indices_from(matrix)] += ridge + 1e-12 * matrix[0, 0]
        return matrix

    def ridge(self, coefficients: Float, variance: Float, stiffness: float) -> Float:
        """Return the penalty (term,) that holds coefficients to the rate at which these fall with their degree.

        What a penalty took of a coefficient is in its variance: without it each penalty would make the next one larger.
        """
        degrees = np.arange(_TELLING[0], min(_TELLING[1], int(self._degree.max())) + 1)
        if degrees.size < 2:
            return np.zeros(self._degree.size)
        # No smaller than rounding: the logarithm of a constant frame's would be none.
        least = 1e-9 * abs(coefficients[0]) + 1e-30
        squares = coefficients**2 + variance + least**2
        sizes = np.array([0.5 * np.log(np.mean(squares[self._degree == n])) for n in degrees])
        centred = degrees - degrees.mean()
        rate = np.clip(np.sum(centred * sizes) / np.sum(centred**2), *np.log(_RATES))
        expected = np.exp(sizes.mean() + rate * (self._degree - degrees.mean()))
        # A level and a slope may be as large as they like.
        return np.where(self._degree > 1, (stiffness / expected) ** 2, 0.0)

    def no_ridge(self) -> Float:
        return np.zeros(self._degree.size)

    def surface(self, coefficients: Float) -> Float:
        """Return the values (mesh_y, mesh_x) at the boxes' centres."""
        table = self.table(coefficients)
        return _surface(table, self._y[: table.shape[0]], self._x[: table.shape[1]])

    def table(self, coefficients: Float, n_orders: int | None = None) -> Float:
        """Return coefficients as a table (order_y, order_x), of `n_orders` a side or as few as hold them."""
        shape = self._pairs.max(axis=0) + 1 if n_orders is None else (n_orders, n_orders)
        table = np.zeros(shape)
        table[*self._pairs.T] = coefficients
        return table

    def _products(self, weight: Float) -> Float:
        """Return the weighted sums (term, term) of the terms' products."""
        moments = self._moments(weight, 2)
        (y, x), (other_y, other_x) = self._pairs.T[:, :, None], self._pairs.T[:, None, :]
        both_y, both_x = (y + other_y, abs(y - other_y)), (x + other_x, abs(x - other_x))
        return np.asarray(sum(moments[i, j] for i in both_y for j in both_x) / 4.0)

    def _moments(self, values: Float, times: int) -> Float:
        """Return the sums (order_y, order_x) of values times polynomials, to `times` the terms' orders."""
        # Without matrix products, whose last bits differ between processors.
        n_y, n_x = times * self._pairs.max(axis=0) + 1
        along_y = np.stack([(values * self._y[i][:, None]).sum(axis=0) for i in range(n_y)])
        return np.stack([(along_y * self._x[j]).sum(axis=1) for j in range(n_x)], axis=1)


def _terms(mesh_shape: tuple[int, int], degree: int) -> Int:
    """Return the orders (term, 2) up to a total degree that a mesh can tell apart; the constant first."""
    n_y, n_x = (min(degree + 1, n) for n in mesh_shape)
    return np.array([(i, j) for i in range(n_y) for j in range(n_x) if i + j <= degree])


def _spread_out(mesh_shape: tuple[int, ...]) -> Bool:
    """Return a fifth of the boxes, none beside another."""
    y, x = np.indices(mesh_shape)
    return np.asarray((y + 2 * x) % 5 == 0)


def _rms(values: Float) -> float:
    return float(np.sqrt(np.mean(values**2)))

