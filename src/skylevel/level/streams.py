"""The method "streams": levels of rows and amplifiers solved with the sky and large sources, alone or with a group."""

from collections.abc import Mapping, Sequence
from dataclasses import fields
from typing import Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from skylevel.kernels.amplifiers import Amplifiers, Grid, amplifier_layout
from skylevel.kernels.best_rows import StreamMeasurement, StreamSettings, measure_streams
from skylevel.kernels.cells import Rejection
from skylevel.kernels.column_levels import column_level
from skylevel.kernels.group_rows import GroupSky, combine_group, relevel
from skylevel.kernels.large_sources import LargeSources
from skylevel.kernels.row_metrics import judged_light, judged_stripes
from skylevel.kernels.sky import SkyShape, sky_terms, smooth_surface
from skylevel.kernels.streams import LAGS, StreamNoise, StripePrior
from skylevel.level.arrays import Array, as_array, gather, later
from skylevel.level.frames import JUDGED, MESH_DIMS, about_measured, few_points, mesh_coordinates, mesh_shape
from skylevel.level.threads import in_one_thread
from skylevel.recipes import Rows

# The detectors of NIRCam, NIRISS and NIRSpec have so many columns, and an output for each quarter of them.
_DETECTOR_WIDTH, _DETECTOR_OUTPUTS = 2048, 4
# Columns between two that are kept out of the fit, to judge it by: at the least and the most.
_HELD_OUT = 16, 64
# Rows between two of which the sources' light is looked at.
_FLUX_STEP = 8

# What is stored of a measurement: name in the store (and in `StreamMeasurement`), dimensions, dtype, meaning, and in
# which power of the image's unit.
_ARRAYS: Mapping[str, tuple[tuple[str, ...], type, str, int]] = {
    "cell": (("cell_y", "cell_x"), np.float32, "mean of 32 pixels of a row, sources left out", 1),
    "weight": (("cell_y", "cell_x"), np.float32, "inverse variance of a cell", -2),
    "coarse_cell": (("coarse_y", "coarse_x"), np.float32, "mean of 16 rows by 64 pixels, less quick stripes", 1),
    "coarse_weight": (("coarse_y", "coarse_x"), np.float32, "inverse variance of a coarse cell", -2),
    "node": (("node_y", "node_x"), np.float32, "height of a large source's spline; NaN where none is", 1),
    "sky": (("term",), np.float32, "Legendre coefficient of the sky", 1),
    "scatter": (("part", "lag"), np.float32, "scatter of rows' differences: shared, own, and its error", 2),
    "n_rows": ((), np.int64, "rows behind the scatter", 0),
    "sky_level": ((), np.float64, "level of the sky", 1),
    "white_noise": ((), np.float64, "standard deviation of a pixel", 1),
    "misfit": ((), np.float64, "scatter of blocks about the model, over that of white noise", 0),
    "believed": ((), np.bool_, "whether the model of sky and sources was used", 0),
    "used": ((), np.float64, "share of the good pixels that the cells kept", 0),
}
_NOISE = {
    "stripes_common": ("power of the stripes that amplifiers share", 2),
    "stripes_own": ("power of each amplifier's own stripes", 2),
    "stripes_exponent": ("the stripes' power falls as frequency to minus this", 0),
}
_READOUT = {
    "amplifier_first": ((), np.int64, "column of the first amplifier's first pixel", 0),
    "amplifier_width": ((), np.int64, "columns of an amplifier", 0),
    "right_to_left": (("amplifier",), np.bool_, "whether an amplifier was read towards smaller x", 0),
}


def stream_settings(recipe: Rows) -> StreamSettings:
    """Return a recipe's settings as the kernels take them."""
    return StreamSettings(
        Rejection(source_threshold=recipe.source_threshold, sigma_clip=recipe.sigma_clip),
        SkyShape(recipe.sky_degree, recipe.sky_steepness),
        LargeSources(recipe.large_source_threshold, recipe.large_source_spacing),
        StripePrior(recipe.noise_exponent, recipe.noise_exponent_rms, recipe.stripe_gate),
        recipe.misfit_limit,
    )


def amplifiers_of(attributes: Mapping[str, Any], n_fast: int, dim: str) -> Amplifiers:
    """Find the amplifiers of a frame from its header.

    Parameters
    ----------
    attributes : mapping
        Of the frame.
    n_fast : int
        Its pixels along the stripes.
    dim : {"y", "x"}
        The dimension across them.

    Returns
    -------
    Amplifiers

    Notes
    -----
    MIRI's outputs read every fourth column each: none has columns of its own, and rows have one level. So they have
    where the header does not say, unless the image is as wide as a detector of four outputs.
    """
    known = attributes.get("n_outputs")
    n = int(known) if known else _DETECTOR_OUTPUTS if n_fast == _DETECTOR_WIDTH else 1
    if str(attributes.get("instrument", "")).upper() == "MIRI" or not 1 <= n <= 2 * _DETECTOR_OUTPUTS:
        n = 1
    start = int(attributes.get("substrt1" if dim == "y" else "substrt2") or 1) - 1
    return amplifier_layout(
        n_fast,
        n_outputs=min(n, _DETECTOR_OUTPUTS),
        fast_axis=int(attributes.get("fast_axis", 1)),
        slow_axis=int(attributes.get("slow_axis", 2)),
        first_column=start if 0 <= start < _DETECTOR_WIDTH else 0,
    )


def estimate_streams(image: xr.DataArray, header: Mapping[str, Any], recipe: Rows, dim: str) -> xr.Dataset:
    """Measure the stripes of an image beside its sky and its large sources.

    Parameters
    ----------
    image : DataArray (y, x)
        NaN where a pixel is excluded.
    header : mapping
        The frame's attributes.
    recipe : Rows
    dim : {"y", "x"}
        The dimension across the stripes.

    Returns
    -------
    Dataset
        As `skylevel.level.rows.estimate_rows` says of the method "streams".
    """
    along = image if dim == "y" else image.transpose("x", "y")
    layout = amplifiers_of(header, along.shape[1], dim)
    settings, shape = stream_settings(recipe), (along.shape[0], along.shape[1])
    box_size = recipe.box_size, recipe.box_size
    found = later(_measure, gather(along.data), layout, settings, box_size, recipe.columns)
    unit = image.attrs.get("units", "")

    def variable(name: str, dims: Sequence[str], sizes: tuple[int, ...], dtype: Any, attrs: dict[str, Any]) -> Any:
        return tuple(dims), as_array(later(_item, found, name), sizes, dtype), attrs

    grid = Grid(shape, layout)
    sizes = _sizes(grid, settings)
    described = {**_ARRAYS, **_READOUT, **{n: ((), np.float64, *about) for n, about in {**_NOISE, **JUDGED}.items()}}
    variables = {
        name: variable(name, dims, tuple(sizes[d] for d in dims), dtype, about_measured(meaning, power, unit))
        for name, (dims, dtype, meaning, power) in described.items()
    }
    across = {"y": "row", "x": "column"}[dim]
    about = {"units": unit, "long_name": f"stripes: level of each {across} and amplifier"}
    if recipe.columns:
        beside = {"units": unit, "long_name": f"level of what lies across each {across}"}
        dims = ("x" if dim == "y" else "y",)
        variables["column_level"] = variable("column_level", dims, shape[1:], np.float32, beside)
    mask_dims = ("y", "x") if dim == "y" else ("x", "y")
    variables["row_level"] = variable("level", (dim, "amplifier"), (shape[0], layout.count), np.float32, about)
    mask = xr.DataArray(as_array(later(_item, found, "source_mask"), shape, np.bool_), dims=mask_dims)
    variables["source_mask"] = mask.transpose("y", "x").assign_attrs(long_name="pixels of sources").variable
    variables["background"] = _background(found, image, box_size, dim)
    coordinates = mesh_coordinates((image.sizes["y"], image.sizes["x"]), box_size)
    return xr.Dataset(variables, coords=coordinates)


def _background(found: Any, image: xr.DataArray, box_size: tuple[int, int], dim: str) -> Any:
    shape = image.sizes["y"], image.sizes["x"]
    across = shape if dim == "y" else shape[::-1]
    mesh = as_array(later(_item, found, "background"), mesh_shape(across, box_size), np.float32)
    about = {"long_name": "sky and large sources at the centre of each box", "units": image.attrs.get("units", "")}
    return MESH_DIMS, mesh if dim == "y" else mesh.T, {**about, "box_size": list(box_size), "image_shape": list(shape)}


def _sizes(grid: Grid, settings: StreamSettings) -> dict[str, int]:
    """Return the lengths of the stored arrays' dimensions."""
    nodes = (-(-n // settings.large_sources.spacing) + 3 for n in grid.shape)
    coarse = grid.coarse_shape
    return {
        "cell_y": grid.rows, "cell_x": grid.cells, "coarse_y": coarse[0], "coarse_x": coarse[1],
        **dict(zip(("node_y", "node_x"), nodes, strict=True)), "term": len(sky_terms(settings.sky.degree)), "part": 3,
        "lag": len(LAGS), "amplifier": grid.amplifiers.count,
    }  # fmt: skip


def _item(found: Mapping[str, Any], name: str) -> Any:
    return found[name]


def _measure(
    image: NDArray[np.floating], layout: Amplifiers, settings: StreamSettings, box_size: tuple[int, int], columns: bool
) -> dict[str, Any]:
    """Measure an image whose stripes lie along its rows; columns that are kept out of it judge what came of it."""
    held = np.zeros(image.shape[1], bool)
    step = min(max(image.shape[1] // _HELD_OUT[0], _HELD_OUT[0]), _HELD_OUT[1])
    held[step // 2 :: step] = True
    bad = np.broadcast_to(held, image.shape)
    # Pools of BLAS would add up in another order.
    with in_one_thread("scipy.linalg"):
        measured = measure_streams(image, bad, amplifiers=layout, settings=settings)
        surface = _surface(measured, image.shape, settings, box_size)
    found = {f.name: getattr(measured, f.name) for f in fields(StreamMeasurement)}
    found |= dict(zip(_NOISE, measured.noise, strict=True))
    found |= dict(zip(_READOUT, (layout.first, layout.width, np.array(layout.right_to_left)), strict=True))
    if columns:
        sky = ~measured.source_mask if measured.source_mask is not None else np.ones(image.shape, bool)
        rest = image - measured.level[:, column_amplifiers(layout, image.shape[1])]
        found["column_level"] = column_level(rest, sky, gate=settings.stripes.gate)
    return found | {"background": surface, **_judged(image, held, measured, layout)}


def _surface(
    measured: StreamMeasurement, shape: tuple[int, ...], settings: StreamSettings, box_size: tuple[int, int]
) -> NDArray[np.float32]:
    """Sky and large sources at the centres of boxes."""
    at = tuple((np.arange(-(-n // side)) + 0.5) * side - 0.5 for n, side in zip(shape, box_size, strict=True))
    smooth = smooth_surface(
        measured.sky, measured.node, at, shape=shape, degree=settings.sky.degree, spacing=settings.large_sources.spacing
    )
    return smooth.astype(np.float32)


def _judged(
    image: NDArray[np.floating], held: NDArray[np.bool_], measured: StreamMeasurement, layout: Amplifiers
) -> dict[str, float]:
    """Judge levels by the columns that were kept out, and by the light of sources."""
    amplifier = column_amplifiers(layout, image.shape[1])
    sources = measured.source_mask if measured.source_mask is not None else np.zeros(image.shape, bool)
    even = len(image) // 2 * 2
    before, free = image[:even, held], ~sources[:even, held]
    after = before - measured.level[:even][:, amplifier[held]]
    pairs = (even // 2, 2, int(held.sum()))
    rows = slice(_FLUX_STEP // 2, None, _FLUX_STEP)
    return {
        **judged_stripes(before.reshape(pairs), after.reshape(pairs), free.reshape(pairs), layout.count),
        **judged_light(image[rows], sources[rows], measured.level[rows][:, amplifier]),
    }


def column_amplifiers(layout: Amplifiers, n: int) -> NDArray[np.intp]:
    """Return the amplifier of each of n columns."""
    return np.repeat(np.arange(layout.count), np.diff(layout.edges(n)))


def readout_of(estimate: xr.Dataset) -> Amplifiers:
    """Return the amplifiers that an estimate was measured with."""
    directions = tuple(map(bool, np.atleast_1d(estimate["right_to_left"].values)))
    return Amplifiers(int(estimate["amplifier_first"]), int(estimate["amplifier_width"]), directions)


def levels_at(estimate: xr.Dataset, group: xr.Dataset | None, recipe: Rows) -> Array:
    """Return the levels (row, amplifier) of an estimate: with the sky of its group, where it agrees with that."""
    if group is None or not bool(group["agrees"]):
        return estimate["row_level"].data
    sky = GroupSky(
        group["sky_shape"].values, float(group["reference"]), _noise_of(group), group["distance"].values,
        group["agrees"].values,
    )  # fmt: skip
    with in_one_thread("scipy.linalg"):
        return relevel(
            _measurement(estimate), sky, shape=_image_shape(estimate), amplifiers=readout_of(estimate),
            settings=stream_settings(recipe),
        )  # fmt: skip


def combine_streams(members: xr.Dataset, recipe: Rows) -> xr.Dataset:
    """Find what exposures of one detector and filter know together.

    Parameters
    ----------
    members : Dataset
        Their estimates along `exposure`, lazily.
    recipe : Rows

    Returns
    -------
    Dataset
        ``sky_shape`` (shape_term) and ``reference``, the sky that they share, and the level that it was scaled to;
        ``shared_sky`` (sky_y, sky_x), the same as a surface over the frame, to look at;
        ``stripes_common``, ``stripes_own`` and ``stripes_exponent``, the stripes' pooled noise; for each exposure
        ``distance`` (member) of its sky from the shared one, 1 being expected, and ``agrees`` (member),
        whether it takes that. NaN and
        False where fewer than two exposures could be compared.
    """
    first = members.isel(exposure=0)
    measurements = [_measurement(members.isel(exposure=k), cells=False) for k in range(members.sizes["exposure"])]
    with in_one_thread("scipy.linalg"):
        sky = combine_group(
            measurements, shape=_image_shape(first), amplifiers=readout_of(first), settings=stream_settings(recipe)
        )
    if sky is None:
        nothing = np.full(len(measurements), np.nan, np.float32)
        terms = np.full(first.sizes["term"] - 1, np.nan)
        sky = GroupSky(terms, np.nan, StreamNoise(np.nan, np.nan, np.nan), nothing, np.zeros(len(nothing), bool))
    unit = str(first["white_noise"].attrs.get("units", ""))
    about = "Legendre coefficients of the shared sky but the first, over its level"
    shared = {"units": "", "long_name": about, "drawn_as": "shared_sky"}
    return xr.Dataset(
        {
            "shared_sky": _shared_sky(sky, first, recipe).assign_attrs(units=unit, long_name="the shared sky"),
            "sky_shape": (("shape_term",), sky.shape, shared),
            "reference": ((), sky.reference, {"units": unit, "long_name": "the shared sky's level"}),
            **{n: ((), v, about_measured(*_NOISE[n], unit)) for n, v in zip(_NOISE, sky.noise, strict=True)},
            "distance": (("member",), sky.distance, {"long_name": "of a sky from the shared one, 1 is expected"}),
            "agrees": (("member",), sky.member, {"long_name": "whether an exposure takes the shared sky"}),
        },
        coords={"member": members["exposure"].values} if "exposure" in members.coords else {},
    )  # fmt: skip


def _shared_sky(sky: GroupSky, estimate: xr.Dataset, recipe: Rows) -> xr.DataArray:
    """Return the shared sky as a surface (sky_y, sky_x) of few points over the frame of its members."""
    shape, settings = _image_shape(estimate), stream_settings(recipe)
    surface = smooth_surface(
        sky.reference * np.concatenate([[1.0], sky.shape]), np.zeros(estimate["node"].shape), few_points(shape),
        shape=shape, degree=settings.sky.degree, spacing=settings.large_sources.spacing,
    )  # fmt: skip
    drawn = xr.DataArray(surface.astype(np.float32), dims=("sky_y", "sky_x"))
    return drawn if "y" in estimate["row_level"].dims else drawn.rename(sky_y="sky_x", sky_x="sky_y").transpose()


def _noise_of(estimate: xr.Dataset) -> StreamNoise:
    return StreamNoise(*(float(estimate[name]) for name in _NOISE))


def _image_shape(estimate: xr.Dataset) -> tuple[int, int]:
    """Return rows and columns of the image, as its stripes lie."""
    across = "y" if "y" in estimate["row_level"].dims else "x"
    return estimate.sizes[across], estimate.sizes["x" if across == "y" else "y"]


def _measurement(estimate: xr.Dataset, *, cells: bool = True) -> StreamMeasurement:
    """Return a stored measurement; without its cells, which are large, where they are not asked for."""
    stored = {name: estimate[name].values for name in _ARRAYS if cells or name not in ("cell", "weight")}
    scalars = {name: value.item() for name, value in stored.items() if value.ndim == 0}
    nothing = np.zeros((0, 0), np.float32)
    return StreamMeasurement(
        **{"cell": nothing, "weight": nothing, **stored, **scalars},
        level=estimate["row_level"].values,
        noise=_noise_of(estimate),
    )
