"""Layers that regularize, beside those that Keras has."""

from kopt.layers.drop_block import DropBlock1D, DropBlock2D, DropBlock3D
from kopt.layers.drop_connect import DropConnect
from kopt.layers.dropout import DropPath, FeatureDropout, PatchDropout, TokenDropout, drop_path, linear_depth
from kopt.layers.learnt import ConcreteDropout, VariationalDropout
from kopt.layers.recurrent import Zoneout
from kopt.layers.shake import ShakeDrop

__all__ = [
    "ConcreteDropout",
    "DropBlock1D",
    "DropBlock2D",
    "DropBlock3D",
    "DropConnect",
    "DropPath",
    "FeatureDropout",
    "PatchDropout",
    "ShakeDrop",
    "TokenDropout",
    "VariationalDropout",
    "Zoneout",
    "drop_path",
    "linear_depth",
]
