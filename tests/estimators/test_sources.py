"""Rows that come in batches are the same rows."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from kopt import KerasClassifier

rng = np.random.default_rng(0)
X, w = rng.standard_normal((50, 3)).astype("float32"), rng.uniform(0.5, 2, 50)
y = (X.sum(axis=1) > 0).astype(int)


class Pairs(keras.utils.PyDataset):
    def __len__(self):
        return 4

    def __getitem__(self, number):
        rows = slice(16 * number, 16 * number + 16)
        return X[rows], y[rows], w[rows]


def generator(*parts):
    for start in range(0, 50, 16):
        batch = tuple(part[start : start + 16] for part in parts)
        yield batch if len(batch) > 1 else batch[0]


def network():
    return KerasClassifier(epochs=2, batch_size=16, random_state=0)


@pytest.fixture(scope="module")
def expected():
    return network().fit(X, y, w).predict_proba(X)


@pytest.mark.parametrize(
    "source",
    [
        lambda: tf.data.Dataset.from_tensor_slices((X, y, w)).batch(16),
        lambda: tf.data.Dataset.from_generator(
            lambda: generator(X, y, w),
            output_signature=tuple(tf.TensorSpec((None, *a.shape[1:]), a.dtype) for a in (X, y, w)),
        ),
        Pairs,
        lambda: generator(X, y, w),
    ],
    ids=["dataset", "unknown-length", "keras", "generator"],
)
def test_batches_are_rows(source, expected):
    fitted = network().fit(source())
    np.testing.assert_array_equal(fitted.predict_proba(source()), expected)
    np.testing.assert_array_equal(fitted.predict_proba(generator(X)), expected)


@pytest.mark.parametrize(
    ("fit", "message"),
    [
        (lambda e: e.fit(tf.data.Dataset.from_tensors((X, y)).repeat()), "X must come to an end, got <_Repeat"),
        (lambda e: e.fit(generator(X, y), y), "y and sample_weight must be None where X brings them"),
        (lambda e: e.fit(generator(X)), "requires y to be passed, but the target y is None"),
        (lambda e: e.fit(generator(X, y, w, w)), "batches of rows, targets and perhaps weights, got 4 parts"),
        (lambda e: e.fit(batch for batch in ()), "got 0 parts"),
        (lambda e: e.fit(X), "requires y to be passed, but the target y is None"),
    ],
)  # fmt: skip
def test_what_is_no_source(fit, message):
    with pytest.raises(ValueError, match=message):
        fit(network())
