"""Bytes of optimizer state for each weight, beside what the rule should need.

One dense layer of 512 by 1024 float32 weights, each optimizer as its defaults have it, wrappers around Adam. The
theory counts the arrays that the papers name; a row well above it keeps something twice. Weights and gradients, 4
bytes each, come on top.

    python benchmarks/memory.py
"""

import inspect
import os

os.environ["CUDA_VISIBLE_DEVICES"] = "-1"
os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"

import keras
import numpy as np
from rich import box
from rich.console import Console
from rich.table import Table

import kopt

ROWS, COLUMNS = 512, 1024
WEIGHTS = ROWS * COLUMNS

FULL = {  # arrays of the weight's shape
    0: "SGD",
    1: "Adagrad Lion Signum RMSprop Muon LARS QHM NovoGrad DoG LDoG DoWG ScheduleFreeSGD DAdaptSGD",
    2: "Adadelta Adam AdamW Adamax Nadam NadamW RAdam AdaBelief AdaBound ADOPT LaProp QHAdam StableAdamW Yogi LAMB "
    "AggMo Ftrl Rprop ScheduleFreeAdamW ScheduleFreeRAdam AdaptiveGradientClipping Cautious GradientCentralization",
    3: "AMSGrad AdEMAMix MARS MADGRAD DAdaptAdam EMA SWA Lookahead PolynomialAverage ScheduleFree Mechanic",
    4: "Adan Prodigy Graft",
}
THEORY = {name: 4 * arrays for arrays, names in FULL.items() for name in names.split()} | {
    "Adafactor": 4 * (ROWS + COLUMNS) / WEIGHTS,
    "CAME": 4 * (1 + 2 * (ROWS + COLUMNS) / WEIGHTS),
    "AdamMini": 4 * (1 + COLUMNS / WEIGHTS),
    "SM3": 4 * (1 + (ROWS + COLUMNS) / WEIGHTS),
    "GaLore": 4 * (2 * 128 * COLUMNS + 128 * ROWS) / WEIGHTS,
    "APOLLO": 4 * 2 * 256 * COLUMNS / WEIGHTS,
    "APOLLOMini": 4 * 2 * COLUMNS / WEIGHTS,
    "Quantized": 2 * (1 + 4 / 256),
    "SOAP": 4 * (2 + 2 * (ROWS**2 + COLUMNS**2) / WEIGHTS),
    "Shampoo": 4 * (2 + 2 * (ROWS**2 + COLUMNS**2) / WEIGHTS),
    "Kron": 4 * (1 + (ROWS**2 + COLUMNS**2) / WEIGHTS),
}
"""Bytes for each weight, by optimizer."""


LEFT_OUT = {"Matrices", "Optimizer", "Route", "Wrapper"}
"""The base class, and what only distributes weights to others."""


def optimizers():
    """Yields each optimizer of kopt by name."""
    for name in set(kopt.optimizers.__all__) - LEFT_OUT:
        cls = getattr(kopt, name)
        if not isinstance(cls, type) or not issubclass(cls, kopt.Optimizer):
            continue
        inside = [kopt.Adam() for default in cls._signature().values() if default is inspect.Parameter.empty]
        yield name, cls(*inside)


def state(optimizer):
    """Bytes that an optimizer keeps for the layer, without its scalars."""
    optimizer.build([keras.Variable(np.zeros((ROWS, COLUMNS), "float32"), name="kernel")])
    return sum(np.asarray(variable.numpy()).nbytes for variable in optimizer.variables if len(variable.shape))


def main():
    table = Table(title=f"Bytes of state for each of {ROWS} x {COLUMNS} weights", box=box.SIMPLE)
    table.add_column("", no_wrap=True)
    for heading in ("measured", "theory", "share of\nAdam's"):
        table.add_column(heading, justify="right", no_wrap=True)
    measured = {name: state(optimizer) / WEIGHTS for name, optimizer in optimizers()}
    for name, held in sorted(measured.items(), key=lambda row: row[1]):
        theory = f"{THEORY[name]:.3f}" if name in THEORY else "?"
        table.add_row(name, f"{held:.3f}", theory, f"{held / 8:.3f}")
    Console().print(table)


if __name__ == "__main__":
    main()
