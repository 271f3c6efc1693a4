"""A levelled frame to a file: what a run writes of each exposure, by hand."""

from os import PathLike
from pathlib import Path

import xarray as xr

from skylevel.errors import UnsupportedFrameError
from skylevel.jobs import Writing, job_for
from skylevel.recipes import cards_of


def write_frame(levelled: xr.Dataset, path: str | PathLike[str], *, layout: str = "full") -> None:
    """Write a levelled frame as FITS.

    Parameters
    ----------
    levelled : Dataset
        As `skylevel.level_rows` or `skylevel.level_channels` gives it of a frame that `skylevel.open_frame` opened,
        whose file is read again for all that is kept. A chunked one is computed block by block.
    path : str or path-like
        Replaced in one step once the file is whole.
    layout : {"full", "primary"}
        "full": every HDU of the input. "primary": one HDU, with the merged header.

    Raises
    ------
    UnsupportedFrameError
        It is no levelled frame that was opened from a file.
    SettingsError
        `layout` is another word, or `path` is the exposure itself.
    UnreadableFrameError
        The exposure can no longer be read.
    """
    job = job_for(str(levelled.attrs.get("kind")))
    if job is None or "sci" not in levelled or "background" not in levelled:
        raise UnsupportedFrameError("only a levelled frame that open_frame opened can be written")
    # What a job levels is, in a levelled frame, its image.
    frame = levelled if job.variable in levelled else levelled.assign({job.variable: levelled["sci"]})
    cards, history = cards_of(levelled.attrs)
    job.write_levelled(Path(path), frame, levelled["sci"], Writing(layout, cards, history))
