"""NIRCam exposures: sky, 1/f stripes, flags and noise, and the ``_cal`` files that hold them."""

import math
from collections.abc import Mapping
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
from astropy.io import fits
from astropy.time import Time
from astropy.wcs import WCS
from numpy.typing import NDArray

from skylevel.demo.drawing import Image, Random, Values, random_stream
from skylevel.demo.field import FIELD_CENTRE, POSITION_ANGLE, Sources, draw_scene, make_wcs_header
from skylevel.demo.schedule import NRCB1, SIZE, Detector, Visit
from skylevel.demo.truth import write_truth

# How the full frame is read: four amplifiers side by side, a few idle clocks after each of their rows.
AMPLIFIERS = 4
AMPLIFIER_WIDTH = SIZE // AMPLIFIERS
IDLE_CLOCKS = 12
BORDER = 4
# Pixels that share one value of the injected 1/f stream: what is faster is far below the white noise.
STRIPE_SAMPLE = 32
GROUP_TIME = 107.36767  # s
EXPOSURE_TIME = 418.734  # s

DO_NOT_USE, SATURATED, JUMP_DET, DEAD, HOT, LOW_QE, REFERENCE_PIXEL = (1 << bit for bit in (0, 1, 2, 10, 11, 13, 31))


def write_exposure(folder: Path, visit: Visit, sources: Sources, *, seed: int, index: int) -> Path:
    """Simulate an exposure and write its ``_cal`` file and its truth.

    Parameters
    ----------
    folder : Path
        The program's.
    visit : Visit
    sources : Sources
        The field's, the same for every exposure.
    seed : int
        The program's.
    index : int
        The exposure's place in the program. Noise, stripes and cosmic rays follow from it and the seed; bad pixels
        from the detector and the seed.

    Returns
    -------
    Path
        Of the exposure.

    Notes
    -----
    `skylevel.demo.write_program` says what noise and stripes are, and what the truth holds.
    """
    rng = random_stream(seed, 1, index)
    wcs_header = make_wcs_header(visit)
    wcs = WCS(wcs_header)
    sky = _make_sky(visit.detector)
    scene = draw_scene(visit, wcs, sources, sky)
    stripes = _make_stripes(visit.detector, rng)
    dq = _detector_flags(random_stream(seed, 2, visit.detector.number)) | _exposure_flags(visit.detector, scene, rng)
    planes = _make_planes(visit.detector, scene, stripes, dq, rng)
    path = folder / f"{visit.stem}.fits"
    _write_cal(path, visit, planes, wcs_header)
    sky_rows = np.median(sky, axis=1).astype(np.float32)
    write_truth(folder, visit.stem, {"stripes": stripes, "scene": scene, "sky_rows": sky_rows})
    return path


def _make_sky(detector: Detector) -> Image:
    """Zodiacal light with a gentle slope and a little stray light, in MJy/sr."""
    y = np.linspace(-1.0, 1.0, SIZE, dtype=np.float32)[:, None]
    x = np.linspace(-1.0, 1.0, SIZE, dtype=np.float32)[None, :]
    stray = 0.02 * np.exp(-((x - 0.5) ** 2)) * np.exp(-((y + 0.4) ** 2) / 0.5)
    return np.asarray(detector.sky * (1.0 + 0.012 * x - 0.010 * y + stray), np.float32)


def _make_stripes(detector: Detector, rng: Random) -> Image:
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


def _exposure_flags(detector: Detector, scene: Image, rng: Random) -> NDArray[np.uint32]:
    """Flag what one exposure adds: cosmic rays that were found and stay usable, and saturated cores of stars."""
    hit = rng.random((SIZE, SIZE), dtype=np.float32) < 0.004
    hit[1:] |= hit[:-1]
    hit[:, 1:] |= hit[:, :-1]
    saturated = scene > detector.saturation
    return hit * np.uint32(JUMP_DET) | saturated * np.uint32(SATURATED | DO_NOT_USE)


def _make_planes(
    detector: Detector, scene: Image, stripes: Image, dq: NDArray[np.uint32], rng: Random
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


def _area(detector: Detector) -> Image:
    """Pixel area relative to the nominal one: the first-order change of the distortion's determinant."""
    sip = detector.sip
    offset = np.arange(SIZE, dtype=np.float32) - np.float32((SIZE - 1) / 2)
    along_x = (2 * sip["A_2_0"] + sip["B_1_1"]) * offset
    along_y = (sip["A_1_1"] + 2 * sip["B_0_2"]) * offset
    return (1.0 + along_x[None, :] + along_y[:, None]).astype(np.float32)


def _write_cal(path: Path, visit: Visit, planes: Mapping[str, NDArray[Any]], wcs_header: fits.Header) -> None:
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


def _primary_header(visit: Visit) -> fits.Header:
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


def _instrument_cards(detector: Detector) -> list[tuple[str, Any, str]]:
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


def _exposure_cards(visit: Visit) -> list[tuple[str, Any, str]]:
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
        ("NUMDTHPT", 2 if visit.detector is NRCB1 else 1, "Points of the dither pattern"),
        ("PATT_NUM", visit.number, "Number in the dither pattern"),
        ("XOFFSET", visit.dither[0], "[arcsec] Dither along x"),
        ("YOFFSET", visit.dither[1], "[arcsec] Dither along y"),
        *((f"S_{step}", "COMPLETE", "Calibration step") for step in steps),
    ]  # fmt: skip


def _mjd(visit: Visit, fraction: float) -> float:
    """Convert to a modified Julian date (UTC), after a fraction of the exposure."""
    return float(Time(visit.start + timedelta(seconds=fraction * EXPOSURE_TIME), scale="utc").mjd)


def _sci_cards(visit: Visit, wcs: WCS) -> list[tuple[str, Any, str]]:
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


def _asdf(visit: Visit, planes: Mapping[str, NDArray[Any]]) -> str:
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
