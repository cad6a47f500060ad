"""Step sizes from the loss: as far as a linear model of it says that it can fall, and no further."""

from typing import Any, Unpack

from keras import ops

from kopt.math import at_first, debias, ema, ratio
from kopt.optimizers.base import Common, Optimizer, Scheduled


class Seeing(Optimizer):
    """What these methods have in common: a step sees the loss of its batch, `h.loss`."""

    elementwise = True
    looks = True
    sees = ("loss",)

    def look(self, oracle):
        loss, grads = oracle()
        return grads, dict(loss=oracle.sum([loss])[0])


class SPS(Seeing):
    """Gradient descent with the stochastic Polyak step size: to where the loss would be lowest, were it linear.

        size = min(1, max(f - lower_bound, 0) / (c · learning_rate · ‖g‖²))
        w ← w - learning_rate · size · g

    The loss f of the batch sets the step, and the learning rate only bounds it: large far from the minimum, and small
    near it, without a schedule. For models that can fit their data, whose loss comes down to the lower bound; where it
    does not, steps never get small enough, and a learning rate that decays has to. Norms are over all weights together.

    Args:
        learning_rate: the longest step, in [0, inf), or a schedule.
        c: how cautious a step is, in (0, inf): 0.5 in theory for convex problems, 0.2 for deep networks in the paper.
        lower_bound: what the loss cannot fall below, a number.
        **common: see `kopt.Optimizer`.

    References:
        Loizou, Vaswani, Laradji and Lacoste-Julien, *Stochastic Polyak Step-size for SGD: An Adaptive Learning Rate
        for Fast Convergence*, 2021. https://arxiv.org/abs/2002.10542
    """

    cites = ("loizou2021sps",)
    ranges = {"c": "(0, inf)"}

    def __init__(
        self,
        learning_rate: Scheduled = 1.0,
        *,
        c: Scheduled = 0.5,
        lower_bound: Scheduled = 0.0,
        **common: Unpack[Common],
    ):
        super().__init__(learning_rate, **common)
        self.c, self.lower_bound = c, lower_bound

    def shared(self):
        return dict(size=0.0)

    def measure(self, g, w, t, h):
        return dict(gg=h.learning_rate * ops.sum(g * g))

    def advance(self, t, h, *, gg):
        return dict(size=ops.minimum(1.0, ratio(ops.maximum(h.loss - h.lower_bound, 0.0), h.c * gg)))

    def direction(self, g, w, t, h):
        return h.size * g, {}


class Modelling(Seeing):
    """What the MoMos have in common: the mean of past linear models of the loss, and how far it can fall."""

    bias_correction: bool
    estimate_bound: bool

    def shared(self):
        return dict(mean_loss=0.0, mean_dot=0.0, size=0.0, raised=0.0)

    def beta(self, h) -> Any:
        """The decay of the means."""
        raise NotImplementedError

    def mean(self, mean, x, t, h):
        """The next mean, which starts at zero if it is corrected"""
        new = ema(mean, x, self.beta(h))
        return new if self.bias_correction else at_first(t, x, new)

    def scaled(self, g, m, t, h, **slots):
        """The new mean gradient, over the sizes of gradients where those count, and slots besides."""
        return m, {}

    def measure(self, g, w, t, h, *, m, **slots):
        m = self.mean(m, g, t, h)
        mm, mw = h.learning_rate * ops.sum(m * self.scaled(g, m, t, h, **slots)[0]), ops.sum(m * w)
        left = 1.0 if h.weight_decay is None else 1 / (1 + h.learning_rate * h.weight_decay)
        return dict(gw=ops.sum(g * w), mw=mw, mm=mm, mw_left=left * mw, mm_left=left * mm)

    def advance(self, t, h, *, gw, mw, mm, mw_left, mm_left):
        weight = 1 / debias(1.0, self.beta(h), t) if self.bias_correction else 1.0
        loss, dot = self.mean(h.mean_loss, h.loss, t, h), self.mean(h.mean_dot, gw, t, h)
        bound, lowest = h.lower_bound + h.raised, loss - dot + mw_left
        if self.estimate_bound:
            bound = ops.where(lowest < weight * bound, ops.maximum(lowest / (2 * weight), h.lower_bound), bound)
        size = ops.minimum(1 / weight, ratio(ops.maximum(lowest - weight * bound, 0.0), mm_left))
        if self.estimate_bound:
            bound = ops.maximum((loss - dot + mw - size * mm / 2) / weight, h.lower_bound)
        return dict(mean_loss=loss, mean_dot=dot, size=size, raised=bound - h.lower_bound)

    def direction(self, g, w, t, h, *, m, **slots):
        m = self.mean(m, g, t, h)
        u, slots = self.scaled(g, m, t, h, **slots)
        return h.size * u, dict(m=m) | slots

    def finish(self, u, w, h):
        """(u + weight_decay * w) / (1 + learning_rate * weight_decay): w - learning_rate * that is the proximal step"""
        u = super().finish(u, w, h)
        return u if h.weight_decay is None else u / (1 + h.learning_rate * h.weight_decay)


class MoMo(Modelling):
    """Momentum whose step leads to where a mean of past linear models of the loss is lowest, or falls to its bound.

        m ← β m + (1 - β) g,   f̄ ← β f̄ + (1 - β) f,   γ ← β γ + (1 - β) ⟨g, w⟩        all the first value at first
        size = min(1, max(f̄ - lower_bound - γ + ⟨m, w⟩ / (1 + learning_rate · weight_decay), 0) / ‖m‖²)
               with ‖m‖² times learning_rate / (1 + learning_rate · weight_decay)
        w ← (w - learning_rate · size · m) / (1 + learning_rate · weight_decay)

    f̄ - γ + ⟨m, w⟩ is what the losses, gradients and weights of past steps say of the loss at w, to first order. The
    learning rate bounds the step; a large one does no harm early, so that it needs little tuning. With zero for a lower
    bound most losses are served; where the least loss is far above and unknown, `estimate_bound` raises the bound to
    what the models have come to so far (the paper's MoMo*).

    Sums are over all weights together, and weigh each weight by its own learning rate and decay, if there are `groups`
    or `no_decay`: the step is the proximal one for all of them. With one learning rate it is the authors'.

    Args:
        learning_rate: the longest step, in [0, inf), or a schedule.
        momentum: β, in [0, 1).
        lower_bound: what the loss cannot fall below, a number.
        bias_correction: whether means start at zero and are corrected, in the place of starting at their first values.
        estimate_bound: whether to estimate the lower bound, never below `lower_bound`.
        **common: see `kopt.Optimizer`.

    References:
        Schaipp, Ohana, Eickenberg, Defazio and Gower, *MoMo: Momentum Models for Adaptive Learning Rates*, 2024.
        https://arxiv.org/abs/2305.07583
    """

    cites = ("schaipp2024momo",)
    ranges = {"momentum": "[0, 1)"}

    def __init__(
        self,
        learning_rate: Scheduled = 1.0,
        *,
        momentum: Scheduled = 0.9,
        lower_bound: Scheduled = 0.0,
        bias_correction: bool = False,
        estimate_bound: bool = False,
        **common: Unpack[Common],
    ):
        super().__init__(learning_rate, **common)
        self.momentum, self.lower_bound = momentum, lower_bound
        self.bias_correction, self.estimate_bound = bias_correction, estimate_bound

    def slots(self, shape):
        return dict(m=shape)

    def beta(self, h):
        return h.momentum


class MoMoAdam(Modelling):
    """MoMo in the metric of Adam: Adam whose step stops where a model of the loss falls to its bound.

        m, v as Adam has them,   D = √v̂ + ε,   f̄ and γ as MoMo has them, with β₁, from zero
        size as MoMo has it, with ‖m‖² = ⟨m, m / D⟩, and no larger than 1 / (1 - β₁ᵗ)
        w ← (w - learning_rate · size · m / D) / (1 + learning_rate · weight_decay)

    Where the bound is far away this is Adam, with proximal decay. A learning rate ten times Adam's is safe: where it is
    too long a step, the loss shortens it. As `kopt.MoMo` otherwise.

    Args:
        learning_rate: in [0, inf), or a schedule.
        beta_1: decay of the means of gradient, loss and product, in [0, 1).
        beta_2: decay of the mean square, in [0, 1).
        epsilon: smallest scale of a step's denominator, in [0, inf).
        lower_bound: what the loss cannot fall below, a number.
        estimate_bound: whether to estimate the lower bound, never below `lower_bound`.
        **common: see `kopt.Optimizer`.

    References:
        Schaipp, Ohana, Eickenberg, Defazio and Gower, *MoMo: Momentum Models for Adaptive Learning Rates*, 2024.
        https://arxiv.org/abs/2305.07583
    """

    cites = ("schaipp2024momo",)
    bias_correction = True

    def __init__(
        self,
        learning_rate: Scheduled = 1e-2,
        *,
        beta_1: Scheduled = 0.9,
        beta_2: Scheduled = 0.999,
        epsilon: Scheduled = 1e-8,
        lower_bound: Scheduled = 0.0,
        estimate_bound: bool = False,
        **common: Unpack[Common],
    ):
        super().__init__(learning_rate, **common)
        self.beta_1, self.beta_2, self.epsilon = beta_1, beta_2, epsilon
        self.lower_bound, self.estimate_bound = lower_bound, estimate_bound

    def slots(self, shape):
        return dict(m=shape, v=shape)

    def beta(self, h):
        return h.beta_1

    def scaled(self, g, m, t, h, *, v):
        v = ema(v, g * g, h.beta_2)
        return m / (ops.sqrt(debias(v, h.beta_2, t)) + h.epsilon), dict(v=v)
