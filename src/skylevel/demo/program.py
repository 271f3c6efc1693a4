"""Writes the program: every exposure and raw frame of the schedule, and its truth."""

from pathlib import Path

from skylevel.demo import schedule
from skylevel.demo.drawing import random_stream
from skylevel.demo.field import make_sources
from skylevel.demo.night import write_night
from skylevel.demo.nircam import write_exposure


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
    sources = make_sources(random_stream(seed, 0))
    exposures = [write_exposure(folder, visit, sources, seed=seed, index=i) for i, visit in enumerate(schedule.VISITS)]
    frames = [write_night(folder, night, seed=seed, index=i) for i, night in enumerate(schedule.NIGHTS)]
    return exposures + frames
