"""Any supported file as one `xarray.Dataset`: the schema, and the xarray engine ``skylevel``.

Every frame has dims ``(y, x)`` and the attributes ``kind`` (``"jwst"`` or ``"camera"``), ``path`` and ``unit``.

========  ======================================================  =====================================================
kind      variables                                               made by
========  ======================================================  =====================================================
jwst      ``sci`` float32 or float64, ``err``, ``wht``,           `skylevel.io.jwst.open_exposure`, with its attributes
          ``dq`` uint32
camera    ``raw`` uint16                                          `skylevel.io.camera.open_raw`, with its attributes
camera    ``raw`` uint16 or float32                               `skylevel.io.mosaics.open_mosaic`, with its attributes
========  ======================================================  =====================================================
"""

import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import xarray as xr
from xarray.backends import BackendEntrypoint

from skylevel.errors import SettingsError, SkylevelError, UnreadableFrameError, UnsupportedFrameError
from skylevel.io.camera import open_raw, peek_raw
from skylevel.io.hdus import FITS_MAGIC, read_start
from skylevel.io.jwst import exposure_of, image_hdus, peek_of
from skylevel.io.mosaics import is_mosaic, open_mosaic, peek_mosaic
from skylevel.io.remote import local_input, local_start
from skylevel.io.urls import is_remote

# The image's header stands within so much of most files.
_HEADER_BYTES = 1 << 20

FITS_SUFFIXES = tuple(f".{name}{packed}" for packed in ("", ".gz", ".fz") for name in ("fits", "fit", "fts"))


class SkylevelBackendEntrypoint(BackendEntrypoint):
    """Opens JWST exposures and camera raws in xarray: ``xr.open_dataset(path, engine="skylevel")``."""

    description = "JWST exposures (FITS) and camera raw frames, through skylevel"
    open_dataset_parameters = ("filename_or_obj", "drop_variables", "zero_point")

    def open_dataset(  # type: ignore[override]
        self,
        filename_or_obj: str | os.PathLike[str],
        *,
        drop_variables: str | Iterable[str] | None = None,
        zero_point: float | None = None,
    ) -> xr.Dataset:
        """Open a frame; the arguments are those of `open_frame`."""
        dropped = [drop_variables] if isinstance(drop_variables, str) else list(drop_variables or ())
        return _open(Path(filename_or_obj), zero_point).drop_vars(dropped, errors="ignore")


def open_frame(path: str | os.PathLike[str], *, zero_point: float | None = None) -> xr.Dataset:
    """Open an exposure of any supported kind; its content decides which, not its name.

    Parameters
    ----------
    path : str or path-like
        A JWST exposure (``_cal``, ``_rate``, ``_crf``, ``_i2d``), a colour-filter mosaic (FITS with BAYERPAT), both
        compressed by gzip or fpack or not; or a camera raw that LibRaw reads.
    zero_point : float, optional
        A newer flux calibration than the file's, in MJy/sr per DN/s; JWST only. Kept as the attribute
        ``zero_point_correction`` = `zero_point` / PHOTMJSR, which `skylevel.flux_per_pixel` applies.

    Returns
    -------
    xarray.Dataset
        Dims ``(y, x)``; pixels of a JWST exposure are read when they are used, and only those
        (``.chunk()`` gives Dask). The attributes are described in this module and in the readers'.

    Raises
    ------
    UnreadableFrameError
        The file is missing, cut short or damaged.
    UnsupportedFrameError
        The file is sound, but no exposure that skylevel levels.
    SettingsError
        `zero_point` makes no sense for this file.
    """
    # Through xarray's own function, so that a frame is cached, copied and closed as any opened dataset.
    return xr.open_dataset(path, engine=SkylevelBackendEntrypoint, zero_point=zero_point)


def peek_frame(path: str | os.PathLike[str]) -> tuple[tuple[int, int], dict[str, Any]]:
    """Return the shape (y, x) of a frame, and what its header alone tells.

    Returns
    -------
    tuple of int, dict
        ``kind``, and those of a frame's attributes that are known without its pixels; `dtype` of the image.

    Raises
    ------
    UnreadableFrameError, UnsupportedFrameError
        As `open_frame`, as far as the header shows.
    """
    if is_remote(os.fspath(path)):
        return _peek_remote(os.fspath(path))
    source = _absolute(path)
    if read_start(source) != FITS_MAGIC:
        return peek_raw(source)
    hdus, extension = image_hdus(source)
    peek = peek_mosaic if is_mosaic(hdus, extension) else peek_of
    return peek(hdus, extension, source)


def _peek_remote(url: str) -> tuple[tuple[int, int], dict[str, Any]]:
    """Peek at a frame of which the start is fetched; all of it where that does not tell."""
    try:
        with local_start(url, _HEADER_BYTES) as path:
            return peek_frame(path)
    except SkylevelError:
        with local_input(url) as path:
            return peek_frame(path)


def _absolute(path: str | os.PathLike[str]) -> str:
    return str(Path(path).expanduser().absolute())


def _open(path: Path, zero_point: float | None) -> xr.Dataset:
    source = _absolute(path)
    if read_start(source) != FITS_MAGIC:
        _require_no(zero_point, f"{path}: zero_point is for JWST exposures; this file is not FITS")
        return _open_raw(source)
    hdus, extension = image_hdus(source)
    if not is_mosaic(hdus, extension):
        return exposure_of(hdus, extension, source, zero_point)
    _require_no(zero_point, f"{path}: zero_point is for JWST exposures; this file is a colour-filter mosaic")
    return open_mosaic(hdus, extension, source)


def _require_no(zero_point: float | None, message: str) -> None:
    if zero_point is not None:
        raise SettingsError(message)


def _open_raw(source: str) -> xr.Dataset:
    try:
        return open_raw(source)
    except (UnsupportedFrameError, UnreadableFrameError) as error:
        if source.lower().endswith(FITS_SUFFIXES):
            raise UnreadableFrameError(f"{source}: is named as FITS but does not begin as FITS") from error
        raise
