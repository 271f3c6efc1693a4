"""The two notebooks' methods as plain photutils and astropy calls: what the kernels are held against.

Nothing here is fast or shared with skylevel: a mistake in a kernel cannot hide behind the same mistake here.
"""

import contextlib
import statistics
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from astropy.convolution import Gaussian2DKernel, convolve, interpolate_replace_nans
from astropy.stats import SigmaClip
from photutils.background import Background2D, MeanBackground, MedianBackground, ModeEstimatorBackground
from photutils.segmentation import deblend_sources, detect_sources, make_2dgaussian_kernel

RELAXED = (10.0, 20.0, 40.0, 80.0, 100.0)
ESTIMATORS = {"median": MedianBackground, "mean": MeanBackground, "mode": ModeEstimatorBackground}
NORMS = {"R": 1.34, "G": 1.0, "B": 1.25}


@dataclass(frozen=True)
class RowsReference:
    """What the row notebook measures on one image, and the image it leaves."""

    source_mask: np.ndarray
    background: np.ndarray
    background_rms: np.ndarray
    background_mesh: np.ndarray
    background_rms_mesh: np.ndarray
    exclude_percentile: float
    row_level: np.ndarray
    sci: np.ndarray
    segmentation: np.ndarray | None


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Photutils and astropy warn of NaN and of images without a source; the tests know."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def background_of(
    image: np.ndarray,
    *,
    box_size: int | tuple[int, int],
    filter_size: int,
    sigma_clip: float,
    max_rounds: int,
    estimator: str,
    exclude_percentile: float = 10.0,
) -> Background2D:
    """Background2D, with `exclude_percentile` relaxed where no box passes."""
    attempts = [exclude_percentile, *(p for p in RELAXED if p > exclude_percentile)]
    for attempt in attempts:
        try:
            with quiet():
                return Background2D(
                    image,
                    box_size,
                    filter_size=filter_size,
                    sigma_clip=SigmaClip(sigma=sigma_clip, maxiters=max_rounds),
                    bkg_estimator=ESTIMATORS[estimator](),
                    exclude_percentile=attempt,
                )
        except ValueError as error:
            if "All boxes contain" not in str(error) or attempt == attempts[-1]:
                raise
    raise AssertionError("unreachable")


def smoothed(image: np.ndarray, *, fwhm: float = 3.0, size: int = 3) -> np.ndarray:
    """The image as the notebook smooths it before detection."""
    with quiet():
        return convolve(image, make_2dgaussian_kernel(fwhm, size=size))


def rows_reference(
    image: np.ndarray,
    *,
    box_size: int = 50,
    filter_size: int = 3,
    sigma_clip: float = 3.0,
    threshold: float = 2.0,
    kernel_fwhm: float = 3.0,
    kernel_size: int = 3,
    n_pixels: int = 5,
    exclude_percentile: float = 10.0,
    positive_only: bool = True,
    columns: bool = False,
    deblend: bool = False,
    n_levels: int = 32,
    contrast: float = 0.001,
) -> RowsReference:
    """Source mask, background and row levels of the notebook; `columns` for vertical stripes."""
    measured = background_of(
        image,
        box_size=box_size,
        filter_size=filter_size,
        sigma_clip=sigma_clip,
        max_rounds=10,
        estimator="median",
        exclude_percentile=exclude_percentile,
    )
    background, background_rms = measured.background, measured.background_rms
    smooth = smoothed(image, fwhm=kernel_fwhm, size=kernel_size)
    segmentation = None
    with quiet():
        found = detect_sources(smooth, background + threshold * background_rms, n_pixels=n_pixels)
        if found is not None and deblend:
            found = deblend_sources(
                smooth, found, n_pixels=n_pixels, n_levels=n_levels, contrast=contrast, progress_bar=False
            )
    if found is not None:
        segmentation = found.data
    mask = np.zeros(image.shape, bool) if segmentation is None else segmentation != 0
    levels, sci = row_levels_given_mask(
        image.T if columns else image, mask.T if columns else mask, positive_only=positive_only
    )
    return RowsReference(
        source_mask=mask,
        background=background,
        background_rms=background_rms,
        background_mesh=measured.background_mesh,
        background_rms_mesh=measured.background_rms_mesh,
        exclude_percentile=measured.exclude_percentile,
        row_level=levels,
        sci=sci.T if columns else sci,
        segmentation=segmentation,
    )


def row_levels_given_mask(
    image: np.ndarray, mask: np.ndarray, *, positive_only: bool = True
) -> tuple[np.ndarray, np.ndarray]:
    """Levels (NaN where no pixel is left) and levelled image, one NumPy median per row."""
    usable = ~mask & ((image > 0) if positive_only else np.isfinite(image))
    levels = np.full(len(image), np.nan, np.float32)
    levelled = image.copy()
    for row in np.flatnonzero(usable.any(axis=1)):
        levels[row] = np.median(image[row][usable[row]])
        levelled[row] = image[row] - levels[row]
    return levels, levelled


def notebook_rows(image: np.ndarray, segmentation: np.ndarray) -> np.ndarray:
    """The notebook's two loops, pixel by pixel (its outer loop takes the image to be square; this one does not)."""
    n_rows, n_columns = image.shape
    masked = [[0] * n_columns for _ in range(n_rows)]
    for y in range(n_rows):
        for x in range(n_columns):
            masked[y][x] = image[y][x] if segmentation[y][x] == 0 else 0
    levelled: list[np.ndarray] = []
    for y in range(n_rows):
        left = []
        for x in range(n_columns):
            if masked[y][x] > 0:
                left.append(image[y][x])  # noqa: PERF401 - the notebook's loop, as it stands
        levelled.append(image[y] - statistics.median(left) if left else image[y])
    return np.array(levelled)


def tiled(pattern: Sequence[str], shape: tuple[int, int]) -> np.ndarray:
    """Colour letter of every pixel of a mosaic."""
    letters = np.array([list(row) for row in pattern])
    repeats = [-(-n // m) for n, m in zip(shape, letters.shape, strict=True)]
    return np.tile(letters, repeats)[: shape[0], : shape[1]]


def filled_reference(raw: np.ndarray, of_colour: np.ndarray, *, kernel_stddev: float = 1.0) -> np.ndarray:
    """One colour over the whole frame: gaps and zeros filled by a Gaussian mean, 0 where that reaches no pixel."""
    channel = raw.astype(float) * of_colour
    channel[channel == 0.0] = np.nan
    with quiet():
        channel = interpolate_replace_nans(channel, Gaussian2DKernel(x_stddev=kernel_stddev))
    channel[np.isnan(channel)] = 0.0
    return channel


def channels_reference(
    raw: np.ndarray,
    colours: np.ndarray,
    *,
    norms: Mapping[str, float] = NORMS,
    box_size: int = 100,
    filter_size: int = 11,
    sigma_clip: float = 5.0,
    estimator: str = "mode",
    exclude_percentile: float = 10.0,
    kernel_stddev: float = 1.0,
) -> np.ndarray:
    """The levelled mosaic (y, x) float64 of the night-sky notebook; `colours` holds each pixel's letter."""
    levelled = raw.astype(float)
    for letter in np.unique(colours):
        of_colour = colours == letter
        measured = background_of(
            filled_reference(raw, of_colour, kernel_stddev=kernel_stddev),
            box_size=box_size,
            filter_size=filter_size,
            sigma_clip=sigma_clip,
            max_rounds=5,
            estimator=estimator,
            exclude_percentile=exclude_percentile,
        )
        levelled -= measured.background * of_colour
    factors = np.vectorize(lambda letter: norms.get(letter, 1.0), otypes=[float])(colours)
    return levelled * factors
