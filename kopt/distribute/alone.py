"""An optimizer's step on a replica as if there were one device, so that any optimizer takes the same step there."""

import contextlib

import keras
import tensorflow as tf
from tensorflow.python.distribute import distribute_lib  # pyright: ignore[reportMissingImports]

from kopt._backend import replicas, sum_over_replicas
from kopt.optimizers import Optimizer


def applying(optimizer, variables):
    """Returns `optimizer.apply` for gradients of a replica's share of the loss.

    Keras's optimizers clip, accumulate, average and look for infinities in what a replica has, and add up after that.
    Here gradients are summed first; then each replica does, to its own copy of everything, what one device would.
    kopt's optimizers do so themselves.

    Args:
        optimizer: a Keras optimizer, kopt's or not, or a loss-scale wrapper around one.
        variables: of the model that it trains.
    """
    if replicas() == 1 or isinstance(optimizer, Optimizer):
        return optimizer.apply

    def apply(grads, trainable_variables):
        grads = sum_over_replicas(grads)
        with _alone(variables, list(wrapped(optimizer))):
            optimizer.apply(grads, trainable_variables)

    return apply


def wrapped(optimizer):
    """An optimizer, then those that loss-scale wrappers have within."""
    while optimizer is not None:
        yield optimizer
        optimizer = getattr(optimizer, "inner_optimizer", None)


@contextlib.contextmanager
def _alone(variables, optimizers):
    """A context of a replica in which its copies of variables are all there is, and `tf.distribute` knows no strategy.

    Replicas take turns only where they reduce, and nothing in here does.
    """
    seeds = [x.state for o in optimizers for x in vars(o).values() if isinstance(x, keras.random.SeedGenerator)]
    own = [variable for optimizer in optimizers for variable in optimizer.variables]
    found = {id(v): v for v in (*variables, *own, *seeds) if isinstance(v, keras.Variable)}.values()
    shared = [(v, v._value) for v in found if isinstance(v._value, tf.distribute.DistributedValues)]
    strategies = [(optimizer, optimizer._distribution_strategy) for optimizer in optimizers]
    for variable, value in shared:
        variable._value = value._get()
    for optimizer, _ in strategies:
        object.__setattr__(optimizer, "_distribution_strategy", distribute_lib._get_default_strategy())
    distribute_lib._push_per_thread_mode(distribute_lib._get_default_replica_mode())
    try:
        yield
    finally:
        distribute_lib._pop_per_thread_mode()
        for optimizer, strategy in strategies:
            object.__setattr__(optimizer, "_distribution_strategy", strategy)
        for variable, value in shared:
            variable._value = value
