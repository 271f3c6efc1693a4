"""Light of large sources beyond where it is bright: it falls off outward, about exponentially, along ellipses.

A surface that is fitted around a galaxy takes the galaxy's outermost light for sky, and a mask that reaches to where it
ends leaves too few boxes to fit. So it is fitted together with the sky.
"""

from typing import Protocol, Self

import numpy as np
import scipy
from numpy.typing import NDArray

from skylevel.kernels.linear import solve_nonnegative, solve_positive

Float = NDArray[np.float64]
Bool = NDArray[np.bool_]

# A source's core is where it stands so many standard deviations above the sky: the highest that fulfils what follows.
# High, as where a core ends depends on a sky that the wings are still in.
_CORES = (80.0, 40.0, 20.0, 10.0)
_LEAST_BOXES, _MOST_SOURCES = 16, 4

# Light falls by this power of e, or more, within once more the core's radius: what falls more slowly is not told from
# the sky. Less than the second at the core's edge, and it is sought further out, where most profiles are steeper.
_SLOPES = (2.0, 15.0)
_LEAST_SLOPE = 2.5

# Expected standard deviations: of a core's shift against the wings' and of their ellipses' difference, in radii; of the
# logarithm of the slope. And how far they go at a time.
_SHAPE, _SLOPE, _STEP = 0.2, 0.3, 0.1

#: Share of the wings' light that the model may be wrong by.
DOUBT = 0.05


class Channel(Protocol):
    """One channel's boxes (mesh_y, mesh_x), as wings see them."""

    level: Float
    wings: Float

    def precision(self, weight: Float) -> Float:
        """Return how much the boxes tell, 1 over variances."""

    def without_sky(self, values: Float, weight: Float) -> Float:
        """Return values (n, mesh_y, mesh_x) less the surface through each of them."""


class _Source:
    """A source of light: its ellipse, whose radius is 1 at the core's edge, and how fast it falls beyond it."""

    def __init__(self, core: Bool, slope: float) -> None:
        filled = scipy.ndimage.binary_fill_holes(core)
        index = np.indices(core.shape, np.float64)
        y, x = index - np.mean(index[:, filled], axis=1)[:, None, None]
        # Of a filled ellipse the mean square along an axis is a quarter of the axis's; a box has a size of its own.
        yy, xx = (4 * (np.mean(offset[filled] ** 2) + 1 / 12) for offset in (y, x))
        yx = 4 * np.mean((y * x)[filled])
        self._along = y / np.sqrt(yy)
        self._across = (x - yx / yy * y) / np.sqrt(xx - yx**2 / yy)
        self._slope = self._expected = float(np.clip(slope, *_SLOPES))

    def profile(self) -> Float:
        """Return the light (mesh_y, mesh_x), 1 at the core's edge."""
        return np.exp(-self._slope * (self.radius() - 1))

    def changes(self) -> Float:
        """Return how the profile changes (5, mesh_y, mesh_x) with what `change` takes."""
        radius, along, across = self.radius(), self._along, self._across
        by = np.stack([along, across, along**2 - across**2, 2 * along * across, radius * (radius - 1)])
        return -self._slope * self.profile() / radius * by

    def pull(self) -> Float:
        """Return how strongly each of them is held (5,) to what the core tells, and where to (5,)."""
        held = np.array([_SHAPE**-2] * 4 + [_SLOPE**-2])
        return np.stack([held, held * [0, 0, 0, 0, np.log(self._expected / self._slope)]])

    def change(self, by: Float) -> None:
        """Shift the ellipse by two numbers, stretch it by two, and make the fall steeper by one."""
        shift_along, shift_across, stretch, shear, steeper = np.clip(by, -_STEP, _STEP)
        along, across = self._along, self._across
        self._along = along + shift_along + stretch * along + shear * across
        self._across = across + shift_across - stretch * across + shear * along
        self._slope = float(np.clip(self._slope * np.exp(steeper), *_SLOPES))

    def radius(self) -> Float:
        """Return the boxes' distance (mesh_y, mesh_x) from the centre, 1 at the core's edge."""
        return np.maximum(np.hypot(self._along, self._across), 1e-9)


class Wings:
    """The wings of a frame's large sources; shapes are all channels', brightness is each one's own.

    Attributes
    ----------
    core : ndarray (mesh_y, mesh_x) bool
        True where the sources are too bright to be described.
    """

    def __init__(self, sources: list[_Source], core: Bool) -> None:
        self.core = core
        self._sources = sources

    @classmethod
    def around(cls, light: Float, error: Float) -> Self | None:
        """Return the wings of the sources in light above the sky (channel, mesh_y, mesh_x); None without any."""
        seen = np.isfinite(light) & np.isfinite(error) & (error > 0)
        each = np.where(seen, light, 0.0) / np.where(seen, error, 1.0)
        view = scipy.ndimage.gaussian_filter(each.sum(axis=0) / np.sqrt(len(light)), 1.0, mode="nearest")
        core = np.zeros(view.shape, np.bool_)
        sources: list[_Source] = []
        for limit in _CORES:
            labels, n = scipy.ndimage.label(view > limit)
            size = np.bincount(labels.ravel(), minlength=n + 1)
            for k in [k for k in range(1, n + 1) if size[k] >= _LEAST_BOXES]:
                there = labels == k
                # From the core's size, and that of where it is twice as bright.
                smaller = np.sqrt(np.count_nonzero(there & (view > 2 * limit)) / size[k])
                slope = np.log(2) / (1 - smaller) if smaller < 1 else np.inf
                if slope >= _LEAST_SLOPE and not (core & there).any() and len(sources) < _MOST_SOURCES:
                    sources.append(_Source(there, slope))
                    core |= there
        return cls(sources, core) if sources else None

    def surroundings(self) -> Bool:
        """Return where (mesh_y, mesh_x) wings are brightest: within twice a core's radius, but for the cores."""
        return np.any([source.radius() < 2 for source in self._sources], axis=0) & ~self.core

    def fit(self, channels: list[Channel], weight: Float) -> None:
        """Give channels the wings that describe them best beside a surface, and improve the wings' shapes."""
        profile = np.stack([source.profile() for source in self._sources])
        changes = np.concatenate([source.changes() for source in self._sources])
        held, right = np.concatenate([source.pull() for source in self._sources], axis=1)
        matrix = np.diag(held)
        for channel in channels:
            precision = channel.precision(weight)
            left, *rest = channel.without_sky(np.concatenate([[channel.level], profile, changes]), weight)
            around, moved = rest[: len(profile)], rest[len(profile) :]
            told = _products(precision, profile, around)
            # Two sources in one place are told apart by nothing.
            told[np.diag_indices_from(told)] *= 1 + 1e-6
            bright = solve_nonnegative(told, _products(precision, profile, [left])[:, 0])
            left = left - sum(a * one for a, one in zip(bright, around, strict=True))
            channel.wings = np.where(self.core, 0.0, np.sum(bright[:, None, None] * profile, axis=0))
            size = np.repeat(bright, len(changes) // len(profile))
            matrix += size[:, None] * size * _products(precision, changes, moved)
            right = right + size * _products(precision, changes, [left])[:, 0]
        step = solve_positive(matrix, right).reshape(len(profile), -1)
        for source, by in zip(self._sources, step, strict=True):
            source.change(by)


def _products(weight: Float, some: Float, others: list[Float]) -> Float:
    """Return the weighted sums (some, other) of products."""
    return np.array([[np.sum(weight * one * other) for other in others] for one in some])
