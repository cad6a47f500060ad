"""K-FAC's factors are the exact curvature where they can be, and its steps are those of dense matrices in NumPy."""

import keras
import numpy as np
import pytest
import tensorflow as tf

import kopt
from kopt.training import taps
from kopt.training.oracle import Batch, Oracle

layers = keras.layers


@pytest.fixture
def exact():
    """Everything in float64."""
    keras.config.set_floatx("float64")
    keras.config.set_dtype_policy("float64")
    keras.utils.set_random_seed(0)
    yield
    keras.config.set_floatx("float32")
    keras.config.set_dtype_policy("float32")


# ---- the factors are the curvature where layers are linear -----------------------------------------------------------


def deep_linear():
    inputs = keras.Input((3,))
    return inputs, layers.Dense(2)(layers.Dense(4, use_bias=False)(layers.Dense(3)(inputs)))


def by_position():
    """Each position has a loss of its own: what "expand" is right for."""
    inputs = keras.Input((5, 2))
    return inputs, layers.Dense(2)(layers.Conv1D(3, 2, padding="same")(inputs))


def pooled():
    """A mean over positions ends the model: what "reduce" is right for."""
    inputs = keras.Input((4, 4, 1))
    x = layers.Conv2D(2, 3, padding="same", strides=(2, 1))(inputs)
    return inputs, layers.Dense(2)(layers.GlobalAveragePooling2D()(x))


class Curvature:
    """A model, a batch, and an optimizer that has been built for it but has not stepped."""

    def __init__(self, network, optimizer, rows=6):
        inputs, outputs = network()
        self.model, self.optimizer = kopt.Model(inputs, outputs), optimizer
        rng = np.random.default_rng(0)
        self.x = tf.constant(rng.standard_normal((rows, *inputs.shape[1:])))
        self.y = tf.constant(rng.standard_normal((rows, *outputs.shape[1:])))
        self.model.compile(optimizer, "mse")
        optimizer.build(self.model.trainable_variables)

        def compute(through):
            outputs = self.model(self.x)
            return outputs, self.model.compute_loss(self.x, self.y, through(outputs))

        self.oracle = Oracle(Batch(self.model, compute, losses="mse"))
        self.oracle.loss()
        self.outputs = self.oracle._batch.outputs

    def factors(self):
        """A and G of each block, G of all outputs one after the other: what a draw has on average."""
        found = []
        for number in range(self.outputs.shape[-1]):

            def ask(number=number):
                outputs = []
                self.oracle._batch.look(self.oracle.weights, lambda z: outputs.append(z) or z)
                one = tf.one_hot(number, outputs[0].shape[-1], dtype=outputs[0].dtype)
                return outputs, [tf.ones_like(outputs[0]) * one * np.sqrt(2 / outputs[0].numpy().size)]

            _, grads, seen = taps.look(self.oracle._batch, self.oracle.weights, ask)
            found.append(self.optimizer._statistics(self.oracle, grads, seen))
        return [(found[0]["inputs"][i], sum(one["outputs"][i] for one in found)) for i in range(self.blocks())]

    def blocks(self):
        return len(self.optimizer._blocks)

    def dense(self, block):
        """The block of the Gauss-Newton matrix, of the Jacobian."""
        weights = self.model.trainable_variables
        numbers = [n for n in (block.kernel, block.bias) if n is not None]
        with tf.GradientTape() as tape:
            outputs = self.model(self.x)
        found = tape.jacobian(outputs, [weights[n].value for n in numbers])
        jacobian = np.concatenate([np.reshape(j, (outputs.numpy().size, -1, block.outputs)) for j in found], 1)
        jacobian = jacobian.reshape(len(jacobian), -1)
        return 2 / len(jacobian) * jacobian.T @ jacobian


@pytest.mark.parametrize(
    ("network", "sharing"),
    [(deep_linear, "expand"), (deep_linear, "reduce"), (by_position, "expand"), (pooled, "reduce")],
)
def test_blocks_are_those_of_the_gauss_newton_matrix(exact, network, sharing):
    made = Curvature(network, kopt.KFAC(sharing=sharing))
    for block, (a, g) in zip(made.optimizer._blocks, made.factors(), strict=True):
        np.testing.assert_allclose(np.kron(a, g), made.dense(block), atol=1e-12, err_msg=block.path)


@pytest.mark.parametrize(("network", "sharing"), [(by_position, "reduce"), (pooled, "expand")])
def test_the_other_way_to_share_is_another_matrix(exact, network, sharing):
    made = Curvature(network, kopt.KFAC(sharing=sharing))
    a, g = made.factors()[0]
    assert np.abs(np.kron(a, g) - made.dense(made.optimizer._blocks[0])).max() > 1e-3


def test_drawn_factors_are_the_curvature_on_average(exact):
    made = Curvature(deep_linear, kopt.KFAC())
    expected = [g for _, g in made.factors()]

    @tf.function(autograph=False)
    def draw(t):
        return made.optimizer._statistics(made.oracle, *made.oracle.sampled_taps(0, t))["outputs"]

    draws = [draw(tf.constant(t)) for t in range(2000)]
    for drawn, g in zip(zip(*draws, strict=True), expected, strict=True):
        error = np.std(drawn, axis=0) / np.sqrt(len(drawn))
        np.testing.assert_array_less(np.abs(np.mean(drawn, axis=0) - g), 5 * error)
        assert error.max() < 0.05 * np.abs(g).max()


def test_one_adaptive_step_solves_a_linear_regression(exact):
    inputs = keras.Input((3,))
    model = kopt.Model(inputs, layers.Dense(1)(inputs))
    model.compile(kopt.AdaptiveKFAC(damping=1e-18), "mse")
    rng = np.random.default_rng(0)
    x, y = rng.standard_normal((20, 3)), rng.standard_normal((20, 1))
    model.fit(x, y, batch_size=20, verbose=0)
    solution = np.linalg.lstsq(np.c_[x, np.ones(20)], y, rcond=None)[0]
    np.testing.assert_allclose(
        np.concatenate([model.weights[0].numpy(), model.weights[1].numpy()[None]]), solution, atol=1e-8
    )


# ---- the steps are those of dense matrices ---------------------------------------------------------------------------


class Dense:
    """K-FAC with the given labels for a network 3-4-2 with tanh and the mean squared error, in NumPy."""

    def __init__(self, weights, x, y, h):
        self.w, self.x, self.y, self.h = weights, x, y, h
        self.m, self.factors, self.inverses = np.zeros(sum(w.size for w in weights)), None, None
        self.updates, self.damping, self.clipped, self.ratios = 0, h["damping"], [], []

    def passes(self, w):
        """The outputs, what each layer is given with a one beside, and the slopes of the outputs by its output."""
        hidden = np.tanh(self.x @ w[0] + w[1])
        given = [np.c_[self.x, np.ones(len(self.x))], np.c_[hidden, np.ones(len(self.x))]]
        back = [(w[2].T[None] * (1 - hidden**2)[:, None]), np.tile(np.eye(2), (len(self.x), 1, 1))]
        return hidden @ w[2] + w[3], given, back

    def loss(self, w):
        return np.mean((self.passes(w)[0] - self.y) ** 2)

    def split(self, flat):
        ends = np.cumsum([w.size for w in self.w])[:-1]
        return [part.reshape(w.shape) for part, w in zip(np.split(flat, ends), self.w, strict=True)]

    def step(self, t):
        h, n = self.h, len(self.x)
        z, given, back = self.passes(self.w)
        slope = 2 * (z - self.y) / z.size
        jacobian = np.concatenate(
            [(a[:, None, :, None] * b[:, :, None, :]).reshape(z.size, -1) for a, b in zip(given, back, strict=True)], 1
        )
        g = slope.ravel() @ jacobian
        early = t < h["burn_in"]
        if early or t % h["factors_every"] == 0:
            self.updates += 1
            slopes = [np.einsum("nk,nko->no", slope, b) for b in back]
            seen = [(a.T @ a / n, n * s.T @ s) for a, s in zip(given, slopes, strict=True)]
            beta = min(1 - 1 / self.updates, h["beta_2"])
            old = self.factors or seen
            self.factors = [
                [beta * x + (1 - beta) * y for x, y in zip(*both, strict=True)] for both in zip(old, seen, strict=True)
            ]
        if early or t % h["inverse_every"] == 0:
            self.inverses = []
            for a, s in self.factors:
                pi = np.sqrt((np.trace(a) / len(a)) / (np.trace(s) / len(s)))
                root = np.sqrt(self.damping)
                self.inverses.append(
                    np.linalg.inv(np.kron(a + pi * root * np.eye(len(a)), s + root / pi * np.eye(len(s))))
                )
        d = np.concatenate([self.inverses[0] @ g[:16], self.inverses[1] @ g[16:]])
        u = self.adapt(t, g, d, 2 / z.size * jacobian.T @ jacobian) if "adapt_every" in h else self.clip(g, d)
        decayed = [w * (1 - h["learning_rate"] * h["weight_decay"]) for w in self.w]
        self.w = [w - h["learning_rate"] * part for w, part in zip(decayed, self.split(u), strict=True)]
        self.m = u

    def clip(self, g, d):
        h = self.h
        scale = min(1, np.sqrt(h["kl_clip"] / (h["learning_rate"] ** 2 * d @ g)))
        self.clipped.append(scale < 1)
        return h["momentum"] * self.m + scale * d

    def adapt(self, t, g, d, curvature):
        h, plane = self.h, np.stack([d, self.m])[: 2 if self.m.any() else 1]
        along = plane @ curvature @ plane.T
        c = np.linalg.solve(along + self.damping * plane @ plane.T, plane @ g)
        u, rate = c @ plane, h["learning_rate"]
        if (t + 1) % h["adapt_every"] == 0:
            to = [w - rate * part for w, part in zip(self.w, self.split(u), strict=True)]
            self.ratios.append(
                (self.loss(self.w) - self.loss(to)) / (rate * c @ plane @ g - rate**2 / 2 * c @ along @ c)
            )
            factor = (19 / 20) ** h["adapt_every"]
            self.damping *= factor if self.ratios[-1] > 3 / 4 else 1 / factor if self.ratios[-1] < 1 / 4 else 1
        return u


SHARED = dict(weight_decay=0.01, beta_2=0.7, factors_every=2, inverse_every=3, burn_in=2, fisher="empirical")


@pytest.mark.parametrize(
    "optimizer",
    [
        kopt.KFAC(0.3, momentum=0.6, damping=0.02, kl_clip=0.02, **SHARED),
        kopt.AdaptiveKFAC(1.0, damping=0.02, adapt_every=2, **SHARED),
        kopt.AdaptiveKFAC(1.9, damping=0.02, adapt_every=2, **SHARED),  # too long steps: damping has to rise
    ],
    ids=repr,
)
def test_steps_are_those_of_dense_matrices(exact, optimizer):
    inputs = keras.Input((3,))
    model = kopt.Model(inputs, layers.Dense(2)(layers.Dense(4, "tanh")(inputs)))
    rng = np.random.default_rng(0)
    x, y = rng.standard_normal((8, 3)), rng.standard_normal((8, 2))
    parameters = {name: value for name, value in optimizer.get_params().items() if value is not None}
    reference = Dense([w.astype("float64") for w in model.get_weights()], x, y, parameters)
    model.compile(optimizer, "mse", jit_compile=False)
    for t in range(12):
        reference.step(t)
        model.train_on_batch(x, y)
        for ours, theirs in zip(model.get_weights(), reference.w, strict=True):
            np.testing.assert_allclose(ours, theirs, atol=1e-9, err_msg=f"step {t}")
    if isinstance(optimizer, kopt.KFAC):
        assert 0 < sum(reference.clipped) < 12
    else:
        assert (min(reference.ratios) < 0.25) == (optimizer.learning_rate > 1)
        assert max(reference.ratios) > 0.75
