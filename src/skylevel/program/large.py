"""An exposure that no worker can hold: measured in blocks of rows by all workers together, exported block by block.

The same functions of `skylevel.level` run over a chunked frame, so the result has the same bits as in one piece.
"""

from collections.abc import Iterator
from typing import Any

import numpy as np
import xarray as xr
from distributed import Client
from numpy.typing import NDArray

from skylevel.errors import PlanError
from skylevel.io.blocks import RowBlocks
from skylevel.io.frame import open_frame
from skylevel.io.jwst import size_and_field
from skylevel.io.remote import is_remote, local_output
from skylevel.io.store import ProgramStore
from skylevel.level import detect_rows, estimate_background, estimate_rows, stripe_dim, subtract_rows
from skylevel.program.cluster import check_workers
from skylevel.program.forecast import gigabytes
from skylevel.program.plan import Exposure
from skylevel.program.tasks import Record, attributes, require_version, stored_detection, task, write_levelled
from skylevel.recipes import Rows

_BLOCK_BYTES = 32 << 20

# A worker holds a few blocks at a time, with the arrays that are made of them; Dask pauses one at 80 % of its limit.
_LEAST_WORKER_BYTES = 1 << 30


def require_possible(exposure: Exposure, needed: int, available: int) -> None:
    """Refuse what is too large for a worker and cannot be done in blocks.

    Raises
    ------
    PlanError
        With the numbers and what to do.
    """
    why = None
    if exposure.recipe.name != "rows":
        why = "a camera raw is levelled in one piece"
    elif is_remote(exposure.source) or exposure.source.endswith(".gz"):
        why = "only an uncompressed local file can be read in blocks"
    elif list(exposure.outputs) != ["levelled"]:
        why = "its other products (--keep) are made in one piece"
    elif available < _LEAST_WORKER_BYTES:
        why = f"even in blocks it needs {gigabytes(_LEAST_WORKER_BYTES)}"
    if why:
        raise PlanError(
            f"{exposure.source}: needs about {gigabytes(needed)} of memory, a worker has {gigabytes(available)}, "
            f"and {why}: use fewer workers with more memory each"
        )


def measure_large(client: Client, exposure: Exposure, store_url: str, *, fresh: bool = False) -> Record:
    """Measure an exposure with all workers of a cluster, and store what was measured.

    Parameters
    ----------
    client : Client
    exposure : Exposure
        Of the recipe "rows".
    store_url : str
    fresh : bool
        Detect sources again, whatever mask is stored.

    Raises
    ------
    SkylevelError
        The file cannot be read or levelled, or a worker runs another version.
    """
    check_workers(client)
    record = Record(exposure.name)
    store, recipe = ProgramStore(store_url), _rows(exposure)
    frame = _open_blocks(exposure, recipe)
    record.say(f"opened {size_and_field(frame).split(': ', 1)[-1]}, in {len(frame.chunks['y'])} blocks of rows")
    with record.stage("measure"):
        detection = None if fresh else _stored_blocks(exposure, store, frame)
        if detection is None:
            # First the mesh alone: it is small, and both what is stored and the next graph need it.
            background = client.compute(estimate_background(frame, recipe)).result()
            detection = detect_rows(frame, background, recipe)
        estimate = estimate_rows(frame, recipe, detection=detection)
        dim = stripe_dim(frame, recipe)
        store.write_estimate(
            exposure.name,
            estimate.assign(row_level=estimate["row_level"].chunk({dim: -1})),
            attributes(exposure, frame, {"exclude_percentile": float(detection["exclude_percentile"])}, record),
            compute=lambda writing: client.compute(writing).result(),
        )
        record.say(f"measured {estimate.sizes[dim]} {'rows' if dim == 'y' else 'columns'}")
    return record


def _stored_blocks(exposure: Exposure, store: ProgramStore, frame: xr.Dataset) -> xr.Dataset | None:
    """The stored detection of an exposure, where it still holds; its mask in the frame's blocks."""
    detection = stored_detection(exposure, store)
    if detection is None:
        return None
    mask = detection["source_mask"].chunk(frame.chunksizes)
    return detection.drop_vars("source_mask").load().assign(source_mask=mask).drop_encoding()


@task
def export_large(exposure: Exposure, measured: Record | None, store_url: str, client_version: str) -> Record:
    """Level an exposure by what the store holds of it, and write it, block by block.

    Parameters
    ----------
    exposure : Exposure
    measured : Record, optional
        Of its `measure_large`, which this one continues.
    store_url, client_version : str
        As in `skylevel.program.tasks.level_exposure`.

    Raises
    ------
    SkylevelError
        The file cannot be read, the store holds nothing of it, or this worker runs another version.
    """
    require_version(client_version)
    record = measured or Record(exposure.name)
    store, url = ProgramStore(store_url), exposure.outputs["levelled"]
    with record.stage("export"), local_output(url) as path:
        frame = open_frame(exposure.source)[["sci"]]
        levels = store.read_estimate(exposure.name)[["row_level"]].load()
        blocks = RowBlocks(frame["sci"].shape, frame["sci"].dtype, _levelled_blocks(frame, levels, _rows(exposure)))
        write_levelled(path, exposure, frame, blocks)
    store.write_export(exposure.name, exposure.export_key, record.metrics())
    record.say(f"wrote {url}")
    return record


def _rows(exposure: Exposure) -> Rows:
    assert isinstance(exposure.recipe, Rows)
    return exposure.recipe


def _block_rows(frame: xr.Dataset, recipe: Rows) -> int:
    """Rows of a block: whole boxes, so that no block's statistics wait for another's pixels."""
    row_bytes = frame["sci"].dtype.itemsize * frame.sizes["x"]
    return max(_BLOCK_BYTES // row_bytes // recipe.box_size, 1) * recipe.box_size


def _open_blocks(exposure: Exposure, recipe: Rows) -> xr.Dataset:
    frame = open_frame(exposure.source)[["sci"]]
    return frame.chunk({"y": _block_rows(frame, recipe), "x": -1})


def _levelled_blocks(frame: xr.Dataset, levels: xr.Dataset, recipe: Rows) -> Iterator[NDArray[Any]]:
    step = _block_rows(frame, recipe)
    for y in range(0, frame.sizes["y"], step):
        rows = {"y": slice(y, y + step)}
        block = frame.isel(rows).load()
        here = levels.isel(rows) if "y" in levels.dims else levels
        yield np.asarray(subtract_rows(block, here))
