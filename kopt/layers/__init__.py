"""Layers that regularize, beside those that Keras has."""

from kopt.layers.activity import ConfidencePenalty, DeCov
from kopt.layers.dropout import DropPath, drop_path, linear_depth
from kopt.layers.gates import L0Gate

__all__ = ["ConfidencePenalty", "DeCov", "DropPath", "L0Gate", "drop_path", "linear_depth"]
