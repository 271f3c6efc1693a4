"""The JWST pipeline's clean_flicker_noise on one image, without its reference files; needs the package jwst.

``pipeline.py FOLDER`` cleans FOLDER/image.npy, whose bad.npy says which pixels are flagged, by every method; each is
written beside it under its name, and their CPU seconds are printed as JSON.
"""

import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
from jwst.clean_flicker_noise.background_level import background_level, clip_to_background
from jwst.clean_flicker_noise.clean_flicker_noise import create_mask, fft_clean_full_frame, median_clean

N_SIGMA = 2.0
# What is fitted, by rows or by rows of each amplifier, beside which background: the step's defaults come first.
METHODS = {
    "median, rows": ("median", False, "median"),
    "median, amplifiers, background model": ("median", True, "model"),
    "fft": ("fft", False, "median"),
}


def _cleaned(image: np.ndarray, flags: np.ndarray, fit: str, by_channel: bool, background: str) -> np.ndarray:
    """The step's own sequence for one rate image."""
    # A flagged pixel that holds a value would count.
    image = np.where(flags, np.nan, image)
    meta = SimpleNamespace(exposure=SimpleNamespace(type="NRC_IMAGE"))
    mask = create_mask(SimpleNamespace(meta=meta, data=image, dq=flags.astype(np.uint32)), n_sigma=N_SIGMA)
    known = np.nan_to_num(image, nan=0.0)
    box = (32, 32) if background == "model" else None
    level = background_level(known, mask, background_method=background, background_box_size=box)
    known -= level
    clip_to_background(known, mask, sigma_lower=N_SIGMA, sigma_upper=N_SIGMA, lower_half_only=True)
    if fit == "fft":
        # It cleans along columns, as NIRSpec reads them, and turns them for NRS2.
        cleaned = fft_clean_full_frame(np.ascontiguousarray(known.T), mask.T, "NRS1").T
    else:
        cleaned = median_clean(known, mask, 2, fit_by_channel=by_channel)
    return cleaned + level


def clean(path: str, fit: str) -> Callable[[], Any]:
    """One rate image with the defaults of the step's parameters; `fit`: "median" or "fft"."""
    image = np.load(path)
    flags = np.zeros(image.shape, bool)
    return lambda: np.where(np.isnan(image), image, _cleaned(image, flags, fit, False, "median"))


def main(folder: str) -> None:
    image, flags = (np.load(Path(folder, f"{name}.npy")) for name in ("image", "bad"))
    seconds = {}
    for name, settings in METHODS.items():
        start = time.process_time()
        cleaned = _cleaned(image, flags, *settings)
        seconds[name] = time.process_time() - start
        np.save(Path(folder, f"{name}.npy"), np.where(np.isnan(image), image, cleaned).astype(np.float32))
    print(json.dumps(seconds))


if __name__ == "__main__":
    main(*sys.argv[1:])
