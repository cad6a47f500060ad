"""What the methods share that choose a direction and search along it."""

from typing import Any, NamedTuple, Unpack

from keras import ops

from kopt.math import line_search, ratio
from kopt.optimizers.base import Scheduled
from kopt.optimizers.minimizer import CommonToMinimizers, Minimizer, Point


class LineSearched(Minimizer):
    """Base class of the minimizers that choose a direction and search along it.

    A subclass writes the `heading`, and what it learns of a step:

        d ← heading(at, h, **memory)                   -g where that leads up
        x ← x + α d                                    with α from a search along d
        memory ← learn(move, at, to, h, **memory)      as it was, unless `move.success`

    Of the memory, `learned` counts the steps that have been learned from, and `change` is that of the loss in the last
    one. Where `learned` is 0 the rest means nothing: at first, after a search that failed, and where d led up. The step
    then goes down the gradient.

    Args:
        learning_rate: the first length to try, in lengths of the direction.
        line_search: "zoom", "hager_zhang" or "backtracking"; None for zoom where the loss is in float64.
        decrease: how much of what the slope promises the loss has to fall by, in (0, 0.5).
        curvature: which part of the slope may be left, in (decrease, 1).
        max_evaluations: of the loss and its gradient in a search, from 1.
        **common: `stochastic` and `name`.
    """

    choices = {"line_search": ("zoom", "hager_zhang", "backtracking")}
    ranges = {"decrease": "(0, 0.5)", "curvature": "(0, 1)"}
    integers = {"max_evaluations": "[1, inf)"}

    def __init__(
        self,
        learning_rate: Scheduled = 1.0,
        *,
        line_search: str | None = None,
        decrease: Scheduled = 1e-4,
        curvature: Scheduled = 0.9,
        max_evaluations: int = 30,
        **common: Unpack[CommonToMinimizers],
    ):
        super().__init__(learning_rate, **common)
        self.line_search, self.decrease, self.curvature = line_search, decrease, curvature
        self.max_evaluations = max_evaluations

    # ---- what a method writes --------------------------------------------------------------------------------------

    def memory(self, size):
        return dict(learned=(), change=())

    def heading(self, at, h, **memory):
        """Returns the direction to search along."""
        raise NotImplementedError(f"{type(self).__name__} must define heading(at, h, **memory).")

    def learn(self, move, at, to, h, *, learned, change, **memory) -> dict[str, Any]:
        """Returns the new memory, without `change`."""
        raise NotImplementedError(f"{type(self).__name__} must define learn(move, at, to, h, **memory).")

    def first(self, d, slope, /, *, learned, change, **memory):
        """The length to try first: 1, but where nothing is known that of a step of length 1 at most."""
        return ops.where(learned > 0, 1, ops.minimum(1, ratio(1, ops.sqrt(dot(d, d)))))

    def allowed(self, x):
        """The allowed point that is nearest to x."""
        return x

    def pull(self, at):
        """The gradient, without its entries that push against a bound."""
        return at.gradient

    # ---- the iteration ---------------------------------------------------------------------------------------------

    def iterate(self, f, at, t, h, *, evaluations, products, **memory):
        d = self.heading(at, h, **memory)
        down = dot(d, at.gradient) < 0
        memory["learned"] = ops.where(down, memory["learned"], 0)
        d = ops.where(down, d, -self.pull(at))
        slope = dot(d, at.gradient)

        def phi(length):
            ahead = at.x + length * d
            x = self.allowed(ahead)
            value, gradient = f(x)
            return value, dot(gradient, ops.where(x == ahead, d, 0)), gradient

        first = h.learning_rate * self.first(d, slope, **memory)
        name = self.line_search or ("zoom" if f.loss_dtype == "float64" else "hager_zhang")
        wolfe = {} if name == "backtracking" else dict(curvature=h.curvature)
        search = getattr(line_search, name)
        start = at.value, slope, at.gradient
        step = search(phi, start, first, decrease=h.decrease, **wolfe, most=self.max_evaluations)
        x = ops.where(step.length > 0, self.allowed(at.x + step.length * d), at.x)
        to = Point(x, step.value, step.rest)
        move = Move(d, slope, step.length, x - at.x, step.rest - at.gradient, step.success)
        new = self.learn(move, at, to, h, **memory)
        failed = (step.evaluations > 0) & ops.logical_not(step.success)
        new["learned"] = ops.where(failed, 0, new["learned"])
        new["change"] = ops.where(step.success, step.value - at.value, memory["change"])
        evaluations = evaluations + ops.cast(step.evaluations, evaluations.dtype)
        return to, dict(evaluations=evaluations, products=products) | new


class Move(NamedTuple):
    """A step, and what is to be learned of it.

    Attributes:
        d: the direction.
        slope: along it, at the start.
        length: of the step along it.
        s: the change of the weights.
        y: the change of the gradient.
        success: whether the search has found what it looks for.
    """

    d: Any
    slope: Any
    length: Any
    s: Any
    y: Any
    success: Any

    @property
    def curved(self):
        """Whether the search has succeeded, and the gradient has risen along the step by more than rounding."""
        tiny = 2.0 ** (-52 if self.s.dtype == "float64" else -23)
        return self.success & (dot(self.s, self.y) > tiny * dot(self.y, self.y))


def as_before(slope, change, learned):
    """The length at which a parabola of this slope falls by as much as the last step did, and 1 % more; 1 at most.

    Where nothing is known, that of a step of about length 1 down the gradient: all as in scipy.
    """
    change = ops.where(learned > 0, change, -0.5 * ops.sqrt(ops.maximum(-slope, 0)))
    length = 2.02 * ratio(change, slope)
    return ops.where((length > 0) & (length < 1), length, 1)


def dot(a, b):
    """⟨a, b⟩"""
    return ops.sum(a * b)
