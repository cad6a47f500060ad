"""DropPath: whole examples are dropped, with the right probability and scale, everywhere Keras runs it."""

import keras
import numpy as np
import pytest
from keras import ops

from kopt.layers import DropPath, drop_path

X = np.random.default_rng(0).uniform(1, 2, (64, 3, 2)).astype("float32")


def factors(y, x=X):
    """What each example was multiplied with, checked to be one number for all of its entries."""
    ratio = np.asarray(ops.convert_to_numpy(y), "float32").reshape(len(x), -1) / x.reshape(len(x), -1)
    np.testing.assert_allclose(ratio, ratio[:, :1] * np.ones_like(ratio), rtol=1e-2)
    return ratio[:, 0]


@pytest.mark.parametrize("rate", [0.1, 0.5, 0.9])
def test_examples_are_zeroed_with_the_rate_and_the_rest_scaled(rate):
    x = np.ones((4000, 2), "float32")
    found = factors(drop_path(x, rate, keras.random.SeedGenerator(1)), x)
    kept = found > 0
    np.testing.assert_allclose(found[kept], 1 / (1 - rate), rtol=1e-6)
    spread = np.sqrt(rate * (1 - rate) / len(x))  # of a binomial share
    assert abs(kept.mean() - (1 - rate)) < 4 * spread


def test_a_rate_of_one_drops_everything_and_zero_nothing():
    assert not factors(drop_path(X, 1.0, 0)).any()
    np.testing.assert_array_equal(ops.convert_to_numpy(drop_path(X, 0.0, 0)), X)


def test_nothing_happens_outside_of_training():
    layer = DropPath(0.5)
    np.testing.assert_array_equal(ops.convert_to_numpy(layer(X)), X)
    np.testing.assert_array_equal(ops.convert_to_numpy(layer(X, training=False)), X)
    np.testing.assert_array_equal(ops.convert_to_numpy(DropPath(0)(X, training=True)), X)


def test_a_seed_fixes_the_draws_and_each_call_draws_anew():
    first, second = DropPath(0.5, seed=3), DropPath(0.5, seed=3)
    one, two = factors(first(X, training=True)), factors(first(X, training=True))
    np.testing.assert_array_equal(one, factors(second(X, training=True)))
    assert (one != two).any()
    assert (one != factors(DropPath(0.5, seed=4)(X, training=True))).any()
    assert (factors(DropPath(0.5)(X, training=True)) != factors(DropPath(0.5)(X, training=True))).any()


@pytest.mark.parametrize("policy", ["float64", "float16", "bfloat16", "mixed_bfloat16"])
def test_it_computes_in_its_policy(policy):
    if policy == "float64" and keras.backend.backend() == "jax":
        pytest.skip("JAX has no float64 unless told so")
    layer = DropPath(0.5, seed=0, dtype=policy)
    y = layer(ops.cast(X, layer.compute_dtype), training=True)
    assert keras.backend.standardize_dtype(y.dtype) == layer.compute_dtype
    np.testing.assert_allclose(sorted(set(factors(y).round(1))), [0, 2])


@pytest.mark.parametrize("shape", [(5,), (5, 4), (2, 3, 4, 5)])
def test_any_rank_and_any_batch_size(shape):
    layer = DropPath(0.5, seed=0)
    model = keras.Sequential([keras.Input(shape[1:]), layer])
    for rows in (1, 7):
        x = np.ones((rows, *shape[1:]), "float32")
        assert model(x, training=True).shape == x.shape
    assert layer.compute_output_shape((None, *shape[1:])) == (None, *shape[1:])


def test_gradients_pass_where_examples_did():
    if keras.backend.backend() != "tensorflow":
        pytest.skip("a tape is TensorFlow's")
    import tensorflow as tf

    x = tf.constant(X)
    with tf.GradientTape() as tape:
        tape.watch(x)
        y = drop_path(x, 0.25, 5)
    np.testing.assert_allclose(factors(tape.gradient(y, x), np.ones_like(X)), factors(y), rtol=1e-6)


def test_a_mask_passes_through():
    embedding = keras.layers.Embedding(5, 2, mask_zero=True)
    y = DropPath(0.5)(embedding(np.array([[1, 0], [2, 3]])))
    np.testing.assert_array_equal(ops.convert_to_numpy(y._keras_mask), [[True, False], [True, True]])


def test_config_and_file_round_trip(tmp_path):
    inputs = keras.Input((2,))
    model = keras.Model(inputs, DropPath(0.25, seed=7, name="skip")(inputs))
    model.save(tmp_path / "model.keras")
    layer = keras.saving.load_model(tmp_path / "model.keras").get_layer("skip")
    assert (type(layer), layer.rate, layer.seed) == (DropPath, 0.25, 7)


@pytest.mark.parametrize("jit_compile", [False, True])
def test_it_trains_in_a_residual_network(jit_compile):
    keras.utils.set_random_seed(0)
    inputs = keras.Input((6,))
    h = keras.layers.Dense(6)(inputs)
    model = keras.Model(inputs, keras.layers.add([h, DropPath(0.5, seed=0)(keras.layers.Dense(6, "relu")(h))]))
    model.compile("sgd", "mse", jit_compile=jit_compile)
    x = X.reshape(64, 6)
    before = model.evaluate(x, x, verbose=0)
    model.fit(x, x, epochs=3, verbose=0)
    assert model.evaluate(x, x, verbose=0) < before


@pytest.mark.parametrize(("rate", "error"), [(1, ValueError), (-0.1, ValueError), ("0.1", TypeError)])
def test_a_wrong_rate_is_refused(rate, error):
    with pytest.raises(error, match=rf"^DropPath: rate must be a number in \[0, 1\), got {rate!r}\.$"):
        DropPath(rate)
