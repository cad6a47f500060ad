"""Hyperparameters of an optimizer: written once, in the signature of `__init__`; all the rest is read from there."""

import functools
import inspect
import re
from typing import Any, ClassVar

import keras
import numpy as np
from keras.optimizers.schedules import LearningRateSchedule

from kopt import _backend
from kopt._checks import check_choice, check_range

RANGES = {
    "learning_rate": "[0, inf)",
    "weight_decay": "[0, inf)",
    "epsilon": "[0, inf)",
    "beta_1": "[0, 1)",
    "beta_2": "[0, 1)",
    "momentum": "[0, 1]",
    "rho": "[0, 1)",
}
"""What the field's names may hold, wherever they occur. A class adds its own names in `ranges`."""


class Hyperparameters:
    """What an optimizer knows of its hyperparameters: ranges, config, parameters, and when they may change.

    The floats of the signature are *inputs* of the compiled step. What was given lies in `_given`; once the
    optimizer is built, a scalar variable each, in `_inputs`, holds the value, and setting the attribute assigns it.
    Everything else in the signature shapes the compiled step, and is fixed once the optimizer is built.
    """

    _given: dict[str, Any]
    _inputs: dict[str, Any] | None

    ranges: ClassVar[dict[str, str]] = {}
    """Intervals of the hyperparameters whose names `RANGES` does not have."""

    @classmethod
    @functools.cache
    def _signature(cls):
        """Every argument of the constructor with its default: learning rate, the class's own, common options."""
        found = {}
        for base in cls.__mro__[: cls.__mro__.index(Hyperparameters)]:
            if "__init__" in vars(base):
                parameters = list(inspect.signature(base.__init__).parameters.values())[1:]
                found = {p.name: p.default for p in parameters if p.kind is not p.VAR_KEYWORD} | found
                if not any(p.kind is p.VAR_KEYWORD for p in parameters):
                    break
        else:
            found = _backend.OPTIMIZER_OPTIONS | {"no_decay": ()} | found
        common = {*_backend.OPTIMIZER_OPTIONS, "no_decay"}
        order = sorted(found, key=lambda name: (name != "learning_rate", name in common))
        return {name: found[name] for name in order}

    @classmethod
    @functools.cache
    def input_names(cls):
        """Returns the names of the hyperparameters that are inputs of the compiled step, besides the learning rate.

        They are the floats of the signature, but for those called `initial_…`, which only fill slots.
        """
        options = {*_backend.OPTIMIZER_OPTIONS, "learning_rate"}
        floats = {name for name, default in cls._signature().items() if isinstance(default, float)}
        return {name for name in floats - options if not name.startswith("initial_")} | {"weight_decay"}

    def _float_inputs(self):
        """The inputs that are numbers: no schedules, no absent decay."""
        return [name for name in self._given if name != "learning_rate" and isinstance(self._given[name], float)]

    def _checked(self, name, value):
        """The value as it is kept: a float, a schedule (not of what only fills slots), or None for no weight decay."""
        if isinstance(value, LearningRateSchedule) and not name.startswith("initial_"):
            return value
        if (name == "learning_rate" and callable(value)) or (name == "weight_decay" and value is None):
            return value
        return float(check_range(self, (RANGES | self.ranges).get(name, "(-inf, inf)"), **{name: value}))

    def __setattr__(self, name, value):
        if name == "learning_rate":
            value, before = self._checked(name, value), self._given[name]
            if self._inputs is not None and (callable(value) or callable(before)) and value != before:
                raise ValueError(self._fixed(name, before, value))
            if callable(before) and not callable(value):  # Keras would assign to the schedule
                self._learning_rate = self._scalar(name, value, keras.config.floatx())
            else:
                super().__setattr__(name, value)
            self._given[name] = value
        elif name in self.input_names():
            self._check_super_called()
            self._set_input(name, self._checked(name, value))
        else:
            if name == "no_decay":
                value = _patterns(type(self).__name__, value)
            elif name in self.ranges:
                value = self._checked(name, value)
            elif isinstance(self._signature().get(name), bool):
                check_choice(self, (True, False), **{name: value})
            if vars(self).get("_inputs") is not None and name in self._signature() and value != getattr(self, name):
                raise ValueError(self._fixed(name, getattr(self, name), value))
            super().__setattr__(name, value)

    def _set_input(self, name, value):
        before = self._given.get(name)
        self._given[name] = value
        if self._inputs is None:
            return
        if possible := name in self._inputs and isinstance(value, float):
            self._inputs[name].assign(value)
            if not (possible := self._same_slots()):
                self._inputs[name].assign(before)
        if not possible:
            self._given[name] = before
            raise ValueError(self._fixed(name, before, value))

    def _fixed(self, name, before, value):
        who = type(self).__name__
        return (
            f"{who}: {name} was {before!r} when the optimizer was built, and the step compiled for that cannot "
            f"take {value!r}. Make a new one: {who}({name}={value!r})."
        )

    def __getattr__(self, name) -> Any:
        given = vars(self).get("_given", {})
        if name not in given:
            raise AttributeError(f"{type(self).__name__} has no attribute {name!r}.")
        return _current(given[name], (self._inputs or {}).get(name))

    def _parameter(self, name):
        """The present value of an argument of the constructor."""
        return _current(self._given[name], self._learning_rate) if name == "learning_rate" else getattr(self, name)

    # ---- Keras's configuration -----------------------------------------------------------------------------------

    def get_config(self):
        """Returns the constructor's arguments, schedules serialized; `from_config` is the way back."""
        config = {name: self._parameter(name) for name in self._signature()}
        return {
            name: keras.saving.serialize_keras_object(value) if callable(value) else value
            for name, value in config.items()
        }

    @classmethod
    def from_config(cls, config, custom_objects=None):
        """Makes an optimizer, without any state, from what `get_config` returned."""
        return cls(
            **{
                name: keras.saving.deserialize_keras_object(value, custom_objects) if isinstance(value, dict) else value
                for name, value in config.items()
            }
        )

    # ---- scikit-learn's parameters -------------------------------------------------------------------------------

    def get_params(self, deep=True):
        """Returns the constructor's arguments, as scikit-learn's estimators do; all but the name."""
        return {name: self._parameter(name) for name in self._signature() if name != "name"}

    def set_params(self, **params):
        """Sets constructor arguments by name and returns the optimizer.

        Raises:
            ValueError: there is no such argument, its value is out of range, or it is fixed since the optimizer
                was built.
        """
        for name, value in params.items():
            if name not in (known := self.get_params()):
                raise ValueError(f"{type(self).__name__} has no parameter {name!r}. It takes {', '.join(known)}.")
            setattr(self, name, value)
        return self

    def __sklearn_clone__(self):
        """Returns an optimizer with the same arguments and no state: what `sklearn.base.clone` gives."""
        return type(self)(**self.get_params() | {"name": self.name})

    def __repr__(self):
        defaults = self._signature()
        changed = {name: value for name, value in self.get_params().items() if value != defaults[name]}
        return f"{type(self).__name__}({', '.join(f'{name}={value!r}' for name, value in changed.items())})"


def _current(given, variable):
    """What a variable holds; in the digits it was given in, if it still holds that."""
    if variable is None or not isinstance(given, float):
        return given
    held = variable.numpy()
    return given if held == np.asarray(given, held.dtype) else float(held)


def _patterns(owner, no_decay):
    patterns = (no_decay,) if isinstance(no_decay, str) else tuple(no_decay)
    for pattern in patterns:
        try:
            re.compile(pattern)
        except (re.error, TypeError) as error:
            raise ValueError(f"{owner}: no_decay must hold regular expressions, got {pattern!r} ({error}).") from None
    return patterns
