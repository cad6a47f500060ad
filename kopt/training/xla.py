"""Whether it pays to compile with XLA."""

import tensorflow as tf

SECONDS_TO_COMPILE = 1.0, 3e-3
"""For any program, and for each of its operations: two cores of a Xeon at 2.8 GHz."""

SECONDS_SAVED = 1e-6
"""By XLA in a step, for each operation that is not called one by one."""

CONVOLUTIONS = {"Conv2D", "Conv3D", "DepthwiseConv2dNative", "Conv2DBackpropInput"}
"""Operations for which TensorFlow has faster kernels than XLA on the CPU: in a loop ten times faster."""


def is_slow(graph):
    """Whether XLA is slower than TensorFlow at a step's graph, and slower still at a loop of it."""
    on_cpu = not tf.config.list_logical_devices("GPU")
    return on_cpu and any(op.type in CONVOLUTIONS for op in graph.get_operations())


def pays(steps, graph):
    """Whether compiling a step's graph with XLA takes less time than it saves.

    Args:
        steps: how many are planned.
        graph: the step's.
    """
    operations = len(graph.get_operations())
    once, each = SECONDS_TO_COMPILE
    return steps * SECONDS_SAVED * operations > once + each * operations and not is_slow(graph)
