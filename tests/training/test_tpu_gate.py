"""What a TPU has not is found in XLA's program, and steps of kopt have none of it."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

import kopt
from kopt.testing import backends


@pytest.mark.parametrize(
    ("function", "found"),
    [
        (lambda x: tf.reduce_sum(tf.boolean_mask(x, x > 0)), "a dimension of unknown size"),
        (lambda x: tf.cast(tf.cast(x, tf.float64) + 1e-9, tf.float32), "float64"),
        (lambda x: tf.linalg.eigh(x @ tf.transpose(x))[0] + tf.linalg.qr(x)[0], None),
    ],
)
def test_what_a_tpu_has_not_is_found(function, found):
    compiled, x = backends.compiled(function, xla=True), tf.random.stateless_normal((4, 4), (1, 2))
    compiled(x)
    assert backends.not_for_tpus(compiled, x) == ([found] if found else [])


@pytest.mark.parametrize("optimizer", [lambda: kopt.AdamW(1e-3, global_clipnorm=1.0), lambda: kopt.SAM(kopt.SGD(0.1))])
def test_a_step_of_a_model_has_nothing_that_a_tpu_has_not(optimizer):
    inputs = keras.Input((4, 4, 1))
    x = layers.BatchNormalization()(layers.Conv2D(3, 2, activation="relu")(inputs))
    x = layers.Dropout(0.5)(layers.GlobalAveragePooling2D()(x))
    model = kopt.Model(inputs, layers.Dense(3)(x))
    model.compile(optimizer(), keras.losses.SparseCategoricalCrossentropy(from_logits=True), metrics=["accuracy"])
    batch = tf.constant(np.ones((8, 4, 4, 1), "float32")), tf.constant(np.arange(8) % 3)
    model.train_on_batch(*batch)  # makes what a step needs
    for task in ("train", "test", "predict"):
        step = tf.function(getattr(model, f"{task}_step"), jit_compile=True, autograph=False)
        step(batch)
        assert not backends.not_for_tpus(step, batch), task
