"""Kernels and biases that make a layer, told from the paths and shapes of the weights alone."""

import math
from typing import NamedTuple

from keras import ops


class Block(NamedTuple):
    """A kernel as a matrix of (inputs, outputs), with the bias below as one more row.

    Attributes:
        path: the kernel's.
        kernel: its number among the weights.
        bias: the number of the bias, or None.
        inputs: how many rows there are, that of the bias included.
        outputs: how many columns.
    """

    path: str
    kernel: int
    bias: int | None
    inputs: int
    outputs: int

    def join(self, tensors):
        """One matrix of the tensors of the block's weights, zeros in the place of None; None where there are none."""
        parts = [(tensors[self.kernel], self.inputs - (self.bias is not None))]
        parts += [] if self.bias is None else [(tensors[self.bias], 1)]
        given = [x for x, _ in parts if x is not None]
        if not given:
            return None
        shapes = [(rows, self.outputs) for _, rows in parts]
        pairs = zip(parts, shapes, strict=True)
        return ops.concatenate(
            [ops.zeros(s, given[0].dtype) if x is None else ops.reshape(x, s) for (x, _), s in pairs]
        )

    def split(self, matrix):
        """The inverse of `join`: a pair of number and matrix for each weight, which the caller gives its shape."""
        return [(self.kernel, matrix)] if self.bias is None else [(self.kernel, matrix[:-1]), (self.bias, matrix[-1])]


def blocks(paths, shapes):
    """The blocks among weights of these paths and shapes.

    A weight of two axes or more is the kernel of a block if its name ends in `kernel`. The bias beside it, `a/bias` for
    `a/kernel`, belongs to the block if it has the shape of the kernel's last axes: these are the outputs, else the last
    axis alone.
    """
    found, taken = [], set()
    for number, (path, shape) in enumerate(zip(paths, shapes, strict=True)):
        prefix, _, name = path.rpartition("/")
        if not name.endswith("kernel") or len(shape) < 2:
            continue
        bias = None
        if name == "kernel":  # the next bias of the prefix: layers of two models may share their paths
            later = (n for n in range(number + 1, len(paths)) if paths[n] == f"{prefix}/bias" and n not in taken)
            fitting = (n for n in later if len(shapes[n]) < len(shape) and shapes[n] == shape[-len(shapes[n]) :])
            bias = next(fitting, None)
        outputs = shape[-1:] if bias is None else shapes[bias]
        taken.add(bias)
        inputs = math.prod(shape[: -len(outputs)]) + (bias is not None)
        found.append(Block(path, number, bias, inputs, math.prod(outputs)))
    return found
