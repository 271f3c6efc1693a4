"""The program store: what was measured of each exposure, in Zarr v3.

::

    program.zarr/
      plan.json                   the driver's index: every exposure, its recipe and its outputs
      failed/<name>.json          why an exposure failed, until it succeeds
      exported/<name>.json        which outputs its FITS files are, written after them
      exposures/<name>/           one group an exposure, written by one task alone
        source_mask, background, background_rms, row_level
        attributes: key, recipe, settings, source, facts, metrics, and last of all complete

A group without ``complete`` is not there. On a local file system a group is written aside and renamed, so that it is
there whole or not at all; elsewhere the attribute is written last.
"""

import json
import shutil
from collections.abc import Callable, Collection, Hashable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import dask
import numpy as np
import xarray as xr
import zarr
from fsspec.implementations.local import LocalFileSystem
from zarr.codecs import BloscCodec

from skylevel.errors import StoreError
from skylevel.io.atomic import aside, remove_asides, replacing
from skylevel.io.remote import file_system

# Part of every key: a store of another format is measured anew.
FORMAT = 1

# Values of an array that is kept as an attribute.
_SMALL = 16

# Eight times smaller for a mask, at the price of a copy; floats hardly compress.
_CODEC = BloscCodec(cname="zstd", clevel=1, shuffle="bitshuffle")


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
        try:
            self._files, self._root = file_system(self.url)
        except (ValueError, ImportError) as error:
            raise StoreError(f"{self.url}: {error}") from error

    def write_estimate(
        self,
        name: str,
        estimate: xr.Dataset,
        attributes: Mapping[str, Any],
        *,
        compute: Callable[[Any], Any] = dask.compute,
    ) -> None:
        """Store what was measured of an exposure, replacing what stood there.

        Parameters
        ----------
        name : str
            The exposure's.
        estimate : Dataset
            In memory; or chunked, when each chunk is stored as it is.
        attributes : mapping
            Plain values; NaN and infinity are stored as null.
        compute : callable
            Writes the chunks of a chunked estimate, given the delayed writing.
        """
        # An array costs files and milliseconds, and Zarr v3 has no settled form for text: small things are attributes.
        small = {str(key): var for key, var in estimate.variables.items() if _is_small(key, var, estimate)}
        dataset = estimate.drop_vars(small)
        chunks = [f"{array}/c{key}" for array, variable in dataset.items() for key in _chunk_keys(variable)]
        kept = {key: [variable.dims, variable.values, str(variable.dtype)] for key, variable in small.items()}
        own = {"small": kept, "coordinates": list(estimate.coords), "chunks": chunks}
        dataset = dataset.assign_attrs(_plain({**attributes, **own}))
        if not isinstance(self._files, LocalFileSystem):
            _write_group(dataset, self._group_url(name), compute)
            zarr.open_group(self._group_url(name), mode="r+").attrs["complete"] = True
            return
        final = Path(self._root, "exposures", name)
        new = aside(final)
        try:
            _write_group(dataset.assign_attrs(complete=True), str(new), compute)
            _replace_folder(new, final)
        finally:
            shutil.rmtree(new, ignore_errors=True)

    def read_estimate(self, name: str) -> xr.Dataset:
        """What was measured of an exposure, lazily; its attributes are what `write_estimate` was given.

        Raises
        ------
        StoreError
            It is not there, or not complete.
        """
        if self.read_attributes(name) is None:
            raise StoreError(f"{self.url}: holds no complete measurement of {name}; run the program again")
        estimate = xr.open_zarr(self._group_url(name), consolidated=False, chunks=None)
        small = {
            key: (dims, np.asarray(values, dtype)) for key, (dims, values, dtype) in estimate.attrs["small"].items()
        }
        return estimate.assign(small).set_coords(estimate.attrs["coordinates"])

    def read_attributes(self, name: str) -> dict[str, Any] | None:
        """The attributes of an exposure's group; None where it is not there or not complete."""
        try:
            text = self._files.cat_file(f"{self._root}/exposures/{name}/zarr.json")
            attributes = json.loads(text)["attributes"]
        except (FileNotFoundError, NotADirectoryError, ValueError, KeyError, TypeError):
            return None
        return attributes if attributes.get("complete") and self._has_chunks(name, attributes) else None

    def _has_chunks(self, name: str, attributes: Mapping[str, Any]) -> bool:
        """Whether no pixels were lost, which Zarr would read as its fill value without a word."""
        group = f"{self._root}/exposures/{name}"
        chunks = [f"{group}/{chunk}" for chunk in attributes.get("chunks", [])]
        if isinstance(self._files, LocalFileSystem):
            return all(Path(chunk).is_file() for chunk in chunks)
        # One request for all of them.
        return set(chunks) <= set(self._files.find(group))

    def names(self) -> list[str]:
        """The exposures that are there, complete or not, sorted."""
        folder = f"{self._root}/exposures"
        if not self._files.isdir(folder):
            return []
        found = (str(path).rstrip("/").rsplit("/", 1)[-1] for path in self._files.ls(folder, detail=False))
        return sorted(name for name in found if not name.startswith("."))

    def remove_leftovers(self, names: Collection[str]) -> None:
        """Remove what workers that were killed left of these exposures; nothing may be writing them."""
        if isinstance(self._files, LocalFileSystem):
            remove_asides(Path(self._root, "exposures"), names)
            for folder in ("failed", "exported"):
                remove_asides(Path(self._root, folder), {f"{name}.json" for name in names})

    def write_plan(self, plan: Mapping[str, Any]) -> None:
        """Write the driver's index."""
        self._write_json("plan.json", plan)

    def has_plan(self) -> bool:
        """Whether a program was run into this folder before."""
        return bool(self._files.exists(f"{self._root}/plan.json"))

    def read_plan(self) -> dict[str, Any]:
        """The driver's index.

        Raises
        ------
        StoreError
            There is none: no program was run into this folder.
        """
        plan = self._read_json("plan.json")
        if plan is None:
            raise StoreError(f"{self.url}: no program was run into this folder")
        if plan.get("format") != FORMAT:
            raise StoreError(f"{self.url}: of format {plan.get('format')}, written by another version of skylevel")
        return plan

    def write_failure(self, name: str, reason: str) -> None:
        """Remember why an exposure failed."""
        self._write_json(f"failed/{name}.json", {"reason": reason})

    def forget_failure(self, name: str) -> None:
        """Forget that an exposure failed; it need not have."""
        path = f"{self._root}/failed/{name}.json"
        if self._files.exists(path):
            self._files.rm_file(path)

    def failures(self) -> dict[str, str]:
        """Why each failed exposure failed, by name."""
        return self._read_all("failed", "reason")

    def write_export(self, name: str, key: str, metrics: Mapping[str, Any]) -> None:
        """Remember under which key an exposure's outputs were written, and what it took."""
        self._write_json(f"exported/{name}.json", {"key": key, "metrics": metrics})

    def export_keys(self) -> dict[str, str]:
        """The key under which each exposure's outputs were written, by name."""
        return self._read_all("exported", "key")

    def _read_all(self, folder: str, field: str) -> dict[str, str]:
        """One field of every record in a folder, by name; a damaged record says nothing."""
        path = f"{self._root}/{folder}"
        found = self._files.ls(path, detail=False) if self._files.isdir(path) else []
        files = sorted(str(p).rsplit("/", 1)[-1] for p in found if str(p).endswith(".json"))
        values: dict[str, str] = {}
        for file in files:
            with suppress(ValueError, KeyError, TypeError):
                values[file.removesuffix(".json")] = self._read_json(f"{folder}/{file}")[field]  # type: ignore[index]
        return values

    def _group_url(self, name: str) -> str:
        return f"{self.url}/exposures/{name}"

    def _write_json(self, path: str, value: Mapping[str, Any]) -> None:
        text = json.dumps(_plain(value), indent=1).encode()
        target = f"{self._root}/{path}"
        self._files.makedirs(target.rsplit("/", 1)[0], exist_ok=True)
        if not isinstance(self._files, LocalFileSystem):
            self._files.pipe_file(target, text)
            return
        with replacing(Path(target)) as new:
            new.write_bytes(text)

    def _read_json(self, path: str) -> dict[str, Any] | None:
        try:
            value: dict[str, Any] = json.loads(self._files.cat_file(f"{self._root}/{path}"))
        except FileNotFoundError:
            return None
        return value


def _write_group(dataset: xr.Dataset, url: str, compute: Callable[[Any], Any]) -> None:
    """Write each array, or each chunk of a chunked one, as one chunk: it has one writer."""
    encoding = {
        name: {"compressors": _CODEC, "chunks": _stored_chunks(variable)}
        for name, variable in dataset.items()
        if variable.ndim
    }
    # Arrays in memory are written here and now; what is delayed is the chunks of the others.
    # Without empty chunks, one that holds nothing but the fill value would look like one that was lost.
    writing = dataset.to_zarr(
        url, mode="w", consolidated=False, zarr_format=3, encoding=encoding, compute=False, write_empty_chunks=True
    )
    if any(variable.chunks for variable in dataset.values()):
        compute(writing)


def _is_small(name: Hashable, variable: xr.Variable, dataset: xr.Dataset) -> bool:
    return name in dataset.coords or (variable.ndim < 2 and variable.size <= _SMALL and not variable.chunks)


def _stored_chunks(variable: xr.DataArray) -> tuple[int, ...]:
    return tuple(sizes[0] for sizes in variable.chunks) if variable.chunks else variable.shape


def _chunk_keys(variable: xr.DataArray) -> Iterator[str]:
    """Zarr's names of an array's stored chunks: an index for each dimension."""
    counts = [len(sizes) for sizes in variable.chunks] if variable.chunks else [1] * variable.ndim
    return ("".join(f"/{i}" for i in index) for index in np.ndindex(*counts))


def _replace_folder(source: Path, target: Path) -> None:
    """Rename a folder over another. Between the two renamings neither is there, which reads as not measured."""
    old = aside(target)
    if target.exists():
        target.rename(old)
    source.rename(target)
    shutil.rmtree(old, ignore_errors=True)


def _plain(value: Any) -> Any:
    """The value as JSON knows it: NumPy scalars become Python's, and what is not finite becomes null."""
    if isinstance(value, Mapping):
        return {str(key): _plain(inner) for key, inner in value.items()}
    if isinstance(value, np.ndarray):
        return _plain(value.tolist())
    if isinstance(value, list | tuple):
        return [_plain(inner) for inner in value]
    if isinstance(value, np.generic):
        return _plain(value.item())
    if isinstance(value, float) and not np.isfinite(value):
        return None
    return value
