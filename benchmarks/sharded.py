"""What a mesh of devices holds and what it costs: bytes on each device, and a step, for each way to divide a network.

    python benchmarks/sharded.py
    python benchmarks/sharded.py --gpus            # four GPUs in the place of four logical CPUs

Logical CPUs share the cores of this machine: a step over four cannot take less time than one on a device, and what it
takes more is the cost of dividing. All sides take turns; a ratio is the median over the turns.
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
from tensorflow.experimental import dtensor

import kopt

ROWS, BATCH, UNITS, DEPTH = 512, 128, 512, 4
SIDES = {
    "one device": None,
    "rows by four": dict(mesh={"batch": 4}),
    'rows by four, shard="optimizer"': dict(mesh={"batch": 4}, shard="optimizer"),
    'rows by four, shard="weights"': dict(mesh={"batch": 4}, shard="weights"),
    "rows by two, tensor parallel by two": dict(mesh={"batch": 2, "model": 2}, layout="tensor_parallel"),
    "tensor parallel by four": dict(mesh={"model": 4}, layout="tensor_parallel"),
}
RNG = np.random.default_rng(0)
X, Y = RNG.standard_normal((ROWS, 64)).astype("float32"), RNG.integers(0, 10, ROWS)


def made(how, device_type):
    """A compiled model, over a mesh or on one device."""
    keras.utils.set_random_seed(0)
    inputs = x = keras.Input((64,))
    for _ in range(DEPTH):
        x = keras.layers.Dense(UNITS, "relu")(x)
    outputs = keras.layers.Dense(10)(x)
    devices = [device.name for device in tf.config.list_logical_devices(device_type)][:4]
    model = kopt.Model(inputs, outputs) if how is None else kopt.ShardedModel(inputs, outputs, devices=devices, **how)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(kopt.AdamW(1e-3, epsilon=1e-4), loss, jit_compile=False)
    return model


def seconds(model):
    """The seconds of a step."""
    began = time.perf_counter()
    model.fit(X, Y, batch_size=BATCH, epochs=2, verbose=0, shuffle=False)
    return (time.perf_counter() - began) / (2 * ROWS / BATCH)


def held(model):
    """Megabytes on a device: of the model's variables, and of what the optimizer keeps."""
    kinds = model.variables, model.optimizer.variables
    return [sum(part_of(variable).nbytes for variable in variables) / 1e6 for variables in kinds]


def part_of(variable):
    """What the first device has of a variable."""
    value = variable.value.read_value()
    return (dtensor.unpack(value)[0] if hasattr(variable.value, "layout") else value).numpy()


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--gpus", action="store_true")
    asked = parser.parse_args()
    if asked.gpus:
        dtensor.initialize_accelerator_system("GPU")
    else:
        (cpu,) = tf.config.list_physical_devices("CPU")
        tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * 4)
    models = {name: made(how, "GPU" if asked.gpus else "CPU") for name, how in SIDES.items()}
    first = {name: seconds(model) * 2 * ROWS / BATCH for name, model in models.items()}
    turns = [{name: seconds(model) for name, model in models.items()} for _ in range(asked.turns)]
    weights = models["one device"].get_weights()
    columns = ["variables, MB", "optimizer, MB", "step, ms", "of one device's", "first fit, s", "weights off by"]
    table = Table("", *columns, title=f"{DEPTH} layers of {UNITS}, batches of {BATCH}, kopt.AdamW")
    for name, model in models.items():
        step = statistics.median(turn[name] for turn in turns)
        ratio = statistics.median(turn[name] / turn["one device"] for turn in turns)
        off = max(float(np.abs(a - b).max()) for a, b in zip(weights, model.get_weights(), strict=True))
        sizes = [f"{size:.2f}" for size in held(model)]
        table.add_row(name, *sizes, f"{1e3 * step:.1f}", f"{ratio:.2f}", f"{first[name]:.1f}", f"{off:.0e}")
    Console(width=130).print(table)


if __name__ == "__main__":
    main()
