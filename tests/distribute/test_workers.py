"""Several processes train as one device does, see every row once, and survive death and the order to end."""

import contextlib
import os
import pathlib
import random
import signal
import subprocess
import sys

import keras
import numpy as np
import pytest
import tensorflow as tf

import kopt
from kopt.distribute.strategy import resolve

pytestmark = pytest.mark.slow

RNG = np.random.default_rng(0)
X, Y = RNG.standard_normal((49, 4)).astype("float32"), RNG.standard_normal((49, 2)).astype("float32")
W = RNG.uniform(0.5, 2, 49).astype("float32")
L = keras.layers
NOWHERE = contextlib.nullcontext()

CASES = {
    "SGD": (lambda: kopt.SGD(0.1, momentum=0.9, global_clipnorm=0.3), {}),
    "Adam": (lambda: kopt.Adam(0.01), {"sample_weight": W}),
    "Keras's SGD": (lambda: keras.optimizers.SGD(0.1, momentum=0.9, clipnorm=0.1), {}),
    "Keras's Adam": (lambda: keras.optimizers.Adam(0.01, gradient_accumulation_steps=2), {"sample_weight": W}),
    "SAM": (lambda: kopt.SAM(kopt.SGD(0.1), rho=0.2), {}),
    "LBFGS": (lambda: kopt.LBFGS(), {"batch_size": 49}),
    "XLA": (lambda: kopt.SGD(0.1, momentum=0.9), {"jit_compile": True}),
    "a stream": (lambda: kopt.AdamW(0.01), {"stream": True}),
}
"""Optimizers, and what else `fit` gets. Of the last batch, a row, one worker gets nothing."""


def fitted(optimizer, scope=NOWHERE, seed=0, stream=False, jit_compile="auto", **how):
    """A model that was fitted, and its history."""
    keras.utils.set_random_seed(seed)
    with scope:
        inputs = keras.Input((4,))
        norm = L.LayerNormalization if jit_compile is True else kopt.layers.SyncBatchNormalization
        model = kopt.Model(inputs, L.Dense(2)(norm()(L.Dense(5, "tanh")(inputs))))
        model.compile(optimizer(), "mse", metrics=["mae"], weighted_metrics=["mse"], jit_compile=jit_compile)
    how |= dict(epochs=2, verbose=0, validation_data=(X[:21], Y[:21]))
    if stream:
        history = model.fit(tf.data.Dataset.from_tensor_slices((X, Y, W)).batch(16), shuffle=False, **how)
    else:
        history = model.fit(X, Y, **{"batch_size": 16} | how)
    return model, history.history


def numbers(model, history):
    """The same as arrays: weights, losses and metrics, evaluation, predictions."""
    values = [*model.get_weights(), *history.values()]
    return [*values, model.evaluate(X, Y, batch_size=20, verbose=0), model.predict(X, batch_size=20, verbose=0)]


def estimated(**how):
    """What an estimator learns."""
    network = kopt.KerasRegressor(optimizer=kopt.Adam(0.01), epochs=3, batch_size=16, early_stopping=True, **how)
    network.fit(X, Y)
    return [*network.model_.get_weights(), network.loss_curve_, network.predict(X)]


def counted(scope=NOWHERE):
    """How often each row is seen in four epochs: the gradient of the sum of outputs by a weight of each row's own."""
    with scope:
        inputs = keras.Input((49,))
        model = kopt.Model(inputs, L.Dense(1, use_bias=False, kernel_initializer="zeros")(inputs))
        model.compile(kopt.SGD(1.0), keras.losses.MeanAbsoluteError("sum"))
    model.fit(np.eye(49, dtype="float32"), np.full((49, 1), 1e6, "float32"), batch_size=16, epochs=4, verbose=0)
    return model.get_weights()[0][:, 0]


def refusals(model, strategy, index):
    """What workers are told who ask for what cannot be had."""

    class Reseed(keras.callbacks.Callback):
        def on_train_begin(self, logs=None):
            self.model.progress.seed = index

    with pytest.raises(ValueError, match="rows") as rows:
        model.fit(X[: 40 + index], Y[: 40 + index], batch_size=16, verbose=0)
    with pytest.raises(ValueError, match="seed") as seed:
        model.fit(X, Y, verbose=0, callbacks=[Reseed()])
    with strategy.scope(), pytest.raises(ValueError, match="scope") as scope:
        model.predict(X, verbose=0)
    model.run_eagerly = True
    with pytest.raises(ValueError, match="run_eagerly") as eager:
        model.fit(X, Y, verbose=0)
    model.run_eagerly = False
    with pytest.raises(ValueError, match="multi_worker") as second:
        kopt.KerasRegressor(strategy="multi_worker").fit(X, Y)
    return [str(each.value) for each in (rows, seed, scope, eager, second)]


def work(folder):
    """What each worker of the launch below does."""
    strategy = tf.distribute.MultiWorkerMirroredStrategy()
    index = strategy.cluster_resolver.task_id
    found = {}
    for name, (optimizer, how) in CASES.items():
        model, history = fitted(optimizer, strategy.scope(), seed=index, **how)  # the chief's seed is to hold
        found[name] = numbers(model, history)
    found["refused"] = [np.array(sentence) for sentence in refusals(model, strategy, index)]
    found["seen"] = [counted(strategy.scope())]
    for name, seed in (("estimator", 0), ("other seeds", np.random.RandomState(index))):
        found[name] = estimated(strategy=strategy, random_state=seed)
    if index == 0:
        model.predict(X, batch_size=7, verbose=0)  # the other worker has no part in it
    np.savez(folder / f"{index}.npz", **{f"{name}/{i}": x for name, each in found.items() for i, x in enumerate(each)})


class Trouble(keras.callbacks.Callback):
    """Notes where fits begin. Worker 1 kills itself at the ninth step of the first, and is told to end at the 16th."""

    def __init__(self, file, index):
        super().__init__()
        self.file, self.last = file, index == 1

    def on_train_begin(self, logs=None):
        where = self.model.progress
        with open(self.file, "a") as file:
            file.write(f"{7 * where.epoch + where.step}\n")
        self.begun = len(self.file.read_text().splitlines())

    def on_train_batch_end(self, batch, logs=None):
        what = {(1, 9): signal.SIGKILL, (2, 16): signal.SIGTERM}
        if self.last and (number := what.get((self.begun, 7 * self.model.progress.epoch + batch + 1))):
            os.kill(os.getpid(), number)


def trained(strategy, *callbacks):
    """All that a fit leaves, with random masks, moving averages and a schedule."""
    random.seed(0)
    with strategy.scope():
        inputs = keras.Input((4,))
        first = L.Dense(5, "relu", kernel_initializer=keras.initializers.GlorotUniform(2))
        h = L.Dropout(0.3, seed=1)(L.BatchNormalization()(first(inputs)))
        model = kopt.Model(inputs, L.Dense(2, kernel_initializer=keras.initializers.GlorotUniform(3))(h))
        model.compile(kopt.AdamW(keras.optimizers.schedules.CosineDecay(0.05, 30)), "mse", metrics=["mae"])
    how = dict(batch_size=7, epochs=4, verbose=0, validation_data=(X[:11], Y[:11]))
    history = model.fit(X, Y, callbacks=[*callbacks], **how)
    values = [variable.numpy() for variable in [*model.variables, *model.optimizer.variables]]
    return [*values, *history.history.values(), history.epoch]


def survive(folder):
    """What each worker does that is killed, then told to end, and has to come to what it would have been."""
    kopt.KerasRegressor(strategy="multi_worker", epochs=1).fit(X, Y)  # makes the strategy, without a seed
    strategy = resolve("multi_worker")
    assert strategy.num_replicas_in_sync == 2
    index = strategy.cluster_resolver.task_id

    def go_on():
        return trained(strategy, kopt.Checkpoint(folder / "run", every=4), Trouble(folder / f"begun {index}", index))

    with pytest.raises(SystemExit) as ended:
        go_on()
    assert ended.value.code == 143
    for a, b in zip(go_on(), trained(strategy), strict=True):
        np.testing.assert_array_equal(a, b)


def launch(function, folder, workers=2, *arguments):
    """Launches workers that call a function of this file with a folder."""
    script = folder / "script.py"
    script.write_text(
        f"import pathlib, runpy\n"
        f"runpy.run_path({str(pathlib.Path(__file__))!r})[{function!r}](pathlib.Path({str(folder)!r}))\n"
    )
    environment = os.environ | {"CUDA_VISIBLE_DEVICES": "-1", "TF_CPP_MIN_LOG_LEVEL": "3"}
    command = [sys.executable, "-m", "kopt", "launch", "--workers", str(workers), *arguments, str(script)]
    root = pathlib.Path(kopt.__file__).parent.parent
    how = dict(capture_output=True, text=True, cwd=root, env=environment, check=False, timeout=300)
    return subprocess.run(command, **how)


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    """What two workers have found, by case."""
    folder = tmp_path_factory.mktemp("workers")
    done = launch("work", folder, 2, "--restarts", "0")
    assert done.returncode == 0, done.stdout + done.stderr
    both = []
    for index in range(2):
        with np.load(folder / f"{index}.npz") as file:
            both.append({name: file[name] for name in file.files})

    def of(case):
        first, second = ([x for name, x in each.items() if name.startswith(case + "/")] for each in both)
        for a, b in zip(first, second, strict=True):
            np.testing.assert_array_equal(a, b)
        return first

    return of


@pytest.mark.parametrize("case", CASES)
def test_workers_train_as_one_device_does(case, found):
    optimizer, how = CASES[case]
    for a, b in zip(found(case), numbers(*fitted(optimizer, **how)), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-6, rtol=1e-6)


def test_every_row_is_seen_once_in_an_epoch(found):
    np.testing.assert_array_equal(found("seen")[0], np.full(49, 4))


def test_estimators_train_as_on_one_device(found):
    for a, b in zip(found("estimator"), estimated(random_state=0), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-6, rtol=1e-6)


def test_the_seed_of_the_chief_holds(found):
    for a, b in zip(found("other seeds"), estimated(random_state=np.random.RandomState(0)), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-6, rtol=1e-6)


def test_what_cannot_be_had_is_refused_in_a_sentence(found):
    assert [str(sentence) for sentence in found("refused")] == [
        "kopt.Model: all workers must have the same number of rows, got 40 and 41. kopt shares out the rows of each "
        "batch.",
        "kopt.Model: all workers must have the same seed, got 0 and 1. Give kopt.Checkpoint a path that all of them "
        "see.",
        "Model.predict must be called outside of the strategy's scope, since each worker does so by itself.",
        "kopt.Model: steps of several workers must be compiled by kopt, got run_eagerly=True.",
        "KerasRegressor: strategy must be the MultiWorkerMirroredStrategy that there is, as a process can have but "
        "one, got 'multi_worker'.",
    ]


def test_workers_survive_death_and_the_order_to_end(tmp_path):
    """The weights, the optimizer's state and the history are bit by bit those of a fit without interruption."""
    done = launch("survive", tmp_path, 2, "--restarts", "1")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "worker 1 was ended by SIGKILL; all are started again (1 of 1)." in done.stderr
    begun = [[int(step) for step in (tmp_path / f"begun {index}").read_text().splitlines()] for index in (0, 1)]
    assert begun[0] == begun[1]
    first, second, third = begun[0]
    assert (first, second) == (0, 8)
    assert 16 <= third <= 21
