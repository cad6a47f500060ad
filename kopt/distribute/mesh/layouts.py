"""Which axis of a mesh each dimension of each variable is divided by."""

import re
from numbers import Integral

import keras

from kopt._checks import check_range

BATCH, MODEL = "batch", "model"
"""The axis that rows of a batch are shared out by, and the one that presets divide weights by."""


class Axes:
    """The axes of a mesh, in the manner of DTensor's meshes.

    Args:
        sizes: how many devices lie along each, by its name.

    Attributes:
        dim_names: the names.
    """

    def __init__(self, sizes):
        self._sizes, self.dim_names = {name: int(size) for name, size in sizes.items()}, list(sizes)

    def dim_size(self, axis):
        """How many devices lie along an axis."""
        return self._sizes[axis]

    def shape(self):
        """The sizes in order."""
        return list(self._sizes.values())


def check_sizes(sizes, owner):
    """Raises TypeError or ValueError where these are no sizes of a mesh by the names of its axes."""
    if not isinstance(sizes, dict) or not sizes or not all(isinstance(name, str) for name in sizes):
        raise TypeError(f"{owner}: mesh must be a dict of sizes by names of axes, as {{'batch': 2}}, got {sizes!r}.")
    for name, size in sizes.items():
        check_range(owner, "[1, inf)", kind=Integral, **{f"mesh[{name!r}]": size})


def as_dict(layout, mesh, owner):
    """Returns a layout as lists by regular expressions, or None.

    Args:
        layout: None, a dict or a `keras.distribution.LayoutMap`.
        mesh: the mesh.
        owner: who asks, for errors.

    Raises:
        TypeError: `layout` is none.
        ValueError: a `LayoutMap` is of another mesh.
    """
    if isinstance(layout, keras.distribution.LayoutMap):
        _check_mesh(layout.device_mesh, mesh, owner)
        layout = {pattern: each.axes for pattern, each in layout.items()}
    if layout is None:
        return None
    if not isinstance(layout, dict):
        raise TypeError(
            f"{owner}: layout must be None, 'tensor_parallel', a dict of tuples by regular expressions or a "
            f"keras.distribution.LayoutMap, got {layout!r}."
        )
    return {pattern: list(spec) if isinstance(spec, tuple) else spec for pattern, spec in layout.items()}


def specs_of(variables, layout, mesh, owner):
    """Returns for each variable the names of the axes that its dimensions are divided by, or None, in a tuple.

    Args:
        variables: Keras variables.
        layout: None, or such entries by regular expressions, which match whole paths.
        mesh: the mesh.
        owner: who asks, for errors.

    Raises:
        TypeError: an entry is none.
        ValueError: an expression matches no variable, or a tuple does not fit one.
    """
    layout = layout or {}
    paths = [variable.path for variable in variables]
    for pattern in layout:
        if not any(re.fullmatch(pattern, path) for path in paths):
            raise ValueError(
                f"{owner}: each pattern of layout must match a variable's whole path, and {pattern!r} matches none of "
                f"{', '.join(paths)}."
            )
    return [_spec(variable, layout, mesh, owner) for variable in variables]


def _spec(variable, layout, mesh, owner):
    found = [pattern for pattern in layout if re.fullmatch(pattern, variable.path)]
    if len(found) > 1:
        raise ValueError(f"{owner}: one pattern of layout at most must match {variable.path!r}, got {found}.")
    if not found:
        return (None,) * len(variable.shape)
    spec = layout[found[0]]
    if not isinstance(spec, list | tuple):
        raise TypeError(f"{owner}: layout[{found[0]!r}] must be a tuple of names of axes, or None, got {spec!r}.")
    check_spec(variable, tuple(spec), mesh, owner)
    return tuple(spec)


def check_spec(variable, spec, mesh, owner):
    """Raises ValueError where a variable cannot be divided so."""
    what, shape = f"{owner}: the layout of {variable.path!r}, of shape {tuple(variable.shape)},", tuple(variable.shape)
    if len(spec) != len(shape):
        raise ValueError(f"{what} must have {len(shape)} entries, got {spec}.")
    axes = [axis for axis in spec if axis is not None]
    if unknown := [axis for axis in axes if axis not in mesh.dim_names]:
        raise ValueError(f"{what} must name axes of the mesh, {', '.join(mesh.dim_names)}, got {unknown[0]!r}.")
    if len(set(axes)) < len(axes):
        raise ValueError(f"{what} must name an axis once, got {spec}.")
    for length, axis in zip(shape, spec, strict=True):
        if axis is not None and length % mesh.dim_size(axis):
            raise ValueError(
                f"{what} must divide evenly, and {length} does not by {axis!r}, of size {mesh.dim_size(axis)}. Try "
                "another dimension, or None."
            )


def _check_mesh(given, mesh, owner):
    if given is not None and dict(zip(given.axis_names, given.shape, strict=True)) != _sizes(mesh):
        raise ValueError(
            f"{owner}: the device mesh of a LayoutMap must be as mesh, {_sizes(mesh)}, got "
            f"{dict(zip(given.axis_names, given.shape, strict=True))}. Try LayoutMap(None)."
        )


def _sizes(mesh):
    return dict(zip(mesh.dim_names, mesh.shape(), strict=True))


def divides(rows, mesh):
    """Whether so many rows can be shared out."""
    return BATCH in mesh.dim_names and rows % mesh.dim_size(BATCH) == 0


def also_by(spec, shape, axis, mesh):
    """The spec with an axis for the first dimension that is whole and divides by it; as it is where there is none."""
    if axis in spec:
        return spec
    for number, (length, other) in enumerate(zip(shape, spec, strict=True)):
        if other is None and length and length % mesh.dim_size(axis) == 0:
            return (*spec[:number], axis, *spec[number + 1 :])
    return spec


def without(spec, axis):
    """The spec with an axis left out."""
    return tuple(None if each == axis else each for each in spec)


def owner_of(slot, weights):
    """The weight that an optimizer's variable is about and has the shape of, by its name, or None."""
    name, shape = slot.path.rpartition("/")[2], tuple(slot.shape)
    alike = [weight for weight in weights if tuple(weight.shape) == shape]
    owners = [weight for weight in alike if name.startswith(weight.path.replace("/", "_") + "_")]
    return max(owners, key=lambda weight: len(weight.path), default=None)
