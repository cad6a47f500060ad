"""Numbers in 8 or 4 bits: codes for a table of values between -1 and 1, times the largest number of their block."""

import numpy as np
from keras import ops


def dynamic_values(bits, signed=True):
    """The 2**bits values, ascending, of Dettmers's dynamic map: one decade after another, ever more finely divided.

    With a sign the largest values are 1 and -0.99, and one is 0. Without one there is no 0, for a second moment that is
    rounded to it would make a step of any length: the smallest value is a decade below the smallest of the map's.
    """
    decades = []
    for decade in range(bits - 1):
        edges = np.linspace(0.1, 1, 2 ** (decade + (not signed)) + 1)
        decades.append(10.0 ** (decade - bits + 2) * (edges[:-1] + edges[1:]) / 2)
    positive = np.concatenate(decades)
    below = [*-positive[::-1], 0] if signed else [0.55 * 10.0 ** (1 - bits)]
    return np.concatenate([below, positive, [1]])


def linear_values(bits):
    """1, 2, ..., 2**bits over 2**bits: without a sign, and without a 0"""
    return np.arange(1, 2**bits + 1) / 2**bits


def quantize(x, values):
    """Returns `(codes, scale)`: for each entry the nearest of the values times scale, the largest |x| of its block.

    Blocks lie along the last axis. Codes are int32; a block of zeros has scale 0.
    """
    scale = ops.max(ops.abs(x), axis=-1, keepdims=True)
    relative = x / ops.where(scale == 0, 1.0, scale)
    middles = ops.convert_to_tensor((values[1:] + values[:-1]) / 2, x.dtype)
    codes, half = ops.zeros_like(x, "int32"), len(values) // 2
    while half:  # a binary search: XLA's `searchsorted` compares each entry with all values
        codes = codes + half * ops.cast(relative >= ops.take(middles, codes + (half - 1)), "int32")
        half //= 2
    return codes, scale


def dequantize(codes, scale, values):
    """values[codes] * scale"""
    return ops.take(ops.convert_to_tensor(values, scale.dtype), ops.cast(codes, "int32")) * scale


def pack(codes, bits):
    """Codes as bytes: of 4 bits two to a byte, the first in the higher half"""
    if bits == 4:
        codes = 16 * codes[..., ::2] + codes[..., 1::2]
    return ops.cast(codes, "uint8")


def unpack(codes, bits):
    """The inverse of `pack`"""
    codes = ops.cast(codes, "int32")
    if bits == 8:
        return codes
    return ops.reshape(ops.stack([codes // 16, codes % 16], axis=-1), (*codes.shape[:-1], 2 * codes.shape[-1]))
