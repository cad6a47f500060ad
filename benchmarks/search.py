"""Searches: how good a Bayesian one is and what a proposal takes, what it does in traps, and what a search costs.

python benchmarks/search.py
python benchmarks/search.py --tables quality --sides kopt random   # KerasTuner's takes twenty minutes
python benchmarks/search.py --tables cost traps grid population memory

CPU seconds are of one BLAS thread. Optuna takes part where it is installed.
"""

import argparse
import contextlib
import importlib.util
import io
import math
import os
import resource
import statistics
import time
import warnings

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras_tuner
import numpy as np
from rich.console import Console
from rich.table import Table
from scipy import stats
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.datasets import load_digits
from sklearn.model_selection import GridSearchCV
from threadpoolctl import threadpool_limits

import kopt
from kopt.search.engines import make_engine
from kopt.search.oracles import KerasTunerEngine
from kopt.search.space import Space

TRIALS = 50

# ---- functions to minimize -------------------------------------------------------------------------------------------


def branin(p):
    x, y = p["x0"], p["x1"]
    return (
        (y - 5.1 / (4 * math.pi**2) * x * x + 5 / math.pi * x - 6) ** 2
        + 10 * (1 - 1 / (8 * math.pi)) * math.cos(x)
        + 10
    )


A = np.array(
    [[10, 3, 17, 3.5, 1.7, 8], [0.05, 10, 17, 0.1, 8, 14], [3, 3.5, 1.7, 10, 17, 8], [17, 8, 0.05, 10, 0.1, 14]]
)
P = 1e-4 * np.array([
    [1312, 1696, 5569, 124, 8283, 5886], [2329, 4135, 8307, 3736, 1004, 9991],
    [2348, 1451, 3522, 2883, 3047, 6650], [4047, 8828, 8732, 5743, 1091, 381],
])  # fmt: skip


def hartmann(p):
    x = np.array([p[f"x{i}"] for i in range(6)])
    return -float(np.array([1, 1.2, 3, 3.2]) @ np.exp(-(A * (x - P) ** 2).sum(axis=1)))


RATES = {"sgd": -0.7, "adam": -2.7, "rmsprop": -3.1, "adagrad": -1.2}
OFFSETS = {"sgd": 0.06, "adam": 0.0, "rmsprop": 0.05, "adagrad": 0.15}
ACTIVATIONS = {"relu": 0.03, "gelu": 0.0, "tanh": 0.08, "sigmoid": 0.25}


def mixed(p):
    """What a validation loss may look like; its minimum is 0.10."""
    off = math.log10(p["lr"]) - RATES[p["opt"]]
    loss = 0.10 + OFFSETS[p["opt"]] + ACTIVATIONS[p["act"]] + 0.12 * off * off * (1.6 if off > 0 else 1.0)
    loss += 0.02 * (math.log2(p["units"]) - 7.3) ** 2 + 0.9 * (p["drop"] - 0.25) ** 2 + 0.03 * abs(p["layers"] - 3)
    return min(loss + 0.02 * (math.log10(p["l2"]) + 4) ** 2, 2.5)


FUNCTIONS = {
    "Branin": (branin, {"x0": stats.uniform(-5, 15), "x1": stats.uniform(0, 15)}, 0.3979),
    "Hartmann": (hartmann, {f"x{i}": stats.uniform() for i in range(6)}, -3.3224),
    "mixed": (
        mixed,
        {
            "lr": stats.loguniform(1e-5, 1.0),
            "opt": list(RATES),
            "act": list(ACTIVATIONS),
            "units": sorted({round(u) for u in np.geomspace(16, 512, 200)}),
            "drop": stats.uniform(0, 0.6),
            "layers": stats.randint(1, 7),
            "l2": stats.loguniform(1e-7, 1e-1),
        },
        0.10,
    ),
}


# ---- sides -----------------------------------------------------------------------------------------------------------


def keras_tuners(space, n, seed):
    # Its seeds that lie close by share their points.
    oracle = keras_tuner.oracles.BayesianOptimizationOracle(
        keras_tuner.Objective("score", "max"), seed=1000 * (seed + 1)
    )
    return KerasTunerEngine(oracle, space, n)


def optunas_process(space, n, seed):
    import optuna

    return make_engine(optuna.samplers.GPSampler(seed=seed), space, n, seed)


SIDES = {
    "kopt": lambda space, n, seed: make_engine("bayesian", space, n, seed),
    "KerasTuner": keras_tuners,
    "random": lambda space, n, seed: make_engine("random", space, n, seed),
}
if importlib.util.find_spec("optuna"):
    SIDES["Optuna TPE"] = lambda space, n, seed: make_engine("optuna", space, n, seed)
    if importlib.util.find_spec("torch"):
        SIDES["Optuna GP"] = optunas_process


def drive(make, spec, n, seed, score):
    """The candidates of a search, and their scores."""
    engine, tried = make(Space(spec, "bayesian"), n, seed), []
    while suggestions := engine.ask(1):
        tried.append((suggestions[0].params, score(suggestions[0].params)))
        engine.tell(suggestions[0].id, tried[-1][1])
    return tried


# ---- tables ----------------------------------------------------------------------------------------------------------


def quality(asked):
    table = Table("function", "minimum", *SIDES, title=f"best of {TRIALS}: median and quartiles of {asked.seeds} seeds")
    for name, (function, spec, minimum) in FUNCTIONS.items():
        row = []
        for make in SIDES.values():
            runs = [drive(make, spec, TRIALS, s, lambda p, f=function: -f(p)) for s in range(asked.seeds)]
            low, middle, high = np.quantile([-max(score for _, score in run) for run in runs], [0.25, 0.5, 0.75])
            row.append(f"{middle:.4f} [{low:.4f}, {high:.4f}]")
        table.add_row(name, str(minimum), *row)
    return table


def cost(asked):
    sides = {name: make for name, make in SIDES.items() if name != "random"}
    table = Table("parameters", "trials so far", *sides, title="CPU s a proposal")

    def score(params):
        return -sum((value - 0.4) ** 2 for value in params.values())

    for parameters in (5, 10):
        for trials in (50, 100):  # with fewer, KerasTuner's is still drawing at random
            space, row = Space({f"x{i}": stats.uniform() for i in range(parameters)}, "bayesian"), []
            for make in sides.values():
                engine = make(space, trials + 5, 0)
                known = make_engine("random", space, trials, 0).ask(trials)
                for suggestion in known:
                    engine.observe(suggestion.params, score(suggestion.params))
                times = []
                for _ in range(5):
                    began = time.process_time()
                    (suggestion,) = engine.ask(1)
                    times.append(time.process_time() - began)
                    engine.tell(suggestion.id, score(suggestion.params))
                row.append(f"{statistics.median(times):.3f}")
            table.add_row(str(parameters), str(trials), *row)
    return table


def traps(asked):
    table = Table("trap", *SIDES, title="traps")
    space = {"a": [0, 1, 2, 3], "b": [None, (1,), "s"]}
    different = [len({str(p) for p, _ in drive(make, space, 40, 0, lambda p: 0.5)}) for make in SIDES.values()]
    table.add_row("12 candidates, 40 trials: tried", *map(str, different))
    square = {"x": stats.uniform(), "y": stats.uniform()}
    for bad in (math.inf, math.nan):

        def score(p, bad=bad):
            return bad if p["x"] >= 0.6 else -((p["x"] - 0.3) ** 2) - (p["y"] - 0.7) ** 2 - 5

        shares = []
        for make in SIDES.values():
            runs = [drive(make, square, 26, seed, score)[10:] for seed in range(5)]
            shares.append(f"{statistics.median(sum(p['x'] >= 0.6 for p, _ in run) / len(run) for run in runs):.2f}")
        table.add_row(f"share of trials 11 to 26 where the score is {bad}", *shares)
    return table


class Nothing(ClassifierMixin, BaseEstimator):
    """An estimator that takes no time."""

    def __init__(self, a=0, b=0):
        self.a, self.b = a, b

    def fit(self, X, y):
        return self

    def score(self, X, y):
        return self.a - self.b


def grid(asked):
    X, y = load_digits(return_X_y=True)
    X = (X / 16).astype("float32")
    table = Table("search", "TunerSearchCV", "rival", "ratio", title="s")
    rates, sizes = [1e-3, 3e-3, 1e-2, 3e-2], [(64,), (128, 64)]
    options = dict(cv=3, refit=False)
    ours = {"optimizer__learning_rate": rates, "model__hidden_layer_sizes": sizes}
    theirs = {"model_kwargs": [{"rate": rate, "sizes": size} for rate in rates for size in sizes]}
    network = kopt.KerasClassifier(epochs=5, batch_size=32, random_state=0)
    searches = {
        "8 networks, 3 folds, 5 epochs; Keras's wrapper in GridSearchCV": (
            lambda: kopt.TunerSearchCV(network, ours, method="grid", **options).fit(X, y),
            lambda: GridSearchCV(wrapper(), theirs, **options).fit(X, y),
        ),
        "1024 candidates that take no time, 2 folds; GridSearchCV": tuple(
            lambda search=search: search.set_params(cv=2, refit=False).fit(X[:20], y[:20])
            for search in (
                kopt.TunerSearchCV(Nothing(), {"a": list(range(32)), "b": list(range(32))}, method="grid"),
                GridSearchCV(Nothing(), {"a": list(range(32)), "b": list(range(32))}),
            )
        ),
    }
    for name, sides in searches.items():
        turns = [[_seconds(side) for side in sides] for _ in range(asked.turns)]
        a, b = map(statistics.median, zip(*turns, strict=True))
        table.add_row(name, f"{a:.2f}", f"{b:.2f}", f"{statistics.median(x / y for x, y in turns):.3f}")
    return table


def population(asked):
    X, y = load_digits(return_X_y=True)
    columns = "networks at a time", "s, the first search", "s, a later one", "CPU s"
    table = Table(*columns, title="16 rates of the digits network, 3 folds, 20 epochs")
    network = kopt.KerasClassifier(epochs=20, batch_size=32, random_state=0)
    space = {"optimizer__learning_rate": list(np.geomspace(1e-4, 1e-1, 16))}
    times = {size: [] for size in (1, 4, 16)}
    for _ in range(asked.turns + 1):
        for size, seen in times.items():
            search = kopt.TunerSearchCV(network, space, method="grid", cv=3, refit=False, population=size)
            began = time.perf_counter(), time.process_time()
            search.fit(X / 16, y)
            seen.append((time.perf_counter() - began[0], time.process_time() - began[1]))
    for size, (first, *later) in times.items():
        numbers = first[0], *(statistics.median(each) for each in zip(*later, strict=True))
        table.add_row(str(size), *(f"{number:.2f}" for number in numbers))
    return table


def wrapper():
    import keras
    from keras.wrappers import SKLearnClassifier

    def build(X, y, rate, sizes):
        hidden = [keras.layers.Dense(size, "relu") for size in sizes]
        model = keras.Sequential([keras.Input(X.shape[1:]), *hidden, keras.layers.Dense(10, "softmax")])
        model.compile(keras.optimizers.Adam(rate), "categorical_crossentropy")  # the wrapper codes labels one-hot
        return model

    kwargs = {"rate": 1e-3, "sizes": (64,)}
    return SKLearnClassifier(build, model_kwargs=kwargs, fit_kwargs=dict(epochs=5, batch_size=32, verbose=0))


def memory(asked):
    X, y = load_digits(return_X_y=True)
    network = kopt.KerasClassifier(epochs=1, random_state=0)
    space = {"optimizer__learning_rate": stats.loguniform(1e-4, 1e-1), "optimizer__beta_1": stats.uniform(0.5, 0.4)}
    table = Table("trials", "MB", "MB a trial", title="memory of a search")
    before = None
    for trials in (20, 60):
        kopt.TunerSearchCV(network, space, n_iter=trials, cv=2, random_state=0, refit=False).fit(X[:200], y[:200])
        now = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        table.add_row(str(trials), f"{now:.0f}", "" if before is None else f"{(now - before) / trials:.2f}")
        before = now
    return table


def _seconds(function):
    began = time.perf_counter()
    with contextlib.redirect_stdout(io.StringIO()):  # the wrapper's predictions have a progress bar
        function()
    return time.perf_counter() - began


TABLES = {"quality": quality, "cost": cost, "traps": traps, "grid": grid, "population": population, "memory": memory}


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tables", nargs="+", choices=TABLES, default=list(TABLES))
    parser.add_argument("--sides", nargs="+", choices=SIDES, default=list(SIDES))
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--turns", type=int, default=3)
    asked = parser.parse_args()
    for name in SIDES.keys() - asked.sides:
        del SIDES[name]
    for name in asked.tables:
        with threadpool_limits(1 if name in ("quality", "cost", "traps") else None):
            Console(width=160).print(TABLES[name](asked))


if __name__ == "__main__":
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        main()
