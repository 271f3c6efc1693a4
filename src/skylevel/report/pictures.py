"""An exposure's picture out of its commit record: checked, as whatever stands in a store may be damaged or made up."""

import base64
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from skylevel.report.drawing import Plot, line_plot
from skylevel.report.entries import number

Floats = NDArray[np.float64]

# What an image begins with, by its type.
_MAGIC = {"jpeg": b"\xff\xd8\xff", "png": b"\x89PNG\r\n\x1a\n"}
_TITLES = {"before": "before", "after": "after", "subtracted": "what was subtracted"}
# More than any picture that skylevel makes.
_MOST_BYTES = 1 << 20


@dataclass(frozen=True, slots=True)
class Shown:
    """An image of a picture: its title, a ``data:`` address, and a note on its stretch."""

    title: str
    address: str
    note: str = ""


@dataclass(frozen=True, slots=True)
class Picture:
    """What a page shows of an exposure's pixels.

    Attributes
    ----------
    images : list of Shown
        Before, after and what was subtracted, at one stretch; or some of them.
    outline : str
        Address of the sources' outline, to be laid over each of them; empty where there is none.
    width, height : int
        To show an image with, in the proportions of the exposure.
    stretch : str
        The common stretch, in words.
    meshes : list of Shown
        The background, of each channel.
    plots : list of Plot
        Of the lines' levels, and of their power.
    """

    images: list[Shown]
    outline: str
    width: int
    height: int
    stretch: str
    meshes: list[Shown]
    plots: list[Plot]


def picture_from(kept: Any) -> Picture | None:
    """Return a picture that a record keeps; None where there is none, or it is not of the form that is written."""
    try:
        return _picture(kept) if kept else None
    except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError):
        return None


def _picture(kept: Mapping[str, Any]) -> Picture:
    height, width = (float(kept["shape"][i]) for i in (0, 1))
    scale = 360 / max(height, width)
    low, high = (number(kept["stretch"][i]) for i in (0, 1))
    unit, images = str(kept["unit"]), kept["images"]
    return Picture(
        images=[Shown(_TITLES[name], _address(images[name], "jpeg")) for name in _TITLES if name in images],
        outline=_address(images["outline"], "png") if "outline" in images else "",
        # A strip is shown wider than it is, so that it can be seen.
        width=max(round(width * scale), 60),
        height=max(round(height * scale), 60),
        stretch=f"{low:.3g} to +{high:.3g} {unit}".strip(),
        meshes=[_mesh(mesh, unit) for mesh in kept["meshes"]],
        plots=_plots(kept, unit),
    )


def _address(text: str, form: str) -> str:
    """Return the ``data:`` address of an image in base 64, which is checked to be one."""
    content = base64.b64decode(text, validate=True)
    if not content.startswith(_MAGIC[form]) or len(content) > _MOST_BYTES:
        raise ValueError(f"not a small {form}")
    return f"data:image/{form};base64,{base64.b64encode(content).decode('ascii')}"


def _mesh(mesh: Mapping[str, Any], unit: str) -> Shown:
    name = f"background {mesh['name']}".strip()
    note = f"{number(mesh['low']):.4g} (black) to {number(mesh['high']):.4g} {unit}".strip()
    return Shown(name, _address(mesh["image"], "jpeg"), note)


def _plots(kept: Mapping[str, Any], unit: str) -> list[Plot]:
    if "levels" not in kept:
        return []
    what = "row" if kept["dim"] == "y" else "column"
    levels = [_curve(kept["levels"][name]) for name in ("before", "after")]
    step = int(number(kept["step"]))
    at = (np.arange(len(levels[0])) + 0.5) * step
    profile = line_plot(
        f"Level of each {what}" + (f", {step} {what}s a point" if step > 1 else ""), (f"detector {what}", at), unit,
        [("before", levels[0]), ("after", levels[1])],
    )  # fmt: skip
    return [profile, *_spectrum(kept, unit)]


def _spectrum(kept: Mapping[str, Any], unit: str) -> list[Plot]:
    frequency = _curve(kept["frequency"])
    powers = [(name, _curve(kept["power"][name])) for name in ("before", "after")]
    known = [(name, power) for name, power in powers if len(power) == len(frequency)]
    if not len(frequency) or not known:
        return []
    what = "row" if kept["dim"] == "y" else "column"
    x = (f"cycles a {what}", frequency)
    return [line_plot("Power spectrum of the levels", x, f"({unit})²" if unit else "power", known, log=True)]


def _curve(text: str) -> Floats:
    """Return numbers that a record keeps as 32-bit floats in base 64."""
    if len(text) > _MOST_BYTES:
        raise ValueError("not a small curve")
    return np.frombuffer(base64.b64decode(text, validate=True), "<f4").astype(float)
