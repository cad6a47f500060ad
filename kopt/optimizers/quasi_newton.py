"""Quasi-Newton methods: curvature that is learned from how the gradient changes from step to step."""

import math
from typing import Unpack

from keras import ops

from kopt._checks import check_range
from kopt.math import ratio
from kopt.optimizers.base import Scheduled
from kopt.optimizers.descent import LineSearched, as_before, dot
from kopt.optimizers.minimizer import CommonToMinimizers


class LBFGS(LineSearched):
    """Limited-memory BFGS.

    TODO
    """

    cites = ("liu1989lbfgs",)
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
        lower, upper = (sign * math.inf if x is None else float(x) for sign, x in zip((-1, 1), value, strict=True))
        check_range(self, f"[{lower}, inf]", **{"bounds: the upper one": upper})
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
        return two_loops(g, S, Y)

    def learn(self, move, at, to, h, *, learned, change, S, Y):
        s, y = move.s, move.y
        expected = -move.length * dot(s, at.gradient)  # sᵀBs, since s = -α B⁻¹g
        short = dot(s, y) < h.damping * expected
        theta = ops.where(short, ratio((1 - h.damping) * expected, expected - dot(s, y)), 1)
        y = theta * y - (1 - theta) * move.length * at.gradient
        good = curved(s, y)
        S, Y = (ops.where(good, ops.concatenate([old[1:], new[None]]), old) for old, new in ((S, s), (Y, y)))
        return dict(learned=learned + ops.cast(good, learned.dtype), S=S, Y=Y)


def two_loops(g, S, Y):
    """-H g, where H is the inverse Hessian of BFGS from the pairs in the rows of S and Y, the newest last"""
    sy, yy = ops.sum(S * Y, 1), ops.sum(Y * Y, 1)
    rho, pairs, alphas = ops.where(sy > 0, ratio(1, sy), 0), range(S.shape[0]), {}
    q, gamma = g, 1
    for i in reversed(pairs):
        alphas[i] = rho[i] * dot(S[i], q)
        q = q - alphas[i] * Y[i]
    for i in pairs:
        gamma = ops.where(rho[i] > 0, ratio(sy[i], yy[i]), gamma)
    r = gamma * q
    for i in pairs:
        r = r + S[i] * (alphas[i] - rho[i] * dot(Y[i], r))
    return -r


def curved(s, y):
    """Whether the gradient has risen along a step, by more than rounding"""
    tiny = 2.0 ** (-52 if s.dtype == "float64" else -23)
    return dot(s, y) > tiny * dot(y, y)


class BFGS(LineSearched):
    """BFGS with the whole inverse Hessian.

    TODO
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
        one = super().first(d, slope, learned=learned, change=change)
        return ops.where(learned > 0, as_before(slope, change), one)

    def heading(self, at, h, *, learned, change, H):
        return ops.where(learned > 0, -times(H, at.gradient), -at.gradient)

    def learn(self, move, at, to, h, *, learned, change, H):
        n = move.s.shape[0]
        H = ops.where(learned > 0, H, ops.eye(n, dtype=H.dtype))
        good = curved(move.s, move.y)
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
    """TODO."""

    def scaling(self, a, b, n):
        return a, ops.minimum(1, 1 / b), 1


class SSBroyden(SSBFGS):
    """TODO."""

    def scaling(self, a, b, n):
        excess = ops.maximum(a * b - 1, 0)  # by Cauchy and Schwarz, up to rounding
        rho = ops.minimum(1, a * (1 - ops.sqrt(excess / (1 + excess))))
        theta = ops.maximum(ratio(rho - 1, excess), ops.minimum(1 / rho, (1 - b) / b))
        sigma = 1 + excess * theta
        root = ops.power(sigma, 1 / (1 - n)) if n > 1 else 1
        tau = ops.where(
            theta > 0, ops.minimum(1, 1 / b) * ops.minimum(root, 1 / theta), ops.minimum(ops.minimum(1, 1 / b) * root, sigma)
        )
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
