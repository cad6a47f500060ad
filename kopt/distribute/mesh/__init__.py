"""Weights that lie in parts over a mesh of devices, by TensorFlow's DTensor."""
