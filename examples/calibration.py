"""Probabilities that can be trusted, and a decision that counts the costs: calibration and thresholds of a network.

python examples/calibration.py --epochs 40
"""

import argparse

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
from sklearn.calibration import CalibratedClassifierCV, CalibrationDisplay
from sklearn.datasets import make_classification
from sklearn.metrics import brier_score_loss, confusion_matrix, log_loss, make_scorer
from sklearn.model_selection import TunedThresholdClassifierCV, train_test_split
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

import kopt

parser = argparse.ArgumentParser()
parser.add_argument("--epochs", type=int, default=40)
parser.add_argument("--rows", type=int, default=6000)
parser.add_argument("--miss", type=float, default=10.0, help="what a miss costs, where a false alarm costs 1")
arguments = parser.parse_args()

X, y = make_classification(
    arguments.rows, 20, n_informative=8, weights=[0.8], flip_y=0.15, class_sep=0.8, random_state=0
)
X_train, X_test, y_train, y_test = train_test_split(X, y, test_size=0.5, stratify=y, random_state=0)
network = make_pipeline(
    StandardScaler(),
    kopt.KerasClassifier(model__hidden_layer_sizes=(64, 64), epochs=arguments.epochs, batch_size=64, random_state=0),
)


def gain(y, predicted):
    """The mean cost of a decision, negative: the higher, the better."""
    (_, alarms), (misses, _) = confusion_matrix(y, predicted)
    return -(alarms + arguments.miss * misses) / len(y)


plain = network.fit(X_train, y_train)
calibrated = CalibratedClassifierCV(network, method="isotonic", cv=3).fit(X_train, y_train)
tuned = TunedThresholdClassifierCV(calibrated, scoring=make_scorer(gain), cv=3, thresholds=200).fit(X_train, y_train)

figure, (left, right) = plt.subplots(1, 2, figsize=(9, 4), layout="constrained")
thresholds = np.linspace(0.01, 0.99, 99)
for name, classifier in (("network", plain), ("calibrated", calibrated)):
    p = classifier.predict_proba(X_test)[:, 1]
    print(f"{name:>10}: Brier score {brier_score_loss(y_test, p):.3f}, log loss {log_loss(y_test, p):.3f}")
    CalibrationDisplay.from_predictions(y_test, p, n_bins=10, strategy="quantile", name=name, ax=left)
    right.plot(thresholds, [-gain(y_test, p > threshold) for threshold in thresholds], label=name)
costs = {"0.5": -gain(y_test, calibrated.predict(X_test)), "tuned": -gain(y_test, tuned.predict(X_test))}
print(f"cost of a decision at a threshold of 0.5: {costs['0.5']:.3f}")
print(f"cost of a decision at {tuned.best_threshold_:.2f}, tuned on training rows: {costs['tuned']:.3f}")

left.set(title="How often it is so", xlabel="predicted probability", ylabel="share of positives")
right.axvline(tuned.best_threshold_, color="C2", linewidth=1, label="tuned threshold")
right.axvline(1 / (1 + arguments.miss), color="C7", linestyle=":", label="1 / (1 + cost of a miss)")
right.set(title="What a decision costs", xlabel="threshold", ylabel="mean cost on test rows")
right.legend(fontsize=8)
figure.savefig("calibration.png", dpi=120)
