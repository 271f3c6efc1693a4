"""What a frame must have to be levelled."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from skylevel.errors import ShapeError, UnsupportedFrameError
from skylevel.kernels.pattern import ColorPattern

MESH_DIMS = ("mesh_y", "mesh_x")

# Along the longer side of a surface that is only looked at.
_MOST_POINTS = 32

# What tells of rows without a truth: meaning, and in which power of the image's unit.
JUDGED: Mapping[str, tuple[str, int]] = {
    "stripes_before": ("neighbouring rows' difference on pixels kept out, white noise off", 1),
    "stripes_after": ("the same of the levelled image", 1),
    "scatter_after": ("scatter of neighbouring rows on pixels kept out, over that of white noise", 0),
    "source_flux": ("light of sources above the sky, in some of the rows", 1),
    "source_flux_after": ("the same of the levelled image", 1),
}


def science_image(frame: xr.Dataset) -> xr.DataArray:
    """Return a frame's `sci` (y, x), whole numbers as float32.

    Raises
    ------
    UnsupportedFrameError
        It has none.
    ShapeError
        It is no image of numbers.
    """
    image = _variable(frame, "sci", "rows are levelled in science images")
    return image if image.dtype.kind == "f" else image.astype(np.float32)


def no_data_mask(frame: xr.Dataset) -> xr.DataArray | None:
    """Pixels of a mosaic that no exposure reached: they hold 0 and mean nothing, so they are to stay as they are.

    Parameters
    ----------
    frame : Dataset
        With `sci`, and with `wht` where its file has that.

    Returns
    -------
    DataArray (y, x) bool or None
        True where `sci` is exactly 0 and `wht`, or in a mosaic without weights nothing, speaks for it. None for an
        exposure of a detector, where a 0 is a number like any other. Lazy where the frame is chunked.
    """
    if not frame.attrs.get("resampled"):
        return None
    empty = science_image(frame) == 0
    return empty & (frame["wht"] == 0) if "wht" in frame else empty


def raw_mosaic(frame: xr.Dataset) -> xr.DataArray:
    """Return a frame's `raw` (y, x).

    Raises
    ------
    UnsupportedFrameError
        It has none.
    ShapeError
        It is no image of numbers.
    """
    return _variable(frame, "raw", "channels are levelled in camera raws")


def color_pattern(frame: xr.Dataset) -> ColorPattern:
    """Return the colour-filter array of a frame.

    Raises
    ------
    UnsupportedFrameError
        It has none.
    SettingsError
        It is none: see `ColorPattern.of`.
    """
    rows = frame.attrs.get("color_filter_array")
    if rows is None:
        raise UnsupportedFrameError(
            f"{frame_name(frame)}: no color_filter_array; only camera raws have channels to level"
        )
    return ColorPattern.of(rows)


def frame_name(frame: xr.Dataset) -> str:
    """Return the path of a frame's file, to name it in a message."""
    return str(frame.attrs.get("path", "frame"))


def mesh_coordinates(shape: tuple[int, int], box_size: tuple[int, int]) -> dict[str, xr.Variable]:
    """Return the coordinates of a mesh: the pixel, counted from 0, at the centre of each box.

    Parameters
    ----------
    shape, box_size : tuple of int
        Of the image, and of a box (y, x), in pixels.
    """
    counts = mesh_shape(shape, box_size)
    coordinates = {}
    for dim, n, side in zip(MESH_DIMS, counts, box_size, strict=True):
        about = {"units": "pixel", "long_name": f"{dim[-1]} of a box's centre"}
        coordinates[dim] = xr.Variable((dim,), (np.arange(n) + 0.5) * side - 0.5, about)
    return coordinates


def mesh_shape(shape: tuple[int, ...], box_size: tuple[int, int]) -> tuple[int, int]:
    """Return how many boxes (mesh_y, mesh_x) an image (y, x) has."""
    return -(-shape[0] // box_size[0]), -(-shape[1] // box_size[1])


def about_measured(meaning: str, power: int, unit: str) -> dict[str, Any]:
    """Return the attributes of what is measured in a power of the image's unit."""
    return {"units": unit_power(unit, power), "long_name": meaning}


def unit_power(unit: str, power: int) -> str:
    """Return a power of a unit as astropy reads it; empty where the unit is unknown, or the power 0."""
    return unit if power == 1 or not unit else f"({unit})**{power}" if power else ""


def _variable(frame: xr.Dataset, name: str, wanted: str) -> xr.DataArray:
    if name not in frame:
        raise UnsupportedFrameError(f"{frame_name(frame)}: has no {name!r}; {wanted}")
    require_image(image := frame[name])
    if image.dims != ("y", "x"):
        raise ShapeError(f"{frame_name(frame)}: {name!r} has the dimensions {image.dims}; they must be ('y', 'x')")
    return image


def require_image(image: Any) -> None:
    """Refuse what is no image (y, x) of real numbers with at least one pixel.

    Raises
    ------
    ShapeError
        It is none.
    """
    if image.ndim != 2:
        raise ShapeError(f"an image has two dimensions (y, x), this one {image.ndim}: {image.shape}")
    if 0 in image.shape:
        raise ShapeError(f"an image has at least one pixel, this one none: {image.shape}")
    if image.dtype.kind not in "biuf":
        raise ShapeError(f"an image is of real numbers, this one of {image.dtype}")


def few_points(shape: tuple[int, int]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return rows and columns in pixel, evenly spread over a frame, at which to draw what is smooth: at most 32."""
    step = max(shape) / _MOST_POINTS
    counts = [max(round(n / step), 2) for n in shape]
    y, x = ((np.arange(count) + 0.5) * n / count - 0.5 for n, count in zip(shape, counts, strict=True))
    return y, x
