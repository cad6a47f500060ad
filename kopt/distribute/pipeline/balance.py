"""Stages that take the same time, as far as the layers allow."""

import time
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from keras import tree

from kopt._keras import nodes_of
from kopt.distribute.pipeline.graph import crossing

ROWS = 32
"""Rows with which layers are measured."""

LENGTH = 32
"""What stands for a length that a model leaves open."""

SLACK = 1.05
"""Among cuts whose slowest stage takes at most so much of the least time, the one with the least traffic is taken."""


def seconds(model, repeats=3):
    """Measures each node of a functional model, forward and backward: the least of some times, in seconds.

    Rows are zeros for integers, and normal numbers; nothing in the model changes.
    """
    generator = np.random.default_rng(0)
    found, env = [], {id(tensor): _rows(tensor, generator) for tensor in model.inputs}
    for node in nodes_of(model):
        mapping = [(variable, tf.identity(variable.value)) for variable in getattr(node.operation, "variables", ())]
        taken: list[float] = []
        outputs: Any = None
        for _ in range(repeats + 1):  # the first one may have to compile
            with keras.StatelessScope(mapping, collect_losses=True):
                start = time.perf_counter()
                outputs = _both_ways(node, env, [x for _, x in mapping])
                taken.append(time.perf_counter() - start)
        env |= {id(symbol): x for symbol, x in zip(node.output_tensors, tree.flatten(outputs), strict=True)}
        found.append(min(taken[1:]))
    return found


def _rows(tensor, generator):
    shape = [ROWS, *(length or LENGTH for length in tensor.shape[1:])]
    if "float" in tensor.dtype:
        return tf.cast(generator.normal(size=shape), tensor.dtype)
    return tf.fill(shape, "") if tensor.dtype == "string" else tf.zeros(shape, tensor.dtype)


def _both_ways(node, env, weights):
    """A node's outputs, after the way back."""
    arguments, keywords = node.arguments.fill_in(env)
    if getattr(node.operation, "_call_has_training_arg", False):
        keywords["training"] = True
    sources = [x for x in (*weights, *(env[id(t)] for t in node.input_tensors)) if x.dtype.is_floating]
    with tf.GradientTape(watch_accessed_variables=False) as tape:
        tape.watch(sources)
        outputs = node.operation(*arguments, **keywords)
    floats = [x for x in tree.flatten(outputs) if x.dtype.is_floating]
    slopes = tape.gradient(floats, sources) if floats and sources else []
    for x in (*tree.flatten(outputs), *(slope for slope in slopes if slope is not None)):
        tf.convert_to_tensor(x).numpy()  # waits for it
    return outputs


def cheapest_cuts(costs, stages, traffic=None, allowed=None):
    """Returns after how many items each stage but the last ends, for the least cost of the dearest stage.

    Args:
        costs: of items in a line.
        stages: how many, each with an item at least.
        traffic: what it costs to cut after so many items, from 0; decides among cuts that are about as good.
        allowed: after how many items one may cut; all where None.
    """
    items = len(costs)
    total = np.concatenate([[0.0], np.cumsum(costs)])
    traffic = np.zeros(items + 1) if traffic is None else np.asarray(traffic, float)
    free = np.full(items + 1, allowed is None)
    free[[0, items, *(allowed or ())]] = True

    def best(cost):
        """The least cost of each number of items in each number of stages, and the last cut that brings it."""
        least, came = np.where(np.arange(items + 1) == 0, 0.0, np.inf), []
        for _ in range(stages):
            now, cuts = np.full(items + 1, np.inf), np.zeros(items + 1, int)
            for end in range(1, items + 1):
                if free[end]:
                    each = cost(least[:end], np.arange(end), end)
                    cuts[end] = np.argmin(each)
                    now[end] = each[cuts[end]]
            least, came = now, [*came, cuts]
        return least[items], came

    bound, _ = best(lambda least, starts, end: np.maximum(least, total[end] - total[starts]))

    def traffic_within(least, starts, end):
        return np.where(total[end] - total[starts] <= bound * SLACK, least + traffic[starts], np.inf)

    _, came = best(traffic_within)
    ends = [items]
    for cuts in reversed(came):
        ends.insert(0, int(cuts[ends[0]]))
    return ends[1:-1]


def balanced(model, stages, owner):
    """Returns after how many nodes each stage but the last ends, so that the slowest takes the least time.

    Raises:
        ValueError: the model has fewer layers than stages.
    """
    nodes = nodes_of(model)
    last = {node.operation.name: number for number, node in enumerate(nodes, 1)}
    if stages > len(last):
        raise ValueError(
            f"{owner}: stages must be at most {len(last)}, the number of layers of {model.name}, got {stages}."
        )
    if stages == 1:
        return []
    return cheapest_cuts(seconds(model), stages, crossing(model), sorted(last.values()))
