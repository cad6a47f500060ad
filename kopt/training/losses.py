"""Losses that give every sample its own value, and the outputs that they are given."""

import dataclasses
import difflib
import functools
import inspect
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from kopt.training.several import apart

NO_LOSSES = {"Loss", "deserialize", "get", "serialize"}
"""What `keras.losses` has besides losses."""


def resolve(loss, logits, owner):
    """Returns the loss as a Keras loss or a function of targets and outputs.

    Args:
        loss: the name of a Keras loss, a `keras.losses.Loss`, or a function.
        logits: whether the network's outputs are logits. Only a loss given by name is told.
        owner: who asks, for the error.

    Raises:
        ValueError: Keras has no loss of this name.
    """
    if not isinstance(loss, str):
        return loss
    try:
        found = keras.losses.get(loss)
    except ValueError:
        known = [name for name in vars(keras.losses) if not name.startswith("_") and name not in NO_LOSSES]
        near = difflib.get_close_matches(loss, known, n=1)
        hint = f" Did you mean {near[0]!r}?" if near else ""
        raise ValueError(f"{owner}: loss must be the name of a loss in keras.losses, got {loss!r}.{hint}") from None
    is_class = isinstance(found, keras.losses.Loss)
    if "from_logits" not in inspect.signature(type(found) if is_class else found).parameters:
        return found
    return type(found)(from_logits=logits) if is_class else functools.partial(found, from_logits=logits)


def is_sparse(loss):
    """Whether a loss takes the number of a class, not its indicator."""
    sparse = keras.losses.sparse_categorical_crossentropy, keras.losses.SparseCategoricalCrossentropy
    return getattr(loss, "func", loss) is sparse[0] or isinstance(loss, sparse[1])


def takes_logits(model, loss):
    """Whether a model's outputs are logits: as its loss says, else if no softmax or sigmoid makes them."""
    if isinstance(loss, keras.losses.Loss) and "from_logits" in (config := loss.get_config()):
        return config["from_logits"]
    squashed = {_squashes(last) for last in _ends(apart(model))}
    if len(squashed) > 1:
        raise ValueError("model must end all its outputs alike: in softmax or sigmoid, or in logits, got both.")
    return squashed == {False}


def _ends(last):
    """The operations that make the outputs of a model."""
    if not isinstance(last, keras.Model):
        return [last]
    outputs = getattr(last, "outputs", None)
    before = [output._keras_history.operation for output in outputs] if outputs else last.layers[-1:]
    return [end for each in before for end in _ends(each)]


def _squashes(last):
    names = {type(last).__name__.lower(), getattr(getattr(last, "activation", None), "__name__", "")}
    return bool(names & {"softmax", "sigmoid"})


@dataclasses.dataclass(frozen=True)
class Heads:
    """The loss of several outputs that lie side by side, each of them the classes of one target: their sum.

    Attributes:
        loss: of one target.
        units: of each target.
    """

    loss: Any
    units: tuple[int, ...]

    def __call__(self, y, outputs):
        """A value for each row; `y` has a class's number for each target, or indicators side by side."""
        ends = np.cumsum(self.units)
        numbers = is_sparse(self.loss)
        return sum(
            values(self.loss, y[:, i] if numbers else y[:, end - units : end], outputs[:, end - units : end])
            for i, (units, end) in enumerate(zip(self.units, ends, strict=True))
        )


def values(loss, y, outputs):
    """The loss of each sample, a vector: averaged over the axes beyond the first, as Keras does.

    Outputs in 16 bits are taken to 32 before.
    """
    outputs = _widened(outputs)
    each = loss.call(y, outputs) if isinstance(loss, keras.losses.Loss) else loss(y, outputs)
    if not each.shape.rank:
        raise ValueError(f"loss must give each sample a value of its own, and {loss!r} gives one for all.")
    return keras.ops.mean(each, axis=tuple(range(1, each.shape.rank))) if each.shape.rank > 1 else each


def logits_of(output):
    """The logits of which a softmax or sigmoid made an output, which Keras's losses undo; else the output."""
    logits = getattr(output, "_keras_logits", None)
    return output if logits is None else logits


def _widened(output):
    """An output and what it carries (its logits, its mask), in 32 bits where it has 16."""
    if output.dtype not in (tf.float16, tf.bfloat16):
        return output
    wide = tf.cast(output, tf.float32)
    if logits_of(output) is not output:
        wide._keras_logits = tf.cast(logits_of(output), tf.float32)
    if (mask := getattr(output, "_keras_mask", None)) is not None:
        wide._keras_mask = mask
    return wide


def in_place_of(output, logits):
    """What to give a loss in the place of an output, so that it depends on these logits: see `logits_of`."""
    if logits_of(output) is output:
        other = tf.identity(logits)
    else:
        other = tf.stop_gradient(output)
        other._keras_logits = logits
    if (mask := getattr(output, "_keras_mask", None)) is not None:
        other._keras_mask = mask
    return other
