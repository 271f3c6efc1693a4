"""What a worker does for one exposure: measure it (file to store) and export it (file and store to FITS).

The two are one task, so that a file is read once and a scheduler has one thing to do for it. It returns a small record
and never pixels, may run any number of times, and leaves nothing half-written: a worker that dies loses only its own.
A frame larger than a worker goes through the same functions as Dask arrays, in blocks of rows.
"""

import errno
import functools
import re
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import Any, Concatenate, NamedTuple, ParamSpec

import numpy as np
import tenacity
import xarray as xr

from skylevel.errors import ClusterError, StoreError, UnsupportedFrameError
from skylevel.io.frame import open_frame
from skylevel.io.nodes import Chunks, Place
from skylevel.io.records import PICTURE, is_small, small_values
from skylevel.io.remote import local_input, local_output
from skylevel.io.store import ProgramStore
from skylevel.io.urls import public_url
from skylevel.jobs import Measured, Writing
from skylevel.jobs.picture import picture_of
from skylevel.level.arrays import compute_here, is_lazy, write_chunks
from skylevel.level.threads import in_one_thread
from skylevel.memory import keep_freed_memory, peak_memory
from skylevel.program.ledger import Steps
from skylevel.program.plan import Exposure, require_unlevelled
from skylevel.program.verify import written_output
from skylevel.recipes import cards_of
from skylevel.version import __version__

P = ParamSpec("P")

# What a file system or network may do once and not again; a missing or damaged file stays so.
_TRANSIENT_NAMES = (
    "EAGAIN", "EBUSY", "ECONNABORTED", "ECONNRESET", "EINTR", "EIO", "ENETDOWN", "ENETUNREACH", "EREMOTEIO", "ESTALE",
    "ETIMEDOUT",
)  # fmt: skip
# Not every system has every one.
_TRANSIENT = {getattr(errno, name) for name in _TRANSIENT_NAMES if hasattr(errno, name)}
_ATTEMPTS = 4

# Attributes of a frame that are no facts about the exposure.
_NOT_FACTS = ("wcs", "path")

# Of a frame's cards, those that say where on the sky its pixels are.
_WCS_CARD = re.compile(
    r"(WCSAXES|WCSNAME|CTYPE|CRPIX|CRVAL|CUNIT|CDELT|CD\d|PC\d|PV\d|PS\d|LONPOLE|LATPOLE|RADESYS|EQUINOX|"
    r"[AB]P?_(ORDER|\d)|VELOSYS|SPECSYS|NAXIS\d)"
)

# Computes a list of delayed things, at once.
Compute = Callable[[list[Any]], Sequence[Any]]

# Bytes of a block of rows of a frame that is done in blocks.
_BLOCK_BYTES = 32 << 20


@dataclass(slots=True)
class Record:
    """What a task says of itself.

    Attributes
    ----------
    name : str
        The exposure's.
    messages : list of str
        What was done.
    seconds : dict of float
        Wall time of each stage.
    peaks_mib : dict of float
        The most memory that the worker had held by the end of each stage, in MiB. It is the process's: a later
        exposure in the same worker may show an earlier one's.
    """

    name: str
    messages: list[str] = field(default_factory=list)
    seconds: dict[str, float] = field(default_factory=dict)
    peaks_mib: dict[str, float] = field(default_factory=dict)

    @property
    def peak_mib(self) -> float:
        """Return the most of all stages."""
        return max(self.peaks_mib.values(), default=0.0)

    def say(self, text: str) -> None:
        """Note a step that was just done."""
        self.messages.append(text)

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Measure a stage."""
        start = time.perf_counter()
        yield
        self.seconds[name] = round(time.perf_counter() - start, 4)
        self.peaks_mib[name] = round(peak_memory() / (1 << 20), 1)

    def followed_by(self, later: "Record") -> "Record":
        """Return this record with what was done later."""
        seconds, peaks = self.seconds | later.seconds, self.peaks_mib | later.peaks_mib
        seconds["read"] = round(self.seconds.get("read", 0.0) + later.seconds.get("read", 0.0), 4)
        return Record(self.name, [*self.messages, *later.messages], seconds, peaks)

    def metrics(self) -> dict[str, Any]:
        """Return the times and peaks as the store keeps them."""
        return {"seconds": self.seconds, "peaks_mib": self.peaks_mib}


class Where(NamedTuple):
    """What a task must know beside its exposure.

    Attributes
    ----------
    store : str
        URL of the program store.
    version : str
        Of skylevel, where the plan was made.
    group_key : str or None
        Of the exposure's group, where it has one.
    """

    store: str
    version: str
    group_key: str | None = None


def is_transient(error: BaseException | None) -> bool:
    """Return whether trying again may help: the error, or what caused it, is a passing one of the system."""
    while error is not None:
        if isinstance(error, OSError) and error.errno in _TRANSIENT:
            return True
        error = error.__cause__
    return False


def task(
    function: Callable[Concatenate[Exposure, P], Record],
) -> Callable[Concatenate[Exposure, P], Record]:
    """A task that works in one thread, and is tried again, a bounded number of times, after a transient error.

    What is no number in its pixels is left out, and none of NumPy's warnings.
    """

    @functools.wraps(function)
    def tried(exposure: Exposure, /, *args: P.args, **kwargs: P.kwargs) -> Record:
        # Workers are as many as there are cores.
        with in_one_thread(), np.errstate(all="ignore"):
            return function(exposure, *args, **kwargs)

    return tenacity.retry(
        retry=tenacity.retry_if_exception(is_transient),
        stop=tenacity.stop_after_attempt(_ATTEMPTS),
        wait=tenacity.wait_random_exponential(multiplier=0.5, max=5.0),
        reraise=True,
    )(tried)


def get_ready() -> None:
    """Do what the first exposure would have to wait for."""
    with in_one_thread():
        # Of the few that are imported on first use, the one that most exposures need: boxes without a pixel.
        import_module("scipy.spatial")


@task
def level_exposure(exposure: Exposure, where: Where, steps: Steps) -> Record:
    """Do what is left of an exposure: read it, measure it, store what was measured, write its FITS files.

    Parameters
    ----------
    exposure : Exposure
        With a place, unless its header could not be read.
    where : Where
    steps : Steps

    Returns
    -------
    Record

    Raises
    ------
    SkylevelError
        The file cannot be read or levelled, the store does not hold what it should, or this worker runs another
        version.
    """
    require_version(where.version)
    keep_freed_memory()
    record, store = Record(exposure.name), ProgramStore(where.store)
    with local_input(exposure.access or exposure.source) as path:
        with record.stage("read"):
            frame = read_frame(path, exposure).load()
            record.say(f"read {exposure.job.describe(frame)}")
        leveling = None if Steps.MEASURE in steps else _leveling(exposure, frame, store, steps)
        if leveling is None:
            leveling = measure(exposure, frame, store, record, steps)
        if Steps.EXPORT in steps:
            _export(exposure, leveling, store, record, where)
    return record


@task
def export_blocks(exposure: Exposure, where: Where, record: Record) -> Record:
    """Level an exposure by what the store holds of it, and write it, block of rows by block of rows.

    Parameters
    ----------
    exposure : Exposure
    where : Where
    record : Record
        Of what was done before, which this continues.

    Raises
    ------
    SkylevelError
        The file cannot be read, the store holds nothing of it, or this worker runs another version.
    """
    require_version(where.version)
    store = ProgramStore(where.store)
    frame = in_blocks(read_frame(Path(exposure.source), exposure), exposure)
    estimate, kept = stored(exposure, store, chunked=True)
    _export(exposure, Leveling(frame, estimate, kept), store, record, where)
    return record


class Leveling(NamedTuple):
    """A frame, what was measured of it, and its commit record."""

    frame: xr.Dataset
    estimate: xr.Dataset
    kept: dict[str, Any]


def read_frame(path: Path, exposure: Exposure) -> xr.Dataset:
    """Open what is levelled of a file, lazily.

    Raises
    ------
    SkylevelError
        It cannot be read, or its job does not take its kind.
    """
    frame, job = open_frame(path), exposure.job
    if frame.attrs["kind"] != job.kind:
        raise UnsupportedFrameError(f"{path}: the recipe {job.recipe.name!r} does not level this kind of file")
    require_unlevelled(exposure, frame.attrs)
    return frame[[name for name in job.variables(exposure.recipe) if name in frame or name == job.variable]]


def in_blocks(frame: xr.Dataset, exposure: Exposure) -> xr.Dataset:
    """Return a frame as Dask arrays, in blocks of as many rows as its job allows: none waits for another's pixels."""
    image = frame[exposure.job.variable]
    side = exposure.job.block_rows(exposure.recipe) or 1
    rows = max(_BLOCK_BYTES // (image.dtype.itemsize * image.sizes["x"]) // side, 1) * side
    return frame.chunk({"y": rows, "x": -1})


def measure(
    exposure: Exposure,
    frame: xr.Dataset,
    store: ProgramStore,
    record: Record,
    steps: Steps,
    compute: Compute = compute_here,
) -> Leveling:
    """Measure a frame, and store what was measured.

    Parameters
    ----------
    exposure : Exposure
    frame : Dataset
        In memory; or chunked, when each chunk of what is measured is stored by whoever computes it.
    store : ProgramStore
    record : Record
    steps : Steps
    compute : callable
        Computes a list of delayed things, at once.

    Raises
    ------
    SkylevelError
        The frame cannot be levelled, or there is no room for what was measured.
    """
    place, job = require_place(exposure, store), exposure.job
    with record.stage("measure"):
        detection = None if Steps.DETECT in steps else _detection(exposure, frame, store)
        estimate = job.estimate(frame, exposure.recipe, detection)
        if not frame.chunks:
            record.say(job.finding(estimate, exposure.recipe))
    with record.stage("store"):
        # Delayed ones are computed with the arrays: what both are made from is made once.
        small = {str(name): v.data for name, v in estimate.items() if is_small(v)}

        def write(arrays: list[Chunks]) -> None:
            later = {name: value for name, value in small.items() if is_lazy(value)}
            writing = [delayed for array in arrays if (delayed := write_chunks(*array)) is not None]
            if later or writing:
                small.update(zip(later, compute([*later.values(), *writing]), strict=False))

        checksums = store.write_arrays(place, estimate, write)
        if frame.chunks:
            estimate = store.open_arrays(place, checksums, chunked=True).assign(
                {name: (estimate[name].dims, value) for name, value in small.items()}
            )
            record.say(job.finding(estimate, exposure.recipe))
        kept = _commit_record(exposure, frame, estimate, record) | {"checksums": checksums}
        return Leveling(frame, estimate, store.write_record(place, kept))


def require_place(exposure: Exposure, store: ProgramStore) -> Place:
    """Return an exposure's place.

    Raises
    ------
    StoreError
        It has none, as its header could not be read when the run was planned, though it can now.
    """
    if exposure.place is None:
        raise StoreError(exposure.trouble or f"{exposure.source}: {store.name} has no place for it; run it again")
    return exposure.place


def stored(exposure: Exposure, store: ProgramStore, *, chunked: bool = False) -> tuple[xr.Dataset, dict[str, Any]]:
    """Return what the store holds of an exposure, lazily, and its commit record.

    Raises
    ------
    StoreError
        It holds nothing, or that is damaged.
    """
    place = require_place(exposure, store)
    kept = store.read_records([place]).get(place)
    return store.read_estimate(place, kept, chunked=chunked), kept or {}


def _leveling(exposure: Exposure, frame: xr.Dataset, store: ProgramStore, steps: Steps) -> Leveling | None:
    """Return a frame with what is stored of it; None where that is damaged, and to be repaired."""
    try:
        estimate, kept = stored(exposure, store)
        return Leveling(frame, store.load(estimate), kept)
    except StoreError:
        if Steps.REPAIR in steps:
            return None
        raise


def _detection(exposure: Exposure, frame: xr.Dataset, store: ProgramStore) -> xr.Dataset | None:
    """Return the stored source mask and what found it, where they still hold for an exposure."""
    if not exposure.recipe.settings_of("mask"):
        return None
    try:
        estimate, kept = stored(exposure, store, chunked=bool(frame.chunks))
        if kept.get("mask_key") != exposure.mask_key:
            return None
        if not frame.chunks:
            return store.load(estimate)
        return estimate.chunk({dim: sizes for dim, sizes in frame.chunksizes.items() if dim in estimate.dims})
    except StoreError:
        # It is detected anew.
        return None


def _export(exposure: Exposure, leveling: Leveling, store: ProgramStore, record: Record, where: Where) -> None:
    """Level a frame by what was measured of it, write its files, and note that in its commit record."""
    group = None
    if exposure.group:
        found = store.read_group(*exposure.group)
        if found is None or found[0] != where.group_key:
            raise StoreError(f"{exposure.source}: what its group knows is not in {store.name}; run the program again")
        # Its own values, of what has one an exposure.
        group = found[1].sel(member=exposure.name) if "member" in found[1].dims else found[1]
    writing = Writing(exposure.layout, *cards_of(exposure.recipe.provenance()))
    measured = Measured(
        job=exposure.job, frame=leveling.frame, estimate=leveling.estimate, recipe=exposure.recipe, group=group,
        writing=writing,
    )  # fmt: skip
    written = {}
    with record.stage("export"):
        for kind, url in exposure.outputs.items():
            with local_output(url) as path:
                remark = exposure.job.products[kind].write(path, measured)
                written[kind] = written_output(path)
            record.say(f"wrote {public_url(url)}" + (f"; {remark}" if remark else ""))
    with record.stage("picture"):
        picture = _picture(measured, record)
    metrics = {**record.metrics(), "line_scatter": picture.get("scatter", {})}
    exported = {
        "exported": exposure.export_key(where.group_key), "export_metrics": metrics, PICTURE: picture,
        "outputs": written,
    }  # fmt: skip
    store.write_record(require_place(exposure, store), leveling.kept | exported)


def _picture(measured: Measured, record: Record) -> dict[str, Any]:
    """Return an exposure's picture; its files are written, so where it has none it is done all the same."""
    try:
        return picture_of(measured)
    except (ArithmeticError, LookupError, MemoryError, OSError, TypeError, ValueError) as error:
        record.say(f"has no picture: {type(error).__name__}: {error}")
        return {}


def require_version(client_version: str) -> None:
    """Refuse to work for a client of another version, whose plan may mean something else here."""
    if __version__ != client_version:
        raise ClusterError(
            f"this worker runs skylevel {__version__}, the client {client_version}: install the same version on both"
        )


def _commit_record(exposure: Exposure, frame: xr.Dataset, estimate: xr.Dataset, record: Record) -> dict[str, Any]:
    """Return what the store keeps of an exposure beside its arrays: keys, provenance, metrics and WCS."""
    return {
        "name": exposure.name,
        "key": exposure.key,
        "mask_key": exposure.mask_key,
        "recipe": exposure.recipe.name,
        "recipe_hash": exposure.recipe.hash,
        "settings": exposure.recipe.to_dict(),
        "source": {"path": exposure.source, **exposure.identity},
        "facts": {key: value for key, value in frame.attrs.items() if key not in _NOT_FACTS},
        "wcs": [card.rstrip() for card in str(frame.attrs.get("wcs", "")).split("\n") if _WCS_CARD.match(card)],
        "metrics": record.metrics() | exposure.job.metrics(estimate),
        "small": small_values(estimate),
        "skylevel_version": __version__,
    }

