"""A second moment for each block of a weight in the place of each entry."""

import functools
import re
from typing import Unpack

from keras import ops

from kopt.math import debias, ema, mean
from kopt.optimizers.adam import AdamW
from kopt.optimizers.base import Common, Optimizer, Scheduled

UNITS = (
    (r"\bembeddings$", 2, (-2,)),
    (r"\b(query|key)/kernel$", 3, (-2,)),
    (r"\bvalue/kernel$", 3, (-2, -1)),
    (r"\b(query|key|value)/bias$", 2, (-2, -1)),
)
"""How the path of a weight of Keras's own layers ends, its number of axes, and those that count its units."""


class AdamMini(AdamW):
    """AdamW with one second moment for all the weights of an output unit: half of Adam's state.

        m ← β₁ m + (1 - β₁) g
        v ← β₂ v + (1 - β₂) mean of g² over each output unit
        u = m̂ / (√v̂ + ε)

    For transformers that do not fit, with AdamW's hyperparameters. A unit is an index of the last axis, as in Keras's
    dense and convolution kernels, so that weights of one axis keep a v for each entry, which is plain AdamW. As in the
    authors' code, a unit of an embedding is a row, and a unit of an attention's queries and keys is a head: these are
    known by their paths in `keras.layers.Embedding` and `keras.layers.MultiHeadAttention`. The scales of a
    normalization share one v in their code.

    Args:
        learning_rate: in [0, inf), or a schedule.
        beta_1: decay of the mean gradient, in [0, 1).
        beta_2: decay of the mean square, in [0, 1).
        epsilon: smallest scale of a step's denominator, in [0, inf).
        weight_decay: in [0, inf), a schedule, or None for no decay.
        weight_decay_mode: "coupled", "independent" or "corrected", see `kopt.AdamW`.
        **common: see `kopt.Optimizer`.

    References:
        Zhang et al., *Adam-mini: Use Fewer Learning Rates To Gain More*, 2025. https://arxiv.org/abs/2406.16793
    """

    cites = ("zhang2025adammini",)
    elementwise = False
    units = (-1,)
    """The axes whose indices count units."""

    def routes(self):
        return {"": self} | {str(units): self._view(units=units) for _, _, units in UNITS}

    def route(self, path, shape):
        found = (str(units) for end, ndim, units in UNITS if len(shape) == ndim and re.search(end, path))
        return next(found, "")

    def _shared_axes(self, ndim):
        """The axes that lie within a unit, counted from the end."""
        return tuple(axis for axis in range(-ndim, 0) if axis not in self.units)

    def slots(self, shape):
        shared = self._shared_axes(len(shape))
        return dict(m=shape, v=tuple(1 if i - len(shape) in shared else n for i, n in enumerate(shape)))

    def direction(self, g, w, t, h, *, m, v):
        square = mean(g * g, self._shared_axes(len(g.shape) - 1))
        m, v = ema(m, g, h.beta_1), ema(v, square, h.beta_2)
        return debias(m, h.beta_1, t) / (ops.sqrt(debias(v, h.beta_2, t)) + h.epsilon), dict(m=m, v=v)


class SM3(Optimizer):
    """Adagrad that bounds its sums of squares by one number for each row, each column, and so on.

        v = min(μ₁, μ₂, …) + g²        μᵢ has one entry for each index of axis i
        μᵢ ← max of v over all axes but i
        m ← momentum · m + (1 - momentum) · g / √v,   u = m

    For very large embeddings, whose rows are seen at very different rates. Steps never grow again, as in Adagrad, so
    the rate is large and needs a warm-up. This is the paper's SM3-II, with 0/0 = 0 and no ε (optax adds 1e-8 to v).

    Args:
        learning_rate: in [0, inf), or a schedule.
        momentum: share of the mean direction that stays, in [0, 1]; 0 keeps none and costs no memory.
        **common: see `kopt.Optimizer`.

    References:
        Anil, Gupta, Koren and Singer, *Memory-Efficient Adaptive Optimization*, 2019.
        https://arxiv.org/abs/1901.11150
    """

    cites = ("anil2019memory",)

    def __init__(self, learning_rate: Scheduled = 0.1, *, momentum: Scheduled = 0.9, **common: Unpack[Common]):
        super().__init__(learning_rate, **common)
        self.momentum = momentum

    def slots(self, shape):
        kept = {} if self.momentum == 0 else dict(m=shape)
        sides = [tuple(n if i == axis else 1 for i, n in enumerate(shape)) for axis in range(len(shape) or 1)]
        return kept | {f"axis_{axis}": side for axis, side in enumerate(sides)}

    def direction(self, g, w, t, h, *, m=None, **bounds):
        v = functools.reduce(ops.minimum, bounds.values()) + g * g
        u = ops.divide_no_nan(g, ops.sqrt(v))
        axes = range(1, len(g.shape))
        new = {
            name: ops.max(v, axis=[other for other in axes if other != axis], keepdims=True)
            for axis, name in enumerate(bounds, start=1)
        }
        if m is None:
            return u, new
        m = ema(m, u, h.momentum)
        return m, new | dict(m=m)
