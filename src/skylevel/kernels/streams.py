"""Amplifiers as time streams: the spectrum of their 1/f noise, how much of it there is, and their smoothing.

Amplifiers are read at the same time, so their noise is the sum of a stream that all share and one of each. Lengths in
time are counted in slots: the time in which one cell is read.
"""

from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple

import numpy as np
import scipy
from numpy.typing import NDArray

Float32 = NDArray[np.float32]
Float64 = NDArray[np.float64]

# Rows between two levels whose differences are looked at.
LAGS = (1, 2, 4, 8, 16, 32, 64)

_ALIASES = 8
# The scatter of a difference says nothing below this many rows.
_FEWEST_ROWS = 30
# A spread from the median of absolute deviations has this times the standard error of an rms.
_MAD_INEFFICIENCY = 1.6
_MAD_PER_STDDEV = 0.6744897501960817
# What stands in for no noise: divided by, never seen.
_NOTHING = 1e-9
# An amplifier's own stream is never taken for less than this part of the shared one.
_LEAST_OWN = 0.02
# Exponents that are compared.
_EXPONENTS = np.linspace(0.4, 1.8, 29)


class StreamNoise(NamedTuple):
    """How strong the 1/f noise is, as power per slot at a frequency of one in a slot.

    Attributes
    ----------
    common, own : float
        Of the stream that amplifiers share, and of each amplifier's own; in the square of the image's unit.
    exponent : float
        The power falls as frequency to minus this.
    """

    common: float
    own: float
    exponent: float


class StripePrior(NamedTuple):
    """What is expected of the 1/f noise.

    Attributes
    ----------
    exponent, exponent_rms : float
        Its exponent, and by how much it may differ.
    gate : float
        Stripes below this many standard errors are taken for none.
    """

    exponent: float = 1.0
    exponent_rms: float = 0.2
    gate: float = 2.0


class LagScatter(NamedTuple):
    """Scatter of the differences between the levels of rows that stand some rows apart.

    Attributes
    ----------
    common, own : ndarray (lag,) float64
        Of what amplifiers share, and of what each has of its own; white noise taken off; in the square of the unit. NaN
        where too few rows could be compared.
    error : ndarray (lag,) float64
        Standard error of each from white noise alone, in the square of the unit.
    n_rows : int
        Rows that were compared.
    """

    common: Float64
    own: Float64
    error: Float64
    n_rows: int


@lru_cache(maxsize=64)
def slot_power(n: int, exponent: float) -> Float64:
    """Power spectrum of averages over slots.

    Parameters
    ----------
    n : int
        Slots of the periodic stream.
    exponent : float
        The power falls as frequency to minus this.

    Returns
    -------
    ndarray (n // 2 + 1,) float64
        At `numpy.fft.rfftfreq`'s frequencies, with what is folded back from above them; at 0 as at the lowest.
    """
    f = scipy.fft.rfftfreq(n)
    folded = np.abs(f + np.arange(-_ALIASES, _ALIASES + 1)[:, None])
    folded[folded < 0.5 / n] = f[1]
    power = (np.sinc(folded) ** 2 * folded**-exponent).sum(axis=0)
    power[0] = f[1] ** -exponent
    return np.asarray(power)


def _mean_response(f: Float64, n: int) -> Float64:
    """Power that averages over n slots keep at frequencies `f` per slot."""
    return np.asarray((np.sinc(n * f) / np.sinc(f)) ** 2)


@lru_cache(maxsize=256)
def lag_variance(slots: int, exponent: float) -> Float64:
    """Variance (lag,) of the difference of two row means, `LAGS` rows apart, in noise of unit power."""
    n = 1 << 14
    f = scipy.fft.rfftfreq(n)
    power = slot_power(n, exponent) * _mean_response(f, slots) * 2 / n
    apart = np.array(LAGS)[:, None] * slots
    return np.asarray((power * 2 * (1 - np.cos(2 * np.pi * f * apart))).sum(axis=1))


@lru_cache(maxsize=64)
def block_precision(n: int, slots: int, exponent: float) -> Float64:
    """Inverse covariance (n, n) of consecutive means over `slots` slots, in noise of unit power."""
    total = scipy.fft.next_fast_len(4 * n * slots, real=True)
    power = slot_power(total, exponent) * _mean_response(scipy.fft.rfftfreq(total), slots)
    covariance = scipy.fft.irfft(power, total)[: n * slots : slots]
    matrix = scipy.linalg.toeplitz(covariance) + 1e-9 * covariance[0] * np.eye(n)
    return np.asarray(scipy.linalg.inv(matrix))


def lag_scatter(level: Float32, count: Float32, *, white_noise: float, enough: Float32 | float) -> LagScatter:
    """Scatter of differences between rows, shared by amplifiers and of their own.

    Parameters
    ----------
    level : ndarray (y, amplifier) float32
        Levels of rows, sky and sources subtracted.
    count : ndarray (y, amplifier) float32
        Pixels behind each level.
    white_noise : float
        Standard deviation of one pixel, in `level`'s unit.
    enough : ndarray (amplifier,) or float
        Pixels that a level needs in order to be compared.

    Returns
    -------
    LagScatter

    Notes
    -----
    Spreads are those of the median of absolute deviations. What is shared is the mean covariance of two amplifiers,
    from the spreads of their sum and difference.
    """
    found = [_scatter_at(level, count, lag, white_noise, enough) for lag in LAGS]
    common, own, error, n_rows = (np.array(values) for values in zip(*found, strict=True))
    return LagScatter(common, own, error, int(n_rows[0]))


def _scatter_at(
    level: Float32, count: Float32, lag: int, white_noise: float, enough: Float32 | float
) -> tuple[float, float, float, int]:
    difference = level[lag:].astype(np.float64) - level[:-lag]
    least = np.minimum(count[lag:], count[:-lag])
    usable = least > enough
    amplifiers = [a for a in range(level.shape[1]) if usable[:, a].sum() > _FEWEST_ROWS]
    if not amplifiers:
        return np.nan, np.nan, np.nan, 0
    white = {a: _white_variance(count[:, a], lag, usable[:, a], white_noise) for a in amplifiers}
    total = np.mean([_variance(difference[usable[:, a], a]) - white[a] for a in amplifiers])
    shared = [
        _covariance(difference[both, a], difference[both, b])
        for a in amplifiers
        for b in amplifiers[: amplifiers.index(a)]
        if (both := usable[:, a] & usable[:, b]).sum() > _FEWEST_ROWS
    ]
    common = float(np.mean(shared)) if shared else float(total) if level.shape[1] == 1 else 0.0
    n_rows = max(int(usable[:, a].sum()) for a in amplifiers)
    error = _MAD_INEFFICIENCY * np.sqrt(2 / n_rows) * max(white.values())
    return common, float(total) - common, float(error), n_rows


def _white_variance(count: Float32, lag: int, usable: NDArray[np.bool_], white_noise: float) -> float:
    inverse = 1 / np.maximum(count, 1)
    return float(white_noise**2 * np.mean((inverse[lag:] + inverse[:-lag])[usable]))


def _variance(values: Float64) -> float:
    middle = np.median(values)
    return float(np.median(np.abs(values - middle)) / _MAD_PER_STDDEV) ** 2


def _covariance(a: Float64, b: Float64) -> float:
    return (_variance(a + b) - _variance(a - b)) / 4


def nearest_lags(scatter: LagScatter, n: int = 2) -> LagScatter:
    """Return the scatter of the n nearest rows alone."""
    near = np.arange(len(LAGS)) < n
    return scatter._replace(common=np.where(near, scatter.common, np.nan), own=np.where(near, scatter.own, np.nan))


def pool_scatters(scatters: Sequence[LagScatter]) -> LagScatter:
    """Return the mean scatter of exposures, over those where each lag could be seen."""
    common, own, error = (np.array([s[k] for s in scatters]) for k in range(3))
    seen = np.isfinite(common) & np.isfinite(own) & np.isfinite(error)
    n = np.maximum(seen.sum(axis=0), 1)

    def mean(values: Float64) -> Float64:
        return np.where(seen.any(axis=0), np.where(seen, values, 0).sum(axis=0) / n, np.nan)

    return LagScatter(mean(common), mean(own), mean(error) / np.sqrt(n), sum(s.n_rows for s in scatters))


def estimate_noise(scatter: LagScatter, *, slots: int, white_noise: float, prior: StripePrior) -> StreamNoise:
    """Strength and slope of the 1/f noise from the scatter of differences between rows.

    Parameters
    ----------
    scatter : LagScatter
        Of one exposure, or pooled over a group.
    slots : int
        Slots in a row.
    white_noise : float
        Standard deviation of one pixel.
    prior : StripePrior
        Its gate is put to the scatter of neighbouring rows.

    Returns
    -------
    StreamNoise
    """
    floor = float(_NOTHING * white_noise**2)
    seen = np.isfinite(scatter.common)
    if not seen[0]:
        return StreamNoise(floor, floor, prior.exponent)
    limit = prior.gate * scatter.error[0]
    common = scatter.common[0] > limit
    own = scatter.own[0] > limit
    exponent = _slope(scatter, seen, (common, own), slots, prior)
    expected = lag_variance(slots, exponent)
    strength = [
        max(_strength(values, seen, expected), floor) if present else floor
        for values, present in ((scatter.common, common), (scatter.own, own))
    ]
    return StreamNoise(float(strength[0]), float(max(strength[1], _LEAST_OWN * strength[0])), exponent)


def _relative_error(n_rows: int) -> Float64:
    """Relative standard error (lag,) of a scatter: differences further apart are fewer that differ."""
    return np.asarray(_MAD_INEFFICIENCY * np.sqrt(2 * np.sqrt(np.array(LAGS)) / max(n_rows, 1)))


def _slope(
    scatter: LagScatter,
    seen: NDArray[np.bool_],
    present: tuple[bool, bool],
    slots: int,
    prior: StripePrior,
) -> float:
    """Find the exponent that fits best, to the nearest of those compared."""
    misfit = ((_EXPONENTS - prior.exponent) / prior.exponent_rms) ** 2
    error = _relative_error(scatter.n_rows)
    for values in (v for v, there in zip((scatter.common, scatter.own), present, strict=True) if there):
        usable = seen & (values > 2 * scatter.error)
        expected = np.stack([lag_variance(slots, float(e)) for e in _EXPONENTS])[:, usable]
        ratio = np.log(values[usable]) - np.log(expected)
        weight = 1 / error[usable] ** 2
        ratio -= ((ratio * weight).sum(axis=1) / weight.sum())[:, None]
        misfit += (ratio**2 * weight).sum(axis=1)
    return float(_EXPONENTS[np.argmin(misfit)])


def _strength(values: Float64, seen: NDArray[np.bool_], expected: Float64) -> float:
    """Average the ratio to unit power, each lag by how well it is known."""
    weight = 1 / np.sqrt(np.array(LAGS))[seen]
    return float((values[seen] / expected[seen] * weight).sum() / weight.sum())


def smooth_streams(
    cells: Float32,
    weights: Float32,
    *,
    noise: StreamNoise,
    right_to_left: tuple[bool, ...],
    n_steps: int,
    start: Float32 | None = None,
) -> Float32:
    """Return the most probable streams behind noisy cells with gaps.

    Parameters
    ----------
    cells : ndarray (y, cell) float32
        Cells of all amplifiers, side by side; finite, whatever where `weights` is 0.
    weights : ndarray (y, cell) float32
        Inverse variances.
    noise : StreamNoise
        The prior; its slot is one cell.
    right_to_left : tuple of bool
        For each amplifier, whether its cells are read in that direction.
    n_steps : int
        Steps of preconditioned conjugate gradients.
    start : ndarray (y, cell) float32, optional
        The slow part of the streams, known from elsewhere: the prior is on what differs from it.

    Returns
    -------
    ndarray (y, cell) float32

    Notes
    -----
    Streams are periodic over a quarter more than their length. The white-noise weights stand at their mean in the
    preconditioner, so that a frame without gaps needs one step.
    """
    z = cells if start is None else cells - start
    timed, weight = to_time(z, right_to_left), to_time(weights, right_to_left)
    n_amplifiers, n = timed.shape
    length = _padded(n)
    power = strengths(noise, n_amplifiers) * slot_power(length, noise.exponent)
    q, root = _conjugate_gradients(timed, weight, power, length, n_steps)
    solved = mixtures(n_amplifiers).T @ scipy.fft.irfft(root * q, length, axis=1)[:, :n]
    streams = from_time(solved, cells.shape, right_to_left)
    return streams if start is None else streams + start


def _padded(n: int) -> int:
    """Length of the periodic stream that n slots are a part of."""
    return int(scipy.fft.next_fast_len(n + n // 4 + 1, real=True))


def mixtures(n_amplifiers: int) -> Float32:
    """Orthonormal mixtures (mixture, amplifier) of the amplifiers; the first is what they share."""
    return np.asarray(scipy.fft.dct(np.eye(n_amplifiers), axis=0, norm="ortho"), np.float32)


def strengths(noise: StreamNoise, n_amplifiers: int) -> Float64:
    """Power (mixture, 1) of each mixture of the amplifiers."""
    strength = np.full((n_amplifiers, 1), noise.own)
    strength[0] += n_amplifiers * noise.common
    return strength


def _conjugate_gradients(
    z: Float32, weight: Float32, power: Float64, length: int, n_steps: int
) -> tuple[NDArray[np.complex64], Float32]:
    """Solve for the mixtures' spectra, in units of the prior's root; return them and that root."""
    root, n = np.sqrt(power).astype(np.float32), z.shape[1]
    mix = mixtures(len(z))
    double = np.full(root.shape[1], 2, np.float32)
    double[0] = 1
    if length % 2 == 0:
        double[-1] = 1
    precondition = 1 / (1 + float(weight.mean()) * root**2)

    def applied(q: NDArray[np.complex64]) -> NDArray[np.complex64]:
        return q + adjoint(weight * (mix.T @ scipy.fft.irfft(root * q, length, axis=1)[:, :n]))

    def adjoint(x: Float32) -> NDArray[np.complex64]:
        return np.asarray(root * scipy.fft.rfft(mix @ x, length, axis=1))

    def dot(a: NDArray[np.complex64], b: NDArray[np.complex64]) -> float:
        return float(np.sum((a.real * b.real + a.imag * b.imag) * double, dtype=np.float64))

    rest = adjoint(weight * z)
    q = np.zeros_like(rest)
    direction = conditioned = precondition * rest
    product = dot(rest, conditioned)
    for _ in range(n_steps):
        if product <= 0:
            break
        moved = applied(direction)
        step = np.float32(product / dot(direction, moved))
        q += step * direction
        rest -= step * moved
        conditioned = precondition * rest
        before, product = product, dot(rest, conditioned)
        direction = conditioned + np.float32(product / before) * direction
    return q, root


@lru_cache(maxsize=64)
def row_power(n: int, slots: int, exponent: float) -> Float64:
    """Power spectrum (n // 2 + 1,) of row means, `slots` slots each, in noise of unit power."""
    total = n * slots
    power = slot_power(total, exponent) * _mean_response(scipy.fft.rfftfreq(total), slots)
    everywhere = np.concatenate([power, power[1 : (total + 1) // 2][::-1]])
    return np.asarray(everywhere.reshape(slots, n).mean(axis=0)[: n // 2 + 1])


def to_time(cells: Float32, right_to_left: tuple[bool, ...]) -> Float32:
    """Return the cells (y, cell) of amplifiers side by side as streams (amplifier, slot) in the order of reading."""
    streams = cells.reshape(len(cells), len(right_to_left), -1).transpose(1, 0, 2).copy()
    for stream, backwards in zip(streams, right_to_left, strict=True):
        if backwards:
            stream[:] = stream[:, ::-1].copy()
    return streams.reshape(len(right_to_left), -1)


def from_time(streams: Float32, shape: tuple[int, ...], right_to_left: tuple[bool, ...]) -> Float32:
    """Return streams (amplifier, slot) as cells of `shape` (y, cell)."""
    cells = streams.reshape(len(right_to_left), shape[0], -1).copy()
    for rows, backwards in zip(cells, right_to_left, strict=True):
        if backwards:
            rows[:] = rows[:, ::-1].copy()
    return cells.transpose(1, 0, 2).reshape(shape)
