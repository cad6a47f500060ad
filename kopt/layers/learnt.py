"""Dropout whose rates are learnt with the weights: concrete, and variational with one rate for each weight."""

import math

import keras
from keras import ops

from kopt._checks import check_range
from kopt.layers.base import Noise, Scheduled
from kopt.layers.wrapped import call_with, check_layer_given, kernel_of


class ConcreteDropout(Noise):
    """Dropout of what a layer is given, at a rate that is learnt: around any layer with a kernel.

        z = σ((logit p + logit u) / temperature),  u ~ Uniform(0, 1)                         when training
        y = layer(x · (1 - z) / (1 - p))
        loss += weight_decay · ‖W‖² / (1 - p) + entropy · K · (p ln p + (1 - p) ln(1 - p))

    with `p` the rate, one for the layer, and K the number of features of the input. The relaxed draws z, nearly 0
    or 1, have a gradient by p. The first penalty wants p small, the second, minus the entropy, near a half: of a
    variational posterior over the weights it is the divergence from the prior. With N rows, a prior length scale l and
    a noise precision τ, `weight_decay` is l² / (τ N) and `entropy` 2 / (τ N); without τ in classification.

    Inputs with positions, of a convolution say, lose whole channels: the draw is shared by all positions of an
    example. At inference the layer gets its input as it is; `kopt.monte_carlo` draws.

    Args:
        layer: a `keras.layers.Layer` with a `kernel`.
        rate: p at the beginning, in [0.001, 0.999].
        weight_decay: in [0, inf), or a schedule.
        entropy: in [0, inf), or a schedule.
        temperature: of the relaxation, in (0, inf); the authors' is 0.1.
        seed: an integer, for the same draws in every run; None draws a new one.
        **kwargs: those of `keras.layers.Layer`.

    Call arguments:
        inputs: tensor of shape `(batch, ..., features)`, or with the features where the layer's `data_format` says.
        training: whether to drop; Keras sets it.

    Raises:
        TypeError: a number is none nor a schedule, or `layer` no layer.
        ValueError: a number is out of its range, or the layer has no kernel.

    References:
        Gal et al., *Concrete Dropout*, 2017. https://arxiv.org/abs/1705.07832
    """

    ranges = {"weight_decay": "[0, inf)", "entropy": "[0, inf)"}

    def __init__(
        self,
        layer,
        rate=0.1,
        weight_decay: Scheduled = 1e-6,
        entropy: Scheduled = 1e-5,
        temperature=0.1,
        seed=None,
        **kwargs,
    ):
        super().__init__(seed, **kwargs)
        self.layer = check_layer_given(self, layer)
        self.supports_masking = layer.supports_masking
        self.rate = check_range(self, "[0.001, 0.999]", rate=rate)
        self._set_rates(weight_decay=weight_decay, entropy=entropy)
        self.temperature = check_range(self, "(0, inf)", temperature=temperature)

    def build(self, input_shape):
        if not self.layer.built:
            self.layer.build(input_shape)
        kernel_of(self, self.layer)
        start = keras.initializers.Constant(math.log(self.rate / (1 - self.rate)))
        self.logit = self.add_weight(shape=(), initializer=start, name="logit")

    @property
    def learnt_rate(self):
        """The rate now, a scalar tensor."""
        return ops.sigmoid(ops.convert_to_tensor(self.logit))

    def call(self, inputs, training=False):
        axis = 1 if getattr(self.layer, "data_format", None) == "channels_first" else len(inputs.shape) - 1
        logit = ops.cast(self.logit.value, self.variable_dtype)
        p = ops.sigmoid(logit)
        weights = ops.cast(kernel_of(self, self.layer).value, self.variable_dtype)
        negative_entropy = p * ops.log_sigmoid(logit) + (1 - p) * ops.log_sigmoid(-logit)
        now = self._now(training)
        self.add_loss(ops.cast(now.weight_decay, p.dtype) * ops.sum(ops.square(weights)) / (1 - p))
        self.add_loss(ops.cast(now.entropy, p.dtype) * inputs.shape[axis] * negative_entropy)
        if not training:
            return self.layer(inputs)
        shape = [ops.shape(inputs)[0], *(1 for _ in inputs.shape[1:])]
        shape[axis] = inputs.shape[axis]
        u = ops.clip(keras.random.uniform(shape, dtype=p.dtype, seed=self.seed_generator), 1e-7, 1 - 1e-7)
        z = ops.sigmoid((logit + ops.log(u / (1 - u))) / self.temperature)
        return self.layer(inputs * ops.cast((1 - z) / (1 - p), inputs.dtype))

    def compute_output_shape(self, input_shape):
        return self.layer.compute_output_shape(input_shape)


class VariationalDropout(Noise):
    """Gaussian dropout with a rate for each weight, learnt; most weights end as noise and become zeros.

        w ~ N(θ, σ²),  α = σ² / θ²                                                            when training
        y = activation(m + √s · ε),  m = x * θ + bias,  s = x² * σ²,  ε ~ N(0, 1)
        loss += strength · Σ KL(α),  KL(α) ≈ k₁ - k₁ S(k₂ + k₃ ln α) + ½ ln(1 + 1/α)
        y = activation(x * w + bias),  w = θ where ln α < threshold, else 0                   else

    with `*` the layer's product with its kernel, S the logistic function and k = 0.63576, 1.87320, 1.48695. The noise
    of a sum of weights is drawn for the sum itself (the local reparametrization), which has less variance and is a
    draw of its own for each example. `strength` is 1 / N for N rows; let it grow from 0 over the first epochs, with
    `kopt.schedules.Linear(0, steps, 1 / N)`, or all weights may vanish at once.

    Args:
        layer: a `keras.layers.Dense`, `EinsumDense` or convolution, not built. It is copied, and its activation is
            applied behind the noise.
        strength: factor of the divergence, in [0, inf), or a schedule.
        log_variance: ln σ² at the beginning, a number; the authors' is -10.
        threshold: of ln α, beyond which a weight is zero at inference: a number; the authors' is 3.
        seed: an integer, for the same draws in every run; None draws a new one.
        **kwargs: those of `keras.layers.Layer`.

    Call arguments:
        inputs: what the layer takes.
        training: whether weights are noise; Keras sets it.

    Raises:
        TypeError: `strength` is neither a number nor a schedule, another argument no number, or `layer` no layer.
        ValueError: `strength` is out of its range, or the layer is built, or has no kernel and activation.

    References:
        Kingma et al., *Variational Dropout and the Local Reparameterization Trick*, 2015.
        https://arxiv.org/abs/1506.02557
        Molchanov et al., *Variational Dropout Sparsifies Deep Neural Networks*, 2017. https://arxiv.org/abs/1701.05369
    """

    ranges = {"strength": "[0, inf)"}

    def __init__(self, layer, strength: Scheduled, log_variance=-10.0, threshold=3.0, seed=None, **kwargs):
        super().__init__(seed, **kwargs)
        self.layer = check_layer_given(self, layer)
        self.supports_masking = layer.supports_masking
        self._set_rates(strength=strength)
        self.log_variance = check_range(self, "(-inf, inf)", log_variance=log_variance)
        self.threshold = check_range(self, "(-inf, inf)", threshold=threshold)
        if layer.built or not hasattr(layer, "activation"):
            raise ValueError(
                "VariationalDropout: layer must be a Dense, EinsumDense or convolution that is not built, got "
                f"{'a built ' if layer.built else ''}{type(layer).__name__}."
            )
        self.linear = type(layer).from_config(layer.get_config() | {"activation": None})

    def build(self, input_shape):
        self.linear.build(input_shape)
        start = keras.initializers.Constant(self.log_variance)
        self.log_variances = self.add_weight(
            shape=kernel_of(self, self.linear).shape, initializer=start, name="log_variances"
        )

    def _log_alpha(self):
        kernel = ops.cast(self.linear.kernel.value, self.variable_dtype)
        log_variances = ops.cast(self.log_variances.value, self.variable_dtype)
        return ops.clip(log_variances - ops.log(ops.square(kernel) + 1e-8), -8, 8)

    @property
    def sparsity(self):
        """The share of weights that are zero at inference, a scalar tensor."""
        return ops.mean(ops.cast(self._log_alpha() >= self.threshold, self.variable_dtype))

    def divergence(self):
        """Returns Σ KL(α), the approximation of Molchanov et al.: a scalar tensor, at least 0."""
        a = self._log_alpha()
        each = 0.63576 * (1 - ops.sigmoid(1.87320 + 1.48695 * a)) + 0.5 * ops.softplus(-a)
        return ops.sum(each)

    def call(self, inputs, training=False):
        self.add_loss(ops.cast(self._now(training).strength, self.variable_dtype) * self.divergence())
        kernel = self.linear.kernel
        if not training:
            kept = ops.cast(self._log_alpha() < self.threshold, kernel.dtype)
            return self.layer.activation(call_with(self.linear, [(kernel, kernel.value * kept)], inputs))
        bias = getattr(self.linear, "bias", None)
        none = [] if bias is None else [(bias, ops.zeros_like(bias.value))]
        variance = call_with(self.linear, [(kernel, ops.exp(self.log_variances.value)), *none], ops.square(inputs))
        noise = keras.random.normal(ops.shape(variance), dtype=variance.dtype, seed=self.seed_generator)
        spread = ops.sqrt(variance + ops.cast(1e-8, variance.dtype))
        return self.layer.activation(self.linear(inputs) + spread * noise)

    def compute_output_shape(self, input_shape):
        return self.linear.compute_output_shape(input_shape)
