"""Whether it pays to compile with XLA."""

import tensorflow as tf

SECONDS_TO_COMPILE = 1.0, 3e-3
"""For any program, and for each of its operations: two cores of a Xeon at 2.8 GHz."""

SECONDS_SAVED = 1e-6
"""By XLA in a step, for each operation that is not called one by one."""

NOT_ON_CPU = {"Conv2D", "Conv3D", "DepthwiseConv2dNative", "Conv2DBackpropInput", "Conv2DBackpropFilter"}
"""Operations for which TensorFlow has faster kernels than XLA on the CPU."""


def pays(steps, graph):
    """Whether compiling a step's graph with XLA takes less time than it saves.

    Args:
        steps: how many are planned.
        graph: the step's.
    """
    operations = graph.get_operations()
    if not tf.config.list_logical_devices("GPU") and any(op.type in NOT_ON_CPU for op in operations):
        return False
    once, each = SECONDS_TO_COMPILE
    return steps * SECONDS_SAVED * len(operations) > once + each * len(operations)
