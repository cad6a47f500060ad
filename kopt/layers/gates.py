"""Gates that learn which features to let through."""

import math
from numbers import Integral

import keras
from keras import ops

from kopt._backend import kernel, on_mesh
from kopt._checks import check_choice, check_range
from kopt.layers.base import Noise, Scheduled

BETA, GAMMA, ZETA = 2 / 3, -0.1, 1.1
"""The paper's temperature, and the ends to which a concrete variable in (0, 1) is stretched."""

FURTHEST = math.log(100)
"""Beyond this log α the authors' code lets no gate go: it could not come back."""


class L0Gate(Noise):
    """Multiplies each feature by a gate that is learnt, and that may close: the number of open gates is penalized.

        s = σ((log u - log(1 - u) + log α) / β),  u ~ U(0, 1)        when training
          = 1 / (1 + r √r),  r = (1 - u) / (u α)                     for this β
        s = σ(log α)                                                 else
        y = x · z,  z = min(1, max(0, s (ζ - γ) + γ))
        loss += strength · Σ P(z ≠ 0),  P(z ≠ 0) = σ(log α - β log(-γ / ζ))        β, γ, ζ = 2/3, -0.1, 1.1

    Put it behind a layer whose units or filters are to be pruned, or in front of the first, to choose inputs. A gate is
    one number for a feature, with a log α that is learnt. At inference those that have closed are exactly 0, and the
    features behind them can be cut out: `gates()` returns them.

    The penalty counts gates, where the paper counts the weights behind them, each λ / N: take
    `strength = λ / N · weights of a feature`. The authors' code begins with λ = 1 for 60,000 examples. Weights that are
    decayed may hide behind gates that are ever less open: the paper's L2 penalty is on the open part alone.

    As in the authors' code log α stays in ±log 100, so that a closed gate may open again, and gates are drawn once for
    a batch. `mode="sample"` draws them for each example: slopes with less noise, in up to twice the time.

    Args:
        strength: of the penalty, in [0, inf), or a schedule, which may let features be learnt before any goes.
        initial_rate: the share of s below ½ at the start, in (0, 1): log α = log(1 - rate) - log(rate).
        axis: of the features, an integer other than 0.
        mode: `"batch"`, a draw for all examples; `"sample"`, one for each of them.
        seed: an integer, for the same draws in every run; None draws a new one.
        **kwargs: those of `keras.layers.Layer`: `name`, `dtype` and so on.

    Call arguments:
        inputs: tensor of shape `(batch, ...)` and any float type.
        training: whether to draw; Keras sets it.

    Raises:
        TypeError: a number is none, or `strength` neither a number nor a schedule.
        ValueError: one is out of its range, or `mode` is another word; when built, the inputs have no such axis, or one
            of unknown length.

    References:
        Louizos, Welling and Kingma, *Learning Sparse Neural Networks through L0 Regularization*, 2018.
        https://arxiv.org/abs/1712.01312
    """

    ranges = {"strength": "[0, inf)"}

    def __init__(self, strength: Scheduled, initial_rate=0.5, axis=-1, mode="batch", seed=None, **kwargs):
        super().__init__(seed, **kwargs)
        self._set_rates(strength=strength)
        self.initial_rate = check_range(self, "(0, 1)", initial_rate=initial_rate)
        self.axis = check_range(self, "(-inf, inf)", kind=Integral, axis=axis)
        self.mode = check_choice(self, ("sample", "batch"), mode=mode)

    def build(self, input_shape):
        rank = len(input_shape)
        place = self.axis + rank if self.axis < 0 else self.axis
        if not 0 < place < rank or input_shape[place] is None:
            raise ValueError(
                f"L0Gate: axis must be an axis of the inputs of known length, not the batch's, got {self.axis} for the "
                f"shape {tuple(input_shape)}."
            )
        initial = keras.initializers.Constant(math.log(1 - self.initial_rate) - math.log(self.initial_rate))
        how = dict(initializer=initial, constraint=_WithinReach(), autocast=False, name="log_alpha")
        self.log_alpha = self.add_weight(shape=(input_shape[place],), **how)
        self._spread = [input_shape[place] if axis == place else 1 for axis in range(1, rank)]
        self._positions = tuple(axis for axis in range(1, rank) if axis != place)

    def gates(self):
        """Returns the gates that are used at inference: a number in [0, 1] for each feature."""
        return hard(ops.sigmoid(self._location()))

    def call(self, inputs, training=False):
        location = self._location()
        strength = ops.cast(self._now(training).strength, location.dtype)
        self.add_loss(strength * ops.sum(ops.sigmoid(location - BETA * math.log(-GAMMA / ZETA))))
        inputs = ops.convert_to_tensor(inputs)
        return self._drawn(inputs, location) if training else inputs * self._spread_out(self.gates()[None], inputs)

    def _location(self):
        """log α, in many bits."""
        wide = "float64" if self.log_alpha.dtype == "float64" else "float32"
        return ops.cast(self.log_alpha, wide)

    def _spread_out(self, z, inputs):
        """Gates of rows, in the shape and of the type that the inputs have."""
        return ops.cast(ops.reshape(z, (-1, *self._spread)), inputs.dtype)

    def _drawn(self, inputs, location):
        """The inputs through gates that are drawn for each example, or for all; backwards no more is needed than z."""
        rows = 1 if self.mode == "batch" else ops.shape(inputs)[0]
        shape, wide = (rows, location.shape[0]), keras.backend.standardize_dtype(location.dtype)
        u = keras.random.uniform(shape, dtype=wide, seed=self.seed_generator)  # of 0 comes a closed gate, no NaN

        def forward(x, location):
            r = (1 / u - 1) * ops.exp(-location)
            z = hard(1 / (1 + r * ops.sqrt(r)))
            return x * self._spread_out(z, x), z

        def backward(x, z, slope):
            s, by_z = (z - GAMMA) / (ZETA - GAMMA), ops.cast(x, wide) * ops.cast(slope, wide)
            by_s = ops.where((z > 0) & (z < 1), ops.sum(by_z, self._positions), 0) * (ZETA - GAMMA)
            return slope * self._spread_out(z, slope), ops.sum(by_s * s * (1 - s) / BETA, 0)

        many = self.mode == "sample" and not self._positions  # draws: one for each entry of the inputs
        run = kernel if many and not on_mesh(self.log_alpha) else _apart

        @ops.custom_gradient
        def through(x, location):
            y, z = run(forward, x, location)
            return y, lambda slope: run(backward, x, z, slope)

        return through(inputs, location)


def hard(s):
    """min(1, max(0, s (ζ - γ) + γ))"""
    return ops.clip(s * (ZETA - GAMMA) + GAMMA, 0, 1)


def _apart(function, *tensors):
    return function(*tensors)


class _WithinReach(keras.constraints.Constraint):
    """Holds log α where the slope of a gate does not vanish."""

    def __call__(self, w):
        return ops.clip(w, -FURTHEST, FURTHEST)
