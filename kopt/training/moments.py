"""Batch statistics that may be differentiated twice.

`tf.nn.moments` stops the gradient of the mean where it computes the variance. That is right for first derivatives,
where the term is zero, and wrong for second ones: products with the Hessian of a network with batch normalization
would be wrong without a word. Here is the same function without that stop, and a context in which Keras uses it.
"""

import tensorflow as tf

from kopt._replaced import Replaced


def _moments(x, axes, shift=None, keepdims=False, name=None):
    mean = tf.reduce_mean(x, axes, keepdims=True, name=name)
    variance = tf.reduce_mean(tf.math.squared_difference(x, mean), axes, keepdims=True)
    return (mean, variance) if keepdims else (tf.squeeze(mean, axes), tf.squeeze(variance, axes))


_replaced = Replaced(tf.nn, moments=_moments)


def twice_differentiable():
    """A context in which `tf.nn.moments` has right second derivatives."""
    return _replaced
