"""Whether it pays to run a network's training one operation after the other, in one thread."""

import tensorflow as tf

WEIGHTS = 2**16
"""The most numbers in weights: the operations of a larger network are worth running side by side."""


def pays(model, optimizer):
    """Whether a model is small, on the CPU, and updated by an elementwise rule: a matter of the plan alone."""
    on_cpu = not tf.config.list_logical_devices("GPU")
    return on_cpu and getattr(optimizer, "elementwise", False) and model.count_params() <= WEIGHTS
