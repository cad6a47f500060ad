"""What a second look costs, what sharpness-aware minimization gains where labels are wrong, curves, and an autoencoder.

    python benchmarks/second_order.py                # all tables
    python benchmarks/second_order.py --tables noise --seeds 5

Times are medians of interleaved turns, as ratios: of a product with the curvature to a gradient, and of a step to that
of the optimizer inside. On the CPU.
"""

import argparse
import json
import math
import os
import pathlib
import statistics
import time

os.environ["CUDA_VISIBLE_DEVICES"] = "-1"
os.environ["KERAS_BACKEND"] = "tensorflow"
os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"

import keras
import numpy as np
import tensorflow as tf
import workloads
from rich import box
from rich.console import Console
from rich.table import Table
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

import kopt
from kopt.training.batch import Batch
from kopt.training.oracle import Oracle

ROUNDS = 10
TABLES = ["products", "steps", "noise", "curves", "autoencoder"]


def dense():
    """64-512-512-10, 1024 rows."""
    inputs = keras.Input((64,))
    x = keras.layers.Dense(512, "tanh")(keras.layers.Dense(512, "tanh")(inputs))
    return kopt.Model(inputs, keras.layers.Dense(10)(x)), (1024, 64)


def convolutional():
    """Three convolutions with batch normalization, 128 pictures of 16 by 16."""
    inputs = x = keras.Input((16, 16, 3))
    for filters in 16, 32, 32:
        x = keras.layers.Conv2D(filters, 3, padding="same", use_bias=False)(x)
        x = keras.layers.Activation("relu")(keras.layers.BatchNormalization()(x))
    x = keras.layers.GlobalAveragePooling2D()(x)
    return kopt.Model(inputs, keras.layers.Dense(10)(x)), (128, 16, 16, 3)


NETWORKS = {"dense": dense, "convolutional": convolutional}


def made(network):
    """A model, and rows and labels for it."""
    keras.utils.set_random_seed(0)
    model, shape = NETWORKS[network]()
    rng = np.random.default_rng(0)
    return model, rng.standard_normal(shape).astype("float32"), rng.integers(0, 10, shape[0])


def medians(calls, warm=2):
    """The median over the rounds of each call's seconds over the first call's, after so many calls."""
    for call in calls.values():
        for _ in range(warm):
            call()
    ratios = {name: [] for name in calls}
    for _ in range(ROUNDS):
        seconds = {}
        for name, call in calls.items():
            start = time.perf_counter()
            for _ in range(10):
                call()
            seconds[name] = time.perf_counter() - start
        for name, taken in seconds.items():
            ratios[name].append(taken / next(iter(seconds.values())))
    return {name: statistics.median(values) for name, values in ratios.items()}


def products(network, xla):
    """A product with the Hessian, and with the Gauss-Newton matrix, over a gradient."""
    model, x, y = made(network)
    model.compile("sgd", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    x, y = tf.constant(x), tf.constant(y)

    def compute(through):
        outputs = model(x, training=True)
        return outputs, model.compute_loss(x, y, through(outputs), None)

    def compiled(ask):
        function = tf.function(lambda: ask(Oracle(Batch(model, compute))), jit_compile=xla, autograph=False)
        return lambda: function()[0].numpy()

    def towards(oracle):
        return [tf.ones_like(w) for w in oracle.weights]

    return medians(
        {
            "gradient": compiled(lambda oracle: oracle.gradients()),
            "hvp": compiled(lambda oracle: oracle.hvp(towards(oracle))),
            "gnvp": compiled(lambda oracle: oracle.gnvp(towards(oracle))),
        }
    )


OPTIMIZERS = {
    "AdamW": lambda: kopt.AdamW(),
    "SAM": lambda: kopt.SAM(kopt.AdamW()),
    "ASAM": lambda: kopt.ASAM(kopt.AdamW()),
    "GSAM": lambda: kopt.GSAM(kopt.AdamW()),
    "LookSAM": lambda: kopt.LookSAM(kopt.AdamW()),
    "AdaHessian": lambda: kopt.AdaHessian(1e-3),
    "AdaHessian, every 5": lambda: kopt.AdaHessian(1e-3, every=5),
    "SophiaH": lambda: kopt.SophiaH(),
    "SophiaG": lambda: kopt.SophiaG(),
    "MoMoAdam": lambda: kopt.MoMoAdam(1e-3),
    "ExactMARS": lambda: kopt.ExactMARS(1e-3),
    "LineSearch": lambda: kopt.LineSearch(kopt.AdamW()),
}


def steps(network, xla):
    """A step in `fit` of each optimizer over that of AdamW."""

    def stepping(optimizer):
        model, x, y = made(network)
        loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
        model.compile(optimizer(), loss, jit_compile=xla)
        step = tf.function(model.train_step, jit_compile=xla, autograph=False)
        batch = tf.constant(x), tf.constant(y)
        return lambda: step(batch)["loss"].numpy()

    return medians({name: stepping(optimizer) for name, optimizer in OPTIMIZERS.items()})


NOISY = {
    "SGD": lambda: kopt.SGD(0.1, momentum=0.9),
    "SAM, 0.05": lambda: kopt.SAM(kopt.SGD(0.1, momentum=0.9)),
    "SAM, 0.5": lambda: kopt.SAM(kopt.SGD(0.1, momentum=0.9), rho=0.5),
    "ASAM, 1": lambda: kopt.ASAM(kopt.SGD(0.1, momentum=0.9), rho=1.0),
    "GSAM, 0.2": lambda: kopt.GSAM(kopt.SGD(0.1, momentum=0.9), rho=0.2),
    "GSAM, 0.5": lambda: kopt.GSAM(kopt.SGD(0.1, momentum=0.9), rho=0.5),
    "LookSAM, 0.2": lambda: kopt.LookSAM(kopt.SGD(0.1, momentum=0.9), rho=0.2),
    "LookSAM, 0.5": lambda: kopt.LookSAM(kopt.SGD(0.1, momentum=0.9), rho=0.5),
}


def noisy_accuracy(optimizer, seed, epochs=60):
    """Accuracy on clean digits after training on half of them, 40 % of whose labels are drawn at random."""
    X, y = load_digits(return_X_y=True)
    X = (X / 16).astype("float32")
    X_train, X_test, y_train, y_test = train_test_split(X, y, test_size=0.5, random_state=seed, stratify=y)
    rng = np.random.default_rng(seed)
    y_train = np.where(rng.random(len(y_train)) < 0.4, rng.integers(0, 10, len(y_train)), y_train)
    keras.utils.set_random_seed(seed)
    inputs = keras.Input((64,))
    x = keras.layers.Dense(64, "relu")(keras.layers.Dense(128, "relu")(inputs))
    model = kopt.Model(inputs, keras.layers.Dense(10)(x))
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(optimizer(), loss, jit_compile=False)
    model.fit(X_train, y_train, batch_size=128, epochs=epochs, verbose=0)
    return float(np.mean(model.predict(X_test, verbose=0).argmax(1) == y_test))


CURVES = pathlib.Path(__file__).parents[1] / "tests" / "references" / "least_squares"


class Curve(keras.layers.Layer):
    """A curve whose weight is its parameters."""

    def __init__(self, formula, start):
        super().__init__()
        self.formula, start = formula, keras.initializers.Constant(start)
        self.b = self.add_weight(shape=np.shape(start.value), initializer=start)

    def call(self, x):
        return eval(self.formula, {"b": self.b, "x": x, "exp": keras.ops.exp})


def jacobians(case, **arguments):
    """How many Jacobians Levenberg-Marquardt takes until all parameters are right to 1e-8, and how often the loss."""
    inputs = keras.Input((1,))
    model = kopt.Model(inputs, Curve(case["formula"], case["start"])(inputs))
    model.compile(kopt.LevenbergMarquardt(**arguments), keras.losses.MeanSquaredError("sum"), jit_compile=False)
    x, y = (np.array(case[name])[:, None] for name in ("x", "y"))
    end = np.abs(case["minpack"]["b"])
    for steps in range(1, 100):
        model.fit(x, y, verbose=0)
        if np.all(np.abs(np.abs(model.get_weights()[0]) - end) <= 1e-8 * end):  # a width has no sign
            return f"{steps}, {model.optimizer.evaluations}"
    return "-"


def curves():
    """For each curve of the tests, in float64: Jacobians, and evaluations of the loss."""
    keras.config.set_floatx("float64")
    keras.config.set_dtype_policy("float64")
    for path in sorted(CURVES.glob("*.json")):
        case = json.loads(path.read_text())
        minpack = case["minpack"]
        theirs = f"{minpack['jacobians_until_right']}, -", f"{minpack['njev']}, {minpack['nfev']}"
        yield path.stem, *theirs, jacobians(case), jacobians(case, shrink=1 / 3), jacobians(case, scaling="marquardt")


class Autoencoder:
    """The suite's autoencoder of digits, as a Keras model that trains on the whole data set at once."""

    def __init__(self, optimizer, seed=0, dtype="float64", xla=False):
        self.problem = workloads.Autoencoder(seed)
        keras.config.set_dtype_policy(dtype)
        inputs = x = keras.Input((64,), dtype=dtype)
        for units in 100, 50, 25, 8, 25, 50, 100:
            x = keras.layers.Dense(units, "tanh")(x)
        self.model = kopt.Model(inputs, keras.layers.Dense(64)(x))
        self.model.set_weights(list(self.problem.weights.values()))
        self.model.compile(optimizer, keras.losses.BinaryCrossentropy(from_logits=True), jit_compile=xla)
        keras.config.set_dtype_policy("float32")
        self.rows = tf.constant(self.problem.data, dtype)
        self.train = tf.function(self.model.train_step, jit_compile=xla, autograph=False)

    def step(self):
        """Takes a step."""
        return self.train((self.rows, self.rows))["loss"].numpy()

    def score(self):
        """Nats for each picture above the least that there are."""
        return self.problem.score(np, dict(zip(self.problem.weights, self.model.get_weights(), strict=True)))

    def race(self, limit=800):
        """Steps and seconds to the target; infinitely many where it is not reached."""
        seconds = 0.0
        for number in range(1, limit + 1):
            start = time.perf_counter()
            self.step()
            seconds += time.perf_counter() - start if number > 1 else 0.0  # the first compiles
            if self.score() <= self.problem.target:
                return number, seconds
        return math.inf, seconds


AUTOENCODER = {  # with the learning rates of the suite
    "AdamW": lambda: kopt.AdamW(0.005, weight_decay=None),
    "SOAP": lambda: kopt.SOAP(0.03, weight_decay=None),
    "KFAC": lambda: kopt.KFAC(),
    "AdaptiveKFAC": lambda: kopt.AdaptiveKFAC(),
}


def autoencoder_table(seeds):
    """Steps and seconds to the target, medians over the seeds, and what a step takes over AdamW's."""
    table = Table(title="Digits through 8 numbers, to 1.5 nats above the least", box=box.SIMPLE)
    for heading in ("", "steps", "least", "most", "seconds", "step, graph", "step, XLA"):
        table.add_column(heading, justify="right" if heading else "left")
    ratios = [
        medians({name: Autoencoder(make(), dtype="float32", xla=xla).step for name, make in AUTOENCODER.items()}, 20)
        for xla in (False, True)
    ]
    for name, make in AUTOENCODER.items():
        steps, seconds = zip(*(Autoencoder(make(), seed).race() for seed in seeds), strict=True)
        figures = *(f"{x:.0f}" for x in (statistics.median(steps), min(steps), max(steps))), statistics.median(seconds)
        table.add_row(name, *figures[:-1], f"{figures[-1]:.1f}", *(f"{each[name]:.2f}" for each in ratios))
    return table


def ratio_table(title, columns):
    """A table of ratios, a column for each network and compiler."""
    table = Table(title=title, box=box.SIMPLE)
    table.add_column("")
    for name in columns:
        table.add_column(name, justify="right")
    for row in next(iter(columns.values())):
        table.add_row(row, *(f"{ratios[row]:.2f}" for ratios in columns.values()))
    return table


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tables", nargs="+", choices=TABLES)
    parser.add_argument("--seeds", type=int, default=5)
    arguments = parser.parse_args()
    chosen, console = arguments.tables or TABLES, Console()
    kinds = [(network, xla) for network in NETWORKS for xla in (False, True)]
    for name, measure, title in (
        ("products", products, "Products over a gradient"),
        ("steps", steps, "A step over AdamW's"),
    ):
        if name in chosen:
            columns = {f"{network}, {'XLA' if xla else 'graph'}": measure(network, xla) for network, xla in kinds}
            console.print(ratio_table(title, columns))
    if "noise" in chosen:
        table = Table(title="Accuracy on clean test rows, 40 % of the training labels drawn at random", box=box.SIMPLE)
        for heading in ("", "mean", "least", "most"):
            table.add_column(heading, justify="right" if heading else "left")
        for name, optimizer in NOISY.items():
            found = [noisy_accuracy(optimizer, seed) for seed in range(arguments.seeds)]
            table.add_row(name, *(f"{x:.3f}" for x in (np.mean(found), min(found), max(found))))
        console.print(table)
    if "curves" in chosen:
        table = Table(title="Jacobians until all parameters are right to 1e-8, evaluations of the loss", box=box.SIMPLE)
        for heading in ("", "MINPACK", "to its end", "LevenbergMarquardt", "shrink=1/3", 'scaling="marquardt"'):
            table.add_column(heading, justify="right" if heading else "left")
        for row in curves():
            table.add_row(*row)
        console.print(table)
    if "autoencoder" in chosen:
        console.print(autoencoder_table(range(min(arguments.seeds, 3))))


if __name__ == "__main__":
    main()
