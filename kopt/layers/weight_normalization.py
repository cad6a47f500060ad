"""Normalized weights: around any layer with a kernel, whose own kernel stays the weight that is trained."""

import math

import keras
from keras import ops

from kopt._checks import check_choice, check_range
from kopt._keras import as_stored
from kopt.layers.base import Layer
from kopt.layers.moments import wide
from kopt.layers.wrapped import call_with, check_layer_given, kernel_of

TRANSPOSED = keras.layers.Conv1DTranspose, keras.layers.Conv2DTranspose, keras.layers.Conv3DTranspose
DEPTHWISE = keras.layers.DepthwiseConv1D, keras.layers.DepthwiseConv2D
CONVOLUTIONS = keras.layers.Conv1D, keras.layers.Conv2D, keras.layers.Conv3D, *TRANSPOSED, *DEPTHWISE


def fan_in_axes(layer, kernel):
    """The axes of a kernel over which one output sums: what is left are the outputs.

        Dense                (in, out)                        all but the last
        Conv                 (*space, in, out)                all but the last
        Conv transposed      (*space, out, in)                all but the last but one
        DepthwiseConv        (*space, channels, multiplier)   all but the last two
        EinsumDense                                           those whose letters the output does not have

    Other layers are taken to have their outputs last.
    """
    axes = range(len(kernel.shape))
    if isinstance(layer, keras.layers.EinsumDense):
        inside, output = layer.equation.replace(" ", "").split("->")
        letters = inside.replace("...", "").split(",")[1]
        return [axis for axis in axes if letters[axis] not in output]
    if isinstance(layer, DEPTHWISE):
        return [*axes[:-2]]
    if isinstance(layer, TRANSPOSED):
        return [*axes[:-2], axes[-1]]
    return [*axes[:-1]]


class Reparametrized(Layer):
    """Base class of layers around a layer that computes with another kernel, made of its own.

    A subclass returns that kernel from `kernel_now`. The layer's own is what optimizers step and decay, what
    regularizers and constraints see, and what is saved.

    Args:
        layer: a `keras.layers.Layer` with a `kernel`.
        **kwargs: those of `keras.layers.Layer`; `dtype` is that of `layer` unless given.
    """

    def __init__(self, layer, **kwargs):
        check_layer_given(self, layer)
        super().__init__(**dict(dtype=layer.dtype_policy) | kwargs)
        self.layer = layer
        self.supports_masking = layer.supports_masking

    def build(self, input_shape):
        if not self.layer.built:
            self.layer.build(input_shape)
            self.layer.built = True
        kernel = kernel_of(self, self.layer)
        self.axes = fan_in_axes(self.layer, kernel)
        self.fan_in = math.prod(kernel.shape[axis] for axis in self.axes)
        self.shape_of_outputs = tuple(1 if axis in self.axes else size for axis, size in enumerate(kernel.shape))

    def kernel_now(self, kernel):
        """Returns the kernel to compute with.

        Args:
            kernel: tensor, the layer's own in float32 or wider.
        """
        raise NotImplementedError

    def call(self, inputs):
        kernel = self.layer.kernel
        outputs = call_with(self.layer, [(kernel, self.kernel_now(_value(kernel)))], inputs)
        return ops.cast(outputs, self.compute_dtype)

    def compute_mask(self, inputs, previous_mask=None):
        return self.layer.compute_mask(inputs, previous_mask)

    def compute_output_shape(self, input_shape):
        return self.layer.compute_output_shape(input_shape)


class WeightStandardization(Reparametrized):
    """Around a layer with a kernel: each output's weights get mean 0 and variance 1.

        Ŵ = (W - mean(W)) / √(var(W) + epsilon)                    over the fan-in of each output
        Ŵ = g (W - mean(W)) / √(fan_in · var(W) + epsilon)         if scaled, with g learnt if gain is given

    The first is the paper's, to go with group normalization after it. The second keeps the variance of what goes
    through, and is for networks without normalization of activations (Brock et al.). The kernel itself stays what is
    trained, saved, decayed and regularized; training and inference are the same, and so are replicas.

    Differs from the second paper's code, which divides by √max(fan_in · var(W), epsilon).

    Args:
        layer: a `keras.layers.Layer` with a `kernel`: Dense, EinsumDense, Conv, depthwise or transposed.
        scaled: whether variances of outputs are kept, in the place of those of weights.
        gain: None; or the value from which a factor for each output is learnt. 1, or the activation's own, such as
            1.7139 for relu: √(2 / (1 - 1/π)).
        epsilon: what is added to the variance, positive.
        **kwargs: those of `keras.layers.Layer`.

    Call arguments:
        inputs: what the layer takes.

    Raises:
        TypeError: `layer` is no layer, or a number none.
        ValueError: a number is out of its range, or the layer has no kernel, or one with a fan-in of 1.

    References:
        Qiao et al., *Micro-Batch Training with Batch-Channel Normalization and Weight Standardization*, 2019.
            https://arxiv.org/abs/1903.10520
        Brock et al., *Characterizing signal propagation to close the performance gap in unnormalized ResNets*, 2021
            (scaled, with a gain). https://arxiv.org/abs/2101.08692
    """

    def __init__(self, layer, scaled=False, gain=None, epsilon=1e-5, **kwargs):
        super().__init__(layer, **kwargs)
        self.scaled = check_choice(self, (False, True), scaled=scaled)
        self.gain = gain if gain is None else check_range(self, "(0, inf)", gain=gain)
        self.epsilon = check_range(self, "(0, inf)", epsilon=epsilon)
        self.g = None

    def build(self, input_shape):
        super().build(input_shape)
        if self.fan_in == 1:
            kind = type(self.layer).__name__
            raise ValueError(f"WeightStandardization: layer must sum over several inputs, got {kind} with one.")
        if self.gain is not None:
            start = keras.initializers.Constant(self.gain)
            self.g = self.add_weight(shape=self.shape_of_outputs, initializer=start, name="gain", autocast=False)

    def kernel_now(self, kernel):
        kernel = kernel - ops.sum(kernel, self.axes, keepdims=True) / self.fan_in  # Keras's mean is float32 on JAX
        squares = ops.sum(ops.square(kernel), self.axes, keepdims=True)
        kernel = kernel * ops.rsqrt((squares if self.scaled else squares / self.fan_in) + self.epsilon)
        return kernel if self.g is None else kernel * ops.cast(self.g, kernel.dtype)


class WeightNormalization(Reparametrized):
    """Around a layer with a kernel: length and direction of each output's weights are learnt apart.

        w = g · v / ‖v‖            over the fan-in of each output

    v is the layer's own kernel, and g a weight of one number for each output, ‖v‖ at the start: nothing changes. The
    gradient of v is orthogonal to v. Training and inference are the same, and so are replicas. Weight decay belongs to
    g, if to either: that of v only changes its learning rate.

    `initialize` sets g and the bias from data, as the paper does.

    Args:
        layer: a `keras.layers.Layer` with a `kernel`: Dense, EinsumDense, Conv, depthwise or transposed.
        **kwargs: those of `keras.layers.Layer`.

    Call arguments:
        inputs: what the layer takes.

    Raises:
        TypeError: `layer` is no layer.
        ValueError: the layer has no kernel.

    Example:
        >>> layer = kopt.layers.WeightNormalization(keras.layers.Dense(8, "relu"))  # doctest: +SKIP

    References:
        Salimans and Kingma, *Weight Normalization*, 2016. https://arxiv.org/abs/1602.07868
    """

    def build(self, input_shape):
        super().build(input_shape)

        def lengths(shape, dtype=None):
            return ops.cast(self._length(_value(self.layer.kernel)), dtype)

        self.g = self.add_weight(shape=self.shape_of_outputs, initializer=lengths, name="g", autocast=False)

    def kernel_now(self, kernel):
        return kernel * (ops.cast(self.g, kernel.dtype) / self._length(kernel))

    def _length(self, kernel):
        return ops.sqrt(ops.maximum(ops.sum(ops.square(kernel), self.axes, keepdims=True), 1e-24))

    def initialize(self, inputs):
        """Sets g and the bias so that outputs have mean 0 and variance 1 on a batch, before the activation.

            t = v x / ‖v‖,  g ← 1 / σ(t),  b ← -μ(t) / σ(t)

        Call it once, before training, outside of any trace, from the first layer to the last. Without a bias only the
        variance is set. An output that is the same for all of the batch keeps its g.

        Args:
            inputs: what this layer is called with: a batch, as large as memory allows.

        Raises:
            ValueError: the layer is neither Dense nor a convolution.

        Returns:
            What the layer gives for these inputs from now on.
        """
        if not isinstance(self.layer, (keras.layers.Dense, *CONVOLUTIONS)):
            kind = type(self.layer).__name__
            raise ValueError(f"WeightNormalization: initialize needs a Dense layer or a convolution, got {kind}.")
        if not self.built:
            self(inputs)
        layer, bias = self.layer, self.layer.bias
        values = [(layer.kernel, _value(layer.kernel) / self._length(_value(layer.kernel)))]
        values += [] if bias is None else [(bias, ops.zeros_like(bias.value))]
        activation = layer.activation
        try:
            layer.activation = keras.activations.linear
            t = wide(call_with(layer, values, inputs))
        finally:
            layer.activation = activation
        channel = 1 if getattr(layer, "data_format", None) == "channels_first" else len(t.shape) - 1
        mean, variance = ops.moments(t, [axis for axis in range(len(t.shape)) if axis != channel])
        deviation = ops.sqrt(variance)
        varies = deviation > 1e-6 * (1 + ops.abs(mean))
        scale = ops.where(varies, 1 / ops.where(varies, deviation, 1), ops.reshape(ops.cast(self.g, t.dtype), (-1,)))
        self.g.assign(ops.reshape(scale, self.g.shape))
        if bias is not None:
            bias.assign(-mean * scale)
        return self(inputs)


def _value(variable):
    """What a variable holds, as a tensor in its own type, or float32 if that has fewer bits."""
    with as_stored():
        return wide(ops.convert_to_tensor(variable.value))
