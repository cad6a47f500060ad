"""Labels that a model draws have the Gauss-Newton matrix for their covariance."""

import keras
import numpy as np
import pytest
import tensorflow as tf

import kopt
from kopt.testing import backends
from kopt.training.batch import Batch
from kopt.training.oracle import Oracle
from kopt.training.sampling import sample

layers, losses = keras.layers, keras.losses
ROWS = 20_000
BIAS = np.array([0.3, -0.5, 1.0], "float32")


def one_output(activation, loss, weighted=False, masked=False):
    """A model whose outputs, or logits, are BIAS for each row; an oracle of it for many rows."""
    inputs = keras.Input((2,) if masked else (1,), dtype="int32" if masked else "float32")
    x = layers.Embedding(2, 1, mask_zero=True, embeddings_initializer="zeros")(inputs) if masked else inputs
    model = kopt.Model(inputs, layers.Dense(3, activation, kernel_initializer="zeros")(x))
    model.layers[-1].bias.assign(BIAS)
    rng = np.random.default_rng(0)
    y = rng.integers(0, 3, (ROWS, 2) if masked else ROWS)
    if "sparse" not in str(loss).lower():
        y = np.eye(3, dtype="float32")[y]
    x = rng.integers(0, 2, (ROWS, 2)) if masked else np.zeros((ROWS, 1), "float32")
    w = rng.uniform(0, 3, ROWS).astype("float32") if weighted else None
    model.compile(kopt.SGD(), loss)

    def compute(through):
        outputs = model(x, training=True)
        return outputs, model.compute_loss(x, y, through(outputs), w)

    return model, Oracle(Batch(model, compute, losses=model.loss))


CASES = {
    "logits": (None, losses.SparseCategoricalCrossentropy(from_logits=True)),
    "softmax, weighted": ("softmax", "categorical_crossentropy", True),
    "smoothed": ("softmax", losses.CategoricalCrossentropy(label_smoothing=0.2)),
    "softmax, masked": ("softmax", "sparse_categorical_crossentropy", False, True),
    "sigmoid": ("sigmoid", "binary_crossentropy"),
    "squares, weighted": (None, "mse", True),
    "squares, masked": (None, losses.MeanSquaredError(), False, True),
}


@pytest.mark.parametrize("case", [*CASES])
def test_the_covariance_of_draws_is_the_gauss_newton_matrix(case):
    _, oracle = one_output(*CASES[case])
    _, (s,) = sample(oracle._batch, oracle.weights, 0, 1.0)
    s = s.numpy().reshape(-1, 3)
    zeros = [tf.zeros_like(w) for w in oracle.weights[:-1]]
    matrix = np.stack([oracle.gnvp([*zeros, e])[-1] for e in tf.eye(3)])  # by the bias, whose Jacobian is the identity
    np.testing.assert_allclose(s.T @ s, matrix, atol=0.05 * matrix.max())
    assert np.abs(s.sum(0)).max() < 4 * np.sqrt(matrix.max())


def test_what_is_masked_draws_nothing():
    _, oracle = one_output(*CASES["softmax, masked"])
    _, (s,) = sample(oracle._batch, oracle.weights, 0, 1.0)
    rows = np.random.default_rng(0)
    rows.integers(0, 3, (ROWS, 2))  # the labels, drawn before the inputs
    np.testing.assert_array_equal(np.abs(s).max(-1) > 0, rows.integers(0, 2, (ROWS, 2)) > 0)


@pytest.mark.parametrize("xla", [False, True])
def test_rows_draw_for_themselves_and_each_step_anew(xla):
    _, oracle = one_output("softmax", "categorical_crossentropy")
    oracle.loss()
    squares = tf.function(lambda t: tf.square(oracle.sampled_gradients(3, t)[-1]), jit_compile=xla, autograph=False)
    found = np.stack([squares(tf.constant(t)) for t in np.arange(400.0, dtype="float32")])
    diagonal = [oracle.gnvp([tf.zeros_like(oracle.weights[0]), e])[-1][i] for i, e in enumerate(tf.eye(3))]
    np.testing.assert_allclose(found.mean(0), diagonal, rtol=0.25)
    np.testing.assert_array_equal(squares(tf.constant(7.0)), found[7])


def test_each_output_draws_by_its_own_loss():
    inputs = keras.Input((2,))
    heads = dict(a=layers.Dense(3, name="a")(inputs), b=layers.Dense(2, "sigmoid", name="b")(inputs))
    heads |= dict(c=layers.Dense(2, name="c")(inputs))
    model = kopt.Model(inputs, heads)
    model.compile(kopt.SGD(), dict(b="binary_crossentropy", a="mse"), loss_weights=dict(b=4.0, a=0.0))
    x = np.ones((5, 2), "float32")

    def compute(through):
        outputs = model(x)
        y = dict(a=np.ones((5, 3)), b=np.ones((5, 2)), c=np.ones((5, 2)))
        return outputs, model.compute_loss(x, y, through(outputs), None)

    outputs, drawn = sample(
        Batch(model, compute, losses=model.loss), [v.value for v in model.trainable_variables], 0, 1.0
    )
    np.testing.assert_array_equal(drawn[0], np.zeros((5, 3)))
    np.testing.assert_array_equal(drawn[2], np.zeros((5, 2)))
    root, p = np.sqrt(4 / 10), tf.sigmoid(outputs[1]).numpy()
    misses = np.minimum(np.abs(drawn[1] - root * p), np.abs(drawn[1] - root * (p - 1)))  # y = 0, and y = 1
    assert misses.max() < 1e-6


@pytest.mark.parametrize(
    ("activation", "loss"), [(None, "huber"), (None, "categorical_crossentropy"), (None, lambda y, z: (y - z) ** 2)]
)
def test_other_losses_are_refused(activation, loss):
    _, oracle = one_output(activation, loss)
    with pytest.raises(ValueError, match=r"To draw labels from a model, the loss must be .* got '"):
        oracle.sampled_gradients(0, 1.0)


@pytest.mark.skipif(backends.two_devices() is None, reason="two logical devices are needed")
def test_replicas_draw_for_themselves():
    strategy = backends.mirrored(backends.two_devices())
    with strategy.scope():
        model, oracle = one_output(None, "mse")

        def draw():
            batch = Batch(model, oracle._batch.compute, losses="mse")
            return sample(batch, [tf.convert_to_tensor(v.value) for v in model.trainable_variables], 0, 1.0)[1][0]

        one, two = strategy.run(tf.function(draw, autograph=False)).values
    assert np.abs(np.corrcoef(one.numpy().ravel(), two.numpy().ravel())[0, 1]) < 0.03
