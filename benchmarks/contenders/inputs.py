"""Writes what the contenders read, so that making it counts for none of them."""

from collections.abc import Callable
from datetime import datetime
from pathlib import Path

import numpy as np
import zarr

from scenes import KINDS, make_mosaic, make_scene
from skylevel.demo import write_program
from skylevel.demo.dng import write_dng

# Seeds that no test uses.
ROWS_SEED, MOSAIC_SEED, DEMO_SEED = 90210, 90211, 90212


def write(folder: str, size: str) -> Callable[[], None]:
    """With the large images, unless `size` is "small"."""

    def run() -> None:
        _write_rows(Path(folder))
        _write_channels(Path(folder))
        if size != "small":
            _write_large(Path(folder))
        write_program(Path(folder, "program"), seed=DEMO_SEED)

    return run


def _write_rows(folder: Path) -> None:
    for kind in KINDS:
        np.save(folder / f"{kind}.npy", make_scene(kind, 2048, seed=ROWS_SEED).image)


def _write_large(folder: Path) -> None:
    np.save(folder / "mosaic96.npy", np.tile(np.load(folder / "mosaic24.npy"), (2, 2)))
    sparse = np.load(folder / "sparse.npy")
    for times in (2, 4):
        # The same pixels again, so that a pixel of a large image costs no more for what it shows.
        larger = np.tile(sparse, (times, times))
        np.save(folder / f"rows{len(larger)}.npy", larger)
        # Both of about 4 MB; blocks of whole boxes.
        for name, chunks in (("tiles", (1024, 1024)), ("blocks", (819_200 // len(larger), len(larger)))):
            stored = zarr.create_array(folder / f"{name}{len(larger)}.zarr", data=larger, chunks=chunks)
            assert stored.shape == larger.shape


def _write_channels(folder: Path) -> None:
    mosaic = make_mosaic((4000, 6000), seed=MOSAIC_SEED, stars=3000)
    np.save(folder / "mosaic24.npy", mosaic)
    dead = mosaic.copy()
    dead.flat[np.random.default_rng(MOSAIC_SEED).choice(dead.size, 100, replace=False)] = 0
    np.save(folder / "dead24.npy", dead)
    write_dng(folder / "mosaic24.dng", mosaic, datetime(2024, 8, 12, 1, 0, 0))
