"""What regularizers give where rows are few, and what their layers cost.

*help*: each method on 200 handwritten digits, and on 200 rows of Friedman's function of 5 columns beside 25 of noise,
in the same small network, at one setting that was chosen beforehand and not tuned. The score is that on other rows,
after a number of epochs with which the network overfits. What it gains over none, with the same rows and first weights,
has its standard error. The time is that of fits without tracing, over that of none.

*speed*: forward and backward through one layer in a `tf.function`, over the same through a layer of Keras.

    python benchmarks/regularizers.py
    python benchmarks/regularizers.py --tables help --seeds 2 --families dropout "noise and mixing"
    python benchmarks/regularizers.py --tables speed --turns 30
    python benchmarks/regularizers.py --tables speed --rows any

A method that a problem has no use for has a dash there. Seeds, and repetitions of a layer, take turns over all of them.
"""

import argparse
import os
import platform
import statistics
import time
from typing import Any, NamedTuple

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("KERAS_BACKEND", "tensorflow")
os.environ.setdefault("CUDA_VISIBLE_DEVICES", "-1")

import keras
import numpy as np
import tensorflow as tf
from keras.layers import Activation, BatchNormalization, Conv2D, Dense, Dropout, Flatten, GaussianNoise, Reshape
from sklearn.datasets import load_digits, make_friedman1

import kopt
from kopt import layers, objectives, penalties

ROWS, BATCH, UNITS = 200, 32, 128
tf.get_logger().setLevel("ERROR")


# ---- the two problems --------------------------------------------------------------------------------------


class Digits:
    """Handwritten digits, 8 by 8, between 0 and 1; the score is the accuracy on 1,597 others."""

    name, columns, outputs, classes = "accuracy", 64, 10, True

    def loss(self):
        return keras.losses.SparseCategoricalCrossentropy(from_logits=True)

    def rows(self, seed):
        x, y = load_digits(return_X_y=True)
        order = np.random.default_rng(seed).permutation(len(x))
        x, y = (x[order] / 16).astype("float32"), y[order].astype("int32")
        return x[:ROWS], y[:ROWS], x[ROWS:], y[ROWS:]

    def score(self, y, outputs):
        return np.mean(outputs.argmax(axis=1) == y)


class Friedman:
    """Friedman's first function, with noise of 1 and 25 columns of noise; the score is R² on 5,000 other rows."""

    name, columns, outputs, classes = "R²", 30, 1, False

    def loss(self):
        return "mse"

    def rows(self, seed):
        x, y = make_friedman1(ROWS + 5000, n_features=self.columns, noise=1.0, random_state=seed)
        x, y = ((x - 0.5) * np.sqrt(12)).astype("float32"), y.astype("float32")[:, None]
        y = (y - y[:ROWS].mean()) / y[:ROWS].std()
        return x[:ROWS], y[:ROWS], x[ROWS:], y[ROWS:]

    def score(self, y, outputs):
        return 1 - np.mean((outputs - y) ** 2) / np.var(y)


PROBLEMS = Digits(), Friedman()


# ---- the networks ------------------------------------------------------------------------------------------


class How(NamedTuple):
    """What a method puts where; all else is that of none."""

    first: Any = None  # makes a layer before the first
    wrap: Any = None  # makes a layer of a hidden one
    normalize: Any = None  # makes a layer between a hidden one and its activation
    after: Any = None  # makes a layer behind each activation
    last: Any = None  # makes a layer behind the logits
    kernel: Any = None  # the regularizer of hidden kernels
    objective: Any = None
    optimizer: Any = None
    body: str = "dense"


def hidden(how, layer, h):
    """A hidden layer with its activation, and what a method has around it."""
    h = (how.wrap(layer) if how.wrap else layer)(h)
    h = how.normalize()(h) if how.normalize else h
    h = Activation("relu", name=f"relu_{layer.name}")(h)
    return how.after()(h) if how.after and how.body != "residual" else h


def network(problem, how):
    """Two hidden layers; the second may have a connection around it, or both be convolutions."""
    inputs = h = keras.Input((problem.columns,))
    h = how.first()(h) if how.first else h
    if how.body == "convolution":
        h = Reshape((8, 8, 1))(h)
        for number in range(2):
            h = hidden(how, Conv2D(32, 3, padding="same", name=f"hidden_{number}"), h)
        h = Flatten()(h)
    else:
        for number in range(2):
            below, h = h, hidden(how, Dense(UNITS, kernel_regularizer=how.kernel, name=f"hidden_{number}"), h)
            if how.body == "residual" and number:
                h = below + (how.after()(h) if how.after else h)
    h = Dense(problem.outputs, name="last")(h)
    return kopt.Model(inputs, how.last()(h) if how.last else h)


def proximal(pattern, penalty):
    return How(optimizer=lambda: kopt.Proximal(kopt.Adam(1e-3), {pattern: penalty}))


def families(epochs):
    """The methods by family: a label, which names the setting, and what goes where."""
    steps = epochs * -(-ROWS // BATCH)
    growing = kopt.schedules.Linear(0, steps // 2, 1 / ROWS)
    kernels, objective = "hidden_./kernel", lambda make: How(objective=make)
    both = "relu_hidden_0", "relu_hidden_1"
    return {
        "none": {"none": How()},
        "dropout": {
            "Dropout(0.5), Keras's": How(after=lambda: Dropout(0.5)),
            "DropConnect(0.5)": How(wrap=lambda layer: layers.DropConnect(layer, 0.5)),
            "ConcreteDropout(entropy=2/N)": How(wrap=lambda layer: layers.ConcreteDropout(layer, entropy=2 / ROWS)),
            "VariationalDropout(0 to 1/N)": How(wrap=lambda layer: layers.VariationalDropout(layer, growing)),
            "FeatureDropout(0.2) of inputs": How(first=lambda: layers.FeatureDropout(0.2)),
            "none, residual": How(body="residual"),
            "DropPath(0.2), residual": How(body="residual", after=lambda: layers.DropPath(0.2)),
        },
        "normalization": {
            "BatchNormalization, Keras's": How(normalize=BatchNormalization),
            "BatchRenormalization": How(normalize=layers.BatchRenormalization),
            "GhostBatchNormalization(8)": How(normalize=lambda: layers.GhostBatchNormalization(8)),
            "LayerNormalization, Keras's": How(normalize=keras.layers.LayerNormalization),
            "WeightNormalization": How(wrap=layers.WeightNormalization),
            "WeightStandardization(scaled)": How(
                wrap=lambda layer: layers.WeightStandardization(layer, scaled=True, gain=1.7139)
            ),
        },
        "noise and mixing": {
            "GaussianNoise(0.1), Keras's": How(first=lambda: GaussianNoise(0.1)),
            "MixUp(0.2)": objective(lambda: objectives.MixUp(0.2)),
            "ManifoldMixup(2)": objective(lambda: objectives.ManifoldMixup(both)),
            "FGSM(0.1)": objective(lambda: objectives.FGSM(0.1)),
            "VAT(1)": objective(lambda: objectives.VAT(1.0)),
            "TRADES(0.1)": objective(lambda: objectives.TRADES(0.1)),
            "RDrop(1) with Dropout(0.5)": How(after=lambda: Dropout(0.5), objective=objectives.RDrop),
            "Flooding(0.05)": objective(lambda: objectives.Flooding(0.05)),
            "GradientPenalty(0.1)": objective(lambda: objectives.GradientPenalty(0.1)),
            "JacobianPenalty(0.01)": objective(objectives.JacobianPenalty),
            "LabelSmoothing(0.1)": objective(objectives.LabelSmoothing),
            "OnlineLabelSmoothing": objective(lambda: objectives.OnlineLabelSmoothing(10, -(-ROWS // BATCH))),
        },
        "penalties": {
            "AdamW(weight_decay=0.01)": How(optimizer=lambda: kopt.AdamW(1e-3, weight_decay=1e-2)),
            "AdamW(weight_decay=1)": How(optimizer=lambda: kopt.AdamW(1e-3, weight_decay=1.0)),
            "L2(1e-3), Keras's": How(kernel=keras.regularizers.L2(1e-3)),
            "Lasso(1e-3)": How(kernel=penalties.Lasso(1e-3)),
            "Proximal, Lasso(0.1)": proximal(kernels, penalties.Lasso(0.1)),
            "Proximal, GroupLasso(0.1)": proximal(kernels, penalties.GroupLasso(0.1)),
            "Proximal, GroupLasso(0.1) of inputs": proximal("hidden_0/kernel", penalties.GroupLasso(0.1, by="input")),
            "Orthogonal(0.1, spectral)": How(kernel=penalties.Orthogonal(0.1, "spectral")),
            "SpectralNorm(0.01)": How(kernel=penalties.SpectralNorm(0.01)),
            "DeCov(0.1)": How(after=lambda: layers.DeCov(0.1)),
            "ConfidencePenalty(0.1)": How(last=lambda: layers.ConfidencePenalty(0.1, from_logits=True)),
            "L0Gate(0.01) of inputs": How(first=lambda: layers.L0Gate(0.01)),
        },
        "convolutions": {
            "none, convolutions": How(body="convolution"),
            "Dropout(0.1), Keras's": How(body="convolution", after=lambda: Dropout(0.1)),
            "FeatureDropout(0.1)": How(body="convolution", after=lambda: layers.FeatureDropout(0.1)),
            "DropBlock2D(0.1, block=3)": How(body="convolution", after=lambda: layers.DropBlock2D(0.1, block=3)),
            "BatchNormalization, Keras's ": How(body="convolution", normalize=BatchNormalization),
            "FilterResponseNormalization": How(
                body="convolution", normalize=lambda: layers.FilterResponseNormalization(tlu=False)
            ),
        },
    }


NONE = {"dense": "none", "residual": "none, residual", "convolution": "none, convolutions"}
"""What a method is measured against, by its body."""

CLASSES_ONLY = {"LabelSmoothing(0.1)", "OnlineLabelSmoothing", "ConfidencePenalty(0.1)"}
"""What has no meaning in a regression; convolutions have none on columns."""


# ---- help --------------------------------------------------------------------------------------------------


class Fit:
    """A method on a problem: traced once, and begun again from other weights for each seed."""

    def __init__(self, problem, how, epochs):
        self.problem, self.how, self.epochs = problem, how, epochs
        self.model, self.objective = self._new(0)
        optimizer = (how.optimizer or (lambda: kopt.Adam(1e-3)))()
        self.model.compile(optimizer, problem.loss(), jit_compile=False, objective=self.objective)
        optimizer.build(self.model.trainable_variables)
        self.start = [v.numpy() for v in optimizer.variables]
        self._fit(0, 1)  # traces
        self.scores, self.seconds = [], []

    def _new(self, seed):
        keras.utils.set_random_seed(seed)
        return network(self.problem, self.how), self.how.objective and self.how.objective()

    def _fit(self, seed, epochs):
        fresh, objective = self._new(seed)
        for old, new in zip(self.model.layers, fresh.layers, strict=True):
            assign(old.variables, new.variables)
        if objective is not None:
            assign(self.objective.variables, objective.variables)
        assign(self.model.optimizer.variables, self.start)
        x, y, x_test, y_test = self.problem.rows(seed)
        keras.utils.set_random_seed(seed)
        start = time.perf_counter()
        self.model.fit(x, y, batch_size=BATCH, epochs=epochs, verbose=0)
        taken = time.perf_counter() - start
        return self.problem.score(y_test, np.asarray(self.model(x_test, training=False))), taken

    def run(self, seed):
        score, seconds = self._fit(seed, self.epochs)
        self.scores.append(score)
        self.seconds.append(seconds)

    def cells(self, none):
        """The score; the mean gain over none, which has the same seeds, and its standard error; the ratio of times."""
        gains = np.subtract(self.scores, none.scores)
        error = np.std(gains) / max(1, len(gains) - 1) ** 0.5
        score = f"{np.mean(self.scores):.3f} ± {np.std(self.scores):.3f}"
        gain = "" if none is self else f"{round(np.mean(gains), 3) + 0.0:+.3f} ± {error:.3f}"
        return score, gain, f"{statistics.median(np.divide(self.seconds, none.seconds)):.1f}"


def assign(variables, values):
    for variable, value in zip(variables, values, strict=True):
        variable.assign(value)


def help_table(epochs, seeds, chosen):
    """Prints a row for each method: its score, what that gains over none, and the time over that of none."""
    began = time.perf_counter()
    methods = {family: how for family, how in families(epochs).items() if family in {"none", *chosen}}
    fits = {}
    for family, hows in methods.items():
        for name, how in hows.items():
            for problem in PROBLEMS:
                if problem.classes or (family != "convolutions" and name not in CLASSES_ONLY):
                    fits[name, problem] = Fit(problem, how, epochs)
    for seed in range(seeds):
        for fit in fits.values():
            fit.run(seed)

    print(f"\n{epochs} epochs of {ROWS} rows in batches of {BATCH}, {seeds} seeds: mean ± standard deviation\n")
    heads = [
        head for problem in PROBLEMS for head in (f"{type(problem).__name__}, {problem.name}", "over none", "time")
    ]
    print("| family | method |", " | ".join(heads), "|")
    print("|---|---|" + "---:|" * len(heads))
    for family, hows in methods.items():
        for name, how in hows.items():
            pairs = [(fits.get((name, problem)), fits.get((NONE[how.body], problem))) for problem in PROBLEMS]
            cells = [cell for fit, none in pairs for cell in (fit.cells(none) if fit else ["-"] * 3)]
            print(f"| {family} | {name.strip()} |", " | ".join(cells), "|")
    print(f"\nIt took {(time.perf_counter() - began) / 60:.0f} minutes.")


# ---- speed -------------------------------------------------------------------------------------------------

FLAT, IMAGE, TOKENS = (256, 512), (32, 16, 16, 64), (32, 256, 64)


def dense(wrap):
    return lambda: wrap(Dense(512))


LAYERS = [  # name: (the shapes, how to make it); the first is what the others are measured against
    {
        "Dropout, Keras's": ((FLAT, IMAGE, TOKENS), lambda: Dropout(0.2)),
        "DropPath": ((FLAT, IMAGE), lambda: layers.DropPath(0.2)),
        "FeatureDropout": ((FLAT, IMAGE), lambda: layers.FeatureDropout(0.2)),
        "TokenDropout": ((TOKENS,), lambda: layers.TokenDropout(0.2)),
        "PatchDropout": ((TOKENS,), lambda: layers.PatchDropout(0.2)),
        "ShakeDrop": ((FLAT, IMAGE), layers.ShakeDrop),
        "DropBlock2D(block=3)": ((IMAGE,), lambda: layers.DropBlock2D(0.1, block=3)),
        "DropBlock2D(block=3, shared)": ((IMAGE,), lambda: layers.DropBlock2D(0.1, block=3, shared=True)),
        "LayerScale": ((FLAT, IMAGE), layers.LayerScale),
        "L0Gate": ((FLAT, IMAGE), lambda: layers.L0Gate(1e-3)),
        "L0Gate(mode='sample')": ((FLAT, IMAGE), lambda: layers.L0Gate(1e-3, mode="sample")),
    },
    {
        "BatchNormalization, Keras's": ((FLAT, IMAGE), BatchNormalization),
        "SyncBatchNormalization": ((FLAT, IMAGE), layers.SyncBatchNormalization),
        "BatchRenormalization": ((FLAT, IMAGE), layers.BatchRenormalization),
        "GhostBatchNormalization(8)": ((FLAT, IMAGE), lambda: layers.GhostBatchNormalization(8)),
        "FilterResponseNormalization": ((IMAGE,), layers.FilterResponseNormalization),
    },
    {
        "Dense, Keras's": ((FLAT,), lambda: Dense(512)),
        "DropConnect": ((FLAT,), dense(lambda layer: layers.DropConnect(layer, 0.2))),
        "ConcreteDropout": ((FLAT,), dense(layers.ConcreteDropout)),
        "VariationalDropout": ((FLAT,), dense(lambda layer: layers.VariationalDropout(layer, 1e-3))),
        "WeightNormalization": ((FLAT,), dense(layers.WeightNormalization)),
        "WeightStandardization": ((FLAT,), dense(layers.WeightStandardization)),
    },
]


def both_ways(layer, shape, inside, rows):
    """A program of many passes forward and backward through a layer, one after the other, for these or any rows."""
    rng = np.random.default_rng(0)
    x = tf.constant(rng.standard_normal(shape), tf.float32)
    slope = tf.constant(rng.standard_normal(layer(x, training=True).shape), tf.float32)  # builds it, too

    known = x.shape[0] if rows == "known" else None

    @tf.function(input_signature=[tf.TensorSpec([known, *tensor.shape[1:]]) for tensor in (x, slope)])
    def run(x, slope):
        found = tf.constant(0.0)
        for _ in tf.range(inside):
            tf.autograph.experimental.set_loop_options(parallel_iterations=1)
            with tf.GradientTape() as tape:
                tape.watch(x)
                y = layer(x, training=True)
                outputs = [y, *layer.losses]
            weights = [v.value for v in layer.trainable_variables]
            gradients = tape.gradient(outputs, [x, *weights], output_gradients=[slope, *map(tf.ones_like, outputs[1:])])
            for computed in (y, *(g for g in gradients if g is not None)):  # or TensorFlow would leave it out
                found += tf.reshape(computed, [-1])[0]
        return found

    return lambda: run(x, slope).numpy()


def speed_table(turns, inside, rows):
    """Prints the median microseconds of a pass forward and backward, and their ratio to those of Keras's layer."""
    print(f"\nForward and backward, {rows} number of rows, the median of {turns} turns of {inside} passes\n")
    print("| layer | shape | µs | over Keras's |\n|---|---|---:|---:|")
    for family in LAYERS:
        cases = [(name, shape, make) for name, (shapes, make) in family.items() for shape in shapes]
        rival = next(iter(family))
        programs = {(name, shape): both_ways(make(), shape, inside, rows) for name, shape, make in cases}
        times = {case: [] for case in programs}
        for turn in range(turns + 1):
            for case, program in programs.items():
                start = time.perf_counter()
                program()
                if turn:
                    times[case].append((time.perf_counter() - start) / inside)
        for (name, shape), found in times.items():
            ratio = statistics.median(np.divide(found, times[rival, shape]))
            print(f"| {name} | {' x '.join(map(str, shape))} | {1e6 * statistics.median(found):.0f} | {ratio:.2f} |")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    known = [family for family in families(1) if family != "none"]
    parser.add_argument("--tables", nargs="+", choices=["help", "speed"], default=["help", "speed"])
    parser.add_argument("--epochs", type=int, default=60)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--families", nargs="+", choices=known, default=known)
    parser.add_argument("--turns", type=int, default=15, help="repetitions of each layer")
    parser.add_argument("--passes", type=int, default=20, help="passes in each repetition")
    parser.add_argument("--rows", choices=["known", "any"], default="known", help="what programs are traced for")
    arguments = parser.parse_args()
    print(f"{os.cpu_count()} cores, {platform.machine()}, TensorFlow {tf.__version__}, Keras {keras.__version__}")
    if "help" in arguments.tables:
        help_table(arguments.epochs, arguments.seeds, arguments.families)
    if "speed" in arguments.tables:
        speed_table(arguments.turns, arguments.passes, arguments.rows)


if __name__ == "__main__":
    main()
