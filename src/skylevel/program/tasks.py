"""What a worker does for one exposure: measure it (file to store) and export it (file and store to FITS).

The two are one task, so that a file is read once and a scheduler has one thing to do for it. It returns a small record
and never pixels, may run any number of times, and leaves nothing half-written: a worker that dies loses only its own.
"""

import errno
import functools
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Concatenate, ParamSpec

import numpy as np
import tenacity
import xarray as xr
from threadpoolctl import ThreadpoolController

from skylevel.allocator import peak_memory
from skylevel.errors import ClusterError, UnsupportedFrameError
from skylevel.io import camera, jwst
from skylevel.io.blocks import Card, Image
from skylevel.io.frame import open_frame
from skylevel.io.remote import local_input, local_output
from skylevel.io.store import ProgramStore
from skylevel.level import (
    background_image,
    estimate_channels,
    estimate_rows,
    segment_rows,
    subtract_channels,
    subtract_rows,
)
from skylevel.program.plan import Exposure
from skylevel.recipes import Channels, Rows
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

# Attributes of a frame that the store keeps as facts about the exposure.
_NOT_FACTS = ("wcs", "path")


@dataclass(slots=True)
class Record:
    """What a task says of itself.

    Attributes
    ----------
    name : str
        The exposure's.
    steps : list of (float, str)
        What was done, and when (POSIX time).
    seconds : dict of float
        Wall time of each stage.
    peaks_mib : dict of float
        The most memory that the worker had held by the end of each stage, in MiB. It is the process's: a later
        exposure in the same worker may show an earlier one's.
    """

    name: str
    steps: list[tuple[float, str]] = field(default_factory=list)
    seconds: dict[str, float] = field(default_factory=dict)
    peaks_mib: dict[str, float] = field(default_factory=dict)

    @property
    def peak_mib(self) -> float:
        """The most of all stages."""
        return max(self.peaks_mib.values(), default=0.0)

    def say(self, text: str) -> None:
        """Note a step that was just done."""
        self.steps.append((time.time(), text))

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Measure a stage."""
        start = time.perf_counter()
        yield
        self.seconds[name] = round(time.perf_counter() - start, 4)
        self.peaks_mib[name] = round(peak_memory() / (1 << 20), 1)

    def metrics(self) -> dict[str, Any]:
        """The record as the store keeps it."""
        return {"seconds": self.seconds, "peaks_mib": self.peaks_mib}


def is_transient(error: BaseException | None) -> bool:
    """Whether trying again may help: the error, or what caused it, is a passing one of the system."""
    while error is not None:
        if isinstance(error, OSError) and error.errno in _TRANSIENT:
            return True
        error = error.__cause__
    return False


def task(
    function: Callable[Concatenate[Exposure, P], Record],
) -> Callable[Concatenate[Exposure, P], Record]:
    """A task that works in one thread, and is tried again, a bounded number of times, after a transient error."""

    @functools.wraps(function)
    def in_one_thread(exposure: Exposure, /, *args: P.args, **kwargs: P.kwargs) -> Record:
        # Workers are as many as there are cores; pools of BLAS and OpenMP on top of that would fight over them.
        with _thread_pools().limit(limits=1):
            return function(exposure, *args, **kwargs)

    return tenacity.retry(
        retry=tenacity.retry_if_exception(is_transient),
        stop=tenacity.stop_after_attempt(_ATTEMPTS),
        wait=tenacity.wait_random_exponential(multiplier=0.5, max=5.0),
        reraise=True,
    )(in_one_thread)


@functools.cache
def _thread_pools() -> ThreadpoolController:
    return ThreadpoolController()


@task
def level_exposure(
    exposure: Exposure, store_url: str, client_version: str, *, measured: bool = False, fresh: bool = False
) -> Record:
    """Read an exposure, measure it, store what was measured, and write its FITS files.

    Parameters
    ----------
    exposure : Exposure
    store_url : str
    client_version : str
        Of skylevel, where the plan was made.
    measured : bool
        It is measured already: take what the store holds.
    fresh : bool
        Detect sources again, whatever mask is stored.

    Returns
    -------
    Record

    Raises
    ------
    SkylevelError
        The file cannot be read or levelled, the store does not hold what it should, or this worker runs another
        version.
    """
    require_version(client_version)
    record = Record(exposure.name)
    store = ProgramStore(store_url)
    with local_input(exposure.source) as path:
        with record.stage("read"):
            frame = _load(path, exposure)
            record.say(f"read {_described(frame)}")
        if measured:
            estimate = store.read_estimate(exposure.name).load()
        else:
            estimate = _measure(exposure, frame, store, record, fresh=fresh)
        _export(exposure, frame, estimate, record)
    store.write_export(exposure.name, exposure.export_key, record.metrics())
    return record


def _measure(exposure: Exposure, frame: xr.Dataset, store: ProgramStore, record: Record, *, fresh: bool) -> xr.Dataset:
    """Measure a frame, and store what was measured."""
    with record.stage("measure"):
        estimate = _estimate(exposure, frame, None if fresh else store)
        record.say(_finding(exposure, estimate))
    with record.stage("store"):
        store.write_estimate(exposure.name, estimate, attributes(exposure, frame, _levels_metrics(estimate), record))
    return estimate


def _export(exposure: Exposure, frame: xr.Dataset, estimate: xr.Dataset, record: Record) -> None:
    """Level a frame by what was measured of it, and write its FITS files."""
    with record.stage("export"):
        for kind, url in exposure.outputs.items():
            with local_output(url) as path:
                _WRITERS[kind](path, exposure, frame, estimate)
            record.say(f"wrote {url}")


def require_version(client_version: str) -> None:
    """Refuse to work for a client of another version, whose plan may mean something else here."""
    if __version__ != client_version:
        raise ClusterError(
            f"this worker runs skylevel {__version__}, the client {client_version}: install the same version on both"
        )


def _load(path: Path, exposure: Exposure) -> xr.Dataset:
    frame = open_frame(path)
    wanted, kind = {"rows": ("sci", "jwst"), "channels": ("raw", "camera")}[exposure.recipe.name]
    if frame.attrs["kind"] != kind:
        raise UnsupportedFrameError(f"{path}: the recipe {exposure.recipe.name!r} does not level this kind of file")
    return frame[[wanted]].load()


def _described(frame: xr.Dataset) -> str:
    if frame.attrs["kind"] == "jwst":
        return jwst.size_and_field(frame).split(": ", 1)[-1]
    pattern = "/".join(frame.attrs["color_filter_array"])
    return f"{frame.sizes['y']} x {frame.sizes['x']} pixels, colour filters {pattern}"


def _estimate(exposure: Exposure, frame: xr.Dataset, store: ProgramStore | None) -> xr.Dataset:
    """What is measured of a frame, from the mask in `store` where one holds."""
    recipe = exposure.recipe
    if isinstance(recipe, Channels):
        return estimate_channels(frame, recipe)
    assert isinstance(recipe, Rows)
    detection = stored_detection(exposure, store) if store else None
    return estimate_rows(frame, recipe, detection=detection if detection is None else detection.load())


def stored_detection(exposure: Exposure, store: ProgramStore) -> xr.Dataset | None:
    """The stored source mask and what found it, lazily, where they still hold for an exposure."""
    stored = store.read_attributes(exposure.name)
    if stored is None or stored.get("mask_key") != exposure.mask_key:
        return None
    return store.read_estimate(exposure.name).drop_attrs()


def _finding(exposure: Exposure, estimate: xr.Dataset) -> str:
    """One line on what was measured."""
    used = float(estimate["exclude_percentile"].max())
    relaxed = f"; exclude_percentile relaxed to {used:g}" if used > _percentile(exposure) else ""
    if "row_level" in estimate:
        levels = estimate["row_level"]
        masked = 100 * float(estimate["source_mask"].mean())
        unlevelled = int(levels.isnull().sum())
        left = f", {unlevelled} left as they were" if unlevelled else ""
        what = "rows" if "y" in levels.dims else "columns"
        return f"measured {levels.size} {what}{left}; {masked:.1f} % of the pixels in sources{relaxed}"
    medians = estimate["background"].median(["mesh_y", "mesh_x"])
    by_channel = zip(estimate["channel"].values, medians, strict=True)
    text = ", ".join(f"{channel} {float(median):.1f}" for channel, median in by_channel)
    return f"measured the background (median, ADU): {text}{relaxed}"


def _percentile(exposure: Exposure) -> float:
    return float(exposure.recipe.to_dict()["exclude_percentile"])


def attributes(exposure: Exposure, frame: xr.Dataset, found: dict[str, Any], record: Record) -> dict[str, Any]:
    """Provenance and metrics of an exposure, as the store keeps them; `found` joins the metrics."""
    return {
        "key": exposure.key,
        "mask_key": exposure.mask_key,
        "recipe": exposure.recipe.name,
        "recipe_hash": exposure.recipe.hash,
        "settings": exposure.recipe.to_dict(),
        "source": {"path": exposure.source, **exposure.identity},
        "facts": {key: value for key, value in frame.attrs.items() if key not in _NOT_FACTS},
        "metrics": record.metrics() | found,
        "skylevel_version": __version__,
    }


def _levels_metrics(estimate: xr.Dataset) -> dict[str, Any]:
    percentile = np.atleast_1d(estimate["exclude_percentile"].values).tolist()
    if "row_level" not in estimate:
        return {"exclude_percentile": percentile}
    return {
        "exclude_percentile": percentile[0],
        "masked_fraction": float(estimate["source_mask"].mean()),
        "unlevelled": int(estimate["row_level"].isnull().sum()),
        "row_level_std": float(estimate["row_level"].std()),
    }


def _provenance(exposure: Exposure) -> tuple[list[Card], list[str]]:
    recipe = exposure.recipe
    cards: list[Card] = [
        ("SKYLEVEL", __version__, "version of skylevel that levelled this"),
        ("SKYRECIP", recipe.name, "recipe of skylevel"),
        ("SKYHASH", recipe.hash[:16], "its hash: SHA-256, first 16 digits"),
    ]
    settings = ", ".join(f"{name}={value}" for name, value in recipe.to_dict().items())
    return cards, [f"skylevel {__version__} {recipe.name}: {settings}"]


def _write_levelled(path: Path, exposure: Exposure, frame: xr.Dataset, estimate: xr.Dataset) -> None:
    if isinstance(exposure.recipe, Channels):
        write_levelled(path, exposure, frame, subtract_channels(frame, estimate, exposure.recipe).to_numpy())
    else:
        write_levelled(path, exposure, frame, subtract_rows(frame, estimate).to_numpy())


def write_levelled(path: Path, exposure: Exposure, frame: xr.Dataset, levelled: Image) -> None:
    """Write a levelled image as the exposure's main output, with its provenance."""
    cards, history = _provenance(exposure)
    if isinstance(exposure.recipe, Channels):
        assert isinstance(levelled, np.ndarray)
        camera.write_mosaic(path, frame, levelled, cards=cards, history=history, layout=exposure.layout)
        return
    write = jwst.write_full if exposure.layout == "full" else jwst.write_primary
    write(path, frame, levelled, cards=cards, history=history)


def _write_segmentation(path: Path, exposure: Exposure, frame: xr.Dataset, estimate: xr.Dataset) -> None:
    assert isinstance(exposure.recipe, Rows)
    jwst.write_segmentation(path, frame, segment_rows(frame, estimate, exposure.recipe))


def _write_masked(path: Path, _: Exposure, frame: xr.Dataset, estimate: xr.Dataset) -> None:
    jwst.write_masked(path, frame, estimate["source_mask"].to_numpy())


def _write_background(path: Path, exposure: Exposure, frame: xr.Dataset, estimate: xr.Dataset) -> None:
    assert isinstance(exposure.recipe, Rows | Channels)
    image = background_image(frame, estimate, exposure.recipe)
    jwst.write_image(path, frame, image, cards=_provenance(exposure)[0])


_WRITERS: dict[str, Callable[[Path, Exposure, xr.Dataset, xr.Dataset], None]] = {
    "levelled": _write_levelled,
    "segmentation": _write_segmentation,
    "masked": _write_masked,
    "background": _write_background,
}
