"""Newton's family: scipy's paths and iterations, hand-computed rules, and what holds of every member."""

import inspect
import json
from pathlib import Path

import keras
import numpy as np
import pytest
from keras import ops

import kopt

if keras.backend.backend() != "tensorflow":
    pytest.skip("kopt.Model and its oracle are TensorFlow's", allow_module_level=True)

import tensorflow as tf

from kopt.math.krylov import conjugate_gradients
from kopt.optimizers.hessian_free import Kept, backtracked, marks, truncated
from kopt.optimizers.minimizer import Point
from kopt.optimizers.newton import descend
from kopt.testing.functions import FUNCTIONS, Descent

FAMILY = {  # what changes the path on `bent`, one at a time, besides the learning rate
    kopt.NewtonCG: dict(forcing=0.01, max_products=1, decrease=0.499, max_evaluations=1),
    kopt.TrustRegion: dict(initial_radius=0.3, max_radius=0.7, acceptance=0.249, forcing=0.01, max_products=1),
    kopt.Newton: dict(decrease=0.499, max_evaluations=1),
    kopt.HessianFree: dict(
        initial_damping=10.0, tolerance=0.05, decay=0.3, max_products=2, decrease=0.499, max_evaluations=1
    ),
    kopt.NysNewtonCG: dict(
        rank=1, every=2, damping=1.0, tolerance=0.5, max_products=1, decrease=0.499, max_evaluations=1, seed=3
    ),
}
BASES = {kopt.NysNewtonCG: dict(rank=2, every=3, tolerance=0.1), kopt.HessianFree: dict(tolerance=5e-3)}
SCIPY = json.loads((Path(__file__).parents[1] / "references" / "newton" / "scipy.json").read_text())["runs"]
LONG = np.tile([-1.2, 1.0, 1.5, -0.7, 0.3], 5)
each = pytest.mark.parametrize("kind", FAMILY, ids=lambda cls: cls.__name__)


def made(kind, **changes):
    return kind(**BASES.get(kind, {}) | changes)


def run(optimizer, name, steps, **how):
    """A descent on a test function."""
    descent = Descent(optimizer, *FUNCTIONS[name], **how)
    descent(steps)
    return descent


# ---- scipy's ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["rosenbrock2", "rosenbrock10", "beale", "wood", "helical_valley", "powell_singular"])
@pytest.mark.parametrize(
    ("case", "arguments"),
    [("trust-ncg", {}), ("trust-ncg changed", dict(initial_radius=0.3, max_radius=0.5, acceptance=0.05))],
    ids=["default", "changed"],
)
def test_the_path_in_trust_regions_is_scipys(name, case, arguments):
    descent = Descent(kopt.TrustRegion(**arguments), *FUNCTIONS[name])
    before = 0
    for steps, expected in SCIPY[case][name]["path"].items():
        x = descent(int(steps) - before)
        np.testing.assert_allclose(x, expected, rtol=0, atol=1e-6 * max(1, np.abs(expected).max()), err_msg=steps)
        before = int(steps)
    assert descent.traces == 1


@pytest.mark.parametrize("name", SCIPY["newton-cg"])
def test_newton_cg_takes_no_more_iterations_than_scipys(name):
    scipys = SCIPY["newton-cg"][name]
    descent = Descent(kopt.NewtonCG(), *FUNCTIONS[name])
    if scipys["iterations"] is None:  # it stops at another point
        descent(800)
        assert descent.values[-1] < scipys["value"]
    else:
        descent(int(1.5 * scipys["iterations"]) + 1, target=1e-8)
        assert descent.values[-1] <= 1e-8


@pytest.mark.parametrize("kind", [kopt.Newton, kopt.NysNewtonCG], ids=lambda cls: cls.__name__)
@pytest.mark.parametrize("name", ["rosenbrock2", "beale", "wood", "helical_valley", "powell_singular"])
def test_second_order_steps_take_no_more_iterations_than_scipys_trust_region(kind, name):
    descent = Descent(kind(), *FUNCTIONS[name])
    descent(int(1.5 * SCIPY["trust-ncg"][name]["iterations"]) + 1, target=1e-8)
    assert descent.values[-1] <= 1e-8


def test_a_quadratic_takes_newton_one_step_and_a_sketch_of_half_its_space_few_products():
    quadratic = run(kopt.Newton(), "quadratic100", 1)
    np.testing.assert_allclose(quadratic.x, 0, atol=1e-12)
    assert (quadratic.optimizer.evaluations, quadratic.optimizer.products) == (2, 100)
    nystrom = run(kopt.NysNewtonCG(rank=50, damping=1.0), "quadratic100", 1)
    plain = run(kopt.NysNewtonCG(rank=1, damping=1.0), "quadratic100", 1)
    assert nystrom.optimizer.products - 50 < 0.4 * (plain.optimizer.products - 1)
    np.testing.assert_allclose(nystrom.x, plain.x, atol=2e-3)


# ---- each rule by hand -----------------------------------------------------------------------------------------------


def test_newton_cg_forces_the_residual():
    """The first step of NewtonCG is that of conjugate gradients with the residual min(η, √‖g‖)."""
    a, w = np.diag([1.0, 10.0, 100.0, 1000.0]), np.array([1.0, 1.0, 1.0, 1e-3])

    def function(x):
        return 0.5 * tf.reduce_sum(tf.constant(np.diag(a)) * x**2)

    for scale in (1.0, 1e-5):
        g = a @ w * scale
        eta = min(0.3, np.sqrt(np.linalg.norm(g)))
        p = conjugate_gradients(lambda v: tf.linalg.matvec(a, v), tf.constant(-g), tolerance=eta, limit=50)
        optimizer = kopt.NewtonCG(forcing=0.3)
        x = Descent(optimizer, function, w * scale)(1)
        np.testing.assert_allclose(x, w * scale + p.x.numpy(), rtol=1e-12)
        assert optimizer.products == int(p.products)


RATES = {  # f(x), start, and λ, in one dimension: what one step changes λ by
    "well": (lambda x: x**4, 1.0, 1.0, 2 / 3),
    "exact": (lambda x: 3 * x**2, 2.0, 1.0, 2 / 3),
    "fair": (lambda x: tf.math.log(tf.cosh(x)), 0.96, 1e-3, 1.0),
    "poor": (lambda x: tf.math.log(tf.cosh(x)), 1.05, 1e-3, 3 / 2),
    "up": (lambda x: tf.sqrt(1 + x**2), 3.0, 1e-3, 3 / 2),
}


@pytest.mark.parametrize(("function", "start", "damping", "factor"), RATES.values(), ids=RATES)
def test_damping_follows_the_ratio(function, start, damping, factor):
    x = tf.Variable(start, dtype="float64")
    with tf.GradientTape() as outer:
        with tf.GradientTape() as inner:
            value = function(x)
        g = inner.gradient(value, x)
    g, h, value = float(g), float(outer.gradient(g, x)), float(value)
    p = -g / (h + damping)
    rho = (float(function(x + p)) - value) / (g * p + h * p**2 / 2)
    assert factor == (2 / 3 if rho > 0.75 else 3 / 2 if rho < 0.25 else 1), rho  # the case is what it says
    optimizer = kopt.HessianFree(initial_damping=damping)
    end = Descent(optimizer, lambda x: function(x[0]), [start])(1)
    assert float(optimizer._memory["damping"].numpy()) == pytest.approx(factor * damping)
    if factor < 1:
        np.testing.assert_allclose(end, start + p)


def ill_conditioned():
    rng = np.random.default_rng(0)
    q = np.linalg.qr(rng.normal(size=(60, 60)))[0]
    return q @ np.diag(np.logspace(-0.7, 1, 60)) @ q.T, rng.normal(size=60), 0.1 * rng.normal(size=60)


@pytest.mark.parametrize("tolerance", [5e-4, 5e-3])
def test_conjugate_gradients_end_where_the_model_makes_no_progress(tolerance):
    a, b, x = ill_conditioned()
    kept = truncated(lambda v: tf.linalg.matvec(a, v), tf.constant(b), tf.constant(x), tolerance=tolerance, limit=200)
    r = p = b - a @ x
    xs, models = [x], [x @ a @ x / 2 - b @ x]
    for i in range(1, 201):
        alpha = r @ r / (p @ a @ p)
        xs.append(xs[-1] + alpha * p)
        models.append(xs[-1] @ a @ xs[-1] / 2 - b @ xs[-1])
        new = r - alpha * a @ p
        r, p = new, new + new @ new / (r @ r) * p
        k = max(10, int(np.ceil(0.1 * i)))
        if i > k and models[i] < 0 and (models[i] - models[i - k]) / models[i] < k * tolerance:
            break
    numbers = [m for m in marks(200) if m < i] + [i]
    assert 12 < i < 60
    assert int(kept.products) == i + 1
    assert int(kept.last) == len(numbers) - 1
    for row, number in enumerate(numbers):
        np.testing.assert_allclose(kept.x[row], xs[number], rtol=1e-4, atol=1e-3, err_msg=number)
        np.testing.assert_allclose(kept.model[row], models[number], rtol=1e-6)


def test_iterates_are_kept_at_powers():
    assert marks(250)[:9] == [1, 2, 3, 4, 5, 7, 9, 11, 14]
    assert marks(250)[-1] == 250
    assert marks(1) == [1]
    assert len(marks(250)) < 22


@pytest.mark.parametrize(
    ("values", "row", "looks"),
    [
        ([5, 3, 4, 6], 1, 4),  # back to 3, and a look at 5
        ([1, 9, 3, 4], 2, 3),  # not over the hill
        ([4, 3, 2, 1], 3, 2),
        ([1, 2, 3, np.nan], 0, 4),
        ([1, 2, np.inf, np.inf], 0, 4),
        ([np.nan, 2, 3, 4], 1, 4),
        ([7], 0, 1),
    ],
)
def test_the_best_iterate_on_the_way_back_is_taken(values, row, looks):
    last = len(values) - 1
    x = np.array([[value] for value in [*values, 0.0, 0.0]])  # two rows were never filled
    kept = Kept(tf.constant(x), tf.constant(x[:, 0]), tf.constant(last), tf.constant(last))
    found = backtracked(lambda p: p[0], kept)
    assert (int(found[0]), int(found[2])) == (row, looks)
    assert float(found[1]) == values[row]


def test_the_last_step_is_where_the_next_begins():
    """With the limit of a product, the second step stays on the line of the first unless it begins from its decay."""
    optimizer = kopt.HessianFree(max_products=1, decay=0.5)
    descent = Descent(optimizer, *FUNCTIONS["beale"])
    first = descent(1) - np.array(FUNCTIONS["beale"][1])
    np.testing.assert_allclose(optimizer._memory["p"].numpy(), first, atol=1e-12)
    x, damping = tf.constant(descent.x), float(optimizer._memory["damping"].numpy())
    with tf.GradientTape() as outer:
        outer.watch(x)
        with tf.GradientTape() as inner:
            inner.watch(x)
            value = FUNCTIONS["beale"][0](x)
        gradient = inner.gradient(value, x)
    g, a = gradient.numpy(), outer.jacobian(gradient, x).numpy() + damping * np.eye(2)
    r = -g - a @ (0.5 * first)
    descent(1)
    np.testing.assert_allclose(optimizer._memory["p"].numpy(), 0.5 * first + r @ r / (r @ a @ r) * r, atol=1e-12)
    assert optimizer.products == 4


def test_the_sketch_is_renewed_when_it_is_due():
    optimizer = kopt.NysNewtonCG(rank=2, every=3)
    descent, seen = Descent(optimizer, *FUNCTIONS["rosenbrock10"]), []
    for _ in range(7):
        descent(1)
        seen.append(optimizer._memory["values"].numpy().tolist())
    assert seen[0] == seen[1] == seen[2] != seen[3] == seen[4] == seen[5] != seen[6]


def test_a_step_that_does_not_descend_is_the_gradients():
    at = Point(tf.constant([1.0, 2.0]), tf.constant(2.5), tf.constant([1.0, 2.0]))
    for p in ([1.0, 1.0], [np.nan, 1.0], [0.0, 0.0]):
        to, count = descend(lambda x: (ops.sum(x * x) / 2, x), at, tf.constant(p), 1.0, 1e-4, 9)
        assert (np.allclose(to.x, 0), int(count)) == (True, 1)


# ---- of every member -------------------------------------------------------------------------------------------------


@pytest.mark.slow
@each
def test_each_hyperparameter_changes_the_path(kind):
    names = {p.name for p in inspect.signature(kind).parameters.values() if p.kind is not p.VAR_KEYWORD}
    assert names - {"max_size"} == {"learning_rate", *FAMILY[kind]}
    usual = Descent(made(kind), FUNCTIONS["rosenbrock2"][0], LONG)
    optimizer, begin = usual.optimizer, [v.numpy() for v in usual.optimizer.variables]
    path = usual(6)
    for name, value in (FAMILY[kind] | {"learning_rate": 0.6}).items():
        before = optimizer.get_params()[name]
        if name in optimizer.input_names() | {"learning_rate"}:  # which act at once, without another trace
            for variable, held in zip((*optimizer.variables, usual.variable), (*begin, LONG), strict=True):
                variable.assign(held)
            optimizer.set_params(**{name: value})
            changed = usual(6)
            optimizer.set_params(**{name: before})
        else:
            changed = Descent(made(kind, **{name: value}), FUNCTIONS["rosenbrock2"][0], LONG)(6)
        assert np.abs(path - changed).max() > 1e-7, f"{name}={value} does nothing"
    assert usual.traces == 1


@each
def test_a_learning_rate_of_zero_moves_nothing_and_nan_is_no_step(kind):
    start = np.array(FUNCTIONS["beale"][1])
    assert np.array_equal(run(made(kind, learning_rate=0.0), "beale", 3).x, start)
    lost = Descent(made(kind), lambda x: tf.reduce_sum(tf.sqrt(x)), [-1.0, 2.0])
    assert np.array_equal(lost(2), [-1, 2])
    assert lost.optimizer.evaluations >= 1


@each
def test_there_is_no_nan_at_the_minimum(kind):
    for name, minimum in (("quadratic100", 0), ("beale", [3, 0.5])):
        descent = run(made(kind), name, 60)
        assert np.all(np.isfinite(descent.x))
        assert all(np.all(np.isfinite(v.numpy())) for v in descent.optimizer.variables)
        np.testing.assert_allclose(descent.x, minimum, atol=2e-3 if kind is kopt.HessianFree else 1e-5)


@each
def test_a_start_at_a_flat_point_stays_there(kind):
    """Where the gradient is zero: nothing moves, and nothing becomes NaN."""
    descent = Descent(made(kind), lambda x: tf.reduce_sum(x**2) - x[0] ** 2 * 3, [0.0, 0.0])
    assert np.array_equal(descent(3), [0, 0])
    assert all(np.all(np.isfinite(v.numpy())) for v in descent.optimizer.variables)


def network(optimizer, **how):
    """A small network to fit, in which a product is not the Hessian's everywhere."""
    keras.utils.set_random_seed(1)
    inputs = keras.Input((3,))
    model = kopt.Model(inputs, keras.layers.Dense(1)(keras.layers.Dense(4, "tanh")(inputs)))
    model.compile(optimizer, "mse", **how)
    return model


rng = np.random.default_rng(0)
ROWS = rng.normal(size=(24, 3)).astype("float32")
TARGETS = np.sin(2 * ROWS.sum(axis=1, keepdims=True)).astype("float32")


def fitted(model, epochs=3, **how):
    return model.fit(ROWS, TARGETS, epochs=epochs, verbose=0, **how).history["loss"]


@pytest.mark.slow
@each
def test_fit_is_the_same_eager_and_in_a_graph_and_goes_on_after_saving(kind, tmp_path):
    graph, eager = network(made(kind), jit_compile=False), network(made(kind), run_eagerly=True)
    losses = fitted(graph)
    assert losses[2] < 0.8 * losses[0]
    agree(eager, graph, losses)
    assert eager.optimizer.evaluations == graph.optimizer.evaluations > 3
    eager.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    assert repr(loaded.optimizer) == repr(eager.optimizer)
    loaded.run_eagerly = True
    np.testing.assert_allclose(fitted(loaded), fitted(eager), rtol=1e-4)
    assert loaded.optimizer.products == eager.optimizer.products


@pytest.mark.slow
@pytest.mark.parametrize("kind", [kopt.TrustRegion, kopt.HessianFree], ids=lambda cls: cls.__name__)
def test_fit_under_xla_is_the_graphs(kind):
    graph, xla = (network(made(kind), jit_compile=xla) for xla in (False, True))
    agree(xla, graph, fitted(graph))


def agree(one, other, losses):
    """The first model, fitted too, has the losses and the weights of the other."""
    np.testing.assert_allclose(fitted(one), losses, rtol=1e-3)
    for a, b in zip(one.get_weights(), other.get_weights(), strict=True):
        np.testing.assert_allclose(a, b, atol=2e-2)


@pytest.mark.slow
@pytest.mark.parametrize("kind", [kopt.NewtonCG, kopt.Newton, kopt.NysNewtonCG], ids=lambda cls: cls.__name__)
def test_xla_takes_the_graphs_path(kind):
    paths = [run(made(kind), "beale", 4, how=how).x for how in ("graph", "xla")]
    np.testing.assert_allclose(*paths, rtol=1e-9)


def test_batches_need_stochastic():
    for kind in (kopt.NewtonCG, kopt.TrustRegion):
        with pytest.raises(ValueError, match=rf"^{kind.__name__}: batch_size must be None or cover all 24 rows, got 8"):
            fitted(network(kind()), batch_size=8)
    model = network(kopt.HessianFree(stochastic=True), run_eagerly=True)
    losses = fitted(model, epochs=2, batch_size=12)
    assert losses[1] < losses[0]
    assert model.optimizer.iterations.numpy() == 4


def test_a_model_too_large_for_its_hessian_is_refused():
    with pytest.raises(
        ValueError,
        match=r"^Newton: the model must have at most max_size=20 weights, got 21, for a step forms the 21 x 21 "
        r"Hessian\. Try NewtonCG, which needs products with it alone, or raise max_size\.$",
    ):
        fitted(network(kopt.Newton(max_size=20)))
    assert fitted(network(kopt.Newton(max_size=21)), epochs=1)


def test_arguments_out_of_range_are_refused():
    with pytest.raises(ValueError, match=r"^TrustRegion: acceptance must be a number in \[0, 0\.25\), got 0\.3\.$"):
        kopt.TrustRegion(acceptance=0.3)
    with pytest.raises(ValueError, match=r"^NysNewtonCG: rank must be an integer in \[1, inf\), got 0\.$"):
        kopt.NysNewtonCG(rank=0)
    with pytest.raises(TypeError, match="weight_decay"):
        kopt.NewtonCG(weight_decay=0.1)
