"""Least squares: the paths of other libraries, MINPACK's minima, and each rule against numpy.

A wrong sign in λ's rule, a dropped factor of the promised decrease, a Jacobian that is not the residuals', or damping
that is not scaled leaves the paths of jaxopt, Ceres and numpy.
"""

import inspect
import itertools
import json
import re
from pathlib import Path

import keras
import numpy as np
import pytest
from keras import ops

import kopt

FOLDER = Path(__file__).parents[1] / "references" / "least_squares"
CURVES = {path.stem: json.loads(path.read_text()) for path in sorted(FOLDER.glob("*.json"))}
tf = pytest.importorskip("tensorflow")
pytestmark = pytest.mark.skipif(keras.backend.backend() != "tensorflow", reason="kopt.Model is TensorFlow's")


@pytest.fixture
def float64():
    keras.config.set_floatx("float64")
    keras.config.set_dtype_policy("float64")
    yield
    keras.config.set_floatx("float32")
    keras.config.set_dtype_policy("float32")


class Curve(keras.layers.Layer):
    """A curve as a layer whose weight is its parameters."""

    def __init__(self, formula, start):
        super().__init__()
        self.formula, self.calls = formula, 0
        self.b = self.add_weight(
            shape=(len(start),), initializer=lambda shape, dtype: ops.convert_to_tensor(start, dtype)
        )

    def call(self, x):
        self.calls += 1
        return eval(self.formula, {"b": self.b, "x": x, "exp": ops.exp})


class Fit:
    """A curve, its data and a compiled model, whose loss is half of the sum of the squares of its errors."""

    def __init__(self, name, optimizer, **how):
        self.case, inputs = CURVES[name], keras.Input((1,))
        model = kopt.Model(inputs, Curve(self.case["formula"], self.case["start"])(inputs))
        loss = keras.losses.MeanSquaredError(reduction="sum")
        model.compile(optimizer, loss, loss_weights=[0.5], **{"jit_compile": False} | how)
        self.model, self.optimizer, self.losses = model, optimizer, []
        optimizer.build(model.trainable_variables)
        self.state = {name: variable.numpy() for name, variable in optimizer._memory.items()}

    def path(self, epochs):
        """The parameters after each step from the start, with the memory of the start."""
        for name, value in self.state.items():
            self.optimizer._memory[name].assign(value)
        x, y = (np.array(self.case[name])[:, None] for name in ("x", "y"))
        self.model.set_weights([np.array(self.case["start"])])
        path = []

        def keep(epoch, logs):
            path.append(self.model.get_weights()[0])

        keep = keras.callbacks.LambdaCallback(on_epoch_end=keep)
        self.losses = self.model.fit(x, y, epochs=epochs, verbose=0, callbacks=[keep]).history["loss"]
        return np.array(path)


@pytest.mark.parametrize("name", [name for name in CURVES if name != "rat42_near"])
def test_it_finds_the_minimum_of_minpack_by_as_few_jacobians(name, float64):
    found, fit = CURVES[name]["minpack"], Fit(name, kopt.LevenbergMarquardt())
    path = fit.path(15)
    right = np.all(
        np.abs(np.abs(path) - np.abs(found["b"])) <= 1e-8 * np.abs(found["b"]), axis=1
    )  # a width has no sign
    assert right[-1]
    assert right.argmax() + 1 <= 1.2 * found["njev"]
    np.testing.assert_allclose(fit.losses[-1], found["cost"], rtol=1e-9)
    assert fit.optimizer.evaluations < 40  # two for each step, and a few: at the minimum, rounding rejects none


@pytest.mark.parametrize("name", ["decay", "rat42_far"])
def test_its_path_is_that_of_jaxopt(name, float64):
    theirs = CURVES[name]["jaxopt"]
    numbers = dict(initial_damping=theirs["initial_damping"], shrink=1 / 3, accept=0.0)
    check_path(Fit(name, kopt.LevenbergMarquardt(scaling="identity", **numbers)), theirs["path"])


@pytest.mark.parametrize("name", ["peak", "misra1a_far"])
def test_its_path_is_that_of_ceres(name, float64):
    theirs = CURVES[name]["ceres"]
    numbers = dict(initial_damping=theirs["initial_damping"], shrink=1 / 3, accept=theirs["accept"])
    check_path(Fit(name, kopt.LevenbergMarquardt(scaling="marquardt", **numbers)), theirs["path"])


def check_path(fit, theirs):
    np.testing.assert_allclose(fit.path(len(theirs)), [b for b, _ in theirs], rtol=1e-6)
    np.testing.assert_allclose(fit.optimizer._memory["damping"].numpy(), theirs[-1][1], rtol=1e-4)


def test_full_steps_of_gauss_newton_are_those_of_optimistix(float64):
    theirs = CURVES["rat42_near"]["optimistix"]["path"]
    path = Fit("rat42_near", kopt.GaussNewton(backtracking=False)).path(len(theirs))
    np.testing.assert_allclose(path, theirs, rtol=1e-7)


def by_numpy(case, steps, *, scaling="largest", learning_rate=1.0, initial_damping=1e-3, accept=1e-4, shrink=0.01,
             max_trials=20):  # fmt: skip
    """Levenberg-Marquardt from the normal equations: parameters after each step, λ, and evaluations of the loss."""
    x, y = np.array(case["x"]), np.array(case["y"])

    def error(b):
        with np.errstate(over="ignore"):
            return eval(case["formula"], {"b": b, "x": x, "exp": np.exp}) - y

    b, damping, growth, seen, largest, path = np.array(case["start"]), initial_damping, 2, 0, 0, []
    for _ in range(steps):
        r, columns = error(b), np.eye(len(b))
        J = np.stack([error(b + 1e-20j * column).imag / 1e-20 for column in columns], 1)
        largest = np.maximum(largest, np.diag(J.T @ J))
        D2 = {"largest": largest, "marquardt": np.diag(J.T @ J), "identity": np.ones(len(b))}[scaling]
        seen += 1
        for _ in range(max_trials):
            p = np.linalg.solve(J.T @ J + damping * np.diag(D2), -J.T @ r)
            s, seen = learning_rate * p, seen + 1
            expected = r @ r / 2 - (r + J @ s) @ (r + J @ s) / 2
            ratio = (r @ r / 2 - error(b + s) @ error(b + s) / 2) / expected
            if ratio > accept:
                b, damping, growth = b + s, damping * max(shrink, 1 - (2 * ratio - 1) ** 3), 2
                break
            damping, growth = damping * growth, 2 * growth
        path.append(b)
    return np.array(path), damping, seen


CHANGES = [
    {},
    dict(accept=0.8, shrink=0.5),
    dict(learning_rate=0.5, accept=0.3),
    dict(learning_rate=1.5, shrink=0.2),
]
"""Inputs of one compiled step, with steps that are taken and not, from a λ that is too small at first."""


def test_its_path_is_that_of_numpy(float64):
    fit = Fit("rat42_far", kopt.LevenbergMarquardt(initial_damping=1e-6))
    rejected, traced = 0, set()
    for changes in CHANGES:
        fit.optimizer.set_params(**dict(learning_rate=1.0, accept=1e-4, shrink=0.01) | changes)
        path, damping, seen = by_numpy(fit.case, 6, initial_damping=1e-6, **changes)
        np.testing.assert_allclose(fit.path(6), path, rtol=1e-6, err_msg=str(changes))
        np.testing.assert_allclose(fit.optimizer._memory["damping"].numpy(), damping, rtol=1e-4)
        assert fit.optimizer.evaluations == seen
        rejected += seen - 12
        traced.add(fit.model.layers[1].calls)
    assert rejected > 4
    assert len(traced) == 1  # no second trace


def test_where_no_trial_is_good_the_weights_stay(float64):
    arguments = dict(max_trials=1, scaling="identity", initial_damping=1e-7)
    fit = Fit("rat42_far", kopt.LevenbergMarquardt(**arguments), run_eagerly=True)
    path, _, seen = by_numpy(fit.case, 8, **arguments)
    np.testing.assert_allclose(fit.path(8), path, rtol=1e-6)
    assert fit.optimizer.evaluations == seen
    assert any(np.array_equal(a, b) for a, b in itertools.pairwise(path))


def test_gauss_newton_backtracks_as_numpy_does(float64):
    fit = Fit("rat42_far", kopt.GaussNewton())
    for changes in ({}, dict(shrink=0.3), dict(decrease=0.4), dict(learning_rate=1.5)):
        fit.optimizer.set_params(**dict(learning_rate=1.0, decrease=1e-4, shrink=0.5) | changes)
        path, seen = backtracked(fit.case, 6, **changes)
        np.testing.assert_allclose(fit.path(6), path, rtol=1e-6, err_msg=str(changes))
        assert fit.optimizer.evaluations == seen
    assert seen > 13


def backtracked(case, steps, learning_rate=1.0, decrease=1e-4, shrink=0.5):
    """Gauss-Newton with Armijo's condition: parameters after each step, and evaluations of the loss."""
    x, y, b = np.array(case["x"]), np.array(case["y"]), np.array(case["start"])

    def error(b):
        with np.errstate(over="ignore"):
            return eval(case["formula"], {"b": b, "x": x, "exp": np.exp}) - y

    path, seen = [], 0
    for _ in range(steps):
        r = error(b)
        J = np.stack([error(b + 1e-20j * column).imag / 1e-20 for column in np.eye(len(b))], 1)
        p, alpha, seen = np.linalg.lstsq(J, -r, rcond=None)[0], learning_rate, seen + 2
        while error(b + alpha * p) @ error(b + alpha * p) / 2 > r @ r / 2 + decrease * alpha * r @ J @ p:
            alpha, seen = shrink * alpha, seen + 1
        b = b + alpha * p
        path.append(b)
    return np.array(path), seen


def network(optimizer, rows=24, **how):
    """A network with more weights than rows or fewer, and an L2 penalty."""
    keras.utils.set_random_seed(0)
    inputs = keras.Input((2,))
    hidden = keras.layers.Dense(3, "tanh", kernel_regularizer=keras.regularizers.L2(1e-3))(inputs)
    model = kopt.Model(inputs, keras.layers.Dense(1)(hidden))
    model.compile(optimizer, "mse", **{"jit_compile": False} | how)
    x = np.random.default_rng(0).standard_normal((rows, 2))
    return model, x, np.sin(2 * x[:, :1]) * x[:, 1:]


def weights_after(optimizer, epochs=5, rows=24, **how):
    model, x, y = network(optimizer, rows, **how)
    model.fit(x, y, epochs=epochs, verbose=0)
    return np.concatenate([w.ravel() for w in model.get_weights()])


def test_eager_graph_and_xla_agree(float64):
    ends = [
        weights_after(kopt.LevenbergMarquardt(), **how)
        for how in (dict(run_eagerly=True), dict(jit_compile=False), dict(jit_compile=True))
    ]
    np.testing.assert_allclose(ends[1], ends[0], rtol=1e-8)
    np.testing.assert_allclose(ends[2], ends[0], rtol=1e-8)


def test_conjugate_gradients_solve_what_qr_does(float64):
    exact = weights_after(kopt.LevenbergMarquardt(scaling="identity"), run_eagerly=True)
    optimizer = kopt.LevenbergMarquardt(solver="cg", tolerance=1e-10)
    np.testing.assert_allclose(weights_after(optimizer), exact, rtol=1e-6)
    assert 5 * 2 < optimizer.products <= 5 * 20 * 100
    rough = kopt.LevenbergMarquardt(solver="cg", tolerance=0.5)
    short = kopt.LevenbergMarquardt(solver="cg", max_products=2)
    for other in (rough, short):
        assert np.abs(weights_after(other, run_eagerly=True) - exact).max() > 1e-4
        assert other.products < optimizer.products


@pytest.mark.parametrize("optimizer", [kopt.GaussNewton(backtracking=False), kopt.LevenbergMarquardt()], ids=repr)
def test_more_weights_than_residuals(optimizer, float64):
    model, x, y = network(optimizer, rows=5)
    model.layers[1].kernel_regularizer = None
    model.layers[1].kernel.regularizer = None
    oracle = oracle_of(model, x, y)
    r, J = (part.numpy() for part in oracle.jacobian())
    assert J.shape == (5, 13)
    before = np.concatenate([w.ravel() for w in model.get_weights()])
    if isinstance(optimizer, kopt.GaussNewton):
        p = -np.linalg.pinv(J) @ r
    else:
        D2 = np.diag(J.T @ J)
        p = -np.linalg.solve(J.T @ J + 1e-3 * np.diag(D2), J.T @ r)
    model.fit(x, y, verbose=0)
    np.testing.assert_allclose(np.concatenate([w.ravel() for w in model.get_weights()]) - before, p, atol=1e-8)


@pytest.mark.parametrize("rows", [5, 24])
def test_rows_that_only_the_running_step_counts(rows, float64):
    known = weights_after(kopt.LevenbergMarquardt(), 3, rows, run_eagerly=True)
    model, x, y = network(kopt.LevenbergMarquardt(), rows)
    model.fit(tf.data.Dataset.from_tensor_slices((x, y)).batch(rows), epochs=3, shuffle=False, verbose=0)
    np.testing.assert_allclose(np.concatenate([w.ravel() for w in model.get_weights()]), known, rtol=1e-6)


def oracle_of(model, x, y):
    from kopt.training.batch import Batch
    from kopt.training.oracle import Oracle

    def compute(through):
        outputs = model(x, training=True)
        return outputs, model.compute_loss(x, y, through(outputs), None)

    return Oracle(Batch(model, compute))


def test_rounding_at_the_minimum_rejects_no_steps_in_float32():
    fit = Fit("misra1a_near", kopt.LevenbergMarquardt())
    path = fit.path(30)
    assert fit.optimizer.evaluations <= 63  # two for each step, and a few
    assert fit.optimizer._memory["damping"].numpy() < 1e-6
    np.testing.assert_allclose(path[-5:], np.broadcast_to(fit.case["minpack"]["b"], (5, 2)), rtol=2e-4)


def test_another_loss_of_elements_is_minimized():
    inputs = keras.Input((3,))
    model = kopt.Model(inputs, keras.layers.Dense(1, kernel_initializer="zeros")(inputs))
    entropy = keras.losses.BinaryCrossentropy(from_logits=True)
    model.compile(kopt.LevenbergMarquardt(), entropy, run_eagerly=True)
    rng = np.random.default_rng(0)
    x = rng.standard_normal((80, 3))
    y = (x[:, :1] - 2 * x[:, 1:2] + rng.standard_normal((80, 1)) > 0).astype("float32")
    model.fit(x, y, epochs=12, verbose=0)
    slopes = oracle_of(model, x, y).gradients()
    assert max(np.abs(slope).max() for slope in slopes) < 1e-4


def test_a_learning_rate_of_zero_moves_nothing():
    for optimizer in (kopt.LevenbergMarquardt(0.0), kopt.GaussNewton(0.0)):
        model, x, y = network(optimizer, run_eagerly=True)
        before = model.get_weights()
        model.fit(x, y, epochs=2, verbose=0)
        assert all(np.array_equal(a, b) for a, b in zip(before, model.get_weights(), strict=True))


def test_saved_and_loaded_it_continues(tmp_path):
    model, x, y = network(kopt.LevenbergMarquardt(shrink=0.5), run_eagerly=True)
    model.fit(x, y, epochs=3, verbose=0)
    model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    assert loaded.optimizer.evaluations == model.optimizer.evaluations > 0
    ours, theirs = (m.fit(x, y, epochs=3, verbose=0).history["loss"] for m in (model, loaded))
    np.testing.assert_allclose(ours, theirs, rtol=1e-6)


def test_a_start_that_is_not_finite_stays_and_is_forgotten(float64):
    fit = Fit("decay", kopt.LevenbergMarquardt(max_trials=3), run_eagerly=True)
    start = fit.case["start"]
    fit.case = fit.case | dict(start=[1.0, -1e4, 5.0])
    assert np.array_equal(fit.path(2), [[1.0, -1e4, 5.0]] * 2)
    state = {name: variable.numpy() for name, variable in fit.optimizer._memory.items()}
    assert all(np.isfinite(value).all() for value in state.values())
    fit.case, fit.state = fit.case | dict(start=start), state
    assert np.isfinite(fit.path(5)).all()
    assert fit.losses[-1] < fit.losses[0]


def test_what_cannot_be_is_refused():
    for optimizer, instead in (
        (kopt.LevenbergMarquardt(max_size=100), "Use solver='cg'"),
        (kopt.GaussNewton(max_size=100), "Use LevenbergMarquardt(solver='cg')"),
    ):
        model, x, y = network(optimizer, run_eagerly=True)
        rule = (
            f"{type(optimizer).__name__}: the Jacobian must have at most max_size=100 entries, got 30 residuals by 13 "
            f"weights, which is 390. {instead} or a larger max_size."
        )
        with pytest.raises(ValueError, match=re.escape(rule)):
            model.fit(x, y, verbose=0)
    model, x, y = network(kopt.LevenbergMarquardt(), run_eagerly=True)
    model.compile(kopt.LevenbergMarquardt(), "cosine_similarity", run_eagerly=True)
    with pytest.raises(ValueError, match="has no residuals, for the elements of cosine_similarity may be negative"):
        model.fit(x, y, verbose=0)
    with pytest.raises(ValueError, match="scaling must be 'identity' with solver='cg'"):
        network(kopt.LevenbergMarquardt(solver="cg", scaling="marquardt"))[0].optimizer.build([keras.Variable([1.0])])
    with pytest.raises(ValueError, match=r"LevenbergMarquardt: learning_rate must be a number in \[0, 2\), got 2.0"):
        kopt.LevenbergMarquardt(2.0)


def test_each_hyperparameter_has_a_case():
    text = Path(__file__).read_text()
    for optimizer in (kopt.GaussNewton, kopt.LevenbergMarquardt):
        own = {p.name for p in inspect.signature(optimizer).parameters.values() if p.kind is not p.VAR_KEYWORD}
        assert all(f"{name}=" in text for name in own)


def test_gauss_newton_fits_more_weights_than_a_block_of_the_jacobian_in_a_model():
    keras.utils.set_random_seed(0)
    inputs = keras.Input((4,))
    model = kopt.Model(inputs, keras.layers.Dense(1)(keras.layers.Dense(8, "tanh")(inputs)))  # 49 weights
    rng = np.random.default_rng(0)
    x = rng.standard_normal((200, 4)).astype("float32")
    model.compile(kopt.GaussNewton(), "mse", jit_compile=False)
    losses = model.fit(x, np.tanh(x[:, :1] - x[:, 1:2]), epochs=6, verbose=0).history["loss"]
    assert losses[-1] < 0.2 * losses[0]
