"""From a file to the store and FITS, as a worker does it; and what the limits count in its place."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import rawpy
from astropy.io import fits

from skylevel.io.frame import open_frame
from skylevel.io.store import ProgramStore
from skylevel.level import level_channels, level_rows
from skylevel.program.ledger import Steps
from skylevel.program.places import settle
from skylevel.program.plan import make_plan, store_url
from skylevel.program.tasks import Where, level_exposure
from skylevel.version import __version__

Prepared = tuple[Callable[[], Any], Callable[[], Any]]


def levelled(path: str, output: str) -> Prepared:
    """Into a store that has room for it, as the driver made it."""
    url = store_url(output)
    (exposure,) = settle(make_plan([path], output), ProgramStore(url))
    where, steps = Where(url, __version__), Steps.DETECT | Steps.MEASURE | Steps.EXPORT

    def clean() -> None:
        for written in Path(output).glob("*.fits"):
            written.unlink()

    return lambda: level_exposure(exposure, where, steps), clean


def kernel(path: str) -> Callable[[], Any]:
    frame = open_frame(path)
    if frame.attrs["kind"] == "jwst":
        frame = frame[["sci"]].load()
        return lambda: level_rows(frame)
    frame.load()
    return lambda: level_channels(frame)


def unpack_and_write(path: str, output: str) -> Prepared:
    """What any program must do: LibRaw unpacks, astropy writes float32."""
    target = Path(output)

    def run() -> None:
        with rawpy.imread(path) as raw:
            mosaic = raw.raw_image_visible.astype(np.float32)
        fits.writeto(target, mosaic)

    return run, target.unlink
