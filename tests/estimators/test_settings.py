"""Where and in what an estimator computes, and its randomness: in copies, in threads, in other processes."""

import copy
import pickle
import subprocess
import sys

import keras
import numpy as np
import pytest
import tensorflow as tf
from joblib import Parallel, delayed
from sklearn.base import clone
from sklearn.datasets import make_classification
from sklearn.utils._param_validation import InvalidParameterError

import kopt
from kopt import KerasClassifier, KerasRegressor

X, y = make_classification(60, 6, n_informative=4, random_state=0)
X = X.astype("float32")


def noisy(seed, **settings):
    return KerasClassifier(
        epochs=2, batch_size=16, model__hidden_layer_sizes=(8, 8), model__dropout=0.2, random_state=seed, **settings
    )


def probabilities(estimator):
    return estimator.fit(X, y).predict_proba(X)


# ---- randomness ------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def in_series():
    return [probabilities(noisy(seed)) for seed in (0, 1, 2, 3)]


def test_equal_in_series_and_different_without_a_seed(in_series):
    np.testing.assert_array_equal(probabilities(noisy(0)), in_series[0])
    assert (probabilities(noisy(None)) != probabilities(noisy(None))).any()


def test_equal_in_threads(in_series):
    jobs = Parallel(n_jobs=4, backend="threading")(delayed(probabilities)(noisy(seed)) for seed in (3, 2, 1, 0))
    np.testing.assert_array_equal(jobs[::-1], in_series)


def placed_and_fitted(estimator):
    """What a worker tells of a fit: where its network was trained, and what it predicts."""
    replicas = estimator.fit(X, y)._network.blueprint.placed
    return estimator.strategy, estimator.device, estimator.dtype, type(replicas).__name__, estimator.predict_proba(X)


@pytest.fixture(scope="module")
def in_workers():
    """The same fits in processes of joblib's, each with settings of its own."""
    settings = [
        {},
        {"dtype": "mixed_bfloat16", "device": "CPU"},
        {"strategy": "mirrored"},
        {"strategy": tf.distribute.OneDeviceStrategy("/cpu:0")},
    ]
    with Parallel(n_jobs=2, backend="loky") as parallel:
        return parallel(delayed(placed_and_fitted)(clone(noisy(0, **each))) for each in settings)


@pytest.mark.slow
def test_equal_in_workers(in_workers, in_series):
    np.testing.assert_array_equal(in_workers[0][-1], in_series[0])


@pytest.mark.slow
def test_settings_reach_workers(in_workers):
    kinds = [worker[3] for worker in in_workers]
    assert kinds == ["NoneType", "OneDeviceStrategy", "MirroredStrategy", "OneDeviceStrategy"]
    assert in_workers[1][:3] == (None, "CPU", "mixed_bfloat16")
    assert in_workers[3][0].extended.worker_devices == ("/job:localhost/replica:0/task:0/device:CPU:0",)
    assert (in_workers[1][-1] != in_workers[0][-1]).any()


# ---- devices and strategies ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["cpu:1", "CPU:1", "/cpu:1", "/device:CPU:1"])
def test_a_device_by_name(name):
    strategy = kopt.distribute.strategy.resolve(None, "me", name)
    assert strategy.extended.worker_devices == ("/job:localhost/replica:0/task:0/device:CPU:1",)


def test_the_device_is_where_the_network_lives(in_series):
    estimator = pickle.loads(pickle.dumps(clone(noisy(0, device="CPU:1"))))
    np.testing.assert_array_equal(probabilities(estimator), in_series[0])
    assert "CPU:1" in estimator._network.program().weights[0].value.device
    assert "CPU:0" in estimator.model_.weights[0].value.device
    with pytest.raises(
        InvalidParameterError, match=r"KerasClassifier: device must be one of CPU:0, CPU:1, CPU:2, CPU:3, got 'TPU'"
    ):
        noisy(0, device="TPU").fit(X, y)


@pytest.mark.parametrize("again", [copy.deepcopy, clone, lambda e: pickle.loads(pickle.dumps(e))])
def test_instances_of_strategies_survive(again):
    estimator = again(KerasRegressor(strategy=tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"]), epochs=1))
    assert estimator.strategy.num_replicas_in_sync == 2


# ---- precision -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("dtype", "rows", "weights", "outputs"),
    [
        ("float32", "float64", "float32", "float32"),
        ("float64", "float32", "float64", "float64"),
        ("bfloat16", "float32", "bfloat16", "float32"),
        ("mixed_bfloat16", "float64", "float32", "float32"),
        ("mixed_float16", "float32", "float32", "float32"),
    ],
)
def test_a_policy_for_the_network_alone(dtype, rows, weights, outputs):
    estimator = clone(noisy(0, dtype=dtype)).fit(X.astype(rows), y)
    assert estimator.predict_proba(X.astype(rows)).dtype == outputs
    model = pickle.loads(pickle.dumps(estimator)).model_
    assert {w.dtype for w in model.weights if "seed" not in w.path} == {weights}
    assert {layer.compute_dtype for layer in model.layers[1:]} == {dtype.removeprefix("mixed_")}
    assert keras.config.dtype_policy().name == "float32"


def test_float16_scales_the_loss_and_learns():
    estimator = KerasClassifier(dtype="mixed_float16", optimizer__learning_rate=0.01, epochs=20, random_state=0)
    whole = clone(estimator).set_params(dtype=None).fit(X, y)
    estimator.fit(X, y)
    assert isinstance(estimator._network.program().outer, keras.optimizers.LossScaleOptimizer)
    np.testing.assert_allclose(estimator.predict_proba(X), whole.predict_proba(X), atol=0.02)


# ---- forks -----------------------------------------------------------------------------------------------------------

FORK = """
import multiprocessing, os, sys, time
import numpy as np
from kopt import KerasClassifier

X, y = np.random.RandomState(0).randn(40, 3), np.arange(40) % 2
estimator = KerasClassifier(epochs=1, random_state=0)

def work(queue, method):
    try:
        queue.put(str(getattr(estimator, method)(*(X, y)[:1 if method == "predict" else 2])[:0]))
    except Exception as error:
        queue.put(f"{type(error).__name__}: {error}")

def in_a_fork(method):
    context = multiprocessing.get_context("fork")
    queue = context.SimpleQueue()
    child = context.Process(target=work, args=(queue, method), daemon=True)
    child.start()
    began = time.monotonic()
    said = queue.get()
    child.join()
    print(said, time.monotonic() - began < 5)

import keras  # imported, but not started
estimator_before = estimator
from kopt._forks import tensorflow_has_started
print(tensorflow_has_started())
estimator.fit(X, y)
print(tensorflow_has_started())
in_a_fork("fit")
in_a_fork("predict")
"""


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(__import__("os"), "fork"), reason="there are no forks here")
def test_a_fork_after_tensorflow_has_started_says_so_at_once():
    run = subprocess.run([sys.executable, "-W", "ignore", "-c", FORK], capture_output=True, text=True, timeout=100)
    message = "RuntimeError: KerasClassifier: TensorFlow must not compute in a process forked from one in which it had"
    not_started, started, fit, predict = run.stdout.splitlines()
    assert (not_started, started) == ("False", "True")
    for said in (fit, predict):
        assert said.startswith(message)
        assert said.endswith(" True")
