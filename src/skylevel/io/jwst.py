r"""JWST exposures: FITS in, lazily; FITS out, with everything that was not levelled kept as it was.

Attributes of an opened exposure, each only where the file's headers have it (primary header first, then the image's;
the photometric ones the other way round):

=========================  ====================================================================================
instrument .. subarray     INSTRUME, DETECTOR, CHANNEL, MODULE, FILTER, PUPIL, EXP_TYPE, SUBARRAY
fast_axis, slow_axis       FASTAXIS, SLOWAXIS (int)
substrt1, substrt2         SUBSTRT1, SUBSTRT2: detector column and row of the first pixel, from 1 (int)
n_outputs                  NOUTPUTS (int)
gain_reference             R_GAIN
program                    PROGRAM
date_obs, exposure_time    DATE-BEG or DATE-OBS and TIME-OBS (UTC); EFFEXPTM, XPOSURE or EXPTIME (s)
unit                       BUNIT; empty where the file does not say
photmjsr                   PHOTMJSR (MJy/sr per DN/s)
pixel_area_sr              PIXAR_SR (sr)
pixel_area_arcsec2         PIXAR_A2 (arcsec2)
sci_extension              index of the HDU of the image (int)
compression                the method, such as RICE_1, where the image is tile-compressed
resampled                  True where the image was put together from others (``_i2d``)
levelled_by                the tool that levelled it before; see `skylevel.io.past`
wcs                        that HDU's cards, one to a line: ``WCS(fits.Header.fromstring(wcs, sep="\n"))``
zero_point_correction      the given zero point / PHOTMJSR
=========================  ====================================================================================
"""

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import xarray as xr
from astropy.io import fits
from numpy.typing import NDArray

from skylevel.errors import SettingsError, ShapeError, UnsupportedFrameError
from skylevel.io.cards import first_facts, first_value, legal_header, require_legible, without_warnings
from skylevel.io.fits import (
    CHECKSUM_CARDS,
    Card,
    Image,
    RowBlocks,
    StoredData,
    add_provenance,
    announce_extensions,
    as_stored,
    copy_hdu,
    fits_output,
    require_finite,
    require_image,
    require_other_file,
    require_shape,
    write_hdu,
)
from skylevel.io.hdus import Hdu, open_bytes, read_hdus
from skylevel.io.past import is_resampled, levelled_by
from skylevel.io.planes import SCALING_CARDS, image_header, variable
from skylevel.io.planes import FitsPlane as FitsPlane

if TYPE_CHECKING:
    from astropy.wcs import WCS

# HDUs that hold no picture of the sky, by their names in the files of JWST, HST and others.
_OTHER_MEANINGS = re.compile(
    r"(ERR|DQ|VAR|IVAR|WHT|WEIGHT|CON$|CONTEXT|CTX|AREA|PIXELDQ|GROUPDQ|ZEROFRAME|REFOUT|WMAP|WAVELENGTH|PATHLOSS|"
    r"FLAT|DARK|BIAS|GAIN|READNOISE|MASK|BADPIX|FLAG|QUALITY|RMS|STD|SIGMA|NOISE|UNCERT|EXP|COVERAGE|HITS|NHIT|SEG|"
    r"BKG|BACKGROUND|PSF|SAMP|TIME|REGION|SOURCE_MASK|ROW_LEVEL|D2IM|WCSDVARR|NPOL|BARSHADOW|HDRTAB|ASDF)"
)
# The SIP convention's own bound, and more axes than any image of the sky has. Without them one damaged card makes
# WCSLIB take all memory, or minutes.
_MOST_SIP_ORDER = 9
_MOST_WCS_AXES = 16
_ORDER_CARDS = ("A_ORDER", "B_ORDER", "AP_ORDER", "BP_ORDER")
# Cards that decide where an exposure's results go.
_NEEDED_CARDS = ("DETECTOR", "FILTER")

OBSERVATION_CARDS: dict[str, tuple[type, tuple[str, ...]]] = {
    "instrument": (str, ("INSTRUME",)),
    "detector": (str, ("DETECTOR",)),
    "channel": (str, ("CHANNEL",)),
    "module": (str, ("MODULE",)),
    "filter": (str, ("FILTER",)),
    "pupil": (str, ("PUPIL",)),
    "exp_type": (str, ("EXP_TYPE",)),
    "subarray": (str, ("SUBARRAY",)),
    "fast_axis": (int, ("FASTAXIS",)),
    "slow_axis": (int, ("SLOWAXIS",)),
    "substrt1": (int, ("SUBSTRT1",)),
    "substrt2": (int, ("SUBSTRT2",)),
    "n_outputs": (int, ("NOUTPUTS",)),
    "gain_reference": (str, ("R_GAIN",)),
    "program": (str, ("PROGRAM",)),
    "exposure_time": (float, ("EFFEXPTM", "XPOSURE", "EXPTIME")),
}
PHOTOMETRY_CARDS: dict[str, tuple[type, tuple[str, ...]]] = {
    "unit": (str, ("BUNIT",)),
    "photmjsr": (float, ("PHOTMJSR",)),
    "pixel_area_sr": (float, ("PIXAR_SR",)),
    "pixel_area_arcsec2": (float, ("PIXAR_A2",)),
}

_LONG_NAMES = {"sci": "science image", "err": "uncertainty", "dq": "data quality flags", "wht": "weight of each pixel"}


def open_exposure(path: str | Path, zero_point: float | None = None) -> xr.Dataset:
    """Open a JWST exposure, or any FITS file with one image plane.

    Parameters
    ----------
    path : str or Path
        FITS, gzip or not, its images tile-compressed or not. The image is the HDU named SCI; where none is, the
        primary's or else the first extension's that is not named as something else (DQ, ERR, VAR_*, WHT ...).
    zero_point : float, optional
        MJy/sr per DN/s; see `skylevel.open_frame`.

    Returns
    -------
    xarray.Dataset
        ``sci`` (y, x) float32 (float64 where the file has that), ``err`` and ``wht`` float32 and ``dq`` uint32 where
        the file has them in the same shape; unread. Attributes: see this module.

    Raises
    ------
    UnreadableFrameError
        The file is missing, cut short or damaged, or its DETECTOR or FILTER cannot be read.
    UnsupportedFrameError
        It has no image, several, or one of more than one plane.
    SettingsError
        `zero_point` is not above 0, or the file has no PHOTMJSR to compare it with.
    """
    source = str(Path(path).expanduser().absolute())
    return exposure_of(*image_hdus(source), source, zero_point)


def exposure_of(hdus: Sequence[Hdu], extension: int, source: str, zero_point: float | None = None) -> xr.Dataset:
    """Open the exposure of a file whose HDUs are known; see `open_exposure`."""
    attrs = _attributes(hdus, extension, source) | {"kind": "jwst", "path": source}
    if zero_point is not None:
        attrs["zero_point_correction"] = _zero_point_correction(attrs, zero_point)
    planes = _planes(hdus, extension, source)
    for name, plane in planes.items():
        plane.attrs = {"units": attrs["unit"] if name in ("sci", "err") else "", "long_name": _LONG_NAMES[name]}
    return xr.Dataset(planes, attrs=attrs)


def peek_exposure(path: str | Path) -> tuple[tuple[int, int], dict[str, Any]]:
    """Return the shape (y, x) of an exposure, and what its headers say of the observation, as `open_exposure` has it.

    Returns
    -------
    tuple of int, dict
        Those of the attributes that do not need the pixels, `kind`, and `dtype`, the image's.

    Raises
    ------
    UnreadableFrameError, UnsupportedFrameError
        As `open_exposure`.
    """
    source = str(Path(path).expanduser().absolute())
    return peek_of(*image_hdus(source), source)


def peek_of(hdus: Sequence[Hdu], extension: int, source: str) -> tuple[tuple[int, int], dict[str, Any]]:
    """Peek at the exposure of a file whose HDUs are known; see `peek_exposure`."""
    image, headers = hdus[extension], [hdus[0].header, hdus[extension].header]
    require_legible(_NEEDED_CARDS, headers, source)
    attrs = {"kind": "jwst"} | first_facts(OBSERVATION_CARDS, headers) | _date(*headers) | _past(hdus, headers, source)
    attrs["dtype"] = "float64" if image.bits == -64 else "float32"
    return (image.shape[-2], image.shape[-1]), attrs


def header_attributes(headers: Sequence[fits.Header]) -> dict[str, Any]:
    """Return those attributes of an exposure that stand in single cards; see this module."""
    attrs = {"unit": ""} | first_facts(OBSERVATION_CARDS | PHOTOMETRY_CARDS, headers)
    tool = levelled_by(headers)
    return attrs | ({"levelled_by": tool} if tool else {})


def image_hdus(path: str) -> tuple[list[Hdu], int]:
    """Return the HDUs of a file, and the index of the one whose image is to be levelled.

    Raises
    ------
    UnreadableFrameError, UnsupportedFrameError
        As `open_exposure`.
    """
    hdus = read_hdus(path)
    extension = _image_index(hdus, path)
    _require_one_plane(hdus[extension].shape, path)
    return hdus, extension


def _image_index(hdus: Sequence[Hdu], path: str) -> int:
    images = [i for i, hdu in enumerate(hdus) if hdu.shape]
    named = [i for i in images if hdus[i].name == "SCI"]
    if len(named) > 1:
        raise UnsupportedFrameError(f"{path}: has {len(named)} SCI images (slits or chips); skylevel levels one a file")
    if not images:
        raise UnsupportedFrameError(f"{path}: it holds no image")
    possible = named or [i for i in images if not _OTHER_MEANINGS.match(hdus[i].name)]
    if not possible:
        names = ", ".join(hdus[i].name for i in images[:5])
        raise UnsupportedFrameError(f"{path}: has no SCI image, and none of its others is one to level ({names})")
    return possible[0]


def _require_one_plane(shape: tuple[int, ...], path: str) -> None:
    if len(shape) < 2 or 0 in shape:
        raise UnsupportedFrameError(f"{path}: its image has shape {shape}, which is no two-dimensional image")
    if math.prod(shape[:-2]) > 1:
        raise UnsupportedFrameError(
            f"{path}: holds {math.prod(shape[:-2])} integrations (shape {shape}): "
            "level the exposure's _rate or _cal, or one integration's plane"
        )


def _planes(hdus: Sequence[Hdu], extension: int, path: str) -> dict[str, xr.Variable]:
    shape = hdus[extension].shape[-2:]
    image_dtype = np.dtype(np.float64 if hdus[extension].bits == -64 else np.float32)
    found = {"sci": (extension, image_dtype)}
    for name, dtype in (("err", np.dtype(np.float32)), ("dq", np.dtype(np.uint32)), ("wht", np.dtype(np.float32))):
        same = [i for i, h in enumerate(hdus) if h.name == name.upper() and _is_plane(h, shape) and i != extension]
        if same and not (name == "dq" and hdus[same[0]].is_floating):
            found[name] = (same[0], dtype)
    return {name: variable(path, i, hdus[i], dtype) for name, (i, dtype) in found.items()}


def _is_plane(hdu: Hdu, shape: tuple[int, ...]) -> bool:
    return hdu.shape[-2:] == shape and math.prod(hdu.shape[:-2]) == 1


def _attributes(hdus: Sequence[Hdu], extension: int, path: str) -> dict[str, Any]:
    primary, image = hdus[0].header, image_header(path, extension, hdus[extension])
    require_legible(_NEEDED_CARDS, (hdus[0].header, hdus[extension].header), path)
    attrs: dict[str, Any] = {"unit": "", "sci_extension": extension}
    attrs |= first_facts(OBSERVATION_CARDS, (primary, image)) | first_facts(PHOTOMETRY_CARDS, (image, primary))
    attrs |= _date(primary, image)
    if hdus[extension].is_compressed:
        attrs["compression"] = str(first_value(["ZCMPTYPE"], [hdus[extension].header]))
    attrs |= _past(hdus, (primary, image), path)
    return attrs | {"wcs": image.tostring(sep="\n", endcard=False, padding=False)}


def _past(hdus: Sequence[Hdu], headers: Sequence[fits.Header], path: str) -> dict[str, Any]:
    tool, resampled = levelled_by(headers), is_resampled(hdus, headers, path)
    return ({"levelled_by": tool} if tool else {}) | ({"resampled": True} if resampled else {})


def _date(primary: fits.Header, image: fits.Header) -> dict[str, Any]:
    date = first_value(("DATE-BEG",), (primary, image)) or _date_and_time(primary)
    return {"date_obs": str(date)} if date else {}


def _date_and_time(header: fits.Header) -> str:
    parts = [first_value((keyword,), (header,)) for keyword in ("DATE-OBS", "TIME-OBS")]
    return "T".join(str(part) for part in parts if part)


def _zero_point_correction(attrs: Mapping[str, Any], zero_point: float) -> float:
    if not (math.isfinite(zero_point) and zero_point > 0):
        raise SettingsError(f"zero_point = {zero_point!r}: needs a value above 0, in MJy/sr per DN/s")
    if not attrs.get("photmjsr"):
        raise SettingsError(f"{attrs['path']}: has no PHOTMJSR, so zero_point = {zero_point!r} corrects nothing")
    return float(zero_point / attrs["photmjsr"])


def frame_wcs(frame: xr.Dataset) -> "WCS":
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
    # As slow to import as all else together, and levelling needs no coordinates.
    from astropy.wcs import WCS  # noqa: PLC0415

    if "wcs" not in frame.attrs:
        raise UnsupportedFrameError(f"{frame.attrs.get('path', 'frame')}: has no world coordinates: it is not FITS")
    header, path = fits.Header.fromstring(frame.attrs["wcs"], sep="\n"), frame.attrs["path"]
    _require_bounded(header, path)
    with without_warnings():
        try:
            return WCS(header, naxis=2)
        except Exception as error:
            # WCSLIB, and what astropy does around it, have an error for each kind of contradiction.
            cause = " ".join(str(error).split()) or type(error).__name__
            raise UnsupportedFrameError(f"{path}: its world coordinates are wrong: {cause}") from error


def _require_bounded(header: fits.Header, path: str) -> None:
    """Refuse coordinates that would take all memory, or minutes, before they turn out wrong."""
    bounds = dict.fromkeys(_ORDER_CARDS, _MOST_SIP_ORDER) | {"WCSAXES": _MOST_WCS_AXES}
    for keyword, most in bounds.items():
        value = first_value([keyword], [header])
        if isinstance(value, int | float) and not 0 <= value <= most:
            raise UnsupportedFrameError(f"{path}: its world coordinates are wrong: {keyword} is {value}")


def size_and_field(frame: xr.Dataset) -> str:
    """Return one line on the size of an exposure in pixels and on the sky, as the notebook printed it.

    Where the header has no celestial coordinates, or wrong ones, in pixels alone: levelling needs none.
    """
    ny, nx = frame["sci"].shape
    line = f"{Path(frame.attrs['path']).name}: {ny} x {nx} pixels"
    try:
        header = fits.Header.fromstring(frame.attrs["wcs"], sep="\n")
        if not any(name.startswith("CTYPE") for name in header):
            return line
        _require_bounded(header, line)
        scale = _tangent_scale(header) or _celestial_scale(frame)
    except Exception:
        # As in `frame_wcs`; a line for the log is not worth an exposure.
        return line
    if scale is None:
        return line
    return line + f' = {ny * scale:g}" x {nx * scale:g}" ({scale:.2f}" / pixel)'


def _tangent_scale(header: fits.Header) -> float | None:
    """Return the side of a pixel in arcsec where coordinates are written as JWST's are; None of others: ask WCSLIB."""
    kinds = [str(header.get(f"CTYPE{axis}")).removesuffix("-SIP") for axis in (1, 2)]
    units = [header.get(f"CUNIT{axis}", "deg") for axis in (1, 2)]
    written = {name[:2] for name in header if re.fullmatch(r"(CD|PC)\d_\d|CROTA\d", name)}
    if (kinds, units) != (["RA---TAN", "DEC--TAN"], ["deg", "deg"]) or written not in ({"CD"}, {"PC"}):
        return None
    (word,) = written
    steps = [float(header.get(f"CDELT{axis}", 1.0)) if word == "PC" else 1.0 for axis in (1, 2)]
    matrix = [[step * float(header.get(f"{word}{i}_{j}", word == "PC" and i == j)) for j in (1, 2)]
              for i, step in enumerate(steps, 1)]  # fmt: skip
    return 3600 * math.hypot(matrix[0][0], matrix[1][0]) if np.linalg.det(matrix) else None


def _celestial_scale(frame: xr.Dataset) -> float | None:
    """Return the side of a pixel in arcsec; None where an exposure has no celestial coordinates."""
    wcs = frame_wcs(frame)
    if not wcs.has_celestial:
        return None
    column = wcs.celestial.pixel_scale_matrix[:, 0]
    return float(math.hypot(*column) * wcs.celestial.wcs.cunit[0].to("arcsec"))


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
    HDUs other than the primary and the image's are copied byte for byte. The primary and the image keep their cards;
    CHECKSUM and DATASUM are set anew where they stand, and FILENAME says the output's name. An image that was
    tile-compressed is written plain, which HISTORY says. The file is read back before it takes its place.
    Peak extra memory: 4 MiB, and a copy of `sci` where that is not of the type to store.
    """
    output, source = Path(output), frame.attrs["path"]
    require_other_file(output, source)
    hdus, extension = read_hdus(source), frame.attrs["sci_extension"]
    pixels = _pixels(hdus, frame, sci)
    image = _floating_header(image_header(source, extension, hdus[extension]), pixels)
    # The primary comes first, and is the image's own header where the image is in it.
    headers = {0: legal_header(hdus[0].text), extension: image}
    if len(hdus) > 1:
        announce_extensions(headers[0])
    history = [*history, *_plain_again(hdus[extension], frame)]
    sums = {i: _taken_sums(header) for i, header in headers.items()}
    add_provenance(headers[0], output, cards, history)
    with open_bytes(source) as stream, fits_output(output) as (target, written):
        for i, hdu in enumerate(hdus):
            if i not in headers:
                written.append(copy_hdu(hdu, stream, target))
                continue
            data = pixels if i == extension else StoredData(hdu, stream) if hdu.data_end > hdu.data_start else None
            written.append(write_hdu(target, headers[i], data, sums=sums[i]))


def _taken_sums(header: fits.Header) -> Sequence[str]:
    """Take the cards of sums out of a header, to be set again once its data are known; which they are to be.

    A CHECKSUM is never alone: readers take one without a DATASUM for the header's own.
    """
    found = [keyword for keyword in CHECKSUM_CARDS if keyword in header]
    for keyword in found:
        header.remove(keyword, remove_all=True)
    return CHECKSUM_CARDS if "CHECKSUM" in found else found


def _plain_again(hdu: Hdu, frame: xr.Dataset) -> list[str]:
    method = frame.attrs.get("compression", "a method of its own")
    return [f"skylevel: the image was tile-compressed ({method}) and is written plain"] if hdu.is_compressed else []


def _floating_header(header: fits.Header, pixels: Image) -> fits.Header:
    """Let an image's header declare floating-point pixels, which nothing rescales."""
    _remove_scaling(header)
    header["BITPIX"] = -8 * pixels.dtype.itemsize
    return header


def _remove_scaling(header: fits.Header) -> None:
    for keyword in SCALING_CARDS:
        header.remove(keyword, ignore_missing=True, remove_all=True)


def _pixels(hdus: Sequence[Hdu], frame: xr.Dataset, sci: Image) -> Image:
    """Bring the levelled image into the type in which it is stored; the input's HDU may have leading axes of 1."""
    extension = frame.attrs["sci_extension"]
    if extension >= len(hdus) or not _is_plane(hdus[extension], frame["sci"].shape):
        raise ShapeError(f"{frame.attrs['path']}: changed since it was opened: its image has another shape")
    dtype = np.float64 if hdus[extension].bits == -64 else np.float32
    if isinstance(sci, RowBlocks):
        require_shape(sci.shape, frame["sci"].shape)
        return replace(sci, dtype=np.dtype(dtype), blocks=_finite_blocks(sci, frame))
    pixels = as_stored(sci, frame["sci"].shape, dtype=dtype)
    if not np.isfinite(pixels).all():
        require_finite(pixels, frame["sci"].to_numpy(), frame.attrs["path"])
    return pixels


def _finite_blocks(sci: RowBlocks, frame: xr.Dataset) -> Iterator[NDArray[Any]]:
    """Yield the blocks of an image, each held against the pixels that it was made from."""
    y = 0
    for block in sci.blocks:
        if not np.isfinite(block).all():
            original = frame["sci"].isel(y=slice(y, y + len(block))).to_numpy()
            require_finite(block, original, frame.attrs["path"])
        y += len(block)
        yield block


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
    header = image_header(source, extension, hdus[extension])
    if extension:
        header = legal_header(hdus[0].text) + header
    _remove_scaling(header)
    # The header alone is wanted, for an image of this shape and type.
    hdu = fits.PrimaryHDU(np.broadcast_to(pixels.dtype.type(0), pixels.shape), header)
    add_provenance(hdu.header, output, cards, [*history, *_plain_again(hdus[extension], frame)])
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
    header = legal_header(read_hdus(frame.attrs["path"])[0].text)
    _remove_scaling(header)
    hdu = fits.PrimaryHDU(pixels, header)
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
    with without_warnings():
        return wcs.to_header(relax=True if sip else None)


def _write_single(output: Path, header: fits.Header, pixels: Image) -> None:
    with fits_output(output) as (target, written):
        written.append(write_hdu(target, header, pixels))
