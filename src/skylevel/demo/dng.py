"""The raw files of a made-up camera: an RGGB mosaic as an uncompressed DNG, which is a TIFF."""

import struct
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

# A TIFF tag, the struct code of its values, and the values.
_Entry = tuple[int, str, tuple[Any, ...]]

# The colour of each pixel in a square of four, and its row and column there.
RAW_PLANES = (("R", 0, 0), ("G", 0, 1), ("G", 1, 0), ("B", 1, 1))
BLACK_LEVEL, WHITE_LEVEL = 512, 2**14 - 1  # ADU
TIFF_HEADER = struct.Struct("<2sHI")
# TIFF's number of a type by the struct code of its values; two letters are a fraction.
TIFF_TYPES = {"B": 1, "s": 2, "H": 3, "I": 4, "II": 5, "ii": 10}


def write_dng(path: Path, mosaic: NDArray[np.uint16], start: datetime) -> None:
    """Write an RGGB mosaic as an uncompressed DNG 1.4: header, image directory, EXIF directory, pixels.

    Parameters
    ----------
    path : Path
        Replaced if it is there.
    mosaic : ndarray (y, x) uint16
        In ADU, from `BLACK_LEVEL` (no light) to `WHITE_LEVEL`; its first pixel is red.
    start : datetime
        When the frame was taken; written as it stands, without its time zone.
    """
    exif = _exif_entries(start)
    # A directory's length does not depend on its values: two offsets of 0 tell how long this one will be.
    exif_at = TIFF_HEADER.size + len(_directory(_dng_entries(mosaic, start, exif_at=0, pixels_at=0), at=0))
    pixels_at = exif_at + len(_directory(exif, at=exif_at))
    entries = _dng_entries(mosaic, start, exif_at=exif_at, pixels_at=pixels_at)
    with path.open("wb") as file:
        file.write(TIFF_HEADER.pack(b"II", 42, TIFF_HEADER.size))
        file.write(_directory(entries, at=TIFF_HEADER.size))
        file.write(_directory(exif, at=exif_at))
        file.write(mosaic.astype("<u2").tobytes())


def _dng_entries(mosaic: NDArray[np.uint16], start: datetime, *, exif_at: int, pixels_at: int) -> list[_Entry]:
    """List the image directory's entries; numbers and meanings from the TIFF 6.0 and DNG 1.4 specifications."""
    height, width = mosaic.shape
    return [
        (254, "I", (0,)),  # the full image
        (256, "I", (width,)),
        (257, "I", (height,)),
        (258, "H", (16,)),  # bits of a pixel
        (259, "H", (1,)),  # uncompressed
        (262, "H", (32803,)),  # a colour-filter array
        (271, "s", (b"skylevel",)),  # make
        (272, "s", (b"Demo RGGB",)),  # model
        (273, "I", (pixels_at,)),
        (274, "H", (1,)),  # orientation: the first row is on top
        (277, "H", (1,)),  # one sample a pixel
        (278, "I", (height,)),  # rows of the only strip
        (279, "I", (mosaic.nbytes,)),
        (306, "s", (_exif_date(start),)),
        (33421, "H", (2, 2)),  # shape of the colour pattern
        (33422, "B", tuple("RGB".index(colour) for colour, _, _ in RAW_PLANES)),
        (34665, "I", (exif_at,)),
        (50706, "B", (1, 4, 0, 0)),  # DNG version
        (50707, "B", (1, 1, 0, 0)),  # the oldest version whose readers can read it
        (50708, "s", (b"skylevel Demo RGGB",)),
        (50710, "B", (0, 1, 2)),  # the planes are red, green, blue
        (50711, "H", (1,)),  # on a square grid
        (50713, "H", (2, 2)),  # shape of the black level's pattern
        (50714, "H", (BLACK_LEVEL,) * 4),
        (50717, "H", (WHITE_LEVEL,)),
        (50721, "ii", _ten_thousandths(32406, -15372, -4986, -9689, 18758, 415, 557, -2040, 10570)),  # XYZ to sRGB
        (50728, "II", _ten_thousandths(7463, 10000, 8000)),  # white as the camera sees it
        (50778, "H", (21,)),  # that matrix is for daylight, D65
    ]


def _exif_entries(start: datetime) -> list[_Entry]:
    return [
        (33434, "II", (30, 1)),  # exposure time in seconds
        (33437, "II", (28, 10)),  # aperture
        (34855, "H", (1600,)),  # ISO
        (36867, "s", (_exif_date(start),)),
        (37386, "II", (24, 1)),  # focal length in mm
    ]


def _exif_date(start: datetime) -> bytes:
    return f"{start:%Y:%m:%d %H:%M:%S}".encode("ascii")


def _directory(entries: Sequence[_Entry], *, at: int) -> bytes:
    """Encode a TIFF directory that begins at byte `at`, and after it the values that do not fit into its entries."""
    table = struct.pack("<H", len(entries))
    values_at = at + 2 + 12 * len(entries) + 4
    values = b""
    for tag, code, numbers in entries:
        if code == "s":
            data = numbers[0] + b"\0"
            count = len(data)
        else:
            data = struct.pack(f"<{len(numbers)}{code[0]}", *numbers)
            count = len(numbers) // len(code)
        if len(data) > 4:
            place = struct.pack("<I", values_at + len(values))
            values += data + b"\0" * (len(data) % 2)
        else:
            place = data.ljust(4, b"\0")
        table += struct.pack("<HHI", tag, TIFF_TYPES[code], count) + place
    return table + struct.pack("<I", 0) + values


def _ten_thousandths(*numerators: int) -> tuple[int, ...]:
    return tuple(part for numerator in numerators for part in (numerator, 10000))
