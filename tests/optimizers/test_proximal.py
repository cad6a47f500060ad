"""Proximal steps: exact zeros, at the minima that scikit-learn and the conditions of optimality name."""

import keras
import numpy as np
import pytest
from sklearn.linear_model import Lasso as SklearnLasso

import kopt
from kopt.penalties import GroupLasso, Lasso, SparseGroupLasso, WeightDecay

RNG = np.random.default_rng(0)
X = RNG.standard_normal((50, 8))
TRUE = np.where(np.arange(8)[:, None] < 3, RNG.standard_normal((8, 3)), 0) * [1, 1, 0]
Y = X @ TRUE + 0.1 * RNG.standard_normal((50, 3))
RATE = 0.9 * len(X) / np.linalg.eigvalsh(X.T @ X)[-1]


def slope(w):
    """Of ½ ‖X w - y‖² / n."""
    return X.T @ (X @ w - Y) / len(X)


def solved(inner, penalty, steps=400):
    """Where steps on the loss of linear regression end."""
    kernel = keras.Variable(np.zeros((8, 3)), dtype="float64", name="kernel")
    optimizer = kopt.Proximal(inner, {"kernel": penalty})
    optimizer.build([kernel])
    if keras.backend.backend() != "tensorflow":
        for _ in range(steps):
            optimizer.apply([slope(kernel.numpy())], [kernel])
        return kernel.numpy()
    import tensorflow as tf

    x, y = tf.constant(X), tf.constant(Y)

    @tf.function
    def run():
        for _ in tf.range(steps):
            optimizer.apply([tf.transpose(x) @ (x @ kernel.value - y) / len(X)], [kernel])

    run()
    return kernel.numpy()


@pytest.mark.parametrize("momentum", [0.0, 0.5])
def test_the_lasso_is_scikit_learns(momentum):
    expected = SklearnLasso(alpha=0.1, fit_intercept=False, tol=1e-12, max_iter=10**5).fit(X, Y).coef_.T
    w = solved(kopt.SGD(RATE / 2, momentum=momentum), Lasso(0.1 / (1 - momentum)))  # u grows to g / (1 - momentum)
    np.testing.assert_allclose(w, expected, atol=1e-6)
    np.testing.assert_array_equal(w == 0, expected == 0)
    assert 0 < (w == 0).sum() < w.size


@pytest.mark.parametrize("l1_share", [0.0, 0.4])
@pytest.mark.parametrize("by", ["unit", "input"])
def test_group_lassos_satisfy_the_conditions_of_optimality(by, l1_share):
    """0 is in the subdifferential: -slope = strength · (α sign + (1 - α) √size w_g / ‖w_g‖) where w is not zero."""
    strength = 0.15
    w = solved(kopt.SGD(RATE), SparseGroupLasso(strength, l1_share, by) if l1_share else GroupLasso(strength, by))
    rows, pull = (w, -slope(w)) if by == "input" else (w.T, -slope(w).T)
    force = strength * (1 - l1_share) * np.sqrt(rows.shape[1])
    zero = 0
    for row, p in zip(rows, pull, strict=True):
        left = np.sign(p) * np.maximum(np.abs(p) - strength * l1_share, 0)
        if not row.any():
            zero += 1
            assert np.linalg.norm(left) <= force + 1e-8
            continue
        on = row != 0
        expected = strength * l1_share * np.sign(row) + force * row / np.linalg.norm(row)
        np.testing.assert_allclose(p[on], expected[on], atol=1e-6)
        assert (np.abs(p[~on]) <= strength * l1_share + 1e-8).all()
    assert 0 < zero < len(rows)


def test_a_step_is_the_inner_ones_and_then_the_map_with_its_learning_rate():
    """Schedules, the factors of groups, and the first pattern that matches."""
    w, g = RNG.standard_normal((3, 4, 2)), RNG.standard_normal((2, 3, 4, 2))
    names = "a", "b", "c"
    rates = keras.optimizers.schedules.PiecewiseConstantDecay([0], [0.5, 0.25])
    optimizer = kopt.Proximal(
        kopt.SGD(rates, weight_decay=0.1, groups={"b": {"learning_rate": 0.5}}),
        {"a|b": Lasso(0.6), "b": GroupLasso(9.0)},
    )
    variables = [keras.Variable(x, dtype="float32", name=name) for x, name in zip(w, names, strict=True)]
    for t in range(2):
        optimizer.apply([keras.ops.convert_to_tensor(x, "float32") for x in g[t]], variables)
        for i, (factor, strength) in enumerate([(1, 0.6), (0.5, 0.6), (1, 0)]):
            rate = (0.5, 0.25)[t] * factor
            x = w[i] - rate * (g[t, i] + 0.1 * w[i])
            w[i] = np.sign(x) * np.maximum(np.abs(x) - rate * strength, 0)
    for variable, expected in zip(variables, w, strict=True):
        np.testing.assert_allclose(variable.numpy(), expected, atol=1e-6)
    assert (variables[0].numpy() == 0).any()


INNER = {
    "AdamW": lambda: kopt.AdamW(0.02),
    "SAM": lambda: kopt.SAM(kopt.SGD(0.05)),
    "LAMB": lambda: kopt.LAMB(0.02),
    "Route": lambda: kopt.Route({"bias": kopt.SGD(0.02)}, kopt.Adam(0.02)),
    "Cautious": lambda: kopt.Cautious(kopt.Adam(0.02, use_ema=True, skip_nonfinite=True)),
}


@pytest.mark.parametrize("inner", INNER)
@pytest.mark.parametrize("jit_compile", [False, True])
def test_units_die_in_fit_around_any_optimizer(inner, jit_compile):
    if keras.backend.backend() != "tensorflow":
        pytest.skip("kopt.Model is TensorFlow's")
    keras.utils.set_random_seed(0)
    layers = keras.layers
    network = keras.Sequential([keras.Input((8,)), layers.Dense(16, "relu", name="hidden"), layers.Dense(1)])
    model = kopt.Model(network.inputs, network.outputs)
    penalties = {"hidden/kernel": GroupLasso(0.3, by="input")}
    model.compile(kopt.Proximal(INNER[inner](), penalties), "mse", jit_compile=jit_compile)
    x = X.astype("float32")
    model.fit(x, x[:, :2].sum(1), batch_size=25, epochs=30, verbose=0)
    if inner == "Cautious":
        return  # what is in the model now is the average
    kernel = model.get_layer("hidden").kernel.numpy()
    assert (kernel == 0).all(1).any()
    assert kernel.any()


def model_with(optimizer, **how):
    keras.utils.set_random_seed(0)
    layers = keras.layers
    model = keras.Sequential(
        [
            keras.Input((8,)),
            layers.Dense(4, kernel_regularizer=WeightDecay(0.5), name="own"),
            layers.Dense(4, kernel_regularizer=WeightDecay(0.0), name="none"),
            layers.Dense(1, name="rest"),
        ]
    )
    model.compile(optimizer, "mse", **{"jit_compile": False} | how)
    return model


@pytest.mark.parametrize(
    ("make", "factors"),
    [
        (lambda: kopt.SGD(0.1), (0.5, 0, 0)),
        (lambda: kopt.SGD(0.1, weight_decay=0.2), (0.5, 0, 0.2)),
        (lambda: kopt.SGD(0.1, weight_decay=0.2, no_decay="own"), (0, 0, 0.2)),
        (lambda: kopt.SGD(0.1, weight_decay=0.2, groups={"": {"weight_decay": 0.5}}), (0.25, 0, 0.1)),
        (lambda: kopt.Cautious(kopt.SGD(0.1, weight_decay=0.2)), (0.5, 0, 0.2)),
        (lambda: kopt.Route({"rest": kopt.SGD(0.1)}, kopt.SGD(0.1), weight_decay=0.2), (0.5, 0, 0.2)),
    ],
)
def test_a_layers_own_decay_stands_in_the_place_of_the_optimizers(make, factors):
    model = model_with(make())
    kernels = [layer.kernel for layer in model.layers]
    before = [kernel.numpy() for kernel in kernels]
    model.optimizer.apply([np.zeros(v.shape, "float32") for v in model.trainable_variables], model.trainable_variables)
    for kernel, w, factor in zip(kernels, before, factors, strict=True):
        np.testing.assert_allclose(kernel.numpy(), (1 - 0.1 * factor) * w, rtol=1e-6)


@pytest.mark.skipif(keras.backend.backend() != "tensorflow", reason="kopt.Model is TensorFlow's")
def test_a_layers_own_decay_is_no_part_of_the_residuals():
    layers, x = keras.layers, X.astype("float32")
    network = keras.Sequential([keras.Input((8,)), layers.Dense(1, kernel_regularizer=WeightDecay(0.5))])
    model = kopt.Model(network.inputs, network.outputs)
    model.compile(kopt.LevenbergMarquardt(), "mse")
    losses = model.fit(x, x[:, :1], batch_size=len(x), epochs=3, verbose=0).history["loss"]
    assert losses[-1] < losses[0]


def test_a_layers_own_decay_is_saved(tmp_path):
    x = X.astype("float32")
    model = model_with(kopt.AdamW(0.01))
    model.fit(x, x[:, 0], verbose=0)
    model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    decays = [t.factors.own_decay for t in loaded.optimizer.treatments(loaded.trainable_variables)]
    assert decays == [0.5, None, 0.0, None, None, None]
    for m in (model, loaded):
        m.fit(x, x[:, 0], verbose=0, shuffle=False)
    for a, b in zip(model.get_weights(), loaded.get_weights(), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-6)


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (
            lambda: kopt.Proximal("adam", {"": Lasso(1)}),
            TypeError,
            "Proximal: inner must be a kopt optimizer, got 'adam'",
        ),
        (lambda: kopt.Proximal(kopt.SGD(), Lasso(1)), TypeError, "Proximal: penalties must map patterns to penalties "),
        (
            lambda: kopt.Proximal(kopt.SGD(), {"": "l1"}),
            TypeError,
            "Proximal: penalties must map patterns to penalties ",
        ),
        (
            lambda: kopt.Proximal(kopt.SGD(), {"": WeightDecay(1)}),
            TypeError,
            "Proximal: penalties must map patterns to penalties with a proximal map",
        ),
        (lambda: kopt.Proximal(kopt.SGD(), {}), ValueError, "Proximal: penalties must name one or more, got {}"),
        (
            lambda: kopt.Proximal(kopt.SGD(), {"(": Lasso(1)}),
            ValueError,
            "Proximal: penalties must hold regular expressi",
        ),
        (
            lambda: kopt.Proximal(kopt.EMA(kopt.SGD()), {"": Lasso(1)}),
            ValueError,
            r"Proximal: inner must not average weights, got EMA.*\. Try use_ema=True in its place",
        ),
        (
            lambda: kopt.EMA(kopt.Proximal(kopt.SGD(), {"": Lasso(1)})),
            ValueError,
            r"EMA: inner must be an optimizer that others may be around, .*Try Proximal around the EMA\.",
        ),
        (
            lambda: kopt.Proximal(kopt.SGD(), {"no": Lasso(1)}).build(KERNEL),
            ValueError,
            "Proximal: penalties must match a weight's path, and 'no' matches none of kernel",
        ),
        (
            lambda: kopt.Proximal(kopt.SGD(), {"": GroupLasso(1, "input")}).build(KERNEL),
            ValueError,
            r"GroupLasso: a weight must have 2 axes or more with by='input', got the shape \(3,\)",
        ),
    ],
)
def test_wrong_arguments_are_refused(make, error, message):
    with pytest.raises(error, match=f"^{message}"):
        make()


KERNEL = [keras.Variable(np.ones(3, "float32"), name="kernel")]
