import copy
import json
import pickle
import subprocess
import sys

import keras
import numpy as np
import pandas as pd
import polars as pl
import pytest
import scipy.sparse as sp
from sklearn.base import clone
from sklearn.datasets import load_iris, make_classification, make_multilabel_classification, make_regression
from sklearn.linear_model import LinearRegression
from sklearn.utils.estimator_checks import parametrize_with_checks

import kopt
from kopt import KerasClassifier, KerasRegressor, KerasTransformer

X, y = make_classification(90, 6, n_informative=4, n_classes=3, random_state=0)
two = y > 0


def fast(kind=KerasClassifier, model=None, **parameters):
    given = {"optimizer__learning_rate": 0.02, "epochs": 15, "batch_size": 16, "random_state": 0}
    return kind(model, **given | parameters)


def ending_in(units, activation):
    return lambda: keras.Sequential([keras.layers.Dense(16, "relu"), keras.layers.Dense(units, activation)])


def build(n_features_in_, n_outputs_, units=16):
    dense = keras.layers.Dense
    return keras.Sequential([keras.Input((n_features_in_,)), dense(units, "relu"), dense(n_outputs_)])


class Builder:
    """A callable whose repr, which names the tests, is the same in every process."""

    def __call__(self, n_features_in_, n_outputs_):
        return build(n_features_in_, n_outputs_)

    def __repr__(self):
        return "Builder()"


@parametrize_with_checks(
    [
        *(KerasClassifier(), KerasRegressor(), KerasTransformer(epochs=2)),
        *(kind(Builder(), optimizer=kopt.Adam(0.03), epochs=25) for kind in (KerasClassifier, KerasRegressor)),
        KerasTransformer(Builder(), epochs=2),
    ]
)
def test_sklearn_checks(estimator, check):
    check(estimator)


# ---- what outputs mean -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("model", "loss"),
    [
        (None, None),
        (ending_in(1, None), None),
        (ending_in(1, "sigmoid"), None),
        (ending_in(2, None), None),
        (ending_in(2, "softmax"), None),
        (ending_in(2, "softmax"), "categorical_crossentropy"),
        (ending_in(1, "sigmoid"), "BinaryFocalCrossentropy"),
        (ending_in(1, None), "binary_focal_crossentropy"),
        (ending_in(1, None), keras.losses.BinaryCrossentropy(from_logits=True)),
        (ending_in(2, None), keras.losses.CategoricalCrossentropy(from_logits=True)),
        (ending_in(1, "sigmoid"), lambda y, p: keras.ops.square(y - p)),
    ],
)
def test_two_classes(model, loss):
    labels = np.where(two, "yes", "no")
    net = fast(model=model, loss=loss).fit(X, labels)
    p, score = net.predict_proba(X), net.decision_function(X)
    assert net.score(X, labels) > 0.85
    assert (p.shape, score.shape, net.classes_.tolist()) == ((90, 2), (90,), ["no", "yes"])
    np.testing.assert_allclose(p.sum(axis=1), 1)
    np.testing.assert_allclose(np.log(p[:, 1] / p[:, 0]), score, atol=1e-4)
    np.testing.assert_array_equal(net.classes_[p.argmax(axis=1)], net.predict(X))


@pytest.mark.parametrize(
    ("model", "loss"),
    [
        (None, None),
        (ending_in(3, "softmax"), None),
        (ending_in(3, None), "categorical_crossentropy"),
        (ending_in(3, "softmax"), "kl_divergence"),
        (ending_in(3, None), keras.losses.SparseCategoricalCrossentropy(from_logits=True)),
    ],
)
def test_many_classes(model, loss):
    net = fast(model=model, loss=loss, epochs=40).fit(X, y + 5)
    p = net.predict_proba(X)
    assert net.score(X, y + 5) > 0.85
    assert (p.shape, net.decision_function(X).shape, net.classes_.tolist()) == ((90, 3), (90, 3), [5, 6, 7])
    np.testing.assert_allclose(p.sum(axis=1), 1)
    np.testing.assert_array_equal(net.classes_[p.argmax(axis=1)], net.predict(X))


def test_logits_and_probabilities_train_alike():
    def fit(activation):
        return fast(model=ending_in(3, activation), epochs=3).fit(X, y).predict_proba(X)

    np.testing.assert_allclose(fit(None), fit("softmax"), atol=1e-6)


@pytest.mark.parametrize("activation", [None, "sigmoid"])
def test_several_labels(activation):
    X, y = make_multilabel_classification(90, 8, n_classes=4, random_state=0)
    net = fast(model=ending_in(4, activation), epochs=60).fit(X / 10, y)
    assert net.score(X / 10, y) > 0.5
    p = net.predict_proba(X / 10)
    assert p.shape == net.decision_function(X / 10).shape == (90, 4)
    np.testing.assert_array_equal(p > 0.5, net.predict(X / 10))
    with pytest.raises(ValueError, match="y must be multilabel-indicator as before, in 4 columns, got"):
        net.partial_fit(X / 10, y[:, 0])


def test_one_class():
    net = fast(epochs=1).fit(X, np.full(90, "only"))
    assert set(net.predict(X)) == {"only"}
    np.testing.assert_array_equal(net.predict_proba(X), np.ones((90, 1)))


@pytest.mark.parametrize("n_targets", [1, 3])
def test_regression(n_targets):
    X, y = make_regression(100, 5, n_targets=n_targets, random_state=0)
    net = fast(KerasRegressor, epochs=60).fit(X, y / 100)
    assert net.predict(X).shape == y.shape
    assert net.score(X, y / 100) > 0.9


def test_loss_of_a_regressor():
    rng = np.random.default_rng(0)
    X, y = rng.standard_normal((200, 1)), np.where(rng.random(200) < 0.2, 50.0, 1.0)

    def constant():
        return keras.Sequential([keras.layers.Rescaling(0.0), keras.layers.Dense(1)])

    nets = {loss: fast(KerasRegressor, constant, loss=loss, epochs=200, optimizer__learning_rate=0.1, batch_size=200)
            for loss in ("mean_absolute_error", None)}  # fmt: skip
    assert nets["mean_absolute_error"].fit(X, y).predict(X)[0] == pytest.approx(1, abs=0.2)
    assert nets[None].fit(X, y).predict(X)[0] > 5


# ---- weights of rows -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [KerasClassifier, KerasRegressor])
def test_weights_are_repetitions(kind):
    times = np.arange(90) % 3
    weighted = fast(kind, batch_size=500).fit(X, y, sample_weight=times)
    repeated = fast(kind, batch_size=500).fit(X.repeat(times, axis=0), y.repeat(times))
    np.testing.assert_allclose(weighted.predict(X), repeated.predict(X), rtol=1e-7)
    assert (weighted.predict(X) != fast(kind, batch_size=500).fit(X, y).predict(X)).any()


def test_class_weight_multiplies_sample_weight():
    w = np.linspace(1, 2, 90)
    one = fast(class_weight={0: 5, 1: 1, 2: 1}).fit(X, y, sample_weight=w)
    other = fast().fit(X, y, sample_weight=w * np.where(y == 0, 5, 1))
    np.testing.assert_array_equal(one.predict_proba(X), other.predict_proba(X))
    np.testing.assert_array_equal(w, np.linspace(1, 2, 90))


@pytest.mark.parametrize(("w", "message"), [(-np.ones(90), "must not be negative, got -1.0"), (np.zeros(90), "zero")])
def test_wrong_weights(w, message):
    with pytest.raises(ValueError, match=message):
        KerasRegressor().fit(X, y, sample_weight=w)


# ---- going on --------------------------------------------------------------------------------------------------------


def test_partial_fit_goes_on():
    whole = fast(epochs=3, batch_size=90).fit(X, y)
    steps = fast(batch_size=90)
    for _ in range(3):
        steps = pickle.loads(pickle.dumps(steps.partial_fit(X, y, classes=[0, 1, 2])))
    np.testing.assert_array_equal(steps.predict_proba(X), whole.predict_proba(X))
    assert steps.n_iter_ == 3
    assert steps.history_["loss"] == steps.loss_curve_ == whole.loss_curve_


def test_partial_fit_knows_classes_to_come():
    net = fast().partial_fit(X[y < 2], y[y < 2], classes=[0, 1, 2])
    assert net.predict_proba(X).shape == (90, 3)
    with pytest.raises(ValueError, match=r"KerasClassifier: y must hold known classes, got \[.*3.*\]"):
        net.partial_fit(X, y + 1)
    with pytest.raises(ValueError, match="partial_fit needs early_stopping=False, got True"):
        fast(early_stopping=True).partial_fit(X, y)


def test_warm_start_goes_on_with_the_weights():
    net = fast(warm_start=True, epochs=20).fit(X, y)
    first = net.loss_curve_[-1]
    net.set_params(epochs=1, optimizer__learning_rate=0.0).fit(X, y)
    assert net.loss_curve_[-1] < first
    assert net.n_iter_ == 21
    assert fast(epochs=1).fit(X, y).fit(X, y).n_iter_ == 1
    with pytest.raises(ValueError, match="warm_start must go on with the network it has"):
        net.set_params(model__hidden_layer_sizes=(3,)).fit(X, y)


def test_early_stopping_keeps_the_best_weights():
    noise = np.random.default_rng(0).integers(0, 2, 90)
    net = fast(epochs=200, early_stopping=True, n_iter_no_change=4, validation_fraction=0.3).fit(X, noise)
    losses = net.history_["val_loss"]
    assert len(losses) == net.n_iter_ == np.argmin(losses) + 1 + 4 < 200
    best = fast(epochs=int(np.argmin(losses)) + 1, early_stopping=True, n_iter_no_change=300, validation_fraction=0.3)
    np.testing.assert_array_equal(net.predict_proba(X), best.fit(X, noise).predict_proba(X))


def test_validation_rows_are_stratified(monkeypatch):
    held_out = []
    encoded = KerasClassifier._encoded
    monkeypatch.setattr(KerasClassifier, "_encoded", lambda net, codes: held_out.append(codes) or encoded(net, codes))
    fast(epochs=1, early_stopping=True, validation_fraction=0.2).fit(X, np.arange(90) < 10)
    assert [(len(codes), codes.sum()) for codes in held_out] == [(18, 2), (72, 8)]


# ---- randomness, copies, dtypes --------------------------------------------------------------------------------------


def test_random_state():
    model = {"model__hidden_layer_sizes": (8, 8), "model__dropout": 0.2, "model__drop_path": 0.2}
    a, b = (fast(epochs=3, **model).fit(X, y).predict_proba(X) for _ in range(2))
    np.testing.assert_array_equal(a, b)
    np.random.seed(5)  # other tests set it to 0, from which None would draw what 0 draws
    for seed in (None, 1):
        assert (fast(epochs=3, random_state=seed, **model).fit(X, y).predict_proba(X) != a).any()


@pytest.mark.parametrize("again", [copy.deepcopy, lambda net: pickle.loads(pickle.dumps(net))])
@pytest.mark.parametrize("model", [None, build, build(6, 3)], ids=["mlp", "function", "template"])
def test_copies_predict_and_train_alike(again, model):
    net = fast(model=model, epochs=2).fit(X, y)
    other = again(net)
    np.testing.assert_array_equal(net.predict_proba(X), other.predict_proba(X))
    np.testing.assert_array_equal(net.partial_fit(X, y).predict_proba(X), other.partial_fit(X, y).predict_proba(X))


def test_a_pickle_predicts_in_another_process(tmp_path):
    net = fast(epochs=2).fit(X, y)
    (tmp_path / "net").write_bytes(pickle.dumps((net, X)))
    code = f"""
import pickle
net, X = pickle.load(open({str(tmp_path / "net")!r}, "rb"))
print(net.predict_proba(X)[0].tolist())
"""
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    np.testing.assert_allclose(json.loads(said), net.predict_proba(X)[0], rtol=1e-12)


def test_model_is_the_trained_network():
    net = fast(model=ending_in(3, "softmax")).fit(X, y)
    np.testing.assert_allclose(net.model_(X).numpy(), net.predict_proba(X), rtol=1e-6)
    before = net.predict_proba(X)
    net.model_.set_weights([0 * w for w in net.model_.get_weights()])
    np.testing.assert_array_equal(net.predict_proba(X), before)
    assert not hasattr(clone(net), "model_")


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("model", [None, build, build(6, 3)], ids=["mlp", "function", "template"])
def test_rows_say_in_what_to_compute(dtype, model):
    net = fast(model=model, epochs=1).fit(X.astype(dtype), y)
    assert net.predict_proba(X.astype(dtype)).dtype == dtype
    own = "float32" if isinstance(model, keras.Model) else dtype
    assert {w.dtype.name for w in net._network.weights} == {own}


def test_any_table_will_do():
    expected = fast(epochs=2).fit(X, y).predict_proba(X)
    names = [f"x{i}" for i in range(6)]
    for rows, labels in (
        (X.tolist(), y.tolist()),
        (pd.DataFrame(X, columns=names), pd.Series(y)),
        (pl.DataFrame(X, schema=names), pl.Series(y)),
        (sp.csr_matrix(X), y),
        (sp.csc_array(X), y),
    ):
        net = fast(epochs=2).fit(rows, labels)
        np.testing.assert_array_equal(net.predict_proba(rows), expected)
    named = fast(epochs=1).fit(pd.DataFrame(X, columns=names), y)
    assert named.feature_names_in_.tolist() == names
    with pytest.raises(ValueError, match="feature names should match"):
        named.predict(pd.DataFrame(X, columns=names[::-1]))


# ---- manners ---------------------------------------------------------------------------------------------------------


def test_verbose(capfd):
    fast(epochs=3).fit(X, y)
    assert capfd.readouterr() == ("", "")
    fast(epochs=3, verbose=1, early_stopping=True).fit(X, y)
    assert "3/3" in (shown := capfd.readouterr().out)
    assert "val_loss" in shown


def test_it_learns_out_of_the_box():
    X, y = load_iris(return_X_y=True)
    X = (X - X.mean(axis=0)) / X.std(axis=0)
    assert KerasClassifier(random_state=0).fit(X, y).score(X, y) > 0.95
    linear = LinearRegression().fit(X[:, :3], X[:, 3]).score(X[:, :3], X[:, 3])
    assert KerasRegressor(random_state=0).fit(X[:, :3], X[:, 3]).score(X[:, :3], X[:, 3]) > linear


def test_strategies_by_name_survive_a_clone():
    net = clone(fast(KerasRegressor, strategy="mirrored", epochs=1)).fit(X, y)
    assert net._network.program().strategy is kopt.distribute.strategy.resolve("mirrored")
