"""A third job, as somebody might add one: from each exposure its median is subtracted, or that of all of its group."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import xarray as xr
from astropy.io import fits

from skylevel.jobs import Facts, Product, Writing, register
from skylevel.jobs.job import write_levelled
from skylevel.kernels.tile import Tile
from skylevel.level.arrays import Output, map_tiles
from skylevel.recipes import Recipe, about


@dataclass(frozen=True, slots=True, kw_only=True)
class Median(Recipe):
    name: ClassVar[str] = "median"
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {"notebook": {}}

    together: bool = field(default=False, metadata=about(
        "All exposures of a detector and filter lose the mean of their medians.",
        decides="group", source="nowhere"))  # fmt: skip


def _row_medians(tile: Tile) -> np.ndarray:
    return np.nanmedian(tile.core_pixels(), axis=1)[:, None]


class MedianJob:
    recipe = Median
    kind = "jwst"
    variable = "sci"
    products: ClassVar[Mapping[str, Product]] = {"levelled": Product("{stem}_median.fits", write_levelled)}

    def variables(self, recipe: Median) -> tuple[str, ...]:
        return (self.variable,)

    def bytes_per_pixel(self, recipe: Median) -> float:
        return 12

    def stored_bytes_per_pixel(self, recipe: Median) -> float:
        return 0

    def copied_bytes(self, size: int, facts: Facts, layout: str) -> int:
        return 0

    def block_rows(self, recipe: Median) -> None:
        return None

    def describe(self, frame: xr.Dataset) -> str:
        return "an exposure"

    def caution(self, facts: Facts) -> str:
        return ""

    def estimate(self, frame: xr.Dataset, recipe: Median, detection: xr.Dataset | None) -> xr.Dataset:
        # Of whole rows, so that a row's median needs no other tile; an array, so that it can be combined.
        pixels = frame["sci"].data
        medians = map_tiles(_row_medians, pixels, output=Output(np.float32, per=(1, frame.sizes["x"])))
        return xr.Dataset({"row_median": (("y",), medians[:, 0])})

    def subtract(
        self, frame: xr.Dataset, estimate: xr.Dataset, recipe: Median, group: xr.Dataset | None
    ) -> xr.DataArray:
        level = estimate["row_median"].median() if group is None else group["level"]
        return frame["sci"] - level.astype(np.float32)

    def write_levelled(self, path: Path, frame: xr.Dataset, levelled: xr.DataArray, writing: Writing) -> None:
        header = fits.Header([(key, value) for key, value, _ in writing.cards])
        fits.PrimaryHDU(levelled.to_numpy(), header).writeto(path, overwrite=True)

    def finding(self, estimate: xr.Dataset, recipe: Median) -> str:
        return f"measured {float(estimate['row_median'].median()):.3f}"

    def metrics(self, estimate: xr.Dataset) -> dict[str, Any]:
        return {}

    def advice(self, metrics: Sequence[Mapping[str, Any]], recipe: Median) -> str:
        return ""

    def group(self, recipe: Median, facts: Facts) -> str | None:
        return "everyone" if recipe.together else None

    def combine(self, members: xr.Dataset, recipe: Median) -> xr.Dataset:
        return xr.Dataset({"level": members["row_median"].median("y").mean("exposure"), "n": members.sizes["exposure"]})


register(MedianJob())
