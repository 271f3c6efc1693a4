"""`level_rows` on an image in chunks, read from Zarr and written to Zarr with one thread, as one graph."""

import shutil
from collections.abc import Callable
from typing import Any

import dask
import dask.array as da
import xarray as xr
import zarr

from skylevel.level import level_rows

dask.config.set(scheduler="synchronous")


def levelled(path: str) -> tuple[Callable[[], Any], Callable[[], Any]]:
    output = f"{path}.out"

    def run() -> None:
        image = da.from_zarr(path)
        frame = xr.Dataset({"sci": (("y", "x"), image)}, attrs={"kind": "jwst", "fast_axis": -1})
        sci = level_rows(frame)["sci"].data.rechunk(image.chunksize)
        da.store(sci, zarr.create_array(output, shape=sci.shape, chunks=sci.chunksize, dtype=sci.dtype), lock=False)

    return run, lambda: shutil.rmtree(output, True)
