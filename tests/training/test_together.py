"""Networks of estimators that train together end as if each had trained alone."""

import contextvars
import functools
import threading

import keras
import numpy as np
import pytest
from scipy import sparse

import kopt
from kopt.training import stacked, together
from kopt.training.meeting import call_together

L = keras.layers
RNG = np.random.default_rng(0)
X, y = RNG.standard_normal((50, 4)), RNG.integers(0, 3, 50)


def with_everything(input_shape_, n_classes_):
    """Penalties, statistics, and random numbers of the layers' own seeds."""
    return keras.Sequential([
        keras.Input(input_shape_),
        L.Dense(6, "relu", kernel_regularizer="l2"),
        L.BatchNormalization(),
        L.Dropout(0.3, seed=1),
        L.Dense(n_classes_, "softmax"),
    ])  # fmt: skip


@pytest.fixture
def sizes(monkeypatch):
    """Of each epoch: how many networks trained, the rank of their order, whether XLA compiled it."""
    train, seen = together.StackedNetworks.train, []

    def watched(self, rows, order):
        seen.append((len(self.state[0]), order.shape.rank, self.jit_compile))
        return train(self, rows, order)

    monkeypatch.setattr(together.StackedNetworks, "train", watched)
    return seen


def fit_together(estimators, X=X, y=y, **options):
    return call_together([lambda e=e: e.fit(X, y, **options) for e in estimators], together.train_all)


def check_as_alone(make, n=3, X=X, y=y, **options):
    alone = [make(i).fit(X, y, **options) for i in range(n)]
    both = fit_together([make(i) for i in range(n)], X, y, **options)
    for one, other in zip(alone, both, strict=True):
        assert one.n_iter_ == other.n_iter_
        np.testing.assert_allclose(other.loss_curve_, one.loss_curve_, rtol=1e-6)
        for found, expected in zip(other._network._state, one._network._state, strict=True):
            np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-8)
        np.testing.assert_allclose(other.predict_proba(X), one.predict_proba(X), rtol=1e-6, atol=1e-8)


def network(i, optimizer=kopt.AdamW, random_state=0, epochs=3, rate="optimizer__learning_rate", **options):
    options = {"model": with_everything, "batch_size": 16, rate: 0.01 * (i + 1)} | options
    return kopt.KerasClassifier(optimizer=optimizer, random_state=random_state, epochs=epochs, **options)


def test_as_alone_in_one_order(sizes):
    check_as_alone(network, sample_weight=RNG.uniform(0.5, 2, 50))
    assert sizes == [(3, 1, False)] * 3


@pytest.mark.slow
def test_as_alone_each_in_its_order(sizes):
    check_as_alone(lambda i: network(i, random_state=i, class_weight={0: 1.0, 1: 2.0, 2: 1.0}))
    assert sizes == [(3, 2, False)] * 3


@pytest.mark.slow
@pytest.mark.parametrize(
    "options",
    [
        lambda i: dict(optimizer=kopt.ScheduleFreeAdamW),
        pytest.param(
            lambda i: dict(optimizer=kopt.SAM(kopt.SGD(), rho=0.05 * (i + 1)), rate="optimizer__inner__learning_rate"),
            marks=pytest.mark.slow,
        ),
        lambda i: dict(optimizer__use_ema=True, optimizer__ema_momentum=0.5),
        lambda i: dict(optimizer=keras.optimizers.Adam, optimizer__clipnorm=0.5),
    ],
    ids=["ScheduleFreeAdamW", "SAM", "EMA", "Keras's Adam"],
)
def test_as_alone_with_averages_and_several_looks(options, sizes):
    check_as_alone(lambda i: network(i, **options(i)))
    assert sizes == [(3, 1, False)] * 3


@pytest.mark.slow
@pytest.mark.parametrize(("model", "by_xla"), [(None, "auto"), (with_everything, False)])
def test_as_alone_on_sparse_rows_in_one_batch_and_by_xla_where_that_draws_no_other_numbers(
    model, by_xla, sizes, monkeypatch
):
    monkeypatch.setattr(stacked, "MANY", 1)
    check_as_alone(lambda i: network(i, model=model, batch_size=50), n=2, X=sparse.csr_matrix(X))
    assert sizes == [(2, 1, by_xla)] * 3


def test_as_alone_from_different_steps(sizes):
    def make(i):
        return network(i, warm_start=True, model=None).fit(X, y) if i else network(i, warm_start=True, model=None)

    def on(i):
        estimator = make(i)
        estimator.fit(X, y)
        return estimator

    alone = [on(i).predict_proba(X) for i in range(2)]
    started = [make(i) for i in range(2)]
    sizes.clear()
    for expected, found in zip(alone, fit_together(started), strict=True):
        np.testing.assert_allclose(found.predict_proba(X), expected, rtol=1e-6)
    assert sizes == [(2, 1, False)] * 3


def test_one_that_diverges_fails_alone(sizes):
    def fit(i):
        return network(i, kopt.SGD, model=None, optimizer__learning_rate=(0.1, 1e200, 0.01)[i]).fit(X, y)

    def called(i):
        try:
            return fit(i).predict_proba(X)
        except ValueError as error:
            return str(error)

    alone = [called(i) for i in range(3)]
    sizes.clear()
    both = call_together([lambda i=i: called(i) for i in range(3)], together.train_all)
    assert sizes == [(3, 1, False)] * 3
    assert both[1] == alone[1]
    assert both[1].startswith("KerasClassifier: the loss must stay finite, got ")
    for number in (0, 2):
        np.testing.assert_allclose(both[number], alone[number], rtol=1e-6)


@pytest.mark.parametrize(
    ("options", "rows"),
    [
        (lambda i: dict(early_stopping=True), 50),
        (lambda i: dict(callbacks=[keras.callbacks.History()]), 50),
        (lambda i: dict(optimizer=kopt.LBFGS, batch_size="auto"), 50),
        (lambda i: dict(dtype="mixed_float16"), 50),
        (lambda i: dict(optimizer=keras.optimizers.Nadam), 50),
        (lambda i: dict(epochs=1 + i), 50),
        (lambda i: dict(batch_size=16 + i), 50),
        (lambda i: dict(model__hidden_layer_sizes=(4 + i,)), 50),
        (lambda i: {}, 49),
    ],
    ids=[
        "early stopping",
        "callbacks",
        "whole batch",
        "loss scale",
        "past the scope",
        "epochs",
        "batch size",
        "structure",
        "rows",
    ],
)
def test_what_is_not_alike_trains_alone(options, rows, sizes):
    def fit(i):
        given = options(i)
        return network(i, **{"model": None, **given}).fit(*((X[:rows], y[:rows]) if i else (X, y)))

    both = call_together([lambda i=i: fit(i) for i in range(2)], together.train_all)
    assert sizes == []
    for i, estimator in enumerate(both):
        np.testing.assert_array_equal(estimator.predict_proba(X), fit(i).predict_proba(X))


def test_several_fits_of_each_meet_one_after_the_other(sizes):
    def fit(i):
        first = network(i, model=None, epochs=2).fit(X, y)
        return network(i, model=None, epochs=1, optimizer__weight_decay=float(first.loss_curve_[-1])).fit(X, y)

    both = call_together([lambda i=i: fit(i) for i in range(2)], together.train_all)
    assert sizes == [(2, 1, False)] * 3
    for i, estimator in enumerate(both):
        np.testing.assert_allclose(estimator.predict_proba(X), fit(i).predict_proba(X), rtol=1e-6)


def test_a_step_that_cannot_be_taken_for_several_is_taken_alone(sizes, monkeypatch):
    def refuse(*_):
        raise NotImplementedError("no such form.")

    make = functools.partial(network, model=None, model__hidden_layer_sizes=(7,))
    alone = [make(i).fit(X, y).predict_proba(X) for i in range(2)]
    monkeypatch.setattr(together, "mapped", refuse)
    rule = "^KerasClassifier: TensorFlow cannot take this step for several models at once: no such form. Train"
    with pytest.warns(UserWarning, match=rule):
        both = fit_together([make(i, epochs=3) for i in range(2)])
    assert sizes == []
    for expected, estimator in zip(alone, both, strict=True):
        np.testing.assert_array_equal(estimator.predict_proba(X), expected)


def test_nothing_goes_on_after_an_error():
    seen = []

    def fit(i):
        try:
            if i == 2:
                raise LookupError("the third")
            return network(i, model=None).fit(X, y)
        finally:
            seen.append(i)

    before = set(threading.enumerate())
    with pytest.raises(LookupError, match="the third"):
        call_together([lambda i=i: fit(i) for i in range(4)], together.train_all)
    for thread in set(threading.enumerate()) - before:
        thread.join(10)
    assert set(threading.enumerate()) <= before
    assert sorted(seen) == [0, 1, 2]  # those that waited have ended, and the last one has not begun


def test_calls_see_what_their_caller_set():
    variable = contextvars.ContextVar("variable")
    variable.set(3)
    policy = keras.config.dtype_policy()
    keras.config.set_dtype_policy("mixed_bfloat16")
    try:
        seen = call_together([lambda: (variable.get(), keras.config.dtype_policy().name)] * 2, together.train_all)
    finally:
        keras.config.set_dtype_policy(policy)
    assert seen == [(3, "mixed_bfloat16")] * 2
