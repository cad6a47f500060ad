"""What layers around another layer share: its own call, with other tensors in the place of some of its weights."""

import contextlib
import functools
import threading
from typing import Any

import keras


def check_layer_given(owner, layer) -> Any:
    """Returns `layer` if it is a Keras layer, else raises TypeError."""
    if not isinstance(layer, keras.layers.Layer):
        raise TypeError(f"{type(owner).__name__}: layer must be a keras.layers.Layer, got {layer!r}.")
    return layer


def kernel_of(owner, layer) -> Any:
    """Returns the kernel of a built layer, a variable.

    Raises:
        ValueError: it has none.
    """
    kernel = getattr(layer, "kernel", None)
    if not isinstance(kernel, keras.Variable):
        raise ValueError(
            f"{type(owner).__name__}: layer must have a kernel, got {type(layer).__name__}, which has none."
        )
    return kernel


def call_with(layer, values, *args, **kwargs):
    """Returns `layer(*args, **kwargs)`, computed with tensors in the place of some weights.

    Gradients go through the tensors. What the call assigns to other variables, and the losses that it adds, are kept.

    Args:
        layer: a built layer.
        values: pairs of a variable of the layer and a tensor of its shape.
        *args: of the call.
        **kwargs: of the call.
    """
    replaced = {id(variable) for variable, _ in values}
    others = [v for v in layer.variables if id(v) not in replaced]
    with keras.StatelessScope([*values, *((v, v.value) for v in others)], collect_losses=True) as scope:
        before = {id(v): scope.get_current_value(v) for v in others}
        outputs = layer(*args, **kwargs)
    for variable in others:
        if (after := scope.get_current_value(variable)) is not before[id(variable)]:
            variable.assign(after)
    for loss in scope.losses:
        layer.add_loss(loss)
    return outputs


_lock, _hooked, _local = threading.Lock(), {}, threading.local()


@contextlib.contextmanager
def calls_changed(layers, change):
    """A context in which layers have other calls, for this thread alone.

    Args:
        layers: the layers.
        change: takes a layer and its `call`, and returns what to call in its place.
    """
    outer = getattr(_local, "change", None)
    changed = dict(outer or {}) | {id(layer): change for layer in layers}
    with _lock:
        for layer in layers:
            _hook(layer)
    _local.change = changed
    try:
        yield
    finally:
        _local.change = outer
        with _lock:
            for layer in layers:
                _unhook(layer)


def _hook(layer):
    """Puts a function that asks the thread in the place of a layer's `call`, past Keras, which would track it."""
    number, call = _hooked.get(id(layer), (0, layer.call))
    _hooked[id(layer)] = number + 1, call
    if number:
        return

    @functools.wraps(call)
    def asking(*args, **kwargs):
        change = (getattr(_local, "change", None) or {}).get(id(layer))
        return (change(layer, call) if change else call)(*args, **kwargs)

    vars(layer)["call"] = asking


def _unhook(layer):
    number, call = _hooked.pop(id(layer))
    if number > 1:
        _hooked[id(layer)] = number - 1, call
    else:
        del vars(layer)["call"]
