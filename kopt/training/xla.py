"""Whether it pays to compile with XLA."""

import tensorflow as tf

SECONDS_TO_COMPILE = 0.3, 2.5e-3
"""For any program, and for each of its operations: `python benchmarks/xla.py` on two cores of an AMD EPYC."""

SECONDS_SAVED = 1e-6
"""By XLA in a step, for each operation that is not called one by one."""

CONVOLUTIONS = {"Conv2D", "Conv3D", "DepthwiseConv2dNative", "Conv2DBackpropInput"}
"""Operations for which TensorFlow has faster kernels than XLA on the CPU: in a loop ten times faster."""


def operations_of(graph):
    """The types of a step's operations."""
    return [operation.type for operation in graph.get_operations()]


def operations_of_loop(graph):
    """The types of the operations in the body of a graph's loop over steps."""
    (loop,) = (op for op in graph.get_operations() if op.type in ("While", "StatelessWhile"))
    body = loop.get_attr("body").name
    functions = {function.signature.name: function for function in graph.as_graph_def().library.function}
    return [node.op for node in functions[body].node_def]


def is_slow(operations):
    """Whether XLA is slower than TensorFlow at a step of these operations, and slower still at a loop of it."""
    on_cpu = not tf.config.list_logical_devices("GPU")
    return on_cpu and not CONVOLUTIONS.isdisjoint(operations)


def pays(steps, operations):
    """Whether compiling a step with XLA takes less time than it saves.

    Args:
        steps: how many are planned.
        operations: the types of the step's.
    """
    once, each = SECONDS_TO_COMPILE
    n = len(operations)
    return steps * SECONDS_SAVED * n > once + each * n and not is_slow(operations)
