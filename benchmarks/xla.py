"""When XLA pays: what it takes to compile an estimator's epoch, what it saves in each step, and what kopt expects.

python benchmarks/xla.py

Batches of 32 rows of 64 features. `kopt/training/xla.py` has two constants, to which the last two columns compare.
"""

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
from kopt.training import program, xla

ROWS, BATCH, EPOCHS = 1600, 32, 20
RNG = np.random.default_rng(0)
X, Y = RNG.standard_normal((ROWS, 64)).astype("float32"), RNG.integers(0, 10, ROWS)


def network(depth, normalized=False):
    def build(input_shape_, n_classes_):
        layers = [keras.Input(input_shape_)]
        for _ in range(depth):
            layers.append(keras.layers.Dense(32, "relu"))
            if normalized:
                layers.append(keras.layers.BatchNormalization())
        return keras.Sequential([*layers, keras.layers.Dense(n_classes_, "softmax")])

    return build


CASES = {
    "1 layer, Adam": (network(1), "Adam"),
    "2 layers, Adam": (network(2), "Adam"),
    "2 layers, SGD": (network(2), "SGD"),
    "2 layers, Muon": (network(2), "Muon"),
    "8 layers, Adam": (network(8), "Adam"),
    "8 layers, normalized, Adam": (network(8, normalized=True), "Adam"),
}


def seconds(work):
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def measured(model, optimizer):
    """How many operations a step has, the seconds to compile it, and those that a step saves."""
    estimator = kopt.KerasClassifier(model, optimizer=optimizer, epochs=EPOCHS, batch_size=BATCH, random_state=0)

    def fit():
        estimator.fit(X, Y)

    few, costs = program.FEW, xla.SECONDS_TO_COMPILE
    try:
        program.FEW = 10**9
        fit()
        as_graph = statistics.median(seconds(fit) for _ in range(5))
        program.FEW, xla.SECONDS_TO_COMPILE = 0, (-1e9, 0.0)
        first, by_xla = seconds(fit), statistics.median(seconds(fit) for _ in range(5))
    finally:
        program.FEW, xla.SECONDS_TO_COMPILE = few, costs
    rows = [tf.zeros([ROWS, *spec.shape[1:]], spec.dtype) for spec in estimator._network.program().rows]
    graph = estimator._network.program().epoch.get_concrete_function(*rows, np.arange(ROWS, dtype="int32"), BATCH).graph
    return len(xla.operations_of_loop(graph)), first - by_xla, (as_graph - by_xla) / (EPOCHS * ROWS // BATCH)


def main():
    columns = "step", "operations", "s to compile", "µs saved a step", "pays after", "expected"
    table = Table(*columns, title="Steps after which XLA has paid for its compilation")
    once, each = xla.SECONDS_TO_COMPILE
    for name, case in CASES.items():
        operations, to_compile, saved = measured(*case)
        expected = (once + each * operations) / (xla.SECONDS_SAVED * operations)
        numbers = f"{to_compile:.2f}", f"{1e6 * saved:.0f}", f"{to_compile / saved:.0f}", f"{expected:.0f}"
        table.add_row(name, str(operations), *numbers)
    Console(width=120).print(table)


if __name__ == "__main__":
    main()
