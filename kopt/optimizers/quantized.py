"""Moments in 8 or 4 bits."""

import math
import re

from keras import ops

from kopt.math.quantization import dequantize, dynamic_values, linear_values, pack, quantize, unpack
from kopt.optimizers.packs import Slot
from kopt.optimizers.wrapper import Wrapper

BLOCK = {8: 256, 4: 128}
"""Entries that share a scale, by bits."""


MOMENT = re.compile(r"[mv]\d*(_max)?")
"""What the slots of first and second moments are called."""


def _values(name, bits):
    """The values that codes stand for: of second moments, which are not negative, twice as many."""
    if name[0] == "m":
        return dynamic_values(bits)
    return dynamic_values(bits, signed=False) if bits == 8 else linear_values(bits)


class Quantized(Wrapper):
    """Keeps the moments of any optimizer in 8 or 4 bits: a quarter or an eighth of their memory.

        m, v ← values[codes] · scale        for each block of entries
        u, m, v ← the inner optimizer's direction, in float32
        scale ← max |m| of the block,  codes ← nearest(m / scale);  likewise v

    For state that does not fit; the path is close to the inner optimizer's, not equal to it. Hyperparameters need no
    new tuning at 8 bits; at 4 bits, try. Slots called m, m1, v, v_max and so on are quantized, second moments without a
    sign; all others stay, as does what is small. Embeddings, whose rare rows share blocks with frequent ones, better
    keep 32 bits: give them an optimizer of their own (`kopt.Route`).

    As in bitsandbytes and torchao, 8 bits code Dettmers's dynamic map; 4 bits code it for m, and 1/16, ..., 16/16 for
    v. Here v has no code for 0 at 8 bits either: in the others an entry whose v is rounded to 0 takes a step of m / ε
    as soon as its gradient is 0. The last block of a weight may be short, where torchao leaves such weights alone.
    While a weight is updated, its moments are there in float32.

    Args:
        inner: a kopt optimizer that keeps moments.
        bits: 8 or 4.
        block: entries that share a scale, an even integer in [2, inf); None for 256 at 8 bits and 128 at 4.
        min_size: entries that a slot must have to be quantized, an integer in [1, inf).

    Raises:
        TypeError: `inner` is no kopt optimizer, or `block` or `min_size` no integer.
        ValueError: `inner` keeps no moments, or an argument is out of its range.

    References:
        Dettmers, Lewis, Shleifer and Zettlemoyer, *8-bit Optimizers via Block-wise Quantization*, 2022.
        https://arxiv.org/abs/2110.02861
        Li, Chen and Zhu, *Memory Efficient Optimizers with 4-bit States*, 2023. https://arxiv.org/abs/2309.01507
    """

    cites = ("dettmers2022eightbit", "li2023fourbit")
    integers = {"block": "[2, inf)", "min_size": "[1, inf)"}
    choices = {"bits": tuple(BLOCK)}

    def __init__(self, inner, *, bits=8, block=None, min_size=4096):
        super().__init__(inner)
        self.bits, self.block, self.min_size = bits, block, min_size
        if self._block % 2:
            raise ValueError(f"Quantized: block must be even, got {block}.")
        if not any(MOMENT.fullmatch(name) for rule in inner.routes().values() for name in rule.slots((2, 2))):
            raise ValueError(f"Quantized: inner must keep moments, in slots called m or v, got {inner!r}.")

    def _exact(self, shape):
        """The inner optimizer's slots, and the number of blocks of each that is quantized."""
        slots = {n: s if isinstance(s, Slot) else Slot(s) for n, s in self.inner.slots(shape).items()}
        sizes = {name: math.prod(slot.shape) for name, slot in slots.items()}
        blocks = {
            n: -(-size // self._block) for n, size in sizes.items() if MOMENT.fullmatch(n) and size >= self.min_size
        }
        return slots, blocks

    @property
    def _block(self):
        return self.block or BLOCK[self.bits]

    def slots(self, shape):
        kept, blocks = self._exact(shape)
        for name, number in blocks.items():
            slot = kept.pop(name)
            kept[f"{name}_codes"] = Slot((number, self._block * self.bits // 8), 255, "uint8")  # all 1, times the scale
            kept[f"{name}_scales"] = Slot((number, 1), slot.initial)
        return kept

    def _decoded(self, shape, slots):
        """The inner optimizer's slots, for a stack of weights of this shape."""
        kept, blocks = self._exact(shape)
        exact = {name: slots[name] for name in kept if name not in blocks}
        for name in blocks:
            codes, scale = unpack(slots[f"{name}_codes"], self.bits), slots[f"{name}_scales"]
            x = ops.reshape(dequantize(codes, scale, _values(name, self.bits)), (codes.shape[0], -1))
            exact[name] = ops.reshape(x[:, : math.prod(kept[name].shape)], (-1, *kept[name].shape))
        return exact

    def _encoded(self, shape, slots):
        """The inverse of `_decoded`, to the nearest code."""
        kept, blocks = self._exact(shape)
        coded = {name: slots[name] for name in kept if name not in blocks}
        for name, number in blocks.items():
            missing = number * self._block - math.prod(kept[name].shape)
            x = ops.pad(ops.reshape(slots[name], (slots[name].shape[0], -1)), [[0, 0], [0, missing]])
            codes, scale = quantize(ops.reshape(x, (-1, number, self._block)), _values(name, self.bits))
            coded |= {f"{name}_codes": pack(codes, self.bits), f"{name}_scales": scale}
        return coded

    def direction(self, g, w, t, h, **slots):
        shape = tuple(g.shape[1:])
        u, new = self.inner.direction(g, w, t, h.inner, **self._decoded(shape, slots))
        return u, self._encoded(shape, new)

    def measure(self, g, w, t, h, **slots):
        return self.inner.measure(g, w, t, h.inner, **self._decoded(tuple(g.shape[1:]), slots))

    def evaluation(self, w, h, **slots):
        w, new = self.inner.evaluation(w, h.inner, **self._decoded(tuple(w.shape[1:]), slots))
        return w, slots | {name: x for name, x in new.items() if name in slots}  # moments take no part

    def training(self, w, h, **slots):
        w, new = self.inner.training(w, h.inner, **self._decoded(tuple(w.shape[1:]), slots))
        return w, slots | {name: x for name, x in new.items() if name in slots}
