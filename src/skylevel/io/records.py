"""Commit records: small plain values, as one checksummed chunk of a Zarr array of text.

They are read and written here and not through Zarr, which takes a third of a millisecond for each, and gives up all of
them where one is damaged. The bytes are those of its codecs ``vlen-utf8`` and ``crc32c``.
"""

import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import xarray as xr
from google_crc32c import value as crc32c
from numcodecs.vlen import VLenUTF8

# Part of every key: a store of another format is measured anew.
FORMAT = 2

CHECKSUM_BYTES = 4

# Dimensions of a few places, whatever the frame's size.
_SMALL_DIMS = {"channel", "amplifier", "term", "part", "lag"}

#: Of a record, the part that only the report asks for: it is ten times as large as the rest.
PICTURE = "picture"


def encode_record(record: Mapping[str, Any]) -> bytes:
    """Return a record of `plain` values as the chunk that stores it."""
    body = bytes(VLenUTF8().encode(np.array([json.dumps(record)], dtype=object)))
    return body + crc32c(body).to_bytes(CHECKSUM_BYTES, "little")


def decode_record(chunk: bytes, *, picture: bool = False) -> dict[str, Any] | None:
    """Return the record in a stored chunk, with its picture or without; None where it is damaged or of another form."""
    if not is_whole(chunk):
        return None
    try:
        record = json.loads(VLenUTF8().decode(chunk[:-CHECKSUM_BYTES])[0])
    except (ValueError, IndexError, RecursionError):
        return None
    if not _is_record(record):
        return None
    if not picture:
        record.pop(PICTURE, None)
    return record


def is_whole(chunk: bytes) -> bool:
    """Return whether a stored chunk, of a record or an array, has the checksum that it ends with."""
    return crc32c(chunk[:-CHECKSUM_BYTES]).to_bytes(CHECKSUM_BYTES, "little") == chunk[-CHECKSUM_BYTES:]


def _is_record(record: Any) -> bool:
    if not isinstance(record, dict) or record.get("format") != FORMAT:
        return False
    if not all(isinstance(record.get(name), dict) for name in ("checksums", "small", "facts", "metrics")):
        return False
    small = record["small"].values()
    return all(isinstance(one, list) for one in record["checksums"].values()) and all(
        isinstance(kept, list) and len(kept) == 4 and isinstance(kept[0], list) and isinstance(kept[3], dict)
        for kept in small
    )


def small_values(estimate: xr.Dataset) -> dict[str, Any]:
    """Return those variables of an estimate, in memory, that have a value or one a channel, as a record keeps them."""
    return {str(name): [list(v.dims), v.values, v.dtype.name, v.attrs] for name, v in estimate.items() if is_small(v)}


def is_small(variable: xr.DataArray) -> bool:
    """Return whether a measured variable is part of the record, as an array costs files and milliseconds."""
    return set(variable.dims) <= _SMALL_DIMS


def small_variable(
    dims: Sequence[str], values: Any, dtype: str, attrs: Mapping[str, Any]
) -> tuple[tuple[str, ...], np.ndarray, dict[str, Any]]:
    """Return a variable's dimensions, values and attributes, from what `small_values` gave of it."""
    return tuple(dims), np.asarray(values, np.dtype(dtype)), dict(attrs)


def stacked_small(records: Sequence[Mapping[str, Any]]) -> dict[str, tuple[Any, ...]]:
    """Return the small variables that all of some records hold, along `exposure`: dimensions, values, attributes."""
    kept = [record["small"] for record in records]
    stacked = {}
    for name in kept[0]:
        if all(name in small for small in kept):
            of_each = [small_variable(*small[name]) for small in kept]
            dims, _, attrs = of_each[0]
            stacked[name] = (("exposure", *dims), np.array([values for _, values, _ in of_each]), attrs)
    return stacked


def plain(value: Any) -> Any:
    """Return the value as JSON knows it: NumPy scalars become Python's, and what is not finite becomes null."""
    if isinstance(value, Mapping):
        return {str(key): plain(inner) for key, inner in value.items()}
    if isinstance(value, np.ndarray):
        return plain(value.tolist())
    if isinstance(value, list | tuple):
        return [plain(inner) for inner in value]
    if isinstance(value, np.generic):
        return plain(value.item())
    if isinstance(value, float) and not np.isfinite(value):
        return None
    return value
