"""Replicas that equal one device: a small convolutional network on digits, with batch normalization, in two halves.

The replicas are two logical CPUs here; on a machine with several GPUs they are these.
"""

import keras
import numpy as np
import tensorflow as tf
from sklearn.datasets import load_digits

import kopt

(cpu,) = tf.config.list_physical_devices("CPU")
if not tf.config.list_physical_devices("GPU") and tf.config.get_logical_device_configuration(cpu) is None:
    tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * 2)
devices = [device.name for device in tf.config.list_logical_devices("GPU") or tf.config.list_logical_devices("CPU")]

X, y = load_digits(return_X_y=True)
X = (X / 16).astype("float32").reshape(-1, 8, 8, 1)


def network():
    keras.utils.set_random_seed(0)
    inputs = keras.Input(X.shape[1:])
    x = keras.layers.Conv2D(8, 3, use_bias=False)(inputs)
    x = kopt.layers.SyncBatchNormalization()(x)
    x = keras.layers.Flatten()(keras.layers.ReLU()(x))
    return kopt.Model(inputs, keras.layers.Dense(10)(x))


def trained(strategy):
    with strategy.scope():
        model = network()
        loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
        model.compile(kopt.AdamW(3e-3, global_clipnorm=1.0), loss, metrics=["accuracy"])
    model.fit(X[:1200], y[:1200], batch_size=64, epochs=3, shuffle=False, verbose=0)
    return model


one = trained(tf.distribute.get_strategy())
many = trained(tf.distribute.MirroredStrategy(devices, cross_device_ops=tf.distribute.ReductionToOneDevice()))
difference = max(np.abs(a - b).max() for a, b in zip(one.get_weights(), many.get_weights(), strict=True))
print(f"{many.distribute_strategy.num_replicas_in_sync} replicas, batches of 64, the last of 48 rows")
print(f"accuracy on other digits: {many.evaluate(X[1200:], y[1200:], verbose=0)[1]:.3f}")
print(f"largest difference of a weight from one device: {difference:.0e}")
assert difference < 1e-4
