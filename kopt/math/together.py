"""All weights as one vector: lists with a tensor for each weight, or None where one has no part in it."""

import functools
import operator

from keras import ops


def dot(a, b):
    """⟨a, b⟩, over the entries of all weights, at least in float32"""
    pairs = [(_wide(x), _wide(y)) for x, y in zip(a, b, strict=True) if x is not None and y is not None]
    return functools.reduce(operator.add, (ops.sum(x * y) for x, y in pairs))


def _wide(x):
    return x if x.dtype == "float64" else ops.cast(x, "float32")


def length(a):
    """‖a‖, over the entries of all weights"""
    return ops.sqrt(dot(a, a))


def plus(a, scale, b):
    """a + scale · b, in the types of a"""
    pairs = zip(a, b, strict=True)
    return [x if y is None else y if x is None else x + ops.cast(scale * _wide(y), x.dtype) for x, y in pairs]
