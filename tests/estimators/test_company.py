"""Estimators in the company of scikit-learn's own: ensembles, searches, calibration, inspection, copies."""

import copy
import functools
import io
import pickle

import cloudpickle
import joblib
import numpy as np
import pandas as pd
import pytest
from sklearn.base import clone, is_classifier, is_regressor
from sklearn.calibration import CalibratedClassifierCV
from sklearn.compose import ColumnTransformer
from sklearn.datasets import load_iris
from sklearn.ensemble import AdaBoostClassifier, BaggingClassifier, StackingClassifier, VotingClassifier
from sklearn.experimental import enable_halving_search_cv  # noqa: F401
from sklearn.inspection import partial_dependence, permutation_importance
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import (
    GridSearchCV,
    HalvingGridSearchCV,
    RandomizedSearchCV,
    TunedThresholdClassifierCV,
    cross_val_predict,
    cross_validate,
    learning_curve,
)
from sklearn.multiclass import OneVsRestClassifier
from sklearn.multioutput import MultiOutputClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import OneHotEncoder, StandardScaler
from sklearn.semi_supervised import SelfTrainingClassifier

from kopt import KerasClassifier, KerasRegressor

X, y = load_iris(return_X_y=True)
X = StandardScaler().fit_transform(X).astype("float32")
two = (y > 0).astype(int)
FAST = dict(epochs=8, batch_size=16, optimizer__learning_rate=0.03, model__hidden_layer_sizes=(8,), random_state=0)


def fast(**parameters):
    return KerasClassifier(**FAST | parameters)


@pytest.fixture(scope="module")
def fitted():
    return fast().fit(X, y)


def test_kinds_are_seen():
    assert is_classifier(KerasClassifier())
    assert is_regressor(KerasRegressor())


# ---- around one estimator --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("around", "labels"),
    [
        (lambda e: make_pipeline(StandardScaler(), e), y),
        (functools.partial(CalibratedClassifierCV, cv=2), y),
        (functools.partial(CalibratedClassifierCV, cv=2, method="isotonic", ensemble=False), two),
        (lambda e: StackingClassifier([("a", e), ("b", LogisticRegression())], cv=2), y),
        (lambda e: VotingClassifier([("a", e), ("b", LogisticRegression())], voting="soft"), y),
        (functools.partial(BaggingClassifier, n_estimators=3, random_state=0), y),
        (functools.partial(AdaBoostClassifier, n_estimators=2, random_state=0), y),
        (OneVsRestClassifier, y),
        (functools.partial(TunedThresholdClassifierCV, cv=2), two),
    ],
    ids=["pipeline", "calibrated", "isotonic", "stacking", "voting", "bagging", "boosting", "rest", "threshold"],
)
def test_meta_estimators(around, labels):
    whole = around(fast()).fit(X, labels)
    assert whole.score(X, labels) > 0.85
    assert whole.predict_proba(X).shape == (150, len(np.unique(labels)))
    again = around(fast()).fit(X, labels)
    np.testing.assert_array_equal(whole.predict_proba(X), again.predict_proba(X))


def test_labels_that_are_partly_unknown():
    some = np.where(np.arange(150) % 3 == 0, y, -1)
    taught = SelfTrainingClassifier(fast(), max_iter=2).fit(X, some)
    assert (taught.transduction_ != -1).sum() > 100
    assert taught.score(X, y) > 0.85


def test_several_targets_apart():
    labels = np.column_stack([y, two])
    assert MultiOutputClassifier(fast()).fit(X, labels).score(X, labels) > 0.8


def test_columns_of_mixed_types():
    frame = pd.DataFrame(X, columns=list("abcd")).assign(kind=np.array(["x", "y", "z"])[y])
    columns = ColumnTransformer([("numbers", StandardScaler(), list("ab")), ("kinds", OneHotEncoder(), ["kind"])])
    whole = make_pipeline(columns, fast()).fit(frame, y)
    assert whole.score(frame, y) > 0.95
    assert whole[-1].n_features_in_ == 5


# ---- searches and validation -----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def workers():
    """Two of joblib's processes, that start TensorFlow once for all tests."""
    with joblib.parallel_config(backend="loky", n_jobs=2):
        yield


GRID = {"model__hidden_layer_sizes": [(4,), (8,)], "optimizer__learning_rate": [0.0, 0.03]}


@pytest.mark.slow
@pytest.mark.parametrize(
    "kind",
    [
        GridSearchCV,
        functools.partial(RandomizedSearchCV, n_iter=2, random_state=0),
        functools.partial(HalvingGridSearchCV, min_resources=60, factor=2, random_state=0),
        functools.partial(HalvingGridSearchCV, resource="epochs", max_resources=8, min_resources=4, factor=2),
    ],
    ids=["grid", "random", "halving", "halving-epochs"],
)
def test_searches_in_workers_equal_those_in_series(kind, workers):
    given = FAST.keys() - {"epochs"} if getattr(kind, "keywords", {}).get("resource") else FAST.keys()
    parallel, series = (
        kind(KerasClassifier(**{k: FAST[k] for k in given}), GRID, cv=2, error_score="raise", n_jobs=jobs).fit(X, y)
        for jobs in (2, 1)
    )
    assert parallel.best_params_["optimizer__learning_rate"] == 0.03
    np.testing.assert_array_equal(parallel.cv_results_["mean_test_score"], series.cv_results_["mean_test_score"])
    np.testing.assert_array_equal(parallel.predict_proba(X), series.predict_proba(X))


@pytest.mark.slow
def test_fits_that_return_from_workers(workers):
    scoring = ["accuracy", "roc_auc", "neg_log_loss", "neg_brier_score"]
    done = cross_validate(fast(), X, two, cv=3, scoring=scoring, n_jobs=2, return_estimator=True, error_score="raise")
    assert min(done["test_roc_auc"]) > 0.95
    assert [net.predict_proba(X).shape for net in done["estimator"]] == [(150, 2)] * 3


def test_folds_are_stratified_and_forget_each_other():
    assert cross_validate(fast(), X, y, cv=3, error_score="raise")["test_score"].min() > 0.8
    assert cross_val_predict(fast(), X, y, cv=2, method="predict_proba").shape == (150, 3)
    sizes, train, _ = learning_curve(fast(), X, y, cv=2, train_sizes=[0.5, 1.0], shuffle=True, random_state=0)
    assert (sizes.tolist(), train.shape) == ([37, 75], (2, 2))


def test_inspection(fitted):
    importances = permutation_importance(fitted, X, y, n_repeats=3, random_state=0).importances_mean
    assert importances[2:].min() > importances[:2].max()  # petals tell more than sepals
    assert partial_dependence(fitted, X, [2], grid_resolution=4)["average"].shape == (3, 4)


# ---- copies ----------------------------------------------------------------------------------------------------------


def through_joblib(estimator):
    file = io.BytesIO()
    joblib.dump(estimator, file)
    return joblib.load(io.BytesIO(file.getvalue()))


@pytest.mark.parametrize(
    "again",
    [copy.deepcopy, lambda e: pickle.loads(pickle.dumps(e)), lambda e: cloudpickle.loads(cloudpickle.dumps(e)),
     through_joblib],
    ids=["deepcopy", "pickle", "cloudpickle", "joblib"],
)  # fmt: skip
def test_copies_of_fitted_pipelines(again, fitted):
    pipeline = make_pipeline(StandardScaler(), clone(fitted)).fit(X, y)
    np.testing.assert_array_equal(again(pipeline).predict_proba(X), pipeline.predict_proba(X))


def test_a_function_that_no_module_holds_travels_by_cloudpickle():
    def build(n_features_in_, n_outputs_):
        import keras

        return keras.Sequential([keras.Input((n_features_in_,)), keras.layers.Dense(n_outputs_)])

    parameters = {name: value for name, value in FAST.items() if not name.startswith("model__")}
    net = KerasClassifier(build, **parameters).fit(X, y)
    np.testing.assert_array_equal(cloudpickle.loads(cloudpickle.dumps(net)).predict_proba(X), net.predict_proba(X))


def test_fits_leave_global_randomness_alone():
    np.random.seed(7)
    expected = np.random.rand(3)
    np.random.seed(7)
    fast(epochs=1).fit(X, y)
    np.testing.assert_array_equal(np.random.rand(3), expected)


def test_a_refit_of_a_template_starts_over(fitted):
    template = fitted.model_
    before = template.get_weights()
    parameters = {name: value for name, value in FAST.items() if not name.startswith("model__")}
    net = KerasClassifier(template, **parameters | {"epochs": 1})
    np.testing.assert_array_equal(net.fit(X, y).predict_proba(X), net.fit(X, y).predict_proba(X))
    for given, kept in zip(before, template.get_weights(), strict=True):
        np.testing.assert_array_equal(given, kept)
