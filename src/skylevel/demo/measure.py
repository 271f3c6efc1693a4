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
from skylevel.demo.nircam import AMPLIFIERS
from skylevel.demo.truth import read_truth
from skylevel.errors import ShapeError, UnreadableFrameError
from skylevel.recipes import Channels

Quantity = Literal["stripes", "amplifiers", "gradient"]


@dataclass(frozen=True, slots=True, kw_only=True)
class DemoResult:
    """How much structure one exposure had, and how much a run left in it.

    Attributes
    ----------
    name : str
        The exposure's file name without its suffix.
    quantity : {"stripes", "amplifiers", "gradient"}
        "stripes" is the level of detector rows, "amplifiers" that of each amplifier's part of them, "gradient" the sky
        of a camera raw frame (see `measure_levels`).
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


def measure_levels(
    folder: Path, output: Path, *, norms: Mapping[str, float] | None = None, amplifiers: bool = False
) -> list[DemoResult]:
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
    amplifiers : bool
        Also the stripes of each amplifier on its own.

    Returns
    -------
    list of DemoResult
        One per exposure, in the order of `write_program`; with `amplifiers`, two per JWST exposure.

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
    output. Differences between the amplifiers average out along a row and hardly count; with `amplifiers`, the same is
    also done with the mean over each amplifier's part of a row.

    A raw frame's gradient: before, the true sky minus its mean in each colour, as rms over all pixels. After, the same
    of the true sky minus what was taken away, which is the output divided by its norms minus the raw frame without its
    sky. A constant in a colour, such as a pedestal, does not count.
    """
    parts: dict[Quantity, int] = {"stripes": 1, "amplifiers": AMPLIFIERS} if amplifiers else {"stripes": 1}
    stripes = [one for visit in schedule.VISITS for one in _measure_stripes(folder, output, visit.stem, parts)]
    return stripes + [_measure_gradient(folder, output, night.stem, norms) for night in schedule.NIGHTS]


def summary(results: Sequence[DemoResult]) -> str:
    """Set the results out as plain text: a line of headings, then one line per exposure, with units."""
    width = max((len(result.name) for result in results), default=0)
    heading = f"{'exposure':{width}}  {'what':8}  {'rms before':>10}  {'rms after':>10}  {'unit':6}  {'removed':>7}"
    lines = [
        f"{r.name:{width}}  {r.quantity:8}  {three_digits(r.rms_before):>10}  {three_digits(r.rms_after):>10}  "
        f"{r.unit:6}  {r.removed:7.1%}"
        for r in results
    ]
    return "\n".join([heading, *lines])


def three_digits(value: float) -> str:
    """Write a value as people do: three significant digits, no exponent."""
    if not math.isfinite(value) or value == 0.0:
        return f"{value:g}"
    return f"{value:.{max(0, 2 - math.floor(math.log10(abs(value))))}f}"


def stripes_left(folder: Path, output: Path, stem: str) -> tuple[Values, Values, str]:
    """Return an exposure's stripes (y, x), what is left of them in its output, and their unit.

    NaN where the exposure has no number; less the sky that was taken away with the stripes.
    """
    truth = read_truth(folder, stem)["stripes"]
    image, unit = read_image(folder / f"{stem}.fits", "SCI")
    path = output / f"{stem}_rowbgsub.fits"
    levelled, _ = read_image(path, "SCI")
    _check_shape(path, levelled, image.shape)
    stripes = np.where(np.isfinite(image), truth, np.nan)
    # Where the output has no number though the exposure has one, infinite: it is not to be taken for a border.
    left = np.where(np.isfinite(levelled) | np.isnan(image), levelled - (image - stripes), np.inf)
    return stripes, left, unit


def _measure_stripes(folder: Path, output: Path, stem: str, parts: Mapping[Quantity, int]) -> list[DemoResult]:
    """Measure the levels of rows, or of so many parts of each."""
    planes = stripes_left(folder, output, stem)
    sky_rows = read_truth(folder, stem)["sky_rows"]
    results = []
    for quantity, n_parts in parts.items():
        before, after = (_beyond_sky(_row_levels(plane, n_parts), sky_rows) for plane in planes[:2])
        results.append(DemoResult(name=stem, quantity=quantity, rms_before=before, rms_after=after, unit=planes[2]))
    return results


def _row_levels(plane: Values, n_parts: int) -> Values:
    """Return the mean of each part of each row (y, part); NaN where it has no pixel."""
    parts = plane.reshape(len(plane), n_parts, -1)
    known = ~np.isnan(parts)
    count = known.sum(axis=2)
    return np.where(count > 0, parts.sum(axis=2, where=known) / np.maximum(count, 1), np.nan)


def _beyond_sky(levels: Values, sky_rows: Image) -> float:
    """Rms over rows, and their parts, of what a constant and the sky's own profile along the column cannot explain."""
    if np.isinf(levels).any():
        return math.nan
    sky = np.broadcast_to((sky_rows - sky_rows.mean(dtype=np.float64))[:, None], levels.shape)
    known = np.isfinite(levels)
    basis = np.stack([np.ones(known.sum()), sky[known]], axis=1)
    fit, *_ = np.linalg.lstsq(basis, levels[known], rcond=None)
    return float(np.std(levels[known] - basis @ fit))


def gradient_left(
    folder: Path, output: Path, stem: str, norms: Mapping[str, float] | None = None
) -> tuple[Values, Values]:
    """Return a raw frame's sky (y, x) in ADU, and what is left of it in its output."""
    sky = read_truth(folder, stem)["sky"].astype(np.float64)
    raw = read_mosaic(folder / f"{stem}.dng")
    path = output / f"{stem}.bkg_subtracted.fits"
    levelled, _ = read_image(path, 1)
    _check_shape(path, levelled, raw.shape)
    factors = Channels().norms if norms is None else norms
    for colour, i, j in RAW_PLANES:
        levelled[i::2, j::2] /= factors.get(colour, 1.0)
    return sky, levelled - raw + sky


def _measure_gradient(folder: Path, output: Path, stem: str, norms: Mapping[str, float] | None) -> DemoResult:
    before, after = map(_rms_by_colour, gradient_left(folder, output, stem, norms))
    return DemoResult(name=stem, quantity="gradient", rms_before=before, rms_after=after, unit="ADU")


def _rms_by_colour(mosaic: Values) -> float:
    """Rms over all pixels around the mean of each pixel's colour."""
    squares = 0.0
    for colour in dict.fromkeys(name for name, _, _ in RAW_PLANES):
        planes = np.stack([mosaic[i::2, j::2] for name, i, j in RAW_PLANES if name == colour])
        squares += float(np.sum((planes - planes.mean()) ** 2))
    return math.sqrt(squares / mosaic.size)


def read_image(path: Path, extension: str | int) -> tuple[Values, str]:
    """Read an image of a FITS file as float64, and its unit ("" where the header has none)."""
    try:
        with fits.open(path, memmap=False) as hdus:
            hdu = hdus[extension]
            return np.asarray(hdu.data, np.float64), str(hdu.header.get("BUNIT", ""))
    except (OSError, KeyError, IndexError, TypeError, ValueError) as error:
        raise UnreadableFrameError(f"{path}: cannot read image {extension!r}: {error}") from error


def read_mosaic(path: Path) -> Values:
    """Read a raw frame as float64."""
    try:
        with rawpy.imread(str(path)) as raw:
            return np.asarray(raw.raw_image_visible, np.float64)
    except (OSError, rawpy.LibRawError) as error:
        raise UnreadableFrameError(f"{path}: cannot read the raw frame: {error}") from error


def _check_shape(path: Path, levelled: Values, expected: tuple[int, ...]) -> None:
    if levelled.shape != expected:
        raise ShapeError(f"{path}: the image is {levelled.shape}, its exposure {expected}; was it cropped?")
