"""DTensor as TensorFlow has it computes wrong updates: what it does wrong is switched off, and that is tested."""

import functools
import os

import numpy as np
import tensorflow as tf
from tensorflow.dtensor.python import api  # pyright: ignore[reportMissingImports]
from tensorflow.experimental import dtensor
from tensorflow.python.eager import context  # pyright: ignore[reportMissingImports]

from kopt.distribute.mesh.devices import as_layout
from kopt.distribute.mesh.parts import put, whole

SWITCH = "DTENSOR_ENABLE_COMBINE_ALL_REDUCES_OPTIMIZATION"
"""An environment variable that TensorFlow reads once, at DTensor's first function. With "0" its results are right."""

NEWER = 1
"""What TensorFlow says where its newer bridge to XLA has been asked for; 0 and 2 are "unspecified" and "no"."""


def switch_off(owner):
    """Switches off the pass of DTensor's compiler that joins sums over devices, and with them other things.

    Raises:
        RuntimeError: DTensor has been used with it.
    """
    if os.environ.get(SWITCH) == "0":
        return
    if api._dtensor_singleton is not None:
        raise RuntimeError(
            f"{owner}: {SWITCH} must be '0' before DTensor's first use in a process, which has been: TensorFlow would "
            f"compute wrong updates. Make the {owner} first, or set os.environ[{SWITCH!r}] = '0' at the program's "
            "beginning."
        )
    os.environ[SWITCH] = "0"


@functools.cache
def check(owner, devices):
    """Takes a step of a small network on a mesh of devices and beside it, and compares.

    DTensor's first use has TensorFlow's newer bridge to XLA compile whatever comes after, in the whole process, and in
    older versions that knows fewer operations: it is as it was afterwards.

    Args:
        owner: who asks, for errors.
        devices: the names of some, two or more.

    Raises:
        RuntimeError: they differ.
    """
    number, newer = len(devices), context.context().enable_mlir_bridge == NEWER
    mesh = dtensor.create_mesh([("rows", number)], devices=list(devices))
    off = max(float(np.abs(a - b).max()) for a, b in zip(_step(mesh, 2 * number), _step(None, 2 * number), strict=True))
    context.context().enable_mlir_bridge = newer
    if not off < 1e-4:
        raise RuntimeError(
            f"{owner}: DTensor must compute what one device does, and a step on {', '.join(devices)} is off by "
            f"{off:.1e}. {SWITCH} must be '0' before DTensor's first use: set it at the program's beginning."
        )


def _step(mesh, rows):
    """The weights of a network after one step of Adam with a penalty: on a mesh, or where None on one device."""
    rng = np.random.default_rng(0)
    x, y = (rng.normal(size=(rows, 4)).astype("float32") for _ in "xy")
    start = [rng.normal(size=shape).astype("float32") for shape in ((4, 8), (8,), (8, 4))]

    def lay(array, spec):
        return tf.constant(array) if mesh is None else put(array, as_layout(spec, mesh))

    def variable(array):
        value = lay(array, [None] * array.ndim)
        return tf.Variable(value) if mesh is None else dtensor.DVariable(value)

    x, y = (lay(each, ["rows", None]) for each in (x, y))
    weights = [variable(array) for array in start]
    slots = [[variable(np.zeros_like(array)) for array in start] for _ in "mv"]

    @tf.function(autograph=False)
    def step(x, y):
        a, b, c = weights
        with tf.GradientTape() as tape:
            error = tf.matmul(tf.tanh(tf.matmul(x, a) + b), c) - y
            loss = tf.reduce_mean(error**2) + 0.01 * tf.add_n([tf.reduce_sum(w**2) for w in weights])
        for w, m, v, g in zip(weights, *slots, tape.gradient(loss, weights), strict=True):
            m.assign_add(0.1 * (g - m))
            v.assign_add(0.01 * (g * g - v))
            w.assign_sub(0.1 * m / (tf.sqrt(v) + 1e-3))

    step(x, y)
    return [whole(w.read_value()) if mesh is not None else w.numpy() for w in weights]
