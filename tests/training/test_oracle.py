"""What the oracle answers is what finite differences and dense matrices give."""

import keras
import numpy as np
import pytest
import tensorflow as tf

import kopt
from kopt.training.batch import Batch
from kopt.training.oracle import Oracle

layers = keras.layers
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
    keras.utils.set_random_seed(0)
    yield
    keras.config.set_floatx("float32")
    keras.config.set_dtype_policy("float32")


def normalized(units=2, activation=None):
    inputs = keras.Input((3,))
    x = layers.Dense(4, "tanh", kernel_regularizer="l2")(inputs)
    x = layers.BatchNormalization()(layers.Dropout(0.3)(x))
    return kopt.Model(inputs, layers.Dense(units, activation)(x)), (3,)


def convolutional():
    inputs = keras.Input((4, 4, 1))
    x = layers.GroupNormalization(2)(layers.Conv2D(2, 2, activation="softplus")(inputs))
    x = layers.LayerNormalization()(layers.Flatten()(x))
    return kopt.Model(inputs, layers.Dense(2)(x)), (4, 4, 1)


def recurrent():
    inputs = keras.Input((3, 2))
    return kopt.Model(inputs, layers.Dense(2)(layers.GRU(2)(inputs))), (3, 2)


class Subclassed(kopt.Model):
    def __init__(self):
        super().__init__()
        self.hidden, self.head = layers.Dense(3, "tanh"), layers.Dense(2)

    def call(self, x):
        return self.head(self.hidden(x))


def subclassed():
    model = Subclassed()
    model(np.zeros((1, 3)))
    return model, (3,)


CASES = {
    "logits": (normalized, lambda y, z: keras.losses.categorical_crossentropy(y, z, from_logits=True)),
    "softmax": (lambda: normalized(activation="softmax"), "categorical_crossentropy"),
    "sigmoid": (lambda: normalized(activation="sigmoid"), "binary_crossentropy"),
    "squares": (normalized, "mse"),
    "convolutional": (convolutional, "mse"),
    "recurrent": (recurrent, "mse"),
    "subclassed": (subclassed, "huber"),
}


class Flat:
    """An oracle for a small model, with vectors for weights."""

    def __init__(self, make, loss, rows=6):
        self.model, shape = make()
        self.model.compile("sgd", loss)
        rng = np.random.default_rng(0)
        self.x = tf.constant(rng.standard_normal((rows, *shape)))
        self.y = tf.constant(np.eye(2)[rng.integers(0, 2, rows)])

        def compute(through):
            outputs = self.model(self.x, training=True)
            return outputs, self.model.compute_loss(self.x, self.y, through(outputs), None)

        self.oracle = Oracle(Batch(self.model, compute))
        self.oracle.loss()  # the first look, outside any graph
        self.shapes = [w.shape for w in self.oracle.weights]
        self.start = self.flat(self.oracle.weights)

    def flat(self, tensors):
        return np.concatenate([np.ravel(t) for t in tensors])

    def lists(self, vector):
        sizes = [int(np.prod(s)) for s in self.shapes]
        pieces = np.split(vector, np.cumsum(sizes)[:-1])
        return [tf.constant(p.reshape(s)) for p, s in zip(pieces, self.shapes, strict=True)]

    def products(self, product, vectors):
        """A linear function of lists, of each row of an array."""
        return np.stack([self.flat(product(self.lists(v))) for v in vectors])

    def directions(self, number=4):
        return np.random.default_rng(2).standard_normal((number, self.start.size))


@pytest.mark.parametrize("mode", [*MODES])
@pytest.mark.parametrize("case", [*CASES])
def test_products_are_those_of_finite_differences(case, mode):
    if case == "recurrent" and mode == "xla":
        pytest.skip("XLA cannot differentiate a loop of unknown length twice")
    flat, compiled = Flat(*CASES[case]), MODES[mode]
    vectors, step = flat.directions(), 1e-5
    products = flat.products(compiled(lambda v: flat.oracle.hvp(v)), vectors)
    gradient = compiled(lambda w: flat.oracle.at(w).gradients())
    up, down = (flat.products(gradient, flat.start + sign * step * vectors) for sign in (1, -1))
    np.testing.assert_allclose(products, (up - down) / (2 * step), atol=1e-7)
    crossed = products @ vectors.T
    np.testing.assert_allclose(crossed, crossed.T, atol=1e-11)


@pytest.mark.parametrize("mode", [*MODES])
@pytest.mark.parametrize("case", ["logits", "softmax", "sigmoid", "squares", "convolutional"])
def test_the_gauss_newton_matrix_is_that_of_the_jacobian(case, mode):
    flat = Flat(*CASES[case])
    vectors = flat.directions()
    products = flat.products(MODES[mode](lambda v: flat.oracle.gnvp(v)), vectors)
    crossed = products @ vectors.T
    np.testing.assert_allclose(crossed, crossed.T, atol=1e-11)
    assert np.linalg.eigvalsh(crossed).min() > 0
    if mode == "xla" and case != "convolutional":
        return  # XLA draws other masks
    held = []

    def keep(outputs):
        held.append(getattr(outputs, "_keras_logits", outputs))
        return outputs

    batch, weights = flat.oracle._batch, flat.oracle.weights
    with tf.GradientTape() as tape:
        tape.watch(weights)
        batch.look(weights, keep)
    jacobians = tape.jacobian(held[0], weights)
    rows, units = held[0].shape
    jacobian = np.concatenate([np.reshape(j, (rows * units, -1)) for j in jacobians], 1)
    logits = tf.constant(held[0].numpy())
    with tf.GradientTape() as outer:
        outer.watch(logits)
        with tf.GradientTape() as inner:
            inner.watch(logits)
            outputs = {"softmax": tf.nn.softmax, "sigmoid": tf.sigmoid}.get(case, tf.identity)(logits)
            value = flat.model.compute_loss(flat.x, flat.y, outputs, None)
        slope = inner.gradient(value, logits)
    curvature = np.reshape(outer.jacobian(slope, logits), (rows * units, rows * units))
    penalty = np.zeros(flat.start.size)
    if case != "convolutional":
        penalty[:12] = 2 * 0.01  # keras's "l2" on the first kernel
    expected = jacobian.T @ curvature @ jacobian + np.diag(penalty)
    np.testing.assert_allclose(products, vectors @ expected, atol=1e-5)  # Keras clips probabilities


def test_looks_share_their_noise_unless_it_is_to_be_fresh():
    flat = Flat(*CASES["squares"])
    batch = flat.oracle._batch
    assert float(batch.look(flat.oracle.weights)) == float(batch.look(flat.oracle.weights))
    batch.fresh_noise = True
    assert len({float(batch.look(flat.oracle.weights)) for _ in range(5)}) > 1


def test_statistics_and_seeds_move_at_the_first_look_alone():
    model, _ = normalized()
    plain = keras.models.clone_model(model)
    plain.set_weights(model.get_weights())
    model.compile(kopt.SAM(kopt.SGD(0.0), rho=0.5), "mse")
    plain.compile(keras.optimizers.SGD(0.0), "mse")
    rng = np.random.default_rng(1)
    x, y = rng.standard_normal((8, 3)), rng.standard_normal((8, 2))
    seeds = [v for m in (model, plain) for v in m.non_trainable_variables if "seed" in v.path]
    seeds[1].assign(seeds[0])
    for each in (model, plain):
        each.fit(x, y, batch_size=4, shuffle=False, verbose=0)
    for ours, theirs in zip(model.variables, plain.variables, strict=True):
        np.testing.assert_allclose(ours.numpy(), theirs.numpy(), rtol=1e-12)
