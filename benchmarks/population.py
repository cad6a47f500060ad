"""A population of networks on digits as one program, beside the same networks fitted one after the other.

python benchmarks/population.py --sizes 8 24 --epochs 20
"""

import argparse
import os
import platform
import statistics
import time

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
import numpy as np
from rich.console import Console
from rich.table import Table
from sklearn.datasets import load_digits

import kopt
from kopt.training.network import PROGRAMS

X, Y = load_digits(return_X_y=True)
X = (X / 16).astype("float32")
BATCH = 32


def network(number):
    """A multilayer perceptron with a learning rate and weights of its own."""
    keras.utils.set_random_seed(number)
    layers = keras.layers
    model = keras.Sequential(
        [keras.Input((64,)), layers.Dense(128, "relu"), layers.Dense(64, "relu"), layers.Dense(10)]
    )
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(kopt.AdamW(10 ** np.random.uniform(-4, -2)), loss, jit_compile=False)
    return model


def population(size, epochs, jit_compile):
    models = [network(number) for number in range(size)]
    began = time.process_time()
    kopt.fit_population(models, X, Y, batch_size=BATCH, epochs=epochs, verbose=0, jit_compile=jit_compile)
    return time.process_time() - began


def estimators(size, epochs):
    """`KerasClassifier`s, all but the first of which find their program compiled."""
    rates = [10 ** np.random.uniform(-4, -2) for _ in range(size)]
    PROGRAMS.clear()
    began = time.process_time()
    for number, rate in enumerate(rates):
        kopt.KerasClassifier(
            model__hidden_layer_sizes=(128, 64),
            optimizer="AdamW",
            optimizer__learning_rate=rate,
            epochs=epochs,
            batch_size=BATCH,
            random_state=number,
        ).fit(X, Y)
    return time.process_time() - began


def keras_fit(epochs):
    """One of Keras's own fits: all take the same time."""
    model = network(0)
    began = time.process_time()
    model.fit(X, Y, batch_size=BATCH, epochs=epochs, verbose=0)
    return time.process_time() - began


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sizes", type=int, nargs="+", default=[8, 24])
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--turns", type=int, default=3)
    asked = parser.parse_args()
    steps = asked.epochs * -(-len(X) // BATCH)
    table = Table(title=f"digits, 64-128-64-10, batch {BATCH}, {asked.epochs} epochs of {steps // asked.epochs} steps")
    table.add_column("models", justify="right")
    table.add_column("CPU s\nby XLA", justify="right")
    table.add_column("CPU s\nas a graph", justify="right")
    table.add_column("CPU ms a step\nby XLA", justify="right")
    table.add_column("CPU s, estimators\none by one", justify="right")
    table.add_column("CPU s, Keras's fit\none, times models", justify="right")
    table.add_column("ratio to\nestimators", justify="right")
    table.add_column("ratio to\nKeras's fit", justify="right")
    for size in asked.sizes:
        turns = [
            (population(size, asked.epochs, True), population(size, asked.epochs, False),
             estimators(size, asked.epochs), size * keras_fit(asked.epochs))
            for _ in range(asked.turns)
        ]  # fmt: skip
        xla, graph, apart, by_keras = map(statistics.median, zip(*turns, strict=True))
        over = [statistics.median(turn[0] / turn[side] for turn in turns) for side in (2, 3)]
        times = [f"{seconds:.1f}" for seconds in (xla, graph)], [f"{seconds:.1f}" for seconds in (apart, by_keras)]
        step = f"{1e3 * xla / steps:.2f}"
        table.add_row(str(size), *times[0], step, *times[1], *(f"{ratio:.2f}" for ratio in over))
    console = Console(width=max(Console().width, 120))
    console.print(
        f"{os.cpu_count()} cores, {platform.machine()}, Python {platform.python_version()}; compilation included"
    )
    console.print(table)


if __name__ == "__main__":
    main()
