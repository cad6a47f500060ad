"""Codes and the values they stand for."""

import numpy as np
import pytest
from keras import ops

from kopt.math.quantization import dequantize, dynamic_values, linear_values, pack, quantize, unpack

TABLES = {
    "dynamic 8": dynamic_values(8),
    "dynamic 8 unsigned": dynamic_values(8, signed=False),
    "dynamic 4": dynamic_values(4),
    "linear 4": linear_values(4),
}


@pytest.mark.parametrize("name", TABLES)
def test_values_ascend_to_one(name):
    values = TABLES[name]
    assert len(values) == (256 if "8" in name else 16)
    assert values[-1] == 1
    assert (np.diff(values) > 0).all()


def test_only_signed_values_have_a_zero():
    assert [0 in values for values in TABLES.values()] == [True, False, True, False]


def test_dynamic_values_are_those_of_the_paper():
    """Per decade, midpoints of 1, 2, 4, ... intervals between 0.1 and 1."""
    np.testing.assert_allclose(dynamic_values(4)[8:], [0.0055, 0.0325, 0.0775, 0.2125, 0.4375, 0.6625, 0.8875, 1])


@pytest.mark.parametrize("values", TABLES.values(), ids=TABLES)
def test_the_nearest_value_is_taken(values):
    x = np.random.default_rng(0).uniform(min(0, values[0]), 1, (3, 5, 16)).astype("float32")
    x[0, 0] = 0
    codes, scale = quantize(ops.convert_to_tensor(x), values)
    found = ops.convert_to_numpy(dequantize(codes, scale, values))
    largest = np.abs(x).max(axis=-1, keepdims=True)
    nearest = np.abs(x[..., None] - largest[..., None] * values).min(axis=-1)
    np.testing.assert_allclose(np.abs(found - x), nearest, atol=1e-6)
    assert not found[0, 0].any(), "a block of zeros must stay one"


@pytest.mark.parametrize("values", TABLES.values(), ids=TABLES)
def test_values_come_back_as_they_are(values):
    codes, scale = quantize(ops.convert_to_tensor(3 * values[None], "float32"), values)
    np.testing.assert_array_equal(ops.convert_to_numpy(codes)[0], np.arange(len(values)))
    assert float(scale[0, 0]) == 3


@pytest.mark.parametrize(("bits", "size"), [(8, 256), (4, 128)])
def test_codes_are_packed(bits, size):
    codes = np.random.default_rng(0).integers(0, 2**bits, (2, 3, 256)).astype("int32")
    packed = pack(ops.convert_to_tensor(codes), bits)
    assert tuple(packed.shape) == (2, 3, size)
    assert packed.dtype == "uint8"
    np.testing.assert_array_equal(ops.convert_to_numpy(unpack(packed, bits)), codes)
