"""L0Gate: hard concrete gates, their distribution and their penalty."""

import keras
import numpy as np
import pytest
from keras import ops

from kopt.layers import L0Gate
from kopt.testing import backends, check_layer

X = np.random.default_rng(0).standard_normal((8, 3, 4)).astype("float32")


def array(x):
    return np.asarray(ops.convert_to_numpy(x), "float64")


def sigmoid(x):
    return 1 / (1 + np.exp(-np.asarray(x, "float64")))


def with_gates(values, **how):
    layer = L0Gate(0.5, **how)
    layer.build((None, len(values)))
    layer.log_alpha.assign(values)
    return layer


@pytest.mark.parametrize(
    ("layer", "shape"),
    [
        (L0Gate(0.1), (8, 5)),
        (L0Gate(0.1, 0.2, axis=1, seed=1, mode="sample"), (8, 3, 4)),
        (L0Gate(0.1), (8, 2, 2, 3)),
    ],
    ids=["features", "steps", "channels"],
)
def test_it_keeps_the_contract(layer, shape):
    assert check_layer(layer, np.random.default_rng(0).standard_normal(shape).astype("float32"), added_loss="always")


def test_gates_at_inference_are_the_papers_and_exactly_zero_or_one_at_the_ends():
    log_alpha = np.array([-4.0, -1.0, 0.0, 0.5, 4.0])
    z = array(with_gates(log_alpha)(np.ones((2, 5), "float32")))
    expected = np.clip(sigmoid(log_alpha) * 1.2 - 0.1, 0, 1)
    np.testing.assert_allclose(z, [expected] * 2, rtol=1e-6)
    assert (z[:, 0] == 0).all()
    assert (z[:, -1] == 1).all()
    np.testing.assert_array_equal(array(with_gates(log_alpha).gates()), z[0])


def test_gates_in_training_have_the_hard_concrete_distribution():
    log_alpha, number = np.array([-1.0, 0.3, 2.0]), 20000
    z = array(with_gates(log_alpha, seed=1, mode="sample")(np.ones((number, 3), "float32"), training=True))
    for x in (0.0, 0.25, 0.7):  # P(z <= x)
        s = (x + 0.1) / 1.2
        expected = sigmoid((np.log(s) - np.log(1 - s)) * 2 / 3 - log_alpha)
        assert np.abs((z <= x).mean(0) - expected).max() < 4 * 0.5 / np.sqrt(number)
    assert ((z == 0).any(0) & (z == 1).any(0)).all()


def test_the_penalty_is_the_expected_number_of_open_gates():
    log_alpha = np.array([-3.0, 0.0, 1.0])
    layer = with_gates(log_alpha)
    layer(np.ones((2, 3), "float32"), training=True)
    (loss,) = layer.losses
    np.testing.assert_allclose(array(loss), 0.5 * sigmoid(log_alpha - 2 / 3 * np.log(0.1 / 1.1)).sum(), rtol=1e-6)


@pytest.mark.parametrize(("mode", "rows"), [("sample", 8), ("batch", 1)])
def test_a_gate_is_one_for_a_feature_and_is_drawn_by_mode(mode, rows):
    y = array(L0Gate(0.1, mode=mode, seed=0)(X, training=True)) / X
    np.testing.assert_allclose(y, y[:, :1] * np.ones_like(y), atol=1e-5)
    assert len(np.unique(y[:, 0].round(4), axis=0)) == rows


@pytest.mark.slow
@pytest.mark.parametrize("jit_compile", [False, True])
def test_it_closes_on_features_of_no_use(jit_compile, tmp_path):
    keras.utils.set_random_seed(0)
    x = np.random.default_rng(0).standard_normal((256, 6)).astype("float32")
    model = keras.Sequential([keras.Input((6,)), L0Gate(0.05, seed=0), keras.layers.Dense(1)])
    model.compile(keras.optimizers.Adam(0.05), "mse", jit_compile=jit_compile)
    model.fit(x, x[:, :2].sum(1), epochs=40, batch_size=64, verbose=0)
    gates = array(model.layers[0].gates())
    assert (gates[:2] > 0.5).all()
    assert (gates[2:] == 0).all()
    assert np.abs(array(model.layers[0].log_alpha)).max() <= np.log(100) + 1e-6
    model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    np.testing.assert_array_equal(array(loaded.layers[0].gates()), gates)


@pytest.mark.parametrize(
    ("how", "error", "message"),
    [
        (dict(strength=-1), ValueError, r"strength must be a number in \[0, inf\), got -1\."),
        (dict(strength="1"), TypeError, r"strength must be a number in \[0, inf\), got '1'\."),
        (dict(strength=1, initial_rate=1), ValueError, r"initial_rate must be a number in \(0, 1\), got 1\."),
        (dict(strength=1, axis=0.5), TypeError, r"axis must be an integer in \(-inf, inf\), got 0\.5\."),
        (dict(strength=1, mode="row"), ValueError, r"mode must be one of 'sample', 'batch', got 'row'\."),
        (dict(strength=1, seed=0.5), TypeError, r"seed must be an integer in \[0, inf\), got 0\.5\."),
    ],
)
def test_wrong_arguments_are_refused(how, error, message):
    with pytest.raises(error, match=f"^L0Gate: {message}$"):
        L0Gate(**how)


@pytest.mark.parametrize("axis", [0, 2, -2])
def test_an_axis_that_there_is_not_is_refused(axis):
    with pytest.raises(ValueError, match=rf"^L0Gate: axis must be an axis of the inputs .*, got {axis} for"):
        L0Gate(0.1, axis=axis)(np.ones((2, 3), "float32"))


@pytest.mark.parametrize("xla", backends.graphs())
@pytest.mark.parametrize(("mode", "shape"), [("sample", (4, 3)), ("batch", (4, 3)), ("sample", (4, 2, 3))])
def test_draws_and_their_slopes_are_the_papers(monkeypatch, mode, shape, xla):
    rng, log_alpha = np.random.default_rng(1), np.array([-1.0, 0.2, 1.5])
    x, slope = rng.standard_normal((2, *shape)).astype("float32")
    u = rng.uniform(size=(4 if mode == "sample" else 1, 3)).astype("float32")
    monkeypatch.setattr(keras.random, "uniform", lambda *_, **__: ops.convert_to_tensor(u))
    layer = L0Gate(0.5, mode=mode)
    layer.build((None, *shape[1:]))

    def slopes(tensors):
        return backends.gradients(lambda both: ops.sum(layer._drawn(*both) * slope), tensors)

    by_x, by_log_alpha = backends.compiled(slopes, xla)(
        [ops.convert_to_tensor(v.astype("float32")) for v in (x, log_alpha)]
    )
    s = sigmoid((np.log(u) - np.log(1 - u) + log_alpha) * 3 / 2)
    z = np.clip(s * 1.2 - 0.1, 0, 1)
    assert (z == 0).any() or (z == 1).any()
    rows = (-1, *(1,) * (len(shape) - 2), 3)
    np.testing.assert_allclose(array(by_x), slope * z.reshape(rows), atol=1e-5)
    by_z = (x * slope).reshape(4, -1, 3).sum(1)
    expected = (by_z * 1.2 * 1.5 * s * (1 - s) * ((z > 0) & (z < 1))).sum(0)
    np.testing.assert_allclose(array(by_log_alpha), expected, atol=1e-5)


def test_the_ends_of_the_draws_are_open_and_closed_gates_without_a_slope(monkeypatch):
    layer = with_gates(np.zeros(3))
    monkeypatch.setattr(keras.random, "uniform", lambda *_, **__: ops.convert_to_tensor([[0.0, 0.5, 1 - 2**-23]]))

    def value(tensors):
        return ops.sum(layer._drawn(ops.ones((2, 3)), tensors[0]))

    (slope,) = backends.gradients(value, [ops.zeros(3)])
    np.testing.assert_allclose(array(slope), [0, 2 * 0.25 * 1.5 * 1.2, 0], rtol=1e-5)
