"""Meshes of DTensor: of which devices, and layouts over them."""

import math
from typing import Any

import tensorflow as tf
from tensorflow.experimental import dtensor

from kopt.distribute.mesh.layouts import check_sizes


def mesh_of(sizes, devices, owner):
    """Returns a DTensor mesh.

    Args:
        sizes: how many devices lie along each axis, by its name.
        devices: their names, row by row, or None for the first GPUs, or logical CPUs where there is no GPU.
        owner: who asks, for errors.

    Raises:
        TypeError: these are no sizes, or no names.
        ValueError: a size is out of its range, or there are no such devices, or not as many.
    """
    check_sizes(sizes, owner)
    known = [f"{device.device_type}:{device.name.rpartition(':')[2]}" for device in tf.config.list_logical_devices()]
    number = math.prod(sizes.values())
    if devices is None:
        kind = "GPU" if any(name.startswith("GPU") for name in known) else "CPU"
        names = [name for name in known if name.startswith(kind)][:number]
    elif isinstance(devices, list | tuple):
        names = [str(name).rpartition("device:")[2].lstrip("/").upper() for name in devices]
        if missing := [name for name in names if name not in known]:
            raise ValueError(f"{owner}: devices must be among {', '.join(known)}, got {missing[0]!r}.")
    else:
        raise TypeError(f"{owner}: devices must be a list of names, got {devices!r}.")
    if len(set(names)) != number or len(names) != number:
        raise ValueError(
            f"{owner}: devices must be {number} different ones for a mesh of {sizes}, got {len(names)}: "
            f"{', '.join(names)}. A CPU becomes several by tf.config.set_logical_device_configuration."
        )
    if len({name.partition(":")[0] for name in names}) > 1:
        raise ValueError(f"{owner}: devices must be of one type, got {', '.join(names)}.")
    return dtensor.create_mesh([(name, int(size)) for name, size in sizes.items()], devices=names)


def as_layout(spec, mesh):
    """DTensor's layout."""
    layout: Any = dtensor.Layout
    return layout([dtensor.UNSHARDED if axis is None else axis for axis in spec], mesh)
