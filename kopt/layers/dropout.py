"""The dropout family: noise that multiplies activations with zero, and the rest so that the mean stays."""

import math
from numbers import Integral

import keras

from kopt._checks import check_choice, check_range
from kopt._keras import give_mask
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


class FeatureDropout(Noise):
    """Leaves out whole features: the columns of a table, the channels of a sequence or an image.

        y[n, ..., c] = x[n, ..., c] · b[n, c] / (1 - rate),  b ~ Bernoulli(1 - rate)        when training

    Dropout whose draw is shared by all positions, for any rank: Keras's `SpatialDropout1D` to `3D` are this for ranks 3
    to 5. On the inputs of a table it makes a network that depends on no column alone.

    Args:
        rate: probability of leaving a feature out, in [0, 1), or a schedule.
        axis: of the features: an integer, -1 for the last, 1 where channels come first.
        mode: `"sample"`, draws for each example; `"batch"`, the same for all of them.
        seed: an integer, for the same draws in every run; None draws a new one.
        **kwargs: those of `keras.layers.Layer`.

    Call arguments:
        inputs: tensor of shape `(batch, ..., features)` and any float type.
        training: whether to drop; Keras sets it.

    Raises:
        TypeError: `rate` is neither a number nor a schedule, or `axis` no integer.
        ValueError: `rate` is not in [0, 1), `mode` is another word, or `axis` is that of the examples.

    References:
        Tompson et al., *Efficient Object Localization Using Convolutional Networks*, 2015.
        https://arxiv.org/abs/1411.4280
    """

    def __init__(self, rate: Scheduled, axis=-1, mode="sample", seed=None, **kwargs):
        super().__init__(seed, **kwargs)
        self._set_rates(rate=rate)
        self.axis = check_range(self, "(-inf, inf)", kind=Integral, axis=axis)
        self.mode = check_choice(self, ("sample", "batch"), mode=mode)
        if axis == 0:
            raise ValueError("FeatureDropout: axis must not be that of the examples, got 0.")

    def call(self, inputs, training=False):
        if not training:
            return inputs
        shape = [1] * len(inputs.shape)
        shape[self.axis] = inputs.shape[self.axis]
        shape[0] = keras.ops.shape(inputs)[0] if self.mode == "sample" else 1
        rate = self._now().rate
        return inverted(inputs, keras.random.uniform(shape, seed=self.seed_generator) >= rate, rate)


class TokenDropout(Noise):
    """Leaves out whole tokens: words of a text, steps of a sequence.

        y[n, t] = x[n, t] · b[n, t] / (1 - rate)                    for vectors, when training
        y[n, t] = x[n, t] if b[n, t] else token                     for integers, when training
        b ~ Bernoulli(1 - rate)

    On integers, before an embedding, it is word dropout: a token is replaced by another, that of unknown words say, and
    nothing is scaled. On vectors, after an embedding, it is dropout with one draw for each token.

    Args:
        rate: probability of leaving a token out, in [0, 1), or a schedule.
        token: the integer that replaces a token, in [0, inf).
        seed: an integer, for the same draws in every run; None draws a new one.
        **kwargs: those of `keras.layers.Layer`.

    Call arguments:
        inputs: integers of shape `(batch, tokens)`, or floats of shape `(batch, tokens, ...)`.
        training: whether to drop; Keras sets it.

    Raises:
        TypeError: `rate` is neither a number nor a schedule, or `token` no integer.
        ValueError: `rate` is not in [0, 1), or `token` is negative.

    References:
        Iyyer et al., *Deep Unordered Composition Rivals Syntactic Methods for Text Classification*, 2015.
        Bowman et al., *Generating Sentences from a Continuous Space*, 2016. https://arxiv.org/abs/1511.06349
    """

    def __init__(self, rate: Scheduled, token=0, seed=None, **kwargs):
        super().__init__(seed, **kwargs)
        self._set_rates(rate=rate)
        self.token = check_range(self, "[0, inf)", kind=Integral, token=token)

    def call(self, inputs, training=False):
        if not training:
            return inputs
        rate, floats = self._now().rate, "float" in keras.backend.standardize_dtype(inputs.dtype)
        shape = (*keras.ops.shape(inputs)[:2], *(1 for _ in inputs.shape[2:]))
        kept = keras.random.uniform(shape, seed=self.seed_generator) >= rate
        return inverted(inputs, kept, rate) if floats else keras.ops.where(kept, inputs, self.token)

    def compute_output_spec(self, inputs, training=False):
        return keras.KerasTensor(inputs.shape, inputs.dtype)


class PatchDropout(Noise):
    """Trains on some of the tokens: a vision transformer sees part of an image's patches, at a fraction of the cost.

        y[n] = the tokens of x[n] with the numbers in S[n], in their order,  |S[n]| = ⌈(1 - rate) · tokens⌉

    `S[n]`, drawn anew for each example, always has the first `kept_first`. The output is shorter, when training; at
    inference it is the input. Put it behind what adds the positions' embeddings.

    Args:
        rate: part of the tokens that is left out, in [0, 1). No schedule: it fixes the shape.
        kept_first: how many tokens at the beginning are always kept, as that of the class: in [0, inf).
        seed: an integer, for the same draws in every run; None draws a new one.
        **kwargs: those of `keras.layers.Layer`.

    Call arguments:
        inputs: tensor of shape `(batch, tokens, features)` with a known number of tokens.
        training: whether to leave out; Keras sets it.
        mask: booleans of shape `(batch, tokens)`, or None; those of the kept tokens go on.

    Raises:
        TypeError: `rate` is no number, or `kept_first` no integer.
        ValueError: either is out of its range, or the number of tokens is not known.

    References:
        Liu et al., *PatchDropout: Economizing Vision Transformers Using Patch Dropout*, 2022.
        https://arxiv.org/abs/2208.07220
    """

    def __init__(self, rate: float, kept_first=1, seed=None, **kwargs):
        super().__init__(seed, **kwargs)
        if callable(rate):
            raise TypeError(
                f"PatchDropout: rate must be a number in [0, 1), since it fixes the shape of the output, got {rate!r}. "
                "Try TokenDropout, whose rate may be a schedule."
            )
        self.rate = check_range(self, "[0, 1)", rate=rate)
        self.kept_first = check_range(self, "[0, inf)", kind=Integral, kept_first=kept_first)

    def build(self, input_shape):
        if len(input_shape) != 3 or input_shape[1] is None:
            raise ValueError(
                "PatchDropout: inputs must have the shape (batch, tokens, features) with a known number of tokens, got "
                f"{tuple(input_shape)}."
            )

    def call(self, inputs, training=False, mask=None):
        tokens = inputs.shape[1]
        free = tokens - min(self.kept_first, tokens)
        number = math.ceil((1 - self.rate) * free)
        if not training or number == free:
            return inputs
        rows, _, features = keras.ops.shape(inputs)
        noise = keras.random.uniform((rows, free), seed=self.seed_generator)
        drawn = keras.ops.sort(keras.ops.argsort(noise, axis=1)[:, :number], axis=1) + (tokens - free)
        first = keras.ops.zeros_like(drawn[:, :1]) + keras.ops.arange(tokens - free, dtype=drawn.dtype)
        numbers = keras.ops.concatenate([first, drawn], axis=1)
        places = numbers + tokens * keras.ops.arange(rows, dtype=numbers.dtype)[:, None]
        # four times as fast as `take_along_axis`
        outputs = keras.ops.take(keras.ops.reshape(inputs, (-1, features)), places, axis=0)
        if mask is not None:
            give_mask(outputs, keras.ops.take_along_axis(mask, numbers, axis=1))
        return outputs

    def compute_output_shape(self, input_shape):
        return (input_shape[0], None if self.rate else input_shape[1], *input_shape[2:])
