"""One step of an optimizer: kopt, Keras, optax and PyTorch side by side, on the same tensors, on the CPU.

Every side lives in a process of its own that sleeps until it is asked for some steps, and the sides take
turns, so that a change in the machine's load meets all of them. A missing library leaves its sides out.
kopt runs in plain graph mode. Matrix methods are compared with themselves, one weight at a time.

The side named bare does no arithmetic: it reads each weight and writes it back, as every step on TensorFlow must.

A step is one call from Python, with gradients that are there already. With --inside, TensorFlow and JAX take a
turn's steps in one program, as compiled epochs do: what it costs to call a program from Python is not counted.

    python benchmarks/step.py --steps 100 --shapes small square --optimizers Adam Lion
    python benchmarks/step.py --shapes resnet20 --optimizers Muon SOAP Shampoo
"""

import argparse
import functools
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


def resnet20():
    """The 62 weights of a ResNet-20 with 10 classes."""
    shapes, inputs = [(3, 3, 3, 16), (16,), (16,)], 16
    for width in 16, 32, 64:
        for _ in range(3):
            shapes += [(3, 3, inputs, width), (width,), (width,), (3, 3, width, width), (width,), (width,)]
            inputs = width
    return [*shapes, (64, 10), (10,)]


def square():
    """One large matrix."""
    return [(4096, 4096)]


SHAPES = {"small": small, "resnet20": resnet20, "resnet50": resnet50, "square": square}

OPTIMIZERS = {  # kopt's call, and its peers': {how} is the implementation that PyTorch is asked for
    "SGD": {
        "kopt": "SGD(0.01, momentum=0.9)",
        "keras": "SGD(0.01, momentum=0.9)",
        "optax": "sgd(0.01, momentum=0.9)",
        "torch": "SGD(params, 0.01, momentum=0.9, {how})",
    },
    "Adagrad": {
        "kopt": "Adagrad()",
        "keras": "Adagrad()",
        "optax": "adagrad(1e-3)",
        "torch": "Adagrad(params, {how})",
    },
    "Adadelta": {
        "kopt": "Adadelta()",
        "keras": "Adadelta()",
        "optax": "adadelta(1e-3)",
        "torch": "Adadelta(params, {how})",
    },
    "RMSprop": {
        "kopt": "RMSprop()",
        "keras": "RMSprop()",
        "optax": "rmsprop(1e-3)",
        "torch": "RMSprop(params, {how})",
    },
    "Adam": {"kopt": "Adam()", "keras": "Adam()", "optax": "adam(1e-3)", "torch": "Adam(params, {how})"},
    "AdamW": {"kopt": "AdamW()", "keras": "AdamW()", "optax": "adamw(1e-3)", "torch": "AdamW(params, {how})"},
    "AMSGrad": {
        "kopt": "AMSGrad()",
        "keras": "Adam(amsgrad=True)",
        "optax": "amsgrad(1e-3)",
        "torch": "Adam(params, amsgrad=True, {how})",
    },
    "Adamax": {"kopt": "Adamax()", "keras": "Adamax()", "optax": "adamax(1e-3)", "torch": "Adamax(params, {how})"},
    "Nadam": {"kopt": "Nadam()", "keras": "Nadam()", "optax": "nadam(1e-3)", "torch": "NAdam(params, {how})"},
    "Ftrl": {"kopt": "Ftrl()", "keras": "Ftrl()"},
    "Lion": {"kopt": "Lion()", "keras": "Lion()", "optax": "lion(1e-4)"},
    "RAdam": {"kopt": "RAdam()", "optax": "radam(1e-3)", "torch": "RAdam(params, {how})"},
    "AdaBelief": {"kopt": "AdaBelief()", "optax": "adabelief(1e-3)"},
    "Yogi": {"kopt": "Yogi()", "optax": "yogi(1e-2)"},
    "Adan": {"kopt": "Adan()", "optax": "adan(1e-3)"},
    "AdEMAMix": {"kopt": "AdEMAMix()", "optax": "contrib.ademamix(1e-3)"},
    "LAMB": {"kopt": "LAMB()", "keras": "Lamb()", "optax": "lamb(1e-3)"},
    "Adafactor": {"kopt": "Adafactor()", "keras": "Adafactor()", "optax": "adafactor(1e-3)"},
    "Muon": {"kopt": "Muon()", "kopt loop": "Muon()"},
    "SOAP": {"kopt": "SOAP()", "kopt loop": "SOAP()"},
    "Shampoo": {"kopt": "Shampoo()", "kopt loop": "Shampoo()"},
}
"""The optimizers that a peer has too, and the matrix methods."""


# ---- who steps: `run(steps)` takes so many and waits for the last ------------------------------------------


def keras_side(module, call, weights, gradients, inside, jit_compile=False, apart=False):
    """Keras's way to step: `optimizer.apply` in a `tf.function`."""
    import keras
    import tensorflow as tf

    variables = [keras.Variable(w) for w in weights]
    gradients = [tf.constant(g) for g in gradients]
    optimizer = eval(f"library.{call}", {"library": importlib.import_module(module)})  # kopt loads names on first use
    if apart:
        one_by_one(optimizer)
    optimizer.build(variables)

    @tf.function(jit_compile=jit_compile)
    def take(steps):
        if inside:
            for _ in tf.range(steps):
                optimizer.apply(gradients, variables)
        else:
            optimizer.apply(gradients, variables)

    def run(steps):
        for _ in range(1 if inside else steps):
            take(tf.constant(steps) if inside else None)
        optimizer.iterations.numpy()  # waits, and copies no weight

    return run


def bare_side(call, weights, gradients, inside):
    """What every step on TensorFlow does beside the arithmetic: takes gradients, reads weights, writes them back."""
    import tensorflow as tf

    variables = [tf.Variable(w) for w in weights]
    gradients = [tf.constant(g) for g in gradients]

    def once():
        with tf.control_dependencies(gradients):
            for variable, now in [(v, v.value()) for v in variables]:
                variable.assign(now, read_value=False)

    @tf.function
    def take(steps):
        if inside:
            for _ in tf.range(steps):
                once()
        else:
            once()

    def run(steps):
        for _ in range(1 if inside else steps):
            take(tf.constant(steps) if inside else None)

    return run


def one_by_one(optimizer):
    """Lets a kopt optimizer update each weight by itself."""
    treatments = optimizer.treatments
    optimizer.__dict__["treatments"] = lambda variables: [
        treatment._replace(layout=number) for number, treatment in enumerate(treatments(variables))
    ]


def optax_side(call, weights, gradients, inside):
    """The update and its application in one compiled function that gives its old state away."""
    import jax
    import optax

    optimizer = eval(call, vars(optax))

    def step(now, gradients):
        weights, state = now
        updates, state = optimizer.update(gradients, state, weights)
        return optax.apply_updates(weights, updates), state

    def take(now, gradients, steps):
        if not inside:
            return step(now, gradients)
        same = jax.lax.optimization_barrier  # or what depends on gradients alone would be taken out of the loop
        return jax.lax.fori_loop(0, steps, lambda _, now: step(now, same(gradients)), now)

    take = jax.jit(take, donate_argnums=0)
    weights, gradients = jax.device_put((weights, gradients))
    now = weights, optimizer.init(weights)

    def run(steps):
        nonlocal now
        for _ in range(1 if inside else steps):
            now = take(now, gradients, steps if inside else 0)
        jax.block_until_ready(now)

    return run


def torch_side(how, call, weights, gradients, inside):
    """A `torch.optim` optimizer in one of its implementations, which Python calls in any case."""
    import torch

    params = [torch.nn.Parameter(torch.tensor(w)) for w in weights]
    for parameter, gradient in zip(params, gradients, strict=True):
        parameter.grad = torch.tensor(gradient)
    optimizer = eval(call.format(how=how), vars(torch.optim) | {"params": params})

    def run(steps):
        for _ in range(steps):
            optimizer.step()

    return run


SIDES = {  # name: (whose call it makes, the package it needs, how)
    "kopt": ("kopt", "tensorflow", functools.partial(keras_side, "kopt")),
    "kopt XLA": ("kopt", "tensorflow", functools.partial(keras_side, "kopt", jit_compile=True)),
    "kopt loop": ("kopt loop", "tensorflow", functools.partial(keras_side, "kopt", apart=True)),
    "bare": ("kopt", "tensorflow", bare_side),
    "Keras": ("keras", "tensorflow", functools.partial(keras_side, "keras.optimizers")),
    "Keras XLA": ("keras", "tensorflow", functools.partial(keras_side, "keras.optimizers", jit_compile=True)),
    "optax": ("optax", "optax", optax_side),
    "torch loop": ("torch", "torch", functools.partial(torch_side, "foreach=False")),
    "torch foreach": ("torch", "torch", functools.partial(torch_side, "foreach=True")),
    "torch fused": ("torch", "torch", functools.partial(torch_side, "fused=True")),
}
FUSED = {"SGD", "Adagrad", "Adam", "AdamW", "AMSGrad"}
"""What PyTorch has a fused kernel for on the CPU."""


def sides_of(optimizer, chosen):
    """The sides that an optimizer has."""
    calls = OPTIMIZERS[optimizer]
    return [side for side in chosen if SIDES[side][0] in calls and (side != "torch fused" or optimizer in FUSED)]


# ---- how they take turns -----------------------------------------------------------------------------------


def work(side, optimizer, shapes, inside, pipe):
    """A side's process: once ready, answers a number of steps with the seconds they took, until it is 0."""
    rng = np.random.default_rng(0)
    weights, gradients = ([rng.standard_normal(s, "float32") for s in SHAPES[shapes]()] for _ in range(2))
    whose, _, make = SIDES[side]
    run = make(OPTIMIZERS[optimizer][whose], weights=weights, gradients=gradients, inside=inside)
    pipe.send("ready")
    while steps := pipe.recv():
        start = time.perf_counter()
        run(steps)
        pipe.send(time.perf_counter() - start)


class Worker:
    """A side's process, seen from here."""

    def __init__(self, side, optimizer, shapes, inside):
        context = multiprocessing.get_context("spawn")
        self.pipe, theirs = context.Pipe()
        self.process = context.Process(target=work, args=(side, optimizer, shapes, inside, theirs), daemon=True)
        self.process.start()
        theirs.close()  # so that a worker that dies is an EOFError here, not a wait without end

    def wait(self):
        """Returns once the process is ready to step."""
        self.pipe.recv()

    def seconds(self, steps):
        """Returns how long it took for so many steps."""
        self.pipe.send(steps)
        return self.pipe.recv()

    def stop(self):
        """Ends the process."""
        self.pipe.send(0)
        self.process.join()


def measure(sides, optimizer, shapes, inside, steps):
    """Returns for each side the seconds of its first step, and of one later step in each round."""
    workers = {side: Worker(side, optimizer, shapes, inside) for side in sides}
    for worker in workers.values():
        worker.wait()
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


def ratio(side, times):
    """Returns kopt's time over a side's, the median of what each round says."""
    return statistics.median(np.divide(times["kopt"], times[side]))


def add_row(table, chosen, optimizer, shapes, inside, steps):
    """Measures all sides of one optimizer on one set of shapes and adds a row."""
    sides = sides_of(optimizer, chosen)
    first, later = measure(sides, optimizer, shapes, inside, steps)
    cells = [f"{1e3 * statistics.median(later['kopt']):.2f}"]
    cells += [f"{ratio(side, later):.2f}" if side in sides else "-" for side in chosen[1:]]
    cells += [f"{first['kopt'][0]:.2f}", f"{ratio('Keras', first):.2f}" if "Keras" in sides else "-"]
    table.add_row(optimizer, *cells)


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
    parser.add_argument("--shapes", nargs="+", choices=SHAPES, default=["small", "resnet50", "square"])
    parser.add_argument("--optimizers", nargs="+", choices=OPTIMIZERS, default=list(OPTIMIZERS))
    parser.add_argument("--inside", action="store_true", help="take a turn's steps in one program")
    parser.add_argument("--sides", nargs="+", choices=list(SIDES)[1:], default=list(SIDES)[2:])
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
    chosen = ["kopt", *(side for side in arguments.sides if versions[SIDES[side][1]])]
    for side in arguments.sides:
        if side not in chosen:
            package = SIDES[side][1]
            console.print(f"{side} is left out: {package} is not installed. Try pip install {package}.")

    for shapes in arguments.shapes:
        table = Table(
            title=f"A step on {SHAPES[shapes].__doc__[0].lower()}{SHAPES[shapes].__doc__[1:-1]}",
            caption="under another side's name: kopt's time over its time; first: the step that traces and compiles",
            box=box.SIMPLE,
        )
        table.add_column("", no_wrap=True)
        for heading in ("kopt\nms", *chosen[1:], "first\ns", "first\n/ Keras"):
            table.add_column(heading, justify="right", no_wrap=True)
        for optimizer in arguments.optimizers:
            add_row(table, chosen, optimizer, shapes, arguments.inside, arguments.steps)
        console.print(table)


if __name__ == "__main__":
    main()
