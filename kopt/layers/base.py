"""What every layer of kopt shares: arguments written once, in the signature, and rates that may be schedules."""

import functools
import inspect
from numbers import Integral
from types import SimpleNamespace
from typing import Any, ClassVar, TypeAlias

import keras
from keras.optimizers.schedules import LearningRateSchedule

from kopt._checks import check_range

Scheduled: TypeAlias = float | LearningRateSchedule
"""What a rate may be: a number, or a schedule that is asked for one at each call in training, from step 0."""


class Layer(keras.layers.Layer):
    """Base class of kopt's layers: a subclass keeps the arguments of its `__init__` under their names.

    The config and the round trip through a saved model follow from the signature. Masks pass through, and the output
    has the shape of the input, unless a subclass says otherwise.

    Args:
        **kwargs: those of `keras.layers.Layer`: `name`, `dtype` and so on.
    """

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.supports_masking = True

    def __init_subclass__(cls, **kwargs):
        """Makes the class known to `keras.saving` under its package's name, as in `kopt>DropPath`."""
        super().__init_subclass__(**kwargs)
        keras.saving.register_keras_serializable(cls.__module__.partition(".")[0])(cls)

    @classmethod
    @functools.cache
    def _arguments(cls):
        """The names of the constructor's arguments, without those of `keras.layers.Layer`."""
        found = {}
        for base in cls.__mro__[: cls.__mro__.index(Layer)]:
            if "__init__" in vars(base):
                parameters = list(inspect.signature(base.__init__).parameters.values())[1:]
                found |= dict.fromkeys(p.name for p in parameters if p.kind is not p.VAR_KEYWORD)
                if not any(p.kind is p.VAR_KEYWORD for p in parameters):
                    break
        return tuple(found)

    def compute_output_shape(self, input_shape):
        return input_shape

    def get_config(self):
        """Returns the constructor's arguments; schedules, layers and the like serialized."""
        own = {name: keras.saving.serialize_keras_object(getattr(self, name)) for name in self._arguments()}
        return super().get_config() | own

    @classmethod
    def from_config(cls, config):
        """Makes a layer, without weights, from what `get_config` returned."""
        own = {name: keras.saving.deserialize_keras_object(config[name]) for name in cls._arguments() if name in config}
        return super().from_config(config | own)


class Rates:
    """Rates of a layer that may be schedules: it gives them to `_set_rates`, and asks `_now` for those of the step."""

    ranges: ClassVar[dict[str, str]] = {"rate": "[0, 1)"}
    """Intervals of the rates."""

    steps: Any = None
    """The calls in training so far, a weight; None where no rate is a schedule."""

    _rates: dict[str, Any]
    add_weight: Any

    def _set_rates(self, **rates):
        """Keeps each rate, checked, as an attribute; counts steps from now on if one is a schedule.

        Raises:
            TypeError: a rate is neither a number nor a schedule.
            ValueError: a rate is out of its range.
        """
        self._rates = rates
        for name, rate in rates.items():
            scheduled = isinstance(rate, LearningRateSchedule)
            first = float(keras.ops.convert_to_numpy(rate(0))) if scheduled else rate
            check_range(f"{type(self).__name__}: at step 0" if scheduled else self, self.ranges[name], **{name: first})
            setattr(self, name, rate)
            if scheduled and self.steps is None:
                how = dict(dtype="int32", trainable=False, aggregation="only_first_replica", name="steps")
                self.steps = self.add_weight(shape=(), initializer="zeros", **how)

    def _now(self, training=True):
        """Returns the rates at this call, numbers or scalar tensors by name; counts the call if it is in training."""
        if self.steps is None:
            return SimpleNamespace(**self._rates)
        step = keras.ops.convert_to_tensor(self.steps)
        rates = {name: rate(step) if callable(rate) else rate for name, rate in self._rates.items()}
        if training:  # after that, for what was read may change with the variable
            self.steps.assign(step + 1)
        return SimpleNamespace(**rates)


class Rated(Rates, Layer):
    """Base class of layers with rates that may be schedules.

    Args:
        **kwargs: those of `keras.layers.Layer`.

    Raises:
        TypeError: a rate is neither a number nor a schedule.
        ValueError: a rate is out of its range.
    """

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self._rates = {}


class Noise(Rated):
    """Base class of layers that draw random numbers while they train, at rates that may be schedules.

    Args:
        seed: an integer, for the same draws in every run; None draws a new one.
        **kwargs: those of `keras.layers.Layer`.

    Raises:
        TypeError: `seed` is no integer, or a rate neither a number nor a schedule.
        ValueError: a rate is out of its range.
    """

    def __init__(self, seed=None, **kwargs):
        super().__init__(**kwargs)
        self.seed = seed if seed is None else check_range(self, "[0, inf)", kind=Integral, seed=seed)
        self.seed_generator = keras.random.SeedGenerator(seed)


def inverted(x, kept, rate):
    """x / (1 - rate) where `kept`, else 0: what is left out, in the mean, the rest makes up for.

    Args:
        x: tensor.
        kept: booleans that broadcast to the shape of `x`.
        rate: the probability that an entry of `kept` is False, in [0, 1]: a number or a scalar tensor.
    """
    x = keras.ops.convert_to_tensor(x)
    return keras.ops.where(kept, x / keras.ops.cast(1 - rate, x.dtype), keras.ops.zeros_like(x))
