"""A network on 200 handwritten digits, with and without regularizers, and whether dropout knows where it is wrong.

python examples/little_data.py --epochs 60
"""

import argparse

import keras
import numpy as np
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

import kopt

parser = argparse.ArgumentParser()
parser.add_argument("--epochs", type=int, default=60)
parser.add_argument("--seeds", type=int, default=3)
arguments = parser.parse_args()

X, y = load_digits(return_X_y=True)
X = (X / 16).astype("float32")


def fitted(data, seed, dropout=0.0, optimizer=None, objective=None):
    """The network after training, and its accuracy on the rows that were left out."""
    X_train, X_test, y_train, y_test = data
    keras.utils.set_random_seed(seed)
    inputs = h = keras.Input((64,))
    for name in "first", "second":
        h = keras.layers.Dense(128, "relu", name=name)(h)
        h = keras.layers.Dropout(dropout)(h) if dropout else h
    model = kopt.Model(inputs, keras.layers.Dense(10)(h))
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(optimizer or kopt.Adam(1e-3), loss, jit_compile=False, objective=objective)
    model.fit(X_train, y_train, batch_size=32, epochs=arguments.epochs, verbose=0)
    return model, np.mean(np.asarray(model(X_test)).argmax(axis=1) == y_test)


def sparse():
    """Adam, and after each of its steps a map that takes units, all that leads to them, towards zero."""
    return kopt.Proximal(kopt.Adam(1e-3), {"first/kernel|second/kernel": kopt.penalties.GroupLasso(0.3)})


def units_left(model):
    """How many of the hidden units have a weight that is not zero."""
    kernels = [model.get_layer(name).kernel.numpy() for name in ("first", "second")]
    return sum(int(np.any(kernel != 0, axis=0).sum()) for kernel in kernels)


methods = {
    "none": lambda: {},
    "Dropout(0.5)": lambda: dict(dropout=0.5),
    "MixUp(0.2)": lambda: dict(objective=kopt.objectives.MixUp(0.2)),
    "LabelSmoothing(0.1)": lambda: dict(objective=kopt.objectives.LabelSmoothing(0.1)),
    "Proximal, GroupLasso(0.3)": lambda: dict(optimizer=sparse()),
}
found = {name: [] for name in methods}
spreads = {True: [], False: []}
for seed in range(arguments.seeds):
    data = train_test_split(X, y, train_size=200, random_state=seed, stratify=y)
    for name, method in methods.items():
        model, accuracy = fitted(data, seed, **method())
        found[name].append((accuracy, units_left(model)))
        if name.startswith("Dropout"):
            draws = keras.ops.convert_to_numpy(keras.ops.softmax(kopt.monte_carlo(model, data[1], samples=50, seed=0)))
            mean = draws.mean(axis=0)
            spread = draws.std(axis=0)[np.arange(len(mean)), mean.argmax(axis=1)]  # of the class that it predicts
            for right in spreads:
                spreads[right].extend(spread[(mean.argmax(axis=1) == data[3]) == right])

print(f"{'':26} test accuracy      units left of 256")
for name, rows in found.items():
    accuracy, units = np.array(rows).T
    print(f"{name:26} {accuracy.mean():.3f} ± {accuracy.std():.3f}      {units.mean():.0f}")
print("Monte-Carlo dropout, the median spread of the probability of the class it predicts:")
print(f"    {np.median(spreads[True]):.3f} where that is right, {np.median(spreads[False]):.3f} where it is wrong")
