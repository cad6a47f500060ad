"""Optimizers that see all weights as one vector, and look at the data set as often as a step needs."""

import math
from typing import Any, ClassVar, NamedTuple, TypedDict

import keras
import numpy as np
from keras import ops

from kopt._backend import assign, dense, outside_the_trace
from kopt.optimizers.base import Optimizer, Scheduled
from kopt.optimizers.packs import Slot


class Point(NamedTuple):
    """Where a minimizer is: the weights as one vector, and the loss and its gradient there."""

    x: Any
    value: Any
    gradient: Any


class Objective:
    """The loss of a batch as a function of one vector, in which the weights lie end to end.

    Args:
        oracle: a `kopt.training.Oracle`.
        dtype: of the vector.
        loss_dtype: in which the loss is computed: Keras does so in `keras.config.floatx()`, whatever the weights are.
    """

    def __init__(self, oracle, dtype, loss_dtype=None):
        self.oracle, self.dtype, self.loss_dtype = oracle, dtype, loss_dtype or dtype
        self._shapes = [tuple(w.shape) for w in oracle.weights]

    def join(self, tensors):
        """One vector of a tensor for each weight; zeros in the place of None."""
        parts = [
            ops.zeros(math.prod(shape), self.dtype) if x is None else ops.reshape(ops.cast(x, self.dtype), (-1,))
            for x, shape in zip(tensors, self._shapes, strict=True)
        ]
        return ops.concatenate(parts)

    def split(self, x):
        """The inverse of `join`, in the weights' own types."""
        ends = np.cumsum([math.prod(shape) for shape in self._shapes])[:-1].tolist()
        parts = zip(ops.split(x, ends) if ends else [x], self._shapes, self.oracle.weights, strict=True)
        return [ops.cast(ops.reshape(part, shape), w.dtype) for part, shape, w in parts]

    def at(self, x):
        """The oracle at these weights."""
        return self.oracle.at(self.split(x))

    def __call__(self, x):
        """Returns the loss and its gradient."""
        loss, grads = self.at(x)()
        return ops.cast(loss, self.dtype), self.join(grads)

    def value(self, x):
        """Returns the loss."""
        return ops.cast(self.at(x).loss(), self.dtype)

    def hvp(self, x, v):
        """Returns the Hessian of the loss times a vector."""
        return self.join(self.at(x).hvp(self.split(v)))

    def gnvp(self, x, v):
        """Returns the generalized Gauss-Newton matrix of the loss times a vector."""
        return self.join(self.at(x).gnvp(self.split(v)))


class CommonToMinimizers(TypedDict, total=False):
    """What every minimizer takes besides its own hyperparameters."""

    stochastic: bool
    name: str | None


class Minimizer(Optimizer):
    """Base class of the methods that see all weights as one vector and the data set as one batch.

    A subclass writes its hyperparameters, the `memory` that it keeps from step to step, and `iterate`, which takes one
    iteration: pure, on tensors, with `kopt.optimizers.minimizer.Objective` to ask.

        point, memory ← iterate(f, point, t, h, **memory)

    `f(x)` is the loss and its gradient, `f.value(x)`, `f.hvp(x, v)` and `f.gnvp(x, v)` are the loss and products with
    the Hessian and the Gauss-Newton matrix. A `Point` has `x`, `value` and `gradient`; those of the point that is
    returned are what the next iteration begins with, so that nothing is computed twice. `memory` always has
    `evaluations`, how often the loss and its gradient were evaluated, and `products`, how often a product with the
    curvature was taken: `iterate` adds its own to them.

    Needs `kopt.Model`, whose `fit` gives such an optimizer all rows at once, or `kopt.minimize`.

    Args:
        learning_rate: the length of the first step that is tried along a direction, in [0, inf); 1 suits all methods
            that scale their directions themselves.
        stochastic: whether the loss is another function at each step, as with mini-batches: its value and gradient at
            the weights at hand are then not taken from the last step, but evaluated anew. With dropout they always are.
        name: as in `keras.optimizers.Optimizer`.
    """

    looks = True

    remembers: ClassVar[bool] = True
    """Whether an iteration begins with the loss and its gradient; if not, its `Point` has no gradient."""

    def __new__(cls, *args, **kwargs):
        """Names an argument that there is not."""
        new = super().__new__(cls)
        if unknown := kwargs.keys() - cls._signature().keys():
            raise TypeError(new._no_such("argument", min(unknown)))
        return new

    def __init__(self, learning_rate: Scheduled = 1.0, *, stochastic: bool = False, name: str | None = None):
        super().__init__(learning_rate, name=name)
        self.stochastic = stochastic

    # ---- what a method writes --------------------------------------------------------------------------------------

    def memory(self, size) -> dict[str, Slot | tuple[int, ...]]:
        """What is kept from step to step for so many weights, by name; a bare shape starts at zero."""
        return {}

    def iterate(self, f, at, t, h, **memory) -> tuple[Point, dict[str, Any]]:
        """Returns the next `Point` and the new memory: one iteration of the method."""
        raise NotImplementedError(f"{type(self).__name__} must define iterate(f, at, t, h, **memory).")

    def look(self, oracle):
        return oracle.loss(), {}  # in a keras.Model alone, which does not show it and says what to do

    # ---- what the base does ----------------------------------------------------------------------------------------

    def build(self, variables):
        """Makes the memory for these variables, once.

        Args:
            variables: the trainable `keras.Variable`s, in float32 or float64.

        Raises:
            ValueError: one of them has another type.
        """
        if self.built:
            return
        for variable in variables:
            if variable.dtype not in ("float32", "float64"):
                raise ValueError(
                    f"{type(self).__name__}: weights must be float32 or float64, got {variable.dtype} for "
                    f"{variable.path}, whose rounding hides small decreases of the loss."
                )
        super().build(variables)
        size = sum(math.prod(variable.shape) for variable in variables)
        unknown = dict(x=Slot((size,), math.nan), value=Slot((), math.nan), gradient=Slot((size,), math.nan))
        kept: dict[str, Any] = unknown if self.remembers else {}
        kept |= dict(evaluations=(), products=()) | self.memory(size)
        with outside_the_trace():
            self.__dict__["_memory"] = {name: self._kept_variable(name, slot) for name, slot in kept.items()}

    def _kept_variable(self, name, slot):
        slot = slot if isinstance(slot, Slot) else Slot(slot)

        def initial(shape, dtype):
            return ops.full(shape, slot.initial, dtype)

        return self.add_variable(slot.shape, initial, slot.dtype or self._wide, name=name)

    def step(self, oracle, variables, apply=None):
        if oracle.replicas > 1 or oracle.scaled:
            where = "mixed_float16" if oracle.scaled else "Keras's own loop over several replicas"
            raise ValueError(
                f"{type(self).__name__} evaluates the loss in loops, which cannot be in {where}. Use kopt.Model in "
                "float32, with run_eagerly=False."
            )
        self.build(variables)
        loss = oracle.loss()  # the first look, outside of any loop; left out of the program where nothing needs it
        f = Objective(oracle, self._wide, keras.backend.standardize_dtype(loss.dtype))
        memory = {name: dense(x) for name, x in self._memory.items()}
        x = f.join(oracle.weights)
        at = self._start(f, x, memory) if self.remembers else Point(x, ops.cast(loss, self._wide), None)
        own = {name: memory[name] for name in memory if not self.remembers or name not in Point._fields}
        t = ops.cast(self._taken() + 1, self._wide)
        to, new = self.iterate(f, at, t, self.current(), **own)
        if new.keys() != own.keys():
            raise ValueError(f"{type(self).__name__}: iterate must return the memory {sorted(own)}, got {sorted(new)}.")
        for variable, value in zip(variables, f.split(to.x), strict=True):
            assign(variable, value)
        for name, value in (new | (to._asdict() if self.remembers else {})).items():
            assign(self._memory[name], value)
        assign(self._iterations, dense(self._iterations) + 1)
        oracle.report(at.value)
        return at.value

    def _start(self, f, x, memory):
        """The point to begin with: as the last step left it, where the weights and the loss are still the same."""

        def look():
            value, gradient = f(x)
            return value, gradient, memory["evaluations"] + 1

        def last():
            return memory["value"], memory["gradient"], memory["evaluations"]

        anew = self.stochastic or f.oracle.noisy
        value, gradient, count = look() if anew else ops.cond(ops.all(x == memory["x"]), last, look)
        memory["evaluations"] = count
        return Point(x, value, gradient)

    def forget(self):
        """Lets the next step evaluate the loss anew, since it may be another function now."""
        if self.built and self.remembers:
            self._memory["x"].assign(ops.full_like(self._memory["x"], math.nan))

    def measured(self):
        """The loss and the largest entry of its gradient, as the last step left them; NaN where it kept none."""
        if not self.remembers:
            return math.nan, math.nan
        slopes = ops.abs(dense(self._memory["gradient"]))
        largest = ops.where(ops.all(ops.isfinite(slopes)), ops.max(slopes), math.nan)  # XLA's maximum passes NaN over
        return dense(self._memory["value"]), largest

    def _count(self, name):
        return int(ops.convert_to_numpy(self._memory[name])) if self.built else 0

    @property
    def evaluations(self):
        """How often the loss and its gradient were evaluated."""
        return self._count("evaluations")

    @property
    def products(self):
        """How often a product with the curvature was taken."""
        return self._count("products")
