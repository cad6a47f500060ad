"""Adam in the eigenbasis of Shampoo's preconditioner."""

from typing import Unpack

from keras import ops

from kopt.math import along, debias, eigenvectors, ema, gram, merge_axes, refine_eigenvectors, spread, transpose
from kopt.optimizers.base import CommonButDecay, Optimizer, Scheduled


class SOAP(Optimizer):
    """Adam run where the gradient's entries are uncorrelated: in the eigenvectors of its products with itself.

        L ← β₂ L + (1 - β₂) G Gᵀ,   R ← β₂ R + (1 - β₂) Gᵀ G,   and every `frequency` steps their eigenvectors Q
        m, v: the moments of Q_Lᵀ G Q_R
        u = Q_L (m̂ / (√v̂ + ε)) Q_Rᵀ

    For matrices where a step may cost more: it takes fewer steps than Adam, often by 40 %, and gains most with large
    batches. A weight of one axis gets Adam; one of k axes has a factor for each, so that a convolution kernel's are
    of (height, width, inputs, outputs). An axis longer than `max_size` is left as it is, such as a vocabulary.

    Q starts with all eigenvectors and then takes one power iteration and QR at a time, with v sorted along, and m
    turned from the old basis into the new. As in the authors' code the first step makes the basis and moves nothing,
    L and R take the gradient after the step, and ε is added to √v before its bias is corrected. There decay follows
    the step and spares the first; here it is a part of every step, as in AdamW. Their `shampoo_beta` is β₂ here, as
    in the paper; their `precondition_1d`, `normalize_grads` and `correct_bias` are left at their defaults.

    Args:
        learning_rate: in [0, inf), or a schedule; about that of AdamW.
        beta_1: decay of the mean gradient, in [0, 1).
        beta_2: decay of the mean square and of L and R, in [0, 1).
        epsilon: smallest scale of a step's denominator, in (0, inf).
        weight_decay: in [0, inf), a schedule, or None for no decay.
        frequency: steps from one basis to the next, from 1. Larger is faster and a little worse.
        max_size: the longest axis that has a factor, whose size is the square of it.
        merge: whether neighbouring axes, but the last, count as one while they stay within `max_size`: a convolution
            kernel is then a matrix of (height · width · inputs, outputs).
        **common: see `kopt.Optimizer`.

    References:
        Vyas et al., *SOAP: Improving and Stabilizing Shampoo using Adam*, 2024. https://arxiv.org/abs/2409.11321
    """

    cites = ("vyas2024soap",)
    integers = {"frequency": "[1, inf)", "max_size": "[0, inf)"}
    ranges = {"epsilon": "(0, inf)"}  # the first step has nothing else to divide by

    def __init__(
        self,
        learning_rate: Scheduled = 3e-3,
        *,
        beta_1: Scheduled = 0.95,
        beta_2: Scheduled = 0.95,
        epsilon: Scheduled = 1e-8,
        weight_decay: Scheduled | None = 1e-2,
        frequency: int = 10,
        max_size: int = 10_000,
        merge: bool = False,
        **common: Unpack[CommonButDecay],
    ):
        super().__init__(learning_rate, weight_decay=weight_decay, **common)
        self.beta_1, self.beta_2, self.epsilon = beta_1, beta_2, epsilon
        self.frequency = frequency
        self.max_size = max_size
        self.merge = merge

    def slots(self, shape):
        factors = {f"{name}_{axis}": (size, size) for axis, size in self._turned(shape) for name in ("factor", "basis")}
        return dict(m=shape, v=shape) | factors

    def direction(self, g, w, t, h, *, m, v, **kept):
        shape = g.shape
        factors, bases = ({a: kept[f"{name}_{a}"] for a, _ in self._turned(shape[1:])} for name in ("factor", "basis"))
        g, m, v = (ops.reshape(x, (-1, *self._axes(shape[1:]))) for x in (g, m, v))
        x = _turn(bases, g) * ops.cast(t > 1, g.dtype)
        m, v, seen = ema(m, x, h.beta_1), ema(v, x * x, h.beta_2), ops.maximum(t - 1, 1)
        u = debias(m, h.beta_1, seen) / (ops.sqrt(v) + h.epsilon) / ops.sqrt(debias(1.0, h.beta_2, seen))
        u = _turn_back(bases, u)
        factors = {axis: ema(factors[axis], gram(axis, g), h.beta_2) for axis in factors}
        bases, m, v = self._refresh(t, factors, bases, m, v)
        u, m, v = (ops.reshape(x, shape) for x in (u, m, v))
        kept = {f"factor_{axis}": factors[axis] for axis in factors} | {f"basis_{axis}": bases[axis] for axis in bases}
        return u, dict(m=m, v=v) | kept

    def _refresh(self, t, factors, bases, m, v):
        """The eigenvectors of the factors, and the moments as these see them."""

        def first():
            return {axis: eigenvectors(factor) for axis, factor in factors.items()}, m, v

        def again():
            turned, moved = {}, v
            for axis, factor in factors.items():
                turned[axis], order = refine_eigenvectors(factor, bases[axis])
                moved = ops.take_along_axis(moved, spread(axis, order, v), axis)
            return turned, _turn(turned, _turn_back(bases, m)), moved

        def later():
            return ops.cond((t - 1) % self.frequency == 0, again, lambda: (bases, m, v))

        return ops.cond(t == 1, first, later) if factors else (bases, m, v)

    def _axes(self, shape):
        """The sizes of the axes that are turned."""
        return merge_axes(shape, self.max_size) if self.merge else tuple(shape)

    def _turned(self, shape):
        """The axes that have a factor, counted from 1, and their sizes."""
        axes = self._axes(shape)
        return [(a, size) for a, size in enumerate(axes, 1) if len(axes) > 1 and size <= self.max_size]


def _turn(bases, x):
    """Q_Lᵀ x Q_R"""
    for axis, q in bases.items():
        x = along(axis, transpose(q), x)
    return x


def _turn_back(bases, x):
    """Q_L x Q_Rᵀ"""
    for axis, q in bases.items():
        x = along(axis, q, x)
    return x
