"""skylevel levels the sky of whole observing programs, in parallel with Dask.

>>> import skylevel as sl
>>> frame = sl.open_frame("jw04250004001_03101_00001_nrcb1_cal.fits")  # doctest: +SKIP
>>> sl.write_frame(sl.level_rows(frame, sl.Rows()), "levelled.fits")  # doctest: +SKIP
"""

import importlib

# As typing's own, which takes longer to import than all of this.
TYPE_CHECKING = False
if TYPE_CHECKING:
    from skylevel.errors import SkylevelError
    from skylevel.io.frame import open_frame
    from skylevel.io.jwst import flux_per_pixel, frame_wcs
    from skylevel.jobs.writing import write_frame
    from skylevel.level import background_image, level_channels, level_rows
    from skylevel.memory import keep_freed_memory
    from skylevel.program.export import export
    from skylevel.program.run import run
    from skylevel.program.view import open_program
    from skylevel.program.view import program_status as status
    from skylevel.recipes import Channels, Rows
    from skylevel.report import write_report
    from skylevel.version import __version__ as __version__

# Where each public name is, found on first use, so that importing skylevel (in every worker, and for --help) costs no
# more than it must, and the command line hears a Ctrl-C from its first moment on.
_HOMES = {
    "Channels": ("skylevel.recipes", "Channels"),
    "Rows": ("skylevel.recipes", "Rows"),
    "SkylevelError": ("skylevel.errors", "SkylevelError"),
    "__version__": ("skylevel.version", "__version__"),
    "background_image": ("skylevel.level", "background_image"),
    "export": ("skylevel.program.export", "export"),
    "flux_per_pixel": ("skylevel.io.jwst", "flux_per_pixel"),
    "frame_wcs": ("skylevel.io.jwst", "frame_wcs"),
    "keep_freed_memory": ("skylevel.memory", "keep_freed_memory"),
    "level_channels": ("skylevel.level", "level_channels"),
    "level_rows": ("skylevel.level", "level_rows"),
    "open_frame": ("skylevel.io.frame", "open_frame"),
    "open_program": ("skylevel.program.view", "open_program"),
    "run": ("skylevel.program.run", "run"),
    "status": ("skylevel.program.view", "program_status"),
    "write_frame": ("skylevel.jobs.writing", "write_frame"),
    "write_report": ("skylevel.report", "write_report"),
}

__all__ = [
    "Channels",
    "Rows",
    "SkylevelError",
    "background_image",
    "export",
    "flux_per_pixel",
    "frame_wcs",
    "keep_freed_memory",
    "level_channels",
    "level_rows",
    "open_frame",
    "open_program",
    "run",
    "status",
    "write_frame",
    "write_report",
]


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module, attribute = _HOMES[name]
    return getattr(importlib.import_module(module), attribute)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
