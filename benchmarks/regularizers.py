"""What regularizers do for a small network on little data, and what they cost: `python benchmarks/regularizers.py`.

Two tables. `help`: the score on test rows of each method against none, on 200 digits and on a noisy regression, for
five seeds, each at one customary setting, chosen beforehand; losers included. `speed`: a forward and backward pass
of each layer over that of Keras's Dropout, BatchNormalization or Dense of the same shape.
"""

import argparse
import functools
import statistics
import time

import keras
import numpy as np
import tensorflow as tf
from keras import layers
from sklearn.datasets import load_digits, make_friedman1
from sklearn.metrics import r2_score
from sklearn.model_selection import train_test_split

import kopt
from kopt import layers as kl
from kopt import objectives, penalties

UNITS, ROWS = 128, 200


def digits(seed):
    """200 rows to train, the rest to test."""
    x, y = load_digits(return_X_y=True)
    how = dict(train_size=ROWS, stratify=y, random_state=seed)
    return [part.astype("float32") for part in train_test_split(x / 16, y, **how)]


def noisy_regression(seed):
    """200 rows of Friedman's first function, with 25 columns of no use, and noise."""
    x, y = make_friedman1(ROWS + 4000, n_features=30, noise=2.0, random_state=seed)
    x, y = (x - 0.5) * np.sqrt(12), (y - 14.4) / 5
    parts = train_test_split(x, y, train_size=ROWS, random_state=seed)
    return [part.astype("float32") for part in parts]


TASKS = {"digits": digits, "regression": noisy_regression}


def around(wrapper, **how):
    """A dense layer inside of a wrapper, which has the name."""
    return lambda *args, name=None, **kwargs: wrapper(layers.Dense(*args, **kwargs), name=name, **how)


def regularized(regularizer):
    return functools.partial(layers.Dense, kernel_regularizer=regularizer)


STEPS = ROWS // 32 + 1

METHODS = {
    "none": ("", {}),
    "Dropout(0.3)": ("dropout", dict(behind=lambda: layers.Dropout(0.3))),
    "FeatureDropout(0.1) of inputs": ("dropout", dict(first=lambda: kl.FeatureDropout(0.1))),
    "DropConnect(0.3)": ("dropout", dict(dense=around(kl.DropConnect, rate=0.3))),
    "ConcreteDropout": ("dropout", dict(dense=around(kl.ConcreteDropout, weight_decay=1e-4 / ROWS, entropy=2 / ROWS))),
    "VariationalDropout(1 / rows)": ("dropout", dict(dense=around(kl.VariationalDropout, strength=1 / ROWS))),
    "DropPath(0.2), residual": ("dropout", dict(residual=True, behind=lambda: kl.DropPath(0.2))),
    "residual alone": ("dropout", dict(residual=True)),
    "BatchNormalization": ("normalization", dict(normalize=layers.BatchNormalization)),
    "BatchRenormalization": ("normalization", dict(normalize=kl.BatchRenormalization)),
    "GhostBatchNormalization(8)": ("normalization", dict(normalize=lambda: kl.GhostBatchNormalization(8))),
    "LayerNormalization": ("normalization", dict(normalize=layers.LayerNormalization)),
    "WeightNormalization": ("normalization", dict(dense=around(kl.WeightNormalization))),
    "WeightStandardization": ("normalization", dict(dense=around(kl.WeightStandardization, scaled=True, gain=1.0))),
    "GaussianNoise(0.1) of inputs": ("noise", dict(first=lambda: layers.GaussianNoise(0.1))),
    "GradientNoise(0.01)": ("noise", dict(optimizer=lambda: kopt.GradientNoise(kopt.Adam(1e-3), eta=0.01))),
    "MixUp(0.2)": ("objective", dict(objective=lambda: objectives.MixUp(0.2))),
    "ManifoldMixup(2)": ("objective", dict(objective=lambda: objectives.ManifoldMixup(["hidden_1"], 2.0))),
    "LabelSmoothing(0.1)": ("objective", dict(objective=lambda: objectives.LabelSmoothing(0.1), only="digits")),
    "OnlineLabelSmoothing": (
        "objective",
        dict(objective=lambda: objectives.OnlineLabelSmoothing(10, STEPS), only="digits"),
    ),
    "Flooding(0.02)": ("objective", dict(objective=lambda: objectives.Flooding(0.02))),
    "FGSM(0.05)": ("objective", dict(objective=lambda: objectives.FGSM(0.05))),
    "VAT(1)": ("objective", dict(objective=lambda: objectives.VAT(1.0))),
    "TRADES(0.05)": ("objective", dict(objective=lambda: objectives.TRADES(0.05, iterations=3))),
    "RDrop(1), Dropout(0.3)": (
        "objective",
        dict(objective=lambda: objectives.RDrop(1.0), behind=lambda: layers.Dropout(0.3)),
    ),
    "GradientPenalty(0.1)": ("objective", dict(objective=lambda: objectives.GradientPenalty(0.1))),
    "JacobianPenalty(0.01)": ("objective", dict(objective=lambda: objectives.JacobianPenalty(0.01))),
    "L2(1e-4)": ("penalty", dict(dense=regularized(keras.regularizers.L2(1e-4)))),
    "AdamW(weight_decay=0.1)": ("penalty", dict(optimizer=lambda: kopt.AdamW(1e-3, weight_decay=0.1))),
    "AdamW(weight_decay=1)": ("penalty", dict(optimizer=lambda: kopt.AdamW(1e-3, weight_decay=1.0))),
    "Lasso(1e-4)": ("penalty", dict(dense=regularized(penalties.Lasso(1e-4)))),
    "Proximal, GroupLasso(0.01) by input": (
        "penalty",
        dict(
            optimizer=lambda: kopt.Proximal(
                kopt.Adam(1e-3), {"hidden_0/kernel": penalties.GroupLasso(0.01, by="input")}
            )
        ),
    ),
    "Orthogonal(1e-3)": ("penalty", dict(dense=regularized(penalties.Orthogonal(1e-3)))),
    "SpectralNorm(0.01)": ("penalty", dict(dense=regularized(penalties.SpectralNorm(0.01)))),
    "DeCov(0.01)": ("penalty", dict(behind=lambda: kl.DeCov(0.01))),
    "ConfidencePenalty(0.1)": ("penalty", dict(confidence=0.1, only="digits")),
    "L0Gate of inputs": ("penalty", dict(first=lambda: kl.L0Gate(1e-3))),
}
"""Families and settings by name: what differs from the network without any."""


def build(
    task, shape, *, dense=layers.Dense, first=None, behind=None, normalize=None, residual=False, confidence=None, **_
):
    """The small network: two hidden layers, and what a method puts around them."""
    inputs = h = keras.Input(shape)
    h = first()(h) if first else h
    for number in range(2):
        z = dense(UNITS, activation=None if normalize else "relu", name=f"hidden_{number}")(h)
        z = layers.Activation("relu")(normalize()(z)) if normalize else z
        z = behind()(z) if behind else z
        h = h + z if residual and number else z
    outputs = layers.Dense(10 if task == "digits" else 1)(h)
    if confidence:
        outputs = kl.ConfidencePenalty(confidence, from_logits=True)(outputs)
    return kopt.Model(inputs, outputs)


def score(task, how, seed, epochs):
    """The score on test rows, and the seconds of training."""
    x, x_test, y, y_test = TASKS[task](seed)
    keras.utils.set_random_seed(seed)
    model = build(task, x.shape[1:], **how)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True) if task == "digits" else "mse"
    optimizer, objective = how.get("optimizer", lambda: kopt.Adam(1e-3))(), how.get("objective", lambda: None)()
    model.compile(optimizer, loss, objective=objective, jit_compile=False)
    model.fit(x, y, batch_size=32, epochs=2, verbose=0)  # compiles
    began = time.perf_counter()
    model.fit(x, y, batch_size=32, epochs=epochs - 2, verbose=0)
    seconds = time.perf_counter() - began
    outputs = model.predict(x_test, verbose=0)
    return (np.mean(outputs.argmax(1) == y_test) if task == "digits" else r2_score(y_test, outputs[:, 0])), seconds


def table_of_help(seeds, epochs):
    found = {}
    for seed in range(seeds):
        for name, (_, how) in METHODS.items():
            for task in TASKS:
                if how.get("only", task) == task:
                    found.setdefault((name, task), []).append(score(task, how, seed, epochs))
                    keras.backend.clear_session()
    print(f"Test score after {epochs} epochs on {ROWS} rows: mean and standard deviation over {seeds} seeds.\n")
    print("| family | method | digits: accuracy | over none | regression: R² | over none | time over none |")
    print("|---|---|---:|---:|---:|---:|---:|")
    for name, (family, _) in METHODS.items():
        cells, ratios = [], []
        for task in TASKS:
            if (name, task) not in found:
                cells += ["-", "-"]
                continue
            scores, times = zip(*found[name, task], strict=True)
            base, base_times = zip(*found["none", task], strict=True)
            gain = np.subtract(scores, base)
            cells += [f"{np.mean(scores):.3f} ± {np.std(scores):.3f}", f"{np.mean(gain):+.3f} ± {np.std(gain):.3f}"]
            ratios.append(statistics.median(times) / statistics.median(base_times))
        print(f"| {family} | {name} | {' | '.join(cells)} | {statistics.mean(ratios):.2f} |")


TABLE, IMAGE = (256, 512), (32, 16, 16, 64)

SPEED = {
    "DropPath": (lambda: kl.DropPath(0.3), "Dropout", TABLE),
    "FeatureDropout": (lambda: kl.FeatureDropout(0.3), "Dropout", TABLE),
    "ShakeDrop": (lambda: kl.ShakeDrop(0.3), "Dropout", TABLE),
    "L0Gate": (lambda: kl.L0Gate(0.01), "Dropout", TABLE),
    "LayerScale": (lambda: kl.LayerScale(), "Dropout", TABLE),
    "DropPath, images": (lambda: kl.DropPath(0.3), "Dropout", IMAGE),
    "FeatureDropout, images": (lambda: kl.FeatureDropout(0.3), "Dropout", IMAGE),
    "DropBlock2D": (lambda: kl.DropBlock2D(0.1, 3), "Dropout", IMAGE),
    "TokenDropout": (lambda: kl.TokenDropout(0.3), "Dropout", (32, 64, 128)),
    "PatchDropout": (lambda: kl.PatchDropout(0.5), "Dropout", (32, 64, 128)),
    "SyncBatchNormalization": (lambda: kl.SyncBatchNormalization(), "BatchNormalization", TABLE),
    "BatchRenormalization": (lambda: kl.BatchRenormalization(), "BatchNormalization", TABLE),
    "GhostBatchNormalization": (lambda: kl.GhostBatchNormalization(32), "BatchNormalization", TABLE),
    "SyncBatchNormalization, images": (lambda: kl.SyncBatchNormalization(), "BatchNormalization", IMAGE),
    "BatchRenormalization, images": (lambda: kl.BatchRenormalization(), "BatchNormalization", IMAGE),
    "GhostBatchNormalization, images": (lambda: kl.GhostBatchNormalization(8), "BatchNormalization", IMAGE),
    "FilterResponseNormalization": (lambda: kl.FilterResponseNormalization(), "BatchNormalization", IMAGE),
    "DropConnect": (around(kl.DropConnect, rate=0.3), "Dense", TABLE),
    "ConcreteDropout": (around(kl.ConcreteDropout), "Dense", TABLE),
    "VariationalDropout": (around(kl.VariationalDropout, strength=0.01), "Dense", TABLE),
    "WeightNormalization": (around(kl.WeightNormalization), "Dense", TABLE),
    "WeightStandardization": (around(kl.WeightStandardization), "Dense", TABLE),
}
"""A layer, or what makes one of the arguments of a dense layer, the peer, and the shape of the inputs."""

PEERS = {
    "Dropout": lambda: layers.Dropout(0.3),
    "BatchNormalization": lambda: layers.BatchNormalization(),
    "Dense": lambda: layers.Dense(512),
}


def passes(layer, shape):
    """A function that goes forward and backward through a layer some times, compiled."""
    x = tf.random.stateless_normal(shape, [0, 1])
    layer(x, training=True) if layer._call_has_training_arg else layer(x)
    weights = [v.value for v in layer.trainable_variables]
    how = dict(training=True) if layer._call_has_training_arg else {}

    @tf.function
    def run(x):
        with tf.GradientTape() as tape:
            tape.watch(x)
            y = layer(x, **how)
            loss = tf.reduce_sum(y * y) + sum(layer.losses)
        return tape.gradient(loss, [x, *weights])

    return lambda: run(x)[0].numpy()


def table_of_speed(repeats):
    print("Forward and backward pass in training, in a graph, over that of Keras's layer of the same shape.\n")
    print("| layer | over | shape | ratio |\n|---|---|---|---:|")
    for name, (make, peer, shape) in SPEED.items():
        layer = make(512) if peer == "Dense" else make()
        runs = [passes(layer, shape), passes(PEERS[peer](), shape)]
        times = [[], []]
        for turn in range(repeats + 3):
            for run, found in zip(runs, times, strict=True):
                began = time.perf_counter()
                for _ in range(5):
                    run()
                if turn > 2:
                    found.append(time.perf_counter() - began)
        ratio = statistics.median(times[0]) / statistics.median(times[1])
        print(f"| {name} | {peer} | {shape} | {ratio:.2f} |")


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--tables", nargs="+", choices=["help", "speed"], default=["help", "speed"])
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--epochs", type=int, default=100)
    parser.add_argument("--repeats", type=int, default=21)
    arguments = parser.parse_args()
    if "help" in arguments.tables:
        table_of_help(arguments.seeds, arguments.epochs)
    if "speed" in arguments.tables:
        table_of_speed(arguments.repeats)


if __name__ == "__main__":
    main()
