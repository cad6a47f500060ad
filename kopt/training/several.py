"""Models of more than one piece: several outputs taken for one, and the outputs of a layer within."""

import keras
from keras import ops, tree


class Joined(keras.Model):
    """A model with one output, in which those of another lie side by side.

    Args:
        several: a `keras.Model` whose outputs have shape (rows, units) each.
    """

    def __init__(self, several):
        super().__init__()
        self.several = several

    def call(self, inputs, training=None):
        """Returns the outputs, in the order of the model, in one tensor."""
        return ops.concatenate(tree.flatten(self.several(inputs, training=training)), axis=-1)

    def get_config(self):
        """Returns what tells it from others: the model's configuration."""
        return {"several": self.several.get_config()}


def apart(model):
    """The user's own model."""
    return model.several if isinstance(model, Joined) else model


def place(model, layer, owner):
    """Returns where in a model a layer is, which stays the same in every model of its structure.

    Args:
        model: a functional or sequential `keras.Model`, built.
        layer: its name; its number, counted from the end where negative; or None.
        owner: who asks, for the error.

    Raises:
        ValueError: there is no such layer, or the model does not tell how its layers are connected.
    """
    model = apart(model)
    if not getattr(model, "inputs", None):
        raise ValueError(f"{owner}: model must be functional or sequential, got {model!r}, whose layers are hidden.")
    names = [each.name for each in model.layers]
    if layer is None:
        return None
    if isinstance(layer, str) and layer in names:
        return names.index(layer)
    if not isinstance(layer, str) and -len(names) <= layer < len(names):
        return layer % len(names)
    raise ValueError(f"{owner}: layer must be None, a number below {len(names)}, or one of {names}, got {layer!r}.")


def within(model, place):
    """Returns a model of the same inputs that ends at the place of a layer, with a vector for each row.

    Without a place that is before the last layer that has weights.
    """
    model = apart(model)
    weighted = [layer for layer in model.layers if layer.weights]
    tensor = tree.flatten(weighted[-1].input if place is None else model.layers[place].output)[0]
    return keras.Model(model.inputs, tensor if len(tensor.shape) == 2 else keras.layers.Flatten()(tensor))
