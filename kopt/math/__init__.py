"""Pure pieces of update rules: each function is one line of a paper, on tensors, in `keras.ops` alone."""

from kopt.math.averages import at_first, debias, ema, rectified
from kopt.math.matrices import (
    along,
    as_matrix,
    eigenvectors,
    gram,
    inverse_root,
    join_blocks,
    merge_axes,
    newton_schulz,
    refine_eigenvectors,
    solve_along,
    spectral_bound,
    split_blocks,
    spread,
    tile,
    transpose,
)
from kopt.math.norms import mean, norm, rms, safe_norm, trust_ratio, within
from kopt.math.proximal import block_soft_threshold, soft_threshold
from kopt.math.ratios import gain_ratio, power, ratio

__all__ = [
    "along",
    "as_matrix",
    "at_first",
    "block_soft_threshold",
    "debias",
    "eigenvectors",
    "ema",
    "gain_ratio",
    "gram",
    "inverse_root",
    "join_blocks",
    "mean",
    "merge_axes",
    "newton_schulz",
    "norm",
    "power",
    "ratio",
    "rectified",
    "refine_eigenvectors",
    "rms",
    "safe_norm",
    "soft_threshold",
    "solve_along",
    "spectral_bound",
    "split_blocks",
    "spread",
    "tile",
    "transpose",
    "trust_ratio",
    "within",
]
