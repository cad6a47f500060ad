"""Means and variances where masks and replicas count: sums and numbers of entries are added up, never means."""

import math

import keras
from keras import ops

from kopt._backend import replicas, sum_over_replicas


def kept(x, mask):
    """A mask of the first axes of `x` as ones and zeros of the type of `x`, with as many axes; None for none."""
    if mask is None:
        return None
    mask = ops.convert_to_tensor(mask)
    return ops.cast(ops.reshape(mask, (*ops.shape(mask), *(1 for _ in x.shape[len(mask.shape) :]))), x.dtype)


def sums(x, axes, weights=None):
    """The sum of x over these axes where the weights are not zero, and how many entries that are.

    Args:
        x: tensor of floats.
        axes: list of integers, not negative.
        weights: what `kept` returns.

    Returns:
        Two tensors with length 1 along these axes; the second one's others are 1, too, but for the first, where there
        are no weights.
    """
    if weights is None:
        rows, each = 1 if 0 in axes else ops.shape(x)[0], math.prod(ops.shape(x)[axis] for axis in axes)
        number = ops.ones((rows, *(1 for _ in x.shape[1:])), dtype=x.dtype) * ops.cast(each, x.dtype)
        return ops.sum(x, axes, keepdims=True) if axes else x, number
    x = ops.where(weights > 0, x, ops.zeros_like(x))  # what is masked may be NaN
    number = ops.sum(ops.broadcast_to(weights, ops.shape(x)), axes, keepdims=True)
    return ops.sum(x, axes, keepdims=True), number


def moments(x, axes, weights=None, synchronized=False):
    """Mean and variance over these axes: the mean first, then the squares around it, without cancellation.

    Args:
        x: tensor of floats.
        axes: list of integers, not negative.
        weights: what `kept` returns.
        synchronized: whether over the entries of all replicas.

    Returns:
        Mean, variance and number of entries, with length 1 along these axes, zeros where there are no entries; and
        what is left of x without the mean.
    """

    def total(x):
        value, number = sums(x, axes, weights)
        if synchronized and replicas() > 1:  # by one reduction over them
            pair = ops.stack([value, ops.broadcast_to(number, ops.shape(value))])
            value, number = ops.unstack(sum_over_replicas([pair])[0], 2)
        return value / ops.maximum(number, 1), number

    mean, number = total(x)
    away = x - mean
    return mean, total(ops.square(away))[0], number, away


def wide(x):
    """A tensor as float32, or wider if it is: statistics are not for fewer bits."""
    few = keras.backend.standardize_dtype(x.dtype) in ("bfloat16", "float16")
    return ops.cast(x, "float32") if few else x
