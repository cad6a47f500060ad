"""Methods that take the whole data set for a batch: which ones an optimizer has, and the batch that they get."""

import keras
import tensorflow as tf
from keras import tree

from kopt.optimizers import Optimizer
from kopt.optimizers.minimizer import Minimizer


def minimizers(optimizer):
    """The parts of an optimizer that take the whole data set for a batch."""
    optimizer = getattr(optimizer, "inner_optimizer", optimizer)  # a loss-scale wrapper's
    nodes = [node for _, node in optimizer._nodes()] if isinstance(optimizer, Optimizer) else []
    return [node for node in nodes if isinstance(node, Minimizer)]


def whole_batch(minimizer, x, batch_size):
    """The batch size at which a minimizer gets all rows of `x` at once, unless it asks for less."""
    shape = getattr(next(iter(tree.flatten(x)), None), "shape", None)
    if shape is not None:
        rows = shape[0]
        if minimizer.stochastic or (batch_size or rows) >= rows:
            return batch_size or rows
        raise ValueError(
            f"{type(minimizer).__name__}: batch_size must be None or cover all {rows} rows, got {batch_size}, for the "
            "loss is to be the same function at each step. Set stochastic=True to take steps on batches."
        )
    batches = x.num_batches if isinstance(x, keras.utils.PyDataset) else None
    if isinstance(x, tf.data.Dataset):
        batches = int(x.cardinality())
    if batches is not None and batches > 1 and not minimizer.stochastic:
        raise ValueError(
            f"{type(minimizer).__name__}: the data must come as one batch, got {batches}, for the loss is to be the "
            "same function at each step. Set stochastic=True to take steps on batches."
        )
    return batch_size
