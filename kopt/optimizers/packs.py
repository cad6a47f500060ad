"""How weights lie side by side, so that one call of a rule updates many of them."""

import math
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from keras import ops

from kopt._backend import stack, unstack

LARGE = 2**18
"""Weights of so many entries are worth operations of their own: to copy them would cost more."""


class Slot(NamedTuple):
    """State kept for a weight.

    Attributes:
        shape: its shape, usually the weight's.
        initial: the number that fills it at the start.
        dtype: its type; that in which the rule computes where None.
    """

    shape: tuple[int, ...]
    initial: float = 0.0
    dtype: str | None = None


class Factors(NamedTuple):
    """What makes a weight's learning rate and weight decay others than the optimizer's.

    Attributes:
        learning_rate: the factor of the rate.
        weight_decay: the factor of the decay; no decay at all where it is 0.
        own_decay: what stands in the place of the optimizer's weight decay; None where nothing does.
    """

    learning_rate: float = 1.0
    weight_decay: float = 1.0
    own_decay: float | None = None


class Treatment(NamedTuple):
    """What weights must have in common to be updated at once.

    Attributes:
        route: which of the optimizer's rules updates them (see `Optimizer.routes`).
        stored: their dtype.
        dtype: the dtype in which the rule computes.
        factors: of the learning rate and of the weight decay.
        elementwise: whether their rule is, and their slots have their shape; if not, an axis counts weights.
        layout: their shape where they are stacked, "flat" where they are laid end to end, or the number of the one
            weight that is updated where it lies.
        place: the device on which they lie, where the optimizer's weights lie on several; else None.
    """

    route: str
    stored: str
    dtype: str
    factors: Factors
    elementwise: bool
    layout: Any
    place: str | None = None


@dataclass
class Pack:
    """Weights that are updated at once, and what is kept for them.

    Attributes:
        treatment: what they have in common.
        members: their numbers among the optimizer's variables.
        shapes: the shape of each.
        slots: what its rule keeps, by name, for the first of them. Stacked weights have one shape, and flat ones
            slots of their own shape, so that it holds for all.
        variables: one for each slot, filled by the optimizer.
    """

    treatment: Treatment
    members: list[int]
    shapes: list[tuple[int, ...]]
    slots: dict[str, Slot]
    variables: dict[str, Any]

    @property
    def flat(self):
        """Whether the weights are laid end to end, whatever their shapes."""
        return self.treatment.layout == "flat"

    def slot_shape(self, name):
        """The shape of the variable that holds a slot of all members."""
        if self.flat:
            return (sum(math.prod(shape) for shape in self.shapes),)
        shape = self.slots[name].shape
        return shape if self.alone else (len(self.members), *shape)

    @property
    def alone(self):
        """Whether this is one weight, with its own shape."""
        return len(self.members) == 1 and not self.flat

    @property
    def _lacks_axis(self):
        """Whether an axis must be added that counts weights."""
        return self.alone and not self.treatment.elementwise

    def stacked(self, values):
        """What the slots' variables hold, as a rule takes it: unless elementwise, with an axis that counts weights."""
        return {name: ops.expand_dims(value, 0) for name, value in values.items()} if self._lacks_axis else values

    def unstacked(self, values):
        """The inverse of `stacked`."""
        return {name: ops.squeeze(value, 0) for name, value in values.items()} if self._lacks_axis else values

    def _by_shape(self):
        """The positions of the members of each shape."""
        found = {}
        for position, shape in enumerate(self.shapes):
            found.setdefault(shape, []).append(position)
        return found

    def join(self, tensors):
        """One tensor for each member, as a rule takes them, in the dtype in which it computes."""
        if self.alone:
            joined = ops.expand_dims(tensors[0], 0) if self._lacks_axis else tensors[0]
        elif not self.flat:
            joined = stack(tensors)
        else:
            classes = [stack([tensors[p] for p in positions]) for positions in self._by_shape().values()]
            parts = [ops.reshape(part, (-1,)) for part in classes]
            joined = parts[0] if len(parts) == 1 else ops.concatenate(parts)
        return ops.cast(joined, self.treatment.dtype)

    def part(self, array):
        """The inverse of `join`, in the weights' own dtype."""
        array = ops.cast(array, self.treatment.stored)
        if self.alone and not self._lacks_axis:
            return [array]
        if not self.flat:
            return unstack(array, len(self.members))
        classes, parts = self._by_shape(), [None] * len(self.members)
        sizes = [len(positions) * math.prod(shape) for shape, positions in classes.items()]
        pieces = ops.split(array, np.cumsum(sizes)[:-1].tolist()) if len(sizes) > 1 else [array]
        for (shape, positions), piece in zip(classes.items(), pieces, strict=True):
            alike = unstack(ops.reshape(piece, (len(positions), *shape)), len(positions))
            for position, tensor in zip(positions, alike, strict=True):
                parts[position] = tensor
        return parts

    # ---- a checkpoint does not depend on what lies beside what ---------------------------------------------------

    def saved(self):
        """Yields member, slot name and array for each slot of each weight."""
        for name, variable in self.variables.items():
            array = np.asarray(variable.numpy())
            for member, piece in zip(self.members, self._pieces(name, array), strict=True):
                yield member, name, piece

    def restore(self, find):
        """Fills the slots with what `find(member, name)` returns."""
        for name, variable in self.variables.items():
            array = np.empty(variable.shape, variable.numpy().dtype)
            for member, piece in zip(self.members, self._pieces(name, array), strict=True):
                piece[...] = find(member, name)
            variable.assign(array)

    def _pieces(self, name, array):
        """Views of each weight's part of the array that holds a slot."""
        if not self.flat:
            return [array] if self.alone else [array[i, ...] for i in range(len(self.members))]
        pieces, start = [array] * len(self.members), 0
        for shape, positions in self._by_shape().items():
            for position in positions:
                end = start + math.prod(shape)
                pieces[position] = array[start:end].reshape(shape)
                start = end
        return pieces
