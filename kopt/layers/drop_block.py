"""DropBlock: dropout of contiguous regions, for what has positions."""

import math
from numbers import Integral
from typing import ClassVar

import keras
from keras import ops

from kopt._checks import check_choice, check_range
from kopt.layers.base import Noise, Scheduled


class DropBlock(Noise):
    """Base class of `DropBlock1D`, `DropBlock2D` and `DropBlock3D`: leaves out blocks of neighbouring positions.

        y = x · M · size(M) / Σ M                                                            when training
        M = 0 in a block around each centre that is drawn, 1 elsewhere
        a centre is drawn with probability  γ = rate / blockᵈ · Π_i size_i / (size_i - block + 1)

    Centres are such that blocks lie within the image. What is around a position tells nearly what is at it, which
    is why dropout of single positions hardly regularizes convolutions.

    Args:
        rate: part of the activations to leave out, in [0, 1), or a schedule: the paper's grows linearly from 0 over the
            whole training, `kopt.schedules.Linear(0, steps, rate)`.
        block: length of a block's sides, in positions: in [1, inf). A shorter side of the input shortens it there.
        shared: whether all channels share their blocks; the paper found independent ones better.
        data_format: `"channels_last"` or `"channels_first"`; None for that of `keras.config.image_data_format()`.
        seed: an integer, for the same draws in every run; None draws a new one.
        **kwargs: those of `keras.layers.Layer`.

    Call arguments:
        inputs: tensor of shape `(batch, *positions, channels)` and any float type.
        training: whether to drop; Keras sets it.

    Raises:
        TypeError: `rate` is neither a number nor a schedule, or `block` no integer.
        ValueError: an argument is out of its range, or the inputs are of another rank.

    References:
        Ghiasi et al., *DropBlock: A Regularization Method for Convolutional Networks*, 2018.
        https://arxiv.org/abs/1810.12890
    """

    positions: ClassVar[int]
    """The number of axes between the examples and the channels."""

    def __init__(self, rate: Scheduled = 0.1, block=7, shared=False, data_format=None, seed=None, **kwargs):
        super().__init__(seed, **kwargs)
        self._set_rates(rate=rate)
        self.block = check_range(self, "[1, inf)", kind=Integral, block=block)
        self.shared = check_choice(self, (True, False), shared=shared)
        data_format = data_format or keras.config.image_data_format()
        self.data_format = check_choice(self, ("channels_last", "channels_first"), data_format=data_format)
        self.input_spec = keras.layers.InputSpec(ndim=self.positions + 2)

    def call(self, inputs, training=False):
        if not training:
            return inputs
        shape = ops.shape(inputs)
        first = self.data_format == "channels_first"
        sizes, channels = (shape[2:], shape[1]) if first else (shape[1:-1], shape[-1])
        kept = self._kept(shape[0], sizes, 1 if self.shared else channels)
        part = ops.mean(kept)
        kept = ops.cast(kept / ops.where(part > 0, part, 1), inputs.dtype)
        return inputs * (ops.moveaxis(kept, -1, 1) if first else kept)

    def _kept(self, rows, sizes, channels):
        """Zeros in the blocks, ones elsewhere, in float32 with the channels last."""
        blocks = [min(self.block, size) for size in sizes]
        inner = [size - block + 1 for size, block in zip(sizes, blocks, strict=True)]
        share = math.prod(size / (block * n) for size, block, n in zip(sizes, blocks, inner, strict=True))
        noise = keras.random.uniform((rows, *inner, channels), seed=self.seed_generator)
        centres = ops.cast(noise < self._now().rate * share, "float32")
        around = [(0, 0), *((block - 1, block - 1) for block in blocks), (0, 0)]
        padded = ops.pad(centres, around)
        return 1 - ops.max_pool(padded, tuple(blocks), strides=1, padding="valid", data_format="channels_last")


class DropBlock1D(DropBlock):
    """DropBlock of sequences: inputs of shape `(batch, time, channels)`. All else is in `DropBlock`."""

    positions = 1


class DropBlock2D(DropBlock):
    """DropBlock of images: inputs of shape `(batch, height, width, channels)`. All else is in `DropBlock`."""

    positions = 2


class DropBlock3D(DropBlock):
    """DropBlock of volumes: inputs of shape `(batch, depth, height, width, channels)`. All else is in `DropBlock`."""

    positions = 3
