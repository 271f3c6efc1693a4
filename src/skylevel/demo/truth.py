"""The truth kept beside the files: what was put into each exposure and raw frame, to be compared with later."""

import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from skylevel.demo.drawing import Image
from skylevel.errors import UnreadableFrameError

# Truth is rounded before it is used, so that it stays exact and compresses well; both steps are far below the noise.
SCENE_STEP = 2.0**-13
RAW_STEP = 2.0**-2


def rounded(image: NDArray[Any], step: float) -> Image:
    """Round to multiples of `step`.

    Parameters
    ----------
    image : ndarray (y, x) of any float
        Not modified.
    step : float
        A power of two, in the units of `image`, so that the multiples are exact.

    Returns
    -------
    ndarray (y, x) float32
    """
    return (np.rint(image / step) * step).astype(np.float32)


def write_truth(folder: Path, stem: str, arrays: Mapping[str, Image]) -> None:
    """Write arrays as `numpy.savez_compressed` would, but at zlib's fastest level.

    Parameters
    ----------
    folder : Path
        The program's; its ``truth`` is there already.
    stem : str
        File name without suffix of the exposure or raw frame.
    arrays : mapping of str to ndarray float32
        What `skylevel.demo.write_program` lists, by name.
    """
    with zipfile.ZipFile(_truth_path(folder, stem), "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
        for name, array in arrays.items():
            with archive.open(f"{name}.npy", "w", force_zip64=True) as member:
                np.lib.format.write_array(member, array)


def read_truth(folder: Path, stem: str) -> dict[str, Image]:
    """Read what `write_truth` wrote.

    Parameters
    ----------
    folder : Path
        The program's.
    stem : str
        File name without suffix of the exposure or raw frame.

    Returns
    -------
    dict of str to ndarray float32

    Raises
    ------
    UnreadableFrameError
        The file is missing or damaged.
    """
    path = _truth_path(folder, stem)
    try:
        with np.load(path) as archive:
            return dict(archive)
    except (OSError, ValueError, zipfile.BadZipFile) as error:
        raise UnreadableFrameError(f"{path}: cannot read the demo's truth ({error}); write the demo anew") from error


def _truth_path(folder: Path, stem: str) -> Path:
    return folder / "truth" / f"{stem}.npz"
