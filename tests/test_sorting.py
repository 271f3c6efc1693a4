"""The same order, and the same bits of all that follows, whatever instructions the processor has."""

import hashlib
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from scenes import make_frame, make_raw_frame
from skylevel.kernels import sorting
from skylevel.level import level_channels, level_rows
from skylevel.recipes import Channels, Rows

# As NumPy names them; a processor that has none of the last step has the one before as its best.
FOUND = np.show_config(mode="dicts")["SIMD Extensions"].get("found", [])
AVX512 = [name for name in FOUND if name.startswith(("AVX512", "X86_V4"))]


@pytest.mark.parametrize("dtype", [np.uint16, np.int16, np.uint8, np.uint32, np.float32, np.float64])
def test_rows_are_in_order(dtype: type) -> None:
    values = np.random.default_rng(1).integers(0, 200, (20, 300)).astype(dtype)
    expected = np.sort(values, axis=1)
    sorting.sort_rows(values)
    np.testing.assert_array_equal(values, expected)


@pytest.mark.parametrize("sort", [sorting.sort_rows, sorting._sort_by_keys])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_nan_come_last(sort: sorting.Sort, dtype: type) -> None:
    values = np.array([[np.nan, 2.0, 1.0], [np.nan] * 3, [-1.0, np.nan, -2.0]], dtype)
    sort(values)
    np.testing.assert_array_equal(values, [[1.0, 2.0, np.nan], [np.nan] * 3, [-2.0, -1.0, np.nan]])


@pytest.mark.parametrize("scale", [0.0, 1e-300, 1e-3, 1.0, 1e300])
@pytest.mark.parametrize("share", [0.0, 0.01, 0.5], ids="{:.0%} far out".format)
def test_keys_give_the_same_order(scale: float, share: float) -> None:
    rng = np.random.default_rng(2)
    values = scale * rng.normal(3.0, 1.0, (20, 700))
    values[rng.random(values.shape) < share] *= 1e6
    expected = np.sort(values, axis=1)
    sorting._sort_by_keys(values)
    np.testing.assert_array_equal(values, expected)


def test_what_numpy_is_slow_with_is_nothing_that_it_does_without() -> None:
    assert set(sorting.slow_instructions()) <= set(AVX512)


def digest() -> str:
    """Of what both jobs make of a scene."""
    frame, raw = make_frame(shape=(300, 410), seed=3), make_raw_frame(shape=(240, 330), seed=3)
    rows = [level_rows(frame, Rows(method=method)) for method in ("median", "streams")]
    channels = [level_channels(raw, Channels(method=method)) for method in ("filled", "planes", "smooth")]
    variables = [v for dataset in (*rows, *channels) for _, v in sorted(dataset.data_vars.items())]
    numbers = [v for v in variables if v.dtype.kind in "bf"]
    return hashlib.sha256(b"".join(np.ascontiguousarray(v).tobytes() for v in numbers)).hexdigest()


@pytest.mark.packages
@pytest.mark.parametrize("without", [AVX512, FOUND], ids=["without AVX-512", "with the least"])
def test_the_same_bits_on_other_processors(without: list[str]) -> None:
    if not without:
        pytest.skip("this processor has nothing that NumPy could do without")
    code = "import test_sorting; print(test_sorting.digest())"
    env = {**os.environ, "NPY_DISABLE_CPU_FEATURES": " ".join(without), "PYTHONPATH": str(Path(__file__).parent)}
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == digest()
