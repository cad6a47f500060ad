"""Kronecker factors: matrices a and g, symmetric and positive semidefinite, where a ⊗ g stands for a curvature."""

import math

from keras import ops

from kopt.math.matrices import transpose


def expanded(x, s):
    """The inputs and slopes of (rows, positions, numbers) at each position by itself: as if it were a row of its own"""
    return _flat(x), _flat(s)


def reduced(x, s):
    """The mean input of each row over its positions, and its slopes' sum"""
    return ops.sum(x, 1) / ops.cast(ops.shape(x)[1], x.dtype), ops.sum(s, 1)


def _flat(x):
    return ops.reshape(x, (-1, x.shape[-1]))


def with_one(x):
    """A one beside the numbers of each row: what a bias is multiplied by"""
    return ops.concatenate([x, ops.ones_like(x[..., :1])], -1)


def gram_of_rows(x):
    """xᵀx"""
    return transpose(x) @ x


def mean_gram_of_rows(x):
    """xᵀx / n, over n rows; zeros where there are none"""
    return gram_of_rows(x) / ops.cast(ops.maximum(ops.shape(x)[0], 1), x.dtype)


def factors_of(x):
    """a = xxᵀ and g = xᵀx / ‖x‖², for which a ⊗ g has the trace of the outer product of all entries of x"""
    square = ops.sum(x * x)
    return x @ transpose(x), gram_of_rows(x) / ops.where(square > 0, square, 1)


def damped(a, g, damping):
    """a + π √λ I and g + √λ / π I, with π² = (tr a / dim a) / (tr g / dim g), for a ⊗ g + λ I"""
    mean_a, mean_g = mean_diagonal(a), mean_diagonal(g)
    both = ops.logical_and(mean_a > 0, mean_g > 0)
    pi = ops.sqrt(ops.where(both, mean_a, 1) / ops.where(both, mean_g, 1))
    root = ops.sqrt(damping)
    return plus_identity(a, pi * root), plus_identity(g, root / pi)


def mean_diagonal(a):
    """tr a / dim a"""
    return ops.trace(a) / a.shape[-1]


def plus_identity(a, scale):
    """a + scale I, with as large a scale at least as rounding asks for, lest the sum lose its definiteness"""
    rounding = a.shape[-1] * (2.0**-52 if a.dtype == "float64" else 2.0**-23)
    return a + ops.maximum(scale, rounding * mean_diagonal(a)) * ops.eye(a.shape[-1], dtype=a.dtype)


def positive_inverse(a):
    """a⁻¹ of a symmetric, positive definite matrix, L⁻ᵀ L⁻¹ with a = L Lᵀ; NaN where an entry is not finite"""
    identity, finite = ops.eye(a.shape[-1], dtype=a.dtype), ops.all(ops.isfinite(a))
    lower = ops.solve_triangular(ops.cholesky(ops.where(finite, a, identity)), identity, lower=True)
    return ops.where(finite, transpose(lower) @ lower, math.nan)
