"""Lengths of tensors and ratios of them."""

from keras import ops


def norm(x):
    """||x||, the Euclidean length of all entries"""
    return ops.sqrt(ops.sum(ops.square(x)))


def trust_ratio(w, u):
    """||w|| / ||u||, and 1 where either is zero"""
    w, u = norm(w), norm(u)
    either_zero = ops.logical_or(w == 0, u == 0)
    return ops.where(either_zero, 1.0, w / ops.where(either_zero, 1.0, u))
