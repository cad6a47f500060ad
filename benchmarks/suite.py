"""Steps to a target: kopt's optimizers, and optax's beside them, from the same weights over the same batches.

Both sides step in a compiled loop on the CPU: kopt in a `tf.function`, optax under `jit`. Every few steps they look at
the workload's score, at the weights that the optimizer evaluates at. Figures are medians over the seeds. Without JAX
and optax their columns stay empty.

    python benchmarks/suite.py --workloads digits-mlp char-lm --optimizers Prodigy Muon --seeds 0 1 2
"""

import argparse
import math
import os
import platform
import time
from importlib.util import find_spec
from statistics import median
from typing import NamedTuple

import numpy as np
from rich import box
from rich.console import Console
from rich.table import Table
from workloads import WORKLOADS

CLOSE = 1.05
"""The most that kopt's figure may be over its anchor's: optax's, or that of the authors' code."""


# ---- optimizers: how kopt makes each, and how optax does ----------------------------------------------------


class Cosine(NamedTuple):
    """A learning rate that rises in a line to its peak, then falls to zero at the last step, as half a wave."""

    peak: float
    warmup: int
    steps: int


def optax_muon(optax, rate, share, excluded):
    """Muon, with Adam at this share of its learning rate for vectors and for weights whose name has such a part."""

    def dimensions(weights):
        matrices = {n for n, w in weights.items() if np.ndim(w) == 2 and not any(part in n for part in excluded)}
        return {n: optax.contrib.MuonDimensionNumbers() if n in matrices else None for n in weights}

    def beside(step):
        return share * (rate(step) if callable(rate) else rate)

    return optax.contrib.muon(rate, adam_learning_rate=beside, muon_weight_dimension_numbers=dimensions)


RULES = {
    "Adam": (lambda kopt, rate: kopt.Adam(rate), lambda optax, rate: optax.adam(rate)),
    "AdamW": (
        lambda kopt, rate: kopt.AdamW(rate, weight_decay=0.01),
        lambda optax, rate: optax.adamw(rate, weight_decay=0.01),
    ),
    "NadamW": (
        lambda kopt, rate: kopt.NadamW(rate, weight_decay=0.01),
        lambda optax, rate: optax.nadamw(rate, weight_decay=0.01),
    ),
    "SGD": (
        lambda kopt, rate, momentum: kopt.SGD(rate, momentum=momentum, nesterov=True),
        lambda optax, rate, momentum: optax.sgd(rate, momentum=momentum, nesterov=True),
    ),
    "Lion": (
        lambda kopt, rate: kopt.Lion(rate, weight_decay=0.01),
        lambda optax, rate: optax.lion(rate, weight_decay=0.01),
    ),
    "ScheduleFreeAdamW": (
        lambda kopt, rate, warmup: kopt.ScheduleFreeAdamW(rate, warmup_steps=warmup),
        lambda optax, rate, warmup: optax.contrib.schedule_free_adamw(rate, warmup_steps=warmup),
    ),
    "Muon": (
        lambda kopt, rate, share, excluded: kopt.Muon(
            rate, auxiliary=excluded, auxiliary_rate=share, beta_2=0.999, epsilon=1e-8
        ),
        optax_muon,
    ),
    "SOAP": (lambda kopt, rate: kopt.SOAP(rate, weight_decay=None), None),
    # Those that need no learning rate, with Adam's correction for bias, which in optax is always on:
    "Prodigy": (
        lambda kopt, rate=1.0: kopt.Prodigy(rate, bias_correction=True),
        lambda optax, rate=1.0: optax.contrib.prodigy(rate),
    ),
    "DAdaptAdam": (
        lambda kopt: kopt.DAdaptAdam(bias_correction=True),
        lambda optax: optax.contrib.dadapt_adamw(),
    ),
    "DoG": (lambda kopt: kopt.DoG(), lambda optax: optax.contrib.dog()),
    "Mechanic": (
        lambda kopt: kopt.Mechanic(kopt.Adam(1.0)),
        lambda optax: optax.contrib.mechanize(optax.adam(1.0)),
    ),
}


# ---- who takes part where ----------------------------------------------------------------------------------


class Entry(NamedTuple):
    """One optimizer in a workload."""

    rule: str
    arguments: tuple = ()
    goal: float | None = None
    """The figure set when the suite was designed, with optax; for the last two workloads from other initial weights."""
    anchors: tuple[float, ...] = ()
    """Where optax has no such optimizer: the figures of its authors' code, for seeds 0, 1, 2."""


def logistic(rate, prodigy, d_adapt, adam, dog, mechanic):
    """Those of a convex problem, with Adam's best rate and the goals."""
    return {
        "Prodigy": Entry("Prodigy", (), prodigy),
        "DAdaptAdam": Entry("DAdaptAdam", (), d_adapt),
        f"Adam, {rate}": Entry("Adam", (rate,), adam),
        "DoG": Entry("DoG", (), dog),
        "Mechanic(Adam)": Entry("Mechanic", (), mechanic),
        "Adam, 0.001": Entry("Adam", (0.001,), math.inf),
    }


# Learning rates are those that were best for optax in a coarse search, on seeds 0 and 1 for the dense network and on
# seed 0 for the autoencoder and the language model; in the convex problems of 0.01, 0.03, 0.1, 0.3 and 1.
ENTRIES = {
    "digits-mlp": {
        "ScheduleFreeAdamW": Entry("ScheduleFreeAdamW", (0.05, 30), 90),
        "NadamW, cosine": Entry("NadamW", (Cosine(0.02, 30, 600),), 115),
        "SGD Nesterov, cosine": Entry("SGD", (Cosine(0.2, 30, 600), 0.9), 120),
        "Muon, cosine": Entry("Muon", (Cosine(0.03, 30, 600), 1 / 3, ()), 135),
        "Lion, cosine": Entry("Lion", (Cosine(0.005, 30, 600),), 315),
        "Adam": Entry("Adam", (0.015,), 135),
        "Prodigy": Entry("Prodigy", (), 130),
        "DAdaptAdam": Entry("DAdaptAdam", (), 130),
        "Adam, 0.001": Entry("Adam", (0.001,), math.inf),
    },
    "autoencoder": {
        "SOAP": Entry("SOAP", (0.03,), 134, (199, 252, 210)),
        "Muon": Entry("Muon", (0.02, 0.25, ()), 292),
        "Adam": Entry("Adam", (0.005,), 666),
        "SGD Nesterov": Entry("SGD", (0.01, 0.95), math.inf),
    },
    "logistic-cancer": logistic(1.0, 242, 254, 584, 1247, 1733),
    "logistic-wine": logistic(0.1, 289, 320, 491, 1414, 1597),
    "logistic-digits": logistic(1.0, 157, 222, 221, 1244, 1352),
    "char-lm": {
        "Muon, cosine": Entry("Muon", (Cosine(0.02, 40, 400), 0.5, ("embedding", "head")), 2.114),
        "ScheduleFreeAdamW": Entry("ScheduleFreeAdamW", (0.03, 40), 2.399),
        "AdamW, cosine": Entry("AdamW", (Cosine(0.01, 40, 400),), 2.527),
        "NadamW, cosine": Entry("NadamW", (Cosine(0.01, 40, 400),), 2.531),
        "Prodigy": Entry("Prodigy", (), 2.610),
        "Lion, cosine": Entry("Lion", (Cosine(0.003, 40, 400),), 2.752),
    },
}


# ---- the two sides: `steps(batches)` takes one for each, `score()` and `weights()` look -----------------------


def kopt_side(problem, entry):
    """kopt on TensorFlow, under XLA."""
    import keras
    import tensorflow as tf

    import kopt

    def schedule(rate):
        return kopt.schedules.Warmup(kopt.schedules.Cosine(rate.peak, rate.steps - rate.warmup), rate.warmup)

    optimizer = RULES[entry.rule][0](kopt, *(schedule(a) if isinstance(a, Cosine) else a for a in entry.arguments))
    weights = {
        name: keras.Variable(w, dtype=w.dtype, name=name.replace("/", "_")) for name, w in problem.weights.items()
    }
    variables = list(weights.values())
    optimizer.build(variables)

    def step(i, batches):
        with tf.GradientTape() as tape:
            loss = problem.loss(keras.ops, weights, batches[i])
        optimizer.apply(tape.gradient(loss, [v.value for v in variables]), variables)
        return i + 1, batches

    @tf.function(autograph=False, jit_compile=True)
    def steps(batches):
        tf.while_loop(lambda i, _: i < batches.shape[0], step, (0, batches), parallel_iterations=1)

    @tf.function(autograph=False, jit_compile=True)
    def score():
        return problem.score(keras.ops, weights)

    def looking(look):
        """A look at the weights that the optimizer evaluates at."""

        def looked():
            if not optimizer.averages:
                return look()
            optimizer.swap("evaluation")
            seen = look()
            optimizer.swap("training")
            return seen

        return looked

    return steps, looking(lambda: float(score())), looking(lambda: {name: v.numpy() for name, v in weights.items()})


def optax_side(problem, entry):
    """optax on JAX."""
    import jax
    import jax.numpy as jnp
    import optax
    import optax.contrib

    def schedule(rate):
        return optax.warmup_cosine_decay_schedule(0, rate.peak, rate.warmup, rate.steps)

    optimizer = RULES[entry.rule][1](optax, *(schedule(a) if isinstance(a, Cosine) else a for a in entry.arguments))
    jax.config.update("jax_enable_x64", problem.dtype == "float64")
    weights = {name: jnp.asarray(w) for name, w in problem.weights.items()}
    now = weights, optimizer.init(weights)

    def step(now, batch):
        weights, state = now
        gradients = jax.grad(lambda w: problem.loss(jnp, w, batch))(weights)
        updates, state = optimizer.update(gradients, state, weights)
        return (optax.apply_updates(weights, updates), state), None

    @jax.jit
    def scan(now, batches):
        return jax.lax.scan(step, now, batches)[0]

    @jax.jit
    def evaluated(now):
        weights, state = now
        averages = isinstance(state, optax.contrib.ScheduleFreeState)
        return optax.contrib.schedule_free_eval_params(state, weights) if averages else weights

    @jax.jit
    def score(now):
        return problem.score(jnp, evaluated(now))

    def steps(batches):
        nonlocal now
        now = jax.block_until_ready(scan(now, batches))

    return steps, lambda: float(score(now)), lambda: {name: np.asarray(w) for name, w in evaluated(now).items()}


SIDES = kopt_side, optax_side


# ---- the race ----------------------------------------------------------------------------------------------


class Result(NamedTuple):
    """What came of one run.

    Attributes:
        steps: how many were taken to the target; infinitely many where it was not reached.
        seconds: what these steps took, without the looks at the score, or None.
        score: the last one.
        error: of a classifier, on its test data, in percent; or None.
    """

    steps: float
    seconds: float | None
    score: float
    error: float | None


def race(side, entry, problem):
    """Runs one optimizer on a problem."""
    steps, score, weights = side(problem, entry)
    reached, seconds_then, seconds = math.inf, None, 0.0
    for start in range(0, problem.steps, problem.every):
        began = time.perf_counter()
        steps(problem.batches[start : start + problem.every])
        seconds += time.perf_counter() - began if start else 0.0  # the first call compiles
        now = score()
        if reached == math.inf and now <= problem.target:
            reached, seconds_then = start + problem.every, seconds
            if problem.ends_there:
                break
    return Result(reached, seconds_then, now, problem.error(weights()))


# ---- what is printed ---------------------------------------------------------------------------------------


DIGITS = {"steps": 0, "seconds": 1, "score": 3, "error": 1}


def text(figures, digits):
    """The median of a figure over the seeds, or nothing where there is none."""
    if not figures or None in figures:
        return ""
    middle = median(figures)
    return "never" if math.isinf(middle) else f"{middle:.{digits}f}"


def over(ours, theirs):
    """Ours over theirs for each seed; two that never arrive are level."""
    return [1.0 if a == b else a / b for a, b in zip(ours, theirs, strict=True)]


def compare(name, optimizers, seeds, sides):
    """Runs a workload on all sides; returns its table, and the optimizers that miss their anchor's figure."""
    workload = WORKLOADS[name]
    problems = [workload(seed) for seed in (seeds if workload.seeded else seeds[:1])]
    table = Table(
        title=f"{name}: {workload.__doc__.splitlines()[0]}",
        caption=f"to a score of {workload.target:g} within {workload.steps} steps; ratio and goal: {workload.figure}",
        box=box.SIMPLE,
    )
    table.add_column("", no_wrap=True)
    for heading in "steps\nkopt", "\noptax", "\nratio", "\ngoal", "s\nkopt", "\noptax", "score\nkopt", "\noptax":
        table.add_column(heading, justify="right", no_wrap=True)
    table.add_column("error %\nkopt", justify="right", no_wrap=True)
    missed = []
    for label, entry in ENTRIES[name].items():
        if optimizers and not any(part in label for part in optimizers):
            continue
        taking_part = [side if RULES[entry.rule][i] else None for i, side in enumerate(sides)]
        runs = [[race(side, entry, p) for p in problems] if side else [] for side in taking_part]
        ours, theirs = ([getattr(run, workload.figure) for run in side] for side in runs)
        theirs = theirs or [entry.anchors[seed] for seed in seeds if seed < len(entry.anchors)]
        ratios = over(ours, theirs) if len(theirs) == len(ours) else []
        if ratios and median(ratios) > CLOSE:
            missed.append(label)
        cells = {f: [text([getattr(run, f) for run in side], n) for side in runs] for f, n in DIGITS.items()}
        compared = text(ratios, 2), text([entry.goal], DIGITS[workload.figure])
        table.add_row(label, *cells["steps"], *compared, *cells["seconds"], *cells["score"], cells["error"][0])
    return table, missed


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workloads", nargs="+", choices=WORKLOADS, default=list(WORKLOADS))
    parser.add_argument("--optimizers", nargs="+", help="those in whose name one of these occurs; all by default")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    arguments = parser.parse_args()

    os.environ["CUDA_VISIBLE_DEVICES"] = "-1"
    os.environ["JAX_PLATFORMS"] = "cpu"
    os.environ["KERAS_BACKEND"] = "tensorflow"
    os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"

    console = Console(width=max(Console().width, 100))
    anchored = find_spec("optax") and find_spec("jax")
    if not anchored:
        console.print("optax's columns are left out: it is not installed. Try pip install optax.")
    console.print(f"{os.cpu_count()} cores, {platform.machine()}, Python {platform.python_version()}")
    missed = []
    for name in arguments.workloads:
        table, these = compare(name, arguments.optimizers, arguments.seeds, SIDES if anchored else (kopt_side, None))
        console.print(table)
        missed += [f"{label} on {name}" for label in these]
    if missed:
        console.print(f"More than {CLOSE - 1:.0%} over the anchor's figure: {'; '.join(missed)}.")
    else:
        console.print(f"Each optimizer reaches its anchor's figure within {CLOSE - 1:.0%}.")


if __name__ == "__main__":
    main()
