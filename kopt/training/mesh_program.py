"""Steps of a model over a mesh of devices, compiled by DTensor: one call for each batch."""

import contextlib
from typing import Any

import tensorflow as tf
from keras import tree
from tensorflow.experimental import dtensor

from kopt.distribute.mesh.devices import as_layout
from kopt.distribute.mesh.layouts import BATCH, divides
from kopt.distribute.mesh.operations import check_graph, put_otherwise
from kopt.distribute.mesh.parts import put, whole
from kopt.training.batch import Batch, as_they_are
from kopt.training.epochs import Pace
from kopt.training.loop import Engine
from kopt.training.mesh_refusals import explained
from kopt.training.rows import Part


class MeshBatch(Batch):
    """A batch over a mesh: weights that lie in parts for the sake of memory alone are gathered for each look."""

    def _looked(self, weights, through=as_they_are):
        pairs = zip(self.variables, weights, strict=True)
        return super()._looked([self.model._gathered(variable, value) for variable, value in pairs], through)

    def _own(self, variable, value, *_):
        return self.model._gathered(variable, value)

    def differentiate(self, weights):
        """As in `Batch`; dense gradients lie as their weights do, whatever the optimizer makes of them."""
        loss, grads = super().differentiate(weights)
        pairs = zip(self.variables, grads, strict=True)
        return loss, [dtensor.relayout(g, v.value.layout) if isinstance(g, tf.Tensor) else g for v, g in pairs]

    def _keep(self, changes):
        super()._keep([(variable, self.model._replicated(value)) for variable, value in changes])


class MeshProgram:
    """A model's step for a task, on one batch in a call, whatever the number of its rows.

    Args:
        model: a `kopt.ShardedModel`.
        task: "train", "test" or "predict".
        structure: of a batch, with None where it has none.

    Attributes:
        pace: of calls, which take one step each.
        joins: as in `kopt.training.epochs.Predictions`.
    """

    joins = True

    def __init__(self, model, task, structure):
        self.model, self.task, self._structure = model, task, structure
        self.pace = Pace(1)
        self._compiled = tf.function(self._traced, autograph=False)
        self._known = set()

    def __call__(self, data, size, jit, planned):
        """Takes a step.

        Args:
            data: a `Part` of rows, of which the first batch is taken, or an iterator over batches.
            size: rows in a batch of a `Part`.
            jit: False.
            planned: makes no difference.

        Returns:
            The logs or outputs; after the number of steps, 0 or 1, where `data` is an iterator.
        """
        if isinstance(data, Part):
            rows = data.order[data.first * size : min((data.first + 1) * size, data.rows)]
            return self.step([tf.gather(tensor, rows) for tensor in data.tensors])
        batch = data.get_next_as_optional()
        if not batch.has_value():
            return 0, self.model.get_metrics_result()
        parts = tree.flatten(batch.get_value())
        return 1, self.step([x for x in parts if not isinstance(x, tf.experimental.Optional)])

    def step(self, tensors):
        """Takes a step on a batch's tensors, and returns what it returns, off the mesh."""
        signature = tuple((tuple(x.shape), x.dtype) for x in tensors)
        placed = [self._rows(x) for x in tensors]
        if signature in self._known:
            return tree.map_structure(_off, self._compiled(*placed))
        check_graph(self._compiled.get_concrete_function(*placed).graph, type(self.model).__name__)
        with explained(self.model, self.task, tensors[0].shape[0]):
            found = self._compiled(*placed)
        self._known.add(signature)
        return tree.map_structure(_off, found)

    def _rows(self, x):
        """A tensor whose rows are shared out, or all on each device where they do not divide."""
        if not isinstance(x, tf.Tensor):
            raise ValueError(
                f"{type(self.model).__name__}: x, y and sample_weight must be dense tensors, got {type(x).__name__}."
            )
        mesh = self.model._mesh
        return put(x, as_layout([BATCH if divides(x.shape[0], mesh) else None, *[None] * (len(x.shape) - 1)], mesh))

    def _packed(self, tensors):
        rest = iter(tensors)
        flat = [None if part is None else next(rest) for part in tree.flatten(self._structure)]
        return tree.pack_sequence_as(self._structure, flat)

    def _traced(self, *tensors):
        model: Any = self.model
        step = getattr(model, f"{self.task}_step")
        with (
            put_otherwise,
            model._tracing(tensors),
            contextlib.nullcontext() if self.task == "train" else model._gathering(),
        ):
            found = step(self._packed(tensors))
        if self.task == "predict":
            return found
        return tree.map_structure(model._replicated, found)


class MeshEngine(Engine):
    """What a `kopt.ShardedModel` keeps of its programs."""

    def program(self, model, task, data):
        """The program for a task on data of these types, from the cache or made anew."""
        specs = [tf.TensorSpec([data_rows(data), *spec.shape[1:]], spec.dtype) for spec in data.specs]
        program = self._programs.find((task, *data.key), lambda: MeshProgram(model, task, data.structure))
        model._ready(task, program._packed(specs))
        return program


def data_rows(data):
    """Rows of a batch of data, where that is known."""
    return getattr(data, "batch_size", None)


def step_on(model, task, batches):
    """Takes a step on the first of some batches, and returns its logs; or returns the outputs for all of them."""
    found = []
    for batch in batches:
        batch = tree.map_structure(_tensor, tree.lists_to_tuples(batch))
        structure = tree.map_structure(lambda x: None if x is None else "tensor", batch)
        tensors = [x for x in tree.flatten(batch) if x is not None]
        found.append(model._engine.program(model, task, Single(structure, tensors)).step(tensors))
        if task != "predict":
            break
    return found[0] if len(found) == 1 else tree.map_structure(lambda *parts: tf.concat(parts, 0), *found)


class Single:
    """A batch by itself, as a program wants to know of data.

    Args:
        structure: of the batch, with None where it has none.
        tensors: in it.
    """

    def __init__(self, structure, tensors):
        self.structure, self.specs = structure, [tf.TensorSpec(x.shape, x.dtype) for x in tensors]
        self.batch_size = tensors[0].shape[0]
        self.key = "single", repr(structure), *(tf.TensorSpec([None, *x.shape[1:]], x.dtype) for x in tensors)


def _tensor(x):
    """What Keras has in a batch, as a tensor or None."""
    if isinstance(x, tf.experimental.Optional):
        x = x.get_value() if x.has_value() else None
    return x if x is None else tf.convert_to_tensor(x)


def _off(x):
    """A tensor as it is without a mesh."""
    return tf.constant(whole(x)) if dtensor.is_dtensor(x) else x
