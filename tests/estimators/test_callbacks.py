"""Callbacks of Keras and of scikit-learn, and what is known of each epoch."""

import pickle
from concurrent.futures import ThreadPoolExecutor

import keras
import numpy as np
import pandas as pd
import pytest
from sklearn.base import clone
from sklearn.datasets import make_classification
from sklearn.metrics import accuracy_score, get_scorer
from sklearn.model_selection import GridSearchCV
from sklearn.utils._param_validation import InvalidParameterError

import kopt
from kopt import KerasClassifier, KerasRegressor

X, y = make_classification(90, 6, n_informative=4, n_classes=3, random_state=0)
noise = np.random.default_rng(0).integers(0, 2, 90)


def fast(kind=KerasClassifier, **parameters):
    given = {"optimizer": kopt.Adam(0.02), "epochs": 6, "batch_size": 16, "random_state": 0}
    return kind(**given | parameters)


def kept(hook):
    """A callback that keeps what a hook is told, and the list."""
    found = []
    if hook.startswith("on_train_batch"):
        return keras.callbacks.LambdaCallback(**{hook: lambda batch, logs: found.append((batch, logs))}), found
    return keras.callbacks.LambdaCallback(**{hook: lambda epoch, logs=None: found.append((epoch, logs))}), found


# ---- Keras's ---------------------------------------------------------------------------------------------------------


def test_epochs_are_told_and_change_nothing():
    callback, found = kept("on_epoch_end")
    told, untold = fast(callbacks=callback).fit(X, y), fast().fit(X, y)
    np.testing.assert_array_equal(told.predict_proba(X), untold.predict_proba(X))
    assert found == [(i, {"loss": loss}) for i, loss in enumerate(untold.loss_curve_)]


def test_batches_are_told_where_a_callback_asks_and_change_nothing(monkeypatch):
    callback, found = kept("on_train_batch_end")
    told, untold = fast(callbacks=[callback], epochs=2).fit(X, y), fast(epochs=2).fit(X, y)
    np.testing.assert_array_equal(told.predict_proba(X), untold.predict_proba(X))
    assert [batch for batch, _ in found] == 2 * list(range(6))
    assert found[5][1] == {"loss": pytest.approx(untold.loss_curve_[0], rel=1e-12)}
    assert found[0][1]["loss"] != found[5][1]["loss"]


def test_who_asks_for_batches():
    from kopt.training.followers import KerasCallbacks

    callbacks = keras.callbacks
    epochs = [callbacks.EarlyStopping(), callbacks.ModelCheckpoint("m.keras"), kept("on_epoch_end")[0]]
    batches = [callbacks.TerminateOnNaN(), callbacks.ModelCheckpoint("m.keras", save_freq=3)]
    batches += [kept("on_train_batch_begin")[0], type("Old", (callbacks.Callback,), {"on_batch_end": len})()]
    assert [KerasCallbacks([callback]).wants_batches for callback in epochs + batches] == 3 * [False] + 4 * [True]


def test_a_batch_can_be_the_last():
    class Third(keras.callbacks.Callback):
        def on_train_batch_end(self, batch, logs=None):
            self.model.stop_training = batch == 2

    callback, found = kept("on_train_batch_end")
    assert fast(callbacks=[Third(), callback]).fit(X, y).n_iter_ == 1
    assert [batch for batch, _ in found] == [0, 1, 2]


def test_early_stopping_of_keras_is_ours():
    stop = keras.callbacks.EarlyStopping(patience=4, restore_best_weights=True)
    given = {"epochs": 200, "validation_fraction": 0.3}
    net = fast(callbacks=stop, **given).fit(X, noise)
    own = fast(early_stopping=True, n_iter_no_change=4, **given).fit(X, noise)
    assert net.history_ == own.history_
    assert net.n_iter_ < 200
    np.testing.assert_array_equal(net.predict_proba(X), own.predict_proba(X))
    assert stop.model is None
    assert getattr(stop, "best", None) is None
    assert net.callbacks_[0].best == min(net.history_["val_loss"])
    again = pickle.loads(pickle.dumps(net))
    assert not hasattr(again, "callbacks_")
    assert again.fit(X, noise).history_ == own.history_


def test_rates_are_set_and_written_down():
    halves = keras.callbacks.LearningRateScheduler(lambda epoch, rate: rate / 2)
    plateau = keras.callbacks.ReduceLROnPlateau(monitor="loss", factor=0.1, patience=1, min_delta=9.0, cooldown=9)
    still = fast(callbacks=keras.callbacks.LearningRateScheduler(lambda epoch, rate: 0.0), epochs=1).fit(X, y)
    np.testing.assert_allclose(
        fast(callbacks=halves, epochs=3).fit(X, y).history_["learning_rate"], [0.01, 0.005, 0.0025]
    )
    rates = fast(callbacks=plateau, epochs=4).fit(X, y).history_["learning_rate"]
    np.testing.assert_allclose(rates, [0.02, 0.02, 0.002, 0.002])
    other = fast(optimizer=kopt.Adam(0.0), epochs=1).fit(X, y)
    np.testing.assert_array_equal(still.predict_proba(X), other.predict_proba(X))


def test_checkpoints_are_saved(tmp_path):
    path = str(tmp_path / "best.weights.h5")
    best = keras.callbacks.ModelCheckpoint(path, save_best_only=True, save_weights_only=True)
    net = fast(callbacks=best, epochs=15).fit(X, y)
    assert len(net.history_["val_loss"]) == 15  # it follows the loss of rows held out, so that some are
    model = fast(early_stopping=True, n_iter_no_change=99, epochs=15).fit(X, y).model_
    expected = [w.numpy() for w in model.weights]
    model.set_weights([0 * w for w in expected])
    model.load_weights(path)
    for weight, other in zip(expected, model.weights, strict=True):
        np.testing.assert_array_equal(weight, other)


def test_classes_and_names_take_arguments():
    net = fast(callbacks={"stop": keras.callbacks.EarlyStopping}, epochs=50)
    net.set_params(callbacks__stop__monitor="loss", callbacks__stop__min_delta=9, callbacks__stop__patience=2)
    assert clone(net).fit(X, y).n_iter_ == 3
    named = fast(callbacks=["earlystopping", "TerminateOnNaN"], epochs=50, callbacks__EarlyStopping__monitor="loss")
    assert named.set_params(callbacks__EarlyStopping__min_delta=9).fit(X, y).n_iter_ == 2


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        (
            {"callbacks": "EarlyStoping"},
            r"callbacks must be among .* got 'EarlyStoping'. Did you mean 'EarlyStopping'\?",
        ),
        ({"callbacks": [3]}, r"callbacks must be names, classes or instances of Keras's, got 3\."),
        ({"callbacks": dict}, r"callbacks must be names, classes or instances of Keras's, got <class 'dict'>\."),
        (
            {"callbacks": "EarlyStopping", "callbacks__EarlyStopping__patients": 3},
            "callbacks__EarlyStopping__patients is no argument of EarlyStopping; it takes monitor, ",
        ),
        ({"scoring": ["acuracy"]}, r"scoring must be names .* got 'acuracy'\. Did you mean 'accuracy'\?"),
        ({"callbacks__stop__patience": 3}, "callbacks__stop__patience must name one of the callbacks, got None"),
        (
            {"callbacks": keras.callbacks.TerminateOnNaN(), "callbacks__TerminateOnNaN__x": 3},
            "callbacks__TerminateOnNaN__x needs a class to be made, got an instance",
        ),
    ],
)
def test_mistakes(parameters, message):
    with pytest.raises(InvalidParameterError, match=f"KerasClassifier: {message}"):
        KerasClassifier(**parameters).fit(X, y)


def test_partial_fit_counts_epochs_and_holds_out_no_rows():
    callback, found = kept("on_epoch_begin")
    net = fast(callbacks=callback)
    for _ in range(3):
        net.partial_fit(X, y)
    assert [epoch for epoch, _ in found] == [0, 1, 2]
    with pytest.raises(ValueError, match="partial_fit holds out no rows, and EarlyStopping needs some for val_loss"):
        fast(callbacks="EarlyStopping").partial_fit(X, y)
    with pytest.raises(ValueError, match="partial_fit needs scoring=None, got 'accuracy'"):
        fast(scoring="accuracy").partial_fit(X, y)


# ---- scores of rows held out -----------------------------------------------------------------------------------------


def test_stopping_by_a_score():
    names = [f"x{i}" for i in range(6)]
    labels = np.array(["a", "b", "c"])[y]
    net = fast(epochs=200, early_stopping=True, scoring="accuracy", n_iter_no_change=5, validation_fraction=0.3)
    net.fit(pd.DataFrame(X, columns=names), labels, sample_weight=np.arange(1, 91))
    scores = net.validation_scores_
    assert net.history_["val_accuracy"] == scores
    assert len(net.history_["val_loss"]) == len(scores) == net.n_iter_ == np.argmax(scores) + 1 + 5 < 200
    assert (net.best_validation_score_, net.best_loss_) == (max(scores), min(net.loss_curve_))


def test_scores_are_those_of_the_rows_held_out():
    seen = []

    def custom(estimator, X, y):
        seen.append((len(X), estimator.predict_proba(X).mean(axis=0), y))
        return accuracy_score(y, estimator.predict(X))

    scoring = {"custom": custom, "accuracy": get_scorer("accuracy")}
    net = fast(scoring=scoring, validation_fraction=0.2).fit(X, y + 5)
    assert net.n_iter_ == 6  # nothing stops it
    assert net.validation_scores_ == net.history_["val_custom"] == net.history_["val_accuracy"]
    assert {rows for rows, *_ in seen} == {18}
    assert sorted(np.bincount(seen[0][2] - 5)) == [6, 6, 6]
    assert (seen[0][1] != seen[-1][1]).all()
    by_function = fast(scoring=custom, validation_fraction=0.2).fit(X, y + 5, sample_weight=np.ones(90))
    assert by_function.history_["val_score"] == net.validation_scores_


def test_a_scorer_may_predict_in_threads():
    def threaded(estimator, X, y):
        with ThreadPoolExecutor(2) as pool:
            return pool.submit(estimator.score, X, y).result(timeout=60)

    small = {"model__hidden_layer_sizes": (7,), "epochs": 1}
    scores = [fast(scoring=scoring, **small).fit(X, y).validation_scores_ for scoring in (threaded, "accuracy")]
    assert scores[0] == scores[1]


def test_without_scoring_scores_are_losses():
    net = fast(KerasRegressor, early_stopping=True, warm_start=True).fit(X, y)
    assert net.validation_scores_ == [-loss for loss in net.history_["val_loss"]]
    again = net.fit(X, y)
    assert len(again.validation_scores_) == again.n_iter_ == 12
    plain = fast().fit(X, y)
    assert (plain.validation_scores_, plain.best_validation_score_) == (None, None)


# ---- scikit-learn's --------------------------------------------------------------------------------------------------


class StopAfter:
    """Ends a fit after its third epoch, and keeps what it was told."""

    def __init__(self):
        self.told = []

    def setup(self, estimator, context):
        self.told.append("setup")

    def teardown(self, estimator, context):
        self.told.append("teardown")

    def on_fit_task_begin(self, estimator, context):
        self.told.append(f"begin {context.task_name}")

    def on_fit_task_end(self, estimator, context, *, X, fitted_estimator):
        self.told.append(f"end {context.task_name}: {fitted_estimator.predict(X).mean():.6f}")
        return context.task_name == "epoch" and context.task_id == 2


def test_a_callback_of_sklearn_sees_each_epoch_and_stops():
    pytest.importorskip("sklearn.callback")
    callback = StopAfter()
    table = pd.DataFrame(X, columns=list("abcdef"))
    net = clone(fast(KerasRegressor).set_callbacks(callback)).fit(table, y)
    first, *_, third = (fast(KerasRegressor, epochs=epochs).fit(X, y).predict(X).mean() for epochs in (1, 2, 3))
    assert net.n_iter_ == 3
    assert callback.told[:4] == ["setup", "begin fit", "begin epoch", f"end epoch: {first:.6f}"]
    assert callback.told[-3:] == [f"end epoch: {third:.6f}", f"end fit: {third:.6f}", "teardown"]
    assert len(callback.told) == 10


@pytest.mark.slow
@pytest.mark.parametrize("n_jobs", [1, 2])
def test_scores_by_epoch_inside_a_search(n_jobs, capsys):
    callback = pytest.importorskip("sklearn.callback")
    monitor = callback.ScoringMonitor(scoring="accuracy")
    net = KerasClassifier(epochs=3, random_state=0).set_callbacks(monitor)
    search = GridSearchCV(net, {"batch_size": [16, 90]}, cv=2, n_jobs=n_jobs, error_score="raise")
    search.set_callbacks(callback.ProgressBar()).fit(X, y)
    rows = [row for row in monitor.get_logs().data if row["task_name"] == "epoch"]
    assert len(rows) == 5 * 3  # four fits and the last
    last = max(rows, key=lambda row: row["task_id_path"])
    assert last["accuracy"] == search.score(X, y)
    assert "KerasClassifier - fit" in capsys.readouterr().out
