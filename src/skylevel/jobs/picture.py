"""The picture of an exposure that the store keeps in its commit record: small, made where the pixels are at hand.

It holds the image before and after at one stretch, what was subtracted, the sources' outline, the background's mesh,
and for an image with stripes the level of its lines with their power spectrum. The report shows it; nothing is
measured on it.
"""

import base64
import io
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np
import xarray as xr
from numpy.typing import NDArray
from PIL import Image

from skylevel.jobs.job import Measured
from skylevel.kernels.pattern import ColorPattern
from skylevel.kernels.preview import (
    block_means,
    block_sides,
    cell_means,
    center_and_spread,
    line_levels,
    masked_blocks,
    masked_cells,
    mosaic_means,
    outline,
    power_spectrum,
)
from skylevel.level.arrays import is_lazy
from skylevel.level.frames import MESH_DIMS

Floats = NDArray[np.float32]

# The stretch, in standard deviations of the picture before: from so far below the median to so far above.
_BELOW, _ABOVE = 3.0, 6.0
# Of JPEG: noise is most of a picture, and nobody needs it exactly.
_QUALITY = 70
# Points of a profile.
_POINTS = 512
# Lines of each block that are read of a frame that is done in blocks.
_LINES = 2
# Okabe and Ito's orange, which stands out of grey for every kind of eye.
_OUTLINE = (230, 159, 0)


class _Planes(NamedTuple):
    """A picture's pixels (y, x), or (channel, y, x): before and after, and the sources' mask (y, x) where there is one.

    `levels` are those of the lines, before and after, where the image has lines; `dim` is their direction's.
    """

    before: Floats
    after: Floats
    mask: NDArray[np.bool_] | None = None
    levels: tuple[Floats, Floats] | None = None
    dim: str = "y"


def picture_of(measured: Measured) -> dict[str, Any]:
    """Return the picture of an exposure, as plain values for its commit record; empty where it has no pixels to show.

    Notes
    -----
    Some 20 kB, in a hundredth of a second for 2048 x 2048 pixels. A frame that is done in blocks is read once more.
    """
    image = measured.frame[measured.job.variable]
    pattern = measured.frame.attrs.get("color_filter_array")
    # Pixels that are infinite, or nearly so, are no picture's concern.
    with np.errstate(invalid="ignore", over="ignore"):
        planes = _image_planes(image, measured) if pattern is None else _mosaic_planes(image, measured, pattern)
        if not planes.before.size:
            return {}
        return {
            "shape": list(image.shape),
            "unit": str(image.attrs.get("units", "")),
            **_pictures(planes),
            **_curves(planes),
            "meshes": _meshes(measured.estimate),
        }


def _image_planes(image: xr.DataArray, measured: Measured) -> _Planes:
    """Return the picture of an image, whose lines are cut into cells."""
    estimate, sides = measured.estimate, block_sides((image.sizes["y"], image.sizes["x"]))
    mask = estimate.get("source_mask", xr.zeros_like(image, bool))
    vertical = any("x" in v.dims and "y" not in v.dims for v in estimate.values())
    lines, across = ("x", "y") if vertical else ("y", "x")
    height, width = sides[::-1] if vertical else sides
    whole = not is_lazy(image.data)
    three = [image, measured.levelled(), mask]
    if not whole:
        three, height = _some_lines(three, lines, height), min(height, _LINES)
    *two, hidden = (plane.transpose(lines, across).data for plane in three)
    cells = [cell_means(plane, width=width) for plane in two]
    masked = masked_cells(hidden, width=width)
    levels = (line_levels(cells[0], masked), line_levels(cells[1], masked)) if whole else None
    pictures = [block_means(plane, height=height) for plane in cells]
    sources = masked_blocks(masked, height=height)
    if vertical:
        pictures, sources = [plane.T for plane in pictures], sources.T
    # The first row is the lowest, as everywhere with FITS; a mosaic's is the highest, as the camera has it.
    before, after = (plane[::-1] for plane in pictures)
    return _Planes(before, after, sources[::-1], levels, lines)


def _some_lines(planes: list[xr.DataArray], lines: str, height: int) -> list[xr.DataArray]:
    """Return the first lines of each block of lazy planes, in memory."""
    kept = np.flatnonzero(np.arange(planes[0].sizes[lines]) % height < _LINES)
    named = {str(i): plane.drop_vars(plane.coords).isel({lines: kept}) for i, plane in enumerate(planes)}
    return list(xr.Dataset(named).compute(scheduler="synchronous").values())


def _mosaic_planes(mosaic: xr.DataArray, measured: Measured, rows: tuple[str, ...]) -> _Planes:
    """Return the picture of a mosaic, colour by colour."""
    pattern = ColorPattern.of(rows)
    sides = block_sides((mosaic.sizes["y"], mosaic.sizes["x"]), pattern.period)
    two = (plane.to_numpy() for plane in (mosaic, measured.levelled()))
    before, after = (mosaic_means(plane, pattern, sides=sides) for plane in two)
    return _Planes(before, after)


def _pictures(planes: _Planes) -> dict[str, Any]:
    """Return the images of a picture at one stretch, each about its own median."""
    before, after = (_about_median(plane) for plane in (planes.before, planes.after))
    spread = center_and_spread(before)[1]
    low, high = (-_BELOW * spread, _ABOVE * spread) if spread > 0 else (-1.0, 1.0)
    shown = {"before": before, "after": after}
    if before.ndim == 2:
        shown["subtracted"] = _about_median(planes.before - planes.after)
    images = {name: _jpeg(_eight_bits(plane, low, high)) for name, plane in shown.items()}
    if planes.mask is not None and planes.mask.any():
        images["outline"] = _png_outline(outline(planes.mask))
    return {"stretch": [low, high], "images": images}


def _about_median(plane: Floats) -> Floats:
    """Return a plane (y, x), or each of several, less its median."""
    stack = plane.reshape(-1, *plane.shape[-2:])
    return np.stack([one - np.float32(center_and_spread(one)[0]) for one in stack]).reshape(plane.shape)


def _eight_bits(plane: Floats, low: float, high: float) -> NDArray[np.uint8]:
    # The greater of NaN and 0 is, for `fmax`, 0.
    scaled = np.fmax((plane - low) * (255 / (high - low)) + 0.5, 0)
    return np.minimum(scaled, 255).astype(np.uint8)


def _jpeg(plane: NDArray[np.uint8]) -> str:
    """Return a plane (y, x), or the first three of several (channel, y, x), or their mean, as JPEG in base 64."""
    if plane.ndim == 3:
        plane = np.moveaxis(plane, 0, -1) if len(plane) == 3 else plane.mean(axis=0).astype(np.uint8)
    return _encoded(Image.fromarray(np.ascontiguousarray(plane)), "JPEG", quality=_QUALITY)


def _png_outline(line: NDArray[np.bool_]) -> str:
    """Return a line as PNG in base 64, clear elsewhere."""
    image = Image.fromarray(line.astype(np.uint8), "P")
    image.putpalette([0, 0, 0, *_OUTLINE])
    return _encoded(image, "PNG", transparency=0, bits=1)


def _encoded(image: Image.Image, form: str, **options: Any) -> str:
    stream = io.BytesIO()
    image.save(stream, form, **options)
    return base64.b64encode(stream.getvalue()).decode("ascii")


def _curves(planes: _Planes) -> dict[str, Any]:
    """Return the levels of the lines, before and after, their scatter and their power spectra."""
    if planes.levels is None:
        return {}
    named = dict(zip(("before", "after"), planes.levels, strict=True))
    spectra = {name: power_spectrum(levels) for name, levels in named.items()}
    known = {name: center_and_spread(levels) for name, levels in named.items()}
    step = -(-len(planes.levels[0]) // _POINTS)
    return {
        "dim": planes.dim,
        "step": step,
        "levels": {name: _packed(_every(levels - known[name][0], step)) for name, levels in named.items()},
        "scatter": {name: spread for name, (_, spread) in known.items()},
        "frequency": _packed(spectra["before"][0]),
        "power": {name: _packed(power) for name, (_, power) in spectra.items()},
    }


def _every(levels: Floats, step: int) -> Floats:
    """Average levels over every `step` lines."""
    return block_means(levels[:, None], height=step)[:, 0]


def _packed(values: Floats) -> str:
    """Return numbers as 32-bit floats in base 64, little-endian."""
    return base64.b64encode(values.astype("<f4").tobytes()).decode("ascii")


def _meshes(estimate: xr.Dataset) -> list[Mapping[str, Any]]:
    """Return the measured background as small pictures, one a channel, each between its least and its largest value."""
    if "background" not in estimate:
        return []
    return [
        {"name": name, "low": float(np.nanmin(mesh)), "high": float(np.nanmax(mesh)), "image": _jpeg(_whole(mesh))}
        for name, mesh in _by_channel(estimate["background"])
        if np.isfinite(mesh).any()
    ]


def _by_channel(background: xr.DataArray) -> Iterator[tuple[str, Floats]]:
    if background.dims == MESH_DIMS:
        yield "", background.to_numpy()
    elif background.dims == ("channel", *MESH_DIMS):
        yield from zip(map(str, background["channel"].values), background.to_numpy(), strict=True)


def _whole(mesh: Floats) -> NDArray[np.uint8]:
    low, high = float(np.nanmin(mesh)), float(np.nanmax(mesh))
    return _eight_bits(mesh, low, high if high > low else low + 1)
