"""What every schedule is: a pure function of the step that can be written down."""

import inspect
from typing import TypeAlias

import keras
from keras import ops
from keras.optimizers.schedules import LearningRateSchedule

from kopt._checks import check_range

Piece: TypeAlias = float | LearningRateSchedule
"""What schedules are put together from: a number, or a schedule, kopt's or Keras's."""


class Schedule(LearningRateSchedule):
    """Base class of kopt's schedules: a pure function of the step, for any hyperparameter of any optimizer.

    A subclass stores the arguments of its `__init__` under their names and writes `at(step)`; the config, the round
    trip through a saved model and the repr follow from the signature. The first step is step 0. Asked for many steps at
    once, a schedule returns as many values, to look at: `schedule(range(100))`.
    """

    def __init_subclass__(cls, **kwargs):
        """Makes the class known to `keras.saving` under its package's name, as in `kopt>Cosine`."""
        super().__init_subclass__(**kwargs)
        keras.saving.register_keras_serializable(cls.__module__.partition(".")[0])(cls)

    def at(self, step):
        """Returns the value at a step: a float tensor in [0, inf), or several for a tensor of several."""
        raise NotImplementedError(f"{type(self).__name__} must define at(step).")

    def __call__(self, step):
        """Returns the value at a step: in float64 if the step or `keras.config.floatx()` is that, else in float32."""
        step = ops.convert_to_tensor(step)
        wide = "float64" in (keras.backend.standardize_dtype(step.dtype), keras.config.floatx())
        return self.at(ops.cast(step, "float64" if wide else "float32"))

    def _arguments(self):
        return {name: getattr(self, name) for name in inspect.signature(type(self)).parameters}

    def get_config(self):
        """Returns the constructor's arguments, schedules among them serialized."""
        return {name: keras.saving.serialize_keras_object(value) for name, value in self._arguments().items()}

    @classmethod
    def from_config(cls, config):
        """Makes a schedule from what `get_config` returned."""
        return cls(**{name: keras.saving.deserialize_keras_object(value) for name, value in config.items()})

    def __repr__(self):
        return f"{type(self).__name__}({', '.join(f'{name}={value!r}' for name, value in self._arguments().items())})"


def number(owner, interval="(-inf, inf)", **given):
    """Returns the one value in `given` as a float, if it lies in the interval."""
    return float(check_range(owner, interval, **given))


def piece_of(owner, **given) -> Piece:
    """Returns the one value in `given` if it is a schedule or a number."""
    ((name, value),) = given.items()
    if isinstance(value, LearningRateSchedule):
        return value
    try:
        return number(owner, **given)
    except TypeError:
        raise TypeError(f"{type(owner).__name__}: {name} must be a number or a schedule, got {value!r}.") from None


def value_of(piece, step):
    """Returns what a piece holds at a step; before step 0, what it holds there."""
    return ops.convert_to_tensor(piece(ops.maximum(step, 0)) if callable(piece) else piece, step.dtype)
