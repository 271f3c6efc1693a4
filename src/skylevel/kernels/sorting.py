"""The values of each row in order, by whichever way is the fastest one here."""

import time
from collections.abc import Callable
from functools import cache, partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

Sort = Callable[[NDArray[np.number]], None]

# What is sorted to try: a few rows of about the length of a box's, scattered like a sky of 12 bits.
_TRIED_SHAPE = (8, 2500)
_STEP, _LEVELS = 40_503, 4096
_TRIALS = 5

# Rows that are sorted whole without moving values between parts, and by what factor longer ones may take more time for
# each value.
_SHORT, _MUCH_SLOWER = 250, 5

# Of a row, about so many values tell where most of it is. Keys are of 16 bits.
_SAMPLED, _KEYS = 200, 65_535


def sort_rows(values: NDArray[np.number]) -> None:
    """Sort each row of an array (row, value) in place, NaN last."""
    _fastest(values.dtype)(values)


def slow_instructions() -> list[str]:
    """Return what NumPy would sort faster without on this processor, as its ``NPY_DISABLE_CPU_FEATURES`` names it.

    With AVX-512 it moves values between parts of a row by instructions that some processors (Zen 4) are slow at.
    """
    found = np.show_config(mode="dicts")["SIMD Extensions"].get("found", [])
    slow = [name for name in found if name.startswith(("AVX512", "X86_V4"))]
    if not slow:
        return []
    sample = _sample(np.dtype(np.float64))
    long, short = (_seconds(_quicksort, rows) for rows in (sample, sample.reshape(-1, _SHORT)))
    return slow if long > _MUCH_SLOWER * short else []


@cache
def _fastest(dtype: np.dtype[np.number]) -> Sort:
    """Return which way of sorting a type takes less time: it is tried in a few milliseconds. All give the same order.

    For integers of 16 bits "stable" is a radix sort, which takes the same time on all processors. "quicksort" takes
    from half to eight times as long, for all types: that hangs on the instructions a processor has, and on how fast it
    is at them.
    """
    sorts: list[Sort] = [_quicksort]
    if dtype.kind in "iu" and dtype.itemsize <= 2:
        sorts.append(partial(np.ndarray.sort, axis=1, kind="stable"))
    if dtype == np.float64:
        sorts.append(_sort_by_keys)
    return min(sorts, key=lambda sort: _seconds(sort, _sample(dtype))) if len(sorts) > 1 else _quicksort


def _quicksort(values: NDArray[np.number]) -> None:
    values.sort(axis=1)


def _sort_by_keys(values: NDArray[Any]) -> None:
    """Sort by keys that are evenly spaced where most of a row is, and by radix; then what has the same key."""
    sample = np.sort(values[:, :: max(values.shape[1] // _SAMPLED, 1)], axis=1)
    least, middle, high = (sample[:, [sample.shape[1] * k // 8]] for k in (0, 4, 7))
    with np.errstate(invalid="ignore", over="ignore"):
        keys = values - least
        keys *= _KEYS / np.maximum(middle + 4 * (high - middle) - least, np.finfo(values.dtype).tiny * _KEYS)
    np.fmax(np.fmin(keys, _KEYS, out=keys), 0, out=keys)
    order = keys.astype(np.uint16).argsort(axis=1, kind="stable")
    order += np.arange(len(values))[:, None] * values.shape[1]
    values[...] = values.reshape(-1).take(order)
    values.sort(axis=1, kind="stable")


def _sample(dtype: np.dtype[np.number]) -> NDArray[np.number]:
    return (np.arange(np.prod(_TRIED_SHAPE)) * _STEP % _LEVELS).astype(dtype).reshape(_TRIED_SHAPE)


def _seconds(sort: Sort, sample: NDArray[np.number]) -> float:
    """Return how long sorting takes, without what else the machine did."""
    times = []
    for _ in range(_TRIALS):
        values = sample.copy()
        start = time.perf_counter()
        sort(values)
        times.append(time.perf_counter() - start)
    return min(times)
