"""Quotients and powers."""

import numpy as np
from keras import ops


def ratio(x, y):
    """x / y, and 0 where y is 0"""
    return ops.where(y == 0, 0.0, x / ops.where(y == 0, 1.0, y))


def power(x, exponent):
    """xᵖ for x ≥ 0, as exp(p log x): XLA has no fast general power on a CPU"""
    positive = x > 0
    above = ops.exp(exponent * ops.log(ops.where(positive, x, 1)))
    return ops.where(positive, above, ops.power(0 * exponent, exponent))


def gain_ratio(drop, promised, value):
    """drop / promised, to both of which ten rounding errors of a value are added: 1 where both are less"""
    rounding = 10 * np.finfo(ops.dtype(value)).eps * ops.abs(value)
    return ratio(drop + rounding, promised + rounding)
