"""All that training changes in a model, as arrays; and when a callback takes it."""

from numbers import Integral
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from kopt._checks import check_range
from kopt.distribute.alone import wrapped
from kopt.distribute.strategy import replicas
from kopt.training.program import weights


def variables_of(model):
    """A model's weights and random states, and what its optimizer keeps."""
    return [*weights(model), *model.optimizer.variables]


def arrays_of(variables):
    """What variables hold."""
    return [np.asarray(variable.numpy()) for variable in variables]


def restore(variables, arrays):
    """Gives variables what they held."""
    for variable, array in zip(variables, arrays, strict=True):
        variable.assign(array)


def entries_of(model):
    """What the same variables hold, by names that do not depend on how they lie: what is kept for each weight apart."""
    found = {f"weight {number}": np.asarray(v.numpy()) for number, v in enumerate(weights(model))}
    for optimizer in wrapped(model.optimizer):
        own: dict[str, Any] = {}
        _saving(optimizer).save_own_variables(optimizer, own)
        found |= {f"{type(optimizer).__name__} {name}": np.asarray(array) for name, array in own.items()}
    return found


def restore_entries(model, entries):
    """Gives variables what they held."""
    for number, variable in enumerate(weights(model)):
        variable.assign(entries[f"weight {number}"])
    for optimizer in wrapped(model.optimizer):
        start = f"{type(optimizer).__name__} "
        own = {name.removeprefix(start): array for name, array in entries.items() if name.startswith(start)}
        _saving(optimizer).load_own_variables(optimizer, own)


class _Outer:
    """How a loss-scale wrapper's own variables are saved: without those of the optimizer inside, as Keras has them."""

    @staticmethod
    def save_own_variables(optimizer, store):
        store |= {str(number): variable.numpy() for number, variable in enumerate(_own(optimizer))}

    @staticmethod
    def load_own_variables(optimizer, store):
        for number, variable in enumerate(_own(optimizer)):
            variable.assign(store[str(number)])


def _own(optimizer):
    inner = {id(variable) for variable in optimizer.inner_optimizer.variables}
    return [variable for variable in optimizer.variables if id(variable) not in inner]


def _saving(optimizer):
    """What has the methods to save an optimizer's own variables, and to load them."""
    return _Outer if isinstance(optimizer, keras.optimizers.LossScaleOptimizer) else type(optimizer)


def parts_of(variables, strategy):
    """What replicas hold of variables of which each has its own, metrics say: an array for each, a row per replica.

    All workers have to ask at once.
    """
    if replicas(strategy) == 1:
        return [array[None] for array in arrays_of(variables)]

    def own(variable, here):
        row = tf.reshape(tf.range(here.num_replicas_in_sync), [-1, *[1] * len(variable.shape)])
        value = tf.convert_to_tensor(variable.value)
        return tf.where(row == here.replica_id_in_sync_group, value[None], tf.zeros_like(value)[None])

    def on_replica():
        here = tf.distribute.get_replica_context()
        return [here.all_reduce("SUM", own(variable, here)) for variable in variables]

    found = strategy.run(on_replica)
    return [strategy.experimental_local_results(x)[0].numpy() for x in found]


def restore_parts(variables, arrays, strategy):
    """Gives replicas what they held; where there were more or less of them, their sum to the first one."""
    count = replicas(strategy)
    if any(len(array) != count for array in arrays):
        arrays = [
            np.concatenate([x.sum(0, keepdims=True), np.zeros_like(x, shape=(count - 1, *x.shape[1:]))]) for x in arrays
        ]
    if count == 1:
        return restore(variables, [array[0] for array in arrays])

    def on_replica():
        number = tf.distribute.get_replica_context().replica_id_in_sync_group
        for variable, array in zip(variables, arrays, strict=True):
            variable.assign(tf.constant(array)[number])

    strategy.run(on_replica)
    return None


class Regular(keras.callbacks.Callback):
    """A callback with something to do after every so many steps, or at the end of each epoch.

    Args:
        every: `"epoch"`, or a number of steps.
    """

    def __init__(self, every):
        super().__init__()
        if every != "epoch":
            check_range(self, "[1, inf)", kind=Integral, every=every)
        self.every: Any = every
        self._taken = self._begun = 0

    @property
    def steps_to_go(self):
        """After how many steps `kopt.Model.fit` is to call at the latest: it calls less often than for each one."""
        return None if self.every == "epoch" else self.every - self._taken % self.every

    def is_due(self, batch):
        """Whether this is the time, at the end of a batch of this number."""
        before, self._taken, self._begun = self._taken, self._taken + batch + 1 - self._begun, batch + 1
        return self.every != "epoch" and before // self.every < self._taken // self.every

    def on_train_begin(self, logs=None):
        """Counts steps from here."""
        self._taken = self._begun = 0

    def on_train_batch_begin(self, batch, logs=None):
        """Notes where the next steps begin."""
        self._begun = batch
