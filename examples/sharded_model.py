"""A network over a mesh of four devices, divided in each way: what each device has, and the weights of one device.

python examples/sharded_model.py --width 64 --epochs 2

Here the devices are logical ones of one CPU, where nothing gets faster. With four GPUs, leave `devices` out.
"""

import argparse
import contextlib

import keras
import numpy as np
import tensorflow as tf
from sklearn.datasets import load_digits

with contextlib.suppress(RuntimeError):  # where TensorFlow is in use already
    (cpu,) = tf.config.list_physical_devices("CPU")
    tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * 4)

import kopt

parser = argparse.ArgumentParser()
parser.add_argument("--width", type=int, default=32)
parser.add_argument("--epochs", type=int, default=1)
arguments = parser.parse_args()

WAYS = {
    "weights whole": dict(mesh={"batch": 4}),
    "ZeRO-1": dict(mesh={"batch": 4}, shard="optimizer"),
    "fully sharded": dict(mesh={"batch": 4}, shard="weights"),
    "tensor parallel": dict(mesh={"model": 4}, layout="tensor_parallel"),
    "two by two, sharded": dict(mesh={"batch": 2, "model": 2}, layout="tensor_parallel", shard="weights"),
}


def network():
    keras.utils.set_random_seed(0)
    inputs = keras.Input((64,))
    hidden = keras.layers.Dense(arguments.width, "gelu")(inputs)
    hidden = keras.layers.LayerNormalization()(keras.layers.Dense(arguments.width)(hidden))
    return inputs, keras.layers.Dense(10)(hidden)


def fit(model, X, y):
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(kopt.AdamW(1e-3, global_clipnorm=1.0), loss)
    keras.utils.set_random_seed(1)
    model.fit(X, y, batch_size=128, epochs=arguments.epochs, verbose=0)
    return model.get_weights()


def held(variables):
    """How many numbers a device has of variables."""
    return sum(tf.experimental.dtensor.unpack(v.value.read_value())[0].numpy().size for v in variables)


def main():
    X, y = load_digits(return_X_y=True)
    X = (X[:1024] / 16).astype("float32")
    y = y[:1024]
    weights = fit(kopt.Model(*network()), X, y)
    for name, how in WAYS.items():
        model = kopt.ShardedModel(*network(), devices=[f"CPU:{number}" for number in range(4)], **how)
        others = fit(model, X, y)
        off = max(np.abs(a - b).max() for a, b in zip(weights, others, strict=True))
        parts = held(model.variables), held(model.optimizer.variables)
        print(f"{name:20} off by {off:.0e}; each device has {parts[0]:5} weights, {parts[1]:5} of the optimizer")


if __name__ == "__main__":
    main()
