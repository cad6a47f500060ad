"""Losses that give every sample its own value, and the outputs that they are given."""

import difflib
import functools
import inspect

import keras
import tensorflow as tf

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
    last = model
    while isinstance(last, keras.Model):
        outputs = getattr(last, "outputs", None)
        last = outputs[0]._keras_history.operation if outputs else last.layers[-1]
    names = {type(last).__name__.lower(), getattr(getattr(last, "activation", None), "__name__", "")}
    return not names & {"softmax", "sigmoid"}


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
