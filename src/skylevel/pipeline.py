"""A hook for the JWST pipeline: the image that a step hands on is levelled, as the row job levels its file.

>>> from jwst.pipeline import Image2Pipeline  # doctest: +SKIP
>>> hooks = {"photom": {"post_hooks": ["skylevel.pipeline.level"]}}
>>> Image2Pipeline.call("jw..._rate.fits", steps=hooks, save_results=True)  # doctest: +SKIP

or ``strun calwebb_image2 jw..._rate.fits --steps.photom.post_hooks=skylevel.pipeline.level,``. The pipeline takes a
hook by its name and gives it no settings: one with others is a function of one's own that calls `level` with a recipe.
"""

from typing import Any

import numpy as np
import xarray as xr
from astropy.io import fits

from skylevel.errors import UnsupportedFrameError
from skylevel.io.jwst import OBSERVATION_CARDS, PHOTOMETRY_CARDS, header_attributes
from skylevel.io.past import SIGN_CARDS
from skylevel.level.rows import level_rows
from skylevel.recipes import Rows, cards_of

_KEYWORDS = {word for _, words in (OBSERVATION_CARDS | PHOTOMETRY_CARDS).values() for word in words} | set(SIGN_CARDS)
_PLANES = {"err": np.float32, "dq": np.uint32}


def level(model: Any, recipe: Rows | None = None) -> Any:
    """Level the rows of a datamodel's image.

    Parameters
    ----------
    model : stdatamodels.jwst.datamodels.ImageModel
        Or another with one image (y, x); not modified.
    recipe : Rows, optional
        By default the method of the NIRCam notebook.

    Returns
    -------
    ImageModel
        A copy, with `data` levelled, what levelled it in the history and in the cards that its FITS file gets, and
        everything else as it was.

    Raises
    ------
    UnsupportedFrameError
        The step hands on something else than one image, or one that was levelled before.
    NoBackgroundError
        No pixel is finite.
    SettingsError
        `recipe` is no `Rows`.
    """
    recipe = Rows.or_default(recipe)
    levelled = level_rows(_frame(model), recipe)
    result = model.copy()
    result.data = levelled["sci"].to_numpy()
    cards, history = cards_of(recipe.provenance())
    header = [*_further_cards(model), *map(list, cards)]
    result.update({"extra_fits": {"PRIMARY": {"header": header}}}, only="PRIMARY", extra_fits=True)
    for line in history:
        result.add_history_entry(line)
    return result


def _frame(model: Any) -> xr.Dataset:
    """Return a datamodel as `skylevel.open_frame` gives its file.

    Raises
    ------
    UnsupportedFrameError
        See `level`.
    """
    image: Any = getattr(model, "data", None)
    if not hasattr(model, "find_fits_keyword") or np.ndim(image) != 2:
        raise UnsupportedFrameError(
            f"{model!r}: not one image (y, x): let the hook follow a step of calwebb_image2, such as photom"
        )
    name = str(model.meta.filename or "datamodel")
    attrs = header_attributes([_header(model)]) | {"kind": "jwst", "path": name}
    if tool := attrs.get("levelled_by"):
        raise UnsupportedFrameError(f"{name}: was levelled before, by {tool}")
    planes = {"sci": xr.Variable(("y", "x"), np.asarray(image), {"units": attrs["unit"]})}
    for plane, dtype in _PLANES.items():
        # As the model has it: asked for otherwise, one that is absent is made.
        values: Any = model.getarray_noinit(plane) if model.hasattr(plane) else None
        if np.shape(values) == np.shape(image):
            planes[plane] = xr.Variable(("y", "x"), np.asarray(values, dtype))
    return xr.Dataset(planes, attrs=attrs)


def _header(model: Any) -> fits.Header:
    """Return the cards of a datamodel that levelling looks at."""
    found = {word: model[path] for word in _KEYWORDS for path in model.find_fits_keyword(word)[:1] if path in model}
    cards = [(word, value) for word, value in found.items() if isinstance(value, bool | int | float | str)]
    return fits.Header([*cards, *((word, value) for word, value, *_ in _further_cards(model))])


def _further_cards(model: Any) -> list[list[Any]]:
    """Return the cards of the primary header that are no part of the datamodel's schema."""
    try:
        return [list(card) for card in model.extra_fits.PRIMARY.header]
    except AttributeError:
        return []
