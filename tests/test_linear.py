"""Small systems of equations."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from skylevel.kernels.linear import solve_nonnegative, solve_positive, solve_with_variance


def make_system(n, seed):
    rng = np.random.default_rng(seed)
    root = rng.normal(size=(n, n))
    return root @ root.T + n * np.eye(n), rng.normal(size=n)


@given(st.integers(1, 70), st.integers(0, 100))
def test_a_positive_system_is_solved(n, seed):
    matrix, solution = make_system(n, seed)
    np.testing.assert_allclose(solve_positive(matrix, matrix @ solution), solution, atol=1e-8)
    both = np.column_stack([solution, 2 * solution])
    np.testing.assert_allclose(solve_positive(matrix, matrix @ both), both, atol=1e-8)


@given(st.integers(1, 70), st.integers(0, 100))
def test_a_variance_is_the_inverses_diagonal(n, seed):
    matrix, right = make_system(n, seed)
    solution, variance = solve_with_variance(matrix, right)
    np.testing.assert_array_equal(solution, solve_positive(matrix, right))
    np.testing.assert_allclose(variance, np.diagonal(np.linalg.inv(matrix)), rtol=1e-8)


def test_nothing_is_negative():
    matrix = np.array([[2.0, 1.0, 0.0], [1.0, 2.0, 0.0], [0.0, 0.0, 0.0]])
    np.testing.assert_allclose(solve_nonnegative(matrix, np.array([3.0, 3.0, 0.0])), [1.0, 1.0, 0.0])
    np.testing.assert_allclose(solve_nonnegative(matrix, np.array([3.0, -1.0, 1.0])), [1.5, 0.0, 0.0])
    np.testing.assert_allclose(solve_nonnegative(matrix, np.array([-1.0, -2.0, 0.0])), 0.0)
