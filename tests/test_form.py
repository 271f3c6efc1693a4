"""The form of what will be measured, found with an image that nobody reads: as Dask's arrays have it."""

from typing import Any

import numpy as np
import pytest
import xarray as xr

from skylevel.jobs import Facts, job_of
from skylevel.jobs import form as module
from skylevel.jobs.form import layout_of
from skylevel.level.arrays import Unread, zeros
from skylevel.recipes import RECIPES

PRESETS = [(name, preset) for name, recipe in RECIPES.items() for preset in recipe.presets]


def form(recipe: Any, pixels: Any, attributes: dict[str, Any]) -> Any:
    """Dimensions, shape, dtype and attributes of each variable, and the coordinates; or what was raised."""
    job = job_of(recipe)
    try:
        estimate = job.estimate(xr.Dataset({job.variable: (("y", "x"), pixels)}, attrs=attributes), recipe, None)
    except Exception as error:
        return type(error), str(error)
    found = {name: (v.dims, v.shape, v.dtype, v.attrs) for name, v in estimate.items()}
    return found, {name: v.variable.to_dict() for name, v in estimate.coords.items()}, estimate.attrs


@pytest.mark.parametrize(("name", "preset"), PRESETS)
@pytest.mark.parametrize("shape", [(2048, 2048), (100, 137), (1024, 2000), (7, 3)])
@pytest.mark.parametrize("attributes", [{}, {"fast_axis": 2}, {"n_outputs": 1, "fast_axis": -2, "subarray": "SUB64"}])
def test_is_that_of_dasks_arrays(name: str, preset: str, shape: tuple[int, int], attributes: dict[str, Any]) -> None:
    recipe, known = RECIPES[name].preset(preset), {**attributes, "color_filter_array": ["RG", "GB"]}
    unread = form(recipe, Unread(shape, np.dtype(np.float64)), known)
    assert unread == form(recipe, zeros(shape, shape[0]), known)
    assert isinstance(unread[0], dict)


def test_no_pixel_is_read() -> None:
    with pytest.raises(TypeError, match="nobody reads"):
        np.asarray(Unread((2, 3), np.dtype(np.float32)))
    assert Unread((6, 4), np.dtype(np.float32)) == Unread((8, 6), np.dtype(np.float32))[1::2].T


def test_a_job_that_knows_dasks_arrays_alone_is_asked_with_one(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def estimate(frame: xr.Dataset, recipe: Any, detection: Any) -> xr.Dataset:
        asked.append(type(frame["sci"].data))
        return xr.Dataset({"row_median": frame["sci"].chunk({"x": -1}).median("x")})

    recipe = RECIPES["rows"](n_pixels=6)
    monkeypatch.setattr(module.job_of(recipe), "estimate", estimate)
    spec = layout_of(recipe, Facts("jwst", (12, 10), {})).arrays["row_median"]
    assert (spec.dims, spec.shape) == (("y",), (12,))
    assert asked[0] is Unread
    assert len(asked) == 2
