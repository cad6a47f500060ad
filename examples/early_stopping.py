"""Early stopping on held-out rows: the curves of a network that has too few rows for its size, and where it stops.

python examples/early_stopping.py --epochs 120 --rows 300
"""

import argparse

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

import kopt

parser = argparse.ArgumentParser()
parser.add_argument("--epochs", type=int, default=120)
parser.add_argument("--rows", type=int, default=300)
parser.add_argument("--seed", type=int, default=0)
arguments = parser.parse_args()

X, y = load_digits(return_X_y=True)
X = (X / 16).astype("float32")
X_train, X_test, y_train, y_test = train_test_split(
    X, y, train_size=arguments.rows, random_state=arguments.seed, stratify=y
)
rng = np.random.default_rng(arguments.seed)
y_train = np.where(rng.random(len(y_train)) < 0.2, rng.integers(0, 10, len(y_train)), y_train)  # some are wrong

network = kopt.KerasClassifier(
    optimizer="AdamW",
    optimizer__learning_rate=3e-3,
    model__hidden_layer_sizes=(128,),
    epochs=arguments.epochs,
    batch_size=32,
    validation_fraction=0.2,
    scoring="accuracy",
    random_state=arguments.seed,
)
whole = network.fit(X_train, y_train)
curves, at_the_end = whole.history_, whole.score(X_test, y_test)

network.set_params(scoring=None, early_stopping=True, n_iter_no_change=10).fit(X_train, y_train)
best = int(np.argmax(network.validation_scores_))
print(f"all {arguments.epochs} epochs: accuracy on test rows {at_the_end:.3f}")
print(f"stopped after {network.n_iter_}, at the weights of epoch {best + 1}: {network.score(X_test, y_test):.3f}")

figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.5), layout="constrained")
epochs = np.arange(1, len(curves["loss"]) + 1)
left.plot(epochs, curves["loss"], label="training")
left.plot(epochs, curves["val_loss"], label="held out")
left.set(title="Loss", xlabel="epoch", yscale="log")
right.plot(epochs, curves["val_accuracy"], color="C1", label="held out, with wrong labels")
right.axhline(at_the_end, color="C7", linestyle=":", label="test, after all epochs")
right.axhline(network.score(X_test, y_test), color="C2", linestyle=":", label="test, stopped early")
right.set(title="Accuracy", xlabel="epoch")
for axis in (left, right):
    axis.axvline(best + 1, color="C2", linewidth=1, label="best epoch by held-out loss")
    axis.legend(fontsize=8)
figure.savefig("early_stopping.png", dpi=120)
