"""Minimizers see the data set as one function; `kopt.minimize` and `kopt.Switch` lead them."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import ops

import kopt
from kopt.optimizers.minimizer import Minimizer, Point
from kopt.testing import backends
from kopt.training import minimize as training_minimize

layers = keras.layers
rng = np.random.default_rng(0)
X = rng.standard_normal((23, 3)).astype("float32")
Y = np.tanh(X @ rng.standard_normal((3, 2))).astype("float32")
W = rng.uniform(0.5, 2, 23).astype("float32")
MODES = [dict(run_eagerly=True), dict(jit_compile=False), dict(jit_compile=True)]


class TwoSteps(Minimizer):
    """Two steps down the gradient in each iteration, in a loop; counts what it is given."""

    ranges = {"shrink": "(0, 1]"}

    def __init__(self, learning_rate=0.1, *, shrink=0.5, stochastic=False, name=None):
        super().__init__(learning_rate, stochastic=stochastic, name=name)
        self.shrink = shrink

    def memory(self, size):
        return dict(last=(size,))

    def iterate(self, f, at, t, h, *, evaluations, products, last):
        def body(i, x, value, gradient):
            x = x - h.learning_rate * h.shrink**i * gradient
            return i + 1, x, *f(x)

        _, *to = ops.while_loop(lambda i, *_: i < 2, body, (ops.zeros((), at.x.dtype), *at))
        return Point(*to), dict(evaluations=evaluations + 2, products=products, last=at.x)


class Forgetful(TwoSteps):
    """The same without memory of the last point."""

    remembers = False

    def iterate(self, f, at, t, h, **memory):
        assert at.gradient is None
        return super().iterate(f, Point(at.x, *f(at.x)), t, h, **memory)


def network(kind=kopt.Model, penalty="l2"):
    keras.utils.set_random_seed(0)
    inputs = keras.Input((3,))
    return kind(inputs, layers.Dense(2)(layers.Dense(4, "tanh", kernel_regularizer=penalty)(inputs)))


def descended(iterations, rate=0.1):
    """The weights, and the losses before each iteration, of as many pairs of steps by hand."""
    model, losses = network(keras.Model), []
    for _ in range(iterations):
        for number, length in enumerate((rate, 0.5 * rate)):
            with tf.GradientTape() as tape:
                each = tf.reduce_mean(tf.square(model(X) - Y), axis=1)
                loss = tf.reduce_mean(W * each) + tf.add_n(model.losses)
            variables = [v.value for v in model.trainable_variables]
            for variable, g in zip(variables, tape.gradient(loss, variables), strict=True):
                variable.assign_sub(length * g)
            if not number:
                losses.append(float(loss))
    return model.get_weights(), losses


EXPECTED, LOSSES = descended(4)


def close(a, b, tolerance=1e-6):
    return max(float(np.abs(x - y).max()) for x, y in zip(a, b, strict=True)) < tolerance


@pytest.mark.parametrize("how", MODES, ids=str)
@pytest.mark.parametrize("kind", [TwoSteps, Forgetful])
def test_fit_gives_all_rows_at_once_and_evaluates_nothing_twice(kind, how):
    model = network()
    model.compile(kind(), "mse", metrics=["mae"], **how)
    history = model.fit(X, Y, sample_weight=W, epochs=4, shuffle=False, verbose=0).history
    assert close(model.get_weights(), EXPECTED)
    np.testing.assert_allclose(history["loss"], LOSSES, rtol=1e-5)
    assert history["mae"][-1] < history["mae"][0]
    assert int(model.optimizer.iterations) == 4
    assert model.optimizer.evaluations == (8 if kind is Forgetful else 9)


def test_a_loaded_model_goes_on(tmp_path):
    model = network()
    model.compile(kopt.Switch([(kopt.AdamW(0.05), 2), (TwoSteps(shrink=0.25), 3), (kopt.SGD(0.1), None)]), "mse")
    for epochs in (1, 2, 3):  # in the first phase, in the second, in the third
        model.fit(X, Y, batch_size=23, epochs=epochs, verbose=0)
        model.save(tmp_path / "model.keras")
        loaded = keras.saving.load_model(tmp_path / "model.keras", dict(TwoSteps=TwoSteps))
        assert repr(loaded.optimizer) == repr(model.optimizer)
        assert str(loaded.optimizer.current_phase) == str(model.optimizer.current_phase)
        for a, b in zip(loaded.optimizer.variables, model.optimizer.variables, strict=True):
            np.testing.assert_array_equal(a.numpy(), b.numpy())


@pytest.mark.parametrize("how", MODES, ids=str)
def test_a_switch_takes_the_steps_of_each_in_turn(how):
    model, apart = network(), network()
    model.compile(kopt.Switch([(kopt.AdamW(0.05), 2), (TwoSteps(), 2), (kopt.SAM(kopt.SGD(0.1)), None)]), "mse", **how)
    losses = model.fit(X, Y, batch_size=23, epochs=6, shuffle=False, verbose=0).history["loss"]
    expected = []
    for optimizer in (kopt.AdamW(0.05), TwoSteps(), kopt.SAM(kopt.SGD(0.1))):
        apart.compile(optimizer, "mse", jit_compile=False)
        expected += apart.fit(X, Y, batch_size=23, epochs=2, shuffle=False, verbose=0).history["loss"]
    np.testing.assert_allclose(losses, expected, rtol=1e-5)
    assert close(model.get_weights(), apart.get_weights())
    assert isinstance(model.optimizer.current_phase, kopt.SAM)
    model.optimizer.learning_rate = 0.0
    before = model.get_weights()
    model.fit(X, Y, batch_size=23, verbose=0)
    assert close(model.get_weights(), before, 1e-12)


def test_a_set_weight_and_new_rows_are_noticed():
    model = network()
    model.compile(TwoSteps(), "mse", jit_compile=False)
    model.fit(X, Y, sample_weight=W, epochs=3, verbose=0)
    model.set_weights(network().get_weights())
    model.fit(-X, Y, verbose=0)
    other = network()
    other.compile(TwoSteps(), "mse", jit_compile=False)
    other.fit(-X, Y, verbose=0)
    assert close(model.get_weights(), other.get_weights())


@pytest.mark.parametrize(
    "data",
    [dict(x=X, y=Y, batch_size=8), dict(x=tf.data.Dataset.from_tensor_slices((X, Y)).batch(8))],
    ids=["x", "set"],
)
def test_batches_are_for_those_who_want_them(data):
    model = network()
    model.compile(TwoSteps(), "mse")
    with pytest.raises(ValueError, match=r"^TwoSteps: .* Set stochastic=True to take steps on batches\.$"):
        model.fit(**data, shuffle=False, verbose=0)
    model.compile(TwoSteps(stochastic=True), "mse", jit_compile=False)
    losses = model.fit(**data, epochs=2, shuffle=False, verbose=0).history["loss"]
    assert losses[1] < losses[0]
    assert model.optimizer.evaluations == 2 * 3 * 3


def test_dropout_is_evaluated_anew_at_each_step():
    inputs = keras.Input((3,))
    model = kopt.Model(inputs, layers.Dense(2)(layers.Dropout(0.5)(inputs)))
    model.compile(TwoSteps(), "mse", jit_compile=False)
    model.fit(X, Y, epochs=3, verbose=0)
    assert model.optimizer.evaluations == 9


@pytest.mark.parametrize("dtype", ["bfloat16", "mixed_float16"])
def test_low_precision_is_refused(dtype):
    keras.config.set_dtype_policy(dtype)
    try:
        model = network()
        model.compile(TwoSteps(), "mse", run_eagerly=True)
        with pytest.raises(
            ValueError, match=r"^TwoSteps: weights must be float32|^TwoSteps evaluates .* mixed_float16"
        ):
            model.fit(X, Y, verbose=0)
    finally:
        keras.config.set_dtype_policy("float32")


@pytest.mark.skipif(backends.two_devices() is None, reason="two logical devices are needed")
def test_keras_own_loop_over_several_replicas_is_refused():
    with backends.mirrored(backends.two_devices()).scope():
        model = network()
        model.compile(TwoSteps(), "mse", run_eagerly=True)
    with pytest.raises(
        ValueError, match=r"loops, which cannot be in Keras's own loop over several replicas\. Use kopt"
    ):
        model.fit(X[:22], Y[:22], verbose=0)


def test_an_estimator_gives_all_rows_at_once():
    estimator = kopt.KerasRegressor(optimizer=TwoSteps(0.2), epochs=30, random_state=0).fit(X, Y)
    assert estimator.loss_curve_[-1] < 0.5 * estimator.loss_curve_[0]
    with pytest.raises(ValueError, match=r"^TwoSteps: batch_size must be None or cover all 23 rows, got 8"):
        kopt.KerasRegressor(optimizer=TwoSteps(), batch_size=8, epochs=1).fit(X, Y)


# ---- minimize --------------------------------------------------------------------------------------------------------


def minimized(*data, model=None, **how):
    model = network() if model is None else model
    how = dict(method=TwoSteps(), loss="mse", maxiter=4, verbose=0, jit_compile=False) | how
    return kopt.minimize(model, *(data or (X, Y)), **how), model


@pytest.mark.parametrize(
    "how", [dict(jit_compile="auto"), dict(micro_batch_size=5, jit_compile="auto"), dict(micro_batch_size=5)], ids=str
)
def test_minimize_takes_the_steps_of_fit(how):
    result, model = minimized(model=network(keras.Model), sample_weight=W, **how)
    assert close(model.get_weights(), EXPECTED)
    np.testing.assert_allclose(result.history, LOSSES, rtol=1e-5)
    np.testing.assert_allclose(result.x, np.concatenate([w.ravel() for w in EXPECTED]), atol=1e-6)
    assert (result.nit, result.nfev, result.nhev, result.status, result.success) == (4, 9, 0, 1, False)
    assert result.fun < result.history[-1]
    assert result.jac.shape == result.x.shape


def test_a_long_minimization_goes_on_in_a_program_by_xla(monkeypatch):
    monkeypatch.setattr(training_minimize, "EARLY", 2)
    monkeypatch.setattr(training_minimize, "LONG", 2)
    programs, make = [], training_minimize._Search._program
    monkeypatch.setattr(
        training_minimize._Search, "_program", lambda self, xla: (programs.append(xla), make(self, xla))[1]
    )
    result, model = minimized(model=network(keras.Model), sample_weight=W, jit_compile="auto")
    assert programs == [False, True]
    assert close(model.get_weights(), EXPECTED)
    np.testing.assert_allclose(result.history, LOSSES, rtol=1e-5)
    minimized(maxiter=3, jit_compile="auto")
    assert programs == [False, True, False]
    minimized(maxiter=1, jit_compile=True)
    assert programs == [False, True, False, True]


def test_a_data_set_of_micro_batches_is_the_same():
    rows = tf.data.Dataset.from_tensor_slices((X, Y, W)).batch(5)
    result, model = minimized(rows)
    assert close(model.get_weights(), EXPECTED)
    np.testing.assert_allclose(result.history, LOSSES, rtol=1e-5)


def test_minimize_ends_where_the_gradient_or_the_decrease_is_small():
    result, _ = minimized(maxiter=1000, gtol=0.01)
    assert (result.status, result.success) == (0, True)
    assert 0.005 < np.abs(result.jac).max() <= 0.01
    result, _ = minimized(maxiter=1000, ftol=1e-3)
    assert result.status == 0
    decreases = -np.diff([*result.history, result.fun])
    assert (decreases[:-1] > 1e-3).all()
    assert decreases[-1] <= 1e-3
    result, _ = minimized(maxiter=1000, ftarget=0.5)
    assert result.status == 0
    assert result.fun <= 0.5 < result.history[-1]


def test_minimize_says_why_it_stopped():
    assert minimized(method=TwoSteps(0.0), maxiter=100)[0].status == 2
    assert minimized(method=TwoSteps(1e4), maxiter=1000)[0].status == 3

    seen = []

    def stop(intermediate_result):
        seen.append(intermediate_result.nit)
        if len(seen) == 3:
            raise StopIteration

    result, _ = minimized(maxiter=100, callback=stop)
    assert (result.status, result.nit, seen) == (99, 3, [1, 2, 3])


def test_minimize_leads_a_switch(capsys):
    switch = kopt.Switch([(kopt.AdamW(0.05), 25), (TwoSteps(), None)])
    result, model = minimized(method=switch, maxiter=1000, gtol=0.01, verbose=1)
    assert result.success
    assert result.nit > 25
    assert model.optimizer is switch
    assert "iteration" in capsys.readouterr().out


class Physical(keras.Model):
    """A model whose loss is its own, and which is not built."""

    def __init__(self):
        super().__init__()
        self.inner = layers.Dense(1)

    def call(self, x):
        return self.inner(x)

    def compute_loss(self, x=None, y=None, y_pred=None, sample_weight=None, training=True):
        return ops.mean(ops.square(y_pred - ops.sum(x, axis=1, keepdims=True)))


def test_a_model_may_have_a_loss_of_its_own():
    model = Physical()
    result = kopt.minimize(model, X, method=TwoSteps(0.3), maxiter=200, verbose=0)
    assert result.success
    np.testing.assert_allclose(model.inner.kernel.numpy(), np.ones((3, 1)), atol=1e-4)


@pytest.mark.parametrize(
    ("how", "message"),
    [
        (dict(model="mlp"), r"model must be a keras.Model, got 'mlp'\."),
        (dict(loss=None), r"model must be compiled with a loss, or loss given, got neither\. Try loss='mse'\."),
        (dict(method="LBFSG"), r"method must be an optimizer of kopt, such as .*, got 'LBFSG'\."),
        (dict(method=keras.optimizers.SGD()), r"method must be the name of a kopt optimizer or an instance"),
        (dict(method="LBFGS", options=dict(pair=3)), r"LBFGS takes no argument 'pair', but .* Did you mean 'pairs'\?"),
        (dict(options=dict(shrink=1.0)), r"options must be None where method is an instance"),
        (dict(maxiter=0), r"maxiter must be a number in \[1, inf\), got 0\."),
        (dict(gtol=-1.0), r"gtol must be a number in \[0, inf\), got -1\.0\."),
        (dict(micro_batch_size=0), r"micro_batch_size must be a number in \[1, inf\), got 0\."),
        (dict(jit_compile="yes"), r"jit_compile must be one of True, False, 'auto', got 'yes'\."),
        (dict(sample_weight=W[:3]), r"x, y and sample_weight must have equally many rows, got \[3, 23\]\."),
        (dict(loss=keras.losses.MeanSquaredError("sum"), micro_batch_size=5), r"micro_batch_size must be None unless"),
    ],
)
def test_a_wrong_argument_is_named(how, message):
    with pytest.raises((TypeError, ValueError), match=f"^(minimize: )?{message}"):
        minimized(**how)


def test_what_does_not_add_up_is_refused():
    for layer, message in (
        (layers.BatchNormalization(), "batch normalization"),
        (layers.Dropout(0.5), "random numbers"),
    ):
        inputs = keras.Input((3,))
        with pytest.raises(ValueError, match=f"micro_batch_size must be None for a model .*{message}"):
            minimized(model=kopt.Model(inputs, layers.Dense(2)(layer(inputs))), micro_batch_size=5)


def test_a_start_that_is_not_finite_is_refused():
    with pytest.raises(ValueError, match=r"must be finite at the start, got a loss of nan\."):
        minimized(np.full_like(X, np.nan), Y)


@pytest.mark.parametrize(
    ("phases", "message"),
    [
        ([], "phases must be pairs"),
        ([kopt.SGD(0.1)], "phases must be pairs"),
        ([(kopt.SGD(0.1), None), (kopt.SGD(0.1), None)], r"phase 0: steps must be an integer in \[1, inf\), got None"),
        ([(keras.optimizers.SGD(0.1), 3)], r"Try kopt.SGD"),
        ([(kopt.EMA(kopt.SGD(0.1)), 3)], "phases must not average weights"),
    ],
)
def test_what_is_no_phase_is_refused(phases, message):
    with pytest.raises((TypeError, ValueError), match=f"^Switch.*{message}"):
        kopt.Switch(phases)


@pytest.mark.parametrize("optimizer", [TwoSteps(), kopt.Switch([(kopt.SGD(0.1), None)])], ids=["minimizer", "switch"])
def test_a_plain_model_is_refused(optimizer):
    model = network(keras.Model)
    model.compile(optimizer, "mse")
    with pytest.raises(ValueError, match=r"asks more of each batch .* Try kopt.Model\(model.inputs, model.outputs\)"):
        model.fit(X, Y, verbose=0)


def test_nothing_wraps_what_steps_on_all_weights_at_once():
    for around in (kopt.EMA, kopt.SAM, lambda inner: kopt.Matrices(inner, kopt.Adam())):
        with pytest.raises(
            ValueError, match=r"must be an optimizer that has a direction .* got TwoSteps, .* kopt.Switch"
        ):
            around(TwoSteps())


def test_minimize_ends_where_levenberg_marquardt_stops_falling():
    result, _ = minimized(
        method="LevenbergMarquardt", options=dict(initial_damping=0.1), maxiter=200, gtol=0.0, ftol=1e-4
    )
    assert result.status == 0
    assert 3 < result.nit < 200
