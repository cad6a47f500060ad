"""Newton's method: along directions that a quadratic model gives, or within a region in which it is trusted."""

from typing import Unpack

from keras import ops

from kopt.math import gain_ratio
from kopt.math.definite import solve_definite
from kopt.math.krylov import conjugate_gradients, length, steihaug, symmetric
from kopt.math.line_search import backtracking
from kopt.optimizers.base import Scheduled
from kopt.optimizers.minimizer import CommonToMinimizers, Minimizer, Point
from kopt.optimizers.packs import Slot


def descend(f, at, p, first, decrease, most):
    """Goes along a direction as far as backtracking leads; along the steepest, where it does not descend.

    Args:
        f: a `kopt.optimizers.minimizer.Objective`.
        at: the `Point` to go from.
        p: a vector.
        first: the first step to try, in lengths of `p`.
        decrease: the constant of Armijo's condition.
        most: the largest number of evaluations.

    Returns:
        The `Point` where it ends, and the number of evaluations.
    """
    p = ops.where(ops.vdot(p, at.gradient) < 0, p, -at.gradient)

    def phi(t):
        value, gradient = f(at.x + t * p)
        return value, ops.vdot(gradient, p), gradient

    begin = at.value, ops.vdot(at.gradient, p), at.gradient
    step = backtracking(phi, begin, first, decrease=decrease, most=most)
    x = ops.where(step.length > 0, at.x + step.length * p, at.x)
    return Point(x, step.value, step.rest), step.evaluations


class NewtonCG(Minimizer):
    """Truncated Newton: conjugate gradients solve for the step, no more exactly than the gradient is small.

        ‖H p + g‖ ≤ min(η, √‖g‖) ‖g‖      by products H v, or as far as the curvature is positive
        w ← w + t p                       with t from backtracking

    For smooth losses of the whole data set whose Hessian is too large to form: far from the minimum a step takes a few
    products, and near it the steps converge superlinearly. Where the loss curves down, a step goes along the last
    direction that is known to descend. A product costs two to three gradients; nothing is kept from step to step.

    Args:
        learning_rate: the first step to try, in lengths of p.
        forcing: η, the largest relative residual of p, in (0, 1).
        max_products: the most products with the Hessian in a step.
        decrease: the constant of Armijo's condition, in (0, 0.5).
        max_evaluations: the most evaluations in a step.
        **common: `stochastic` and `name`: see `kopt.optimizers.Minimizer`.

    References:
        Nocedal and Wright, *Numerical Optimization*, 2006, algorithm 7.1. As in scipy, a first direction of negative
        curvature is taken as long as the size of the curvature tells.
    """

    cites = ("nocedal2006numerical",)
    ranges = {"forcing": "(0, 1)", "decrease": "(0, 0.5)"}
    integers = {"max_products": "[1, inf)", "max_evaluations": "[1, inf)"}

    def __init__(
        self,
        learning_rate: Scheduled = 1.0,
        *,
        forcing: Scheduled = 0.5,
        max_products: int = 200,
        decrease: Scheduled = 1e-4,
        max_evaluations: int = 30,
        **common: Unpack[CommonToMinimizers],
    ):
        super().__init__(learning_rate, **common)
        self.forcing, self.max_products = forcing, max_products
        self.decrease, self.max_evaluations = decrease, max_evaluations

    def iterate(self, f, at, t, h, *, evaluations, products):
        g = at.gradient
        eta = ops.minimum(h.forcing, ops.sqrt(length(g)))
        newton = conjugate_gradients(lambda v: f.hvp(at.x, v), -g, tolerance=eta, limit=self.max_products)
        to, trials = descend(f, at, newton.x, h.learning_rate, h.decrease, self.max_evaluations)
        return to, dict(evaluations=ops.add(evaluations, trials), products=ops.add(products, newton.products))


class TrustRegion(Minimizer):
    """Trust-region Newton: the least of the quadratic model within a radius, which grows and shrinks with its success.

        p ≈ argmin ⟨g, p⟩ + ½ ⟨p, H p⟩  over  ‖p‖ ≤ Δ      by Steihaug's conjugate gradients
        ρ = what the loss falls by / what the model falls by
        Δ ← Δ / 4 where ρ < 1/4,  2 Δ (at most Δ_max) where ρ > 3/4 and ‖p‖ = Δ
        w ← w + p where ρ > η

    As `kopt.NewtonCG`, and the safer of the two where the loss is not convex: it makes use of directions in which the
    loss curves down. A step evaluates the loss once, and stays where it is if that is no better.

    Both falls have a few rounding errors of the loss added, so that ρ tends to 1 where there is nothing left to gain.

    Args:
        learning_rate: the part of p that is taken.
        initial_radius: Δ at the start, in (0, inf).
        max_radius: Δ_max, in (0, inf).
        acceptance: η, in [0, 0.25).
        forcing: p is found to a relative residual of min(`forcing`, √‖g‖), in (0, 1).
        max_products: the most products with the Hessian in a step.
        **common: `stochastic` and `name`: see `kopt.optimizers.Minimizer`.

    References:
        Steihaug, *The Conjugate Gradient Method and Trust Regions in Large Scale Optimization*, 1983. Nocedal and
        Wright, *Numerical Optimization*, 2006, algorithms 4.1 and 7.2; defaults as in scipy's `trust-ncg`. The rounding
        errors are from Conn, Gould and Toint, *Trust-Region Methods*, 2000, section 17.4.2.
    """

    cites = ("steihaug1983conjugate", "nocedal2006numerical", "conn2000trust")
    ranges = {"initial_radius": "(0, inf)", "max_radius": "(0, inf)", "acceptance": "[0, 0.25)", "forcing": "(0, 1)"}
    integers = {"max_products": "[1, inf)"}

    def __init__(
        self,
        learning_rate: Scheduled = 1.0,
        *,
        initial_radius: float = 1.0,
        max_radius: Scheduled = 1000.0,
        acceptance: Scheduled = 0.15,
        forcing: Scheduled = 0.5,
        max_products: int = 200,
        **common: Unpack[CommonToMinimizers],
    ):
        super().__init__(learning_rate, **common)
        self.initial_radius, self.max_radius, self.acceptance = initial_radius, max_radius, acceptance
        self.forcing, self.max_products = forcing, max_products

    def memory(self, size):
        return dict(radius=Slot((), self.initial_radius))

    def iterate(self, f, at, t, h, *, evaluations, products, radius):
        g = at.gradient
        eta = ops.minimum(h.forcing, ops.sqrt(length(g)))
        p = steihaug(lambda v: f.hvp(at.x, v), g, radius, tolerance=eta, limit=self.max_products)
        slope = h.learning_rate * ops.vdot(g, p.x)
        model = slope + h.learning_rate * (h.learning_rate * p.model - slope)  # of the part that is taken
        x = at.x + h.learning_rate * p.x
        value, gradient = f(x)
        rho = gain_ratio(at.value - value, -model, at.value)
        smaller, larger = radius / 4, ops.minimum(2 * radius, h.max_radius)
        radius = ops.where((rho > 0.75) & p.stopped, larger, ops.where(rho >= 0.25, radius, smaller))
        taken = (rho > h.acceptance) & ops.all(ops.isfinite(gradient))
        to = Point(*(ops.where(taken, new, old) for new, old in zip((x, value, gradient), at, strict=True)))
        return to, dict(evaluations=evaluations + 1, products=ops.add(products, p.products), radius=radius)


class Newton(Minimizer):
    """Newton's method, exact: the whole Hessian, made positive definite where it is not.

        (H + τ I) p = -g      with τ = 0, or the first of a doubling sequence that lets a Cholesky factor exist
        w ← w + t p           with t from backtracking

    For models of a few hundred weights: a step takes a product for each of the n weights, n² numbers while it lasts,
    and n³ / 3 operations, however badly the problem is conditioned.

    Args:
        learning_rate: the first step to try, in lengths of p.
        decrease: the constant of Armijo's condition, in (0, 0.5).
        max_evaluations: the most evaluations in a step.
        max_size: the most weights to build for.
        **common: `stochastic` and `name`: see `kopt.optimizers.Minimizer`.

    Raises:
        ValueError: in `build`: the model has more than `max_size` weights.

    References:
        Nocedal and Wright, *Numerical Optimization*, 2006, algorithms 3.2 and 3.3.
    """

    cites = ("nocedal2006numerical",)
    ranges = {"decrease": "(0, 0.5)"}
    integers = {"max_evaluations": "[1, inf)", "max_size": "[1, inf)"}

    def __init__(
        self,
        learning_rate: Scheduled = 1.0,
        *,
        decrease: Scheduled = 1e-4,
        max_evaluations: int = 30,
        max_size: int = 1000,
        **common: Unpack[CommonToMinimizers],
    ):
        super().__init__(learning_rate, **common)
        self.decrease, self.max_evaluations, self.max_size = decrease, max_evaluations, max_size

    def memory(self, size):
        if size > self.max_size:
            raise ValueError(
                f"Newton: the model must have at most max_size={self.max_size} weights, got {size}, for a step forms "
                f"the {size} x {size} Hessian. Try NewtonCG, which needs products with it alone, or raise max_size."
            )
        return {}

    def iterate(self, f, at, t, h, *, evaluations, products):
        size = at.x.shape[0]
        hessian = ops.map(lambda v: f.hvp(at.x, v), ops.eye(size, dtype=at.x.dtype))
        p = solve_definite(symmetric(hessian), -at.gradient)
        to, trials = descend(f, at, p, h.learning_rate, h.decrease, self.max_evaluations)
        return to, dict(evaluations=ops.add(evaluations, trials), products=products + size)
