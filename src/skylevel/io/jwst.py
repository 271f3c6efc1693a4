r"""JWST exposures: FITS in, lazily; FITS out, with everything that was not levelled kept as it was.

Attributes of an opened exposure, each only where the file's headers have it (primary header first, then the image's;
the photometric ones the other way round):

=========================  ====================================================================================
instrument .. subarray     INSTRUME, DETECTOR, CHANNEL, MODULE, FILTER, PUPIL, EXP_TYPE, SUBARRAY
fast_axis, n_outputs       FASTAXIS, NOUTPUTS (int)
gain_reference             R_GAIN
program                    PROGRAM
date_obs, exposure_time    DATE-BEG or DATE-OBS and TIME-OBS (UTC); EFFEXPTM, XPOSURE or EXPTIME (s)
unit                       BUNIT; empty where the file does not say
photmjsr                   PHOTMJSR (MJy/sr per DN/s)
pixel_area_sr              PIXAR_SR (sr)
pixel_area_arcsec2         PIXAR_A2 (arcsec2)
sci_extension              index of the HDU of the image (int)
wcs                        that HDU's cards, one to a line: ``WCS(fits.Header.fromstring(wcs, sep="\n"))``
zero_point_correction      the given zero point / PHOTMJSR
=========================  ====================================================================================
"""

import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr
from astropy.io import fits
from astropy.utils.exceptions import AstropyWarning
from astropy.wcs import WCS, WcsError
from astropy.wcs.utils import proj_plane_pixel_scales
from numpy.typing import NDArray
from xarray.backends import BackendArray
from xarray.core import indexing

from skylevel.errors import SettingsError, ShapeError, UnreadableFrameError, UnsupportedFrameError
from skylevel.io.atomic import replacing
from skylevel.io.fits import (
    Card,
    Hdu,
    Image,
    RowBlocks,
    add_provenance,
    announce_extensions,
    as_stored,
    copy_hdu,
    open_bytes,
    read_hdus,
    require_image,
    require_other_file,
    require_shape,
    write_hdu,
)

LevelledHdu = tuple[fits.Header, Image | None]

OBSERVATION_CARDS: Mapping[str, tuple[type, tuple[str, ...]]] = {
    "instrument": (str, ("INSTRUME",)),
    "detector": (str, ("DETECTOR",)),
    "channel": (str, ("CHANNEL",)),
    "module": (str, ("MODULE",)),
    "filter": (str, ("FILTER",)),
    "pupil": (str, ("PUPIL",)),
    "exp_type": (str, ("EXP_TYPE",)),
    "subarray": (str, ("SUBARRAY",)),
    "fast_axis": (int, ("FASTAXIS",)),
    "n_outputs": (int, ("NOUTPUTS",)),
    "gain_reference": (str, ("R_GAIN",)),
    "program": (str, ("PROGRAM",)),
    "exposure_time": (float, ("EFFEXPTM", "XPOSURE", "EXPTIME")),
}
PHOTOMETRY_CARDS: Mapping[str, tuple[type, tuple[str, ...]]] = {
    "unit": (str, ("BUNIT",)),
    "photmjsr": (float, ("PHOTMJSR",)),
    "pixel_area_sr": (float, ("PIXAR_SR",)),
    "pixel_area_arcsec2": (float, ("PIXAR_A2",)),
}

_LONG_NAMES = {"sci": "science image", "err": "uncertainty", "dq": "data quality flags"}


class FitsPlane(BackendArray):
    """One image plane of a FITS file, read when it is indexed, and only the rows asked for.

    It holds no open file, so it pickles, and several threads or processes may read it at once.
    """

    def __init__(self, path: str, extension: int, shape: tuple[int, ...], dtype: np.dtype[Any]) -> None:
        self.path = path
        self.extension = extension
        self.leading = (0,) * (len(shape) - 2)
        self.shape = shape[-2:]
        self.dtype = dtype

    def __getitem__(self, key: indexing.ExplicitIndexer) -> Any:
        return indexing.explicit_indexing_adapter(key, self.shape, indexing.IndexingSupport.BASIC, self._read)

    def _read(self, key: tuple[int | slice, ...]) -> NDArray[Any]:
        rows, columns = key
        first, stop = _span(rows, self.shape[0])
        if first == stop:
            return np.empty(self.shape, self.dtype)[key]
        try:
            # Whole rows are one run of the file, and stay unread (memory-mapped) until their columns are taken.
            with fits.open(self.path) as hdus:
                block = hdus[self.extension].section[(*self.leading, slice(first, stop))]
                return np.asarray(block[_within(rows), columns]).astype(self.dtype)
        except (OSError, IndexError) as error:
            cause = " ".join(str(error).split())
            raise UnreadableFrameError(f"{self.path}: changed since it was opened: {cause}") from error


def _span(rows: int | slice, n_rows: int) -> tuple[int, int]:
    """First row, and the row after the last, of a basic index that goes upwards."""
    selected = range(n_rows)[rows] if isinstance(rows, slice) else [range(n_rows)[rows]]
    return (selected[0], selected[-1] + 1) if len(selected) else (0, 0)


def _within(rows: int | slice) -> int | slice:
    """Turn an index into the image into one into the rows that were read."""
    return slice(None, None, rows.step) if isinstance(rows, slice) else 0


def open_exposure(path: str | Path, zero_point: float | None = None) -> xr.Dataset:
    """Open a JWST exposure, or any FITS file with one image plane.

    Parameters
    ----------
    path : str or Path
        FITS, gzip or not. The image is the HDU named SCI; where none is, the primary's or else the first extension's.
    zero_point : float, optional
        MJy/sr per DN/s; see `skylevel.open_frame`.

    Returns
    -------
    xarray.Dataset
        ``sci`` (y, x) float32 (float64 where the file has that), ``err`` float32 and ``dq`` uint32 where the file has
        them in the same shape; unread. Attributes: see this module.

    Raises
    ------
    UnreadableFrameError
        The file is missing, cut short or damaged.
    UnsupportedFrameError
        It has no image, several, or one of more than one plane.
    SettingsError
        `zero_point` is not above 0, or the file has no PHOTMJSR to compare it with.
    """
    source = str(Path(path).expanduser().absolute())
    hdus = read_hdus(source)
    extension = _image_index(hdus, source)
    _require_one_plane(hdus[extension].shape, source)
    attrs = _attributes(hdus, extension) | {"kind": "jwst", "path": source}
    if zero_point is not None:
        attrs["zero_point_correction"] = _zero_point_correction(attrs, zero_point)
    planes = _planes(hdus, extension, source)
    for name, plane in planes.items():
        plane.attrs = {"units": attrs["unit"] if name != "dq" else "", "long_name": _LONG_NAMES[name]}
    return xr.Dataset(planes, attrs=attrs)


def peek_exposure(path: str | Path) -> tuple[tuple[int, int], dict[str, Any]]:
    """Return the shape (y, x) of an exposure, and what its headers say of the observation, as `open_exposure` has it.

    Raises
    ------
    UnreadableFrameError, UnsupportedFrameError
        As `open_exposure`.
    """
    source = str(Path(path).expanduser().absolute())
    hdus = read_hdus(source)
    image = hdus[_image_index(hdus, source)]
    _require_one_plane(image.shape, source)
    facts = _cards(OBSERVATION_CARDS, [hdus[0].header, image.header])
    facts["dtype"] = "float64" if image.bits == -64 else "float32"
    return (image.shape[-2], image.shape[-1]), facts


def _image_index(hdus: Sequence[Hdu], path: str) -> int:
    images = [i for i, hdu in enumerate(hdus) if hdu.shape]
    named = [i for i in images if hdus[i].name == "SCI"]
    if len(named) > 1:
        raise UnsupportedFrameError(f"{path}: has {len(named)} SCI images (slits or chips); skylevel levels one a file")
    if not images:
        compressed = any(hdu.header.get("ZIMAGE") for hdu in hdus)
        hint = "its image is tile-compressed: decompress it with funpack first" if compressed else "it holds no image"
        raise UnsupportedFrameError(f"{path}: {hint}")
    return (named or images)[0]


def _require_one_plane(shape: tuple[int, ...], path: str) -> None:
    if len(shape) < 2 or 0 in shape:
        raise UnsupportedFrameError(f"{path}: its image has shape {shape}, which is no two-dimensional image")
    if math.prod(shape[:-2]) > 1:
        raise UnsupportedFrameError(
            f"{path}: holds {shape[-3]} integrations (shape {shape}): "
            "level the exposure's _rate or _cal, or one integration's plane"
        )


def _planes(hdus: Sequence[Hdu], extension: int, path: str) -> dict[str, xr.Variable]:
    shape = hdus[extension].shape[-2:]
    image_dtype = np.dtype(np.float64 if hdus[extension].bits == -64 else np.float32)
    found = {"sci": (extension, image_dtype)}
    for name, dtype in (("err", np.dtype(np.float32)), ("dq", np.dtype(np.uint32))):
        same = [i for i, h in enumerate(hdus) if h.name == name.upper() and _is_plane(h, shape) and i != extension]
        if same and not (name == "dq" and hdus[same[0]].is_floating):
            found[name] = (same[0], dtype)
    return {name: _variable(FitsPlane(path, i, hdus[i].shape, dtype)) for name, (i, dtype) in found.items()}


def _is_plane(hdu: Hdu, shape: tuple[int, ...]) -> bool:
    return hdu.shape[-2:] == shape and math.prod(hdu.shape[:-2]) == 1


def _variable(plane: FitsPlane) -> xr.Variable:
    return xr.Variable(("y", "x"), indexing.LazilyIndexedArray(plane))


def _attributes(hdus: Sequence[Hdu], extension: int) -> dict[str, Any]:
    primary, image = hdus[0].header, hdus[extension].header
    attrs: dict[str, Any] = {"unit": "", "sci_extension": extension}
    attrs |= _cards(OBSERVATION_CARDS, (primary, image)) | _cards(PHOTOMETRY_CARDS, (image, primary))
    date = _first(("DATE-BEG",), (primary, image)) or _date_and_time(primary)
    if date:
        attrs["date_obs"] = str(date)
    return attrs | {"wcs": image.tostring(sep="\n", endcard=False, padding=False)}


def _date_and_time(header: fits.Header) -> str:
    parts = [_first((keyword,), (header,)) for keyword in ("DATE-OBS", "TIME-OBS")]
    return "T".join(str(part) for part in parts if part)


def _cards(table: Mapping[str, tuple[type, tuple[str, ...]]], headers: Sequence[fits.Header]) -> dict[str, Any]:
    values = {name: _converted(kind, _first(keywords, headers)) for name, (kind, keywords) in table.items()}
    return {name: value for name, value in values.items() if value is not None}


def _first(keywords: Sequence[str], headers: Sequence[fits.Header]) -> Any:
    """Find the first value there is; a card without a value counts as absent."""
    found = (header[keyword] for keyword in keywords for header in headers if keyword in header)
    return next((value for value in found if not isinstance(value, fits.card.Undefined)), None)


def _converted(kind: Callable[[Any], Any], value: Any) -> Any:
    try:
        return None if value is None else kind(value)
    except (TypeError, ValueError):
        # Such as the text N/A where a number is due.
        return None


def _zero_point_correction(attrs: Mapping[str, Any], zero_point: float) -> float:
    if not (math.isfinite(zero_point) and zero_point > 0):
        raise SettingsError(f"zero_point = {zero_point!r}: needs a value above 0, in MJy/sr per DN/s")
    if not attrs.get("photmjsr"):
        raise SettingsError(f"{attrs['path']}: has no PHOTMJSR, so zero_point = {zero_point!r} corrects nothing")
    return float(zero_point / attrs["photmjsr"])


def frame_wcs(frame: xr.Dataset) -> WCS:
    """Build the world coordinates of an exposure from its image's header.

    Parameters
    ----------
    frame : Dataset
        As `open_exposure` gives it.

    Raises
    ------
    UnsupportedFrameError
        The frame is no FITS exposure, or its coordinate cards contradict each other.
    """
    if "wcs" not in frame.attrs:
        raise UnsupportedFrameError(f"{frame.attrs.get('path', 'frame')}: has no world coordinates: it is not FITS")
    header = fits.Header.fromstring(frame.attrs["wcs"], sep="\n")
    with warnings.catch_warnings():
        # astropy reports each date and unit it brings into the standard's form: nothing for the user to do.
        warnings.simplefilter("ignore", AstropyWarning)
        try:
            return WCS(header, naxis=2)
        except (WcsError, KeyError, ValueError) as error:
            cause = " ".join(str(error).split())
            raise UnsupportedFrameError(f"{frame.attrs['path']}: its world coordinates are wrong: {cause}") from error


def size_and_field(frame: xr.Dataset) -> str:
    """One line on the size of an exposure in pixels and on the sky, as the notebook printed it.

    Where the header has no celestial coordinates, in pixels alone.
    """
    ny, nx = frame["sci"].shape
    line = f"{Path(frame.attrs['path']).name}: {ny} x {nx} pixels"
    wcs = frame_wcs(frame)
    if not wcs.has_celestial:
        return line
    scale = proj_plane_pixel_scales(wcs.celestial)[0] * wcs.celestial.wcs.cunit[0].to("arcsec")
    return line + f' = {ny * scale:g}" x {nx * scale:g}" ({scale:.2f}" / pixel)'


def flux_per_pixel(frame: xr.Dataset, *, zero_point: float | None = None) -> xr.Dataset:
    """Flux in each pixel, from surface brightness and the header's pixel area.

    Parameters
    ----------
    frame : Dataset
        An exposure in MJy/sr (``_cal``, ``_crf``, ``_i2d``), levelled or not.
    zero_point : float, optional
        MJy/sr per DN/s; the flux is multiplied by `zero_point` / PHOTMJSR. By default the correction that was asked
        for when the frame was opened, if any.

    Returns
    -------
    Dataset
        ``sci`` and, where the frame has it, ``err``, in MJy, in the frame's dtypes; lazy where the frame is.

    Raises
    ------
    UnsupportedFrameError
        The exposure is not in MJy/sr, or its header has no PIXAR_SR.
    SettingsError
        `zero_point` is not above 0, or the header has no PHOTMJSR to compare it with.
    """
    name, unit = frame.attrs.get("path", "frame"), str(frame.attrs.get("unit", ""))
    if unit.replace(" ", "").lower() != "mjy/sr":
        raise UnsupportedFrameError(f"{name}: its unit is {unit or 'not given'}, not MJy/sr: take the _cal exposure")
    if not frame.attrs.get("pixel_area_sr"):
        raise UnsupportedFrameError(f"{name}: its header has no PIXAR_SR, the area of a pixel, so flux is unknown")
    factor = frame.attrs["pixel_area_sr"] * frame.attrs.get("zero_point_correction", 1.0)
    if zero_point is not None:
        factor = frame.attrs["pixel_area_sr"] * _zero_point_correction({"path": name, **frame.attrs}, zero_point)
    flux = xr.Dataset({v: frame[v] * float(factor) for v in ("sci", "err") if v in frame})
    return flux.assign_attrs({**frame.attrs, "unit": "MJy"})


def write_full(
    output: str | Path,
    frame: xr.Dataset,
    sci: Image,
    *,
    cards: Sequence[Card] = (),
    history: Sequence[str] = (),
) -> None:
    """Write a levelled exposure in the layout of its input.

    Parameters
    ----------
    output : str or Path
        Replaced in one step once it is whole.
    frame : Dataset
        The exposure as `open_exposure` gave it; its file is read again for all that is kept.
    sci : ndarray (y, x) or RowBlocks
        The levelled image; stored as float32, or float64 where the input's image is.
    cards : sequence of (keyword, value, comment)
        Set in the primary header.
    history : sequence of str
        HISTORY lines, appended to the primary header.

    Raises
    ------
    ShapeError
        `sci` is no NumPy array or of another shape than the exposure.
    SettingsError
        `output` is the input.
    UnreadableFrameError
        The input can no longer be read.

    Notes
    -----
    HDUs other than the primary and the image's are copied byte for byte. The primary and the image keep their cards
    and get new CHECKSUM and DATASUM; FILENAME says the output's name. Peak extra memory: 4 MiB, and a copy
    of `sci` where that is not of the type to store.
    """
    output, source = Path(output), frame.attrs["path"]
    require_other_file(output, source)
    hdus = read_hdus(source)
    changed = _levelled_hdus(hdus, frame, sci)
    if len(hdus) > 1:
        announce_extensions(changed[0][0])
    add_provenance(changed[0][0], output, cards, history)
    with replacing(output) as temporary, open_bytes(source) as stream, temporary.open("xb") as target:
        for i, hdu in enumerate(hdus):
            if i in changed:
                write_hdu(target, *changed[i])
            else:
                copy_hdu(hdu, stream, target)


def _levelled_hdus(hdus: Sequence[Hdu], frame: xr.Dataset, sci: Image) -> dict[int, LevelledHdu]:
    """Make header and pixels of the HDUs that differ: the primary, and the image's where that is another."""
    extension = frame.attrs["sci_extension"]
    pixels = _pixels(hdus, frame, sci)
    header = _image_header(hdus[extension])
    header["BITPIX"] = -8 * pixels.dtype.itemsize
    # The primary comes first, and is the image's own header where the image is in it.
    return {0: (hdus[0].header.copy(), None), extension: (header, pixels)}


def _pixels(hdus: Sequence[Hdu], frame: xr.Dataset, sci: Image) -> Image:
    """Bring the levelled image into the type in which it is stored; the input's HDU may have leading axes of 1."""
    extension = frame.attrs["sci_extension"]
    if extension >= len(hdus) or not _is_plane(hdus[extension], frame["sci"].shape):
        raise ShapeError(f"{frame.attrs['path']}: changed since it was opened: its image has another shape")
    dtype = np.float64 if hdus[extension].bits == -64 else np.float32
    if isinstance(sci, RowBlocks):
        require_shape(sci.shape, frame["sci"].shape)
        return replace(sci, dtype=np.dtype(dtype))
    return as_stored(sci, frame["sci"].shape, dtype=dtype)


def _image_header(hdu: Hdu) -> fits.Header:
    """Copy the image's cards without those that would rescale floating-point pixels."""
    header = hdu.header.copy()
    for keyword in ("BSCALE", "BZERO", "BLANK", "CHECKSUM", "DATASUM"):
        header.remove(keyword, ignore_missing=True, remove_all=True)
    return header


def write_primary(
    output: str | Path,
    frame: xr.Dataset,
    sci: Image,
    *,
    cards: Sequence[Card] = (),
    history: Sequence[str] = (),
) -> None:
    """Write a levelled exposure as one primary HDU with the merged header, as the notebook did.

    Parameters, errors and the single step of replacing are those of `write_full`.
    """
    output, source = Path(output), frame.attrs["path"]
    require_other_file(output, source)
    hdus, extension = read_hdus(source), frame.attrs["sci_extension"]
    pixels = _pixels(hdus, frame, sci)
    header = _image_header(hdus[extension])
    if extension:
        header = hdus[0].header + header
    # The header alone is wanted, for an image of this shape and type.
    hdu = fits.PrimaryHDU(np.broadcast_to(pixels.dtype.type(0), pixels.shape), header)
    add_provenance(hdu.header, output, cards, history)
    _write_single(output, hdu.header, pixels)


def write_masked(output: str | Path, frame: xr.Dataset, mask: NDArray[np.bool_]) -> None:
    """Write the exposure as it was, with 0 in the pixels of sources, under its primary header.

    Parameters
    ----------
    output : str or Path
        The notebook's name is ``<stem>_masked.fits``.
    frame : Dataset
        The exposure before levelling.
    mask : ndarray (y, x) bool
        True = source.

    Raises
    ------
    ShapeError
        `mask` is no NumPy array or of another shape than the exposure.
    """
    output = Path(output)
    require_other_file(output, frame.attrs["path"])
    require_image(mask, frame["sci"].shape)
    image = frame["sci"].to_numpy()
    pixels = np.where(mask, image.dtype.type(0), image)
    hdu = fits.PrimaryHDU(pixels, read_hdus(frame.attrs["path"])[0].header)
    add_provenance(hdu.header, output, (), ())
    _write_single(output, hdu.header, pixels)


def write_segmentation(output: str | Path, frame: xr.Dataset, labels: NDArray[Any]) -> None:
    """Write a label map (0 = no source) as uint32 with the exposure's world coordinates, as the notebook did.

    Parameters
    ----------
    output : str or Path
        The notebook's name is ``detections_segm_<name>``.
    frame : Dataset
        The exposure.
    labels : ndarray (y, x) of integers
        Not below 0.

    Raises
    ------
    ShapeError
        `labels` is no NumPy array or of another shape than the exposure.
    """
    # FITS has no unsigned integers: they are stored with their highest bit turned over, and BZERO says so.
    pixels = (as_stored(labels, frame["sci"].shape, dtype=np.uint32) ^ np.uint32(1 << 31)).view(np.int32)
    hdu = fits.PrimaryHDU(pixels, _wcs_header(frame, sip=False))
    hdu.header["BZERO"] = 1 << 31
    hdu.header["BSCALE"] = 1
    _write_single(Path(output), hdu.header, pixels)


def write_image(output: str | Path, frame: xr.Dataset, image: NDArray[Any], *, cards: Sequence[Card] = ()) -> None:
    """Write an image measured from the exposure, such as its background, in the exposure's unit and coordinates.

    Parameters
    ----------
    output : str or Path
        Replaced in one step once it is whole.
    frame : Dataset
        The exposure, JWST or camera.
    image : ndarray (y, x)
        Stored as float32.
    cards : sequence of (keyword, value, comment)
        Set in the header.

    Raises
    ------
    ShapeError
        `image` is no NumPy array or of another shape than the exposure.
    """
    output = Path(output)
    header = _wcs_header(frame, sip=True) if "wcs" in frame.attrs else fits.Header()
    if frame.attrs.get("unit"):
        header["BUNIT"] = frame.attrs["unit"]
    pixels = as_stored(image, (frame.sizes["y"], frame.sizes["x"]))
    hdu = fits.PrimaryHDU(pixels, header)
    add_provenance(hdu.header, output, cards, ())
    _write_single(output, hdu.header, pixels)


def _wcs_header(frame: xr.Dataset, *, sip: bool) -> fits.Header:
    """Write the world coordinates as a header; `sip` keeps the distortion, which the notebook's products left out."""
    wcs = frame_wcs(frame)
    with warnings.catch_warnings():
        # astropy reports what it leaves out, which is what was asked for.
        warnings.simplefilter("ignore", AstropyWarning)
        return wcs.to_header(relax=True if sip else None)


def _write_single(output: Path, header: fits.Header, pixels: Image) -> None:
    with replacing(output) as temporary, temporary.open("xb") as target:
        write_hdu(target, header, pixels)
