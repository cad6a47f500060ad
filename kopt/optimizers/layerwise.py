"""Steps in proportion to each layer's weights, for large batches."""

from typing import Unpack

from kopt.math import trust_ratio
from kopt.optimizers.adam import AdamW
from kopt.optimizers.base import CommonButDecay, Scheduled


class LAMB(AdamW):
    """AdamW whose step for each weight tensor is as long as the tensor itself, times the learning rate.

        u = m̂ / (√v̂ + ε) + weight_decay · w
        w ← w - learning_rate · (‖w‖ / ‖u‖) · u

    For very large batches. The decay is inside the ratio, as in the paper (in Keras's Lamb it is outside); the ratio
    is 1 where either norm is 0.

    Args:
        learning_rate: in [0, inf), or a schedule.
        beta_1: decay of the mean gradient, in [0, 1).
        beta_2: decay of the mean square, in [0, 1).
        epsilon: smallest scale of a step's denominator, in [0, inf).
        weight_decay: in [0, inf), a schedule, or None for no decay.
        **common: see `kopt.Optimizer`.

    References:
        You et al., *Large Batch Optimization for Deep Learning: Training BERT in 76 minutes*, 2020.
        https://arxiv.org/abs/1904.00962
    """

    def __init__(
        self,
        learning_rate: Scheduled = 1e-3,
        *,
        beta_1: Scheduled = 0.9,
        beta_2: Scheduled = 0.999,
        epsilon: Scheduled = 1e-6,
        weight_decay: Scheduled | None = 1e-2,
        **common: Unpack[CommonButDecay],
    ):
        super().__init__(
            learning_rate, beta_1=beta_1, beta_2=beta_2, epsilon=epsilon, weight_decay=weight_decay, **common
        )

    def finish(self, u, w, h):
        u = super().finish(u, w, h)
        return trust_ratio(w, u) * u
