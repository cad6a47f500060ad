"""MARS: Adam on gradients whose variance is reduced."""

from typing import Unpack

from keras import ops

from kopt.math import at_first, norm
from kopt.optimizers.adam import Adam
from kopt.optimizers.base import Common, Scheduled


class MARS(Adam):
    """Adam on gradients whose variance is reduced by the change since the last batch.

        c = g + γ β₁ / (1 - β₁) (g - g_before)        (g at the first step)
        c ← c / max(1, ‖c‖)                            over the entries of a weight
        u = m̂ / (√v̂ + ε)                             with c in the place of g in m and v

    The paper's approximate form of MARS-AdamW: `g_before` is the last step's gradient, where the exact form,
    `kopt.ExactMARS`, computes it again for this step's batch, at twice the cost. For the pretraining of language
    models. Weights of fewer than two axes get Adam, as in the authors' code; for other rates and decays there, which
    it has too, route them to another optimizer.

    Args:
        learning_rate: in [0, inf), or a schedule.
        beta_1: decay of the mean gradient, in [0, 1).
        beta_2: decay of the mean square, in [0, 1).
        epsilon: smallest scale of a step's denominator, in [0, inf).
        gamma: strength of the correction, in [0, inf); 0.025 in the paper.
        optimize_1d: whether weights of fewer than two axes are corrected too.
        **common: see `kopt.Optimizer`.

    References:
        Yuan et al., *MARS: Unleashing the Power of Variance Reduction for Training Large Models*, 2024.
        https://arxiv.org/abs/2411.10438
    """

    cites = ("yuan2024mars",)
    elementwise = False
    ranges = {"gamma": "[0, inf)"}

    def __init__(
        self,
        learning_rate: Scheduled = 3e-3,
        *,
        beta_1: Scheduled = 0.95,
        beta_2: Scheduled = 0.99,
        epsilon: Scheduled = 1e-8,
        gamma: Scheduled = 0.025,
        optimize_1d=False,
        **common: Unpack[Common],
    ):
        super().__init__(learning_rate, beta_1=beta_1, beta_2=beta_2, epsilon=epsilon, **common)
        self.gamma, self.optimize_1d = gamma, optimize_1d

    def slots(self, shape):
        corrected = self.optimize_1d or len(shape) > 1
        return super().slots(shape) | (dict(before=shape) if corrected else {})

    def direction(self, g, w, t, h, *, m, v, before=None):
        if before is None:
            return super().direction(g, w, t, h, m=m, v=v)
        c = g + h.gamma * h.beta_1 / (1 - h.beta_1) * (g - at_first(t, g, before))
        u, moments = super().direction(c / ops.maximum(norm(c), 1.0), w, t, h, m=m, v=v)
        return u, moments | dict(before=g)


class ExactMARS(MARS):
    """MARS whose change of the gradient is that from the last weights to these, on this step's batch.

        c = g + γ β₁ / (1 - β₁) (g - ∇L(w_before))      (g at the first step)
        c ← c / max(1, ‖c‖)                              over the entries of a weight
        u = m̂ / (√v̂ + ε)                               with c in the place of g in m and v

    As in theory, at the cost of a second gradient for each step: both are of one batch, so that their difference is
    that of the weights alone, and the noise of the batches is not in it. Needs `kopt.Model`, or an estimator. Options
    that clip gradients do not act on the one at the last weights.

    Args:
        learning_rate: in [0, inf), or a schedule.
        beta_1: decay of the mean gradient, in [0, 1).
        beta_2: decay of the mean square, in [0, 1).
        epsilon: smallest scale of a step's denominator, in [0, inf).
        gamma: strength of the correction, in [0, inf); 0.025 in the paper.
        optimize_1d: whether weights of fewer than two axes are corrected too.
        **common: see `kopt.Optimizer`.

    References:
        Yuan et al., *MARS: Unleashing the Power of Variance Reduction for Training Large Models*, 2024.
        https://arxiv.org/abs/2411.10438
    """

    cites = ("yuan2024mars",)
    looks = True
    sees = ("again",)

    def slots(self, shape):
        return super().slots(shape) | dict(before=shape)  # here the last weights, all of which are needed

    def look(self, oracle):
        first, now = self._taken() == 0, oracle.weights
        before = [ops.where(first, w, last) for w, last in zip(now, self._held("before"), strict=True)]
        return oracle.gradients(), dict(again=oracle.sum(oracle.at(before).gradients()))

    def direction(self, g, w, t, h, *, m, v, before, again):
        corrected = self.optimize_1d or len(w.shape) > 2  # the first axis counts weights
        u, new = super().direction(g, w, t, h, m=m, v=v, before=again if corrected else None)
        return u, new | dict(before=w)
