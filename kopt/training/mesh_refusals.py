"""What DTensor cannot compute, by the name of the layer or optimizer, before any step is taken."""

import contextlib

import keras
import tensorflow as tf
from keras import tree

from kopt._keras import nodes_of
from kopt.distribute.mesh.devices import as_layout
from kopt.distribute.mesh.layouts import BATCH, divides
from kopt.distribute.mesh.parts import put
from kopt.optimizers import SAM, GradientNoise, Optimizer

layers = keras.layers

CONVOLUTIONS = tuple(
    kind for name, kind in vars(layers).items() if isinstance(kind, type) and "Conv" in name and "LSTM" not in name
)


def check_layers(model, specs, owner):
    """Raises ValueError where layers loop, or convolutions are to be divided.

    Args:
        model: the model.
        specs: what each variable's dimensions are divided by, by its `id`.
        owner: who asks, for errors.
    """
    for layer in model._flatten_layers():
        if isinstance(layer, layers.RNN) and not layer.unroll:
            raise ValueError(
                f"{owner}: layers must not loop over steps, which DTensor cannot, and {layer.name!r} does. Set its "
                "unroll=True, or use kopt.PipelineModel."
            )
        divided = [v for v in layer.variables if set(specs.get(id(v), ())) - {None, BATCH}]
        if divided and isinstance(layer, CONVOLUTIONS):
            raise ValueError(
                f"{owner}: layout must leave convolutions whole, for DTensor cannot divide their filters, and divides "
                f"{divided[0].path!r}. shard='weights' keeps them in parts between steps."
            )


def check_optimizer(optimizer, owner):
    """Raises ValueError where an optimizer looks at batches in ways that DTensor cannot."""
    nodes = [node for _, node in optimizer._nodes()] if isinstance(optimizer, Optimizer) else []
    for node in nodes:
        if isinstance(node, GradientNoise):
            raise ValueError(
                f"{owner}: optimizer must not draw noise, which differs by device, and {type(node).__name__} does. Try "
                "kopt.Model on one device."
            )
        if node.looks and not isinstance(node, SAM):
            raise ValueError(
                f"{owner}: optimizer must ask for gradients alone, and {type(node).__name__} asks more of each batch, "
                "which DTensor does not compute exactly. Try kopt.AdamW or kopt.SAM, or kopt.Model on one device."
            )


@contextlib.contextmanager
def explained(model, task, rows):
    """A context of a first step: what DTensor says that it cannot compute is raised with who asks for it."""
    try:
        yield
    except tf.errors.OpError as error:
        owner, why = type(model).__name__, _reason(error)
        for node in nodes_of(model):
            if (found := _refused(model, node, rows)) is not None:
                kind = type(node.operation).__name__
                raise ValueError(
                    f"{owner}: DTensor cannot compute {node.operation.name!r}, a {kind}: {found} Try another layer, or "
                    "kopt.PipelineModel."
                ) from error
        if task == "train":
            optimizer = getattr(model.optimizer, "inner_optimizer", model.optimizer)
            raise ValueError(
                f"{owner}: DTensor cannot compute a step of {type(optimizer).__name__}, or the loss: {why} Try "
                "kopt.AdamW, or kopt.Model on one device."
            ) from error
        raise


def _refused(model, node, rows):
    """Why DTensor cannot compute a node of a model and its gradient; None where it can."""

    @tf.function(autograph=False)
    def both_ways(*tensors):
        arguments, keywords = node.arguments.fill_in(dict(zip(map(id, node.input_tensors), tensors, strict=True)))
        if getattr(node.operation, "_call_has_training_arg", False):
            keywords["training"] = True
        with tf.GradientTape() as tape:
            tape.watch([x for x in tensors if x.dtype.is_floating])
            outputs = tree.flatten(node.operation(*arguments, **keywords))
        weights = getattr(node.operation, "trainable_variables", [])
        return tape.gradient([x for x in outputs if x.dtype.is_floating], [*tensors, *(v.value for v in weights)])

    tensors = []
    for symbol in node.input_tensors:
        shape = [rows, *(length or 1 for length in symbol.shape[1:])]
        spec = [BATCH if divides(rows, model._mesh) else None, *[None] * (len(shape) - 1)]
        tensors.append(put(tf.zeros(shape, symbol.dtype), as_layout(spec, model._mesh)))
    try:
        with model._gathering():
            both_ways(*tensors)
    except tf.errors.OpError as error:
        return _reason(error)
    return None


def _reason(error):
    """The sentence in what DTensor says."""
    text = str(error).partition("error: ")[2] or str(error)
    return text.strip().partition("\n")[0].partition(" Please file")[0].rstrip(".") + "."
