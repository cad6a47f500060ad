"""One step of Adam: kopt, Keras, optax and PyTorch side by side, on the same tensors, on the CPU.

Every side lives in a process of its own that sleeps until it is asked for some steps, and the sides take
turns, so that a change in the machine's load meets all of them. A missing library leaves its sides out.

    python benchmarks/step.py --steps 100 --shapes small resnet50 square --sides "kopt XLA" optax
"""

import argparse
import importlib
import multiprocessing
import os
import platform
import statistics
import time
from importlib.metadata import PackageNotFoundError, version

import numpy as np
from rich import box
from rich.console import Console
from rich.table import Table

ROUNDS = 10
"""Turns that each side takes; a side's time is the median of them."""


# ---- what is stepped ---------------------------------------------------------------------------------------


def small():
    """150 dense layers of 64 units."""
    return [(64, 64), (64,)] * 150


def resnet50():
    """The 161 weights of a ResNet-50 with 1000 classes."""

    def convolution(size, inputs, outputs):
        return [(size, size, inputs, outputs), (outputs,), (outputs,)]  # the kernel, and its batch norm's two

    shapes, inputs = convolution(7, 3, 64), 64
    for width, blocks in (64, 3), (128, 4), (256, 6), (512, 3):
        for block in range(blocks):
            shapes += convolution(1, inputs, width) + convolution(3, width, width)
            shapes += convolution(1, width, 4 * width)
            if block == 0:
                shapes += convolution(1, inputs, 4 * width)
            inputs = 4 * width
    return [*shapes, (inputs, 1000), (1000,)]


def square():
    """One large matrix."""
    return [(4096, 4096)]


SHAPES = {"small": small, "resnet50": resnet50, "square": square}


# ---- who steps: `run(steps)` takes so many and waits for the last --------------------


def keras_side(library, jit_compile):
    """Keras's way to step: `optimizer.apply` in a `tf.function`."""

    def make(weights, gradients):
        import keras
        import tensorflow as tf

        variables = [keras.Variable(w) for w in weights]
        gradients = [tf.constant(g) for g in gradients]
        optimizer = importlib.import_module(library).Adam()
        optimizer.build(variables)
        step = tf.function(lambda: optimizer.apply(gradients, variables), jit_compile=jit_compile)

        def run(steps):
            for _ in range(steps):
                step()
            variables[-1].numpy()

        return run

    return make


def optax_side(weights, gradients):
    """The update and its application in one compiled function that gives its old state away."""
    import jax
    import optax

    adam = optax.adam(1e-3)

    def step(weights, state, gradients):
        updates, state = adam.update(gradients, state, weights)
        return optax.apply_updates(weights, updates), state

    step = jax.jit(step, donate_argnums=(0, 1))
    weights, gradients = jax.device_put((weights, gradients))
    now = weights, adam.init(weights)

    def run(steps):
        nonlocal now
        for _ in range(steps):
            now = step(*now, gradients)
        jax.block_until_ready(now)

    return run


def torch_side(**implementation):
    """`torch.optim.Adam` in one of its three implementations."""

    def make(weights, gradients):
        import torch

        parameters = [torch.nn.Parameter(torch.tensor(w)) for w in weights]
        for parameter, gradient in zip(parameters, gradients, strict=True):
            parameter.grad = torch.tensor(gradient)
        optimizer = torch.optim.Adam(parameters, **implementation)

        def run(steps):
            for _ in range(steps):
                optimizer.step()

        return run

    return make


SIDES = {  # name: (the package it needs, how to make it)
    "kopt graph": ("tensorflow", keras_side("kopt", jit_compile=False)),
    "kopt XLA": ("tensorflow", keras_side("kopt", jit_compile=True)),
    "Keras graph": ("tensorflow", keras_side("keras.optimizers", jit_compile=False)),
    "Keras XLA": ("tensorflow", keras_side("keras.optimizers", jit_compile=True)),
    "optax": ("optax", optax_side),
    "torch loop": ("torch", torch_side(foreach=False, fused=False)),
    "torch foreach": ("torch", torch_side(foreach=True)),
    "torch fused": ("torch", torch_side(fused=True)),
}


# ---- how they take turns -----------------------------------------------------------------------------------


def work(side, shapes, pipe):
    """A side's process: once ready, answers a number of steps with the seconds they took, until it is 0."""
    rng = np.random.default_rng(0)
    weights, gradients = ([rng.standard_normal(s, "float32") for s in SHAPES[shapes]()] for _ in range(2))
    run = SIDES[side][1](weights, gradients)
    pipe.send("ready")
    while steps := pipe.recv():
        start = time.perf_counter()
        run(steps)
        pipe.send(time.perf_counter() - start)


class Worker:
    """A side's process, seen from here."""

    def __init__(self, side, shapes):
        context = multiprocessing.get_context("spawn")
        self.pipe, theirs = context.Pipe()
        self.process = context.Process(target=work, args=(side, shapes, theirs), daemon=True)
        self.process.start()
        theirs.close()  # so that a worker that dies is an EOFError here, not a wait without end
        self.pipe.recv()

    def seconds(self, steps):
        """Returns how long it took for so many steps."""
        self.pipe.send(steps)
        return self.pipe.recv()

    def stop(self):
        """Ends the process."""
        self.pipe.send(0)
        self.process.join()


def measure(sides, shapes, steps):
    """Returns for each side the seconds of its first step, and of one later step in each round."""
    workers = {side: Worker(side, shapes) for side in sides}
    first = {side: [worker.seconds(1)] for side, worker in workers.items()}
    turn = max(1, steps // ROUNDS)
    for worker in workers.values():
        worker.seconds(turn)  # warm-up
    later = {side: [] for side in sides}
    for _ in range(ROUNDS):
        for side, worker in workers.items():
            later[side].append(worker.seconds(turn) / turn)
    for worker in workers.values():
        worker.stop()
    return first, later


# ---- what is printed ---------------------------------------------------------------------------------------


def share(side, kopt, times):
    """Returns kopt's time over a side's, the median of what each round says."""
    if kopt not in times:
        return "-"
    return f"{statistics.median(np.divide(times[kopt], times[side])):.2f}"


def add_rows(table, sides, shapes, steps):
    """Measures all sides on one set of shapes and adds a row for each."""
    first, later = measure(sides, shapes, steps)
    table.add_row(f"[bold]{shapes}")
    for side in sides:
        cells = []
        for unit, times in (1e3, later), (1, first):
            cells.append(f"{unit * statistics.median(times[side]):.2f}")
            cells += [share(side, kopt, times) for kopt in ("kopt graph", "kopt XLA")]
        table.add_row(side, *cells)
    table.add_section()


def installed(package):
    """A package's version, or None; TensorFlow's builds have several names."""
    for name in (package, f"{package}-cpu") if package == "tensorflow" else (package,):
        try:
            return version(name)
        except PackageNotFoundError:
            continue
    return None


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=100, help="steps that each side takes on each set of shapes")
    parser.add_argument("--shapes", nargs="+", choices=SHAPES, default=list(SHAPES))
    parser.add_argument("--sides", nargs="+", choices=SIDES, default=list(SIDES))
    arguments = parser.parse_args()

    os.environ["CUDA_VISIBLE_DEVICES"] = "-1"
    os.environ["JAX_PLATFORMS"] = "cpu"
    os.environ["KERAS_BACKEND"] = "tensorflow"
    os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"

    console = Console()
    versions = {name: installed(name) for name in ("tensorflow", "keras", "optax", "jax", "torch")}
    known = ", ".join(f"{name} {number}" for name, number in versions.items() if number)
    console.print(f"{os.cpu_count()} cores, {platform.machine()}, Python {platform.python_version()}, {known}")
    if hasattr(os, "getloadavg"):
        console.print(f"load before the start: {os.getloadavg()[0]:.1f} (well above 0, the times mean little)")
    sides = [side for side in arguments.sides if versions[SIDES[side][0]]]
    for side in arguments.sides:
        if side not in sides:
            package = SIDES[side][0]
            console.print(f"{side} is left out: {package} is not installed. Try pip install {package}.")

    table = Table(
        title="One step of Adam, and the first step, which traces and compiles",
        caption="under kopt: the time of kopt's graph or XLA program over this side's",
        box=box.SIMPLE,
    )
    table.add_column("", no_wrap=True)
    for heading in ("step\nms", "kopt\ngraph", "kopt\nXLA", "first\ns", "kopt\ngraph", "kopt\nXLA"):
        table.add_column(heading, justify="right", no_wrap=True)
    for shapes in arguments.shapes:
        add_rows(table, sides, shapes, arguments.steps)
    console.print(table)


if __name__ == "__main__":
    main()
