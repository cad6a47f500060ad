"""Lengths of weights and ratios of them.

Each takes a stack, whose first axis counts weights, and returns one number for each weight, in the stack's rank.
"""

import math

from keras import ops


def within(x):
    """The axes along which a stack's weights lie: all but the first"""
    return tuple(range(1, len(x.shape)))


def norm(x, axes=None):
    """||x||, the Euclidean length of all entries of each weight, or of those along some axes"""
    return ops.sqrt(ops.sum(ops.square(x), axis=axes or within(x), keepdims=True))


def safe_norm(x, axes=None):
    """||x||, with the slope 0 where all entries are 0 and there is none"""
    square = ops.sum(ops.square(x), axis=axes or within(x), keepdims=True)
    positive = square > 0
    return ops.where(positive, ops.sqrt(ops.where(positive, square, 1)), 0)


def mean(x, axes=None):
    """sum(x) / n, over the n entries of each weight, or over those along some axes"""
    axes = within(x) if axes is None else axes  # on JAX, `ops.mean` rounds float64 to float32
    return ops.sum(x, axis=axes, keepdims=True) / math.prod(x.shape[axis] for axis in axes)


def rms(x):
    """||x|| / sqrt(n), the root mean square of each weight's n entries"""
    return ops.sqrt(mean(ops.square(x)))


def trust_ratio(w, u):
    """||w|| / ||u||, and 1 where either is zero"""
    w, u = norm(w), norm(u)
    either_zero = ops.logical_or(w == 0, u == 0)
    return ops.where(either_zero, 1.0, w / ops.where(either_zero, 1.0, u))
