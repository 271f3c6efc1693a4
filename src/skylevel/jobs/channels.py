"""The channel job: camera raws lose a smooth background of each colour."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import xarray as xr

from skylevel.io.camera import write_mosaic
from skylevel.jobs.job import Facts, Measured, Product, Writing
from skylevel.jobs.meshes import percentiles, relaxed, write_background
from skylevel.level.channels import estimate_channels, subtract_channels
from skylevel.level.smooth import combine_night, unevenness, vignetting_in_corners, with_night
from skylevel.recipes import Channels, Recipe

# Of a levelled frame's pixels, how many may be below 0 without a word, in percent; and every how many rows are looked
# at: an odd number, to meet the rows of every colour.
_FEW_PERCENT = 0.1
_ROWS_APART = 7

# Of a smooth background's gradient: of the sky, left, and expected of noise.
_HELD_OUT = ("before", "after", "noise")

# How a picture was taken, as far as it decides the vignetting and how bright a large object is.
_TAKEN = {"focal_length": "mm", "aperture": "f", "exposure_time": "s", "iso": "iso"}

# What a surface leaves of a smooth sky is noise: if it is so many times as much, the frame shows something else.
_NO_SKY = 5.0

# Frames of a night that are worth solving together.
_A_FEW = 4

# An uneven background is one that differs from a smooth one by more than this share of it, and this many times its
# noise; light is much where it fills more than this share of the boxes.
_UNEVEN, _NOISES, _MUCH_LIGHT = 1e-3, 3.0, 0.05


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


def _write_background(path: Path, measured: Measured) -> None:
    """Write what is subtracted of each pixel."""
    cards = list(measured.writing.cards)
    if measured.recipe.correction == "divide":
        by = "its night's vignetting" if measured.group is not None else "itself less black, 1 at most"
        cards.append(("SKYDIVID", by, "what is left was divided by"))
    writing = measured.writing._replace(cards=cards)
    write_background(path, replace(measured, estimate=_known(measured.estimate, measured.group), writing=writing))


def _known(estimate: xr.Dataset, group: xr.Dataset | None) -> xr.Dataset:
    """Return a frame's estimate with what its night knows, where it has one."""
    return estimate if group is None else with_night(estimate, group)


class ChannelsJob:
    """See `skylevel.jobs.job.Job`."""

    recipe: ClassVar[type[Recipe]] = Channels
    kind = "camera"
    variable = "raw"
    products: ClassVar[Mapping[str, Product]] = {
        "levelled": Product("{stem}.bkg_subtracted.fits", _write_levelled),
        "background": Product("{stem}.bkg_background.fits", _write_background, 12),
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

    def caution(self, facts: Facts) -> str:  # noqa: ARG002
        """Return nothing."""
        return ""

    def estimate(self, frame: xr.Dataset, recipe: Channels, detection: xr.Dataset | None) -> xr.Dataset:  # noqa: ARG002
        """Measure the channels' backgrounds; there is no mask to take over."""
        return estimate_channels(frame, recipe)

    def subtract(  # noqa: D102
        self, frame: xr.Dataset, estimate: xr.Dataset, recipe: Channels, group: xr.Dataset | None
    ) -> xr.DataArray:
        return subtract_channels(frame, _known(estimate, group), recipe)

    def write_levelled(self, path: Path, frame: xr.Dataset, levelled: xr.DataArray, writing: Writing) -> None:
        """Write the mosaic with the keywords that raw-aware programs look for."""
        write_mosaic(path, frame, levelled.to_numpy(), **writing._asdict())

    def finding(self, estimate: xr.Dataset, recipe: Channels) -> str:
        """Say each channel's background."""
        medians = estimate["background"].median(["mesh_y", "mesh_x"])
        by_channel = zip(estimate["channel"].values, medians, strict=True)
        text = ", ".join(f"{channel} {float(median):.1f}" for channel, median in by_channel)
        if recipe.method != "smooth":
            remark = relaxed(estimate, recipe.exclude_percentile)
        else:
            before, after, noise = (float(_mean_square(estimate[f"gradient_{name}"])) for name in _HELD_OUT)
            left_out = 100 * float(estimate["box_mask"].mean())
            remark = (
                f"; {left_out:.1f} % of the boxes left out; of the sky's gradient, {before:.1f} rms, {after:.2f} is "
                f"left in boxes kept out of the fit, {noise:.2f} of noise alone"
            )
            if after > _NO_SKY * noise:
                remark += "; this is no smooth sky, or one with light nearly everywhere: look at the result"
        return f"measured the background (median, ADU): {text}{remark}"

    def metrics(self, estimate: xr.Dataset) -> dict[str, Any]:
        """Return what can be said without truth: of a smooth background, on boxes kept out of the fit."""
        median = estimate["background"].median(["mesh_y", "mesh_x"]).values.tolist()
        if "box_mask" not in estimate:
            uneven, noise = unevenness(estimate)
            found = {"uneven": uneven.tolist(), "uneven_noise": noise.tolist()}
            return {"exclude_percentile": percentiles(estimate), "background_median": median, **found}
        gradients = {f"gradient_{name}": estimate[f"gradient_{name}"].values.tolist() for name in _HELD_OUT}
        return {"background_median": median, "boxes_left_out": float(estimate["box_mask"].mean()), **gradients}

    def advice(self, metrics: Sequence[Mapping[str, Any]], recipe: Channels) -> str:
        """Suggest `best` where a background is not smooth, `program` for some frames with much light in them."""
        if recipe.method != "smooth":
            uneven = sum(map(_is_uneven, metrics))
            better = "program" if len(metrics) >= _A_FEW else "best"
            if uneven:
                return (
                    f"the background of {uneven} of {len(metrics)} frames is not smooth, and may hold light of stars, "
                    f"galaxies or the frame's edge: try --preset {better}"
                )
        elif not recipe.together and len(metrics) >= _A_FEW:
            share = float(np.median([m.get("boxes_left_out") or 0.0 for m in metrics]))
            if share > _MUCH_LIGHT:
                return (
                    f"{100 * share:.0f} % of the frames' boxes hold light: frames of one night together tell it better "
                    "from the sky: try --preset program"
                )
        return ""

    def group(self, recipe: Channels, facts: Facts) -> str | None:
        """Return the night, from noon to noon by the file's clock, and how the lens was set.

        Frames that tell no time are of one night, "undated"; those that do not belong together disagree.
        """
        if recipe.method != "smooth" or not recipe.together:
            return None
        known = {name: facts.attributes.get(name) for name in _TAKEN}
        # To three digits, as a clock's last ones make no other exposure time.
        numbers = {name: float(f"{value:.3g}") for name, value in known.items() if isinstance(value, int | float)}
        taken = [f"{value:g}{_TAKEN[name]}" for name, value in numbers.items()]
        return "-".join([_night(str(facts.attributes.get("date_obs", ""))), *taken])

    def combine(self, members: xr.Dataset, recipe: Channels) -> xr.Dataset:
        """Solve a night's frames together, and say what they agree on."""
        night = combine_night(members, recipe)
        agrees, lens = night["agrees"].values, float(vignetting_in_corners(night).min())
        if not agrees.any():
            return night.assign_attrs(finding=": none agrees with another, each is levelled by itself")
        alone = ", ".join(map(str, night["member"].values[~agrees]))
        left = f"; left to itself: {alone}" if alone else ""
        finding = f": {agrees.sum()} share a vignetting of {100 * (1 - lens):.0f} % in the corners{left}"
        return night.assign_attrs(finding=finding)


def _mean_square(values: xr.DataArray) -> Any:
    """Return the root of the channels' mean square."""
    return np.sqrt((values.astype(np.float64) ** 2).mean())


def _is_uneven(metrics: Mapping[str, Any]) -> bool:
    """Return whether a background measured in a mesh differs from a smooth one in some channel."""
    names = ("uneven", "uneven_noise", "background_median")
    channels = zip(*(metrics.get(name) or () for name in names), strict=False)
    # What is not finite is stored as None.
    known = [channel for channel in channels if None not in channel]
    return any(uneven > max(_NOISES * noise, _UNEVEN * abs(median)) for uneven, noise, median in known)


def _night(date_obs: str) -> str:
    """Return the date of a night's beginning; "undated" where a time cannot be read."""
    try:
        return (datetime.fromisoformat(date_obs) - timedelta(hours=12)).date().isoformat()
    except (ValueError, OverflowError):
        return "undated"
