"""What one network holds never reaches another one that shares its program, and what a fit is told is done."""

import functools

import keras
import numpy as np
import pytest
import scipy.sparse as sp
from sklearn.base import clone

import kopt
from kopt import KerasClassifier, KerasRegressor

layers = keras.layers
X = np.random.RandomState(0).randn(64, 4).astype("float32")
y, total = (X.sum(1) > 0).astype(int), X.sum(1)
STILL = dict(epochs=1, random_state=0, optimizer__learning_rate=0.0)


def pinball(q, y, prediction):
    return keras.ops.mean(keras.ops.maximum(q * (y - prediction), (q - 1) * (y - prediction)), -1)


def test_partial_losses_differ_in_their_positional_arguments():
    below = [
        KerasRegressor(loss=functools.partial(pinball, q), random_state=0, optimizer__learning_rate=0.05)
        .fit(X, total)
        .predict(X)
        for q in (0.05, 0.95)
    ]
    assert (below[0] < total).mean() > 0.8
    assert (below[1] > total).mean() > 0.8


class Scale(layers.Layer):
    """Holds what it multiplies with where no configuration tells of it."""

    def call(self, x):
        return x * (self.held[0] if isinstance(self.held, list) else self.held)


def scaled(n_features_in_, held):
    scale = Scale()
    scale.held = held
    return keras.Sequential([keras.Input((n_features_in_,)), scale, layers.Dense(1)])


@pytest.mark.parametrize("kind", [float, np.float32, lambda f: np.array([f], "float32"), lambda f: [f]])
def test_what_a_layer_holds_is_its_own(kind):
    for held in (1.0, 100.0):
        estimator = KerasRegressor(scaled, model__held=kind(held), **STILL).fit(X, total)
        np.testing.assert_allclose(estimator.predict(X), estimator.model_(X)[:, 0], rtol=1e-4, atol=1e-5)


def standardized(n_features_in_, mean):
    normal = layers.Normalization()
    normal.adapt(X + mean)
    return keras.Sequential([keras.Input((n_features_in_,)), normal, layers.Dense(1)])


def test_adapted_layers_keep_their_statistics():
    for mean in (0.0, 1000.0):
        rows = X + np.float32(mean)
        template = standardized(4, mean)
        built = KerasRegressor(standardized, model__mean=mean, **STILL).fit(rows, total)
        copied = KerasRegressor(template, **STILL).fit(rows, total)
        assert np.abs(built.predict(rows)).max() < 10
        np.testing.assert_allclose(copied.predict(rows), template(rows)[:, 0], rtol=1e-3, atol=1e-3)


def named(n_features_in_, name):
    return keras.Sequential([keras.Input((n_features_in_,)), layers.Dense(1, name=name, kernel_initializer="ones")])


def test_decay_goes_by_each_networks_own_names():
    still = kopt.SGD(1e-3, weight_decay=100.0, no_decay="special|bias")
    kernels = [
        KerasRegressor(named, model__name=name, optimizer=still, epochs=1, random_state=0)
        .fit(X, total)
        .model_.weights[0]
        for name in ("plain", "special")
    ]
    assert np.asarray(kernels[0].numpy()).max() < 0.95
    assert np.asarray(kernels[1].numpy()).min() > 0.95


def test_averaged_weights_end_up_as_in_keras():
    model = named(4, "dense")
    optimizer = kopt.SGD(0.3, use_ema=True, ema_momentum=0.9)
    estimator = KerasRegressor(model, optimizer=optimizer, epochs=3, batch_size=64, random_state=0).fit(X, total)
    model.compile(optimizer, "mse")
    model.fit(X, total, batch_size=64, epochs=3, verbose=0)
    np.testing.assert_allclose(estimator.model_.get_weights()[0], model.get_weights()[0], rtol=1e-5)


@pytest.mark.parametrize("wrapped", [lambda rule: kopt.EMA(rule), lambda rule: kopt.ScheduleFree(rule)])
def test_averages_are_what_the_estimator_predicts_with(wrapped):
    model = named(4, "dense")
    optimizer = wrapped(kopt.SGD(0.3))
    estimator = KerasRegressor(model, optimizer=optimizer, epochs=3, batch_size=64, random_state=0).fit(X, total)
    more = clone(estimator).fit(X, total).partial_fit(X, total).partial_fit(X, total)
    model.compile(optimizer, "mse")
    model.fit(X, total, batch_size=64, epochs=3, verbose=0)
    np.testing.assert_allclose(estimator.model_.get_weights()[0], model.get_weights()[0], rtol=1e-5)
    straight = clone(estimator).set_params(epochs=5).fit(X, total)
    np.testing.assert_allclose(more.model_.get_weights()[0], straight.model_.get_weights()[0], rtol=1e-5)


def test_optimizers_inside_others_take_routed_parameters(monkeypatch):
    estimator = KerasRegressor(
        named, model__name="dense", optimizer=kopt.Cautious(kopt.SGD(0.1)), batch_size=64, random_state=0
    ).fit(X, total)
    monkeypatch.setattr("kopt.training.network.program", None)  # from here on nothing is compiled
    still = clone(estimator).set_params(optimizer__inner__learning_rate=0.0).fit(X, total)
    np.testing.assert_array_equal(still.model_.get_weights()[0], np.ones((4, 1)))
    with pytest.raises(ValueError, match=r"optimizer__inner__rate is no parameter of Cautious; it takes inner, "):
        clone(estimator).set_params(optimizer__inner__rate=0.0).fit(X, total)


def test_partial_fit_takes_new_numbers_and_refuses_another_optimizer():
    estimator = KerasRegressor(random_state=0).partial_fit(X, total)
    before = estimator.model_.get_weights()
    estimator.set_params(optimizer__learning_rate=0.0).partial_fit(X, total)
    for was, is_now in zip(before, estimator.model_.get_weights(), strict=True):
        np.testing.assert_array_equal(was, is_now)
    with pytest.raises(ValueError, match=r"^KerasRegressor: partial_fit must go on with the optimizer it has, Adam, "):
        estimator.set_params(optimizer="SGD").partial_fit(X, total)


def test_class_weights_count_present_rows_and_keep_all_classes():
    w = np.ones(64)
    w[np.flatnonzero(y == 1)[:20]] = 0
    balanced = functools.partial(KerasClassifier, class_weight="balanced", epochs=2, random_state=0)
    assert balanced().fit(X, y, w).loss_curve_ == balanced().fit(X[w > 0], y[w > 0]).loss_curve_
    assert list(KerasClassifier(class_weight={0: 0.0, 1: 1.0}, epochs=1).fit(X, y).classes_) == [0, 1]


def test_after_a_failed_fit_there_is_no_fit():
    estimator = KerasClassifier(epochs=2, random_state=0).fit(X, y)
    with pytest.raises(ValueError, match="must stay finite"):
        estimator.set_params(optimizer="SGD", optimizer__learning_rate=1e30, epochs=9).fit(X, np.arange(64) % 3)
    assert not estimator.__sklearn_is_fitted__()


def test_sparse_indicators_are_labels():
    labels = (X[:, :3] > 0).astype(int)
    dense, sparse = (KerasClassifier(epochs=1, random_state=0).fit(X, a) for a in (labels, sp.csr_matrix(labels)))
    np.testing.assert_array_equal(dense.predict_proba(X), sparse.predict_proba(X))


def squashed_by_an_operation(n_features_in_, n_classes_):
    inputs = keras.Input((n_features_in_,))
    return keras.Model(inputs, keras.ops.softmax(layers.Dense(n_classes_)(inputs)))


def test_a_softmax_that_is_no_layer_is_seen():
    estimator = KerasClassifier(squashed_by_an_operation, epochs=1, random_state=0).fit(X, np.arange(64) % 3)
    np.testing.assert_allclose(estimator.predict_proba(X), estimator.model_(X), rtol=1e-4)


def test_a_factory_is_no_optimizer():
    with pytest.raises(TypeError, match=r"^KerasRegressor: optimizer must be a name, a class or an instance, got"):
        KerasRegressor(optimizer=functools.partial(kopt.SGD, momentum=0.9)).fit(X, total)
