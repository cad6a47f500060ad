"""The range test of learning rates leaves no trace, sees each batch's own loss, and knows when to stop."""

import sys

import keras
import numpy as np
import pytest

import kopt
from kopt.testing import backends

RNG = np.random.default_rng(0)
X = RNG.standard_normal((64, 4)).astype("float32")
Y = X.sum(axis=1, keepdims=True)


def network(optimizer, loss="mse"):
    layers = keras.layers
    model = keras.Sequential(
        [keras.Input((4,)), layers.Dense(8), layers.BatchNormalization(), layers.Dropout(0.1), layers.Dense(1)]
    )
    model.compile(optimizer, loss)
    return model


def state(model):
    return [np.asarray(v.numpy()).copy() for v in (*model.variables, *model.optimizer.variables)]


def same(before, after):
    return all(np.array_equal(a, b) for a, b in zip(before, after, strict=True))


@pytest.mark.parametrize(
    "optimizer",
    [
        lambda: kopt.AdamW(0.125),
        lambda: kopt.Cautious(kopt.SGD(0.125, momentum=0.9)),
        lambda: keras.optimizers.SGD(0.125, momentum=0.9),
        lambda: keras.mixed_precision.LossScaleOptimizer(keras.optimizers.Adam(0.125)),
    ],
)
def test_everything_is_put_back(optimizer):
    model = network(optimizer())
    model.fit(X, Y, epochs=1, verbose=0)
    before = state(model)
    finder = kopt.find_learning_rate(model, X, Y, steps=10, batch_size=16)
    assert same(before, state(model))
    assert float(model.optimizer.learning_rate) == 0.125
    assert len(finder.rates) == 10
    assert len(set(finder.losses)) == 10


@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError])
def test_everything_is_put_back_after(error, monkeypatch):
    def interrupted(self, batch, logs=None):
        if batch == 3:
            raise error

    model = network(kopt.SGD(0.125, momentum=0.9))
    model.optimizer.build(model.trainable_variables)
    before = state(model)
    monkeypatch.setattr(keras.callbacks.History, "on_train_batch_end", interrupted)
    with pytest.raises(error):
        kopt.find_learning_rate(model, X, Y, steps=10, batch_size=8)
    assert same(before, state(model))
    assert model.optimizer.get_params()["learning_rate"] == 0.125


def test_a_loss_is_that_of_its_batch_alone():
    model = keras.Sequential([keras.Input((1,)), keras.layers.Dense(1, kernel_initializer="zeros")])
    model.compile(kopt.SGD(), "mse")
    x = np.zeros((10, 1), "float32")
    finder = kopt.find_learning_rate(
        model, x, np.arange(10.0)[:, None], low=1e-9, high=1e-8, steps=10, batch_size=1, shuffle=False, divergence=1e9
    )
    np.testing.assert_allclose(finder.losses, np.arange(10.0) ** 2, rtol=1e-5)
    np.testing.assert_allclose(finder.rates, np.geomspace(1e-9, 1e-8, 10))


def test_it_stops_where_the_loss_diverges():
    finder = kopt.find_learning_rate(network(kopt.SGD()), X, Y, high=1e4, batch_size=16)
    assert 10 < len(finder.rates) < 95
    assert finder.suggestion < finder.rates[np.argmin(finder.smoothed)]


def test_it_stops_where_the_loss_is_not_finite():
    seen = []

    def loss(y, prediction):
        seen.append(1)
        return keras.ops.mean(prediction) / keras.ops.maximum(keras.ops.min(y), 0.0)

    y = np.array([1.0] * 5 + [-1.0] * 5)[:, None]
    model = network(kopt.SGD(), loss)
    finder = kopt.find_learning_rate(
        model, X[:10], y, low=1e-9, high=1e-8, steps=10, batch_size=1, shuffle=False, divergence=1e9
    )
    assert len(finder.losses) == 5


def test_the_suggestion_is_where_the_loss_falls_fastest():
    rates = np.geomspace(1e-6, 10, 100)
    falls = 1 / (1 + (rates / 1e-3) ** 2) + np.where(rates > 1, 50 * rates, 0)
    noise = 0.05 * np.random.default_rng(0).standard_normal(100)
    finder = kopt.LearningRateFinder(rates, falls + noise)
    assert 5e-4 < finder.suggestion < 2e-3
    assert repr(finder).startswith("LearningRateFinder(suggestion=0.00")
    assert finder.smoothed.max() < 1.2  # the loss at rates above 1 does not weigh
    shifted = kopt.LearningRateFinder(rates, falls + noise - 100)  # losses may be negative
    assert shifted.suggestion == finder.suggestion


def test_the_plot_is_one_of_scikit_learns_displays():
    matplotlib = pytest.importorskip("matplotlib")
    matplotlib.use("Agg")
    finder = kopt.LearningRateFinder([1e-3, 1e-2, 1e-1], [3.0, 2.0, 2.5])
    assert finder.plot() is finder
    assert finder.figure_ is finder.ax_.figure
    assert finder.ax_.get_xscale() == "log"
    assert [text.get_text() for text in finder.ax_.get_legend().get_texts()][-1].startswith("suggestion")
    again = finder.ax_
    assert finder.plot(ax=again).ax_ is again
    matplotlib.pyplot.close("all")


def test_a_missing_matplotlib_is_said(monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.pyplot", None)
    with pytest.raises(
        ModuleNotFoundError, match=r"^LearningRateFinder.plot needs matplotlib, .* Install kopt\[plot\]"
    ):
        kopt.LearningRateFinder([1e-3, 1e-2, 1e-1], [3.0, 2.0, 2.5]).plot()


@pytest.mark.skipif(not backends.two_devices(), reason="there are no two logical devices")
def test_it_works_under_a_mirrored_strategy():
    with backends.mirrored(backends.two_devices()).scope():
        model = network(kopt.SGD(0.125, momentum=0.9))
    finder = kopt.find_learning_rate(model, X, Y, steps=10, batch_size=16)
    assert len(finder.rates) == 10
    assert [float(keras.ops.convert_to_numpy(v)) for v in model.optimizer.variables[:2]] == [0, 0.125]


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        (dict(low=0), ValueError, "find_learning_rate: low must be a number in (0, inf), got 0."),
        (dict(high=1e-7), ValueError, "find_learning_rate: high must be a number in (1e-06, inf), got 1e-07."),
        (dict(steps=9), ValueError, "find_learning_rate: steps must be an integer in [10, inf), got 9."),
        (dict(divergence=1), ValueError, "find_learning_rate: divergence must be a number in (1, inf), got 1."),
        (dict(smoothing="some"), TypeError, "find_learning_rate: smoothing must be a number in (0, inf), got 'some'."),
    ],
)
def test_a_wrong_argument_is_refused(arguments, error, message):
    with pytest.raises(error) as refusal:
        kopt.find_learning_rate(network(kopt.SGD()), X, Y, **arguments)
    assert str(refusal.value) == message


def test_a_model_that_cannot_be_put_back_is_refused():
    unbuilt = keras.Sequential([keras.layers.Dense(1)])
    unbuilt.compile(kopt.SGD(), "mse")
    with pytest.raises(ValueError, match=r"^find_learning_rate: model must be built, got <.* Give it a keras.Input"):
        kopt.find_learning_rate(unbuilt, X, Y)
    with pytest.raises(ValueError, match=r"^find_learning_rate: model must be compiled, got <.* Call model.compile"):
        kopt.find_learning_rate(keras.Sequential([keras.Input((4,)), keras.layers.Dense(1)]), X, Y)
    for optimizer in (kopt.SGD, keras.optimizers.SGD):
        scheduled = network(optimizer(kopt.schedules.Cosine(0.25, 100)))
        with pytest.raises(ValueError, match=r"must be a number, got a schedule, which begins at 0\.25\. Compile with"):
            kopt.find_learning_rate(scheduled, X, Y)


def test_too_few_finite_losses_are_refused():
    with pytest.raises(ValueError, match=r"^LearningRateFinder: losses must hold at least 3 finite numbers, got \[1"):
        kopt.LearningRateFinder([1, 2, 3], [1.0, 2.0, np.nan])
