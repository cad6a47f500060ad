"""The GPUs of a machine, shared out among processes: each has one for itself, as far as there are enough."""

import functools
import os
import pathlib
import tempfile

import tensorflow as tf

from kopt._forks import tensorflow_has_started
from kopt.distribute.claims import claim


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
