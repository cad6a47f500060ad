"""A callback that ends a fit whose loss is no longer finite, with the last weights that were good."""

import math
import warnings
from typing import Any

import numpy as np

from kopt.training.state import Regular, arrays_of, restore, variables_of


class StopAtNonFinite(Regular):
    """Stops `fit` when the loss is no longer a finite number, with the last good weights.

    Keras's `TerminateOnNaN` stops, too, and leaves weights that are good for nothing. This one keeps a copy of the
    weights, the random states and the optimizer's state, in main memory, and goes back to the last one at which the
    loss was finite. To leave out single steps instead, and count them, give a kopt optimizer
    `skip_nonfinite=True`.

    Args:
        every: when to copy: `"epoch"`, at the end of each, or after so many steps besides. A loss that is not finite is
            seen earlier, too: at each step in `keras.Model.fit`, and in `kopt.Model.fit` whenever a program ends.

    Attributes:
        stopped_epoch: the epoch in which it stopped the last fit, from 0; None where it did not.

    Example:
        >>> model.fit(x, y, callbacks=[kopt.StopAtNonFinite()])  # doctest: +SKIP
    """

    def __init__(self, every="epoch"):
        super().__init__(every)
        self.stopped_epoch = None
        self._epoch = 0
        self._good: Any = None  # arrays, and of when
        self._newest: Any = None

    @property
    def steps_to_go(self):
        """One where weights were kept of which no loss is known yet."""
        return super().steps_to_go if self._newest is None else 1

    def on_train_begin(self, logs=None):
        """Keeps what there is to begin with."""
        super().on_train_begin(logs)
        self.stopped_epoch = None
        if self.model.built:
            if not self.model.optimizer.built:
                self.model.optimizer.build(self.model.trainable_variables)
            self._good = arrays_of(variables_of(self.model)), "the beginning"

    def on_epoch_begin(self, epoch, logs=None):
        """Remembers the epoch."""
        self._epoch = epoch

    def on_train_batch_end(self, batch, logs=None):
        """Looks at the loss: if it is finite, the weights that were kept before are good."""
        due = self.is_due(batch)
        if not _is_finite(logs):
            self._stop(logs)
            return
        self._good, self._newest = self._newest or self._good, None
        if due:
            self._keep(logs, f"step {batch + 1} of epoch {self._epoch + 1}")

    def on_epoch_end(self, epoch, logs=None):
        """Looks at the loss and the weights."""
        if _is_finite(logs):
            self._keep(logs, f"the end of epoch {epoch + 1}")
        else:
            self._stop(logs)

    def on_train_end(self, logs=None):
        """Lets go of the copies."""
        self._good = self._newest = None

    def _keep(self, logs, when):
        if self.stopped_epoch is not None:
            return
        arrays = arrays_of(variables_of(self.model))
        if all(np.isfinite(array.astype("float32")).all() for array in arrays if array.dtype.kind in "fV"):
            self._newest = arrays, when
        else:
            self._stop(logs)

    def _stop(self, logs):
        if self.stopped_epoch is not None:
            return
        self.stopped_epoch, self.model.stop_training, self._newest = self._epoch, True, None
        loss = (logs or {}).get("loss")
        kept = "and there are no earlier weights to go back to"
        if self._good:
            restore(variables_of(self.model), self._good[0])
            kept = f"and the model has the weights of {self._good[1]}"
        warnings.warn(
            f"StopAtNonFinite: the loss is {loss} in epoch {self._epoch + 1}, or weights are not finite, so that "
            f"training stops, {kept}. Lower the learning rate, scale the data, or clip gradients with clipnorm.",
            stacklevel=2,
        )


def _is_finite(logs):
    """Whether the loss is finite, where there is one."""
    return math.isfinite((logs or {}).get("loss", 0.0))
