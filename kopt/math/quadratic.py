"""A quadratic model of a loss along two directions, and the damping that it is to be trusted with."""

from keras import ops


def best_pair(curvature, slope):
    """c that minimizes ½ cᵀKc - sᵀc, with K as (k₁₁, k₁₂, k₂₂); c₂ = 0 where K is singular"""
    k11, k12, k22 = curvature
    s1, s2 = slope
    determinant = k11 * k22 - k12 * k12
    rounding = 2.0**-40 if determinant.dtype == "float64" else 2.0**-14
    regular = determinant > rounding * k11 * k22
    second = ops.where(regular, (k11 * s2 - k12 * s1) / ops.where(regular, determinant, 1), 0)
    return (s1 - k12 * second) / ops.where(k11 > 0, k11, 1), second


def adapted_log(log_damping, ratio, by):
    """Less where the loss fell by more than 3/4 of what the model said, more where by less than 1/4: by that much"""
    up = ops.where(ratio > 0.75, -1.0, ops.where(ratio >= 0.25, 0.0, 1.0))  # for a NaN, too
    return log_damping + by * ops.cast(up, log_damping.dtype)
