"""Dropout of paths, features, tokens and patches: who is left out, how often, and what the rest is multiplied with."""

import keras
import numpy as np
import pytest
from keras import ops

from kopt._keras import give_mask, mask_of
from kopt.layers import DropPath, FeatureDropout, PatchDropout, TokenDropout, drop_path, linear_depth
from kopt.schedules import Linear

X = np.random.default_rng(0).uniform(1, 2, (64, 3, 2)).astype("float32")


def numbers(x):
    return np.asarray(ops.convert_to_numpy(x), "float64")


def factors(y, x=X):
    """What each example was multiplied with, checked to be one number for all of its entries."""
    ratio = numbers(y).reshape(len(x), -1) / x.reshape(len(x), -1)
    np.testing.assert_allclose(ratio, ratio[:, :1] * np.ones_like(ratio), rtol=1e-5)
    return ratio[:, 0]


def near(share, chance, draws):
    """Whether a share of draws is what the chance of each lets expect."""
    return abs(share - chance) < 4 * np.sqrt(chance * (1 - chance) / draws)


@pytest.mark.parametrize("rate", [0.1, 0.5, 0.9])
def test_examples_are_zeroed_with_the_rate_and_the_rest_scaled(rate):
    x = np.ones((4000, 2), "float32")
    found = factors(drop_path(x, rate, keras.random.SeedGenerator(1)), x)
    np.testing.assert_allclose(found[found > 0], 1 / (1 - rate), rtol=1e-6)
    assert near((found > 0).mean(), 1 - rate, len(x))


def test_a_rate_of_one_drops_everything_and_zero_nothing():
    assert not factors(drop_path(X, 1.0, 0)).any()
    np.testing.assert_array_equal(ops.convert_to_numpy(drop_path(X, 0.0, 0)), X)


def test_by_batch_all_examples_share_their_fate():
    layer = DropPath(0.5, seed=0, mode="batch")
    found = [set(factors(layer(X, training=True)).round(5)) for _ in range(20)]
    assert set.union(*found) == {0, 2}
    assert all(len(each) == 1 for each in found)


def test_rates_may_be_schedules_which_count_calls_in_training():
    layer = DropPath(Linear(0.0, 2, 0.75), seed=0)
    assert factors(layer(X, training=True)).all()
    layer(X)
    np.testing.assert_allclose(sorted(set(factors(layer(X, training=True)).round(4))), [0, 1.6])  # 0.375
    np.testing.assert_allclose(sorted(set(factors(layer(X, training=True)).round(4))), [0, 4])
    assert int(layer.steps.value) == 3
    assert DropPath(0.5).steps is None
    assert layer.from_config(layer.get_config()).rate(1) == 0.375


def test_a_schedule_in_fit_counts_steps(tmp_path):
    inputs = keras.Input((3, 2))
    model = keras.Model(inputs, keras.layers.Dense(1)(DropPath(Linear(0.0, 9, 0.5), name="skip")(inputs)))
    model.compile("sgd", "mse")
    model.fit(X, X[:, :, :1], batch_size=32, epochs=3, verbose=0)
    model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    assert int(model.get_layer("skip").steps.value) == int(loaded.get_layer("skip").steps.value) == 6


def test_deeper_blocks_are_left_out_more_often():
    np.testing.assert_allclose(linear_depth(0.5, 4), [0.125, 0.25, 0.375, 0.5])


def test_features_are_left_out_at_all_positions():
    x = np.ones((500, 4, 3), "float32")
    y = numbers(FeatureDropout(0.25, seed=1)(x, training=True))
    assert (y == y[:, :1]).all()
    np.testing.assert_allclose(y[y > 0], 4 / 3, rtol=1e-6)
    assert near((y[:, 0] > 0).mean(), 0.75, 1500)
    assert not (y == y[:1]).all()
    assert len(np.unique(y[:, 0], axis=0)) == 8


def test_features_by_batch_and_on_another_axis():
    x = np.ones((50, 4, 3), "float32")
    y = numbers(FeatureDropout(0.5, mode="batch", seed=0)(x, training=True))
    assert (y == y[:1, :1]).all()
    y = numbers(FeatureDropout(0.5, axis=1, seed=0)(x, training=True))
    assert (y == y[:, :, :1]).all()
    assert not (y == y[:, :1]).all()


def test_words_are_replaced_and_vectors_zeroed():
    tokens = np.arange(1, 2001).reshape(500, 4)
    y = numbers(TokenDropout(0.25, token=7, seed=0)(tokens, training=True))
    assert set(y[y != tokens]) == {7}
    assert near((y == tokens).mean(), 0.75, 2000)
    y = numbers(TokenDropout(0.25, seed=0)(np.ones((500, 4, 3), "float32"), training=True))
    assert (y == y[:, :, :1]).all()
    assert {0, 1.3333} == set(y.round(4).ravel())
    assert near((y[..., 0] > 0).mean(), 0.75, 2000)


def test_patches_are_a_subset_in_their_order_with_the_first():
    x = np.tile(np.arange(8.0, dtype="float32")[None, :, None], (400, 1, 2))
    y = numbers(PatchDropout(0.5, kept_first=1, seed=0)(x, training=True))
    assert y.shape == (400, 1 + 4, 2)  # 1 and half of 7, rounded up
    assert (y[:, 0] == 0).all()
    assert (np.diff(y[..., 0], axis=1) > 0).all()
    for patch in range(1, 8):
        assert near((y == patch).any(axis=(1, 2)).mean(), 4 / 7, 400)
    np.testing.assert_array_equal(numbers(PatchDropout(0.5)(x)), x)


def test_the_masks_of_patches_go_with_them():
    x = ops.convert_to_tensor(np.tile(np.arange(6.0, dtype="float32")[None, :, None], (3, 1, 2)))
    give_mask(x, ops.convert_to_tensor(np.arange(6) < np.array([[2], [4], [6]])))
    y = PatchDropout(0.5, kept_first=0, seed=0)(x, training=True)
    np.testing.assert_array_equal(ops.convert_to_numpy(mask_of(y)), numbers(y)[..., 0] < [[2], [4], [6]])


def test_gradients_pass_where_examples_did():
    if keras.backend.backend() != "tensorflow":
        pytest.skip("a tape is TensorFlow's")
    import tensorflow as tf

    x = tf.constant(X)
    with tf.GradientTape() as tape:
        tape.watch(x)
        y = drop_path(x, 0.25, 5)
    np.testing.assert_allclose(factors(tape.gradient(y, x), np.ones_like(X)), factors(y), rtol=1e-6)


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


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: DropPath(1), ValueError, "DropPath: rate must be a number in [0, 1), got 1."),
        (lambda: DropPath("0.1"), TypeError, "DropPath: rate must be a number in [0, 1), got '0.1'."),
        (
            lambda: DropPath(Linear(2.0, 9)),
            ValueError,
            "DropPath: at step 0: rate must be a number in [0, 1), got 2.0.",
        ),
        (lambda: DropPath(0.1, mode="all"), ValueError, "DropPath: mode must be one of 'sample', 'batch', got 'all'."),
        (lambda: DropPath(0.1, seed=0.5), TypeError, "DropPath: seed must be an integer in [0, inf), got 0.5."),
        (lambda: linear_depth(0.1, 0), ValueError, "linear_depth: depth must be an integer in [1, inf), got 0."),
        (lambda: FeatureDropout(0.1, 0), ValueError, "FeatureDropout: axis must not be that of the examples, got 0."),
        (lambda: TokenDropout(0.1, -1), ValueError, "TokenDropout: token must be an integer in [0, inf), got -1."),
        (lambda: PatchDropout(Linear(0.1, 9)), TypeError, "PatchDropout: rate must be a number in [0, 1), since it"),
        (
            lambda: PatchDropout(0.1)(keras.Input((None, 3))),
            ValueError,
            "PatchDropout: inputs must have the shape (batch, tokens, features) with a known number of tokens, got "
            "(None, None, 3).",
        ),
    ],
)
def test_wrong_arguments_are_refused(make, error, message):
    with pytest.raises(error) as caught:
        make()
    assert str(caught.value).startswith(message)
