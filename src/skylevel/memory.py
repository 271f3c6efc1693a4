"""The memory of this process: its peak, and how the C library hands it out."""

import ctypes
import gc
import resource
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import psutil

_GROUPS = Path("/sys/fs/cgroup")
# Python's own; see `gc.set_threshold`.
_USUALLY = (700, 10, 10)
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


def collect_as_usual() -> None:
    """Let Python look for garbage as often as it does by itself: from here on arrays may hang on it."""
    gc.set_threshold(*_USUALLY)


def process_memory() -> int:
    """Bytes that this process may hold: all of the machine's, or what its control group or a limit leaves it."""
    limits = [resource.getrlimit(kind)[0] for kind in (resource.RLIMIT_AS, resource.RLIMIT_DATA)]
    limits = [limit for limit in limits if limit != resource.RLIM_INFINITY]
    return min([psutil.virtual_memory().total, *limits, *_group_limits()])


def _group_limits() -> Iterator[int]:
    """Yield the limits of this process's control groups and of those around them, as batch systems set them."""
    with suppress(OSError):
        for line in Path("/proc/self/cgroup").read_text(encoding="utf-8").splitlines():
            _, controllers, path = line.split(":", 2)
            if controllers and "memory" not in controllers.split(","):
                continue
            root, name = (_GROUPS / "memory", "memory.limit_in_bytes") if controllers else (_GROUPS, "memory.max")
            group = root / path.lstrip("/")
            for folder in (group, *group.parents):
                # "max" where there is none.
                with suppress(OSError, ValueError):
                    yield int((folder / name).read_text(encoding="ascii"))


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
