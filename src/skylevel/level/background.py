"""The background mesh of an image: measured in boxes, kept as a Dataset, evaluated at pixels."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from skylevel.errors import UnsupportedFrameError
from skylevel.kernels.mesh import BoxStatistics, Mesh, Surface, finish_mesh
from skylevel.kernels.mosaic import subtract_backgrounds
from skylevel.kernels.night_pixels import Levelling, level_pixels
from skylevel.kernels.pattern import ColorPattern
from skylevel.kernels.tile import Tile
from skylevel.level.arrays import (
    Array,
    Output,
    as_array,
    gather,
    later,
    map_tiles,
    read_separately,
    whole_boxes,
    zeros,
)
from skylevel.level.frames import MESH_DIMS, frame_name, mesh_coordinates, mesh_shape

# Statistics of a box: level, rms and count.
N_STATISTICS = len(BoxStatistics._fields)

# The surface of a method that fits one, beside its values in the boxes.
COEFFICIENTS = "background_coefficients"

# Pixels of a block of a background image that nobody chunked.
_BLOCK_PIXELS = 4 << 20


def box_output(box_size: tuple[int, int], leading: tuple[int, ...] = ()) -> Output:
    """Return what a function gives that measures statistics (*leading, statistic, mesh_y, mesh_x) of a tile's boxes."""
    return Output(np.float64, (*leading, N_STATISTICS), box_size)


def measure_boxes(function: Any, image: Array, *args: Any, output: Output, halo: int = 0) -> Any:
    """Measure the boxes of an image (y, x), which is read for it alone; returns all statistics, in one piece.

    `function` is called as `skylevel.level.arrays.map_tiles` says.
    """
    boxes = whole_boxes(read_separately(image), output.per)
    return gather(map_tiles(function, boxes, *args, output=output, halo=halo))


def finished_mesh(statistics: Any, settings: Mapping[str, Any]) -> Any:
    """Return the `Mesh` of statistics (statistic, mesh_y, mesh_x); `settings` are those of `finish_mesh`."""
    return later(_finish, statistics, dict(settings))


def _finish(statistics: NDArray[np.float64], settings: dict[str, Any]) -> Mesh:
    return finish_mesh(BoxStatistics(*statistics), **settings)


def mesh_fields(mesh: Any, shape: tuple[int, ...], box_size: tuple[int, int]) -> tuple[Array, Array, Array]:
    """Return the arrays of the `Mesh` of an image (y, x): background, its rms, and the exclusion in percent ()."""
    sides = mesh_shape(shape, box_size)
    return (
        as_array(later(_field, mesh, 0), sides, np.float32),
        as_array(later(_field, mesh, 1), sides, np.float32),
        as_array(later(_field, mesh, 2), (), np.float64),
    )


def _field(mesh: Mesh, index: int) -> Any:
    return mesh[index]


def mesh_dataset(
    fields: tuple[Array, Array, Array],
    image: xr.DataArray,
    box_size: tuple[int, int],
    channels: list[str] | None = None,
) -> xr.Dataset:
    """Return a mesh as variables that can be used alone: with units, box centres, and the size of box and image.

    Parameters
    ----------
    fields : tuple of array
        ``background`` and ``background_rms`` ([channel,] mesh_y, mesh_x), and ``exclude_percentile`` ([channel]).
    image : DataArray (y, x)
        What was measured.
    box_size : tuple of int
        Sides (y, x) of a box in pixels.
    channels : list of str, optional
        Colour letters.
    """
    shape = (image.sizes["y"], image.sizes["x"])
    leading = ("channel",) if channels else ()
    about = {"units": image.attrs.get("units", ""), "box_size": list(box_size), "image_shape": list(shape)}
    background, rms, percentile = fields
    variables = {
        "background": ((*leading, *MESH_DIMS), background, {"long_name": "background in each box", **about}),
        "background_rms": ((*leading, *MESH_DIMS), rms, {"long_name": "scatter about it", **about}),
        "exclude_percentile": (
            leading, percentile, {"units": "percent", "long_name": "share of pixels a box may lack, as it was used"}
        ),
    }  # fmt: skip
    coordinates: dict[str, Any] = dict(mesh_coordinates(shape, box_size))
    if channels:
        coordinates["channel"] = ("channel", channels, {"long_name": "colour"})
    return xr.Dataset(variables, coords=coordinates)


def background_image(measured: xr.Dataset) -> xr.DataArray:
    """Return the background at every pixel, lazily.

    Parameters
    ----------
    measured : Dataset
        With ``background`` as `skylevel.level_rows`, `skylevel.level_channels`, their ``estimate_`` functions or a
        program's store give it, of one exposure; of a camera frame, with the attribute `color_filter_array`.

    Returns
    -------
    DataArray (y, x) float32
        In the units of the exposure; of a mosaic, each channel's at its own pixels. Chunked with Dask.

    Raises
    ------
    UnsupportedFrameError
        `measured` has no background, or that of several channels without their pattern.
    """
    if "background" not in measured or "box_size" not in measured["background"].attrs:
        raise UnsupportedFrameError(f"{frame_name(measured)}: holds no measured background")
    mesh = measured["background"]
    box_size, shape = (tuple(int(n) for n in mesh.attrs[name]) for name in ("box_size", "image_shape"))
    rows = max(_BLOCK_PIXELS // shape[1], 1)
    pixels = zeros(shape, rows)
    pattern, output = _pattern(measured), Output(np.float32)
    if COEFFICIENTS in measured:
        parts = (gather(measured[name].data) for name in (COEFFICIENTS, "black_level"))
        image = map_tiles(_smooth_surface, pixels, *parts, pattern, output=output)
    else:
        image = map_tiles(_surface, pixels, gather(mesh.data), box_size, pattern, output=output)
    attrs = {"units": mesh.attrs["units"], "long_name": "background"}
    return xr.DataArray(image, dims=("y", "x"), name="background_image", attrs=attrs)


def _pattern(measured: xr.Dataset) -> ColorPattern | None:
    if "channel" not in measured["background"].dims:
        return None
    if not measured.attrs.get("color_filter_array"):
        raise UnsupportedFrameError(f"{frame_name(measured)}: no color_filter_array tells whose background a pixel has")
    return ColorPattern.of(measured.attrs["color_filter_array"])


def _surface(
    tile: Tile, mesh: NDArray[np.float32], box_size: tuple[int, int], pattern: ColorPattern | None
) -> NDArray[np.float32]:
    rows, columns = tile.core
    if pattern is None:
        at = np.arange(rows.start, rows.stop)
        surface = Surface(mesh, range(rows.start, rows.stop), np.arange(columns.start, columns.stop), box_size=box_size)
        return surface.at(at)
    minus = [-1.0] * len(mesh)
    origin = (rows.start, columns.start)
    return subtract_backgrounds(
        tile.core_pixels(), pattern, list(mesh), box_size=box_size, norms=minus, pedestal=0.0, origin=origin
    )


def _smooth_surface(
    tile: Tile, light: NDArray[np.float32], black_level: NDArray[np.float32], pattern: ColorPattern
) -> NDArray[np.float32]:
    how = Levelling.of(light, black_level, norms=[-1.0] * len(light))
    origin = (tile.core[0].start, tile.core[1].start)
    return level_pixels(tile.core_pixels(), pattern, how, origin=origin, shape=tile.shape)
