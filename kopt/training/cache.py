"""Programs are compiled once for each structure, and the least used make room."""

import functools
import threading
import types
import warnings
from collections import OrderedDict
from collections.abc import Mapping

import keras
import numpy as np
import tensorflow as tf

from kopt.optimizers import Optimizer
from kopt.optimizers.wrapper import Wrapper
from kopt.training import losses

_OWN = {"_name", "_nodes", "_parent_path", "_path", "build", "output_names", "quantize"}
"""Attributes in which any two layers differ: names, and methods that Keras wraps for each instance."""


@functools.cache
def _of_compile():
    """Attributes that a model has of `compile` and `fit`, of which a program makes no use.

    Not at import: to make a model settles Keras's dtype policy, and the user may still change `floatx`.
    """
    return {
        *(vars(keras.Model()).keys() - vars(keras.layers.Layer()).keys()),
        *("_compile_config", "_compiled_trainable_state", "_eval_epoch_iterator", "history", "optimizer"),
        *("stop_evaluating", "stop_predicting", "stop_training"),
        *("_compiled_engine", "progress"),
    }


class Cache:
    """The `size` most recently used values by key, for any number of threads.

    Attributes:
        latest: the value found last: whoever holds it already needs no search.
    """

    def __init__(self, size):
        self.size = size
        self.latest = None
        self._values = OrderedDict()
        self._lock = threading.Lock()

    def find(self, key, make):
        """Returns the value under `key`; where there is none, the one that `make` makes."""
        with self._lock:
            self._values[key] = value = self._values.pop(key) if key in self._values else make()
            if len(self._values) > self.size:
                self._values.popitem(last=False)
            self.latest = value
            return value

    def clear(self):
        """Forgets everything."""
        with self._lock:
            self._values.clear()
            self.latest = None

    def __len__(self):
        return len(self._values)


def structure_of_model(model):
    """What of a model goes into a compiled program: everything but names, seeds and the values of its weights.

    Two models of equal structure run each other's programs with weights of their own. Beyond the configurations,
    all that layers hold besides weights and layers is compared, so that a lambda or an attribute set by hand counts.
    """
    layers = list(model._flatten_layers())
    operations = [operation for layer in layers for operation in getattr(layer, "operations", ())]
    names = {part.name: number for number, part in enumerate((*operations, *layers))}
    try:
        with warnings.catch_warnings(action="ignore", category=UserWarning):  # of lambdas, that are not saved here
            config = frozen(model.get_config(), names)
    except NotImplementedError:  # a subclassed model that cannot be told from another one
        config = model
    traits = tuple((type(layer), frozen(_traits(layer), names)) for layer in layers)
    return config, traits, _specs(model.variables)


def inputs_of_optimizer(kind, config):
    """The hyperparameters that an optimizer of this class keeps in variables: compiled programs read them anew.

    Those of an optimizer inside another have the names that `set_params` takes, as in `inner__beta_1`.
    """
    names = kind.input_names() if issubclass(kind, Optimizer) else set()
    inputs = {name: config[name] for name in {"learning_rate"} | names if isinstance(config.get(name), float)}
    for name, part in _parts(kind, config).items():
        inputs |= {f"{name}__{own}": value for own, value in inputs_of_optimizer(type(part), part.get_config()).items()}
    return inputs


def structure_of_optimizer(kind, config, zeros=True):
    """What of an optimizer goes into a compiled program: all but the numbers that it keeps in variables.

    Of these it matters whether they are zero: without momentum, for one, there is no velocity. Not where `zeros` is
    False: for what is compared by its variables, too.
    """
    given = {name: value for name, value in inputs_of_optimizer(kind, config).items() if name in config}
    inputs = {n: "zero" if zeros and x == 0 and n != "learning_rate" else "number" for n, x in given.items()}
    parts = {n: structure_of_optimizer(type(p), p.get_config(), zeros) for n, p in _parts(kind, config).items()}
    return kind, frozen({name: x for name, x in (config | inputs | parts).items() if name != "name"}, {})


def _parts(kind, config):
    """The optimizers that an optimizer was given as arguments."""
    if not issubclass(kind, Wrapper):
        return {}
    held = {name: x for name, x in config.items() if isinstance(x, dict) and "class_name" in x}
    parts = {name: keras.saving.deserialize_keras_object(x) for name, x in held.items()}
    return {name: part for name, part in parts.items() if isinstance(part, Optimizer)}


def structure_of_loss(loss):
    """What of a loss goes into a compiled program: a Keras loss by its configuration, else the function it is."""
    if isinstance(loss, keras.losses.Loss):
        return type(loss), frozen(loss.get_config(), {}), frozen(_traits(loss), {})
    if isinstance(loss, losses.Heads):
        return losses.Heads, structure_of_loss(loss.loss), loss.units
    if isinstance(loss, functools.partial):
        return loss.func, frozen(_trait(loss.args), {}), frozen(_trait(loss.keywords), {})
    return loss


def structure_of_objective(objective, model):
    """What of an objective, as Keras serializes it, goes into a compiled program of a model: all but its seed.

    Of layers that it names, it matters which they are.
    """
    if objective is None:
        return None
    named = {name for x in objective["config"].values() if isinstance(x, list) for name in x if isinstance(name, str)}
    places = tuple(number for number, layer in enumerate(model._flatten_layers()) if layer.name in named)
    return frozen(objective), places


def _specs(variables):
    return tuple((tuple(v.shape), str(v.dtype), v.trainable) for v in variables)


def _traits(layer):
    """What an object holds in attributes of its own: constants of its programs, which its config may not tell."""
    skipped = _OWN | ({"seed"} if _is_library(type(layer).__module__) else set())
    skipped |= _of_compile() if isinstance(layer, keras.Model) else set()
    held = {name: value for name, value in vars(layer).items() if not name.startswith("_self_")}  # TensorFlow's own
    return {name: _trait(value) for name, value in held.items() if name not in skipped}


def _trait(value):
    """A value as programs see it: weights and layers count elsewhere, the library's objects by configuration."""
    if isinstance(value, keras.Variable | keras.layers.Layer | keras.random.SeedGenerator):
        return None
    if isinstance(value, dict):
        return {str(key): _trait(held) for key, held in value.items()}
    if isinstance(value, list | tuple | set):
        return [_trait(held) for held in value]
    if isinstance(value, np.generic | tf.Tensor):
        return np.asarray(value) if hasattr(value, "numpy") or isinstance(value, np.generic) else object()
    if isinstance(value, bool | int | float | str | types.FunctionType | np.ndarray | type | None):
        return value
    if _is_library(type(value).__module__) or type(value).__module__.startswith("tensorflow."):
        return [type(value), value.get_config() if hasattr(value, "get_config") else None]
    return getattr(value, "__func__", value)


def _is_library(module):
    return str(module).partition(".")[0] in ("keras", "kopt")


def frozen(value, names: Mapping[str, int] = types.MappingProxyType({})):
    """A hashable copy of a configuration, with layers numbered instead of named and without the libraries' seeds."""
    if isinstance(value, dict):
        if _is_library(value.get("module")) and isinstance(value.get("config"), dict):
            value = {**value, "config": {k: v for k, v in value["config"].items() if k != "seed"}}
        if isinstance(value.get("name"), str):
            value = {**value, "name": names.get(value["name"], value["name"])}
        items = ((k, frozen(v, names)) for k, v in value.items())
        return tuple(sorted(items, key=lambda item: str(item[0])))
    if isinstance(value, list | tuple):
        if [type(x) for x in value] == [str, int, int]:  # where a tensor comes from: layer, call, output
            return (names.get(value[0], value[0]), *value[1:])
        return tuple(frozen(x, names) for x in value)
    if isinstance(value, np.ndarray):
        return value.shape, value.dtype.str, value.tobytes()
    try:
        hash(value)
    except TypeError:
        return object()  # equal to nothing: better one program too many than a wrong one
    return type(value), value
