"""What a run made of the program: how much of the known structure is left in its output."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import rawpy
from astropy.io import fits

from skylevel.demo import schedule
from skylevel.demo.dng import RAW_PLANES
from skylevel.demo.drawing import Image, Values
from skylevel.demo.truth import read_truth
from skylevel.errors import ShapeError, UnreadableFrameError
from skylevel.recipes import Channels

Quantity = Literal["stripes", "gradient"]


@dataclass(frozen=True, slots=True, kw_only=True)
class DemoResult:
    """How much structure one exposure had, and how much a run left in it.

    Attributes
    ----------
    name : str
        The exposure's file name without its suffix.
    quantity : {"stripes", "gradient"}
        "stripes" is the level of detector rows, "gradient" the sky of a camera raw frame (see `measure_levels`).
    rms_before, rms_after : float
        Root mean square of that structure in `unit`; NaN where the output has no number to compare.
    unit : str
        Of both values, such as "MJy/sr" or "ADU".
    """

    name: str
    quantity: Quantity
    rms_before: float
    rms_after: float
    unit: str

    @property
    def removed(self) -> float:
        """Fraction of the rms that is gone: 1 is perfect, 0 is no change, below 0 is worse than before."""
        return 1.0 - self.rms_after / self.rms_before


def measure_levels(folder: Path, output: Path, *, norms: Mapping[str, float] | None = None) -> list[DemoResult]:
    """Compare a run's output with the truth of the program that `write_program` wrote.

    Parameters
    ----------
    folder : Path
        Where the program was written.
    output : Path
        Where the run wrote ``<stem>_rowbgsub.fits`` (image in extension SCI) and ``<stem>.bkg_subtracted.fits``
        (image in extension 1).
    norms : mapping of str to float, optional
        Factor by which the run multiplied each colour of a raw frame; 1 for a colour not named. By default those of
        `skylevel.recipes.Channels`.

    Returns
    -------
    list of DemoResult
        One per exposure, in the order of `write_program`.

    Raises
    ------
    UnreadableFrameError
        There is no program in `folder`, or an exposure, its truth or its output is missing or damaged.
    ShapeError
        An output differs in shape from its exposure.

    Notes
    -----
    An exposure's rows: its noise and its sources are in the input and in the output alike, so the input without its
    injected stripes is subtracted from the output. What is left in a pixel is what is left of the stripes there, minus
    the sky that was taken away with them. Its mean over a row's finite pixels is the row's level; before, that is the
    mean of the stripes over the same pixels. The row job takes the sky with the stripes, another method may leave it,
    and a slow drift of the stripes looks like the sky's own slope: so a constant and the multiple of the true sky's
    row profile that fits best are taken from the levels, before and after alike, and the rms over the rows of the rest
    is the result. It is 0 for an output without stripes, with or without its sky, and unchanged for an unchanged
    output. Differences between the amplifiers average out along a row and hardly count.

    A raw frame's gradient: before, the true sky minus its mean in each colour, as rms over all pixels. After, the same
    of the true sky minus what was taken away, which is the output divided by its norms minus the raw frame without its
    sky. A constant in a colour, such as a pedestal, does not count.
    """
    factors = Channels().norms if norms is None else norms
    return [_measure_stripes(folder, output, visit.stem) for visit in schedule.VISITS] + [
        _measure_gradient(folder, output, night.stem, factors) for night in schedule.NIGHTS
    ]


def summary(results: Sequence[DemoResult]) -> str:
    """Set the results out as plain text: a line of headings, then one line per exposure, with units."""
    width = max((len(result.name) for result in results), default=0)
    heading = f"{'exposure':{width}}  {'what':8}  {'rms before':>10}  {'rms after':>10}  {'unit':6}  {'removed':>7}"
    lines = [
        f"{r.name:{width}}  {r.quantity:8}  {_three_digits(r.rms_before):>10}  {_three_digits(r.rms_after):>10}  "
        f"{r.unit:6}  {r.removed:7.1%}"
        for r in results
    ]
    return "\n".join([heading, *lines])


def _three_digits(value: float) -> str:
    """Write a value as people do: three significant digits, no exponent."""
    if not math.isfinite(value) or value == 0.0:
        return f"{value:g}"
    return f"{value:.{max(0, 2 - math.floor(math.log10(abs(value))))}f}"


def _measure_stripes(folder: Path, output: Path, stem: str) -> DemoResult:
    truth = read_truth(folder, stem)
    image, unit = _read_image(folder / f"{stem}.fits", "SCI")
    path = output / f"{stem}_rowbgsub.fits"
    levelled, _ = _read_image(path, "SCI")
    _check_shape(path, levelled, image.shape)
    usable = np.isfinite(image)
    rows = usable.any(axis=1)
    stripes = truth["stripes"].astype(np.float64)
    left = levelled - (image - stripes)
    before, after = (
        _beyond_sky(plane[rows].mean(axis=1, where=usable[rows]), truth["sky_rows"][rows]) for plane in (stripes, left)
    )
    return DemoResult(name=stem, quantity="stripes", rms_before=before, rms_after=after, unit=unit)


def _beyond_sky(levels: Values, sky_rows: Image) -> float:
    """Rms over rows of what a constant and the sky's own profile along the column cannot explain."""
    if not np.isfinite(levels).all():
        return math.nan
    basis = np.stack([np.ones_like(levels), sky_rows - sky_rows.mean(dtype=np.float64)], axis=1)
    fit, *_ = np.linalg.lstsq(basis, levels, rcond=None)
    return float(np.std(levels - basis @ fit))


def _measure_gradient(folder: Path, output: Path, stem: str, norms: Mapping[str, float]) -> DemoResult:
    sky = read_truth(folder, stem)["sky"].astype(np.float64)
    raw = _read_mosaic(folder / f"{stem}.dng")
    path = output / f"{stem}.bkg_subtracted.fits"
    levelled, _ = _read_image(path, 1)
    _check_shape(path, levelled, raw.shape)
    for colour, i, j in RAW_PLANES:
        levelled[i::2, j::2] /= norms.get(colour, 1.0)
    left = levelled - raw + sky
    before, after = (_rms_by_colour(plane) for plane in (sky, left))
    return DemoResult(name=stem, quantity="gradient", rms_before=before, rms_after=after, unit="ADU")


def _rms_by_colour(mosaic: Values) -> float:
    """Rms over all pixels around the mean of each pixel's colour."""
    squares = 0.0
    for colour in dict.fromkeys(name for name, _, _ in RAW_PLANES):
        planes = np.stack([mosaic[i::2, j::2] for name, i, j in RAW_PLANES if name == colour])
        squares += float(np.sum((planes - planes.mean()) ** 2))
    return math.sqrt(squares / mosaic.size)


def _read_image(path: Path, extension: str | int) -> tuple[Values, str]:
    """Read an image of a FITS file as float64, and its unit ("" where the header has none)."""
    try:
        with fits.open(path, memmap=False) as hdus:
            hdu = hdus[extension]
            return np.asarray(hdu.data, np.float64), str(hdu.header.get("BUNIT", ""))
    except (OSError, KeyError, IndexError, TypeError, ValueError) as error:
        raise UnreadableFrameError(f"{path}: cannot read image {extension!r}: {error}") from error


def _read_mosaic(path: Path) -> Values:
    try:
        with rawpy.imread(str(path)) as raw:
            return np.asarray(raw.raw_image_visible, np.float64)
    except (OSError, rawpy.LibRawError) as error:
        raise UnreadableFrameError(f"{path}: cannot read the raw frame: {error}") from error


def _check_shape(path: Path, levelled: Values, expected: tuple[int, ...]) -> None:
    if levelled.shape != expected:
        raise ShapeError(f"{path}: the image is {levelled.shape}, its exposure {expected}; was it cropped?")
