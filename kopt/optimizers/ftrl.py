"""Follow the regularized leader."""

from typing import Unpack

from keras import ops

from kopt.math import power
from kopt.optimizers.base import Common, Optimizer, Scheduled
from kopt.optimizers.packs import Slot


class Ftrl(Optimizer):
    """FTRL-Proximal: each weight is the minimizer of all gradients so far plus its penalties; L1 gives true zeros.

        n' = n + g²,   σ = (n'^-p - n^-p) / learning_rate
        z ← z + g + 2 · l2_shrinkage · w - σ w,   n ← n'
        w ← (clip(z, -l1, l1) - z) / ((n^-p + beta) / learning_rate + 2 · l2)

    with p = `learning_rate_power`. For linear models on sparse, wide data. The weight does not depend on where it
    started but through σ, and a learning rate of zero leaves it alone. Arguments are Keras's.

    Args:
        learning_rate: in [0, inf), or a schedule.
        learning_rate_power: power of the accumulated squares in the step size, in (-inf, 0]; 0 is a fixed rate.
        initial_accumulator_value: where n starts, in [0, inf).
        l1_regularization_strength: in [0, inf).
        l2_regularization_strength: in [0, inf), a stabilizing penalty.
        l2_shrinkage_regularization_strength: in [0, inf), a penalty on the weight's size, added to the gradient.
        beta: the paper's β, in [0, inf).
        **common: see `kopt.Optimizer`.

    References:
        McMahan et al., *Ad Click Prediction: a View from the Trenches*, 2013.
        https://research.google/pubs/ad-click-prediction-a-view-from-the-trenches/
    """

    elementwise = True
    cites = ("mcmahan2013ad",)
    ranges = {
        "learning_rate_power": "(-inf, 0]",
        "initial_accumulator_value": "[0, inf)",
        "l1_regularization_strength": "[0, inf)",
        "l2_regularization_strength": "[0, inf)",
        "l2_shrinkage_regularization_strength": "[0, inf)",
        "beta": "[0, inf)",
    }

    def __init__(
        self,
        learning_rate: Scheduled = 1e-3,
        *,
        learning_rate_power: Scheduled = -0.5,
        initial_accumulator_value: float = 0.1,
        l1_regularization_strength: Scheduled = 0.0,
        l2_regularization_strength: Scheduled = 0.0,
        l2_shrinkage_regularization_strength: Scheduled = 0.0,
        beta: Scheduled = 0.0,
        **common: Unpack[Common],
    ):
        super().__init__(learning_rate, **common)
        self.learning_rate_power = learning_rate_power
        self.initial_accumulator_value = initial_accumulator_value
        self.l1_regularization_strength = l1_regularization_strength
        self.l2_regularization_strength = l2_regularization_strength
        self.l2_shrinkage_regularization_strength = l2_shrinkage_regularization_strength
        self.beta = beta

    def slots(self, shape):
        return dict(n=Slot(shape, self.initial_accumulator_value), z=shape)

    def direction(self, g, w, t, h, *, n, z):
        root, n = power(n, -h.learning_rate_power), n + g * g
        new_root = power(n, -h.learning_rate_power)
        sigma = ops.divide_no_nan(new_root - root, h.learning_rate)
        z = z + g + 2 * h.l2_shrinkage_regularization_strength * w - sigma * w
        l1 = h.l1_regularization_strength
        curvature = new_root + h.beta + 2 * h.l2_regularization_strength * h.learning_rate
        leader = h.learning_rate * (ops.clip(z, -l1, l1) - z) / curvature
        return ops.divide_no_nan(w - leader, h.learning_rate), dict(n=n, z=z)
