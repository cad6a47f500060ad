"""Rows of many kinds: images, files mapped to memory, and weights that are routed."""

import threading

import keras
import numpy as np
import pytest
import sklearn
from sklearn.datasets import load_digits, make_classification
from sklearn.metrics import get_scorer
from sklearn.model_selection import GridSearchCV, cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

import kopt
from kopt import KerasClassifier, KerasRegressor
from kopt.estimators.rows import Some, some

layers = keras.layers


def convolutional(input_shape_, n_outputs_):
    parts = [layers.Conv2D(8, 3, strides=2, activation="relu"), layers.Flatten(), layers.Dense(n_outputs_)]
    return keras.Sequential([keras.Input(input_shape_), *parts])


def test_images():
    images, y = load_digits(return_X_y=True)
    images, y = images[:400].reshape(-1, 8, 8, 1).astype("float32") / 16, y[:400]
    net = KerasClassifier(convolutional, optimizer=kopt.Adam(0.01), epochs=15, random_state=0)
    assert cross_val_score(net, images, y, cv=2).min() > 0.8
    net.fit(images, y)
    assert (net.input_shape_, net.n_features_in_) == ((8, 8, 1), 8)
    np.testing.assert_allclose(net.predict_proba(images[:3]), keras.ops.softmax(net.model_(images[:3])), rtol=1e-4)
    with pytest.raises(ValueError, match=r"rows of X must have shape \(8, 8, 1\) as in fit, got \(8, 8, 2\)"):
        net.predict(np.repeat(images, 2, axis=3))
    with pytest.raises(
        ValueError, match=r"KerasClassifier: X must have shape \(rows, features\) for the default network"
    ):
        KerasClassifier().fit(images, y)


@pytest.mark.parametrize("scoring", [None, "accuracy"])
def test_weights_are_routed_through_a_search(scoring):
    X, y = make_classification(60, 4, random_state=0)
    net = KerasClassifier(epochs=2, batch_size=60, random_state=0, scoring=scoring)
    w = 1.0 * (np.arange(60) % 2)
    with sklearn.config_context(enable_metadata_routing=True):
        net.set_fit_request(sample_weight=True)
        scorer = get_scorer("accuracy").set_score_request(sample_weight=True)
        pipeline = make_pipeline(StandardScaler().set_fit_request(sample_weight=False), net)
        search = GridSearchCV(pipeline, {"kerasclassifier__epochs": [2]}, scoring=scorer, cv=2, error_score="raise")
        search.fit(X, y, sample_weight=w)
        assert search.get_metadata_routing().consumes("fit", ["sample_weight"]) == {"sample_weight"}
    fitted = search.best_estimator_[-1]
    alone = KerasClassifier(epochs=2, batch_size=60, random_state=0, scoring=scoring)
    alone.fit(StandardScaler().fit_transform(X), y, sample_weight=w)
    np.testing.assert_array_equal(fitted.predict_proba(X), alone.predict_proba(X))


def test_some_rows_are_the_rows():
    a = np.arange(60.0).reshape(20, 3)
    index = np.array([3, 7, 7, 19, 0])
    lazy = Some(Some(a, np.arange(20)[::-1]), 19 - index)
    np.testing.assert_array_equal(lazy, a[index])
    np.testing.assert_array_equal(lazy[1:3], a[index][1:3])
    np.testing.assert_array_equal(lazy[[4, 0]], a[index][[4, 0]])
    assert (lazy.shape, lazy.ndim, lazy.dtype, len(lazy)) == ((5, 3), 2, "float64", 5)
    assert isinstance(some(a, index), np.ndarray)


def anonymous():
    """Bytes that this process has in memory and not in a file."""
    with open("/proc/self/smaps_rollup") as lines:
        return next(1024 * int(line.split()[1]) for line in lines if line.startswith("Anonymous"))


@pytest.mark.slow
@pytest.mark.skipif("not __import__('os').path.exists('/proc/self/smaps_rollup')")
def test_a_mapped_file_stays_on_disk(tmp_path):
    rows = np.memmap(tmp_path / "rows", "float32", "w+", shape=(200_000, 120))
    for part in np.array_split(rows, 20):
        part[:] = np.random.default_rng(0).standard_normal(part.shape, "float32")
    y = rows[:, 0] > 0
    net = KerasClassifier(epochs=1, batch_size=1024, random_state=0)
    net.fit(rows[:2000], y[:2000])
    before, peak, done = anonymous(), [0], threading.Event()

    def watch():
        while not done.wait(0.02):
            peak.append(anonymous())

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        net.set_params(early_stopping=True).fit(rows, y)
        assert net.score(rows, y) > 0.9
    finally:
        done.set()
        watcher.join()
    assert rows.nbytes > 90e6
    assert max(peak) - before < 45e6


def test_blocks_change_nothing(monkeypatch):
    X, y = make_classification(700, 5, random_state=0)
    regressor = KerasRegressor(epochs=3, batch_size=32, early_stopping=True, random_state=0)
    whole = regressor.fit(X, y).predict(X)
    monkeypatch.setattr("kopt.training.program.WHOLE", 0)
    monkeypatch.setattr("kopt.training.program.BLOCK", 5000)
    monkeypatch.setattr("kopt.estimators.rows.LARGE", 0)
    np.testing.assert_array_equal(regressor.fit(X, y).predict(X), whole)
