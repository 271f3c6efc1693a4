"""A user's own mask of an exposure: a FITS image, or a file of regions."""

import warnings
from bisect import bisect_left
from collections.abc import Callable, Sequence
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
from astropy.io import fits
from astropy.utils.exceptions import AstropyUserWarning
from numpy.typing import NDArray

from skylevel.errors import SettingsError, short
from skylevel.files import cause, read_text
from skylevel.io.cards import without_warnings
from skylevel.recipes import mask_digest, split_mask

_REGION_SUFFIXES = (".reg", ".crtf")
# Rows of an image that are drawn at a time.
_STRIP_ROWS = 256


def read_mask(reference: str, shape: tuple[int, int], wcs_cards: str = "") -> NDArray[np.bool_]:
    """Read a mask of an image.

    Parameters
    ----------
    reference : str
        `skylevel.Rows.mask`: path and digest. A FITS file, whose first image of the exposure's size is True where it
        is neither 0 nor NaN; or DS9 or CRTF regions, in pixels or on the sky, from which excluded ones (``-circle``)
        are cut.
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
        The file is missing, changed since the recipe was made, damaged, or of another size; or it holds regions, of
        which one encloses no area or is not understood, and the package regions may not be installed.
    """
    path, digest = split_mask(reference)
    try:
        found = mask_digest(Path(path))
    except (OSError, ValueError) as error:
        raise SettingsError(f"{path}: cannot read the mask: {cause(error)}") from error
    if digest and found != digest:
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
    except Exception as error:
        # A damaged file raises whatever astropy and its decompression come to.
        raise SettingsError(f"{path}: cannot read the mask: {cause(error)}") from error
    raise SettingsError(f"{path}: the mask is {sizes}, the exposure {shape}")


def _drawn_regions(path: str, shape: tuple[int, int], wcs_cards: str) -> NDArray[np.bool_]:
    try:
        import regions  # noqa: PLC0415 (an extra)
        from astropy.wcs import WCS  # noqa: PLC0415 (slow to import, and regions alone need it)
    except ImportError as error:
        raise SettingsError(f"{path}: regions need the package regions: pip install regions") from error
    masked, cut = np.zeros(shape, bool), np.zeros(shape, bool)
    n_included = 0
    with without_warnings():
        # Made where a region needs it, as what is wrong with it is then.
        wcs = cache(lambda: WCS(fits.Header.fromstring(wcs_cards, sep="\n"), naxis=2))
        for region in _read_regions(regions.Regions, path):
            try:
                pixels: Any = region.to_pixel(wcs()) if isinstance(region, regions.SkyRegion) else region
                # With it, an excluded region would contain all but its own pixels.
                included = pixels.meta.pop("include", True)
                n_included += bool(included)
                _draw(pixels, masked if included else cut, regions.PixCoord)
            except Exception as error:
                # Each shape has errors of its own.
                raise SettingsError(f"{path}: cannot draw {short(repr(region))}: {cause(error)}") from error
    if not n_included:
        raise SettingsError(f"{path}: holds no region to mask")
    return masked & ~cut


def _read_regions(reader: Any, path: str) -> Any:
    """Read regions; what the reader would leave out with a warning is an error, but for how regions look."""
    parse = partial(reader.parse, format="crtf" if path.lower().endswith(".crtf") else "ds9")
    try:
        lines = read_text(Path(path)).splitlines()
    except (OSError, ValueError) as error:
        raise SettingsError(f"{path}: cannot read the mask: {cause(error)}") from error
    with warnings.catch_warnings():
        warnings.simplefilter("error", AstropyUserWarning)
        warnings.filterwarnings("ignore", ".*(metadata|will be ignored)", AstropyUserWarning)
        if (failure := _failure(parse, lines)) is None:
            return parse("\n".join(lines))
        # The reader does not tell which line it is.
        bad = bisect_left(range(len(lines)), True, key=lambda k: _failure(parse, lines[: k + 1]) is not None)
    reason = cause(failure).removesuffix(", skipping.")
    raise SettingsError(f"{path}: cannot read line {bad + 1}, {short(lines[bad].strip())!r}: {reason}")


def _failure(parse: Callable[[str], Any], lines: Sequence[str]) -> Exception | None:
    try:
        parse("\n".join(lines))
    except Exception as error:
        # Each format has errors of its own.
        return error
    return None


def _spans(vertices: Any) -> bool:
    """Return whether a polygon has any extent; the area of one that crosses itself may be 0."""
    return vertices is not None and bool(np.ptp(vertices.x) * np.ptp(vertices.y))


def _draw(region: Any, mask: NDArray[np.bool_], coordinates: Any) -> None:
    """Set a mask where a region, in pixels, holds a pixel's centre; what lies outside the image is never made.

    Raises
    ------
    ValueError
        It encloses no area.
    """
    if not (region.area > 0 or _spans(getattr(region, "vertices", None))):
        raise ValueError("it encloses no area")
    here, _ = region.bounding_box.get_overlap_slices(mask.shape)
    if here is not None:
        rows, columns = here
        for top in range(rows.start, rows.stop, _STRIP_ROWS):
            strip = np.s_[top : min(top + _STRIP_ROWS, rows.stop), columns]
            y, x = np.mgrid[strip]
            mask[strip] |= region.contains(coordinates(x, y))
