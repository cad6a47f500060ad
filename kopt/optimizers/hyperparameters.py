"""Hyperparameters of an optimizer: written once, in the signature of `__init__`; all the rest is read from there."""

import difflib
import functools
import inspect
import re
from collections.abc import Mapping
from numbers import Integral
from typing import Any, ClassVar

import keras
import numpy as np
from keras.optimizers.schedules import LearningRateSchedule

from kopt import _backend
from kopt._checks import check_choice, check_range
from kopt._keras import OPTIMIZER_OPTIONS

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

OPTIONS = {"no_decay": (), "groups": {}, "skip_nonfinite": False}
"""The options that every kopt optimizer takes besides those of Keras's, with their defaults."""


class Hyperparameters:
    """What an optimizer knows of its hyperparameters: ranges, config, parameters, and when they may change.

    The floats of the signature are *inputs* of the compiled step. What was given lies in `_given`; once the
    optimizer is built, a scalar variable each, in `_inputs`, holds the value, and setting the attribute assigns it.
    Everything else in the signature shapes the compiled step, and is fixed once the optimizer is built.
    """

    _given: dict[str, Any]
    _inputs: dict[str, Any] | None

    ranges: ClassVar[dict[str, str]] = {}
    """Intervals of the numbers whose names `RANGES` does not have. A class adds to its parents'."""

    integers: ClassVar[dict[str, str]] = {}
    """Intervals of the integers."""

    choices: ClassVar[dict[str, tuple]] = {}
    """What arguments that are no numbers may be."""

    patterns: ClassVar[tuple[str, ...]] = ("no_decay",)
    """Arguments that hold a regular expression or several."""

    idle: ClassVar[tuple[str, ...]] = ()
    """Hyperparameters of optimizers inside that play no part there, as in `heading__learning_rate`."""

    @classmethod
    @functools.cache
    def _declared(cls, kind):
        """What a class and its parents declare as `ranges`, `integers`, `choices` or `patterns`, by argument."""
        found = dict(RANGES) if kind == "ranges" else {}
        for base in reversed(cls.__mro__):
            own = vars(base).get(kind, {})
            found |= own if isinstance(own, dict) else dict.fromkeys(own)
        return found

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
            found = OPTIMIZER_OPTIONS | OPTIONS | found
        common = {*OPTIMIZER_OPTIONS, *OPTIONS}
        order = sorted(found, key=lambda name: (name != "learning_rate", name in common))
        return {name: found[name] for name in order}

    @classmethod
    @functools.cache
    def input_names(cls):
        """Returns the names of the hyperparameters that are inputs of the compiled step, besides the learning rate.

        They are the floats of the signature, but for those called `initial_…`, which only fill slots.
        """
        options = {*OPTIMIZER_OPTIONS, "learning_rate"} - {"weight_decay"}
        floats = {name for name, x in cls._signature().items() if isinstance(x, float) or name == "weight_decay"}
        return {name for name in floats - options if not name.startswith("initial_")}

    def _float_inputs(self):
        """The inputs that are numbers: no schedules, no absent decay."""
        return [name for name in self._given if name != "learning_rate" and isinstance(self._given[name], float)]

    def _checked(self, name, value):
        """The value of an input as it is kept: a float, a schedule, or None for no weight decay."""
        interval = self._declared("ranges").get(name, "(-inf, inf)")
        if isinstance(value, LearningRateSchedule):
            self._check_schedule(name, value, interval)
            return value
        if (name == "learning_rate" and callable(value)) or (name == "weight_decay" and value is None):
            return value
        return float(check_range(self, interval, **{name: value}))

    def _check_schedule(self, name, schedule, interval):
        """Asks a schedule for its first value, which has to be a number in the interval."""
        value = schedule(0)
        try:
            value = float(keras.ops.convert_to_numpy(value))
        except (TypeError, ValueError):
            raise TypeError(
                f"{type(self).__name__}: {name} must be a schedule that returns a number at each step, got {value!r} "
                "at step 0."
            ) from None
        check_range(f"{type(self).__name__}: at step 0", interval, **{name: value})

    def __setattr__(self, name, value):
        if name == "learning_rate":
            self._set_learning_rate(self._checked(name, value))
        elif name in self.input_names():
            self._check_super_called()
            self._set_input(name, self._checked(name, value))
        else:
            value = self._checked_option(name, value)
            if vars(self).get("_inputs") is not None and name in self._signature() and value != getattr(self, name):
                raise ValueError(self._fixed(name, getattr(self, name), value))
            if name == "groups":
                self.__dict__[name] = value  # plain, where Keras would make a tracked dictionary of it
            else:
                super().__setattr__(name, value)

    def _set_learning_rate(self, value):
        before = self._given["learning_rate"]
        if self._inputs is not None and (callable(value) or callable(before)) and value != before:
            raise ValueError(self._fixed("learning_rate", before, value))
        if callable(before) and not callable(value):  # Keras would assign to the schedule
            self._learning_rate = self._scalar("learning_rate", value)
        else:
            super().__setattr__("learning_rate", value)
        self._given["learning_rate"] = value

    @classmethod
    def check_argument(cls, name, value):
        """Raises what the constructor would raise about the value of one argument, and makes no variable.

        Raises:
            TypeError: the value is of the wrong type.
            ValueError: the value is out of its range.
        """
        bare = object.__new__(cls)
        is_input = name == "learning_rate" or name in cls.input_names()
        (bare._checked if is_input else bare._checked_option)(name, value)

    def _checked_option(self, name, value):
        """The value of what is no input, as it is kept."""
        if name in self._declared("patterns"):
            return checked_patterns(type(self).__name__, name, value)
        if name == "groups":
            return self._groups(value)
        default = self._signature().get(name, value)
        if value is None and default is None:
            return None
        if name in (integers := self._declared("integers")):
            return int(check_range(self, integers[name], kind=Integral, **{name: value}))
        if name in (choices := self._declared("choices")):
            return check_choice(self, choices[name], **{name: value})
        if name in (ranges := self._declared("ranges")):
            return float(check_range(self, ranges[name], **{name: value}))
        return check_choice(self, (True, False), **{name: value}) if isinstance(default, bool) else value

    def _groups(self, groups):
        """Factors by pattern, checked."""
        who = type(self).__name__
        if not isinstance(groups, Mapping) or not all(isinstance(factors, Mapping) for factors in groups.values()):
            raise TypeError(
                f"{who}: groups must map patterns to factors, as in {{'bias': {{'learning_rate': 2}}}}, got {groups!r}."
            )
        checked_patterns(who, "groups", groups)
        for factors in groups.values():
            for name, value in factors.items():
                check_choice(f"{who}: groups", ("learning_rate", "weight_decay"), factor=name)
                check_range(f"{who}: groups", "[0, inf)", **{name: value})
        return {pattern: {n: float(x) for n, x in factors.items()} for pattern, factors in groups.items()}

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

    def _nodes(self, prefix=""):
        """Yields this optimizer and those inside it, each with the prefix of its variables' names."""
        yield prefix, self

    def _make_inputs(self, root, prefix):
        """Makes a variable of each number, kept by the outermost optimizer."""
        rate = self._given.get("learning_rate")
        if isinstance(rate, float) and (self is not root or self._learning_rate.dtype != root._wide):
            self._untrack_variable(self._learning_rate)  # Keras made a float32 of it
            self._learning_rate = root._scalar(f"{prefix}learning_rate", rate)
        inputs = {name: root._scalar(prefix + name, self._given[name]) for name in self._float_inputs()}
        self.__dict__.update(_inputs=inputs)

    def _own_numbers(self, step):
        """The hyperparameters after so many steps."""
        numbers = {name: given(step) for name, given in self._given.items() if isinstance(given, LearningRateSchedule)}
        if "learning_rate" in self._given and "learning_rate" not in numbers:
            numbers["learning_rate"] = self._rate_after(step)
        return numbers | (self._inputs or {})

    def _no_such(self, noun, name):
        known = list(self._signature())
        near = difflib.get_close_matches(name, known, n=1)
        hint = f" Did you mean {near[0]!r}?" if near else ""
        return f"{type(self).__name__} takes no {noun} {name!r}, but {', '.join(known)}.{hint}"

    def _parameter(self, name):
        """The present value of an argument of the constructor."""
        return _current(self._given[name], self._learning_rate) if name == "learning_rate" else getattr(self, name)

    # ---- Keras's configuration -----------------------------------------------------------------------------------

    def get_config(self):
        """Returns the constructor's arguments, schedules and optimizers serialized; `from_config` is the way back."""
        return {name: _to_config(self._parameter(name)) for name in self._signature()}

    @classmethod
    def from_config(cls, config, custom_objects=None):
        """Makes an optimizer, without any state, from what `get_config` returned."""
        return cls(**{name: _from_config(value, custom_objects) for name, value in config.items()})

    # ---- scikit-learn's parameters -------------------------------------------------------------------------------

    def get_params(self, deep=True):
        """Returns the constructor's arguments, as scikit-learn's estimators do; all but the name.

        Args:
            deep: whether to add the arguments of optimizers inside, as in `inner__beta_1`.
        """
        params = {name: self._parameter(name) for name in self._signature() if name != "name"}
        inside = {n: p for n, p in params.items() if deep and isinstance(p, Hyperparameters)}
        return params | {f"{n}__{name}": x for n, part in inside.items() for name, x in part.get_params().items()}

    def set_params(self, **params):
        """Sets constructor arguments by name and returns the optimizer.

        Raises:
            ValueError: there is no such argument, its value is out of range, or it is fixed since the optimizer
                was built.
        """
        for name, value in params.items():
            if name not in self.get_params():
                raise ValueError(self._no_such("parameter", name))
            part, _, inside = name.partition("__")
            if inside:
                getattr(self, part).set_params(**{inside: value})
            else:
                setattr(self, name, value)
        return self

    def __sklearn_clone__(self):
        """Returns an optimizer with the same arguments and no state: what `sklearn.base.clone` gives."""
        named = {"name": self.name} if "name" in self._signature() else {}
        return type(self)(**{name: _clone(value) for name, value in self.get_params(deep=False).items()}, **named)

    def __repr__(self):
        defaults = self._signature()
        changed = {name: value for name, value in self.get_params(deep=False).items() if value != defaults[name]}
        return f"{type(self).__name__}({', '.join(f'{name}={value!r}' for name, value in changed.items())})"


def _within(value, function):
    """Applies a function to what a value holds, in lists, tuples and dictionaries."""
    if isinstance(value, list | tuple):
        return type(value)(_within(x, function) for x in value)
    if isinstance(value, dict) and "class_name" not in value:
        return {key: _within(x, function) for key, x in value.items()}
    return function(value)


def _to_config(value):
    def serialized(x):
        return keras.saving.serialize_keras_object(x) if callable(x) or isinstance(x, Hyperparameters) else x

    return _within(value, serialized)


def _from_config(value, custom_objects):
    def deserialized(x):
        return keras.saving.deserialize_keras_object(x, custom_objects) if isinstance(x, dict) else x

    return _within(value, deserialized)


def _clone(value):
    return _within(value, lambda x: x.__sklearn_clone__() if isinstance(x, Hyperparameters) else x)


def _current(given, variable):
    """What a variable holds; in the digits it was given in, if it still holds that."""
    if variable is None or not isinstance(given, float):
        return given
    with _backend.outside_the_trace():
        held = variable.numpy()
    return given if held == np.asarray(given, held.dtype) else float(held)


def checked_patterns(owner, option, patterns):
    """Returns regular expressions as a tuple; raises ValueError if one of them is none."""
    patterns = (patterns,) if isinstance(patterns, str) else tuple(patterns)
    for pattern in patterns:
        try:
            re.compile(pattern)
        except (re.error, TypeError) as error:
            raise ValueError(f"{owner}: {option} must hold regular expressions, got {pattern!r} ({error}).") from None
    return patterns
