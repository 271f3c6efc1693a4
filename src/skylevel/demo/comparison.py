"""Outputs of several presets beside each other, on the demo's truth: in numbers, and as a picture."""

import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import PIL.Image
from PIL import ImageDraw, ImageFont

from skylevel.demo import schedule
from skylevel.demo.drawing import Values
from skylevel.demo.measure import Quantity, gradient_left, measure_levels, read_image, read_mosaic, stripes_left

# Part of the exposure that is drawn, its columns averaged: so that each row is seen, and stripes out of the noise.
_ROWS, _COLUMNS, _AVERAGED = slice(600, 840), slice(128, 1792), 8
_BINNED = 10
# Of a panel, in pixels; of the text around.
_SIZE, _GAP, _TEXT = (300, 200), 8, 15


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """How much structure an exposure had, and how much each preset left.

    Attributes
    ----------
    name, quantity, unit
        As of `skylevel.demo.DemoResult`.
    before : float
        Root mean square in `unit`.
    after : mapping of float
        The same, by preset; NaN where an output has no number to compare.
    """

    name: str
    quantity: Quantity
    unit: str
    before: float
    after: Mapping[str, float]


def measure_comparison(folder: Path, outputs: Mapping[str, Path]) -> list[Comparison]:
    """Compare outputs with the truth of the program that `write_program` wrote.

    Parameters
    ----------
    folder : Path
        Where the program was written.
    outputs : mapping of str to Path
        Where it was levelled, by preset.

    Raises
    ------
    UnreadableFrameError, ShapeError
        As `measure_levels`.
    """
    measured = {preset: measure_levels(folder, output, amplifiers=True) for preset, output in outputs.items()}
    return [
        Comparison(
            name=same[0].name,
            quantity=same[0].quantity,
            unit=same[0].unit,
            before=same[0].rms_before,
            after={preset: one.rms_after for preset, one in zip(measured, same, strict=True)},
        )
        for same in zip(*measured.values(), strict=True)
    ]


def draw_comparison(folder: Path, outputs: Mapping[str, Path], path: Path) -> Path:
    """Draw the first exposure and the first raw frame, and what is left of their structure, before and by preset.

    Parameters
    ----------
    folder, outputs
        As of `measure_comparison`.
    path : Path
        Of the picture, a PNG; replaced.

    Returns
    -------
    Path
        The same.
    """
    rows = _exposure_rows(folder, outputs) | _night_rows(folder, outputs)
    width, height = (side + _GAP for side in _SIZE)
    titles = ("before", *outputs)
    picture = PIL.Image.new("L", (_GAP + width * len(titles), _GAP + (height + 2 * _TEXT) * len(rows)), 255)
    pen, font = ImageDraw.Draw(picture), ImageFont.load_default(_TEXT)
    for i, (what, panels) in enumerate(rows.items()):
        top = _GAP + i * (height + 2 * _TEXT)
        for k, (title, panel) in enumerate(zip(titles, panels, strict=True)):
            left = _GAP + k * width
            pen.text((left, top), title if k else f"{what}: {title}", 0, font)
            picture.paste(panel, (left, top + _TEXT + _GAP))
    picture.save(path, optimize=True)
    return path


def _exposure_rows(folder: Path, outputs: Mapping[str, Path]) -> dict[str, list[PIL.Image.Image]]:
    stem = schedule.VISITS[0].stem
    image, _ = read_image(folder / f"{stem}.fits", "SCI")
    found = [stripes_left(folder, output, stem)[:2] for output in outputs.values()]
    return _two_rows(image, found, ("NIRCam exposure", "its stripes"), (0.035, 0.03), _part)


def _night_rows(folder: Path, outputs: Mapping[str, Path]) -> dict[str, list[PIL.Image.Image]]:
    stem = schedule.NIGHTS[0].stem
    raw = read_mosaic(folder / f"{stem}.dng")
    found = [gradient_left(folder, output, stem) for output in outputs.values()]
    return _two_rows(raw, found, ("raw night frame", "its sky"), (330.0, 330.0), _binned)


def _two_rows(
    image: Values,
    found: Sequence[tuple[Values, Values]],
    titles: tuple[str, str],
    half_stretches: tuple[float, float],
    reduced: Callable[[Values], Values],
) -> dict[str, list[PIL.Image.Image]]:
    """Draw an image before and after, and its structure: what there was, and what is left."""
    structure = found[0][0]
    planes = (
        [image, *(image - structure + left for _, left in found)],
        [structure, *(left for _, left in found)],
    )
    return {
        title: [_panel(reduced(plane), half) for plane in of_row]
        for title, half, of_row in zip(titles, half_stretches, planes, strict=True)
    }


def _part(image: Values) -> Values:
    """Return the part of an exposure that is drawn, its first row below."""
    cut = image[_ROWS, _COLUMNS][::-1]
    with warnings.catch_warnings():
        # A block of pixels without a number.
        warnings.simplefilter("ignore", RuntimeWarning)
        return np.asarray(np.nanmean(cut.reshape(len(cut), -1, _AVERAGED), axis=2))


def _binned(mosaic: Values) -> Values:
    """Return means over blocks, which hold all colours."""
    ny, nx = (n // _BINNED for n in mosaic.shape)
    return np.asarray(mosaic.reshape(ny, _BINNED, nx, _BINNED).mean((1, 3)))


def _panel(image: Values, half_stretch: float) -> PIL.Image.Image:
    """Return an image in greys around its median, of a panel's size."""
    shown = (image - np.nanmedian(image)) / half_stretch
    greys = np.nan_to_num(127.5 * (1 + np.clip(shown, -1, 1)), nan=127.5).astype(np.uint8)
    return PIL.Image.fromarray(greys, "L").resize(_SIZE, PIL.Image.Resampling.BOX)
