"""skylevel levels the sky of whole observing programs, in parallel with Dask.

>>> import skylevel as sl
>>> frame = sl.open_frame("jw04250004001_03101_00001_nrcb1_cal.fits")  # doctest: +SKIP
>>> levelled = sl.level_rows(frame, sl.Rows())  # doctest: +SKIP
"""

import importlib
from typing import TYPE_CHECKING, Any

from skylevel.errors import SkylevelError
from skylevel.recipes import Channels, Rows
from skylevel.version import __version__ as __version__

if TYPE_CHECKING:
    from skylevel.io.frame import open_frame
    from skylevel.io.jwst import flux_per_pixel
    from skylevel.level import level_channels, level_rows
    from skylevel.program.run import run
    from skylevel.program.view import open_program

__all__ = [
    "Channels",
    "Rows",
    "SkylevelError",
    "flux_per_pixel",
    "level_channels",
    "level_rows",
    "open_frame",
    "open_program",
    "run",
]

# Found on first use, so that importing skylevel (in every worker, and for --help) costs no more than it must.
_HOMES = {
    "flux_per_pixel": "skylevel.io.jwst",
    "level_channels": "skylevel.level",
    "level_rows": "skylevel.level",
    "open_frame": "skylevel.io.frame",
    "open_program": "skylevel.program.view",
    "run": "skylevel.program.run",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
