"""The notebooks' methods as plain photutils and astropy calls, from the tests."""

from collections.abc import Callable
from typing import Any

import numpy as np

import reference
from scenes import RGGB


def rows_photutils(path: str) -> Callable[[], Any]:
    """No loop over pixels and no deblending."""
    image = np.load(path)
    return lambda: reference.rows_reference(image)


def rows_notebook(path: str) -> Callable[[], Any]:
    """Deblending, and the two loops over pixels in place of a median for each row."""
    image = np.load(path)
    reference.row_levels_given_mask = lambda image, _mask, **_: (np.empty(0), image)
    return lambda: reference.notebook_rows(image, reference.rows_reference(image, deblend=True).segmentation)


def rows_mesh(path: str) -> Callable[[], Any]:
    image = np.load(path)
    settings = {"box_size": 50, "filter_size": 3, "sigma_clip": 3.0, "max_rounds": 10, "estimator": "median"}
    return lambda: reference.background_of(image, **settings).background_mesh


def channels_notebook(path: str) -> Callable[[], Any]:
    raw = np.load(path)
    colours = reference.tiled(RGGB, raw.shape)
    return lambda: reference.channels_reference(raw, colours)
