"""Proximal maps: argminₓ ½ ‖x - w‖² + t R(x) for a penalty R. What is small becomes 0, exactly."""

from keras import ops

from kopt.math.norms import norm


def soft_threshold(w, t):
    """sign(w) max(|w| - t, 0), for R = ‖·‖₁"""
    return ops.sign(w) * ops.maximum(ops.abs(w) - t, 0)


def block_soft_threshold(w, t, axes):
    """max(1 - t / ‖w‖, 0) w, for R = ‖·‖ of the entries along these axes"""
    length = norm(w, axes)
    above = length > t
    return ops.where(above, 1 - t / ops.where(above, length, 1), 0) * w
