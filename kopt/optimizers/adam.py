"""Adam and its family: a running mean of the gradient over the root of a running mean of its square."""

from typing import Unpack

from keras import ops

from kopt.math import debias, ema
from kopt.optimizers.base import Common, CommonButDecay, Optimizer, Scheduled


def root(v, t, h):
    """√v̂ + ε"""
    return ops.sqrt(debias(v, h.beta_2, t)) + h.epsilon


class Adam(Optimizer):
    """Adaptive moment estimation: each weight's step is its mean gradient, measured in its own root mean square.

        m ← β₁ m + (1 - β₁) g
        v ← β₂ v + (1 - β₂) g²
        u = m̂ / (√v̂ + ε)        m̂ = m / (1 - β₁ᵗ),  v̂ = v / (1 - β₂ᵗ)

    The optimizer to start with. As in the paper's Algorithm 1 (and in PyTorch and optax), ε joins the root *after*
    the bias is corrected; Keras adds it before, which differs where ε is not tiny, and has a default of 1e-7.

    Args:
        learning_rate: in [0, inf), or a schedule.
        beta_1: decay of the mean gradient, in [0, 1).
        beta_2: decay of the mean square, in [0, 1).
        epsilon: smallest scale of a step's denominator, in [0, inf).
        **common: see `kopt.Optimizer`.

    References:
        Kingma and Ba, *Adam: A Method for Stochastic Optimization*, 2015. https://arxiv.org/abs/1412.6980
    """

    cites = ("kingma2015adam",)
    elementwise = True

    def __init__(
        self,
        learning_rate: Scheduled = 1e-3,
        *,
        beta_1: Scheduled = 0.9,
        beta_2: Scheduled = 0.999,
        epsilon: Scheduled = 1e-8,
        **common: Unpack[Common],
    ):
        super().__init__(learning_rate, **common)
        self.beta_1, self.beta_2, self.epsilon = beta_1, beta_2, epsilon

    def slots(self, shape):
        return dict(m=shape, v=shape)

    def direction(self, g, w, t, h, *, m, v):
        m, v = ema(m, g, h.beta_1), ema(v, g * g, h.beta_2)
        return debias(m, h.beta_1, t) / root(v, t, h), dict(m=m, v=v)


class AdamW(Adam):
    """Adam with decoupled weight decay: the decay is not divided by the gradient's size.

        w ← w - learning_rate · (m̂ / (√v̂ + ε) + s · weight_decay · w)

    With `weight_decay_mode="coupled"`, s = 1: the decay is multiplied by the learning rate, as in PyTorch, optax and
    Keras. With "independent", s = 1 / peak, peak being the largest learning rate so far: as in the paper, the schedule
    alone acts on the decay, which is the same for every learning rate, and some thousand times smaller. With
    "corrected", s = learning_rate / peak, Defazio's correction: the ratio of gradient to weight stays level while the
    rate falls. While the rate warms up it is its own peak. The decay acts on the weight before the step. Defaults are
    Keras's (PyTorch's decay is 0.01).

    Args:
        learning_rate: in [0, inf), or a schedule.
        beta_1: decay of the mean gradient, in [0, 1).
        beta_2: decay of the mean square, in [0, 1).
        epsilon: smallest scale of a step's denominator, in [0, inf).
        weight_decay: in [0, inf), a schedule, or None for no decay.
        weight_decay_mode: "coupled", "independent" or "corrected", see above.
        **common: see `kopt.Optimizer`; `no_decay=("bias", "norm")` leaves weights out.

    Raises:
        ValueError: `weight_decay_mode` is none of the three.

    References:
        Loshchilov and Hutter, *Decoupled Weight Decay Regularization*, 2019. https://arxiv.org/abs/1711.05101
        Defazio, *Why Gradients Rapidly Increase Near the End of Training*, 2025 ("corrected").
        https://arxiv.org/abs/2506.02285
    """

    cites = ("loshchilov2019decoupled", "defazio2025gradients")
    choices = {"weight_decay_mode": ("coupled", "independent", "corrected")}

    def __init__(
        self,
        learning_rate: Scheduled = 1e-3,
        *,
        beta_1: Scheduled = 0.9,
        beta_2: Scheduled = 0.999,
        epsilon: Scheduled = 1e-8,
        weight_decay: Scheduled | None = 4e-3,
        weight_decay_mode: str = "coupled",
        **common: Unpack[CommonButDecay],
    ):
        super().__init__(
            learning_rate, beta_1=beta_1, beta_2=beta_2, epsilon=epsilon, weight_decay=weight_decay, **common
        )
        self.weight_decay_mode = weight_decay_mode

    def shared(self):
        return {} if self.weight_decay_mode == "coupled" else dict(peak=0.0)

    def advance(self, t, h):
        return {} if self.weight_decay_mode == "coupled" else dict(peak=ops.maximum(h.peak, h.learning_rate))

    def finish(self, u, w, h):
        """u + s * weight_decay * w"""
        if h.weight_decay is None or self.weight_decay_mode == "coupled":
            return super().finish(u, w, h)
        rate = h.learning_rate if self.weight_decay_mode == "corrected" else 1.0
        return u + ops.divide_no_nan(rate, h.peak) * h.weight_decay * w


class NadamW(AdamW):
    """AdamW that looks one step of momentum ahead: Nesterov's correction at constant momentum.

        m̂ = (β₁ m + (1 - β₁) g) / (1 - β₁ᵗ)        with m and v as in Adam
        u = m̂ / (√v̂ + ε)

    The baseline of the AlgoPerf benchmark, whose rule this is (timm's too). optax's `nadamw` corrects the two parts
    of m̂ each for its own bias, which differs in the first steps. Dozat's rule with its slow warm-up of the momentum
    is `kopt.Nadam`, which takes `weight_decay` too.

    Args:
        learning_rate: in [0, inf), or a schedule.
        beta_1: decay of the mean gradient, in [0, 1).
        beta_2: decay of the mean square, in [0, 1).
        epsilon: smallest scale of a step's denominator, in [0, inf).
        weight_decay: in [0, inf), a schedule, or None for no decay.
        weight_decay_mode: "coupled", "independent" or "corrected", see `kopt.AdamW`.
        **common: see `kopt.Optimizer`.

    References:
        Dahl et al., *Benchmarking Neural Network Training Algorithms*, 2023. https://arxiv.org/abs/2306.07179
        Dozat, *Incorporating Nesterov Momentum into Adam*, 2016. https://openreview.net/forum?id=OM0jvwB8jIp57ZJjtNEZ
    """

    cites = ("dahl2023benchmarking", "dozat2016incorporating")

    def direction(self, g, w, t, h, *, m, v):
        m, v = ema(m, g, h.beta_1), ema(v, g * g, h.beta_2)
        return debias(ema(m, g, h.beta_1), h.beta_1, t) / root(v, t, h), dict(m=m, v=v)


class AMSGrad(Adam):
    """Adam whose denominator never shrinks, which restores the proof of convergence.

        v_max ← max(v_max, v)
        u = m̂ / (√(v_max / (1 - β₂ᵗ)) + ε)

    The maximum is of the uncorrected v, and both moments are corrected for bias, as in PyTorch and Keras. The paper
    corrects neither; optax takes the maximum of the corrected v.

    Args:
        learning_rate: in [0, inf), or a schedule.
        beta_1: decay of the mean gradient, in [0, 1).
        beta_2: decay of the mean square, in [0, 1).
        epsilon: smallest scale of a step's denominator, in [0, inf).
        **common: see `kopt.Optimizer`.

    References:
        Reddi, Kale and Kumar, *On the Convergence of Adam and Beyond*, 2018. https://arxiv.org/abs/1904.09237
    """

    cites = ("reddi2018convergence",)

    def slots(self, shape):
        return dict(m=shape, v=shape, v_max=shape)

    def direction(self, g, w, t, h, *, m, v, v_max):
        m, v = ema(m, g, h.beta_1), ema(v, g * g, h.beta_2)
        v_max = ops.maximum(v_max, v)
        return debias(m, h.beta_1, t) / root(v_max, t, h), dict(m=m, v=v, v_max=v_max)


class Adamax(Adam):
    """Adam with the largest recent gradient, decayed, in the place of the root mean square.

        m ← β₁ m + (1 - β₁) g
        v ← max(β₂ v, |g|)
        u = m̂ / (v + ε)

    Steps are bounded by the learning rate, whatever the gradients do. The paper has no ε; here it is added to v,
    as in Keras (PyTorch and optax add it to |g| inside the maximum).

    Args:
        learning_rate: in [0, inf), or a schedule.
        beta_1: decay of the mean gradient, in [0, 1).
        beta_2: decay of the largest gradient, in [0, 1).
        epsilon: smallest denominator of a step, in [0, inf).
        **common: see `kopt.Optimizer`.

    References:
        Kingma and Ba, *Adam*, 2015, section 7.1. https://arxiv.org/abs/1412.6980
    """

    cites = ("kingma2015adam",)

    def direction(self, g, w, t, h, *, m, v):
        m, v = ema(m, g, h.beta_1), ops.maximum(h.beta_2 * v, ops.abs(g))
        return debias(m, h.beta_1, t) / (v + h.epsilon), dict(m=m, v=v)


class Nadam(Adam):
    """Adam with Nesterov's momentum, which warms up slowly.

        μ(t) = β₁ (1 - 0.5 · 0.96^(t · momentum_decay))
        m̂ = μ(t+1) m / (1 - μ(1)⋯μ(t+1)) + (1 - μ(t)) g / (1 - μ(1)⋯μ(t))
        u = m̂ / (√v̂ + ε)        with m and v as in Adam

    As in Dozat's report and in PyTorch, the momentum approaches β₁ over some thousands of steps.

    Args:
        learning_rate: in [0, inf), or a schedule.
        beta_1: final decay of the mean gradient, in [0, 1).
        beta_2: decay of the mean square, in [0, 1).
        epsilon: smallest scale of a step's denominator, in [0, inf).
        momentum_decay: speed of the momentum's warm-up, in [0, inf). Keras has 1 in its place, so that its
            momentum is all but constant after a hundred steps.
        **common: see `kopt.Optimizer`.

    References:
        Dozat, *Incorporating Nesterov Momentum into Adam*, 2016. https://openreview.net/forum?id=OM0jvwB8jIp57ZJjtNEZ
    """

    cites = ("dozat2016incorporating",)
    ranges = {"momentum_decay": "[0, inf)"}

    def __init__(
        self,
        learning_rate: Scheduled = 1e-3,
        *,
        beta_1: Scheduled = 0.9,
        beta_2: Scheduled = 0.999,
        epsilon: Scheduled = 1e-8,
        momentum_decay: Scheduled = 4e-3,
        **common: Unpack[Common],
    ):
        super().__init__(learning_rate, beta_1=beta_1, beta_2=beta_2, epsilon=epsilon, **common)
        self.momentum_decay = momentum_decay

    def mu(self, t, h):
        """β₁ (1 - 0.5 · 0.96^(t · momentum_decay))"""
        return h.beta_1 * (1 - 0.5 * ops.power(0.96, t * h.momentum_decay))

    def shared(self):
        return dict(mu_product=1.0)

    def advance(self, t, h):
        return dict(mu_product=h.mu_product * self.mu(t, h))

    def direction(self, g, w, t, h, *, m, v):
        m, v = ema(m, g, h.beta_1), ema(v, g * g, h.beta_2)
        now, ahead = self.mu(t, h), self.mu(t + 1, h)
        m_hat = ahead * m / (1 - h.mu_product * ahead) + (1 - now) * g / (1 - h.mu_product)
        return m_hat / root(v, t, h), dict(m=m, v=v)
