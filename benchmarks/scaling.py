"""What replicas cost: a step of kopt.Model over Keras's own under the same strategy, over none, and as replicas grow.

python benchmarks/scaling.py
python benchmarks/scaling.py --gpus            # replicas are GPUs, where there are several

Batches divide by the replicas, without clipping and the like, so that Keras's own step is right, too. All sides take
turns; a ratio is the median over the turns. Logical CPUs share the cores of this machine: weak scaling there shows the
overhead alone, for n replicas with n times the rows can at best take n times as long as one on as many cores.
"""

import argparse
import os
import statistics
import time

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
import numpy as np
import tensorflow as tf
from rich.console import Console
from rich.table import Table

import kopt

ROWS = 2048
RNG = np.random.default_rng(0)
X, Y = RNG.standard_normal((ROWS, 64)).astype("float32"), RNG.integers(0, 10, ROWS)
NETWORKS = {"small": (32, 64, 2), "large": (256, 512, 4)}
"""Rows in a batch of one replica, units, and hidden layers."""


def model(kind, strategy, size, each):
    """A model that was made in the scope of a strategy, compiled; Keras's takes `each` steps in a call."""
    _, units, depth = NETWORKS[size]
    with strategy.scope():
        keras.utils.set_random_seed(0)
        inputs = x = keras.Input((64,))
        for _ in range(depth):
            x = keras.layers.Dense(units, "relu")(x)
        made = kind(inputs, keras.layers.Dense(10)(x))
        loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
        made.compile(keras.optimizers.SGD(0.01, 0.9), loss, jit_compile=False, steps_per_execution=each)
    return made


def mirrored(devices):
    on_cpu = "CPU" in devices[0]
    how = dict(cross_device_ops=tf.distribute.ReductionToOneDevice()) if on_cpu else {}
    return tf.distribute.MirroredStrategy(devices, **how)


def seconds(made, batch):
    """The seconds of a step, epochs' beginnings and ends included."""
    began = time.perf_counter()
    made.fit(X, Y, batch_size=batch, epochs=2, verbose=0, shuffle=False)
    return (time.perf_counter() - began) / (2 * ROWS // batch)


def ratios(sides, turns):
    """For each pair of sides, the median of their ratio: a side is a model and its rows in a batch."""
    for made, batch in sides.values():
        seconds(made, batch)
        seconds(made, batch)
    found = {name: [] for name in sides}
    for _ in range(turns):
        for name, side in sides.items():
            found[name].append(seconds(*side))

    def ratio(name, other):
        return statistics.median(a / b for a, b in zip(found[name], found[other], strict=True))

    return ratio, {name: statistics.median(times) for name, times in found.items()}


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--turns", type=int, default=7)
    parser.add_argument("--gpus", action="store_true")
    asked = parser.parse_args()
    if not asked.gpus:
        (cpu,) = tf.config.list_physical_devices("CPU")
        tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * 4)
    devices = [device.name for device in tf.config.list_logical_devices("GPU" if asked.gpus else "CPU")]
    plain, one, two = tf.distribute.get_strategy(), mirrored(devices[:1]), mirrored(devices[:2])
    table = Table("network", "what", "ratio", "milliseconds of a step", title="A step of kopt.Model")
    for size, (batch, _, _) in NETWORKS.items():
        every = ROWS // (2 * batch)
        sides = {
            "kopt, no strategy": (model(kopt.Model, plain, size, 1), batch),
            "kopt, 1 replica": (model(kopt.Model, one, size, 1), batch),
            "kopt, 2 replicas": (model(kopt.Model, two, size, 1), 2 * batch),
            "Keras, 2 replicas": (model(keras.Model, two, size, 1), 2 * batch),
            "Keras, 2 replicas, an epoch in a call": (model(keras.Model, two, size, every), 2 * batch),
        }
        if len(devices) > 3:
            sides["kopt, 4 replicas"] = model(kopt.Model, mirrored(devices[:4]), size, 1), 4 * batch
        ratio, each = ratios(sides, asked.turns)
        for name, other in (
            ("kopt, 1 replica", "kopt, no strategy"),
            ("kopt, 2 replicas", "Keras, 2 replicas"),
            ("kopt, 2 replicas", "Keras, 2 replicas, an epoch in a call"),
            ("kopt, 2 replicas", "kopt, 1 replica"),
            ("kopt, 4 replicas", "kopt, 1 replica"),
        ):
            if name in sides:
                times = f"{1e3 * each[name]:.2f} / {1e3 * each[other]:.2f}"
                table.add_row(size, f"{name} / {other}", f"{ratio(name, other):.2f}", times)
        table.add_section()
    Console(width=130).print(table)


if __name__ == "__main__":
    main()
