"""A batch as a function of a model's weights, as often as it is asked; on a replica, its share."""

from typing import Any

import keras
import tensorflow as tf
from keras import tree

from kopt._backend import dense
from kopt._keras import give_mask, is_seed, mask_of
from kopt.distribute.seeds import as_before, reseeded
from kopt.distribute.shares import current, keep_of_all
from kopt.training.look import others_of


def as_they_are(outputs):
    """The outputs."""
    return outputs


class Batch:
    """A batch that a model looks at: a function of the trainable weights, as often as it is asked.

    All looks see the same rows, and draw the same noise (dropout) unless it is to be fresh. What a look changes
    besides, as the statistics of batch normalization and the states of seeds, is assigned once, after the first.

    Args:
        model: a built `keras.Model`.
        compute: returns the model's outputs for the batch, and the loss. It is given a function to which it passes the
            outputs, and from whose result it computes the loss.
        scale: what the loss is multiplied by while it is differentiated, against underflow; None for 1.
        fresh_noise: whether each look draws noise of its own.
        losses: what `compute` has of losses, as `compile` takes them; the model's own where None.
        compiled: whether XLA compiles the loss and its gradient, on each replica for itself.

    Attributes:
        variables: the trainable ones.
        loss: what the first look found.
        outputs: the model's at the first look.
        added: whether layers have added losses of their own, as of the last look.
    """

    def __init__(self, model, compute, scale=None, fresh_noise=False, losses=None, compiled=False):
        self.model, self.compute, self.scale, self.fresh_noise = model, compute, scale, fresh_noise
        self.compiled = compiled
        self.losses = getattr(model, "loss", None) if losses is None else losses
        self.variables = model.trainable_variables
        self.loss: Any = None
        self.outputs: Any = None
        self.added = False
        self._share = current()
        others = (*others_of(model), *model.metrics_variables)
        self._others = [(variable, self._own(variable, dense(variable))) for variable in others]
        self._looks = 0

    @property
    def noisy(self):
        """Whether the model draws random numbers."""
        return any(is_seed(variable) for variable, _ in self._others)

    def of(self, compute):
        """The same for some of the rows; looks at them change nothing."""
        batch = Batch(self.model, compute, self.scale, losses=self.losses)
        batch.outputs = ()
        return batch

    def look(self, weights, through=as_they_are):
        """Returns the loss at these weights; `through` may put other tensors in the place of the outputs."""
        return self._seen(*self._looked(weights, through))

    def _looked(self, weights, through=as_they_are):
        """The outputs, the loss, and what the look changes besides: nothing is assigned yet."""
        mapping = [*zip(self.variables, weights, strict=True), *self._beside()]
        self._looks += 1
        compiled = self.model._compile_loss  # at its first call it makes metrics, one for the loss of each output
        makes = compiled is not None and not compiled.built
        with keras.StatelessScope(mapping, collect_losses=True, initialize_variables=makes) as scope:
            outputs, loss = self.compute(through)
        self.added = bool(scope.losses)
        return outputs, loss, list(self._changes(scope))

    def _seen(self, outputs, loss, changes):
        """Keeps what the first look has seen and changed, and returns the loss."""
        if self.outputs is None:
            self.loss, self.outputs = loss, outputs
            self._keep(changes)
        return loss

    def differentiate(self, weights):
        """Returns the loss at these weights, and the gradients of the loss times `scale`, sparse ones too."""
        grads, *seen = self._by_xla(weights) if self.compiled else self._differentiated(weights)
        loss = self._seen(*seen)
        if self._share is None:
            return loss, grads
        some = self._share.rows > 0  # else there may be means over no rows
        return loss, [g if g is None else tf.where(some, dense(g), 0) for g in grads]

    def _differentiated(self, weights):
        """The gradients, and what `_looked` returns."""
        with tf.GradientTape(watch_accessed_variables=False) as tape:
            tape.watch(weights)
            outputs, loss, changes = self._looked(weights)
            scaled = loss if self.scale is None else tf.cast(self.scale, loss.dtype) * loss
        return tape.gradient(scaled, weights), outputs, loss, changes

    def _by_xla(self, weights):
        """The same, compiled."""
        changed: list[Any] = []

        @tf.function(jit_compile=True, autograph=False)
        def compiled(weights):
            grads, outputs, loss, changes = self._differentiated(weights)
            changed[:] = [variable for variable, _ in changes]
            return grads, outputs, tree.map_structure(mask_of, outputs), loss, [value for _, value in changes]

        try:
            grads, outputs, masks, loss, values = compiled(weights)
        except RuntimeError as error:
            if "merge_call" not in str(error):
                raise
            raise ValueError(
                "kopt.Model: jit_compile must be 'auto' or False where replicas have to meet within the loss, got "
                "True. They do for synchronized batch normalization, masks, means by weights, and several outputs."
            ) from None
        for output, mask in zip(tree.flatten(outputs), tree.flatten(masks), strict=True):
            if mask is not None:
                give_mask(output, mask)
        return grads, outputs, loss, list(zip(changed, values, strict=True))

    def _own(self, variable, value, of=reseeded):
        """The state of a seed `of` the replica's number, so that each draws noise of its own; any other value."""
        if self._share is None or not is_seed(variable):
            return value
        return of(value, tf.distribute.get_replica_context().replica_id_in_sync_group)

    def _beside(self):
        """What the other variables hold in the next look."""
        if not self.fresh_noise or not self._looks:
            return self._others
        return [(v, x + tf.constant(self._looks, x.dtype) if is_seed(v) else x) for v, x in self._others]

    def _changes(self, scope):
        """The variables that a look has changed besides the weights, each with what it will hold."""
        before = {id(variable): value for variable, value in self._others}
        for variable in (*others_of(self.model), *self.model.metrics_variables):
            value = scope.get_current_value(variable)
            if value is not None and value is not before.get(id(variable)):
                yield variable, value

    def _keep(self, changes):
        """Assigns what a look has changed besides the weights."""
        before = {id(variable): value for variable, value in self._others}
        metrics, shared = {id(variable) for variable in self.model.metrics_variables}, []
        for variable, value in changes:
            if self._share is None or id(variable) in metrics:  # of which replicas have their own
                variable.assign(value)
            else:
                shared.append((variable, before[id(variable)], self._own(variable, value, as_before)))
        if shared:
            keep_of_all(self._share, shared)
