"""Layers that draw noise of a richer kind, against NumPy with the numbers that they draw."""

import keras
import numpy as np
import pytest
from keras import ops
from scipy import integrate, special, stats

from kopt.layers import (
    ConcreteDropout,
    DropBlock1D,
    DropBlock2D,
    DropBlock3D,
    DropConnect,
    ShakeDrop,
    VariationalDropout,
    Zoneout,
)
from kopt.schedules import Linear
from kopt.testing import backends

RNG = np.random.default_rng(0)


def numbers(x):
    return np.asarray(ops.convert_to_numpy(x), "float64")


def drawn(shape, seed, *bounds):
    """The uniform numbers that a layer with this seed draws first."""
    return numbers(keras.random.uniform(shape, *bounds, seed=keras.random.SeedGenerator(seed)))


@pytest.mark.parametrize(
    ("layer", "sizes", "block"),
    [
        (DropBlock1D(0.3, 3, seed=1), (9,), (3,)),
        (DropBlock2D(0.2, 3, seed=1, shared=True), (6, 5), (3, 3)),
        (DropBlock2D(0.4, 2, seed=1, data_format="channels_first"), (4, 3), (2, 2)),
        (DropBlock2D(0.4, 4, seed=1), (6, 2), (4, 2)),
        (DropBlock3D(0.2, 2, seed=1), (3, 4, 2), (2, 2, 2)),
    ],
)
def test_blocks_are_left_out(layer, sizes, block):
    rows, channels = 5, 2
    inner = [size - side + 1 for size, side in zip(sizes, block, strict=True)]
    gamma = layer.rate / np.prod(block) * np.prod(sizes) / np.prod(inner)
    centres = drawn((rows, *inner, 1 if layer.shared else channels), 1) < gamma
    kept = np.ones((rows, *sizes, centres.shape[-1]))
    for row, *corner, channel in zip(*np.nonzero(centres), strict=True):
        where = tuple(slice(start, start + side) for start, side in zip(corner, block, strict=True))
        kept[(row, *where, channel)] = 0
    x = RNG.standard_normal((rows, *sizes, channels)).astype("float32")
    expected = x * kept * kept.size / kept.sum()
    if layer.data_format == "channels_first":
        x, expected = np.moveaxis(x, -1, 1), np.moveaxis(expected, -1, 1)
    assert 0 < kept.mean() < 1
    np.testing.assert_allclose(numbers(layer(x, training=True)), expected, rtol=1e-5)
    np.testing.assert_array_equal(numbers(layer(x)), x)


def test_blocks_take_about_the_rate():
    x = np.ones((300, 12, 12, 1), "float32")
    y = numbers(DropBlock2D(0.1, 3, seed=0)(x, training=True))
    assert 0.085 < (y == 0).mean() < 0.105  # a bit less than 0.1, since blocks overlap
    assert abs(y.mean() - 1) < 1e-5


def test_shake_drop_disturbs_forward_and_backward_by_other_numbers():
    x = RNG.standard_normal((4, 3)).astype("float32")
    layer, seed = ShakeDrop(0.5, (-1, 1), (0, 2), seed=3), keras.random.SeedGenerator(3)
    fates = set()
    for _ in range(8):
        b = numbers(keras.random.uniform((), seed=seed)) >= 0.5
        alpha, beta = (numbers(keras.random.uniform((4, 1), *ends, seed=seed)) for ends in [(-1, 1), (0, 2)])
        found = []

        def total(tensors, found=found):
            found.append(layer(tensors[0], training=True))
            return ops.sum(found[-1])

        (slope,) = backends.gradients(total, [ops.convert_to_tensor(x)])
        if keras.backend.backend() == "tensorflow":  # JAX hands out what it traces
            np.testing.assert_allclose(numbers(found[0]), x * (1 if b else alpha), rtol=1e-5)
        np.testing.assert_allclose(numbers(slope), np.ones_like(x) * (1 if b else beta), rtol=1e-5)
        fates.add(bool(b))
    assert fates == {True, False}
    np.testing.assert_allclose(numbers(ShakeDrop(0.5)(x)), 0.5 * x, rtol=1e-6)
    np.testing.assert_allclose(numbers(ShakeDrop(0.25, (0, 1))(x)), 0.875 * x, rtol=1e-6)


def test_drop_connect_leaves_out_weights():
    dense, x = keras.layers.Dense(4, "tanh"), RNG.standard_normal((5, 3)).astype("float32")
    layer = DropConnect(dense, 0.25, bias=True, seed=2)
    layer.build((None, 3))
    dense.bias.assign([1.0, 2.0, 3.0, 4.0])
    seed = keras.random.SeedGenerator(2)
    kernel, bias = (
        numbers(v) * (numbers(keras.random.uniform(v.shape, seed=seed)) >= 0.25) / 0.75
        for v in (dense.kernel, dense.bias)
    )
    assert (kernel == 0).any()
    np.testing.assert_allclose(numbers(layer(x, training=True)), np.tanh(x @ kernel + bias), rtol=1e-5)
    plain = np.tanh(x @ numbers(dense.kernel) + numbers(dense.bias))
    np.testing.assert_allclose(numbers(layer(x)), plain, rtol=1e-5)


def test_what_happens_inside_a_wrapped_layer_is_kept():
    """Its losses and its state, though other tensors stand for its kernel."""
    dense = keras.layers.Dense(2, activity_regularizer="l2", kernel_regularizer="l2")
    layer, x = DropConnect(dense, 0.5, seed=0), np.ones((3, 4), "float32")
    y = numbers(layer(x, training=True))
    penalty = 0.01 * np.square(numbers(dense.kernel)).sum()
    activity = keras.layers.ActivityRegularization(l2=0.01)
    activity(y)
    found = sorted(float(loss) for loss in layer.losses)
    np.testing.assert_allclose(found, sorted([float(activity.losses[0]), penalty]), rtol=1e-5)
    assert layer.trainable_variables == dense.trainable_variables


@pytest.mark.parametrize("first", [False, True])
def test_concrete_dropout_is_relaxed_and_pays_for_its_rate(first):
    x = RNG.standard_normal((4, 2, 3) if first else (4, 3)).astype("float32")
    dense = keras.layers.Dense(2)
    layer = ConcreteDropout(dense, 0.3, weight_decay=0.1, entropy=0.2, temperature=0.5, seed=4)
    y = numbers(layer(x, training=True))
    u = drawn((4, 1, 3) if first else (4, 3), 4)
    z = special.expit((special.logit(0.3) + special.logit(u)) / 0.5)
    kernel = numbers(dense.kernel)
    np.testing.assert_allclose(y, x * (1 - z) / 0.7 @ kernel, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(numbers(layer(x)), x @ kernel, rtol=1e-5, atol=1e-6)
    expected = [0.1 * np.square(kernel).sum() / 0.7, -0.2 * 3 * stats.bernoulli(0.3).entropy()]
    np.testing.assert_allclose(sorted(float(loss) for loss in layer.losses), sorted(expected), rtol=1e-5)
    assert abs(float(layer.learnt_rate) - 0.3) < 1e-6


@pytest.mark.slow
def test_a_concrete_rate_is_learnt():
    """Of inputs that are noise most are to be left out, of a useful one none."""
    x = np.random.default_rng(0).standard_normal((300 * 16, 4)).astype("float32")
    rates = {}
    for use, y in {"useful": x[:, :1] * 3, "useless": np.zeros((len(x), 1))}.items():
        layer = ConcreteDropout(keras.layers.Dense(1), 0.2, weight_decay=1e-3, entropy=1e-2, seed=0)
        one_epoch(layer, keras.optimizers.Adam(0.03), "mse", x, y, 16)
        rates[use] = float(layer.learnt_rate)
    assert rates["useful"] < 0.05 < 0.22 < rates["useless"] < 0.5


def one_epoch(layer, optimizer, loss, x, y, batch_size):
    keras.utils.set_random_seed(0)
    model = keras.Sequential([keras.Input(x.shape[1:]), layer])
    model.compile(optimizer, loss, jit_compile=False)
    model.fit(x, y, epochs=1, batch_size=batch_size, verbose=0)


def test_variational_dropout_draws_sums_and_cuts_weights():
    dense, x = keras.layers.Dense(3, "tanh"), RNG.standard_normal((5, 4)).astype("float32")
    layer = VariationalDropout(dense, 0.5, seed=5)
    layer.build((None, 4))
    kernel, bias = layer.linear.kernel, layer.linear.bias
    log_variances = RNG.uniform(-4, 3, (4, 3))
    layer.log_variances.assign(log_variances)
    bias.assign([1.0, 0.0, -1.0])
    noise = numbers(keras.random.normal((5, 3), seed=keras.random.SeedGenerator(5)))
    mean, variance = x @ numbers(kernel) + numbers(bias), np.square(x) @ np.exp(log_variances)
    y = numbers(layer(x, training=True))
    np.testing.assert_allclose(y, np.tanh(mean + np.sqrt(variance) * noise), rtol=1e-4, atol=1e-6)
    kept = log_variances - np.log(np.square(numbers(kernel)) + 1e-8) < 3
    assert 0 < kept.mean() < 1
    assert abs(float(layer.sparsity) - (1 - kept.mean())) < 1e-6
    expected = np.tanh(x @ (numbers(kernel) * kept) + numbers(bias))
    np.testing.assert_allclose(numbers(layer(x)), expected, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(float(layer.losses[0]), 0.5 * float(layer.divergence()), rtol=1e-6)


def test_the_divergence_of_variational_dropout_is_that_of_the_integral():
    """-KL = ½ ln α - E ln |1 + √α ε| + C, which the paper approximates to about 0.01."""
    layer = VariationalDropout(keras.layers.Dense(1, use_bias=False), 1.0)
    layer.build((None, 1))
    layer.linear.kernel.assign([[1.0]])
    for log_alpha in (-4.0, -2.0, 0.0, 2.0, 4.0):
        layer.log_variances.assign([[log_alpha]])
        root = np.exp(log_alpha / 2)

        def mean(e, root=root):
            return stats.norm.pdf(e) * np.log(np.abs(1 + root * e))

        parts = [integrate.quad(mean, low, high, limit=200)[0] for low, high in [(-12, -1 / root), (-1 / root, 12)]]
        exact = sum(parts) - log_alpha / 2 + 0.63576  # as α grows, the divergence goes to 0
        assert abs(float(layer.divergence()) - exact) < 0.02, log_alpha


@pytest.mark.slow
def test_variational_dropout_finds_the_weights_that_matter():
    x = np.random.default_rng(0).standard_normal((400 * 32, 10)).astype("float32")
    layer = VariationalDropout(keras.layers.Dense(1), Linear(0.0, 100, 1 / 128), log_variance=-4.0, seed=0)

    def nearness(y, z):
        return ops.square(y - z) / 2 / 0.1

    one_epoch(layer, keras.optimizers.Adam(0.05), nearness, x, x[:, :1] - 2 * x[:, 1:2], 32)
    log_alpha = numbers(layer._log_alpha())[:, 0]
    assert log_alpha[:2].max() < -3 < 1 < log_alpha[2:].min()
    assert 0.3 < float(layer.sparsity) <= 0.8


def simple_step(x, states, kernel, recurrent, bias):
    return [np.tanh(x @ kernel + bias + states[0] @ recurrent)]


def lstm_step(x, states, kernel, recurrent, bias):
    i, f, c, o = np.split(x @ kernel + states[0] @ recurrent + bias, 4, axis=1)
    memory = special.expit(f) * states[1] + special.expit(i) * np.tanh(c)
    return [special.expit(o) * np.tanh(memory), memory]


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize(
    ("cell", "step"), [(keras.layers.SimpleRNNCell, simple_step), (keras.layers.LSTMCell, lstm_step)]
)
def test_zoneout_keeps_states(cell, step, masked):
    x, units = RNG.standard_normal((3, 5, 2)).astype("float32"), 4
    layer = Zoneout(cell(units), 0.3, 0.6, seed=7, return_sequences=True, return_state=True)
    layer.build(x.shape)
    weights = [numbers(v) for v in layer.trainable_variables]
    mask = np.arange(5) < np.array([[5], [2], [4]]) if masked else np.ones((3, 5), bool)
    count = 1 if step is simple_step else 2
    draws = drawn((3, 5, count * units), 7).reshape(3, 5, count, units)
    for training in (True, False):
        states = [np.zeros((3, units))] * count
        for t in range(5):
            new = step(x[:, t], states, *weights)
            for s, rate in zip(range(count), (0.3, 0.6)):
                stay = draws[:, t, s] < rate if training else rate
                new[s] = stay * states[s] + (1 - stay) * new[s]
            states = [np.where(mask[:, t, None], a, b) for a, b in zip(new, states, strict=True)]
        outputs, *found = layer(x, training=training, mask=ops.convert_to_tensor(mask) if masked else None)
        for a, b in zip(found, states, strict=True):
            np.testing.assert_allclose(numbers(a), b, rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(numbers(outputs)[:, -1], states[0], rtol=1e-4, atol=1e-5)


def test_recurrent_dropout_of_keras_has_one_mask_for_all_steps():
    """So kopt has none of its own."""
    one = dict(kernel_initializer="zeros", recurrent_initializer="identity", bias_initializer="ones")
    layer = keras.layers.SimpleRNN(50, activation=None, recurrent_dropout=0.5, seed=0, return_sequences=True, **one)
    y = numbers(layer(np.zeros((1, 4, 1), "float32"), training=True))[0]
    fates = {tuple(path) for path in y.T.round(4)}
    assert fates == {(1, 1, 1, 1), (1, 3, 7, 15)}  # h ← 1 + m h with m = 0, or 2, throughout


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: DropBlock2D(0.1, 0), ValueError, "DropBlock2D: block must be an integer in [1, inf), got 0."),
        (lambda: DropBlock1D(1.0), ValueError, "DropBlock1D: rate must be a number in [0, 1), got 1.0."),
        (
            lambda: DropBlock1D(0.1, data_format="last"),
            ValueError,
            "DropBlock1D: data_format must be one of 'channels_last', 'channels_first', got 'last'.",
        ),
        (lambda: ShakeDrop(0.1, 1.0), ValueError, "ShakeDrop: alpha must be two numbers in order, got 1.0."),
        (lambda: ShakeDrop(0.1, beta=(1, 0)), ValueError, "ShakeDrop: beta must be two numbers in order, got (1, 0)."),
        (lambda: DropConnect(3), TypeError, "DropConnect: layer must be a keras.layers.Layer, got 3."),
        (
            lambda: DropConnect(keras.layers.ReLU()).build((2, 3)),
            ValueError,
            "DropConnect: layer must have a kernel, got ReLU, which has none.",
        ),
        (
            lambda: ConcreteDropout(keras.layers.Dense(1), 0.0),
            ValueError,
            "ConcreteDropout: rate must be a number in [0.001, 0.999], got 0.0.",
        ),
        (
            lambda: VariationalDropout(keras.layers.Embedding(2, 3), 0.1),
            ValueError,
            "VariationalDropout: layer must be a Dense, EinsumDense or convolution that is not built, got Embedding.",
        ),
        (lambda: Zoneout(3), TypeError, "Zoneout: cell must be the cell of a recurrent layer, got 3."),
        (
            lambda: Zoneout(keras.layers.LSTMCell(2, dropout=0.5)),
            ValueError,
            "Zoneout: cell must have no dropout of its own, got <LSTMCell",
        ),
        (
            lambda: Zoneout(keras.layers.StackedRNNCells([keras.layers.LSTMCell(2)])),
            ValueError,
            "Zoneout: cell must have vectors for states, the first its output, got <StackedRNNCells",
        ),
        (
            lambda: Zoneout(keras.layers.LSTMCell(2), cell_rate=1),
            ValueError,
            "Zoneout: cell_rate must be a number in [0, 1), got 1.",
        ),
    ],
)
def test_wrong_arguments_are_refused(make, error, message):
    with pytest.raises(error) as caught:
        make()
    assert str(caught.value).startswith(message)
