"""Weights with learning rates and decays of their own."""

import keras
import numpy as np
import pytest

import kopt

layers = keras.layers


def network():
    inner = keras.Sequential([keras.Input((4,)), layers.Dense(4, name="low"), layers.Dense(4, name="middle")])
    return keras.Sequential([keras.Input((4,)), inner, layers.ReLU(), layers.Dense(1, name="head")])


def stepped(**options):
    """Two weights of one, after a step of SGD with gradients of one."""
    variables = [keras.Variable(np.ones(2, "float32"), name=name) for name in ("kernel", "bias")]
    kopt.SGD(0.1, weight_decay=1.0, **options).apply([np.ones(2, "float32")] * 2, variables)
    return [float(v.numpy()[0]) for v in variables]


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, [0.8, 0.8]),
        ({"groups": {"bias": {"learning_rate": 0.5}}}, [0.8, 0.9]),
        ({"groups": {"bias": {"learning_rate": 0}}}, [0.8, 1.0]),
        ({"groups": {"bias": {"weight_decay": 0.5}}}, [0.8, 0.85]),
        ({"groups": {"bias": {"weight_decay": 0}}}, [0.8, 0.9]),
        ({"groups": {"bias": {"weight_decay": 2}}, "no_decay": "bias"}, [0.8, 0.9]),
        ({"groups": {"bias": {"learning_rate": 0.5}, "": {"learning_rate": 0.5}}}, [0.9, 0.95]),
    ],
)
def test_factors_multiply_rate_and_decay(options, expected):
    np.testing.assert_allclose(stepped(**options), expected, rtol=1e-6)


def test_groups_are_saved(tmp_path):
    keras.utils.set_random_seed(0)
    x, model = np.random.default_rng(0).normal(size=(32, 4)), network()
    model.compile(kopt.Adam(0.1, groups={"head": {"learning_rate": 0}}), "mse")
    model.fit(x, x[:, 0], verbose=0)
    model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    before = [w.copy() for w in loaded.get_weights()]
    loaded.fit(x, x[:, 0], verbose=0)
    moved = [not np.array_equal(a, b) for a, b in zip(before, loaded.get_weights(), strict=True)]
    assert moved == [True] * 4 + [False] * 2


def test_rates_fall_from_layer_to_layer():
    model = network()
    groups = kopt.layerwise_decay(model, 0.5)
    assert [factors["learning_rate"] for factors in groups.values()] == [1.0, 0.5, 0.25]
    optimizer = kopt.SGD(groups=groups)
    factors = [treatment.factors[0] for treatment in optimizer.treatments(model.trainable_variables)]
    assert factors == [0.25, 0.25, 0.5, 0.5, 1.0, 1.0]


@pytest.mark.parametrize(
    ("model", "factor", "error", "message"),
    [
        (keras.Sequential([layers.Dense(1)]), 0.5, ValueError, r"model must have trainable weights, got <Sequential"),
        ("net", 0.5, TypeError, r"model must be a keras\.Model, got 'net'"),
        (network(), 1.5, ValueError, r"factor must be a number in \(0, 1\], got 1\.5"),
    ],
)
def test_wrong_arguments_are_refused(model, factor, error, message):
    with pytest.raises(error, match=f"^layerwise_decay: {message}"):
        kopt.layerwise_decay(model, factor)
