"""Nonlinear conjugate gradients: directions that keep what the last ones have gained, with memory for two of them."""

import math
from typing import Unpack

from keras import ops

from kopt.math import ratio
from kopt.optimizers.base import Scheduled
from kopt.optimizers.descent import LineSearched, as_before, dot
from kopt.optimizers.minimizer import CommonToMinimizers


class NonlinearCG(LineSearched):
    """Nonlinear conjugate gradients: each direction keeps what the last one has gained.

        d ← -g + β d
        x ← x + α d     α by a search along d

        polak_ribiere       β = max(⟨g, y⟩ / ‖g₋‖², 0)          y = g - g₋
        fletcher_reeves     β = ‖g‖² / ‖g₋‖²
        hestenes_stiefel    β = ⟨g, y⟩ / ⟨d, y⟩
        hager_zhang         β = max(⟨y - 2 d ‖y‖² / ⟨d, y⟩, g⟩ / ⟨d, y⟩, -1 / (‖d‖ min(0.01, ‖g₋‖)))

    For so many weights that `kopt.LBFGS` has no room for its pairs: this keeps two vectors. It needs a closer search,
    of about two evaluations, and more steps. Starts anew from -g where d leads up or a search has failed, and where
    successive gradients are far from orthogonal: |⟨g, g₋⟩| > `restart` ‖g‖². Needs `kopt.Model`.

    Args:
        learning_rate: a factor of the first length to try, in [0, inf). That is the length at which the loss would
            fall as in the last step, as in scipy.
        beta: "polak_ribiere", "fletcher_reeves", "hestenes_stiefel" or "hager_zhang".
        restart: how far from orthogonal gradients may be, in (0, inf]. Powell's 0.2 is for "fletcher_reeves", which
            does not find back by itself from a step that was too short, as the others do.
        line_search: "zoom" (strong Wolfe conditions), "hager_zhang" (approximate ones, which rounding does not hide)
            or "backtracking" (Armijo's alone); None for zoom where the loss is in float64, and else Hager-Zhang.
        decrease: how much of what the slope promises the loss has to fall by, in (0, 0.5).
        curvature: which part of the slope may be left, in (0, 1).
        max_evaluations: of the loss and its gradient in one search, from 1.
        **common: `stochastic` and `name`.

    References:
        Nocedal and Wright, *Numerical Optimization*, 2006. https://doi.org/10.1007/978-0-387-40065-5

        Hager and Zhang, *A New Conjugate Gradient Method with Guaranteed Descent and an Efficient Line Search*, 2005.
        https://doi.org/10.1137/030601880
    """

    cites = ("hager2005conjugate", "nocedal2006numerical")
    choices = {"beta": ("polak_ribiere", "fletcher_reeves", "hestenes_stiefel", "hager_zhang")}
    ranges = {"restart": "(0, inf]"}

    def __init__(
        self,
        learning_rate: Scheduled = 1.0,
        *,
        beta: str = "polak_ribiere",
        restart: Scheduled = math.inf,
        line_search: str | None = None,
        decrease: Scheduled = 1e-4,
        curvature: Scheduled = 0.1,
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
        self.beta, self.restart = beta, restart

    def memory(self, size):
        return super().memory(size) | dict(d=(size,), g=(size,))

    def first(self, d, slope, /, *, learned, change, **memory):
        return as_before(slope, change, learned)

    def heading(self, at, h, *, learned, change, d, g):
        new, y = at.gradient, at.gradient - g
        beta = getattr(self, f"_{self.beta}")(new, y, d, g)
        turned = ops.abs(dot(new, g)) > h.restart * dot(new, new)
        return ops.where((learned > 0) & ops.logical_not(turned), beta * d, 0) - new

    def learn(self, move, at, to, h, *, learned, change, d, g):
        went = move.success
        new = learned + ops.cast(went, learned.dtype)
        return dict(learned=new, d=ops.where(went, move.d, d), g=ops.where(went, at.gradient, g))

    @staticmethod
    def _polak_ribiere(new, y, d, g):
        """max(⟨g₊, y⟩ / ‖g‖², 0)"""
        return ops.maximum(ratio(dot(new, y), dot(g, g)), 0)

    @staticmethod
    def _fletcher_reeves(new, y, d, g):
        """‖g₊‖² / ‖g‖²"""
        return ratio(dot(new, new), dot(g, g))

    @staticmethod
    def _hestenes_stiefel(new, y, d, g):
        """⟨g₊, y⟩ / ⟨d, y⟩"""
        return ratio(dot(new, y), dot(d, y))

    @staticmethod
    def _hager_zhang(new, y, d, g):
        """⟨y - 2 d ‖y‖² / ⟨d, y⟩, g₊⟩ / ⟨d, y⟩, at least -1 / (‖d‖ min(0.01, ‖g‖))"""
        dy = dot(d, y)
        least = -ratio(1, ops.sqrt(dot(d, d)) * ops.minimum(0.01, ops.sqrt(dot(g, g))))
        return ops.maximum(ratio(dot(new, y) - 2 * dot(new, d) * ratio(dot(y, y), dy), dy), least)
