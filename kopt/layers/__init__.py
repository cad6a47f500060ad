"""Layers that regularize, beside those that Keras has."""

from kopt.layers.dropout import DropPath, drop_path, linear_depth

__all__ = ["DropPath", "drop_path", "linear_depth"]
