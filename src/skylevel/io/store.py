"""The program store: a whole program as arrays, in one Zarr v3 hierarchy that any client opens.

::

    program.zarr/
      zarr.json                       with the metadata of all that is below
      <detector>/<filter>/<shape>/    or <camera>/<shape>: a node for what can be stacked
        exposure, date_obs, ...       names and header facts, a value an exposure
        source_mask  (exposure, y, x)
        row_level    (exposure, y)    one chunk an exposure, of a large frame several, each with its checksum
        ...
        record       (exposure)       the commit record, text, one chunk an exposure, written last
        groups/<id>                   what exposures know together
      plan.json                       the driver's index: every exposure, its recipe, outputs and place
      described                       the key of what is told of the exposures, written after it
      failed/<name>.json              why an exposure failed, until it succeeds

An exposure's place along `exposure` is the plan's; its task alone writes there. Without its record, or where a stored
chunk is not the one that the record tells of, an exposure is not measured. Measuring anew removes the record first.
The driver alone makes and grows arrays, one process at a time. The file is format 2; format 1 had a group an exposure.
"""

import functools
import glob
import itertools
import json
import math
import re
import warnings
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, suppress
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr
import zarr
from fsspec.implementations.local import LocalFileSystem

from skylevel.errors import StoreError
from skylevel.io.atomic import remove_asides, replacing
from skylevel.io.lock import Lock, Share, locked, reserved
from skylevel.io.names import printable, safe_component
from skylevel.io.nodes import (
    COMPRESSORS,
    MOST_PLACES,
    RECORD,
    RECORD_SPEC,
    Array,
    ArraySpec,
    Chunks,
    Layout,
    Place,
    fits,
    location,
    make,
    node_arrays,
    resize,
    without_remarks,
    write_chunk,
    write_coordinate,
    write_facts,
)
from skylevel.io.records import (
    CHECKSUM_BYTES,
    FORMAT,
    decode_record,
    encode_record,
    is_whole,
    plain,
    small_variable,
)
from skylevel.io.remote import file_system
from skylevel.io.urls import public_url, without_secrets

_GROUPS = "groups"
_PLAN, _DESCRIBED = "plan.json", "described"
# What zarr writes a file under before that is whole.
_PARTIAL = "*.partial"
_NO_PLACE = "not placed: its header could not be read when the run was planned"


class ProgramStore:
    """The store of one program, on a local path or any URL that fsspec knows.

    Parameters
    ----------
    url : str
        Of ``program.zarr``; need not exist.

    Raises
    ------
    StoreError
        Nothing here knows the URL's protocol.
    """

    def __init__(self, url: str) -> None:
        self.url = url.rstrip("/")
        #: The URL as it may be shown.
        self.name = printable(public_url(self.url))
        try:
            self._files, self._root = file_system(self.url)
        except (ValueError, ImportError) as error:
            raise StoreError(f"{self.name}: {error}") from error

    # ---- who may write: one run, or the shares of one

    def reserved(self, share: Share | None = None) -> AbstractContextManager[Lock]:
        """Keep other runs from this store, all of them, or all but the other shares of as many; see `io.lock`."""
        self._require_own("")
        self._files.makedirs(self._root, exist_ok=True)
        return reserved(self.url, share)

    def combining(self) -> AbstractContextManager[Lock]:
        """Wait until no other share combines what groups know, and keep them from it."""
        return locked(f"{self.url}/combining.lock", patience=math.inf)

    # ---- shapes: the driver, one at a time

    def locked(self) -> AbstractContextManager[Lock]:
        """Keep other processes from changing what the store holds of plan and shapes."""
        self._require_own("")
        self._files.makedirs(self._root, exist_ok=True)
        return locked(f"{self.url}/lock")

    def prepare(self, layouts: Mapping[str, Layout], names: Mapping[str, Sequence[str]]) -> None:
        """Make room for exposures: create and grow the nodes' arrays, free places that nobody has any more.

        Parameters
        ----------
        layouts : mapping of str to Layout
            By node; those that exist already may be absent.
        names : mapping of str to sequence of str
            For each node, the exposure at each place; empty text where there is none. Other nodes are removed.
        """
        self._remove_other_format()
        with suppress(FileNotFoundError):
            self._files.rm_file(f"{self._root}/{_DESCRIBED}")
        for path in self.nodes():
            if path not in names:
                self._files.rm(self._own(path), recursive=True)
        self._group("")
        for path, held in names.items():
            for parent in itertools.accumulate(path.split("/")[:-1], "{}/{}".format):
                self._group(parent)
            node = self._group(path)
            layout = layouts.get(path, Layout((), {}, {}))
            for name, spec in ({**layout.arrays, RECORD: RECORD_SPEC}).items():
                self._drop_damaged(path, name, spec)
                make(node, name, spec, len(held))
            for name, variable in layout.coordinates.items():
                self._drop_damaged(path, name)
                write_coordinate(node, str(name), variable)
            for name in self._listed(path):
                if name not in ("zarr.json", _GROUPS):
                    self._drop_damaged(path, name)
            resize(node, len(held))
            self._free(path, [index for index, name in enumerate(held) if not name])
            write_facts(node, {"exposure": list(held)}, {"exposure": {"long_name": "exposure"}})
        self._consolidate()
        node_arrays.cache_clear()

    def has_room(self, layouts: Mapping[str, Layout], counts: Mapping[str, int]) -> bool:
        """Return whether the nodes' arrays are there, sound, and large enough for so many exposures."""
        node_arrays.cache_clear()
        try:
            if set(self.nodes()) != set(counts):
                return False
            for path, layout in layouts.items():
                arrays = node_arrays(self.url, path)
                if any(array.shape[0] != counts[path] for array in arrays.values()):
                    return False
                if not all(fits(arrays[name], spec) for name, spec in ({**layout.arrays, RECORD: RECORD_SPEC}).items()):
                    return False
        except Exception:
            # As in `_group`.
            return False
        return True

    def _group(self, path: str) -> zarr.Group:
        """Return a group of the hierarchy, made where it is not there, and anew where its metadata are damaged."""
        self._require_own(path)
        store = location(f"{self.url}/{path}".rstrip("/"))
        try:
            return zarr.open_group(store, mode="a", zarr_format=3, use_consolidated=False)
        except OSError:
            raise
        except Exception:
            # Whatever stands there: zarr has errors of every kind for metadata that are none.
            self._files.rm_file(f"{self._root}/{path}".rstrip("/") + "/zarr.json")
            return zarr.open_group(store, mode="a", zarr_format=3, use_consolidated=False)

    def _drop_damaged(self, path: str, name: str, spec: ArraySpec | None = None) -> None:
        """Remove an array whose metadata are damaged, gone or not those of its form, with what stands below."""
        folder = self._own(f"{path}/{name}")
        if not self._files.exists(folder):
            return
        try:
            array = zarr.open_array(location(f"{self.url}/{path}/{name}"), mode="r", zarr_format=3)
            if max(array.shape, default=0) > MOST_PLACES or (spec and not fits(array, spec)):
                raise ValueError("is another array")
        except Exception:
            # As in `_group`; and where there are no metadata, it is no array.
            self._files.rm(folder, recursive=True)

    def describe(
        self, path: str, facts: Sequence[Mapping[str, Any]], attrs: Mapping[str, Mapping[str, Any]]
    ) -> None:
        """Write facts of a node's exposures, by place, and attributes of its arrays; what none has is left out."""
        node = zarr.open_group(location(f"{self.url}/{path}"), mode="r+", use_consolidated=False)
        count = node_arrays(self.url, path)[RECORD].shape[0]
        every = [*facts, *[{}] * count][:count]
        names = dict.fromkeys(name for some in every for name, value in some.items() if value is not None)
        write_facts(node, {name: [some.get(name) for some in every] for name in names}, attrs)
        # As CF says it, and as xarray reads it.
        node.attrs["coordinates"] = " ".join(names)
        for name in attrs.keys() - names.keys():
            if name in node and dict(node[name].attrs) != {**node[name].attrs, **attrs[name]}:
                node[name].attrs.update(attrs[name])

    def finish(self, key: str) -> None:
        """Gather the metadata of all nodes at the root, where clients look first; keep the key of what they tell.

        What drivers that were killed left on the way to shapes, metadata and facts is removed: only they write those,
        one at a time, and each ends here.
        """
        self._consolidate()
        self._remove_drivers_leftovers()
        self._write(_DESCRIBED, key.encode())

    def described(self) -> str:
        """Return the key of what the nodes tell of their exposures; empty where they may not tell all of it."""
        (found,) = [*self._read_all([f"{self._root}/{_DESCRIBED}"]).values()] or [b""]
        return found.decode("ascii", "replace")

    def nodes(self) -> list[str]:
        """Return the paths of the nodes that hold exposures."""
        found = self._files.glob(f"{glob.escape(self._root)}/**/{RECORD}/zarr.json")
        nodes = (str(path).removeprefix(self._root).strip("/").removesuffix(f"{RECORD}/zarr.json") for path in found)
        # Not the root, nor what a group knows, whatever its job calls that.
        return sorted(node.rstrip("/") for node in nodes if node and f"/{_GROUPS}/" not in node)

    def _free(self, path: str, indices: Collection[int]) -> None:
        """Remove what stands in places that nobody has any more."""
        chunks = self._chunks(path) if indices else {}
        for name, found in chunks.items():
            for index in indices:
                for key in found.get(index, ()):
                    self._files.rm_file(f"{self._root}/{path}/{name}/{key}")

    def _remove_other_format(self) -> None:
        """Remove the groups of format 1: nothing reads them any more."""
        for folder in ("exposures", "exported"):
            if self._files.isdir(self._own(folder)):
                self._files.rm(self._own(folder), recursive=True)

    def _consolidate(self) -> None:
        with warnings.catch_warnings():
            # That other formats' clients may not know it, and that the plan is no array.
            warnings.simplefilter("ignore")
            zarr.consolidate_metadata(location(self.url))

    # ---- exposures: each by its own task

    def write_arrays(
        self, place: Place, estimate: xr.Dataset, write: Callable[[list[Chunks]], None]
    ) -> dict[str, list[str]]:
        """Store the arrays that were measured of an exposure; until its record follows, it is not measured.

        Parameters
        ----------
        place : Place
        estimate : Dataset
            Variables for which the node has no arrays are left out: they are small, and part of the record.
        write : callable
            Called with the arrays to store; comes back when all is written.

        Returns
        -------
        dict of list of str
            The checksums of each array's chunks, for the record.

        Raises
        ------
        StoreError
            The estimate is not of the form for which there is room.
        """
        arrays = self._arrays(place)
        chunks = []
        for name, variable in estimate.items():
            if name not in arrays:
                continue
            if variable.shape != arrays[str(name)].shape[1:]:
                raise StoreError(
                    f"{self.name}: {name} has shape {variable.shape}, and room for {arrays[str(name)].shape[1:]}: "
                    "the exposure changed since the run was planned; run it again"
                )
            sizes = arrays[str(name)].chunks[1:]
            self._require_own(f"{place.node}/{name}")
            chunks.append(Chunks(variable.data, sizes, functools.partial(write_chunk, self.url, place, str(name))))
        self.remove_record(place)
        write(chunks)
        return {name: self._checksums(place, name, arrays[name]) for name in map(str, estimate) if name in arrays}

    def write_record(self, place: Place, record: Mapping[str, Any]) -> dict[str, Any]:
        """Write the commit record of an exposure, in one step; returns it as plain values."""
        kept: dict[str, Any] = plain({**record, "format": FORMAT})
        self._write(f"{place.node}/{RECORD}/{place.index}", encode_record(kept))
        return kept

    def read_records(self, places: Iterable[Place], *, pictures: bool = False) -> dict[Place, dict[str, Any]]:
        """Return the commit records that there are and that are sound, by place, with their pictures or without."""
        paths = {place: f"{self._root}/{place.node}/{RECORD}/{place.index}" for place in places}
        chunks = self._read_all(paths.values())
        there = {place: chunks[path] for place, path in paths.items() if path in chunks}
        records = {place: decode_record(chunk, picture=pictures) for place, chunk in there.items()}
        return {place: record for place, record in records.items() if record is not None}

    def has_record(self, place: Place) -> bool:
        """Return whether a commit record is there, sound or not."""
        return bool(self._files.exists(f"{self._root}/{place.node}/{RECORD}/{place.index}"))

    def read_estimate(
        self, place: Place | None, record: Mapping[str, Any] | None, *, chunked: bool = False
    ) -> xr.Dataset:
        """Return what was measured of an exposure, lazily.

        Parameters
        ----------
        place : Place or None
        record : mapping or None
            Its commit record.
        chunked : bool
            As Dask arrays, in the chunks in which it is stored.

        Raises
        ------
        StoreError
            It is not there, or is not what the record tells of.
        """
        if place is None or record is None:
            raise StoreError(f"{self.name}: holds no complete measurement of it; run the program again")
        try:
            arrays = self._arrays(place)
            stored = {name: self._checksums(place, name, arrays[name]) for name in record["checksums"]}
            if stored != record["checksums"]:
                raise ValueError("a chunk is not the one that was written")
            small = {name: small_variable(*kept) for name, kept in record["small"].items()}
            return self.open_arrays(place, stored, chunked=chunked).assign(small)
        except Exception as error:
            # As in `_group`.
            raise self._damaged(f"what it holds at {place.node} {place.index} is damaged", error) from error

    def open_arrays(self, place: Place, names: Iterable[str], *, chunked: bool = False) -> xr.Dataset:
        """Return some stored arrays of an exposure, lazily, whatever its record says."""
        store = location(f"{self.url}/{place.node}")
        with without_remarks():
            # Of texts xarray may read the first one, which may be damaged and is another exposure's.
            node = xr.open_zarr(store, consolidated=False, chunks={} if chunked else None, drop_variables=[RECORD])
        shared = [name for name in node.coords if "exposure" not in node[name].dims]
        told = [name for name in node.coords if "exposure" in node[name].dims]
        kept = node[[*names, *shared]].isel(exposure=place.index).drop_vars(told)
        kept.attrs.clear()
        return kept

    def open_node(self, path: str) -> xr.Dataset:
        """Return all arrays of a node, along `exposure`, lazily."""
        with without_remarks():
            store = location(f"{self.url}/{path}")
            return xr.open_zarr(store, consolidated=False, chunks=None, drop_variables=[RECORD])

    def load(self, estimate: xr.Dataset) -> xr.Dataset:
        """Read all of an estimate; every chunk's checksum is looked at.

        Raises
        ------
        StoreError
            Some chunk is damaged.
        """
        try:
            return estimate.load()
        except (OSError, ValueError, RuntimeError) as error:
            raise self._damaged("a stored chunk is damaged", error) from error

    def require_sound(self, place: Place | None, record: Mapping[str, Any] | None) -> None:
        """Look at every stored chunk of an exposure, one after the other: none but it is held.

        Raises
        ------
        StoreError
            Something is not there, is damaged, or is not what the record tells of.
        """
        estimate = self.read_estimate(place, record)
        if place is None or record is None:
            return
        for name in record["checksums"].keys() & estimate.keys():
            for path in self._chunk_paths(place, name, self._arrays(place)[name]):
                try:
                    whole = is_whole(self._files.cat_file(path))
                except OSError as error:
                    raise self._damaged("a stored chunk cannot be read", error) from error
                if not whole:
                    raise self._damaged("a stored chunk is damaged", ValueError(f"the checksum of {name} is another"))

    def _damaged(self, what: str, error: Exception) -> StoreError:
        cause = without_secrets(str(error), self.url) or type(error).__name__
        return StoreError(f"{self.name}: {what}: {cause}; run the program again")

    def lost(self, records: Mapping[Place, Mapping[str, Any]]) -> set[Place]:
        """Return the places of which some chunk is not there: one listing an array, whatever the program's size."""
        chunks = {node: self._chunks(node) for node in {place.node for place in records}}
        return {place for place, record in records.items() if _is_lost(place, record, chunks[place.node])}

    def remove_leftovers(self, places: Iterable[Place], names: Collection[str]) -> None:
        """Remove what workers that were killed left in these places; nothing may be writing them."""
        if not isinstance(self._files, LocalFileSystem):
            return
        by_node: dict[str, set[int]] = {}
        for place in places:
            by_node.setdefault(place.node, set()).add(place.index)
        for node, indices in by_node.items():
            remove_asides(Path(self._root, node, RECORD), {str(index) for index in indices})
            for path in Path(self._own(node)).glob(f"*/{_PARTIAL}"):
                if path.name.partition(".")[0] in {str(index) for index in indices}:
                    path.unlink(missing_ok=True)
        remove_asides(Path(self._root, "failed"), {f"{safe_component(name)}.json" for name in names})

    def _remove_drivers_leftovers(self) -> None:
        """Remove what drivers that were killed left half written; chunks of exposures and groups have other writers."""
        if not isinstance(self._files, LocalFileSystem):
            return
        remove_asides(Path(self._root), {_PLAN, _DESCRIBED})
        for path in self.nodes():
            for above in itertools.accumulate(path.split("/"), "{}/{}".format, initial=""):
                self._remove_partials(above, of_metadata=True)
            of_tasks = {name for name, array in node_arrays(self.url, path).items() if array.chunks[0] == 1}
            for name in {*self._listed(path)} - {_GROUPS}:
                self._remove_partials(f"{path}/{name}", of_metadata=name in of_tasks)

    def _remove_partials(self, path: str, *, of_metadata: bool) -> None:
        """Remove what was left half written in a folder: of its metadata alone, or of its chunks too."""
        if isinstance(self._files, LocalFileSystem):
            for partial in Path(self._own(path)).glob(f"zarr.{_PARTIAL}" if of_metadata else _PARTIAL):
                partial.unlink(missing_ok=True)

    def _arrays(self, place: Place) -> dict[str, Array]:
        if not self._files.exists(f"{self._root}/{place.node}/{RECORD}/zarr.json"):
            raise StoreError(f"{self.name}: {_NO_PLACE}")
        arrays = node_arrays(self.url, place.node)
        if place.index >= arrays[RECORD].shape[0]:
            # It grew since.
            node_arrays.cache_clear()
            arrays = node_arrays(self.url, place.node)
        return arrays

    def _checksums(self, place: Place, name: str, array: Array) -> list[str]:
        """Return what stands at the end of each stored chunk of an exposure's array, its checksum, as hexadecimals."""
        paths = self._chunk_paths(place, name, array)
        return [self._files.cat_file(path, start=-CHECKSUM_BYTES).hex() for path in paths]

    def _chunk_paths(self, place: Place, name: str, array: Array) -> Iterator[str]:
        folder = f"{self._root}/{place.node}/{name}"
        for index in np.ndindex(array.cdata_shape[1:]):
            yield f"{folder}/{'.'.join(map(str, (place.index, *index)))}"

    def _chunks(self, path: str) -> dict[str, dict[int, list[str]]]:
        """Return the keys of the chunks that a node's arrays have, by array and index."""
        found: dict[str, dict[int, list[str]]] = {}
        for folder in self._listed(path):
            keys: dict[int, list[str]] = {}
            for key in self._listed(f"{path}/{folder}"):
                if re.fullmatch(r"\d+(\.\d+)*", key):
                    keys.setdefault(int(key.partition(".")[0]), []).append(key)
            found[folder] = keys
        return found

    def _listed(self, path: str) -> list[str]:
        folder = f"{self._root}/{path}"
        if not self._files.isdir(folder):
            return []
        return [str(found).rstrip("/").rsplit("/", 1)[-1] for found in self._files.ls(folder, detail=False)]

    def remove_record(self, place: Place) -> None:
        """Remove an exposure's commit record, if there is one: it is not measured then."""
        with suppress(FileNotFoundError):
            self._files.rm_file(self._own(f"{place.node}/{RECORD}/{place.index}"))

    # ---- groups

    def write_group(self, node: str, group: str, result: xr.Dataset, key: str) -> None:
        """Store what a group of a node's exposures knows together, under the key of its members."""
        self._group(f"{node}/{_GROUPS}")
        # The group's own goes with what stood in its place.
        self._remove_partials(f"{node}/{_GROUPS}", of_metadata=True)
        self._require_own(f"{node}/{_GROUPS}/{safe_component(group)}")
        url = location(f"{self.url}/{node}/{_GROUPS}/{safe_component(group)}")
        encoding = {name: {"compressors": COMPRESSORS} for name, v in result.items() if v.ndim}
        # Text of one length has no place in the format's specification.
        texts = {name: value.astype(object) for name, value in result.coords.items() if value.dtype.kind in "UT"}
        result.assign_coords(texts).drop_attrs(deep=False).to_zarr(
            url, mode="w", consolidated=False, zarr_format=3, encoding=encoding, write_empty_chunks=True
        )
        zarr.open_group(url, mode="r+").attrs["key"] = key

    def read_group(self, node: str, group: str) -> tuple[str, xr.Dataset] | None:
        """Return the key of a group's members and what they know together; None where it is not there or damaged."""
        url = location(f"{self.url}/{node}/{_GROUPS}/{safe_component(group)}")
        try:
            result = xr.open_zarr(url, consolidated=False, chunks=None).load()
        except Exception:
            # As in `_group`.
            return None
        key = result.attrs.pop("key", None)
        return (key, result) if isinstance(key, str) else None

    # ---- plan and failures

    def write_plan(self, plan: Mapping[str, Any]) -> None:
        """Write the driver's index."""
        self._write(_PLAN, json.dumps(plain(plan), indent=1).encode())

    def has_plan(self) -> bool:
        """Return whether a program was run into this folder before."""
        return bool(self._files.exists(f"{self._root}/{_PLAN}"))

    def read_plan(self) -> dict[str, Any]:
        """Return the driver's index.

        Raises
        ------
        StoreError
            There is none, it is damaged, or it is of another format.
        """
        try:
            plan = json.loads(self._files.cat_file(f"{self._root}/{_PLAN}"))
        except FileNotFoundError as error:
            raise StoreError(f"{self.name}: no program was run into this folder") from error
        except (ValueError, RecursionError) as error:
            raise self._damaged(f"its {_PLAN} is damaged", error) from error
        if not isinstance(plan, dict):
            raise StoreError(f"{self.name}: its {_PLAN} is damaged: it holds no object; run the program again")
        if plan.get("format") != FORMAT:
            raise StoreError(
                f"{self.name}: of format {printable(plan.get('format'), limit=20)}, written by another version of "
                f"skylevel; run the program again: it is measured anew in format {FORMAT}"
            )
        return plan

    def write_failure(self, name: str, reason: str) -> None:
        """Remember why an exposure failed."""
        text = json.dumps({"name": name, "reason": reason}, indent=1)
        self._write(f"failed/{safe_component(name)}.json", text.encode())

    def forget_failure(self, name: str) -> None:
        """Forget that an exposure failed; it need not have."""
        with suppress(FileNotFoundError):
            self._files.rm_file(f"{self._root}/failed/{safe_component(name)}.json")

    def failures(self) -> dict[str, str]:
        """Return why each failed exposure failed, by name; a damaged note says nothing."""
        files = (f"{self._root}/failed/{file}" for file in sorted(self._listed("failed")) if file.endswith(".json"))
        reasons: dict[str, str] = {}
        for text in self._read_all(files).values():
            with suppress(ValueError, KeyError, TypeError, RecursionError):
                note = json.loads(text)
                reasons[str(note["name"])] = str(note["reason"])
        return reasons

    # ---- files

    def _own(self, path: str) -> str:
        """Return the place of something in this store, where no link leads out of it."""
        self._require_own(path)
        return f"{self._root}/{path}".rstrip("/")

    def _require_own(self, path: str) -> None:
        """Refuse a store in which a link stands on the way: what it leads to is somebody else's.

        Raises
        ------
        StoreError
            With the link.
        """
        if not isinstance(self._files, LocalFileSystem):
            return
        for way in itertools.accumulate(filter(None, path.split("/")), "{}/{}".format, initial=self._root):
            if Path(way).is_symlink():
                raise StoreError(f"{printable(way)}: is a link, and a store has none: remove it, and run again")

    def _write(self, path: str, content: bytes) -> None:
        target = self._own(path)
        if not isinstance(self._files, LocalFileSystem):
            self._files.makedirs(target.rsplit("/", 1)[0], exist_ok=True)
            self._files.pipe_file(target, content)
            return
        Path(target).parent.mkdir(parents=True, exist_ok=True)
        with replacing(Path(target)) as new:
            new.write_bytes(content)

    def _read_all(self, paths: Iterable[str]) -> dict[str, bytes]:
        """Return the contents of the files that there are."""
        if not isinstance(self._files, LocalFileSystem):
            wanted = list(paths)
            return self._files.cat(wanted, recursive=False, on_error="omit") if wanted else {}
        contents: dict[str, bytes] = {}
        for path in paths:
            with suppress(OSError):
                contents[path] = Path(path).read_bytes()
        return contents


def _is_lost(place: Place, record: Mapping[str, Any], chunks: Mapping[str, Mapping[int, list[str]]]) -> bool:
    return any(
        len(chunks.get(name, {}).get(place.index, ())) != len(checksums)
        for name, checksums in record["checksums"].items()
    )
