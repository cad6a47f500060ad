"""The GPUs of a machine, shared out among processes: each has one for itself, as far as there are enough."""

import contextlib
import functools
import itertools
import os
import pathlib
import tempfile

import tensorflow as tf

from kopt._forks import tensorflow_has_started
from kopt._locks import lock

_held = contextlib.ExitStack()
"""Files that this process keeps open and locked: what it has claimed."""


def count():
    """How many there are. To ask starts nothing."""
    return len(tf.config.list_physical_devices("GPU"))


@functools.cache
def own():
    """Claims a GPU, and returns its name; or None where TensorFlow will see no other from now on, or there is none."""
    if not (gpus := tf.config.list_physical_devices("GPU")):
        return None
    user = os.getuid() if hasattr(os, "getuid") else "all"
    number = claim(range(len(gpus)), pathlib.Path(tempfile.gettempdir()) / f"kopt-gpus-{user}")
    if tensorflow_has_started():
        return f"GPU:{number}"
    tf.config.set_visible_devices(gpus[number], "GPU")
    tf.config.experimental.set_memory_growth(gpus[number], True)  # others may use it after all
    return None


def claim(names, directory):
    """Returns the one among the names that the fewest processes have claimed, and claims it as long as this one lives.

    Args:
        names: file names.
        directory: where the claims of all processes are.
    """
    directory.mkdir(mode=0o700, exist_ok=True)
    for turn in itertools.count():
        for name in names:
            file = _held.enter_context(open(directory / f"{name}-{turn}", "w"))  # noqa: SIM115
            try:
                lock(file, wait=False)
            except OSError:
                file.close()
            else:
                return name
