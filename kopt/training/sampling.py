"""Labels drawn from what a model predicts: the noise whose covariance is the Gauss-Newton matrix."""

from typing import Any

import keras
import tensorflow as tf
from keras import tree

from kopt._backend import normal, replicas, uniform
from kopt.training.losses import in_place_of, logits_of

_losses: Any = keras.losses
DISTRIBUTIONS = {
    _losses.categorical_crossentropy: "softmax",
    _losses.CategoricalCrossentropy: "softmax",
    _losses.sparse_categorical_crossentropy: "softmax",
    _losses.SparseCategoricalCrossentropy: "softmax",
    _losses.binary_crossentropy: "sigmoid",
    _losses.BinaryCrossentropy: "sigmoid",
    _losses.mean_squared_error: "normal",
    _losses.MeanSquaredError: "normal",
}
"""How labels are distributed of which a loss is the negative logarithm of the likelihood."""

DRAWS_NONE = " Try a method that draws none, such as kopt.SophiaH or kopt.KFAC(fisher='empirical')."


def sample(batch, weights, seed, t):
    """Returns the model's outputs, and a random tensor `s` for each, with E[s sᵀ] = H: the Hessian of the loss by it.

    Where a softmax or sigmoid makes an output, its logits take their place. `s` is the gradient of the loss had the
    labels been drawn from what the model predicts, but that the weight c that a row has in the loss is taken to the
    power of one half, s = √c (p - y). So the square of the gradient that it becomes, Jᵀs, is on average the diagonal
    of the Gauss-Newton matrix JᵀHJ (without penalties), whatever the number of rows, their weights and masks. To
    differentiate the outputs, call this inside of a tape.

    Args:
        batch: a `kopt.training.batch.Batch`.
        weights: a tensor for each trainable weight.
        seed: an integer. Draws depend on it and on `t` alone; each replica has its own.
        t: the step.

    Raises:
        ValueError: the loss is no crossentropy of logits, or of what a softmax or sigmoid makes, nor a mean square.
    """
    if batch.outputs is None:
        batch.look(weights)  # whose loss is the batch's
    outputs, kinds, probes = [], [], []
    held: Any = []

    def through(tensors):
        found = tree.flatten(tensors)
        losses = losses_of(batch.losses, tensors, getattr(batch.model, "output_names", None))
        for output, loss in zip(found, losses, strict=True):
            outputs.append(logits_of(output))
            kinds.append(None if loss is None else distribution_of(loss, output))
            held.append(tf.zeros_like(outputs[-1], None if outputs[-1].dtype == tf.float64 else tf.float32))
            probes.append(_first(held[-1]) if kinds[-1] == "softmax" else tf.ones_like(held[-1]))
        outer.watch(held)
        inner.watch(held)
        return tree.pack_sequence_as(tensors, list(map(in_place_of, found, held)))

    with tf.GradientTape(watch_accessed_variables=False) as outer:
        with tf.GradientTape(watch_accessed_variables=False) as inner:
            loss = batch.look(weights, through)
        slopes: Any = inner.gradient(loss, held, unconnected_gradients=tf.UnconnectedGradients.ZERO)
    bent: Any = outer.gradient(slopes, held, probes, unconnected_gradients=tf.UnconnectedGradients.ZERO)
    drawn = []
    for number, (output, kind, curvature) in enumerate(zip(outputs, kinds, bent, strict=True)):
        z = tf.cast(output, curvature.dtype)
        if kind == "softmax":
            classes = z.shape[-1]
            weight, noise = curvature[..., :1] * classes**2 / (classes - 1), _categorical(z, seed + number, t)
        elif kind == "sigmoid":
            p = tf.sigmoid(z)
            weight, noise = 4 * curvature, p - tf.cast(_own(uniform, z, seed + number, t) < p, z.dtype)
        else:
            weight, noise = curvature, _own(normal, z, seed + number, t)
        drawn.append(tf.stop_gradient(tf.cast(tf.sqrt(tf.maximum(weight, 0)) * noise, output.dtype)))
    return outputs, drawn


def losses_of(losses, outputs, names):
    """The loss of each output, in the order in which they are flattened; None for one without a loss.

    Args:
        losses: one for all, or a list or dict of them: what `compile` takes.
        outputs: in the structure in which the model returns them.
        names: the names of the outputs, where they are a list and the losses are a dict.
    """
    flat = tree.flatten(outputs)
    if isinstance(losses, dict):
        if not isinstance(outputs, dict):
            return [losses.get(name) for name in names]
        return tree.flatten({name: losses.get(name) for name in outputs})
    return list(losses) if isinstance(losses, (list, tuple)) else [losses] * len(flat)


def distribution_of(loss, output, purpose="To draw labels from a model", hint=DRAWS_NONE):
    """How the labels are distributed that a loss expects of an output; `purpose` and `hint` are for the error."""
    found = keras.losses.get(loss)
    options = found.get_config() if isinstance(found, keras.losses.Loss) else getattr(found, "keywords", {})
    function = getattr(found, "func", found)
    kind = DISTRIBUTIONS.get(type(found) if isinstance(found, keras.losses.Loss) else function)
    knows_logits = kind == "normal" or options.get("from_logits", False) or logits_of(output) is not output
    if kind is None or not knows_logits or options.get("axis", -1) != -1:
        raise ValueError(
            f"{purpose}, the loss must be a crossentropy of logits, or of the outputs of a softmax or sigmoid, or the "
            f"mean squared error, got {getattr(function, '__name__', function)!r}.{hint}"
        )
    return kind


def _first(z):
    """An indicator of the first class for each row."""
    return tf.concat([tf.ones_like(z[..., :1]), tf.zeros_like(z[..., 1:])], -1)


def _categorical(z, seed, t):
    """p - y, with an indicator y of a class drawn from p = softmax(z)"""
    p = tf.nn.softmax(z)
    below = tf.cast(tf.cumsum(p, -1) < _own(uniform, z[..., :1], seed, t), tf.int32)
    drawn = tf.minimum(tf.reduce_sum(below, -1), z.shape[-1] - 1)  # where rounding leaves the sum of p below 1
    return p - tf.one_hot(drawn, z.shape[-1], dtype=p.dtype)


def _own(draw, like, seed, t):
    """Random numbers in the shape of a tensor, others on each replica."""
    if replicas() == 1:
        return draw(tuple(tf.unstack(tf.shape(like))), seed, t, like.dtype)
    number = tf.distribute.get_replica_context().replica_id_in_sync_group
    return draw((replicas(), *tf.unstack(tf.shape(like))), seed, t, like.dtype)[number]
