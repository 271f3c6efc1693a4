"""Colour-filter mosaics in FITS, as capture programs, Siril and skylevel itself write them; frames of kind "camera".

Attributes of an opened mosaic, each only where the headers have it unless marked *always*:

==================  =========================================================================================
color_filter_array  *always*: rows of colour letters, from the first stored pixel
unit                *always*: BUNIT, or else ``"ADU"``
sci_extension       *always*: index of the HDU of the image (int)
wcs                 *always*: that HDU's cards, as for a JWST exposure
camera              INSTRUME
iso                 ISOSPEED or ISO
exposure_time       EXPTIME or EXPOSURE (s)
aperture            APERTURE
focal_length        FOCALLEN (mm)
date_obs            DATE-OBS
levelled_by         the tool that levelled it before; see `skylevel.io.past`
==================  =========================================================================================

Pixels stay in the order in which they are stored. BAYERPAT names the colours from the top of the picture, which
ROWORDER = BOTTOM-UP says is stored last; XBAYROFF and YBAYROFF are where in the pattern the picture's first pixel is.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import xarray as xr
from astropy.io import fits

from skylevel.errors import UnsupportedFrameError
from skylevel.io.cards import first_facts, first_value
from skylevel.io.hdus import Hdu
from skylevel.io.past import levelled_by
from skylevel.io.planes import Scaling, image_header, variable

_COLOURS = set("RGBCMYW")
# What programs write of a camera without colour filters.
_MONOCHROME = {"", "NONE", "MONO", "GREY", "GRAY", "N/A", "NO", "FALSE", "0"}

# As most programs write them, and as older ones did.
_OFFSETS = (("XBAYROFF", "BAYOFFX"), ("YBAYROFF", "BAYOFFY"))

_CARDS: Mapping[str, tuple[type, tuple[str, ...]]] = {
    "camera": (str, ("INSTRUME",)),
    "iso": (float, ("ISOSPEED", "ISO")),
    "exposure_time": (float, ("EXPTIME", "EXPOSURE")),
    "aperture": (float, ("APERTURE",)),
    "focal_length": (float, ("FOCALLEN",)),
    "date_obs": (str, ("DATE-OBS",)),
    "unit": (str, ("BUNIT",)),
}


def is_mosaic(hdus: Sequence[Hdu], extension: int) -> bool:
    """Return whether an image's header says that it is a colour-filter mosaic."""
    pattern = first_value(["BAYERPAT"], _headers(hdus, extension))
    return pattern is not None and str(pattern).strip().upper() not in _MONOCHROME


def open_mosaic(hdus: Sequence[Hdu], extension: int, path: str) -> xr.Dataset:
    """Open a colour-filter mosaic.

    Parameters
    ----------
    hdus : sequence of Hdu
    extension : int
        Index of the one with the image.
    path : str
        The file, absolute.

    Returns
    -------
    xarray.Dataset
        ``raw`` (y, x), unread: uint16 where the file holds such numbers, or else float32. Attributes: see this module.

    Raises
    ------
    UnreadableFrameError
        Its header does not tell its pixels' values.
    UnsupportedFrameError
        BAYERPAT is no pattern, or an offset no whole number.
    """
    headers = _headers(hdus, extension)
    pattern = _color_filter_array(headers, hdus[extension].shape[-2], path)
    attrs: dict[str, Any] = {"unit": "ADU"} | first_facts(_CARDS, headers)
    attrs |= {"kind": "camera", "path": path, "sci_extension": extension}
    if tool := levelled_by(headers):
        attrs["levelled_by"] = tool
    header = image_header(path, extension, hdus[extension])
    attrs |= {"color_filter_array": pattern, "wcs": header.tostring(sep="\n", endcard=False, padding=False)}
    return xr.Dataset({"raw": variable(path, extension, hdus[extension], _dtype(hdus[extension], path))}, attrs=attrs)


def peek_mosaic(hdus: Sequence[Hdu], extension: int, path: str) -> tuple[tuple[int, int], dict[str, Any]]:
    """Return the shape (y, x) of a mosaic, those of its attributes that do not need its pixels, and its `dtype`.

    Raises
    ------
    UnsupportedFrameError
        As `open_mosaic`.
    """
    headers, (ny, nx) = _headers(hdus, extension), hdus[extension].shape[-2:]
    pattern, dtype = _color_filter_array(headers, ny, path), _dtype(hdus[extension], path)
    tool, facts = levelled_by(headers), first_facts(_CARDS, headers)
    attrs = facts | {"kind": "camera", "color_filter_array": pattern, "dtype": np.dtype(dtype).name}
    return (ny, nx), attrs | ({"levelled_by": tool} if tool else {})


def _headers(hdus: Sequence[Hdu], extension: int) -> list[fits.Header]:
    return [hdus[extension].header, hdus[0].header]


def _color_filter_array(headers: Sequence[fits.Header], n_rows: int, path: str) -> list[str]:
    """Return the pattern from the first stored pixel."""
    letters = str(first_value(["BAYERPAT"], headers)).strip().upper()
    period = math.isqrt(len(letters))
    if period < 2 or period**2 != len(letters) or not set(letters) <= _COLOURS or len(set(letters)) < 2:
        raise UnsupportedFrameError(f"{path}: its BAYERPAT is {letters!r}, no square of colour filters")
    pattern = np.array(list(letters)).reshape(period, period)
    x, y = (_offset(keywords, headers, path) % period for keywords in _OFFSETS)
    rows = np.arange(period)
    if str(first_value(["ROWORDER"], headers)).strip().upper().startswith("BOTTOM"):
        rows = n_rows - 1 - rows
    return ["".join(pattern[row, (x + np.arange(period)) % period]) for row in (rows + y) % period]


def _offset(keywords: Sequence[str], headers: Sequence[fits.Header], path: str) -> int:
    value = first_value(keywords, headers)
    try:
        number = float(value or 0)
        if number == int(number):
            return int(number)
    except (TypeError, ValueError, OverflowError):
        pass
    raise UnsupportedFrameError(f"{path}: its {keywords[0]} is {value!r}, no whole number of pixels")


def _dtype(hdu: Hdu, path: str) -> np.dtype[Any]:
    unsigned = {16: Scaling(zero=32768.0), 8: Scaling()}
    return np.dtype(np.uint16 if unsigned.get(hdu.bits) == _scaling(hdu, path) else np.float32)


def _scaling(hdu: Hdu, path: str) -> Scaling:
    """That of the image, which compressing keeps, without the number that means no value."""
    found = Scaling.of(hdu, path)
    return Scaling(found.scale, found.zero)
