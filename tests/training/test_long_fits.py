"""Long fits of estimators are compiled by XLA, if that pays, and end as they would without."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from kopt import SAM, SGD, KerasClassifier, KerasRegressor
from kopt.training import network, program, xla

L = keras.layers
RNG = np.random.default_rng(0)
X, y = RNG.standard_normal((50, 4)), RNG.integers(0, 3, 50)


@pytest.fixture
def by_xla(monkeypatch):
    """Makes XLA pay from five steps on, and tells how many rows its programs were given."""
    network.PROGRAMS.clear()
    monkeypatch.setattr(program, "FEW", 5)
    monkeypatch.setattr(xla, "SECONDS_TO_COMPILE", (0.0, 0.0))
    run, seen = program.Program._epoch_by_xla, []

    def watched(self, by_xla, rows, as_graph, order):
        seen.append(len(order))
        return run(self, by_xla, rows, as_graph, order)

    monkeypatch.setattr(program.Program, "_epoch_by_xla", watched)
    yield seen
    network.PROGRAMS.clear()


def net(epochs=3, **parameters):
    return KerasClassifier(**{"epochs": epochs, "batch_size": 16, "random_state": 0} | parameters)


@pytest.mark.parametrize(
    "parameters",
    [
        {},
        {"optimizer": SAM(SGD(0.1)), "epochs": 2},
        {"optimizer": "ScheduleFreeAdamW", "batch_size": 50, "epochs": 5},
        pytest.param(
            {"optimizer": "LBFGS", "batch_size": "auto", "epochs": 5},
            marks=pytest.mark.filterwarnings("ignore:.*runs as a graph"),  # that of TensorFlow 2.16 cannot
        ),
    ],
    ids=["Adam", "SAM", "ScheduleFreeAdamW, one batch", "LBFGS"],
)
def test_they_end_as_a_graph_does(by_xla, monkeypatch, parameters):
    """With a smaller last batch, and without."""
    weights = RNG.uniform(0.5, 2.0, 50)
    found = net(**parameters).fit(X, y, weights)
    assert by_xla == [50] * found.epochs
    monkeypatch.setattr(program, "FEW", 10**9)
    expected = net(**parameters).fit(X, y, weights)
    assert len(by_xla) == found.epochs
    np.testing.assert_allclose(found.loss_curve_, expected.loss_curve_, rtol=1e-9)
    np.testing.assert_allclose(found.predict_proba(X), expected.predict_proba(X), rtol=1e-9)


def test_the_plan_alone_decides_so_that_like_fits_are_equal(by_xla):
    first = net().fit(X, y).predict_proba(X)
    short = net(epochs=1).fit(X, y).predict_proba(X)
    assert by_xla == [50] * 3  # not the short one, though the program is there
    np.testing.assert_array_equal(net().fit(X, y).predict_proba(X), first)
    np.testing.assert_array_equal(net(epochs=1).fit(X, y).predict_proba(X), short)
    (shared,) = network.PROGRAMS._values.values()
    assert len(shared._compiled_epochs) == 1


def dropping(input_shape_, n_classes_):
    return keras.Sequential([keras.Input(input_shape_), L.Dropout(0.5), L.Dense(n_classes_, "softmax")])


@pytest.mark.parametrize(
    "parameters",
    [
        {"model": dropping},  # XLA would draw other numbers
        {"callbacks": [keras.callbacks.LambdaCallback(on_train_batch_end=lambda batch, logs: None)]},
    ],
    ids=["random numbers", "callback of batches"],
)
def test_some_stay_graphs(by_xla, parameters):
    net(**parameters).fit(X, y)
    assert by_xla == []


def convolving():
    return keras.Sequential([keras.Input((4, 1)), L.Conv1D(2, 2), L.Flatten(), L.Dense(1)])


@pytest.mark.skipif(bool(tf.config.list_physical_devices("GPU")), reason="XLA has fast convolutions on a GPU")
def test_convolutions_on_a_cpu_stay_graphs(by_xla):
    KerasRegressor(convolving, epochs=3, batch_size=16).fit(X[:, :, None], y)
    assert by_xla == []


class Opaque(L.Layer):
    """A layer of which XLA knows nothing."""

    def call(self, inputs):
        same = tf.numpy_function(lambda x: x, [inputs], inputs.dtype)
        return inputs + tf.stop_gradient(tf.ensure_shape(same, inputs.shape) - inputs)


def opaque(input_shape_, n_classes_):
    return keras.Sequential([keras.Input(input_shape_), Opaque(), L.Dense(n_classes_, "softmax")])


def test_what_xla_cannot_compile_runs_as_a_graph(by_xla, monkeypatch):
    with pytest.warns(UserWarning, match="runs as a graph: XLA cannot compile it, ") as warned:
        found = net(model=opaque).fit(X, y)
    assert len(warned) == 1
    again = net(model=opaque).fit(X, y)  # without another warning
    monkeypatch.setattr(program, "FEW", 10**9)
    for each in (found, again):
        np.testing.assert_array_equal(each.predict_proba(X), net(model=opaque).fit(X, y).predict_proba(X))
