"""A corpus of bad and odd files of both jobs, built by the tests themselves, each with what is expected of it.

Run as a program with a folder, it builds the corpus there and puts every file through opening, peeking and writing, in
this one process with bounded memory, and prints a line of JSON for each. `test_corpus` looks at those lines.
"""

import gzip
import io
import json
import os
import re
import resource
import signal
import socket
import struct
import sys
import tempfile
import time
import traceback
import warnings
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
from astropy.io import fits

from skylevel.demo.dng import write_dng
from skylevel.errors import SkylevelError, UnreadableFrameError, UnsupportedFrameError
from skylevel.io.camera import write_mosaic
from skylevel.io.frame import open_frame, peek_frame
from skylevel.io.jwst import size_and_field, write_full, write_image, write_masked, write_primary, write_segmentation

NY, NX = 24, 30
SECONDS = 20
MEMORY = 1 << 30

# What may come of a file: it opens, or is refused with that error (or with any of skylevel's), in one line that names
# it. "either" is for damage whose effect is LibRaw's or chance's to decide; a traceback never is.
OPENS, UNREADABLE, UNSUPPORTED, REFUSED, EITHER = "opens", "unreadable", "unsupported", "refused", "either"


@dataclass(frozen=True)
class Case:
    """One file: how it is made at a path, and what is expected of it."""

    name: str
    expected: str
    make: Callable[[Path], object]


def content(data: bytes) -> Callable[[Path], object]:
    return lambda path: path.write_bytes(data)


def image(dtype: str = "f4", shape: tuple[int, ...] = (NY, NX)) -> np.ndarray:
    values = np.random.default_rng(4).normal(100.0, 10.0, shape)
    return values.astype(dtype)


def cal(
    sci: np.ndarray | None = None,
    *,
    primary: dict[str, Any] | None = None,
    cards: dict[str, Any] | None = None,
    name: str = "SCI",
    hdus: list[Any] | None = None,
) -> bytes:
    """A sound exposure as bytes; with other pixels, cards or HDUs."""
    known = {"INSTRUME": "NIRCAM", "DETECTOR": "NRCB1", "FILTER": "F200W", "FASTAXIS": 1, "EFFEXPTM": 311.366,
             "DATE-BEG": "2024-01-01T00:00:00", "PROGRAM": "04250", "FILENAME": "a_cal.fits"}  # fmt: skip
    of_image = {"BUNIT": "MJy/sr", "PHOTMJSR": 2.0, "PIXAR_SR": 2.2e-14, "CTYPE1": "RA---TAN-SIP",
                "CTYPE2": "DEC--TAN-SIP", "CRPIX1": 12.5, "CRPIX2": 15.5, "CRVAL1": 150.0, "CRVAL2": 2.2,
                "CDELT1": 8.6e-6, "CDELT2": 8.6e-6, "A_ORDER": 2, "B_ORDER": 2, "A_2_0": 1e-6, "SPARE": 1}  # fmt: skip
    pixels = image() if sci is None else sci
    planes = [
        fits.ImageHDU(pixels, fits.Header(of_image | (cards or {})), name=name),
        fits.ImageHDU(np.full((NY, NX), 0.1, "f4"), name="ERR"),
        fits.ImageHDU(np.zeros((NY, NX), "u4"), name="DQ"),
    ]
    first = fits.PrimaryHDU(header=fits.Header(known | (primary or {})))
    return as_bytes([first, *(planes if hdus is None else hdus)])


def as_bytes(hdus: list[Any]) -> bytes:
    stream = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        fits.HDUList(hdus).writeto(stream, output_verify="ignore")
    return stream.getvalue()


def card(data: bytes, keyword: str, value: str | None, *, hdu: int = 0) -> bytes:
    """Change the card of a keyword, or where there is none the spare one, to other text; or blank it."""
    starts = [0, *(found.start() for found in re.finditer(b"XTENSION= ", data))]
    end = starts[hdu + 1] if hdu + 1 < len(starts) else len(data)
    at = data.find(keyword.ljust(8).encode(), starts[hdu], end)
    at = data.index(b"SPARE   ", starts[hdu], end) if at < 0 else at
    new = "" if value is None else keyword.ljust(8) + value
    return data[:at] + new.encode("latin-1").ljust(80)[:80] + data[at + 80 :]


def slug(text: object) -> str:
    return re.sub(r"[^A-Za-z0-9.+-]+", "_", str(text))[:40] + f"-{zlib.crc32(str(text).encode()):08x}"[:4]


# ---------------------------------------------------------------------------------------------------- FITS: structure

STRUCTURE = {
    "BITPIX": ["= 0", "= 7", "= 33", "= -16", "= 'a'", "= 32.0", "=", "= 999999999999", "  -32", None],
    "NAXIS": ["= -1", "= 1000", "= 2147483648", "= 9223372036854775808", "= two", "= 2.0", "= 3", None],
    "NAXIS1": ["= -1", "= 2147483648", "= 9223372036854775807", "= 1E30", "= '30'", "= 30.0", "= 99999999", None],
    "NAXIS2": ["= -24", "= 4294967296", "= 99999999999999999999999999", "= T", None],
    "PCOUNT": ["= -1", "= 2147483648", "= 9223372036854775807", "= x"],
    "GCOUNT": ["= -1", "= 0", "= 2", "= 2147483648", "= 'one'"],
    "XTENSION": ["= 'IMAG'", "=  IMAGE", "= 'BINTABLE'", "  'IMAGE'"],
}
SOUND_STRUCTURE = {("XTENSION", "=  IMAGE"), ("XTENSION", "= 'BINTABLE'"), ("XTENSION", "= 'IMAG'")}


def structure() -> Iterator[Case]:
    for keyword, values in STRUCTURE.items():
        for value in values:
            expected = UNSUPPORTED if (keyword, value) in SOUND_STRUCTURE else UNREADABLE
            yield Case(f"sci-{keyword}-{slug(value)}.fits", expected, content(card(cal(), keyword, value, hdu=1)))
    for keyword in ("BITPIX", "NAXIS"):
        for value in ("= -1", "= 1000", "= x", None):
            yield Case(f"primary-{keyword}-{slug(value)}.fits", UNREADABLE, content(card(cal(), keyword, value)))
    yield Case("primary-SIMPLE-F.fits", UNREADABLE, content(card(cal(), "SIMPLE", "=                    F")))
    yield Case("groups.fits", UNSUPPORTED, content(random_groups()))
    for keyword in ("NAXIS", "NAXIS1", "BITPIX", "XTENSION", "GCOUNT"):
        twice = card(cal(), "SPARE", None, hdu=1)
        place = twice.index(b"EXTNAME", 2880) - 80
        twice = twice[:place] + f"{keyword:8}= 2".encode().ljust(80) + twice[place + 80 :]
        yield Case(f"two-{keyword}.fits", UNREADABLE, content(twice))
    yield Case(
        "axis-too-many.fits",
        OPENS,
        content(card(cal(), "PROGRAM", None).replace(b" " * 80, b"NAXIS1  = 5".ljust(80), 1)),
    )
    yield Case("no-value-indicator.fits", OPENS, content(cal().replace(b"PROGRAM =", b"PROGRAM  ", 1)))
    yield Case("no-PCOUNT.fits", OPENS, content(card(cal(), "PCOUNT", None, hdu=1)))
    yield Case("two-ends.fits", EITHER, content(cal() + b"END".ljust(2880)))
    yield Case("no-extension.fits", UNSUPPORTED, content(as_bytes([fits.PrimaryHDU()])))


def random_groups() -> bytes:
    cards = ["SIMPLE  =                    T", "BITPIX  =                  -32", "NAXIS   =                    3",
             "NAXIS1  =                    0", "NAXIS2  =                    4", "NAXIS3  =                    5",
             "GROUPS  =                    T", "PCOUNT  =                    2", "GCOUNT  =                    3",
             "END"]  # fmt: skip
    return "".join(text.ljust(80) for text in cards).ljust(2880).encode() + bytes(2880)


# ------------------------------------------------------------------------------------------------------- FITS: cards

UNPARSABLE = ["= 'no end", "= word", "= 1 2 3", "= (1, ", "=", "= '''", "==5", "= 1E", "= 0x10", "= --1"]
OPTIONAL = ["FASTAXIS", "EFFEXPTM", "DATE-BEG", "INSTRUME", "PROGRAM", "FILENAME"]
OF_IMAGE = ["PIXAR_SR", "PHOTMJSR", "BUNIT", "CTYPE1", "CRPIX1", "A_ORDER", "CDELT2", "EXTNAME"]


def cards() -> Iterator[Case]:
    for keyword in OPTIONAL:
        for value in UNPARSABLE:
            yield Case(f"card-{keyword}-{slug(value)}.fits", OPENS, content(card(cal(), keyword, value)))
    for keyword in OF_IMAGE:
        for value in UNPARSABLE[:6]:
            # What nobody can tell the name of is no SCI, but may be an image without a name.
            yield Case(f"image-{keyword}-{slug(value)}.fits", OPENS, content(card(cal(), keyword, value, hdu=1)))
    for keyword in ("DETECTOR", "FILTER"):
        for value in UNPARSABLE:
            expected = OPENS if value in ("=", "==5", "= '''") else UNREADABLE
            yield Case(f"card-{keyword}-{slug(value)}.fits", expected, content(card(cal(), keyword, value)))
    for value in ("'..'", "'/etc/passwd'", "'a/b'", "''", "'.'", "5", "T", "'" + "x" * 60 + "'"):
        yield Case(f"detector-{slug(value)}.fits", OPENS, content(card(cal(), "DETECTOR", "= " + value)))
    for keyword, value in (("BSCALE", "= one"), ("BZERO", "= 'x'"), ("BZERO", "= 1 2")):
        yield Case(
            f"scaling-{keyword}-{slug(value)}.fits",
            UNREADABLE,
            content(card(cal(), keyword, value, hdu=1)),
        )
    yield Case("wrong-keyword.fits", OPENS, content(cal().replace(b"EFFEXPTM", b"EF.EX T\x7e", 1)))
    yield Case("non-ascii.fits", UNREADABLE, content(cal().replace(b"NIRCAM", b"NIR\xff\xfeM", 1)))
    yield Case("escape.fits", UNREADABLE, content(cal().replace(b"NIRCAM", b"N\x1b[2JM", 1)))
    yield Case("nul.fits", UNREADABLE, content(cal().replace(b"NIRCAM", b"N\0\0\0\0M", 1)))
    yield Case("blank-cards.fits", OPENS, content(cal(primary={f"K{i}": i for i in range(2000)})))
    yield Case("long-strings.fits", OPENS, content(cal(primary={"TITLE": "a long title " * 100})))
    yield Case(
        "continue-first.fits",
        OPENS,
        content(card(cal(), "INSTRUME", None).replace(b" " * 80, b"CONTINUE  'x'".ljust(80), 1)),
    )
    yield Case("hierarch.fits", OPENS, content(cal(primary={"HIERARCH a long key": 5})))
    yield Case("lower-case.fits", OPENS, content(cal().replace(b"EFFEXPTM", b"effexptm", 1)))
    yield Case("duplicates.fits", OPENS, content(cal().replace(b"PROGRAM ", b"FILTER  ", 1)))


# ------------------------------------------------------------------------------------------------------ FITS: damage


def damage() -> Iterator[Case]:
    whole = cal()
    for length in (1, 9, 79, 80, 2879, 2881, 5000, 8641, 9000, 11000, len(whole) - 1):
        yield Case(f"cut-{length}.fits", UNREADABLE, content(whole[:length]))
    yield Case("cut-primary.fits", UNSUPPORTED, content(whole[:2880]))
    yield Case("tail-zeros.fits", OPENS, content(whole + bytes(10_000)))
    yield Case("tail-text.fits", UNREADABLE, content(whole + b"trailing words " * 300))
    yield Case("no-end.fits", UNREADABLE, content(whole.replace(b"END     ", b"EMD     ")))
    yield Case(
        "no-end-of-sci.fits", UNREADABLE, content(whole[:2880] + whole[2880:].replace(b"END     ", b"ENDE    ", 1))
    )
    yield Case("lower-end.fits", UNREADABLE, content(whole.replace(b"END     ", b"end     ")))
    rng = np.random.default_rng(0)
    for i in range(12):
        data = bytearray(whole)
        for at in rng.integers(0, 8640, 3):
            data[at] = rng.integers(0, 256)
        yield Case(f"flipped-{i}.fits", EITHER, content(bytes(data)))
    yield Case("noise.fits", UNREADABLE, content(b"SIMPLE  =" + rng.bytes(20_000)))


def packed() -> Iterator[Case]:
    whole = gzip.compress(cal(), mtime=0)
    yield Case("sound.fits.gz", OPENS, content(whole))
    for length in (2, 9, 20, len(whole) // 2, len(whole) - 9):
        yield Case(f"cut-{length}.fits.gz", UNREADABLE, content(whole[:length]))
    yield Case("wrong-sum.fits.gz", EITHER, content(whole[:-8] + b"12345678"))
    yield Case("damaged.fits.gz", UNREADABLE, content(whole[:200] + b"\0" * 50 + whole[250:]))
    yield Case("twice.fits.gz", UNREADABLE, content(gzip.compress(whole)))
    yield Case("text.fits.gz", UNREADABLE, content(gzip.compress(b"hello, world\n" * 99)))
    yield Case("nothing.fits.gz", UNREADABLE, content(gzip.compress(b"")))
    yield Case("garbage-behind.fits.gz", EITHER, content(whole + b"garbage"))
    yield Case("bomb.fits.gz", UNREADABLE, content(gzip.compress(huge_header(10**6, 10**6) + bytes(1 << 24))))
    blank = fits.PrimaryHDU().header.tostring().encode()[:160].ljust(18 << 20)
    yield Case("blank-header.fits.gz", UNREADABLE, content(gzip.compress(blank + b"END".ljust(2880), 1)))
    yield Case("zeros.fits.gz", UNREADABLE, content(gzip.compress(bytes(1 << 22))))
    for magic, name in ((b"BZh9", "bz2"), (b"\xfd7zXZ\0", "xz"), (b"PK\3\4", "zip"), (b"\x1f\x9d", "Z")):
        yield Case(f"other.fits.{name}", REFUSED, content(magic + bytes(3000)))


def huge_header(nx: int, ny: int) -> bytes:
    header = fits.PrimaryHDU(np.zeros((1, 1), "f4")).header
    header["NAXIS1"], header["NAXIS2"] = nx, ny
    return header.tostring().encode()


def sparse(nx: int, ny: int) -> Callable[[Path], object]:
    def make(path: Path) -> None:
        path.write_bytes(huge_header(nx, ny))
        os.truncate(path, 2880 + -(-4 * nx * ny // 2880) * 2880)

    return make


def lies() -> Iterator[Case]:
    for nx, ny in ((10**6, 10**6), (30_000, 30_000), (2**31 - 1, 100), (1, 10**9)):
        yield Case(f"hole-{nx}x{ny}.fits", UNREADABLE, sparse(nx, ny))
        yield Case(f"claims-{nx}x{ny}.fits", UNREADABLE, content(huge_header(nx, ny)))
    many = as_bytes([fits.PrimaryHDU(), *(fits.ImageHDU(name=f"E{i}") for i in range(300))])
    yield Case("many-hdus.fits", UNSUPPORTED, content(many))


# ------------------------------------------------------------------------------------------------------ FITS: images


def pixels() -> Iterator[Case]:
    for dtype in ("u1", "i1", "i2", "u2", "i4", "u4", "i8", "f4", "f8"):
        yield Case(f"pixels-{dtype}.fits", OPENS, content(cal(image(dtype))))
        primary = as_bytes([fits.PrimaryHDU(image(dtype))])
        yield Case(f"primary-{dtype}.fits", OPENS, content(primary))
    for name, value in (
        ("nan", np.nan),
        ("inf", np.inf),
        ("huge", 2e38),
        ("zero", 0.0),
        ("tiny", 1e-45),
        ("minus", -0.0),
    ):
        yield Case(f"all-{name}.fits", OPENS, content(cal(np.full((NY, NX), value, "f4"))))
    yield Case("beyond-float32.fits", OPENS, content(cal(np.full((NY, NX), 1e300))))
    scaled = card(cal(image("i2")), "BSCALE", "= 1E300", hdu=1)
    yield Case("scaled-beyond.fits", OPENS, content(scaled))
    yield Case("blank.fits", OPENS, content(card(cal(image("i2")), "BLANK", "= 100", hdu=1)))
    for shape in ((1, NY, NX), (1, 1, NY, NX), (1, 1), (1, 500), (500, 1)):
        yield Case(f"shape-{slug(shape)}.fits", OPENS, content(cal(image(shape=shape))))
    for shape in ((2, NY, NX), (3, 2, NY, NX), (500,), (0, 5)):
        yield Case(f"shape-{slug(shape)}.fits", UNSUPPORTED, content(cal(image(shape=shape))))


MEANINGS = ["DQ", "ERR", "VAR_POISSON", "VAR_RNOISE", "VAR_FLAT", "WHT", "CON", "AREA", "WEIGHT", "MASK", "PIXELDQ",
            "GROUPDQ", "ZEROFRAME", "REFOUT", "RMS", "BKG", "SEGM", "FLAT", "SAMP", "TIME", "UNCERT",
            "IVAR"]  # fmt: skip


def choices() -> Iterator[Case]:
    for name in MEANINGS:
        yield Case(f"only-{name}.fits", UNSUPPORTED, content(cal(hdus=[fits.ImageHDU(image(), name=name)])))
    for name in ("", "MOSAIC", "IMAGE", "1", "sci"):
        yield Case(f"named-{name}.fits", OPENS, content(cal(name=name)))
    table = fits.BinTableHDU(np.zeros(3, [("a", "f4")]), name="SCI")
    yield Case("sci-is-a-table.fits", UNSUPPORTED, content(cal(hdus=[table])))
    yield Case("table-before.fits", OPENS, content(cal(hdus=[table, fits.ImageHDU(image(), name="SCI")])))
    yield Case(
        "two-sci.fits", UNSUPPORTED, content(cal(hdus=[fits.ImageHDU(image(), name="SCI", ver=v) for v in (1, 2)]))
    )
    yield Case(
        "sci-is-empty.fits", UNSUPPORTED, content(cal(hdus=[fits.ImageHDU(name="SCI"), fits.ImageHDU(name="ERR")]))
    )
    both = [fits.PrimaryHDU(image("u2")), fits.ImageHDU(image(), name="SCI"), fits.ImageHDU(image(), name="ERR")]
    yield Case("primary-and-sci.fits", OPENS, content(as_bytes(both)))
    yield Case("primary-and-dq.fits", OPENS, content(as_bytes([both[0], fits.ImageHDU(image("i4"), name="DQ")])))
    for name in ("ERR", "DQ"):
        other = fits.ImageHDU(image("f4", (3, 4)), name=name)
        yield Case(f"other-shape-{name}.fits", OPENS, content(cal(hdus=[fits.ImageHDU(image(), name="SCI"), other])))
    for keyword, value in (("SKYLEVEL", "0.1"), ("S_CLNFNS", "COMPLETE"), ("ONEFEXP", True), ("S_RESAMP", "COMPLETE")):
        yield Case(f"past-{keyword}.fits", OPENS, content(cal(primary={keyword: value})))


COORDINATES: list[dict[str, Any]] = [
    {"A_ORDER": 15000}, {"A_ORDER": 10**6}, {"B_ORDER": 10**9}, {"AP_ORDER": 10**6}, {"WCSAXES": 10**9}, {"WCSAXES": 3},
    {"WCSAXES": 0}, {"A_ORDER": -1}, {"A_ORDER": "two"}, {"CTYPE2": "DEC--SIN"}, {"CTYPE1": "????"}, {"CDELT1": 0.0},
    {"CUNIT1": "furlong"}, {"CRVAL2": 1e300}, {"PC1_1": 0.0, "PC2_2": 0.0}, {"CTYPE1": "RA---TAB",
    "CTYPE2": "DEC--TAB"},
    {"CPDIS1": "LOOKUP", "DP1.EXTVER": 1}, {"CTYPE3": "WAVE", "WCSAXES": 3}, {"RADESYS": "nowhere"}, {"MJD-OBS": "now"},
    {"PV1_99": 5.0}, {"LONPOLE": "north"}, {"D2IMDIS1": "LOOKUP"}, {"EQUINOX": -5.0},
]  # fmt: skip


def coordinates() -> Iterator[Case]:
    for cards in COORDINATES:
        name = "-".join(f"{keyword}={value}" for keyword, value in cards.items())
        yield Case(f"wcs-{slug(name)}.fits", OPENS, content(cal(cards=cards)))


# ----------------------------------------------------------------------------- FITS: what stands beside the image


def beside() -> Iterator[Case]:
    """Damage and oddities of HDUs that are copied, not levelled: any of them makes the whole file unreadable."""
    for hdu, name in ((2, "ERR"), (3, "DQ")):
        for keyword, value in (("BITPIX", "= 7"), ("NAXIS", "= 2147483648"), ("NAXIS1", "= 2147483648"),
                               ("NAXIS2", "= -1"), ("NAXIS2", "= 10000"), ("PCOUNT", "= 9223372036854775807"),
                               ("GCOUNT", "= 2147483648"), ("XTENSION", None)):  # fmt: skip
            made = card(cal(), keyword, value, hdu=hdu)
            yield Case(f"beside-{name}-{keyword}-{slug(value)}.fits", UNREADABLE, content(made))
        made = card(cal(), "XTENSION", "= 'FOREIGN '", hdu=hdu)
        yield Case(f"beside-{name}-foreign.fits", OPENS, content(made))
    science = fits.ImageHDU(image(), name="SCI")
    for dtype in ("u1", "i2", "i4", "i8", "f4", "f8"):
        flags = fits.ImageHDU(np.zeros((NY, NX), dtype), name="DQ")
        yield Case(f"dq-{dtype}.fits", OPENS, content(cal(hdus=[science, flags])))
    for shape in ((2, NY, NX), (NY,), (1, NY, NX)):
        flags = fits.ImageHDU(np.zeros(shape, "u4"), name="DQ")
        yield Case(f"dq-shape-{slug(shape)}.fits", OPENS, content(cal(hdus=[science, flags])))
    flags = fits.ImageHDU(np.zeros((NY, NX), "u4"), name="DQ")
    yield Case("two-dq.fits", OPENS, content(cal(hdus=[science, flags, flags.copy()])))
    heap = np.array([np.arange(n, dtype="i4") for n in (1, 2, 3)], dtype=object)
    table = fits.BinTableHDU.from_columns([fits.Column("A", "PJ()", array=heap)], name="HDRTAB")
    table.header["SPARE"] = 1
    whole = cal(hdus=[science, table])
    yield Case("table-with-heap.fits", OPENS, content(whole))
    for keyword, value in (("PCOUNT", "= 2147483648"), ("THEAP", "= -1"), ("TFORM1", "= '9Q'")):
        expected = UNREADABLE if keyword == "PCOUNT" else OPENS
        yield Case(f"table-{keyword}.fits", expected, content(card(whole, keyword, value, hdu=2)))


def controls() -> Iterator[Case]:
    """Text that moves a terminal's cursor, renames its window, or is no text, where a run would show it."""
    texts = {"osc": b"\x1b]0;a\x07", "csi": b"\x9b2J", "del": b"\x7f", "back": b"\x08\x08", "line": b"\r\n",
             "latin": b"\xe9"}  # fmt: skip
    for keyword in ("DETECTOR", "FILTER", "OBJECT", "FILENAME"):
        for name, text in texts.items():
            made = cal(primary={"OBJECT": "x", keyword: "Q" * len(text)}).replace(b"Q" * len(text), text, 1)
            yield Case(f"control-{keyword}-{name}.fits", UNREADABLE, content(made))
    yield Case("control-keyword.fits", UNREADABLE, content(cal().replace(b"PROGRAM ", b"PRO\x1b[2J", 1)))
    yield Case("control-in-sci.fits", UNREADABLE, content(cal().replace(b"MJy/sr", b"M\x1b[2Jr", 1)))


def sums() -> Iterator[Case]:
    """Cards of sums that are true, false, alone or no sums."""
    stream = io.BytesIO()
    with fits.open(io.BytesIO(cal())) as hdus:
        hdus.writeto(stream, checksum=True)
    whole = stream.getvalue()
    yield Case("sums-true.fits", OPENS, content(whole))
    for keyword in ("CHECKSUM", "DATASUM"):
        for value in ("= '0000000000000000'", "= '4294967296'", "= 5", "= 'no end", "= ''", None):
            for hdu in (0, 1):
                made = card(whole, keyword, value, hdu=hdu)
                yield Case(f"sums-{keyword}-{hdu}-{slug(value)}.fits", OPENS, content(made))


# -------------------------------------------------------------------------------------------------- FITS: compressed


def compressed(method: str = "GZIP_1", dtype: str = "f4", *, others: bool = False, **options: Any) -> bytes:
    header = fits.Header({"BUNIT": "MJy/sr"})
    options = {"quantize_level": 0.0} | options if dtype.startswith("f") and method.startswith("GZIP") else options
    packed = fits.CompImageHDU(image(dtype), header, name="SCI", compression_type=method, **options)
    dq = np.zeros((NY, NX), "u4")
    companion = fits.CompImageHDU(dq, name="DQ") if others else fits.ImageHDU(dq, name="DQ")
    return cal(hdus=[packed, companion])


def tiles() -> Iterator[Case]:
    for method in ("GZIP_1", "GZIP_2", "RICE_1", "HCOMPRESS_1"):
        for dtype in ("f4", "i4", "i2"):
            yield Case(f"{method}-{dtype}.fits.fz", OPENS, content(compressed(method, dtype, others=True)))
    yield Case("PLIO_1.fits.fz", OPENS, content(compressed("PLIO_1", "u1")))
    yield Case("NOCOMPRESS.fits.fz", OPENS, content(compressed("NOCOMPRESS", "i2")))
    whole = compressed()
    for keyword, value in (("ZNAXIS1", "= 1000000"), ("ZNAXIS2", "= 4000000000"), ("ZNAXIS", "= 2147483648"),
                           ("ZNAXIS", "= -1"),
                           ("ZBITPIX", "= 12"), ("ZTILE1", "= 0"), ("ZTILE1", "= -30"), ("NAXIS2", "= 3"), ("PCOUNT",
                           "= 1"),
                           ("PCOUNT", "= 99999999999"), ("ZCMPTYPE", "= 'ZIP_9'"), ("ZCMPTYPE", "= 5"), ("TFORM1",
                           "= '1PB(9'"),
                           ("TFIELDS", "= 99999"), ("ZBITPIX", None), ("ZNAXIS2", None)):  # fmt: skip
        made = card(whole, keyword, value, hdu=1)
        expected = EITHER if keyword == "TFORM1" else UNREADABLE
        yield Case(f"tiles-{keyword}-{slug(value)}.fits.fz", expected, content(made))
    heap = whole.index(b"\x1f\x8b")
    yield Case("tiles-noise.fits.fz", UNREADABLE, content(whole[:heap] + b"\xaa" * 400 + whole[heap + 400 :]))
    rice = bytearray(compressed("RICE_1", "i4"))
    rice[-2880 - 2880 * 2 : -2880 * 2] = os.urandom(0) + bytes(range(256)) * 11 + bytes(64)
    yield Case("tiles-rice-noise.fits.fz", EITHER, content(bytes(rice)))


# -------------------------------------------------------------------------------------------- FITS: colour filters

PATTERNS = {
    "RGGB": OPENS, "bggr": OPENS, "GGRGGBGGBGGRBRGRBGGGBGGRGGRGGBRBGBRG": OPENS, "NONE": OPENS, "MONO": OPENS,
    "RGGX": UNSUPPORTED, "RGB": UNSUPPORTED, "GGGG": UNSUPPORTED, "../..": UNSUPPORTED, "RGGBRGGB": UNSUPPORTED,
}  # fmt: skip


def colour(dtype: str = "u2", **cards: Any) -> bytes:
    header = fits.Header({"BAYERPAT": "RGGB", "INSTRUME": "ZWO", "EXPTIME": 300.0} | cards)
    return as_bytes([fits.PrimaryHDU(np.abs(image()).astype(dtype), header)])


def mosaics() -> Iterator[Case]:
    for pattern, expected in PATTERNS.items():
        yield Case(f"bayer-{slug(pattern)}.fits", expected, content(colour(BAYERPAT=pattern)))
    for cards in ({"ROWORDER": "BOTTOM-UP"}, {"ROWORDER": "sideways"}, {"XBAYROFF": 1}, {"YBAYROFF": -1},
                   {"XBAYROFF": 10**18},
                  {"EXPTIME": "long"}, {"INSTRUME": 5}, {"SKYLEVEL": "0.1"}):  # fmt: skip
        yield Case(f"bayer-{slug(cards)}.fits", OPENS, content(colour(**cards)))
    for cards in ({"XBAYROFF": 0.5}, {"YBAYROFF": "one"}):
        yield Case(f"bayer-{slug(cards)}.fits", UNSUPPORTED, content(colour(**cards)))
    for dtype in ("u1", "i2", "i4", "f4", "f8"):
        yield Case(f"bayer-{dtype}.fits", OPENS, content(colour(dtype)))
    yield Case("bayer-unparsable.fits", OPENS, content(card(colour(), "BAYERPAT", "= RG GB")))
    yield Case("bayer-cut.fits", UNREADABLE, content(colour()[:4000]))
    yield Case("bayer.fits.gz", OPENS, content(gzip.compress(colour())))


# --------------------------------------------------------------------------------------------------------- raw files


def dng(pixels: np.ndarray | None = None) -> bytes:
    raw = np.random.default_rng(3).poisson(900, (60, 80)).astype("u2") if pixels is None else pixels
    with tempfile.TemporaryDirectory() as folder:
        write_dng(Path(folder, "a.dng"), raw, datetime(2024, 8, 12))
        return Path(folder, "a.dng").read_bytes()


def tag(data: bytes, number: int, value: int, *, field: int = 8, code: str = "I") -> bytes:
    """Change a field of a TIFF tag in the first directory: its value (8), count (4), type (2) or number (0)."""
    (first,) = struct.unpack_from("<I", data, 4)
    (count,) = struct.unpack_from("<H", data, first)
    entries = range(first + 2, first + 2 + 12 * count, 12)
    (entry,) = [at for at in entries if struct.unpack_from("<H", data, at)[0] == number]
    changed = bytearray(data)
    struct.pack_into("<" + code, changed, entry + field, value)
    return bytes(changed)


TAGS: list[tuple[int, int, str]] = [
    (256, 40000, UNREADABLE), (257, 35000, UNREADABLE), (256, 0, REFUSED), (257, 0, REFUSED), (256, 2**31, REFUSED),
    (257, 2**32 - 1, REFUSED), (256, 79, EITHER), (257, 61, REFUSED), (257, 59, OPENS), (258, 0, EITHER),
    (258, 8, EITHER), (258, 12, EITHER), (258, 14, EITHER), (258, 32, EITHER), (258, 65535, EITHER),
    (259, 7, REFUSED), (259, 8, REFUSED), (259, 34892, REFUSED), (259, 52546, REFUSED), (259, 65000, EITHER),
    (259, 9, REFUSED), (262, 34892, REFUSED), (262, 1, EITHER), (262, 2, EITHER), (273, 0, EITHER),
    (273, 2**32 - 1, REFUSED), (273, 10**6, REFUSED), (277, 0, EITHER), (277, 3, REFUSED), (277, 65535, REFUSED),
    (278, 0, EITHER), (278, 1, EITHER), (279, 0, EITHER), (279, 2**32 - 1, EITHER), (33422, 0, EITHER),
    (33422, 0xFFFFFFFF, EITHER), (33421, 0, EITHER), (33421, 0xFFFFFFFF, EITHER), (34665, 0, EITHER),
    (34665, 8, EITHER), (34665, 2**32 - 1, EITHER), (50706, 0xFFFFFFFF, EITHER), (50714, 2**32 - 1, EITHER),
    (50717, 0, OPENS), (50721, 2**32 - 1, EITHER), (274, 99, OPENS), (274, 6, EITHER), (271, 2**32 - 1, EITHER),
    (50708, 0, EITHER),
]  # fmt: skip


def raws() -> Iterator[Case]:
    whole = dng()
    yield Case("sound.dng", OPENS, content(whole))
    for number, value, expected in TAGS:
        yield Case(f"tag-{number}-{value}.dng", expected, content(tag(whole, number, value)))
    for number in (256, 258, 273, 33422, 50714, 50721):
        yield Case(f"count-{number}.dng", EITHER, content(tag(whole, number, 2**32 - 1, field=4)))
        yield Case(f"type-{number}.dng", EITHER, content(tag(whole, number, 13, field=2, code="H")))
    for length in (1, 4, 8, 100, 500, 1000, 5000, len(whole) - 1000):
        yield Case(f"cut-{length}.dng", REFUSED, content(whole[:length]))
    yield Case("directory-is-itself.dng", EITHER, content(whole[:4] + struct.pack("<I", 4) + whole[8:]))
    yield Case("directory-beyond.dng", EITHER, content(whole[:4] + struct.pack("<I", 2**32 - 1) + whole[8:]))
    yield Case("big-endian-mark.dng", REFUSED, content(b"MM\0*" + whole[4:]))
    yield Case("all-zero.dng", UNREADABLE, content(dng(np.zeros((60, 80), "u2"))))
    yield Case("constant.dng", OPENS, content(dng(np.full((60, 80), 700, "u2"))))
    yield Case("full.dng", OPENS, content(dng(np.full((60, 80), 65535, "u2"))))
    yield Case("the-fill.dng", OPENS, content(dng(np.full((60, 80), 0xF5F5, "u2"))))
    yield Case("tiny.dng", EITHER, content(dng(np.full((2, 2), 700, "u2"))))
    rng = np.random.default_rng(1)
    for i in range(15):
        data = bytearray(whole)
        for at in rng.integers(8, 900, 4):
            data[at] = rng.integers(0, 256)
        yield Case(f"flipped-{i}.dng", EITHER, content(bytes(data)))
    magics = {"cr2": b"II*\0\x10\0\0\0CR\2\0", "raf": b"FUJIFILMCCD-RAW 0201FF", "cr3": b"\0\0\0\x18ftypcrx \0\0\0\1",
              "nef": b"MM\0*\0\0\0\x08", "arw": b"II*\0\x08\0\0\0", "rw2": b"IIU\0\x18\0\0\0", "orf": b"IIRO\x08\0\0\0",
              "mrw": b"\0MRM", "x3f": b"FOVb", "kdc": b"II*\0\x08\0\0\0EASTMAN",
              "crw": b"II\x1a\0\0\0HEAPCCDR"}  # fmt: skip
    for suffix, magic in magics.items():
        yield Case(f"noise.{suffix}", REFUSED, content(magic + rng.bytes(20_000)))
        yield Case(f"zeros.{suffix}", REFUSED, content(magic + bytes(20_000)))


# ------------------------------------------------------------------------------------------------ files of other kinds


def others() -> Iterator[Case]:
    yield Case("empty.fits", UNREADABLE, content(b""))
    yield Case("empty.dng", UNREADABLE, content(b""))
    yield Case("folder.fits", UNREADABLE, lambda path: path.mkdir())
    yield Case("pipe.fits", UNREADABLE, lambda path: os.mkfifo(path))
    yield Case("null.fits", UNREADABLE, lambda path: path.symlink_to("/dev/null"))
    yield Case("zero.fits", UNREADABLE, lambda path: path.symlink_to("/dev/zero"))
    yield Case("dangling.fits", UNREADABLE, lambda path: path.symlink_to("gone"))
    yield Case("loop.fits", UNREADABLE, lambda path: path.symlink_to(path.name))
    kinds = {"html": b"<!DOCTYPE html><html>404</html>", "json": b'{"error": "token expired"}',
             "png": b"\x89PNG\r\n\x1a\n",
             "jpg": b"\xff\xd8\xff\xe0\0\x10JFIF", "pdf": b"%PDF-1.7", "hdf5": b"\x89HDF\r\n\x1a\n",
             "asdf": b"#ASDF 1.0.0",
             "txt": b"hello, world\n", "elf": b"\x7fELF", "xisf": b"XISF0100"}  # fmt: skip
    for kind, magic in kinds.items():
        yield Case(f"{kind}.fits", UNREADABLE, content(magic * 300))
        yield Case(f"{kind}.{kind}", REFUSED, content(magic * 300))
    yield Case("socket.fits", UNREADABLE, lambda path: socket.socket(socket.AF_UNIX).bind(str(path)))
    yield Case("to-a-folder.fits", UNREADABLE, lambda path: path.symlink_to("."))
    yield Case("full-device.fits", UNREADABLE, lambda path: path.symlink_to("/dev/full"))
    # By another kind's name, or by none.
    for name in ("fits-is.dng", "fits-is.nef", "fits-is.fits.gz", "fits-is.fits.fz", "fits-is.txt", "fits-is"):
        yield Case(name, OPENS, content(cal()))
    for name in ("gzip-is.fits", "gzip-is.dng"):
        yield Case(name, OPENS, content(gzip.compress(cal(), mtime=0)))
    for name in ("dng-is.fits", "dng-is.tif", "dng-is.cr2", "dng-is.fits.gz"):
        yield Case(name, OPENS, content(dng()))
    for name in ("UPPER.FITS", "upper.FIT", "upper.fts", "upper.FITS.GZ"):
        data = gzip.compress(cal(), mtime=0) if name.endswith("GZ") else cal()
        yield Case(name, OPENS, content(data))
    yield Case("two-members.fits.gz", OPENS, content(gzip.compress(cal()[:4000]) + gzip.compress(cal()[4000:])))
    yield Case("mark-before.fits", UNREADABLE, content(b"\xef\xbb\xbf" + cal()))
    yield Case("line-ends.fits", UNREADABLE, content(cal().replace(b"\n", b"\r\n")))
    yield Case("simple-alone.fits", UNREADABLE, content(b"SIMPLE  ="))
    yield Case("simple-lower.fits", UNREADABLE, content(cal().replace(b"SIMPLE", b"simple", 1)))


ODD_NAMES = [".fits", "..fits", "...", "a::b.fits", "a b.fits", "a\x1b[2J.fits", "a\nb.fits", "caf\udce9.fits",
             "星.fits",
             "\u202egpj.fits", "-rf.fits", "~root.fits", "*.fits", "a%2Fb.fits", "x" * 245 + ".fits", "@list.fits",
             "%s.fits",
             "zarr.json", "memory:.fits", "{0}.fits"]  # fmt: skip


def names() -> Iterator[Case]:
    for name in ODD_NAMES:
        yield Case(name, OPENS, content(cal()))
    for name in ("caf\udce9.dng", "\x1b]0;a\x07.dng", ".dng", "a::b.dng"):
        yield Case(name, OPENS, content(dng()))


FAMILIES = (
    structure, cards, damage, packed, lies, pixels, choices, coordinates, beside, sums, controls, tiles,
    mosaics, raws, others, names,
)  # fmt: skip


def corpus() -> list[Case]:
    """Every file, in a fixed order."""
    return [case for family in FAMILIES for case in family()]


# ------------------------------------------------------------------------------------------------- putting them through


def outcome(error: SkylevelError | None) -> str:
    kinds = {type(None): OPENS, UnreadableFrameError: UNREADABLE, UnsupportedFrameError: UNSUPPORTED}
    return kinds.get(type(error), REFUSED)


def put_through(path: Path, outputs: Path) -> tuple[str, str]:
    """What comes of a file, and the message; whatever opens is written in every layout, and looked at again."""
    try:
        peek_frame(path)
    except SkylevelError as error:
        require_one_line(error, path)
    try:
        frame = open_frame(path).load()
    except SkylevelError as error:
        require_one_line(error, path)
        return outcome(error), str(error)
    assert peek_frame(path)[0] == tuple(frame.sizes[dim] for dim in ("y", "x"))
    write_all(frame, outputs)
    return OPENS, ""


def require_one_line(error: SkylevelError, path: Path) -> None:
    assert str(error).startswith(f"{path}: "), error
    assert "\n" not in str(error).removeprefix(str(path)), error


def write_all(frame: Any, outputs: Path) -> None:
    jwst = frame.attrs["kind"] == "jwst"
    pixels = frame["sci" if jwst else "raw"].to_numpy()
    if jwst:
        size_and_field(frame)
        for write in (write_full, write_primary):
            written(lambda output, write=write: write(output, frame, pixels, history=["h"]), outputs, pixels)
        written(lambda output: write_masked(output, frame, np.zeros(pixels.shape, bool)), outputs, pixels)
        written(lambda output: write_segmentation(output, frame, np.ones(pixels.shape, "i4")), outputs, None)
    else:
        for layout in ("full", "primary"):
            written(lambda output, layout=layout: write_mosaic(output, frame, pixels, layout=layout), outputs, pixels)
    written(lambda output: write_image(output, frame, pixels), outputs, None)


def written(write: Callable[[Path], object], outputs: Path, pixels: np.ndarray | None) -> None:
    """Write, and see what astropy says of it; an output that is refused must not be there."""
    output = outputs / "o.fits"
    try:
        write(output)
    except SkylevelError:
        assert not list(outputs.iterdir()), "an output for what was refused"
        return
    with output.open("rb") as stream, fits.open(stream, checksum=True, memmap=False) as hdus:
        hdus.verify("exception")
        if pixels is not None:
            found = [hdu.data for hdu in hdus if hdu.is_image and hdu.data is not None and hdu.data.ndim >= 2]
            same = [data for data in found if np.array_equal(np.squeeze(data), np.squeeze(pixels), equal_nan=True)]
            assert same or pixels.dtype != np.float32, "the pixels are not those that were written"
    output.unlink()


def main(folder: Path) -> None:
    """Build the corpus and put it through, within bounds that hold for the whole process."""
    inputs, outputs = folder / "inputs", folder / "outputs"
    inputs.mkdir()
    outputs.mkdir()
    cases = corpus()
    for case in cases:
        case.make(inputs / case.name)
    put_through(inputs / "sound.dng", outputs)
    put_through(inputs / "sound.fits.gz", outputs)
    status = Path("/proc/self/statm").read_text(encoding="ascii").split()
    limit = int(status[0]) * resource.getpagesize() + MEMORY
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    warnings.simplefilter("error")
    for case in cases:
        print(json.dumps(line_of(case, inputs, outputs)), flush=True)  # noqa: T201


def line_of(case: Case, inputs: Path, outputs: Path) -> dict[str, Any]:
    found: dict[str, Any] = {"name": case.name, "expected": case.expected, "outcome": "", "message": ""}
    print(json.dumps({"name": case.name, "begun": True}), flush=True)  # noqa: T201
    start = time.perf_counter()
    signal.alarm(SECONDS)
    try:
        found["outcome"], found["message"] = put_through(inputs / case.name, outputs)
    except Exception:
        found["outcome"], found["message"] = "traceback", traceback.format_exc()
    finally:
        signal.alarm(0)
    return found | {"seconds": time.perf_counter() - start}


if __name__ == "__main__":
    main(Path(sys.argv[1]))
