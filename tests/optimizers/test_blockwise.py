"""Adam-mini and SM3: whose entries share a second moment."""

import keras
import numpy as np
import pytest
from keras import ops

import kopt

RNG = np.random.default_rng(0)


def run(optimizer, start, gradients):
    variable = keras.Variable(np.asarray(start, "float32"), name="w")
    optimizer.build([variable])
    for gradient in gradients:
        optimizer.apply([ops.convert_to_tensor(gradient, "float32")])
    return variable.numpy()


def test_units_of_keras_layers():
    """Rows of embeddings, heads of queries and keys, neurons of all else, entries of biases."""
    inputs = keras.Input((4,), dtype="int32")
    x = keras.layers.Embedding(10, 6)(inputs)
    x = keras.layers.MultiHeadAttention(num_heads=2, key_dim=3, name="attention")(x, x)
    x = keras.layers.Conv1D(5, 3)(keras.layers.LayerNormalization()(x))
    model = keras.Model(inputs, x)
    optimizer = kopt.AdamMini()
    optimizer.build(model.trainable_variables)
    rules = optimizer.routes()
    found = {
        variable.path.partition("/")[2]: rules[optimizer.route(variable.path, tuple(variable.shape))].slots(
            tuple(variable.shape)
        )["v"]
        for variable in model.trainable_variables
    }
    assert found == {
        "embeddings": (10, 1),
        "query/kernel": (1, 2, 1),
        "query/bias": (2, 3),
        "key/kernel": (1, 2, 1),
        "key/bias": (2, 3),
        "value/kernel": (1, 2, 3),
        "value/bias": (2, 3),
        "attention_output/kernel": (1, 1, 6),
        "attention_output/bias": (6,),
        "gamma": (6,),
        "beta": (6,),
        "kernel": (1, 1, 5),
        "bias": (5,),
    }


def test_a_dense_layer_called_query_has_neurons():
    assert kopt.AdamMini().route("model/query/kernel", (6, 6)) == ""


@pytest.mark.parametrize(
    ("path", "shape", "unit"),
    [("e/embeddings", (5, 4), (0,)), ("a/query/kernel", (3, 5, 4), (1,)), ("a/value/kernel", (3, 5, 4), (1, 2))],
)
def test_the_mean_is_over_each_unit(path, shape, unit):
    rule = kopt.AdamMini().routes()[kopt.AdamMini().route(path, shape)]
    g = RNG.standard_normal((2, *shape)).astype("float32")
    kept = {name: ops.zeros((2, *size)) for name, size in rule.slots(shape).items()}
    h = type("h", (), dict(beta_1=0.9, beta_2=0.5, epsilon=0.0))
    _, new = rule.direction(ops.convert_to_tensor(g), None, 1.0, h, **kept)
    others = tuple(axis + 1 for axis in range(len(shape)) if axis not in unit)
    np.testing.assert_allclose(new["v"], 0.5 * np.mean(g**2, axis=others, keepdims=True), rtol=1e-5)


def test_adam_mini_commutes_with_rotations_of_the_inputs():
    rotation = np.linalg.qr(RNG.standard_normal((4, 4)))[0]
    start, gradients = RNG.standard_normal((4, 6)), RNG.standard_normal((5, 4, 6))
    end = run(kopt.AdamMini(0.1), start, gradients)
    np.testing.assert_allclose(
        run(kopt.AdamMini(0.1), rotation @ start, rotation @ gradients), rotation @ end, atol=1e-5
    )


def test_adam_mini_is_adamw_on_vectors():
    start, gradients = RNG.standard_normal(6), RNG.standard_normal((5, 6))
    np.testing.assert_array_equal(run(kopt.AdamMini(0.1), start, gradients), run(kopt.AdamW(0.1), start, gradients))


@pytest.mark.parametrize("shape", [(), (6,)])
def test_sm3_is_adagrad_on_vectors(shape):
    start, gradients = RNG.standard_normal(shape), RNG.standard_normal((5, *shape))
    end = run(kopt.SM3(0.1, momentum=0.0), start, gradients)
    adagrad = kopt.Adagrad(0.1, initial_accumulator_value=0.0, epsilon=0.0)
    np.testing.assert_allclose(end, run(adagrad, start, gradients), atol=1e-6)


def test_sm3_bounds_adagrad_from_above():
    """Its v is never below the sum of squares."""
    rule, v, kept = kopt.SM3(momentum=0.0), 0, {f"axis_{a}": ops.zeros((1, *s)) for a, s in enumerate([(4, 1), (1, 6)])}
    for g in RNG.standard_normal((5, 1, 4, 6)).astype("float32"):
        u, kept = rule.direction(ops.convert_to_tensor(g), None, 1.0, None, **kept)
        v = v + g**2
        assert (np.abs(u) <= np.abs(g) / np.sqrt(v) + 1e-6).all()
