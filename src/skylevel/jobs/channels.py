"""The channel job: camera raws lose a smooth background of each colour."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import xarray as xr

from skylevel.io.camera import write_mosaic
from skylevel.jobs.job import Alone, Facts, Measured, Product, Writing
from skylevel.jobs.meshes import percentiles, relaxed, write_background
from skylevel.level.channels import estimate_channels, subtract_channels
from skylevel.recipes import Channels, Recipe

# Of a levelled frame's pixels, how many may be below 0 without a word, in percent; and every how many rows are looked
# at: an odd number, to meet the rows of every colour.
_FEW_PERCENT = 0.1
_ROWS_APART = 7


def _write_levelled(path: Path, measured: Measured) -> str:
    """Write the levelled mosaic, and say which pedestal would bring its pixels above 0."""
    levelled = measured.levelled()
    measured.job.write_levelled(path, measured.frame, levelled, measured.writing)
    rows = levelled.to_numpy()[::_ROWS_APART]
    pixels = rows[np.isfinite(rows)]
    lowest = float(np.percentile(pixels, _FEW_PERCENT)) if pixels.size else 0.0
    if lowest >= 0:
        return ""
    # Two digits, so that the frames of a night are told much the same.
    needed = measured.recipe.pedestal - lowest
    unit = 10.0 ** max(math.floor(math.log10(needed)) - 1, 0)
    below, pedestal = 100 * np.count_nonzero(pixels < 0) / pixels.size, math.ceil(needed / unit) * unit
    return f"{below:.3g} % of its pixels are below 0; for a program that cuts there, --set pedestal={pedestal:.0f}"


class ChannelsJob(Alone):
    """See `skylevel.jobs.job.Job`."""

    recipe: ClassVar[type[Recipe]] = Channels
    kind = "camera"
    variable = "raw"
    products: ClassVar[Mapping[str, Product]] = {
        "levelled": Product("{stem}.bkg_subtracted.fits", _write_levelled),
        "background": Product("{stem}.bkg_background.fits", write_background, 12),
    }

    def variables(self, recipe: Channels) -> tuple[str, ...]:  # noqa: ARG002
        """Return the mosaic alone."""
        return (self.variable,)

    def bytes_per_pixel(self, recipe: Channels) -> float:  # noqa: ARG002
        """Sensor, its copy, and what is written; rounded up from measurements."""
        return 10

    def stored_bytes_per_pixel(self, recipe: Channels) -> float:  # noqa: ARG002
        """Return next to nothing: meshes are small."""
        return 0

    def copied_bytes(self, size: int, facts: Facts, layout: str) -> int:  # noqa: ARG002
        """Nothing of a raw is copied."""
        return 0

    def block_rows(self, recipe: Channels) -> None:
        """LibRaw unpacks a raw in one piece."""

    def describe(self, frame: xr.Dataset) -> str:
        """Return size and pattern."""
        pattern = "/".join(frame.attrs["color_filter_array"])
        return f"{frame.sizes['y']} x {frame.sizes['x']} pixels, colour filters {pattern}"

    def estimate(self, frame: xr.Dataset, recipe: Channels, detection: xr.Dataset | None) -> xr.Dataset:  # noqa: ARG002
        """Measure the channels' backgrounds; there is no mask to take over."""
        return estimate_channels(frame, recipe)

    def subtract(  # noqa: D102
        self, frame: xr.Dataset, estimate: xr.Dataset, recipe: Channels, group: xr.Dataset | None  # noqa: ARG002
    ) -> xr.DataArray:
        return subtract_channels(frame, estimate, recipe)

    def write_levelled(self, path: Path, frame: xr.Dataset, levelled: xr.DataArray, writing: Writing) -> None:
        """Write the mosaic with the keywords that raw-aware programs look for."""
        write_mosaic(path, frame, levelled.to_numpy(), **writing._asdict())

    def finding(self, estimate: xr.Dataset, recipe: Channels) -> str:
        """Say each channel's background."""
        medians = estimate["background"].median(["mesh_y", "mesh_x"])
        by_channel = zip(estimate["channel"].values, medians, strict=True)
        text = ", ".join(f"{channel} {float(median):.1f}" for channel, median in by_channel)
        return f"measured the background (median, ADU): {text}{relaxed(estimate, recipe.exclude_percentile)}"

    def metrics(self, estimate: xr.Dataset) -> dict[str, Any]:
        """Return the exclusion that was used."""
        return {"exclude_percentile": percentiles(estimate)}

    def advice(self, metrics: Sequence[Mapping[str, Any]], recipe: Channels) -> str:  # noqa: ARG002
        """Nothing to say yet."""
        return ""
