"""Matrices, and tensors multiplied along one axis by a matrix. The first axis of everything counts weights."""

import math

from keras import ops

from kopt.math.norms import norm

LETTERS = "abcdefgh"


def transpose(x):
    """xᵀ, over the last two axes"""
    return ops.swapaxes(x, -1, -2)


def newton_schulz(x, steps=5, epsilon=1e-7, coefficients=(3.4445, -4.7750, 2.0315)):
    """UVᵀ of x = USVᵀ, roughly: x ← ax + (bxxᵀ + c(xxᵀ)²)x takes the singular values of x / ‖x‖ towards 1"""
    if x.shape[-2] > x.shape[-1]:  # the smaller product is as good
        return transpose(newton_schulz(transpose(x), steps, epsilon, coefficients))
    a, b, c = coefficients
    x = x / ops.maximum(norm(x), epsilon)
    for _ in range(steps):
        s = x @ transpose(x)
        x = a * x + (b * s + c * s @ s) @ x
    return x


def inverse_root(a, exponent, epsilon):
    """(a + epsilon I)^-exponent of symmetric, positive semidefinite matrices"""
    values, vectors = ops.eigh(a)
    rounding = a.shape[-1] * (2.0**-52 if a.dtype == "float64" else 2.0**-23)
    values = ops.maximum(values, rounding * values[..., -1:]) + epsilon  # below that, zeros of either sign
    return (vectors * ops.power(values, -exponent)[..., None, :]) @ transpose(vectors)


def eigenvectors(a):
    """The eigenvectors of symmetric matrices as columns, those of the largest eigenvalues first"""
    return ops.flip(ops.eigh(a)[1], -1)


def refine_eigenvectors(a, q):
    """One power iteration from q, orthogonalized by QR: the new q, and the order in which it took q's columns"""
    order = ops.argsort(-ops.sum(q * (a @ q), axis=-2))  # by the estimate diag(qᵀaq) of the eigenvalues
    q = ops.take_along_axis(q, order[..., None, :], -1)
    return ops.qr(a @ q)[0], order


def spectral_bound(a):
    """A lower bound of the spectral norm of symmetric matrices: their longest column, led through them twice"""
    scale = ops.max(ops.abs(a), axis=(-2, -1), keepdims=True)
    a = a / ops.where(scale > 0, scale, 1)
    longest = ops.argmax(ops.sum(a * a, axis=-2), axis=-1)
    x = a @ ops.take_along_axis(a, longest[..., None, None], -1)
    x = a @ (x / ops.where(scale > 0, norm(x), 1))
    return scale * norm(x)


def along(axis, matrix, x):
    """The tensors x multiplied along this axis by their matrices: matrix @ x for axis 1, x @ matrixᵀ for axis 2"""
    old = LETTERS[: len(x.shape) - 1]
    new = old.replace(old[axis - 1], "z")
    return ops.einsum(f"nz{old[axis - 1]},n{old}->n{new}", matrix, x)


def gram(axis, x):
    """The products of the slices across this axis: x @ xᵀ for axis 1, xᵀ @ x for axis 2"""
    old = LETTERS[: len(x.shape) - 1]
    new = old.replace(old[axis - 1], "z")
    return ops.einsum(f"n{old},n{new}->n{old[axis - 1]}z", x, x)


def solve_along(axis, lower, x):
    """The tensors x multiplied along this axis by the inverses of lower triangles"""
    y = ops.moveaxis(x, axis, 1)
    flat = ops.reshape(y, (*y.shape[:2], -1))
    return ops.moveaxis(ops.reshape(ops.solve_triangular(lower, flat, lower=True), y.shape), 1, axis)


def spread(axis, numbers, x):
    """One number for each slice of x across this axis, in the rank of x"""
    return ops.reshape(numbers, [size if a in (0, axis) else 1 for a, size in enumerate(x.shape)])


def as_matrix(shape):
    """The shape (inputs, outputs) of a kernel: its last axis is that of the outputs"""
    return math.prod(shape[:-1]), shape[-1]


def merge_axes(shape, limit):
    """The shape with neighbouring axes joined, up to the size `limit`; the axis of outputs, the last, stays alone"""
    *rest, last = [size for size in shape if size > 1] or [1]
    merged = []
    for size in rest:
        if merged and merged[-1] * size <= limit:
            merged[-1] *= size
        else:
            merged.append(size)
    return *merged, last


def tile(shape, limit):
    """How many blocks of what size cover each axis, where none may be larger than `limit` and all are equal"""
    counts = [math.ceil(size / limit) for size in shape]
    return counts, [math.ceil(size / count) for size, count in zip(shape, counts, strict=True)]


def split_blocks(x, limit):
    """Cuts each of n tensors into equal blocks, padded with zeros: the first axis then counts n times as many"""
    counts, sizes = tile(x.shape[1:], limit)
    total = [count * size for count, size in zip(counts, sizes, strict=True)]
    x = ops.pad(x, [(0, 0), *((0, new - old) for new, old in zip(total, x.shape[1:], strict=True))])
    x = ops.reshape(x, (x.shape[0], *(n for pair in zip(counts, sizes, strict=True) for n in pair)))
    axes = range(1, 2 * len(sizes) + 1)
    return ops.reshape(ops.transpose(x, (0, *axes[::2], *axes[1::2])), (-1, *sizes))


def join_blocks(x, shape, limit):
    """The tensors of this shape that `split_blocks` cut"""
    counts, sizes = tile(shape, limit)
    x = ops.reshape(x, (-1, *counts, *sizes))
    k = len(shape)
    x = ops.transpose(x, (0, *(axis for pair in zip(range(1, k + 1), range(k + 1, 2 * k + 1)) for axis in pair)))
    x = ops.reshape(x, (-1, *(count * size for count, size in zip(counts, sizes, strict=True))))
    return x[(slice(None), *(slice(size) for size in shape))]
