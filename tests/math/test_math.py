"""The pure pieces, against their definitions in float64."""

import numpy as np
import pytest
from keras import ops

from kopt.math import debias, ema, norm, trust_ratio

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


def test_norm():
    assert float(norm(A)) == pytest.approx(np.linalg.norm(A), rel=1e-6)


def test_trust_ratio():
    assert float(trust_ratio(A, B)) == pytest.approx(np.linalg.norm(A) / np.linalg.norm(B), rel=1e-6)
    assert float(trust_ratio(A, 0 * B)) == float(trust_ratio(0 * A, B)) == 1
