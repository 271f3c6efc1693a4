"""A small observing program whose truth is known, and how much of its structure a run took away.

`write_program` simulates three NIRCam exposures and two camera raw frames and keeps what it injected beside them;
`measure_levels` compares a run's output with that; `summary` sets the result out for a reader.
Every pixel is simulated, and one seed gives the same bytes every time.
"""

import math
import struct
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Literal

import numpy as np
import rawpy
from astropy.io import fits
from astropy.time import Time
from astropy.wcs import WCS
from numpy.typing import NDArray

from skylevel.errors import ShapeError, UnreadableFrameError
from skylevel.recipes import Channels

Image = NDArray[np.float32]
Values = NDArray[np.float64]
Random = np.random.Generator
Quantity = Literal["stripes", "gradient"]
# A TIFF tag, the struct code of its values, and the values.
_Entry = tuple[int, str, tuple[Any, ...]]

# NIRCam's full frame and how it is read: four amplifiers side by side, a few idle clocks after each of their rows.
SIZE = 2048
AMPLIFIERS = 4
AMPLIFIER_WIDTH = SIZE // AMPLIFIERS
IDLE_CLOCKS = 12
BORDER = 4
# Pixels that share one value of the injected 1/f stream: what is faster is far below the white noise.
STRIPE_SAMPLE = 32
GROUP_TIME = 107.36767
EXPOSURE_TIME = 418.734

DO_NOT_USE, SATURATED, JUMP_DET, DEAD, HOT, LOW_QE, REFERENCE_PIXEL = (1 << bit for bit in (0, 1, 2, 10, 11, 13, 31))

# Truth is rounded before it is used, so that it stays exact and compresses well; both steps are far below the noise.
SCENE_STEP = 2.0**-13
RAW_STEP = 2.0**-2

FIELD_CENTRE = (150.1163, 2.2058)
FIELD_RADIUS = 85.0
POSITION_ANGLE = 67.6
N_STARS, N_GALAXIES = 700, 5200
FIRST_EXPOSURE = datetime(2023, 1, 1, 22, 5, 29, tzinfo=UTC)

RAW_SHAPE = (2000, 3000)
RAW_PLANES = (("R", 0, 0), ("G", 0, 1), ("G", 1, 0), ("B", 1, 1))
BLACK_LEVEL, WHITE_LEVEL = 512, 2**14 - 1
RAW_GAIN = 1.3
RAW_READ_NOISE = 4.0
RAW_SKY = {"R": 760.0, "G": 1180.0, "B": 640.0}
DOME = {"R": 0.65, "G": 0.45, "B": 0.30}
N_RAW_STARS = 6000
FIRST_RAW = datetime(2023, 9, 14, 23, 40, 0, tzinfo=UTC)
TIFF_HEADER = struct.Struct("<2sHI")
# TIFF's number of a type by the struct code of its values; two letters are a fraction.
TIFF_TYPES = {"B": 1, "s": 2, "H": 3, "I": 4, "II": 5, "ii": 10}


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


@dataclass(frozen=True, slots=True, kw_only=True)
class _Detector:
    """One NIRCam detector with a filter in front of it: numbers near the real ones, none of them a calibration."""

    name: str
    number: int
    channel: str
    filter: str
    pixel_scale: float  # arcsec
    offset: tuple[float, float]  # arcsec along x and y from the field's centre
    reference_v2v3: tuple[float, float]  # arcsec
    sip: Mapping[str, float]  # pixel**-1, second order
    photmjsr: float  # MJy/sr for 1 DN/s
    sky: float  # MJy/sr
    gain: float  # electrons per DN
    read_noise: float  # DN/s, of the whole exposure
    common_stripes: float  # MJy/sr, rms over rows, in all amplifiers alike
    amplifier_stripes: float  # MJy/sr, rms over rows, in each amplifier on its own
    psf_core: float  # pixel
    saturation: float  # MJy/sr


_NRCB1 = _Detector(
    name="NRCB1", number=486, channel="SHORT", filter="F200W", pixel_scale=0.0307, offset=(32.8, 33.7),
    reference_v2v3=(-122.38, -457.73),
    sip={"A_2_0": 1.3e-7, "A_1_1": -5.3e-6, "A_0_2": 1.2e-6, "B_2_0": 2.8e-6, "B_1_1": -1.1e-6, "B_0_2": -2.5e-6},
    photmjsr=2.02, sky=0.25, gain=2.1, read_noise=0.007, common_stripes=0.010, amplifier_stripes=0.004,
    psf_core=1.85, saturation=150.0,
)  # fmt: skip
_NRCBLONG = _Detector(
    name="NRCBLONG", number=490, channel="LONG", filter="F277W", pixel_scale=0.0629, offset=(0.0, 0.0),
    reference_v2v3=(-89.39, -491.44),
    sip={"A_2_0": -2.1e-6, "A_1_1": -8.9e-6, "A_0_2": 1.9e-6, "B_2_0": 5.4e-6, "B_1_1": -4.2e-6, "B_0_2": -3.6e-6},
    photmjsr=0.41, sky=0.14, gain=1.8, read_noise=0.009, common_stripes=0.0040, amplifier_stripes=0.0016,
    psf_core=1.35, saturation=60.0,
)  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class _Visit:
    """One exposure of the program: which detector, how far the telescope was moved, when it began."""

    stem: str
    detector: _Detector
    number: int
    dither: tuple[float, float]  # arcsec along x and y
    start: datetime


_VISITS = (
    _Visit(stem="jw99999001001_02101_00001_nrcb1_cal", detector=_NRCB1, number=1, dither=(0.0, 0.0),
           start=FIRST_EXPOSURE),
    _Visit(stem="jw99999001001_02101_00002_nrcb1_cal", detector=_NRCB1, number=2, dither=(5.83, -3.15),
           start=FIRST_EXPOSURE + timedelta(minutes=9)),
    _Visit(stem="jw99999001001_04101_00001_nrcblong_cal", detector=_NRCBLONG, number=1, dither=(0.0, 0.0),
           start=FIRST_EXPOSURE + timedelta(minutes=19)),
)  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class _Night:
    """One camera raw frame: how far the stars have drifted, and where the glow over the horizon stands."""

    stem: str
    drift: tuple[float, float]  # pixel along x and y
    dome_centre: float  # half frame heights from the centre, along x
    brightness: float  # factor on the sky
    start: datetime


_NIGHTS = (
    _Night(stem="night_0001", drift=(0.0, 0.0), dome_centre=0.55, brightness=1.0, start=FIRST_RAW),
    _Night(stem="night_0002", drift=(41.3, 17.8), dome_centre=-0.35, brightness=1.12,
           start=FIRST_RAW + timedelta(minutes=12)),
)  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class _Sources:
    """Stars and galaxies of the field: arrays of one length.

    `east` and `north` in arcsec from the field's centre; `flux` in MJy/sr arcsec**2 at 2 micron; `colour` is the
    factor on it at 2.8 micron; `radius` is the half-light radius in arcsec, 0 for a star; `angle` in radian from x.
    """

    east: Values
    north: Values
    flux: Values
    colour: Values
    radius: Values
    axis_ratio: Values
    angle: Values


def write_program(folder: Path, *, seed: int = 1) -> list[Path]:
    """Write the demo's exposures into `folder`, and what was put into them into ``folder/truth``.

    Three NIRCam ``_cal`` exposures (two dithers of F200W on NRCB1, one of F277W on NRCBLONG, all of one field) and
    two RGGB camera raw frames (DNG). About 400 MB; files of the same names are replaced.

    Parameters
    ----------
    folder : Path
        Made if it is not there.
    seed : int, optional
        Not negative. The same seed gives the same bytes.

    Returns
    -------
    list of Path
        The exposures, JWST first.

    Notes
    -----
    ``truth/<stem>.npz``, all float32:

    - exposures: `stripes` (y, x), the injected 1/f pattern; `scene` (y, x), sky and sources without noise;
      `sky_rows` (y,), the median of the sky alone along each row; all in MJy/sr.
    - raw frames: `sky` (y, x) in ADU, black level included.

    The stripes are 1/f streams in the detector's order of reading: one that the four amplifiers share, which read
    512 pixels of a row each, every other one from right to left, and one for each amplifier. Averaged over 32 pixels,
    they wiggle a little along a row. Noise is Gaussian for exposures (variance VAR_POISSON + VAR_RNOISE), Poisson
    plus Gaussian for raw frames.
    """
    (folder / "truth").mkdir(parents=True, exist_ok=True)
    sources = _make_sources(_random(seed, 0))
    exposures = [_write_exposure(folder, visit, sources, seed=seed, index=i) for i, visit in enumerate(_VISITS)]
    frames = [_write_night(folder, night, seed=seed, index=i) for i, night in enumerate(_NIGHTS)]
    return exposures + frames


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
    return [_measure_stripes(folder, output, visit.stem) for visit in _VISITS] + [
        _measure_gradient(folder, output, night.stem, factors) for night in _NIGHTS
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


def _random(seed: int, *key: int) -> Random:
    """Make an independent stream for each part of the program, so that no part depends on what was drawn before."""
    return np.random.default_rng([seed, *key])


# ---- the field: sources, and where they fall on a detector


def _make_sources(rng: Random) -> _Sources:
    """Stars with a power law of fluxes and exponential galaxies, evenly over a square around the field's centre."""
    n = N_STARS + N_GALAXIES
    star = np.arange(n) < N_STARS
    star_flux = 5e-4 * (1.0 - 0.99999 * rng.random(n)) ** (-1.0 / 0.75)
    return _Sources(
        east=rng.uniform(-FIELD_RADIUS, FIELD_RADIUS, n) * math.sqrt(2.0),
        north=rng.uniform(-FIELD_RADIUS, FIELD_RADIUS, n) * math.sqrt(2.0),
        flux=np.where(star, star_flux, 10.0 ** rng.normal(-2.5, 0.6, n)),
        colour=np.where(star, rng.uniform(0.5, 0.9, n), rng.uniform(0.7, 1.6, n)),
        radius=np.where(star, 0.0, 10.0 ** rng.normal(-0.85, 0.24, n)),
        axis_ratio=rng.uniform(0.3, 1.0, n),
        angle=rng.uniform(0.0, math.pi, n),
    )


def _sky_coordinates(east: Values | float, north: Values | float) -> tuple[Any, Any]:
    """Right ascension and declination in degrees of offsets in arcsec from the field's centre."""
    ra, dec = FIELD_CENTRE
    return ra + east / 3600.0 / math.cos(math.radians(dec)), dec + north / 3600.0


def _rotation() -> Values:
    """Matrix from (x, y) to (east, north) for NIRCam's parity: east is to the left when north is up."""
    cosine, sine = math.cos(math.radians(POSITION_ANGLE)), math.sin(math.radians(POSITION_ANGLE))
    return np.array([[-cosine, -sine], [-sine, cosine]])


def _wcs_header(visit: _Visit) -> fits.Header:
    """TAN-SIP cards of an exposure."""
    detector = visit.detector
    east, north = _rotation() @ (np.array(detector.offset) + np.array(visit.dither))
    ra, dec = _sky_coordinates(float(east), float(north))
    cd = _rotation() * detector.pixel_scale / 3600.0
    centre = (SIZE + 1) / 2
    cards: list[tuple[str, Any, str]] = [
        ("RADESYS", "ICRS", "Celestial reference frame"),
        ("WCSAXES", 2, "Axes of the coordinate system"),
        *((f"CRPIX{i}", centre, "[pixel] Reference pixel") for i in (1, 2)),
        ("CRVAL1", ra, "[deg] Right ascension of the reference pixel"),
        ("CRVAL2", dec, "[deg] Declination of the reference pixel"),
        ("CTYPE1", "RA---TAN-SIP", "Gnomonic projection with distortion"),
        ("CTYPE2", "DEC--TAN-SIP", "Gnomonic projection with distortion"),
        *((f"CUNIT{i}", "deg", "Unit of the axis") for i in (1, 2)),
        *((f"CD{i + 1}_{j + 1}", float(cd[i, j]), "[deg/pixel]") for i in (0, 1) for j in (0, 1)),
        *((f"{axis}_ORDER", 2, "Degree of the distortion") for axis in "AB"),
        *((f"{axis}P_ORDER", 3, "Degree of the inverse distortion") for axis in "AB"),
        *((name, value, "Distortion") for name, value in detector.sip.items()),
        *((name, value, "Inverse distortion") for name, value in _inverse_sip(detector.sip).items()),
    ]
    return fits.Header(cards)


def _inverse_sip(sip: Mapping[str, float]) -> dict[str, float]:
    """Third-order AP and BP that undo A and B, fitted over the frame (to a hundredth of a pixel)."""
    u, v = (grid.ravel() for grid in np.meshgrid(*2 * (np.linspace(-SIZE / 2, SIZE / 2, 17),)))
    shift = {axis: sum(c * u ** int(k[2]) * v ** int(k[4]) for k, c in sip.items() if k[0] == axis) for axis in "AB"}
    distorted_u, distorted_v = u + shift["A"], v + shift["B"]
    powers = [(p, q) for p in range(4) for q in range(4) if 1 <= p + q <= 3]
    # Scaled to 1 at the frame's edge, or the cubic terms would spoil the fit's condition.
    scale = SIZE / 2
    basis = np.stack([(distorted_u / scale) ** p * (distorted_v / scale) ** q for p, q in powers], axis=1)
    inverse: dict[str, float] = {}
    for axis in "AB":
        fit, *_ = np.linalg.lstsq(basis, -shift[axis], rcond=None)
        inverse |= {f"{axis}P_{p}_{q}": float(c / scale ** (p + q)) for c, (p, q) in zip(fit, powers, strict=True)}
    return inverse


def _draw_scene(visit: _Visit, wcs: WCS, sources: _Sources, sky: Image) -> Image:
    """Sky and sources of an exposure without noise, in MJy/sr."""
    detector = visit.detector
    ra, dec = _sky_coordinates(sources.east, sources.north)
    x, y = wcs.all_world2pix(ra, dec, 0, quiet=True)
    colour = np.where(detector.filter == "F277W", sources.colour, 1.0)
    flux = sources.flux * colour / detector.pixel_scale**2
    scene = sky.copy()
    for i in np.flatnonzero((x > -150) & (x < SIZE + 150) & (y > -150) & (y < SIZE + 150)):
        if sources.radius[i] == 0.0:
            _add_star(scene, x[i], y[i], flux[i], core=detector.psf_core, faintest=detector.sky / 5000)
        else:
            radius = math.hypot(sources.radius[i] / detector.pixel_scale, 0.5 * detector.psf_core)
            shape = (radius, sources.axis_ratio[i], sources.angle[i])
            _add_galaxy(scene, x[i], y[i], flux[i], shape=shape, faintest=detector.sky / 5000)
    return _rounded(scene, SCENE_STEP)


def _add_star(image: Image, x: float, y: float, flux: float, *, core: float, faintest: float) -> None:
    """Add a Moffat profile (exponent 2.5) in place, out to where it falls below `faintest`."""
    peak = flux * 1.5 / (math.pi * core**2)
    half = int(np.clip(core * (peak / faintest) ** 0.2, 4, 150))
    window, dy, dx = _window(image, x, y, half)
    t = 1.0 + (dy**2 + dx**2) / core**2
    image[window] += peak / (t * t * np.sqrt(t))


def _add_galaxy(
    image: Image, x: float, y: float, flux: float, *, shape: tuple[float, float, float], faintest: float
) -> None:
    """Add an inclined exponential disc in place: half-light radius (pixel), axis ratio and angle are its shape."""
    radius, ratio, angle = shape
    length = radius / 1.678
    peak = flux / (2.0 * math.pi * length**2 * ratio)
    half = int(np.clip(length * math.log(max(peak / faintest, math.e)), 4, 150))
    window, dy, dx = _window(image, x, y, half)
    along = dx * math.cos(angle) + dy * math.sin(angle)
    across = (dy * math.cos(angle) - dx * math.sin(angle)) / ratio
    image[window] += peak * np.exp(-np.sqrt(along**2 + across**2) / length)


def _window(image: Image, x: float, y: float, half: int) -> tuple[tuple[slice, slice], Image, Image]:
    """Find the part of the image within `half` pixels of (x, y), and its pixels' distances along y and x from there."""
    rows, columns = (
        slice(max(round(c) - half, 0), max(min(round(c) + half + 1, n), 0))
        for c, n in zip((y, x), image.shape, strict=True)
    )
    dy = (np.arange(rows.start, max(rows.start, rows.stop)) - y).astype(np.float32)
    dx = (np.arange(columns.start, max(columns.start, columns.stop)) - x).astype(np.float32)
    return (rows, columns), dy[:, None], dx[None, :]


def _rounded(image: NDArray[Any], step: float) -> Image:
    return (np.rint(image / step) * step).astype(np.float32)


# ---- NIRCam exposures


def _write_exposure(folder: Path, visit: _Visit, sources: _Sources, *, seed: int, index: int) -> Path:
    rng = _random(seed, 1, index)
    wcs_header = _wcs_header(visit)
    wcs = WCS(wcs_header)
    sky = _make_sky(visit.detector)
    scene = _draw_scene(visit, wcs, sources, sky)
    stripes = _make_stripes(visit.detector, rng)
    dq = _detector_flags(_random(seed, 2, visit.detector.number)) | _exposure_flags(visit.detector, scene, rng)
    planes = _make_planes(visit.detector, scene, stripes, dq, rng)
    path = folder / f"{visit.stem}.fits"
    _write_cal(path, visit, planes, wcs_header)
    sky_rows = np.median(sky, axis=1).astype(np.float32)
    _write_truth(folder, visit.stem, {"stripes": stripes, "scene": scene, "sky_rows": sky_rows})
    return path


def _make_sky(detector: _Detector) -> Image:
    """Zodiacal light with a gentle slope and a little stray light, in MJy/sr."""
    y = np.linspace(-1.0, 1.0, SIZE, dtype=np.float32)[:, None]
    x = np.linspace(-1.0, 1.0, SIZE, dtype=np.float32)[None, :]
    stray = 0.02 * np.exp(-((x - 0.5) ** 2)) * np.exp(-((y + 0.4) ** 2) / 0.5)
    sky: Image = detector.sky * (1.0 + 0.012 * x - 0.010 * y + stray)
    return sky


def _make_stripes(detector: _Detector, rng: Random) -> Image:
    """Make the 1/f pattern of an exposure (y, x) in MJy/sr, around 0."""
    common = detector.common_stripes * _one_over_f(rng)
    amplifiers = [common + detector.amplifier_stripes * _one_over_f(rng) for _ in range(AMPLIFIERS)]
    # Neighbouring amplifiers read towards each other.
    mirrored = [stream if i % 2 == 0 else stream[:, ::-1] for i, stream in enumerate(amplifiers)]
    pattern = np.hstack(mirrored).astype(np.float32)
    # SLOWAXIS -2: the last row is read first.
    return np.repeat(pattern[::-1], STRIPE_SAMPLE, axis=1)


def _one_over_f(rng: Random) -> Values:
    """One amplifier's 1/f stream as it fell on its pixels (y, sample along x), with an rms of 1 over the row means.

    Source: power falls as 1/frequency from one cycle per frame to the pixel clock (Schlawin et al. 2020, AJ 160, 231,
    describe NIRCam's).
    """
    clocks = AMPLIFIER_WIDTH + IDLE_CLOCKS
    spectrum = np.fft.rfft(rng.standard_normal(SIZE * clocks))
    spectrum[0] = 0.0
    spectrum[1:] /= np.sqrt(np.arange(1, spectrum.size))
    rows = np.fft.irfft(spectrum, SIZE * clocks).reshape(SIZE, clocks)[:, :AMPLIFIER_WIDTH]
    samples = rows.reshape(SIZE, -1, STRIPE_SAMPLE).mean(axis=2)
    scaled: Values = (samples - samples.mean()) / samples.mean(axis=1).std()
    return scaled


def _detector_flags(rng: Random) -> NDArray[np.uint32]:
    """Flag what stays with a detector: hot, dead and insensitive pixels, and the reference pixels around the edge."""
    draw = rng.random((SIZE, SIZE), dtype=np.float32)
    flags = np.zeros((SIZE, SIZE), np.uint32)
    flags[draw < 0.003] = DO_NOT_USE | HOT
    flags[(draw > 0.003) & (draw < 0.0035)] = DO_NOT_USE | DEAD
    flags[(draw > 0.0035) & (draw < 0.005)] = DO_NOT_USE | LOW_QE
    border = np.ones((SIZE, SIZE), bool)
    border[BORDER:-BORDER, BORDER:-BORDER] = False
    flags[border] = DO_NOT_USE | REFERENCE_PIXEL
    return flags


def _exposure_flags(detector: _Detector, scene: Image, rng: Random) -> NDArray[np.uint32]:
    """Flag what one exposure adds: cosmic rays that were found and stay usable, and saturated cores of stars."""
    hit = rng.random((SIZE, SIZE), dtype=np.float32) < 0.004
    hit[1:] |= hit[:-1]
    hit[:, 1:] |= hit[:, :-1]
    saturated = scene > detector.saturation
    return hit * np.uint32(JUMP_DET) | saturated * np.uint32(SATURATED | DO_NOT_USE)


def _make_planes(
    detector: _Detector, scene: Image, stripes: Image, dq: NDArray[np.uint32], rng: Random
) -> dict[str, NDArray[Any]]:
    """Make the images of a `_cal`, in the order of its extensions; NaN where DQ says DO_NOT_USE."""
    poisson = scene * np.float32(detector.photmjsr / detector.gain / EXPOSURE_TIME)
    read_noise = np.full_like(scene, (detector.read_noise * detector.photmjsr) ** 2)
    noise = rng.standard_normal(scene.shape, dtype=np.float32) * np.sqrt(poisson + read_noise)
    flat = (np.float32(0.002) * scene) ** 2
    planes: dict[str, NDArray[Any]] = {
        "SCI": scene + stripes + noise, "ERR": np.sqrt(poisson + read_noise + flat), "DQ": dq,
        "AREA": _area(detector), "VAR_POISSON": poisson, "VAR_RNOISE": read_noise, "VAR_FLAT": flat,
    }  # fmt: skip
    unusable = (dq & DO_NOT_USE).astype(bool)
    for name in planes.keys() - {"DQ", "AREA"}:
        planes[name][unusable] = np.nan
    return planes


def _area(detector: _Detector) -> Image:
    """Pixel area relative to the nominal one: the first-order change of the distortion's determinant."""
    sip = detector.sip
    offset = np.arange(SIZE, dtype=np.float32) - np.float32((SIZE - 1) / 2)
    along_x = (2 * sip["A_2_0"] + sip["B_1_1"]) * offset
    along_y = (sip["A_1_1"] + 2 * sip["B_0_2"]) * offset
    return (1.0 + along_x[None, :] + along_y[:, None]).astype(np.float32)


def _write_cal(path: Path, visit: _Visit, planes: Mapping[str, NDArray[Any]], wcs_header: fits.Header) -> None:
    hdus = [fits.PrimaryHDU(header=_primary_header(visit))]
    hdus += [fits.ImageHDU(plane, name=name, ver=1) for name, plane in planes.items()]
    by_name = dict(zip(planes, hdus[1:], strict=True))
    by_name["SCI"].header.extend(_sci_cards(visit, WCS(wcs_header)), end=True)
    by_name["SCI"].header.extend(wcs_header, end=True)
    by_name["ERR"].header["BUNIT"] = ("MJy/sr", "Unit of the image")
    metadata = np.frombuffer(_asdf(visit, planes).encode("ascii"), np.uint8)
    column = fits.Column(name="ASDF_METADATA", format=f"{metadata.size}B", array=metadata[None, :])
    hdus.append(fits.BinTableHDU.from_columns([column], name="ASDF"))
    fits.HDUList(hdus).writeto(path, overwrite=True)


def _primary_header(visit: _Visit) -> fits.Header:
    detector, start = visit.detector, visit.start
    end = start + timedelta(seconds=EXPOSURE_TIME)
    activity = visit.stem.split("_")[1]
    header = fits.Header([
        ("DATE", "2023-01-02T06:00:00.000", "When the file was made"),
        ("ORIGIN", "skylevel", "Simulated: no observation"),
        ("TIMESYS", "UTC", "Time system of the dates"),
        ("TIMEUNIT", "s", "Unit of the times"),
        ("FILENAME", f"{visit.stem}.fits", "Name of the file"),
        ("CAL_VER", "1.13.4", "Pipeline version whose layout this file follows"),
        ("DATAMODL", "ImageModel", "Data model"),
        ("TELESCOP", "JWST", "Telescope"),
        ("TITLE", "Synthetic program with known 1/f stripes, written by skylevel demo: all pixels are simulated"),
        ("PI_NAME", "Nobody", "Principal investigator"),
        ("CATEGORY", "CAL", "Program category"),
        ("DATE-OBS", f"{start:%Y-%m-%d}", "UTC date of the exposure's start"),
        ("TIME-OBS", f"{start:%H:%M:%S}.000", "UTC time of the exposure's start"),
        ("DATE-BEG", f"{start:%Y-%m-%dT%H:%M:%S}.000", "Start of the exposure"),
        ("DATE-END", f"{end:%Y-%m-%dT%H:%M:%S.%f}"[:-3], "End of the exposure"),
        ("OBS_ID", f"V99999001001P00000000{activity}", "Observation identifier"),
        ("VISIT_ID", "99999001001", "Visit identifier"),
        ("PROGRAM", "99999", "Program number"),
        ("OBSERVTN", "001", "Observation number"),
        ("VISIT", "001", "Visit number"),
        ("VISITGRP", activity[:2], "Visit group"),
        ("SEQ_ID", activity[2:3], "Parallel sequence"),
        ("ACT_ID", activity[3:], "Activity"),
        ("EXPOSURE", str(visit.number), "Exposure number"),
        ("TEMPLATE", "NIRCam Imaging", "Observation template"),
        ("TARGPROP", "SYNTHETIC-FIELD", "Name of the target in the proposal"),
        ("TARG_RA", FIELD_CENTRE[0], "[deg] Right ascension of the target"),
        ("TARG_DEC", FIELD_CENTRE[1], "[deg] Declination of the target"),
        *_instrument_cards(detector),
        *_exposure_cards(visit),
    ])  # fmt: skip
    header.add_history("Simulated exposure: sky, stars, galaxies, 1/f stripes and noise.")
    header.add_history("What was injected stands in truth/, under the same name.")
    return header


def _instrument_cards(detector: _Detector) -> list[tuple[str, Any, str]]:
    return [
        ("INSTRUME", "NIRCAM", "Instrument"),
        ("DETECTOR", detector.name, "Detector"),
        ("MODULE", "B", "NIRCam module"),
        ("CHANNEL", detector.channel, "NIRCam channel"),
        ("FILTER", detector.filter, "Filter"),
        ("PUPIL", "CLEAR", "Pupil element"),
        ("SUBARRAY", "FULL", "Subarray"),
        ("SUBSTRT1", 1, "First pixel along axis 1"),
        ("SUBSTRT2", 1, "First pixel along axis 2"),
        ("SUBSIZE1", SIZE, "Pixels along axis 1"),
        ("SUBSIZE2", SIZE, "Pixels along axis 2"),
        ("FASTAXIS", 1, "Direction of fast readout"),
        ("SLOWAXIS", -2, "Direction of slow readout"),
        ("APERNAME", f"{detector.name}_FULL", "Aperture"),
        ("CRDS_VER", "11.17.19", "Version of the reference file selection"),
        ("CRDS_CTX", "jwst_1210.pmap", "Reference file context"),
        *((f"R_{short}", f"crds://jwst_nircam_{name}_0000.fits", "Reference file (made up)")
          for short, name in (("AREA", "area"), ("DARK", "dark"), ("FLAT", "flat"), ("GAIN", "gain"),
                              ("LINEAR", "linearity"), ("MASK", "mask"), ("PHOTOM", "photom"),
                              ("READNO", "readnoise"), ("SATURA", "saturation"), ("SUPERB", "superbias"))),
    ]  # fmt: skip


def _exposure_cards(visit: _Visit) -> list[tuple[str, Any, str]]:
    steps = ("WCS", "DARK", "DQINIT", "FLAT", "JUMP", "LINEAR", "PHOTOM", "RAMP", "REFPIX", "SATURA", "SUPERB")
    return [
        ("EXP_TYPE", "NRC_IMAGE", "Type of the exposure"),
        ("EXPCOUNT", visit.number, "Running number in the visit"),
        ("EXPSTART", _mjd(visit, 0.0), "[d] MJD of the start"),
        ("EXPMID", _mjd(visit, 0.5), "[d] MJD of the middle"),
        ("EXPEND", _mjd(visit, 1.0), "[d] MJD of the end"),
        ("READPATT", "MEDIUM8", "Readout pattern"),
        ("NOUTPUTS", AMPLIFIERS, "Amplifiers used"),
        ("NINTS", 1, "Integrations"),
        ("NGROUPS", 4, "Groups per integration"),
        ("NFRAMES", 8, "Frames per group"),
        ("GROUPGAP", 2, "Frames dropped between groups"),
        ("TSAMPLE", 10.0, "[us] Time per pixel"),
        ("TFRAME", GROUP_TIME / 10, "[s] Time per frame"),
        ("TGROUP", GROUP_TIME, "[s] Time per group"),
        ("EFFINTTM", EXPOSURE_TIME, "[s] Effective integration time"),
        ("EFFEXPTM", EXPOSURE_TIME, "[s] Effective exposure time"),
        ("DURATION", EXPOSURE_TIME, "[s] Duration of the exposure"),
        ("NUMDTHPT", 2 if visit.detector is _NRCB1 else 1, "Points of the dither pattern"),
        ("PATT_NUM", visit.number, "Number in the dither pattern"),
        ("XOFFSET", visit.dither[0], "[arcsec] Dither along x"),
        ("YOFFSET", visit.dither[1], "[arcsec] Dither along y"),
        *((f"S_{step}", "COMPLETE", "Calibration step") for step in steps),
    ]  # fmt: skip


def _mjd(visit: _Visit, fraction: float) -> float:
    """Convert to a modified Julian date (UTC), after a fraction of the exposure."""
    return float(Time(visit.start + timedelta(seconds=fraction * EXPOSURE_TIME), scale="utc").mjd)


def _sci_cards(visit: _Visit, wcs: WCS) -> list[tuple[str, Any, str]]:
    detector = visit.detector
    area = detector.pixel_scale**2
    steradian = area * math.radians(1 / 3600) ** 2
    v2, v3 = detector.reference_v2v3
    corners = " ".join(f"{value:.9f}" for value in wcs.calc_footprint(axes=(SIZE, SIZE)).ravel())
    return [
        ("MJD-BEG", _mjd(visit, 0.0), "[d] MJD of the start"),
        ("MJD-AVG", _mjd(visit, 0.5), "[d] MJD of the middle"),
        ("MJD-END", _mjd(visit, 1.0), "[d] MJD of the end"),
        ("XPOSURE", EXPOSURE_TIME, "[s] Effective exposure time"),
        ("TELAPSE", EXPOSURE_TIME, "[s] Elapsed exposure time"),
        ("OBSGEO-X", -293160760.0, "[m] Geocentric position of the telescope"),
        ("OBSGEO-Y", 1647897254.0, "[m] Geocentric position of the telescope"),
        ("OBSGEO-Z", 238502468.0, "[m] Geocentric position of the telescope"),
        ("VA_SCALE", 1.00008, "Velocity aberration"),
        ("BUNIT", "MJy/sr", "Unit of the image"),
        ("PHOTMJSR", detector.photmjsr, "MJy/sr for 1 DN/s"),
        ("PHOTUJA2", detector.photmjsr * 1e12 * math.radians(1 / 3600) ** 2, "uJy/arcsec2 for 1 DN/s"),
        ("PIXAR_SR", steradian, "[sr] Nominal area of a pixel"),
        ("PIXAR_A2", area, "[arcsec2] Nominal area of a pixel"),
        ("S_REGION", f"POLYGON ICRS  {corners}", "Footprint"),
        ("V2_REF", v2, "[arcsec] Reference point along V2"),
        ("V3_REF", v3, "[arcsec] Reference point along V3"),
        ("VPARITY", -1, "Sense of rotation"),
        ("V3I_YANG", 0.0, "[deg] From V3 to the aperture's y axis"),
        ("ROLL_REF", 360.0 - POSITION_ANGLE, "[deg] Roll at the reference point"),
    ]  # fmt: skip


def _asdf(visit: _Visit, planes: Mapping[str, NDArray[Any]]) -> str:
    """Write the file's data model as a small ASDF document, whose arrays point at the FITS extensions."""
    arrays = "".join(
        f"{'data' if name == 'SCI' else name.lower()}: !core/ndarray-1.0.0\n"
        f"  source: 'fits:{name},1'\n  datatype: {plane.dtype.name}\n  byteorder: big\n  shape: [{SIZE}, {SIZE}]\n"
        for name, plane in planes.items()
    )
    detector = visit.detector
    return (
        "#ASDF 1.0.0\n#ASDF_STANDARD 1.5.0\n%YAML 1.1\n%TAG ! tag:stsci.edu:asdf/\n--- !core/asdf-1.1.0\n"
        "asdf_library: !core/software-1.0.0 {name: skylevel, version: demo}\n"
        f"{arrays}"
        "meta:\n"
        "  bunit_data: MJy/sr\n  bunit_err: MJy/sr\n"
        f"  filename: {visit.stem}.fits\n"
        f"  instrument: {{channel: {detector.channel}, detector: {detector.name}, filter: {detector.filter}, "
        "module: B, name: NIRCAM, pupil: CLEAR}\n"
        "  model_type: ImageModel\n  telescope: JWST\n"
        "...\n"
    )


# ---- camera raw frames


def _write_night(folder: Path, night: _Night, *, seed: int, index: int) -> Path:
    rng = _random(seed, 4, index)
    sky = _night_sky(night)
    stars = _draw_stars(night, _random(seed, 3))
    electrons = rng.poisson((sky + stars) * np.float32(RAW_GAIN))
    noise = rng.standard_normal(RAW_SHAPE, dtype=np.float32) * np.float32(RAW_READ_NOISE)
    counts = electrons / np.float32(RAW_GAIN) + noise + BLACK_LEVEL
    path = folder / f"{night.stem}.dng"
    _write_dng(path, np.clip(np.rint(counts), 0, WHITE_LEVEL).astype(np.uint16), night.start)
    _write_truth(folder, night.stem, {"sky": sky + np.float32(BLACK_LEVEL)})
    return path


def _raw_axes() -> tuple[Image, Image]:
    """Distance of each row (y, 1) and column (1, x) from the centre, in half frame heights; y grows downwards."""
    height, width = RAW_SHAPE
    y = (np.arange(height, dtype=np.float32)[:, None] - height / 2) / (height / 2)
    x = (np.arange(width, dtype=np.float32)[None, :] - width / 2) / (height / 2)
    return y.astype(np.float32), x.astype(np.float32)


def _vignetting(y: Image, x: Image) -> Image:
    """Light lost towards the corners of a fast lens, as cos**4 of the angle from its axis."""
    return ((1.0 + 0.09 * (x**2 + y**2)) ** -2).astype(np.float32)


def _night_sky(night: _Night) -> Image:
    """Make the sky above the black level in ADU, colour by colour: airglow, a slope, a light dome over the horizon."""
    y, x = _raw_axes()
    sky = np.empty(RAW_SHAPE, np.float32)
    for colour, i, j in RAW_PLANES:
        v, u = y[i::2], x[:, j::2]
        dome = DOME[colour] * np.exp((v - 1.0) / 0.7) * np.exp(-((u - night.dome_centre) ** 2) / 2.2)
        slope = 0.05 * u - 0.04 * v if colour != "B" else 0.03 * u + 0.02 * v
        level = np.float32(RAW_SKY[colour] * night.brightness)
        sky[i::2, j::2] = level * (1.0 + slope + dome) * _vignetting(v, u)
    return _rounded(sky, RAW_STEP)


def _draw_stars(night: _Night, rng: Random) -> Image:
    """Stars in ADU as each pixel's colour sees them; the same stars in every frame, shifted by its drift."""
    height, width = RAW_SHAPE
    flux = np.minimum(500.0 * (1.0 - rng.random(N_RAW_STARS)) ** (-1.0 / 0.95), 2e6)
    x = rng.uniform(-60, width + 60, N_RAW_STARS) + night.drift[0]
    y = rng.uniform(-60, height + 60, N_RAW_STARS) + night.drift[1]
    redness = rng.uniform(-0.4, 0.5, N_RAW_STARS)
    light, red_light = np.zeros(RAW_SHAPE, np.float32), np.zeros(RAW_SHAPE, np.float32)
    for k in range(N_RAW_STARS):
        _add_star(light, x[k], y[k], flux[k], core=1.9, faintest=0.5)
        _add_star(red_light, x[k], y[k], flux[k] * (1.0 + redness[k]), core=1.9, faintest=0.5)
    light[0::2, 0::2] = 0.75 * red_light[0::2, 0::2]
    # As a star's red grows its blue falls.
    light[1::2, 1::2] = 0.8 * (2.0 * light[1::2, 1::2] - red_light[1::2, 1::2])
    return light * _vignetting(*_raw_axes())


def _write_dng(path: Path, mosaic: NDArray[np.uint16], start: datetime) -> None:
    """Write an RGGB mosaic as an uncompressed DNG 1.4: header, image directory, EXIF directory, pixels."""
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


# ---- truth and what was made of it


def _truth_path(folder: Path, stem: str) -> Path:
    return folder / "truth" / f"{stem}.npz"


def _write_truth(folder: Path, stem: str, arrays: Mapping[str, Image]) -> None:
    """Write arrays as `numpy.savez_compressed` would, but at zlib's fastest level."""
    with zipfile.ZipFile(_truth_path(folder, stem), "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
        for name, array in arrays.items():
            with archive.open(f"{name}.npy", "w", force_zip64=True) as member:
                np.lib.format.write_array(member, array)


def _read_truth(folder: Path, stem: str) -> dict[str, Image]:
    path = _truth_path(folder, stem)
    try:
        with np.load(path) as archive:
            return dict(archive)
    except (OSError, ValueError, zipfile.BadZipFile) as error:
        raise UnreadableFrameError(f"{path}: cannot read the demo's truth ({error}); write the demo anew") from error


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


def _measure_stripes(folder: Path, output: Path, stem: str) -> DemoResult:
    truth = _read_truth(folder, stem)
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
    sky = _read_truth(folder, stem)["sky"].astype(np.float64)
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
