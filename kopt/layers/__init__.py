"""Layers that regularize, beside those that Keras has."""

from kopt.layers.batch_normalization import BatchRenormalization, GhostBatchNormalization, SyncBatchNormalization
from kopt.layers.dropout import DropPath, drop_path, linear_depth

__all__ = [
    "BatchRenormalization",
    "DropPath",
    "GhostBatchNormalization",
    "SyncBatchNormalization",
    "drop_path",
    "linear_depth",
]
