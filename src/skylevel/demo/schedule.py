"""What the program observes: the exposures, with the detectors that take them, and the camera raw frames.

The tuples are read as ``schedule.VISITS`` and ``schedule.NIGHTS`` and not imported by name: then what writes the
program and what measures it agree on its length, also where a test shortens it.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

# Pixels of NIRCam's full frame along either axis.
SIZE = 2048

FIRST_EXPOSURE = datetime(2023, 1, 1, 22, 5, 29, tzinfo=UTC)
FIRST_RAW = datetime(2023, 9, 14, 23, 40, 0, tzinfo=UTC)


@dataclass(frozen=True, slots=True, kw_only=True)
class Detector:
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


NRCB1 = Detector(
    name="NRCB1", number=486, channel="SHORT", filter="F200W", pixel_scale=0.0307, offset=(32.8, 33.7),
    reference_v2v3=(-122.38, -457.73),
    sip={"A_2_0": 1.3e-7, "A_1_1": -5.3e-6, "A_0_2": 1.2e-6, "B_2_0": 2.8e-6, "B_1_1": -1.1e-6, "B_0_2": -2.5e-6},
    photmjsr=2.02, sky=0.25, gain=2.1, read_noise=0.007, common_stripes=0.010, amplifier_stripes=0.004,
    psf_core=1.85, saturation=150.0,
)  # fmt: skip
NRCBLONG = Detector(
    name="NRCBLONG", number=490, channel="LONG", filter="F277W", pixel_scale=0.0629, offset=(0.0, 0.0),
    reference_v2v3=(-89.39, -491.44),
    sip={"A_2_0": -2.1e-6, "A_1_1": -8.9e-6, "A_0_2": 1.9e-6, "B_2_0": 5.4e-6, "B_1_1": -4.2e-6, "B_0_2": -3.6e-6},
    photmjsr=0.41, sky=0.14, gain=1.8, read_noise=0.009, common_stripes=0.0040, amplifier_stripes=0.0016,
    psf_core=1.35, saturation=60.0,
)  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class Visit:
    """One exposure of the program: which detector, how far the telescope was moved, when it began."""

    stem: str
    detector: Detector
    number: int
    dither: tuple[float, float]  # arcsec along x and y
    start: datetime


VISITS = (
    Visit(stem="jw99999001001_02101_00001_nrcb1_cal", detector=NRCB1, number=1, dither=(0.0, 0.0),
          start=FIRST_EXPOSURE),
    Visit(stem="jw99999001001_02101_00002_nrcb1_cal", detector=NRCB1, number=2, dither=(5.83, -3.15),
          start=FIRST_EXPOSURE + timedelta(minutes=9)),
    Visit(stem="jw99999001001_04101_00001_nrcblong_cal", detector=NRCBLONG, number=1, dither=(0.0, 0.0),
          start=FIRST_EXPOSURE + timedelta(minutes=19)),
)  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class Night:
    """One camera raw frame: how far the stars have drifted, and where the glow over the horizon stands."""

    stem: str
    drift: tuple[float, float]  # pixel along x and y
    dome_centre: float  # half frame heights from the centre, along x
    brightness: float  # factor on the sky
    start: datetime


NIGHTS = (
    Night(stem="night_0001", drift=(0.0, 0.0), dome_centre=0.55, brightness=1.0, start=FIRST_RAW),
    Night(stem="night_0002", drift=(41.3, 17.8), dome_centre=-0.35, brightness=1.12,
          start=FIRST_RAW + timedelta(minutes=12)),
)  # fmt: skip
