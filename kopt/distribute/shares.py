"""Keras's losses as shares of a batch's loss: what replicas compute adds up to what one device computes.

Keras takes the mean over the rows of a replica, and divides it by the number of replicas. That is the batch's mean only
where all replicas have equally many rows, of equal weight, and masks of equal size. Here each replica divides by what
all of them have.
"""

import contextlib
import threading
from typing import Any, NamedTuple

import tensorflow as tf
from keras import ops, tree

from kopt._backend import assign, replicas, sum_over_replicas
from kopt._keras import REDUCTIONS
from kopt._replaced import Replaced

_here = threading.local()  # replicas have a thread each


class Share(NamedTuple):
    """How much of a batch a replica has.

    Attributes:
        rows: its rows, a float64 scalar.
        batch: those of all replicas.
    """

    rows: Any
    batch: Any

    @property
    def part(self):
        """The replica's part of the batch, in [0, 1]."""
        return tf.math.divide_no_nan(self.rows, self.batch)


def current():
    """The share of this replica, within `sharing`; None on one device."""
    return getattr(_here, "share", None)


@contextlib.contextmanager
def sharing(rows):
    """A context of a replica's step in which Keras's losses, and those that layers add, are shares of the batch's.

    Args:
        rows: the replica's tensors, in lists and dicts, with equally long first axes; there may be no rows.
    """
    if replicas() == 1 or current() is not None:
        yield
        return
    number = tf.cast(number_of(next(x for x in tree.flatten(rows) if x is not None)), tf.float64)
    _here.share = Share(number, sum_over_replicas([number])[0])
    try:
        with _shared_losses:
            yield
    finally:
        _here.share = None


@contextlib.contextmanager
def beside():
    """A context where no replica computes, in which Keras's losses are those of the rows that they are given."""
    one = tf.constant(1.0, tf.float64)
    _here.share = Share(one, one)
    try:
        with _shared_losses:
            yield
    finally:
        _here.share = None


def number_of(x):
    """The number of rows of a tensor, which may be a sparse or ragged one."""
    if isinstance(x, tf.SparseTensor):
        return x.dense_shape[0]
    return x.nrows() if isinstance(x, tf.RaggedTensor) else tf.shape(x)[0]


def keep_of_all(share, changes):
    """Assigns to variables, on every replica, what all replicas have made of them.

    That is the mean by rows; the sum of the changes where a variable's aggregation is "sum"; and what the first replica
    has of integers, and where the aggregation says so.

    Args:
        share: this replica's.
        changes: variables, what they held before, and what this replica has made of that.
    """

    def part(variable, old, new):
        if variable.aggregation == "sum":
            return new - old
        if variable.aggregation == "only_first_replica" or not new.dtype.is_floating:
            first = tf.distribute.get_replica_context().replica_id_in_sync_group == 0
            return tf.where(first, new, tf.zeros_like(new))
        return tf.where(share.rows > 0, tf.cast(share.part, new.dtype) * new, tf.zeros_like(new))

    whole = sum_over_replicas([part(*change) for change in changes])
    for (variable, old, _), value in zip(changes, whole, strict=True):
        assign(variable, old + value if variable.aggregation == "sum" else value)


def _scale(value):
    """A mean over the replica's rows, as its share of the mean over the batch's."""
    if (share := current()) is None:
        return _keras["scale_loss_for_distribution"](value)
    return value * ops.cast(share.part, value.dtype)


def _unscale(value):
    """The batch's loss, of which each replica has a share: what metrics are told."""
    if current() is None:
        return _keras["unscale_loss_for_distribution"](value)
    return sum_over_replicas([value])[0]


def _reduce(values, sample_weight=None, reduction="sum_over_batch_size"):
    """The share of a reduced loss; a mean by weights is over those of the whole batch."""
    if current() is not None and tuple(values.shape) == (0,):  # which Keras would return as they are
        return ops.sum(values)
    if current() is None or reduction != "mean_with_sample_weight" or sample_weight is None:
        return _keras["reduce_values"](values, sample_weight, reduction)
    (weight,) = sum_over_replicas([ops.cast(ops.sum(sample_weight), values.dtype)])
    return ops.divide_no_nan(ops.sum(values), weight)


def _mask(sample_weight, mask, dtype, reduction):
    """Weights of which those that a mask leaves add up to the number of all, over the whole batch."""
    mean = reduction in ("mean", "sum_over_batch_size")
    if (share := current()) is None or mask is None or not mean:
        return _keras["apply_mask"](sample_weight, mask, dtype, reduction)
    weights = _keras["apply_mask"](sample_weight, mask, dtype, "sum")
    entries = tf.cast(tf.size(mask), dtype)
    (valid,) = sum_over_replicas([tf.reduce_sum(ops.cast(mask, dtype))])
    return weights * ops.divide_no_nan(entries, ops.cast(share.part, dtype) * valid)


_ours = {
    "scale_loss_for_distribution": _scale,
    "unscale_loss_for_distribution": _unscale,
    "reduce_values": _reduce,
    "apply_mask": _mask,
}
_keras = {name: getattr(REDUCTIONS, name) for name in _ours}
_shared_losses = Replaced(REDUCTIONS, **_ours)
