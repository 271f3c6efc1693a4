"""The channel method: from each colour of a mosaic, a smooth background."""

from collections.abc import Sequence
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from skylevel.errors import SettingsError
from skylevel.kernels.mesh import Clipping, clip_box_size
from skylevel.kernels.mosaic import box_n_pixels, channel_statistics, halo_needed, subtract_backgrounds
from skylevel.kernels.pattern import ColorPattern
from skylevel.kernels.tile import Tile
from skylevel.level.arrays import Array, Output, gather, later, map_tiles, stack
from skylevel.level.background import (
    COEFFICIENTS,
    N_STATISTICS,
    box_output,
    finished_mesh,
    measure_boxes,
    mesh_dataset,
    mesh_fields,
)
from skylevel.level.frames import color_pattern, raw_mosaic
from skylevel.level.images import image_frames, like
from skylevel.level.smooth import estimate_smooth, subtract_smooth
from skylevel.recipes import Channels

# Rounds of sigma clipping: those of the SigmaClip that the night-sky notebook makes.
_ROUNDS = 5


def level_channels(
    frame: Any, recipe: Channels | None = None, *, color_filter_array: Sequence[str] | None = None
) -> Any:
    """Subtract a smooth background from each colour of a camera raw frame.

    Parameters
    ----------
    frame : Dataset, array (y, x), DataArray or NDData
        A Dataset with `raw` (y, x) and the attribute `color_filter_array`, as `skylevel.open_frame` gives; not
        modified. An array (of NumPy, masked or not, or Dask), a DataArray or an ``NDData`` (such as ``CCDData``) is
        levelled with the keyword `color_filter_array`. Its masked pixels do not count, and lose their colour's
        background as the others do.
    recipe : Channels, optional
        By default the method of the night-sky notebook.
    color_filter_array : sequence of str, optional
        Rows of the pattern, such as ``("RG", "GB")``, or all of them as BAYERPAT has them, such as ``"RGGB"``. By
        default the frame's own.

    Returns
    -------
    Dataset
        The frame's attributes, and ``sci`` (y, x) float32, the levelled mosaic, with what `estimate_channels`
        measured. Lazy where the frame is chunked, with the same bits for any chunks. Of anything else, the levelled
        mosaic as the same, with all that an ``NDData`` or DataArray has beside its pixels. An uncertainty is multiplied
        by `norms` as its pixels are; it is left out where they are divided (``correction="divide"``), and where it is
        no standard deviation, variance or inverse variance.

    Raises
    ------
    NoBackgroundError
        No pixel of some channel is above 0. A lazy result raises it when it is computed.
    UnsupportedFrameError
        The frame has no `raw` or no `color_filter_array`.
    ShapeError
        The mosaic has not two dimensions, no pixel, or no real numbers; or its mask is of another shape.
    SettingsError
        `recipe` is no `Channels`, or `color_filter_array` no rectangle of colours.
    """
    recipe = Channels.or_default(recipe)
    pattern = {} if color_filter_array is None else {"color_filter_array": color_filter_array}
    if not isinstance(frame, xr.Dataset):
        # A pixel of value 0 is a gap.
        image, counted = image_frames(frame, "raw", gap=0, **pattern)
        levelled = subtract_channels(image, estimate_channels(counted, recipe), recipe)
        return like(frame, levelled, partial(_factors, image, recipe))
    frame = frame.assign_attrs(pattern)
    estimate = estimate_channels(frame, recipe)
    levelled = subtract_channels(frame, estimate, recipe)
    out = frame.drop_vars("raw").assign({"sci": levelled, **estimate.data_vars})
    return out.assign_coords(estimate.coords).assign_attrs(recipe.provenance())


def estimate_channels(frame: xr.Dataset, recipe: Channels) -> xr.Dataset:
    """Measure what `level_channels` subtracts: the background mesh of each channel.

    Returns
    -------
    Dataset
        ``background`` and ``background_rms`` (channel, mesh_y, mesh_x) float32 in ADU, and ``exclude_percentile``
        (channel,); the coordinate `channel` holds the colour letters. With the method "smooth", what
        `skylevel.level.smooth.estimate_smooth` says.

    Raises
    ------
    SettingsError
        `correction` or `together` is asked for with another method.
    """
    if recipe.method == "smooth":
        return estimate_smooth(frame, recipe)
    if recipe.together or recipe.correction == "divide":
        what = "together" if recipe.together else "correction = 'divide'"
        raise SettingsError(f"channels.{what} needs method = 'smooth', as in the presets best and program")
    raw, pattern = raw_mosaic(frame), color_pattern(frame)
    box_size = clip_box_size(recipe.box_size, raw.shape)
    meshes = _meshes(raw.data, pattern, box_size, recipe)
    fields = zip(*(mesh_fields(mesh, raw.shape, box_size) for mesh in meshes), strict=True)
    background, rms, percentile = map(stack, fields)
    return mesh_dataset((background, rms, percentile), raw, box_size, pattern.channels)


class Subtraction(NamedTuple):
    """How a channel's background is taken off: box sides (y, x), a factor for each channel, and what is added last."""

    box_size: tuple[int, int]
    norms: list[float]
    pedestal: float


def subtract_channels(frame: xr.Dataset, estimate: xr.Dataset, recipe: Channels) -> xr.DataArray:
    """Return the frame's mosaic (y, x) float32 less each channel's background, scaled by the recipe's norms."""
    if COEFFICIENTS in estimate:
        return subtract_smooth(frame, estimate, recipe)
    raw, pattern = raw_mosaic(frame), color_pattern(frame)
    norms = [recipe.norms.get(channel, 1.0) for channel in pattern.channels]
    how = Subtraction(clip_box_size(recipe.box_size, raw.shape), norms, recipe.pedestal)
    meshes = gather(estimate["background"].data)
    levelled = map_tiles(_subtract, raw.data, pattern, meshes, how, output=Output(np.float32))
    return xr.DataArray(levelled, dims=raw.dims, attrs=raw.attrs)


def _factors(frame: xr.Dataset, recipe: Channels) -> NDArray[np.float32] | None:
    """Return what each pixel (y, x) is multiplied by; None where it is divided by what was measured."""
    if recipe.correction == "divide":
        return None
    pattern, (n_y, n_x) = color_pattern(frame), frame["raw"].shape
    of_letter = np.array([[recipe.norms.get(str(c), 1.0) for c in row] for row in pattern.letters], np.float32)
    return of_letter[np.ix_(np.arange(n_y) % pattern.period[0], np.arange(n_x) % pattern.period[1])]


def _meshes(raw: Array, pattern: ColorPattern, box_size: tuple[int, int], recipe: Channels) -> list[Any]:
    """Return the finished `Mesh` of each channel."""
    clipping = Clipping(recipe.sigma_clip, _ROUNDS, recipe.estimator)
    fill = (recipe.method, recipe.kernel_stddev)
    output = box_output(box_size, (len(pattern.channels),))
    halo = halo_needed(recipe.kernel_stddev, pattern)
    statistics = measure_boxes(_statistics, raw, pattern, fill, box_size, clipping, output=output, halo=halo)
    return [
        finished_mesh(
            later(_of_channel, statistics, k),
            {
                "box_n_pixels": box_n_pixels(pattern, channel, method=recipe.method, box_size=box_size),
                "exclude_percentile": recipe.exclude_percentile,
                "filter_size": recipe.filter_size,
            },
        )
        for k, channel in enumerate(pattern.channels)
    ]


def _of_channel(statistics: NDArray[np.float64], k: int) -> NDArray[np.float64]:
    return statistics.reshape(-1, N_STATISTICS, *statistics.shape[-2:])[k]


def _statistics(
    tile: Tile, pattern: ColorPattern, fill: tuple[str, float], box_size: tuple[int, int], clipping: Clipping
) -> NDArray[np.float64]:
    method, stddev = fill
    found = channel_statistics(tile, pattern, method=method, stddev=stddev, box_size=box_size, clipping=clipping)
    return np.stack([np.stack(channel) for channel in found])


def _subtract(
    tile: Tile, pattern: ColorPattern, meshes: NDArray[np.float32], how: Subtraction
) -> NDArray[np.float32]:
    origin = (tile.core[0].start, tile.core[1].start)
    return subtract_backgrounds(tile.core_pixels(), pattern, list(meshes), origin=origin, **how._asdict())
