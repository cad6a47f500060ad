"""DropConnect: dropout of weights in the place of activations."""

import keras

from kopt._checks import check_choice
from kopt.layers.base import Noise, Scheduled, inverted
from kopt.layers.wrapped import call_with, check_layer_given, kernel_of


class DropConnect(Noise):
    """Leaves out single weights, around any layer with a kernel.

        y = layer(x; W · M / (1 - rate)),  M ~ Bernoulli(1 - rate) for each weight        when training
        y = layer(x; W)                                                                   else

    One mask for the batch, as all who implement it have; in the paper each example has its own. The paper also draws at
    inference, from a Gaussian with the mean and variance that the masks give: `kopt.monte_carlo` draws the masks
    themselves.

    Args:
        layer: a `keras.layers.Layer` with a `kernel`.
        rate: probability of leaving a weight out, in [0, 1), or a schedule.
        bias: whether biases are left out, too, as in the paper.
        seed: an integer, for the same draws in every run; None draws a new one.
        **kwargs: those of `keras.layers.Layer`.

    Call arguments:
        inputs: what the layer takes.
        training: whether to drop; Keras sets it.

    Raises:
        TypeError: `rate` is neither a number nor a schedule, or `layer` no layer.
        ValueError: `rate` is not in [0, 1), or the layer has no kernel.

    References:
        Wan et al., *Regularization of Neural Networks using DropConnect*, 2013.
    """

    def __init__(self, layer, rate: Scheduled = 0.5, bias=False, seed=None, **kwargs):
        super().__init__(seed, **kwargs)
        self.layer = check_layer_given(self, layer)
        self.supports_masking = layer.supports_masking
        self._set_rates(rate=rate)
        self.bias = check_choice(self, (True, False), bias=bias)

    def build(self, input_shape):
        if not self.layer.built:
            self.layer.build(input_shape)
        kernel_of(self, self.layer)

    def call(self, inputs, training=False):
        if not training:
            return self.layer(inputs)
        rate = self._now().rate
        found = [self.layer.kernel, getattr(self.layer, "bias", None) if self.bias else None]
        dropped = [(v, self._dropped(v.value, rate)) for v in found if v is not None]
        return call_with(self.layer, dropped, inputs)

    def _dropped(self, weight, rate):
        return inverted(weight, keras.random.uniform(weight.shape, seed=self.seed_generator) >= rate, rate)

    def compute_output_shape(self, input_shape):
        return self.layer.compute_output_shape(input_shape)
