"""kopt's classifier beside scikit-learn's MLPClassifier, Keras's fit, Keras's wrapper, SciKeras and skorch.

python benchmarks/estimator.py
python benchmarks/estimator.py --turns 3 --rows step "first fit" grid

The network is 64-128-64-10, the data scikit-learn's digits, the batch 32, the optimizer Adam, the floats of 32 bits. A
library that is not installed leaves its side out. What has to begin in a fresh process does.
"""

import argparse
import functools
import importlib.util
import itertools
import json
import os
import pickle
import statistics
import subprocess
import sys
import time
import warnings

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

SIZES, BATCH, EPOCHS = (128, 64), 32, 20
CPU = "--cpu" in sys.argv


@functools.cache
def data(rows=1797):
    import numpy as np
    from sklearn.datasets import load_digits

    X, y = load_digits(return_X_y=True)
    chosen = np.arange(rows) % len(X)
    return (X[chosen] / 16).astype("float32"), y[chosen]


# ---- sides: each makes an estimator like all others ------------------------------------------------------------------


def kopt_side(epochs=EPOCHS, sizes=SIZES, rate=1e-3, seed=0):
    import kopt.training.network  # noqa: F401 - constructing an estimator would not import TensorFlow
    from kopt import KerasClassifier

    return KerasClassifier(
        model__hidden_layer_sizes=sizes,
        optimizer__learning_rate=rate,
        epochs=epochs,
        batch_size=BATCH,
        random_state=seed,
    )


def mlp_side(epochs=EPOCHS, sizes=SIZES, rate=1e-3, seed=0):
    from sklearn.neural_network import MLPClassifier

    return MLPClassifier(
        sizes, learning_rate_init=rate, max_iter=epochs, batch_size=BATCH, alpha=0, n_iter_no_change=10**6, tol=0,
        random_state=seed,
    )  # fmt: skip


def keras_model(sizes=SIZES, rate=1e-3, loss="sparse_categorical_crossentropy"):
    import keras

    layers = [keras.layers.Dense(size, "relu") for size in sizes]
    model = keras.Sequential([keras.Input((64,)), *layers, keras.layers.Dense(10, "softmax")])
    model.compile(keras.optimizers.Adam(rate), loss)
    return model


def wrapped_model(X, y, sizes, rate):
    return keras_model(sizes, rate, "categorical_crossentropy")


def scikeras_model(hidden_layer_sizes, rate):
    return keras_model(hidden_layer_sizes, rate)


class keras_side:
    """Keras's own `fit`, `predict` and nothing around them."""

    def __init__(self, epochs=EPOCHS, sizes=SIZES, rate=1e-3, seed=0):
        self.epochs, self.sizes, self.rate, self.seed = epochs, sizes, rate, seed

    def fit(self, X, y):
        import keras

        keras.utils.set_random_seed(self.seed)
        self.model = keras_model(sizes=self.sizes, rate=self.rate)
        self.model.fit(X, y, batch_size=BATCH, epochs=self.epochs, verbose=0)
        return self

    def predict(self, X):
        return self.model.predict(X, batch_size=4096, verbose=0).argmax(axis=1)

    def predict_proba(self, X):
        return self.model.predict(X, batch_size=4096, verbose=0)

    def partial_fit(self, X, y):
        self.model.fit(X, y, batch_size=BATCH, verbose=0)


def wrapper_side(epochs=EPOCHS, sizes=SIZES, rate=1e-3, seed=0):
    import keras
    from keras.wrappers import SKLearnClassifier

    keras.config.disable_interactive_logging()  # of predict, which takes no verbose here

    class Kept(SKLearnClassifier):
        """Keeps `fit_kwargs`, which Keras's own loses on every clone, and so trains one epoch in any search."""

        def __sklearn_clone__(self):
            return type(self)(self.model, model_kwargs=dict(self.model_kwargs), fit_kwargs=dict(self.fit_kwargs))

    fit = {"epochs": epochs, "batch_size": BATCH, "verbose": 0}
    return Kept(wrapped_model, model_kwargs={"sizes": sizes, "rate": rate}, fit_kwargs=fit)


def scikeras_side(epochs=EPOCHS, sizes=SIZES, rate=1e-3, seed=0):
    from scikeras.wrappers import KerasClassifier

    return KerasClassifier(
        scikeras_model, model__hidden_layer_sizes=sizes, model__rate=rate, epochs=epochs, batch_size=BATCH, verbose=0,
        random_state=seed,
    )  # fmt: skip


def skorch_side(epochs=EPOCHS, sizes=SIZES, rate=1e-3, seed=0):
    import torch
    from skorch import NeuralNetClassifier

    torch.manual_seed(seed)
    torch.set_num_threads(1)
    return NeuralNetClassifier(
        torch_network, module__sizes=sizes, criterion=torch.nn.CrossEntropyLoss, optimizer=torch.optim.Adam, lr=rate,
        max_epochs=epochs, batch_size=BATCH, train_split=None, verbose=0, classes=range(10),
    )  # fmt: skip


def torch_network(sizes):
    from torch import nn

    widths = [64, *sizes]
    hidden = [part for a, b in itertools.pairwise(widths) for part in (nn.Linear(a, b), nn.ReLU())]
    return nn.Sequential(*hidden, nn.Linear(widths[-1], 10))


SIDES = {
    "kopt": ("kopt", kopt_side),
    "MLPClassifier": ("sklearn", mlp_side),
    "Keras fit": ("keras", keras_side),
    "Keras wrapper": ("keras", wrapper_side),
    "SciKeras": ("scikeras", scikeras_side),
    "skorch": ("skorch", skorch_side),
}
GRIDS = {
    "kopt": ("model__hidden_layer_sizes", "optimizer__learning_rate"),
    "MLPClassifier": ("hidden_layer_sizes", "learning_rate_init"),
    "SciKeras": ("model__hidden_layer_sizes", "model__rate"),
    "skorch": ("module__sizes", "lr"),
}
"""What each side calls sizes and rate. Keras's wrapper takes both in one dictionary."""


# ---- rows: each returns a function of a side that measures once ------------------------------------------------------


def seconds(work):
    clock = time.process_time if CPU else time.perf_counter
    began = clock()
    work()
    return clock() - began


def many(work, at_least=0.2):
    """Milliseconds a call, of as many as take a while."""
    work()
    count = max(int(at_least / max(seconds(work), 1e-6)), 3)
    return 1e3 * seconds(lambda: [work() for _ in range(count)]) / count


def step(make, few=5, more=25):
    """Milliseconds of a step: what a fit of more epochs takes in addition."""
    X, y = data()
    make(epochs=few).fit(X, y)
    make(epochs=more).fit(X, y)
    short, long = (min(seconds(lambda n=n: make(epochs=n).fit(X, y)) for _ in range(2)) for n in (few, more))
    return 1e3 * (long - short) / ((more - few) * -(-len(X) // BATCH))


def step_of_many(make):
    """The same in fits so long that kopt compiles them by XLA. Keras's and torch's steps do not depend on that."""
    return step(make, 150, 300) if make in (kopt_side, mlp_side) else step(make)


def first_fit(make):
    X, y = data()
    make(epochs=1)  # imports what a fit needs
    return seconds(lambda: make().fit(X, y))


def second_fit(make):
    X, y = data()
    make(epochs=1).fit(X, y)
    return seconds(lambda: make(rate=2e-3, seed=1).fit(X, y))


def grid(make, side):
    from sklearn.model_selection import GridSearchCV

    sizes, rates = [(32,), (64,)], [1e-3, 2e-3, 5e-3, 1e-2]
    if side == "Keras wrapper":
        space = {"model_kwargs": [{"sizes": size, "rate": rate} for size in sizes for rate in rates]}
    else:
        space = dict(zip(GRIDS[side], (sizes, rates), strict=True))
    search = GridSearchCV(make(epochs=5, sizes=(32,)), space, cv=3, error_score="raise")
    return seconds(lambda: search.fit(*data()))


def growth(make):
    """MB of memory that each of a hundred fits leaves behind."""
    import gc
    import resource

    def held():
        gc.collect()
        with open("/proc/self/statm") as file:
            return int(file.read().split()[1]) * resource.getpagesize() / 1e6

    X, y = data(256)
    for seed in range(5):
        make(epochs=1, seed=seed).fit(X, y).predict(X)
    before = held()
    for seed in range(100):
        make(epochs=1, seed=seed).fit(X, y).predict(X)
    return (held() - before) / 100


def trained(work):
    """A row about an estimator that is trained once for all turns."""

    @functools.cache
    def fitted(make):
        return make(epochs=2).fit(*data())

    return lambda make: work(fitted(make))


ROWS = {
    "step": ("ms of a step, long fits", step_of_many, ("MLPClassifier", "Keras fit", "skorch")),
    "short step": ("ms of a step, 5 to 25 epochs", step, ("MLPClassifier", "Keras fit", "skorch")),
    "second fit": ("s of a second fit, 20 epochs", second_fit, ("MLPClassifier", "Keras fit", "skorch")),
    "one row": ("ms, predict of 1 row", trained(lambda e: many(lambda: e.predict(data(1)[0]))), tuple(SIDES)[1:]),
    "1000 rows": ("ms, predict_proba of 1000", trained(lambda e: many(lambda: e.predict_proba(data(1000)[0]))),
                  ("MLPClassifier", "Keras fit", "SciKeras", "skorch")),
    "100000 rows": ("ms, predict of 100,000", trained(lambda e: many(lambda: e.predict(data(100_000)[0]))),
                    ("MLPClassifier", "Keras fit", "skorch")),
    "partial_fit": ("ms, partial_fit of 32 rows", trained(lambda e: many(lambda: e.partial_fit(*data(32)))),
                    ("MLPClassifier", "Keras fit", "SciKeras", "skorch")),
    "grid": ("s, 8 candidates, 3 folds, 5 epochs", grid, ("MLPClassifier", "Keras wrapper", "SciKeras", "skorch")),
    "first fit": ("s of a first fit, 20 epochs", first_fit, ("MLPClassifier", "Keras fit", "skorch")),
    "growth": ("MB that a fit leaves behind", growth, ("MLPClassifier", "Keras wrapper", "SciKeras", "skorch")),
}  # fmt: skip
FRESH = {"first fit", "growth"}
"""Rows whose every measurement has a process of its own."""

ASKED = {
    ("step", "Keras fit"): 0.08, ("step", "MLPClassifier"): 0.5,
    ("first fit", "Keras fit"): 0.35, ("first fit", "MLPClassifier"): 1.3,
    ("second fit", "Keras fit"): 0.05,
    ("grid", "SciKeras"): 0.1, ("grid", "Keras wrapper"): 0.1,
    ("one row", "Keras fit"): 0.02, ("one row", "MLPClassifier"): 3.0,
    ("100000 rows", "Keras fit"): 0.5,
    ("growth", "Keras wrapper"): 0.1,
}  # fmt: skip
"""The ratio of kopt's figure to the other's, at most."""


def measure(row, side):
    _, work, _ = ROWS[row]
    make = SIDES[side][1]
    return work(make, side) if row == "grid" else work(make)


def in_a_process(*arguments):
    command = [sys.executable, __file__, *(["--cpu"] if CPU else []), "--once", *arguments]
    run = subprocess.run(command, capture_output=True, text=True, check=True)
    return json.loads(run.stdout.splitlines()[-1])


def compared(row, turns):
    """A line of the table for each rival: kopt's figure, its own, the ratio of each turn's two."""
    label, _, rivals = ROWS[row]
    sides = ["kopt", *(rival for rival in rivals if importlib.util.find_spec(SIDES[rival][0]))]
    apart = set(sides) if row in FRESH else {"skorch"}  # which brings torch, that bears no TensorFlow beside it
    figures = [{s: (in_a_process if s in apart else measure)(row, s) for s in sides} for _ in range(turns)]
    ours = statistics.median(turn["kopt"] for turn in figures)
    for rival in sides[1:]:
        theirs = statistics.median(turn[rival] for turn in figures)
        yield label, ours, rival, theirs, statistics.median(t["kopt"] / t[rival] for t in figures), (row, rival)


def pickled():
    """Pickles' sizes over the bytes of what they have to hold."""
    kopt, mlp = (make().fit(*data()) for make in (functools.partial(kopt_side, 1), functools.partial(mlp_side, 1)))
    size, weights = len(pickle.dumps(kopt)), sum(w.nbytes for w in kopt.model_.get_weights())
    state = sum(array.nbytes for array in kopt._network._state)
    yield "bytes of a pickle", size, "its weights", weights, size / weights, None
    yield "bytes of a pickle", size, "its weights and Adam's two moments", state, size / state, None
    yield "bytes of a pickle", size, "MLPClassifier", len(pickle.dumps(mlp)), size / len(pickle.dumps(mlp)), None


IMPORTS = {
    "kopt": "import kopt; kopt.KerasClassifier",
    "sklearn.neural_network": "import sklearn.neural_network",
    "Keras": "import keras",
}


def imported(turns):
    """Seconds of imports beyond scikit-learn's own."""

    def beyond(code):
        code = f"import time, sklearn.model_selection; t = time.perf_counter(); {code}; print(time.perf_counter() - t)"
        return float(subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout)

    figures = [{name: beyond(code) for name, code in IMPORTS.items()} for _ in range(turns)]
    ours = statistics.median(turn["kopt"] for turn in figures)
    for name in list(IMPORTS)[1:]:
        theirs = statistics.median(turn[name] for turn in figures)
        yield "s of import beyond scikit-learn", ours, name, theirs, ours / theirs, None


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", nargs="+", default=[*ROWS, "pickle", "import"], choices=[*ROWS, "pickle", "import"])
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--cpu", action="store_true", help="CPU time of all threads: for a machine with other work")
    parser.add_argument("--once", nargs=2, metavar=("ROW", "SIDE"), help="measures one figure and prints it")
    asked = parser.parse_args()
    if asked.once:
        print(json.dumps(measure(*asked.once)))
        return
    from rich.console import Console
    from rich.table import Table

    table = Table(
        "what",
        "kopt",
        "beside",
        "its figure",
        "ratio",
        "asked",
        title=f"Estimators, digits{', CPU time' if CPU else ''}",
    )
    for row in asked.rows:
        single = {"pickle": pickled, "import": functools.partial(imported, asked.turns)}
        for label, ours, rival, theirs, ratio, key in single[row]() if row in single else compared(row, asked.turns):
            limit = f"{ASKED[key]:g}" if key in ASKED else ""
            table.add_row(label, f"{ours:.4g}", rival, f"{theirs:.4g}", f"{ratio:.3g}", limit)
    Console(width=120).print(table)


if __name__ == "__main__":
    os.environ["OPENBLAS_NUM_THREADS"] = "1"  # before numpy is loaded: more threads slow small matrices down
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        main()
