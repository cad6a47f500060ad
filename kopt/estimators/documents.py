"""Fitted estimators as JSON and arrays: what a document may hold, and how a strange one is kept from running code."""

import functools
import importlib
import inspect
import types
import warnings
from typing import Any

import numpy as np

MODULES = {
    *("keras", "keras.constraints", "keras.dtype_policies", "keras.initializers", "keras.layers", "keras.losses"),
    *("keras.optimizers", "keras.optimizers.schedules", "keras.random", "keras.regularizers"),
    *("keras.src.models.functional", "keras.src.models.sequential"),
}
"""Modules whose classes a document may name, besides the operations of `keras.ops` and what is registered."""

REFUSED = {
    *("Lambda", "TorchModuleWrapper", "JaxLayer", "FlaxLayer"),  # hold code
    *("TFSMLayer", "StringLookup", "IntegerLookup", "TextVectorization"),  # read files that their arguments name
}
"""Classes of these modules that a document may not name."""

STRUCTURES = {"__keras_tensor__", "__tensor__", "__numpy__", "__slice__", "__ellipsis__", "__tuple__"}
"""What Keras writes in the place of a class where there is none."""

OWN = {
    **dict.fromkeys(("Blueprint", "Network"), "kopt.training.network"),
    **dict.fromkeys(("Heads",), "kopt.training.losses"),
    **dict.fromkeys(("copy_of",), "kopt.estimators.parameters"),
    **dict.fromkeys(("mlp",), "kopt.estimators.networks"),
}
"""The classes and functions of kopt that documents hold, and where they are."""


class NotWritable(TypeError):
    """A value is code, or belongs to a library that documents do not know."""


class Writer:
    """Turns values into what JSON can hold, and keeps the arrays that it meets.

    Attributes:
        arrays: the arrays, by the numbers that stand for them.
        code: names of values that are not written but asked for when the document is read, by their `id`.
    """

    def __init__(self):
        self.arrays: list[np.ndarray] = []
        self.code: dict[int, str] = {}
        self._models: dict[int, dict] = {}

    def write(self, value):
        """Returns a value as JSON has it.

        Raises:
            NotWritable: it is code, or of an unknown kind.
        """
        if value is None or type(value) in (bool, int, float, str):
            return value
        if id(value) in self.code:
            return {"kind": "code", "name": self.code[id(value)]}
        if type(value) in (list, tuple, set):
            return {"kind": type(value).__name__, "items": [self.write(item) for item in value]}
        if type(value) is dict:
            return {"kind": "dict", "items": [[self.write(k), self.write(v)] for k, v in value.items()]}
        if isinstance(value, np.ndarray | np.generic):
            return self._array(value)
        if isinstance(value, np.random.RandomState | np.random.Generator):
            legacy = isinstance(value, np.random.RandomState)
            state = value.get_state(legacy=False) if legacy else value.bit_generator.state
            return {"kind": type(value).__name__, "state": self.write(state)}
        if isinstance(value, functools.partial):
            parts = value.func, list(value.args), dict(value.keywords)
            return {"kind": "partial", "parts": [self.write(part) for part in parts]}
        if type(value).__name__ in OWN and type(value) is own(type(value).__name__):
            state = value.__getstate__() if hasattr(value, "__getstate__") else vars(value)
            return {"kind": "own", "name": type(value).__name__, "state": self.write(dict(state))}
        if isinstance(value, types.FunctionType) and OWN.get(value.__name__) == value.__module__:
            return {"kind": "function", "name": value.__name__}
        return self._of_keras(value)

    def _array(self, value):
        if value.dtype.hasobject:
            return {"kind": "objects", "items": [self.write(x) for x in value.ravel()], "shape": list(value.shape)}
        self.arrays.append(np.ascontiguousarray(value))
        dtype = value.dtype.name if value.dtype.kind == "V" else value.dtype.str  # bfloat16 has but a name
        kind = "array" if isinstance(value, np.ndarray) else "scalar"
        return {"kind": kind, "number": len(self.arrays) - 1, "dtype": dtype, "shape": list(value.shape)}

    def _of_keras(self, value):
        import keras

        if id(value) in self._models:
            return self._models[id(value)]
        from kopt.objectives import Objective

        is_class = isinstance(value, type) and issubclass(value, (keras.optimizers.Optimizer, Objective))
        if not (is_class or hasattr(value, "get_config") or _is_loss_function(value)):
            raise NotWritable(f"{value!r} is code, or of a kind unknown to files")
        try:
            with warnings.catch_warnings(action="ignore", category=UserWarning):  # of lambdas, that are refused below
                config = checked(_name(value) if is_class else keras.saving.serialize_keras_object(value))
        except (ValueError, NotImplementedError) as error:  # the latter of subclassed models
            raise NotWritable(str(error)) from None
        if not isinstance(value, keras.Model):
            return {"kind": "class" if is_class else "keras", "config": config}
        config.pop("compile_config", None)
        node = self._models[id(value)] = {"kind": "model", "config": config, "weights": self.write(value.get_weights())}
        return node


class Reader:
    """Makes values of what a `Writer` wrote, and of nothing else.

    Args:
        array: a function that returns the bytes of an array by its number.
        code: the values that were not written, by name.
    """

    def __init__(self, array, code):
        self.array, self.code = array, code

    def read(self, node):
        """Returns the value of a node.

        Raises:
            ValueError: the node is not of a kind that documents hold, or names what they may not.
            KeyError: a value that was not written is missing.
        """
        if not isinstance(node, dict):
            return node
        kind = node["kind"]
        if kind in ("list", "tuple", "set"):
            return {"list": list, "tuple": tuple, "set": set}[kind](self.read(item) for item in node["items"])
        if kind == "dict":
            found = {self.read(k): self.read(v) for k, v in node["items"]}
            return checked(found) if "class_name" in found else found
        if kind == "code":
            return self.code[node["name"]]
        if kind == "partial":
            function, args, keywords = (self.read(part) for part in node["parts"])
            return functools.partial(function, *args, **keywords)
        if kind in ("array", "scalar", "objects"):
            return self._array(kind, node)
        if kind in ("RandomState", "Generator"):
            return self._random(kind, node)
        return self._own(kind, node) if kind in ("own", "function") else self._of_keras(kind, node)

    def _array(self, kind, node):
        if kind == "objects":
            array = np.empty(len(node["items"]), object)
            array[:] = [self.read(item) for item in node["items"]]
            return array.reshape(node["shape"])
        array = np.frombuffer(self.array(node["number"]), np.dtype(node["dtype"])).reshape(node["shape"])
        return array.copy() if kind == "array" else array[()]

    def _random(self, kind, node):
        if kind == "RandomState":
            random = np.random.RandomState()
            random.set_state(self.read(node["state"]))
        else:
            random = np.random.default_rng()
            random.bit_generator.state = self.read(node["state"])
        return random

    def _own(self, kind, node):
        found: Any = own(node["name"])
        if found is None or (kind == "function") == isinstance(found, type):
            raise ValueError(f"a file holds no {kind} {node['name']!r}")
        if kind == "function":
            return found
        value = object.__new__(found)
        vars(value).update(self.read(node["state"]))
        return value

    def _of_keras(self, kind, node):
        import keras

        config = checked(node["config"])
        if kind == "class":
            return _found(config)
        if kind not in ("keras", "model"):
            raise ValueError(f"a file holds no value of the kind {kind!r}")
        value = keras.saving.deserialize_keras_object(config, safe_mode=True)
        if kind == "model":
            value.set_weights(self.read(node["weights"]))
        return value


def own(name):
    """The class or function of kopt of this name that documents may hold; None if there is none."""
    return getattr(importlib.import_module(OWN[name]), name) if name in OWN else None


def checked(config):
    """Returns a Keras configuration in which every class is one of Keras's or kopt's, or one that the user registered.

    Raises:
        ValueError: it names something else, as a function, or a layer that holds code or reads files.
    """
    for node in _nodes(config):
        if "class_name" in node and node["class_name"] not in STRUCTURES and _found(node) is None:
            raise ValueError(
                f"{node.get('module')}.{node['class_name']} is no class that a file may name. If it is yours, "
                "decorate it with keras.saving.register_keras_serializable()."
            )
    return config


def _nodes(config):
    if isinstance(config, dict):
        yield config
    for held in config.values() if isinstance(config, dict) else config if isinstance(config, list | tuple) else ():
        yield from _nodes(held)


def _found(node):
    """The class or function that a node of a configuration names, if documents may name it."""
    import keras

    name, module = node["class_name"], node.get("module")
    if name == "function":  # Keras writes its own by name alone
        called, known = node.get("config"), keras.saving.get_registered_object(node.get("config") or "")
        builtin = {**vars(keras.losses), **vars(keras.activations)}.get(called) if module == "builtins" else None
        return known or (builtin if inspect.isfunction(builtin) else None)
    if registered := keras.saving.get_registered_object(node.get("registered_name") or ""):
        return registered
    if name in REFUSED or not (module in MODULES or str(module).startswith("keras.src.ops.")):
        return None
    found = getattr(importlib.import_module(module), name, None)
    return found if isinstance(found, type) else None


def _name(kind):
    """A configuration that names a class, of an optimizer or an objective, and nothing else."""
    import keras

    public = getattr(keras.optimizers, kind.__name__, None) is kind
    module, registered = kind.__module__, keras.saving.get_registered_name(kind)
    module, registered = ("keras.optimizers", None) if public else (module, registered)
    return {"module": module, "class_name": kind.__name__, "config": {}, "registered_name": registered}


def _is_loss_function(value):
    import keras

    return inspect.isfunction(value) and value in vars(keras.losses).values()
