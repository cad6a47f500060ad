"""Searches in a folder: interrupted, killed, shared, continued, refused."""

import json
import os
import pathlib
import subprocess
import sys
import time

import numpy as np
import pytest
from scipy import stats
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.datasets import load_iris
from sklearn.model_selection import KFold
from sklearn.tree import DecisionTreeClassifier

import kopt
from kopt.search.journal import Journal, Worker

X, y = load_iris(return_X_y=True)
SPACE = {"x": stats.uniform(-1, 2)}


class Counting(ClassifierMixin, BaseEstimator):
    """Counts its fits, and stops the process at one of them."""

    fits, stop_at = 0, None

    def __init__(self, x=0.0):
        self.x = x

    def fit(self, X, y):
        type(self).fits += 1
        if self.fits == self.stop_at:
            raise KeyboardInterrupt
        self.mean_ = X[:, 0].mean()
        return self

    def score(self, X, y):
        return -((self.x - 0.3) ** 2) - self.mean_ * 1e-3


@pytest.fixture(autouse=True)
def _nothing_counted():
    Counting.fits, Counting.stop_at = 0, None


def search(directory, estimator=None, space=None, **options):
    settings = dict(method="random", n_iter=5, cv=3, random_state=0, refit=False, directory=directory) | options
    return kopt.TunerSearchCV(estimator or Counting(), space or SPACE, **settings)


def table(found):
    results = found.cv_results_
    return {name: np.ma.asarray(results[name]).tolist() for name in results if "time" not in name}


def kills(*args):
    run = [sys.executable, str(pathlib.Path(__file__).with_name("kills.py")), *map(str, args)]
    done = subprocess.run(run, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.slow
def test_three_hundred_kills_lose_nothing(tmp_path):
    assert kills("searches", tmp_path, 300)["kills"] == 300


def test_a_killed_workers_trial_goes_to_another(tmp_path):
    found = kills("worker", tmp_path)
    assert (found["workers"], found["takes"]) == (3, 1)


@pytest.mark.parametrize("method", ["grid", "random", "bayesian"])
@pytest.mark.parametrize("n_jobs", [None, 2])
def test_an_interrupted_search_keeps_finished_folds(tmp_path, method, n_jobs):
    space = {"x": list(np.linspace(-1, 1, 5))} if method == "grid" else None
    straight = search(None, space=space, method=method, n_jobs=n_jobs).fit(X, y)
    if n_jobs is None:
        Counting.fits, Counting.stop_at = 0, 8
        with pytest.raises(KeyboardInterrupt):
            search(tmp_path, space=space, method=method).fit(X, y)
    resumed = search(tmp_path, space=space, method=method, n_jobs=n_jobs).fit(X, y)
    assert n_jobs or Counting.fits == 15 + 1
    assert table(resumed) == table(straight)
    Counting.stop_at = Counting.fits + 1  # a finished search fits nothing
    assert table(search(tmp_path, space=space, method=method).fit(X, y)) == table(straight)


def test_without_a_seed_the_first_runs_seed_and_folds_are_kept(tmp_path):
    options = dict(random_state=None, cv=KFold(3, shuffle=True), estimator=DecisionTreeClassifier(random_state=0))
    options["space"] = {"ccp_alpha": stats.uniform(0, 0.1)}
    first = search(tmp_path, time_limit=1e-9, **options)
    with pytest.raises(ValueError, match=r"^TunerSearchCV: time_limit and constraint must leave candidates"):
        first.fit(X, y)
    again = [search(tmp_path, **options).fit(X, y) for _ in range(2)]
    assert table(again[0]) == table(again[1])


def test_another_search_is_refused_with_the_difference(tmp_path):
    search(tmp_path).fit(X, y)
    for changed, message in [
        ({"space": {"x": stats.uniform(-1, 3)}}, "differs in param_distributions: .*2.* there, .*3.* here"),
        ({"n_iter": 6}, "differs in n_iter: 5 there, 6 here. Choose another directory, or resume=False"),
        ({"estimator": Counting(x=1.0)}, "differs in estimator__x: 0.0 there, 1.0 here"),
        ({"random_state": 1}, "differs in random_state: 0 there, 1 here"),
        (
            {"estimator": DecisionTreeClassifier(), "space": {"max_depth": [1]}},
            "differs in estimator: .*Counting there",
        ),
    ]:
        with pytest.raises(ValueError, match=message):
            search(tmp_path, **changed).fit(X, y)
    with pytest.raises(ValueError, match="differs in data: "):
        search(tmp_path).fit(X[::-1], y)


def test_anew_where_nobody_works(tmp_path):
    search(tmp_path).fit(X, y)
    rule = "resume must be True while others work"
    with Worker(tmp_path, patience=60) as other, pytest.raises(ValueError, match=rf"{rule} .*{other.name}"):
        search(tmp_path, resume=False).fit(X, y)
    assert len(search(tmp_path, resume=False, n_iter=2).fit(X, y).cv_results_["params"]) == 2


def test_a_folder_that_cannot_be_written_to(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match=r"^TunerSearchCV: directory must be a folder to write to, got .*file"):
        search(tmp_path / "file" / "below").fit(X, y)
    assert Counting.fits == 0


# ---- the journal ---------------------------------------------------------------------------------------------------


def test_a_torn_line_is_cut_off(tmp_path):
    journal = Journal(tmp_path)
    journal.write({"a": 1})
    with open(journal.path, "ab") as file:
        file.write(b'{"b": 2, "torn')
    assert journal.news() == [{"a": 1}]
    Journal(tmp_path).write({"c": np.float64(0.1), "d": np.int64(3), "e": float("nan")})
    (record,) = journal.news()
    assert str(record) == "{'c': 0.1, 'd': 3, 'e': nan}"
    assert journal.news() == []


def test_who_is_gone(tmp_path):
    with Worker(tmp_path, patience=1.0) as me, Worker(tmp_path, patience=1.0) as other:
        assert not me.is_gone(other.name)
        assert me.is_gone("nobody")
        dead = tmp_path / "workers" / other.name.replace(other.name[-8:], "00000000")
        dead.touch()  # of this machine, and nobody holds its lock
        assert me.is_gone(dead.name)
        far = tmp_path / "workers" / "another-machine-1-00000000"
        far.touch()
        assert not me.is_gone(far.name)
        now = far.stat().st_mtime
        os.utime(far, (now - 2, now - 2))
        assert me.is_gone(far.name)
    assert not (tmp_path / "workers" / me.name).exists()


# ---- ends ------------------------------------------------------------------------------------------------------------


def test_time_is_over(tmp_path):
    class Patient(Counting):
        def fit(self, X, y):
            time.sleep(0.05)
            return super().fit(X, y)

    limited = search(tmp_path, Patient(), n_iter=50, time_limit=0.4).fit(X, y)
    tried = limited.cv_results_["params"]
    assert 1 <= len(tried) <= 3
    assert (
        table(limited).items()
        >= {"params": search(None, n_iter=50).fit(X, y).cv_results_["params"][: len(tried)]}.items()
    )


def test_nothing_becomes_better():
    found = search(None, space={"x": [0.3, 0.0, 0.1, 0.2, 0.29, 1.0]}, method="grid", n_iter_no_change=3).fit(X, y)
    assert len(found.cv_results_["params"]) == 6  # a grid is one batch
    found = search(None, method="bayesian", n_iter=40, n_iter_no_change=3).fit(X, y)
    scores = found.cv_results_["mean_test_score"]
    assert len(scores) < 40
    assert found.best_index_ == len(scores) - 4
