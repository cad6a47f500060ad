"""A convolutional network on the digits: SOAP for its kernels, AdamW for the rest, and no schedule.

Schedule-Free evaluates at an average of the weights, so validation needs them swapped in, and the statistics of batch
normalization made anew there: the callback does both.

    python examples/matrices_without_schedule.py
"""

import keras
import numpy as np
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

import kopt

layers = keras.layers


def network():
    return keras.Sequential(
        [
            keras.Input((8, 8, 1)),
            layers.Conv2D(16, 3, padding="same", use_bias=False),
            layers.BatchNormalization(momentum=0.8),
            layers.ReLU(),
            layers.Conv2D(32, 3, strides=2, use_bias=False),
            layers.BatchNormalization(momentum=0.8),
            layers.ReLU(),
            layers.GlobalAveragePooling2D(),
            layers.Dense(10),
        ]
    )


def batches(X, y):
    """The rows in batches of about 128, to be iterated again and again."""
    order = np.random.default_rng(0).permutation(len(X))
    return [(X[i], y[i]) for i in np.array_split(order, len(X) // 128)]


def main():
    keras.utils.set_random_seed(0)
    X, y = load_digits(return_X_y=True)
    X = (X / 16).astype("float32").reshape(-1, 8, 8, 1)
    X, X_test, y, y_test = train_test_split(X, y, stratify=y, random_state=0)

    optimizers = {
        "SOAP and AdamW": kopt.Matrices(kopt.SOAP(3e-3, max_size=256), kopt.AdamW(3e-3)),
        "Schedule-Free AdamW": kopt.ScheduleFreeAdamW(1e-2, warmup_steps=10, no_decay="gamma|beta|bias"),
    }
    for name, optimizer in optimizers.items():
        model = network()
        loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
        model.compile(optimizer, loss, metrics=["accuracy"])
        callbacks = [kopt.SwapWeights(batches(X, y))] if optimizer.averages else []
        history = model.fit(
            X, y, batch_size=128, epochs=5, validation_data=(X_test, y_test), callbacks=callbacks, verbose=0
        ).history
        print(f"{name:20s} validation accuracy by epoch:", *(f"{a:.3f}" for a in history["val_accuracy"]))

    kopt.cite(optimizers["Schedule-Free AdamW"])


if __name__ == "__main__":
    main()
