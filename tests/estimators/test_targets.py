"""Several targets with a label each, and what outputs mean to a classifier."""

import pickle

import keras
import numpy as np
import pytest
from sklearn.datasets import make_classification
from sklearn.utils.class_weight import compute_sample_weight

import kopt
from kopt import KerasClassifier, KerasRegressor

X, three = make_classification(90, 6, n_informative=4, n_classes=3, random_state=0)
both = np.column_stack([np.array(list("abc"))[three], np.where(X[:, 0] > 0, "up", "down")])
layers = keras.layers


def heads(n_features_in_, n_classes_, ends=("softmax", "softmax")):
    inputs = keras.Input((n_features_in_,))
    h = layers.Dense(16, "relu")(inputs)
    outputs = [layers.Dense(units, end, name=f"y{i}")(h) for i, (units, end) in enumerate(zip(n_classes_, ends))]
    return keras.Model(inputs, outputs)


def fast(model=None, kind=KerasClassifier, **parameters):
    given = {"optimizer": kopt.Adam(0.03), "epochs": 40, "batch_size": 30, "random_state": 0}
    return kind(model, **given | parameters)


@pytest.fixture(scope="module")
def net():
    return fast(heads).fit(X, both)


def test_several_targets(net):
    p, score, predicted = net.predict_proba(X), net.decision_function(X), net.predict(X)
    assert (net.target_type_, net.n_classes_, net.n_outputs_) == ("multiclass-multioutput", [3, 2], 5)
    assert [own.tolist() for own in net.classes_] == [["a", "b", "c"], ["down", "up"]]
    assert [a.shape for a in (*p, *score)] == [(90, 3), (90, 2), (90, 3), (90,)]
    for column, own, probabilities in zip(predicted.T, net.classes_, p):
        np.testing.assert_allclose(probabilities.sum(axis=1), 1)
        np.testing.assert_array_equal(column, own[probabilities.argmax(axis=1)])
    assert net.score(X, both) == (predicted == both).all(axis=1).mean() > 0.8
    w = np.arange(90) % 2
    assert net.score(X, both, w) == pytest.approx((predicted == both).all(axis=1)[1::2].mean())


def test_outputs_stay_apart_in_the_model(net, tmp_path):
    outputs = net.model_(X)
    assert net.model_.output_names == ["y0", "y1"]
    for output, p in zip(outputs, net.predict_proba(X)):
        np.testing.assert_allclose(output, p, rtol=1e-6)
    net.save(tmp_path / "net.kopt")
    for again in (pickle.loads(pickle.dumps(net)), kopt.load(tmp_path / "net.kopt", model=heads)):
        np.testing.assert_array_equal(again.predict_proba(X)[0], net.predict_proba(X)[0])


@pytest.mark.parametrize(
    ("model", "loss"),
    [
        (None, None),
        (heads, "categorical_crossentropy"),
        (lambda n_features_in_, n_classes_: heads(n_features_in_, n_classes_, (None, None)), None),
    ],
)
def test_heads_may_be_side_by_side_and_have_any_loss(model, loss, net):
    other = fast(model, loss=loss).fit(X, both)
    assert other.score(X, both) > 0.8
    if model is not None:  # the same network, and the same loss in other words
        np.testing.assert_allclose(other.predict_proba(X)[0], net.predict_proba(X)[0], atol=1e-3)


def test_the_loss_is_the_sum_over_targets():
    still = {"epochs": 1, "batch_size": 90, "optimizer": kopt.SGD(0.0)}
    one = fast(heads, **still).fit(X, both)
    p = one.predict_proba(X)
    expected = -sum(
        np.log(own[np.arange(90), codes]) for own, codes in zip(p, [three, (X[:, 0] > 0).astype(int)])
    ).mean()
    np.testing.assert_allclose(one.loss_curve_, expected, rtol=1e-6)


def test_weights_of_classes_are_multiplied():
    weights = [{"a": 5, "b": 1, "c": 1}, {"up": 1, "down": 2}]
    given = fast(epochs=2, class_weight=weights).fit(X, both)
    by_hand = fast(epochs=2).fit(X, both, np.where(three == 0, 5, 1) * np.where(X[:, 0] > 0, 1, 2))
    np.testing.assert_array_equal(given.predict_proba(X)[1], by_hand.predict_proba(X)[1])
    balanced = fast(epochs=2, class_weight="balanced").fit(X, both)
    by_hand = fast(epochs=2).fit(X, both, compute_sample_weight("balanced", both))
    np.testing.assert_array_equal(balanced.predict_proba(X)[1], by_hand.predict_proba(X)[1])


def test_labels_to_come_and_early_stopping():
    first = (three < 2) & (X[:, 0] > 0)
    net = fast().partial_fit(X[first], both[first], classes=[["a", "b", "c"], ["down", "up"]])
    assert [p.shape[1] for p in net.partial_fit(X, both).predict_proba(X)] == [3, 2]
    numbers = np.column_stack([three, X[:, 0] > 0]).astype(int)
    net = fast().partial_fit(numbers[:, :1] > 0, (numbers > 0).astype(int), classes=[[0, 1, 2], [0, 1]])
    assert net.target_type_ == "multiclass-multioutput"  # though the first rows look like several labels
    with pytest.raises(
        ValueError, match="y must be multiclass-multioutput as before, in 2 columns, got multiclass in 1"
    ):
        net.partial_fit(numbers[:, :1], three)
    with pytest.raises(ValueError, match=r"y must hold known classes, got \[.*7.*\]"):
        net.partial_fit(numbers[:, :1], np.where(numbers == 2, 7, numbers))
    assert len(fast(epochs=3, early_stopping=True).fit(X, both).validation_scores_) == 3


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (
            lambda: heads(6, [3, 3]),
            r"model must end in n_outputs_ = 5 units, or several outputs of \(3, 2\) units, got 3 and 3",
        ),
        (lambda: heads(6, [3, 2], ("softmax", None)), "model must end all its outputs alike"),
    ],
)
def test_heads_that_do_not_fit(model, message):
    with pytest.raises(ValueError, match=message):
        fast(model).fit(X, both)


def test_a_regressor_with_an_output_for_each_target():
    def two(n_features_in_):
        inputs = keras.Input((n_features_in_,))
        return keras.Model(inputs, [layers.Dense(1)(inputs), layers.Dense(1)(inputs)])

    net = fast(two, KerasRegressor, epochs=80).fit(X, X[:, :2] * [1, -2])
    assert net.score(X, X[:, :2] * [1, -2]) > 0.9
    np.testing.assert_allclose(np.concatenate(net.model_(X), axis=1), net.predict(X), rtol=1e-6)


@pytest.mark.parametrize(
    "y", [three, three > 0, np.eye(3)[three].astype(int), both], ids=["many", "two", "labels", "both"]
)
def test_logarithms_of_probabilities(y):
    net = fast(epochs=2).fit(X, y)
    pairs = [(net.predict_log_proba, net.predict_proba)]
    if y is both:
        pairs = [(lambda X, i=i: net.predict_log_proba(X)[i], lambda X, i=i: net.predict_proba(X)[i]) for i in (0, 1)]
    for log_p, p in pairs:
        np.testing.assert_allclose(log_p(X), np.log(p(X)), rtol=1e-6)
        far = log_p(1e4 * X)
        assert np.isfinite(far).all()
        assert far.min() < -800  # of which the probability is 0
