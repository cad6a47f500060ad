"""`python -m kopt`: tunes a scikit-learn pipeline with a Keras network on real data, and says what came of it.

`python -m kopt launch`: trains with several processes.
"""

import argparse
import os
import sys
import time
from pathlib import Path

from kopt._checks import Refusal, needs_tensorflow
from kopt._tables import FOLDS, digits, read_table
from kopt.distribute import launch

METHODS = ("bayesian", "random", "grid")


def main(arguments=None):
    """Runs the command line, and returns its exit code: 2 if something asked for cannot be had."""
    arguments = sys.argv[1:] if arguments is None else arguments
    try:
        if arguments[:1] == ["launch"]:
            return launch.run(arguments[1:])
        asked = _parser().parse_args(arguments)
        if (asked.csv is None) != (asked.target is None):
            raise Refusal("--csv and --target go together: a file, and the name of its column to predict.")
        if asked.trials < 1:
            raise Refusal(f"--trials must be 1 or more, got {asked.trials}.")
        if not 0 <= asked.seed < 2**32:
            raise Refusal(f"--seed must be in [0, 2**32), got {asked.seed}.")
        if not os.access(asked.output.parent, os.W_OK) or asked.output.is_dir():
            raise Refusal(f"--output must be a file in a folder that can be written, got {asked.output}.")
        data = digits() if asked.csv is None else read_table(asked.csv, asked.target)
        _start_tensorflow()
    except (Refusal, ModuleNotFoundError) as refusal:
        print(f"kopt: {refusal}", file=sys.stderr)
        return 2
    _run(data, asked)
    return 0


def _parser():
    parser = argparse.ArgumentParser(
        prog="python -m kopt",
        description="Tunes a scikit-learn pipeline that ends in a Keras network, scores it on rows held out, "
        "and saves it. Without --csv the data are scikit-learn's 8x8 images of digits.",
        epilog="python -m kopt launch --help tells of something else: training with several processes.",
    )
    parser.add_argument("--csv", type=Path, metavar="FILE", help="a table of your own, its first line the names")
    parser.add_argument("--target", metavar="COLUMN", help="the column of FILE to predict")
    parser.add_argument("--method", choices=METHODS, default="bayesian", help="how to search (default: %(default)s)")
    parser.add_argument(
        "--trials", type=int, default=6, metavar="N", help="candidates to try; a grid is tried whole (default: 6)"
    )
    parser.add_argument(
        "--strategy",
        choices=("none", "auto", "mirrored"),
        default="none",
        help="how to use several devices (default: not at all)",
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


# ---- the job ---------------------------------------------------------------------------------------------------------


def _start_tensorflow():
    """Starts TensorFlow without its notes on the machine, which its own log level does not silence."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    sys.stderr.flush()
    stderr, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nowhere, 2)
        with needs_tensorflow("python -m kopt"):
            import keras
        keras.ops.zeros(1)
    finally:
        os.dup2(stderr, 2)
        os.close(nowhere)
        os.close(stderr)


def _run(data, asked):
    import joblib
    from rich.console import Console
    from sklearn.model_selection import train_test_split

    console = Console()
    X, X_held_out, y, y_held_out = train_test_split(
        data.X, data.y, test_size=0.2, stratify=data.y if data.classes else None, random_state=asked.seed
    )
    console.print(f"{data.name}: {len(X)} rows to learn from, {len(X_held_out)} held out; {asked.method} search")
    search = _search(data, asked)
    began = time.perf_counter()
    search.fit(X, y)
    seconds = time.perf_counter() - began
    rival = _DefaultKeras(data, seconds, asked.seed)
    with console.status("training a default Keras Adam network for the same time"):
        rival.fit(X, y)
    joblib.dump(search.best_estimator_, asked.output)

    console.print(_candidates(search, "accuracy" if data.classes else "R²"))
    console.print(f"On the rows held out, after {seconds:.0f} s each:")
    console.print(f"  {search.score(X_held_out, y_held_out):.4f}  the chosen pipeline")
    console.print(f"  {rival.score(X_held_out, y_held_out):.4f}  a default Keras Adam network")
    console.print(f"The fitted pipeline is saved: joblib.load({str(asked.output.resolve())!r})", soft_wrap=True)


def _search(data, asked):
    from scipy.stats import loguniform, uniform
    from sklearn.compose import TransformedTargetRegressor
    from sklearn.pipeline import Pipeline
    from sklearn.preprocessing import StandardScaler

    import kopt

    kind = kopt.KerasClassifier if data.classes else kopt.KerasRegressor
    strategy = None if asked.strategy == "none" else asked.strategy
    network = kind(optimizer=kopt.AdamW(), epochs=40, batch_size=64, strategy=strategy, random_state=asked.seed)
    space = {
        "model__hidden_layer_sizes": [(64, 64), (128, 128)],
        "model__drop_path": uniform(0.05, 0.35),
        "optimizer__learning_rate": loguniform(1e-3, 3e-2),
        "optimizer__weight_decay": loguniform(1e-3, 1.0),
    }
    if asked.method == "grid":
        space |= {
            "model__drop_path": [0.1, 0.3],
            "optimizer__learning_rate": [1e-3, 1e-2],
            "optimizer__weight_decay": [0.05],
        }
    route = "network__"
    if not data.classes:
        network = TransformedTargetRegressor(network, transformer=StandardScaler())
        route += "regressor__"
    return kopt.TunerSearchCV(
        Pipeline([("prepare", data.prepare), ("network", network)]),
        {route + name: values for name, values in space.items()},
        method=asked.method,
        n_iter=asked.trials,
        cv=FOLDS,
        random_state=asked.seed,
        verbose=1,
    )


def _candidates(search, metric):
    """The table of all candidates, the best first."""
    from rich.table import Table

    results = search.cv_results_
    names = list(results["params"][0])
    table = Table(title=f"{len(results['params'])} candidates, {FOLDS} folds each", title_justify="left")
    table.add_column("", no_wrap=True)
    table.add_column(metric, no_wrap=True)
    for name in names:
        table.add_column(name.rpartition("__")[2].replace("_", " "), justify="right", overflow="fold")
    table.add_column("s", justify="right", no_wrap=True)
    for row in sorted(range(len(results["params"])), key=lambda row: results["rank_test_score"][row]):
        chosen = row == search.best_index_
        table.add_row(
            "chosen" if chosen else "",
            f"{results['mean_test_score'][row]:.4f} ±{results['std_test_score'][row]:.3f}",
            *(_shown(results["params"][row][name]) for name in names),
            f"{FOLDS * results['mean_fit_time'][row]:.1f}",
            style="bold" if chosen else None,
        )
    return table


def _shown(value):
    if isinstance(value, tuple):
        return ", ".join(map(str, value))
    return f"{value:.2g}" if isinstance(value, float) else str(value)


class _DefaultKeras:
    """A network as Keras's introductions have it: a hidden layer, Adam as it comes, batches of 32, no search."""

    def __init__(self, data, seconds, seed):
        self.data, self.seconds, self.seed = data, seconds, seed

    def fit(self, X, y):
        """Trains until the time is up."""
        import keras
        import numpy as np
        from sklearn.base import clone
        from sklearn.preprocessing import LabelEncoder, StandardScaler

        self.prepare = clone(self.data.prepare).fit(X)
        self.encode = LabelEncoder() if self.data.classes else StandardScaler()
        codes = self.encode.fit_transform(self._column(y))
        rows = self.prepare.transform(X)
        keras.utils.set_random_seed(self.seed)
        last = keras.layers.Dense(len(self.encode.classes_), "softmax") if self.data.classes else keras.layers.Dense(1)
        self.model = keras.Sequential([keras.Input(rows.shape[1:]), keras.layers.Dense(100, "relu"), last])
        self.model.compile("adam", "sparse_categorical_crossentropy" if self.data.classes else "mse")
        end = time.perf_counter() + self.seconds
        stop = keras.callbacks.LambdaCallback(
            on_epoch_end=lambda epoch, logs: setattr(self.model, "stop_training", time.perf_counter() > end)
        )
        self.model.fit(np.asarray(rows, "float32"), codes, epochs=10**6, verbose=0, callbacks=[stop])

    def score(self, X, y):
        """Accuracy or R², as scikit-learn's estimators have it."""
        from sklearn.metrics import accuracy_score, r2_score

        outputs = self.model.predict(self.prepare.transform(X).astype("float32"), verbose=0)
        if self.data.classes:
            return accuracy_score(y, self.encode.inverse_transform(outputs.argmax(1)))
        return r2_score(y, self.encode.inverse_transform(outputs))

    def _column(self, y):
        return y if self.data.classes else y.to_numpy("float32").reshape(-1, 1)


if __name__ == "__main__":
    sys.exit(main())
