"""A pipeline that ends in a Keras network, tuned by a Gaussian process: network, optimizer and selection at once.

python examples/tune_pipeline.py
"""

from scipy.stats import loguniform
from sklearn.datasets import load_breast_cancer
from sklearn.feature_selection import SelectKBest
from sklearn.model_selection import train_test_split
from sklearn.pipeline import Pipeline
from sklearn.preprocessing import StandardScaler

from kopt import AdamW, KerasClassifier, TunerSearchCV


def main():
    X, y = load_breast_cancer(return_X_y=True)
    X_train, X_test, y_train, y_test = train_test_split(X, y, stratify=y, random_state=0)
    pipeline = Pipeline(
        [
            ("scale", StandardScaler()),
            ("select", SelectKBest()),
            ("network", KerasClassifier(optimizer=AdamW(), epochs=10, random_state=0)),
        ]
    )
    space = {
        "select__k": [10, 20, 30],
        "network__model__hidden_layer_sizes": [(16,), (32, 32)],
        "network__model__drop_path": [0.0, 0.2],
        "network__optimizer__learning_rate": loguniform(1e-4, 1e-1),
        "network__optimizer__weight_decay": loguniform(1e-5, 1e-1),
    }
    search = TunerSearchCV(pipeline, space, n_iter=8, cv=3, random_state=0, verbose=1).fit(X_train, y_train)
    for name, value in search.best_params_.items():
        print(f"{name}: {value:.3g}" if isinstance(value, float) else f"{name}: {value}")
    print(f"accuracy in cross-validation {search.best_score_:.3f}, held out {search.score(X_test, y_test):.3f}")


if __name__ == "__main__":
    main()
