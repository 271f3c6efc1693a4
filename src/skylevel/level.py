"""Level one exposure: xarray in, xarray out, NumPy- or Dask-backed alike, with the same bits for any chunks."""

from typing import Any

import dask.array as da
import numpy as np
import xarray as xr
from dask.delayed import Delayed, delayed
from numpy.typing import NDArray

from skylevel.allocator import keep_freed_memory
from skylevel.chunked import gathered, map_tiles, mesh_chunks, read_again, starts, whole_boxes
from skylevel.errors import UnsupportedFrameError
from skylevel.kernels.mesh import BoxStatistics, Mesh, Surface, box_statistics, clip_box_size, finish_mesh
from skylevel.kernels.mosaic import (
    Pattern,
    box_n_pixels,
    channel_names,
    channel_statistics,
    halo_needed,
    subtract_backgrounds,
)
from skylevel.kernels.sources import above_threshold, connected, smooth
from skylevel.kernels.stripes import row_level
from skylevel.kernels.tile import Tile
from skylevel.recipes import Channels, Rows

# Rounds of sigma clipping: the defaults of photutils' Background2D, and of the SigmaClip the night-sky notebook makes.
_ROW_ROUNDS = 10
_CHANNEL_ROUNDS = 5

_MESH_DIMS = ("mesh_y", "mesh_x")

keep_freed_memory()


def level_rows(frame: xr.Dataset, recipe: Rows | None = None) -> xr.Dataset:
    """Subtract from each detector row the median of its source-free pixels.

    Parameters
    ----------
    frame : Dataset
        With `sci` (y, x), as `skylevel.open_frame` gives; not modified.
    recipe : Rows, optional
        By default the method of the NIRCam notebook.

    Returns
    -------
    Dataset
        The frame's other variables and attributes, and ``sci`` (y, x), levelled, in its own dtype and units, with
        what `estimate_rows` measured. Lazy where the frame is chunked, with the same bits for any chunks.

    Raises
    ------
    NoBackgroundError
        No pixel of the frame is finite. A lazy result raises it when it is computed.
    UnsupportedFrameError
        The frame has no `sci`.
    """
    recipe = recipe or Rows()
    estimate = estimate_rows(frame, recipe)
    return frame.assign({"sci": subtract_rows(frame, estimate), **estimate.data_vars})


def estimate_rows(frame: xr.Dataset, recipe: Rows, *, detection: xr.Dataset | None = None) -> xr.Dataset:
    """What `level_rows` measures: the source mask, the background that found it, and the level of each row.

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
        ``exclude_percentile`` () the exclusion that left a box.
    """
    sci = _variable(frame, "sci")
    if detection is None:
        detection = detect_rows(frame, estimate_background(frame, recipe), recipe)
    dim = stripe_dim(frame, recipe)
    levels = _levels(sci.data, detection["source_mask"].data, dim, recipe)
    return detection.drop_vars("row_level", errors="ignore").assign(row_level=((dim,), levels))


def estimate_background(frame: xr.Dataset, recipe: Rows) -> xr.Dataset:
    """The first step of `estimate_rows`: ``background``, ``background_rms`` and ``exclude_percentile``."""
    sci = _variable(frame, "sci")
    box_size = clip_box_size(recipe.box_size, sci.shape)
    mesh = _row_mesh(sci.data, box_size, recipe)
    mesh_shape = _mesh_shape(sci.shape, box_size)
    return xr.Dataset(
        {
            "background": (_MESH_DIMS, _field(mesh, 0, mesh_shape)),
            "background_rms": (_MESH_DIMS, _field(mesh, 1, mesh_shape)),
            "exclude_percentile": ((), _field(mesh, 2, (), np.float64)),
        }
    )


def detect_rows(frame: xr.Dataset, background: xr.Dataset, recipe: Rows) -> xr.Dataset:
    """The second step of `estimate_rows`: ``source_mask`` beside what `estimate_background` gave."""
    sci = _variable(frame, "sci")
    box_size = clip_box_size(recipe.box_size, sci.shape)
    fields = [background[name].data for name in ("background", "background_rms", "exclude_percentile")]
    mask = _source_mask(sci.data, fields, box_size, recipe)
    return background.assign(source_mask=(("y", "x"), mask))


def subtract_rows(frame: xr.Dataset, estimate: xr.Dataset) -> xr.DataArray:
    """The frame's `sci` less its row levels; a row without a level keeps its values."""
    sci = _variable(frame, "sci")
    levelled = sci - estimate["row_level"].fillna(0).astype(sci.dtype)
    return levelled.transpose(*sci.dims).assign_attrs(sci.attrs)


def stripe_dim(frame: xr.Dataset, recipe: Rows) -> str:
    """The dimension whose every index has a level: "y" for horizontal stripes, "x" for vertical ones.

    Stripes run along the detector's fast axis, which is x for FASTAXIS = 1 or -1 and y for 2 or -2.
    """
    if recipe.axis == "auto":
        return "x" if abs(frame.attrs.get("fast_axis", 1)) == 2 else "y"
    return {"rows": "y", "columns": "x"}[recipe.axis]


def segment_rows(frame: xr.Dataset, estimate: xr.Dataset, recipe: Rows) -> NDArray[np.uint32]:
    """The notebook's segmentation product: the sources of an estimate's mask, deblended and numbered from 1.

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

    smoothed = smooth(_variable(frame, "sci").to_numpy(), fwhm=recipe.kernel_fwhm, size=recipe.kernel_size)
    mask = estimate["source_mask"].to_numpy()
    return deblend(smoothed, mask, n_pixels=recipe.n_pixels, n_levels=recipe.n_levels, contrast=recipe.contrast)


def level_channels(frame: xr.Dataset, recipe: Channels | None = None) -> xr.Dataset:
    """Subtract a smooth background from each colour of a camera raw frame.

    Parameters
    ----------
    frame : Dataset
        With `raw` (y, x) and the attribute `color_filter_array`, as `skylevel.open_frame` gives; not modified.
    recipe : Channels, optional
        By default the method of the night-sky notebook.

    Returns
    -------
    Dataset
        The frame's attributes, and ``sci`` (y, x) float32, the levelled mosaic, with what `estimate_channels`
        measured. Lazy where the frame is chunked, with the same bits for any chunks.

    Raises
    ------
    NoBackgroundError
        No pixel of some channel is above 0. A lazy result raises it when it is computed.
    UnsupportedFrameError
        The frame has no `raw` or no `color_filter_array`.
    """
    recipe = recipe or Channels()
    estimate = estimate_channels(frame, recipe)
    levelled = subtract_channels(frame, estimate, recipe)
    return frame.drop_vars("raw").assign({"sci": levelled, **estimate.data_vars}).assign_coords(estimate.coords)


def estimate_channels(frame: xr.Dataset, recipe: Channels) -> xr.Dataset:
    """What `level_channels` measures: the background mesh of each channel.

    Returns
    -------
    Dataset
        ``background`` and ``background_rms`` (channel, mesh_y, mesh_x) float32 in ADU, and ``exclude_percentile``
        (channel,); the coordinate `channel` holds the colour letters.
    """
    raw = _variable(frame, "raw")
    pattern = frame_pattern(frame)
    channels = channel_names(pattern)
    box_size = clip_box_size(recipe.box_size, raw.shape)
    meshes = _channel_meshes(raw.data, pattern, box_size, recipe)
    shape = _mesh_shape(raw.shape, box_size)
    stack = da.stack if isinstance(raw.data, da.Array) else np.stack
    dims = ("channel", *_MESH_DIMS)
    return xr.Dataset(
        {
            "background": (dims, stack([_field(mesh, 0, shape) for mesh in meshes])),
            "background_rms": (dims, stack([_field(mesh, 1, shape) for mesh in meshes])),
            "exclude_percentile": (("channel",), stack([_field(mesh, 2, (), np.float64) for mesh in meshes])),
        },
        coords={"channel": channels},
    )


def subtract_channels(frame: xr.Dataset, estimate: xr.Dataset, recipe: Channels) -> xr.DataArray:
    """The frame's mosaic (y, x) float32 less each channel's background, scaled by the recipe's norms."""
    raw = _variable(frame, "raw")
    pattern = frame_pattern(frame)
    settings: dict[str, Any] = {
        "box_size": clip_box_size(recipe.box_size, raw.shape),
        "norms": [recipe.norms.get(channel, 1.0) for channel in channel_names(pattern)],
        "pedestal": recipe.pedestal,
    }
    meshes = estimate["background"].data
    if isinstance(raw.data, da.Array):
        levelled = raw.data.map_blocks(
            _subtract_block,
            pattern,
            meshes=gathered(da.asarray(meshes)),
            settings=settings,
            origins=starts(raw.data),
            dtype=np.float32,
            meta=np.empty((0, 0), np.float32),
        )
    else:
        levelled = subtract_backgrounds(raw.data, pattern, list(meshes), **settings)
    return xr.DataArray(levelled, dims=raw.dims, attrs=raw.attrs)


def background_image(frame: xr.Dataset, estimate: xr.Dataset, recipe: Rows | Channels) -> NDArray[np.float32]:
    """The background of an estimate at every pixel (y, x) float32; of a mosaic, each channel's at its own pixels."""
    shape = (frame.sizes["y"], frame.sizes["x"])
    box_size = clip_box_size(recipe.box_size, shape)
    meshes = estimate["background"].to_numpy()
    if isinstance(recipe, Rows):
        return Surface(meshes, range(shape[0]), np.arange(shape[1]), box_size=box_size).at(np.arange(shape[0]))
    pattern = frame_pattern(frame)
    norms = [-1.0] * len(meshes)
    return subtract_backgrounds(
        np.zeros(shape, np.float32), pattern, list(meshes), box_size=box_size, norms=norms, pedestal=0.0
    )


def frame_pattern(frame: xr.Dataset) -> Pattern:
    """The colour-filter array of a frame as an array (period_y, period_x) of letters.

    Raises
    ------
    UnsupportedFrameError
        The frame has none.
    """
    rows = frame.attrs.get("color_filter_array")
    if not rows:
        raise UnsupportedFrameError(f"{_name(frame)}: no color_filter_array; only camera raws have channels to level")
    return np.array([list(row) for row in rows])


def _variable(frame: xr.Dataset, name: str) -> xr.DataArray:
    if name not in frame:
        wanted = {"sci": "rows are levelled in science images", "raw": "channels are levelled in camera raws"}
        raise UnsupportedFrameError(f"{_name(frame)}: has no {name!r}; {wanted[name]}")
    return frame[name]


def _name(frame: xr.Dataset) -> str:
    return str(frame.attrs.get("path", "frame"))


def _mesh_shape(shape: tuple[int, ...], box_size: tuple[int, int]) -> tuple[int, int]:
    return -(-shape[0] // box_size[0]), -(-shape[1] // box_size[1])


def _field(mesh: Any, index: int, shape: tuple[int, ...], dtype: Any = np.float32) -> Any:
    """One field of a `Mesh`, as an array; lazy where the mesh is."""
    if isinstance(mesh, Delayed):
        return da.from_delayed(delayed(np.asarray)(mesh[index]), shape, dtype)
    return np.asarray(mesh[index], dtype)


def _row_mesh(image: Any, box_size: tuple[int, int], recipe: Rows) -> Any:
    """The finished `Mesh` of an image, or for a Dask array a Delayed of it."""
    clip: dict[str, Any] = {"sigma_clip": recipe.sigma_clip, "max_rounds": _ROW_ROUNDS, "estimator": "median"}
    finish: dict[str, Any] = {
        "box_n_pixels": box_size[0] * box_size[1],
        "exclude_percentile": recipe.exclude_percentile,
        "filter_size": recipe.filter_size,
    }
    if not isinstance(image, da.Array):
        return finish_mesh(box_statistics(image, box_size=box_size, **clip), **finish)
    boxes = whole_boxes(read_again(image), box_size)
    statistics = boxes.map_blocks(
        _stacked_statistics,
        box_size,
        clip,
        new_axis=0,
        chunks=((3,), *mesh_chunks(boxes, box_size)),
        dtype=np.float64,
        meta=np.empty((0, 0, 0)),
    )
    return delayed(_finish_stacked)(gathered(statistics), finish)


def _stacked_statistics(
    block: NDArray[np.floating], box_size: tuple[int, int], clip: dict[str, Any]
) -> NDArray[np.float64]:
    return np.stack(box_statistics(block, box_size=box_size, **clip))


def _finish_stacked(fields: NDArray[np.float64], settings: dict[str, Any]) -> Mesh:
    return finish_mesh(BoxStatistics(*fields), **settings)


def _source_mask(image: Any, fields: list[Any], box_size: tuple[int, int], recipe: Rows) -> Any:
    detect = {
        "threshold": recipe.threshold,
        "fwhm": recipe.kernel_fwhm,
        "size": recipe.kernel_size,
        "box_size": box_size,
    }
    if not isinstance(image, da.Array):
        return _mask_tile(Tile.whole(image), Mesh(*fields), detect, recipe.n_pixels)
    # Whether a pixel stays is decided within n - 1 steps of it, and each of those pixels is smoothed.
    halo = recipe.n_pixels - 1 + recipe.kernel_size // 2
    # Delayed, so that every tile's task refers to the one mesh.
    mesh = delayed(Mesh)(*[gathered(da.asarray(field)) for field in fields])
    return map_tiles(_mask_tile, image, mesh, detect, recipe.n_pixels, halo=halo, dtype=np.bool_)


def _mask_tile(tile: Tile, mesh: Mesh, detect: dict[str, Any], n_pixels: int) -> NDArray[np.bool_]:
    return tile.trim(connected(above_threshold(tile.pixels, mesh, origin=tile.origin, **detect), n_pixels))


def _levels(image: Any, mask: Any, dim: str, recipe: Rows) -> Any:
    if dim == "x":
        image, mask = image.T, mask.T
    if not isinstance(image, da.Array):
        return row_level(image, mask, positive_only=recipe.positive_only)
    # Whole rows, as many pixels of them as a chunk has now.
    rows = max(image.chunksize[0] * image.chunksize[1] // image.shape[1], 1)
    whole_rows = image.rechunk({0: rows, 1: -1})
    return da.map_blocks(
        row_level,
        whole_rows,
        mask.rechunk(whole_rows.chunks),
        positive_only=recipe.positive_only,
        drop_axis=1,
        dtype=image.dtype,
        meta=np.empty(0, image.dtype),
    )


def _channel_meshes(raw: Any, pattern: Pattern, box_size: tuple[int, int], recipe: Channels) -> list[Any]:
    """The finished `Mesh` of each channel, or for a Dask array a Delayed of each."""
    fields = _channel_fields(raw, pattern, box_size, recipe)
    finish = delayed(_finish_stacked) if isinstance(raw, da.Array) else _finish_stacked
    meshes = []
    for k, channel in enumerate(channel_names(pattern)):
        settings = {
            "box_n_pixels": box_n_pixels(pattern, channel, method=recipe.method, box_size=box_size),
            "exclude_percentile": recipe.exclude_percentile,
            "filter_size": recipe.filter_size,
        }
        meshes.append(finish(fields[k], settings))
    return meshes


def _channel_fields(raw: Any, pattern: Pattern, box_size: tuple[int, int], recipe: Channels) -> Any:
    """Statistics (channel, 3, mesh_y, mesh_x) of a mosaic's boxes; a Delayed for a Dask array."""
    measure = {
        "method": recipe.method,
        "stddev": recipe.kernel_stddev,
        "box_size": box_size,
        "sigma_clip": recipe.sigma_clip,
        "max_rounds": _CHANNEL_ROUNDS,
        "estimator": recipe.estimator,
    }
    if not isinstance(raw, da.Array):
        return _statistics_of_tile(Tile.whole(raw), pattern, measure)
    boxes = whole_boxes(read_again(raw), box_size)
    fields = map_tiles(
        _statistics_of_tile,
        boxes,
        pattern,
        measure,
        halo=halo_needed(recipe.kernel_stddev, pattern),
        dtype=np.float64,
        leading=(len(channel_names(pattern)), 3),
        chunks=mesh_chunks(boxes, box_size),
    )
    return gathered(fields)


def _statistics_of_tile(tile: Tile, pattern: Pattern, measure: dict[str, Any]) -> NDArray[np.float64]:
    return np.stack(channel_statistics(tile, pattern, **measure))


def _subtract_block(
    block: NDArray[np.number],
    pattern: Pattern,
    meshes: NDArray[np.float32],
    settings: dict[str, Any],
    origins: list[list[int]],
    block_id: tuple[int, ...],
) -> NDArray[np.float32]:
    origin = (origins[0][block_id[0]], origins[1][block_id[1]])
    return subtract_backgrounds(block, pattern, list(meshes), origin=origin, **settings)
