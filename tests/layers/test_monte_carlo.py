"""Monte-Carlo dropout: the noise of training at prediction, and nothing else of training."""

import keras
import numpy as np
import pytest
from keras import layers

import kopt

X = np.random.default_rng(0).standard_normal((40, 6)).astype("float32")


def network(*noise):
    keras.utils.set_random_seed(0)
    inputs = keras.Input((6,))
    h = layers.BatchNormalization()(inputs)
    for layer in noise:
        h = layer(h)
    return keras.Model(inputs, layers.Dense(2)(h))


def test_draws_are_those_of_dropout_while_all_else_is_as_at_inference():
    model = network(layers.Dropout(0.25))
    before = [v.numpy() for v in model.variables]
    draws = kopt.monte_carlo(model, X, samples=400, seed=0)
    assert draws.shape == (400, 40, 2)
    for value, variable in zip(before, model.variables, strict=True):
        np.testing.assert_array_equal(value, variable.numpy())
    kernel = model.layers[-1].kernel.numpy()
    shown = model(X, training=False)
    np.testing.assert_allclose(draws.mean(axis=0), shown, atol=0.25)
    x = X / np.sqrt(1 + 1e-3)  # what batch normalization makes of it at inference
    expected = np.square(x) @ np.square(kernel) * 0.25 / 0.75  # of a sum of x w b / (1 - rate)
    np.testing.assert_allclose(draws.var(axis=0).mean(axis=0), expected.mean(axis=0), rtol=0.05)


def test_a_seed_fixes_the_draws_whatever_the_batches():
    model = network(kopt.layers.DropPath(0.5))
    one, two, other = (kopt.monte_carlo(model, X, samples=3, seed=s) for s in (1, 1, 2))
    np.testing.assert_array_equal(one, two)
    assert (one != other).any()
    assert (one[0] != one[1]).any()
    assert kopt.monte_carlo(model, X[:7], samples=2, batch_size=3).shape == (2, 7, 2)


def test_layers_around_layers_draw_too():
    model = network(kopt.layers.DropConnect(layers.Dense(4), 0.5), kopt.layers.ConcreteDropout(layers.Dense(4)))
    assert kopt.monte_carlo(model, X, samples=8, seed=0).std(axis=0).min() > 0


def test_a_model_without_noise_is_refused():
    with pytest.raises(ValueError, match=r"^monte_carlo: \w+ must have a layer that draws random numbers in training"):
        kopt.monte_carlo(network(layers.Dropout(0.0)), X)
    with pytest.raises(ValueError, match=r"^monte_carlo: samples must be an integer in \[1, inf\), got 0\.$"):
        kopt.monte_carlo(network(layers.Dropout(0.5)), X, samples=0)


@pytest.mark.skipif(keras.backend.backend() != "tensorflow", reason="estimators are TensorFlow's")
def test_estimators_have_means_and_spreads():
    y = (X[:, 0] > 0).astype(int)
    how = dict(model__dropout=0.5, epochs=3, random_state=0)
    classifier = kopt.KerasClassifier(**how).fit(X, y)
    p, spread = classifier.predict_proba(X, mc_samples=30, return_std=True)
    assert p.shape == spread.shape == (40, 2)
    np.testing.assert_allclose(p.sum(axis=1), 1, rtol=1e-5)
    assert spread.min() > 0
    np.testing.assert_array_equal(p, classifier.predict_proba(X, mc_samples=30))
    np.testing.assert_allclose(p, classifier.predict_proba(X), atol=0.3)
    regressor = kopt.KerasRegressor(**how).fit(X, X[:, :2])
    mean, spread = regressor.predict(X, mc_samples=5, return_std=True)
    assert mean.shape == spread.shape == (40, 2)
    targets = kopt.KerasClassifier(**how).fit(X, np.stack([y, y + (X[:, 1] > 0)], axis=1))
    means, spreads = targets.predict_proba(X, mc_samples=3, return_std=True)
    assert [m.shape for m in means] == [s.shape for s in spreads] == [(40, 2), (40, 3)]


@pytest.mark.skipif(keras.backend.backend() != "tensorflow", reason="estimators are TensorFlow's")
def test_estimators_refuse_spreads_that_there_are_none_of():
    regressor = kopt.KerasRegressor(epochs=1, random_state=0).fit(X, X[:, 0])
    with pytest.raises(ValueError, match="must have a layer that draws random numbers"):
        regressor.predict(X, mc_samples=3)
    with pytest.raises(ValueError, match=r"^KerasRegressor: return_std needs mc_samples, the number of draws\.$"):
        regressor.predict(X, return_std=True)
    with pytest.raises(ValueError, match=r"^KerasRegressor: mc_samples must be an integer in \[1, inf\), got 0\.$"):
        regressor.predict(X, mc_samples=0)
