"""A data set as one batch, whose loss, gradient and products add up over smaller ones: a few rows at a time."""

import keras
import tensorflow as tf
from keras import tree

from kopt._keras import is_seed
from kopt.training.oracle import Oracle


class Rows:
    """Arrays in micro-batches: those of one size, then a last one of what is left.

    Args:
        arrays: tensors with equally long first axes, in tuples and dicts.
        size: rows in a micro-batch.
    """

    def __init__(self, arrays, size):
        self.arrays, self.size = arrays, size
        self.number = tree.flatten(arrays)[0].shape[0]

    def some(self):
        """Some rows, to build a model with."""
        return self.arrays

    def mean(self, function, zeros):
        """The mean over rows of `function(part)`, a list of tensors like `zeros`."""

        def add(total, start, end):
            part = tree.map_structure(lambda x: x[start:end], self.arrays)
            share = tf.cast(end - start, "float64") / self.number
            return _plus(total, share, function(part))

        def body(i, total):
            return i + 1, add(total, i * self.size, (i + 1) * self.size)

        full = self.number // self.size
        _, total = tf.while_loop(lambda i, _: i < full, body, (tf.constant(0), zeros), parallel_iterations=1)
        rest = tf.constant(full * self.size)  # slices of fixed size are what XLA can have in a loop
        return add(total, rest, self.number) if full * self.size < self.number else total


class Stream:
    """A `tf.data.Dataset` of micro-batches, which may be larger than memory.

    Args:
        dataset: of (x, y) or (x, y, sample_weight).
    """

    def __init__(self, dataset):
        self.dataset = dataset
        self.number = dataset.reduce(tf.constant(0.0, "float64"), lambda n, part: n + _rows(part))

    def some(self):
        """As `Rows.some`."""
        return next(iter(self.dataset))

    def mean(self, function, zeros):
        """As `Rows.mean`."""

        def add(total, part):
            return tuple(_plus(total, _rows(part) / self.number, function(part)))

        return list(self.dataset.reduce(tuple(zeros), add))


def _plus(total, share, terms):
    """total + share · terms, in the types of the total"""
    return [a + tf.cast(share, a.dtype) * tf.cast(b, a.dtype) for a, b in zip(total, terms, strict=True)]


def _rows(part):
    return tf.cast(tf.shape(tree.flatten(part)[0])[0], "float64")


class MicroBatched(Oracle):
    """An oracle for a data set in micro-batches: each answer is the mean of those for the micro-batches.

    Args:
        batch: a `Batch` of the whole, of which no look is taken.
        parts: `Rows`, or a `Stream`.
        compute: returns a function like `Batch.compute` for one part.
        weights: as in `Oracle`.
    """

    def __init__(self, batch, parts, compute, weights=None):
        super().__init__(batch, weights)
        self.parts, self.compute = parts, compute

    def at(self, weights):
        """As in `Oracle`."""
        return type(self)(self._batch, self.parts, self.compute, weights)

    def _mean(self, ask, like):
        def answer(part):
            oracle = Oracle(self._batch.of(self.compute(part)), self.weights)
            return [tf.zeros_like(w) if x is None else x for x, w in zip(ask(oracle), like, strict=True)]

        return self.parts.mean(answer, [tf.zeros_like(x) for x in like])

    @property
    def _zero(self):
        """A loss of nothing, in the widest type of the weights."""
        return tf.zeros((), "float64" if any(w.dtype == "float64" for w in self.weights) else "float32")

    def loss(self):
        """As in `Oracle`."""
        (self.value,) = self._mean(lambda oracle: [oracle.loss()], [self._zero])
        return self.value

    def __call__(self):
        """As in `Oracle`."""

        def ask(oracle):
            loss, grads = oracle()
            return [loss, *grads]

        self.value, *grads = self._mean(ask, [self._zero, *self.weights])
        return self.value, grads

    def hvp(self, vectors):
        """As in `Oracle`."""
        return self._mean(lambda oracle: oracle.hvp(vectors), self.weights)

    def gradients_and_hvp(self):
        """As in `Oracle`, but for one pass."""
        return self.gradients(), self.hvp

    def gnvp(self, vectors):
        """As in `Oracle`."""
        return self._mean(lambda oracle: oracle.gnvp(vectors), self.weights)

    @property
    def sampled_gradients(self):  # pyright: ignore[reportIncompatibleMethodOverride]
        """Refused: squares of sums over micro-batches are no sums of squares."""
        raise ValueError(
            "Labels are drawn for one batch at a time: micro_batch_size must be None, or the optimizer one that draws "
            "none, such as kopt.SophiaH."
        )


def check_adds_up(model, owner):
    """Raises if the loss of a model's rows is not the mean of the losses of its micro-batches."""
    for variable in model.non_trainable_variables:
        if is_seed(variable):
            raise ValueError(
                f"{owner}: micro_batch_size must be None for a model that draws random numbers, which would be the "
                f"same in each micro-batch, got one with {variable.path!r}. Leave dropout and noise out."
            )
    for layer in model._flatten_layers():
        if isinstance(layer, keras.layers.BatchNormalization) and layer.trainable:
            raise ValueError(
                f"{owner}: micro_batch_size must be None for a model with batch normalization, whose statistics are "
                f"those of all rows; {layer.name!r} is trainable. Set {layer.name}.trainable = False."
            )
    loss = getattr(model, "loss", None)
    for each in tree.flatten(loss):
        if getattr(each, "reduction", "sum_over_batch_size") != "sum_over_batch_size":
            raise ValueError(
                f"{owner}: micro_batch_size must be None unless losses are means over rows, got "
                f"reduction={each.reduction!r} in {each.name!r}."
            )
