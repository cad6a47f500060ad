"""The pure pieces, against their definitions in float64."""

import numpy as np
import pytest
from keras import ops

from kopt.math import debias, ema, mean, norm, rms, trust_ratio

A = np.array([[3.0, -4.0], [0.5, 2.0]], "float32")
B = np.array([[-1.0, 2.0], [0.25, -8.0]], "float32")


def test_ema():
    np.testing.assert_allclose(ops.convert_to_numpy(ema(A, B, 0.9)), 0.9 * A + 0.1 * B, rtol=1e-6)


@pytest.mark.parametrize("beta", [0.0, 0.9, 0.999, 0.99999])
@pytest.mark.parametrize("t", [1, 2, 1000])
def test_debias_keeps_its_digits_near_one(beta, t):
    held = np.float32(beta)  # in float64 from here on: what float32 arithmetic should come to
    found = ops.convert_to_numpy(debias(A, ops.convert_to_tensor(held), ops.convert_to_tensor(np.float32(t))))
    np.testing.assert_allclose(found, A / (1 - float(held) ** t), rtol=1e-6)


STACKED = np.stack([A, 2 * B])


def test_norm():
    lengths = np.asarray(norm(STACKED))
    assert lengths.shape == (2, *[1] * A.ndim)
    np.testing.assert_allclose(lengths.ravel(), [np.linalg.norm(A), 2 * np.linalg.norm(B)], rtol=1e-6)


def test_means():
    np.testing.assert_allclose(np.ravel(mean(STACKED)), STACKED.reshape(2, -1).mean(1), rtol=1e-6)
    np.testing.assert_allclose(np.ravel(rms(STACKED)), np.sqrt((STACKED.reshape(2, -1) ** 2).mean(1)), rtol=1e-6)
    np.testing.assert_allclose(mean(STACKED, (1,)), STACKED.mean(1, keepdims=True), rtol=1e-6)


def test_trust_ratio():
    ratios = np.ravel(trust_ratio(STACKED, np.stack([B, A])))
    lengths = np.linalg.norm(A), np.linalg.norm(B)
    np.testing.assert_allclose(ratios, [lengths[0] / lengths[1], 2 * lengths[1] / lengths[0]], rtol=1e-6)
    np.testing.assert_array_equal(np.ravel(trust_ratio(np.stack([A, 0 * A]), np.stack([0 * B, B]))), [1, 1])
