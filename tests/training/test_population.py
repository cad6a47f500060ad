"""A population trains as its models would apart, or is refused."""

import re

import keras
import numpy as np
import pytest

import kopt
from kopt.training import stacked
from kopt.training.progress import order_of

L = keras.layers
RNG = np.random.default_rng(0)
X, Y = RNG.standard_normal((40, 4)).astype("float32"), RNG.integers(0, 3, 40)
WEIGHTS = RNG.uniform(0.5, 2.0, 40)
COSINE = keras.optimizers.schedules.CosineDecay(0.1, 7)
VALIDATION = X[::2], Y[::2], WEIGHTS[::2]


def classifier(optimizer, seed=0, kind=keras.Model, units=5, rate=0.3, **compiled):
    """A network with batch normalization and dropout, whose masks are `seed`'s."""
    keras.utils.set_random_seed(seed)
    inputs = keras.Input((4,))
    h = L.BatchNormalization()(L.Dense(units, "relu")(inputs))
    model = kind(inputs, L.Dense(3, "softmax")(L.Dropout(rate, seed=seed)(h)))
    compiled = dict(loss="sparse_categorical_crossentropy", metrics=["accuracy"], jit_compile=False) | compiled
    model.compile(optimizer, **compiled)
    return model


def line(optimizer, seed=0):
    keras.utils.set_random_seed(seed)
    model = keras.Sequential([keras.Input((4,)), L.Dense(1)])
    model.compile(optimizer, "mse", jit_compile=False)
    return model


def two_fold(optimizer, seed):
    """A network of two inputs and outputs, with an embedding, a mask and a penalty."""
    keras.utils.set_random_seed(seed)
    a, b = keras.Input((4,), name="a"), keras.Input((3,), dtype="int32", name="b")
    words = L.SimpleRNN(3, unroll=True)(L.Embedding(5, 2, mask_zero=True)(b))
    h = L.Concatenate()([L.Dense(3, "tanh", kernel_regularizer="l2")(a), words])
    model = keras.Model({"a": a, "b": b}, {"u": L.Dense(1, name="u")(h), "v": L.Dense(3, name="v")(h)})
    losses = {"u": "mse", "v": keras.losses.SparseCategoricalCrossentropy(from_logits=True)}
    model.compile(optimizer, losses, loss_weights={"u": 1.0, "v": 0.5}, jit_compile=False)
    return model


def kept(model):
    return {v.path.partition("/")[2]: v.numpy() for v in (*model.variables, *model.optimizer.variables)}


def check_equal(models, histories, others, other_histories, atol=1e-5):
    for model, history, other, other_history in zip(models, histories, others, other_histories, strict=True):
        for found, expected in zip(kept(model).values(), kept(other).values(), strict=True):
            np.testing.assert_allclose(found, expected, rtol=0, atol=atol)
        assert history.epoch == other_history.epoch
        assert history.history.keys() == other_history.history.keys()
        for name, values in other_history.history.items():
            assert all(isinstance(value, float) for value in history.history[name])
            np.testing.assert_allclose(history.history[name], values, rtol=1e-5, atol=1e-6, err_msg=name)


def check_as_apart(make, x=X, y=Y, size=2, **options):
    """Three epochs of two models with a partial last batch."""
    options = dict(batch_size=16, epochs=3, shuffle=False, verbose=0) | options
    models, others = ([make(i) for i in range(size)] for _ in range(2))
    histories = kopt.fit_population(models, x, y, jit_compile=False, **options)
    check_equal(models, histories, others, [other.fit(x, y, **options) for other in others])
    return models


def test_each_model_trains_as_it_would_apart():
    """Each with its own weights, dropout masks, statistics, and numbers, one of them zero."""
    models = check_as_apart(
        lambda i: classifier(kopt.AdamW(0.01 + 0.02 * i, beta_1=0.9 - 0.1 * i, weight_decay=0.1 * i), i),
        sample_weight=WEIGHTS,
        validation_data=VALIDATION,
        validation_batch_size=8,
    )
    assert not np.array_equal(models[0].get_weights()[-1], models[1].get_weights()[-1])
    assert [model.optimizer.iterations.numpy() for model in models] == [9, 9]
    assert models[1].history.history["loss"]  # where Keras's fit leaves it, too
    assert models[0].metrics[0].result() == 0


@pytest.mark.slow
@pytest.mark.parametrize(
    ("make", "kind"),
    [
        (lambda i: keras.optimizers.AdamW(0.01 * (i + 1), clipnorm=0.5, use_ema=True), keras.Model),
        (lambda i: kopt.SAM(kopt.SGD(COSINE, momentum=0.5 * i + 0.1), rho=0.05 * (i + 1)), kopt.Model),
        (lambda i: kopt.ScheduleFreeAdamW(0.01 * (i + 1), gradient_accumulation_steps=2, skip_nonfinite=True), None),
    ],
    ids=["Keras's, averaged", "SAM, scheduled", "ScheduleFreeAdamW, accumulating and guarded"],
)
def test_optimizers_step_as_they_would_apart(make, kind):
    check_as_apart(lambda i: classifier(make(i), i, kind or keras.Model), batch_size=20)


@pytest.mark.slow
def test_several_inputs_and_outputs():
    """In batches of one size, of which Keras averages each output's loss without weights."""
    x = {"a": X, "b": RNG.integers(0, 5, (40, 3))}
    y = {"u": X[:, :1], "v": Y}
    check_as_apart(lambda i: two_fold(kopt.Adam(0.01 * (i + 1)), i), x, y, batch_size=20)


@pytest.mark.slow
def test_a_population_may_go_on_from_different_steps():
    def make(i):
        model = line(kopt.Adam(0.1), i)
        model.optimizer.build(model.trainable_variables)
        model.optimizer.iterations.assign(i)
        return model

    check_as_apart(make, y=X[:, 0])


@pytest.mark.slow
def test_xla_agrees_with_a_graph():
    models, others = ([line(kopt.AdamW(0.01 * (i + 1)), i) for i in range(2)] for _ in range(2))
    options = dict(batch_size=16, epochs=2, verbose=0, seed=1, validation_data=(X, X[:, 0]))
    histories = kopt.fit_population(models, X, X[:, 0], jit_compile=True, **options)
    check_equal(models, histories, others, kopt.fit_population(others, X, X[:, 0], jit_compile=False, **options))


@pytest.mark.slow
def test_what_xla_cannot_compile_runs_without(monkeypatch):
    """A guard is a branch that each model takes or not."""
    monkeypatch.setattr(stacked, "MANY", 1)
    models = [line(kopt.SGD(rate, skip_nonfinite=True)) for rate in (0.1, 0.2)]
    with pytest.warns(UserWarning, match=r"^fit_population: runs without XLA, which cannot compile it: "):
        kopt.fit_population(models, X, X[:, 0], verbose=0)
    assert models[0].optimizer.iterations.numpy() == 2


def test_rows_are_visited_in_each_seeds_order(capsys):
    """And a model that diverges stops none of the others."""
    models = [line(kopt.SGD(rate)) for rate in (0.1, 0.1, 1e30)]
    histories = kopt.fit_population(models, X, X[:, 0], batch_size=16, epochs=2, seed=[7, 8, 8], jit_compile=False)
    last = min(history.history["loss"][1] for history in histories[:2])
    assert re.search(rf"2/2.* loss: {last:.4f}", capsys.readouterr().out)
    assert not np.isfinite(histories[2].history["loss"][-1])
    for model, history, seed in zip(models[:2], histories, (7, 8), strict=False):
        other = line(kopt.SGD(0.1))
        for epoch in range(2):
            rows = order_of(40, 16, True, seed, epoch)
            apart = other.fit(X[rows], X[rows, 0], batch_size=16, shuffle=False, verbose=0)
            np.testing.assert_allclose(history.history["loss"][epoch], apart.history["loss"][0], rtol=1e-5)
        np.testing.assert_allclose(model.get_weights()[0], other.get_weights()[0], rtol=0, atol=1e-6)
    assert abs(models[0].get_weights()[0] - models[1].get_weights()[0]).max() > 1e-4


def test_one_seed_is_one_order_and_an_interrupted_population_keeps_what_it_learned(monkeypatch):
    train, epochs = stacked.StackedModels.train, []

    def interrupted(self, data, order):
        if len(epochs) == 2:
            raise KeyboardInterrupt
        epochs.append(order.numpy())
        return train(self, data, order)

    monkeypatch.setattr(stacked.StackedModels, "train", interrupted)
    models, other = [line(kopt.SGD(0.1)) for _ in range(2)], line(kopt.SGD(0.1))
    with pytest.raises(KeyboardInterrupt):
        kopt.fit_population(models, X, X[:, 0], batch_size=16, epochs=4, seed=3, verbose=0, jit_compile=False)
    for number, rows in enumerate(epochs):
        np.testing.assert_array_equal(rows, order_of(40, 16, True, 3, number))
        other.fit(X[rows], X[rows, 0], batch_size=16, shuffle=False, verbose=0)
    for model in models:
        np.testing.assert_allclose(model.get_weights()[0], other.get_weights()[0], rtol=0, atol=1e-6)


def compiled_with(**options):
    return [classifier(kopt.Adam()), classifier(kopt.Adam(), **options)]


def sharing():
    model = classifier(kopt.Adam())
    other = keras.Model(model.inputs, model.outputs)
    other.compile(kopt.Adam(), "sparse_categorical_crossentropy")
    return [model, other]


class Custom(keras.Model):
    def train_step(self, data):
        return {"loss": 0.0}


def recurrent():
    model = keras.Sequential([keras.Input((2, 2)), L.GRU(2, name="loop")])
    model.compile(kopt.Adam(), "mse")
    return model


ONLY = "fit_population: models may differ in weights, seeds and the optimizer's numbers alone, and "
FIRST = "fit_population: models[0] must "
REFUSED = [
    (lambda: compiled_with(units=6), ONLY + "layers.layers.config.units is 6 in models[1] and 5 in models[0]."),
    (lambda: compiled_with(rate=0.4), ONLY + "layers.layers.config.rate is 0.4 in models[1] and 0.3 in models[0]."),
    (lambda: compiled_with(loss="mse"), ONLY + "compile.loss is 'mse' in models[1] and 'sparse_categorical"),
    (lambda: compiled_with(metrics=None), ONLY + "compile.metrics is another in models[1] than in models[0]."),
    (lambda: compiled_with(kind=kopt.Model), ONLY + "the model's class is "),
    (
        lambda: [classifier(keras.optimizers.Adam(beta_1=beta)) for beta in (0.9, 0.8)],
        ONLY + "optimizer.beta_1 is 0.8 in models[1] and 0.9 in models[0].",
    ),
    (lambda: [classifier(kopt.SGD()), classifier(kopt.Adam())], ONLY + "the optimizer's class is another"),
    (lambda: [classifier(kopt.SGD(momentum=m)) for m in (0, 0.5)], ONLY + "what the optimizer keeps (is a number zero"),
    (lambda: [classifier(keras.optimizers.Nadam())], "keras.optimizers.Nadam assigns past a keras.StatelessScope. Try"),
    (
        lambda: [classifier(keras.optimizers.Adam(gradient_accumulation_steps=2))],
        "keras.optimizers.Adam assigns past a keras.StatelessScope with gradient_accumulation_steps or",
    ),
    (lambda: [classifier(kopt.LBFGS(), kind=kopt.Model)], FIRST + "have an optimizer that steps"),
    (lambda: [classifier(keras.optimizers.LossScaleOptimizer(kopt.Adam()))], FIRST + "have an op"),
    (lambda: [classifier(kopt.Adam(), run_eagerly=True)], FIRST + "be compiled with run_eagerly"),
    (lambda: [classifier(kopt.Adam(), kind=Custom)], FIRST + "take Keras's own steps, got Custom"),
    (lambda: [classifier(kopt.Switch([(kopt.SGD(), None)]), kind=kopt.Model)], FIRST + "have one optimizer throughout"),
    (lambda: [recurrent()], FIRST + "have no loop over time, of which TensorFlow cannot"),
    (lambda: [keras.Sequential([L.Dense(1)])], FIRST + "be compiled with an optimizer and a"),
    (sharing, "fit_population: each model must have weights and an optimizer of its own, and models[1] shares "),
]


@pytest.mark.parametrize(("make", "message"), REFUSED)
def test_what_one_program_cannot_train_is_refused(make, message):
    with pytest.raises(ValueError, match="^" + re.escape(message)):
        kopt.fit_population(make(), X, Y, verbose=0)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        (dict(models=[]), TypeError, r"^fit_population: models must be a list of keras.Model, got \[\]"),
        (dict(x="rows"), TypeError, r"^fit_population: x must be arrays, or lists or dicts of them, got 'rows'"),
        (dict(y=Y[:9]), ValueError, r"must have equally many rows, got \[9, 40\]"),
        (dict(validation_data=(X, Y[:9])), ValueError, r"^fit_population: validation_data and what goes with it must"),
        (dict(seed=[1, 2]), ValueError, r"^fit_population: seed must have a number for each of 1 models, got 2\.$"),
        (dict(seed=-1), ValueError, r"^fit_population: seed must be an integer in \[0, inf\), got -1\.$"),
        (dict(batch_size=0), ValueError, r"^fit_population: batch_size must be an integer in \[1, inf\), got 0\.$"),
        (dict(epochs=1.5), TypeError, r"^fit_population: epochs must be an integer in"),
        (dict(verbose=2), ValueError, r"^fit_population: verbose must be one of 0, 1, 'auto', got 2\.$"),
    ],
)
def test_arguments_are_checked(arguments, error, message):
    arguments = dict(models=[line(kopt.SGD())], x=X, y=Y) | arguments
    with pytest.raises(error, match=message):
        kopt.fit_population(**arguments)
