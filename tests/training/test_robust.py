"""A fit that is interrupted, killed, out of memory or no longer finite leaves something to go on with."""

import json
import os
import pathlib
import signal
import subprocess
import sys

import keras
import numpy as np
import pytest
import tensorflow as tf

import kopt
from kopt.training import epochs, files, state

L = keras.layers
RNG = np.random.default_rng(0)
X, Y = RNG.standard_normal((50, 4)).astype("float32"), RNG.integers(0, 3, 50)
FIT = dict(batch_size=8, epochs=4, verbose=0, validation_data=(X[:10], Y[:10]))
"""Seven steps an epoch, the last one of two rows."""


def network(kind=kopt.Model, optimizer=None, **compiled):
    """With dropout, batch normalization and a schedule."""
    keras.utils.set_random_seed(0)
    inputs = keras.Input((4,))
    h = L.Dropout(0.3)(L.BatchNormalization()(L.Dense(5, "relu")(inputs)))
    model = kind(inputs, L.Dense(3, "softmax")(h))
    optimizer = optimizer or kopt.AdamW(keras.optimizers.schedules.CosineDecay(0.05, 30))
    compiled = dict(metrics=["accuracy"], jit_compile=False) | compiled
    model.compile(optimizer, "sparse_categorical_crossentropy", **compiled)
    return model


class At(keras.callbacks.Callback):
    """Does something after so many steps."""

    def __init__(self, steps, act):
        super().__init__()
        self.steps, self.act = steps, act

    def on_train_batch_end(self, batch, logs=None):
        self.steps -= 1
        if not self.steps:
            self.act()


def interrupt():
    raise KeyboardInterrupt


def killed(path):
    """Trains in this process until it kills itself, in the third epoch: what another one, of `python -c`, does."""
    at = At(17, lambda: os.kill(os.getpid(), signal.SIGKILL))
    network().fit(X, Y, **FIT, callbacks=[kopt.Checkpoint(path, every=3), at])


def values(model):
    return [variable.numpy() for variable in [*model.variables, *model.optimizer.variables]]


def assert_equal(model, history, straight):
    weights, losses = straight
    assert history.history == losses
    assert history.epoch == [0, 1, 2, 3]
    for a, b in zip(values(model), weights, strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.fixture(scope="module")
def model():
    """One to fit in any way."""
    return network()


@pytest.fixture(scope="module")
def straight():
    """What a fit without interruption leaves: values and history."""
    fitted = network()
    history = fitted.fit(X, Y, **FIT)
    return values(fitted), history.history


# ---- going on --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("every", [3, 7, "epoch"])
def test_an_interrupted_fit_goes_on_to_the_same_weights(straight, every, tmp_path, monkeypatch):
    """Also from a file that was saved where an epoch ends; and Ctrl-C leaves a model that works."""
    path = tmp_path / "deep" / "run.ckpt"
    monkeypatch.setattr(epochs.Pace, "steps", lambda self, seconds: 2)
    model = network()
    with pytest.raises(KeyboardInterrupt):
        model.fit(X, Y, **FIT, callbacks=[kopt.Checkpoint(path, every=every), At(17, interrupt)])
    assert (model.progress.epoch, model.progress.step) == (2, 3)
    assert np.isfinite(model.evaluate(X, Y, verbose=0)).all()
    monkeypatch.undo()
    tf.keras.utils.set_random_seed(9)
    for variable in model.variables:
        variable.assign(tf.zeros_like(variable))
    assert_equal(model, model.fit(X, Y, **FIT, callbacks=[kopt.Checkpoint(path, every=every)]), straight)
    assert [file.name for file in path.parent.iterdir()] == ["run.ckpt"]
    finished = model.fit(X, Y, **FIT, callbacks=[kopt.Checkpoint(path, every=every)])
    assert_equal(model, finished, straight)
    if every == 3:
        more = model.fit(X, Y, **FIT | {"epochs": 5}, callbacks=[kopt.Checkpoint(path, every=every)])
        assert more.epoch == [0, 1, 2, 3, 4]
        anew = model.fit(X, Y, **FIT | {"epochs": 1}, callbacks=[kopt.Checkpoint(path, resume=False)])
        assert anew.epoch == [0]


def mirrored(devices=2):
    names = [device.name for device in tf.config.list_logical_devices("CPU")][:devices]
    return tf.distribute.MirroredStrategy(names, cross_device_ops=tf.distribute.ReductionToOneDevice())


def test_a_fit_over_replicas_goes_on_to_the_same_bits(tmp_path):
    """Of metrics each replica has its own part."""

    def fitted(*callbacks):
        with mirrored().scope():
            model = network(optimizer=keras.optimizers.SGD(0.05))
        return model, model.fit(X, Y, **FIT, callbacks=[*callbacks])

    with pytest.raises(KeyboardInterrupt):
        fitted(kopt.Checkpoint(tmp_path / "run", every=3), At(17, interrupt))
    (model, history), (straight, expected) = fitted(kopt.Checkpoint(tmp_path / "run")), fitted()
    assert_equal(model, history, (values(straight), expected.history))


@pytest.mark.parametrize(("there", "here"), [(1, 2), (2, 1)])
def test_parts_of_replicas_add_up_where_there_are_others(there, here):
    def metric(devices):
        strategy = mirrored(devices)
        with strategy.scope():
            return keras.metrics.TruePositives(thresholds=[0.2, 0.5, 0.8]), strategy

    (old, strategy), (new, other) = metric(there), metric(here)
    strategy.run(lambda: old.update_state(tf.ones(4), tf.constant([0.1, 0.3, 0.6, 0.9])))
    parts = state.parts_of(old.variables, strategy)
    assert [part.shape for part in parts] == [(there, 3)]
    state.restore_parts(new.variables, parts, other)
    np.testing.assert_array_equal(new.variables[0].numpy(), there * np.array([3, 2, 1]))


def test_a_killed_process_is_taken_up_by_another(straight, tmp_path):
    path = tmp_path / "run.ckpt"
    code = f"import runpy; runpy.run_path({str(pathlib.Path(__file__))!r})['killed']({str(path)!r})"
    root = pathlib.Path(kopt.__file__).parent.parent
    done = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, check=False)
    assert done.returncode == -signal.SIGKILL, done.stderr.decode()
    with np.load(path) as file:
        where = json.loads(str(file["about"]))["progress"]
    assert (where["epoch"], where["step"]) == (2, 1)
    model = network()
    assert_equal(model, model.fit(X, Y, **FIT, callbacks=[kopt.Checkpoint(path, every=3)]), straight)


@pytest.mark.parametrize("steps", [17, 21])
def test_a_process_that_is_told_to_end_saves_where_it_is(straight, steps, tmp_path):
    """Within an epoch, and at its end; and SIGTERM is what it was afterwards."""
    path, model = tmp_path / "run.ckpt", network()
    at = At(steps, lambda: os.kill(os.getpid(), signal.SIGTERM))
    with pytest.raises(SystemExit) as ended:
        model.fit(X, Y, **FIT, callbacks=[at, kopt.Checkpoint(path)])
    assert ended.value.code == 143
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
    assert (model.progress.epoch, model.progress.step) == divmod(steps, 7)
    with np.load(path) as file:
        where = json.loads(str(file["about"]))["progress"]
    assert (where["epoch"], where["step"]) == divmod(steps, 7)
    model = network()
    assert_equal(model, model.fit(X, Y, **FIT, callbacks=[kopt.Checkpoint(path)]), straight)


def test_who_handles_sigterm_goes_on_to(tmp_path):
    told = []
    before = signal.signal(signal.SIGTERM, lambda *_: told.append(True))
    try:
        at = At(3, lambda: os.kill(os.getpid(), signal.SIGTERM))
        network().fit(X, Y, **FIT | {"epochs": 1}, callbacks=[at, kopt.Checkpoint(tmp_path / "run")])
    finally:
        signal.signal(signal.SIGTERM, before)
    assert told == [True]


@pytest.mark.slow
def test_averages_are_taken_up_where_they_are_trained(tmp_path):
    def fitted(*callbacks, epochs):
        model = network(optimizer=kopt.EMA(kopt.AdamW(0.05), momentum=0.8))
        model.fit(X, Y, batch_size=8, epochs=epochs, verbose=0, callbacks=[kopt.SwapWeights(), *callbacks])
        return model

    fitted(kopt.Checkpoint(tmp_path / "run"), epochs=2)
    found, expected = fitted(kopt.Checkpoint(tmp_path / "run"), epochs=3), fitted(epochs=3)
    for a, b in zip(found.get_weights(), expected.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)


def test_a_file_is_whole_or_not_there(model, tmp_path, monkeypatch):
    path = tmp_path / "run"
    options = FIT | {"epochs": 1, "validation_data": None}
    model.fit(X, Y, **options, callbacks=[kopt.Checkpoint(path, resume=False)])
    before = path.read_bytes()

    def half(file, **arrays):
        file.write(b"half")
        raise KeyboardInterrupt

    monkeypatch.setattr(files.np, "savez", half)
    with pytest.raises(KeyboardInterrupt):
        model.fit(X, Y, **options, callbacks=[kopt.Checkpoint(path, resume=False)])
    assert path.read_bytes() == before


def test_steps_between_checkpoints_are_few_programs(model, tmp_path, monkeypatch):
    calls, run = [], epochs.Epochs.__call__
    monkeypatch.setattr(
        epochs.Epochs, "__call__", lambda self, part, *a, **b: calls.append(part) or run(self, part, *a, **b)
    )
    options = FIT | {"epochs": 2, "validation_data": None}
    model.fit(X, Y, **options, callbacks=[kopt.Checkpoint(tmp_path / "run", every=5)])
    assert [part.last - part.first for part in calls] == [5, 2, 3, 4]


def test_bfloat16_is_saved(tmp_path):
    (array,) = state.arrays_of([keras.Variable([1.5, -2.0], dtype="bfloat16")])
    files.write_arrays(tmp_path / "arrays", {"a": array})
    with np.load(tmp_path / "arrays") as file:
        assert file["a"].dtype == "uint16"
        np.testing.assert_array_equal(files.read_as(file["a"], array.dtype), array)


@pytest.mark.parametrize(
    ("other", "message"),
    [
        (lambda: network(keras.Model), r"^Checkpoint: the model must be a kopt\.Model that is not run eagerly"),
        (lambda: network(run_eagerly=True), r"^Checkpoint: the model must be a kopt\.Model that is not run eagerly"),
        (lambda: network(optimizer=kopt.SGD()), r"^Checkpoint: .*run must be of this model and optimizer, and has "),
        (
            lambda: network(optimizer=kopt.AMSGrad()),
            r"^Checkpoint: .*run must be of this model and optimizer, and has ",
        ),
    ],
)
def test_what_it_cannot_go_on_with_is_refused(model, other, message, tmp_path):
    model.fit(X, Y, **FIT | {"epochs": 1}, callbacks=[kopt.Checkpoint(tmp_path / "run", resume=False)])
    with pytest.raises(ValueError, match=message):
        other().fit(X, Y, verbose=0, callbacks=[kopt.Checkpoint(tmp_path / "run")])


def test_other_files_and_arguments_are_refused(model, tmp_path):
    np.savez(tmp_path / "other.npz", a=1)
    with pytest.raises(ValueError, match=r"other\.npz must be a file that Checkpoint wrote\. Choose another path\.$"):
        model.fit(X, Y, verbose=0, callbacks=[kopt.Checkpoint(tmp_path / "other.npz")])
    with pytest.raises(ValueError, match=r"^Checkpoint: every must be an integer in \[1, inf\), got 0\.$"):
        kopt.Checkpoint("run", every=0)
    with pytest.raises(TypeError, match=r"^StopAtNonFinite: every must be an integer in \[1, inf\), got 'batch'\.$"):
        kopt.StopAtNonFinite(every="batch")


# ---- numbers that are not finite -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "every", "last", "good"),
    [(kopt.Model, "epoch", 14, 14), (kopt.Model, 5, 12, 10), (keras.Model, "epoch", 14, 14)],
)
def test_training_stops_with_the_last_good_weights(kind, every, last, good):
    """The last of which the loss is known: those after an enormous step are finite still."""
    rate = keras.optimizers.schedules.PiecewiseConstantDecay([last - 1], [0.1, 1e30])
    model, other = (network(kind, kopt.SGD(rate, momentum=0.9)) for _ in range(2))
    stop, options = kopt.StopAtNonFinite(every=every), dict(batch_size=8, shuffle=False, verbose=0)
    with pytest.warns(
        UserWarning, match=r"^StopAtNonFinite: the loss is \S+ in epoch \d, or weights are not finite, so"
    ):
        history = model.fit(X, Y, epochs=9, callbacks=[stop], **options)
    assert stop.stopped_epoch == history.epoch[-1] == last // 7
    other.fit(X, Y, **options)
    other.fit(X[: 8 * (good - 7)], Y[: 8 * (good - 7)], **options)
    assert model.optimizer.iterations.numpy() == good
    for a, b in zip(model.get_weights(), other.get_weights(), strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=1e-6)


def test_a_last_step_that_breaks_the_weights_is_seen():
    """The loss is that of the weights before."""
    model = kopt.Model(inputs := keras.Input((4,)), L.Dense(1)(inputs))
    model.compile(kopt.SGD(1e38), "mse", jit_compile=False)
    before = model.get_weights()
    with pytest.warns(UserWarning, match=r"^StopAtNonFinite: the loss is \d.* the model has the weights of the begin"):
        model.fit(1e4 * X, Y, batch_size=50, verbose=0, callbacks=[kopt.StopAtNonFinite()])
    for a, b in zip(before, model.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)


def test_steps_that_are_skipped_count_and_spoil_no_mean():
    broken = X.copy()
    broken[3] = np.nan
    model = network(optimizer=kopt.Adam(0.01, skip_nonfinite=True), metrics=None)
    history = model.fit(broken, Y, batch_size=8, epochs=2, shuffle=False, verbose=0, callbacks=[kopt.StopAtNonFinite()])
    assert model.optimizer.skipped_steps == 2
    assert np.isfinite(history.history["loss"]).all()


# ---- memory ----------------------------------------------------------------------------------------------------------


def test_out_of_memory_says_what_to_lower():
    class Greedy(L.Layer):
        def call(self, x, training=False):
            def fill(x):
                raise MemoryError

            return tf.ensure_shape(tf.py_function(fill, [x], tf.float32), x.shape)

    inputs = keras.Input((4,))
    model = kopt.Model(inputs, L.Dense(1)(Greedy()(inputs)))
    model.compile(kopt.SGD(), "mse", jit_compile=False)
    with pytest.raises(tf.errors.ResourceExhaustedError) as caught:
        model.fit(X, X, verbose=0)
    (note,) = caught.value.__notes__
    assert note.startswith("kopt: memory has run out. Lower batch_size; gradient_accumulation_steps in the optimizer ")
    with pytest.raises(tf.errors.ResourceExhaustedError) as caught:
        model.evaluate(X, X, verbose=0)
    assert caught.value.__notes__ == [
        "kopt: memory has run out. Lower batch_size, or validation_batch_size in fit: the result is the same."
    ]


def test_a_loss_scale_wrapper_keeps_its_variables_once(tmp_path):
    """Keras makes them again each time that it is built."""
    inputs = keras.Input((3,))
    model = kopt.Model(inputs, L.Dense(1)(inputs))
    model.compile(keras.optimizers.LossScaleOptimizer(kopt.AdamW(0.01)), "mse")
    x, y = RNG.standard_normal((8, 3)), RNG.standard_normal((8, 1))
    numbers = []
    for last in (1, 2):
        callbacks = [kopt.StopAtNonFinite(), kopt.Checkpoint(tmp_path / "run")]
        model.fit(x, y, epochs=last, verbose=0, callbacks=callbacks)
        numbers.append(len(model.optimizer.variables))
    assert numbers[0] == numbers[1]
