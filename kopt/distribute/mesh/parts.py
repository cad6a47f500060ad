"""Arrays in parts over a mesh, and whole again, without any communication between devices."""

import numpy as np
import tensorflow as tf
from tensorflow.experimental import dtensor


def put(array, layout):
    """Lays a tensor or an array out over a mesh: each device gets its part alone."""
    return dtensor.pack([array[part(array.shape, layout, place)] for place in _places(layout.mesh)], layout)


def whole(tensor):
    """The numpy array whose parts lie over a mesh."""
    layout = dtensor.fetch_layout(tensor)
    array = np.empty(tensor.shape, tensor.dtype.as_numpy_dtype)
    for place, value in zip(_places(layout.mesh), dtensor.unpack(tensor), strict=True):
        array[part(array.shape, layout, place)] = value.numpy()
    return array


def laid(tensor, layout, back=None):
    """A tensor laid out so, and its gradient as `back`, or in the same way: TensorFlow's own may choose another."""

    @tf.custom_gradient
    def forward(x):
        return dtensor.relayout(x, layout), backward

    def backward(slope):
        if isinstance(slope, tf.IndexedSlices):  # which optimizers take otherwise than dense ones
            return slope
        slope = laid(slope, layout)
        return slope if back is None else laid(slope, back, layout)

    return forward(tensor)


def part(shape, layout, place):
    """The slices of an array that a device has, by its place: a number for each axis of the mesh."""
    slices = []
    for length, axis in zip(shape, layout.sharding_specs, strict=True):
        if axis == dtensor.UNSHARDED:
            slices.append(slice(None))
        else:
            size = length // layout.mesh.dim_size(axis)
            slices.append(slice(place[axis] * size, (place[axis] + 1) * size))
    return tuple(slices)


def _places(mesh):
    """For each device its number along each axis, by the axis' name: devices come in the order of rows."""
    sizes = mesh.shape()
    return [dict(zip(mesh.dim_names, place, strict=True)) for place in np.ndindex(*sizes)]
