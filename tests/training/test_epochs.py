"""Epochs as compiled programs mean what Keras's own loop means, whatever is asked of it."""

import itertools
import pathlib
import re
import signal
import threading
import time

import keras
import numpy as np
import pytest
import scipy.sparse
import tensorflow as tf

import kopt
from kopt.training import epochs, progress, rows, xla

layers = keras.layers
rng = np.random.default_rng(0)
X, Y = rng.standard_normal((23, 3)).astype("float32"), rng.integers(0, 2, 23)


class Counted(layers.Layer):
    """Counts how often it is traced."""

    calls = 0

    def call(self, x):
        Counted.calls += 1
        return x


def plain(kind=kopt.Model, optimizer=None, *, jit_compile=False, run_eagerly=False, metrics=("accuracy",)):
    keras.utils.set_random_seed(1)
    inputs = keras.Input((3,))
    outputs = layers.Dense(2, "softmax")(Counted()(layers.Dense(4, "relu")(inputs)))
    model = kind(inputs, outputs)
    how = dict(jit_compile=jit_compile, run_eagerly=run_eagerly, metrics=list(metrics))
    model.compile(optimizer or keras.optimizers.SGD(0.1), "sparse_categorical_crossentropy", **how)
    return model


@pytest.fixture(scope="module")
def pair():
    """A model and Keras's own, compiled and run once: tests put their weights back."""
    models = plain(kopt.Model), plain(keras.Model)
    return models, models[0].get_weights()


def assert_same(pair, act):
    """Asserts that something done to both leaves the same weights and returns the same logs."""
    models, weights = pair
    found = []
    for model in models:
        model.set_weights(weights)
        found.append((act(model), model.get_weights()))
    (ours, mine), (theirs, expected) = found
    assert ours.keys() == theirs.keys()
    for name, values in theirs.items():
        np.testing.assert_allclose(ours[name], values, rtol=1e-5, err_msg=name)
    for a, b in zip(mine, expected, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-6)


SCORES = dict(sample_weight=np.linspace(0.1, 3, 23))
FITS = {
    "a partial last batch": {},
    "one batch": dict(batch_size=64),
    "class weights": dict(class_weight={0: 5.0, 1: 0.5}),
    "sample weights": SCORES,
    "a split": dict(validation_split=0.3),
    "validation": dict(validation_data=(X[:9], Y[:9]), validation_batch_size=4, validation_freq=2),
    "weighted validation": dict(validation_data=(X[:9], Y[:9], np.arange(9.0)), validation_freq=[1, 3]),
    "some of validation": dict(validation_data=(X, Y), validation_steps=2, validation_batch_size=5),
    "less steps than batches": dict(steps_per_epoch=2),
    "as many steps as there are": dict(steps_per_epoch=5, batch_size=None),
    "a later epoch": dict(initial_epoch=1),
}


@pytest.mark.filterwarnings("ignore:Your input ran out of data")  # in the third epoch of two steps of five
@pytest.mark.parametrize("how", FITS.values(), ids=FITS)
def test_a_fit_is_that_of_keras(pair, how):
    how = dict(batch_size=5, epochs=3, shuffle=False, verbose=0) | how
    assert_same(pair, lambda model: model.fit(X, Y, **how).history)


def test_an_evaluation_is_that_of_keras(pair):
    assert_same(pair, lambda model: model.evaluate(X, Y, batch_size=5, verbose=0, return_dict=True, **SCORES))
    (ours, theirs), weights = pair
    ours.set_weights(weights), theirs.set_weights(weights)
    np.testing.assert_allclose(ours.evaluate(X, Y, verbose=0, steps=2), theirs.evaluate(X, Y, verbose=0, steps=2))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("make", "batch_size"),
    [
        (lambda: kopt.SAM(kopt.AdamW(0.05)), 5),
        (lambda: kopt.LBFGS(), None),
        (lambda: keras.optimizers.AdamW(0.05, use_ema=True, clipnorm=0.5, gradient_accumulation_steps=2), 5),
    ],
    ids=["SAM", "LBFGS", "Keras's AdamW"],
)
def test_programs_and_single_steps_take_an_optimizer_to_the_same_weights(make, batch_size):
    """The same `kopt.Model` in its programs, and in Keras's loop of single steps."""
    found = []
    for fit in (kopt.Model.fit, keras.Model.fit):
        model = two_headed(make())
        how = dict(batch_size=batch_size or (None if fit is kopt.Model.fit else 23))
        x, y = dict(a=X, b=X[:, ::-1]), dict(one=Y, other=X[:, :1])
        history = fit(model, x, y, **how, epochs=3, shuffle=False, verbose=0).history
        found.append((history, model.get_weights()))
    (ours, mine), (theirs, expected) = found
    assert ours.keys() == theirs.keys()
    for name, values in theirs.items():
        np.testing.assert_allclose(ours[name], values, rtol=1e-4, err_msg=name)
    for a, b in zip(mine, expected, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5)


def two_headed(optimizer):
    """Batch normalization, dropout, a mask, two inputs, two outputs, and a metric that is no mean."""
    keras.utils.set_random_seed(0)
    a, b = keras.Input((3,), name="a"), keras.Input((3,), name="b")
    x = layers.BatchNormalization()(layers.Dense(4, "tanh")(layers.Concatenate()([a, b])))
    x = layers.Dropout(0.3, seed=1)(x)
    steps = layers.Masking()(layers.Reshape((2, 2))(x))
    one = layers.Dense(1, "sigmoid", name="one")(layers.GlobalAveragePooling1D()(steps))
    model = kopt.Model(dict(a=a, b=b), dict(one=one, other=layers.Dense(1, name="other")(x)))
    losses = dict(one="binary_crossentropy", other="mse")
    model.compile(optimizer, losses, metrics=dict(one=[keras.metrics.AUC(9, name="auc")]), jit_compile=False)
    return model


def test_steps_beyond_the_data_warn_and_end_the_epoch(pair):
    (model, _), _ = pair
    with pytest.warns(UserWarning, match=r"ran out of data: it has 5 batches, and steps_per_epoch is 7"):
        model.fit(X, Y, batch_size=5, steps_per_epoch=7, verbose=0)
    assert model.progress.epoch == 1


def test_rows_are_visited_in_an_order_that_the_seed_decides():
    def visits(seed, **how):
        keras.utils.set_random_seed(seed)
        seen = []

        class Spy(kopt.Model):
            def train_step(self, data):
                tf.py_function(lambda x: seen.append(x.numpy()[:, 0].astype(int).tolist()), [data[0]], [])
                return super().train_step(data)

        inputs = keras.Input((1,))
        model = Spy(inputs, layers.Dense(1)(inputs))
        model.compile("sgd", "mse", jit_compile=False)
        model.fit(np.arange(11.0)[:, None], np.zeros(11), batch_size=4, epochs=2, verbose=0, **how)
        return seen, model.progress.seed

    (one, seed), (same, _), (other, _) = visits(0), visits(0), visits(1)
    assert one == same != other
    assert [len(batch) for batch in one] == [4, 4, 3] * 2
    assert one[:3] != one[3:]
    flat = [list(itertools.chain(*epoch)) for epoch in (one[:3], one[3:])]
    for number, visited in enumerate(flat):
        assert sorted(visited) == list(range(11))
        assert visited == progress.order_of(11, 4, True, seed, number).tolist()
    inside, _ = visits(0, shuffle="batch")
    assert [sorted(batch) for batch in inside[:3]] == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9, 10]]
    assert inside[0] != [0, 1, 2, 3]


def test_a_callback_decides_where_to_begin(pair):
    (model, _), weights = pair
    order, batches = progress.order_of(23, 5, True, 3, 1), []

    class From(keras.callbacks.Callback):
        def on_train_begin(self, logs=None):
            self.model.progress.seed, self.model.progress.epoch, self.model.progress.step = 3, 1, 2

        def on_epoch_begin(self, epoch, logs=None):
            batches.append(epoch)

        def on_epoch_end(self, epoch, logs=None):
            batches.append(self.model.progress)

    model.set_weights(weights)
    model.fit(X, Y, batch_size=5, epochs=2, verbose=0, callbacks=[From()])
    assert batches == [1, progress.Progress(3, 2, 0)]
    found = model.get_weights()
    model.set_weights(weights)
    rest = order[10:]
    model.fit(X[rest], Y[rest], batch_size=5, shuffle=False, verbose=0)
    for a, b in zip(found, model.get_weights(), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-6)


class Watch(keras.callbacks.Callback):
    def __init__(self, stop_at=None):
        super().__init__()
        self.events, self.stop_at = [], stop_at

    def on_epoch_end(self, epoch, logs=None):
        self.events.append(("epoch", epoch, sorted(logs)))


class WatchBatches(Watch):
    def on_train_batch_begin(self, batch, logs=None):
        self.events.append(("begin", batch))

    def on_train_batch_end(self, batch, logs=None):
        self.events.append(("end", batch, sorted(logs), self.model.get_weights()[0].sum()))
        self.model.stop_training = batch == self.stop_at

    def on_test_batch_end(self, batch, logs=None):
        self.events.append(("test", batch, sorted(logs)))


@pytest.mark.parametrize("stop_at", [None, 2])
def test_callbacks_get_every_batch_as_in_keras(pair, stop_at):
    events = []

    def act(model):
        watch = WatchBatches(stop_at)
        logs = model.fit(
            X, Y, batch_size=5, epochs=2, shuffle=False, verbose=0, callbacks=[watch], validation_split=0.3
        )
        events.append(watch.events)
        return logs.history

    assert_same(pair, act)
    ours, theirs = events
    assert [event[:3] for event in ours] == [event[:3] for event in theirs]
    np.testing.assert_allclose(*[[e[3] for e in events if len(e) > 3] for events in (ours, theirs)], rtol=1e-5)


def calls_of(model, monkeypatch, **how):
    """The steps that each call of a program of training takes."""
    taken, call = [], epochs.Epochs.__call__

    def counted(self, part, *rest, **how):
        taken.append(part.last - part.first)
        return call(self, part, *rest, **how)

    with monkeypatch.context() as patch:
        patch.setattr(epochs.Epochs, "__call__", counted)
        model.fit(X, Y, batch_size=5, epochs=2, **how)
    return taken


def test_epochs_are_one_call_unless_somebody_wants_the_batches(pair, monkeypatch, tmp_path, capsys):
    (model, _), _ = pair
    kinds = keras.callbacks
    by_epoch = [kinds.ModelCheckpoint(tmp_path / "m.weights.h5", save_weights_only=True), kinds.EarlyStopping("loss")]
    assert calls_of(model, monkeypatch, verbose=0, callbacks=[Watch(), *by_epoch]) == [5, 5]
    assert (
        calls_of(
            model, monkeypatch, verbose=0, callbacks=[kinds.LambdaCallback(on_train_batch_end=lambda batch, logs: None)]
        )
        == [1] * 10
    )
    assert calls_of(model, monkeypatch, verbose=0, callbacks=[kinds.TerminateOnNaN()]) == [1] * 10
    capsys.readouterr()
    monkeypatch.setattr(epochs.Pace, "steps", lambda self, seconds: 2 if seconds < 0.5 else 5)
    assert calls_of(model, monkeypatch, verbose=1) == [2, 2, 1] * 2
    shown = capsys.readouterr().out
    assert "Epoch 2/2" in shown
    assert "5/5" in shown
    assert calls_of(model, monkeypatch, verbose=2) == [5, 5]


def test_a_pace_is_learnt_from_calls_after_the_first():
    pace = epochs.Pace()
    assert pace.steps(1.0) == 1
    pace.learn(1, 30.0)
    assert pace.steps(1.0) == 8
    pace.learn(8, 0.08)
    assert pace.steps(1.0) == 100
    pace.learn(100, 1e4)
    assert pace.steps(1.0) == 1


def test_like_fits_compile_nothing():
    model = plain(jit_compile="auto")
    x, y = np.tile(X, (9, 1)), np.tile(Y, 9)
    Counted.calls = 0
    for batch_size, some, epochs_ in ((5, 23, 1), (5, 190, 3), (7, 64, 2), (64, 100, 2)):
        model.fit(x[:some], y[:some], batch_size=batch_size, epochs=epochs_, verbose=0, validation_split=0.2)
    model.evaluate(x, y, verbose=0)
    assert Counted.calls == 2  # train_step and test_step
    model.compile("sgd", "sparse_categorical_crossentropy")
    model.fit(x, y, verbose=0)
    assert Counted.calls == 3


class Speaking(kopt.Model):
    """A step of its own, without an optimizer, whose logs are not metrics."""

    def train_step(self, data):
        x, _ = data
        self.layers[-1].kernel.assign_add(keras.ops.ones((3, 1)))
        return {"total": keras.ops.sum(self(x)), "first": x[0, 0]}


@pytest.mark.parametrize("jit_compile", [False, True])
def test_a_step_that_speaks_for_itself_has_the_last_word(jit_compile):
    inputs = keras.Input((3,))
    model = Speaking(inputs, layers.Dense(1, kernel_initializer="zeros")(inputs))
    model.compile(jit_compile=jit_compile)
    history = model.fit(X, Y, batch_size=5, epochs=2, shuffle=False, verbose=0).history
    np.testing.assert_allclose(history["first"], X[20, 0].repeat(2))
    np.testing.assert_allclose(history["total"], [5 * X[20:].sum(), 10 * X[20:].sum()], rtol=1e-4)


def test_xla_and_graph_agree_and_the_rest_is_a_graph():
    (a, graph), (b, compiled) = (
        (model, model.fit(X, Y, batch_size=5, epochs=2, shuffle=False, verbose=0).history)
        for model in (plain(jit_compile=False), plain(jit_compile=True))
    )
    for name, values in graph.items():
        np.testing.assert_allclose(compiled[name], values, rtol=1e-5, err_msg=name)
    for one, other in zip(a.get_weights(), b.get_weights(), strict=True):
        np.testing.assert_allclose(one, other, atol=1e-6)


def programs_of(model):
    (program,) = model._engine._programs._values.values()
    return set(program._programs)


def test_xla_where_it_pays(monkeypatch):
    model = plain(jit_compile="auto")
    asked = []
    monkeypatch.setattr(xla, "pays", lambda steps, graph: asked.append(steps) or steps > 9)
    model.fit(X, Y, batch_size=5, epochs=1, verbose=0)
    assert programs_of(model) == {False}
    model.fit(X, Y, batch_size=5, epochs=3, verbose=0, initial_epoch=1)
    assert programs_of(model) == {False, True}
    assert set(asked) == {5, 10}
    config = model.get_compile_config()
    assert config["jit_compile"] == "auto"
    assert plain(jit_compile=True).get_compile_config()["jit_compile"] is True


def test_many_small_steps_pay_and_few_or_large_ones_do_not():
    def operations(layer, shape):
        inputs = tf.TensorSpec([None, *shape])
        layer.build(inputs.shape)
        return xla.operations_of(tf.function(layer.call).get_concrete_function(inputs).graph)

    dense = operations(layers.Dense(3), (4,))
    assert not xla.pays(100, dense)
    assert xla.pays(10**7, dense)
    if not tf.config.list_logical_devices("GPU"):
        assert not xla.pays(10**7, operations(layers.Conv2D(3, 3), (8, 8, 1)))
        assert not xla.is_slow(dense)


def test_convolutions_on_demand_are_compiled_step_by_step():
    found = []
    for fit in (kopt.Model.fit, keras.Model.fit):
        keras.utils.set_random_seed(0)
        inputs = keras.Input((5, 5, 1))
        model = kopt.Model(inputs, layers.Dense(1)(layers.Flatten()(layers.Conv2D(2, 3)(inputs))))
        model.compile("sgd", "mse", jit_compile=True)
        x = np.random.default_rng(0).random((7, 5, 5, 1))
        found.append(fit(model, x, x[:, 0, 0], batch_size=4, epochs=2, shuffle=False, verbose=0).history["loss"])
        if fit is kopt.Model.fit and not tf.config.list_logical_devices("GPU"):
            assert programs_of(model) == {"steps"}
    np.testing.assert_allclose(*found, rtol=1e-5)


class Printing(layers.Layer):
    """What XLA has no code for."""

    def call(self, x):
        return tf.ensure_shape(tf.py_function(lambda x: x, [x], tf.float32), x.shape)


def test_what_xla_refuses_runs_as_a_graph_and_says_why(monkeypatch):
    inputs = keras.Input((3,))
    model = kopt.Model(inputs, layers.Dense(1)(Printing()(inputs)))
    monkeypatch.setattr(xla, "pays", lambda steps, graph: True)
    model.compile("sgd", "mse")
    with pytest.warns(UserWarning, match="runs as a graph: XLA cannot compile it, .*") as found:
        model.fit(X, Y, batch_size=5, verbose=0)
    assert len(found) == 1
    assert "\n" not in str(found[0].message)
    model.fit(X, Y, batch_size=5, verbose=0)
    assert programs_of(model) == {True, False}
    model.compile("sgd", "mse", jit_compile=True)
    with pytest.raises(tf.errors.InvalidArgumentError):
        model.fit(X, Y, batch_size=5, verbose=0)


def test_what_the_user_wants_otherwise_is_left_to_keras(monkeypatch):
    def refuse(*args, **kwargs):
        raise AssertionError("a compiled program")

    class Own(kopt.Model):
        def make_train_function(self, force=False):
            super().make_train_function(force)

    monkeypatch.setattr(epochs.Epochs, "__init__", refuse)
    eager = plain(run_eagerly=True)
    eager.fit(X, Y, verbose=0, validation_split=0.2)
    eager.evaluate(X, Y, verbose=0)
    plain(Own).fit(X, Y, verbose=0)
    given = plain()
    given.train_on_batch(X, Y)
    with pytest.raises(AssertionError, match="a compiled program"):
        given.fit(X, Y, verbose=0)
    given.train_function = lambda iterator: {"mine": 3.0}
    assert given.fit(X, Y, verbose=0).history == {"mine": [3.0]}


def test_ctrl_c_leaves_a_model_to_go_on_with(request):
    handler = signal.signal(signal.SIGINT, signal.default_int_handler)  # which a shell's background jobs do not have
    request.addfinalizer(lambda: signal.signal(signal.SIGINT, handler))
    model = plain()
    model.fit(X, Y, verbose=0, validation_split=0.2)
    before = model.get_weights()

    def interrupt():
        time.sleep(0.2)
        signal.raise_signal(signal.SIGINT)

    threading.Thread(target=interrupt).start()
    with pytest.raises(KeyboardInterrupt):
        model.fit(X, Y, epochs=10**6, verbose=0, validation_split=0.2)
    after = model.get_weights()
    assert any(np.abs(a - b).max() > 0 for a, b in zip(before, after, strict=True))
    assert np.isfinite(model.evaluate(X, Y, verbose=0)).all()
    assert model.fit(X, Y, verbose=0).history.keys() == {"loss", "accuracy"}


def test_arguments_are_checked_before_any_step():
    model = plain()
    with pytest.raises(ValueError, match="cardinality"):
        model.fit(X, Y[:-1], verbose=0)
    with pytest.raises(ValueError, match="class_weight"):
        model.fit(X, Y, class_weight={0: 1.0, 1: 1.0}, **SCORES, verbose=0)
    for how, words in (
        (dict(validation_split=1.0), r"validation_split must be a number in \[0, 1\), got 1.0"),
        (dict(batch_size=0), r"batch_size must be an integer in \[1, inf\), got 0"),
        (dict(validation_data=(X[:0], Y[:0])), "x must have rows, got none"),
    ):
        with pytest.raises(ValueError, match=words):
            model.fit(X, Y, verbose=0, **how)
    with pytest.raises(ValueError, match="compile"):
        kopt.Model(model.inputs, model.outputs).fit(X, Y)
    with pytest.raises(ValueError, match=r"arguments must be those of keras.Model.evaluate, got \{'rows'"):
        model.evaluate(X, Y, rows=3)
    ragged = np.array([[1.0], [1.0, 2.0], [3.0]], dtype=object)
    with pytest.raises(ValueError, match=r"rows of an array must be numbers .* got objects of type list. Pad ragged"):
        model.fit(ragged, Y[:3], verbose=0)
    with pytest.raises(ValueError, match="cardinality"):
        model.fit([np.ones(3), np.ones(2)], Y[:2], verbose=0)
    assert model.progress is None


@pytest.mark.parametrize("resident", [2**28, 0], ids=["resident", "blocks"])
def test_data_in_blocks_are_the_same_data(resident, monkeypatch):
    monkeypatch.setattr(rows, "RESIDENT", resident)
    monkeypatch.setattr(rows, "BLOCK", 300)  # three batches and a half
    model = plain()
    data = dict(x=X, y=Y, batch_size=5, epochs=3, verbose=0)
    ours = model.fit(**data).history
    seed = model.progress.seed
    other = plain(keras.Model)
    for epoch in range(3):
        order = progress.order_of(23, 5, True, seed, epoch)
        theirs = other.fit(X[order], Y[order], batch_size=5, shuffle=False, verbose=0).history
        np.testing.assert_allclose(ours["loss"][epoch], theirs["loss"][0], rtol=1e-5)
    for a, b in zip(model.get_weights(), other.get_weights(), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-6)


def test_a_sparse_matrix_is_its_dense_one(pair, monkeypatch):
    monkeypatch.setattr(rows, "RESIDENT", 0)
    monkeypatch.setattr(rows, "BLOCK", 200)
    (model, _), weights = pair
    dense = X * (X > 0)
    found = []
    for x in (dense, scipy.sparse.coo_matrix(dense)):
        model.set_weights(weights)
        how = dict(batch_size=5, verbose=0, shuffle=False, validation_split=0.2)
        found.append((*model.fit(x, Y, **how).history["loss"], *model.predict(x, batch_size=4, verbose=0)[:, 0]))
    np.testing.assert_allclose(*found, rtol=1e-5)


@pytest.mark.slow
def test_memory_maps_take_a_few_blocks(tmp_path, monkeypatch):
    """In anonymous memory, that is: a map's own pages are the system's, which takes them back when it likes."""
    status = pathlib.Path("/proc/self/status")
    if not status.exists():
        pytest.skip("Linux counts anonymous memory")

    def anonymous():
        return int(re.search(r"RssAnon:\s+(\d+)", status.read_text())[1]) * 1024

    monkeypatch.setattr(rows, "BLOCK", 2**20)
    x = np.memmap(tmp_path / "x", "float64", "w+", shape=(2**18, 64))  # 128 MiB, of which nothing is on the disk
    y = np.memmap(tmp_path / "y", "float32", "w+", shape=(2**18,))
    x[::1000] = y[::1000, None] = 1
    inputs = keras.Input((64,))
    model = kopt.Model(inputs, layers.Dense(1)(inputs))
    model.compile("sgd", "mse", jit_compile=False)
    how = dict(batch_size=1024, verbose=0)
    model.fit(x[:8192], y[:8192], validation_split=0.5, **how)
    model.predict(x[:8192], **how)
    most, over, before = [0], threading.Event(), anonymous()

    def watch():
        while not over.wait(0.002):
            most[0] = max(most[0], anonymous() - before)

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        model.fit(x, y, validation_split=0.5, **how)
        model.predict(x, **how)
    finally:
        over.set()
        watcher.join()
    assert most[0] < 40 * rows.BLOCK < x.nbytes / 3  # what allocators keep counts, too


class Batches(keras.utils.PyDataset):
    """Calls of its hooks count."""

    def __init__(self, size=5):
        super().__init__()
        self.size, self.begun, self.ended = size, 0, 0

    def __len__(self):
        return -(-len(X) // self.size)

    def __getitem__(self, number):
        these = slice(number * self.size, (number + 1) * self.size)
        return X[these], Y[these]

    def on_epoch_begin(self):
        self.begun += 1

    def on_epoch_end(self):
        self.ended += 1


def dataset(size=5):
    return tf.data.Dataset.from_tensor_slices((X, Y)).batch(size)


def endless():
    while True:
        yield from iter(dataset().as_numpy_iterator())


STREAMS = {
    "dataset": (lambda: dict(x=dataset())),
    "repeated": (lambda: dict(x=dataset().repeat(), steps_per_epoch=7)),
    "a dataset over epochs": (lambda: dict(x=dataset(), steps_per_epoch=2, epochs=2)),
    "unknown length": (lambda: dict(x=dataset().filter(lambda x, y: True))),
    "validation": (lambda: dict(x=X, y=Y, batch_size=5, validation_data=dataset(4), validation_steps=3)),
    "PyDataset": (lambda: dict(x=Batches(), class_weight={0: 3.0, 1: 1.0})),
    "generator": (lambda: dict(x=endless(), steps_per_epoch=4)),
    "sparse tensors": (lambda: dict(x=tf.sparse.from_dense(X * (X > 0)), y=Y, batch_size=5)),
}


@pytest.mark.filterwarnings("ignore:Your input ran out of data", "ignore:`shuffle=True` was passed")
@pytest.mark.parametrize("make", STREAMS.values(), ids=STREAMS)
def test_a_stream_is_that_of_keras(pair, make):
    assert_same(pair, lambda model: model.fit(**dict(epochs=3, shuffle=False, verbose=0) | make()).history)


@pytest.mark.filterwarnings("ignore:`shuffle=True` was passed")
def test_streams_have_many_steps_in_a_call(pair, monkeypatch):
    (model, _), _ = pair
    taken, call = [], epochs.Streamed.__call__

    def counted(self, batches, steps, **how):
        found = call(self, batches, steps, **how)
        taken.append(found[0])
        return found

    monkeypatch.setattr(epochs.Streamed, "__call__", counted)
    monkeypatch.setattr(epochs.Pace, "steps", lambda self, seconds: 3)
    data = Batches()
    model.fit(data, epochs=2, verbose=0, shuffle=False)
    assert taken == [3, 2] * 2
    assert (data.begun, data.ended) == (2, 2)
    model.evaluate(dataset(), verbose=0)
    assert taken[4:] == [3, 2]
    watch = WatchBatches()
    model.fit(dataset(), verbose=0, shuffle=False, callbacks=[watch])
    assert [event[:2] for event in watch.events[:-1]] == [(kind, n) for n in range(5) for kind in ("begin", "end")]
    with pytest.warns(UserWarning, match="ran out of data after 5 batches, and steps_per_epoch is 7"):
        model.fit(dataset(), steps_per_epoch=7, verbose=0, shuffle=False)


def test_a_stream_may_be_compiled_by_xla():
    model, other = plain(jit_compile=True), plain(keras.Model)
    ours, theirs = (m.fit(dataset(), verbose=0, shuffle=False).history for m in (model, other))
    np.testing.assert_allclose(ours["loss"], theirs["loss"], rtol=1e-5)


def two(kind):
    keras.utils.set_random_seed(0)
    a, b = keras.Input((3,), name="a"), keras.Input((3,), name="b")
    hidden = layers.BatchNormalization()(layers.Dense(4)(layers.Add()([a, b])))
    return kind(dict(a=a, b=b), dict(one=layers.Dense(2)(hidden), all=[hidden, layers.Dropout(0.5)(a)]))


def test_predictions_are_those_of_keras():
    ours, theirs = two(kopt.Model), two(keras.Model)  # not compiled
    x = dict(a=X, b=-2 * X[::-1])
    for how in (dict(batch_size=5), dict(batch_size=64), dict(steps=2, batch_size=5), dict(batch_size=23), {}):
        found, expected = (model.predict(x, verbose=0, **how) for model in (ours, theirs))
        keras.tree.assert_same_structure(found, expected)
        for one, other in zip(keras.tree.flatten(found), keras.tree.flatten(expected), strict=True):
            assert isinstance(one, np.ndarray)
            np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-6)
    row = ours.predict({name: rows_[:1] for name, rows_ in x.items()}, verbose=0)
    assert row["one"].shape == (1, 2)


def test_predictions_follow_the_weights_and_compile_once(capsys):
    model = plain()
    Counted.calls = 0
    before = model.predict(X, batch_size=5)
    assert "5/5" in capsys.readouterr().out
    model.predict(X[:1], verbose=0)
    model.layers[-1].bias.assign([3.0, 0.0])
    after = model.predict(X, verbose=0)
    assert (after[:, 0] > before[:, 0]).all()
    assert Counted.calls == 1


@pytest.mark.filterwarnings("ignore:Your input ran out of data")
def test_predictions_that_programs_cannot_join_are_left_to_keras():
    class Lengths(layers.Layer):
        def call(self, x):
            return tf.RaggedTensor.from_tensor(x, padding=0.0)

        def compute_output_spec(self, x):
            return keras.KerasTensor((None, None))

    inputs = keras.Input((3,))
    found = kopt.Model(inputs, Lengths()(inputs)).predict(np.eye(3), batch_size=2, verbose=0)
    assert isinstance(found, tf.RaggedTensor)
    model = plain()
    np.testing.assert_allclose(
        model.predict(((x,) for x in (X[:5], X[5:])), verbose=0), model.predict(X, verbose=0), rtol=1e-5
    )


class WatchOutputs(keras.callbacks.Callback):
    def __init__(self):
        super().__init__()
        self.seen = []

    def on_predict_batch_end(self, batch, logs=None):
        self.seen.append((batch, logs["outputs"].shape[0]))
        self.model.stop_predicting = batch == 2


def test_a_callback_of_predict_gets_every_batch_and_may_stop():
    watch = WatchOutputs()
    assert len(plain().predict(X, batch_size=5, verbose=0, callbacks=[watch])) == 15
    assert watch.seen == [(0, 5), (1, 5), (2, 5)]


def test_predictions_under_xla():
    model, other = plain(jit_compile=True), plain()
    for size in (5, 23):
        found, expected = (m.predict(X, batch_size=size, verbose=0) for m in (model, other))
        np.testing.assert_allclose(found, expected, rtol=1e-5)
