"""Draw the pictures of the documentation from the files of `skylevel demo`, whose folder is named: `make pictures`."""

import sys
from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.image import AxesImage
from numpy.typing import NDArray

import skylevel as sl

mpl.use("agg")

OUTPUT = Path(__file__).parent / "_static"
EXPOSURE, NIGHT = "jw99999001001_02101_00001_nrcb1_cal.fits", "night_0001.dng"
# Part of the exposure that is shown: a few hundred rows, so that each is seen, over three amplifiers' columns.
CUT = {"y": slice(600, 1000), "x": slice(200, 1400)}
# Columns that are averaged in it: stripes stand out of the pixels' noise as they do to an eye that steps back.
COLUMNS = 3
HALF_STRETCH, NIGHT_HALF_STRETCH = 0.035, 330.0
PART: Mapping[str, Any] = {"origin": "lower", "aspect": 1 / COLUMNS, "interpolation": "nearest"}
BIN = 10
MUTED = {"R": "#d1495b", "G": "#3a7d44", "B": "#2e6f9e"}


def show(axes: Axes, image: NDArray[np.floating], title: str, half: float, **how: Any) -> None:
    """Show an image around its median."""
    middle = np.nanmedian(image)
    axes.imshow(image, cmap="gray", vmin=middle - half, vmax=middle + half, **how)
    axes.set_title(title)
    axes.set_axis_off()


def part(image: xr.DataArray) -> NDArray[np.floating]:
    """Return the part of an exposure that is shown, a few columns averaged."""
    pixels = image.isel(CUT).values
    return np.nanmean(pixels.reshape(len(pixels), -1, COLUMNS), axis=2)


def binned(mosaic: NDArray[np.number]) -> NDArray[np.float64]:
    """Mean over blocks, which hold all colours."""
    ny, nx = (n // BIN * BIN for n in mosaic.shape)
    return np.asarray(mosaic[:ny, :nx], np.float64).reshape(ny // BIN, BIN, nx // BIN, BIN).mean((1, 3))


def before_after(frame: xr.Dataset, rows: xr.Dataset, raw: xr.Dataset, night: xr.Dataset) -> None:
    """Both jobs, before and after: the picture of the README."""
    figure, panels = plt.subplots(2, 2, figsize=(9.6, 5.3), layout="constrained", height_ratios=(1, 2))
    show(panels[0, 0], part(frame.sci), "NIRCam exposure", HALF_STRETCH, **PART)
    show(panels[0, 1], part(rows.sci), "rows levelled", HALF_STRETCH, **PART)
    show(panels[1, 0], binned(raw.raw.values), "raw frame of the night sky", NIGHT_HALF_STRETCH)
    show(panels[1, 1], binned(night.sci.values), "channels levelled", NIGHT_HALF_STRETCH)
    save(figure, "before-after")


def row_pictures(frame: xr.Dataset, rows: xr.Dataset) -> None:
    """What the row job finds: image, levelled image and mask."""
    figure, panels = plt.subplots(1, 3, figsize=(12, 1.75), layout="constrained")
    show(panels[0], part(frame.sci), "before", HALF_STRETCH, **PART)
    show(panels[1], part(rows.sci), "after", HALF_STRETCH, **PART)
    panels[2].imshow(part(rows.source_mask.astype(float)), cmap="gray_r", **PART)
    panels[2].set_title("source mask")
    panels[2].set_axis_off()
    save(figure, "rows")


def row_levels(program: Path, frame: xr.Dataset, rows: xr.Dataset) -> None:
    """What the stripes were in each row, and what is left of them, by the demo's truth; their power spectrum."""
    stripes, sky = (truth_of(program, EXPOSURE, name) for name in ("stripes", "sky_rows"))
    seen = np.isfinite(frame.sci.values).any(axis=1)
    left = np.nanmean((rows.sci.values - (frame.sci.values - stripes))[seen], axis=1)
    # The median takes the sky with it: what is left is told from it as `skylevel.demo.measure_levels` does.
    basis = np.stack([np.ones(seen.sum()), sky[seen]], axis=1)
    left -= basis @ np.linalg.lstsq(basis, left, rcond=None)[0]
    figure, (line, spectrum) = plt.subplots(1, 2, figsize=(12, 3.2), layout="constrained", width_ratios=(2, 1))
    for level, name, colour in ((stripes[seen].mean(axis=1), "before", "#9a9a9a"), (left, "after", "#2e6f9e")):
        line.plot(level, lw=0.6, color=colour, label=name)
        power = np.abs(np.fft.rfft(level)) ** 2 / len(level)
        edges = np.unique(np.geomspace(1, len(power), 25).astype(int))
        octaves = [power[a:b].mean() for a, b in pairwise(edges)]
        spectrum.loglog(edges[:-1] / len(level), octaves, color=colour, label=name)
    unit = frame.attrs["unit"]
    line.set(xlabel="detector row", ylabel=f"stripes in each row ({unit})")
    line.margins(x=0)
    line.legend(loc="upper right")
    spectrum.set(xlabel="cycles per row", ylabel=f"power (({unit})²)")
    save(figure, "rows-levels")


def channel_pictures(raw: xr.Dataset, night: xr.Dataset) -> None:
    """What the channel job finds: image, levelled image, and a cut through each colour's background."""
    figure, panels = plt.subplots(1, 3, figsize=(12, 2.9), layout="constrained")
    show(panels[0], binned(raw.raw.values), "before", NIGHT_HALF_STRETCH)
    show(panels[1], binned(night.sci.values), "after", NIGHT_HALF_STRETCH)
    for channel in night.channel.values:
        background = night.background.sel(channel=channel)
        panels[2].plot(background.mesh_y, background.median("mesh_x"), color=MUTED[str(channel)], label=channel)
    panels[2].set(xlabel="row", ylabel="background (ADU)", title="each colour's background, top to bottom")
    panels[2].legend()
    save(figure, "channels")


def preset_pictures(program: Path, frame: xr.Dataset, raw: xr.Dataset) -> None:
    """What the presets leave of the stripes, in each row and amplifier, and of the sky; by the demo's truth."""
    stripes, sky = truth_of(program, EXPOSURE, "stripes"), truth_of(program, NIGHT, "sky")
    left = {"before": by_amplifier(stripes)}
    above = {"before": sky}
    for preset in ("notebook", "best"):
        rows = sl.level_rows(frame, sl.Rows.preset(preset)).sci.values
        left[preset] = by_amplifier(rows - (frame.sci.values - stripes))
        channels = sl.Channels.preset(preset).replace({"norms": {}})
        above[preset] = sl.level_channels(raw, channels).sci.values.astype(np.float64) - raw.raw.values + sky
    figure, panels = plt.subplots(2, 3, figsize=(9.6, 5.2), layout="constrained")
    for axes, (name, levels) in zip(panels[0], left.items(), strict=True):
        picture = deviation(axes, levels, f"{name}: {np.nanstd(levels):.2g} MJy/sr rms", 0.02, origin="lower")
    figure.colorbar(picture, ax=panels[0], label="stripes (MJy/sr)")
    for axes, (name, mosaic) in zip(panels[1], above.items(), strict=True):
        green = mosaic[::2, 1::2]
        picture = deviation(axes, green[::4, ::4], f"{name}: {green.std():.3g} ADU rms", 150)
    figure.colorbar(picture, ax=panels[1], label="green sky (ADU)")
    save(figure, "presets")


def truth_of(program: Path, file: str, name: str) -> NDArray[np.float64]:
    """Return what was put into one of the demo's files."""
    with np.load(program / "truth" / f"{Path(file).stem}.npz") as truth:
        return truth[name].astype(np.float64)


def by_amplifier(image: NDArray[np.floating]) -> NDArray[np.floating]:
    """Return the mean of each row of each amplifier's 512 columns (y, amplifier), of those that have one."""
    parts = image.reshape(len(image), 4, 512)
    return np.nanmean(parts[np.isfinite(parts).any(axis=2).all(axis=1)], axis=2)


def deviation(axes: Axes, image: NDArray[np.floating], title: str, half: float, **how: Any) -> AxesImage:
    """Show what an image differs from its mean, in two colours."""
    picture = axes.imshow(
        image - np.nanmean(image), cmap="RdBu_r", vmin=-half, vmax=half, aspect="auto", interpolation="nearest", **how
    )
    axes.set_title(title)
    axes.set_axis_off()
    return picture


def save(figure: plt.Figure, name: str) -> None:
    """Write a figure as a small WebP file."""
    path = OUTPUT / f"{name}.webp"
    figure.savefig(path, dpi=110, pil_kwargs={"quality": 72, "method": 6})
    plt.close(figure)
    print(f"{path}: {path.stat().st_size / 1000:.0f} kB")


def draw(program: Path) -> None:
    """Draw all of them from the demo's files."""
    frame, raw = sl.open_frame(program / EXPOSURE).load(), sl.open_frame(program / NIGHT).load()
    rows, night = sl.level_rows(frame), sl.level_channels(raw, sl.Channels(norms={}))
    before_after(frame, rows, raw, night)
    row_pictures(frame, rows)
    row_levels(program, frame, rows)
    channel_pictures(raw, night)
    preset_pictures(program, frame, raw)


if __name__ == "__main__":
    draw(Path(sys.argv[1], "program"))
