"""Parameter groups made for you."""

import re

import keras

from kopt._checks import check_range


def layerwise_decay(model, factor=0.75):
    """Returns `groups` for an optimizer in which each layer learns more slowly than the one above it.

    The last layer with weights has the whole learning rate, the one before it `factor` times that, and so on down to
    the first: for fine-tuning, where lower layers know more that is worth keeping. Layers within a nested model count
    one by one; a layer that has layers inside, such as attention, counts as one.

        optimizer = kopt.AdamW(1e-3, groups=kopt.layerwise_decay(model, 0.75))

    Args:
        model: a built `keras.Model`, whose `layers` are in the order from input to output.
        factor: of the learning rate from a layer to the one below, in (0, 1].

    Raises:
        TypeError: `model` is no Keras model, or `factor` no number.
        ValueError: `model` has no trainable weights, or `factor` is out of range.

    References:
        Clark et al., *ELECTRA: Pre-training Text Encoders as Discriminators Rather Than Generators*, 2020.
        https://arxiv.org/abs/2003.10555
    """
    check_range("layerwise_decay", "(0, 1]", factor=factor)
    if not isinstance(model, keras.Model):
        raise TypeError(f"layerwise_decay: model must be a keras.Model, got {model!r}.")
    layers = [layer for layer in _layers(model) if layer.trainable_variables]
    if not layers:
        raise ValueError(f"layerwise_decay: model must have trainable weights, got {model!r}. Build it first.")
    return {
        "^(" + "|".join(re.escape(v.path) for v in layer.trainable_variables) + ")$": {"learning_rate": factor**depth}
        for depth, layer in enumerate(reversed(layers))
    }


def _layers(model):
    for layer in model.layers:
        if isinstance(layer, keras.Model):
            yield from _layers(layer)
        else:
            yield layer
