"""Conjugate gradients, in a ball too, the Nyström approximation and matrices made definite, against dense algebra."""

import json
from pathlib import Path

import keras
import numpy as np
import pytest
import scipy.sparse.linalg
from keras import ops

from kopt.math import definite, gain_ratio, krylov

ON_JAX = keras.backend.backend() == "jax"
DTYPE, EXACT = ("float32", 1e-4) if ON_JAX else ("float64", 1e-9)
FOLDER = Path(__file__).parents[1] / "references" / "newton"
SUBPROBLEMS = json.loads((FOLDER / "scipy.json").read_text())["subproblems"]


def tensor(x):
    return ops.convert_to_tensor(x, DTYPE)


def close(a, b, tolerance=EXACT):
    np.testing.assert_allclose(np.asarray(a), b, rtol=tolerance, atol=tolerance)


def times(a):
    """Products with a matrix, and a list that grows by one at each."""
    a = tensor(a)
    return lambda v: ops.matmul(a, v)


def positive(size=12, spread=2, seed=0):
    """A symmetric matrix with eigenvalues from 1 to 10^spread, and a vector."""
    rng = np.random.default_rng(seed)
    q = np.linalg.qr(rng.normal(size=(size, size)))[0]
    return q @ np.diag(np.logspace(0, spread, size)) @ q.T, rng.normal(size=size)


def solve(a, b, x=None, **how):
    how = dict(tolerance=1e-10, limit=100) | how
    return krylov.conjugate_gradients(times(a), tensor(b), None if x is None else tensor(x), **how)


# ---- conjugate gradients ---------------------------------------------------------------------------------------------


def test_it_solves():
    a, b = positive()
    found = solve(a, b)
    x = np.linalg.solve(a, b)
    close(found.x, x, 10 * EXACT)
    close(found.model, x @ a @ x / 2 - b @ x)
    assert not bool(found.stopped)
    if not ON_JAX:
        assert int(found.products) <= 15


@pytest.mark.parametrize("guess", [False, True])
@pytest.mark.parametrize("preconditioned", [False, True])
@pytest.mark.parametrize("steps", [1, 2, 5])
def test_iterates_are_scipys(guess, preconditioned, steps):
    a, b = positive(seed=1)
    scale = np.linspace(1, 3, 12) if preconditioned else np.ones(12)
    x = np.cos(np.arange(12.0)) if guess else np.zeros(12)
    best = x * (x @ b) / (x @ a @ x) if guess else x
    inverse = scipy.sparse.linalg.LinearOperator((12, 12), lambda v: scale * np.ravel(v))
    expected, _ = scipy.sparse.linalg.cg(a, b, best, rtol=0, maxiter=steps, M=inverse)
    found = solve(a, b, x if guess else None, tolerance=0, limit=steps, inverse=lambda v: tensor(scale) * v)
    close(found.x, expected)
    close(found.model, expected @ a @ expected / 2 - b @ expected)
    assert int(found.products) == steps + guess


def test_it_ends_where_scipy_does():
    a, b = positive(seed=2)
    for tolerance in (0.3, 0.1) if ON_JAX else (0.3, 0.1, 1e-2, 1e-4):
        steps = []
        scipy.sparse.linalg.cg(a, b, rtol=tolerance, callback=steps.append)
        assert int(solve(a, b, tolerance=tolerance).products) == len(steps)


def test_a_bad_guess_leads_down_and_one_without_curvature_is_left():
    a, b = positive(seed=3)
    down = solve(a, b, -1e3 * b, tolerance=0.5)
    close(down.x, solve(a, b, b, tolerance=0.5).x)
    assert float(down.model) < 0
    a[0], a[:, 0] = 0, 0
    a[0, 0] = -1
    for guess in (np.eye(12)[0], np.zeros(12)):
        begun = solve(a, b, guess, limit=2)
        close(begun.x, solve(a, b, limit=2).x)
        assert int(begun.products) == 3
    assert not bool(solve(a, b, np.eye(12)[0], limit=1).stopped)


def test_negative_curvature_ends_it():
    b = np.array([1.0, 2.0, 3.0])
    first = solve(np.diag([1.0, -2.0, -1.0]), b)  # along b itself: as long as the size of the curvature tells
    close(first.x, b * (b @ b) / 16)
    close(first.model, -0.5 * (b @ b / 16) ** 2 * 16 - b @ b * (b @ b) / 16)
    assert (int(first.products), bool(first.stopped)) == (1, True)
    a = np.diag([1.0, 5.0, -0.1])
    b[2] = 0.1
    later = solve(a, b)
    before = scipy.sparse.linalg.cg(a, b, rtol=0, maxiter=int(later.products) - 1)[0]
    assert int(later.products) > 1
    assert bool(later.stopped)
    close(later.x, before)
    assert b @ np.asarray(later.x) > 0


def test_a_flat_direction_does_not_lead_to_infinity():
    b = np.arange(1.0, 5.0)
    close(solve(np.zeros((4, 4)), b).x, b)
    a = np.diag([1.0, 2.0, 3.0, 0.0])
    assert np.abs(np.asarray(solve(a, b).x)).max() < 1e3
    consistent = solve(a, b * [1, 1, 1, 0], tolerance=0)
    close(consistent.x, [1, 1, 1, 0])


@pytest.mark.parametrize("value", [0, np.nan])
def test_nothing_and_nan_give_nothing(value):
    found = solve(positive()[0], np.full(12, value))
    assert np.array_equal(np.asarray(found.x), np.zeros(12))
    assert int(found.products) == 0
    ball = krylov.steihaug(times(positive()[0]), tensor(np.full(12, value)), tensor(1), tolerance=0.1, limit=9)
    assert np.array_equal(np.asarray(ball.x), np.zeros(12))


# ---- in a ball -------------------------------------------------------------------------------------------------------


def in_a_ball(a, g, radius, tolerance=1e-9, limit=50):
    return krylov.steihaug(times(a), tensor(g), tensor(radius), tolerance=tolerance, limit=limit)


@pytest.mark.parametrize("case", SUBPROBLEMS, ids=lambda case: case["kind"])
def test_steps_in_a_ball_are_scipys(case):
    g, a, step = (np.array(case[key]) for key in ("g", "a", "step"))
    tolerance = min(0.5, np.sqrt(np.linalg.norm(g)))
    found = in_a_ball(a, g, case["radius"], tolerance)
    close(found.x, step)
    close(found.model, step @ a @ step / 2 + g @ step)
    assert bool(found.stopped) == (case["kind"] != "inside")


def exact_in_a_ball(a, g, radius):
    """The least of the model, by eigenvalues and bisection of the multiplier."""
    values, vectors = np.linalg.eigh(a)
    c = vectors.T @ g
    if values[0] > 0 and np.linalg.norm(c / values) <= radius:
        return -g @ np.linalg.solve(a, g) / 2
    low, high = max(0.0, -values[0]), 1e6
    for _ in range(200):
        middle = (low + high) / 2
        low, high = (middle, high) if np.linalg.norm(c / (values + middle)) > radius else (low, middle)
    p = -c / (values + high)
    return c @ p + p @ (values * p) / 2


@pytest.mark.parametrize("seed", range(6))
def test_half_of_what_the_ball_allows_is_reached(seed):
    """Yuan's theorem, of positive definite matrices; where a ball holds the minimum, all of it."""
    a, g = positive(6, seed=seed)
    for radius in (0.01, 0.1, 0.3, 10.0):
        found, least = in_a_ball(a, g, radius), exact_in_a_ball(a, g, radius)
        length = np.linalg.norm(np.asarray(found.x))
        assert least * (1 + EXACT) <= float(found.model) <= least / 2
        assert length <= radius * (1 + EXACT)
        if not bool(found.stopped):
            close(found.model, least)
        else:
            close(length, radius)


def test_a_ball_without_room_and_the_limit():
    a, g = positive()
    assert np.array_equal(np.asarray(in_a_ball(a, g, 0).x), np.zeros(12))
    assert int(in_a_ball(a, g, 1e6, limit=3).products) == 3


def test_the_way_to_the_sphere_is_exact_near_it():
    x, p = np.array([1 - 1e-9, 0.0]), np.array([1.0, 1e-3])
    back, forth = krylov.to_the_sphere(tensor(x), tensor(p), tensor(1.0))
    if not ON_JAX:
        assert float(forth) == pytest.approx(1e-9, rel=1e-5)
    assert float(back) == pytest.approx(-2, rel=1e-5)


# ---- low rank --------------------------------------------------------------------------------------------------------


def sketched(a, rank, seed=0):
    omega = np.random.default_rng(seed).normal(size=(len(a), rank))
    return krylov.nystrom(times(a), tensor(omega))


def test_a_matrix_of_low_rank_is_found():
    rng = np.random.default_rng(0)
    b = rng.normal(size=(20, 4)) * [10, 3, 1, 0.3]
    vectors, values = map(np.asarray, sketched(b @ b.T, 6))
    close(vectors @ np.diag(values) @ vectors.T, b @ b.T, 1e3 * EXACT)
    close(vectors.T @ vectors, np.eye(6))
    assert np.all(np.diff(values) <= 0)
    close(values[:4], np.linalg.eigvalsh(b @ b.T)[:-5:-1], 1e2 * EXACT)


def test_eigenvalues_are_not_overestimated():
    a, _ = positive(40, 4)
    vectors, values = map(np.asarray, sketched(a, 10))
    true = np.linalg.eigvalsh(a)[::-1]
    assert np.all(values <= true[:10] * (1 + EXACT))
    assert np.linalg.eigvalsh(a - vectors @ np.diag(values) @ vectors.T).min() > -1e3 * EXACT


@pytest.mark.parametrize("damping", [1e-1] if ON_JAX else [1e-1, 1e-3])
def test_the_condition_falls_as_the_paper_bounds_it(damping):
    """A sketch of 2 ⌈1.5 d⌉ + 1, for the effective dimension d, has an expected condition below 28."""
    size = 80
    q = np.linalg.qr(np.random.default_rng(1).normal(size=(size, size)))[0]
    true = 10.0 ** -np.arange(size / 4).repeat(4)
    a, damped = q @ np.diag(true) @ q.T, np.diag(np.full(size, damping))
    rank = 2 * int(np.ceil(1.5 * np.sum(true / (true + damping)))) + 1
    conditions = []
    for seed in range(5):
        low = sketched(a, rank, seed)
        vectors, values = map(np.asarray, low)
        inverse = np.array([np.asarray(krylov.nystrom_inverse(low, damping, tensor(row))) for row in np.eye(size)])
        scale, error = values[-1] + damping, np.linalg.norm(a - vectors @ np.diag(values) @ vectors.T, 2)
        close(np.linalg.inv(inverse) * scale, vectors @ np.diag(values - values[-1]) @ vectors.T + scale * np.eye(size))
        found = np.linalg.eigvals(inverse @ (a + damped)).real
        conditions.append(found.max() / found.min())
        assert conditions[-1] <= (scale + error) / damping * (1 + 1e-3)
    assert rank < 0.6 * size
    assert np.mean(conditions) < min(28, np.linalg.cond(a + damped) / 3)


def test_a_matrix_of_zeros_and_one_with_negative_eigenvalues_give_numbers():
    values = np.asarray(sketched(np.zeros((6, 6)), 3).values)
    assert np.array_equal(values, np.zeros(3))
    vectors, values = map(np.asarray, sketched(np.diag([5.0, 1.0, -2.0, -3.0]), 4))
    assert np.all(np.isfinite(vectors))
    assert np.all(values >= 0)
    close(values[:2], [5, 1])


# ---- made definite ---------------------------------------------------------------------------------------------------


def test_a_positive_matrix_is_solved_as_it_is():
    a, b = positive()
    close(definite.solve_definite(tensor(a), tensor(b)), np.linalg.solve(a, b), 10 * EXACT)
    assert float(definite.shifted_cholesky(tensor(a))[1]) == 0


@pytest.mark.parametrize("diagonal", [[4.0, 1.0, -2.0], [4.0, 0.0, 0.0], [-1.0, -2.0, -8.0], [0.0, 0.0, 0.0]])
def test_the_shift_is_the_first_of_a_doubling_sequence(diagonal):
    a = np.diag(diagonal) + np.array([[0, 1, 0.5], [1, 0, 1], [0.5, 1, 0]]) * (np.abs(diagonal).max() > 0)
    step = 1e-3 * (np.abs(diagonal).max() or 1)
    tau = step - min(diagonal)
    while np.linalg.eigvalsh(a + tau * np.eye(3))[0] <= 0:
        tau = max(2 * tau, step)
    lower, shift = definite.shifted_cholesky(tensor(a))
    close(shift, tau)
    close(np.tril(lower) @ np.tril(lower).T, a + tau * np.eye(3))
    b = np.arange(1.0, 4.0)
    close(definite.solve_definite(tensor(a), tensor(b)), np.linalg.solve(a + tau * np.eye(3), b), 1e3 * EXACT)


def test_the_shift_of_a_matrix_with_a_positive_diagonal_begins_at_zero():
    a = np.array([[1.0, 3.0], [3.0, 1.0]])
    assert float(definite.shifted_cholesky(tensor(a))[1]) == pytest.approx(1e-3 * 2**11)


def test_nan_ends_the_search_for_a_shift():
    assert np.isnan(np.asarray(definite.solve_definite(tensor(np.full((2, 2), np.nan)), tensor(np.ones(2))))).all()


def test_gain_is_measured_against_rounding():
    assert float(gain_ratio(tensor(1.0), tensor(2.0), tensor(5.0))) == pytest.approx(0.5, rel=1e-5)
    assert float(gain_ratio(tensor(-1.0), tensor(2.0), tensor(5.0))) == pytest.approx(-0.5, rel=1e-5)
    tiny = 0.01 * float(np.finfo(DTYPE).eps)
    assert float(gain_ratio(tensor(-tiny), tensor(tiny), tensor(5.0))) == pytest.approx(1, abs=0.01)
    assert float(gain_ratio(tensor(0.0), tensor(0.0), tensor(0.0))) == 0
