"""What the jobs have in common: the background mesh, as the store keeps it and as a file shows it."""

from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr

from skylevel.io.jwst import write_image
from skylevel.jobs.job import Measured
from skylevel.level.background import background_image


def relaxed(estimate: xr.Dataset, asked_for: float) -> str:
    """Return a remark where more of a box had to be missing than was asked for."""
    used = float(estimate["exclude_percentile"].max())
    return f"; exclude_percentile relaxed to {used:g}" if used > asked_for else ""


def percentiles(estimate: xr.Dataset) -> list[Any]:
    """Return the exclusion that was used, of each channel."""
    return list(np.atleast_1d(estimate["exclude_percentile"].values).tolist())


def write_background(path: Path, measured: Measured) -> None:
    """Write the background at every pixel."""
    estimate = measured.estimate.assign_attrs(measured.frame.attrs)
    image = background_image(estimate).compute(scheduler="synchronous").to_numpy()
    write_image(path, measured.frame, image, cards=measured.writing.cards)
