"""How far replicas, processes, meshes and pipelines are from one device: kopt's, and Keras's own fit beside them.

python benchmarks/parity.py
python benchmarks/parity.py --optimizers Lion kopt.KFAC --engines "4 replicas" "2 processes" --cases uneven clip

Three epochs of a small network on 61 rows in batches of 16, of which the last has 13. A figure is the largest
difference of a weight from the same fit on one device, of the same library. "refused" is a sentence of kopt's before
training, "fails" another error, and "-" what there is not on one device either. Devices are logical CPUs.
"""

import argparse
import contextlib
import functools
import os
import pathlib
import subprocess
import sys
import tempfile

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
import numpy as np
import tensorflow as tf
from keras import layers, optimizers
from rich.console import Console
from rich.table import Table

import kopt

ROWS, BATCH, EVEN = 61, 16, 48
RNG = np.random.default_rng(0)
X = RNG.standard_normal((ROWS, 8)).astype("float32")
Y = (X @ RNG.standard_normal((8, 3)) + RNG.standard_normal((ROWS, 3))).astype("float32")
WEIGHTS = RNG.uniform(0.2, 3, ROWS).astype("float32")
STEPS = np.arange(4)[None, :, None] < RNG.integers(1, 5, ROWS)[:, None, None]
LAST_IN_BATCH = 3 * BATCH - 1

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
    "infinity": dict(scaled=True, infinite=True),
    "weights": dict(weighted=True),
    "mask": dict(masked=True),
    "batch norm": dict(normalized=True),
}
"""Beyond the names: an infinity is in the last row of a batch; a mask leaves each row some of its four steps."""

MODELS = {"kopt": kopt.Model, "Keras": keras.Model}
KERAS_HAS = ("2 replicas", "4 replicas", "2 processes")
ENGINES = (*KERAS_HAS, "2x2 mesh", "FSDP", "4 stages", "2 pipelines")
"""A mesh has two shards of the batch and two of the weights; FSDP four of both; each pipeline two stages."""


# ---- a fit -----------------------------------------------------------------------------------------------------------


def network(make, masked, normalized):
    """A model that `make` makes of inputs and outputs."""
    keras.utils.set_random_seed(1)
    inputs = x = keras.Input((4, 2) if masked else (8,))
    if masked:
        x = layers.Masking()(x)
    x = layers.Dense(16, activation="tanh", name="first")(x)
    if normalized:
        x = layers.BatchNormalization(synchronized=True)(x)
    x = layers.Dense(8, activation="tanh", name="second")(x)
    x = layers.Dense(8, activation="tanh", name="third")(x)
    return make(inputs, layers.Dense(4 if masked else 3, name="last")(x))


def data(rows, masked, infinite):
    """Rows and targets."""
    x, y = X[:rows].copy(), Y[:rows]
    if infinite:
        x[LAST_IN_BATCH] = np.inf
    if masked:
        x = x.reshape(-1, 4, 2) * STEPS[:rows]
        y = np.stack([x.sum(-1)] * 4, -1)
    return x, y


def fitted(
    make,
    scope,
    optimizer,
    *,
    rows=ROWS,
    options=(),
    scaled=False,
    infinite=False,
    weighted=False,
    masked=False,
    normalized=False,
):
    """The weights after a fit."""
    with scope:
        model, own = network(make, masked, normalized), (OPTIMIZERS | OTHERS)[optimizer](**dict(options))
        if scaled:
            own = optimizers.LossScaleOptimizer(own, initial_scale=4.0, dynamic_growth_steps=2)
        reduction = "mean_with_sample_weight" if weighted else "sum_over_batch_size"
        model.compile(own, keras.losses.MeanSquaredError(reduction=reduction))
    x, y = data(rows, masked, infinite)
    weights = WEIGHTS[:rows] if weighted else None
    model.fit(x, y, sample_weight=weights, batch_size=BATCH, epochs=3, shuffle=False, verbose=0)
    return [np.asarray(w) for w in model.get_weights()]


# ---- the engines -----------------------------------------------------------------------------------------------------


def engine(name, model):
    """What makes a model of inputs and outputs, and the scope for that."""
    number, _, kind = name.partition(" ")
    if kind == "replicas":
        devices = [f"CPU:{i}" for i in range(int(number))]
        sums = tf.distribute.ReductionToOneDevice()
        return MODELS[model], tf.distribute.MirroredStrategy(devices, cross_device_ops=sums).scope()
    how = {
        "2x2 mesh": (
            kopt.ShardedModel,
            dict(mesh={"batch": 2, "model": 2}, layout="tensor_parallel"),
        ),
        "FSDP": (kopt.ShardedModel, dict(mesh={"batch": 4}, shard="weights")),
        "4 stages": (kopt.PipelineModel, dict(stages=["first", "second", "third"], micro_batches=4)),
        "2 pipelines": (kopt.PipelineModel, dict(stages=["second"], micro_batches=2, pipelines=2)),
    }
    kind, arguments = how[name]
    return functools.partial(kind, **arguments), contextlib.nullcontext()


def outcome(make, scope, optimizer, case):
    """The weights after a fit, or what was said instead."""
    try:
        return fitted(make, scope, optimizer, **CASES[case])
    except Exception as error:  # of Keras, TensorFlow and kopt, of many kinds
        own = isinstance(error, TypeError | ValueError) and make not in MODELS.values()
        return "refused" if own else "fails"


def in_processes(model, asked):
    """The outcomes of two processes, by optimizer and case."""
    with tempfile.TemporaryDirectory() as folder:
        file = pathlib.Path(folder) / "weights.npz"
        command = [sys.executable, "-m", "kopt", "launch", "--workers", "2", "--restarts", "0", __file__]
        command += ["--weights", str(file), "--models", model, "--optimizers", *asked.optimizers]
        subprocess.run([*command, "--cases", *asked.cases], check=False, capture_output=True, timeout=1800)
        found = dict(np.load(file)) if file.exists() else {}
    outcomes = {}
    for optimizer in asked.optimizers:
        for case in asked.cases:
            weights = [found[key] for key in found if key.startswith(f"{optimizer}/{case}/")]
            outcomes[optimizer, case] = weights or "fails"
    return outcomes


def work(asked):
    """What each of the two processes does: all fits of a model, one after another."""
    strategy, found = tf.distribute.MultiWorkerMirroredStrategy(), {}
    for optimizer in asked.optimizers:
        for case in asked.cases:
            weights = outcome(MODELS[asked.models[0]], strategy.scope(), optimizer, case)
            if not isinstance(weights, str):
                found |= {f"{optimizer}/{case}/{i:03}": w for i, w in enumerate(weights)}
    if strategy.cluster_resolver.task_id == 0:
        np.savez(asked.weights, **found)


# ---- the table -------------------------------------------------------------------------------------------------------


def difference(one, many):
    """The largest difference of a weight, as text."""
    if isinstance(one, str) or isinstance(many, str):
        return "-" if isinstance(one, str) else many
    return f"{max(np.abs(a - b).max() for a, b in zip(one, many, strict=True)):.0e}"


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--optimizers", nargs="+", default=list(OPTIMIZERS), choices=[*OPTIMIZERS, *OTHERS])
    parser.add_argument("--cases", nargs="+", default=list(CASES), choices=list(CASES))
    parser.add_argument("--models", nargs="+", default=list(MODELS), choices=list(MODELS))
    parser.add_argument("--engines", nargs="+", default=list(ENGINES), choices=list(ENGINES))
    parser.add_argument("--weights", type=pathlib.Path, help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.weights:
        return work(asked)
    (cpu,) = tf.config.list_physical_devices("CPU")
    tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * 4)
    elsewhere = {}
    if "2 processes" in asked.engines:
        elsewhere = {model: in_processes(model, asked) for model in asked.models}
    table = Table("optimizer", "model", "engine", *asked.cases, title="Largest difference of a weight from one device")
    for optimizer in asked.optimizers:
        for model in asked.models:
            kind = MODELS[model]
            ones = {case: outcome(kind, contextlib.nullcontext(), optimizer, case) for case in asked.cases}
            for name in asked.engines:
                if model == "Keras" and name not in KERAS_HAS:
                    continue
                row = []
                for case, one in ones.items():
                    if name == "2 processes":
                        many = elsewhere[model][optimizer, case]
                    else:
                        many = one if isinstance(one, str) else outcome(*engine(name, model), optimizer, case)
                    row.append(difference(one, many))
                table.add_row(optimizer, model, name, *row)
        table.add_section()
    Console(width=150).print(table)


if __name__ == "__main__":
    main()
