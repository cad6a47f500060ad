"""Training data that come in batches: of datasets, generators and `PyDataset`s, of ragged and sparse tensors."""

import math
import warnings

import tensorflow as tf
from keras import tree


class Stream:
    """Batches as Keras makes them, in their order.

    Args:
        iterator: Keras's `EpochIterator` over them, which has checked them.

    Attributes:
        structure: of a batch, with None where it has none.
        specs: of the tensors in it.
        steps: batches in an epoch, or None where nobody knows.
    """

    def __init__(self, iterator):
        self.adapter, self._asked = iterator.data_adapter, iterator.steps_per_epoch
        self.dataset = self.adapter.get_tf_dataset()
        spec = tree.lists_to_tuples(self.dataset.element_spec)
        self.structure = tree.map_structure(lambda x: None if isinstance(x, tf.OptionalSpec) else "tensor", spec)
        self.specs = [x for x in tree.flatten(spec) if not isinstance(x, tf.OptionalSpec)]
        self.key = "stream", repr(self.structure), *self.specs
        self._batches, self._seen = None, 0

    @property
    def steps(self):
        """How many batches an epoch has."""
        return self._asked or self.adapter.num_batches

    def walk(self, progress):
        """Returns a `Stroll` over what is left of an epoch. Close it."""
        self.adapter.on_epoch_begin()
        if self._batches is None or self._asked is None:
            self._batches, self._seen = iter(self.dataset.skip(progress.step) if progress.step else self.dataset), 0
        return Stroll(self, (self.steps or math.inf) - progress.step)

    def rewind(self):
        """Begins anew with the next walk, where otherwise data go on from epoch to epoch."""
        self._batches = None

    def took(self, number, ended):
        """Counts batches that were taken, and forgets the rest where data have an end."""
        self._seen += number
        if ended or self._seen >= (self.adapter.num_batches or math.inf):
            self._batches = None
        if ended and self._asked:
            warnings.warn(
                f"Your input ran out of data after {self._seen} batches, and steps_per_epoch is {self._asked}. "
                "Try dataset.repeat().",
                stacklevel=2,
            )


class Stroll:
    """Takes the batches of a stream, any number in a call of a program."""

    def __init__(self, stream, left):
        self._stream, self._left = stream, left

    def goes_on(self):
        """Whether there may be batches left."""
        return self._left > 0

    def take(self, program, steps):
        """Runs a program on the next batches, at most so many; returns how many, and what it returns."""
        steps = min(steps, self._left)
        taken, logs = program(self._stream._batches, steps)
        self._left = self._left - taken if taken == steps else 0
        self._stream.took(taken, taken < steps)
        return taken, logs

    def close(self):
        """Ends the epoch."""
        self._stream.adapter.on_epoch_end()
