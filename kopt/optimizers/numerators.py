"""Adam with another numerator: which gradients it averages, and how they are mixed."""

from typing import Unpack

from keras import ops

from kopt.math import at_first, debias, ema
from kopt.optimizers.adam import Adam, root
from kopt.optimizers.base import Common, Optimizer, Scheduled


class AdEMAMix(Adam):
    """Adam with a second, very slow running mean of the gradient beside the fast one.

        m ← β₁ m + (1 - β₁) g
        slow ← β₃ slow + (1 - β₃) g
        u = (m̂ + α slow) / (√v̂ + ε)

    Gradients of ten thousand steps ago still help; the fast mean lets the step follow the loss nevertheless. For long
    trainings (the paper's are of 30,000 steps and more); with fewer, take β₃ = 0.999. The slow mean has no bias
    correction. `warmup_steps`, the paper's T, is best the length of the training: until then α grows in proportion
    to t, and β₃ from β₁, evenly in the half-life ln ½ / ln β₃. PyTorch ports start at α = 2, the paper at 5 to 10.

    Args:
        learning_rate: in [0, inf), or a schedule.
        beta_1: decay of the fast mean, in [0, 1).
        beta_2: decay of the mean square, in [0, 1).
        beta_3: decay of the slow mean, in [0, 1).
        alpha: weight of the slow mean, in [0, inf).
        epsilon: smallest scale of a step's denominator, in [0, inf).
        warmup_steps: steps until α and β₃ are reached, or None for both from the start.
        **common: see `kopt.Optimizer`.

    Raises:
        ValueError: `warmup_steps` is below 1.

    References:
        Pagliardini, Ablin and Grangier, *The AdEMAMix Optimizer: Better, Faster, Older*, 2024.
        https://arxiv.org/abs/2409.03137
    """

    cites = ("pagliardini2024ademamix",)
    ranges = {"beta_3": "[0, 1)", "alpha": "[0, inf)"}
    integers = {"warmup_steps": "[1, inf)"}

    def __init__(
        self,
        learning_rate: Scheduled = 1e-3,
        *,
        beta_1: Scheduled = 0.9,
        beta_2: Scheduled = 0.999,
        beta_3: Scheduled = 0.9999,
        alpha: Scheduled = 5.0,
        epsilon: Scheduled = 1e-8,
        warmup_steps: int | None = None,
        **common: Unpack[Common],
    ):
        super().__init__(learning_rate, beta_1=beta_1, beta_2=beta_2, epsilon=epsilon, **common)
        self.beta_3, self.alpha = beta_3, alpha
        self.warmup_steps = warmup_steps

    def slots(self, shape):
        return dict(m=shape, v=shape, slow=shape)

    def warmed(self, t, h):
        """α and β₃ at this step: half-lives are in proportion to 1 / ln β."""
        if self.warmup_steps is None:
            return h.alpha, h.beta_3
        done = ops.minimum(t / self.warmup_steps, 1.0)
        return done * h.alpha, ops.exp(1 / ema(1 / ops.log(h.beta_3), 1 / ops.log(h.beta_1), done))

    def direction(self, g, w, t, h, *, m, v, slow):
        alpha, beta_3 = self.warmed(t, h)
        m, v, slow = ema(m, g, h.beta_1), ema(v, g * g, h.beta_2), ema(slow, g, beta_3)
        return (debias(m, h.beta_1, t) + alpha * slow) / root(v, t, h), dict(m=m, v=v, slow=slow)


class Adan(Optimizer):
    """Adaptive Nesterov momentum: means of the gradient, of its change, and of the square of both together.

        d = g - g_before                                        (0 at the first step)
        m ← β₁ m + (1 - β₁) g,  n ← β₂ n + (1 - β₂) d,  v ← β₃ v + (1 - β₃) (g + β₂ d)²
        u = (m̂ + β₂ n̂) / (√v̂ + ε)
        w ← (w - learning_rate · u) / (1 + learning_rate · weight_decay)

    Bears learning rates 5 to 10 times AdamW's, at twice its state. The authors advise a decay of 0.02. As in their
    code, β are decays, 1 - β in the paper, and the decay is proximal by default. optax's `adan` mixes with 1 - β₂
    where the paper has 1 - its β₂, which is β₂ here: 0.08 in the place of 0.92.

    Args:
        learning_rate: in [0, inf), or a schedule.
        beta_1: decay of the mean gradient, in [0, 1).
        beta_2: decay of the mean change, in [0, 1).
        beta_3: decay of the mean square, in [0, 1).
        epsilon: smallest scale of a step's denominator, in [0, inf).
        proximal: whether the decay divides after the step, or else acts as AdamW's (the authors' `no_prox`).
        **common: see `kopt.Optimizer`.

    References:
        Xie et al., *Adan: Adaptive Nesterov Momentum Algorithm for Faster Optimizing Deep Models*, 2024.
        https://arxiv.org/abs/2208.06677
    """

    cites = ("xie2024adan",)
    elementwise = True
    ranges = {"beta_3": "[0, 1)"}

    def __init__(
        self,
        learning_rate: Scheduled = 1e-3,
        *,
        beta_1: Scheduled = 0.98,
        beta_2: Scheduled = 0.92,
        beta_3: Scheduled = 0.99,
        epsilon: Scheduled = 1e-8,
        proximal=True,
        **common: Unpack[Common],
    ):
        super().__init__(learning_rate, **common)
        self.beta_1, self.beta_2, self.beta_3, self.epsilon = beta_1, beta_2, beta_3, epsilon
        self.proximal = proximal

    def slots(self, shape):
        return dict(m=shape, n=shape, v=shape, before=shape)

    def direction(self, g, w, t, h, *, m, n, v, before):
        d = g - at_first(t, g, before)
        m, n, v = ema(m, g, h.beta_1), ema(n, d, h.beta_2), ema(v, ops.square(g + h.beta_2 * d), h.beta_3)
        ahead = debias(m, h.beta_1, t) + h.beta_2 * debias(n, h.beta_2, t)
        return ahead / (ops.sqrt(debias(v, h.beta_3, t)) + h.epsilon), dict(m=m, n=n, v=v, before=g)

    def finish(self, u, w, h):
        """(u + weight_decay * w) / (1 + learning_rate * weight_decay): w - learning_rate * that is the proximal step"""
        u = super().finish(u, w, h)
        return u / (1 + h.learning_rate * h.weight_decay) if self.proximal and h.weight_decay is not None else u


class LaProp(Adam):
    """Adam that divides first and averages then, so that the momentum no longer depends on β₂.

        v ← β₂ v + (1 - β₂) g²
        m ← β₁ m + (1 - β₁) g / (√v̂ + ε)
        u = m̂

    No ratio of β₁ to β₂ makes it diverge, not even β₂ = 0, which is the signed gradient with momentum. The mean
    holds directions, not steps: a new learning rate acts on all of it at once (the authors' holds steps), and the
    decay is multiplied by the learning rate, which at the authors' it is not.

    Args:
        learning_rate: in [0, inf), or a schedule.
        beta_1: decay of the mean of normalized gradients, in [0, 1).
        beta_2: decay of the mean square, in [0, 1).
        epsilon: smallest scale of a gradient's denominator, in [0, inf).
        **common: see `kopt.Optimizer`.

    References:
        Ziyin, Wang and Ueda, *LaProp: Separating Momentum and Adaptivity in Adam*, 2020.
        https://arxiv.org/abs/2002.04839
    """

    cites = ("ziyin2020laprop",)

    def __init__(
        self,
        learning_rate: Scheduled = 4e-4,
        *,
        beta_1: Scheduled = 0.9,
        beta_2: Scheduled = 0.999,
        epsilon: Scheduled = 1e-15,
        **common: Unpack[Common],
    ):
        super().__init__(learning_rate, beta_1=beta_1, beta_2=beta_2, epsilon=epsilon, **common)

    def direction(self, g, w, t, h, *, m, v):
        v = ema(v, g * g, h.beta_2)
        m = ema(m, g / root(v, t, h), h.beta_1)
        return debias(m, h.beta_1, t), dict(m=m, v=v)


class ADOPT(Adam):
    """Adam that divides by the mean square of the gradients *before* this one, which converges for every β₂.

        v = g²,  u = 0                                                      at the first step; from then on
        m ← β₁ m + (1 - β₁) clip(g / max(√v, ε), ±(t - 1)^¼),  u = m
        v ← β₂ v + (1 - β₂) g²

    Gradient and denominator no longer depend on each other, so that β₂ needs no tuning. The clip, which opens with the
    steps, is the authors' later addition against entries whose first gradients are near zero. The first step sees a
    gradient and moves nothing but by the decay.

    Args:
        learning_rate: in [0, inf), or a schedule.
        beta_1: decay of the mean of normalized gradients, in [0, 1).
        beta_2: decay of the mean square, in [0, 1).
        epsilon: smallest denominator of a gradient, in (0, inf).
        **common: see `kopt.Optimizer`.

    References:
        Taniguchi et al., *ADOPT: Modified Adam Can Converge with Any β₂ with the Optimal Rate*, 2024.
        https://arxiv.org/abs/2411.02853
    """

    cites = ("taniguchi2024adopt",)
    ranges = {"epsilon": "(0, inf)"}

    def __init__(
        self,
        learning_rate: Scheduled = 1e-3,
        *,
        beta_1: Scheduled = 0.9,
        beta_2: Scheduled = 0.9999,
        epsilon: Scheduled = 1e-6,
        **common: Unpack[Common],
    ):
        super().__init__(learning_rate, beta_1=beta_1, beta_2=beta_2, epsilon=epsilon, **common)

    def direction(self, g, w, t, h, *, m, v):
        bound = ops.power(t - 1, 0.25)  # zero at the first step, whose v is none yet
        m = ema(m, ops.clip(g / ops.maximum(ops.sqrt(v), h.epsilon), -bound, bound), h.beta_1)
        return m, dict(m=m, v=at_first(t, g * g, ema(v, g * g, h.beta_2)))


class QHAdam(Adam):
    """Adam in whose numerator and denominator the present gradient gets a share of its own.

        u = (ν₁ m̂ + (1 - ν₁) g) / (√(ν₂ v̂ + (1 - ν₂) g²) + ε)

    A long memory without its inertia. The defaults are those that the authors advise to start from (their code has
    Adam's, ν₁ = ν₂ = 1). Nadam is ν₁ = β₁ but for its corrections of bias.

    Args:
        learning_rate: in [0, inf), or a schedule.
        beta_1: decay of the mean gradient, in [0, 1).
        beta_2: decay of the mean square, in [0, 1).
        epsilon: smallest scale of a step's denominator, in [0, inf).
        nu_1: share of the mean gradient, in [0, 1].
        nu_2: share of the mean square, in [0, 1].
        **common: see `kopt.Optimizer`.

    References:
        Ma and Yarats, *Quasi-hyperbolic momentum and Adam for deep learning*, 2019. https://arxiv.org/abs/1810.06801
    """

    cites = ("ma2019quasi",)
    ranges = {"nu_1": "[0, 1]", "nu_2": "[0, 1]"}

    def __init__(
        self,
        learning_rate: Scheduled = 1e-3,
        *,
        beta_1: Scheduled = 0.995,
        beta_2: Scheduled = 0.999,
        epsilon: Scheduled = 1e-8,
        nu_1: Scheduled = 0.7,
        nu_2: Scheduled = 1.0,
        **common: Unpack[Common],
    ):
        super().__init__(learning_rate, beta_1=beta_1, beta_2=beta_2, epsilon=epsilon, **common)
        self.nu_1, self.nu_2 = nu_1, nu_2

    def direction(self, g, w, t, h, *, m, v):
        m, v = ema(m, g, h.beta_1), ema(v, g * g, h.beta_2)
        mean, square = debias(m, h.beta_1, t), debias(v, h.beta_2, t)
        return ema(mean, g, h.nu_1) / (ops.sqrt(ema(square, g * g, h.nu_2)) + h.epsilon), dict(m=m, v=v)
