"""skylevel's kernels through `level_rows` and `level_channels`, memory to memory."""

import hashlib
from collections.abc import Callable
from typing import Any

import numpy as np
import xarray as xr

from skylevel.kernels.mesh import Clipping, box_statistics, finish_mesh
from skylevel.level import estimate_channels, level_channels, level_rows
from skylevel.memory import keep_freed_memory
from skylevel.recipes import Channels

# As every worker does.
keep_freed_memory()


def rows_frame(path: str) -> xr.Dataset:
    return xr.Dataset({"sci": (("y", "x"), np.load(path))}, attrs={"kind": "jwst", "fast_axis": -1})


def raw_frame(path: str) -> xr.Dataset:
    attrs = {"kind": "camera", "color_filter_array": ["RG", "GB"]}
    return xr.Dataset({"raw": (("y", "x"), np.load(path))}, attrs=attrs)


def rows(path: str, times: str = "1") -> Callable[[], Any]:
    """So many results, which are kept to the end of the round."""
    frame = rows_frame(path)
    return lambda: [level_rows(frame) for _ in range(int(times))]


def digest(function: str, path: str, *method: str) -> Callable[[], dict[str, str]]:
    """The bits of what `rows` or `channels` makes."""
    run = {"rows": rows, "channels": channels}[function](path, *method)

    def digested() -> dict[str, str]:
        arrays = [variable.values for _, variable in sorted(run()[0].data_vars.items())]
        return {"digest": hashlib.sha256(b"".join(np.ascontiguousarray(a).tobytes() for a in arrays)).hexdigest()}

    return digested


def rows_mesh(path: str) -> Callable[[], Any]:
    image, clipping = np.load(path), Clipping(3.0, 10, "median")
    finish: dict[str, Any] = {"box_n_pixels": 2500, "exclude_percentile": 10.0, "filter_size": 3}
    return lambda: finish_mesh(box_statistics(image, box_size=(50, 50), clipping=clipping), **finish)


def channels(path: str, method: str, times: str = "1") -> Callable[[], Any]:
    """As `rows`."""
    frame, recipe = raw_frame(path), Channels(method=method)
    return lambda: [level_channels(frame, recipe) for _ in range(int(times))]


def channels_mesh(path: str, method: str) -> Callable[[], Any]:
    frame, recipe = raw_frame(path), Channels(method=method)
    return lambda: estimate_channels(frame, recipe)
