"""Numbers to what a page draws: axes with round ticks, lines as SVG paths, planes as colours."""

import base64
import io
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

Values = NDArray[Any]

# Cividis (Nuñez, Anderton and Renslow 2018), evenly spaced: the same to every kind of eye, and in grey.
CIVIDIS = ("#00224e", "#123570", "#3b496c", "#575d6d", "#707173", "#8a8678", "#a59c74", "#c3b369", "#e1cc55", "#fee838")
_COLORS = np.array([[int(color[i : i + 2], 16) for i in (1, 3, 5)] for color in CIVIDIS], float)
# Pixels of a plane that is drawn, along each side.
_MOST_PIXELS = 800


@dataclass(frozen=True, slots=True)
class Axis:
    """A direction of a plot: from `low` to `high`, over `length` units of the drawing."""

    low: float
    high: float
    length: float
    label: str = ""
    log: bool = False
    flipped: bool = False
    whole: bool = False

    def at(self, values: Any) -> Values:
        """Return where values stand, in units of the drawing."""
        low, high = (math.log10(end) if self.log else end for end in (self.low, self.high))
        with np.errstate(divide="ignore", invalid="ignore"):
            shown = np.log10(values) if self.log else np.asarray(values, float)
        part = (shown - low) / (high - low)
        return (1 - part if self.flipped else part) * self.length

    @property
    def ticks(self) -> list[tuple[float, str]]:
        """Where ticks stand, in units of the drawing, and what is written there."""
        values = _decades(self.low, self.high) if self.log else _round_values(self.low, self.high)
        if self.whole:
            values = [value for value in values if value == round(value)]
        return [(round(float(self.at(value)), 1), f"{value:.6g}") for value in values]


def axis_over(values: Any, length: float, label: str = "", *, log: bool = False, flipped: bool = False) -> Axis:
    """Return an axis that holds all finite values; of a logarithmic one, those above 0."""
    known = np.asarray(values, float)
    known = known[np.isfinite(known) & ((known > 0) | (not log))]
    low, high = (float(known.min()), float(known.max())) if known.size else (1.0, 10.0)
    if log:
        low, high = low / 1.3, high * 1.3
    else:
        margin = 0.04 * (high - low) or 0.1 * abs(high) or 1.0
        low, high = low - margin, high + margin
    return Axis(low, high, length, label, log, flipped)


def _round_values(low: float, high: float, about: int = 5) -> list[float]:
    step = 10 ** math.floor(math.log10((high - low) / about))
    step *= next(m for m in (1, 2, 5, 10) if (high - low) / (m * step) <= about)
    first = math.ceil(low / step)
    return [k * step for k in range(first, math.floor(high / step) + 1)]


def _decades(low: float, high: float) -> list[float]:
    """Return powers of ten; where there are few between the ends, 2 and 5 times them too."""
    ends = math.floor(math.log10(low)), math.ceil(math.log10(high))
    factors = (1,) if ends[1] - ends[0] > 4 else (1, 2, 5) if ends[1] - ends[0] < 3 else (1, 3)
    every = -(-(ends[1] - ends[0]) // 6)
    values = [m * 10.0**k for k in range(ends[0], ends[1] + 1, every) for m in factors]
    return [value for value in values if low <= value <= high]


def path(x: Values, y: Values) -> str:
    """Return a line through points, in units of the drawing, as an SVG path; broken where a value is not finite."""
    known = np.isfinite(x) & np.isfinite(y)
    parts, pen = [], "M"
    for px, py, is_known in zip(np.round(x, 1).tolist(), np.round(y, 1).tolist(), known.tolist(), strict=True):
        if is_known:
            parts.append(f"{pen}{px:g} {py:g}")
        pen = "L" if is_known else "M"
    return "".join(parts)


@dataclass(frozen=True, slots=True)
class Line:
    """A line of a plot: its name, one of eight styles, and its SVG path; and dots where `dots` says."""

    name: str
    style: int
    path: str
    dots: Sequence[tuple[float, float]] = ()


@dataclass(frozen=True, slots=True)
class Plot:
    """Lines over two axes."""

    title: str
    x: Axis
    y: Axis
    lines: Sequence[Line]


@dataclass(frozen=True, slots=True)
class Plane:
    """A plane (y, x) drawn in colours between two values."""

    title: str
    x: Axis
    y: Axis
    image: str
    low: str
    high: str
    unit: str = ""
    notes: Sequence[str] = field(default_factory=tuple)


def line_plot(title: str, x: tuple[str, Values], y: str, series: Sequence[tuple[str, Values]], **how: Any) -> Plot:
    """Return lines over one x.

    `how` may say `log` (both axes are logarithmic), `size` (width, height), `dots` and the `styles` of the lines.
    """
    log, (width, height) = how.get("log", False), how.get("size", (560, 170))
    name, positions = x
    x_axis = axis_over(positions, width, name, log=log)
    y_axis = axis_over(np.concatenate([values for _, values in series]), height, y, log=log, flipped=True)
    at = x_axis.at(positions)
    lines = []
    for style, (label, values) in zip(how.get("styles", range(8)), series, strict=False):
        up = y_axis.at(values)
        dots = zip(np.round(at, 1).tolist(), np.round(up, 1).tolist(), strict=True) if how.get("dots") else ()
        lines.append(Line(label, style, path(at, up), [(a, b) for a, b in dots if math.isfinite(a + b)]))
    return Plot(title, x_axis, y_axis, lines)


def plane_plot(title: str, plane: Values, x: str, y: str, unit: str = "", **how: Any) -> Plane:
    """Return a plane (y, x) in colours, from its 1st to its 99th percentile; `how` may say `size` (width, height)."""
    width, height = how.get("size", (560, 240))
    finite = plane[np.isfinite(plane)]
    low, high = (float(v) for v in np.percentile(finite, (1, 99))) if finite.size else (0.0, 1.0)
    upwards = how.get("upwards", False)
    across = Axis(0, plane.shape[1], width, x, whole=True)
    up = Axis(0, plane.shape[0], height, y, flipped=upwards, whole=True)
    shown = plane[::-1] if upwards else plane
    return Plane(title, across, up, colored(shown, low, high), f"{low:.3g}", f"{high:.3g}", unit, how.get("notes", ()))


def colored(plane: Values, low: float, high: float) -> str:
    """Return a plane (y, x) in cividis as PNG in base 64, at most `_MOST_PIXELS` a side; NaN is clear."""
    small = _averaged(_averaged(np.asarray(plane, float), 0), 1)
    part = np.clip((small - low) / ((high - low) or 1.0), 0, 1) * (len(_COLORS) - 1)
    known = np.isfinite(part)
    below = np.where(known, np.minimum(part, len(_COLORS) - 2), 0).astype(int)
    rest = np.where(known, part - below, 0)[..., None]
    colors = _COLORS[below] * (1 - rest) + _COLORS[below + 1] * rest
    rgba = np.concatenate([colors, 255.0 * known[..., None]], axis=-1).round().astype(np.uint8)
    return png(Image.fromarray(rgba, "RGBA"))


def png(image: Image.Image) -> str:
    """Return an image as PNG in base 64."""
    stream = io.BytesIO()
    image.save(stream, "PNG")
    return base64.b64encode(stream.getvalue()).decode("ascii")


def _averaged(plane: Values, axis: int) -> Values:
    """Average a plane along one axis over as many neighbours as it takes to be small enough."""
    step = -(-plane.shape[axis] // _MOST_PIXELS)
    if step == 1:
        return plane
    starts = np.arange(0, plane.shape[axis], step)
    known = np.isfinite(plane)
    sums = np.add.reduceat(np.where(known, plane, 0.0), starts, axis=axis)
    counts = np.add.reduceat(known.astype(float), starts, axis=axis)
    return np.where(counts > 0, sums / np.maximum(counts, 1), np.nan)
