"""What layers around another layer share: its own call, with other tensors in the place of some of its weights."""

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
