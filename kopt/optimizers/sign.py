"""Steps that follow signs alone, whatever the gradients' size."""

from typing import Unpack

from keras import ops

from kopt.math import ema
from kopt.optimizers.base import Common, CommonButDecay, Optimizer, Scheduled
from kopt.optimizers.packs import Slot


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

    cites = ("chen2023symbolic",)
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


class Signum(Optimizer):
    """The sign of the mean gradient; without momentum, signSGD.

        m ← momentum · m + (1 - momentum) g
        u = sign(m)

    Every weight moves by the learning rate, of AdamW's size or below. The simplest of its kind, in half of Adam's
    state, and close to Adam's path at equal β; Lion, which takes the present gradient more seriously, is the better
    default. `Signum(momentum=0.965, weight_decay=0.01)` is what others call Tiger.

    Args:
        learning_rate: in [0, inf), or a schedule.
        momentum: decay of the mean gradient, in [0, 1]; with 0 nothing is kept.
        **common: see `kopt.Optimizer`.

    References:
        Bernstein et al., *signSGD: Compressed Optimisation for Non-Convex Problems*, 2018.
        https://arxiv.org/abs/1802.04434
    """

    cites = ("bernstein2018signsgd",)
    elementwise = True

    def __init__(self, learning_rate: Scheduled = 1e-3, *, momentum: Scheduled = 0.9, **common: Unpack[Common]):
        super().__init__(learning_rate, **common)
        self.momentum = momentum

    def slots(self, shape):
        return {} if self.momentum == 0 else dict(m=shape)

    def direction(self, g, w, t, h, m=None):
        if m is None:
            return ops.sign(g), {}
        m = ema(m, g, h.momentum)
        return ops.sign(m), dict(m=m)


class Rprop(Optimizer):
    """Resilient propagation: each weight's own step size grows while its gradient keeps its sign, and shrinks after.

        size ← clip(η⁺ size, min_step, max_step)        where g has the sign of the last step
        size ← clip(η⁻ size, min_step, max_step), g ← 0   where it has the other
        u = size · sign(g)

    For full batches only: with mini-batches, signs turn by chance, and all sizes shrink. Quick and without tuning on
    small networks that are trained on all data at once. The variant iRprop⁻, as in PyTorch: where the sign turns, the
    weight waits for a step. Sizes start at 1 and are multiples of the learning rate, so that a schedule acts on all of
    them; PyTorch's bounds are absolute, 1e-6 and 50 at a learning rate of 0.01. optax keeps the size where this and
    PyTorch shrink it.

    Args:
        learning_rate: size of the first step, in [0, inf), or a schedule.
        eta_minus: factor of a size where the sign turns, in (0, 1).
        eta_plus: factor of a size where the sign stays, in (1, inf).
        min_step: smallest size, in multiples of the learning rate, in [0, inf).
        max_step: largest size, in multiples of the learning rate, in [0, inf).
        **common: see `kopt.Optimizer`.

    References:
        Riedmiller and Braun, *A direct adaptive method for faster backpropagation learning: the RPROP algorithm*, 1993.
        Igel and Hüsken, *Empirical evaluation of the improved Rprop learning algorithms*, 2003 (iRprop⁻).
        https://doi.org/10.1016/S0925-2312(01)00700-7
    """

    cites = ("riedmiller1993direct", "igel2003empirical")
    elementwise = True
    ranges = {"eta_minus": "(0, 1)", "eta_plus": "(1, inf)", "min_step": "[0, inf)", "max_step": "[0, inf)"}

    def __init__(
        self,
        learning_rate: Scheduled = 0.01,
        *,
        eta_minus: Scheduled = 0.5,
        eta_plus: Scheduled = 1.2,
        min_step: Scheduled = 1e-4,
        max_step: Scheduled = 5000.0,
        **common: Unpack[Common],
    ):
        super().__init__(learning_rate, **common)
        self.eta_minus, self.eta_plus, self.min_step, self.max_step = eta_minus, eta_plus, min_step, max_step

    def slots(self, shape):
        return dict(size=Slot(shape, 1.0), before=shape)

    def direction(self, g, w, t, h, *, size, before):
        sign = ops.sign(g)
        stays, turns = sign * before > 0, sign * before < 0
        size = size * ops.where(stays, h.eta_plus, ops.where(turns, h.eta_minus, 1.0))
        size, sign = ops.clip(size, h.min_step, h.max_step), ops.where(turns, 0.0, sign)
        return size * sign, dict(size=size, before=sign)
