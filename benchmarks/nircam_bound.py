"""The least error of any linear method on `nircam_scenes`: that of one which knows how skies and stripes are drawn.

A gradient of the sky along y and the slowest stripes that all amplifiers share look the same in one exposure: how
strong each usually is says how to divide what is seen, and no more can be known. Here that is known exactly, there are
no sources, and only the slow part of the error counts, as means of 16 rows: over many draws, a floor for all methods.
"""

from collections.abc import Sequence
from functools import lru_cache

import numpy as np
from nircam_scenes import COMMON, N_AMPLIFIERS, OWN, SIZE, SKY, WHITE, Exposure, sky_shape
from numpy.typing import NDArray

_ROWS, _CELLS = 16, 4
_BLOCKS, _COLUMNS = SIZE // _ROWS, N_AMPLIFIERS * _CELLS
_DRAWS = 2000
# The mean of everything is not known at all.
_FREE = 1.0

Float64 = NDArray[np.float64]


def least_errors(exposures: Sequence[Exposure], sky: int) -> list[float]:
    """Return the rms error of the stripes' slow part in exposures that share a sky, in 1e-3 of the unit."""
    of_sky, of_stripes, spread_out = _covariances()
    other = spread_out @ of_stripes @ spread_out.T + _white() * np.eye(len(of_sky)) + _FREE
    shape = SKY * _block_means(sky_shape(sky), _COLUMNS).ravel()
    stripes = [_block_means(e.stripes, N_AMPLIFIERS).ravel() for e in exposures]
    noise = np.random.default_rng(sky).normal(size=(len(exposures), len(shape))) * np.sqrt(_white())
    seen = [shape + spread_out @ s + n for s, n in zip(stripes, noise, strict=True)]
    found = of_sky @ np.linalg.solve(of_sky + other / len(seen), np.mean(seen, axis=0))
    gain = np.linalg.solve(other, spread_out @ of_stripes).T
    wrong = (gain @ (d - found) - s for d, s in zip(seen, stripes, strict=True))
    return [1e3 * float((w - w.mean()).std()) for w in wrong]


def _white() -> float:
    return WHITE**2 / (_ROWS * SIZE // _COLUMNS)


def _block_means(plane: NDArray[np.floating], columns: int) -> Float64:
    return np.asarray(plane.reshape(_BLOCKS, _ROWS, columns, -1).mean(axis=(1, 3), dtype=np.float64))


@lru_cache(maxsize=1)
def _covariances() -> tuple[Float64, Float64, Float64]:
    """Covariances of skies (cell, cell) and of stripes (level, level), and the design (cell, level) between them."""
    rng = np.random.default_rng(0)
    # Skies are smooth: what they are in the middle of a cell stands for its mean.
    step = _ROWS, SIZE // _COLUMNS
    skies = np.array([SKY * sky_shape(1_000_000 + k, step).ravel() for k in range(_DRAWS)])
    rows = np.array([_drawn_rows(rng).reshape(_BLOCKS, _ROWS).mean(axis=1) for _ in range(_DRAWS)])
    shared = rows.T @ rows / _DRAWS
    n = N_AMPLIFIERS
    # Blocks first, then amplifiers, as `_block_means` has them.
    stripes = np.kron(shared, COMMON**2 * np.ones((n, n)) + OWN**2 * np.eye(n))
    design = np.kron(np.eye(_BLOCKS * n), np.ones((_CELLS, 1)))
    return skies.T @ skies / _DRAWS, stripes, design


def _drawn_rows(rng: np.random.Generator) -> Float64:
    """Row means of a quarter of a 1/f stream, as `nircam_scenes` draws them pixel by pixel."""
    f = np.fft.rfftfreq(4 * SIZE)
    f[0] = f[1]
    spectrum = (rng.normal(size=f.size) + 1j * rng.normal(size=f.size)) * f ** (-rng.uniform(0.8, 1.2) / 2)
    rows = np.fft.irfft(spectrum, 4 * SIZE)[:SIZE]
    return np.asarray(rows / rows.std() * 1.25 ** rng.uniform(-1, 1))
