"""All that training changes in a model, as arrays; and when a callback takes it."""

from numbers import Integral
from typing import Any

import keras
import numpy as np

from kopt._checks import check_range
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
