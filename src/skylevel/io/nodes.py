"""Nodes of the program store: Zarr arrays along `exposure`, made and grown by the driver, a chunk an exposure."""

import functools
import re
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import numpy as np
import xarray as xr
import zarr
from numpy.typing import NDArray
from zarr.codecs import BloscCodec, Crc32cCodec
from zarr.errors import ZarrUserWarning
from zarr.storage import LocalStore

from skylevel.io.names import safe_component
from skylevel.io.records import plain
from skylevel.io.urls import is_remote

Array = zarr.Array[Any]

# Eight times smaller for a mask, at the price of a copy; floats hardly compress.
_BLOSC = BloscCodec(cname="zstd", clevel=1, shuffle="bitshuffle")

#: What every chunk goes through: the checksum is the last, over what is on the disk.
COMPRESSORS = (_BLOSC, Crc32cCodec())

# All chunks of an array in one folder: files and folders are counted.
_ONE_FOLDER: Any = {"name": "v2", "separator": "."}

# A frame of more pixels has several chunks, of whole rows, so that it can be written by several workers.
LARGEST_CHUNK = 1 << 25

# Values of a fact, of all exposures, in a chunk: one file for most programs, and it may grow without being moved.
_FACTS_CHUNK = 4096

RECORD = "record"

# Exposures of one kind, at the most.
MOST_PLACES = 1 << 20

# What stands in a store beside its nodes or marks one, with locks and what is half written, and how the last part of
# a node's path begins: its form, such as 2048x2048. No name from outside may be taken for one, nor for what one
# becomes.
_TAKEN = re.compile(
    r"_*((zarr|plan)\.json\Z|(described|failed|exposures|exported|groups|record)\Z|(.*\.)?lock(\.|\Z)|"
    r".*\.(tmp|partial)\Z|\d+x\d)",
    re.IGNORECASE,
)


def location(url: str) -> Any:
    """Return what zarr and xarray find a store or a part of it by: they take some paths for chained URLs."""
    return url if is_remote(url) or "::" not in url else LocalStore(url)


class Place(NamedTuple):
    """Where an exposure's measurement stands: a node of the hierarchy, and an index along its `exposure`."""

    node: str
    index: int  # type: ignore[assignment]  # a tuple's own method


class ArraySpec(NamedTuple):
    """An array of a node, as one exposure has it.

    Attributes
    ----------
    dims : tuple of str
    shape : tuple of int
    dtype : str
    attrs : mapping
        ``long_name`` and what else is the same for all exposures.
    """

    dims: tuple[str, ...]
    shape: tuple[int, ...]
    dtype: str
    attrs: Mapping[str, Any]


class Layout(NamedTuple):
    """The form of what is measured of an exposure: those of one form stand in one node.

    Attributes
    ----------
    node : tuple of str
        Names of the node's groups, from outside as they may be.
    arrays : mapping of str to ArraySpec
    coordinates : mapping of str to Variable
        What all exposures of the node share.
    """

    node: tuple[str, ...]
    arrays: Mapping[str, ArraySpec]
    coordinates: Mapping[str, xr.Variable]

    @property
    def path(self) -> str:
        """The node's path in the hierarchy."""
        *names, form = self.node
        return "/".join([*map(_name_of_node, names), safe_component(form)])


def _name_of_node(name: str) -> str:
    return safe_component(f"_{name}" if _TAKEN.match(name) else name)


#: The commit records, in every node.
RECORD_SPEC = ArraySpec((), (), "str", {"long_name": "commit record, JSON"})


class Chunks(NamedTuple):
    """An array to store, the sizes of a chunk of it, and what stores one, given its corner and its values."""

    array: Any
    sizes: tuple[int, ...]
    write: Callable[[tuple[slice, ...], NDArray[Any]], None]


@functools.lru_cache(maxsize=64)
def node_arrays(url: str, path: str) -> dict[str, Array]:
    """Return the arrays of a node along `exposure`; opening them takes as long as writing to them."""
    # A chunk that holds nothing but the fill value would look like one that was lost.
    with zarr.config.set({"array.write_empty_chunks": True}), without_remarks():
        node = zarr.open_group(location(f"{url}/{path}"), mode="r+", use_consolidated=False)
        return {name: array for name, array in node.arrays() if _dims(array)[:1] == ("exposure",)}


@contextmanager
def without_remarks() -> Iterator[None]:
    """Keep zarr from remarking on what it does not know in a folder: it is passed over here, and removed by a run."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ZarrUserWarning)
        yield


def fits(array: Array, spec: "ArraySpec") -> bool:
    """Return whether an array is as `make` made it, but for its length, which is one that an array can have."""
    is_text = spec.dtype == "str"
    return (
        _dims(array) == ("exposure", *spec.dims)
        and array.shape[0] <= MOST_PLACES
        and array.shape[1:] == tuple(spec.shape)
        and array.chunks == (1, *_chunk_shape(spec.shape))
        and (is_text or array.dtype == np.dtype(spec.dtype))
    )


def _dims(array: Array) -> tuple[str | None, ...]:
    return tuple(getattr(array.metadata, "dimension_names", None) or ())


def make(node: zarr.Group, name: str, spec: ArraySpec, count: int) -> None:
    """Make an array for some exposures, where it is not there."""
    if name in node:
        return
    is_text = spec.dtype == "str"
    node.create_array(
        name,
        shape=(count, *spec.shape),
        chunks=(1, *_chunk_shape(spec.shape)),
        dtype=str if is_text else np.dtype(spec.dtype),
        fill_value="" if is_text else np.nan if np.dtype(spec.dtype).kind == "f" else 0,
        compressors=COMPRESSORS[1:] if is_text else COMPRESSORS,
        dimension_names=("exposure", *spec.dims),
        attributes=plain(spec.attrs),
        chunk_key_encoding=_ONE_FOLDER,
    )


def _chunk_shape(shape: tuple[int, ...]) -> tuple[int, ...]:
    if len(shape) < 2 or shape[-1] * shape[-2] <= LARGEST_CHUNK:
        return tuple(shape)
    return (*shape[:-2], max(LARGEST_CHUNK // shape[-1] // 4, 1), shape[-1])


def resize(node: zarr.Group, count: int) -> None:
    """Give every array along `exposure` room for exactly so many, so that they can be opened together."""
    with without_remarks():
        arrays = [array for _, array in node.arrays()]
    for array in arrays:
        if _dims(array)[:1] == ("exposure",) and array.shape[0] != count:
            array.resize((count, *array.shape[1:]))


def write_chunk(url: str, place: Place, name: str, where: tuple[slice, ...], values: NDArray[Any]) -> None:
    """Write a chunk of an exposure's array."""
    selection: Any = (place.index, *where)
    node_arrays(url, place.node)[name][selection] = values


def write_facts(node: zarr.Group, facts: Mapping[str, Sequence[Any]], attrs: Mapping[str, Mapping[str, Any]]) -> None:
    """Write values of all exposures of a node; a fact that some lack is NaN or empty there."""
    for name, values in facts.items():
        texts = any(isinstance(value, str) for value in values)
        whole = np.array([_fact(value, texts) for value in values], dtype=object if texts else np.float64)
        array: Any = node.get(name)
        if array is not None and (array.dtype.kind == "f") == texts:
            del node[name]
            array = None
        if array is None:
            array = node.create_array(
                name, shape=whole.shape, chunks=(_FACTS_CHUNK,), dtype=str if texts else np.float64,
                fill_value="" if texts else np.nan, compressors=[Crc32cCodec()], dimension_names=("exposure",),
                attributes=plain(attrs.get(name, {})), chunk_key_encoding=_ONE_FOLDER,
            )  # fmt: skip
        if array.shape != whole.shape:
            array.resize(whole.shape)
        array[:] = whole


def _fact(value: Any, texts: bool) -> Any:
    if texts:
        return "" if value is None else str(value)
    return np.nan if value is None else value


def write_coordinate(node: zarr.Group, name: str, variable: xr.Variable) -> None:
    """Write a coordinate that a node's exposures share, once."""
    if name in node:
        return
    is_text = variable.dtype.kind in "UOT"
    array = node.create_array(
        name, shape=variable.shape, chunks=variable.shape, dtype=str if is_text else variable.dtype,
        fill_value="" if is_text else 0, compressors=[Crc32cCodec()], dimension_names=tuple(map(str, variable.dims)),
        attributes=plain(variable.attrs), chunk_key_encoding=_ONE_FOLDER,
    )  # fmt: skip
    array[:] = variable.values.astype(object) if is_text else variable.values
