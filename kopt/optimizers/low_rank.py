"""State in a subspace: of each matrix of gradients a few directions, found anew from time to time."""

import math
from typing import Unpack

from keras import ops

from kopt._backend import normal
from kopt.math import debias, ema, norm
from kopt.optimizers.base import Common, Optimizer, Scheduled
from kopt.optimizers.wrapper import Wrapper


def sides(shape, rank):
    """The shorter and the longer side of a weight as a matrix, its last axis against the others; None up to `rank`."""
    if len(shape) < 2:
        return None
    short, long = sorted((math.prod(shape[:-1]), shape[-1]))
    return (short, long) if short > rank else None


def wide(x):
    """A stack of weights as matrices (n, short, long)"""
    x = ops.reshape(x, (x.shape[0], -1, x.shape[-1]))
    return x if x.shape[1] <= x.shape[2] else ops.swapaxes(x, 1, 2)


def as_weights(x, shape):
    """The inverse of `wide`, for a stack of this shape"""
    return ops.reshape(x if math.prod(shape[1:-1]) <= shape[-1] else ops.swapaxes(x, 1, 2), shape)


def leading(x, rank, before):
    """The `rank` leading left singular vectors of each matrix, with the signs nearest to those before."""
    _, vectors = ops.eigh(x @ ops.swapaxes(x, 1, 2))  # ascending; an SVD takes XLA a thousand times as long
    vectors = ops.flip(vectors, axis=-1)[..., :rank]
    return ops.where(ops.sum(vectors * before, axis=1, keepdims=True) < 0, -vectors, vectors)


def leading_now_and_then(x, before, t, gap):
    """`leading` in every `gap`-th step from the first on, else what was before."""
    return ops.cond((t - 1) % gap == 0, lambda: leading(x, before.shape[-1], before), lambda: before)


class GaLore(Wrapper):
    """Runs an elementwise optimizer on the leading directions of each gradient matrix: state of `rank` rows.

        every `gap` steps: P ← the `rank` leading left singular vectors of g
        r = Pᵀ g
        u = scale · P · (the inner optimizer's direction for r)

    For matrices too large for Adam's state beside them: P and Adam's moments take (shorter + 2 · longer side) · rank.
    Weights whose shorter side is not above `rank`, and those of one axis, are left to the inner optimizer as they are;
    convolution kernels are matrices with their last axis against the others. The decay is that of the inner optimizer,
    on the whole weight. The authors' `rank` is a quarter of the shorter side to pre-train, and 4 to fine-tune.

    The shorter side is projected, as in the paper and the authors' code (optax projects the longer one, whose state is
    smaller but not the paper's). As there, moments are not rotated when P changes; the signs of the new vectors, which
    a decomposition leaves open, are chosen nearest to the old ones.

    Args:
        inner: an elementwise kopt optimizer whose direction does not look at the weights, such as `kopt.AdamW`.
        rank: directions that are kept, an integer in [1, inf).
        gap: steps between two decompositions, an integer in [1, inf).
        scale: factor of the direction, in [0, inf).

    Raises:
        TypeError: `inner` is no kopt optimizer, or `rank` or `gap` no integer.
        ValueError: `inner` is not elementwise, sums over weights or averages them; or an argument is out of its range.

    References:
        Zhao et al., *GaLore: Memory-Efficient LLM Training by Gradient Low-Rank Projection*, 2024.
        https://arxiv.org/abs/2403.03507
    """

    cites = ("zhao2024galore",)
    ranges = {"scale": "[0, inf)"}
    integers = {"rank": "[1, inf)", "gap": "[1, inf)"}

    def __init__(self, inner, *, rank=128, gap=200, scale: Scheduled = 0.25):
        super().__init__(inner)
        self.rank, self.gap, self.scale = rank, gap, scale
        for rule in inner.routes().values():
            if not rule._is_elementwise or rule.averages or type(rule).measure is not Optimizer.measure:
                raise ValueError(
                    f"GaLore: inner must be an elementwise optimizer that neither sums over weights nor averages "
                    f"them, got {rule!r}."
                )

    def slots(self, shape):
        if (matrix := sides(shape, self.rank)) is None:
            return self.inner.slots(shape)
        short, long = matrix
        return self.inner.slots((self.rank, long)) | dict(projection=(short, self.rank))

    def direction(self, g, w, t, h, *, projection=None, **slots):
        if projection is None:
            return self.inner.direction(g, w, t, h.inner, **slots)
        projection = leading_now_and_then(wide(g), projection, t, self.gap)
        onto = ops.swapaxes(projection, 1, 2)
        u, slots = self.inner.direction(onto @ wide(g), None, t, h.inner, **slots)
        return as_weights(h.scale * projection @ u, g.shape), slots | dict(projection=projection)


class APOLLO(Optimizer):
    """Scales each channel of the gradient as Adam would, judged from a small random projection of it.

        r = Pᵀ g        P random with variance 1 / rank, drawn anew every `gap` steps
        m ← β₁ m + (1 - β₁) r,   v ← β₂ v + (1 - β₂) r²,   a = m / (√v + ε)
        u = g · ‖a‖ / ‖r‖, channel by channel along the longer side
        u ← u · min(1, 1.01 ‖last u‖ / ‖u‖)
        w ← w - learning_rate · √scale · u · √(1 - β₂ᵗ) / (1 - β₁ᵗ)

    For pre-training where Adam's state does not fit: the moments take 2 · longer side · rank, and P is drawn from its
    seed whenever needed. The direction itself has no momentum. Weights whose shorter side is not above `rank`, and
    those of one axis, take Adam's steps; convolution kernels are matrices with their last axis against the others.

    As in the authors' code, ε is added and growth is limited before the bias is corrected, and `scale` acts by its
    root. The limit does not hold after a gradient of zeros, from which their code takes thousands of steps to grow.

    Args:
        learning_rate: in [0, inf), or a schedule; the authors' is the default.
        beta_1: decay of the mean projected gradient, in [0, 1).
        beta_2: decay of its mean square, in [0, 1).
        epsilon: smallest scale of a step's denominator, in [0, inf).
        scale: square of the factor of the direction, in [0, inf).
        rank: rows that are kept of the shorter side, an integer in [1, inf).
        gap: steps between two projections, an integer in [1, inf).
        projection: "random", or "svd" for leading singular vectors, as in GaLore: slower, and P is kept.
        seed: of the random projections, an integer in [0, 2**31).
        **common: see `kopt.Optimizer`.

    Raises:
        TypeError: `rank`, `gap` or `seed` is no integer.
        ValueError: an argument is out of its range.

    References:
        Zhu et al., *APOLLO: SGD-like Memory, AdamW-level Performance*, 2025. https://arxiv.org/abs/2412.05270
        Chen et al., *Fira: Can We Achieve Full-rank Training of LLMs Under Low-rank Constraint?*, 2024 (the limit).
        https://arxiv.org/abs/2410.01623
    """

    cites = ("zhu2025apollo", "chen2024fira")
    ranges = {"scale": "[0, inf)"}
    integers = {"rank": "[1, inf)", "gap": "[1, inf)", "seed": f"[0, {2**31})"}
    choices = {"projection": ("random", "svd")}

    def __init__(
        self,
        learning_rate: Scheduled = 1e-2,
        *,
        beta_1: Scheduled = 0.9,
        beta_2: Scheduled = 0.999,
        epsilon: Scheduled = 1e-6,
        scale: Scheduled = 1.0,
        rank=256,
        gap=200,
        projection="random",
        seed=0,
        **common: Unpack[Common],
    ):
        super().__init__(learning_rate, **common)
        self.beta_1, self.beta_2, self.epsilon, self.scale = beta_1, beta_2, epsilon, scale
        self.rank, self.gap, self.projection, self.seed = rank, gap, projection, seed

    def slots(self, shape):
        if (matrix := sides(shape, self.rank)) is None:
            return dict(m=shape, v=shape)
        short, long = matrix
        kept = dict(m=(self.rank, long), v=(self.rank, long), length=(1, 1))
        return kept | dict(basis=(short, self.rank)) if self.projection == "svd" else kept

    def lengths(self, x):
        """‖x‖ of each channel of matrices (n, rows, channels)"""
        return ops.sqrt(ops.sum(ops.square(x), axis=1, keepdims=True))

    def direction(self, g, w, t, h, *, m, v, length=None, basis=None):
        if length is None:
            u, m, v = self._adam(g, h, m, v)
            return self._debiased(u, t, h), dict(m=m, v=v)
        x, kept = wide(g), {}
        if basis is None:
            shape = (x.shape[0], x.shape[1], self.rank)
            projection = normal(shape, self.seed, (t - 1) // self.gap, x.dtype) / math.sqrt(self.rank)
        else:
            projection = leading_now_and_then(x, basis, t, self.gap)
            kept = dict(basis=projection)
        r = ops.swapaxes(projection, 1, 2) @ x
        u, m, v = self._adam(r, h, m, v)
        u = x * self.lengths(u) / (self.lengths(r) + 1e-8)
        growth = ops.where(length > 0, ops.maximum(norm(u) / (length + 1e-8) / 1.01, 1.0), 1.0)
        u = u / growth
        slots = kept | dict(m=m, v=v, length=norm(u))
        return as_weights(ops.sqrt(h.scale) * self._debiased(u, t, h), g.shape), slots

    def _adam(self, g, h, m, v):
        m, v = ema(m, g, h.beta_1), ema(v, g * g, h.beta_2)
        return m / (ops.sqrt(v) + h.epsilon), m, v

    def _debiased(self, u, t, h):
        return debias(u, h.beta_1, t) / ops.sqrt(debias(1.0, h.beta_2, t))


class APOLLOMini(APOLLO):
    """APOLLO of rank 1 with one scale for a whole matrix: state of one row, hardly more than SGD's.

        u = g · ‖a‖ / ‖r‖, over the whole matrix

    Args:
        learning_rate: in [0, inf), or a schedule.
        beta_1: decay of the mean projected gradient, in [0, 1).
        beta_2: decay of its mean square, in [0, 1).
        epsilon: smallest scale of a step's denominator, in [0, inf).
        scale: square of the factor of the direction, in [0, inf); it makes up for what rank 1 underestimates.
        rank: rows that are kept of the shorter side, an integer in [1, inf).
        gap: steps between two projections, an integer in [1, inf).
        projection: "random", or "svd" for leading singular vectors.
        seed: of the random projections, an integer in [0, 2**31).
        **common: see `kopt.Optimizer`.

    References:
        Zhu et al., *APOLLO: SGD-like Memory, AdamW-level Performance*, 2025. https://arxiv.org/abs/2412.05270
    """

    cites = ("zhu2025apollo", "chen2024fira")

    def __init__(
        self,
        learning_rate: Scheduled = 1e-2,
        *,
        beta_1: Scheduled = 0.9,
        beta_2: Scheduled = 0.999,
        epsilon: Scheduled = 1e-6,
        scale: Scheduled = 128.0,
        rank=1,
        gap=200,
        projection="random",
        seed=0,
        **common: Unpack[Common],
    ):
        super().__init__(
            learning_rate,
            beta_1=beta_1,
            beta_2=beta_2,
            epsilon=epsilon,
            scale=scale,
            rank=rank,
            gap=gap,
            projection=projection,
            seed=seed,
            **common,
        )

    def lengths(self, x):
        return norm(x)
