"""Steps in proportion to each layer's weights, for large batches."""

from collections.abc import Iterable
from typing import Unpack

from keras import ops

from kopt.math import norm, trust_ratio
from kopt.optimizers.adam import AdamW
from kopt.optimizers.base import Common, CommonButDecay, Scheduled
from kopt.optimizers.sparing import Sparing


class LARS(Sparing):
    """Momentum whose gradient for each weight tensor is first made as long as the tensor, times a small coefficient.

        ratio = trust_coefficient · ‖w‖ / (‖g‖ + weight_decay · ‖w‖ + ε)
        m ← momentum · m + ratio · (g + weight_decay · w)
        u = m                        or, with nesterov, u = ratio · (g + weight_decay · w) + momentum · m

    For convolutional networks in batches of thousands, with a warmup. The learning rate is large, since the ratio has
    the coefficient. Biases and what normalizes are best left out: `no_adaptation=("bias", "gamma", "beta")`, and the
    same for `no_decay`.

    The ratio is 1 where either norm is 0. The decay is a part of the gradient, as in the paper, and not decoupled. The
    velocity holds gradients (PyTorch's reading, and timm's): the paper's holds steps, which at a constant learning
    rate is the same. In optax the ratio's denominator is ‖g + weight_decay · w‖.

    Args:
        learning_rate: in [0, inf), or a schedule.
        momentum: share of the velocity that stays, in [0, 1].
        nesterov: whether to take the gradient's part in the next velocity already.
        trust_coefficient: how long a step is, in lengths of the weight, in [0, inf).
        epsilon: smallest denominator of the ratio, in [0, inf).
        clip_ratio: whether to take min(ratio, learning_rate) for the step, so that it is never longer than that of SGD:
            this is LARC.
        no_adaptation: a regular expression or several: weights whose path one of them matches have ratio 1.
        **common: see `kopt.Optimizer`.

    References:
        You, Gitman and Ginsburg, *Large Batch Training of Convolutional Networks*, 2017.
        https://arxiv.org/abs/1708.03888
    """

    cites = ("you2017lars",)
    sparing = "no_adaptation"
    patterns = ("no_adaptation",)
    ranges = {"trust_coefficient": "[0, inf)"}

    def __init__(
        self,
        learning_rate: Scheduled = 1.0,
        *,
        momentum: Scheduled = 0.9,
        nesterov: bool = False,
        trust_coefficient: Scheduled = 1e-3,
        epsilon: Scheduled = 1e-8,
        clip_ratio: bool = False,
        no_adaptation: str | Iterable[str] = (),
        **common: Unpack[Common],
    ):
        super().__init__(learning_rate, **common)
        self.momentum, self.nesterov = momentum, nesterov
        self.trust_coefficient, self.epsilon, self.clip_ratio = trust_coefficient, epsilon, clip_ratio
        self.no_adaptation = no_adaptation

    def slots(self, shape):
        return dict(m=shape)

    def ratio(self, g, w, h):
        """trust_coefficient · ‖w‖ / (‖g‖ + weight_decay · ‖w‖ + ε)"""
        if self.spares:
            return 1.0
        g, w = norm(g), norm(w)
        decay = 0.0 if h.weight_decay is None else h.weight_decay * w
        ratio = h.trust_coefficient * w / (g + decay + h.epsilon)
        ratio = ops.where(ops.logical_or(g == 0, w == 0), 1.0, ratio)
        return ops.minimum(ratio / h.learning_rate, 1.0) if self.clip_ratio else ratio

    def direction(self, g, w, t, h, *, m):
        g = self.ratio(g, w, h) * super().finish(g, w, h)
        m = h.momentum * m + g
        return g + h.momentum * m if self.nesterov else m, dict(m=m)

    def finish(self, u, w, h):
        return u


class LAMB(Sparing, AdamW):
    """AdamW whose step for each weight tensor is as long as the tensor itself, times the learning rate.

        u = m̂ / (√v̂ + ε) + weight_decay · w
        w ← w - learning_rate · (‖w‖ / ‖u‖) · u

    For very large batches, of BERT above all. The decay is inside the ratio, as in the paper (in Keras's Lamb it is
    outside); the ratio is 1 where either norm is 0. Implementations for BERT leave biases and what normalizes out
    of both, `no_adaptation=("bias", "gamma", "beta")` and the same for `no_decay`, and many also clip the
    gradients of all weights together, `global_clipnorm=1.0`.

    Args:
        learning_rate: in [0, inf), or a schedule.
        beta_1: decay of the mean gradient, in [0, 1).
        beta_2: decay of the mean square, in [0, 1).
        epsilon: smallest scale of a step's denominator, in [0, inf).
        weight_decay: in [0, inf), a schedule, or None for no decay.
        clip_ratio: whether the ratio is at most 1, which is LAMBC.
        no_adaptation: a regular expression or several: weights whose path one of them matches have ratio 1, which is
            AdamW.
        **common: see `kopt.Optimizer`.

    References:
        You et al., *Large Batch Optimization for Deep Learning: Training BERT in 76 minutes*, 2020.
        https://arxiv.org/abs/1904.00962
        Fong, Chen and Chen, *Improving Layer-wise Adaptive Rate Methods using Trust Ratio Clipping*, 2020.
        https://arxiv.org/abs/2011.13584
    """

    elementwise = False
    sparing = "no_adaptation"
    patterns = ("no_adaptation",)
    cites = ("you2020lamb", "fong2020lambc")

    def __init__(
        self,
        learning_rate: Scheduled = 1e-3,
        *,
        beta_1: Scheduled = 0.9,
        beta_2: Scheduled = 0.999,
        epsilon: Scheduled = 1e-6,
        weight_decay: Scheduled | None = 1e-2,
        clip_ratio: bool = False,
        no_adaptation: str | Iterable[str] = (),
        **common: Unpack[CommonButDecay],
    ):
        super().__init__(
            learning_rate, beta_1=beta_1, beta_2=beta_2, epsilon=epsilon, weight_decay=weight_decay, **common
        )
        self.clip_ratio = clip_ratio
        self.no_adaptation = no_adaptation

    def finish(self, u, w, h):
        u = super().finish(u, w, h)
        if self.spares:
            return u
        ratio = trust_ratio(w, u)
        return (ops.minimum(ratio, 1.0) if self.clip_ratio else ratio) * u
