"""Hypothesis settings for every test, the frame makers of `scenes` as factory fixtures, and a cluster to run on."""

import json
import logging
import signal
import subprocess
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import dask
import hypothesis
import pytest
import xarray as xr
from distributed import Client, LocalCluster

import scenes
from programs import end_session, start_skylevel
from skylevel.program.cluster import LOCAL_SETTINGS, SCHEDULER_SETTINGS

# A shell makes what it starts in the background deaf to Ctrl-C, nohup to a hangup; so would be what the tests start.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
if signal.getsignal(signal.SIGHUP) is signal.SIG_IGN:
    signal.signal(signal.SIGHUP, signal.SIG_DFL)

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
        dask.config.set(SCHEDULER_SETTINGS | LOCAL_SETTINGS),
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


PRELOAD = """\
import os
import time

import skylevel.program.tasks as tasks
from skylevel.io.frame import open_frame


def open_slowly(path):
    time.sleep(0.2)
    if "killer" in str(path):
        os._exit(1)
    return open_frame(path)


tasks.open_frame = open_slowly
"""


@pytest.fixture
def slow(tmp_path: Path) -> dict[str, str]:
    """An environment whose workers, wherever they are started, read slowly."""
    (tmp_path / "read_slowly.py").write_text(PRELOAD)
    return {
        "DASK_DISTRIBUTED__WORKER__PRELOAD": json.dumps([str(tmp_path / "read_slowly.py")]),
        "DASK_SKYLEVEL__CONNECT_TIMEOUT": "10s",
    }


@pytest.fixture
def clean_up() -> Iterator[ExitStack]:
    with ExitStack() as stack:
        yield stack


@pytest.fixture
def start(clean_up: ExitStack) -> Callable[..., subprocess.Popen[str]]:
    """Start the command line; whatever becomes of the test, it and its workers are gone afterwards."""

    def started(*arguments: object, **options: Any) -> subprocess.Popen[str]:
        process = start_skylevel(*arguments, start_new_session=True, **options)
        clean_up.callback(process.communicate)
        clean_up.callback(end_session, process.pid)
        return process

    return started
