"""Quasi-Newton methods and conjugate gradients: others' paths, scipy's evaluations, and what must never happen."""

import json
from pathlib import Path

import keras
import numpy as np
import pytest
import scipy.optimize
from keras import ops

import kopt

if keras.backend.backend() != "tensorflow":
    pytest.skip("kopt.Model and its oracle are TensorFlow's", allow_module_level=True)

import tensorflow as tf

from kopt.optimizers.broyden import broyden
from kopt.optimizers.quasi_newton import two_loops
from kopt.testing.functions import FUNCTIONS, Descent, Plain
from kopt.testing.optimizers import check_config, check_parameters

FOLDER = Path(__file__).parents[1] / "references" / "minimizers"
CASES = {path.stem: json.loads(path.read_text()) for path in sorted(FOLDER.glob("*.json"))}
PROBLEM = CASES.pop("problem")
METHODS = (kopt.LBFGS, kopt.BFGS, kopt.SSBroyden, kopt.NonlinearCG)  # of SSBFGS only a formula is its own
each_method = pytest.mark.parametrize("method", METHODS, ids=lambda cls: cls.__name__)

SCIPYS = {  # evaluations of scipy 1.17's L-BFGS-B and BFGS to 1e-8, as benchmarks/functions.py counts; None: never
    "rosenbrock2": (43, 38),
    "rosenbrock10": (86, None),
    "rosenbrock100": (602, 641),
    "beale": (15, 15),
    "powell_singular": (39, 40),
    "wood": (114, 104),
    "helical_valley": (31, 34),
    "brown_badly_scaled": (24, 25),
    "dixon_price10": (22, 25),
    "variably_dimensioned10": (19, 19),
    "quadratic100": (627, 105),
    "trigonometric10": (None, None),
}


def log_cosh(w):
    """Σ log cosh(A w - b) + ¼ ‖w‖²"""
    z = tf.linalg.matvec(tf.constant(PROBLEM["A"], w.dtype), w) - tf.constant(PROBLEM["b"], w.dtype)
    return tf.reduce_sum(tf.math.softplus(2 * z) - z - np.log(2)) + 0.25 * tf.reduce_sum(w * w)


def went(optimizer, steps, function=log_cosh, start=PROBLEM["start"], **how):
    """The point after so many steps."""
    return Descent(optimizer, function, start, **how)(steps)


# ---- the rules -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", CASES)
def test_the_path_is_the_references(name):
    case = CASES[name]
    descent = Descent(getattr(kopt, case["optimizer"])(**case["arguments"]), log_cosh, PROBLEM["start"])
    for number, expected in enumerate(case["path"], start=1):
        np.testing.assert_allclose(descent(1), expected, rtol=0, atol=1e-10, err_msg=f"step {number}")
    assert descent.traces == 1


@pytest.mark.parametrize("number", [0, 1, 3, 5])
def test_two_loops_are_the_dense_recursion(number):
    rng = np.random.default_rng(0)
    S, g = rng.normal(size=(5, 8)), rng.normal(size=8)
    root = rng.normal(size=(8, 8))
    Y = S @ (root @ root.T + np.eye(8))
    H = np.eye(8) * (S[-1] @ Y[-1] / (Y[-1] @ Y[-1]) if number else 1)
    for s, y in list(zip(S, Y, strict=True))[5 - number :]:
        V = np.eye(8) - np.outer(y, s) / (s @ y)
        H = V.T @ H @ V + np.outer(s, s) / (s @ y)
    found = two_loops(*map(ops.convert_to_tensor, (g, S, Y)), number)
    np.testing.assert_allclose(found, -H @ g, rtol=1e-10)


def test_directions_are_those_of_the_dense_matrix():
    """Of all pairs so far, by the formula of BFGS from γ I."""
    descent = Descent(kopt.LBFGS(pairs=8), log_cosh, PROBLEM["start"])
    for number in range(1, 6):
        x, S, Y, g = descent(1), descent.memory("S"), descent.memory("Y"), descent.memory("gradient")
        H = np.eye(6) * (S[-1] @ Y[-1]) / (Y[-1] @ Y[-1])
        for s, y in zip(S[-number:], Y[-number:], strict=True):
            H = broyden(*map(ops.convert_to_tensor, (H, s, y, H @ y)), 1.0, 1.0).numpy()
        d = -H @ g
        kept = [v.numpy().copy() for v in (descent.variable, *descent.optimizer.variables)]
        s = descent(1) - x
        for variable, value in zip((descent.variable, *descent.optimizer.variables), kept, strict=True):
            variable.assign(value)
        np.testing.assert_allclose(s / np.linalg.norm(s), d / np.linalg.norm(d), rtol=0, atol=1e-10)


@pytest.mark.parametrize(("phi", "tau"), [(1.0, 1.0), (0.0, 1.0), (0.3, 0.7)])
def test_broydens_family(phi, tau):
    rng = np.random.default_rng(0)
    s, y, root = rng.normal(size=4), rng.normal(size=4), rng.normal(size=(4, 4))
    y = y if s @ y > 0 else -y
    H = root @ root.T + np.eye(4)
    v = s / (s @ y) - H @ y / (y @ H @ y)
    plain = H - np.outer(H @ y, H @ y) / (y @ H @ y) + phi * (y @ H @ y) * np.outer(v, v)
    found = broyden(*map(ops.convert_to_tensor, (H, s, y, H @ y)), tau, phi)
    np.testing.assert_allclose(found, plain / tau + np.outer(s, s) / (s @ y), rtol=1e-9)
    np.testing.assert_allclose(found @ y[:, None], s[:, None], rtol=1e-9)  # the secant equation


@pytest.mark.parametrize("beta", kopt.NonlinearCG.choices["beta"])
def test_conjugate_gradients_end_on_a_quadratic(beta):
    """With exact searches each β is that of the linear method: six weights take six steps."""

    def bowl(x):
        return 0.5 * tf.reduce_sum(tf.constant(np.logspace(0, 2, 6), x.dtype) * (x - 1) ** 2)

    optimizer = kopt.NonlinearCG(beta=beta, line_search="zoom", curvature=1e-7, decrease=1e-9)
    values = Descent(optimizer, bowl, np.arange(6.0))
    values(7)
    assert values.values[0] > 1
    assert values.values[-1] < 1e-12


# ---- evaluations -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name",
    [n if n in ("rosenbrock2", "helical_valley") else pytest.param(n, marks=pytest.mark.slow) for n in FUNCTIONS],
)
def test_evaluations_are_scipys(name):
    for method, theirs in zip((kopt.LBFGS, kopt.BFGS), SCIPYS[name], strict=True):
        descent = Descent(method(), *FUNCTIONS[name])
        descent(700 if theirs else 200, 1e-8)
        if theirs:
            assert descent.values[-1] <= 1e-8
            assert descent.optimizer.evaluations <= 1.2 * theirs
        else:  # ends in the local minimum in which scipy's ends
            assert descent.values[-1] <= (4.0 if name == "rosenbrock10" else 2.9e-5)
    if name not in ("brown_badly_scaled", "trigonometric10"):
        descent = Descent(kopt.LBFGS(), *FUNCTIONS[name], "float32")
        descent(700, 1e-8)
        assert descent.values[-1] <= 1e-8


@each_method
def test_evaluations_are_counted_and_none_is_lost(method):
    """The oracle's own count; a step begins with the value and the gradient that the last one ended with."""
    looks = []

    def counted(x):
        looks.append(x)
        return log_cosh(x)

    descent = Descent(method(), counted, PROBLEM["start"], how="eager")
    descent(5)
    assert descent.optimizer.evaluations == len(looks) - 5  # and one of each step is left out of programs
    assert descent.values == sorted(descent.values, reverse=True)


# ---- what must never happen ------------------------------------------------------------------------------------------


@each_method
def test_a_zero_learning_rate_moves_nothing(method):
    optimizer = method(0.0)
    np.testing.assert_array_equal(went(optimizer, 3), PROBLEM["start"])
    assert optimizer.evaluations == 1
    optimizer.learning_rate = 1.0
    assert optimizer.learning_rate == 1.0


@each_method
def test_at_a_minimum_nothing_moves_and_nothing_is_nan(method):
    descent = Descent(method(), lambda x: tf.reduce_sum(x**2), np.zeros(3))
    np.testing.assert_array_equal(descent(3), np.zeros(3))
    descent = Descent(method(), log_cosh, PROBLEM["start"])
    descent(60)
    assert all(np.all(np.isfinite(v.numpy())) for v in descent.optimizer._memory.values())
    assert np.abs(descent.memory("gradient")).max() < 1e-7


@each_method
def test_a_start_that_is_not_finite_stays(method):
    descent = Descent(method(), lambda x: tf.reduce_sum(tf.math.log(x)), [-1.0, 1.0])
    np.testing.assert_array_equal(descent(3), [-1, 1])
    assert np.isnan(descent.values).all()


@each_method
def test_a_wall_is_not_crossed(method):
    """log x is not defined beyond 0, where the first steps lead."""
    descent = Descent(method(), lambda x: tf.reduce_sum(0.1 * x - tf.math.log(x) / 100), [3.0, 1.0])
    np.testing.assert_allclose(descent(60), [0.1, 0.1], rtol=1e-4)


@each_method
def test_after_a_failure_it_starts_anew_down_the_gradient(method):
    """Gradients that lie: no length is accepted."""

    class Liar(Plain):
        def at(self, weights):
            return Liar(self.function, weights)

        def __call__(self):
            loss, (gradient,) = super().__call__()
            return loss, [-gradient]

    optimizer, x = method(max_evaluations=5), keras.Variable(np.array([1.0, 2.0]), dtype="float64")
    plain = Plain(lambda x: tf.reduce_sum(x**2), None)
    for oracle in (plain, plain, Liar(plain.function, None), plain):
        before = x.numpy()
        optimizer.step(type(oracle)(plain.function, [x.value]), [x])
        learned = float(optimizer._memory["learned"].numpy())
    assert learned <= 2
    assert plain.function(x.numpy()) <= plain.function(before)


def test_too_many_weights_for_a_matrix():
    rule = r"^BFGS: max_size is 5 weights, got 6, whose inverse Hessian has 36 entries\. Use LBFGS\.$"
    with pytest.raises(ValueError, match=rule):
        went(kopt.BFGS(max_size=5), 1)
    went(kopt.BFGS(max_size=6), 1)


@pytest.mark.parametrize("bounds", [3, (1,), (0, 1, 2), (1, 0)])
def test_bounds_are_a_pair(bounds):
    with pytest.raises(ValueError, match="LBFGS: bounds"):
        kopt.LBFGS(bounds=bounds)


@each_method
def test_a_plain_model_is_refused(method):
    model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])
    model.compile(method(), "mse")
    with pytest.raises(ValueError, match=rf"^{method.__name__} .* Try kopt\.Model\(model\.inputs, model\.outputs\)\.$"):
        model.fit(np.ones((4, 2)), np.ones((4, 1)), verbose=0)


# ---- options ---------------------------------------------------------------------------------------------------------

CHANGES = {
    "LBFGS": dict(learning_rate=0.3, pairs=1, damping=0.9, bounds=(-0.3, 0.4), decrease=0.45, curvature=0.01),
    "BFGS": dict(learning_rate=0.3, initial_scaling=True, decrease=0.45, curvature=0.01),
    "NonlinearCG": dict(learning_rate=0.3, restart=1e-3, decrease=0.45, curvature=1e-3),
}
CHANGES["NonlinearCG"] |= dict(beta="fletcher_reeves")
EACH = [(method, name) for method, changes in CHANGES.items() for name in changes]


@pytest.mark.parametrize(
    "optimizer",
    [kopt.LBFGS(pairs=3, bounds=(0, None), line_search="zoom"), kopt.BFGS(0.5), kopt.SSBFGS(), kopt.NonlinearCG()],
    ids=repr,
)
def test_configurations_come_back(optimizer):
    check_config(optimizer)
    check_parameters(optimizer)


@pytest.fixture(scope="module")
def usual():
    """The paths of methods as they are, by name."""
    return {method: went(getattr(kopt, method)(), 6, *FUNCTIONS["dixon_price10"]) for method in CHANGES}


@pytest.mark.slow
@pytest.mark.parametrize(("method", "name"), EACH)
def test_each_hyperparameter_changes_the_path(method, name, usual):
    changed = went(getattr(kopt, method)(**{name: CHANGES[method][name]}), 6, *FUNCTIONS["dixon_price10"])
    assert np.abs(changed - usual[method]).max() > 1e-6


def test_no_more_evaluations_than_allowed():
    """The first length is a thousand times too long."""
    for most in (2, 30):
        optimizer = kopt.LBFGS(1e3, max_evaluations=most)
        went(optimizer, 1)
        assert (optimizer.evaluations == 1 + most) == (most == 2)


def test_the_search_depends_on_the_type():
    function, start = FUNCTIONS["rosenbrock2"]
    for dtype, search in (("float64", "zoom"), ("float32", "hager_zhang")):
        usual = went(kopt.LBFGS(), 8, function, start, dtype=dtype)
        np.testing.assert_array_equal(usual, went(kopt.LBFGS(line_search=search), 8, function, start, dtype=dtype))


def test_damping_keeps_the_curvature_positive():
    """Armijo's condition alone lets the slope fall along a step; the damped pair still has its share of curvature."""
    for damping, pairs in ((0.0, 0), (0.2, 1)):
        optimizer = kopt.LBFGS(damping=damping, line_search="backtracking")
        went(optimizer, 1, lambda x: -tf.reduce_sum(x**2), [1.0, 2.0])
        S, Y, learned = (optimizer._memory[name].numpy() for name in ("S", "Y", "learned"))
        assert learned == pairs
        if pairs:  # B is I at first, so that sᵀBs = -α sᵀg, with g = -2 x
            expected = S[-1] @ S[-1]
            assert S[-1] @ Y[-1] == pytest.approx(0.2 * expected, rel=1e-9)


BOXES = {
    "rosenbrock": (*FUNCTIONS["rosenbrock10"], (-0.5, 0.6)),
    "log cosh": (log_cosh, PROBLEM["start"], (-0.3, 0.2)),
    "least squares, not negative": (
        lambda x: (
            tf.reduce_sum((tf.linalg.matvec(tf.constant(PROBLEM["A"], x.dtype), x) - PROBLEM["b"]) ** 2)
            + tf.reduce_sum(x**2)
        ),
        [-1.0, 0.5, 2.0, 0.0, 1.0, -3.0],
        (0.0, None),
    ),
}


@pytest.mark.parametrize("name", BOXES)
def test_bounds_have_the_minimum_of_l_bfgs_b(name):
    function, start, bounds = BOXES[name]

    def evaluate(x):
        value, (gradient,) = Plain(function, [tf.constant(x)])()
        return value.numpy(), gradient.numpy()

    exact = dict(ftol=1e-15, gtol=1e-10)
    theirs = scipy.optimize.minimize(evaluate, start, jac=True, bounds=[bounds] * len(start), options=exact)
    descent = Descent(kopt.LBFGS(bounds=bounds), function, start)
    x = descent(60)
    assert descent.values[-1] == pytest.approx(theirs.fun, rel=1e-6)
    np.testing.assert_allclose(x, theirs.x, atol=1e-5)
    low, high = descent.optimizer.bounds
    assert low <= x.min()
    assert x.max() <= high
    assert np.sum((x == low) | (x == high)) >= 1


# ---- in a model ------------------------------------------------------------------------------------------------------

RNG = np.random.default_rng(0)
X = RNG.normal(size=(60, 2))
Y = np.sin(X.sum(1, keepdims=True)) + 0.1 * RNG.normal(size=(60, 1))


@pytest.fixture
def float64():
    """Keras computes in float64."""
    before = keras.config.floatx()
    keras.config.set_floatx("float64")
    yield
    keras.config.set_floatx(before)


def network(optimizer, **how):
    keras.utils.set_random_seed(0)
    inputs = keras.Input((2,))
    hidden = keras.layers.Dense(3, "tanh")(inputs)
    model = kopt.Model(inputs, keras.layers.Dense(1)(hidden))
    model.compile(optimizer, "mse", metrics=["mae"], **{"jit_compile": False} | how)
    return model


def losses(model, epochs):
    return model.fit(X, Y, epochs=epochs, verbose=0).history["loss"]


@pytest.mark.slow
@each_method
def test_eager_graph_and_xla_agree(method):
    eager = Descent(method(), log_cosh, PROBLEM["start"], how="eager")(6)
    for how in ("graph", "xla"):
        np.testing.assert_allclose(Descent(method(), log_cosh, PROBLEM["start"], how=how)(6), eager, rtol=1e-9)


@pytest.mark.slow
def test_eager_graph_and_xla_agree_in_a_model(float64):
    found = [losses(network(kopt.LBFGS(), **how), 5) for how in (dict(run_eagerly=True), {}, dict(jit_compile=True))]
    np.testing.assert_allclose(found[1], found[0], rtol=1e-6)
    np.testing.assert_allclose(found[2], found[0], rtol=1e-6)


def test_a_saved_model_goes_on_as_if_it_had_not_been_interrupted(tmp_path, float64):
    whole = losses(network(kopt.LBFGS(pairs=3)), 9)
    model = network(kopt.LBFGS(pairs=3))
    first = losses(model, 4)
    model.save(tmp_path / "model.keras")
    again = keras.saving.load_model(tmp_path / "model.keras")
    assert repr(again.optimizer) == "LBFGS(pairs=3)"
    np.testing.assert_allclose(first + losses(again, 5), whole, rtol=1e-12)


def test_a_fit_reaches_scipys_minimum(float64):
    model = kopt.Model(inputs := keras.Input((2,)), keras.layers.Dense(1)(inputs))
    model.compile(kopt.LBFGS(), "log_cosh", jit_compile=False)

    def evaluate(w):
        residual = X @ w[:2] + w[2] - Y[:, 0]
        return np.mean(np.log(np.cosh(residual))), np.tanh(residual) @ np.column_stack([X, np.ones(len(X))]) / len(X)

    theirs = scipy.optimize.minimize(evaluate, np.zeros(3), jac=True, options=dict(gtol=1e-9))
    assert losses(model, 20)[-1] == pytest.approx(theirs.fun, rel=1e-6)  # the metric is in float32
    np.testing.assert_allclose(np.concatenate([w.numpy().ravel() for w in model.weights]), theirs.x, atol=1e-6)
