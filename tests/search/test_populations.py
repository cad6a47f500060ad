"""Candidates that train together score as they would alone."""

import itertools
import os

import numpy as np
import pytest
import sklearn.model_selection._validation
from sklearn.datasets import load_iris
from sklearn.exceptions import FitFailedWarning
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import check_scoring
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

import kopt
from kopt.distribute import gpus
from kopt.search.engines import Suggestion
from kopt.search.evaluation import Task, evaluate
from kopt.search.networks import AUTO, members
from kopt.training import together

X, y = load_iris(return_X_y=True)
RATE, SIZES = "kerasclassifier__optimizer__learning_rate", "kerasclassifier__model__hidden_layer_sizes"
SPACE = {RATE: [1e-3, 1e-2, 1e-1], SIZES: [(8,), (5,)]}
PIPELINE = make_pipeline(StandardScaler(), kopt.KerasClassifier(epochs=3, batch_size=32, random_state=0))


@pytest.fixture
def sizes(monkeypatch):
    """How many networks each population had."""
    init, seen = together.StackedNetworks.load, []

    def watched(self, states):
        seen.append(len(states))
        return init(self, states)

    monkeypatch.setattr(together.StackedNetworks, "load", watched)
    return seen


def searched(population, estimator=PIPELINE, space=SPACE, method="grid", **options):
    search = kopt.TunerSearchCV(
        estimator, space, method=method, cv=3, random_state=0, refit=False, population=population, **options
    )
    return search.fit(X, y)


def check_same(search, other):
    assert search.cv_results_["params"] == other.cv_results_["params"]
    for name, values in other.cv_results_.items():
        if "score" in name and "time" not in name:
            np.testing.assert_allclose(search.cv_results_[name], values, rtol=1e-6)


def test_a_grid_scores_as_alone(sizes, capsys):
    search = searched(4, scoring="neg_log_loss", return_train_score=True, verbose=2)
    assert sizes == [3] * 3 + [2] * 3  # of the first four, one has another structure; on three folds each
    assert "totalling 18 fits" in capsys.readouterr().out
    check_same(search, searched(1, scoring="neg_log_loss", return_train_score=True))
    assert len(sizes) == 6


@pytest.mark.slow
def test_rungs_go_on_together(sizes):
    space = {RATE: [1e-4, 1e-3, 3e-3, 1e-2, 3e-2, 1e-1, 3e-1, 1.0, 3.0]}
    options = dict(space=space, method="hyperband", scoring="neg_log_loss", max_resources=9)
    search = searched(9, **options)
    assert sizes[:6] == [9, 9, 9, 3, 3, 3]
    other = searched(1, **options)
    check_same(search, other)
    assert search.cv_results_["n_resources"].tolist() == other.cv_results_["n_resources"].tolist()


@pytest.mark.slow
def test_processes_share_populations_and_a_folder_keeps_them(tmp_path, sizes):
    other = searched(1)
    check_same(searched(3, n_jobs=2, directory=tmp_path), other)
    check_same(searched(6, directory=tmp_path), other)  # from the folder
    assert sizes == []  # of this process


def test_a_candidate_that_fails_leaves_the_others_alone(sizes):
    with pytest.warns((FitFailedWarning, UserWarning)):
        search = searched(4, space={RATE: [1e-2, np.inf, 1e-1]})
    assert sizes == [2] * 3
    assert np.isfinite(search.cv_results_["mean_test_score"]).tolist() == [True, False, True]
    with pytest.raises(ValueError, match="learning_rate must be a number in"):
        searched(4, space={RATE: [1e-2, np.inf, 1e-1]}, error_score="raise")


def test_each_has_its_share_of_the_time(monkeypatch):
    clock = itertools.count()
    monkeypatch.setattr(sklearn.model_selection._validation.time, "time", lambda: next(clock))
    model = LogisticRegression()
    task = Task(
        Suggestion("0", {}),
        model,
        dict(scorer=check_scoring(model), fit_params={}, score_params={}, return_times=True, verbose=0),
    )
    where = 0, X, y, (np.arange(100), np.arange(100, 150))
    whole, quarter = (evaluate(task, *where, parent=os.getpid(), share=share)["fit_time"] for share in (1.0, 0.25))
    assert whole > 0
    assert quarter == whole / 4


def test_how_many_train_together(monkeypatch):
    assert members("auto", PIPELINE, False) == 1  # there is no GPU here
    monkeypatch.setattr(gpus, "count", lambda: 1)
    assert members("auto", PIPELINE, False) == AUTO
    assert members("auto", PIPELINE, True) == 1
    assert members("auto", LogisticRegression(), False) == 1
    assert members(5, PIPELINE, True) == 5


@pytest.mark.parametrize(
    ("population", "estimator", "error", "message"),
    [
        (0, PIPELINE, ValueError, r"^TunerSearchCV: population must be an integer in \[1, inf\), got 0\.$"),
        ("all", PIPELINE, TypeError, r"^TunerSearchCV: population must be an integer in \[1, inf\), got 'all'\.$"),
        (2, LogisticRegression(), ValueError, r"^TunerSearchCV: population must be 'auto' or 1 where the estimator"),
    ],
)
def test_wrong_populations_are_refused(population, estimator, error, message):
    with pytest.raises(error, match=message):
        searched(population, estimator, {"C": [1.0]} if estimator is not PIPELINE else SPACE)
