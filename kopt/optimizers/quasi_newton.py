"""Limited-memory BFGS: curvature that is learned from the last few steps."""

import math
from typing import Unpack

import numpy as np
from keras import ops

from kopt._checks import check_range
from kopt.math import ratio
from kopt.optimizers.base import Scheduled
from kopt.optimizers.descent import LineSearched, dot
from kopt.optimizers.minimizer import CommonToMinimizers, Point


class LBFGS(LineSearched):
    """Limited-memory BFGS: the last steps tell the curvature, at the cost of a few vectors.

        d = -H g        H from the last pairs (s, y) and γ I, with γ = sᵀy / yᵀy of the newest
        x ← x + α d     α by a search along d
        s = Δx, y = Δg  a new pair, where sᵀy > 0

    The first choice for smooth losses on a whole data set, up to millions of weights. Costs little more than its
    gradient evaluations, of which most steps take one. A search that fails clears the memory, and the next step goes
    down the gradient. In float32 a loss falls to about 1e-7 of its size: where more is wanted,
    `keras.config.set_floatx("float64")`. Needs `kopt.Model`.

    With `bounds` directions are those of the weights that no bound holds, and searches follow the path that bounds
    bend: the task of L-BFGS-B, by projection in the place of its quadratic program.

    Args:
        learning_rate: the first length to try, in lengths of d, in [0, inf). The first step of all is of length 1 or
            less.
        pairs: how many are kept, from 1.
        damping: Powell's: y is turned towards the old curvature until sᵀy is this share of what that expects, in [0,
            1). For "backtracking" and mini-batches, 0.2; at 0 a pair without positive curvature is left out.
        bounds: least and largest value of all weights; None, for both or for one, is none.
        line_search: "zoom" (strong Wolfe conditions), "hager_zhang" (approximate ones, which rounding does not hide)
            or "backtracking" (Armijo's alone); None for zoom where the loss is in float64, and else Hager-Zhang.
        decrease: how much of what the slope promises the loss has to fall by, in (0, 0.5).
        curvature: which part of the slope may be left, in (0, 1).
        max_evaluations: of the loss and its gradient in one search, from 1.
        **common: `stochastic` and `name`.

    References:
        Liu and Nocedal, *On the Limited Memory BFGS Method for Large Scale Optimization*, 1989.
        https://doi.org/10.1007/BF01589116

        Kim, Sra and Dhillon, *Tackling Box-Constrained Optimization via a New Projected Quasi-Newton Approach*, 2010.
        https://doi.org/10.1137/08073812X
    """

    cites = ("kim2010projected", "liu1989lbfgs")
    ranges = {"damping": "[0, 1)"}
    integers = {"pairs": "[1, inf)"}

    def __init__(
        self,
        learning_rate: Scheduled = 1.0,
        *,
        pairs: int = 10,
        damping: Scheduled = 0.0,
        bounds: tuple[float | None, float | None] | None = None,
        line_search: str | None = None,
        decrease: Scheduled = 1e-4,
        curvature: Scheduled = 0.9,
        max_evaluations: int = 30,
        **common: Unpack[CommonToMinimizers],
    ):
        super().__init__(
            learning_rate,
            line_search=line_search,
            decrease=decrease,
            curvature=curvature,
            max_evaluations=max_evaluations,
            **common,
        )
        self.pairs, self.damping, self.bounds = pairs, damping, bounds

    def _checked_option(self, name, value):
        if name != "bounds" or value is None:
            return super()._checked_option(name, value)
        if not isinstance(value, list | tuple) or len(value) != 2:
            raise ValueError(f"{type(self).__name__}: bounds must be a pair (lower, upper) or None, got {value!r}.")
        lower, upper = (sign * math.inf if x is None else float(x) for sign, x in zip((-1, 1), value, strict=True))
        check_range(self, f"[{lower}, inf]", **{"bounds[1]": upper})
        return lower, upper

    def memory(self, size):
        return super().memory(size) | dict(S=(self.pairs, size), Y=(self.pairs, size))

    def allowed(self, x):
        return x if self.bounds is None else ops.clip(x, *self.bounds)

    def pull(self, at):
        if self.bounds is None:
            return at.gradient
        lower, upper = self.bounds
        pushes = ((at.x <= lower) & (at.gradient > 0)) | ((at.x >= upper) & (at.gradient < 0))
        return ops.where(pushes, 0, at.gradient)

    def heading(self, at, h, *, learned, change, S, Y):
        g = self.pull(at)
        if self.bounds is not None:
            free = ops.cast(g != 0, g.dtype)
            S, Y = S * free, Y * free
        return two_loops(g, S, Y, learned)

    def iterate(self, f, at, t, h, *, evaluations, **memory):
        if self.bounds is not None:
            x = self.allowed(at.x)
            at, more = ops.cond(ops.all(x == at.x), lambda: (at, 0.0), lambda: (Point(x, *f(x)), 1.0))
            evaluations = evaluations + ops.cast(more, evaluations.dtype)
        return super().iterate(f, at, t, h, evaluations=evaluations, **memory)

    def learn(self, move, at, to, h, *, learned, change, S, Y):
        s, y = move.s, move.y
        expected = -move.length * dot(s, at.gradient)  # sᵀBs, since s = -α B⁻¹g
        short = dot(s, y) < h.damping * expected
        theta = ops.where(short, ratio((1 - h.damping) * expected, expected - dot(s, y)), 1)
        y = theta * y - (1 - theta) * move.length * at.gradient
        good = move._replace(y=y).curved
        S, Y = (ops.where(good, ops.concatenate([old[1:], new[None]]), old) for old, new in ((S, s), (Y, y)))
        return dict(learned=learned + ops.cast(good, learned.dtype), S=S, Y=Y)


def two_loops(g, S, Y, number):
    """-H g, where H is the inverse Hessian of BFGS from γ I and the last so many pairs, the newest in the last row"""
    sy, yy, pairs = ops.sum(S * Y, 1), ops.sum(Y * Y, 1), range(S.shape[0])
    known = (sy > 0) & (np.arange(S.shape[0], 0, -1) <= number)
    rho, alphas, q, gamma = ops.where(known, ratio(1, sy), 0), {}, g, 1
    for i in reversed(pairs):
        alphas[i] = rho[i] * dot(S[i], q)
        q = q - alphas[i] * Y[i]
    for i in pairs:
        gamma = ops.where(known[i], ratio(sy[i], yy[i]), gamma)
    r = gamma * q
    for i in pairs:
        r = r + S[i] * (alphas[i] - rho[i] * dot(Y[i], r))
    return -r
