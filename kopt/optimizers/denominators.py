"""Adam with another denominator: what it measures of the gradients, and how far it is trusted."""

from typing import Unpack

from keras import ops

from kopt.math import debias, ema, norm, rectified, rms
from kopt.optimizers.adam import Adam, AdamW, root
from kopt.optimizers.base import Common, CommonButDecay, Optimizer, Scheduled
from kopt.optimizers.packs import Slot


class RAdam(Adam):
    """Rectified Adam: steps are small while too few gradients have been seen to trust their mean square.

        ρ∞ = 2 / (1 - β₂) - 1,  ρ = ρ∞ - 2 t β₂ᵗ / (1 - β₂ᵗ)
        u = √((ρ - 4)(ρ - 2) ρ∞ / ((ρ∞ - 4)(ρ∞ - 2) ρ)) · m̂ / (√v̂ + ε)        where ρ > 5
        u = m̂                                                                     in the first steps

    A warm-up without a hyperparameter, about 2 / (1 - β₂) steps long: take it in the place of a warm-up, not beside
    one. In the first five steps (at β₂ = 0.999) the paper takes the mean gradient as it is, whose size depends on the
    loss; `early="skip"` stands still instead, as the authors' code does by default. The threshold of 5, where the
    paper has 4, is the authors', PyTorch's and optax's.

    Args:
        learning_rate: in [0, inf), or a schedule.
        beta_1: decay of the mean gradient, in [0, 1).
        beta_2: decay of the mean square, in [0, 1).
        epsilon: smallest scale of a step's denominator, in [0, inf).
        early: what to do while ρ ≤ 5: "momentum", a step along m̂, or "skip", none.
        **common: see `kopt.Optimizer`.

    Raises:
        ValueError: `early` is neither "momentum" nor "skip".

    References:
        Liu et al., *On the Variance of the Adaptive Learning Rate and Beyond*, 2020. https://arxiv.org/abs/1908.03265
    """

    cites = ("liu2020variance",)
    choices = {"early": ("momentum", "skip")}

    def __init__(
        self,
        learning_rate: Scheduled = 1e-3,
        *,
        beta_1: Scheduled = 0.9,
        beta_2: Scheduled = 0.999,
        epsilon: Scheduled = 1e-8,
        early: str = "momentum",
        **common: Unpack[Common],
    ):
        super().__init__(learning_rate, beta_1=beta_1, beta_2=beta_2, epsilon=epsilon, **common)
        self.early = early

    def direction(self, g, w, t, h, *, m, v):
        m, v = ema(m, g, h.beta_1), ema(v, g * g, h.beta_2)
        m_hat = debias(m, h.beta_1, t)
        rho, rectifier = rectified(h.beta_2, t)
        unadapted = m_hat if self.early == "momentum" else 0.0
        return ops.where(rho > 5, rectifier * m_hat / root(v, t, h), unadapted), dict(m=m, v=v)


class AdaBelief(Adam):
    """Adam that measures how far gradients stray from their running mean, rather than how large they are.

        s ← β₂ s + (1 - β₂) (g - m)² + ε
        u = m̂ / (√ŝ + ε)

    Steps are long where gradients agree with each other, also where they are large. As in the authors' code, ε joins
    s at every step, and the root once more; it is worth searching. They advise the square of the ε one has for Adam,
    the default of 1e-16, where Adam does better than SGD (transformers), and 1e-8 where SGD does better (images). Do
    not clip single entries of the gradient (`clipvalue`): they would all agree.

    Args:
        learning_rate: in [0, inf), or a schedule.
        beta_1: decay of the mean gradient, in [0, 1).
        beta_2: decay of the mean squared deviation, in [0, 1).
        epsilon: what is added to s and to its root, in [0, inf).
        **common: see `kopt.Optimizer`.

    References:
        Zhuang et al., *AdaBelief Optimizer: Adapting Stepsizes by the Belief in Observed Gradients*, 2020.
        https://arxiv.org/abs/2010.07468
    """

    cites = ("zhuang2020adabelief",)

    def __init__(
        self,
        learning_rate: Scheduled = 1e-3,
        *,
        beta_1: Scheduled = 0.9,
        beta_2: Scheduled = 0.999,
        epsilon: Scheduled = 1e-16,
        **common: Unpack[Common],
    ):
        super().__init__(learning_rate, beta_1=beta_1, beta_2=beta_2, epsilon=epsilon, **common)

    def slots(self, shape):
        return dict(m=shape, s=shape)

    def direction(self, g, w, t, h, *, m, s):
        m = ema(m, g, h.beta_1)
        s = ema(s, ops.square(g - m), h.beta_2) + h.epsilon
        return debias(m, h.beta_1, t) / root(s, t, h), dict(m=m, s=s)


class Yogi(Adam):
    """Adam whose mean square moves by the square of the gradient at most, up or down.

        v ← v - (1 - β₂) sign(v - g²) g²
        u = m̂ / (√v̂ + ε)

    Adam forgets large gradients by a factor, so that its step grows fast once they stop; here it grows slowly. For
    sparse and heavy-tailed gradients. With the paper's ε = 1e-3, steps shrink where gradients are small. m starts at
    zero, as in the paper (in optax and TensorFlow Addons at the initial value of v).

    Args:
        learning_rate: in [0, inf), or a schedule.
        beta_1: decay of the mean gradient, in [0, 1).
        beta_2: 1 - β₂ is the speed of v, in [0, 1).
        epsilon: smallest scale of a step's denominator, in [0, inf).
        initial_accumulator_value: where v starts, in [0, inf).
        **common: see `kopt.Optimizer`.

    References:
        Zaheer et al., *Adaptive Methods for Nonconvex Optimization*, 2018.
        https://papers.nips.cc/paper/8186-adaptive-methods-for-nonconvex-optimization
    """

    cites = ("zaheer2018adaptive",)
    ranges = {"initial_accumulator_value": "[0, inf)"}

    def __init__(
        self,
        learning_rate: Scheduled = 0.01,
        *,
        beta_1: Scheduled = 0.9,
        beta_2: Scheduled = 0.999,
        epsilon: Scheduled = 1e-3,
        initial_accumulator_value: float = 1e-6,
        **common: Unpack[Common],
    ):
        super().__init__(learning_rate, beta_1=beta_1, beta_2=beta_2, epsilon=epsilon, **common)
        self.initial_accumulator_value = initial_accumulator_value

    def slots(self, shape):
        return dict(m=shape, v=Slot(shape, self.initial_accumulator_value))

    def direction(self, g, w, t, h, *, m, v):
        m, v = ema(m, g, h.beta_1), v - (1 - h.beta_2) * ops.sign(v - g * g) * g * g
        return debias(m, h.beta_1, t) / root(v, t, h), dict(m=m, v=v)


class StableAdamW(AdamW):
    """AdamW that slows down, weight tensor by weight tensor, when a gradient is much larger than expected.

        RMS = √mean(g² / max(v̂, ε²))        over the entries of a weight
        w ← w - learning_rate / max(1, RMS) · (m̂ / (√v̂ + ε) + weight_decay · w)

    Adafactor's update clipping in AdamW: it takes the place of gradient clipping, and prevents the loss spikes that
    come with a β₂ near 1, when v is out of date. The clipped rate holds for the decay too, as in the paper.

    Args:
        learning_rate: in [0, inf), or a schedule.
        beta_1: decay of the mean gradient, in [0, 1).
        beta_2: decay of the mean square, in [0, 1).
        epsilon: smallest scale of a step's denominator, in [0, inf).
        weight_decay: in [0, inf), a schedule, or None for no decay.
        weight_decay_mode: "coupled", "independent" or "corrected", see `kopt.AdamW`.
        **common: see `kopt.Optimizer`.

    References:
        Wortsman et al., *Stable and low-precision training for large-scale vision-language models*, 2023, Algorithm 2.
        https://arxiv.org/abs/2304.13013
    """

    cites = ("wortsman2023stable",)
    elementwise = False

    def __init__(
        self,
        learning_rate: Scheduled = 1e-3,
        *,
        beta_1: Scheduled = 0.9,
        beta_2: Scheduled = 0.99,
        epsilon: Scheduled = 1e-6,
        weight_decay: Scheduled | None = 1e-2,
        weight_decay_mode: str = "coupled",
        **common: Unpack[CommonButDecay],
    ):
        super().__init__(
            learning_rate,
            beta_1=beta_1,
            beta_2=beta_2,
            epsilon=epsilon,
            weight_decay=weight_decay,
            weight_decay_mode=weight_decay_mode,
            **common,
        )

    def direction(self, g, w, t, h, *, m, v):
        u, new = super().direction(g, w, t, h, m=m, v=v)
        surprise = rms(g / ops.maximum(ops.sqrt(debias(new["v"], h.beta_2, t)), h.epsilon))
        return super().finish(u, w, h) / ops.maximum(surprise, 1.0), new

    def finish(self, u, w, h):
        """u, which is decayed already: the clip holds for the decay too"""
        return u


class NovoGrad(Optimizer):
    """Normalized gradients with momentum: one mean square for each weight tensor, rather than for each entry.

        v ← β₂ v + (1 - β₂) ‖g‖²                        (the first time v = ‖g‖²)
        m ← β₁ m + g / (√v + ε) + weight_decay · w
        u = m

    Half of Adam's state, and the gradient's direction within a weight is kept: layers learn at a like speed whatever
    the size of their gradients, without a warm-up. From speech recognition with large batches. The decay gathers in
    the momentum, as in the paper. The first time is that of the first gradient that is not zero, as in the authors'
    code.

    Args:
        learning_rate: in [0, inf), or a schedule; the step's length is up to 1 / (1 - β₁) times it.
        beta_1: share of the momentum that stays, in [0, 1).
        beta_2: decay of the squared norm, in [0, 1).
        epsilon: smallest length to divide a gradient by, in [0, inf).
        **common: see `kopt.Optimizer`.

    References:
        Ginsburg et al., *Stochastic Gradient Methods with Layer-wise Adaptive Moments for Training of Deep Networks*,
        2019. https://arxiv.org/abs/1905.11286
    """

    cites = ("ginsburg2019stochastic",)

    def __init__(
        self,
        learning_rate: Scheduled = 0.01,
        *,
        beta_1: Scheduled = 0.95,
        beta_2: Scheduled = 0.98,
        epsilon: Scheduled = 1e-8,
        **common: Unpack[Common],
    ):
        super().__init__(learning_rate, **common)
        self.beta_1, self.beta_2, self.epsilon = beta_1, beta_2, epsilon

    def slots(self, shape):
        return dict(m=shape, v=(1,) * len(shape))

    def direction(self, g, w, t, h, *, m, v):
        square = ops.square(norm(g))
        v = ops.where(v == 0, square, ema(v, square, h.beta_2))
        m = h.beta_1 * m + super().finish(g / (ops.sqrt(v) + h.epsilon), w, h)
        return m, dict(m=m, v=v)

    def finish(self, u, w, h):
        """u: the decay has gone through the momentum"""
        return u


class AdaBound(Adam):
    """Adam whose rate for each entry is held between bounds that close in on SGD's one rate.

        rate = √(1 - β₂ᵗ) / (1 - β₁ᵗ) / (√v + ε)
        u = clip(rate, final (1 - 1 / (γ t + 1)), final (1 + 1 / (γ t))) · m

    Adam at the start, SGD with momentum in the end, a change that takes some thousands of steps at the default γ. For
    what SGD ends better than Adam. Independent comparisons have not found it better than a tuned SGD or AdamW. As in
    the authors' code, with Adam's bias corrections, which the paper's algorithm leaves out.

    Args:
        learning_rate: Adam's, in [0, inf), or a schedule.
        beta_1: decay of the mean gradient, in [0, 1).
        beta_2: decay of the mean square, in [0, 1).
        epsilon: smallest denominator of the rate, added to √v before any correction, in [0, inf).
        final_ratio: the final rate, SGD's, in multiples of the learning rate, in (0, inf): the authors' `final_lr` is
            0.1 beside a rate of 0.001.
        gamma: speed at which the bounds close, in (0, inf).
        **common: see `kopt.Optimizer`.

    References:
        Luo et al., *Adaptive Gradient Methods with Dynamic Bound of Learning Rate*, 2019.
        https://arxiv.org/abs/1902.09843
    """

    cites = ("luo2019adaptive",)
    ranges = {"final_ratio": "(0, inf)", "gamma": "(0, inf)"}

    def __init__(
        self,
        learning_rate: Scheduled = 1e-3,
        *,
        beta_1: Scheduled = 0.9,
        beta_2: Scheduled = 0.999,
        epsilon: Scheduled = 1e-8,
        final_ratio: Scheduled = 100.0,
        gamma: Scheduled = 1e-3,
        **common: Unpack[Common],
    ):
        super().__init__(learning_rate, beta_1=beta_1, beta_2=beta_2, epsilon=epsilon, **common)
        self.final_ratio, self.gamma = final_ratio, gamma

    def direction(self, g, w, t, h, *, m, v):
        m, v = ema(m, g, h.beta_1), ema(v, g * g, h.beta_2)
        rate = debias(1.0, h.beta_1, t) / ops.sqrt(debias(1.0, h.beta_2, t)) / (ops.sqrt(v) + h.epsilon)
        low, high = 1 - 1 / (h.gamma * t + 1), 1 + 1 / (h.gamma * t)
        return ops.clip(rate, h.final_ratio * low, h.final_ratio * high) * m, dict(m=m, v=v)
