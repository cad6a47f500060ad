"""The dropout family: noise that multiplies activations with zero, and the rest so that the mean stays."""

from numbers import Integral

import keras

from kopt._checks import check_choice, check_range
from kopt.layers.base import Noise, Scheduled, inverted


def drop_path(x, rate, seed, mode="sample"):
    """Zeroes whole examples and scales the rest: x · b / (1 - rate), with b ~ Bernoulli(1 - rate) for each example.

    Args:
        x: tensor of shape `(batch, ...)`.
        rate: probability of zeroing an example, in [0, 1].
        seed: a `keras.random.SeedGenerator`, or an integer for the same draw each time.
        mode: `"sample"`; or `"batch"`, for one b for all examples.

    Returns:
        A tensor of the shape and type of `x`, with the mean of `x`.
    """
    rows = 1 if mode == "batch" else keras.ops.shape(x)[0]
    shape = (rows, *(1 for _ in x.shape[1:]))
    return inverted(x, keras.random.uniform(shape, seed=seed) >= rate, rate)


class DropPath(Noise):
    """Stochastic depth: while training, leaves out a residual branch for some examples of the batch.

        y = x · b / (1 - rate),  b ~ Bernoulli(1 - rate) for each example        when training
        y = x                                                                    else

    Put it at the end of a branch that a skip connection bypasses: `h + DropPath(0.1)(block(h))`. Deeper blocks
    usually get higher rates: `linear_depth`.

    Args:
        rate: probability of leaving the branch out for an example, in [0, 1), or a schedule.
        seed: an integer, for the same draws in every run; None draws a new one.
        mode: `"sample"`, a draw for each example; `"batch"`, one for all of them, as in the first of the papers.
        **kwargs: those of `keras.layers.Layer`: `name`, `dtype` and so on.

    Call arguments:
        inputs: tensor of shape `(batch, ...)` and any float type.
        training: whether to drop; Keras sets it.

    Raises:
        TypeError: `rate` is neither a number nor a schedule.
        ValueError: `rate` is not in [0, 1), or `mode` is another word.

    References:
        Huang et al., *Deep Networks with Stochastic Depth*, 2016. https://arxiv.org/abs/1603.09382
        Larsson et al., *FractalNet*, 2017 (the name). https://arxiv.org/abs/1605.07648
    """

    def __init__(self, rate: Scheduled, seed=None, mode="sample", **kwargs):
        super().__init__(seed, **kwargs)
        self._set_rates(rate=rate)
        self.mode = check_choice(self, ("sample", "batch"), mode=mode)

    def call(self, inputs, training=False):
        return drop_path(inputs, self._now().rate, self.seed_generator, self.mode) if training else inputs


def linear_depth(rate, depth):
    """Returns a rate for each of `depth` blocks, growing linearly with depth up to `rate` at the last.

        rate_l = rate · l / depth,  l = 1, ..., depth

    Args:
        rate: of the last block, a number in [0, 1).
        depth: number of blocks, a positive integer.

    References:
        Huang et al., *Deep Networks with Stochastic Depth*, 2016, section 3. https://arxiv.org/abs/1603.09382
    """
    check_range("linear_depth", "[0, 1)", rate=rate)
    check_range("linear_depth", "[1, inf)", kind=Integral, depth=depth)
    return [rate * block / depth for block in range(1, depth + 1)]
