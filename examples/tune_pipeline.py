"""A pipeline that ends in a Keras network, tuned as a whole: scaling, selection, network, optimizer and schedule.

python examples/tune_pipeline.py
python examples/tune_pipeline.py --candidates 40 --directory search   # goes on there when it is run again

A Gaussian process proposes the candidates. The report, with its pictures, is written to tune_pipeline.html.
"""

import argparse

from scipy.stats import loguniform
from sklearn.datasets import load_breast_cancer
from sklearn.feature_selection import SelectKBest
from sklearn.model_selection import train_test_split
from sklearn.pipeline import Pipeline
from sklearn.preprocessing import PowerTransformer, StandardScaler

from kopt import AdamW, KerasClassifier, TunerSearchCV, schedules

STEPS = 10 * 9
"""Of a fit: epochs, and batches in an epoch of two thirds of the training rows."""


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--candidates", type=int, default=12)
    parser.add_argument("--directory")
    asked = parser.parse_args()
    X, y = load_breast_cancer(return_X_y=True)
    X_train, X_test, y_train, y_test = train_test_split(X, y, stratify=y, random_state=0)
    pipeline = Pipeline(
        [
            ("scale", StandardScaler()),
            ("select", SelectKBest()),
            ("network", KerasClassifier(optimizer=AdamW(), epochs=10, batch_size=32, random_state=0)),
        ]
    )
    rest = {
        "scale": [StandardScaler(), PowerTransformer()],
        "select__k": [10, 20, 30],
        "network__model__hidden_layer_sizes": [(16,), (32, 32)],
        "network__model__drop_path": [0.0, 0.2],
        "network__optimizer__weight_decay": loguniform(1e-5, 1e-1),
    }
    # A constant rate is a number; a schedule is a value of the same parameter, and a list of dicts keeps them apart.
    cycles = [schedules.OneCycle(peak, STEPS) for peak in (3e-3, 1e-2, 3e-2)]
    space = [
        {**rest, "network__optimizer__learning_rate": loguniform(1e-4, 1e-1)},
        {**rest, "network__optimizer__learning_rate": cycles},
    ]
    search = TunerSearchCV(
        pipeline, space, n_iter=asked.candidates, cv=3, random_state=0, verbose=1, directory=asked.directory
    )
    search.fit(X_train, y_train)
    for name, value in search.best_params_.items():
        print(f"{name}: {value:.3g}" if isinstance(value, float) else f"{name}: {value}")
    print(f"accuracy in cross-validation {search.best_score_:.3f}, held out {search.score(X_test, y_test):.3f}")
    print(f"written to {search.report('tune_pipeline.html')}")


if __name__ == "__main__":
    main()
