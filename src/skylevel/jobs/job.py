"""What a job is: the Protocol, and what passes between a job and those who ask it."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, NamedTuple, Protocol

import xarray as xr

from skylevel.io.fits import Card
from skylevel.recipes import Recipe


class Facts(NamedTuple):
    """What a frame's header tells before its pixels are read.

    Attributes
    ----------
    kind : str
        As the frame's attribute.
    shape : tuple of int
        Pixels (y, x).
    attributes : mapping
        Some of the frame's attributes.
    """

    kind: str
    shape: tuple[int, int]
    attributes: Mapping[str, Any]

    @property
    def n_pixels(self) -> int:
        """Pixels of the frame."""
        return self.shape[0] * self.shape[1]

    @property
    def instrument(self) -> tuple[str, str]:
        """Detector or camera, and filter; empty where unknown."""
        known = self.attributes
        return str(known.get("detector") or known.get("camera") or ""), str(known.get("filter", ""))


class Writing(NamedTuple):
    """How a levelled image is written.

    Attributes
    ----------
    layout : {"full", "primary"}
        Of the FITS file.
    cards : list of (keyword, value, comment)
        What levelled it, for a header.
    history : list of str
        The same for people.
    """

    layout: str
    cards: list[Card]
    history: list[str]


@dataclass(frozen=True, kw_only=True)
class Measured:
    """A frame with what was measured of it: what a product is made of.

    Attributes
    ----------
    job : Job
    frame : Dataset
        In memory; chunked where it is larger than a worker.
    estimate : Dataset
    recipe : Recipe
    group : Dataset or None
        What its group knows together, where the job combines.
    writing : Writing
    """

    job: "Job"
    frame: xr.Dataset
    estimate: xr.Dataset
    recipe: Any
    group: xr.Dataset | None
    writing: Writing

    def levelled(self) -> xr.DataArray:
        """Return the levelled image (y, x), which is made once; not to be modified."""
        return self._levelled

    @cached_property
    def _levelled(self) -> xr.DataArray:
        return self.job.subtract(self.frame, self.estimate, self.recipe, self.group)


class Product(NamedTuple):
    """A file that a job writes of an exposure.

    Attributes
    ----------
    file : str
        Its name, with ``{stem}`` for the exposure's.
    write : callable
        Writes it to a path, and returns what there is to say of it, if anything.
    bytes_per_pixel : int
        Of memory, beside the frame, while it is made.
    """

    file: str
    write: Callable[[Path, Measured], str | None]
    bytes_per_pixel: int = 0


class Job(Protocol):
    """One thing to do with exposures: what differs between one job and another, and nothing else.

    Attributes
    ----------
    recipe : type of Recipe
        Its settings; its `name` is the job's. What a change of one makes stale is said beside each field.
    kind : str
        Of the frames that it takes.
    variable : str
        Of those frames, what it levels.
    products : mapping of str to Product
        ``levelled``, and what else can be kept.
    """

    recipe: ClassVar[type[Recipe]]
    kind: str
    variable: str
    products: ClassVar[Mapping[str, Product]]

    def variables(self, recipe: Any) -> tuple[str, ...]:
        """Return the variables of a frame that are read: the one it levels, and those that count where there are."""

    def bytes_per_pixel(self, recipe: Any) -> float:
        """Return a worker's memory for a frame, with what is measured and the copy that is written."""

    def stored_bytes_per_pixel(self, recipe: Any) -> float:
        """Return what the store takes of a frame."""

    def copied_bytes(self, size: int, facts: Facts, layout: str) -> int:
        """Return how many bytes of a file of `size` bytes its levelled file keeps as they are."""

    def block_rows(self, recipe: Any) -> int | None:
        """Return what the rows of a block are a multiple of, for a frame larger than a worker; None: not in blocks."""

    def describe(self, frame: xr.Dataset) -> str:
        """Return one line on a frame."""

    def caution(self, facts: Facts) -> str:
        """Return what speaks against levelling such frames, without a subject; empty where nothing does."""

    def estimate(self, frame: xr.Dataset, recipe: Any, detection: xr.Dataset | None) -> xr.Dataset:
        """Return what is measured of a frame; `detection` is an earlier estimate whose source mask still holds.

        Given a frame of Dask arrays it computes nothing: the form of its result makes room in the store.
        """

    def subtract(self, frame: xr.Dataset, estimate: xr.Dataset, recipe: Any, group: xr.Dataset | None) -> xr.DataArray:
        """Return the levelled image (y, x)."""

    def write_levelled(self, path: Path, frame: xr.Dataset, levelled: xr.DataArray, writing: Writing) -> None:
        """Write a levelled image (y, x), in memory or in Dask's blocks of rows, as FITS."""

    def finding(self, estimate: xr.Dataset, recipe: Any) -> str:
        """Return one line on what was measured."""

    def metrics(self, estimate: xr.Dataset) -> dict[str, Any]:
        """Return numbers on what was measured, for the store."""

    def advice(self, metrics: Sequence[Mapping[str, Any]], recipe: Any) -> str:
        """Return one line on settings that would serve exposures better, by their metrics; empty where none would."""

    def group(self, recipe: Any, facts: Facts) -> str | None:
        """Return the name of the group, within its node, with which a frame is combined; None where it is alone."""

    def combine(self, members: xr.Dataset, recipe: Any) -> xr.Dataset:
        """Return what a group knows together.

        Parameters
        ----------
        members : Dataset
            The estimates of its exposures, along `exposure`, lazily.
        recipe : Recipe

        Returns
        -------
        Dataset
            Small. `subtract` is given it; of what has the dimension `member`, with the names of its
            exposures, the exposure's own value. The
            attribute ``finding``, where it has one, goes on the line that says that so many were combined.
        """


def write_levelled(path: Path, measured: Measured) -> None:
    """Write an exposure's main product."""
    measured.job.write_levelled(path, measured.frame, measured.levelled(), measured.writing)


class Alone:
    """A job's part that combines nothing: each exposure is alone."""

    def group(self, recipe: Any, facts: Facts) -> str | None:  # noqa: ARG002
        """Return None."""
        return None

    def combine(self, members: xr.Dataset, recipe: Any) -> xr.Dataset:
        """Never asked for, as no exposure has a group."""
        raise NotImplementedError
