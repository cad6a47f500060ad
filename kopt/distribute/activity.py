"""Losses of activity regularizers, of which Keras has not always taken the mean over rows."""

import contextlib
import functools

import keras

from kopt._backend import outside_the_trace


@functools.cache
def sums_activity():
    """Whether Keras adds an activity regularizer's loss up over rows, as it did once, and takes no mean of them."""
    layer = keras.layers.ActivityRegularization(l1=1.0)
    with outside_the_trace(), keras.StatelessScope(collect_losses=True) as scope:
        layer(keras.ops.ones((2, 1)))
        return float(keras.ops.convert_to_numpy(scope.losses[0])) > 1.5


@contextlib.contextmanager
def activity_as_means(layers, share):
    """A context in which losses of activity regularizers, times the rows' share of a batch, add up to the batch's.

    Args:
        layers: that have them, or layers inside that do.
        share: the part that the rows are of the batch; where it is 0, so are the losses.
    """
    every = {id(each): each for layer in layers for each in layer._flatten_layers()}.values()
    regular = [layer for layer in every if layer.activity_regularizer is not None] if sums_activity() else []
    given = [layer.activity_regularizer for layer in regular]

    def scaled(regularizer):
        return lambda x: keras.ops.divide_no_nan(regularizer(x), keras.ops.cast(share, x.dtype))

    for layer, regularizer in zip(regular, given):
        layer.activity_regularizer = scaled(regularizer)
    try:
        yield
    finally:
        for layer, regularizer in zip(regular, given):
            layer.activity_regularizer = regularizer
