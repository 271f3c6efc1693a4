"""The memory of this process: its peak, and how the C library hands it out."""

import ctypes
import resource
import sys
from pathlib import Path

# From glibc's malloc.h.
_M_TRIM_THRESHOLD = -1
_M_MMAP_THRESHOLD = -3

# The largest threshold that glibc takes.
_MMAP_THRESHOLD = 32 << 20
_TRIM_THRESHOLD = 256 << 20


def keep_freed_memory() -> bool:
    """Let this process keep up to 256 MiB that it freed, instead of handing them back at once.

    The kernels work through an image in strips of a few MB. By default each strip's arrays go back to the system and
    are taken again page by page, which cost a fifth of the channel kernels' time, and in Dask's workers, whose nanny
    asks for the least memory, more than half of every kernel's (`benchmarks/speed.md`).

    Returns
    -------
    bool
        Whether it could be set: False on systems without glibc, where nothing changes.
    """
    if not sys.platform.startswith("linux"):
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return False
    return bool(mallopt(_M_MMAP_THRESHOLD, _MMAP_THRESHOLD) and mallopt(_M_TRIM_THRESHOLD, _TRIM_THRESHOLD))


def peak_memory() -> int:
    """Bytes of the most memory that this process has held at once.

    Linux's own mark, where there is one: ``ru_maxrss`` begins with what the process held that started this one.
    """
    try:
        status = Path("/proc/self/status").read_text(encoding="ascii")
        return int(status.partition("VmHWM:")[2].split()[0]) << 10
    except (OSError, IndexError, ValueError):
        unit = 1 if sys.platform == "darwin" else 1024
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
