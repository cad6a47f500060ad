"""Symmetric matrices made positive definite."""

from keras import ops

from kopt._backend import cholesky


def solve_definite(a, b):
    """(a + τ I)⁻¹ b, with the τ of `shifted_cholesky`"""
    lower = shifted_cholesky(a)[0]
    x = ops.solve_triangular(lower, ops.expand_dims(b, 1), lower=True)
    return ops.squeeze(ops.solve_triangular(ops.transpose(lower), x, lower=False), 1)


def shifted_cholesky(a, least=1e-3):
    """The lower L with L Lᵀ = a + τ I, and τ: 0 where a is positive definite.

    If it is not, τ begins at `least` times the largest entry of the diagonal, above what makes the diagonal positive,
    and doubles until there is an L (Nocedal and Wright, algorithm 3.3). Of a matrix that is not finite, NaN.
    """
    diagonal, one = ops.diagonal(a), ops.eye(a.shape[0], dtype=a.dtype)
    size = ops.max(ops.abs(diagonal))
    step = least * ops.where(size > 0, size, 1)
    lowest = ops.min(diagonal)

    def fails(tau, lower):
        return ops.isfinite(tau) & ~ops.all(ops.isfinite(ops.diagonal(lower)))

    def attempt(tau, lower):
        tau = ops.maximum(2 * tau, step)
        return tau, cholesky(a + tau * one)

    tau = ops.where(lowest > 0, 0, step - lowest)
    tau, lower = ops.while_loop(fails, attempt, (tau, cholesky(a + tau * one)))
    return lower, tau
