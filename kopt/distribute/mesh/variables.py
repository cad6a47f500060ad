"""Keras variables whose values lie in parts over a mesh."""

import numpy as np
import tensorflow as tf
from tensorflow.experimental import dtensor

from kopt.distribute.mesh.parts import put, whole


class MeshVariable(dtensor.DVariable):
    """A variable in parts over a mesh. From outside it looks whole: it takes arrays, and becomes one."""

    def numpy(self):
        """All of it."""
        return whole(self.read_value())

    def __array__(self, dtype=None, copy=None):
        return np.asarray(self.numpy(), dtype)

    def assign(self, value, *args, **kwargs):
        """As in `tf.Variable`, with values that lie anywhere."""
        return super().assign(self._laid_out(value), *args, **kwargs)

    def assign_add(self, delta, *args, **kwargs):
        """As in `tf.Variable`, with values that lie anywhere."""
        return super().assign_add(self._laid_out(delta), *args, **kwargs)

    def assign_sub(self, delta, *args, **kwargs):
        """As in `tf.Variable`, with values that lie anywhere."""
        return super().assign_sub(self._laid_out(delta), *args, **kwargs)

    def scatter_add(self, sparse_delta, *args, **kwargs):
        """As in `tf.Variable`; DTensor has no such operation."""
        return self.assign_add(tf.convert_to_tensor(sparse_delta))

    def scatter_sub(self, sparse_delta, *args, **kwargs):
        """As in `tf.Variable`; DTensor has no such operation."""
        return self.assign_sub(tf.convert_to_tensor(sparse_delta))

    def _laid_out(self, value):
        value = tf.convert_to_tensor(value, self.dtype)
        if tf.executing_eagerly() and not dtensor.is_dtensor(value):
            return put(value, self.layout)
        return dtensor.relayout(value, self.layout)


def lay_out(variables, layout_of):
    """Makes Keras variables lie over a mesh that do not yet.

    They are the same to optimizers that were built for them.

    Args:
        variables: Keras variables.
        layout_of: returns a DTensor layout for each.
    """
    for variable in variables:
        old = variable._value
        if isinstance(old, MeshVariable):
            continue
        value = put(old.numpy(), layout_of(variable))
        new = MeshVariable(value, trainable=variable.trainable, name=variable.name)
        new._unique_id = old._unique_id  # by which Keras's optimizers know it
        variable._initialize(new)
