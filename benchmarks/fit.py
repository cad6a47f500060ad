"""Training and prediction of small models: kopt.Model beside Keras's own loop and scikit-learn's MLPClassifier.

python benchmarks/fit.py
python benchmarks/fit.py --tables step whole --rounds 7
"""

import argparse
import os
import platform
import statistics
import subprocess
import sys
import time
import warnings

os.environ["OPENBLAS_NUM_THREADS"] = "1"  # which is faster for MLPClassifier's small matrices
os.environ["CUDA_VISIBLE_DEVICES"] = "-1"
os.environ["KERAS_BACKEND"] = "tensorflow"
os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"

import keras
import numpy as np
from rich import box
from rich.console import Console
from rich.table import Table
from sklearn.datasets import load_digits
from sklearn.exceptions import ConvergenceWarning
from sklearn.neural_network import MLPClassifier

import kopt

layers = keras.layers
BATCH, EPOCHS = 32, 20


def digits():
    X, y = load_digits(return_X_y=True)
    return (X / 16).astype("float32"), y


def adam(kind):
    """Each side has its own."""
    return (kopt if kind is kopt.Model else keras.optimizers).Adam()


def perceptron(kind, **how):
    """64-128-64-10, Adam."""
    inputs = keras.Input((64,))
    x = layers.Dense(64, "relu")(layers.Dense(128, "relu")(inputs))
    model = kind(inputs, layers.Dense(10, "softmax")(x))
    model.compile(adam(kind), "sparse_categorical_crossentropy", **how)
    return model


def convolutional(kind, **how):
    """Two convolutions of 16 and 32 channels, pooled, on 28 by 28 pixels."""
    inputs = x = keras.Input((28, 28, 1))
    for channels in (16, 32):
        x = layers.MaxPooling2D()(layers.Conv2D(channels, 3, activation="relu")(x))
    model = kind(inputs, layers.Dense(10, "softmax")(layers.Flatten()(x)))
    model.compile(adam(kind), "sparse_categorical_crossentropy", **how)
    return model


def sklearn_fit(X, y, epochs):
    net = MLPClassifier((128, 64), batch_size=BATCH, max_iter=epochs, alpha=0, tol=0, n_iter_no_change=epochs)
    with warnings.catch_warnings(action="ignore", category=ConvergenceWarning):
        net.fit(X, y)


# ---- what is measured: functions without arguments, and in how many parts their time is counted ---------------


def step_sides():
    """A step, 64-128-64-10 on the digits, batches of 32, after warm-up: milliseconds"""
    X, y = digits()
    steps = -(-len(X) // BATCH)

    def fit(model, epochs):
        return lambda: model.fit(X, y, batch_size=BATCH, epochs=epochs, verbose=0), steps * epochs

    return {
        "kopt.Model": fit(perceptron(kopt.Model, jit_compile=True), 200),
        "kopt.Model, graph": fit(perceptron(kopt.Model, jit_compile=False), EPOCHS),
        "Keras": fit(perceptron(keras.Model), 3),
        "MLPClassifier": (lambda: sklearn_fit(X, y, EPOCHS), steps * EPOCHS),
    }


def convolutional_sides():
    """A step, convolutions on 28 by 28 pixels, batches of 128, after warm-up: milliseconds"""
    rng = np.random.default_rng(0)
    X, y = rng.random((1280, 28, 28, 1), "float32"), rng.integers(0, 10, 1280)

    def fit(model):
        return lambda: model.fit(X, y, batch_size=128, epochs=2, verbose=0), 20

    return {
        "kopt.Model": fit(convolutional(kopt.Model)),
        "kopt.Model, XLA": fit(convolutional(kopt.Model, jit_compile=True)),
        "Keras, XLA": fit(convolutional(keras.Model, jit_compile=True)),
    }


def predict_sides(rows):
    X = np.random.default_rng(0).random((rows, 64), "float32")
    times = 20 if rows == 1 else 1

    def predict(model):
        return lambda: [model.predict(X, verbose=0) for _ in range(times)], times

    return {"kopt.Model": predict(perceptron(kopt.Model)), "Keras": predict(perceptron(keras.Model))}


def one_row_sides():
    """Prediction of one row: milliseconds"""
    return predict_sides(1)


def many_rows_sides():
    """Prediction of 100,000 rows: milliseconds"""
    return predict_sides(100_000)


def dataset_sides():
    """A step on a tf.data.Dataset of batches of 32, after warm-up: milliseconds"""
    import tensorflow as tf

    X, y = digits()
    data = tf.data.Dataset.from_tensor_slices((X, y)).batch(BATCH).prefetch(tf.data.AUTOTUNE)

    def fit(model):
        return lambda: model.fit(data, epochs=3, verbose=0, shuffle=False), 3 * -(-len(X) // BATCH)

    return {"kopt.Model": fit(perceptron(kopt.Model)), "Keras": fit(perceptron(keras.Model))}


ALONE = {
    "kopt.Model": lambda X, y: perceptron(kopt.Model).fit(X, y, batch_size=BATCH, epochs=EPOCHS, verbose=0),
    "Keras": lambda X, y: perceptron(keras.Model).fit(X, y, batch_size=BATCH, epochs=EPOCHS, verbose=0),
    "MLPClassifier": lambda X, y: sklearn_fit(X, y, EPOCHS),
}


def whole_sides():
    """A whole fit of 20 epochs in a fresh process after import, model and compilation included: milliseconds"""

    def alone(side):
        command = [sys.executable, __file__, "--alone", side]
        return float(subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()[-1])

    return {side: (lambda side=side: alone(side), 1) for side in ALONE}


TABLES = {
    "step": step_sides,
    "whole": whole_sides,
    "convolutional": convolutional_sides,
    "one-row": one_row_sides,
    "many-rows": many_rows_sides,
    "dataset": dataset_sides,
}


def measure(sides, rounds):
    """Returns for each side the milliseconds of a part in each round. A side may tell its seconds itself."""
    times = {side: [] for side in sides}
    for number in range(-1, rounds):
        for side, (run, parts) in sides.items():
            start = time.perf_counter()
            told = run()
            if number >= 0:  # the first round warms up
                seconds = told if isinstance(told, float) else time.perf_counter() - start
                times[side].append(1e3 * seconds / parts)
    return times


def show(console, name, rounds):
    """Measures and prints a table."""
    make = TABLES[name]
    times = measure(make(), rounds)
    ours, *_ = times
    table = Table(title=make.__doc__, box=box.SIMPLE, title_justify="left")
    for column in ("", "ms", f"{ours} / it"):
        table.add_column(column, justify="left" if not column else "right", no_wrap=True)
    for side, found in times.items():
        ratio = statistics.median(np.divide(times[ours], found))
        table.add_row(side, f"{statistics.median(found):.3g}", f"{ratio:.3g}")
    console.print(table)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tables", nargs="+", choices=TABLES, default=list(TABLES))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--alone", choices=ALONE, help="fit this once, and print the seconds")
    arguments = parser.parse_args()
    if arguments.alone:
        X, y = digits()
        start = time.perf_counter()
        ALONE[arguments.alone](X, y)
        print(time.perf_counter() - start)
        return
    console = Console()
    console.print(f"{os.cpu_count()} cores, {platform.machine()}, Keras {keras.__version__}")
    if hasattr(os, "getloadavg"):
        console.print(f"load before the start: {os.getloadavg()[0]:.1f} (well above 0, the times mean little)")
    for name in arguments.tables:
        show(console, name, arguments.rounds)


if __name__ == "__main__":
    main()
