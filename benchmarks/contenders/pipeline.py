"""The JWST pipeline's clean_flicker_noise on one image, without its reference files; needs the package jwst."""

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
from jwst.clean_flicker_noise.background_level import background_level, clip_to_background
from jwst.clean_flicker_noise.clean_flicker_noise import create_mask, fft_clean_full_frame, median_clean

N_SIGMA = 2.0


def clean(path: str, fit: str) -> Callable[[], Any]:
    """The step's own sequence for one rate image, with the defaults of its parameters; `fit`: "median" or "fft"."""
    image = np.load(path)
    meta = SimpleNamespace(exposure=SimpleNamespace(type="NRC_IMAGE"))
    model = SimpleNamespace(meta=meta, data=image, dq=np.zeros(image.shape, np.uint32))

    def run() -> np.ndarray:
        mask = create_mask(model, n_sigma=N_SIGMA)
        known = np.nan_to_num(image, nan=0.0)
        background = background_level(known, mask, background_method="median")
        known -= background
        clip_to_background(known, mask, sigma_lower=N_SIGMA, sigma_upper=N_SIGMA, lower_half_only=True)
        cleaned = fft_clean_full_frame(known, mask, "NRCB1") if fit == "fft" else median_clean(known, mask, 2)
        cleaned += background
        return np.where(np.isnan(image), image, cleaned)

    return run
