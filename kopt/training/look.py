"""What an objective may ask about the batch at hand."""

from typing import Any

import keras
import tensorflow as tf
from keras import tree

from kopt._backend import sum_over_replicas
from kopt._keras import is_seed
from kopt.distribute.shares import current
from kopt.training.losses import Heads, logits_of, values
from kopt.training.sampling import distribution_of, losses_of


class Look:
    """A batch, as an objective sees it.

    Under a strategy each replica has its rows, and the values here add up over replicas to those of the batch.

    Args:
        model: a `keras.Model`, compiled.
        x: rows: a tensor, or several in lists and dicts.
        y: targets.
        sample_weight: a weight for each row, or None.
        owner: who asks, for errors.

    Attributes:
        x: as given.
        y: as given.
        sample_weight: as given.
        rows: how many there are, a tensor.
        batch: the number of rows that the batch's loss is divided by, on all replicas together: a float tensor.
    """

    def __init__(self, model, x, y, sample_weight, owner="Objective"):
        self.owner, self.model, self.x, self.y, self.sample_weight = owner, model, x, y, sample_weight
        self.rows = tf.shape(tree.flatten(x)[0])[0]
        share = current()
        self.batch = tf.cast(self.rows if share is None else share.batch, keras.config.floatx())
        self._seen = False

    def outputs(self, x=None):
        """Returns the model's outputs, as in training: for the batch, or for other rows in its place.

        The first call is the batch's: what it changes (the statistics of batch normalization) and the losses that
        layers add are kept. Of later calls, whose dropout is drawn anew, nothing is.
        """
        x = self.x if x is None else x
        if not self._seen:
            self._seen = True
            return self._call(x)
        mapping = [(v, v.value) for v in (*self.model.trainable_variables, *others_of(self.model))]
        with keras.StatelessScope(mapping, collect_losses=True) as scope:
            outputs = self._call(x)
        for variable, _ in mapping:
            if is_seed(variable):
                variable.assign(scope.get_current_value(variable))
        return outputs

    def _call(self, x):
        return self.model(x, training=True) if self.model._call_has_training_arg else self.model(x)

    def loss(self, outputs, y=None, sample_weight=None):
        """Returns the loss of outputs, penalties included: for the batch's targets, or for others in their place."""
        if y is None:
            y, sample_weight = self.y, self.sample_weight
        return self.model._compute_loss(self.x, y, outputs, sample_weight, training=True)

    def at(self, x):
        """Returns the outputs for rows, and their loss."""
        outputs = self.outputs(x)
        return outputs, self.loss(outputs)

    def with_slopes(self, function, x) -> Any:
        """Returns what a function returns for rows, and the gradient of the last of it by each float tensor of them."""
        floats = floats_of(x)
        with tf.GradientTape(watch_accessed_variables=False) as tape:
            tape.watch(floats)
            found = function(x)
        return found, tape.gradient(found[-1], floats, unconnected_gradients=tf.UnconnectedGradients.ZERO)

    def mean(self, each):
        """Returns the mean over rows of a value for each row, weighted as the loss is.

        Args:
            each: a vector for each output of the model, or one alone; None for an output that does not count.
        """
        vectors = tree.flatten(each)
        given = tree.flatten(self.sample_weight) if self.sample_weight is not None else [None]
        weights = given if len(given) == len(vectors) else given[:1] * len(vectors)
        total: Any = 0.0
        for vector, weight in zip(vectors, weights, strict=True):
            if vector is None:
                continue
            if weight is not None:
                vector = vector * tf.reshape(tf.cast(weight, vector.dtype), (self.rows,))
            total += tf.reduce_sum(vector) / tf.cast(self.batch, vector.dtype)
        return total

    def kinds(self, outputs):
        """Returns for each output how its labels are distributed: "softmax", "sigmoid", "normal", or None for no loss.

        Raises:
            ValueError: a loss is no crossentropy of logits, or of what a softmax or sigmoid makes, nor a mean square.
        """
        losses = losses_of(self.model.loss, outputs, getattr(self.model, "output_names", None))
        pairs = zip(losses, tree.flatten(outputs), strict=True)
        purpose = f"{self.owner}: to compare predictions"
        return [None if loss is None else distribution_of(loss, z, purpose, hint="") for loss, z in pairs]

    def divergence(self, outputs, others):
        """Returns the mean over rows of KL(p ‖ q): of what outputs predict from what others do.

        For a softmax it is Σ p (ln p - ln q), for sigmoids the mean of each one's. For the mean squared error it is
        that of the outputs from each other: the same for normal distributions, but for a factor.
        """
        each = [
            None if kind is None else _divergence(kind, *(wide(logits_of(z)) for z in pair))
            for kind, *pair in zip(self.kinds(outputs), *map(tree.flatten, (outputs, others)), strict=True)
        ]
        return self.mean(each)

    def sum(self, value):
        """Returns a scalar summed over all replicas."""
        return sum_over_replicas([value])[0]


class WeightedLook(Look):
    """The same for a loss that is the mean by the weights of rows, as an estimator's is.

    Args:
        model: a `keras.Model` with one output.
        x: rows, a tensor.
        y: targets, a tensor.
        w: a weight for each row.
        loss: as `kopt.training.losses.resolve` returns it.
        weight: the sum of weights, on all replicas together.
        owner: who asks, for errors.
    """

    def __init__(self, model, x, y, w, loss, weight, owner):
        super().__init__(model, x, y, w, owner)
        self._loss, self._weight = loss, weight

    def loss(self, outputs, y=None, sample_weight=None):
        """Returns the loss of outputs: see `Look.loss`."""
        if y is None:
            y, sample_weight = self.y, self.sample_weight
        dtype = self.sample_weight.dtype
        part = 1.0 if (share := current()) is None else tf.cast(share.part, dtype)
        each = tf.cast(values(self._loss, y, outputs), dtype)
        penalties = [tf.cast(p, dtype) * part for p in self.model.losses]
        return tf.add_n([tf.reduce_sum(sample_weight * each) / self._weight, *penalties])

    def mean(self, each):
        """Returns the mean over rows, weighted as the loss is, of a vector."""
        (vector,) = tree.flatten(each)
        return tf.reduce_sum(self.sample_weight * tf.cast(vector, self.sample_weight.dtype)) / self._weight

    def kinds(self, outputs):
        """Returns how the labels are distributed: see `Look.kinds`."""
        if isinstance(self._loss, Heads):
            raise ValueError(
                f"{self.owner}: to compare predictions, there must be one target with classes, got "
                f"{len(self._loss.units)} targets. Try an objective that compares none, such as kopt.objectives.MixUp."
            )
        return [distribution_of(self._loss, outputs, f"{self.owner}: to compare predictions", hint="")]


def variables_of_objective(model):
    """What the objective of a model keeps, its random state and weights of its own; none where there is none."""
    objective = getattr(model, "objective", None)
    return [] if objective is None else objective.variables


def others_of(model):
    """The variables of a model that training changes besides the weights, its objective's included."""
    own = model.non_trainable_variables
    known = set(map(id, own))  # which a `kopt.Model` counts among them itself
    return [*own, *(variable for variable in variables_of_objective(model) if id(variable) not in known)]


def wide(z):
    """A tensor in 32 bits where it has 16."""
    return tf.cast(z, tf.float32) if z.dtype in (tf.float16, tf.bfloat16) else z


def floats_of(x):
    """The float tensors among rows."""
    return [part for part in tree.flatten(x) if part.dtype.is_floating]


def _divergence(kind, a, b):
    if kind == "softmax":
        log_p, log_q = tf.nn.log_softmax(a), tf.nn.log_softmax(b)
        each = tf.reduce_sum(tf.exp(log_p) * (log_p - log_q), -1)
    elif kind == "sigmoid":
        p = tf.sigmoid(a)
        on, off = tf.math.log_sigmoid(a) - tf.math.log_sigmoid(b), tf.math.log_sigmoid(-a) - tf.math.log_sigmoid(-b)
        each = tf.reduce_mean(p * on + (1 - p) * off, -1)
    else:
        each = tf.reduce_mean(tf.square(a - b), -1)
    return tf.reduce_mean(tf.reshape(each, (tf.shape(each)[0], -1)), -1)
