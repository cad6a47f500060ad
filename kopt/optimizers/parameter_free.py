"""Optimizers that estimate, from the gradients alone, how far the solution is, and so choose their own step size."""

import math
from typing import Unpack

from keras import ops

from kopt.math import debias, ema, ratio
from kopt.optimizers.base import Common, Optimizer, Scheduled


def correction(t, h):
    """√(1 - β₂ᵗ) / (1 - β₁ᵗ)"""
    return debias(1.0, h.beta_1, t) / ops.sqrt(debias(1.0, h.beta_2, t))


def grown(d, estimate, growth_rate):
    """max(d, min(estimate, growth_rate * d))"""
    return ops.maximum(d, estimate if growth_rate is None else ops.minimum(estimate, growth_rate * d))


class Prodigy(Optimizer):
    """Adam that finds its learning rate: an estimate d of the distance from the first weights to the solution.

        d₊ = max(d, distance_factor · Σₖ β₃ᵗ⁻ᵏ dₖ² γₖ ⟨gₖ, w₀ - wₖ⟩ / ‖s‖₁)        s ← β₃ s + d² γ g
        m ← β₁ m + (1 - β₁) d g
        v ← β₂ v + (1 - β₂) d² g²
        w ← w - γ d (m / (√v + d₊ ε) + weight_decay · w)        γ: learning_rate

    Leave the learning rate at 1, or give it a schedule whose peak is 1: a cosine without restarts is what the authors
    advise. d is one number for all weights, and only grows, so what makes early gradients unusual (a bad first layer,
    a warm-up with `safeguard_warmup=False`) stays in it. Not for weights that are to have rates of their own.

    Where the paper's d has no bound on its growth, nor this; both `growth_rate` and `bias_correction` are the authors'
    additions, off by default as in their code (optax has the correction always on). The displacement w₀ - w is summed
    from the steps, not recomputed from a copy of w₀: in float32 the first steps, a millionth long, survive.

    Args:
        learning_rate: γ, a factor of the estimated step, in [0, inf), or a schedule.
        beta_1: decay of the mean gradient, in [0, 1).
        beta_2: decay of the mean square, in [0, 1).
        beta_3: decay of the sums that make the estimate, in [0, 1); √β₂ where None.
        epsilon: smallest scale of a step's denominator, in [0, inf).
        initial_distance: d at the start, in (0, inf): less than the true distance.
        distance_factor: of the estimate, in (0, inf): what to tune first, between 0.5 and 2 (`d_coef` of the authors).
        growth_rate: the most that d may grow in a step after its first leap, in (1, inf), or None.
        bias_correction: whether steps are multiplied by √(1 - β₂ᵗ) / (1 - β₁ᵗ), as Adam's are.
        safeguard_warmup: whether s is free of γ, so that a warm-up does not make the estimate too large.
        stride: the estimate is made from each `stride`-th entry of a weight, in [1, inf): 11 instead of 1 makes the
            four copies of the weights that are kept 2.2.
        **common: see `kopt.Optimizer`.

    References:
        Mishchenko and Defazio, *Prodigy: An Expeditiously Adaptive Parameter-Free Learner*, 2024.
        https://arxiv.org/abs/2306.06101
    """

    cites = ("mishchenko2024prodigy",)
    integers = {"stride": "[1, inf)"}
    elementwise = True
    ranges = {
        "beta_3": "[0, 1)",
        "initial_distance": "(0, inf)",
        "distance_factor": "(0, inf)",
        "growth_rate": "(1, inf)",
    }

    def __init__(
        self,
        learning_rate: Scheduled = 1.0,
        *,
        beta_1: Scheduled = 0.9,
        beta_2: Scheduled = 0.999,
        beta_3: float | None = None,
        epsilon: Scheduled = 1e-8,
        initial_distance: float = 1e-6,
        distance_factor: Scheduled = 1.0,
        growth_rate: float | None = None,
        bias_correction=False,
        safeguard_warmup=False,
        stride: int = 1,
        **common: Unpack[Common],
    ):
        super().__init__(learning_rate, **common)
        self.beta_1, self.beta_2, self.epsilon = beta_1, beta_2, epsilon
        self.beta_3 = beta_3
        self.initial_distance, self.distance_factor = initial_distance, distance_factor
        self.growth_rate = growth_rate
        self.bias_correction, self.safeguard_warmup = bias_correction, safeguard_warmup
        self.stride = stride

    @property
    def _is_elementwise(self):
        return self.stride == 1

    def slots(self, shape):
        sampled = shape if self.stride == 1 else (math.ceil(math.prod(shape) / self.stride),)
        return dict(m=shape, v=shape, s=sampled, moved=sampled)

    def shared(self):
        return dict(distance=self.initial_distance, largest=self.initial_distance, numerator=0.0)

    def sampled(self, x):
        return x if self.stride == 1 else ops.reshape(x, (x.shape[0], -1))[:, :: self.stride]

    def decay(self, h):
        return ops.sqrt(h.beta_2) if self.beta_3 is None else self.beta_3

    def factor(self, t, h):
        return correction(t, h) if self.bias_correction else 1.0

    def weight(self, d, t, h):
        """d γ, and of late gradients more than of early ones"""
        return d / self.initial_distance * d * h.learning_rate * self.factor(t, h)

    def longer(self, s, g, d, t, h):
        weight = d / self.initial_distance * d if self.safeguard_warmup else self.weight(d, t, h)
        return self.decay(h) * s + weight * self.sampled(g)

    def measure(self, g, w, t, h, *, s, moved, **_):
        s = self.longer(s, g, h.distance, t, h)
        return dict(gained=ops.sum(self.sampled(g) * moved), length=ops.sum(ops.abs(s)))

    def advance(self, t, h, *, gained, length):
        numerator = self.decay(h) * h.numerator + self.weight(h.distance, t, h) * gained
        largest = ops.maximum(h.largest, h.distance_factor * ratio(numerator, length))
        distance = largest
        if self.growth_rate is not None:
            bound = ops.minimum(largest, h.distance * self.growth_rate)
            distance = ops.where(h.distance == self.initial_distance, largest, bound)
        return dict(distance=distance, largest=largest, numerator=numerator)

    def direction(self, g, w, t, h, *, m, v, s, moved):
        d = h.last.distance
        m, v = ema(m, d * g, h.beta_1), ema(v, ops.square(d * g), h.beta_2)
        u = d * self.factor(t, h) * super().finish(m / (ops.sqrt(v) + h.distance * h.epsilon), w, h)
        moved = moved + h.learning_rate * self.sampled(u)
        return u, dict(m=m, v=v, s=self.longer(s, g, d, t, h), moved=moved)

    def finish(self, u, w, h):
        return u  # the decay is in it


class DAdaptAdam(Optimizer):
    """Adam by D-Adaptation: a lower bound d of the distance to the solution is the learning rate.

        d₊ = max(d, Σₖ √β₂ᵗ⁻ᵏ λₖ ⟨gₖ, sₖ / (√vₖ + ε)⟩ / ‖s‖₁)        s ← √β₂ s + (1 - √β₂) λ g,  λ = d γ
        m ← β₁ m + (1 - β₁) d g
        v ← β₂ v + (1 - β₂) g²
        w ← w - γ (m / (√v + ε) + d · weight_decay · w)        γ: learning_rate

    Leave the learning rate at 1, or give it a schedule whose peak is 1. Prodigy, of the same authors, weights recent
    gradients more, finds d in fewer steps, and is to be tried first; this one keeps one copy of the weights less.

    The learning rate multiplies the whole mean gradient, where the paper's m holds gradients times their own steps'
    learning rates: at a constant rate the two are the same, and here a rate of zero stops at once. Decay is decoupled
    (`decouple=True` in the authors' code), and bias correction is off as in that code (optax has it always on).

    Args:
        learning_rate: γ, a factor of the estimated step, in [0, inf), or a schedule.
        beta_1: decay of the mean gradient, in [0, 1).
        beta_2: decay of the mean square, in [0, 1).
        epsilon: smallest scale of a step's denominator, in [0, inf).
        initial_distance: d at the start, in (0, inf): less than the true distance.
        growth_rate: the most that d may grow in a step, in (1, inf), or None.
        bias_correction: whether steps are multiplied by √(1 - β₂ᵗ) / (1 - β₁ᵗ), as Adam's are.
        **common: see `kopt.Optimizer`.

    References:
        Defazio and Mishchenko, *Learning-Rate-Free Learning by D-Adaptation*, 2023, Algorithm 5.
        https://arxiv.org/abs/2301.07733
    """

    cites = ("defazio2023dadaptation",)
    elementwise = True
    ranges = {"initial_distance": "(0, inf)", "growth_rate": "(1, inf)"}

    def __init__(
        self,
        learning_rate: Scheduled = 1.0,
        *,
        beta_1: Scheduled = 0.9,
        beta_2: Scheduled = 0.999,
        epsilon: Scheduled = 1e-8,
        initial_distance: float = 1e-6,
        growth_rate: float | None = None,
        bias_correction=False,
        **common: Unpack[Common],
    ):
        super().__init__(learning_rate, **common)
        self.beta_1, self.beta_2, self.epsilon, self.initial_distance = beta_1, beta_2, epsilon, initial_distance
        self.growth_rate = growth_rate
        self.bias_correction = bias_correction

    def slots(self, shape):
        return dict(m=shape, v=shape, s=shape)

    def shared(self):
        return dict(distance=self.initial_distance, numerator=0.0)

    def corrected(self, d, t, h):
        """d, corrected for bias where asked"""
        return d * correction(t, h) if self.bias_correction else d

    def longer(self, s, g, d, t, h):
        return ema(s, h.learning_rate * self.corrected(d, t, h) * g, ops.sqrt(h.beta_2))

    def measure(self, g, w, t, h, *, v, s, **_):
        gained = ops.sum(g * s / (ops.sqrt(v) + h.epsilon))
        return dict(gained=gained, length=ops.sum(ops.abs(self.longer(s, g, h.distance, t, h))))

    def advance(self, t, h, *, gained, length):
        beta = ops.sqrt(h.beta_2)
        numerator = ema(h.numerator, h.learning_rate * self.corrected(h.distance, t, h) * gained, beta)
        estimate = ratio(numerator, (1 - beta) * length)
        return dict(distance=grown(h.distance, estimate, self.growth_rate), numerator=numerator)

    def direction(self, g, w, t, h, *, m, v, s):
        step = self.corrected(h.last.distance, t, h)
        m, v = ema(m, step * g, h.beta_1), ema(v, g * g, h.beta_2)
        u = m / (ops.sqrt(v) + h.epsilon) + step * super().finish(ops.zeros_like(w), w, h)
        return u, dict(m=m, v=v, s=self.longer(s, g, h.last.distance, t, h))

    def finish(self, u, w, h):
        return u  # the decay is in it


class DAdaptSGD(Optimizer):
    """Gradient descent by D-Adaptation: a lower bound d of the distance to the solution, over the first gradient.

        s ← s + λ g,  λ = d γ / ‖g₁‖                                γ: learning_rate
        d₊ = max(d, 2 Σₖ λₖ ⟨gₖ, sₖ⟩ / ‖s‖₂)
        m ← momentum · m + (1 - momentum) · d / ‖g₁‖ · g
        w ← w - γ m

    For networks that SGD trains well, with the schedule that SGD would have, scaled to a peak of 1. The length of the
    first gradient is the scale of all steps: where the first batch is untypical, `growth_rate=1.02` keeps d in check.

    The momentum is the paper's average of iterates, written as a velocity, so that a learning rate of zero stops at
    once. Weight decay is added to the gradient, before all else, as the estimate is of the decayed problem's solution.

    Args:
        learning_rate: γ, a factor of the estimated step, in [0, inf), or a schedule.
        momentum: share of the velocity that stays, in [0, 1).
        initial_distance: d at the start, in (0, inf): less than the true distance.
        growth_rate: the most that d may grow in a step, in (1, inf), or None.
        **common: see `kopt.Optimizer`.

    References:
        Defazio and Mishchenko, *Learning-Rate-Free Learning by D-Adaptation*, 2023, Algorithm 4.
        https://arxiv.org/abs/2301.07733
    """

    cites = ("defazio2023dadaptation",)
    elementwise = True
    ranges = {"initial_distance": "(0, inf)", "growth_rate": "(1, inf)", "momentum": "[0, 1)"}

    def __init__(
        self,
        learning_rate: Scheduled = 1.0,
        *,
        momentum: Scheduled = 0.0,
        initial_distance: float = 1e-6,
        growth_rate: float | None = None,
        **common: Unpack[Common],
    ):
        super().__init__(learning_rate, **common)
        self.momentum, self.initial_distance = momentum, initial_distance
        self.growth_rate = growth_rate

    def slots(self, shape):
        return dict(s=shape) if self.momentum == 0 else dict(m=shape, s=shape)

    def shared(self):
        return dict(distance=self.initial_distance, first=0.0, numerator=0.0, scale=0.0)

    def measure(self, g, w, t, h, *, s, **_):
        g = super().finish(g, w, h)
        return dict(gg=ops.sum(g * g), gs=ops.sum(g * s), ss=ops.sum(s * s))

    def advance(self, t, h, *, gg, gs, ss):
        first = ops.where(h.first == 0, ops.sqrt(gg), h.first)
        scale = ratio(h.distance, first)
        step = h.learning_rate * scale
        numerator = h.numerator + step * gs
        length = ops.sqrt(ss + 2 * step * gs + ops.square(step) * gg)
        distance = grown(h.distance, ratio(2 * numerator, length), self.growth_rate)
        return dict(distance=distance, first=first, numerator=numerator, scale=scale)

    def direction(self, g, w, t, h, *, s, **m):
        g = h.scale * super().finish(g, w, h)
        u = ema(m["m"], g, h.momentum) if m else g
        return u, dict(s=s + h.learning_rate * g) | ({"m": u} if m else {})

    def finish(self, u, w, h):
        return u  # the decay is in it
