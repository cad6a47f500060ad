"""One optimizer after another."""

from collections.abc import Sequence
from numbers import Integral
from typing import Any

import keras
from keras import ops

from kopt._backend import assign, dense, outside_the_trace
from kopt._checks import check_range
from kopt.optimizers.base import Optimizer
from kopt.optimizers.wrapper import check_part


class Switch(Optimizer):
    """Steps with one optimizer for some steps, then with the next: first order first, then second order.

        optimizer = kopt.Switch([(kopt.AdamW(1e-3), 2000), (kopt.LBFGS(), None)])

    The recipe of physics-informed networks: a first-order method finds the valley, a quasi-Newton method its floor.
    Each optimizer begins where the last one ended, with state, options and schedules of its own that count from there.
    `learning_rate` and `weight_decay` are those of the optimizer whose turn it is. Needs `kopt.Model`, or
    `kopt.minimize`.

    Args:
        phases: pairs of a kopt optimizer and its number of steps, from 1; that of the last may be None, for all that
            come.
        name: as in `keras.optimizers.Optimizer`.

    Raises:
        TypeError: a phase is no such pair.
        ValueError: an optimizer is built already, or averages weights; a number of steps is missing or out of range.
    """

    looks = True

    def __init__(self, phases: Sequence[tuple[Optimizer, int | None]], *, name: str | None = None):
        super().__init__(0.0, name=name)
        self._untrack_variable(self._learning_rate)
        del self._given["learning_rate"]
        if not isinstance(phases, Sequence) or not phases or not all(_is_pair(phase) for phase in phases):
            raise TypeError(f"Switch: phases must be pairs of an optimizer and its number of steps, got {phases!r}.")
        for number, (part, steps) in enumerate(phases):
            check_part(self, "inner", part, may_step=True)
            if part.averages:
                raise ValueError(
                    f"Switch: phases must not average weights, got {part!r}. Try kopt.EMA for the last alone."
                )
            if steps is not None or number < len(phases) - 1:
                check_range(f"Switch: phase {number}", "[1, inf)", kind=Integral, steps=steps)
        self.__dict__["phases"] = [tuple(phase) for phase in phases]  # plain, where Keras would track a list of its own

    def _parts(self):
        return [part for part, _ in self.phases]

    def _nodes(self, prefix=""):
        yield prefix, self
        for number, part in enumerate(self._parts()):
            yield from part._nodes(f"{prefix}{number}_")

    def build(self, variables):
        if self.built:
            return
        with outside_the_trace():
            keras.optimizers.Optimizer.build(self, variables)
        for part in self._parts():
            part.build(variables)

    @property
    def variables(self):
        """Its own step counter, and all that the optimizers inside keep."""
        return [*super().variables, *(variable for part in self._parts() for variable in part.variables)]

    def step(self, oracle, variables, apply=None):
        if oracle.scaled:
            raise ValueError("Switch leads several optimizers, which mixed_float16 does not allow yet. Use float32.")
        self.build(variables)
        oracle.loss()  # the first look, outside of any branch; left out of the program where nothing needs it

        def turn(part):
            return lambda: ops.cast(part.step(oracle.at(oracle.weights), variables), "float32")

        loss = ops.switch(self.phase(dense(self._iterations)), [turn(part) for part in self._parts()])
        assign(self._iterations, dense(self._iterations) + 1)
        oracle.report(loss)
        return loss

    def look(self, oracle):
        return oracle.loss(), {}  # in a keras.Model alone, which does not show it and says what to do

    def phase(self, steps) -> Any:
        """The number of the phase after so many steps."""
        phase, end = ops.zeros((), "int32"), 0
        for _, length in self.phases[:-1]:
            end += length
            phase = phase + ops.cast(steps >= end, "int32")
        return phase

    @property
    def current_phase(self):
        """The optimizer whose turn it is."""
        with outside_the_trace():
            return self._parts()[int(ops.convert_to_numpy(self.phase(dense(self.iterations))))]

    def __setattr__(self, name, value):
        if name not in ("learning_rate", "weight_decay"):
            super().__setattr__(name, value)
        elif "phases" in vars(self):  # what comes before is Keras's constructor
            setattr(self.current_phase, name, value)

    def __getattr__(self, name):
        return getattr(self.current_phase, name) if name == "weight_decay" else super().__getattr__(name)

    def _rate_after(self, steps):
        part = self.current_phase
        return part._rate_after(part.iterations)

    def save_own_variables(self, store):
        if not self.built:
            return
        store["steps"] = ops.convert_to_numpy(self.iterations)
        for number, part in enumerate(self._parts()):
            part.save_own_variables(_Under(store, f"phase_{number}."))

    def load_own_variables(self, store):
        if not self.built:
            return
        self.iterations.assign(store["steps"])
        for number, part in enumerate(self._parts()):
            part.load_own_variables(_Under(store, f"phase_{number}."))


class _Under:
    """The entries of a store whose names have a prefix."""

    def __init__(self, store, prefix):
        self.store, self.prefix = store, prefix

    def __getitem__(self, name):
        return self.store[self.prefix + name]

    def __setitem__(self, name, value):
        self.store[self.prefix + name] = value

    def keys(self):
        """The names without the prefix."""
        return [name.removeprefix(self.prefix) for name in self.store.keys() if name.startswith(self.prefix)]  # noqa: SIM118


def _is_pair(phase):
    return isinstance(phase, Sequence) and len(phase) == 2 and not isinstance(phase, str)
