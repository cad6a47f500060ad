"""Hessian-free optimization: damped Gauss-Newton steps by conjugate gradients that end when they make no progress."""

import math
from typing import Any, NamedTuple, Unpack

from keras import ops

from kopt.math import gain_ratio
from kopt.math.krylov import advance, choose, start
from kopt.optimizers.base import Scheduled
from kopt.optimizers.minimizer import CommonToMinimizers, Minimizer
from kopt.optimizers.newton import descend
from kopt.optimizers.packs import Slot

LIMITS = 1e-10, 1e10
"""Of the damping: what a ratio of 2/3 would otherwise take to zero, from where it could not grow again."""


class Kept(NamedTuple):
    """Iterates of conjugate gradients, from an early one to the last.

    Attributes:
        x: the iterates, one in each row, and zeros below the last.
        model: of each, what the quadratic model says.
        last: the number of the last one's row.
        products: how many were taken.
    """

    x: Any
    model: Any
    last: Any
    products: Any


class HessianFree(Minimizer):
    """Hessian-free optimization: large damped Gauss-Newton steps, for deep networks that gradients leave stuck.

        (G + λ I) p = -g      by conjugate gradients from ζ · the last p, until k iterations have lowered the model
                              by less than k ε of what it is, with k = max(10, i / 10)
        p ← an earlier iterate (of 1, 2, 3, 4, 5, 7, 9, ...), going back as long as the loss is lower there
        λ ← 3/2 λ where ρ < 1/4,  2/3 λ where ρ > 3/4      with ρ = fall of the loss / fall of the model
        w ← w + t p           with t from backtracking

    G is the generalized Gauss-Newton matrix, positive semidefinite where the loss is convex in the outputs; a product
    takes less than two gradients. A step takes tens to hundreds of them, and gets as far as many gradient steps. Keeps
    a vector, and while a step lasts about 4 log `max_products` more.

    Args:
        learning_rate: the first step to try, in lengths of p.
        initial_damping: λ at the start, in (0, inf).
        tolerance: ε, in (0, 1).
        decay: ζ, in [0, 1).
        max_products: the most products with G in a step.
        decrease: the constant of Armijo's condition, in (0, 0.5).
        max_evaluations: the most evaluations of backtracking in a step.
        **common: `stochastic` and `name`: see `kopt.optimizers.Minimizer`.

    References:
        Martens, *Deep Learning via Hessian-Free Optimization*, 2010. ρ is of the model without λ, and ζ is that of the
        later chapter, Martens and Sutskever, *Training Deep and Recurrent Networks with Hessian-Free Optimization*,
        2012. There is no preconditioner: theirs takes the gradient of each row.
    """

    cites = ("martens2010deep", "martens2012training")
    ranges = {
        "initial_damping": "(0, inf)",
        "tolerance": "(0, 1)",
        "decay": "[0, 1)",
        "decrease": "(0, 0.5)",
    }
    integers = {"max_products": "[1, inf)", "max_evaluations": "[1, inf)"}

    def __init__(
        self,
        learning_rate: Scheduled = 1.0,
        *,
        initial_damping: float = 1.0,
        tolerance: Scheduled = 5e-4,
        decay: Scheduled = 0.95,
        max_products: int = 250,
        decrease: Scheduled = 1e-2,
        max_evaluations: int = 30,
        **common: Unpack[CommonToMinimizers],
    ):
        super().__init__(learning_rate, **common)
        self.initial_damping, self.tolerance, self.decay = initial_damping, tolerance, decay
        self.max_products, self.decrease, self.max_evaluations = max_products, decrease, max_evaluations

    def memory(self, size):
        return dict(damping=Slot((), self.initial_damping), p=(size,))

    def iterate(self, f, at, t, h, *, evaluations, products, damping, p):
        def product(v):
            return f.gnvp(at.x, v) + damping * v

        kept = truncated(product, -at.gradient, h.decay * p, tolerance=h.tolerance, limit=self.max_products)
        row, value, looks = backtracked(lambda p: f.value(at.x + p), kept)
        p, model = kept.x[row], kept.model[row]
        model = model - damping * ops.vdot(p, p) / 2
        rho = gain_ratio(at.value - value, -model, at.value)
        factor = ops.where(rho > 0.75, 2 / 3, ops.where(rho >= 0.25, 1, 3 / 2))
        damping = ops.clip(ops.cast(factor, damping.dtype) * damping, *LIMITS)
        p = ops.where(ops.all(ops.isfinite(p)), p, 0)
        to, trials = descend(f, at, p, h.learning_rate, h.decrease, self.max_evaluations)
        counts = dict(evaluations=ops.add(evaluations, looks + trials), products=ops.add(products, kept.products))
        return to, counts | dict(damping=damping, p=p)


def marks(limit, base=1.3):
    """The numbers of the iterates that are kept: ⌈1.3ʲ⌉, and the last"""
    found = {math.ceil(base**j) for j in range(1, 1 + int(math.log(limit) / math.log(base)))}
    return sorted({1, limit} | found)


def truncated(product, b, x, *, tolerance, limit):
    """Conjugate gradients from x until the model makes no progress: returns what is `Kept`.

    Iterate i is the last where φᵢ < 0 and (φᵢ - φᵢ₋ₖ) / φᵢ < k ε, with k = max(10, i / 10) < i; and where φ has not
    fallen, for want of positive curvature or of digits.
    """
    numbers = ops.convert_to_tensor(marks(limit), "int32")
    rows, history = ops.arange(len(marks(limit)), dtype="int32"), ops.arange(limit + 1, dtype="int32")
    epsilon = ops.cast(tolerance, b.dtype)

    def row(i):
        return ops.sum(ops.cast(numbers < i, "int32"))

    def stalls(i, at, models):
        k = ops.maximum(10, ops.cast(ops.ceil(i / 10), "int32"))
        before = ops.sum(ops.where(history == i - k, models, 0))
        return (i > k) & (at.model < 0) & ((at.model - before) / at.model < ops.cast(k, b.dtype) * epsilon)

    def going(i, at, ended, models, kept):
        return (i < limit) & (at.rz > 0) & ~ended & ~stalls(i, at, models)

    def body(i, at, ended, models, kept):
        of = product(ops.where(i < 0, at.x, at.p))  # in one place, for a product takes long to compile
        ahead = choose(i < 0, start(b, at.x, of), advance(at, of))
        falls, i = (i < 0) | (ahead.model < at.model), i + 1
        at = choose(falls, ahead, at)
        models = ops.where(history == i, at.model, models)
        here = rows == row(i)
        kept = Kept(ops.where(here[:, None], at.x, kept.x), ops.where(here, at.model, kept.model), row(i), i + 1)
        return i, at, ~falls, models, kept

    zero, none = ops.zeros((), b.dtype), ops.zeros((), "int32")
    kept = Kept(ops.zeros((len(marks(limit)), *b.shape), b.dtype), 0 * ops.cast(rows, b.dtype), none, none)
    begin = none - 1, start(b, x, ops.zeros_like(b)), ops.zeros((), "bool"), zero * ops.cast(history, b.dtype), kept
    return ops.while_loop(going, body, begin)[-1]


def backtracked(value, kept):
    """From the last iterate back while the loss is lower: the row, its loss, and the number of evaluations"""

    def going(row, best, looks, lower):
        return lower & (row > 0)

    def body(row, best, looks, lower):
        earlier = value(kept.x[row - 1])
        lower = ~ops.isfinite(best) | (earlier < best)
        return ops.where(lower, row - 1, row), ops.where(lower, earlier, best), looks + 1, lower

    begin = kept.last + 1, ops.full((), math.nan, kept.model.dtype), 0 * kept.last, ops.ones((), "bool")
    return ops.while_loop(going, body, begin)[:3]
