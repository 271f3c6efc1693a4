"""A user's own mask of an exposure: a FITS image, or a file of regions."""

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
from astropy.io import fits
from numpy.typing import NDArray

from skylevel.errors import SettingsError
from skylevel.io.cards import without_warnings
from skylevel.recipes import split_mask

_REGION_SUFFIXES = (".reg", ".crtf")


def read_mask(reference: str, shape: tuple[int, int], wcs_cards: str = "") -> NDArray[np.bool_]:
    """Read a mask of an image.

    Parameters
    ----------
    reference : str
        `skylevel.Rows.mask`: path and digest. A FITS file, whose first image of the exposure's size is True where it
        is neither 0 nor NaN; or DS9 or CRTF regions, in pixels or on the sky.
    shape : tuple of int
        Of the image (y, x).
    wcs_cards : str
        Cards of the image's header, one to a line, for regions on the sky.

    Returns
    -------
    ndarray (y, x) bool
        True = excluded.

    Raises
    ------
    SettingsError
        The file is missing, changed since the recipe was made, damaged, or of another size; or it holds regions and
        the package regions is not installed.
    """
    path, digest = split_mask(reference)
    try:
        content = Path(path).read_bytes()
    except OSError as error:
        raise SettingsError(f"{path}: cannot read the mask: {error}") from error
    if digest and hashlib.sha256(content).hexdigest()[: len(digest)] != digest:
        raise SettingsError(f"{path}: the mask changed since the run was planned; run it again")
    if path.lower().endswith(_REGION_SUFFIXES):
        return _drawn_regions(path, shape, wcs_cards)
    return _mask_image(path, shape)


def _mask_image(path: str, shape: tuple[int, int]) -> NDArray[np.bool_]:
    try:
        with without_warnings(), fits.open(path) as hdus:
            for hdu in hdus:
                # Known before anything is read.
                if hdu.is_image and tuple(hdu.shape) == shape:
                    values = np.nan_to_num(np.asarray(hdu.data))
                    return np.asarray(values != 0)
            sizes = ", ".join(str(hdu.shape) for hdu in hdus if hdu.is_image and hdu.shape) or "no image"
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise SettingsError(f"{path}: cannot read the mask: {' '.join(str(error).split())}") from error
    raise SettingsError(f"{path}: the mask is {sizes}, the exposure {shape}")


def _drawn_regions(path: str, shape: tuple[int, int], wcs_cards: str) -> NDArray[np.bool_]:
    try:
        from astropy.wcs import WCS  # noqa: PLC0415 (slow to import, and regions alone need it)
        from regions import Regions, SkyRegion  # noqa: PLC0415 (an extra)
    except ImportError as error:
        raise SettingsError(f"{path}: regions need the package regions: pip install 'skylevel[regions]'") from error
    mask = np.zeros(shape, bool)
    try:
        with without_warnings():
            wcs = WCS(fits.Header.fromstring(wcs_cards, sep="\n"), naxis=2)
            for region in Regions.read(path):
                pixels: Any = region.to_pixel(wcs) if isinstance(region, SkyRegion) else region
                drawn = pixels.to_mask(mode="center").to_image(shape)
                # None where it lies outside.
                mask |= False if drawn is None else drawn > 0
    except Exception as error:
        # Each format, and each shape, has errors of its own.
        raise SettingsError(f"{path}: cannot draw its regions: {' '.join(str(error).split())}") from error
    return mask
