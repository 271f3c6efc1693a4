"""The row job: JWST exposures lose the level of each detector row."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import xarray as xr

from skylevel.io import jwst
from skylevel.io.fits import Image, RowBlocks
from skylevel.jobs.job import Alone, Facts, Measured, Product, Writing, write_levelled
from skylevel.jobs.meshes import percentiles, relaxed, write_background
from skylevel.level.arrays import is_lazy, row_blocks
from skylevel.level.rows import estimate_rows, segment_rows, subtract_rows
from skylevel.recipes import Recipe, Rows

ROWS_OF_A_MOSAIC = "the rows of a resampled image are no detector's rows"

# Of a pixel in a levelled file.
_FITS_BYTES = 4


def _write_segmentation(path: Path, measured: Measured) -> None:
    jwst.write_segmentation(path, measured.frame, segment_rows(measured.frame, measured.estimate, measured.recipe))


def _write_masked(path: Path, measured: Measured) -> None:
    jwst.write_masked(path, measured.frame, measured.estimate["source_mask"].to_numpy())


class RowsJob(Alone):
    """See `skylevel.jobs.job.Job`."""

    recipe: ClassVar[type[Recipe]] = Rows
    kind = "jwst"
    variable = "sci"
    products: ClassVar[Mapping[str, Product]] = {
        "levelled": Product("{stem}_rowbgsub.fits", write_levelled),
        "segmentation": Product("detections_segm_{stem}.fits", _write_segmentation, 48),
        "masked": Product("{stem}_masked.fits", _write_masked, 9),
        "background": Product("{stem}_background.fits", write_background, 12),
    }
    # Image, mask and the copy that is written; rounded up from measurements.
    bytes_per_pixel = 12
    # A compressed mask.
    stored_bytes_per_pixel = 0.5

    def copied_bytes(self, size: int, facts: Facts, layout: str) -> int:
        """All HDUs but the image's, in the full layout."""
        return max(size - _FITS_BYTES * facts.n_pixels, 0) if layout == "full" else 0

    def block_rows(self, recipe: Rows) -> int:
        """Boxes stay whole."""
        return recipe.box_size

    def describe(self, frame: xr.Dataset) -> str:
        """Return size and field of view."""
        return jwst.size_and_field(frame).split(": ", 1)[-1]

    def estimate(self, frame: xr.Dataset, recipe: Rows, detection: xr.Dataset | None) -> xr.Dataset:
        """Measure mask and levels."""
        return estimate_rows(frame, recipe, detection=detection)

    def subtract(self, frame: xr.Dataset, estimate: xr.Dataset, recipe: Rows, group: xr.Dataset | None) -> xr.DataArray:  # noqa: ARG002
        """Return the image less its levels."""
        return subtract_rows(frame, estimate)

    def write_levelled(self, path: Path, frame: xr.Dataset, levelled: xr.DataArray, writing: Writing) -> None:
        """Write every HDU of the input, or one; a chunked image row block by row block."""
        write = jwst.write_full if writing.layout == "full" else jwst.write_primary
        lazy = is_lazy(levelled.data)
        image: Image = RowBlocks(levelled.shape, levelled.dtype, row_blocks(levelled.data)) if lazy else levelled.data
        remark = [f"skylevel: {ROWS_OF_A_MOSAIC}"] if frame.attrs.get("resampled") else []
        write(path, frame, image, cards=writing.cards, history=[*writing.history, *remark])

    def finding(self, estimate: xr.Dataset, recipe: Rows) -> str:
        """Say how many rows were measured, and how much of the frame sources take."""
        levels, left = estimate["row_level"], int(estimate["row_level"].isnull().sum())
        what = "rows" if "y" in levels.dims else "columns"
        kept = f", {left} left as they were" if left else ""
        masked = 100 * float(estimate["source_mask"].mean())
        remark = relaxed(estimate, recipe.exclude_percentile)
        return f"measured {levels.size} {what}{kept}; {masked:.1f} % of the pixels in sources{remark}"

    def metrics(self, estimate: xr.Dataset) -> dict[str, Any]:
        """Return the exclusion that was used, the sources' share, and the levels' scatter."""
        return {
            "exclude_percentile": percentiles(estimate)[0],
            "masked_fraction": float(estimate["source_mask"].mean()),
            "unlevelled": int(estimate["row_level"].isnull().sum()),
            "row_level_std": float(estimate["row_level"].std()),
        }
