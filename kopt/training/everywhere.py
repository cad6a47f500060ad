"""A step on a batch whose rows lie on several replicas, for methods that evaluate the loss in loops.

Replicas that run side by side cannot meet inside of a loop. So such a method runs once, beside them, and each time that
it asks, all replicas answer for their shares.
"""

import tensorflow as tf

from kopt._backend import dense
from kopt.distribute.shares import beside
from kopt.distribute.strategy import run_shared
from kopt.training.micro_batches import MicroBatched


class Shares:
    """The shares of a batch that replicas have, in the place of micro-batches: their losses add up to the batch's.

    Args:
        strategy: of the replicas.
        batch: tensors with equally long first axes, or None, in tuples, lists and dicts.
    """

    def __init__(self, strategy, batch):
        self.strategy, self.batch = strategy, batch

    def mean(self, function, zeros):
        """The sum of the lists of tensors that `function(share)` returns."""
        found = run_shared(self.strategy, function, self.batch)
        return [self.strategy.reduce(tf.distribute.ReduceOp.SUM, x, axis=None) for x in found]


class Everywhere(MicroBatched):
    """An oracle for all replicas together."""

    replicas = 1  # pyright: ignore[reportAssignmentType]

    def linearized(self):
        """As in `Oracle`: residuals do not add up, so that the first device computes all of them."""
        with beside():
            return super().linearized()


def step_everywhere(optimizer, strategy, data, batch_of, then):
    """Lets an optimizer step on a batch; called where no replica computes.

    Args:
        optimizer: of kopt.
        strategy: of the replicas.
        data: the batch's tensors, in tuples, lists and dicts.
        batch_of: returns a `kopt.training.batch.Batch` for a replica's share of them.
        then: is called on each replica with its share and its batch, after a look that changes what looks do.

    Returns:
        What `then` returns, a value per replica.
    """

    def first_look(share):
        batch = batch_of(share)
        batch.look([dense(v) for v in batch.variables])
        return then(share, batch)

    found = run_shared(strategy, first_look, data)
    whole = batch_of(data)
    optimizer.step(Everywhere(whole, Shares(strategy, data), lambda share: batch_of(share).compute), whole.variables)
    return found
