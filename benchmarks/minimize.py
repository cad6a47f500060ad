"""Whole data sets: Burgers' equation to an accuracy, and kopt.minimize beside scipy's L-BFGS-B driving the same model.

    python benchmarks/minimize.py                     # both tables
    python benchmarks/minimize.py --tables burgers --seeds 3
    python benchmarks/minimize.py --tables scipy

On the CPU, in float64. Times include tracing and compilation, on either side.
"""

import argparse
import importlib.util
import os
import pathlib
import statistics
import time

os.environ["CUDA_VISIBLE_DEVICES"] = "-1"
os.environ["KERAS_BACKEND"] = "tensorflow"
os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"

import keras
import numpy as np
import scipy.optimize
import tensorflow as tf
from rich import box
from rich.console import Console
from rich.table import Table
from sklearn.datasets import load_digits

import kopt

EXAMPLE = pathlib.Path(__file__).parents[1] / "examples" / "burgers.py"


def example():
    """`examples/burgers.py` as a module."""
    spec = importlib.util.spec_from_file_location("burgers", EXAMPLE)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


# ---- Burgers' equation: 921 weights, 600 points, 500 steps of AdamW, then one of these ------------------------------

FINISHES = {  # the method, its iterations, and the relative error that it is to reach
    "AdamW": (lambda: kopt.AdamW(5e-3, weight_decay=0.0), 2000, None),
    "LBFGS": (lambda: kopt.LBFGS(pairs=100), 1400, 1e-3),
    "BFGS": (lambda: kopt.BFGS(), 1000, 4.5e-4),
    "SSBFGS": (lambda: kopt.SSBFGS(), 1000, None),
    "SSBroyden": (lambda: kopt.SSBroyden(), 1000, None),
}
STRETCH = {  # the classic viscosity 0.01/π: the same points and budget
    "SSBroyden": (lambda: kopt.SSBroyden(), 3000, None),
    "NysNewtonCG": (lambda: kopt.NysNewtonCG(), 200, None),
    "LevenbergMarquardt": (lambda: kopt.LevenbergMarquardt(), 500, None),
}


def burgers(finishes, viscosity, seeds):
    """Rows of method, relative errors' median and all, evaluations and seconds."""
    problem = example()
    for name, (method, iterations, target) in finishes.items():
        errors, evaluations, seconds = [], [], []
        for seed in range(seeds):
            start = time.perf_counter()
            _, result, _, error = problem.solve(method(), viscosity=viscosity, iterations=iterations, seed=seed)
            errors.append(error)
            seconds.append(time.perf_counter() - start)
            evaluations.append(result.nfev + result.nhev)
        yield (
            name,
            f"{statistics.median(errors):.1e}",
            ", ".join(f"{e:.1e}" for e in errors),
            "" if target is None else f"{target:.1e}",
            f"{statistics.median(evaluations):.0f}",
            f"{statistics.median(seconds):.0f}",
        )


# ---- kopt.minimize beside scipy -------------------------------------------------------------------------------------


def digits():
    """A classifier of the digits with a penalty, in float64."""
    x, y = load_digits(return_X_y=True)
    keras.utils.set_random_seed(0)
    inputs = keras.Input((64,))
    hidden = keras.layers.Dense(32, "tanh", kernel_regularizer=keras.regularizers.L2(1e-4))(inputs)
    model = keras.Model(inputs, keras.layers.Dense(10, kernel_regularizer=keras.regularizers.L2(1e-4))(hidden))
    model.compile(loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    return model, x / 16, y


def surface():
    """A small network through a hundred points of a function of three variables."""
    x = np.random.default_rng(0).uniform(-1, 1, (100, 3))
    keras.utils.set_random_seed(0)
    hidden = [keras.layers.Dense(16, "tanh") for _ in range(2)]
    model = keras.Sequential([keras.Input((3,)), *hidden, keras.layers.Dense(1)])
    model.compile(loss="mse")
    return model, x, np.sin(3 * x[:, :1]) * x[:, 1:2] + x[:, 2:]


def equation():
    """The network of Burgers' equation."""
    problem = example()
    keras.utils.set_random_seed(0)
    model = problem.Burgers(0.1 / np.pi)
    x, y = problem.points()
    model(x[:1])
    model.compile()
    return model, x, y


PROBLEMS = {  # how to make it, and the loss to reach
    "a surface, 353 weights, 100 rows": (surface, 1e-5),
    "Burgers, 921 weights, 600 rows": (equation, 1e-4),
    "digits, 2410 weights, 1797 rows": (digits, 0.04),
}


class Reached(Exception):
    """The target is reached."""


def by_scipy(make, target, xla):
    """Seconds to the target by scipy's L-BFGS-B, which calls a compiled loss and gradient of the model."""
    model, x, y = make()
    start = time.perf_counter()
    x, y = tf.constant(x), tf.constant(y)
    variables = [v.value for v in model.trainable_variables]
    shapes = [v.shape for v in variables]
    ends = np.cumsum([np.prod(s, dtype=int) for s in shapes])[:-1]

    @tf.function(jit_compile=xla, autograph=False)
    def answer():
        with tf.GradientTape() as tape:
            loss = model.compute_loss(x, y, model(x, training=True), None)
        return loss, tape.gradient(loss, variables, unconnected_gradients="zero")

    def fun(vector):
        for variable, part, shape in zip(variables, np.split(vector, ends), shapes, strict=True):
            variable.assign(part.reshape(shape))
        loss, gradient = answer()
        if float(loss) <= target:
            raise Reached
        return float(loss), np.concatenate([g.numpy().ravel() for g in gradient])

    begin = np.concatenate([v.numpy().ravel() for v in variables])
    try:
        scipy.optimize.minimize(fun, begin, jac=True, method="L-BFGS-B", options=dict(maxiter=5000, maxfun=10000))
    except Reached:
        return time.perf_counter() - start
    return float("nan")


def by_kopt(make, target, method):
    """Seconds to the target by `kopt.minimize`."""
    model, x, y = make()
    start = time.perf_counter()
    result = kopt.minimize(model, x, y, method=method, ftarget=target, maxiter=5000, gtol=0.0, verbose=0)
    seconds = time.perf_counter() - start
    return seconds if result.fun <= target else float("nan")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tables", nargs="+", choices=["burgers", "stretch", "scipy"])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    chosen, console = arguments.tables or ["burgers", "scipy"], Console()
    keras.config.set_floatx("float64")
    for name, finishes, viscosity in (("burgers", FINISHES, 0.1 / np.pi), ("stretch", STRETCH, 0.01 / np.pi)):
        if name in chosen:
            table = Table(title=f"Burgers' equation, ν = {viscosity:.4f}, after 500 steps of AdamW", box=box.SIMPLE)
            for heading in ("then", "relative error", "each seed", "asked", "evaluations", "seconds"):
                table.add_column(heading, justify="right" if heading != "then" else "left")
            for row in burgers(finishes, viscosity, arguments.seeds):
                table.add_row(*row)
            console.print(table)
    if "scipy" in chosen:
        table = Table(title="Seconds to a loss, compilation included; beside the faster of scipy's", box=box.SIMPLE)
        for heading in ("", "LBFGS", "ratio", "SSBroyden", "ratio", "scipy, graph", "scipy, XLA"):
            table.add_column(heading, justify="right" if heading else "left")
        for name, (make, target) in PROBLEMS.items():
            rounds = [
                (
                    *(by_kopt(make, target, method) for method in ("LBFGS", "SSBroyden")),
                    *(by_scipy(make, target, xla) for xla in (False, True)),
                )
                for _ in range(arguments.rounds)
            ]
            *ours, graph, xla = (statistics.median(values) for values in zip(*rounds, strict=True))
            pairs = (f"{number:.2f}" for mine in ours for number in (mine, mine / min(graph, xla)))
            table.add_row(name, *pairs, f"{graph:.2f}", f"{xla:.2f}")
        console.print(table)


if __name__ == "__main__":
    main()
