"""Operations that DTensor cannot compute: put otherwise, or refused."""

import tensorflow as tf

from kopt._replaced import Replaced


def _where(condition, x=None, y=None, name=None):
    """`tf.where` with a condition of as many axes as the rest has: with fewer, DTensor ends the process."""
    if x is None or y is None:
        return _theirs(condition, x, y, name)
    condition, x, y = tf.convert_to_tensor(condition), *_alike(x, y)
    missing = max(x.shape.rank or 0, y.shape.rank or 0) - (condition.shape.rank or 0)
    if missing > 0:
        condition = tf.reshape(condition, tf.concat([tf.ones(missing, tf.int32), tf.shape(condition)], 0))
    return _theirs(condition, x, y, name)


def _alike(x, y):
    """Both as tensors, of which one may be a number of Python's."""
    if tf.is_tensor(x) or not tf.is_tensor(y):
        x = tf.convert_to_tensor(x)
        return x, tf.convert_to_tensor(y, x.dtype)
    return tf.convert_to_tensor(x, y.dtype), y


_theirs = tf.where

put_otherwise = Replaced(tf, where=_where)
"""A context of a trace for DTensor."""


def check_graph(graph, owner):
    """Raises ValueError where a graph has an operation that would end the process."""
    for each in _graphs(graph):
        for op in each.get_operations():
            if op.type == "SelectV2" and op.inputs[0].shape.rank == 0 and op.outputs[0].shape.rank != 0:
                raise ValueError(
                    f"{owner}: no condition of tf.where may be a scalar beside tensors, which DTensor cannot compute, "
                    f"and that of {op.name} is. Give it as many axes: tf.reshape(condition, [1] * rank)."
                )


def _graphs(graph):
    """A graph, and those of the functions in it."""
    return [graph, *(function.graph for function in graph._functions.values() if hasattr(function, "graph"))]
