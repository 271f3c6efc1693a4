"""Hypothesis settings for every test, the frame makers of `scenes` as factory fixtures, and a cluster to run on."""

import logging
from collections.abc import Callable, Iterator

import hypothesis
import pytest
import xarray as xr
from distributed import Client, LocalCluster

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


@pytest.fixture(scope="session")
def client() -> Iterator[Client]:
    """Two real worker processes of one thread, shared by every test that kills none."""
    with (
        LocalCluster(
            n_workers=2,
            threads_per_worker=1,
            processes=True,
            host="127.0.0.1",
            dashboard_address="127.0.0.1:0",
            silence_logs=logging.CRITICAL,
        ) as cluster,
        Client(cluster, set_as_default=False) as connected,
    ):
        yield connected
