"""On JAX a mesh of four devices gives what one gives, by the same call."""

import os

import keras
import numpy as np
import pytest

import kopt

pytestmark = pytest.mark.skipif(
    keras.backend.backend() != "jax", reason="TensorFlow's is tests/training/test_sharded.py"
)

layers = keras.layers
RNG = np.random.default_rng(0)
X, Y = RNG.normal(size=(40, 8)).astype("float32"), RNG.normal(size=(40, 4)).astype("float32")
SQUARE, TALL, WIDE = ({"batch": batch, "model": 4 // batch} for batch in (2, 4, 1))


def make(**how):
    keras.utils.set_random_seed(0)
    inputs = keras.Input((8,))
    h = layers.BatchNormalization()(layers.Dense(16, "tanh", name="up", kernel_regularizer="l2")(inputs))
    outputs = layers.Dense(4, name="down")(layers.Dense(8, "relu", name="mid")(h))
    return kopt.ShardedModel(inputs, outputs, **how) if how else keras.Model(inputs, outputs)


CASES = {
    "megatron": (dict(mesh=SQUARE, layout="tensor_parallel"), lambda: keras.optimizers.SGD(0.1), (8, 8), None),
    "optimizer": (dict(mesh=TALL, shard="optimizer"), lambda: kopt.AdamW(0.01, epsilon=1e-3), (8, 16), (2, 16)),
    "weights": (
        dict(mesh=SQUARE, layout={"up/kernel": (None, "model")}, shard="weights"),
        lambda: keras.optimizers.Adam(0.01, epsilon=1e-3, global_clipnorm=0.1),
        (4, 8),
        (4, 8),
    ),
}


@pytest.mark.parametrize(("how", "optimizer", "part", "slot_part"), CASES.values(), ids=CASES)
def test_a_mesh_takes_the_steps_of_one_device(how, optimizer, part, slot_part, tmp_path):
    models, histories = [make(), make(**how)], []
    for model in models:
        model.compile(optimizer(), "mse", metrics=["mae"])
        keras.utils.set_random_seed(1)
        histories.append(model.fit(X, Y, batch_size=16, epochs=2, verbose=0).history)
    one, many = models
    for a, b in zip(one.get_weights(), many.get_weights(), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-6)
    for name, values in histories[0].items():
        np.testing.assert_allclose(values, histories[1][name], rtol=1e-5)
    np.testing.assert_allclose(one.predict(X, verbose=0), many.predict(X, verbose=0), atol=1e-5)
    kernel = many.get_layer("up").kernel
    assert kernel.value.addressable_shards[0].data.shape == part
    slots = [v for v in many.optimizer.variables if tuple(v.shape) == (8, 16)]
    assert {v.value.addressable_shards[0].data.shape for v in slots} == ({slot_part} if slot_part else set())
    assert keras.distribution.distribution() is None
    many.save(tmp_path / "a.keras")
    loaded = keras.models.load_model(tmp_path / "a.keras")
    one.load_weights(tmp_path / "a.keras")
    for model in (loaded, one):
        for a, b in zip(many.get_weights(), model.get_weights(), strict=True):
            np.testing.assert_array_equal(a, b)


def test_batches_that_do_not_divide_are_refused():
    model = make(mesh=TALL)
    model.compile("sgd", "mse")
    with pytest.raises(
        ValueError, match=r"^ShardedModel: on JAX all batches must have a multiple of 4 rows.* got one of 6"
    ):
        model.fit(X[:38], Y[:38], batch_size=16, verbose=0)
    with pytest.raises(ValueError, match=r"^ShardedModel: devices must be 8 for a mesh of"):
        make(mesh={"batch": 8})
    assert "xla_force_host_platform_device_count" in os.environ["XLA_FLAGS"]
