"""Layers that regularize, beside those that Keras has."""

from kopt.layers.batch_normalization import BatchRenormalization, GhostBatchNormalization, SyncBatchNormalization
from kopt.layers.conditional import ConditionalNormalization, FiLM, adain
from kopt.layers.dropout import DropPath, drop_path, linear_depth
from kopt.layers.normalization import FilterResponseNormalization, LayerScale, layer_scale_initial
from kopt.layers.weight_normalization import WeightNormalization, WeightStandardization

__all__ = [
    "BatchRenormalization",
    "ConditionalNormalization",
    "DropPath",
    "FiLM",
    "FilterResponseNormalization",
    "GhostBatchNormalization",
    "LayerScale",
    "SyncBatchNormalization",
    "WeightNormalization",
    "WeightStandardization",
    "adain",
    "drop_path",
    "layer_scale_initial",
    "linear_depth",
]
