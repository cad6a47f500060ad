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


def rms(x):
    """||x|| / sqrt(n), the root mean square of each weight's n entries"""
    return norm(x) / math.sqrt(math.prod(x.shape[1:]))  # on JAX, `ops.mean` rounds float64 to float32


def trust_ratio(w, u):
    """||w|| / ||u||, and 1 where either is zero"""
    w, u = norm(w), norm(u)
    either_zero = ops.logical_or(w == 0, u == 0)
    return ops.where(either_zero, 1.0, w / ops.where(either_zero, 1.0, u))
