"""Penalties of weights, for `kernel_regularizer` and the like; those that make zeros also for `kopt.Proximal`."""

from kopt.penalties.base import Penalty
from kopt.penalties.decay import WeightDecay
from kopt.penalties.sparse import GroupLasso, Lasso, Sparse, SparseGroupLasso
from kopt.penalties.spectral import Orthogonal, SpectralNorm

__all__ = [
    "GroupLasso",
    "Lasso",
    "Orthogonal",
    "Penalty",
    "Sparse",
    "SparseGroupLasso",
    "SpectralNorm",
    "WeightDecay",
]
