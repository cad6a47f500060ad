"""Filter response normalization, LayerScale: against NumPy, and what every layer must do."""

import functools

import keras
import numpy as np
import pytest
from keras import ops

from kopt.layers import FilterResponseNormalization, LayerScale, layer_scale_initial
from kopt.testing import check_layer

RNG = np.random.default_rng(0)
ROWS = RNG.normal(size=(6, 3)).astype("float32")
SEQUENCES = RNG.normal(size=(6, 5, 3)).astype("float32")
IMAGES = RNG.normal(size=(6, 3, 2, 3)).astype("float32")
GAMMA, BETA, TAU = np.array([1, 2, -1]), np.array([0, 0.5, 0.2]), np.array([0, -0.4, 0.3])
close = functools.partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-5)


def given(x):
    return np.array(ops.convert_to_numpy(x))


def called(layer, x, training, **how):
    """Within a layer, which hands `training` down."""
    return given(keras.Sequential([layer])(x, training=training, **how))


@pytest.mark.parametrize(
    "x",
    [pytest.param(ROWS, marks=pytest.mark.slow), SEQUENCES, pytest.param(IMAGES, marks=pytest.mark.slow)],
    ids=["rows", "sequences", "images"],
)
def test_they_are_layers(x):
    assert "check_data_format" in check_layer(LayerScale(0.1), x)
    assert "check_data_format" in check_layer(FilterResponseNormalization(), x)


def test_options_are_layers():
    check_layer(FilterResponseNormalization(learn_epsilon=True, tlu=False), SEQUENCES)


def expected(x, epsilon, tlu, mask=None):
    x = x.astype("float64")
    space = tuple(range(1, x.ndim - 1))
    weights = np.ones(x.shape) if mask is None else mask[..., None] * np.ones(3)
    square = (x**2 * weights).sum(space, keepdims=True) / weights.sum(space, keepdims=True)
    y = GAMMA * x / np.sqrt(square + epsilon) + BETA
    return np.maximum(y, TAU) if tlu else y


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("tlu", [False, True])
@pytest.mark.parametrize("learn_epsilon", [False, True])
@pytest.mark.parametrize("x", [ROWS, SEQUENCES, IMAGES], ids=["rows", "sequences", "images"])
def test_filter_response(x, learn_epsilon, tlu, training):
    layer = FilterResponseNormalization(epsilon=0.01, learn_epsilon=learn_epsilon, tlu=tlu)
    layer.build(x.shape)
    layer.gamma.assign(GAMMA)
    layer.beta.assign(BETA)
    if tlu:
        layer.tau.assign(TAU)
    if learn_epsilon:
        assert given(layer.learnt_epsilon) == np.float32(1e-4)
        layer.learnt_epsilon.assign(-0.5)
    close(called(layer, x, training), expected(x, 0.51 if learn_epsilon else 0.01, tlu))


def test_what_is_masked_does_not_count():
    layer = FilterResponseNormalization(epsilon=0.01, tlu=False)
    layer.build(SEQUENCES.shape)
    layer.gamma.assign(GAMMA)
    layer.beta.assign(BETA)
    mask = np.arange(5) < 1 + np.arange(6)[:, None] % 5
    close(given(layer(SEQUENCES, mask=mask)), expected(SEQUENCES, 0.01, False, mask))


@pytest.mark.parametrize(
    ("shape", "learnt"),
    [((None, 3), True), ((None, 1, 1, 3), True), ((None, 2, 1, 3), False), ((None, None, 3), False)],
)
def test_epsilon_is_learnt_where_space_is_a_point(shape, learnt):
    layer = FilterResponseNormalization()
    layer.build(shape)
    assert (layer.learnt_epsilon is not None) == learnt


def test_mean_squares_are_in_float32():
    layer = FilterResponseNormalization(dtype="mixed_float16")
    x = 300 * np.ones((2, 4, 3), "float32")  # whose square float16 does not have
    close(given(ops.cast(layer(ops.cast(x, "float16")), "float32")), 1, rtol=1e-3)


@pytest.mark.parametrize("training", [False, True])
def test_layer_scale(training):
    layer = LayerScale(0.25)
    close(called(layer, IMAGES, training), 0.25 * IMAGES)
    layer.scale.assign(GAMMA)
    close(called(layer, IMAGES, training), GAMMA * IMAGES)


def test_layer_scale_starts_by_depth():
    starts = [layer_scale_initial(depth) for depth in (1, 18, 19, 24, 25, 48)]
    assert starts == [0.1, 0.1, 1e-5, 1e-5, 1e-6, 1e-6]
    with pytest.raises(ValueError, match=r"^layer_scale_initial: depth must be an integer in \[1, inf\), got 0\.$"):
        layer_scale_initial(0)


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: FilterResponseNormalization(epsilon=0), ValueError, r"epsilon must be a number in \(0, inf\), got 0"),
        (lambda: FilterResponseNormalization(tlu=2), ValueError, r"tlu must be one of False, True, got 2"),
        (
            lambda: FilterResponseNormalization(learn_epsilon=1e-4),
            ValueError,
            r"learn_epsilon must be one of None, False, True, got 0\.0001",
        ),
        (lambda: LayerScale("1"), TypeError, r"initial must be a number in \(0, inf\), got '1'"),
        (lambda: LayerScale(axis=None), TypeError, r"axis must be an integer in \(-inf, inf\), got None"),
        (
            lambda: LayerScale(axis=2).build((None, 3)),
            ValueError,
            r"axis must be one of inputs of shape \(None, 3\), and not the batch's, got 2",
        ),
    ],
)
def test_what_is_wrong_is_named(make, error, message):
    with pytest.raises(error, match=rf"^(FilterResponseNormalization|LayerScale): {message}\.$"):
        make()
