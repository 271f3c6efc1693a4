"""The channel method of `Channels.method` "smooth": one surface through the boxes of each colour, light left out."""

from collections.abc import Hashable
from typing import Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from skylevel.errors import SettingsError
from skylevel.kernels.mesh import clip_box_size
from skylevel.kernels.night_pixels import Levelling, divisor_of, level_pixels
from skylevel.kernels.night_sky import Background, Fitting, Grid, chebyshev, fit_background, frame_coordinate
from skylevel.kernels.own_boxes import OwnBoxes
from skylevel.kernels.own_boxes import measure_boxes as measure_own_boxes
from skylevel.kernels.pattern import ColorPattern
from skylevel.kernels.tile import Tile
from skylevel.kernels.vignetting import Night, solve_night
from skylevel.level.arrays import Output, as_array, gather, later, map_tiles
from skylevel.level.background import COEFFICIENTS, measure_boxes
from skylevel.level.frames import MESH_DIMS, color_pattern, few_points, frame_name, mesh_coordinates, raw_mosaic
from skylevel.recipes import Channels

# More boxes than any frame needs; they are held in memory several times.
_MOST_BOXES = 1 << 20

_STATISTICS = len(OwnBoxes._fields)
_ORDERS = ("order_y", "order_x")


def estimate_smooth(frame: xr.Dataset, recipe: Channels) -> xr.Dataset:
    """Measure a smooth background of each channel.

    Returns
    -------
    Dataset
        ``background_coefficients`` (channel, order_y, order_x) float32 of the sky above the black level, as
        `skylevel.kernels.night_sky.Surface` takes them; by box (channel, mesh_y, mesh_x): ``background``, the surface;
        ``background_rms``, the scatter of single pixels; ``sky_level``, what was measured, above the black level;
        ``box_n_pixels``, of how many pixels; ``box_mask``, True where a box was left out. By channel, of boxes that
        were kept out of a fit: ``gradient_before``, ``gradient_after``, and ``gradient_noise``, the part of it that is
        noise. ``black_level`` (). All in ADU, but for counts.
    """
    raw, pattern = raw_mosaic(frame), color_pattern(frame)
    grid = _grid(frame, recipe, raw.shape)
    n, mesh = len(pattern.channels), grid.mesh_shape()
    black = _black_level(frame, recipe)
    output = Output(np.float32, (n * _STATISTICS,), grid.box_size)
    saturation = frame.attrs.get("white_level")
    statistics = measure_boxes(_statistics, raw.data, pattern, grid.box_size, saturation, output=output)
    fitted = later(_fitted, statistics, grid, _fitting(recipe), black)

    def field(name: str, *shape: int, dtype: Any = np.float32) -> Any:
        return as_array(later(dict.__getitem__, fitted, name), (n, *shape), dtype)

    units = {"units": raw.attrs.get("units", "")}
    about = units | {"box_size": list(grid.box_size), "image_shape": list(grid.shape)}
    by_box, side = ("channel", *MESH_DIMS), recipe.degree + 1
    variables = {
        "background": (by_box, field("background", *mesh), about | {"long_name": "background in each box"}),
        "background_rms": (by_box, field("background_rms", *mesh), about | {"long_name": "scatter of its pixels"}),
        "sky_level": (by_box, field("sky_level", *mesh), about | {"long_name": "level of a box above the black level"}),
        "box_n_pixels": (by_box, field("box_n_pixels", *mesh), {"long_name": "pixels that a box's level is from"}),
        "box_mask": (
            by_box, field("box_mask", *mesh, dtype=np.bool_), {"long_name": "boxes left out: light, or no pixel"}
        ),
        COEFFICIENTS: (
            ("channel", *_ORDERS),
            field(COEFFICIENTS, side, side),
            about | {"long_name": "background above the black level, as Chebyshev polynomials over y and x"},
        ),
        "gradient_before": ("channel", field("gradient_before"), units | {"long_name": "scatter of the sky's levels"}),
        "gradient_after": (
            "channel", field("gradient_after"), units | {"long_name": "the same about a surface fitted to other boxes"}
        ),
        "gradient_noise": ("channel", field("gradient_noise"), units | {"long_name": "of that, expected of noise"}),
        "black_level": ((), np.float32(black), units | {"long_name": "what a pixel without light reads"}),
    }  # fmt: skip
    channel = ("channel", pattern.channels, {"long_name": "colour"})
    return xr.Dataset(variables, coords={**mesh_coordinates(grid.shape, grid.box_size), "channel": channel})


def subtract_smooth(frame: xr.Dataset, estimate: xr.Dataset, recipe: Channels) -> xr.DataArray:
    """Return the frame's mosaic (y, x) float32 without its smooth backgrounds, divided too where the recipe says so."""
    raw, pattern = raw_mosaic(frame), color_pattern(frame)
    grid, norms = _grid(frame, recipe, raw.shape), [recipe.norms.get(channel, 1.0) for channel in pattern.channels]
    light, black = (gather(estimate[name].data) for name in (COEFFICIENTS, "black_level"))
    lens = gather(estimate["vignetting"].data) if "vignetting" in estimate else None
    how = later(_levelling, light, black, lens, grid, recipe, norms)
    levelled = map_tiles(_levelled, raw.data, pattern, how, output=Output(np.float32))
    return xr.DataArray(levelled, dims=raw.dims, attrs=raw.attrs)


def combine_night(members: xr.Dataset, recipe: Channels) -> xr.Dataset:
    """Solve a night's frames together.

    Parameters
    ----------
    members : Dataset
        What `estimate_smooth` gave of each, along `exposure`, which names them.
    recipe : Channels

    Returns
    -------
    Dataset
        ``vignetting`` and ``shared_coefficients`` (channel, order_y, order_x), and as surfaces over the frame, to look
        at, ``shared_sky`` and ``lens`` (channel, sky_y, sky_x); by `member`: its own
        ``background_coefficients``, ``sky_slope`` (channel, axis), ``shift`` (axis), ``rejected_share``, ``agrees``.
    """
    grid = _grid_of(members["sky_level"])
    fields = ("sky_level", "background_rms", "box_n_pixels")
    boxes = members[list(fields)].load()
    frames = [OwnBoxes(*(boxes[name].values[k] for name in fields)) for k in range(boxes.sizes["exposure"])]
    night = solve_night(frames, grid, _fitting(recipe), disagreement=recipe.disagreement)
    return _night_dataset(night, members, members["sky_level"].attrs.get("units", ""))


def with_night(estimate: xr.Dataset, night: xr.Dataset) -> xr.Dataset:
    """Return a frame's estimate with the background that its night gives it, and the night's vignetting."""
    found = night.drop_vars(set(night.coords) - set(estimate.coords))
    coefficients = found[COEFFICIENTS].assign_attrs(estimate[COEFFICIENTS].attrs)
    return estimate.assign({COEFFICIENTS: coefficients, "vignetting": found["vignetting"]})


def vignetting_in_corners(night: xr.Dataset) -> xr.DataArray:
    """Return how much of the light comes to a frame's corners (channel,), by a night's vignetting: their mean."""
    # A polynomial is 1, or 1 and -1, at the ends: of a corners' mean the even orders alone remain.
    return night["vignetting"][..., ::2, ::2].sum(["order_y", "order_x"])


def unevenness(estimate: xr.Dataset) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return how far a background's mesh is from the smooth surface that lies below light, and its noise (channel,).

    What is not smooth in it was stars', a galaxy's or the frame's edge: of a background by the other methods.
    """
    mesh, grid = estimate["background"].to_numpy(), _grid_of(estimate["background"])
    # A colour has a quarter of a box's pixels or more.
    n_pixels = np.full_like(mesh, grid.box_size[0] * grid.box_size[1] / 4)
    rms = estimate["background_rms"].to_numpy()
    surface = fit_background(OwnBoxes(mesh, rms, n_pixels), grid).background
    difference, error = (mesh - surface).astype(np.float64), rms / np.sqrt(n_pixels)
    return np.sqrt((difference**2).mean((1, 2))), np.sqrt((error.astype(np.float64) ** 2).mean((1, 2)))


def _night_dataset(night: Night, members: xr.Dataset, units: str) -> xr.Dataset:
    by_channel, axes = ("channel", *_ORDERS), ("member", "axis")
    grid = _grid_of(members["sky_level"])
    missing = np.full_like(night.vignetting, np.nan)
    shared = missing if night.shared is None else night.shared.coefficients
    adu, drawn = {"units": units}, ("channel", "sky_y", "sky_x")
    variables = {
        "shared_sky": (drawn, _drawn(shared, grid), adu | {"long_name": "mean background of the frames that agree"}),
        "lens": (
            drawn, _drawn(night.vignetting, grid), {"units": "1", "long_name": "light that the lens lets through"}
        ),
        COEFFICIENTS: (
            ("member", *by_channel), night.coefficients, adu | {"long_name": "each frame's background above black"}
        ),
        "shared_coefficients": (
            by_channel, shared,
            adu | {"long_name": "mean background of the frames that agree, coefficients", "drawn_as": "shared_sky"},
        ),
        "vignetting": (
            by_channel, night.vignetting,
            {"units": "1", "long_name": "light that the lens lets through, coefficients", "drawn_as": "lens"},
        ),
        "sky_slope": (
            ("member", "channel", "axis"), night.gradient,
            {"units": "1", "long_name": "change of the sky from centre to edge before the lens, as a share of it"},
        ),
        "shift": (axes, night.shift, {"units": "pixel", "long_name": "of large objects against their mean place"}),
        "rejected_share": ("member", night.rejected_share, {"units": "1", "long_name": "boxes that disagree"}),
        "agrees": ("member", night.agrees, {"long_name": "whether a frame was solved with the others"}),
    }  # fmt: skip
    names: dict[Hashable, Any] = {
        "member": [str(name) for name in members["exposure"].values],
        "channel": [str(name) for name in members["channel"].values],
        "axis": ["y", "x"],
    }
    return xr.Dataset(variables, coords={name: (name, np.array(v, dtype=object)) for name, v in names.items()})


def _drawn(coefficients: NDArray[np.floating], grid: Grid) -> NDArray[np.float32]:
    """Return surfaces (channel, sky_y, sky_x) at few points of a frame."""
    at = [frame_coordinate(i, n) for i, n in zip(few_points(grid.shape), grid.shape, strict=True)]
    along_y, along_x = (chebyshev(a, n) for a, n in zip(at, coefficients.shape[1:], strict=True))
    return np.einsum("cij,iy,jx->cyx", coefficients.astype(np.float64), along_y, along_x).astype(np.float32)


def _grid(frame: xr.Dataset, recipe: Channels, shape: tuple[int, ...]) -> Grid:
    grid = Grid((shape[0], shape[1]), clip_box_size(recipe.box_size, shape))
    n_y, n_x = grid.mesh_shape()
    if n_y * n_x > _MOST_BOXES:
        least = int(np.ceil(np.sqrt(shape[0] * shape[1] / _MOST_BOXES)))
        raise SettingsError(
            f"{frame_name(frame)}: box_size = {recipe.box_size} makes {n_y * n_x} boxes of it: use {least} or more"
        )
    return grid


def _grid_of(mesh: xr.DataArray) -> Grid:
    """Return where the boxes of a measured mesh stand."""
    (n_y, n_x), (side_y, side_x) = (map(int, mesh.attrs[name]) for name in ("image_shape", "box_size"))
    return Grid((n_y, n_x), (side_y, side_x))


def _fitting(recipe: Channels) -> Fitting:
    return Fitting(recipe.degree, recipe.stiffness, recipe.rejection)


def _black_level(frame: xr.Dataset, recipe: Channels) -> float:
    """Return that of a raw, the mean where colours differ; for a file that tells none, the recipe's."""
    return float(np.mean(frame.attrs.get("black_level", recipe.black_level)))


def _statistics(
    tile: Tile, pattern: ColorPattern, box_size: tuple[int, int], saturation: float | None
) -> NDArray[np.float32]:
    boxes = measure_own_boxes(tile, pattern, box_size=box_size, saturation=saturation)
    return np.concatenate(boxes)


def _fitted(statistics: NDArray[np.float32], grid: Grid, fitting: Fitting, black: float) -> dict[str, Any]:
    boxes = OwnBoxes(*np.split(statistics, _STATISTICS))
    boxes = boxes._replace(level=boxes.level - np.float32(black))
    found: Background = fit_background(boxes, grid, fitting)
    return {
        "background": found.background + np.float32(black),
        "background_rms": boxes.rms,
        "sky_level": boxes.level,
        "box_n_pixels": boxes.n_good,
        "box_mask": found.rejected,
        COEFFICIENTS: found.coefficients,
        "gradient_before": found.held_out.before,
        "gradient_after": found.held_out.after,
        "gradient_noise": found.held_out.noise,
    }


def _levelling(
    light: NDArray[np.float32],
    black: NDArray[np.float32],
    lens: NDArray[np.float32] | None,
    grid: Grid,
    recipe: Channels,
    norms: list[float],
) -> Levelling:
    divisor = None
    if recipe.correction == "divide":
        divisor = divisor_of(light, grid) if lens is None else lens
    return Levelling.of(light, black, divisor=divisor, norms=norms, pedestal=recipe.pedestal)


def _levelled(tile: Tile, pattern: ColorPattern, how: Levelling) -> NDArray[np.float32]:
    origin = (tile.core[0].start, tile.core[1].start)
    return level_pixels(tile.core_pixels(), pattern, how, origin=origin, shape=tile.shape)
