"""Where the sources are: smooth, threshold, keep what is connected, number it."""

from typing import NamedTuple

import numpy as np
import scipy
from numpy.typing import NDArray

from skylevel.kernels.mesh import Float32, Mesh, Surface

Bool = NDArray[np.bool_]

_FWHM_PER_STDDEV = 2.0 * np.sqrt(2.0 * np.log(2.0))
# photutils' make_2dgaussian_kernel averages this many points along each side of a pixel.
_OVERSAMPLING = 10

# Weights below this lose digits that count when they are what is left of 1 in float32.
_COARSE_WEIGHT = 0.01

# Where more than this part of a strip is looked at closely, whole surfaces cost less than their points.
_MANY = 0.1

# Strips of about this many pixels stay in a core's cache.
_STRIP_PIXELS = 262_144

# Connected pixels are looked for in strips of about this many: larger ones make fewer calls, and take more memory where
# every second pixel is one.
_CONNECTED_PIXELS = 1 << 20

_EDGES_AND_CORNERS = np.ones((3, 3), bool)


class Detection(NamedTuple):
    """What is taken for a source.

    Attributes
    ----------
    threshold : float
        It stands this far above the background, in units of the background's rms.
    fwhm : float
        Full width at half maximum in pixels of the Gaussian that smooths the image first.
    size : int
        Side of that Gaussian's kernel in pixels, odd.
    n_pixels : int
        It has at least this many connected pixels (edges and corners connect).
    """

    threshold: float
    fwhm: float
    size: int
    n_pixels: int


def gaussian_taps(stddev: float, size: int, *, oversampling: int = 1) -> NDArray[np.float64]:
    """Weights (size,) of a Gaussian at `size` (odd) pixels, of sum 1; their outer product is the 2-D kernel.

    Each is the mean over `oversampling` points across its pixel.
    """
    inside = (np.arange(oversampling) + 0.5) / oversampling - 0.5
    offset = np.arange(size)[:, None] - size // 2 + inside
    weights = np.exp(-0.5 * (offset / stddev) ** 2).mean(axis=1)
    return np.asarray(weights / weights.sum())


def smooth(image: NDArray[np.floating], *, fwhm: float, size: int) -> NDArray[np.floating]:
    """Convolve with a normalised Gaussian, interpolating over NaN.

    Parameters
    ----------
    image : ndarray (y, x) float
        Beyond its edges stand zeros, as in ``astropy.convolution.convolve``'s default.
    fwhm : float
        Full width at half maximum in pixels.
    size : int
        Side of the kernel in pixels, odd.

    Returns
    -------
    ndarray (y, x) of `image`'s dtype
        NaN where the kernel covers no valid pixel.
    """
    exact_taps = gaussian_taps(fwhm / _FWHM_PER_STDDEV, size, oversampling=_OVERSAMPLING)
    taps = exact_taps.astype(image.dtype)
    invalid = np.isnan(image)
    if not invalid.any():
        return _convolve(image, taps)
    known = image.copy()
    np.copyto(known, 0, where=invalid)
    total = _convolve(known, taps)
    # The weight that is left is exactly 1 away from invalid pixels, so the result there does not depend on whether
    # some other part of the image has any. Float32 is too coarse for it where the kernel's corners weigh little.
    smallest = exact_taps[0] ** 2
    precision = image.dtype if smallest > _COARSE_WEIGHT else np.dtype(np.float64)
    weight = 1 - _convolve(invalid.astype(precision), exact_taps.astype(precision))
    weight[weight < 0.5 * smallest] = np.nan
    return np.divide(total, weight, out=total, casting="same_kind")


def _convolve(image: NDArray[np.floating], taps: NDArray[np.floating]) -> NDArray[np.floating]:
    """Convolution with symmetric taps along y, then x; zeros beyond the edges."""
    half = len(taps) // 2
    along_y = image * taps[half]
    along_x = np.empty_like(along_y)
    for k in range(1, half + 1):
        product = image * taps[half + k]
        along_y[k:] += product[:-k]
        along_y[:-k] += product[k:]
    np.multiply(along_y, taps[half], out=along_x)
    for k in range(1, half + 1):
        product = along_y * taps[half + k]
        along_x[:, k:] += product[:, :-k]
        along_x[:, :-k] += product[:, k:]
    return along_x


def above_threshold(
    image: NDArray[np.floating],
    mesh: Mesh,
    detection: Detection,
    *,
    box_size: tuple[int, int],
    origin: tuple[int, int] = (0, 0),
) -> Bool:
    """Return where the smoothed image stands above the background by `detection.threshold` times its rms.

    Parameters
    ----------
    image : ndarray (y, x) float
        An image, or a tile of one with at least ``detection.size // 2`` pixels of overlap.
    mesh : Mesh
        Of the whole image.
    detection : Detection
    box_size : tuple of int
        Sides (y, x) of a box of the mesh in pixels.
    origin : tuple of int
        Indices (y, x) in the whole image of the first pixel.

    Returns
    -------
    ndarray (y, x) bool
        False where the smoothed image is NaN.

    Notes
    -----
    Works through the image in strips that stay in a core's cache; extra memory is some 10 MB.
    """
    n_y, n_x = image.shape
    threshold, half, step = detection.threshold, detection.size // 2, max(1, _STRIP_PIXELS // n_x)
    here = range(origin[0], origin[0] + n_y), np.arange(origin[1], origin[1] + n_x)
    background, rms = (Surface(m, *here, box_size=box_size) for m in (mesh.background, mesh.background_rms))
    result = np.empty(image.shape, bool)
    for y in range(0, n_y, step):
        stop = min(y + step, n_y)
        start = max(y - half, 0)
        smoothed = smooth(image[start : stop + half], fwhm=detection.fwhm, size=detection.size)[y - start :][: stop - y]
        rows = np.arange(y, stop) + origin[0]
        # Mostly few pixels stand between the least and the most that the limit can be here, and only those are looked
        # at closely.
        (least, most), (least_rms, most_rms) = background.bounds(rows), rms.bounds(rows)
        above = smoothed > least + threshold * least_rms
        at = np.flatnonzero(above & ~(smoothed > most + threshold * most_rms))
        if threshold < 0 or at.size > _MANY * above.size:
            np.greater(smoothed, _limit(rms.at(rows), background.at(rows), threshold), out=result[y:stop])
            continue
        at_y, at_x = np.divmod(at, n_x)
        limit = _limit(rms.at_points(rows, at_y, at_x), background.at_points(rows, at_y, at_x), threshold)
        above.reshape(-1)[at] = smoothed.reshape(-1)[at] > limit
        result[y:stop] = above
    return result


def _limit(rms: Float32, background: Float32, threshold: float) -> Float32:
    """Return the threshold of each pixel; the arrays are used up."""
    rms *= threshold
    rms += background
    return rms


def connected(detected: Bool, n_pixels: int) -> Bool:
    """Return the pixels of `detected` that belong to at least `n_pixels` connected ones (edges and corners connect).

    Parameters
    ----------
    detected : ndarray (y, x) bool
    n_pixels : int

    Returns
    -------
    ndarray (y, x) bool

    Notes
    -----
    Whether a pixel stays is decided within ``n_pixels - 1`` steps of it, so a tile with an overlap of that many
    pixels gives its own part of the whole image's answer.
    """
    if n_pixels == 1:
        return detected.copy()
    halo = n_pixels - 1
    step = max(_CONNECTED_PIXELS // detected.shape[1], 4 * halo)
    kept = np.empty_like(detected)
    for y in range(0, len(detected), step):
        top = max(y - halo, 0)
        part = _connected_in_one(detected[top : y + step + halo], n_pixels)
        kept[y : y + step] = part[y - top :][:step]
    return kept


def _connected_in_one(detected: Bool, n_pixels: int) -> Bool:
    """`connected` of an image that is looked at in one piece: runs along x, joined where they touch along y."""
    kept = np.zeros(detected.shape, bool)
    at = np.flatnonzero(detected)
    if not at.size:
        return kept
    # Two pixels more a row, so that the end of one and the start of the next do not touch.
    width = detected.shape[1] + 2
    position = at + 2 * (at // detected.shape[1]) + 1
    first = np.flatnonzero(np.diff(position, prepend=-1) != 1)
    length = np.diff(first, append=at.size)
    start, end = position[first], position[first] + length - 1
    # Those of the row above that a run touches stand one after the other.
    above = np.searchsorted(end, start - width - 1)
    n_above = np.searchsorted(start, end - width + 1, side="right") - above
    source = _joined(above, n_above)
    large = np.bincount(source, weights=length)[source] >= n_pixels
    kept.reshape(-1)[at] = np.repeat(large, length)
    return kept


def _joined(above: NDArray[np.intp], n_above: NDArray[np.intp]) -> NDArray[np.intp]:
    """Return for each run the first run that it is connected with; it touches `n_above` ones from `above` on.

    As ``scipy.sparse.csgraph.connected_components``, which takes longer to import than a small frame to level.
    """
    # Each knows the first that it touches, which knows its own: those that are first know themselves.
    first = _followed(np.where(n_above > 0, above, np.arange(above.size)))
    further = np.maximum(n_above - 1, 0)
    one = np.repeat(np.arange(above.size), further)
    other = np.arange(one.size) + np.repeat(above + 1 - np.cumsum(further) + further, further)
    while one.size:
        ends = np.sort([first[one], first[other]], axis=0)
        apart = ends[0] != ends[1]
        one, other = one[apart], other[apart]
        np.minimum.at(first, ends[1, apart], ends[0, apart])
        first = _followed(first)
    return first


def _followed(first: NDArray[np.intp]) -> NDArray[np.intp]:
    """Return where each ends that goes from one to the next until there is no other."""
    while not np.array_equal(further := first[first], first):
        first = further
    return first


def label_sources(mask: Bool) -> NDArray[np.int32]:
    """Number the connected sources of a source mask (y, x) from 1; 0 is no source."""
    return np.asarray(scipy.ndimage.label(mask, structure=_EDGES_AND_CORNERS)[0], np.int32)
