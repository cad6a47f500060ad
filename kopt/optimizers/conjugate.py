"""Nonlinear conjugate gradients: directions that keep what the last ones have gained, with memory for two of them."""

from typing import Unpack

from keras import ops

from kopt.math import ratio
from kopt.optimizers.base import Scheduled
from kopt.optimizers.descent import LineSearched, as_before, dot
from kopt.optimizers.minimizer import CommonToMinimizers


class NonlinearCG(LineSearched):
    """TODO."""

    cites = ("hager2006survey",)
    choices = {"beta": ("polak_ribiere", "fletcher_reeves", "hestenes_stiefel", "hager_zhang")}
    ranges = {"restart": "(0, inf]"}

    def __init__(
        self,
        learning_rate: Scheduled = 1.0,
        *,
        beta: str = "polak_ribiere",
        restart: Scheduled = 0.2,
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
        one = super().first(d, slope, learned=learned, change=change)
        return ops.where(learned > 0, as_before(slope, change), one)

    def heading(self, at, h, *, learned, change, d, g):
        new, y = at.gradient, at.gradient - g
        beta = getattr(self, f"_{self.beta}")(new, y, d, g)
        turned = ops.abs(dot(new, g)) > h.restart * dot(new, new)
        return ops.where((learned > 0) & ops.logical_not(turned), beta * d, 0) - new

    def learn(self, move, at, to, h, *, learned, change, d, g):
        return dict(learned=learned + 1, d=move.d, g=at.gradient)

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
