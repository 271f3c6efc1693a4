"""The form of what a job measures, found before any pixel is read: it makes room in the store."""

import functools
from typing import Any

import numpy as np
import xarray as xr

from skylevel.io.nodes import ArraySpec, Layout
from skylevel.io.records import is_small
from skylevel.jobs import Facts, Job, job_for, job_of
from skylevel.level.arrays import Array, Unread, zeros
from skylevel.recipes import Recipe

# Attributes of a frame on which the form of its measurement may depend.
_DECIDE = (
    "fast_axis", "slow_axis", "n_outputs", "substrt1", "substrt2", "instrument", "subarray", "detector",
    "color_filter_array", "dtype",
)  # fmt: skip


def layout_of(recipe: Recipe, facts: Facts) -> Layout:
    """Return the form of what a recipe's job measures of a frame: the job is asked with an image that nobody reads."""
    decisive = tuple((name, _frozen(facts.attributes[name])) for name in _DECIDE if name in facts.attributes)
    return _layout(recipe, facts.kind, facts.shape, facts.instrument, decisive)


@functools.lru_cache(maxsize=256)
def _layout(
    recipe: Recipe, kind: str, shape: tuple[int, int], instrument: tuple[str, str], decisive: tuple[Any, ...]
) -> Layout:
    job, attributes = job_of(recipe), {"kind": kind, **dict(decisive)}
    try:
        # Levels of float64 hold those of any image.
        estimate = _asked(job, recipe, Unread(shape, np.dtype(np.float64)), attributes)
    except Exception:
        # A job of one's own may do with an image what only Dask's arrays can; what it then raises counts.
        estimate = _asked(job, recipe, zeros(shape, shape[0]), attributes)
    arrays = {
        str(name): ArraySpec(tuple(map(str, v.dims)), v.shape, v.dtype.name, v.attrs)
        for name, v in estimate.items()
        if not is_small(v)
    }
    coordinates = {str(name): variable.variable for name, variable in estimate.coords.items()}
    named = tuple(name for name in instrument if name) or ("unknown",)
    form = _form(estimate, arrays, shape)
    if job_for(kind) is not job:
        form = f"{form}-{recipe.name}"
    return Layout((*named, form), arrays, coordinates)


def _asked(job: Job, recipe: Recipe, pixels: Array, attributes: dict[str, Any]) -> xr.Dataset:
    return job.estimate(xr.Dataset({job.variable: (("y", "x"), pixels)}, attrs=attributes), recipe, None)


def _frozen(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


def _form(estimate: xr.Dataset, arrays: dict[str, ArraySpec], shape: tuple[int, int]) -> str:
    """Return a short text that tells forms apart: the sizes of frame and mesh, direction, channels and other axes."""
    sizes = {dim: n for spec in arrays.values() for dim, n in zip(spec.dims, spec.shape, strict=True)}
    parts = [f"{shape[0]}x{shape[1]}"]
    meshes = sorted(dim[:-2] for dim in sizes if dim.endswith("_y"))
    parts += [f"{mesh}{sizes[f'{mesh}_y']}x{sizes[f'{mesh}_x']}" for mesh in meshes]
    if any(spec.dims[:1] == ("x",) for spec in arrays.values()):
        parts.append("columns")
    if "channel" in estimate.coords:
        parts.append("".join(map(str, estimate["channel"].values)))
    named = {"y", "x", "channel", *(f"{mesh}_{axis}" for mesh in meshes for axis in "yx")}
    parts += [f"{dim}{sizes[dim]}" for dim in sorted(sizes.keys() - named)]
    parts += sorted({spec.dtype for spec in arrays.values()} & {"float64"})
    return "-".join(parts)
