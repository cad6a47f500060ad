"""Arrays in files, of which there is always a whole one."""

import os

import numpy as np


def write_arrays(path, arrays):
    """Writes arrays by name to a file of NumPy's, beside it first, and puts it in its place when it is on the disk."""
    beside = path.with_name(path.name + ".partial")
    with open(beside, "wb") as file:
        np.savez(file, **{name: _bits(array) for name, array in arrays.items()})
        file.flush()
        os.fsync(file.fileno())
    os.replace(beside, path)


def _bits(array):
    """An array in a type that numpy itself knows: bfloat16 it does not."""
    return array.view(f"u{array.dtype.itemsize}") if array.dtype.kind == "V" else array


def read_as(array, dtype):
    """An array from such a file in the dtype that it had."""
    return array.view(dtype) if dtype.kind == "V" else array
