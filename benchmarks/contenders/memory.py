"""The first touch of memory that is taken from the system anew."""

import time
from collections.abc import Callable

import numpy as np
from contender import timed


def touch(pause: str) -> Callable[[], dict[str, float]]:
    """Of 256 MiB, after `pause` seconds that do not count."""

    def run() -> dict[str, float]:
        time.sleep(float(pause))
        return timed(lambda: np.empty(2**26, np.float32).fill(1.0))

    return run
