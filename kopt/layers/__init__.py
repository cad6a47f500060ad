"""Layers that regularize, beside those that Keras has."""

from kopt.layers.activity import ConfidencePenalty, DeCov
from kopt.layers.batch_normalization import BatchRenormalization, GhostBatchNormalization, SyncBatchNormalization
from kopt.layers.conditional import ConditionalNormalization, FiLM, adain
from kopt.layers.drop_block import DropBlock1D, DropBlock2D, DropBlock3D
from kopt.layers.drop_connect import DropConnect
from kopt.layers.dropout import DropPath, FeatureDropout, PatchDropout, TokenDropout, drop_path, linear_depth
from kopt.layers.gates import L0Gate
from kopt.layers.learnt import ConcreteDropout, VariationalDropout
from kopt.layers.normalization import FilterResponseNormalization, LayerScale, layer_scale_initial
from kopt.layers.recurrent import Zoneout
from kopt.layers.shake import ShakeDrop
from kopt.layers.weight_normalization import WeightNormalization, WeightStandardization

__all__ = [
    "BatchRenormalization",
    "ConcreteDropout",
    "ConditionalNormalization",
    "ConfidencePenalty",
    "DeCov",
    "DropBlock1D",
    "DropBlock2D",
    "DropBlock3D",
    "DropConnect",
    "DropPath",
    "FeatureDropout",
    "FiLM",
    "FilterResponseNormalization",
    "GhostBatchNormalization",
    "L0Gate",
    "LayerScale",
    "PatchDropout",
    "ShakeDrop",
    "SyncBatchNormalization",
    "TokenDropout",
    "VariationalDropout",
    "WeightNormalization",
    "WeightStandardization",
    "Zoneout",
    "adain",
    "drop_path",
    "layer_scale_initial",
    "linear_depth",
]
