"""Rows that come in batches: data sets of TensorFlow and Keras, and generators."""

import inspect
import sys

import numpy as np


def gathered(X, y=None, sample_weight=None, owner="kopt"):
    """Returns rows, targets and weights as arrays.

    Args:
        X: a `tf.data.Dataset`, a `keras.utils.PyDataset` or a generator of batches, which is read to its end: each is
            rows, or a tuple of rows, targets and perhaps weights. Anything else is returned as it is.
        y: None where `X` has the targets.
        sample_weight: None where `X` has the weights.
        owner: who asks, for errors.

    Raises:
        ValueError: the data have no end or no batch, or targets are given twice.
    """
    batches = _batches(X, owner)
    if batches is None:
        return X, y, sample_weight
    if y is not None or sample_weight is not None:
        raise ValueError(f"{owner}: y and sample_weight must be None where X brings them, in batches of (rows, y, w).")
    parts = list(zip(*(batch if isinstance(batch, tuple) else (batch,) for batch in batches), strict=True))
    if not 1 <= len(parts) <= 3:
        raise ValueError(f"{owner}: X must bring batches of rows, targets and perhaps weights, got {len(parts)} parts.")
    joined = [np.concatenate([np.asarray(part) for part in each]) for each in parts]
    return tuple([*joined, None, None][:3])


def _batches(X, owner):
    """What to read batches from; None if X is no such thing."""
    if inspect.isgenerator(X):
        return X
    keras = sys.modules.get("keras")  # where it is not imported, nobody can have made a data set
    if keras is not None and isinstance(X, keras.utils.PyDataset):
        if X.num_batches is None:
            raise _endless(X, owner)
        return (X[number] for number in range(X.num_batches))
    if hasattr(X, "as_numpy_iterator"):
        if X.cardinality() == -1:  # TensorFlow's number for what has no end
            raise _endless(X, owner)
        return X.as_numpy_iterator()
    return None


def _endless(X, owner):
    return ValueError(f"{owner}: X must come to an end, got {X!r}, which repeats for ever.")
