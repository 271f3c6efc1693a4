"""Images without headers: arrays and astropy's NDData, levelled as frames and given back as they came."""

import functools
import sys
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import xarray as xr

from skylevel.errors import ShapeError

Level = Callable[..., xr.Dataset]


def levels_images(subtract: Callable[..., xr.DataArray]) -> Callable[[Level], Callable[..., Any]]:
    """Let a function that levels the `sci` of a frame take arrays and NDData too.

    `subtract`, given a frame, what was measured of it and the recipe, returns its levelled image.
    """

    def decorated(level: Level) -> Callable[..., Any]:
        @functools.wraps(level)
        def any_image(frame: Any, recipe: Any = None) -> Any:
            if isinstance(frame, xr.Dataset):
                return level(frame, recipe)
            image = _pixels(frame)
            masked = np.where(_mask(frame), np.nan, image) if _mask(frame) is not None else image
            measured = level(_frame("sci", masked, frame, {}), recipe)
            # Masked pixels were not measured, and lose their row's level as the others do.
            return _like(frame, subtract(_frame("sci", image, frame, {}), measured, recipe).to_numpy())

        return any_image

    return decorated


def levels_mosaics(level: Level) -> Callable[..., Any]:
    """Let a function that levels the `raw` of a frame take arrays and NDData too, with their pattern."""

    @functools.wraps(level)
    def any_mosaic(frame: Any, recipe: Any = None, *, color_filter_array: Sequence[str] | None = None) -> Any:
        if isinstance(frame, xr.Dataset):
            return level(frame, recipe)
        image = _pixels(frame)
        # A pixel of value 0 is a gap.
        known = np.where(_mask(frame), 0, image) if _mask(frame) is not None else image
        attrs = {"color_filter_array": list(color_filter_array or ())}
        return _like(frame, level(_frame("raw", known, frame, attrs), recipe)["sci"].to_numpy())

    return any_mosaic


def _pixels(image: Any) -> Any:
    pixels = np.asarray(image.data if _is_nddata(image) else image)
    if pixels.ndim != 2:
        raise ShapeError(f"an image has two dimensions (y, x), this one {pixels.ndim}: {pixels.shape}")
    return pixels if pixels.dtype.kind in "u" or pixels.dtype in (np.float32, np.float64) else pixels.astype(np.float32)


def _is_nddata(image: Any) -> bool:
    # Whoever has one has imported it.
    nddata = sys.modules.get("astropy.nddata")
    return nddata is not None and isinstance(image, nddata.NDData)


def _mask(image: Any) -> Any:
    return image.mask if _is_nddata(image) else None


def _frame(name: str, pixels: Any, image: Any, attrs: dict[str, Any]) -> xr.Dataset:
    unit = str(image.unit or "") if _is_nddata(image) else ""
    kept = pixels.astype(np.float32) if name == "sci" and pixels.dtype.kind != "f" else pixels
    return xr.Dataset({name: (("y", "x"), kept, {"units": unit})}, attrs={"unit": unit, "path": "image", **attrs})


def _like(image: Any, levelled: Any) -> Any:
    """Return a levelled image as what it came as: the other parts of an NDData stay."""
    if not _is_nddata(image):
        return levelled
    parts = {"mask": image.mask, "uncertainty": image.uncertainty, "unit": image.unit, "meta": image.meta}
    return type(image)(levelled, wcs=image.wcs, **parts)
