"""Estimators with an objective in the place of the loss."""

import functools
import pickle

import keras
import numpy as np
import pytest
from sklearn.base import clone
from sklearn.model_selection import GridSearchCV

import kopt
from kopt import objectives
from kopt.training import together
from kopt.training.meeting import call_together

L = keras.layers
RNG = np.random.default_rng(0)
X = RNG.standard_normal((48, 4)).astype("float32")
y = (X[:, 0] > 0) + (X[:, 1] > 0.5) * 1
W = RNG.uniform(0.5, 2, 48)
START = [RNG.standard_normal(shape).astype("float32") for shape in ((4, 6), (6,), (6, 3), (3,))]


def network(dtype="float32"):
    """A network with a penalty that starts from fixed weights."""
    inputs = keras.Input((4,), dtype=dtype)
    h = L.Dense(6, "tanh", kernel_regularizer=keras.regularizers.L2(0.01), name="hidden")(inputs)
    model = kopt.Model(inputs, L.Dense(3)(h))
    model.set_weights(START)
    return model


def make(objective=None, **how):
    how = dict(optimizer="SGD", optimizer__learning_rate=0.1, epochs=3, batch_size=16, random_state=0) | how
    return kopt.KerasClassifier(network, objective=objective, **how)


@pytest.mark.parametrize(
    "objective",
    [
        objectives.FGSM(0.1),
        objectives.Flooding(1.5),
        objectives.LabelSmoothing(0.2),
        objectives.GradientPenalty(0.5),
        objectives.OnlineLabelSmoothing(3, 2),
    ],
    ids=lambda objective: type(objective).__name__,
)
def test_steps_are_those_of_kopts_model(objective):
    estimator = make(objective, batch_size=48).fit(X, y, W)
    model = network()
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(kopt.SGD(0.1), loss, objective=type(objective).from_config(objective.get_config()))
    weights = W / W.mean()  # Keras divides by the number of rows, an estimator by the sum of weights
    history = model.fit(X, y, batch_size=48, epochs=3, shuffle=False, sample_weight=weights, verbose=0).history
    np.testing.assert_allclose(estimator.loss_curve_, history["loss"], rtol=1e-5)
    for found, expected in zip(estimator.model_.get_weights(), model.get_weights(), strict=True):
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-6)


def test_two_fits_are_equal_and_another_seed_is_not():
    first, again = make("MixUp", objective__alpha=1.0).fit(X, y), make(objectives.MixUp(1.0)).fit(X, y)
    other = make("MixUp", objective__alpha=1.0, random_state=1).fit(X, y)
    np.testing.assert_array_equal(first.predict_proba(X), again.predict_proba(X))
    assert first.loss_curve_ == again.loss_curve_ != other.loss_curve_
    assert make().fit(X, y).loss_curve_ != first.loss_curve_


def test_copies_keep_the_objective(tmp_path):
    estimator = make(objectives.MixUp(kopt.schedules.Linear(1.0, 9, 0.5), seed=3)).fit(X, y)
    estimator.save(tmp_path / "estimator.kopt")
    loaded = kopt.load(tmp_path / "estimator.kopt", model=network)
    copies = [clone(estimator), pickle.loads(pickle.dumps(estimator)), loaded]
    for copy in copies:
        assert copy.objective.seed == 3
        if copy is not copies[0]:
            np.testing.assert_array_equal(copy.predict_proba(X), estimator.predict_proba(X))
            assert not hasattr(copy.model_, "objective") or copy.model_.objective is None
        np.testing.assert_array_equal(copy.fit(X, y).predict_proba(X), estimator.predict_proba(X))


@pytest.mark.parametrize("kind", ["LabelSmoothing", "Flooding"])
def test_two_replicas_equal_one(kind):
    how = {"Flooding": dict(objective__level=0.9)}.get(kind, {})
    build = functools.partial(network, dtype="float64")
    one, two = (
        make(kind, strategy=strategy, **how).set_params(model=build).fit(X.astype("float64"), y, W)
        for strategy in (None, "mirrored")
    )
    np.testing.assert_allclose(two.loss_curve_, one.loss_curve_, rtol=1e-6)
    np.testing.assert_allclose(two.predict_proba(X), one.predict_proba(X), atol=1e-6)


def test_replicas_mix_their_own_rows():
    mixed, plain = (make(kind, strategy="mirrored").fit(X, y) for kind in ("MixUp", None))
    assert np.isfinite(mixed.loss_curve_).all()
    assert mixed.loss_curve_ != plain.loss_curve_


def test_like_objectives_train_together_and_others_apart(monkeypatch):
    train, sizes = together.StackedNetworks.train, []

    def watched(self, rows, order):
        sizes.append(len(self.state[0]))
        return train(self, rows, order)

    monkeypatch.setattr(together.StackedNetworks, "train", watched)
    kinds = ["MixUp", "MixUp", "LabelSmoothing", "MixUp", "LabelSmoothing", None, "Flooding"]
    settings = [{}, {}, {}, dict(objective__alpha=2.0), dict(objective__smoothing=0.3), {}, dict(objective__level=1.0)]

    def several():
        pairs = enumerate(zip(kinds, settings, strict=True))
        return [make(kind, optimizer__learning_rate=0.1 + i / 50, **how) for i, (kind, how) in pairs]

    alone = [estimator.fit(X, y) for estimator in several()]
    found = call_together([lambda e=e: e.fit(X, y) for e in several()], together.train_all)
    assert sizes == [2] * 3  # the first two
    for one, other in zip(alone, found, strict=True):
        np.testing.assert_allclose(other.loss_curve_, one.loss_curve_, rtol=1e-5)
        np.testing.assert_allclose(other.predict_proba(X), one.predict_proba(X), rtol=1e-4, atol=1e-6)


def test_layers_are_named_in_each_network():
    def build(names):
        inputs = keras.Input((4,))
        h = inputs
        for name in names:
            h = L.Dense(4, "tanh", name=name)(h)
        return keras.Model(inputs, L.Dense(3)(h))

    mixed = objectives.ManifoldMixup("mixed", inputs=False, alpha=1.0, seed=0)
    curves = [
        make(mixed).set_params(model=functools.partial(build, names)).fit(X, y).loss_curve_
        for names in (("mixed", "other"), ("other", "mixed"))
    ]
    assert curves[0] != curves[1]


def test_a_search_goes_over_objectives():
    grid = {"objective__alpha": [0.2, 2.0], "optimizer__learning_rate": [0.01, 0.1]}
    search = GridSearchCV(make("MixUp"), grid, cv=2, error_score="raise").fit(X, y)
    assert len(set(search.cv_results_["mean_test_score"])) > 1
    assert search.best_estimator_.get_params()["objective__alpha"] in (0.2, 2.0)


def test_partial_fit_goes_on_with_the_objective_it_has():
    estimator = make("OnlineLabelSmoothing", objective__classes=3, objective__period=3)
    estimator.partial_fit(X, y, classes=[0, 1, 2])
    estimator.partial_fit(X, y)
    whole = make("OnlineLabelSmoothing", objective__classes=3, objective__period=3, epochs=2).fit(X, y)
    np.testing.assert_array_equal(whole.predict_proba(X), estimator.predict_proba(X))
    with pytest.raises(ValueError, match=r"must go on with the objective it has, OnlineLabelSmoothing\(cla"):
        estimator.set_params(objective__period=4).partial_fit(X, y)
    warm = make(warm_start=True).fit(X, y)
    before = warm.model_.get_weights()
    warm.set_params(objective="MixUp", epochs=1, optimizer__learning_rate=1e-9).fit(X, y)  # another one may follow
    for found, start, first in zip(warm.model_.get_weights(), before, START, strict=True):
        np.testing.assert_allclose(found, start, atol=1e-6)
        assert np.abs(found - first).max() > 1e-3


def test_values_and_layers_have_objectives_too():
    regressor = kopt.KerasRegressor(objective="MixUp", objective__alpha=1.0, epochs=2, random_state=0).fit(X, X[:, 0])
    transformer = kopt.KerasTransformer(objective=objectives.FGSM(0.1), epochs=2, random_state=0).fit(X, y)
    assert np.isfinite(regressor.loss_curve_ + transformer.loss_curve_).all()


@pytest.mark.parametrize(
    ("how", "message"),
    [
        (dict(objective="mixup"), "objective must be one of CutMix, .*, got 'mixup'. Did you mean 'MixUp'"),
        (dict(objective=keras.losses.MeanSquaredError), "objective must be one of kopt.objectives, got <class"),
        (dict(objective="MixUp", objective__alfa=1), "objective__alfa is no parameter of MixUp; it takes alpha, seed"),
        (dict(objective="FGSM"), "objective must get all it needs, and FGSM needs epsilon. Pass objective__epsilon"),
        (
            dict(objective="MixUp", objective__alpha=-1),
            r"objective: MixUp: alpha must be a number in \(0, inf\)",
        ),
        (dict(objective__alpha=1.0), "objective must be given with objective__alpha, got None"),
        (dict(objective=3), "objective"),
    ],
)
def test_what_is_wrong_is_said_before_training(how, message, monkeypatch):
    monkeypatch.setattr("kopt.training.network.Network.train", lambda *_, **__: pytest.fail("training began"))
    with pytest.raises(ValueError, match=message):
        make().set_params(**how).fit(X, y)


def test_an_objective_that_wants_another_loss_says_so():
    with pytest.raises(ValueError, match="RDrop: to compare predictions, the loss must be a crossentropy of logits"):
        make("RDrop", loss="categorical_hinge").fit(X, y)
    targets = np.stack([y, 2 - y], axis=1)
    with pytest.raises(ValueError, match="VAT: to compare predictions, there must be one target with classes, got 2"):
        kopt.KerasClassifier(objective="VAT", objective__epsilon=1.0, epochs=1).fit(X, targets)
    assert np.isfinite(kopt.KerasClassifier(objective="MixUp", epochs=1).fit(X, targets).loss_curve_).all()
    with pytest.raises(ValueError, match="MixUp looks at more than the outputs of a batch"):
        make("MixUp", optimizer="KFAC").fit(X, y)
