"""How far n replicas are from one device: kopt.Model, and Keras's own fit beside it.

python benchmarks/parity.py
python benchmarks/parity.py --optimizers Lion kopt.KFAC --replicas 3

Three epochs of a small network on 61 rows in batches of 16, of which the last has 13. A figure is the largest
difference of a weight from the same fit on one device, of the same library; "fails" stands for an error, "-" for what
there is not. Replicas are logical CPUs of this machine.
"""

import argparse
import functools
import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
import numpy as np
import tensorflow as tf
from keras import layers, optimizers
from rich.console import Console
from rich.table import Table

import kopt

ROWS, BATCH = 61, 16
RNG = np.random.default_rng(0)
X = RNG.standard_normal((ROWS, 8)).astype("float32")
Y = (X @ RNG.standard_normal((8, 3)) + RNG.standard_normal((ROWS, 3))).astype("float32")
WEIGHTS = RNG.uniform(0.2, 3, ROWS).astype("float32")
EVEN = 48

OPTIMIZERS = {
    "SGD": lambda **how: optimizers.SGD(0.1, **how),
    "Adam": lambda **how: optimizers.Adam(0.01, **how),
    "Muon": lambda **how: optimizers.Muon(0.01, **how),
    "kopt.AdamW": lambda **how: kopt.AdamW(0.01, **how),
    "kopt.Shampoo": lambda **how: kopt.Shampoo(0.01, **how),
    "kopt.SAM": lambda **how: kopt.SAM(kopt.SGD(0.1), **how),
    "kopt.KFAC": lambda **how: kopt.KFAC(0.1, fisher="empirical", **how),
    "kopt.LBFGS": lambda **how: kopt.LBFGS(stochastic=True, **how),
}
"""What each makes of the options of `CASES`; KFAC has the data's labels, for drawn ones are others on each replica."""

OTHERS = {
    name: functools.partial(kind, 0.01)
    for name, kind in vars(optimizers).items()
    if isinstance(kind, type) and name not in ("Optimizer", "LossScaleOptimizer", *OPTIMIZERS)
}
"""The rest of Keras's, on demand."""

CASES = {
    "even": dict(rows=EVEN),
    "uneven": {},
    "clip": dict(options=dict(global_clipnorm=0.05)),
    "accumulate": dict(options=dict(gradient_accumulation_steps=2)),
    "average": dict(options=dict(use_ema=True, ema_momentum=0.9, ema_overwrite_frequency=3)),
    "loss scale": dict(scaled=True),
    "weights": dict(weighted=True),
    "batch norm": dict(normalized=True),
}


def network(kind, normalized):
    keras.utils.set_random_seed(1)
    inputs = keras.Input((8,))
    x = layers.Dense(16, activation="tanh")(inputs)
    if normalized:
        x = layers.BatchNormalization(synchronized=True)(x)
    return kind(inputs, layers.Dense(3)(x))


def fitted(kind, strategy, optimizer, *, rows=ROWS, options=(), scaled=False, weighted=False, normalized=False):
    """The weights after a fit."""
    with strategy.scope():
        model, own = network(kind, normalized), (OPTIMIZERS | OTHERS)[optimizer](**dict(options))
        if scaled:
            own = optimizers.LossScaleOptimizer(own, initial_scale=4.0, dynamic_growth_steps=2)
        reduction = "mean_with_sample_weight" if weighted else "sum_over_batch_size"
        model.compile(own, keras.losses.MeanSquaredError(reduction=reduction))
    weights = WEIGHTS[:rows] if weighted else None
    model.fit(X[:rows], Y[:rows], sample_weight=weights, batch_size=BATCH, epochs=3, shuffle=False, verbose=0)
    return model.get_weights()


def differences(kind, replicas, optimizer, case):
    """For each number of replicas the largest difference of a weight between them and one device, as text."""
    try:
        one = fitted(kind, tf.distribute.get_strategy(), optimizer, **CASES[case])
    except (TypeError, ValueError):  # such an optimizer has no such option, or keras.Model cannot show it enough
        return ["-"] * len(replicas)
    found = []
    for number in replicas:
        devices = [f"CPU:{i}" for i in range(number)]
        strategy = tf.distribute.MirroredStrategy(devices, cross_device_ops=tf.distribute.ReductionToOneDevice())
        try:
            many = fitted(kind, strategy, optimizer, **CASES[case])
        except Exception:  # of Keras and TensorFlow, of many kinds
            found.append("fails")
        else:
            found.append(f"{max(np.abs(a - b).max() for a, b in zip(one, many, strict=True)):.0e}")
    return found


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--optimizers", nargs="+", default=list(OPTIMIZERS), choices=[*OPTIMIZERS, *OTHERS])
    parser.add_argument("--cases", nargs="+", default=list(CASES), choices=list(CASES))
    parser.add_argument("--replicas", nargs="+", type=int, default=[2, 4])
    asked = parser.parse_args()
    (cpu,) = tf.config.list_physical_devices("CPU")
    tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * max(asked.replicas))
    table = Table(
        "optimizer", "model", "replicas", *asked.cases, title="Largest difference of a weight from one device"
    )
    for optimizer in asked.optimizers:
        for kind in (kopt.Model, keras.Model):
            found = [differences(kind, asked.replicas, optimizer, case) for case in asked.cases]
            for replicas, *row in zip(asked.replicas, *found, strict=True):
                table.add_row(optimizer, f"{kind.__module__.partition('.')[0]}.Model", str(replicas), *row)
        table.add_section()
    Console(width=130).print(table)


if __name__ == "__main__":
    main()
