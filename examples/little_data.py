"""The same small network on 200 digits, with and without regularizers, and what it does not know.

Prints the accuracy on the other digits, how many of the 64 pixels a group lasso left in use, and, of Monte-Carlo
dropout, the spread of predictions that are right and of those that are wrong.
"""

import argparse

import keras
import numpy as np
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

import kopt


def network(dropout=0.0):
    keras.utils.set_random_seed(0)
    inputs = keras.Input((64,))
    h = keras.layers.Dense(128, "relu", name="hidden_0")(inputs)
    h = keras.layers.Dropout(dropout)(h)
    h = keras.layers.Dense(128, "relu", name="hidden_1")(h)
    h = keras.layers.Dropout(dropout)(h)
    return kopt.Model(inputs, keras.layers.Dense(10, "softmax")(h))


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--epochs", type=int, default=150)
    epochs = parser.parse_args().epochs

    x, y = load_digits(return_X_y=True)
    x, x_test, y, y_test = train_test_split(x.astype("float32") / 16, y, train_size=200, stratify=y, random_state=0)
    lasso = kopt.penalties.GroupLasso(0.2, by="input")
    trials = {
        "none": (network(), kopt.Adam(1e-3), None),
        "dropout": (network(0.4), kopt.Adam(1e-3), None),
        "label smoothing": (network(), kopt.Adam(1e-3), kopt.objectives.LabelSmoothing(0.1)),
        "mixup": (network(), kopt.Adam(1e-3), kopt.objectives.MixUp(0.4)),
        "virtual adversaries": (network(), kopt.Adam(1e-3), kopt.objectives.VAT(1.0)),
        "group lasso of pixels": (network(), kopt.Proximal(kopt.Adam(1e-3), {"hidden_0/kernel": lasso}), None),
    }
    for name, (model, optimizer, objective) in trials.items():
        model.compile(optimizer, "sparse_categorical_crossentropy", metrics=["accuracy"], objective=objective)
        model.fit(x, y, epochs=epochs, verbose=0)
        accuracy = model.evaluate(x_test, y_test, verbose=0, return_dict=True)["accuracy"]
        print(f"{name:22} {accuracy:.3f}")

    kernel = trials["group lasso of pixels"][0].get_layer("hidden_0").get_weights()[0]
    print(f"\npixels in use with the group lasso: {np.count_nonzero(kernel.any(axis=1))} of 64")

    draws = kopt.monte_carlo(trials["dropout"][0], x_test, samples=50, seed=0)
    mean, spread = draws.mean(axis=0), draws.std(axis=0)
    found = mean.argmax(axis=1)
    of_found = spread[np.arange(len(found)), found]
    right = found == y_test
    sure, unsure = of_found[right].mean(), of_found[~right].mean()
    print(f"spread of the probability: {sure:.3f} where right, {unsure:.3f} where wrong")


if __name__ == "__main__":
    main()
