"""Hypothesis settings for every test, and the frame makers of `scenes` as factory fixtures."""

from collections.abc import Callable

import hypothesis
import pytest
import xarray as xr

import scenes

hypothesis.settings.register_profile("skylevel", deadline=None, derandomize=True, max_examples=20, database=None)
hypothesis.settings.load_profile("skylevel")


@pytest.fixture(scope="session")
def make_frame() -> Callable[..., xr.Dataset]:
    """Factory of JWST frames in memory: `scenes.make_frame`."""
    return scenes.make_frame


@pytest.fixture(scope="session")
def make_raw_frame() -> Callable[..., xr.Dataset]:
    """Factory of camera raw frames in memory: `scenes.make_raw_frame`."""
    return scenes.make_raw_frame
