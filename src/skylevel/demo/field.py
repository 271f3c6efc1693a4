"""The field that NIRCam looks at: its stars and galaxies, and where they fall on a detector."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from astropy.io import fits
from astropy.wcs import WCS

from skylevel.demo.drawing import Image, Random, Values, add_galaxy, add_star
from skylevel.demo.schedule import SIZE, Visit
from skylevel.demo.truth import SCENE_STEP, rounded

FIELD_CENTRE = (150.1163, 2.2058)  # deg, right ascension and declination
FIELD_RADIUS = 85.0  # arcsec
POSITION_ANGLE = 67.6  # deg
N_STARS, N_GALAXIES = 700, 5200


@dataclass(frozen=True, slots=True, kw_only=True)
class Sources:
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


def make_sources(rng: Random) -> Sources:
    """Draw stars with a power law of fluxes and exponential galaxies, evenly over a square around the field's centre.

    Parameters
    ----------
    rng : numpy.random.Generator

    Returns
    -------
    Sources
        The stars first.
    """
    n = N_STARS + N_GALAXIES
    star = np.arange(n) < N_STARS
    star_flux = 5e-4 * (1.0 - 0.99999 * rng.random(n)) ** (-1.0 / 0.75)
    return Sources(
        east=rng.uniform(-FIELD_RADIUS, FIELD_RADIUS, n) * math.sqrt(2.0),
        north=rng.uniform(-FIELD_RADIUS, FIELD_RADIUS, n) * math.sqrt(2.0),
        flux=np.where(star, star_flux, 10.0 ** rng.normal(-2.5, 0.6, n)),
        colour=np.where(star, rng.uniform(0.5, 0.9, n), rng.uniform(0.7, 1.6, n)),
        radius=np.where(star, 0.0, 10.0 ** rng.normal(-0.85, 0.24, n)),
        axis_ratio=rng.uniform(0.3, 1.0, n),
        angle=rng.uniform(0.0, math.pi, n),
    )


def make_wcs_header(visit: Visit) -> fits.Header:
    """Make the TAN-SIP cards of an exposure.

    Parameters
    ----------
    visit : Visit
        Its detector gives scale and distortion, its dither the place on the sky.

    Returns
    -------
    fits.Header
        World coordinates alone, in degrees.
    """
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


def draw_scene(visit: Visit, wcs: WCS, sources: Sources, sky: Image) -> Image:
    """Draw an exposure's sky and sources without noise, as they are kept for its truth.

    Parameters
    ----------
    visit : Visit
    wcs : WCS
        Of the exposure (see `make_wcs_header`).
    sources : Sources
    sky : ndarray (y, x) float32
        In MJy/sr; not modified.

    Returns
    -------
    ndarray (y, x) float32
        In MJy/sr, in multiples of `skylevel.demo.truth.SCENE_STEP`.
    """
    detector = visit.detector
    ra, dec = _sky_coordinates(sources.east, sources.north)
    x, y = wcs.all_world2pix(ra, dec, 0, quiet=True)
    colour = np.where(detector.filter == "F277W", sources.colour, 1.0)
    flux = sources.flux * colour / detector.pixel_scale**2
    scene = sky.copy()
    for i in np.flatnonzero((x > -150) & (x < SIZE + 150) & (y > -150) & (y < SIZE + 150)):
        if sources.radius[i] == 0.0:
            add_star(scene, x[i], y[i], flux[i], core=detector.psf_core, faintest=detector.sky / 5000)
        else:
            radius = math.hypot(sources.radius[i] / detector.pixel_scale, 0.5 * detector.psf_core)
            shape = (radius, sources.axis_ratio[i], sources.angle[i])
            add_galaxy(scene, x[i], y[i], flux[i], shape=shape, faintest=detector.sky / 5000)
    return rounded(scene, SCENE_STEP)


def _sky_coordinates(east: Values | float, north: Values | float) -> tuple[Any, Any]:
    """Right ascension and declination in degrees of offsets in arcsec from the field's centre."""
    ra, dec = FIELD_CENTRE
    return ra + east / 3600.0 / math.cos(math.radians(dec)), dec + north / 3600.0


def _rotation() -> Values:
    """Matrix from (x, y) to (east, north) for NIRCam's parity: east is to the left when north is up."""
    cosine, sine = math.cos(math.radians(POSITION_ANGLE)), math.sin(math.radians(POSITION_ANGLE))
    return np.array([[-cosine, -sine], [-sine, cosine]])
