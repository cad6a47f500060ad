"""Newton's method by conjugate gradients that a random sketch of the Hessian makes fast."""

from typing import Unpack

from keras import ops

from kopt._backend import normal
from kopt.math.krylov import LowRank, conjugate_gradients, nystrom, nystrom_inverse
from kopt.optimizers.base import Scheduled
from kopt.optimizers.minimizer import CommonToMinimizers, Minimizer
from kopt.optimizers.newton import descend


class NysNewtonCG(Minimizer):
    """Newton-CG with a randomized Nyström preconditioner: for losses so badly conditioned that plain ones never end.

        U Λ Uᵀ ≈ H                         by products with `rank` random vectors, at every `every` steps
        (H + μ I) p = -g                   by conjugate gradients from the last p, with the preconditioner
                                           (λᵣ + μ) U (Λ + μ)⁻¹ Uᵀ + I - U Uᵀ
        w ← w + t p                        with t from backtracking

    Made for physics-informed networks, after Adam and L-BFGS have got as far as they get, and for other losses with a
    few large eigenvalues: with three times as many vectors as the effective dimension Σ λ / (λ + μ), a step takes about
    as many products as at a condition of 28, or fewer. Keeps `rank` + 1 vectors.

    Args:
        learning_rate: the first step to try, in lengths of p.
        rank: the number of random vectors, from 1; all of the space where the model has fewer weights.
        every: steps from one sketch to the next, from 1.
        damping: μ, in (0, inf): from 1e-5 to 1e-1 in the paper.
        tolerance: the relative residual of p, in (0, 1).
        max_products: the most products with the Hessian in a step, besides those of the sketch.
        decrease: the constant of Armijo's condition, in (0, 0.5).
        max_evaluations: the most evaluations in a step.
        seed: of the random vectors.
        **common: `stochastic` and `name`: see `kopt.optimizers.Minimizer`.

    References:
        Rathore, Lei, Frangella, Lu and Udell, *Challenges in Training PINNs: A Loss Landscape Perspective*, 2024.
        https://arxiv.org/abs/2402.01868. There the tolerance is absolute, and negative curvature is not looked for;
        here conjugate gradients end at it. They begin with the best multiple of the last p, so that they lead down.

        Frangella, Tropp and Udell, *Randomized Nyström Preconditioning*, 2023. https://arxiv.org/abs/2110.02820
    """

    cites = ("rathore2024challenges", "frangella2023randomized")
    ranges = {"damping": "(0, inf)", "tolerance": "(0, 1)", "decrease": "(0, 0.5)"}
    integers = {
        "rank": "[1, inf)",
        "every": "[1, inf)",
        "max_products": "[1, inf)",
        "max_evaluations": "[1, inf)",
        "seed": "(-inf, inf)",
    }

    def __init__(
        self,
        learning_rate: Scheduled = 1.0,
        *,
        rank: int = 60,
        every: int = 20,
        damping: Scheduled = 1e-4,
        tolerance: Scheduled = 1e-6,
        max_products: int = 1000,
        decrease: Scheduled = 0.1,
        max_evaluations: int = 30,
        seed: int = 0,
        **common: Unpack[CommonToMinimizers],
    ):
        super().__init__(learning_rate, **common)
        self.rank, self.every, self.damping, self.tolerance = rank, every, damping, tolerance
        self.max_products, self.decrease, self.max_evaluations = max_products, decrease, max_evaluations
        self.seed = seed

    def memory(self, size):
        rank = min(self.rank, size)
        return dict(vectors=(size, rank), values=(rank,), p=(size,))

    def iterate(self, f, at, t, h, *, evaluations, products, vectors, values, p):
        rank = values.shape[0]

        def sketch():
            omega = normal(vectors.shape, self.seed, t, values.dtype)
            return *nystrom(lambda v: f.hvp(at.x, v), omega), products + rank

        due = ops.cast(t - 1, "int32") % self.every == 0
        vectors, values, products = ops.cond(due, sketch, lambda: (vectors, values, products))
        newton = conjugate_gradients(
            lambda v: f.hvp(at.x, v) + h.damping * v,
            -at.gradient,
            p,
            tolerance=h.tolerance,
            limit=self.max_products,
            inverse=lambda v: nystrom_inverse(LowRank(vectors, values), h.damping, v),
        )
        to, trials = descend(f, at, newton.x, h.learning_rate, h.decrease, self.max_evaluations)
        useful = ops.isfinite(to.value) & (trials > 0) & (to.value < at.value)
        counts = dict(evaluations=ops.add(evaluations, trials), products=ops.add(products, newton.products))
        return to, counts | dict(vectors=vectors, values=values, p=ops.where(useful, newton.x, 0))
