"""Pure pieces of update rules: each function is one line of a paper, on tensors, in `keras.ops` alone."""

from kopt.math.averages import debias, ema
from kopt.math.norms import norm, trust_ratio

__all__ = ["debias", "ema", "norm", "trust_ratio"]
