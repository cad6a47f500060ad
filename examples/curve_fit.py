"""A spectrum of two peaks on a sloping ground, fitted by Levenberg-Marquardt, with error bars from the Jacobian.

python examples/curve_fit.py --steps 30 --noise 0.05
"""

import argparse

import keras
import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
from keras import ops

import kopt
from kopt.training.batch import Batch
from kopt.training.oracle import Oracle

parser = argparse.ArgumentParser()
parser.add_argument("--steps", type=int, default=30)
parser.add_argument("--noise", type=float, default=0.05)
parser.add_argument("--seed", type=int, default=0)
arguments = parser.parse_args()


class Spectrum(keras.layers.Layer):
    """Peaks of some height, center and width each, on a straight line."""

    def __init__(self, peaks, ground):
        super().__init__()
        self.peaks = self.add_weight(shape=np.shape(peaks), name="peaks")
        self.ground = self.add_weight(shape=np.shape(ground), name="ground")
        self.set_weights([np.array(peaks), np.array(ground)])

    def call(self, x):
        """The curve, at a column of x."""
        height, center, width = ops.unstack(self.peaks, axis=1)
        peaks = height * ops.exp(-0.5 * ops.square((x - center) / width))
        return self.ground[0] + self.ground[1] * x + ops.sum(peaks, axis=1, keepdims=True)


truth = Spectrum([[1.0, 3.0, 0.4], [0.6, 4.3, 0.7]], [0.3, 0.05])
rng = np.random.default_rng(arguments.seed)
x = np.linspace(0, 8, 120, dtype="float32")[:, None]
y = ops.convert_to_numpy(truth(x)) + arguments.noise * rng.standard_normal(x.shape)

start = [[0.8, 2.5, 1.0], [0.8, 5.0, 1.0]], [0.0, 0.0]
optimizers = {"Levenberg-Marquardt": kopt.LevenbergMarquardt(), "Adam": kopt.Adam(0.03)}
losses, models = {}, {}
for name, optimizer in optimizers.items():
    inputs = keras.Input((1,))
    model = models[name] = kopt.Model(inputs, Spectrum(*start)(inputs))
    model.compile(optimizer, "mse", jit_compile=False)
    losses[name] = model.fit(x, y, batch_size=len(x), epochs=arguments.steps, verbose=0).history["loss"]

model = models["Levenberg-Marquardt"]


def compute(through):
    outputs = model(x)
    return outputs, model.compute_loss(x, y, through(outputs))


r, J = (ops.convert_to_numpy(part) for part in Oracle(Batch(model, compute)).jacobian())
covariance = r @ r / (r.size - J.shape[1]) * np.linalg.inv(J.T @ J)  # of the parameters, were the curve linear in them
names = [f"{what} {number}" for number in (1, 2) for what in ("height", "center", "width")] + ["ground", "slope"]
values = np.concatenate([part.ravel() for part in model.get_weights()])
for name, value, variance in zip(names, values, np.diag(covariance), strict=True):
    print(f"{name:9}{value:7.3f} ± {np.sqrt(variance):.3f}")

figure, axes = plt.subplots(1, 2, figsize=(9, 3.5), layout="constrained")
axes[0].plot(x, y, ".", color="0.6", label="data")
axes[0].plot(x, ops.convert_to_numpy(Spectrum(*start)(x)), ":", color="0.4", label="start")
axes[0].plot(x, ops.convert_to_numpy(model(x)), label="fit")
axes[0].set(title="Two peaks on a sloping ground", xlabel="x")
axes[0].legend()
for name, values in losses.items():
    axes[1].semilogy(np.arange(len(values)), values, label=name)
axes[1].axhline(arguments.noise**2, color="0.6", linestyle="--", label="variance of the noise")
axes[1].set(title="Mean squared error", xlabel="step")
axes[1].legend()
figure.savefig("curve_fit.png", dpi=120)
