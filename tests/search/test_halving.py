"""Hyperband and asynchronous halving: their rungs, what failures do to them, and networks that go on."""

import itertools
import math
import os
from collections import Counter

import numpy as np
import pytest
from scipy import stats
from sklearn.datasets import load_iris
from sklearn.ensemble import RandomForestClassifier
from sklearn.model_selection import cross_validate
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

import kopt
from kopt.search.evaluation import Rungs
from kopt.search.halving import Hyperband, Ladder, SuccessiveHalving

X, y = load_iris(return_X_y=True)
SPACE = {"kerasclassifier__optimizer__learning_rate": stats.loguniform(1e-4, 1e-1)}


def draws(n):
    return iter([{"x": i} for i in range(n)])


def drive(engine, score=lambda params: float(params["x"]), batch=1):
    """Runs an engine to its end; returns the pairs of candidate and budget in order."""
    seen = []
    while suggestions := engine.ask(batch):
        for suggestion in suggestions:
            seen.append((suggestion.params["x"], suggestion.budget))
            assert suggestion.params["epochs"] == suggestion.budget
            engine.tell(suggestion.id, score(suggestion.params))
    assert engine.ask(batch) == []
    return seen


@pytest.mark.parametrize(
    ("low", "high", "factor", "rungs"),
    [
        (1, 81, 3, [1, 3, 9, 27, 81]),
        (1, 243, 3, [1, 3, 9, 27, 81, 243]),
        (2, 9, 3, [3, 9]),
        (5, 9, 3, [9]),
        (1, 100, 4, [2, 6, 25, 100]),
    ],
)
def test_rungs(low, high, factor, rungs):
    assert Ladder("epochs", low, high, factor).rungs == rungs


@pytest.mark.parametrize("batch", [1, 4])
def test_hyperband_is_the_papers_table(batch):
    # Li et al. 2018, table 1, for R = 81 and η = 3; its first column has 81 candidates with a budget of 1.
    table = {1: [81], 3: [27, 34], 9: [9, 11, 15], 27: [3, 3, 5, 8], 81: [1, 1, 1, 2, 5]}
    seen = drive(Hyperband(Ladder("epochs", 1, 81, 3), draws), batch=batch)
    assert Counter(budget for _, budget in seen) == {budget: sum(each) for budget, each in table.items()}
    first = [x for x, budget in seen if budget == 3][:27]
    assert sorted(first) == list(range(54, 81))  # the best of the first rung


def test_failures_leave_no_bracket_empty():
    def score(params):
        return math.nan if params["x"] % 3 == 0 else float(params["x"])

    ladder = Ladder("epochs", 1, 27, 3)
    straight, failing = (drive(Hyperband(ladder, draws), **how) for how in ({}, {"score": score}))
    for budget in (3, 9, 27):
        # A third of a bracket's first rung fails, and is replaced by candidates of which a third fail, and so on.
        kept = [x for x, b in failing if b == budget and x % 3]
        assert len(kept) == sum(b == budget for _, b in straight)


def test_everything_failing_ends():
    seen = drive(Hyperband(Ladder("epochs", 1, 9, 3), draws), score=lambda params: math.inf)
    assert len(seen) == 2 * (9 + 5 + 3)
    assert len(drive(SuccessiveHalving(Ladder("epochs", 1, 9, 3), draws(9), 9), score=lambda params: math.nan)) == 9


def test_hyperband_retires_who_gets_no_more():
    engine = Hyperband(Ladder("epochs", 1, 9, 3), draws)
    first = engine.ask(9)
    for suggestion in first:
        engine.tell(suggestion.id, float(suggestion.params["x"]))
    (promoted,) = {s.candidate for s in engine.ask(1)}
    assert promoted == "8"
    assert engine.retired == {str(i) for i in range(6)}


def test_asha_promotes_without_waiting():
    engine = SuccessiveHalving(Ladder("epochs", 1, 9, 3), draws(20), 20)
    first = engine.ask(4)
    assert [s.budget for s in first] == [1] * 4
    for suggestion in first[:3]:  # the fourth is still at work
        engine.tell(suggestion.id, float(suggestion.params["x"]))
    (next_one,) = engine.ask(1)
    assert (next_one.candidate, next_one.budget) == ("2", 3)


@pytest.mark.parametrize("batch", [1, 5])
def test_asha_ends_with_its_share_in_every_rung(batch):
    seen = Counter(b for _, b in drive(SuccessiveHalving(Ladder("epochs", 1, 9, 3), draws(27), 27), batch=batch))
    assert seen[1] == 27
    assert seen[3] >= 9
    assert seen[9] >= 3


def test_engines_repeat_themselves():
    ladder = Ladder("epochs", 1, 9, 3)
    for make in (lambda: Hyperband(ladder, draws), lambda: SuccessiveHalving(ladder, draws(9), 9)):
        assert drive(make(), batch=3) == drive(make(), batch=3)


# ---- in a search -----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def network():
    classifier = kopt.KerasClassifier(epochs=9, random_state=0, batch_size=64, optimizer="Adam")
    return make_pipeline(StandardScaler(), classifier)


@pytest.mark.slow
@pytest.mark.parametrize("by_xla", [False, True])
def test_a_promotion_goes_on_to_the_bit(network, tmp_path, monkeypatch, by_xla):
    from kopt.training import program, xla
    from kopt.training.network import Network

    if by_xla:  # which the whole of nine epochs decides, not the part of them that is trained
        monkeypatch.setattr(program, "FEW", 9)
        monkeypatch.setattr(xla, "SECONDS_TO_COMPILE", (0.0, 0.0))

    trained, train = [], Network.train
    monkeypatch.setattr(Network, "train", lambda self, *a, **k: (trained.append(k["epochs"]), train(self, *a, **k))[1])
    options = dict(method="hyperband", cv=2, random_state=0, scoring="neg_log_loss", refit=False)
    search = kopt.TunerSearchCV(network, SPACE, directory=tmp_path, **options).fit(X, y)
    results = search.cv_results_
    assert list(results["n_resources"]) == [1] * 9 + [3] * 3 + [9] + [3] * 5 + [9] + [9] * 3
    assert trained == [epochs for epochs in [1] * 9 + [2] * 3 + [6] + [3] * 5 + [6] + [9] * 3 for _ in range(2)]
    for row in (12, 18) if by_xla else (9, 12, 18):  # promoted once, twice, and to the end of the second bracket
        assert results["param_kerasclassifier__epochs"][row] == results["n_resources"][row]
        straight = cross_validate(network.set_params(**results["params"][row]), X, y, cv=2, scoring="neg_log_loss")
        assert straight["test_score"].tolist() == [results[f"split{i}_test_score"][row] for i in range(2)]
    assert search.best_index_ == max((12, 18, 19, 20, 21), key=lambda row: results["mean_test_score"][row])
    assert os.listdir(tmp_path / "networks") == []


@pytest.mark.parametrize(("resource", "goes_on"), [("epochs", True), ("batch_size", False)])
def test_networks_go_on_where_epochs_are_the_budget(tmp_path, resource, goes_on):
    classifier = kopt.KerasClassifier()
    Rungs(resource, tmp_path, 9).attach(classifier, tmp_path / "0-0.npz")
    assert classifier._go_on_at == ((tmp_path / "0-0.npz", 9) if goes_on else None)


@pytest.mark.slow
@pytest.mark.parametrize("method", ["hyperband", "asha"])
def test_an_interrupted_search_of_networks_resumes(network, tmp_path, monkeypatch, method):
    network.set_params(kerasclassifier__random_state=None)  # what goes on is in the files, not in a seed
    from kopt.training import network as training

    kept = itertools.count()
    keep = training.Network.keep

    def interrupted(self, path):
        keep(self, path)
        if next(kept) == 21:
            raise KeyboardInterrupt

    monkeypatch.setattr(training.Network, "keep", interrupted)
    options = dict(method=method, n_iter=9, cv=2, random_state=0, refit=False, directory=tmp_path)
    search = kopt.TunerSearchCV(network, SPACE, **options)
    with pytest.raises(KeyboardInterrupt):
        search.fit(X, y)
    done = next(kept)
    results = search.fit(X, y).cv_results_
    assert next(kept) - done - 1 == 2 * len(results["params"]) - 21
    network.set_params(kerasclassifier__random_state=0)


def test_any_integer_parameter_may_be_the_resource():
    forest = RandomForestClassifier(n_estimators=9, random_state=0)
    options = dict(method="hyperband", resource="n_estimators", min_resources=3, cv=2, random_state=0)
    search = kopt.TunerSearchCV(forest, {"max_depth": [1, 2, 3, 4, 5, 6, 7]}, **options).fit(X, y)
    assert set(search.cv_results_["n_resources"]) == {3, 9}
    assert len(search.best_estimator_.estimators_) == search.best_params_["n_estimators"] == 9
    rows = np.flatnonzero(search.cv_results_["n_resources"] == 9)
    assert search.best_score_ == search.cv_results_["mean_test_score"][rows].max()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({}, "resource must name the parameter that is the budget where the estimator holds 0 Keras estimators"),
        ({"resource": "trees"}, "resource must be a parameter of RandomForestClassifier .*, got 'trees'."),
        ({"resource": "max_depth"}, "that is not in param_distributions, got 'max_depth'."),
        ({"resource": "n_estimators", "max_resources": 0}, r"max_resources must be an integer in \[1, inf\), got 0."),
        (
            {"resource": "n_estimators", "min_resources": 101},
            r"min_resources must be an integer in \[1, 100\], got 101",
        ),
        ({"resource": "n_estimators", "factor": 1}, r"factor must be an integer in \[2, inf\), got 1."),
    ],
)
def test_wrong_budgets(arguments, message):
    search = kopt.TunerSearchCV(RandomForestClassifier(), {"max_depth": [1, 2]}, method="asha", **arguments)
    with pytest.raises(ValueError, match=f"^TunerSearchCV: .*{message}"):
        search.fit(X, y)
