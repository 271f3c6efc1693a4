"""Camera raws: the sensor's mosaic in, through rawpy; a levelled mosaic out, as FITS that raw-aware programs open.

Attributes of an opened raw, each only where the camera recorded it unless marked *always*:

==================  =========================================================================================
color_filter_array  *always*: rows of colour letters of the repeating pattern, such as ``["RG", "GB"]``
black_level         *always*: int, or one for each colour of LibRaw's list where they differ (ADU)
white_level         *always*: int (ADU)
unit                *always*: ``"ADU"``
camera              make and model
iso                 ISO speed
exposure_time       s
aperture            f-number
focal_length        mm
date_obs            ISO 8601, by the camera's clock, whose time zone raws do not tell
==================  =========================================================================================
"""

import struct
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import IO, Any

import numpy as np
import rawpy
import xarray as xr
from astropy.io import fits
from numpy.typing import NDArray
from xarray.backends import BackendArray
from xarray.core import indexing

from skylevel.errors import SettingsError, ShapeError, SkylevelError, UnreadableFrameError, UnsupportedFrameError
from skylevel.io.cards import ascii_text, legal_header
from skylevel.io.fits import (
    Card,
    add_provenance,
    announce_extensions,
    as_stored,
    fits_output,
    require_finite,
    require_other_file,
    write_hdu,
)
from skylevel.io.hdus import read_hdus, read_start
from skylevel.io.memory import filled_memory
from skylevel.io.names import printable
from skylevel.io.planes import SCALING_CARDS, image_header
from skylevel.version import __version__

# Bayer 2, Kodak and Sony variants 4, X-Trans 6, LibRaw's widest regular code 8, Leaf 16.
PERIODS = (1, 2, 4, 6, 8, 16)
STRIP = 256
EARLIEST_YEAR = 1980
# Cards that say how an output was made, whatever its source says of itself.
_OURS = ("DATE", "PROGRAM")
# What LibRaw's memory is filled with before it decodes, and before it decodes again; rare as pixels of a sound raw.
FILLS = (0xF5, 0xCA)
TIFF_MAKE, TIFF_MODEL, DNG_MODEL = 271, 272, 50708


class RawMosaic(BackendArray):
    """The visible pixels of a camera raw.

    They are unpacked once, at opening, because only pixels tell a damaged raw from a sound one. Pickled, it carries
    its path alone and unpacks again where it arrives.
    """

    dtype = np.dtype(np.uint16)

    def __init__(self, path: str, shape: tuple[int, ...], pixels: NDArray[np.uint16] | None = None) -> None:
        self.path = path
        self.shape = shape
        self._pixels = pixels
        self._lock = threading.Lock()

    def __reduce__(self) -> tuple[Any, ...]:
        return RawMosaic, (self.path, self.shape)

    def __getitem__(self, key: indexing.ExplicitIndexer) -> Any:
        return indexing.explicit_indexing_adapter(key, self.shape, indexing.IndexingSupport.BASIC, self._read)

    def _read(self, key: tuple[int | slice, ...]) -> NDArray[np.uint16]:
        with self._lock:
            if self._pixels is None:
                self._pixels, _ = _unpack(self.path)
        if self._pixels.shape != self.shape:
            raise UnreadableFrameError(f"{self.path}: changed since it was opened: its image has another shape")
        return self._pixels[key]


def open_raw(path: str | Path) -> xr.Dataset:
    """Open a camera raw.

    Parameters
    ----------
    path : str or Path
        Any format LibRaw reads (ARW, NEF, CR2, CR3, RAF, DNG ...) that holds the sensor's own mosaic.

    Returns
    -------
    xarray.Dataset
        ``raw`` (y, x) uint16: the visible area, black level included. Attributes: see this module.

    Raises
    ------
    UnreadableFrameError
        The file is missing, cut short or damaged, or holds no image data.
    UnsupportedFrameError
        LibRaw does not know the format, or it holds no colour-filter mosaic.

    Notes
    -----
    LibRaw leaves pixels that a damaged file does not fill as its memory happened to be. Here that is filled with a
    known number first: where pixels hold that number, the file is decoded once more over another, and refused if they
    change. A sound raw is decoded once. Without glibc (macOS, Windows) such damage is not seen.
    Peak memory while opening: LibRaw's copy of the sensor and this one (2 bytes a pixel each).
    """
    source = str(Path(path).expanduser().absolute())
    read_start(source)
    pixels, attrs = _unpack(source)
    attrs |= {"kind": "camera", "path": source, "unit": "ADU"}
    if name := _camera_name(source):
        attrs["camera"] = name
    mosaic = indexing.LazilyIndexedArray(RawMosaic(source, pixels.shape, pixels))
    about = {"units": attrs["unit"], "long_name": "sensor mosaic, black level included"}
    return xr.Dataset({"raw": (("y", "x"), mosaic, about)}, attrs=attrs)


def peek_raw(path: str | Path) -> tuple[tuple[int, int], dict[str, Any]]:
    """Return the shape (y, x) of a raw, its camera, its colours and how it was taken, without its pixels.

    Raises
    ------
    UnreadableFrameError, UnsupportedFrameError
        As `open_raw`, as far as the file's header shows.
    """
    source = str(Path(path).expanduser().absolute())
    read_start(source)
    with _libraw(source) as raw:
        shape = (int(raw.sizes.height), int(raw.sizes.width))
        channels, shot = _channels(raw, source), _shot(raw)
    name = _camera_name(source)
    # The colours count here, not where they stand.
    facts = {"kind": "camera", "color_filter_array": [channels], "dtype": "uint16", **shot}
    return shape, facts | ({"camera": name} if name else {})


def _channels(raw: Any, path: str) -> str:
    """Return the letters of a mosaic's colours, each once."""
    pattern = raw.raw_pattern
    if pattern is None:
        # Its pixels are unpacked to be asked.
        _require_flat(raw, path)
    indices = np.unique(raw.raw_colors_visible[: 2 * max(PERIODS), : 2 * max(PERIODS)] if pattern is None else pattern)
    letters = raw.color_desc.decode("ascii", errors="replace")
    # A damaged file may name colours that it does not describe: reading its pixels refuses it.
    return "".join(dict.fromkeys(letters[index] for index in indices if index < len(letters))) or letters


def _unpack(path: str) -> tuple[NDArray[np.uint16], dict[str, Any]]:
    """Read the visible pixels, and what LibRaw knows about them."""
    with filled_memory(FILLS[0]) as is_filled:
        pixels, attrs = _decoded(path)
    if is_filled and (pixels == 0x101 * FILLS[0]).any():
        with filled_memory(FILLS[1]):
            again, _ = _decoded(path)
        if changed := int((pixels != again).sum()):
            raise UnreadableFrameError(f"{path}: is damaged: LibRaw finds no data for {changed} of its pixels")
    return pixels, attrs


def _decoded(path: str) -> tuple[NDArray[np.uint16], dict[str, Any]]:
    with _libraw(path) as raw:
        _require_flat(raw, path)
        attrs = {"color_filter_array": _color_filter_array(raw, path), **_levels(raw), **_shot(raw)}
        return _visible(raw, path), attrs


@contextmanager
def _libraw(path: str) -> Iterator[Any]:
    """Open a raw in LibRaw, whose errors name the file then; its pixels are not unpacked yet."""
    try:
        with _source(path) as source, rawpy.imread(source) as raw:
            _require_plausible(raw, path)
            yield raw
    except SkylevelError:
        raise
    except rawpy.LibRawFileUnsupportedError as error:
        raise UnsupportedFrameError(f"{path}: is neither FITS nor a raw that LibRaw knows: {_cause(error)}") from error
    except rawpy.NotSupportedError as error:
        raise UnsupportedFrameError(f"{path}: this build of LibRaw cannot read it: {_cause(error)}") from error
    except rawpy.LibRawError as error:
        raise UnreadableFrameError(f"{path}: is cut short or damaged; LibRaw says: {_cause(error)}") from error
    except (ValueError, RuntimeError, MemoryError, OverflowError) as error:
        # What rawpy makes of texts and sizes that are damaged.
        raise UnreadableFrameError(f"{path}: is damaged: {' '.join(str(error).split())}") from error


@contextmanager
def _source(path: str) -> Iterator[str | IO[bytes]]:
    """Give what LibRaw is to open: the path, or the open file where its name is no UTF-8 or not for a terminal.

    LibRaw itself says on standard error which file is cut short.
    """
    if path == printable(path):
        yield path
    else:
        with Path(path).open("rb") as stream:
            yield stream


def _require_plausible(raw: Any, path: str) -> None:
    """Refuse a raw whose file cannot hold its pixels, before LibRaw allocates them.

    LibRaw leaves what a file does not fill as its memory happened to be, so zeros alone do not tell. No compression
    brings a sensor's noise to a tenth of a bit a pixel.
    """
    sizes, n_bytes = raw.sizes, Path(path).stat().st_size
    n_pixels = max(sizes.height * sizes.width, sizes.raw_height * sizes.raw_width)
    if 8 * n_bytes < n_pixels / 10:
        raise UnreadableFrameError(f"{path}: holds no image data: {n_bytes} bytes for {n_pixels} pixels")
    if 0 in (sizes.height, sizes.width):
        raise UnreadableFrameError(f"{path}: is damaged: its image is {sizes.height} x {sizes.width} pixels")


def _cause(error: Exception) -> str:
    cause = error.args[0] if error.args else type(error).__name__
    return cause.decode(errors="replace") if isinstance(cause, bytes) else str(cause)


def _require_flat(raw: Any, path: str) -> None:
    if raw.raw_type != rawpy.RawType.Flat:
        raise UnsupportedFrameError(
            f"{path}: holds colours already mixed (linear DNG, sRAW, small NEF), not the sensor's mosaic: "
            "level the camera's full raw"
        )


def _visible(raw: Any, path: str) -> NDArray[np.uint16]:
    """Copy the visible pixels, so that they outlive LibRaw's memory."""
    visible = raw.raw_image_visible
    expected = (raw.sizes.height, raw.sizes.width)
    if visible.shape != expected or 0 in expected:
        raise UnreadableFrameError(f"{path}: is damaged: it holds {visible.shape} pixels of {expected}")
    if visible.max() == 0:
        raise UnreadableFrameError(f"{path}: holds no image data: all pixels are 0")
    return np.array(visible, dtype=np.uint16, order="C")


def _color_filter_array(raw: Any, path: str) -> list[str]:
    pattern = repeating_pattern(raw.raw_colors_visible)
    if pattern is None:
        raise UnsupportedFrameError(f"{path}: its colour filters repeat in no pattern that skylevel knows")
    if len(pattern) == 1:
        raise UnsupportedFrameError(f"{path}: is monochrome: it has no colour-filter array to level by colour")
    letters = raw.color_desc.decode("ascii", errors="replace")
    return ["".join(letters[color] for color in row) for row in pattern]


def repeating_pattern(colors: NDArray[np.uint8]) -> NDArray[np.uint8] | None:
    """Find the smallest square that repeats over all of a mosaic.

    Parameters
    ----------
    colors : ndarray (y, x) uint8
        Index of each pixel's colour.

    Returns
    -------
    ndarray (period, period) uint8 or None
        From the corner of `colors`; the period is one of 1, 2, 4, 6, 8 and 16. None where none of them repeats.

    Notes
    -----
    Peak extra memory: a strip of rows, one byte a pixel.
    """
    corner = colors[: 4 * max(PERIODS), : 4 * max(PERIODS)]
    # Only a period that fits the corner is worth a look at all pixels.
    found = (p for p in PERIODS if p <= min(colors.shape) and _repeats(corner, p) and _repeats(colors, p))
    period = next(found, None)
    return None if period is None else colors[:period, :period].copy()


def _repeats(colors: NDArray[np.uint8], period: int) -> bool:
    # What repeats downwards needs its first rows alone checked along x.
    across = np.array_equal(colors[:period, period:], colors[:period, :-period])
    below, above = colors[period:], colors[:-period]
    strips = (slice(first, first + STRIP) for first in range(0, len(below), STRIP))
    return across and all(np.array_equal(below[strip], above[strip]) for strip in strips)


def _levels(raw: Any) -> dict[str, Any]:
    black = [int(level) for level in raw.black_level_per_channel]
    return {"black_level": black[0] if len(set(black)) == 1 else black, "white_level": int(raw.white_level)}


def _shot(raw: Any) -> dict[str, Any]:
    """How the picture was taken, as far as the camera and this rawpy (0.27 and later) tell."""
    other = getattr(raw, "other", None)
    fields = {
        "iso": "iso_speed",
        "exposure_time": "shutter_speed",
        "aperture": "aperture",
        "focal_length": "focal_length",
    }
    # LibRaw keeps 32-bit floats, and 0 for what it does not know. Their shortest form is what the camera showed.
    known = {name: float(str(np.float32(getattr(other, field, 0.0) or 0.0))) for name, field in fields.items()}
    shot: dict[str, Any] = {name: value for name, value in known.items() if np.isfinite(value) and value > 0}
    time = getattr(other, "timestamp", None)
    if isinstance(time, datetime) and time.year >= EARLIEST_YEAR:
        shot["date_obs"] = time.isoformat()
    return shot


def _camera_name(path: str) -> str:
    """Make and model, which rawpy does not tell, from the TIFF directory most raws begin with; else empty."""
    with Path(path).open("rb") as stream:
        start = stream.read(4096)
        if start.startswith(b"FUJIFILMCCD-RAW"):
            return "FUJIFILM " + _text(start[28:60])
        # A CR3 is a film container, whose CMT1 box holds the TIFF directory.
        base = start.find(b"CMT1") + 4 if start[4:11] == b"ftypcrx" else 0
        try:
            make, model, unique = _tiff_texts(stream, base, (TIFF_MAKE, TIFF_MODEL, DNG_MODEL))
        except (struct.error, KeyError):
            return ""
    repeated = make.split()[:1] == model.split()[:1]
    return (model if repeated else f"{make} {model}").strip() or unique


def _tiff_texts(stream: IO[bytes], base: int, tags: Sequence[int]) -> list[str]:
    """Read the texts of some tags of the first TIFF directory; empty where a tag is absent."""
    stream.seek(base)
    order = {b"II": "<", b"MM": ">"}[stream.read(2)]
    _, offset = struct.unpack(f"{order}HI", stream.read(6))
    stream.seek(base + offset)
    (n_entries,) = struct.unpack(f"{order}H", stream.read(2))
    entries = [struct.unpack(f"{order}HHI4s", stream.read(12)) for _ in range(n_entries)]
    return [_tiff_text(stream, base, order, {tag: rest for tag, *rest in entries}.get(tag)) for tag in tags]


def _tiff_text(stream: IO[bytes], base: int, order: str, entry: Sequence[Any] | None) -> str:
    if entry is None:
        return ""
    _, count, value = entry
    if count > len(value):
        stream.seek(base + struct.unpack(f"{order}I", value)[0])
        value = stream.read(min(count, 256))
    return _text(value)


def _text(value: bytes) -> str:
    return printable(value.split(b"\0")[0].decode("ascii", errors="replace").strip())


def write_mosaic(
    output: str | Path,
    frame: xr.Dataset,
    levelled: NDArray[Any],
    *,
    cards: Sequence[Card] = (),
    history: Sequence[str] = (),
    layout: str = "full",
) -> None:
    """Write a levelled mosaic as FITS.

    Parameters
    ----------
    output : str or Path
        The notebook's name is ``<stem>.bkg_subtracted.fits``. Replaced in one step once it is whole.
    frame : Dataset
        The raw as `open_raw` gave it, or the mosaic as `skylevel.io.mosaics` did: then the output keeps its cards.
    levelled : ndarray (y, x)
        Stored as float32, values below 0 kept.
    cards : sequence of (keyword, value, comment)
        Set in the image's header.
    history : sequence of str
        HISTORY lines of the image's header.
    layout : {"full", "primary"}
        "full": a primary HDU without data (DATE and PATH), then the image, as the notebook did. "primary": one HDU.

    Raises
    ------
    ShapeError
        `levelled` is no NumPy array or of another shape than the raw.
    SettingsError
        `layout` is another word, or `output` is the raw itself.

    Notes
    -----
    The cards that tell a program to take the image for a mosaic stand in the image's own HDU: that is where Siril,
    ASTAP, PixInsight and DeepSkyStacker look for them. Peak extra memory: 1 MiB, and a copy of
    `levelled` where that is not float32.
    """
    output = Path(output)
    require_other_file(output, frame.attrs["path"])
    pixels = as_stored(levelled, frame["raw"].shape)
    if not np.isfinite(pixels).all():
        require_finite(pixels, frame["raw"].to_numpy(), frame.attrs["path"])
    source = _source_header(frame)
    headers = _mosaic_headers(output, pixels, layout, source)
    known = [card for card in _mosaic_cards(frame) if card[0] not in source or card[0] in _OURS]
    add_provenance(headers[-1], output, [*known, *cards], history)
    with fits_output(output) as (target, written):
        written.extend(write_hdu(target, header) for header in headers[:-1])
        written.append(write_hdu(target, headers[-1], pixels))


def _source_header(frame: xr.Dataset) -> fits.Header:
    """All cards of a mosaic that was FITS already, which the output keeps; none of a camera's raw."""
    if "sci_extension" not in frame.attrs:
        return fits.Header()
    path, extension = frame.attrs["path"], frame.attrs["sci_extension"]
    hdus = read_hdus(path)
    if extension >= len(hdus) or hdus[extension].shape[-2:] != frame["raw"].shape:
        raise ShapeError(f"{path}: changed since it was opened: its image has another shape")
    header = image_header(path, extension, hdus[extension])
    if extension:
        header = legal_header(hdus[0].text) + header
    for keyword in SCALING_CARDS:
        header.remove(keyword, ignore_missing=True, remove_all=True)
    return header


def _mosaic_headers(output: Path, pixels: NDArray[Any], layout: str, source: fits.Header) -> list[fits.Header]:
    """Make the headers of the file's HDUs; the last one's is the image's."""
    notebook = _notebook_header(output)
    if layout == "primary":
        header = source.copy()
        header.update(notebook)
        return [fits.PrimaryHDU(pixels, header).header]
    if layout != "full":
        raise SettingsError(f"layout = {layout!r}: needs one of full, primary")
    headers = [fits.PrimaryHDU(header=notebook).header, fits.ImageHDU(pixels, source).header]
    announce_extensions(headers[0])
    return headers


def _notebook_header(output: Path) -> fits.Header:
    # The notebook's own DATE, as Python's ctime writes it, is no date in FITS.
    return fits.Header([("DATE", _now()), ("PATH", ascii_text(output.name))])


def _now() -> str:
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S")


def _mosaic_cards(frame: xr.Dataset) -> list[Card]:
    """List what is known of the raw, under the keywords of programs that read mosaics."""
    attrs = frame.attrs
    cards: list[Card] = [
        ("BAYERPAT", "".join(attrs["color_filter_array"]), "colour filters, row by row from the first stored"),
        ("ROWORDER", "TOP-DOWN", "the first stored row is the top of the picture"),
        ("XBAYROFF", 0, "[pixel] start of the pattern in x"),
        ("YBAYROFF", 0, "[pixel] start of the pattern in y"),
        ("EXPTIME", attrs.get("exposure_time"), "[s] exposure time"),
        ("EXPOSURE", attrs.get("exposure_time"), "[s] exposure time"),
        ("ISOSPEED", attrs.get("iso"), "ISO speed"),
        ("DATE-OBS", attrs.get("date_obs"), "by the camera's clock"),
        ("INSTRUME", attrs.get("camera"), "camera"),
        ("FOCALLEN", attrs.get("focal_length"), "[mm] focal length"),
        ("APERTURE", attrs.get("aperture"), "f-number"),
        ("DATE", _now(), "UTC, when this file was written"),
        ("PROGRAM", f"skylevel {__version__}", "what wrote this file"),
    ]
    return [card for card in cards if card[1] is not None]
