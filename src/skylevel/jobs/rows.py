"""The row job: JWST exposures lose the level of each detector row."""

import math
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import xarray as xr

from skylevel.io import jwst
from skylevel.io.fits import Image, RowBlocks
from skylevel.io.names import number_of
from skylevel.jobs.job import Facts, Measured, Product, Writing, write_levelled
from skylevel.jobs.meshes import percentiles, relaxed, write_background
from skylevel.level.arrays import is_lazy, row_blocks
from skylevel.level.rows import estimate_rows, segment_rows, stripe_dim, subtract_rows
from skylevel.level.streams import amplifiers_of, combine_streams
from skylevel.recipes import Recipe, Rows

ROWS_OF_A_MOSAIC = "the rows of a resampled image are no detector's rows"

# Of a pixel in a levelled file.
_FITS_BYTES = 4

# Of a header, what exposures that are levelled together have in common beside detector and filter.
_READOUT = ("pupil", "subarray", "substrt1", "substrt2", "fast_axis", "slow_axis")

# Metrics of an estimate, as the store's records have them, and those of the method "streams" alone.
_METRICS = ("stripes_before", "stripes_after", "scatter_after", "source_flux", "source_flux_after")
_OF_STREAMS = (
    "misfit", "used", "sky_level", "white_noise", "stripes_common", "stripes_own", "stripes_exponent",
)  # fmt: skip


def _write_segmentation(path: Path, measured: Measured) -> None:
    jwst.write_segmentation(path, measured.frame, segment_rows(measured.frame, measured.estimate, measured.recipe))


def _write_masked(path: Path, measured: Measured) -> None:
    jwst.write_masked(path, measured.frame, measured.estimate["source_mask"].to_numpy())


class RowsJob:
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

    def variables(self, recipe: Rows) -> tuple[str, ...]:
        """Return the image, a mosaic's weights, which tell where it has no data, and the flags where they count."""
        return (self.variable, "wht", *(("dq",) if recipe.dq_flags else ()))

    def bytes_per_pixel(self, recipe: Rows) -> float:
        """Image, mask, the copy that is written; and what streams are solved with. Rounded up from measurements."""
        return (12 if recipe.method == "median" else 40) + (8 if recipe.dq_flags else 0)

    def stored_bytes_per_pixel(self, recipe: Rows) -> float:
        """Return that of a compressed mask, and of cells."""
        return 0.5 if recipe.method == "median" else 0.8

    def copied_bytes(self, size: int, facts: Facts, layout: str) -> int:
        """All HDUs but the image's, in the full layout."""
        return max(size - _FITS_BYTES * facts.n_pixels, 0) if layout == "full" else 0

    def block_rows(self, recipe: Rows) -> int | None:
        """Boxes stay whole; streams are solved in one piece."""
        return recipe.box_size if recipe.method == "median" else None

    def describe(self, frame: xr.Dataset) -> str:
        """Return size and field of view, and what speaks against levelling rows."""
        size = jwst.size_and_field(frame).split(": ", 1)[-1]
        return "; ".join([size, *_warnings(frame.attrs)])

    def caution(self, facts: Facts) -> str:
        """A mosaic has been resampled."""
        resampled = facts.attributes.get("resampled")
        return f"{ROWS_OF_A_MOSAIC}; better level the exposures that went into it" if resampled else ""

    def estimate(self, frame: xr.Dataset, recipe: Rows, detection: xr.Dataset | None) -> xr.Dataset:
        """Measure mask and levels; count the amplifiers, of which a resampled image has none."""
        dim = stripe_dim(frame, recipe)
        fast = frame.sizes["x" if dim == "y" else "y"]
        n = 0 if frame.attrs.get("resampled") else amplifiers_of(frame.attrs, fast, dim).count
        counted = xr.Variable((), np.int64(n), {"long_name": "amplifiers that read the image; 0 where it is resampled"})
        return estimate_rows(frame, recipe, detection=detection).assign(n_amplifiers=counted)

    def subtract(self, frame: xr.Dataset, estimate: xr.Dataset, recipe: Rows, group: xr.Dataset | None) -> xr.DataArray:
        """Return the image less its levels."""
        return subtract_rows(frame, estimate, recipe, group)

    def write_levelled(self, path: Path, frame: xr.Dataset, levelled: xr.DataArray, writing: Writing) -> None:
        """Write every HDU of the input, or one; a chunked image row block by row block."""
        write = jwst.write_full if writing.layout == "full" else jwst.write_primary
        lazy = is_lazy(levelled.data)
        image: Image = RowBlocks(levelled.shape, levelled.dtype, row_blocks(levelled.data)) if lazy else levelled.data
        remark = [f"skylevel: {ROWS_OF_A_MOSAIC}"] if frame.attrs.get("resampled") else []
        write(path, frame, image, cards=writing.cards, history=[*writing.history, *remark])

    def finding(self, estimate: xr.Dataset, recipe: Rows) -> str:
        """Say how many rows were measured, how much of the frame sources take, and what became of the stripes."""
        levels, left = estimate["row_level"], int(estimate["row_level"].isnull().sum())
        what = "rows" if "y" in levels.dims else "columns"
        n_amplifiers = levels.sizes.get("amplifier", 1)
        amplifiers = f" of {n_amplifiers} amplifiers" if n_amplifiers > 1 else ""
        kept = f", {left} left as they were" if left else ""
        masked = 100 * float(estimate["source_mask"].mean())
        measured = f"measured {levels.sizes[levels.dims[0]]} {what}{amplifiers}{kept}"
        sources = f"{masked:.1f} % of the pixels in sources"
        remark = relaxed(estimate, recipe.exclude_percentile) if recipe.method == "median" else _disbelief(estimate)
        return "; ".join([measured, sources, *_judgement(estimate, what.removesuffix('s'))]) + remark

    def metrics(self, estimate: xr.Dataset) -> dict[str, Any]:
        """Return the sources' share, the levels' scatter, and what tells of stripes, light and sky without a truth."""
        median = "exclude_percentile" in estimate
        names = _METRICS if median else (*_METRICS, *_OF_STREAMS)
        return {
            **({"exclude_percentile": percentiles(estimate)[0]} if median else {}),
            **({} if median else {"believed": bool(estimate["believed"])}),
            "masked_fraction": float(estimate["source_mask"].mean()),
            "unlevelled": int(estimate["row_level"].isnull().sum()),
            "row_level_std": float(estimate["row_level"].std()),
            "sky_gradient": _sky_gradient(estimate),
            **{name: float(estimate[name]) for name in names if name in estimate},
            "n_amplifiers": _n_amplifiers(estimate),
            "stripes_grew": _stripes_grew(estimate),
        }

    def advice(self, metrics: Sequence[Mapping[str, Any]], recipe: Rows) -> str:
        """Suggest what keeps sky and sources, where the median takes them, and say where it did more harm than good."""
        if recipe.method != "median":
            return ""
        # Mosaics have a caution of their own.
        metrics = [m for m in metrics if m.get("n_amplifiers") != 0]
        losses = {
            "light of sources": sum(_lost_light(m) > _LIGHT_LOST for m in metrics),
            "a gradient of the sky": sum(_number(m, "sky_gradient") > _SKY_LOST for m in metrics),
        }
        taken = [f"{what} in {n}" for what, n in losses.items() if n]
        left = sum(_number(m, "scatter_after") > _STRIPES_LEFT and _number(m, "n_amplifiers") > 1 for m in metrics)
        grew = sum(m.get("stripes_grew") is True for m in metrics)
        did = [f"took {' and '.join(taken)}"] if taken else []
        did += [f"left stripes of single amplifiers in {left}"] if left else []
        said = [f"the medians {' and '.join(did)}: try --preset best, or program"] if did else []
        said += [f"in {grew} {_GREW}: better left as they were, or try --preset best"] if grew else []
        where = ", which says where its model does not fit"
        return f"of {number_of(len(metrics), 'exposure')} {'; '.join(said)}{where}" if said else ""

    def group(self, recipe: Rows, facts: Facts) -> str | None:
        """Return the readout and the time span, where exposures are levelled together; a mosaic is alone."""
        known = facts.attributes
        if recipe.method != "streams" or not recipe.together or known.get("resampled"):
            return None
        readout = [known.get(name, "") for name in _READOUT]
        return "-".join(map(str, [*readout, _time_span(str(known.get("date_obs", "")), recipe.group_days)]))

    def combine(self, members: xr.Dataset, recipe: Rows) -> xr.Dataset:
        """Find the sky that exposures share, and say which of them it is."""
        sky = combine_streams(members, recipe)
        agree = sky["agrees"].values
        if not agree.any():
            return sky.assign_attrs(finding=": none agrees with another, each is levelled by itself")
        names = sky["member"].values if "member" in sky.coords else np.arange(agree.size)
        alone = ", ".join(map(str, names[~agree]))
        left = f"; left to itself: {alone}" if alone else ""
        slope = 200 * float(np.hypot(*sky["sky_shape"].values[:2])) if sky.sizes["shape_term"] >= 2 else 0.0
        finding = f": {agree.sum()} share a sky that changes by {slope:.2f} % across the frame{left}"
        return sky.assign_attrs(finding=finding)


# What is worth a word: a share of the sources' light; a change of the sky's level across the frame; a scatter of
# rows, over that of their noise.
_LIGHT_LOST, _SKY_LOST, _STRIPES_LEFT = 0.02, 0.01, 1.3
_GREW = "the rows, or columns, vary more than before"
# Pairs of rows that judge an image, at the least; the scatter of the logarithm of their variances, after over before,
# of one pair (measured on stripes as strong as the medians' own noise); and how many of it are no chance.
_JUDGED_PAIRS, _JUDGED_NOISE, _SURE = 32, 3.0, 2.0
_GRADIENT_BOXES = 4


def _warnings(header: Mapping[str, Any]) -> list[str]:
    """Return what speaks against levelling the rows of an exposure."""
    return [f"levelled before by {tool}"] if (tool := header.get("levelled_by")) else []


def _judgement(estimate: xr.Dataset, what: str) -> list[str]:
    """Return what became of stripes and sources."""
    before, after = (float(estimate.get(f"stripes_{when}", np.nan)) for when in ("before", "after"))
    if not (math.isfinite(before) and math.isfinite(after)):
        return []
    grew = ", more than before" if _stripes_grew(estimate) else ""
    return [f"stripes from {what} to {what} {before:.3g} before, {after:.3g} after{grew}"]


def _stripes_grew(estimate: xr.Dataset) -> bool:
    """Return whether lines differ more from their neighbours than before, beyond the noise of what judges that."""
    before, after, scatter = (float(estimate.get(name, np.nan)) for name in _METRICS[:3])
    if not after > before:
        return False
    variances = scatter**2 / (1 + (before / after) ** 2 * (scatter**2 - 1))
    n = min(estimate.sizes[estimate["row_level"].dims[0]] // 2, _JUDGED_PAIRS) * max(_n_amplifiers(estimate), 1)
    return math.log(variances) > _SURE * _JUDGED_NOISE / math.sqrt(n)


def _n_amplifiers(estimate: xr.Dataset) -> int:
    return int(estimate.get("n_amplifiers", estimate.sizes.get("amplifier", 1)))


def _disbelief(estimate: xr.Dataset) -> str:
    if bool(estimate["believed"]):
        return ""
    misfit = float(estimate["misfit"])
    return f"; sky and sources fit no model here (misfit {misfit:.3g}): only what changes quickly was taken off"


def _sky_gradient(estimate: xr.Dataset) -> float:
    """Return how much a plane through the background changes across the frame, as a part of its level.

    NaN where there are too few boxes to tell, or no level.
    """
    mesh = np.asarray(estimate["background"].values, np.float64)
    middle, (n_y, n_x) = abs(float(np.nanmedian(mesh))), mesh.shape
    if not middle > 0 or min(mesh.shape) < _GRADIENT_BOXES:
        return math.nan
    y, x = np.linspace(-0.5, 0.5, n_y), np.linspace(-0.5, 0.5, n_x)
    along_y, along_x = np.nanmedian(mesh, axis=1), np.nanmedian(mesh, axis=0)
    slopes = [float((v - v.mean()) @ at / (at @ at)) for v, at in ((along_y, y), (along_x, x))]
    return math.hypot(*slopes) / middle


def _lost_light(metrics: Mapping[str, Any]) -> float:
    before, after = (_number(metrics, name) for name in ("source_flux", "source_flux_after"))
    return (before - after) / before if before > 0 else 0.0


def _number(metrics: Mapping[str, Any], name: str) -> float:
    value = metrics.get(name)
    return float(value) if isinstance(value, int | float) else 0.0


def _time_span(date: str, days: float) -> str:
    """Return the number of the time span in which a date lies; "undated" where it is none."""
    # As slow to import as all else, and of all recipes one asks for it.
    from astropy.time import Time  # noqa: PLC0415

    try:
        # Of a year that is far off it warns: the span is told all the same.
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return f"{days:g}d{math.floor(Time(date).mjd / days)}"
    except ValueError:
        return "undated"
