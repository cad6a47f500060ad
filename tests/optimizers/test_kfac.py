"""K-FAC's factors are the exact curvature where they can be, and its steps are those of dense matrices in NumPy."""

import inspect
import itertools
import warnings

import keras
import numpy as np
import pytest

import kopt
from kopt.math import kronecker
from kopt.optimizers.blocks import blocks
from kopt.testing import backends

tf = pytest.importorskip("tensorflow")  # whose layers have taps
from kopt.training import taps  # noqa: E402
from kopt.training.batch import Batch  # noqa: E402
from kopt.training.oracle import Oracle  # noqa: E402

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
            found.append(self.optimizer.statistics(grads, seen, 1.0, 1.0, 1.0))
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


@pytest.mark.slow
def test_drawn_factors_are_the_curvature_on_average(exact):
    made = Curvature(deep_linear, kopt.KFAC())
    expected = [g for _, g in made.factors()]

    @tf.function(autograph=False)
    def draw(t):
        return made.optimizer.statistics(*made.oracle.sampled_taps(0, t), 1.0, 1.0, 1.0)["outputs"]

    draws = [draw(tf.constant(t)) for t in range(2000)]
    for drawn, g in zip(zip(*draws, strict=True), expected, strict=True):
        error = np.std(drawn, axis=0) / np.sqrt(len(drawn))
        np.testing.assert_array_less(np.abs(np.mean(drawn, axis=0) - g), 5 * error)
        assert error.max() < 0.05 * np.abs(g).max()


@pytest.mark.slow
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


# ---- what else a step depends on -------------------------------------------------------------------------------------


def convolutional():
    """A convolution that sees several positions, batch normalization, and a dense layer that is used twice."""
    inputs = keras.Input((4, 4, 2))
    x = layers.Flatten()(layers.Conv2D(2, 2, strides=2, activation="tanh")(inputs))
    x = layers.BatchNormalization()(x)
    twice = layers.Dense(8, "tanh")
    return inputs, layers.Dense(3, "softmax")(twice(twice(x)))


def trained(optimizer, network=convolutional, loss="sparse_categorical_crossentropy", steps=4, rows=8, **how):
    """The weights after these steps on one batch."""
    keras.utils.set_random_seed(0)
    inputs, outputs = network()
    model = kopt.Model(inputs, outputs)
    model.compile(optimizer, loss, **{"jit_compile": False} | how)
    rng = np.random.default_rng(0)
    x, y = rng.standard_normal((rows, *inputs.shape[1:])), rng.integers(0, 3, rows)
    model.fit(np.tile(x, (steps, *[1] * (x.ndim - 1))), np.tile(y, steps), batch_size=rows, shuffle=False, verbose=0)
    return model


def weights(*arguments, **how):
    return np.concatenate([w.ravel() for w in trained(*arguments, **how).get_weights()])


def small():
    """A convolution that sees two positions."""
    inputs = keras.Input((3, 2))
    return inputs, layers.Dense(3, "softmax")(layers.GlobalAveragePooling1D()(layers.Conv1D(2, 2)(inputs)))


CHANGES = {
    "fisher": "empirical",
    "sharing": "reduce",
    "factors_every": 3,
    "inverse_every": 1,
    "burn_in": 4,
    "seed": 1,
    "learning_rate": 0.05,
    "damping": 0.05,
    "beta_2": 0.5,
    "weight_decay": 0.1,
}
SMALL = dict(factors_every=2, inverse_every=2, burn_in=1, damping=0.02)
KINDS = {
    kopt.KFAC: CHANGES | {"momentum": 0.5, "kl_clip": 0.01},
    kopt.AdaptiveKFAC: CHANGES | {"adapt_every": 1},
}


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS, ids=lambda cls: cls.__name__)
def test_every_hyperparameter_changes_the_path(kind):
    more = {"kl_clip": 0.1} if kind is kopt.KFAC else {"adapt_every": 3}
    base = SMALL | more | {"learning_rate": 0.5, "factors_every": 1}
    assert KINDS[kind].keys() | {"no_decay"} >= set(inspect.signature(kind).parameters) - {"common"}
    plain = weights(kind(**base), small, run_eagerly=True)
    for name, value in KINDS[kind].items():
        assert np.abs(weights(kind(**base | {name: value}), small, run_eagerly=True) - plain).max() > 1e-5, name


@pytest.mark.slow
def test_eager_graph_and_xla_agree():
    """In float64; `check_fit` sees that those of float32 agree."""
    keras.config.set_floatx("float64")
    keras.config.set_dtype_policy("float64")
    try:
        graph, eager, xla = (
            weights(kopt.AdaptiveKFAC(**SMALL), **how) for how in ({}, {"run_eagerly": True}, {"jit_compile": True})
        )
    finally:
        keras.config.set_floatx("float32")
        keras.config.set_dtype_policy("float32")
    np.testing.assert_allclose(graph, eager, atol=1e-9)
    np.testing.assert_allclose(graph, xla, atol=1e-9)


@pytest.mark.slow
def test_two_replicas_are_one_device(exact):
    def fitted(strategy):
        with strategy.scope():
            return weights(kopt.KFAC(fisher="empirical", kl_clip=0.01, **SMALL), dense, rows=8)

    def dense():
        inputs = keras.Input((3,))
        x = layers.LayerNormalization()(layers.Dense(4, "tanh")(inputs))
        return inputs, layers.Dense(3, "softmax")(x)

    one, two = fitted(tf.distribute.get_strategy()), fitted(backends.mirrored(backends.two_devices()))
    np.testing.assert_allclose(one, two, atol=1e-9)


def test_a_step_without_finite_gradients_leaves_no_traces():
    optimizer = kopt.KFAC(skip_nonfinite=True, **SMALL)
    model = trained(optimizer)
    before = [v.numpy() for v in (*model.trainable_variables, *optimizer.variables) if "skipped" not in v.path]
    x = np.full((8, 4, 4, 2), np.nan)
    model.fit(x, np.zeros(8), batch_size=8, verbose=0)
    after = [v.numpy() for v in (*model.trainable_variables, *optimizer.variables) if "skipped" not in v.path]
    assert optimizer.skipped_steps == 1
    changed = [i for i, (a, b) in enumerate(zip(before, after, strict=True)) if not np.array_equal(a, b)]
    assert [np.shape(before[i]) for i in changed] in ([], [()])  # the count of batches


# ---- layers without taps ---------------------------------------------------------------------------------------------


def test_blocks_are_told_from_paths_and_shapes():
    inputs = keras.Input((6, 4), dtype="int32")
    x = layers.Embedding(5, 4, name="words")(layers.Flatten()(inputs))
    x = layers.LayerNormalization(name="norm")(layers.MultiHeadAttention(2, 3, name="mha")(x, x))
    x = layers.GRU(3, return_sequences=True, name="gru")(x)
    x = layers.Flatten()(layers.Conv1D(2, 5, use_bias=False, name="conv")(x))
    inner = keras.Sequential([keras.Input((40,)), layers.Dense(2, name="head")], name="inner")
    model = keras.Model(inputs, layers.Dense(2, name="head")(inner(x)))
    paths, shapes = zip(*((v.path, tuple(v.shape)) for v in model.trainable_variables), strict=True)
    found = blocks(paths, shapes)
    sizes = {block.path: (block.inputs, block.outputs, block.bias is not None) for block in found}
    assert {path.partition("/")[2]: size for path, size in sizes.items() if "head" not in path} == {
        "query/kernel": (5, 6, True),
        "key/kernel": (5, 6, True),
        "value/kernel": (5, 6, True),
        "attention_output/kernel": (7, 4, True),
        "gru_cell/kernel": (4, 9, False),
        "gru_cell/recurrent_kernel": (3, 9, False),
        "kernel": (15, 2, False),
    }
    heads = [block for block in found if "head" in block.path]
    assert [(b.inputs, b.outputs, paths[b.bias], b.bias - b.kernel) for b in heads] == [
        (41, 2, heads[0].path.replace("kernel", "bias"), 1),
        (3, 2, heads[1].path.replace("kernel", "bias"), 1),
    ]


def recurrent():
    inputs = keras.Input((4, 3))
    return inputs, layers.Dense(3, "softmax")(layers.LayerNormalization(name="norm")(layers.GRU(5, name="gru")(inputs)))


@pytest.mark.slow
def test_kernels_without_taps_have_factors_of_their_gradient_and_are_named():
    optimizer = kopt.AdaptiveKFAC(damping=0.01)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", UserWarning)
        model = trained(optimizer, recurrent, steps=12)
    told = [str(warning.message) for warning in caught if "taps" in str(warning.message)]
    told = sorted(text.partition(" has no taps")[0] for text in told)
    assert told == ["AdaptiveKFAC: gru/gru_cell/kernel", "AdaptiveKFAC: gru/gru_cell/recurrent_kernel"]
    assert optimizer.diagonal == ("gru/gru_cell/bias", "norm/gamma", "norm/beta")
    rng = np.random.default_rng(0)
    x, y = rng.standard_normal((8, 4, 3)), rng.integers(0, 3, 8)
    model.compile(loss="sparse_categorical_crossentropy")
    assert model.evaluate(x, y, verbose=0) < 0.2  # from 1.2


def test_factors_of_a_gradient_have_the_trace_of_its_square():
    x = np.random.default_rng(0).standard_normal((3, 2))
    a, g = kronecker.factors_of(tf.constant(x))
    np.testing.assert_allclose(np.trace(np.kron(a, g)), np.sum(x * x))
    one = np.outer(x[:, 0], x[0])
    np.testing.assert_allclose(np.kron(*kronecker.factors_of(tf.constant(one))), np.outer(one.ravel(), one.ravel()))


def test_other_weights_have_the_diagonal_of_the_curvature(exact):
    """A scale after the only kernel, frozen: its curvature is a number for each entry."""

    def scaled():
        inputs = keras.Input((3,))
        frozen = layers.Dense(2, trainable=False)
        return inputs, layers.Dense(2)(layers.Rescaling(1.0)(layers.LayerNormalization(name="norm")(frozen(inputs))))

    made = Curvature(scaled, kopt.KFAC())
    assert made.optimizer.diagonal == ("norm/gamma", "norm/beta")

    @tf.function(autograph=False)
    def draw(t):
        return made.optimizer.statistics(*made.oracle.sampled_taps(0, t), 1.0, 1.0, 1.0)["squares"]

    drawn = np.mean([draw(tf.constant(t)) for t in range(2000)], axis=0)
    with tf.GradientTape() as tape:
        outputs = made.model(made.x)
    jacobians = tape.jacobian(outputs, [v.value for v in made.model.trainable_variables[:2]])
    expected = [2 / outputs.numpy().size * np.sum(np.square(j), (0, 1)) for j in jacobians]
    np.testing.assert_allclose(drawn, expected, rtol=0.15)


# ---- what it cannot work with ----------------------------------------------------------------------------------------


def test_what_it_cannot_work_with_it_names():
    def only_recurrent():
        inputs = keras.Input((4, 3))
        return inputs, layers.GRU(3, activation="softmax")(inputs)

    def linear():
        inputs = keras.Input((4,))
        return inputs, layers.Dense(1)(inputs)

    with pytest.raises(ValueError, match=r"K-FAC: a model must have a trainable layer .*, got InputLayer, GRU"):
        trained(kopt.KFAC(), only_recurrent)
    with pytest.raises(ValueError, match=r"the loss must be a crossentropy .* got 'huber'"):
        trained(kopt.KFAC(), linear, loss="huber")
    assert np.isfinite(weights(kopt.KFAC(fisher="empirical"), linear, loss="huber")).all()
    plain = keras.Sequential([keras.Input((2,)), layers.Dense(1)])
    plain.compile(kopt.KFAC(), "mse")
    with pytest.raises(ValueError, match=r"KFAC asks more of each batch than its gradient, and keras\.Model"):
        plain.fit(np.ones((4, 2)), np.ones((4, 1)), verbose=0)
    for kind, name, value in itertools.product(KINDS, ("damping", "factors_every", "sharing"), (0, "a word")):
        with pytest.raises((TypeError, ValueError), match=f"{kind.__name__}: {name} must be"):
            kind(**{name: value})
    with pytest.raises(ValueError, match="KFAC: gradient_accumulation_steps must be None"):
        trained(kopt.KFAC(gradient_accumulation_steps=2))
