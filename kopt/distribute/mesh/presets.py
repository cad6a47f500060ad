"""Layouts for tensor parallelism: of dense layers, embeddings and attention, as Megatron-LM has them."""

import collections
import re

import keras

from kopt._keras import nodes_of
from kopt.distribute.mesh.layouts import BATCH, MODEL, as_dict, specs_of

layers = keras.layers

ROWWISE = layers.Activation | layers.Dropout | layers.LeakyReLU | layers.ReLU | layers.Identity
"""Layers that treat each entry for itself, so that they do not mind what dense layers around them are divided by."""


def found(model, layout, mesh, owner):
    """Returns a layout as it can be saved, and what it says of each of a model's variables, in their order.

    Args:
        model: a functional model.
        layout: a preset's name, or what `kopt.distribute.mesh.layouts.as_dict` takes.
        mesh: the mesh, or its `kopt.distribute.mesh.layouts.Axes`.
        owner: who asks, for errors.

    Raises:
        TypeError: it is none.
        ValueError: it does not fit the mesh or the variables.
    """
    preset = isinstance(layout, str) and layout == "tensor_parallel"
    by_pattern = as_dict(tensor_parallel(model, mesh, owner) if preset else layout, mesh, owner)
    return layout if preset else by_pattern, specs_of(model.variables, by_pattern, mesh, owner)


def tensor_parallel(model, mesh, owner):
    """Returns a layout, tuples by regular expressions, that divides what it can by the axis "model".

    Of two dense layers of which the second alone has the first one's outputs, the first is divided by its outputs, the
    second by its inputs, so that nothing has to be gathered between them; one by itself by its outputs. An embedding is
    divided by its outputs or else by its vocabulary, attention by its heads.

    Raises:
        ValueError: the mesh has no such axis.
    """
    if MODEL not in mesh.dim_names:
        raise ValueError(
            f"{owner}: mesh must have the axis {MODEL!r} for layout='tensor_parallel', got {mesh.dim_names}."
        )
    size, layout = mesh.dim_size(MODEL), {}
    second = _second_of_two(model, size)
    for layer in model._flatten_layers():
        for variable, spec in _specs(layer, size, layer in second):
            layout[re.escape(variable.path)] = spec
    return layout


def _specs(layer, size, second):
    """The weights of a layer that are divided, each with how."""
    found = []
    if isinstance(layer, layers.MultiHeadAttention):
        if layer.num_heads % size == 0:
            for part in (layer.query_dense, layer.key_dense, layer.value_dense):
                found += [(part.kernel, (None, MODEL, None)), (part.bias, (MODEL, None))]
            found.append((layer.output_dense.kernel, (MODEL, *[None] * (len(layer.output_dense.kernel.shape) - 1))))
    elif isinstance(layer, layers.Dense) and len(layer._kernel.shape) == 2:
        if second:
            found.append((layer._kernel, (MODEL, None)))
        elif layer.units % size == 0:
            found += [(layer._kernel, (None, MODEL)), (layer.bias, (MODEL,))]
    elif isinstance(layer, layers.Embedding):
        if layer.output_dim % size == 0:
            found.append((layer._embeddings, (None, MODEL)))
        elif layer.input_dim % size == 0:
            found.append((layer._embeddings, (MODEL, None)))
    return [(variable, spec) for variable, spec in found if variable is not None]


def _second_of_two(model, size):
    """The dense layers that follow another one in a pair, each in one pair at most."""
    seconds = set()
    for first, _, second in chains(model):
        if first.units % size == 0 and first not in seconds:
            seconds.add(second)
    return seconds


def chains(model):
    """Yields each dense layer whose outputs another one alone has, the layers between them, and the other one."""
    nodes, users = nodes_of(model), {}
    uses = collections.Counter(node.operation for node in nodes)
    for node in nodes:
        for tensor in node.input_tensors:
            users.setdefault(id(tensor), []).append(node)
    ends = {id(tensor) for tensor in model.outputs}
    for node in nodes:
        first, between = node.operation, []
        if not isinstance(first, layers.Dense) or uses[first] > 1:
            continue
        while (following := _only_user(node, users, ends)) is not None and isinstance(following.operation, ROWWISE):
            between.append(following.operation)
            node = following
        if following is not None and isinstance(following.operation, layers.Dense) and uses[following.operation] == 1:
            yield first, between, following.operation


def left_divided(model, specs):
    """Yields each operation between two dense layers that are divided by one axis, the first too, and the axis.

    Its outputs stay divided by it along their last dimension.

    Args:
        model: the model.
        specs: what each variable's dimensions are divided by, by its `id`.
    """
    for first, between, second in chains(model):
        axis = specs[id(first._kernel)][-1]
        if axis not in (None, BATCH) and specs[id(second._kernel)][0] == axis:
            yield from ((operation, axis) for operation in (first, *between))


def _only_user(node, users, ends):
    """The one node that a node's only output goes to, or None."""
    (tensor, *others) = node.output_tensors
    found = users.get(id(tensor), [])
    return found[0] if not others and len(found) == 1 and id(tensor) not in ends else None
