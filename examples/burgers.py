"""Burgers' equation by a physics-informed network: AdamW finds the valley, a quasi-Newton method its floor.

    u_t + u u_x = ν u_xx,   u(0, x) = -sin(πx),   u(t, ±1) = 0

python examples/burgers.py --adam 500 --iterations 1000 --method BFGS
"""

import argparse
import time

import keras
import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
import tensorflow as tf
from scipy.stats import qmc

import kopt


class Burgers(kopt.Model):
    """A network u(t, x) that ought to fulfil the equation inside, and to meet the data at the border."""

    def __init__(self, viscosity, units=20, depth=3):
        super().__init__()
        self.viscosity = viscosity
        hidden = [keras.layers.Dense(units, "tanh", dtype="float64") for _ in range(depth)]
        self.network = keras.Sequential([*hidden, keras.layers.Dense(1, dtype="float64")])

    def call(self, points):
        """u at these points."""
        return self.network(points)

    def compute_residuals(self, x, y, y_pred, sample_weight):
        """What ought to be zero at each point: the equation's residual inside, √10 times the error at the border."""
        t, place = x[:, :1], x[:, 1:]
        with tf.GradientTape() as second:
            second.watch(place)
            with tf.GradientTape(persistent=True) as first:
                first.watch([t, place])
                u = self.network(tf.concat([t, place], 1))
            u_t, u_x = first.gradient(u, t), first.gradient(u, place)
        u_xx = second.gradient(u_x, place)
        target, at_border = y[:, :1], y[:, 1:]
        share = tf.reduce_mean(at_border)  # so that each mean is over the points concerned
        within = (1 - at_border) * (u_t + u * u_x - self.viscosity * u_xx) / tf.sqrt(1 - share)
        return within, at_border * (u - target) * tf.sqrt(10 / share)


def points(seed=0, inside=400, border=100):
    """Points (t, x), and for each its target and whether it has one: at the border, and Halton's within."""
    start = np.stack([np.zeros(border), np.linspace(-1, 1, border)], 1)
    times = np.linspace(0, 1, border // 2)
    sides = [np.stack([times, np.full(border // 2, x)], 1) for x in (-1.0, 1.0)]
    within = qmc.Halton(2, seed=seed).random(inside) * [1, 2] - [0, 1]  # which leave fewer gaps than uniform ones
    at_border = np.concatenate([start, *sides])
    targets = np.where(at_border[:, 0] == 0, -np.sin(np.pi * at_border[:, 1]), 0.0)
    y = np.concatenate([np.stack([targets, np.ones(len(targets))], 1), np.zeros((len(within), 2))])
    return np.concatenate([at_border, within]), y


def exact(t, x, viscosity, nodes=100):
    """The solution, by Cole and Hopf's transformation and Gauss-Hermite quadrature."""
    z, weights = np.polynomial.hermite.hermgauss(nodes)
    shifted = x[..., None] - z * np.sqrt(4 * viscosity * t)[..., None]
    mass = weights * np.exp(-(np.cos(np.pi * shifted) - 1) / (2 * np.pi * viscosity) - 1 / (np.pi * viscosity))
    return -np.sum(np.sin(np.pi * shifted) * mass, -1) / np.sum(mass, -1)


def solve(method, *, viscosity=0.1 / np.pi, adam=500, iterations=1000, seed=0, verbose=0):
    """Returns the model, what `kopt.minimize` returned, and the relative error."""
    keras.utils.set_random_seed(seed)
    model = Burgers(viscosity)
    x, y = points(seed=seed)
    optimizer = kopt.Switch([(kopt.AdamW(5e-3, weight_decay=0.0), adam), (method, None)])
    result = kopt.minimize(model, x, y, method=optimizer, maxiter=adam + iterations, gtol=0.0, verbose=verbose)
    t, place = np.meshgrid(np.linspace(0, 1, 101), np.linspace(-1, 1, 201))
    found = model.predict(np.stack([t.ravel(), place.ravel()], 1), batch_size=4096, verbose=0).reshape(t.shape)
    truth = exact(t, place, viscosity)
    return model, result, (found, truth), np.linalg.norm(found - truth) / np.linalg.norm(truth)


METHODS = {
    "LBFGS": lambda: kopt.LBFGS(pairs=100),  # the more pairs, the closer to BFGS
    "BFGS": lambda: kopt.BFGS(),
    "SSBroyden": lambda: kopt.SSBroyden(),
}


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--adam", type=int, default=100)
    parser.add_argument("--iterations", type=int, default=100)
    parser.add_argument("--method", default="LBFGS", choices=METHODS)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    keras.config.set_floatx("float64")
    try:
        start = time.perf_counter()
        method = METHODS[arguments.method]()
        _, result, (found, truth), error = solve(
            method, adam=arguments.adam, iterations=arguments.iterations, seed=arguments.seed, verbose=1
        )
    finally:
        keras.config.set_floatx("float32")
    taken = time.perf_counter() - start
    print(f"{arguments.method}: relative error {error:.1e}, loss {result.fun:.1e} in {taken:.0f} s")
    figure, axes = plt.subplots(1, 3, figsize=(11, 3), layout="constrained")
    for axis, title, values in zip(axes, ("network", "error"), (found, found - truth)):
        image = axis.imshow(values, extent=(0, 1, -1, 1), origin="lower", aspect="auto", cmap="RdBu_r")
        axis.set(title=title, xlabel="t", ylabel="x")
        figure.colorbar(image, ax=axis)
    axes[2].semilogy(result.history)
    axes[2].axvline(arguments.adam, color="gray", linestyle=":")
    axes[2].set(title="loss", xlabel="iteration")
    figure.savefig("burgers.png", dpi=120)


if __name__ == "__main__":
    main()
