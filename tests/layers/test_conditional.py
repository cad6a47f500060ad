"""FiLM and conditional normalization: against NumPy, and what every layer must do."""

import functools

import keras
import numpy as np
import pytest
from keras import ops

import kopt
from kopt.layers import ConditionalNormalization, FiLM, SyncBatchNormalization, adain
from kopt.testing import check_layer

RNG = np.random.default_rng(0)
ROWS = RNG.normal(2, 3, (6, 4)).astype("float32")
SEQUENCES = RNG.normal(2, 3, (6, 5, 4)).astype("float32")
IMAGES = RNG.normal(2, 3, (6, 3, 2, 4)).astype("float32")
VECTORS = RNG.normal(size=(6, 2)).astype("float32")
CLASSES = np.array([0, 1, 2, 1, 0, 2], "int32")
KERNEL, BIAS = RNG.normal(size=(2, 8)), RNG.normal(size=8)
TABLE = RNG.normal(size=(3, 8))
close = functools.partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-4)


def given(x):
    return np.array(ops.convert_to_numpy(x))


def modulated(x, condition):
    """Scaled and shifted by hand."""
    amounts = TABLE[condition.reshape(-1)] if condition.dtype.kind == "i" else condition @ KERNEL + BIAS
    scale, shift = (part.reshape(len(x), *[1] * (x.ndim - 2), 4) for part in np.split(amounts, 2, axis=1))
    return (1 + scale) * x + shift


def built(layer, x, condition):
    layer.build([x.shape, condition.shape])
    layer.kernel.assign(TABLE if condition.dtype.kind == "i" else KERNEL)
    if layer.bias is not None:
        layer.bias.assign(BIAS)
    return layer


@pytest.mark.parametrize(
    "x",
    [pytest.param(ROWS, marks=pytest.mark.slow), SEQUENCES, pytest.param(IMAGES, marks=pytest.mark.slow)],
    ids=["rows", "sequences", "images"],
)
def test_film_is_a_layer(x):
    ran = check_layer(FiLM(kernel_initializer="glorot_uniform"), [x, VECTORS])
    assert "check_data_format" in ran


@pytest.mark.parametrize("normalization", ["batch", "layer", "instance", SyncBatchNormalization])
def test_conditional_normalization_is_a_layer(normalization):
    axis = -1
    if normalization is SyncBatchNormalization:  # a layer has an axis of its own
        normalization, axis = SyncBatchNormalization(center=False, scale=False), 2
    layer = ConditionalNormalization(normalization, axis=axis, kernel_initializer="glorot_uniform")
    check_layer(layer, [SEQUENCES, VECTORS], replicas=normalization != "batch")


def test_conditions_that_are_classes_are_layers():
    check_layer(FiLM(3), [SEQUENCES, CLASSES])
    check_layer(ConditionalNormalization("layer", 3), [ROWS, CLASSES[:, None]])


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("condition", [VECTORS, CLASSES, CLASSES[:, None]], ids=["vectors", "classes", "column"])
@pytest.mark.parametrize("x", [ROWS, SEQUENCES, IMAGES], ids=["rows", "sequences", "images"])
def test_film(x, condition, training):
    layer = FiLM(3 if condition.dtype.kind == "i" else None)
    model_inputs = [keras.Input(a.shape[1:], dtype=str(a.dtype)) for a in (x, condition)]
    model = keras.Model(model_inputs, layer(model_inputs))
    close(given(model([x, condition], training=training)), x)  # the identity at the start
    layer.kernel.assign(TABLE if condition.dtype.kind == "i" else KERNEL)
    if condition.dtype.kind == "f":
        layer.bias.assign(BIAS)
    close(given(model([x, condition], training=training)), modulated(x, condition))


AXES = {"batch": (0, 1, 2), "layer": (3,), "instance": (1, 2)}


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("condition", [VECTORS, CLASSES], ids=["vectors", "classes"])
@pytest.mark.parametrize("normalization", AXES)
def test_conditional_normalization(normalization, condition, training):
    classes = 3 if condition.dtype.kind == "i" else None
    layer = built(ConditionalNormalization(normalization, classes, epsilon=0.1), IMAGES, condition)
    y = given(layer([IMAGES, condition], training=training))
    x, axes = IMAGES.astype("float64"), AXES[normalization]
    mean, variance = x.mean(axes, keepdims=True), x.var(axes, keepdims=True)
    if normalization == "batch":
        moved = (0.01 * mean.ravel(), 0.99 + 0.01 * variance.ravel()) if training else (np.zeros(4), np.ones(4))
        close(given(layer.inner.moving_mean), moved[0])
        close(given(layer.inner.moving_variance), moved[1])
        mean, variance = (mean, variance) if training else (0, 1)
    close(y, modulated((x - mean) / np.sqrt(variance + 0.1), condition))


def test_masks_reach_the_batch_normalization():
    mask = np.arange(5) < 1 + np.arange(6)[:, None] % 5
    layer = built(ConditionalNormalization("batch", epsilon=0.1), SEQUENCES, VECTORS)
    y = given(layer([SEQUENCES, VECTORS], training=True, mask=[mask, None]))
    x = SEQUENCES[mask].astype("float64")
    close(y, modulated((SEQUENCES - x.mean(0)) / np.sqrt(x.var(0) + 0.1), VECTORS))


def test_recalibrate_finds_the_batch_normalization():
    inputs = [keras.Input((4,)), keras.Input((2,))]
    layer = ConditionalNormalization("batch")
    kopt.recalibrate(keras.Model(inputs, layer(inputs)), [([ROWS, VECTORS],)])
    close(given(layer.inner.moving_mean), ROWS.mean(0))


@pytest.mark.parametrize("axis", [-1, 1])
def test_adain(axis):
    style = RNG.normal(-1, 2, (6, 4, 4, 4)).astype("float32")

    def spread(x):
        return np.sqrt(x.var((1, 2), keepdims=True) + 1e-5)

    expected = (IMAGES - IMAGES.mean((1, 2), keepdims=True)) / spread(IMAGES) * spread(style)
    expected = np.moveaxis(expected + style.mean((1, 2), keepdims=True), -1, axis)
    close(given(adain(*(np.moveaxis(x, -1, axis) for x in (IMAGES, style)), axis=axis)), expected)


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: FiLM(0), ValueError, r"classes must be an integer in \[1, inf\), got 0"),
        (lambda: FiLM().build((None, 3)), ValueError, r"inputs must be \[features, condition\], got \(None, 3\)"),
        (
            lambda: FiLM().build([(None, 3), (None, 2, 2)]),
            ValueError,
            r"the condition must have shape \(batch, size\), got \(None, 2, 2\)",
        ),
        (
            lambda: FiLM(2).build([(None, 3), (None, 2)]),
            ValueError,
            r"the condition must have shape \(batch,\) or \(batch, 1\), got \(None, 2\)",
        ),
        (
            lambda: ConditionalNormalization("group"),
            ValueError,
            r"normalization must be one of 'batch', 'layer', 'instance', got 'group'",
        ),
        (
            lambda: ConditionalNormalization("layer", epsilon=0),
            ValueError,
            r"epsilon must be a number in \(0, inf\), got 0",
        ),
        (
            lambda: ConditionalNormalization("instance").build([(None, 3), (None, 2)]),
            ValueError,
            r"features must have space, got those of shape \(None, 3\)",
        ),
    ],
)
def test_what_is_wrong_is_named(make, error, message):
    with pytest.raises(error, match=rf"^(FiLM|ConditionalNormalization): {message}\.$"):
        make()
