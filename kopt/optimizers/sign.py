"""Steps that follow the gradient's sign alone."""

from typing import Unpack

from keras import ops

from kopt.math import ema
from kopt.optimizers.base import CommonButDecay, Optimizer, Scheduled


class Lion(Optimizer):
    """Evolved sign momentum: the sign of one running mean, while another is kept.

        u = sign(β₁ m + (1 - β₁) g)
        m ← β₂ m + (1 - β₂) g

    Every weight moves by the learning rate, so take one 3 to 10 times below AdamW's, and a decay as many times above.
    Half of Adam's state.

    Args:
        learning_rate: in [0, inf), or a schedule.
        beta_1: weight of the memory in the step's sign, in [0, 1).
        beta_2: decay of the memory, in [0, 1).
        weight_decay: in [0, inf), a schedule, or None for no decay.
        **common: see `kopt.Optimizer`.

    References:
        Chen et al., *Symbolic Discovery of Optimization Algorithms*, 2023. https://arxiv.org/abs/2302.06675
    """

    elementwise = True

    def __init__(
        self,
        learning_rate: Scheduled = 1e-4,
        *,
        beta_1: Scheduled = 0.9,
        beta_2: Scheduled = 0.99,
        weight_decay: Scheduled | None = 1e-2,
        **common: Unpack[CommonButDecay],
    ):
        super().__init__(learning_rate, weight_decay=weight_decay, **common)
        self.beta_1, self.beta_2 = beta_1, beta_2

    def slots(self, shape):
        return dict(m=shape)

    def direction(self, g, w, t, h, *, m):
        return ops.sign(ema(m, g, h.beta_1)), dict(m=ema(m, g, h.beta_2))
