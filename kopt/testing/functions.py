"""Functions to minimize, with their standard starts, for the tests and benchmarks of minimizers."""

import keras
import numpy as np
import tensorflow as tf


def _arange(x):
    return tf.range(1, x.shape[0] + 1, dtype=x.dtype)


def rosenbrock(x):
    """Σ 100 (x₂ - x₁²)² + (1 - x₁)², of neighbours."""
    return tf.reduce_sum(100 * (x[1:] - x[:-1] ** 2) ** 2 + (1 - x[:-1]) ** 2)


def beale(x):
    """Σ (c - x₁ (1 - x₂ᵏ))²."""
    return sum((c - x[0] * (1 - x[1] ** k)) ** 2 for k, c in enumerate((1.5, 2.25, 2.625), start=1))


def powell_singular(x):
    """Its Hessian at the minimum is singular."""
    return (x[0] + 10 * x[1]) ** 2 + 5 * (x[2] - x[3]) ** 2 + (x[1] - 2 * x[2]) ** 4 + 10 * (x[0] - x[3]) ** 4


def wood(x):
    """Two valleys that are bound together."""
    return (
        100 * (x[1] - x[0] ** 2) ** 2
        + (1 - x[0]) ** 2
        + 90 * (x[3] - x[2] ** 2) ** 2
        + (1 - x[2]) ** 2
        + 10 * (x[1] + x[3] - 2) ** 2
        + 0.1 * (x[1] - x[3]) ** 2
    )


def helical_valley(x):
    """A valley along a helix."""
    turn = tf.atan2(x[1], x[0]) / (2 * np.pi)
    return 100 * ((x[2] - 10 * turn) ** 2 + (tf.sqrt(x[0] ** 2 + x[1] ** 2) - 1) ** 2) + x[2] ** 2


def brown_badly_scaled(x):
    """Its weights differ by twelve orders of magnitude."""
    return (x[0] - 1e6) ** 2 + (x[1] - 2e-6) ** 2 + (x[0] * x[1] - 2) ** 2


def dixon_price(x):
    """(x₁ - 1)² + Σ i (2 xᵢ² - xᵢ₋₁)²."""
    return (x[0] - 1) ** 2 + tf.reduce_sum(_arange(x)[1:] * (2 * x[1:] ** 2 - x[:-1]) ** 2)


def variably_dimensioned(x):
    """A quadratic and a quartic in one sum of the weights."""
    total = tf.reduce_sum(_arange(x) * (x - 1))
    return tf.reduce_sum((x - 1) ** 2) + total**2 + total**4


def quadratic(x):
    """½ Σ λ x², with a condition of 10⁴."""
    return 0.5 * tf.reduce_sum(tf.constant(np.logspace(0, 4, x.shape[0]), x.dtype) * x**2)


def trigonometric(x):
    """Has local minima, of which 2.8e-5 is one."""
    n, cosines = x.shape[0], tf.cos(x)
    return tf.reduce_sum((n - tf.reduce_sum(cosines) + _arange(x) * (1 - cosines) - tf.sin(x)) ** 2)


FUNCTIONS = {
    "rosenbrock2": (rosenbrock, [-1.2, 1.0]),
    "rosenbrock10": (rosenbrock, [-1.2, 1.0] * 5),
    "rosenbrock100": (rosenbrock, [-1.2, 1.0] * 50),
    "beale": (beale, [1.0, 1.0]),
    "powell_singular": (powell_singular, [3.0, -1.0, 0.0, 1.0]),
    "wood": (wood, [-3.0, -1.0, -3.0, -1.0]),
    "helical_valley": (helical_valley, [-1.0, 0.0, 0.0]),
    "brown_badly_scaled": (brown_badly_scaled, [1.0, 1.0]),
    "dixon_price10": (dixon_price, [1.0] * 10),
    "variably_dimensioned10": (variably_dimensioned, [1 - i / 10 for i in range(1, 11)]),
    "quadratic100": (quadratic, [1.0] * 100),
    "trigonometric10": (trigonometric, [0.1] * 10),
}
"""Each function with the point to start from."""


class Plain:
    """An oracle that answers for a function of one vector.

    Args:
        function: of a tensor, to a scalar.
        weights: a list of that tensor.
    """

    scaled = noisy = False
    replicas = 1

    def __init__(self, function, weights):
        self.function, self.weights = function, weights

    def at(self, weights):
        """The oracle at another point."""
        return Plain(self.function, weights)

    def loss(self):
        """The value."""
        return self.function(self.weights[0])

    def __call__(self):
        """The value and its gradient."""
        with tf.GradientTape() as tape:
            tape.watch(self.weights)
            loss = self.loss()
        return loss, tape.gradient(loss, self.weights)

    def report(self, loss):
        """Nobody asks."""


class Descent:
    """A minimizer at work on a function.

    Args:
        optimizer: a `kopt.optimizers.minimizer.Minimizer`.
        function: of a vector, to a scalar.
        start: the vector to start from.
        dtype: in which to work.
        how: "eager", "graph" or "xla".

    Attributes:
        values: the function's at the start of each step that was taken.
        traces: how often a step was traced.
    """

    def __init__(self, optimizer, function, start, dtype="float64", how="graph"):
        self.optimizer, self.values, self.traces = optimizer, [], 0
        self.variable = keras.Variable(np.array(start, dtype), name="x")
        optimizer.build([self.variable])

        def step():
            self.traces += 1
            optimizer.step(Plain(function, [self.variable.value]), [self.variable])
            return optimizer._memory["value"].value

        self.step = step if how == "eager" else tf.function(step, jit_compile=how == "xla", autograph=False)

    def __call__(self, steps, target=None):
        """Takes so many steps; fewer where the value is at the target, or has not changed in 20 of them."""
        for _ in range(steps):
            self.values.append(float(self.step()))
            if target is not None and (self.values[-1] <= target or self.values[-20:-1] == self.values[-1:] * 19):
                break
        return self.x

    @property
    def x(self):
        """The point that has been reached."""
        return self.variable.numpy().copy()

    def memory(self, name):
        """What the optimizer remembers under a name."""
        return self.optimizer._memory[name].numpy().copy()
