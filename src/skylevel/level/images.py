"""Images without headers: arrays, DataArrays and astropy's NDData, as frames and given back as they came."""

import sys
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import xarray as xr

from skylevel.errors import ShapeError
from skylevel.level.frames import require_image

# By which power of a pixel's factor each kind of uncertainty grows.
_POWERS: Mapping[str, int] = {"std": 1, "var": 2, "ivar": -2}


def image_frames(image: Any, name: str, *, gap: float, **attrs: Any) -> tuple[xr.Dataset, xr.Dataset]:
    """Return an image as a frame: as it is, to subtract from, and with `gap` where it is masked, to measure.

    Parameters
    ----------
    image : array (y, x), DataArray or NDData
        Of NumPy, masked or not, or Dask; not modified.
    name : str
        Of the frame's variable.
    gap : float
        What a pixel holds that does not count.
    **attrs
        Of the frame.

    Raises
    ------
    ShapeError
        It is no image of numbers, or its mask has another shape.
    """
    pixels, unit = _pixels(image), _unit(image)
    attrs |= {"unit": unit, "path": "image"}
    mask = _mask(image, pixels.shape)
    counted = pixels if mask is None else np.where(mask, gap, pixels)
    whole, measured = (xr.Dataset({name: (("y", "x"), p, {"units": unit})}, attrs=attrs) for p in (pixels, counted))
    return whole, measured


def like(image: Any, levelled: xr.DataArray, factors: Callable[[], Any] = lambda: 1) -> Any:
    """Return a levelled image as what it came as.

    Parameters
    ----------
    image : array, DataArray or NDData
        Coordinates, mask and all other parts stay.
    levelled : DataArray (y, x)
    factors : callable
        Gives what each pixel (y, x) was multiplied by, as its uncertainty is then; None where that is not known, and
        the uncertainty is left out.
    """
    if isinstance(image, xr.DataArray):
        return image.copy(data=levelled.data)
    if isinstance(image, np.ma.MaskedArray):
        return np.ma.MaskedArray(levelled.data, image.mask.copy())
    if not _is_nddata(image):
        return levelled.data
    # Not every NDData has, or takes, the last two.
    others = {name: part for name in ("psf", "flags") if (part := getattr(image, name, None)) is not None}
    kept = {"mask": image.mask, "unit": image.unit, "wcs": image.wcs, "meta": image.meta, **others}
    return type(image)(levelled.data, uncertainty=_scaled(image.uncertainty, factors), **kept)


def _pixels(image: Any) -> Any:
    """Return an image's pixels in the machine's byte order: float32, float64 or unsigned."""
    held = image.data if _is_nddata(image) or isinstance(image, xr.DataArray) else image
    try:
        # Chunks stay chunks.
        pixels = held if hasattr(held, "dask") else np.asarray(held)
    except ValueError as error:
        raise ShapeError("an image has two dimensions (y, x), and all its rows one length") from error
    require_image(pixels)
    native = pixels.dtype.newbyteorder("=")
    known = native.kind == "u" or native in (np.float32, np.float64)
    return pixels.astype(native if known else np.float32, copy=False)


def _is_nddata(image: Any) -> bool:
    # Whoever has one has imported it.
    nddata = sys.modules.get("astropy.nddata")
    return nddata is not None and isinstance(image, nddata.NDData)


def _unit(image: Any) -> str:
    if isinstance(image, xr.DataArray):
        return str(image.attrs.get("units", ""))
    return str(image.unit or "") if _is_nddata(image) else ""


def _mask(image: Any, shape: tuple[int, ...]) -> Any:
    mask = image.mask if _is_nddata(image) or isinstance(image, np.ma.MaskedArray) else None
    if mask is None or mask is np.ma.nomask:
        return None
    if np.ndim(mask) == 0:
        mask = np.full(shape, mask)
    if np.shape(mask) != shape:
        raise ShapeError(f"the image is {shape}, its mask {np.shape(mask)}")
    return np.asarray(mask, bool)


def _scaled(uncertainty: Any, factors: Callable[[], Any]) -> Any:
    if uncertainty is None or uncertainty.array is None:
        return uncertainty
    by, power = factors(), _POWERS.get(uncertainty.uncertainty_type)
    if isinstance(by, int):
        return uncertainty
    if by is None or power is None:
        return None
    return type(uncertainty)(uncertainty.array * by**power, unit=uncertainty.unit)
