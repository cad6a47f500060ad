"""A functional model as a line of operations, and where the line is cut into stages."""

import dataclasses
import itertools
import math
from typing import Any

import tensorflow as tf

from kopt._keras import nodes_of


@dataclasses.dataclass(frozen=True)
class Stage:
    """A part of a model.

    Attributes:
        nodes: calls of operations, in order.
        takes: the symbolic tensors that come from outside: the model's inputs, and what earlier stages give.
        gives: the symbolic tensors that are made here for later stages, or as outputs of the model.
        variables: those of its layers that no earlier stage has in `variables`: what lies on its device.
        used: all variables of its layers.
    """

    nodes: list[Any]
    takes: list[Any]
    gives: list[Any]
    variables: list[Any]
    used: list[Any]

    @property
    def names(self):
        """The names of its operations, in order."""
        return list(dict.fromkeys(node.operation.name for node in self.nodes))


def ends_of(model, names, owner):
    """Returns where stages end: how many nodes come before each cut.

    Args:
        model: a functional `keras.Model`.
        names: of the layers that end all stages but the last one, in order.
        owner: who asks, for errors.

    Raises:
        ValueError: there is no such layer, or the layers are not in order.
    """
    nodes, ends = nodes_of(model), []
    last = {node.operation.name: number for number, node in enumerate(nodes, 1)}
    for name in names:
        if name not in last:
            raise ValueError(f"{owner}: stages must name layers among {', '.join(last)}, got {name!r}.")
        if last[name] <= (ends[-1] if ends else 0) or last[name] == len(nodes):
            raise ValueError(
                f"{owner}: stages must name layers in the order of {', '.join(last)}, without the last one, got "
                f"{list(names)!r}."
            )
        ends.append(last[name])
    return ends


def cut(model, ends):
    """Returns the `Stage`s of a functional model that is cut after so many nodes.

    A layer that several stages use has its variables in the first of them.
    """
    nodes = nodes_of(model)
    bounds = [0, *ends, len(nodes)]
    parts = [nodes[start:end] for start, end in itertools.pairwise(bounds)]
    made = {id(tensor): stage for stage, part in enumerate(parts) for node in part for tensor in node.output_tensors}
    wanted = {id(tensor): len(parts) for tensor in model.outputs}
    for stage, part in reversed(list(enumerate(parts))):
        for node in part:
            for tensor in node.input_tensors:
                wanted[id(tensor)] = max(stage, wanted.get(id(tensor), 0))
    stages, placed = [], set()
    for stage, part in enumerate(parts):
        asked = [x for node in part for x in node.input_tensors] + (list(model.outputs) if part is parts[-1] else [])
        takes = {id(x): x for x in asked if made.get(id(x), -1) < stage}
        gives = {id(x): x for node in part for x in node.output_tensors if wanted.get(id(x), -1) > stage}
        used = {id(v): v for node in part for v in getattr(node.operation, "variables", ())}
        own = [v for v in used.values() if id(v) not in placed]
        placed |= used.keys()
        stages.append(Stage(part, list(takes.values()), list(gives.values()), own, list(used.values())))
    return stages


def crossing(model):
    """Returns for each number of nodes, from 0, the bytes for a row that cross a cut after so many."""
    nodes = nodes_of(model)
    last: dict[int, int] = {id(tensor): len(nodes) + 1 for tensor in model.outputs}
    for number, node in enumerate(nodes):
        last |= {id(tensor): max(number, last.get(id(tensor), 0)) for tensor in node.input_tensors}
    found, alive = [0], {}
    for number, node in enumerate(nodes):
        alive |= {id(tensor): _bytes(tensor) for tensor in node.output_tensors if last.get(id(tensor), -1) > number}
        alive = {key: size for key, size in alive.items() if last[key] > number}
        found.append(sum(alive.values()))
    return found


def _bytes(tensor):
    return math.prod(length for length in tensor.shape if length) * tf.as_dtype(tensor.dtype).size
