"""`python -m kopt`: tunes a scikit-learn pipeline with a Keras network on real data, and says what came of it."""

import argparse
import contextlib
import os
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

METHODS = ("bayesian", "random", "grid")
FOLDS = 3


def main(arguments=None):
    """Runs the command line, and returns its exit code: 2 if something asked for cannot be had."""
    asked = _parser().parse_args(arguments)
    try:
        if (asked.csv is None) != (asked.target is None):
            raise _Refusal("--csv and --target go together: a file, and the name of its column to predict.")
        if asked.trials < 1:
            raise _Refusal(f"--trials must be 1 or more, got {asked.trials}.")
        data = _digits() if asked.csv is None else _table(asked.csv, asked.target)
    except _Refusal as refusal:
        print(f"kopt: {refusal}", file=sys.stderr)
        return 2
    _start_tensorflow()
    _run(data, asked)
    return 0


def _parser():
    parser = argparse.ArgumentParser(
        prog="python -m kopt",
        description="Tunes a scikit-learn pipeline that ends in a Keras network, scores it on rows held out, "
        "and saves it. Without --csv the data are scikit-learn's 8x8 images of digits.",
    )
    parser.add_argument("--csv", type=Path, metavar="FILE", help="a table of your own, its first line the names")
    parser.add_argument("--target", metavar="COLUMN", help="the column of FILE to predict")
    parser.add_argument("--method", choices=METHODS, default="bayesian", help="how to search (default: %(default)s)")
    parser.add_argument(
        "--trials", type=int, default=8, metavar="N", help="candidates to try; a grid is tried whole (default: 8)"
    )
    parser.add_argument(
        "--strategy", choices=("none", "auto", "mirrored"), default="none", help="devices to train on (default: none, one)"
    )
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="of all that is random (default: 0)")
    parser.add_argument(
        "--output",
        type=Path,
        default=Path("kopt-pipeline.joblib"),
        metavar="FILE",
        help="where to save the fitted pipeline (default: %(default)s)",
    )
    return parser


class _Refusal(Exception):
    """What was asked for cannot be had; one sentence says why."""


# ---- the data --------------------------------------------------------------------------------------------------------


@dataclass
class _Data:
    """Rows to learn from, and how to prepare them."""

    name: str
    X: Any
    y: Any
    classes: bool
    prepare: Any


def _digits():
    from sklearn.datasets import load_digits
    from sklearn.preprocessing import StandardScaler

    X, y = load_digits(return_X_y=True)
    return _Data("digits", X.astype("float32"), y, True, StandardScaler())


def _table(file, target):
    """Reads a table; refuses what cannot be learnt from."""
    try:
        import pandas as pd
    except ModuleNotFoundError:
        raise _Refusal("--csv needs pandas. Install kopt[csv].") from None
    try:
        table = pd.read_csv(file)
    except FileNotFoundError:
        raise _Refusal(f"--csv names a file that does not exist: {file}.") from None
    except (OSError, ValueError) as error:
        raise _Refusal(f"--csv names a file that is no table: {file} ({str(error).strip()}).") from None
    if target not in table:
        raise _Refusal(f"--target must be a column of {file}, got {target!r}; it has {', '.join(map(str, table))}.")
    table = table.dropna(subset=[target])
    y, X = table[target], table.drop(columns=target)
    numeric = pd.api.types.is_numeric_dtype(y) and not pd.api.types.is_bool_dtype(y)
    distinct = y.nunique()
    whole = numeric and (y == y.round()).all()
    classes = not numeric or (whole and distinct <= 20)
    if X.shape[1] == 0:
        raise _Refusal(f"--csv must have columns besides {target!r} to predict it from, and {file} has none.")
    if distinct < 2:
        raise _Refusal(f"--target must be a column with at least two values, and {target!r} has {distinct}.")
    if classes and distinct > len(y) / 2:
        raise _Refusal(f"--target must be a column whose values recur or are numbers, and {target!r} has {distinct} "
                       f"values in {len(y)} rows.")  # fmt: skip
    fewest = y.value_counts().min() if classes else len(y) // 10
    if fewest <= FOLDS:
        rule = f"{FOLDS + 1} rows for each value of {target!r}" if classes else f"{10 * (FOLDS + 1)} rows"
        raise _Refusal(f"--csv must have at least {rule}, and {file} has {fewest if classes else len(y)}.")
    return _Data(file.stem, X, y, classes, _preparation(X))


def _preparation(X):
    """Scaled numbers and one-hot categories; gaps filled with the median and the most frequent."""
    from sklearn.compose import make_column_selector, make_column_transformer
    from sklearn.impute import SimpleImputer
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import OneHotEncoder, StandardScaler

    one_hot = OneHotEncoder(handle_unknown="infrequent_if_exist", max_categories=20, sparse_output=False)
    return make_column_transformer(
        (make_pipeline(SimpleImputer(strategy="median"), StandardScaler()), make_column_selector(dtype_include="number")),
        (make_pipeline(SimpleImputer(strategy="most_frequent"), one_hot), make_column_selector(dtype_exclude="number")),
    )


# ---- the job ---------------------------------------------------------------------------------------------------------


def _start_tensorflow():
    """Imports TensorFlow without its start-up notes, which its own log level does not silence."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    with _silent_stderr():
        import tensorflow as tf

        tf.config.list_logical_devices()


@contextlib.contextmanager
def _silent_stderr():
    sys.stderr.flush()
    kept = os.dup(2)
    nowhere = os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nowhere, 2)
        yield
    finally:
        os.dup2(kept, 2)
        os.close(nowhere)
        os.close(kept)


def _run(data, asked):
    import joblib
    from rich.console import Console
    from sklearn.model_selection import train_test_split

    console = Console()
    X, X_held_out, y, y_held_out = train_test_split(
        data.X, data.y, test_size=0.2, stratify=data.y if data.classes else None, random_state=asked.seed
    )
    console.print(
        f"kopt on {data.name}: {len(X)} rows to learn from, {len(X_held_out)} held out; {asked.method} search"
    )
    search = _search(data, asked)
    began = time.perf_counter()
    search.fit(X, y)
    seconds = time.perf_counter() - began
    baseline = _baseline(data, X, y, seconds, asked.seed, console)
    joblib.dump(search.best_estimator_, asked.output)

    console.print(_candidates(search))
    metric = "accuracy" if data.classes else "R²"
    console.print(f"{metric} on the rows held out, after {seconds:.0f} s of training each:")
    console.print(f"  the chosen pipeline          {search.score(X_held_out, y_held_out):.4f}")
    console.print(f"  a default Keras Adam network {baseline(X_held_out, y_held_out):.4f}")
    console.print(f"The fitted pipeline is saved: joblib.load({str(asked.output.resolve())!r})", soft_wrap=True)


def _search(data, asked):
    from scipy.stats import loguniform, uniform
    from sklearn.pipeline import Pipeline

    import kopt

    network = kopt.KerasClassifier if data.classes else kopt.KerasRegressor
    pipeline = Pipeline(
        [
            ("prepare", data.prepare),
            (
                "network",
                network(
                    optimizer=kopt.AdamW(),
                    epochs=30,
                    strategy=None if asked.strategy == "none" else asked.strategy,
                    random_state=asked.seed,
                ),
            ),
        ]
    )
    space = {
        "network__optimizer__learning_rate": loguniform(3e-4, 3e-2),
        "network__optimizer__weight_decay": loguniform(1e-3, 1.0),
        "network__model__drop_path": uniform(0.05, 0.35),
        "network__model__hidden_layer_sizes": [(64, 64), (128, 128)],
    }
    if asked.method == "grid":
        space |= {
            "network__optimizer__learning_rate": [1e-3, 3e-3, 1e-2],
            "network__optimizer__weight_decay": [1e-2],
            "network__model__drop_path": [0.1, 0.3],
        }
    return kopt.TunerSearchCV(
        pipeline, space, method=asked.method, n_iter=asked.trials, cv=FOLDS, random_state=asked.seed, verbose=1
    )


def _baseline(data, X, y, seconds, seed, console):
    """Trains a network as Keras's own quick start has it, for as long; returns its scoring function."""
    import keras
    import numpy as np
    from sklearn.base import clone

    prepare = clone(data.prepare).fit(X)
    keras.utils.set_random_seed(seed)
    width = np.shape(prepare.transform(X[:1]))[1]
    labels, codes = np.unique(y, return_inverse=True) if data.classes else (None, np.asarray(y, "float32"))
    center, scale = (0.0, 1.0) if data.classes else (codes.mean(), codes.std())
    head = keras.layers.Dense(len(labels), "softmax") if data.classes else keras.layers.Dense(1)
    model = keras.Sequential([keras.Input((width,)), keras.layers.Dense(100, "relu"), head])
    model.compile("adam", "sparse_categorical_crossentropy" if data.classes else "mse")
    began = time.perf_counter()
    stop = keras.callbacks.LambdaCallback(
        on_epoch_end=lambda epoch, logs: setattr(model, "stop_training", time.perf_counter() - began > seconds)
    )
    with console.status("training a default Keras Adam network for the same time"):
        model.fit(
            np.asarray(prepare.transform(X), "float32"), (codes - center) / scale, epochs=10**6, verbose=0, callbacks=[stop]
        )

    def score(X, y):
        from sklearn.metrics import accuracy_score, r2_score

        outputs = model.predict(np.asarray(prepare.transform(X), "float32"), verbose=0)
        if data.classes:
            return accuracy_score(y, labels[outputs.argmax(1)])
        return r2_score(y, outputs[:, 0] * scale + center)

    return score


def _candidates(search):
    """The table of all candidates, the chosen one marked."""
    from rich.table import Table

    results = search.cv_results_
    names = list(results["params"][0])
    table = Table(title=f"{len(results['params'])} candidates, mean of {FOLDS} folds", title_justify="left")
    for heading in ("", *(name.split("__", 2)[-1] for name in names), "score", "seconds"):
        table.add_column(heading, justify="left" if heading == "" else "right")
    for row, params in enumerate(results["params"]):
        values = [f"{value:.2g}" if isinstance(value, float) else str(value) for value in params.values()]
        score = f"{results['mean_test_score'][row]:.4f} ± {results['std_test_score'][row]:.4f}"
        chosen = row == search.best_index_
        table.add_row(
            "chosen" if chosen else "",
            *values,
            score,
            f"{FOLDS * results['mean_fit_time'][row]:.1f}",
            style="bold" if chosen else None,
        )
    return table


if __name__ == "__main__":
    sys.exit(main())
