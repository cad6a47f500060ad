"""DeCov and ConfidencePenalty: what they add to the loss, by NumPy."""

import keras
import numpy as np
import pytest
from keras import ops
from keras.optimizers.schedules import PiecewiseConstantDecay

from kopt._keras import give_mask
from kopt.layers import ConfidencePenalty, DeCov, L0Gate
from kopt.testing import check_layer
from kopt.testing.backends import gradients, has_float64

RNG = np.random.default_rng(0)
X = RNG.standard_normal((8, 3, 4))
MASK = np.arange(3) < 1 + np.arange(8)[:, None] % 3


def array(x):
    return np.asarray(ops.convert_to_numpy(x), "float64")


def added(layer, x, mask=None):
    x = ops.convert_to_tensor(x)
    layer(x) if mask is None else layer(x, mask=ops.convert_to_tensor(mask))
    (loss,) = layer.losses
    return loss


def decov(rows):
    c = np.cov(rows, rowvar=False, bias=True)
    return 0.5 * ((c**2).sum() - (np.diag(c) ** 2).sum())


def entropy(p):
    return -(p * np.log(p)).sum(-1)


def softmax(x):
    return np.exp(x) / np.exp(x).sum(-1, keepdims=True)


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def expected(layer, x):
    """The loss for rows, by NumPy."""
    if isinstance(layer, DeCov):
        return layer.strength * decov(x)
    if layer.activation == "softmax":
        h = entropy(softmax(x) if layer.from_logits else x)
    else:
        p = sigmoid(x) if layer.from_logits else x
        h = (entropy(np.stack([p, 1 - p], -1))).sum(-1)
    each = -h if layer.threshold is None else np.maximum(layer.threshold - h, 0)
    return layer.strength * each.mean()


CASES = {
    "DeCov": DeCov(0.3),
    "probabilities": ConfidencePenalty(0.3),
    "logits": ConfidencePenalty(0.3, from_logits=True),
    "threshold": ConfidencePenalty(0.3, threshold=1.1, from_logits=True),
    "sigmoid": ConfidencePenalty(0.3, activation="sigmoid"),
    "sigmoid logits": ConfidencePenalty(0.3, activation="sigmoid", from_logits=True),
}


def fitting(layer, x):
    """Inputs that the layer can take."""
    probabilities = isinstance(layer, ConfidencePenalty) and not layer.from_logits
    return (softmax(x) if layer.activation == "softmax" else sigmoid(x)) if probabilities else x


def copy(layer, **changes):
    return type(layer).from_config(layer.get_config() | changes)


@pytest.mark.parametrize("layer", CASES.values(), ids=CASES)
def test_it_keeps_the_contract(layer):
    ran = check_layer(layer, fitting(layer, X).astype("float32"), replicas=True, added_loss="always")
    assert "check_added_loss" in ran


@pytest.mark.parametrize("layer", CASES.values(), ids=CASES)
def test_it_adds_the_papers_term(layer):
    x = fitting(layer, X)
    for dtype, close in {"float32": 1e-5, "bfloat16": 0.03}.items():
        found = added(copy(layer, dtype=dtype), ops.cast(x, dtype))
        assert keras.backend.standardize_dtype(found.dtype) == "float32"
        np.testing.assert_allclose(array(found), expected(layer, x.reshape(-1, 4)), rtol=close, atol=close)


@pytest.mark.parametrize("layer", CASES.values(), ids=CASES)
def test_what_a_mask_hides_counts_for_nothing(layer):
    x = fitting(layer, X).astype("float32")
    kept = expected(layer, x[MASK].astype("float64"))
    np.testing.assert_allclose(array(added(copy(layer), x, MASK)), kept, rtol=1e-5)
    carrying = ops.convert_to_tensor(x)
    give_mask(carrying, ops.convert_to_tensor(MASK))
    np.testing.assert_allclose(array(added(copy(layer), carrying)), kept, rtol=1e-5)
    assert np.isfinite(array(added(copy(layer), x, MASK & False)))


@pytest.mark.parametrize("layer", CASES.values(), ids=CASES)
def test_slopes_are_those_of_finite_differences(layer):
    if not has_float64():
        pytest.skip("float64 is off")
    layer, x = copy(layer, dtype="float64"), fitting(layer, X)
    (slope,) = gradients(lambda at: added(layer, at[0]), [ops.convert_to_tensor(x)])
    away, h = RNG.standard_normal(x.shape), 1e-6
    ahead, behind = (expected(layer, (x + sign * h * away).reshape(-1, 4)) for sign in (1, -1))
    np.testing.assert_allclose((array(slope) * away).sum(), (ahead - behind) / (2 * h), rtol=1e-5)


@pytest.mark.parametrize("p", [[[0.0, 1.0]], [[0.5, 0.5]]])
def test_certain_predictions_have_finite_slopes(p):
    for activation in ("softmax", "sigmoid"):
        layer = ConfidencePenalty(1.0, activation=activation)
        (slope,) = gradients(lambda at, layer=layer: added(layer, at[0]), [ops.convert_to_tensor(p, "float32")])
        assert np.isfinite(array(slope)).all()


@pytest.mark.parametrize("jit_compile", [False, True])
def test_the_model_counts_it(jit_compile):
    x = X.reshape(-1, 4).astype("float32")
    model = keras.Sequential([keras.Input((4,)), DeCov(0.5)])
    model.compile("sgd", "mse", jit_compile=jit_compile)
    np.testing.assert_allclose(model.evaluate(x, x, batch_size=24, verbose=0), 0.5 * decov(x), rtol=1e-5)


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: DeCov(-1), ValueError, r"DeCov: strength must be a number in \[0, inf\), got -1"),
        (lambda: DeCov(None), TypeError, r"DeCov: strength must be a number in \[0, inf\), got None"),
        (lambda: ConfidencePenalty(-1), ValueError, r"ConfidencePenalty: strength must be a number in \[0, inf\), got"),
        (lambda: ConfidencePenalty(1, -1), ValueError, r"ConfidencePenalty: threshold must be a number in \[0, inf\)"),
        (lambda: ConfidencePenalty(1, activation="relu"), ValueError, "ConfidencePenalty: activation must be one of "),
        (lambda: ConfidencePenalty(1, from_logits=1), ValueError, "ConfidencePenalty: from_logits must be one of True"),
    ],
)
def test_wrong_arguments_are_refused(make, error, message):
    with pytest.raises(error, match=f"^{message}"):
        make()


@pytest.mark.parametrize("make", [DeCov, ConfidencePenalty, L0Gate], ids=lambda kind: kind.__name__)
def test_a_strength_may_be_a_schedule_that_counts_calls_in_training(make):
    schedule = PiecewiseConstantDecay([0, 1], [1.0, 2.0, 3.0])
    layer, fixed = make(schedule), make(1.0)
    x = softmax(X)
    found = []
    for training in (True, True, False, True):
        layer(x, training=training)
        found.append(float(layer.losses[0]))
    fixed(x)
    np.testing.assert_allclose(found, np.multiply([1, 2, 3, 3], float(fixed.losses[0])), rtol=1e-5)
    assert int(layer.steps.value) == 3
    copy = make.from_config(layer.get_config())
    assert float(copy.strength(1)) == 2
