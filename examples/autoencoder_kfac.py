"""Digits through 8 numbers: a deep autoencoder that K-FAC trains in a fraction of Adam's steps.

python examples/autoencoder_kfac.py --steps 120
"""

import argparse

import keras
import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
from sklearn.datasets import load_digits

import kopt

parser = argparse.ArgumentParser()
parser.add_argument("--steps", type=int, default=40)
parser.add_argument("--damping", type=float, default=1e-3)
parser.add_argument("--seed", type=int, default=0)
arguments = parser.parse_args()

rows = (load_digits().data / 16).astype("float32")
p = np.clip(rows, 1e-7, 1 - 1e-7)
least = -np.mean(np.sum(p * np.log(p) + (1 - p) * np.log(1 - p), axis=1))


def trained(optimizer):
    """The model, and for each step how many nats a picture costs above the least that there are."""
    keras.utils.set_random_seed(arguments.seed)
    inputs = x = keras.Input((64,))
    for units in 100, 50, 25, 8, 25, 50, 100:
        x = keras.layers.Dense(units, "tanh")(x)
    model = kopt.Model(inputs, keras.layers.Dense(64)(x))
    model.compile(optimizer, keras.losses.BinaryCrossentropy(from_logits=True), jit_compile=False)
    history = model.fit(rows, rows, batch_size=len(rows), epochs=arguments.steps, verbose=0).history["loss"]
    return model, 64 * np.array(history) - least


optimizers = {
    "Adam": kopt.Adam(0.005),
    "SOAP": kopt.SOAP(0.03, weight_decay=None),
    "AdaptiveKFAC": kopt.AdaptiveKFAC(damping=arguments.damping),
}
figure, (curves, pictures) = plt.subplots(1, 2, figsize=(10, 3.5), layout="constrained")
drawn = [rows[:10]]
for name, optimizer in optimizers.items():
    model, excess = trained(optimizer)
    print(f"{name}: {excess[-1]:.2f} nats a picture above the least after {arguments.steps} steps")
    curves.semilogy(np.arange(1, len(excess) + 1), excess, label=name)
    drawn.append(1 / (1 + np.exp(-model.predict(rows[:10], verbose=0))))
curves.set(title="Loss above the least", xlabel="step", ylabel="nats a picture")
curves.legend()
lines = [np.pad(line.reshape(10, 8, 8), ((0, 0), (1, 1), (1, 1))) for line in drawn]
grid = np.concatenate([np.concatenate(line, axis=1) for line in lines])
pictures.imshow(grid, cmap="gray_r")
pictures.set(title="Digits, and what each makes of them", xticks=[])
pictures.set_yticks(5 + 10 * np.arange(len(drawn)), ["given", *optimizers])
figure.savefig("autoencoder_kfac.png", dpi=120)
