"""Whether a model, its optimizer and its strategy belong together: what TensorFlow meets with silence or riddles."""

import keras
import tensorflow as tf

from kopt.distribute.activity import sums_activity
from kopt.distribute.alone import wrapped

RUNS_ON = "a MirroredStrategy, MultiWorkerMirroredStrategy or OneDeviceStrategy of tf.distribute"

MIRRORED = tf.distribute.MirroredStrategy | tf.distribute.MultiWorkerMirroredStrategy
"""Strategies whose replicas hold all weights, and share out the rows of each batch."""

_collective = []  # the strategy of this process that sums by TensorFlow's default, if there is one


def check_keras_distribution(owner):
    """Raises ValueError where `keras.distribution` was told something, of which it does nothing on TensorFlow."""
    if (found := keras.distribution.distribution()) is not None:
        raise ValueError(
            f"{owner}: keras.distribution must be unset, for on TensorFlow it does nothing, got "
            f"{type(found).__name__}. Make the model within the scope of a tf.distribute.MirroredStrategy."
        )


def strategy_of(model, owner):
    """Returns the strategy in whose scope a model was made, or None for one device.

    Raises:
        ValueError: kopt does not run on it; another scope is entered; or a part of the model, or its optimizer, was
            made elsewhere.
    """
    check_keras_distribution(owner)
    strategy, plain = model.distribute_strategy, not tf.distribute.has_strategy()
    if not plain and tf.distribute.get_strategy() is not strategy:
        raise ValueError(
            f"{owner}: a model must be made within the scope that it is used in. Call fit outside of any scope, and "
            "make the model, its layers and its optimizer within that of the strategy."
        )
    if strategy is tf.distribute.get_strategy() and plain:
        return None
    if not isinstance(strategy, MIRRORED | tf.distribute.OneDeviceStrategy):
        raise ValueError(f"{owner}: the model's strategy must be {RUNS_ON}, got {type(strategy).__name__}.")
    if isinstance(strategy, MIRRORED):
        _check_variables(model, strategy, owner)
        _check_optimizer(model, strategy, owner)
        check_collectives(strategy, owner)
        check_layers(model, strategy, owner)
    return strategy


def _check_variables(model, strategy, owner):
    for variable in model.variables:
        value = variable._value
        if not isinstance(value, tf.distribute.DistributedValues) or value.distribute_strategy is not strategy:
            raise ValueError(
                f"{owner}: all layers must be made within the scope of the model's strategy, and {variable.path!r} was "
                "made outside. Build the whole model within `with strategy.scope():`."
            )


def _check_optimizer(model, strategy, owner):
    for optimizer in wrapped(model.optimizer):
        if optimizer._distribution_strategy is not strategy:
            raise ValueError(
                f"{owner}: the optimizer must be made within the scope of the model's strategy, and "
                f"{type(optimizer).__name__} was made outside. Call compile within `with strategy.scope():`."
            )


def check_layers(model, strategy, owner):
    """Raises ValueError where the losses of layers over several replicas are neither means nor known to be sums."""
    if strategy is None or strategy.num_replicas_in_sync == 1 or not sums_activity():
        return
    for layer in model._flatten_layers():
        if layer.activity_regularizer is not None:
            raise ValueError(
                f"{owner}: layers must have no activity_regularizer over several replicas, got one in {layer.name!r}. "
                f"Keras {keras.__version__} sums its loss over rows; a later one takes the mean."
            )


def loops(strategy):
    """Whether replicas can sum within a loop of a graph. By TensorFlow's default, collectives, they cannot."""
    mirrored = isinstance(strategy, MIRRORED)
    return not (mirrored and type(strategy.extended._cross_device_ops).__name__ == "CollectiveAllReduce")


def check_collectives(strategy, owner):
    """Raises ValueError where another strategy has run collectives: TensorFlow would abort, now and ever after."""
    if strategy.num_replicas_in_sync == 1 or loops(strategy):
        return
    if _collective and _collective[0] is not strategy:
        raise ValueError(
            f"{owner}: a process can have one strategy that sums by TensorFlow's default, and another one has done so, "
            f"on {', '.join(_collective[0].extended.worker_devices)}. Use that one again, or give both "
            "cross_device_ops=tf.distribute.ReductionToOneDevice() in a new process."
        )
    _collective[:] = [strategy]
