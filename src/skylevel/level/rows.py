"""The row methods: from each detector row its level, the median of its source-free pixels or the stripes alone."""

from functools import partial
from typing import Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from skylevel.io.masks import read_mask
from skylevel.kernels.amplifiers import Amplifiers
from skylevel.kernels.mesh import Clipping, Mesh, box_statistics, clip_box_size
from skylevel.kernels.row_metrics import judged_light, judged_stripes
from skylevel.kernels.sources import Detection, above_threshold, connected, smooth
from skylevel.kernels.stripes import row_level
from skylevel.kernels.tile import Tile
from skylevel.level.arrays import Array, Output, as_array, beside, gather, later, map_rows, map_tiles
from skylevel.level.background import box_output, finished_mesh, measure_boxes, mesh_dataset, mesh_fields
from skylevel.level.frames import JUDGED, about_measured, no_data_mask, science_image
from skylevel.level.images import image_frames, like
from skylevel.level.streams import amplifiers_of, column_amplifiers, estimate_streams, levels_at
from skylevel.recipes import Rows

# Rounds of sigma clipping: the default of photutils' Background2D.
_ROUNDS = 10

# Pairs of rows that judge the medians, at the least, and rows between two of them, at the most.
_JUDGED_PAIRS, _JUDGED_STEP = 32, 64

_MASK_ABOUT = {"long_name": "pixels of sources"}


def level_rows(frame: Any, recipe: Rows | None = None) -> Any:
    """Subtract from each detector row its level: the median of its source-free pixels, or the stripes alone.

    Parameters
    ----------
    frame : Dataset, array (y, x), DataArray or NDData
        A Dataset with `sci` (y, x), as `skylevel.open_frame` gives; not modified. An array (of NumPy, masked or not, or
        Dask), a DataArray or an ``NDData`` (such as ``CCDData``) is levelled as an image without header. Its masked
        pixels do not count, and lose their row's level as the others do.
    recipe : Rows, optional
        By default the method of the NIRCam notebook.

    Returns
    -------
    Dataset
        The frame's other variables and attributes, and ``sci`` (y, x), levelled, in its own dtype and units, with
        what `estimate_rows` measured. Lazy where the frame is chunked, with the same bits for any chunks. Of anything
        else, the levelled image as the same, with all that an ``NDData`` or DataArray has beside its pixels.

    Raises
    ------
    NoBackgroundError
        No pixel of the frame is finite. A lazy result raises it when it is computed.
    UnsupportedFrameError
        The frame has no `sci`.
    ShapeError
        The image has not two dimensions, no pixel, or no real numbers; or its mask is of another shape.
    SettingsError
        `recipe` is no `Rows`.
    """
    recipe = Rows.or_default(recipe)
    if not isinstance(frame, xr.Dataset):
        image, counted = image_frames(frame, "sci", gap=np.nan)
        return like(frame, subtract_rows(image, estimate_rows(counted, recipe), recipe))
    estimate = estimate_rows(frame, recipe)
    levelled = frame.assign({"sci": subtract_rows(frame, estimate, recipe), **estimate.data_vars})
    return levelled.assign_coords(estimate.coords).assign_attrs(recipe.provenance())


def estimate_rows(frame: xr.Dataset, recipe: Rows, *, detection: xr.Dataset | None = None) -> xr.Dataset:
    """Measure what `level_rows` subtracts: the source mask, the background that found it, the level of each row.

    Parameters
    ----------
    frame : Dataset
        With `sci` (y, x).
    recipe : Rows
    detection : Dataset, optional
        An earlier estimate of the same frame, whose mask and background are taken over; only the levels are new.

    Returns
    -------
    Dataset
        ``source_mask`` (y, x) bool; ``background`` and ``background_rms`` (mesh_y, mesh_x) float32; ``row_level`` (y,)
        or, where the stripes are vertical, (x,), in the units and dtype of `sci`, NaN where no pixel was left;
        ``exclude_percentile`` () the exclusion that left a box. By the method "streams", ``row_level`` (y, amplifier)
        or (x, amplifier) float32, of mean 0, the sky and large sources as ``background`` in boxes, and what a group
        levels again with (cells, their weights, the sky's coefficients), each with its meaning and unit.
    """
    image, dim = _counted(_with_data(frame), frame, recipe), stripe_dim(frame, recipe)
    if recipe.method == "streams":
        return estimate_streams(image, frame.attrs, recipe, dim)
    found = detect_rows(frame, recipe) if detection is None else detection
    levels = _levels(image.data, found["source_mask"].data, dim, recipe)
    unit = image.attrs.get("units", "")
    about = {"units": unit, "long_name": f"level of each {'row' if dim == 'y' else 'column'}"}
    across, masked = (a if dim == "y" else a.T for a in (image.data, found["source_mask"].data))
    n_amplifiers = amplifiers_of(frame.attrs, across.shape[1], dim).count
    judged = _judged_medians(across, masked, levels, n_amplifiers, recipe)
    kept = found.drop_vars(["row_level", *JUDGED], errors="ignore").assign(row_level=((dim,), levels, about))
    fields = {name: as_array(later(_item, judged, name), (), np.float64) for name in JUDGED}
    return kept.assign({name: ((), v, about_measured(*JUDGED[name], unit)) for name, v in fields.items()})


def detect_rows(frame: xr.Dataset, recipe: Rows) -> xr.Dataset:
    """Find the sources: the first half of `estimate_rows`, ``source_mask`` and the background that found them."""
    # A mosaic's empty pixels too, as in the notebook; they enter no level.
    image = _counted(science_image(frame), frame, recipe)
    box_size = clip_box_size(recipe.box_size, image.shape)
    mesh = _mesh(image.data, box_size, recipe)
    background = mesh_dataset(mesh_fields(mesh, image.shape, box_size), image, box_size)
    mask = _source_mask(image.data, background, box_size, recipe)
    return background.assign(source_mask=(("y", "x"), mask, _MASK_ABOUT))


def _counted(image: xr.DataArray, frame: xr.Dataset, recipe: Rows) -> xr.DataArray:
    """Return an image with NaN where a pixel's flags, or the user's mask, say that it does not count."""
    if recipe.dq_flags and "dq" in frame:
        image = image.where((frame["dq"] & np.uint32(recipe.dq_flags)) == 0)
    if recipe.mask:
        cards = str(frame.attrs.get("wcs", ""))
        of_user = beside(image.data, read_mask, recipe.mask, image.shape, cards, dtype=np.bool_)
        image = image.where(~xr.DataArray(of_user, dims=image.dims))
    return image


def subtract_rows(
    frame: xr.Dataset, estimate: xr.Dataset, recipe: Rows | None = None, group: xr.Dataset | None = None
) -> xr.DataArray:
    """Return the frame's `sci` less its row levels; a row without a level keeps its values, as does what is no data.

    `group` is what its group knows together, where it has one, and `recipe` that of both.
    """
    image, empty = science_image(frame), no_data_mask(frame)
    if "amplifier" in estimate["row_level"].dims:
        levelled = _subtract_streams(image, estimate, levels_at(estimate, group, recipe or Rows()))
        return levelled if empty is None else levelled.where(~empty, image).assign_attrs(image.attrs)
    levelled = image - estimate["row_level"].fillna(0).astype(image.dtype)
    if empty is not None:
        levelled = levelled.where(~empty, image)
    return levelled.transpose(*image.dims).assign_attrs(image.attrs)


def _subtract_streams(image: xr.DataArray, estimate: xr.Dataset, levels: Array) -> xr.DataArray:
    vertical = estimate["row_level"].dims[0] == "x"
    pixels, layout = image.data, (estimate[name].data for name in ("amplifier_first", "amplifier_width"))
    amplifier = later(_column_amplifiers, *layout, estimate.sizes["amplifier"], image.sizes["y" if vertical else "x"])
    taken = map_tiles(_less_levels, pixels, gather(levels), amplifier, vertical, output=Output(pixels.dtype))
    levelled = image.copy(data=taken)
    if "column_level" not in estimate:
        return levelled
    less = levelled - estimate["column_level"].astype(image.dtype)
    return less.transpose(*image.dims).assign_attrs(image.attrs)


def _column_amplifiers(first: NDArray[np.int64], width: NDArray[np.int64], n: int, n_x: int) -> NDArray[np.intp]:
    return column_amplifiers(Amplifiers(int(first), int(width), (False,) * n), n_x)


def _less_levels(
    tile: Tile, levels: NDArray[np.floating], amplifier: NDArray[np.intp], vertical: bool
) -> NDArray[np.floating]:
    """Subtract levels (row, amplifier) from a tile's own pixels."""
    pixels = tile.core_pixels()
    rows, columns = tile.core[::-1] if vertical else tile.core
    taken = levels[rows][:, amplifier[columns]].astype(pixels.dtype)
    return pixels - (taken.T if vertical else taken)


def stripe_dim(frame: xr.Dataset, recipe: Rows) -> str:
    """Return the dimension whose every index has a level: "y" for horizontal stripes, "x" for vertical ones.

    Stripes run along the detector's fast axis, which is x for FASTAXIS = 1 or -1 and y for 2 or -2.
    """
    if recipe.axis == "auto":
        return "x" if abs(frame.attrs.get("fast_axis", 1)) == 2 else "y"
    return {"rows": "y", "columns": "x"}[recipe.axis]


def segment_rows(frame: xr.Dataset, estimate: xr.Dataset, recipe: Rows) -> NDArray[np.uint32]:
    """Return the notebook's segmentation product: the sources of an estimate's mask, deblended, numbered from 1.

    Parameters
    ----------
    frame, estimate : Dataset
        In memory; `estimate` as `estimate_rows` gave it for the frame.
    recipe : Rows

    Returns
    -------
    ndarray (y, x) uint32
        0 where there is no source.

    Notes
    -----
    Deblending parts sources that touch; it never changes which pixels are masked, so only this product needs it.
    """
    # Importing photutils' segmentation takes as long as everything else together, and few ask for this product.
    from skylevel.kernels.deblending import deblend  # noqa: PLC0415

    smoothed = smooth(science_image(frame).to_numpy(), fwhm=recipe.kernel_fwhm, size=recipe.kernel_size)
    mask = estimate["source_mask"].to_numpy()
    return deblend(smoothed, mask, n_pixels=recipe.n_pixels, n_levels=recipe.n_levels, contrast=recipe.contrast)


def _with_data(frame: xr.Dataset) -> xr.DataArray:
    """Return a frame's `sci`, NaN where it is no data."""
    image, empty = science_image(frame), no_data_mask(frame)
    return image if empty is None else image.where(~empty).assign_attrs(image.attrs)


def _mesh(image: Array, box_size: tuple[int, int], recipe: Rows) -> Any:
    clipping = Clipping(recipe.sigma_clip, _ROUNDS, "median")
    statistics = measure_boxes(_statistics, image, box_size, clipping, output=box_output(box_size))
    settings = {
        "box_n_pixels": box_size[0] * box_size[1],
        "exclude_percentile": recipe.exclude_percentile,
        "filter_size": recipe.filter_size,
    }
    return finished_mesh(statistics, settings)


def _statistics(tile: Tile, box_size: tuple[int, int], clipping: Clipping) -> NDArray[np.float64]:
    return np.stack(box_statistics(tile.core_pixels(), box_size=box_size, clipping=clipping))


def _source_mask(image: Array, background: xr.Dataset, box_size: tuple[int, int], recipe: Rows) -> Array:
    detection = Detection(recipe.threshold, recipe.kernel_fwhm, recipe.kernel_size, recipe.n_pixels)
    names = ("background", "background_rms", "exclude_percentile")
    # In one piece, so that every tile refers to the one mesh.
    mesh = later(Mesh, *(gather(background[name].data) for name in names))
    # Whether a pixel stays is decided within n - 1 steps of it, and each of those pixels is smoothed.
    halo = recipe.n_pixels - 1 + recipe.kernel_size // 2
    return map_tiles(_mask, image, mesh, box_size, detection, output=Output(np.bool_), halo=halo)


def _mask(tile: Tile, mesh: Mesh, box_size: tuple[int, int], detection: Detection) -> NDArray[np.bool_]:
    above = above_threshold(tile.pixels, mesh, detection, box_size=box_size, origin=tile.origin)
    return tile.trim(connected(above, detection.n_pixels))


def _levels(image: Array, mask: Array, dim: str, recipe: Rows) -> Array:
    level = partial(row_level, positive_only=recipe.positive_only)
    return map_rows(level, image, mask) if dim == "y" else map_rows(level, image.T, mask.T)


def _judged_medians(image: Array, mask: Array, levels: Array, n_amplifiers: int, recipe: Rows) -> Any:
    """Judge rows' medians, in pairs of neighbouring rows here and there: those of even columns by odd ones."""
    step = min(max(image.shape[0] // _JUDGED_PAIRS, 2), _JUDGED_STEP)
    n = (image.shape[0] - step // 2) // step
    pairs = [slice(step // 2 + k - 1, step // 2 + k - 1 + n * step, step) for k in (0, 1)]
    parts = [gather(array[rows]) for array in (image, mask, levels) for rows in pairs]
    return later(_judge_pairs, *parts, n_amplifiers, recipe.positive_only)


def _judge_pairs(*given: Any) -> dict[str, float]:
    image, mask, level = (np.stack(given[k : k + 2], axis=1) for k in (0, 2, 4))
    n_amplifiers, positive_only = given[6:]
    even = [row_level(image[:, k, ::2], mask[:, k, ::2], positive_only=positive_only) for k in (0, 1)]
    odd, free = image[..., 1::2], ~mask[..., 1::2]
    less = odd - np.stack(even, axis=1)[..., None]
    light = judged_light(image[:, 0], mask[:, 0], np.broadcast_to(level[:, 0, None], image[:, 0].shape))
    return {**judged_stripes(odd, less, free, n_amplifiers), **light}


def _item(found: dict[str, float], name: str) -> float:
    return found[name]
