"""The form of what a job measures, found before any pixel is read: it makes room in the store."""

import functools
from typing import Any

import dask.array as da
import xarray as xr

from skylevel.io.nodes import ArraySpec, Layout
from skylevel.io.records import is_small
from skylevel.jobs import Facts, job_for, job_of
from skylevel.recipes import Recipe

# Attributes of a frame on which the form of its measurement may depend.
_DECIDE = ("fast_axis", "n_outputs", "subarray", "detector", "color_filter_array", "dtype")


def layout_of(recipe: Recipe, facts: Facts) -> Layout:
    """Return the form of what a recipe's job measures of a frame: the job is asked with an image that nobody reads."""
    decisive = tuple((name, _frozen(facts.attributes.get(name))) for name in _DECIDE)
    estimate = _estimated(recipe.hash, recipe, facts.kind, facts.shape, decisive)
    arrays = {
        str(name): ArraySpec(tuple(map(str, v.dims)), v.shape, v.dtype.name, v.attrs)
        for name, v in estimate.items()
        if not is_small(v)
    }
    instrument = tuple(name for name in facts.instrument if name) or ("unknown",)
    coordinates = {str(name): variable.variable for name, variable in estimate.coords.items()}
    return Layout((*instrument, _form(estimate, arrays, recipe, facts)), arrays, coordinates)


@functools.lru_cache(maxsize=256)
def _estimated(_: str, recipe: Recipe, kind: str, shape: tuple[int, int], decisive: tuple[Any, ...]) -> xr.Dataset:
    job, attributes = job_of(recipe), {name: value for name, value in decisive if value is not None}
    pixels = da.zeros(shape, attributes.get("dtype", "float32"), chunks=-1)
    frame = xr.Dataset({job.variable: (("y", "x"), pixels)}, attrs={"kind": kind, **attributes})
    return job.estimate(frame, recipe, None)


def _frozen(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


def _form(estimate: xr.Dataset, arrays: dict[str, ArraySpec], recipe: Recipe, facts: Facts) -> str:
    """Return a short text that tells forms apart: the sizes of frame and mesh, direction, channels and other axes."""
    sizes = {str(dim): n for dim, n in estimate.sizes.items()}
    parts = ["{}x{}".format(*facts.shape)]
    if {"mesh_y", "mesh_x"} <= sizes.keys():
        parts.append(f"mesh{sizes['mesh_y']}x{sizes['mesh_x']}")
    if any(spec.dims == ("x",) for spec in arrays.values()):
        parts.append("columns")
    if "channel" in estimate.coords:
        parts.append("".join(map(str, estimate["channel"].values)))
    parts += [f"{dim}{sizes[dim]}" for dim in sorted(sizes.keys() - {"y", "x", "mesh_y", "mesh_x", "channel"})]
    parts += sorted({spec.dtype for spec in arrays.values()} & {"float64"})
    if job_for(facts.kind) is not job_of(recipe):
        parts.append(recipe.name)
    return "-".join(parts)
