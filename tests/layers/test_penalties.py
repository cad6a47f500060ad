"""Penalties: their values by NumPy, their slopes by finite differences, their proximal maps by what defines them."""

import json
import re

import keras
import numpy as np
import pytest
from keras import ops

import kopt
from kopt.penalties import GroupLasso, Lasso, Orthogonal, SparseGroupLasso, SpectralNorm, WeightDecay
from kopt.testing.backends import compiled, gradients, has_float64

RNG = np.random.default_rng(0)
KERNEL, FILTERS, WIDE = (RNG.standard_normal(shape) for shape in [(5, 3), (2, 2, 3, 4), (3, 6)])
VECTOR = RNG.standard_normal(4)


def array(x):
    return np.asarray(ops.convert_to_numpy(x), "float64")


def rows_of_groups(w, by):
    """A row for each group, by NumPy's own moves."""
    axis = {"unit": -1, "input": -2}.get(by, by) if isinstance(by, str | int) else None
    if axis is None:
        axes = [a % w.ndim for a in by]
        return np.moveaxis(w, axes, range(len(axes))).reshape(np.prod([w.shape[a] for a in axes]), -1)
    return np.moveaxis(w, axis, 0).reshape(w.shape[axis], -1)


def lasso(w):
    return np.abs(w).sum()


def group(w, by):
    rows = rows_of_groups(w, by)
    return np.sqrt(rows.shape[1]) * np.linalg.norm(rows, axis=1).sum()


def away(w):
    m = w.reshape(-1, w.shape[-1])
    m = m if m.shape[0] >= m.shape[1] else m.T
    return m.T @ m - np.eye(m.shape[1])


def top(w):
    return np.linalg.svd(w.reshape(-1, w.shape[-1]), compute_uv=False)[0]


# name: (penalty, what NumPy makes of a weight)
CASES = {
    "lasso": (Lasso(0.3), lambda w: 0.3 * lasso(w)),
    "units": (GroupLasso(0.3), lambda w: 0.3 * group(w, "unit")),
    "inputs": (GroupLasso(0.3, by="input"), lambda w: 0.3 * group(w, "input")),
    "both": (GroupLasso(0.3, by=[-1, -2]), lambda w: 0.3 * group(w, [-2, -1])),
    "sparse groups": (
        SparseGroupLasso(0.3, 0.6),
        lambda w: 0.3 * (0.6 * lasso(w) + 0.4 * group(w, "unit")),
    ),
    "soft": (Orthogonal(0.3), lambda w: 0.3 * (away(w) ** 2).sum()),
    "coherence": (Orthogonal(0.3, "coherence"), lambda w: 0.3 * np.abs(away(w)).sum(1).max()),
    "spectral": (Orthogonal(0.3, "spectral", steps=200), lambda w: 0.3 * np.abs(np.linalg.eigvalsh(away(w))).max()),
    "spectral norm": (SpectralNorm(0.3, steps=200), lambda w: 0.15 * top(w) ** 2),
    "decay": (WeightDecay(0.3), lambda w: 0.0),
}
SPARSE = {name: case for name, case in CASES.items() if isinstance(case[0], kopt.penalties.Sparse)}


@pytest.mark.parametrize("w", [KERNEL, FILTERS, WIDE], ids=["kernel", "filters", "wide"])
@pytest.mark.parametrize("case", CASES)
def test_values_and_slopes_are_those_of_numpy(case, w):
    penalty, expected = CASES[case]
    np.testing.assert_allclose(array(penalty(ops.cast(w, "float32"))), expected(w), rtol=1e-5)
    assert keras.backend.standardize_dtype(penalty(ops.cast(w, "bfloat16")).dtype) == "float32"
    if not has_float64():
        return
    (slope,) = gradients(lambda at: penalty(at[0]), [ops.convert_to_tensor(w)])
    direction, h = RNG.standard_normal(w.shape), 1e-6
    difference = (expected(w + h * direction) - expected(w - h * direction)) / (2 * h)
    np.testing.assert_allclose((array(slope) * direction).sum(), difference, rtol=1e-5, atol=1e-8)


@pytest.mark.parametrize("case", CASES)
def test_zeros_and_orthonormal_columns_have_finite_slopes(case):
    penalty, _ = CASES[case]
    for w in (np.zeros((3, 2)), np.eye(3, 2), np.eye(2, 3)):
        value, (slope,) = (
            penalty(ops.cast(w, "float32")),
            gradients(lambda at: penalty(at[0]), [ops.cast(w, "float32")]),
        )
        assert np.isfinite(array(value))
        assert np.isfinite(array(slope)).all()
        if not w.any():
            assert not array(slope).any()


def test_few_power_iterations_bound_the_largest_singular_value_from_below():
    for penalty, exact in (
        (SpectralNorm(2.0), top(KERNEL) ** 2),
        (Orthogonal(1.0, "spectral"), CASES["spectral"][1](KERNEL) / 0.3),
    ):
        found = float(array(penalty(ops.cast(KERNEL, "float32"))))
        assert 0.95 * exact < found <= exact * (1 + 1e-6)


def test_the_double_soft_form_is_the_soft_one_twice():
    for w in (KERNEL, WIDE):
        double = ((w.T @ w - np.eye(w.shape[1])) ** 2).sum() + ((w @ w.T - np.eye(w.shape[0])) ** 2).sum()
        np.testing.assert_allclose(double - 2 * CASES["soft"][1](w) / 0.3, abs(w.shape[0] - w.shape[1]), rtol=1e-9)


@pytest.mark.parametrize("w", [KERNEL, FILTERS], ids=["kernel", "filters"])
@pytest.mark.parametrize("case", SPARSE)
def test_proximal_maps_minimize_what_defines_them(case, w):
    """½ ‖x - w‖² + step · penalty(x) is convex: no nearby x is lower, in many directions."""
    penalty, expected = SPARSE[case]
    step = 3.0
    x = array(penalty.prox(ops.convert_to_tensor(w, "float64" if has_float64() else "float32"), step))

    def objective(x):
        return ((x - w) ** 2).sum() / 2 + step * expected(x)

    assert (x == 0).any()
    for scale in (1e-1, 1e-3, 1e-5):
        others = x + scale * RNG.standard_normal((200, *x.shape)) * (RNG.uniform(size=(200, *x.shape)) < 0.3)
        assert min(map(objective, others)) >= objective(x) - (1e-12 if has_float64() else 1e-5)


@pytest.mark.parametrize("case", SPARSE)
def test_a_proximal_map_of_no_step_changes_nothing_and_of_a_long_one_leaves_nothing(case):
    penalty, _ = SPARSE[case]
    w = ops.convert_to_tensor(np.where(np.arange(3) == 1, 0, KERNEL), "float32")
    np.testing.assert_array_equal(array(penalty.prox(w, 0.0)), array(w))
    assert not array(penalty.prox(w, 100.0)).any()
    for xla in (False, True):
        found = compiled(lambda w, step: penalty.prox(w, step), xla)(w, ops.convert_to_tensor(0.5, "float32"))
        np.testing.assert_allclose(array(found), array(penalty.prox(w, 0.5)), rtol=1e-6)


def test_a_bias_has_groups_of_one():
    w = ops.convert_to_tensor(VECTOR, "float32")
    np.testing.assert_allclose(array(GroupLasso(0.3)(w)), 0.3 * lasso(VECTOR), rtol=1e-6)
    np.testing.assert_array_equal(array(GroupLasso(0.3).prox(w, 1.0)), array(Lasso(0.3).prox(w, 1.0)))


@pytest.mark.parametrize("jit_compile", [False, True])
@pytest.mark.parametrize("policy", ["float32", "mixed_float16"])
def test_they_are_regularizers_of_any_layer(jit_compile, policy, tmp_path):
    layers = keras.layers
    made = [penalty for penalty, _ in CASES.values()]
    model = keras.Sequential([keras.Input((4, 4, 2))])
    for penalty in made:
        model.add(layers.Conv2D(2, 2, padding="same", kernel_regularizer=penalty, dtype=policy))
    model.compile("sgd", "mse", jit_compile=jit_compile)
    x = RNG.standard_normal((4, 4, 4, 2)).astype("float32")
    weights = [layer.kernel.numpy().astype("float64") for layer in model.layers]
    total = sum(expected(w) for (_, expected), w in zip(CASES.values(), weights, strict=True))
    error = ((np.asarray(model(x), "float64") - x) ** 2).mean()
    np.testing.assert_allclose(model.evaluate(x, x, verbose=0), error + total, rtol=1e-2)
    model.fit(x, x, verbose=0)
    model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    assert [layer.kernel_regularizer for layer in loaded.layers] == made
    np.testing.assert_allclose(loaded.evaluate(x, x, verbose=0), model.evaluate(x, x, verbose=0), rtol=1e-5)


@pytest.mark.parametrize("case", CASES)
def test_config_is_json_and_makes_an_equal(case):
    penalty, _ = CASES[case]
    config = json.loads(json.dumps(penalty.get_config()))
    copy = type(penalty).from_config(config)
    assert copy == penalty
    assert hash(copy) == hash(penalty)
    assert copy != type(penalty).from_config(config | dict(strength=9.0))
    assert eval(repr(penalty), vars(kopt.penalties)) == penalty
    assert keras.saving.get_registered_name(type(penalty)) == f"kopt>{type(penalty).__name__}"


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: Lasso(-1), ValueError, "Lasso: strength must be a number in [0, inf), got -1."),
        (lambda: GroupLasso("1"), TypeError, "GroupLasso: strength must be a number in [0, inf), got '1'."),
        (lambda: GroupLasso(1, "row"), ValueError, "GroupLasso: by must be 'unit', 'input', or axes counted from the"),
        (lambda: GroupLasso(1, 0), ValueError, "GroupLasso: by must be 'unit', 'input', or axes counted from the end"),
        (lambda: GroupLasso(1, []), ValueError, "GroupLasso: by must be 'unit', 'input', or axes counted from the end"),
        (lambda: SparseGroupLasso(1, 2), ValueError, "SparseGroupLasso: l1_share must be a number in [0, 1], got 2."),
        (
            lambda: Orthogonal(1, "hard"),
            ValueError,
            "Orthogonal: form must be one of 'soft', 'coherence', 'spectral', ",
        ),
        (lambda: Orthogonal(1, steps=0), ValueError, "Orthogonal: steps must be an integer in [1, inf), got 0."),
        (lambda: SpectralNorm(1, steps=1.5), TypeError, "SpectralNorm: steps must be an integer in [1, inf), got 1.5."),
        (
            lambda: Orthogonal(kopt.schedules.Linear(1, 9, 0)),
            TypeError,
            "Orthogonal: strength must be a number in [0, inf), since nobody tells a penalty the step, got Linear(",
        ),
        (lambda: WeightDecay(None), TypeError, "WeightDecay: strength must be a number in [0, inf), got None."),
        (lambda: Orthogonal(1)(VECTOR), ValueError, "Orthogonal: a weight must have two axes or more, as a kernel has"),
        (
            lambda: SpectralNorm(1)(VECTOR),
            ValueError,
            "SpectralNorm: a weight must have two axes or more, as a kernel ",
        ),
        (
            lambda: GroupLasso(1, "input")(VECTOR),
            ValueError,
            "GroupLasso: a weight must have 2 axes or more with by='input', got the shape (4,).",
        ),
    ],
)
def test_wrong_arguments_are_refused(make, error, message):
    with pytest.raises(error, match="^" + re.escape(message)):
        make()


def test_another_strength_counts_once_the_model_is_compiled_again():
    penalty = Lasso(0.0)
    model = keras.Model(inputs := keras.Input((2,)), keras.layers.Dense(1, kernel_regularizer=penalty)(inputs))
    x, kernel = np.ones((4, 2), "float32"), np.float32([[1], [-2]])
    model.set_weights([kernel, np.ones(1)])
    losses = []
    for strength in (0.0, 0.5):
        penalty.strength = strength
        model.compile("sgd", "mse")
        losses.append(model.evaluate(x, np.zeros((4, 1), "float32"), verbose=0))
    np.testing.assert_allclose(losses, [0, 1.5], atol=1e-6)
