"""TunerSearchCV: scikit-learn's search, candidate for candidate and key for key, and where it does more."""

import json
import pickle
import subprocess
import sys
import warnings

import numpy as np
import pytest
from scipy import stats
from sklearn import config_context
from sklearn.base import BaseEstimator, ClassifierMixin, clone
from sklearn.datasets import load_iris
from sklearn.exceptions import FitFailedWarning
from sklearn.feature_selection import SelectKBest
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV, KFold, RandomizedSearchCV, cross_val_score
from sklearn.neighbors import KNeighborsClassifier
from sklearn.neural_network import MLPClassifier
from sklearn.pipeline import Pipeline
from sklearn.preprocessing import MinMaxScaler, StandardScaler
from sklearn.tree import DecisionTreeClassifier
from sklearn.utils.estimator_checks import check_estimator

from kopt import KerasClassifier
from kopt.search import TunerSearchCV

X, y = load_iris(return_X_y=True)
TREE = DecisionTreeClassifier(random_state=0)
GRID = {"max_depth": [1, 2, None], "criterion": ["gini", "entropy"]}
FIT_TIMES = ("mean_fit_time", "std_fit_time", "mean_score_time", "std_score_time")


class Bowl(ClassifierMixin, BaseEstimator):
    """Scores -(x - 0.3)**2, whatever the data, and fails to fit where it is told to."""

    def __init__(self, x=0.0, fails=False):
        self.x, self.fails = x, fails

    def fit(self, X, y):
        if self.fails:
            raise RuntimeError("told to fail")
        self.classes_ = np.unique(y)
        return self

    def predict(self, X):
        return np.full(len(X), self.classes_[0])

    def score(self, X, y):
        return -((self.x - 0.3) ** 2)


def assert_same_results(ours, theirs):
    assert list(ours) == list(theirs)
    for key in set(ours) - set(FIT_TIMES):
        assert np.ma.asarray(ours[key]).tolist() == np.ma.asarray(theirs[key]).tolist(), key
        assert getattr(ours[key], "dtype", None) == getattr(theirs[key], "dtype", None), key


PIPELINE = Pipeline([("scale", StandardScaler()), ("select", SelectKBest(k=2)), ("knn", KNeighborsClassifier())])
STEPS = [
    {"scale": [MinMaxScaler(), "passthrough"], "select__k": [1, 3], "knn__n_neighbors": [1, 5]},
    {"knn": [TREE], "knn__max_depth": [1, 3]},
]


@pytest.mark.parametrize(
    ("estimator", "grid", "options"),
    [
        (TREE, GRID, {}),
        (TREE, GRID, {"return_train_score": True, "cv": 3, "scoring": "f1_macro", "verbose": 1}),
        (TREE, [GRID, {"splitter": ["random"]}, {}], {"scoring": ["accuracy", "f1_macro"], "refit": "f1_macro"}),
        (TREE, GRID, {"scoring": {"a": "accuracy", "f": "f1_macro"}, "refit": lambda results: 2}),
        (TREE, GRID, {"scoring": ["accuracy", "f1_macro"], "refit": False}),
        (PIPELINE, STEPS, {"cv": 3, "n_jobs": 2}),
    ],
)
def test_grid_is_grid_search(estimator, grid, options):
    ours = TunerSearchCV(estimator, grid, method="grid", n_iter=1, **options).fit(X, y)
    theirs = GridSearchCV(estimator, grid, **options | {"verbose": 0}).fit(X, y)
    assert_same_results(ours.cv_results_, theirs.cv_results_)
    for name in ("best_index_", "best_score_", "multimetric_", "n_splits_"):
        assert getattr(ours, name, None) == getattr(theirs, name, None)
    assert str(getattr(ours, "best_params_", None)) == str(getattr(theirs, "best_params_", None))
    if options.get("refit", True):
        assert np.array_equal(ours.predict(X), theirs.predict(X))


@pytest.mark.parametrize("n_jobs", [None, 2])
@pytest.mark.parametrize("verbose", [0, 1])
def test_random_is_randomized_search(n_jobs, verbose):
    space = {"max_depth": [1, 2, None], "ccp_alpha": stats.loguniform(1e-4, 1e-1)}
    options = dict(n_iter=11, random_state=3, cv=3)
    ours = TunerSearchCV(TREE, space, method="random", n_jobs=n_jobs, verbose=verbose, **options).fit(X, y)
    theirs = RandomizedSearchCV(TREE, space, **options).fit(X, y)
    assert_same_results(ours.cv_results_, theirs.cv_results_)


def test_bayesian_is_the_default_and_learns():
    search = TunerSearchCV(Bowl(), {"x": stats.uniform(-5, 10)}, n_iter=10, cv=2, random_state=0).fit(X, y)
    tried = np.array([params["x"] for params in search.cv_results_["params"]])
    assert len(tried) == 10
    assert search.best_score_ == -((search.best_params_["x"] - 0.3) ** 2) > -0.01
    assert np.median(np.abs(tried[5:] - 0.3)) < np.median(np.abs(tried[:3] - 0.3))
    again = clone(search).fit(X, y)
    assert again.cv_results_["params"] == search.cv_results_["params"]


def test_several_metrics_are_led_by_the_one_of_refit():
    def scores(estimator, X, y):
        return {"score": 0.0, "up": estimator.x, "down": -estimator.x}

    for scoring in (scores, {name: lambda e, X, y, name=name: scores(e, X, y)[name] for name in ("score", "up")}):
        search = TunerSearchCV(Bowl(), {"x": stats.uniform()}, n_iter=7, cv=2, random_state=0)
        search.set_params(scoring=scoring, refit="up").fit(X, y)
        assert search.best_params_["x"] > 0.97
        assert search.best_score_ == max(search.cv_results_["mean_test_up"])


@pytest.mark.parametrize("scoring", [["accuracy", "f1_macro"], lambda e, X, y: {"a": 1.0, "b": 2.0}])
def test_several_metrics_without_a_leader(scoring):
    search = TunerSearchCV(Bowl(), {"x": [1.0, 2.0]}, scoring=scoring, refit=False, cv=2)
    with pytest.raises(ValueError, match=r"^TunerSearchCV: refit must name the metric .*, got False.$"):
        search.fit(X, y)
    assert len(search.set_params(method="random", n_iter=2).fit(X, y).cv_results_["params"]) == 2


@pytest.mark.parametrize("n_jobs", [None, 2])
@pytest.mark.parametrize("verbose", [0, 1])
def test_all_batches_meet_the_same_folds(n_jobs, verbose):
    grid = {"max_depth": [3], "min_samples_leaf": [1] * 9}
    folds = KFold(3, shuffle=True, random_state=np.random.RandomState(0))  # others each time
    search = TunerSearchCV(TREE, grid, method="grid", cv=folds, n_jobs=n_jobs, verbose=verbose)
    assert len(set(search.fit(X, y).cv_results_["split0_test_score"])) == 1
    assert len({search.cv_results_[f"split{i}_test_score"][0] for i in range(3)}) > 1


@pytest.mark.parametrize("verbose", [0, 1])
def test_folds_may_be_given_one_by_one(verbose):
    search, reference = (
        cls(TREE, GRID, cv=KFold(3, shuffle=True, random_state=0).split(X), verbose=shown, **options)
        for cls, shown, options in [(TunerSearchCV, verbose, {"method": "grid"}), (GridSearchCV, 0, {})]
    )
    assert_same_results(search.fit(X, y).cv_results_, reference.fit(X, y).cv_results_)


FAILING = [
    {"fails": [True], "x": [0.0, 0.1, 0.2, 0.3]},
    {"fails": [False], "x": [0.0, 0.1, 0.2, 0.9]},
    {"fails": [True], "x": [0.3, 0.4, 0.5, 0.6, 0.7]},
]


@pytest.mark.parametrize("error_score", [np.nan, -9.0])
@pytest.mark.parametrize("several", [False, True])
def test_failed_batches_keep_their_rows(error_score, several):
    options = dict(cv=2, error_score=error_score, return_train_score=True)
    if several:
        options |= dict(scoring={"a": "accuracy", "s": lambda e, X, y: e.score(X, y)}, refit="s")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        ours = TunerSearchCV(Bowl(), FAILING, method="grid", verbose=1, **options).fit(X, y)
    with warnings.catch_warnings(record=True) as expected:
        warnings.simplefilter("always")
        theirs = GridSearchCV(Bowl(), FAILING, **options).fit(X, y)
    for results in (ours.cv_results_, theirs.cv_results_):
        for key in FIT_TIMES:
            results.pop(key)
    assert list(ours.cv_results_) == list(theirs.cv_results_)
    for key in theirs.cv_results_:
        np.testing.assert_array_equal(ours.cv_results_[key], theirs.cv_results_[key])
    assert ours.best_index_ == theirs.best_index_ == 6
    assert caught[0].category is FitFailedWarning
    assert [str(w.message) for w in caught] == [str(w.message) for w in expected]


def test_the_oracle_goes_on_after_failures():
    space = {"x": stats.uniform(), "fails": [True, False]}
    search = TunerSearchCV(Bowl(), space, n_iter=8, cv=2, random_state=0)
    with pytest.warns(FitFailedWarning), pytest.warns(UserWarning, match="non-finite"):
        search.fit(X, y)
    assert len(search.cv_results_["params"]) == 8
    assert not search.best_params_["fails"]
    assert not {"_ledger"} & set(vars(search))


@pytest.mark.parametrize("method", ["grid", "random", "bayesian"])
def test_all_fits_failing_raises(method):
    search = TunerSearchCV(Bowl(), {"fails": [True], "x": [1.0, 2.0]}, method=method, cv=2, random_state=0)
    with pytest.raises(ValueError, match=r"All the .* fits failed"):
        search.fit(X, y)
    with pytest.raises(RuntimeError, match="told to fail"):
        search.set_params(error_score="raise").fit(X, y)
    assert not {"_ledger", "cv_results_"} & set(vars(search))


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"method": "genetic"}, ValueError, "method must be one of 'grid', 'random', .*, got 'genetic'."),
        ({"n_iter": 0}, ValueError, r"n_iter must be an integer in \[1, inf\), got 0."),
        ({"n_iter": 2.5}, TypeError, r"n_iter must be an integer in \[1, inf\), got 2.5."),
        ({"param_distributions": {"maxdepth": [1]}}, ValueError, "got 'maxdepth'. Did you mean 'max_depth'"),
        ({"param_distributions": {"deep": [1]}}, ValueError, "parameters of DecisionTreeClassifier, got 'deep'."),
        ({"param_distributions": [GRID, {"a__b": [1]}]}, ValueError, "got 'a__b'. Its get_params"),
        ({"param_distributions": {"max_depth": []}}, ValueError, "at least one value"),
        ({"param_distributions": {"ccp_alpha": stats.uniform()}, "method": "grid"}, TypeError, "must be a list"),
    ],
)
def test_wrong_arguments_are_refused_before_any_fit(arguments, error, message, monkeypatch):
    monkeypatch.setattr("kopt.search.evaluation._fit_and_score", lambda *args, **kwargs: pytest.fail("fitted"))
    with pytest.raises(error, match=f"^TunerSearchCV: .*{message}"):
        TunerSearchCV(TREE, **{"param_distributions": GRID, "method": "random"} | arguments).fit(X, y)


def test_what_is_known_beforehand():
    space = {"x": stats.uniform()}
    early = TunerSearchCV(Bowl(), space, method="random", n_iter=9, cv=2, random_state=0).fit(X, y)
    search = TunerSearchCV(
        Bowl(), space, n_iter=4, cv=2, random_state=1, initial_params=[{"x": 0.9}, {"x": 0.9}], previous=early
    )
    tried = [params["x"] for params in search.fit(X, y).cv_results_["params"]]
    assert tried[0] == 0.9
    assert len(tried) == len(set(tried)) == 4
    assert search.best_score_ > early.best_score_
    for arguments, message in [
        ({"initial_params": [{"x": 2.0}]}, r"initial_params\[0\] must be a candidate .*: 2.0 is not between 0"),
        ({"initial_params": [{"y": 2.0}]}, r"initial_params\[0\] .*: it has the parameters y, and the space x"),
        ({"initial_params": [{"x": "one"}]}, r"initial_params\[0\] .*: 'one' is no number"),
        ({"initial_params": ["x"]}, r"initial_params\[0\] must be a candidate of param_distributions, got 'x'"),
        ({"previous": early, "method": "random"}, "previous must be None where method='random' does not"),
        ({"previous": TunerSearchCV(Bowl(), space)}, "previous: search must be fitted"),
        (
            {"previous": early, "param_distributions": {"x": [7.0]}, "initial_params": ()},
            "previous must have tried candidates of param_distributions, got none",
        ),
    ]:
        with pytest.raises(ValueError, match=f"^TunerSearchCV: {message}"):
            clone(search).set_params(**arguments).fit(X, y)


def test_a_networks_names_are_checked_before_any_fit(monkeypatch):
    monkeypatch.setattr("kopt.search.evaluation._fit_and_score", lambda *args, **kwargs: pytest.fail("fitted"))
    for name, owner, near in [
        ("optimizer__learnin_rate", "Adam", "learning_rate"),
        ("model__drop_out", "mlp", "dropout"),
    ]:
        search = TunerSearchCV(KerasClassifier(), {name: [0.1]}, method="grid")
        with pytest.raises(ValueError, match=rf"{name} is no parameter of {owner}; it takes .*{near}"):
            search.fit(X, y)


def test_a_scorer_that_returns_text_ends_the_search():
    search = TunerSearchCV(Bowl(), {"x": [0.0, 1.0]}, method="grid", scoring=lambda estimator, X, y: "good")
    with pytest.raises(ValueError, match="scoring must return a number, got good"):
        search.fit(X, y)


@pytest.mark.slow
def test_the_final_fit_takes_the_median_of_the_best_epochs():
    network = KerasClassifier(epochs=12, early_stopping=True, n_iter_no_change=2, random_state=0, batch_size=16)
    pipeline = Pipeline([("scale", StandardScaler()), ("network", network)])
    folds = KFold(3, shuffle=True, random_state=0)
    search = TunerSearchCV(pipeline, {"network__optimizer__learning_rate": [0.1, 0.3]}, method="grid", cv=folds)
    best = search.fit(X, y).best_params_
    epochs = [
        int(np.argmax(clone(pipeline).set_params(**best).fit(X[rows], y[rows])["network"].validation_scores_)) + 1
        for rows, _ in folds.split(X)
    ]
    assert len(set(epochs)) > 1
    assert search.refit_epochs_ == {"network": sorted(epochs)[1]}
    final = search.best_estimator_["network"]
    assert (final.n_iter_, final.early_stopping) == (sorted(epochs)[1], False)
    assert TunerSearchCV(Bowl(), {"x": [1.0]}, method="grid").fit(X, y).refit_epochs_ == {}


def test_the_final_fit_leaves_other_estimators_early_stopping_alone():
    network = MLPClassifier((4,), max_iter=30, early_stopping=True, random_state=0, tol=1.0, n_iter_no_change=2)
    search = TunerSearchCV(network, {"alpha": [0.0, 0.1]}, method="grid", cv=2).fit(X, y)
    assert (search.refit_epochs_, search.best_estimator_.early_stopping) == ({}, True)


def test_scikit_learns_callbacks_see_every_fit():
    pytest.importorskip("sklearn.callback")
    seen = []

    class Log:
        def setup(self, estimator, context):
            pass

        def teardown(self, estimator, context):
            pass

        def on_fit_task_begin(self, estimator, context):
            seen.append(context.task_name)

        def on_fit_task_end(self, estimator, context):
            pass

    search = TunerSearchCV(Bowl(), {"x": [0.0, 1.0]}, method="grid", cv=3).set_callbacks(Log())
    search.fit(X, y)
    assert seen == ["fit", "search", *["candidate-split-evaluation"] * 6, "refit-with-best-params"]


def test_a_constraint_is_asked_before_any_fit():
    seen = []

    def is_positive(estimator):
        seen.append(estimator.x)
        return estimator.x > 0

    search = TunerSearchCV(Bowl(), {"x": [-1.0, 0.2, -2.0, 0.4]}, method="grid", cv=2, constraint=is_positive)
    assert search.fit(X, y).cv_results_["params"] == [{"x": 0.2}, {"x": 0.4}]
    assert seen == [-1.0, 0.2, -2.0, 0.4]
    space = {"x": stats.uniform(-1, 2)}
    learns = TunerSearchCV(Bowl(), space, n_iter=25, cv=2, random_state=0, constraint=is_positive).fit(X, y)
    assert len(learns.cv_results_["params"]) > 15
    with pytest.raises(ValueError, match="constraint must leave candidates to try, got none"):
        search.set_params(constraint=lambda estimator: False).fit(X, y)


@pytest.mark.parametrize("method", ["grid", "random", "bayesian"])
def test_kerastuners_hyperparameters_are_a_space(method):
    import keras_tuner

    hp = keras_tuner.HyperParameters()
    hp.Choice("criterion", ["gini", "entropy"])
    hp.Fixed("splitter", "best")
    hp.Int("min_samples_leaf", 1, 9, step=4)
    with hp.conditional_scope("criterion", ["entropy"]):
        hp.Int("max_depth", 1, 5000, sampling="log")
        hp.Float("ccp_alpha", 1e-4, 1e-1, sampling="log")
    search = TunerSearchCV(TREE, hp, method=method, n_iter=12, cv=2, random_state=0).fit(X, y)
    tried = search.cv_results_["params"]
    assert len(tried) == (303 if method == "grid" else 12)
    for params in tried:
        assert params["splitter"] == "best"
        assert params["min_samples_leaf"] in (1, 5, 9)
        assert ("max_depth" in params) == ("ccp_alpha" in params) == (params["criterion"] == "entropy")
        assert isinstance(params.get("max_depth", 1), int)
    assert {params["criterion"] for params in tried} == {"gini", "entropy"}


def test_an_oracle_or_an_engine_of_ones_own():
    import keras_tuner

    from kopt.search.engines import FixedEngine

    space = {"x": [0.0, 0.3, 0.6]}
    oracle = keras_tuner.oracles.RandomSearchOracle(max_trials=1, seed=1)
    for method in (oracle, lambda space, n, seed: FixedEngine([{"x": 0.3}, {"x": 0.0}], 2)):
        search = TunerSearchCV(Bowl(), space, method=method, n_iter=3, cv=2).fit(X, y)
        assert search.best_params_ == {"x": 0.3}
        assert clone(search).fit(X, y).cv_results_["params"] == search.cv_results_["params"]


def test_verbose_1_is_one_bar(capsys):
    search = TunerSearchCV(Bowl(), {"x": [0.3, 1.0, 2.0]}, method="grid", cv=2)
    search.fit(X, y)
    assert "".join(capsys.readouterr()) == ""
    search.set_params(verbose=1).fit(X, y)
    out, err = capsys.readouterr()
    assert "best score 0" in out
    assert "3/3" in out
    assert "Fitting" not in out + err
    assert search.verbose == 1
    search.set_params(verbose=2).fit(X, y)
    assert "totalling 6 fits" in capsys.readouterr().out


def test_pickle_clone_and_repr():
    search = TunerSearchCV(TREE, GRID, method="random", n_iter=3, random_state=0).fit(X, y)
    copy = pickle.loads(pickle.dumps(search))
    assert np.array_equal(copy.predict_proba(X), search.predict_proba(X))
    assert clone(search).get_params()["estimator__max_depth"] is None
    assert "method='random'" in repr(search)
    assert "TunerSearchCV" in search._repr_html_()


def test_nested_in_cross_validation():
    search = TunerSearchCV(TREE, GRID, method="random", n_iter=3, cv=2, random_state=0)
    assert cross_val_score(search, X, y, cv=2, n_jobs=2).min() > 0.5


def test_metadata_is_routed():
    class Weighted(Bowl):
        def fit(self, X, y, sample_weight=None):
            self.weight_ = sample_weight.sum()
            return super().fit(X, y)

    weight = np.arange(len(y))
    with config_context(enable_metadata_routing=True):
        search = TunerSearchCV(Weighted().set_fit_request(sample_weight=True), {"x": [0.0, 1.0]}, method="grid")
        search.fit(X, y, sample_weight=weight)
    assert search.best_estimator_.weight_ == weight.sum()


def test_random_state_instances_advance():
    options = dict(method="random", n_iter=2, cv=2, random_state=np.random.RandomState(0))
    search = TunerSearchCV(Bowl(), {"x": stats.uniform()}, **options)
    first = search.fit(X, y).cv_results_["params"]
    assert search.fit(X, y).cv_results_["params"] != first


@pytest.mark.slow
def test_scikit_learns_checks():
    search = TunerSearchCV(LogisticRegression(), {"C": [0.1, 1.0]}, n_iter=2, cv=2)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        report = check_estimator(search, on_fail=None)
    assert [check["check_name"] for check in report if check["status"] == "failed"] == []
    assert sum(check["status"] == "passed" for check in report) > 40


def test_only_the_oracle_imports_keras():
    code = """
import json, sys
from sklearn.datasets import load_iris
from sklearn.tree import DecisionTreeClassifier
from kopt.search import TunerSearchCV
loaded = []
for method in ("grid", "random", "bayesian"):
    search = TunerSearchCV(DecisionTreeClassifier(), {"max_depth": [1, 2]}, method=method)
    loaded.append("keras" in sys.modules)
    search.fit(*load_iris(return_X_y=True))
    loaded.append("keras" in sys.modules)
print(json.dumps(loaded))
"""
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert json.loads(run.stdout) == [False] * 5 + [True]
