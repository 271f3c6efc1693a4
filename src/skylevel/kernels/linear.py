"""Small systems of linear equations, solved to the same bits on every processor: without matrix products."""

import numpy as np
from numpy.typing import NDArray

Float = NDArray[np.float64]


def solve_positive(matrix: Float, right: Float) -> Float:
    """Return the solution of a symmetric positive system (n, n), by elimination in a fixed order.

    The right side is a vector (n,), or as many as columns of a matrix (n, m).
    """
    return _back(_eliminated(matrix, right)).reshape(right.shape)


def solve_with_variance(matrix: Float, right: Float) -> tuple[Float, Float]:
    """Return the solution (n,) of such a system for a vector, and the diagonal (n,) of the matrix's inverse."""
    n = len(right)
    rows = _eliminated(matrix, np.column_stack([right, np.eye(n)]))
    lower = rows[:, n + 1 :]
    return _back(rows[:, : n + 1])[:, 0], np.sum(lower**2 / np.diagonal(rows)[:, None], axis=0)


def _eliminated(matrix: Float, right: Float) -> Float:
    """Return a system (n, n + m), right side beside it, with zeros below the diagonal."""
    rows = np.column_stack([matrix, right])
    for k in range(len(rows)):
        rows[k + 1 :, k:] -= (rows[k + 1 :, k] / rows[k, k])[:, None] * rows[k, k:]
    return rows


def _back(rows: Float) -> Float:
    """Return the solution (n, m) of a system with zeros below the diagonal."""
    n = len(rows)
    result = np.zeros((n, rows.shape[1] - n))
    for k in reversed(range(n)):
        result[k] = (rows[k, n:] - np.sum(rows[k, k + 1 : n, None] * result[k + 1 :], axis=0)) / rows[k, k]
    return result


def solve_nonnegative(matrix: Float, right: Float) -> Float:
    """Return such a solution (n,) in which what would be most negative is 0, one after the other."""
    size = np.sqrt(np.maximum(np.diagonal(matrix), 0.0))
    kept, result = np.flatnonzero(size > 0), np.zeros(len(right))
    while kept.size:
        found = solve_positive(matrix[np.ix_(kept, kept)], right[kept])
        if (found >= 0).all():
            result[kept] = found
            break
        kept = np.delete(kept, np.argmin(found * size[kept]))
    return result
