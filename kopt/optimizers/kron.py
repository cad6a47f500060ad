"""PSGD: a preconditioner that is itself learned by gradient descent."""

from typing import Unpack

from keras import ops

from kopt._backend import normal
from kopt.math import (
    along,
    as_matrix,
    at_first,
    debias,
    ema,
    gram,
    mean,
    rms,
    solve_along,
    spectral_bound,
    spread,
    transpose,
    within,
)
from kopt.optimizers.base import Common, Optimizer, Scheduled

CLIP = 1.1
"""Largest root mean square of a direction."""

DISTURBANCE = 2.0**-11.5
"""Root of the rounding unit of float32: the share of noise in what Q is learned from, which keeps it finite."""


class Kron(Optimizer):
    """PSGD with Kronecker factors: upper triangles Q₁ and Q₂ are learned so that what they multiply becomes white.

        m ← β₁ m + (1 - β₁) g
        A = Q₁ m̂ Q₂ᵀ,   B = Q₁⁻ᵀ V Q₂⁻¹        V standard normal
        Q₁ ← Q₁ - μ triu(A Aᵀ - B Bᵀ) Q₁ / ‖A Aᵀ + B Bᵀ‖,   Q₂ ← Q₂ - μ triu(Aᵀ A - Bᵀ B) Q₂ / ‖Aᵀ A + Bᵀ B‖
        u = Q₁ᵀ Q₁ m̂ Q₂ᵀ Q₂ · min(1, 1.1 / its root mean square)

    What Shampoo and SOAP find by eigendecomposition costs products and one triangular solve here, and no ε or decay
    of second moments has to be chosen. The learning rate is about a third of Adam's, and weight decay three to ten
    times as large. Q is updated in each of the first `flat_steps` steps and then ever less often, down to a share
    `min_probability` of them; by count, not by chance, so that a step is the same on every replica. A kernel is
    taken as a matrix of (height · width · inputs, outputs). Weights of one axis and axes longer than `max_size` have
    a diagonal Q.

    As in kron_torch, ‖·‖ is a lower bound of the spectral norm, and m̂ is disturbed by a little of V where Q is
    updated. There the disturbance leaks into u, and Q₁ and Q₂ are given one size now and then, at random; here at
    each update, which changes their product by nothing.

    Args:
        learning_rate: in [0, inf), or a schedule.
        beta_1: decay of the mean gradient, in [0, 1).
        preconditioner_rate: step size μ of the updates of Q, in [0, 1].
        flat_steps: steps with an update of Q each, in [0, inf).
        decay_rate: of the share of steps with an update: exp(-decay_rate) a step after that, in [0, inf).
        min_probability: smallest share of steps with an update, in (0, 1].
        initial_scale: of the preconditioner, in (0, inf).
        max_size: the longest axis that has a triangular Q, whose size is the square of it.
        seed: of the random numbers, an integer.
        **common: see `kopt.Optimizer`; `weight_decay` is decoupled.

    References:
        Li, *Preconditioned Stochastic Gradient Descent*, 2018. https://arxiv.org/abs/1512.04202
        Pooladzandi and Li, *Curvature-Informed SGD via General Purpose Lie-Group Preconditioners*, 2024.
        https://arxiv.org/abs/2402.04553
    """

    cites = ("li2018preconditioned", "pooladzandi2024curvature")
    integers = {"max_size": "[0, inf)", "seed": "(-inf, inf)"}
    ranges = {
        "preconditioner_rate": "[0, 1]",
        "flat_steps": "[0, inf)",
        "decay_rate": "[0, inf)",
        "min_probability": "(0, 1]",
        "initial_scale": "(0, inf)",
    }

    def __init__(
        self,
        learning_rate: Scheduled = 3e-4,
        *,
        beta_1: Scheduled = 0.9,
        preconditioner_rate: Scheduled = 0.1,
        flat_steps: Scheduled = 500.0,
        decay_rate: Scheduled = 1e-3,
        min_probability: Scheduled = 0.03,
        initial_scale: float = 1.0,
        max_size: int = 8192,
        seed: int = 0,
        **common: Unpack[Common],
    ):
        super().__init__(learning_rate, **common)
        self.beta_1, self.preconditioner_rate, self.initial_scale = beta_1, preconditioner_rate, initial_scale
        self.flat_steps, self.decay_rate, self.min_probability = flat_steps, decay_rate, min_probability
        self.max_size = max_size
        self.seed = seed

    def slots(self, shape):
        axes = _axes(shape)
        triangular = [len(axes) > 1 and 1 < size <= self.max_size for size in axes]
        q = {f"q_{a}": (size, size) if full else (size,) for a, (size, full) in enumerate(zip(axes, triangular), 1)}
        return dict(m=shape) | q

    def shared(self):
        return dict(waited=0.0)

    def advance(self, t, h):
        """Steps since Q was last updated, and 0 where it is time again."""
        probability = ops.clip(ops.exp(-h.decay_rate * (t - 1 - h.flat_steps)), h.min_probability, 1)
        waited = h.waited + 1
        return dict(waited=ops.where(waited * probability >= 1, 0, waited))

    def direction(self, g, w, t, h, *, m, **kept):
        axes = _axes(g.shape[1:])
        m = ema(m, g, h.beta_1)
        x = ops.reshape(debias(m, h.beta_1, t), (-1, *axes))
        q = {a: at_first(t, self._first(kept[f"q_{a}"], len(axes)), kept[f"q_{a}"]) for a, _ in enumerate(axes, 1)}
        q = ops.cond(h.waited == 0, lambda: self._learned(q, x, t, h), lambda: q)
        u = x
        for axis, factor in q.items():
            u = _times(axis, factor, u)
            u = along(axis, transpose(factor), u) if _is_full(factor) else _times(axis, factor, u)
        u = u * ops.minimum(1.0, CLIP / (rms(u) + 1e-12))
        return ops.reshape(u, g.shape), dict(m=m) | {f"q_{axis}": factor for axis, factor in q.items()}

    def _first(self, factor, number):
        """A factor of `initial_scale` times the identity, of so many."""
        scale = self.initial_scale ** (1 / number)
        return scale * (ops.eye(factor.shape[-1], dtype=factor.dtype) if _is_full(factor) else ops.ones_like(factor))

    def _learned(self, q, x, t, h):
        """The factors after one step of gradient descent, all of one size."""
        b = ops.cast(normal(x.shape, self.seed, t, "float32"), x.dtype)  # the same numbers for every dtype
        a = x + DISTURBANCE * mean(ops.abs(x)) * b
        for axis, factor in q.items():
            a = _times(axis, factor, a)
            b = solve_along(axis, transpose(factor), b) if _is_full(factor) else b / spread(axis, factor, b)
        new = {}
        for axis, factor in q.items():
            if _is_full(factor):
                white, noise = gram(axis, a), gram(axis, b)
                step = ops.triu(white - noise) @ factor / spectral_bound(white + noise)
            else:
                others = [i for i in within(x) if i != axis]
                white, noise = (ops.sum(y * y, axis=others) for y in (a, b))
                step = (white - noise) * factor / ops.max(white + noise, axis=-1, keepdims=True)
            new[axis] = factor - h.preconditioner_rate * step
        largest = {axis: ops.max(ops.abs(factor), axis=within(factor), keepdims=True) for axis, factor in new.items()}
        middle = ops.exp(sum(ops.log(ops.reshape(size, (-1,))) for size in largest.values()) / len(new))
        return {
            axis: factor * (ops.reshape(middle, largest[axis].shape) / largest[axis]) for axis, factor in new.items()
        }


def _axes(shape):
    """The axes of a weight as they are preconditioned."""
    return as_matrix(shape) if len(shape) > 2 else (tuple(shape) or (1,))


def _is_full(factor):
    """Whether a factor is a triangle; a diagonal is kept as a vector."""
    return len(factor.shape) > 2


def _times(axis, factor, x):
    """Tensors multiplied along an axis by their factors."""
    return along(axis, factor, x) if _is_full(factor) else spread(axis, factor, x) * x
