"""Taps are what layers were given, and gradients by what they made of it, which make the gradients of the weights."""

import math
import threading

import keras
import numpy as np
import pytest
import tensorflow as tf

import kopt
from kopt.training import taps
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


def network():
    """Every kind of layer that has taps, one of them used twice, and some that have none."""
    inputs = keras.Input((6, 5, 2))
    x = layers.Conv2D(3, (3, 2), strides=(2, 1), padding="same", activation="tanh", name="conv2d")(inputs)
    x = layers.Conv2D(2, 2, dilation_rate=2, use_bias=False, name="dilated")(layers.BatchNormalization()(x))
    x = layers.Reshape((1, 3, 2, 1))(x)
    x = layers.Conv3D(2, (1, 2, 2), padding="same", name="conv3d")(x)
    x = layers.Reshape((6, 2))(x)
    x = layers.Conv1D(4, 2, padding="causal", activation="relu", name="conv1d")(x)
    x = layers.MultiHeadAttention(2, 3, name="attention")(x, x)
    x = layers.Dense(4, activation=layers.LeakyReLU(), name="words")(x)
    x = layers.EinsumDense("abc,bcd->ad", 4, bias_axes="d", name="einsum")(x)
    twice = layers.Dense(4, "tanh", name="twice")
    return kopt.Model(inputs, layers.Dense(3, "softmax", name="head")(twice(twice(x)))), (6, 5, 2)


def oracle(made, loss="sparse_categorical_crossentropy", scale=None, rows=4):
    """An oracle for a model that has seen its batch once, as optimizers have when they loop."""
    model, shape = made
    rng = np.random.default_rng(0)
    x, y = tf.constant(rng.standard_normal((rows, *shape))), tf.constant(rng.integers(0, 3, rows))
    model.compile("sgd", loss)

    def compute(through):
        outputs = model(x, training=True)
        return outputs, model.compute_loss(x, y, through(outputs), None)

    found = Oracle(Batch(model, compute, scale, losses=model.loss))
    found.loss()
    return found


def products(found):
    """The gradient that the taps' inputs and slopes make, for each weight that has taps."""
    gradients = {}
    for tap in found:
        x, s = tap.rows("float64")
        gradients[tap.kernel] = gradients.get(tap.kernel, 0) + tf.einsum("nti,nto->io", x, s)
        if tap.bias is not None:
            gradients[tap.bias] = gradients.get(tap.bias, 0) + tf.reduce_sum(s, (0, 1))
    return gradients


@pytest.mark.parametrize("mode", ["eager", "graph", pytest.param("xla", marks=pytest.mark.slow)])
@pytest.mark.parametrize("sampled", [False, True])
def test_inputs_times_slopes_are_the_gradients(mode, sampled):
    asked = oracle(network())

    def ask():
        loss, grads, found = (asked.loss(), *asked.sampled_taps(0, 1)) if sampled else asked.taps()
        return loss, grads, products(found), *((asked.loss(), asked.sampled_gradients(0, 1)) if sampled else asked())

    loss, grads, made, expected_loss, expected = MODES[mode](ask)()
    names = [v.path.rpartition("/") for v in asked._batch.variables]
    assert {names[i][0] for i in made} == {prefix for prefix, _, _ in names if "normalization" not in prefix}
    np.testing.assert_allclose(loss, expected_loss, rtol=1e-12)
    for number, (g, other) in enumerate(zip(grads, expected, strict=True)):
        np.testing.assert_allclose(g, other, atol=1e-12)
        if number in made:
            np.testing.assert_allclose(made[number], np.reshape(g, made[number].shape), atol=1e-12)
            assert np.abs(g).max() > 1e-6 or "key/bias" in "".join(names[number])  # to which attention is blind


def test_slopes_are_those_of_the_loss_itself_where_it_is_scaled():
    _, _, plain = oracle(network()).taps()
    keras.utils.set_random_seed(0)
    _, grads, scaled = oracle(network(), scale=2.0**10).taps()
    for a, b in zip(plain, scaled, strict=True):
        np.testing.assert_allclose(a.slopes, b.slopes, rtol=1e-5, atol=1e-7)
    np.testing.assert_allclose(products(plain)[0], np.reshape(grads[0], (-1, 3)), atol=1e-12)


class Own(layers.Dense):
    def call(self, inputs):
        return super().call(2 * inputs)


def test_layers_that_do_otherwise_have_no_taps():
    inputs = keras.Input((None, 4))
    adapted = layers.Dense(4, name="adapted")
    x = adapted(inputs)
    adapted.enable_lora(2)
    x = layers.Conv1D(4, 1, groups=2, name="groups")(Own(4, name="own")(x))
    x = layers.TimeDistributed(layers.Dense(4, name="mapped"))(layers.Dense(4, name="plain")(x))
    x = layers.GlobalAveragePooling1D()(layers.EinsumDense("abc,cd->adb", (4, None), name="turned")(x))
    model = kopt.Model(inputs, x)
    assert {layer.name for layer in taps.tapped(model)} == {"plain", "mapped"}
    rows = np.ones((2, 3, 4))

    @tf.function(input_signature=[tf.TensorSpec((None, None, 4), tf.float64)])
    def ask(rows):
        batch = Batch(model, lambda through: (y := model(rows), tf.reduce_sum(through(y))))
        _, _, found = Oracle(batch).taps()
        names.extend(tap.layer.name for tap in found)
        return found[0].slopes

    names = []
    assert ask(rows).shape == (2, 3, 4)
    assert names == ["plain"]  # nobody outside sees what the mapped function computes


def test_layers_are_left_as_they_were():
    asked = oracle(network())
    dense = asked._batch.model.get_layer("twice")
    before = dict(vars(dense))
    asked.taps()
    with pytest.raises(ZeroDivisionError):
        taps.look(asked._batch, asked.weights, lambda: 1 / 0)
    assert vars(dense) == before
    assert not taps._hooked


def test_threads_record_their_own():
    asked = [oracle(network()) for _ in range(2)]
    model = asked[0]._batch.model
    asked[1]._batch.model, asked[1]._batch.variables = model, model.trainable_variables
    both, counts = threading.Barrier(2), {}

    def record(number, uses):
        layer = model.get_layer("twice")
        with taps.recording([layer]) as seen:
            both.wait()
            for use in range(uses):
                layer(np.full((1, 4), number + use))
            both.wait()
        counts[number] = [float(x[0, 0]) for _, x, _ in seen]

    threads = [threading.Thread(target=record, args=(10 * n, n)) for n in (1, 2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert counts == {10: [10.0], 20: [20.0, 21.0]}
    assert "call" not in vars(model.get_layer("twice"))


def test_a_model_without_taps_says_which_layers_have_some():
    inputs = keras.Input((3, 2))
    model = kopt.Model(inputs, layers.GRU(3, activation="softmax")(inputs))
    with pytest.raises(
        ValueError,
        match=r"K-FAC: a model must have a trainable layer among Dense, .* got InputLayer, GRU.* Try kopt\.SOAP",
    ):
        oracle((model, (3, 2))).taps()


def test_patches_count_the_kernels_axes_as_it_does():
    x = tf.constant(np.arange(24.0).reshape(1, 4, 3, 2))
    layer = layers.Conv2D(1, (2, 3), data_format="channels_last")
    layer.build(x.shape)
    tap = taps.Tap(layer, 0, None, x, layer(x))
    rows, _ = tap.rows("float64")
    assert rows.shape == (1, 3, math.prod(layer.kernel.shape[:-1]))
    np.testing.assert_array_equal(rows[0, 1], np.ravel(x[0, 1:3]))
