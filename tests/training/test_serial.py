"""Small networks train one operation after the other, by a rule of the plan alone."""

import keras
import numpy as np
import pytest
from tensorflow.python.eager import context

import kopt
from kopt import _backend
from kopt.training import network, program, serial

X = np.random.default_rng(0).normal(size=(40, 3)).astype("float32")


def weights():
    network.PROGRAMS.clear()
    fitted = kopt.KerasRegressor(epochs=2, batch_size=16, random_state=0).fit(X, X.sum(axis=1))
    return fitted._network.weights


def test_executors_agree(monkeypatch):
    used = []
    in_one_thread = program.in_one_thread
    monkeypatch.setattr(program, "in_one_thread", lambda: used.append(1) or in_one_thread())
    first, second = weights(), weights()
    assert len(used) == 4
    monkeypatch.setattr(serial, "WEIGHTS", 0)
    usual = weights()
    assert len(used) == 4
    for a, b, c in zip(first, second, usual, strict=True):
        np.testing.assert_array_equal(a, b)
        np.testing.assert_allclose(a, c, atol=1e-5)


def test_a_tensorflow_without_the_executor(monkeypatch):
    monkeypatch.delattr(context, "function_executor_type")
    with _backend.in_one_thread():
        assert context.context().function_call_options.executor_type != "SINGLE_THREADED_EXECUTOR"


@pytest.mark.parametrize(
    ("units", "optimizer", "expected"), [(1, kopt.Adam, True), (2**16, kopt.Adam, False), (1, kopt.Muon, False)]
)
def test_rule(units, optimizer, expected):
    model = keras.Sequential([keras.Input((1,)), keras.layers.Dense(units)])
    assert serial.pays(model, optimizer()) is expected
