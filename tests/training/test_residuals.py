"""Residuals: half of the sum of their squares is Keras's loss, and their Jacobian is that of finite differences.

A forgotten weight, mask, divisor or factor of two changes the sum; a share of the loss that is differentiated, or a
sign, changes the Jacobian.
"""

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import ops

import kopt
from kopt.training.batch import Batch
from kopt.training.oracle import Oracle

layers, L2, L1L2 = keras.layers, keras.regularizers.L2, keras.regularizers.L1L2
MODES = {
    "eager": lambda f: f,
    "graph": lambda f: tf.function(f, autograph=False),
    "xla": lambda f: tf.function(f, autograph=False, jit_compile=True),
}


@pytest.fixture(autouse=True)
def exact():
    """Everything in float64."""
    keras.config.set_floatx("float64")
    keras.config.set_dtype_policy("float64")
    yield
    keras.config.set_floatx("float32")
    keras.config.set_dtype_policy("float32")


ROWS = 6
rng = np.random.default_rng(0)
x, y = rng.standard_normal((ROWS, 3)), rng.uniform(0.1, 0.9, (ROWS, 2))
weights = rng.uniform(0.5, 2, ROWS) * [1, 0, 1, 1, 1, 1]
words = np.where(rng.uniform(size=(ROWS, 4, 1)) < 0.7, rng.standard_normal((ROWS, 4, 2)), 0)


def one(activation=None, kind=kopt.Model, units=2):
    inputs = keras.Input((3,))
    hidden = layers.BatchNormalization()(layers.Dense(2, "tanh", kernel_regularizer=L2(0.25))(inputs))
    return kind(inputs, layers.Dense(units, activation, bias_regularizer=L1L2(l2=0.125))(hidden))


def two():
    inputs = keras.Input((3,))
    hidden = layers.Dense(2, "tanh")(inputs)
    return kopt.Model(inputs, dict(a=layers.Dense(2, name="a")(hidden), b=layers.Dense(2, "sigmoid", name="b")(hidden)))


def masked():
    inputs = keras.Input((4, 2))
    return kopt.Model(inputs, layers.TimeDistributed(layers.Dense(2))(layers.Masking()(inputs)))


def recurrent():
    inputs = keras.Input((4, 2))
    return kopt.Model(inputs, layers.Dense(2)(layers.GRU(2)(inputs)))


class Physics(kopt.Model):
    """u' = -u for the first output, at the rows, and two numbers that ought to be zero."""

    def compute_residuals(self, x, y, y_pred, sample_weight):
        with tf.GradientTape(watch_accessed_variables=False) as tape:
            tape.watch(x)
            u = self(x, training=True)[:, :1]
        return [tape.gradient(u, x)[:, :1] + u, ops.sum(y_pred, axis=0)]


MSE = keras.losses.MeanSquaredError
CASES = {  # model, losses, loss weights, x, y, sample weights
    "squares": (one, "mse", None, x, y, None),
    "one output": (lambda: one(units=1), "mse", 0.7, x, y[:, :1], weights),
    "sum": (one, MSE("sum", dtype="float64"), [0.5], x, y, weights),
    "weighted mean": (one, MSE("mean_with_sample_weight", dtype="float64"), None, x, y, weights),
    "two outputs": (
        two,
        dict(a="mse", b="mse"),
        dict(a=2.0, b=0.3),
        x,
        dict(a=y, b=y),
        dict(a=weights, b=weights[::-1]),
    ),
    "two kinds": (two, dict(a="mse", b="binary_crossentropy"), None, x, dict(a=y, b=y), None),
    "masked": (masked, "mse", None, words, rng.standard_normal((ROWS, 4, 2)), None),
    "recurrent": (recurrent, "mse", None, words, y, weights),
    "huber": (one, keras.losses.Huber(0.3, dtype="float64"), None, x, y, weights),
    "logits": (
        one,
        keras.losses.SparseCategoricalCrossentropy(from_logits=True, ignore_class=0, dtype="float64"),
        None,
        x,
        np.array([0, 1, 1, 0, 1, 1]),
        weights,
    ),
    "absolute": (one, "mae", None, x, y, None),
    "physics": (lambda: one(kind=Physics), None, None, x, y, None),
    "physics and data": (lambda: one(kind=Physics), "mse", 2.0, x, y, weights),
}


def oracle_of(case):
    """An oracle for a case."""
    make, loss, loss_weights, *data = CASES[case] if isinstance(case, str) else case
    keras.utils.set_random_seed(1)
    model = make()
    model.compile("sgd", loss, loss_weights=loss_weights)
    x, y, sample_weight = [part if part is None else tf.nest.map_structure(tf.constant, part) for part in data]

    def compute(through):
        outputs = model(x, training=True)
        return outputs, model.compute_loss(x, y, through(outputs), sample_weight)

    return Oracle(Batch(model, compute))


def flat(parts):
    return np.concatenate([np.ravel(part) for part in parts])


def parts_of(oracle, vector):
    ends = np.cumsum([np.size(w) for w in oracle.weights])[:-1]
    return [tf.constant(part.reshape(w.shape)) for part, w in zip(np.split(vector, ends), oracle.weights, strict=True)]


@pytest.mark.parametrize("case", CASES)
def test_residuals_and_jacobian(case):
    oracle = oracle_of(case)
    loss, start = oracle.loss(), flat(oracle.weights)
    r, J = (part.numpy() for part in oracle.jacobian())
    np.testing.assert_allclose(r @ r / 2, loss, rtol=1e-12)
    np.testing.assert_allclose(r, oracle.residuals(), rtol=1e-12)
    assert J.shape == (r.size, start.size)
    linear, step, v, u = oracle.linearized(), 1e-6, rng.standard_normal(start.size), rng.standard_normal(r.size)
    np.testing.assert_allclose(linear.jvp(parts_of(oracle, v)), J @ v, atol=1e-12)
    np.testing.assert_allclose(flat(linear.vjp(tf.constant(u))), u @ J, atol=1e-12)
    slopes = [tf.zeros_like(w) if g is None else g for g, w in zip(oracle.gradients(), oracle.weights, strict=True)]
    np.testing.assert_allclose(r @ J, flat(slopes), atol=1e-10)
    values = tf.function(lambda w: oracle.at(w).residuals(), autograph=False)
    for number in range(0, start.size, 3):
        unit = step * np.eye(start.size)[number]
        up, down = values(parts_of(oracle, start + unit)), values(parts_of(oracle, start - unit))
        np.testing.assert_allclose(J[:, number], (up - down) / (2 * step), atol=1e-7)


def test_squares_keep_their_sign_and_others_do_not():
    r = oracle_of("squares").residuals().numpy()[: 2 * ROWS]
    oracle = oracle_of("squares")
    error = (oracle._batch.model(x, training=True) - y).numpy().ravel()
    np.testing.assert_allclose(r, error * np.sqrt(2 / (2 * ROWS)), rtol=1e-12)
    assert r.min() < 0 < r.max()
    assert oracle_of("huber").residuals().numpy()[:ROWS].min() == 0  # of the row that weighs nothing


@pytest.mark.parametrize("case", ["squares", "physics", pytest.param("recurrent", marks=pytest.mark.slow)])
def test_eager_graph_and_xla_agree(case):
    found = []
    for mode, compiled in MODES.items():
        if (case, mode) != ("recurrent", "xla"):  # XLA cannot differentiate a loop of unknown length twice
            found.append(answers(oracle_of(case), compiled))
            r, J, jvp, vjp = found[-1]
            np.testing.assert_allclose(jvp, J.sum(1), atol=1e-12)
            np.testing.assert_allclose(vjp, J.sum(0), atol=1e-12)
            np.testing.assert_allclose(r, found[0][0], atol=1e-12)
            np.testing.assert_allclose(J, found[0][1], atol=1e-12)


def answers(oracle, compiled):
    """Residuals, Jacobian, and its products with ones."""
    oracle.loss()

    def ask():
        r, J = oracle.jacobian()
        return r, J, oracle.jvp([tf.ones_like(w) for w in oracle.weights]), oracle.vjp(tf.ones_like(r))

    r, J, jvp, vjp = compiled(ask)()
    return r.numpy(), J.numpy(), jvp.numpy(), flat(vjp)


def test_blocks_of_rows_and_columns_are_those_of_one_block(monkeypatch):
    for rows in (2, 20):  # fewer than weights, and more
        case = one, "mse", None, np.resize(x, (rows, 3)), np.resize(y, (rows, 2)), None
        oracle = oracle_of(case)
        oracle.loss()
        whole = tf.function(oracle.jacobian, autograph=False)()[1].numpy()
        monkeypatch.setattr("kopt.training.residuals.BLOCK", 1)  # four at once
        np.testing.assert_allclose(tf.function(oracle.jacobian, autograph=False)()[1], whole, atol=1e-14)
        monkeypatch.undo()


def test_squares_of_a_loss_of_ones_own_have_no_sign():
    class Twice(keras.losses.MeanSquaredError):
        def call(self, y_true, y_pred):
            return 2 * super().call(y_true, y_pred)

    r = oracle_of((one, Twice(), None, x, y, None)).residuals().numpy()[:ROWS]
    error = oracle_of("squares").residuals().numpy()[: 2 * ROWS].reshape(ROWS, 2)
    np.testing.assert_allclose(r, np.sqrt(2 * (error**2).sum(1)), rtol=1e-12)


def test_where_an_element_is_zero_its_derivative_is():
    inputs = keras.Input((1,))
    model = kopt.Model(inputs, layers.Dense(1, use_bias=False, kernel_initializer="ones")(inputs))
    oracle = oracle_of((lambda: model, "mae", None, np.ones((2, 1)), np.array([[1.0], [3.0]]), None))
    r, J = oracle.jacobian()
    np.testing.assert_allclose(r, [0, np.sqrt(2)])
    np.testing.assert_allclose(J[:, 0], [0, -0.5 / np.sqrt(2)])


class Own(kopt.Model):
    def compute_loss(self, x=None, y=None, y_pred=None, sample_weight=None, training=True):
        return ops.mean(ops.square(y_pred - y))


def penalized(**how):
    inputs = keras.Input((3,))
    return lambda: kopt.Model(inputs, layers.Dense(2, **how)(inputs))


def one_number(y_true, y_pred):
    return ops.mean(ops.square(y_true - y_pred))


REFUSED = {
    "the elements of cosine_similarity may be negative": (one, "cosine_similarity", None, x, y, None),
    "dice is one number for all elements": (one, "dice", None, x, y, None),
    "one_number is one number for all elements": (one, one_number, None, x, y, None),
    "Own.compute_loss makes a loss of its own": (lambda: one(kind=Own), "mse", None, x, y, None),
    "L1 penalizes dense.*/kernel by no square": (penalized(kernel_regularizer="l1"), "mse", None, x, y, None),
    "L1L2 penalizes dense.*/bias by no square": (
        penalized(bias_regularizer=L1L2(0.1, 0.1)),
        "mse",
        None,
        x,
        y,
        None,
    ),
    "add_loss or an activity regularizer adds to it": (penalized(activity_regularizer="l2"), "mse", None, x, y, None),
}


@pytest.mark.parametrize("why", REFUSED)
def test_a_loss_without_residuals_is_refused(why):
    with pytest.raises(ValueError, match=f"The loss of '.*' has no residuals, for {why}. Compile a mean squared error"):
        oracle_of(REFUSED[why]).residuals()
    assert keras.losses.Loss.__call__.__module__.startswith("keras")  # as it was


def test_a_loss_that_turns_out_negative_is_refused():
    def signed(y_true, y_pred):
        return ops.mean(y_pred - y_true, axis=-1)

    with pytest.raises(tf.errors.InvalidArgumentError, match="it must not be negative"):
        oracle_of((one, signed, None, x, y, None)).residuals()


def test_a_model_of_residuals_trains_and_evaluates():
    keras.utils.set_random_seed(1)
    model = one(kind=Physics)
    model.compile(kopt.LevenbergMarquardt(), jit_compile=False)
    losses = model.fit(x, epochs=8, verbose=0).history["loss"]
    assert losses[-1] < 0.1 * losses[0]
