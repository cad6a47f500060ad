"""BFGS and its self-scaled relatives: an inverse Hessian that each step corrects."""

import math
from typing import Unpack

from keras import ops

from kopt.math import ratio
from kopt.optimizers.base import Scheduled
from kopt.optimizers.descent import LineSearched, as_before, dot
from kopt.optimizers.minimizer import CommonToMinimizers


class BFGS(LineSearched):
    """BFGS: an estimate of the whole inverse Hessian, which each step corrects.

        d = -H g
        x ← x + α d     α by a search along d
        H ← (I - s yᵀ / sᵀy) H (I - y sᵀ / sᵀy) + s sᵀ / sᵀy,    with s = Δx, y = Δg

    For up to a few thousand weights, where it takes fewer evaluations than `kopt.LBFGS` on hard problems, as
    physics-informed networks are. Keeps n² numbers. Best in float64. Needs `kopt.Model`.

    The first length that is tried is that at which the loss would fall as in the last step, and 1 at most, as in
    scipy.

    Args:
        learning_rate: a factor of the first length to try, in [0, inf).
        initial_scaling: whether the first step scales H = I to the curvature that it finds (Nocedal and Wright, 6.20).
        max_size: largest number of weights, from 1.
        line_search: "zoom" (strong Wolfe conditions), "hager_zhang" (approximate ones, which rounding does not hide)
            or "backtracking" (Armijo's alone); None for zoom where the loss is in float64, and else Hager-Zhang.
        decrease: how much of what the slope promises the loss has to fall by, in (0, 0.5).
        curvature: which part of the slope may be left, in (0, 1).
        max_evaluations: of the loss and its gradient in one search, from 1.
        **common: `stochastic` and `name`.

    References:
        Nocedal and Wright, *Numerical Optimization*, 2006. https://doi.org/10.1007/978-0-387-40065-5
    """

    cites = ("nocedal2006numerical",)
    integers = {"max_size": "[1, inf)"}

    def __init__(
        self,
        learning_rate: Scheduled = 1.0,
        *,
        initial_scaling: bool = False,
        max_size: int = 5000,
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
        self.initial_scaling, self.max_size = initial_scaling, max_size

    def build(self, variables):
        size = sum(math.prod(variable.shape) for variable in variables)
        if size > self.max_size:
            raise ValueError(
                f"{type(self).__name__}: max_size is {self.max_size} weights, got {size}, whose inverse Hessian has "
                f"{size**2} entries. Use LBFGS."
            )
        super().build(variables)

    def memory(self, size):
        return super().memory(size) | dict(H=(size, size))

    def first(self, d, slope, /, *, learned, change, H):
        return as_before(slope, change, learned)

    def heading(self, at, h, *, learned, change, H):
        return ops.where(learned > 0, -times(H, at.gradient), -at.gradient)

    def learn(self, move, at, to, h, *, learned, change, H):
        n = H.shape[0]
        H = ops.where(learned > 0, H, ops.eye(n, dtype=H.dtype))
        good = move.curved
        s, y = ops.where(good, move.s, 1), ops.where(good, move.y, 1)
        Hy, sy = times(H, y), dot(s, y)
        at_first, tau, phi = self.scaling(dot(y, Hy) / sy, -move.length * dot(s, at.gradient) / sy, n)
        if self.initial_scaling:
            tau = ops.where(learned > 0, tau, at_first)
        return dict(learned=learned + ops.cast(good, H.dtype), H=ops.where(good, broyden(H, s, y, Hy, tau, phi), H))

    def scaling(self, a, b, n):
        """τ at first, τ, and φ, of a = yᵀHy / sᵀy, b = sᵀBs / sᵀy and the number of weights."""
        return a, 1, 1


class SSBFGS(BFGS):
    """Self-scaled BFGS: shrinks what is too large in H before each update.

        τ = min(1, sᵀy / sᵀBs)          sᵀBs = -α sᵀg
        H ← BFGS's update of H / τ

    Al-Baali's scaling, for hard problems such as physics-informed networks, where H from early steps is off by orders
    of magnitude. All else as in `kopt.BFGS`.

    Args:
        learning_rate: a factor of the first length to try, in [0, inf).
        initial_scaling: whether the first step scales by what it finds instead.
        max_size: largest number of weights, from 1.
        line_search: "zoom" (strong Wolfe conditions), "hager_zhang" (approximate ones, which rounding does not hide)
            or "backtracking" (Armijo's alone); None for zoom where the loss is in float64, and else Hager-Zhang.
        decrease: how much of what the slope promises the loss has to fall by, in (0, 0.5).
        curvature: which part of the slope may be left, in (0, 1).
        max_evaluations: of the loss and its gradient in one search, from 1.
        **common: `stochastic` and `name`.

    References:
        Urbán, Stefanou and Pons, *Unveiling the Optimization Process of Physics Informed Neural Networks: How Accurate
        and Competitive Can PINNs Be?*, 2025. https://arxiv.org/abs/2405.04230
    """

    cites = ("urban2025unveiling",)

    def scaling(self, a, b, n):
        return a, ops.minimum(1, 1 / b), 1


class SSBroyden(BFGS):
    """Self-scaled Broyden: chooses at each step among the updates of Broyden's family, and scales besides.

        a = yᵀHy / sᵀy,    b = sᵀBs / sᵀy,    c = √((ab - 1) / ab)
        ρ = min(1, a (1 - c)),    θ = max((ρ - 1) / (ab - 1), min(1 / ρ, (1 - b) / b)),    σ = 1 + (ab - 1) θ
        τ = min(1, 1/b) min(σ^(1/(1-n)), 1/θ) if θ > 0, else min(min(1, 1/b) σ^(1/(1-n)), σ)
        H ← (H - Hy yᵀH / yᵀHy + φ yᵀHy v vᵀ) / τ + s sᵀ / sᵀy,    with v = s / sᵀy - Hy / yᵀHy,  φ = (1 - θ) / σ

    θ = 0 is BFGS, and θ = 1 is DFP. In the paper the most accurate of these methods on most physics-informed networks.
    All else as in `kopt.BFGS`.

    Args:
        learning_rate: a factor of the first length to try, in [0, inf).
        initial_scaling: whether the first step scales by what it finds instead.
        max_size: largest number of weights, from 1.
        line_search: "zoom" (strong Wolfe conditions), "hager_zhang" (approximate ones, which rounding does not hide)
            or "backtracking" (Armijo's alone); None for zoom where the loss is in float64, and else Hager-Zhang.
        decrease: how much of what the slope promises the loss has to fall by, in (0, 0.5).
        curvature: which part of the slope may be left, in (0, 1).
        max_evaluations: of the loss and its gradient in one search, from 1.
        **common: `stochastic` and `name`.

    References:
        Kiyani, Shukla, Urbán, Darbon and Karniadakis, *Optimizing the Optimizer for Physics-Informed Neural Networks
        and Kolmogorov-Arnold Networks*, 2025. https://arxiv.org/abs/2501.16371
    """

    cites = ("kiyani2025optimizing",)

    def scaling(self, a, b, n):
        excess = ops.maximum(a * b - 1, 0)  # by Cauchy and Schwarz, but for rounding
        rho = ops.minimum(1, a * (1 - ops.sqrt(excess / (1 + excess))))
        theta = ops.maximum(ratio(rho - 1, excess), ops.minimum(1 / rho, (1 - b) / b))
        sigma = 1 + excess * theta
        shrink, root = ops.minimum(1, 1 / b), ops.power(sigma, 1 / (1 - n)) if n > 1 else 1
        tau = ops.where(theta > 0, shrink * ops.minimum(root, 1 / theta), ops.minimum(shrink * root, sigma))
        return a / sigma, tau, (1 - theta) / sigma


def broyden(H, s, y, Hy, tau, phi):
    """(H - Hy yᵀH / yᵀHy + φ yᵀHy v vᵀ) / τ + s sᵀ / sᵀy,    with v = s / sᵀy - Hy / yᵀHy"""
    sy, yHy = dot(s, y), dot(y, Hy)
    ss, cross, HyHy = phi * yHy / sy**2 / tau + 1 / sy, -phi / sy / tau, (phi - 1) / yHy / tau
    left = ops.stack([ss * s + cross * Hy, cross * s + HyHy * Hy], 1)
    return H / tau + ops.matmul(left, ops.stack([s, Hy]))


def times(A, x):
    """A x"""
    return ops.matmul(A, x[:, None])[:, 0]
