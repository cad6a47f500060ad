"""What the layers of a model are given, and how the loss changes with what they make of it."""

import contextlib
import math
import threading
from typing import Any, NamedTuple

import keras
import tensorflow as tf
from keras import layers, ops

from kopt._backend import dense

TAPPED = (layers.Dense, layers.EinsumDense, layers.Conv1D, layers.Conv2D, layers.Conv3D)
"""Layers whose output, before its activation, is a kernel times what they are given, plus a bias."""

_lock, _hooked, _local = threading.Lock(), {}, threading.local()


class Tap(NamedTuple):
    """A use of a layer: what it was given, and the gradient by what it made of it, before its activation.

    Attributes:
        layer: one of `TAPPED`.
        kernel: the number of its kernel among the trainable weights.
        bias: the number of its bias among them, or None.
        inputs: what it was given.
        slopes: the gradient by its output, without the activation.
    """

    layer: Any
    kernel: int
    bias: int | None
    inputs: Any
    slopes: Any

    def rows(self, dtype):
        """Returns the inputs and slopes in the shape (rows, positions, numbers), so that the kernel is a matrix.

        Positions are where a layer uses the kernel on a row: those of a convolution, whose inputs become the patches
        that it sees, in the order of the kernel's axes, or the middle axes of what a dense layer is given.
        """
        layer, x, s = self.layer, ops.cast(self.inputs, dtype), ops.cast(self.slopes, dtype)
        n, shape = _summed_axes(layer), layer.kernel.shape
        inputs, outputs = math.prod(shape[:n]), math.prod(shape[n:])
        if not isinstance(layer, (layers.Dense, layers.EinsumDense)):
            x = self._patches(x, inputs)
            x, s = (ops.moveaxis(y, 1, -1) if layer.data_format == "channels_first" else y for y in (x, s))
        rows = ops.shape(x)[0]
        return ops.reshape(x, (rows, -1, inputs)), ops.reshape(s, (rows, -1, outputs))

    def _patches(self, x, size):
        """What a convolution sees at each position: a convolution with an identity, padded as the layer pads."""
        layer, padding = self.layer, self.layer.padding
        if padding == "causal":
            x, padding = ops.pad(x, layer._compute_causal_padding()), "valid"
        identity = ops.reshape(ops.eye(size, dtype=x.dtype), (*layer.kernel.shape[:-1], size))
        return ops.conv(x, identity, list(layer.strides), padding, layer.data_format, list(layer.dilation_rate))


def tapped(model):
    """The layers of a model that have taps.

    A convolution in groups has none, nor has a layer whose kernel is quantized or adapted by LoRA, nor one of a
    subclass with a `call` of its own.
    """
    found = []
    for layer in model._flatten_layers():
        theirs = next((cls for cls in TAPPED if isinstance(layer, cls)), None)
        if theirs is None or not layer.built or type(layer).call is not theirs.call:
            continue
        plain = isinstance(layer.kernel, keras.Variable) and getattr(layer, "groups", 1) == 1
        if plain and _summed_axes(layer):
            found.append(layer)
    return found


def _summed_axes(layer):
    """Over how many of the kernel's first axes a layer sums; 0 if its equation is not as ...ab,abcd->...cd."""
    if not isinstance(layer, layers.EinsumDense):
        return len(layer.kernel.shape) - 1
    operands, _, result = layer.equation.replace("...", ".").partition("->")
    x, kernel = operands.split(",")
    summed = "".join(axis for axis in kernel if axis not in result)
    outputs, rows = kernel.removeprefix(summed), x.removesuffix(summed)
    simple = (rows + summed, summed + outputs, rows + outputs) == (x, kernel, result)
    return len(summed) if simple and rows else 0


@contextlib.contextmanager
def recording(found):
    """A context in which layers record, for this thread: a list of triples of layer, input and output as they are used.

    Outputs are those without the activation. A layer that is used inside a loop or a mapped function, whose tensors
    nobody outside can see, has None for both. Meanwhile other threads may record too.
    """
    seen, home = [], _graph()

    def record(layer, x, z):
        visible = _graph() is home and not isinstance(x, tf.SparseTensor)
        seen.append((layer, x, z) if visible else (layer, None, None))

    outer, _local.record = getattr(_local, "record", None), record
    with _lock:
        for layer in found:
            _hook(layer)
    try:
        yield seen
    finally:
        _local.record = outer
        with _lock:
            for layer in found:
                _unhook(layer)


def _graph():
    return None if tf.executing_eagerly() else tf.compat.v1.get_default_graph()


def _hook(layer):
    """Puts functions that record in the place of a layer's `call` and `activation`, of which Keras calls both."""
    number, activation = _hooked.get(id(layer), (0, layer.activation))
    _hooked[id(layer)] = number + 1, activation
    if number:
        return
    call = layer.call

    def recorded(inputs, *args, **kwargs):
        _local.inputs = inputs
        return call(inputs, *args, **kwargs)

    def before(z):
        if record := getattr(_local, "record", None):
            record(layer, _local.inputs, z)
        return z if activation is None else activation(z)

    vars(layer).update(call=recorded, activation=before)  # past Keras, which would track what it is given


def _unhook(layer):
    number, activation = _hooked.pop(id(layer))
    if number > 1:
        _hooked[id(layer)] = number - 1, activation
    else:
        del vars(layer)["call"]
        vars(layer)["activation"] = activation


def look(batch, weights, ask):
    """Looks at a batch with taps.

    Args:
        batch: a `kopt.training.batch.Batch`.
        weights: a tensor for each trainable weight.
        ask: looks, and returns tensors and what to multiply their Jacobians by.

    Returns:
        The tensors, the gradient of the sum of these products for each weight (None where there is none), and a list of
        `Tap`s. A layer without part in the tensors has none, nor has one that computes where nobody can see it.

    Raises:
        ValueError: no layer has taps.
    """
    numbers = {id(variable): number for number, variable in enumerate(batch.variables)}
    found = [layer for layer in tapped(batch.model) if id(layer.kernel) in numbers]
    if not found:
        known = ", ".join(cls.__name__ for cls in TAPPED)
        own = dict.fromkeys(type(layer).__name__ for layer in batch.model._flatten_layers(include_self=False))
        raise ValueError(
            f"K-FAC: a model must have a trainable layer among {known}, got {', '.join(own) or 'none'}. "
            "Try kopt.SOAP, which preconditions by gradients alone."
        )
    with recording(found) as seen, tf.GradientTape(watch_accessed_variables=False) as tape:
        tape.watch(weights)
        targets, factors = ask()
    hidden = {id(layer) for layer, _, z in seen if z is None}
    seen = [(layer, x, z) for layer, x, z in seen if id(layer) not in hidden]
    found: Any = tape.gradient(targets, [*weights, *(z for _, _, z in seen)], factors)
    grads, slopes = found[: len(weights)], found[len(weights) :]
    taps = [
        Tap(layer, numbers[id(layer.kernel)], numbers.get(id(layer.bias)), x, s)
        for (layer, x, _), s in zip(seen, slopes, strict=True)
        if s is not None
    ]
    return targets, [g if g is None else dense(g) for g in grads], taps
