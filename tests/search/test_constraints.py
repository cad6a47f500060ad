import time

import numpy as np
import pytest
from sklearn.datasets import load_iris
from sklearn.dummy import DummyClassifier
from sklearn.ensemble import BaggingClassifier
from sklearn.exceptions import FitFailedWarning
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

import kopt
from kopt.search import MaxLatency, MaxParameters

X, y = load_iris(return_X_y=True)
FEW = X[::10], y[::10]


class Slow(DummyClassifier):
    """Takes `delay` seconds to predict, except for every fifth time, when the machine is busy."""

    def __init__(self, delay=0.0, *, strategy="prior", random_state=None, constant=None):
        super().__init__(strategy=strategy, random_state=random_state, constant=constant)
        self.delay = delay

    def predict(self, X):
        self.calls_ = getattr(self, "calls_", 0) + 1
        time.sleep(self.delay + 0.05 * (self.calls_ % 5 == 1))
        return super().predict(X)


def test_latency_is_the_median_of_predictions():
    limit = MaxLatency(0.02, *FEW, repeats=5)
    assert [limit(Slow(delay)) for delay in (0.0, 0.04)] == [True, False]
    slow = Slow()
    limit(slow)
    assert slow.calls_ == 6
    assert repr(limit) == "MaxLatency(0.02, 15 rows)"


def test_parameters_are_counted_before_training():
    network = kopt.KerasClassifier(epochs=10**6, early_stopping=True, random_state=0)
    space = {"kerasclassifier__model__hidden_layer_sizes": [(8,), (16,), (8, 8)]}
    weights = {(8,): 4 * 8 + 8 + 8 * 3 + 3, (16,): 4 * 16 + 16 + 16 * 3 + 3, (8, 8): 4 * 8 + 8 + 72 + 8 * 3 + 3}
    for largest in (weights[8,], weights[8, 8]):
        limit = MaxParameters(largest, *FEW)
        for sizes, number in weights.items():
            pipeline = make_pipeline(StandardScaler(), network)
            pipeline.set_params(**dict.fromkeys(space, sizes))
            assert limit(pipeline) == (number <= largest)


def test_a_search_tries_what_keeps_to_the_limit():
    network = kopt.KerasClassifier(epochs=2, random_state=0)
    space = {"model__hidden_layer_sizes": [(8,), (999,)], "optimizer__learning_rate": [1e-3, np.inf]}
    search = kopt.TunerSearchCV(network, space, method="grid", cv=2, constraint=MaxParameters(100, *FEW))
    with pytest.warns((FitFailedWarning, UserWarning)):  # the infinite rate fails in the search, as ever
        search.fit(X, y)
    assert [params["model__hidden_layer_sizes"] for params in search.cv_results_["params"]] == [(8,), (8,), (999,)]
    assert search.best_params_ == {"model__hidden_layer_sizes": (8,), "optimizer__learning_rate": 1e-3}


def test_wrong_limits_are_refused():
    with pytest.raises(ValueError, match=r"^MaxLatency: seconds must be a number in \(0, inf\), got 0\.$"):
        MaxLatency(0, *FEW)
    with pytest.raises(ValueError, match=r"^MaxLatency: repeats must be an integer in \[1, inf\), got 0\.$"):
        MaxLatency(1, *FEW, repeats=0)
    with pytest.raises(TypeError, match=r"^MaxParameters: number must be an integer in"):
        MaxParameters(1.5, *FEW)
    bagged = BaggingClassifier(kopt.KerasClassifier(epochs=1), n_estimators=1)
    with pytest.raises(ValueError, match=r"^MaxParameters: the estimator must hold a network of kopt's that it fits"):
        MaxParameters(10, *FEW)(bagged)
