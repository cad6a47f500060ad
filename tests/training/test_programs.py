import threading

import keras
import numpy as np
import pytest
import scipy.sparse as sp
import tensorflow as tf
from sklearn.datasets import make_classification

from kopt import KerasClassifier, KerasRegressor
from kopt.training import cache, network
from kopt.training import program as programs

X, y = make_classification(60, 6, n_informative=4, random_state=0)


@pytest.fixture(autouse=True)
def _empty_cache():
    network.PROGRAMS.clear()


def build(n_features_in_, n_outputs_, units=8, rate=0.2, activation="relu"):
    layers = keras.layers
    return keras.Sequential(
        [layers.Dense(units, activation), layers.BatchNormalization(), layers.Dropout(rate), layers.Dense(n_outputs_)]
    )


def net(model=build, **parameters):
    return KerasClassifier(model, **{"epochs": 3, "batch_size": 16, "random_state": 0} | parameters)


def weights(estimator):
    return estimator._network.weights


def equal(a, b):
    return all((x == y).all() for x, y in zip(weights(a), weights(b), strict=True))


def traces():
    return sum(p.epoch.experimental_get_tracing_count() for p in network.PROGRAMS._values.values())


def test_like_fits_compile_once():
    for parameters in (
        {},
        {"optimizer__learning_rate": 0.1},
        {"optimizer__beta_1": 0.5},
        {"random_state": 1},
        {"batch_size": 7},
        {"epochs": 1},
        {"class_weight": "balanced"},
    ):
        net(**parameters).fit(X, y)
        net(**parameters).fit(X[:37], y[:37]).predict(X[:1])
    assert (len(network.PROGRAMS), traces()) == (1, 1)


@pytest.mark.parametrize(
    "parameters",
    [
        {"model__units": 9},
        {"model__rate": 0.3},
        {"model__activation": "tanh"},
        {"model__activation": keras.ops.square},
        {"optimizer": "SGD"},
        {"optimizer__clipnorm": 1.0},
        {"loss": "binary_focal_crossentropy"},
        {"loss": keras.losses.BinaryFocalCrossentropy(gamma=3, from_logits=True)},
        {"strategy": "mirrored"},
    ],
    ids=lambda parameters: next(iter(parameters)),
)
def test_other_structures_are_other_programs(parameters):
    net().fit(X, y)
    net(**parameters).fit(X, y)
    assert len(network.PROGRAMS) == 2


def test_functions_of_one_name_are_told_apart():
    def scaled(factor):
        def activation(x):
            return factor * x

        return activation

    one, two = (net(model__activation=scaled(f)).fit(X, y) for f in (1.0, 2.0))
    network.PROGRAMS.clear()
    assert equal(two, net(model__activation=scaled(2.0)).fit(X, y))
    assert not equal(one, two)


def test_wiring_is_told_apart():
    def wired(n_features_in_, n_outputs_, second=False):
        inputs = keras.Input((n_features_in_,))
        a, b = keras.layers.Dense(4)(inputs), keras.layers.Dense(4)(inputs)
        return keras.Model(inputs, keras.layers.Dense(n_outputs_)(keras.layers.add([a, b, b if second else a])))

    for second in (False, True, False):
        net(wired, model__second=second).fit(X, y)
    assert len(network.PROGRAMS) == 2


@pytest.mark.parametrize("optimizer", ["adam", keras.optimizers.Adam, keras.optimizers.SGD], ids=str)
def test_a_reused_program_equals_a_fresh_one(optimizer):
    fresh = net(optimizer=optimizer, optimizer__learning_rate=0.01).fit(X, y)
    net(optimizer=optimizer, optimizer__learning_rate=0.2, random_state=5).fit(X[::-1], y)
    assert equal(fresh, net(optimizer=optimizer, optimizer__learning_rate=0.01).fit(X, y))
    network.PROGRAMS.clear()
    assert equal(fresh, net(optimizer=optimizer, optimizer__learning_rate=0.01).fit(X, y))
    assert not equal(fresh, net(optimizer=optimizer, optimizer__learning_rate=0.02).fit(X, y))


def test_hyperparameters_reach_a_reused_program():
    net(optimizer__beta_1=0.9).fit(X, y)
    reused = net(optimizer__beta_1=0.1).fit(X, y)
    network.PROGRAMS.clear()
    assert equal(reused, net(optimizer__beta_1=0.1).fit(X, y))


def test_threads_equal_one_thread():
    alone = [net(random_state=seed).fit(X, y) for seed in range(4)]
    together = [net(random_state=seed) for seed in range(4)]
    threads = [threading.Thread(target=each.fit, args=(X, y)) for each in together]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(equal(a, b) for a, b in zip(alone, together, strict=True))


def test_a_fit_leaves_the_generators_alone():
    import random

    random.seed(3), np.random.seed(3)
    before = random.getstate(), np.random.get_state()[1].tolist()
    net().fit(X, y)
    assert (random.getstate(), np.random.get_state()[1].tolist()) == before
    assert keras.config.dtype_policy().name == "float32"


def test_cache_keeps_the_most_recently_used():
    kept = cache.Cache(size=2)
    made = []
    for key in "abacba":
        assert kept.find(key, lambda key=key: made.append(key) or key.upper()) == key.upper()
    assert made == ["a", "b", "c", "b", "a"]
    assert len(kept) == 2


def test_an_evicted_program_is_compiled_again():
    one = net().fit(X, y)
    before = one.predict_proba(X)
    network.PROGRAMS.clear()
    np.testing.assert_array_equal(one.predict_proba(X), before)
    assert len(network.PROGRAMS) == 1


def test_blocks_equal_the_whole(monkeypatch):
    whole = net().fit(X, y)
    monkeypatch.setattr(programs, "BLOCK", 20 * 6 * 8)
    assert equal(whole, net().fit(X, y))
    assert equal(whole, net().fit(sp.csr_matrix(X), y))
    np.testing.assert_allclose(net().fit(X, y).loss_curve_, whole.loss_curve_)


def test_prediction_goes_by_blocks_of_rows(monkeypatch):
    one = net().fit(X, y)
    before = one.predict_proba(X)
    monkeypatch.setattr(programs, "ROWS", 7)
    np.testing.assert_allclose(one.predict_proba(X), before, rtol=1e-12)
    np.testing.assert_allclose(one.predict_proba(sp.csr_array(X)), before, rtol=1e-12)


def test_an_epoch_is_steps_of_weighted_means():
    """One epoch of SGD, with an uneven last batch and a penalty, equals the same steps by hand."""

    def linear(n_features_in_, n_outputs_):
        dense = keras.layers.Dense(n_outputs_, kernel_regularizer=keras.regularizers.L2(0.3))
        return keras.Sequential([keras.Input((n_features_in_,), dtype="float64"), dense])

    rng = np.random.default_rng(0)
    X, y, w = rng.standard_normal((10, 3)), rng.standard_normal(10), rng.uniform(0.5, 2, 10)
    still = KerasRegressor(linear, optimizer="SGD", optimizer__learning_rate=0.0)
    still.set_params(epochs=1, batch_size=4, random_state=7)
    kernel, bias = weights(still.fit(X, y, w))
    moved = still.set_params(optimizer__learning_rate=0.1).fit(X, y, w)
    order = np.random.default_rng(int(np.random.RandomState(7).randint(2**31 - 1, size=2)[1])).permutation(10)
    total = 0.0
    for batch in (order[:4], order[4:8], order[8:]):
        share = w[batch] / w[batch].sum()
        error = X[batch] @ kernel[:, 0] + bias[0] - y[batch]
        total += w[batch].sum() * ((share * error**2).sum() + 0.3 * (kernel**2).sum())
        kernel, bias = (
            kernel - 0.1 * (2 * X[batch].T @ (share * error) + 0.6 * kernel[:, 0])[:, None],
            bias - 0.1 * 2 * (share * error).sum(),
        )
    np.testing.assert_allclose(weights(moved)[0], kernel, rtol=1e-7)
    np.testing.assert_allclose(weights(moved)[1], bias, rtol=1e-7)
    np.testing.assert_allclose(moved.loss_curve_, [total / w.sum()], rtol=1e-7)


def test_subclassed_models_train_and_predict():
    class Net(keras.Model):
        def __init__(self, units, outputs):
            super().__init__()
            self.hidden, self.out = keras.layers.Dense(units, "relu"), keras.layers.Dense(outputs)

        def call(self, x):
            return self.out(self.hidden(x))

    def make(n_outputs_, units=16):
        return Net(units, n_outputs_)

    one = net(make, optimizer__learning_rate=0.03, epochs=20).fit(X, y)
    assert one.score(X, y) > 0.85
    assert equal(one, net(make, optimizer__learning_rate=0.03, epochs=20).fit(X, y))


def test_layers_that_make_variables_by_value_work():
    class Scale(keras.layers.Layer):
        def __init__(self):
            super().__init__()
            self.factor = keras.Variable(2.0)

        def call(self, x):
            return x * keras.ops.cast(self.factor, x.dtype)

    def make(n_outputs_):
        return keras.Sequential([Scale(), keras.layers.Dense(n_outputs_)])

    one = net(make, optimizer__learning_rate=0.1).fit(X, y)
    assert weights(one)[0] != 2.0
    assert one.score(X, y) > 0.6


def test_a_loss_that_diverges_is_an_error():
    with pytest.raises(ValueError, match=r"KerasRegressor: the loss must stay finite, got .* in epoch"):
        KerasRegressor(optimizer="SGD", optimizer__learning_rate=1e20, epochs=50).fit(X, y)


def test_a_loss_must_be_given_for_each_row():
    with pytest.raises(ValueError, match="a value of its own"):
        net(loss=lambda y, z: tf.reduce_mean(z)).fit(X, y)
