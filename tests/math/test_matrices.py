"""Algebra on stacks of matrices, against NumPy, one weight at a time."""

import numpy as np
import pytest
from keras import ops

from kopt import math

RNG = np.random.default_rng(0)
STACK = RNG.standard_normal((3, 4, 5, 2)).astype("float32")
SQUARES = RNG.standard_normal((3, 4, 4)).astype("float32")
SYMMETRIC = SQUARES @ SQUARES.transpose(0, 2, 1)


def numpy(x):
    return ops.convert_to_numpy(x)


@pytest.mark.parametrize("shape", [(2, 4, 6), (2, 6, 4), (2, 5, 5)])
def test_newton_schulz_nears_the_orthogonal_factor(shape):
    x = RNG.standard_normal(shape).astype("float32")
    u, _, vt = np.linalg.svd(x, full_matrices=False)
    found = numpy(math.newton_schulz(ops.convert_to_tensor(x), 5))
    np.testing.assert_array_less(abs(np.linalg.svd(found, compute_uv=False) - 1), 0.35)
    exact = numpy(math.newton_schulz(ops.convert_to_tensor(x), 30, coefficients=(15 / 8, -10 / 8, 3 / 8)))
    np.testing.assert_allclose(exact, u @ vt, atol=1e-4)  # with the coefficients that converge


def test_newton_schulz_of_zeros_is_zero():
    assert not numpy(math.newton_schulz(ops.zeros((1, 3, 4)))).any()


def test_inverse_root():
    found = numpy(math.inverse_root(ops.convert_to_tensor(SYMMETRIC), 0.25, 0.1))
    back = np.linalg.matrix_power(found, 4) @ (SYMMETRIC + 0.1 * np.eye(4, dtype="float32"))
    np.testing.assert_allclose(back, np.broadcast_to(np.eye(4), back.shape), atol=1e-3)


def test_inverse_root_of_a_singular_matrix_is_bounded_by_rounding():
    x = RNG.standard_normal((1, 4, 1)).astype("float32")
    found = numpy(math.inverse_root(ops.convert_to_tensor(x @ x.transpose(0, 2, 1)), 0.5, 1e-12))
    assert np.linalg.norm(found) < 5 * (4 * 2.0**-23 * (x**2).sum()) ** -0.5


def test_eigenvectors_come_largest_first():
    q = numpy(math.eigenvectors(ops.convert_to_tensor(SYMMETRIC)))
    values = np.einsum("nij,nik,nkj->nj", q, SYMMETRIC, q)
    np.testing.assert_allclose(values, np.linalg.eigvalsh(SYMMETRIC)[:, ::-1], rtol=1e-4, atol=1e-4)


def test_refined_eigenvectors_converge_from_any_order():
    q = np.broadcast_to(np.eye(4, dtype="float32")[::-1], (3, 4, 4))
    for _ in range(300):
        q, order = math.refine_eigenvectors(ops.convert_to_tensor(SYMMETRIC), ops.convert_to_tensor(q))
    exact = numpy(math.eigenvectors(ops.convert_to_tensor(SYMMETRIC)))
    np.testing.assert_allclose(abs(np.einsum("nij,nij->nj", numpy(q), exact)), 1, atol=1e-3)
    np.testing.assert_array_equal(numpy(order), np.broadcast_to(np.arange(4), (3, 4)))


def test_spectral_bound_is_below_the_norm_and_near_it():
    bound, norm = (
        numpy(math.spectral_bound(ops.convert_to_tensor(SYMMETRIC)))[:, 0, 0],
        np.linalg.norm(SYMMETRIC, 2, axis=(1, 2)),
    )
    assert (bound <= norm * 1.00001).all()
    assert (bound >= norm / 2).all()
    assert not numpy(math.spectral_bound(ops.zeros((1, 3, 3)))).any()


@pytest.mark.parametrize("axis", [1, 2, 3])
def test_along_gram_and_solve(axis):
    size = STACK.shape[axis]
    matrices = RNG.standard_normal((3, size, size)).astype("float32")
    lower = np.tril(matrices) + 3 * np.eye(size, dtype="float32")
    for n in range(3):
        moved = np.moveaxis(STACK[n], axis - 1, 0).reshape(size, -1)
        cases = {
            "along": (math.along(axis, matrices, STACK), matrices[n] @ moved),
            "solve": (math.solve_along(axis, lower, ops.convert_to_tensor(STACK)), np.linalg.solve(lower[n], moved)),
        }
        for found, expected in cases.values():
            back = np.moveaxis(numpy(found)[n], axis - 1, 0).reshape(size, -1)
            np.testing.assert_allclose(back, expected, atol=1e-4)
        np.testing.assert_allclose(numpy(math.gram(axis, STACK))[n], moved @ moved.T, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("shape", "limit", "merged"),
    [
        ((3, 3, 64, 32), 10_000, (576, 32)),
        ((3, 3, 64, 32), 64, (9, 64, 32)),
        ((3, 3, 64, 32), 1, (3, 3, 64, 32)),
        ((1, 1, 64, 32), 1024, (64, 32)),
        ((64, 1), 1024, (64,)),
        ((5,), 1024, (5,)),
        ((1,), 1024, (1,)),
        ((), 1024, (1,)),
    ],
)
def test_merge_axes(shape, limit, merged):
    assert math.merge_axes(shape, limit) == merged


@pytest.mark.parametrize(("limit", "blocks"), [(2, (18, 2, 2, 2)), (3, (12, 2, 3, 2)), (5, (3, 4, 5, 2))])
def test_blocks_come_back_and_are_padded_with_zeros(limit, blocks):
    x = ops.convert_to_tensor(STACK)
    cut = math.split_blocks(x, limit)
    assert tuple(cut.shape) == blocks
    np.testing.assert_array_equal(numpy(math.join_blocks(cut, STACK.shape[1:], limit)), STACK)
    assert numpy(ops.sum(ops.abs(cut))) == pytest.approx(abs(STACK).sum(), rel=1e-5)
