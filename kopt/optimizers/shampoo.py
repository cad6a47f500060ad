"""Shampoo: a full-matrix preconditioner for each axis of a weight."""

import math
from typing import Unpack

from keras import ops

from kopt.math import along, debias, ema, gram, inverse_root, join_blocks, merge_axes, split_blocks, tile, trust_ratio
from kopt.optimizers.base import Common, Optimizer, Scheduled

GRAFTS = ("adam", "sgd", None)


class Shampoo(Optimizer):
    """Distributed Shampoo: the gradient, whitened along each axis of each block of a weight.

        L ← β₂ L + (1 - β₂) G Gᵀ,   R ← β₂ R + (1 - β₂) Gᵀ G        (with β₂ = 1: sums)
        P_L = (L̂ + ε)^(-1/2k),  P_R = (R̂ + ε)^(-1/2k)               every `frequency` steps, from `start` on
        u = P_L m̂ P_R · ‖m̂ / (√v̂ + ε_g)‖ / ‖P_L m̂ P_R‖              before `start`: u = m̂ / (√v̂ + ε_g)

    with m the mean gradient and k the number of axes: the exponent is -1/4 for a matrix and -1/2 for a bias, which
    this makes full-matrix Adagrad. It won AlgoPerf's 2024 competition, with 28 % less time than NadamW. Its factors
    cost twice the weight or more in memory; where that or the eigendecompositions are too much, take `kopt.Kron`.

    *Grafting* gives each block's step the length that another method's would have, so that its learning rate and
    schedule serve. Neighbouring axes but the last are joined while they stay within `block_size`, then every axis is
    cut in equal blocks of at most that (Meta's code cuts full blocks and a rest; a multiple gives the same). The
    eigenvalues have a floor where rounding hides them, as in Meta's code they are shifted to be positive.

    Args:
        learning_rate: in [0, inf), or a schedule; that of the method whose length is grafted.
        beta_1: decay of the mean gradient, in [0, 1).
        beta_2: decay of the mean squares, in [0, 1]; 1 sums them, as in Shampoo's first paper and Adagrad.
        epsilon: added to the eigenvalues of the factors, in (0, inf).
        frequency: steps from one inverse root to the next, from 1. Larger is faster; AlgoPerf's winner has 100.
        start: the first step that is preconditioned, from 1. Early factors have seen too few gradients.
        block_size: largest size of a block's axis, from 1; time grows with its square, memory in proportion.
        graft: the method that sets a step's length: `"adam"` (with beta_2 = 1 this is Adagrad), `"sgd"` (the mean
            gradient), or None for Shampoo's own, with the mean gradient before `start`.
        graft_epsilon: smallest scale of the denominator of Adam's step, in [0, inf).
        **common: see `kopt.Optimizer`; `weight_decay` is decoupled.

    References:
        Gupta, Koren and Singer, *Shampoo: Preconditioned Stochastic Tensor Optimization*, 2018.
        https://arxiv.org/abs/1802.09568
        Shi et al., *A Distributed Data-Parallel PyTorch Implementation of the Distributed Shampoo Optimizer*, 2023.
        https://arxiv.org/abs/2309.06497
    """

    cites = ("gupta2018shampoo", "shi2023distributed")
    choices = {"graft": GRAFTS}
    integers = {"frequency": "[1, inf)", "start": "[1, inf)", "block_size": "[1, inf)"}
    ranges = {"beta_2": "[0, 1]", "epsilon": "(0, inf)", "graft_epsilon": "[0, inf)"}

    def __init__(
        self,
        learning_rate: Scheduled = 1e-3,
        *,
        beta_1: Scheduled = 0.9,
        beta_2: Scheduled = 0.999,
        epsilon: Scheduled = 1e-12,
        frequency: int = 10,
        start: int = 10,
        block_size: int = 1024,
        graft: str | None = "adam",
        graft_epsilon: Scheduled = 1e-8,
        **common: Unpack[Common],
    ):
        super().__init__(learning_rate, **common)
        self.beta_1, self.beta_2, self.epsilon, self.graft_epsilon = beta_1, beta_2, epsilon, graft_epsilon
        self.frequency = frequency
        self.start = start
        self.block_size = block_size
        self.graft = graft

    def slots(self, shape):
        counts, sizes = tile(merge_axes(shape, self.block_size), self.block_size)
        squares = {
            f"{name}_{axis}": (math.prod(counts), size, size)
            for axis, size in enumerate(sizes, 1)
            for name in ("factor", "root")
        }
        return dict(m=shape) | (dict(v=shape) if self.graft == "adam" else {}) | squares

    def direction(self, g, w, t, h, *, m, v=None, **kept):
        new = 1 - h.beta_2 * ops.cast(h.beta_2 < 1, g.dtype)  # what a square weighs, and what all of them weigh
        total = ops.where(h.beta_2 < 1, -ops.expm1(t * ops.log(h.beta_2)), 1)
        m = ema(m, g, h.beta_1)
        mean = grafted = debias(m, h.beta_1, t)
        slots = dict(m=m)
        if self.graft == "adam":
            slots["v"] = h.beta_2 * v + new * g * g
            grafted = mean / (ops.sqrt(slots["v"] / total) + h.graft_epsilon)

        blocks, direction, grafted = (self._blocks(x) for x in (g, mean, grafted))
        axes = range(1, len(blocks.shape))
        factors, roots = ({a: _flat(kept[f"{name}_{a}"]) for a in axes} for name in ("factor", "root"))
        factors = {a: h.beta_2 * factors[a] + new * gram(a, blocks) for a in axes}
        due = ops.logical_or(t == self.start, ops.logical_and(t > self.start, t % self.frequency == 0))
        roots = ops.cond(
            due,
            lambda: {a: inverse_root(factors[a] / total, 0.5 / len(axes), h.epsilon) for a in axes},
            lambda: roots,
        )
        for axis in axes:
            direction = along(axis, roots[axis], direction)
        if self.graft:
            direction = trust_ratio(grafted, direction) * direction
        u = ops.where(t < self.start, grafted, direction)
        squares = {f"factor_{a}": factors[a] for a in axes} | {f"root_{a}": roots[a] for a in axes}
        slots |= {name: ops.reshape(x, kept[name].shape) for name, x in squares.items()}
        axes_of_weight = merge_axes(g.shape[1:], self.block_size)
        return ops.reshape(join_blocks(u, axes_of_weight, self.block_size), g.shape), slots

    def _blocks(self, x):
        """The blocks of all weights, along the first axis."""
        return split_blocks(ops.reshape(x, (-1, *merge_axes(x.shape[1:], self.block_size))), self.block_size)


def _flat(squares):
    """The first axis of a slot counts weights, the second their blocks: now the first counts blocks of all weights."""
    return ops.reshape(squares, (-1, *squares.shape[2:]))
