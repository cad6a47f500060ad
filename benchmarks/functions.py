"""How often quasi-Newton methods evaluate a function and its gradient until it is at 1e-8, and how often scipy's do.

    python benchmarks/functions.py                   # L-BFGS and BFGS, in float64 and float32
    python benchmarks/functions.py --tables others   # self-scaled methods and conjugate gradients
    python benchmarks/functions.py --tables rows     # a step of L-BFGS on a million rows over its gradients

The functions, all with minimum 0, start from their standard points (Moré, Garbow and Hillstrom, 1981; CUTEst). For
scipy the first evaluation counts that is at the target, for kopt all of the step that reaches it. Where a method ends
above the target, the table has the value in the place of the count.
"""

import argparse
import os
import statistics
import time

os.environ["CUDA_VISIBLE_DEVICES"] = "-1"
os.environ["KERAS_BACKEND"] = "tensorflow"
os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"

import keras
import numpy as np
import tensorflow as tf
from rich import box
from rich.console import Console
from rich.table import Table
from scipy.optimize import minimize

import kopt
from kopt.testing.functions import FUNCTIONS, Descent, Plain
from kopt.training.batch import Batch
from kopt.training.oracle import Oracle

TARGET = 1e-8
EXACT = {  # options under which scipy goes on while it can
    "L-BFGS-B": dict(ftol=0, gtol=1e-12, maxiter=5000, maxfun=5000),
    "BFGS": dict(gtol=1e-9, maxiter=5000),
    "CG": dict(gtol=1e-9, maxiter=5000),
}


def scipys(method, function, start):
    """Evaluations of scipy's method to the target, and the least value."""
    values = []
    both = tf.function(lambda x: Plain(function, [x])())

    def evaluate(x):
        value, (gradient,) = both(tf.constant(x))
        values.append(float(value))
        return values[-1], gradient.numpy()

    minimize(evaluate, np.array(start), jac=True, method=method, options=EXACT[method])
    reached = [number for number, value in enumerate(values, start=1) if value <= TARGET]
    return (reached[0] if reached else len(values)), min(values)


def kopts(optimizer, function, start, dtype="float64"):
    """Evaluations of kopt's method to the target, and the value reached."""
    descent = Descent(optimizer, function, start, dtype)
    descent(2000, TARGET)
    return optimizer.evaluations, descent.values[-1]


def shown(count, value):
    """The count, or the value where it is above the target."""
    return f"{count}" if value <= TARGET else f"({value:.1e})"


def table(title, columns):
    """Prints a row for each function, a column for each method: a function of a function and its start."""
    found = Table(title=title, box=box.SIMPLE)
    found.add_column("")
    for name in columns:
        found.add_column(name, justify="right")
    for name, problem in FUNCTIONS.items():
        results = {column: measure(*problem) for column, measure in columns.items()}
        found.add_row(name, *(shown(*result) for result in results.values()))
    Console(width=140).print(found)


def kopt_column(cls, dtype="float64", **arguments):
    """A column of kopt's."""
    return lambda function, start: kopts(cls(**arguments), function, start, dtype)


def scipy_column(method):
    """A column of scipy's."""
    return lambda function, start: scipys(method, function, start)


TABLES = {
    "main": {
        "scipy L-BFGS-B": scipy_column("L-BFGS-B"),
        "LBFGS": kopt_column(kopt.LBFGS),
        "float32": kopt_column(kopt.LBFGS, "float32"),
        "scipy BFGS": scipy_column("BFGS"),
        "BFGS": kopt_column(kopt.BFGS),
        "float32 ": kopt_column(kopt.BFGS, "float32"),
    },
    "others": {
        "SSBFGS": kopt_column(kopt.SSBFGS),
        "SSBroyden": kopt_column(kopt.SSBroyden),
        "scipy CG": scipy_column("CG"),
        "NonlinearCG": kopt_column(kopt.NonlinearCG),
        "hager_zhang": kopt_column(kopt.NonlinearCG, beta="hager_zhang"),
    },
    "searches": {
        f"{search}, {dtype}": kopt_column(kopt.LBFGS, dtype, line_search=search)
        for dtype in ("float64", "float32")
        for search in ("zoom", "hager_zhang", "backtracking")
    },
}


def step_over_gradients(xla, rows=1_000_000, rounds=7):
    """The median time of steps of L-BFGS on so many rows, over that of as many evaluations of the gradient."""
    keras.utils.set_random_seed(0)
    rng = np.random.default_rng(0)
    x = tf.constant(rng.standard_normal((rows, 20)), tf.float32)
    y = tf.sin(tf.reduce_sum(x, 1, keepdims=True))
    inputs = keras.Input((20,))
    model = kopt.Model(inputs, keras.layers.Dense(1)(keras.layers.Dense(32, "tanh")(inputs)))
    model.compile(kopt.LBFGS(), "mse")

    def compute(through):
        outputs = model(x, training=True)
        return outputs, model.compute_loss(x, y, through(outputs), None)

    gradients = tf.function(lambda: Oracle(Batch(model, compute)).gradients(), jit_compile=xla, autograph=False)
    step = tf.function(lambda: model.train_step((x, y))["loss"], jit_compile=xla, autograph=False)
    for _ in range(12):  # until the memory is full
        step()
    gradients()
    ratios = []
    for _ in range(rounds):
        before, start = model.optimizer.evaluations, time.perf_counter()
        for _ in range(3):
            step().numpy()
        taken, evaluations = time.perf_counter() - start, model.optimizer.evaluations - before
        start = time.perf_counter()
        for _ in range(evaluations):
            gradients()[0].numpy()
        ratios.append(taken / (time.perf_counter() - start))
    return statistics.median(ratios)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tables", nargs="+", choices=[*TABLES, "rows"], default=["main"])
    for name in parser.parse_args().tables:
        if name in TABLES:
            table("Evaluations to 1e-8", TABLES[name])
        else:
            graph, xla = map(step_over_gradients, (False, True))
            print(f"a step on 1,000,000 rows over its evaluations: {graph:.2f} as a graph, {xla:.2f} by XLA")


if __name__ == "__main__":
    main()
