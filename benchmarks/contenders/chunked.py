"""`level_rows` on an image in chunks, read from Zarr and written to Zarr with one thread."""

import shutil
from collections.abc import Callable
from typing import Any

import dask
import dask.array as da
import xarray as xr
import zarr

from skylevel.level import detect_rows, estimate_background, estimate_rows, level_rows, subtract_rows
from skylevel.recipes import Rows

dask.config.set(scheduler="synchronous")


def _frame(path: str) -> xr.Dataset:
    return xr.Dataset({"sci": (("y", "x"), da.from_zarr(path))}, attrs={"kind": "jwst", "fast_axis": -1})


def _store(sci: da.Array, path: str) -> None:
    sci = sci.rechunk(1024)
    da.store(sci, zarr.create_array(path, shape=sci.shape, chunks=sci.chunksize, dtype=sci.dtype), lock=False)


def at_once(path: str) -> tuple[Callable[[], Any], Callable[[], Any]]:
    """Everything in one graph."""
    output = f"{path}.out"
    return lambda: _store(level_rows(_frame(path))["sci"].data, output), lambda: shutil.rmtree(output, True)


def in_steps(path: str) -> tuple[Callable[[], Any], Callable[[], Any]]:
    """Each step computed before the next, so that no pixel is held from one to another; the mask is stored."""
    output, mask_path = f"{path}.out", f"{path}.mask"

    def run() -> None:
        frame, recipe = _frame(path), Rows()
        background = estimate_background(frame, recipe).compute()
        mask = detect_rows(frame, background, recipe)["source_mask"].data
        _store(mask, mask_path)
        detection = background.assign(source_mask=(("y", "x"), da.from_zarr(mask_path)))
        levels = estimate_rows(frame, recipe, detection=detection)["row_level"].compute()
        _store(subtract_rows(frame, xr.Dataset({"row_level": levels})).data, output)

    return run, lambda: [shutil.rmtree(p, True) for p in (output, mask_path)]
