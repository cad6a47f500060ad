"""The dropout family: noise that multiplies activations with zero, and the rest so that the mean stays."""

import keras
from keras import ops

from kopt._checks import check_range


def drop_path(x, rate, seed):
    """Zeroes whole examples and scales the rest: x · b / (1 - rate), with b ~ Bernoulli(1 - rate) for each example.

    Args:
        x: tensor of shape `(batch, ...)`.
        rate: probability of zeroing an example, in [0, 1].
        seed: a `keras.random.SeedGenerator`, or an integer for the same draw each time.

    Returns:
        A tensor of the shape and type of `x`, with the mean of `x`.
    """
    shape = (ops.shape(x)[0], *(1 for _ in x.shape[1:]))
    kept = keras.random.uniform(shape, seed=seed) >= rate
    return ops.where(kept, x / ops.cast(1 - rate, x.dtype), ops.zeros_like(x))


@keras.saving.register_keras_serializable("kopt")
class DropPath(keras.layers.Layer):
    """Stochastic depth: while training, leaves out a residual branch for some examples of the batch.

        y = x · b / (1 - rate),  b ~ Bernoulli(1 - rate) for each example        when training
        y = x                                                                    else

    Put it at the end of a branch that a skip connection bypasses: `h + DropPath(0.1)(block(h))`. Deeper blocks
    usually get higher rates.

    Args:
        rate: probability of leaving the branch out for an example, in [0, 1).
        seed: an integer, for the same draws in every run; None draws a new one.
        **kwargs: those of `keras.layers.Layer`: `name`, `dtype` and so on.

    Call arguments:
        inputs: tensor of shape `(batch, ...)` and any float type.
        training: whether to drop; Keras sets it.

    Raises:
        TypeError: `rate` is no number.
        ValueError: `rate` is not in [0, 1).

    References:
        Huang et al., *Deep Networks with Stochastic Depth*, 2016. https://arxiv.org/abs/1603.09382
        Larsson et al., *FractalNet*, 2017 (the name). https://arxiv.org/abs/1605.07648
    """

    def __init__(self, rate, seed=None, **kwargs):
        super().__init__(**kwargs)
        self.rate, self.seed = check_range(self, "[0, 1)", rate=rate), seed
        self.seed_generator = keras.random.SeedGenerator(seed) if rate > 0 else None
        self.supports_masking = True

    def call(self, inputs, training=False):
        return drop_path(inputs, self.rate, self.seed_generator) if training and self.rate > 0 else inputs

    def compute_output_shape(self, input_shape):
        return input_shape

    def get_config(self):
        return super().get_config() | dict(rate=self.rate, seed=self.seed)
