"""Sharpness-aware minimization where four of ten training labels are wrong: it learns the rest, and less of the noise.

python examples/noisy_labels.py --epochs 60 --rho 0.5
"""

import argparse

import keras
import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

import kopt

parser = argparse.ArgumentParser()
parser.add_argument("--epochs", type=int, default=60)
parser.add_argument("--rho", type=float, default=0.5)
parser.add_argument("--seed", type=int, default=0)
arguments = parser.parse_args()

X, y = load_digits(return_X_y=True)
X = (X / 16).astype("float32")
X_train, X_test, y_train, y_test = train_test_split(X, y, test_size=0.5, random_state=arguments.seed, stratify=y)
rng = np.random.default_rng(arguments.seed)
wrong = rng.random(len(y_train)) < 0.4
y_noisy = np.where(wrong, rng.integers(0, 10, len(y_train)), y_train)


def histories(optimizer):
    """The accuracy on clean test rows, and on the wrong labels, after each epoch."""
    keras.utils.set_random_seed(arguments.seed)
    inputs = keras.Input((64,))
    x = keras.layers.Dense(128, "relu")(inputs)
    x = keras.layers.Dense(64, "relu")(x)
    model = kopt.Model(inputs, keras.layers.Dense(10)(x))
    model.compile(optimizer, keras.losses.SparseCategoricalCrossentropy(from_logits=True), jit_compile=False)
    found = []

    def keep(epoch, logs):
        test, train = (model.predict(rows, verbose=0).argmax(1) for rows in (X_test, X_train))
        found.append((np.mean(test == y_test), np.mean(train[wrong] == y_noisy[wrong])))

    keep = keras.callbacks.LambdaCallback(on_epoch_end=keep)
    model.fit(X_train, y_noisy, batch_size=128, epochs=arguments.epochs, verbose=0, callbacks=[keep])
    return np.array(found)


optimizers = {
    "SGD": kopt.SGD(0.1, momentum=0.9),
    f"SAM, ρ = {arguments.rho}": kopt.SAM(kopt.SGD(0.1, momentum=0.9), rho=arguments.rho),
}
figure, axes = plt.subplots(1, 2, figsize=(9, 3.5), layout="constrained")
for name, optimizer in optimizers.items():
    found = histories(optimizer)
    test, noise = found[-1]
    print(f"{name}: test accuracy {test:.3f}, at best {found[:, 0].max():.3f}; wrong labels learnt {noise:.3f}")
    for axis, values in zip(axes, found.T, strict=True):
        axis.plot(np.arange(1, len(values) + 1), values, label=name)
for axis, title in zip(axes, ("Accuracy on clean test rows", "Wrong labels learnt"), strict=True):
    axis.set(title=title, xlabel="epoch", ylim=(0, 1))
axes[0].legend()
figure.savefig("noisy_labels.png", dpi=120)
