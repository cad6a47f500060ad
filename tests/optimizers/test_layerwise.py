"""What holds for layer-wise rules, whatever the gradients."""

import keras
import numpy as np
import pytest

import kopt

RNG = np.random.default_rng(0)
WEIGHTS = [RNG.standard_normal(shape) for shape in ((4, 3), (4, 3), (5,))]
GRADS = [[RNG.standard_normal(w.shape) for w in WEIGHTS] for _ in range(4)]
OPTIMIZERS = [kopt.LARS(5.0, nesterov=True, epsilon=0), kopt.LAMB(0.1, epsilon=0, weight_decay=None)]


def path(optimizer, *, weight=1.0, gradient=1.0):
    """Weights after some steps, where the first weight and its gradients are scaled."""
    optimizer = type(optimizer).from_config(optimizer.get_config())
    scales = [(weight, gradient)] + [(1, 1)] * 2
    variables = [keras.Variable(w * s, name=f"w{i}") for i, (w, (s, _)) in enumerate(zip(WEIGHTS, scales, strict=True))]
    for grads in GRADS:
        optimizer.apply([(g * s).astype("float32") for g, (_, s) in zip(grads, scales, strict=True)], variables)
    return [variable.numpy() for variable in variables]


@pytest.mark.parametrize("optimizer", OPTIMIZERS, ids=lambda x: type(x).__name__)
def test_a_weights_own_scale_is_that_of_its_steps(optimizer):
    plain = path(optimizer)
    for scaled, weight in ((path(optimizer, gradient=100.0), 1.0), (path(optimizer, weight=8.0), 8.0)):
        np.testing.assert_allclose(scaled[0], weight * plain[0], rtol=2e-5)
        for a, b in zip(scaled[1:], plain[1:], strict=True):
            np.testing.assert_allclose(a, b, rtol=2e-5)


def test_lamb_is_adamw_where_it_is_not_to_adapt():
    lamb, adamw = (
        path(kopt.LAMB(0.1, no_adaptation=("w0", "2$"))),
        path(kopt.AdamW(0.1, epsilon=1e-6, weight_decay=0.01)),
    )
    np.testing.assert_allclose(lamb[0], adamw[0], rtol=1e-6)
    np.testing.assert_allclose(lamb[2], adamw[2], rtol=1e-6)
    assert np.abs(lamb[1] - adamw[1]).max() > 0.01


def test_lars_is_sgd_where_it_is_not_to_adapt():
    lars, sgd = path(kopt.LARS(0.1, no_adaptation="w")), path(kopt.SGD(0.1, momentum=0.9))
    for a, b in zip(lars, sgd, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-6)


@pytest.mark.parametrize("make", [kopt.LARS, kopt.LAMB])
def test_what_is_no_regular_expression_is_refused(make):
    with pytest.raises(ValueError, match=rf"^{make.__name__}: no_adaptation must hold regular expressions, got '\('"):
        make(no_adaptation="(")


def test_a_clipped_ratio_bounds_the_step():
    variable = keras.Variable(np.full(4, 100.0))
    kopt.LARS(0.01, trust_coefficient=1.0, momentum=0.0, clip_ratio=True).apply([np.ones(4, "float32")], [variable])
    np.testing.assert_allclose(variable.numpy(), 99.99, rtol=1e-6)
    variable = keras.Variable(np.full(4, 100.0))
    kopt.LAMB(0.01, weight_decay=None, clip_ratio=True).apply([np.ones(4, "float32")], [variable])
    np.testing.assert_allclose(variable.numpy(), 99.99, rtol=1e-6)
