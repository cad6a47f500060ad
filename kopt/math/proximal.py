"""Proximal maps: argminₓ ½ ‖x - w‖² + t R(x) for a penalty R. What is small becomes 0, exactly."""

from keras import ops

from kopt.math.norms import norm


def soft_threshold(w, t):
    """w - min(max(w, -t), t), which is sign(w) max(|w| - t, 0), for R = ‖·‖₁"""
    return w - ops.minimum(ops.maximum(w, -t), t)


def block_soft_threshold(w, t, axes):
    """max(1 - t / ‖w‖, 0) w, for R = ‖·‖ of the entries along these axes"""
    length = norm(w, axes)
    above = length > t
    return ops.where(above, (1 - t / ops.where(above, length, 1)) * w, 0)
