"""Every error that skylevel raises on purpose.

Each one names the file or setting at fault and says what to do about it, is a single line, and keeps its class
and message when it travels back from a worker process.
"""


class SkylevelError(Exception):
    """Base of every error below: ``except SkylevelError`` catches what skylevel itself refuses."""


class SettingsError(SkylevelError, ValueError):
    """A setting is unknown, of the wrong type or outside its allowed values."""


class ShapeError(SkylevelError, ValueError):
    """Arrays that belong together differ in shape, or something is no image (y, x) of real numbers."""


class NoBackgroundError(SkylevelError, ValueError):
    """No box of the mesh kept a single usable pixel: there is no background to measure."""


class UnreadableFrameError(SkylevelError, OSError):
    """The file is missing, truncated or damaged."""


class UnsupportedFrameError(SkylevelError, ValueError):
    """The file is sound, but it is not a kind of exposure that skylevel levels."""


class OutputError(SkylevelError, OSError):
    """An output cannot be sent where it should go, reads back other than it was written, or lost finite pixels."""


class PlanError(SkylevelError, ValueError):
    """The inputs cannot be run as asked: nothing matched, or two of them would write the same output."""


class StoreError(SkylevelError):
    """The program store is missing, incomplete or of another format."""


class ClusterError(SkylevelError):
    """The cluster could not be reached or started, or its workers do not fit this client."""


class WorkerDiedError(SkylevelError):
    """Whoever worked on an exposure died each time it was tried."""


def require_cluster(cluster: str) -> None:
    """Raise ClusterError where a text names no cluster, as far as a word tells."""
    if cluster not in ("local", "slurm") and "://" not in cluster:
        raise ClusterError(f"unknown cluster {cluster!r}: needs local, slurm or an address such as tcp://HOST:PORT")


#: What a `WorkerDiedError` says.
DIED = "its worker died each time it was tried, the last time alone (out of memory?)"


class SchedulerLostError(ClusterError):
    """The scheduler died or went out of reach in the middle of a run; what was done is stored."""


def short(text: str, most: int = 80) -> str:
    """Return what was given as a message shows it: on one line, its start where it is long."""
    line = " ".join(text.split())
    return line if len(line) <= most else f"{line[: most - 4]} ..."
