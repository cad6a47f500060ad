"""What an optimizer may ask about the batch at hand."""

import functools
from typing import Any

import keras
import tensorflow as tf
from keras import tree

from kopt._backend import dense, replicas, sum_over_replicas
from kopt.distribute.shares import current
from kopt.optimizers import Optimizer
from kopt.training import taps
from kopt.training.batch import as_they_are
from kopt.training.look import Look
from kopt.training.losses import in_place_of, logits_of
from kopt.training.moments import twice_differentiable
from kopt.training.residuals import Residuals
from kopt.training.sampling import sample


def refuse(objective):
    """Raises ValueError: an optimizer wants a function of the outputs, and there is an objective."""
    raise ValueError(
        f"{type(objective).__name__} looks at more than the outputs of a batch, and the optimizer wants its loss as a "
        "function of these. Try one that asks for losses and gradients: kopt.AdamW, say."
    )


def computing(model, data):
    """Returns the `compute` of a `Batch`: a model's outputs and loss for (x, y, sample_weight).

    They are as Keras has them, or as the model's objective.
    """
    x, y, sample_weight = keras.utils.unpack_x_y_sample_weight(data)
    objective = getattr(model, "objective", None)

    def compute(through):
        if objective is not None:
            if through is not as_they_are:
                refuse(objective)
            return objective.total(Look(model, x, y, sample_weight, type(objective).__name__))
        outputs = model(x, training=True) if model._call_has_training_arg else model(x)
        return outputs, model._compute_loss(x, y, through(outputs), sample_weight, training=True)

    return compute


class Oracle:
    """Answers for a batch, at some weights: the loss, its gradients, and products with its curvature.

    Under a strategy each replica has an oracle for its rows, and answers are its part: what all have together `sum`
    tells. A weight that has no part in the loss has None for a gradient, and zeros in products.

    Args:
        batch: a `Batch`.
        weights: a tensor for each trainable weight of the model; those that it has now where None.

    Attributes:
        weights: these tensors.
        value: the loss at them, once a look at them has told it.
    """

    def __init__(self, batch, weights=None):
        self._batch = batch
        self.weights = [dense(v) for v in batch.variables] if weights is None else weights
        self.value: Any = None

    def at(self, weights):
        """Returns the oracle that answers for the same batch at other weights."""
        return Oracle(self._batch, weights)

    @property
    def replicas(self):
        """How many replicas have an oracle each."""
        return replicas()

    @property
    def scaled(self):
        """Whether losses are scaled while they are differentiated, as in mixed float16."""
        return self._batch.scale is not None

    @property
    def noisy(self):
        """Whether the loss is another function at each step, even of the same rows: dropout draws other masks."""
        return self._batch.noisy

    @property
    def terms(self):
        """How many values the loss is the mean of: the first output's rows, times their positions if it has any.

        Those of all replicas.
        """
        output = tree.flatten(self._batch.outputs)[0]
        return sum_over_replicas([tf.size(output) // (output.shape[-1] if output.shape.rank > 1 else 1)])[0]

    @property
    def part(self):
        """The part of the batch's rows that this replica has; of one device, 1."""
        share = current()
        return 1.0 / replicas() if share is None else share.part

    def report(self, loss):
        """Says what the loss at the batch's first weights is, where it is known without a look."""
        self._batch.loss = loss

    def loss(self):
        """Returns the loss: a scalar, as Keras's `compute_loss` gives it, with penalties."""
        self.value = self._batch.look(self.weights)
        return self.value

    def gradients(self):
        """Returns the gradient of the loss for each weight."""
        return self()[1]

    def __call__(self):
        """Returns the loss and its gradients, in one pass forward and one back."""
        self.value, grads = self._batch.differentiate(self.weights)
        scale = self._batch.scale
        grads = [g if g is None else dense(g) for g in grads]
        return self.value, [g if g is None or scale is None else g / tf.cast(scale, g.dtype) for g in grads]

    def hvp(self, vectors):
        """Returns the Hessian of the loss times a vector: a tensor for each weight, as `vectors` has them."""
        return self.gradients_and_hvp()[1](vectors)

    def gradients_and_hvp(self):
        """Returns the gradients, and a function that multiplies a vector by the Hessian: one pass serves both."""
        tape = tf.GradientTape(persistent=True, watch_accessed_variables=False)
        with twice_differentiable(), tape:
            tape.watch(self.weights)
            grads = self.gradients()

        def hvp(vectors):
            some = [(g, v) for g, v in zip(grads, vectors, strict=True) if g is not None]
            return _slopes(tape, [g for g, _ in some], self.weights, [v for _, v in some])

        return grads, hvp

    def gnvp(self, vectors):
        """Returns the generalized Gauss-Newton matrix times a vector: JᵀHJ · vector, plus the Hessian of penalties.

        J is the Jacobian of the model's outputs, H the Hessian of the loss as a function of them. Where they come from
        a softmax or sigmoid that the loss undoes, its logits take their place, so that H is positive semidefinite.
        """
        tape = functools.partial(tf.GradientTape, persistent=True, watch_accessed_variables=False)
        with twice_differentiable(), tape() as second, tape() as back:  # for the products with J
            back.watch(self.weights)
            with tape() as outer, tape() as inner:  # for the product with H
                outer.watch(self.weights)
                inner.watch(self.weights)
                split = _Split([outer, inner])
                loss = self._batch.look(self.weights, split)
            with outer:
                slopes, penalty_slopes = _slopes(inner, loss, split.held), _slopes(inner, loss, self.weights)
            duals = [tf.zeros_like(z) for z in split.outputs]
            second.watch(duals)
            pulled = _slopes(back, split.outputs, self.weights, duals)
        pushed = _slopes(second, pulled, duals, vectors)
        bent = _slopes(outer, slopes, split.held, pushed)
        product = _slopes(back, split.outputs, self.weights, bent)
        penalties = _slopes(outer, penalty_slopes, self.weights, vectors)
        return [a + b for a, b in zip(product, penalties, strict=True)]

    def linearized(self):
        """Returns the `kopt.training.residuals.Residuals` at these weights, of which one look answers all questions.

        Raises:
            ValueError: the loss is no sum of squares.
        """
        if (objective := getattr(self._batch.model, "objective", None)) is not None:
            refuse(objective)
        return Residuals(self._batch, self.weights)

    def residuals(self):
        """Returns the residuals, a vector: half of the sum of their squares is the loss."""
        return self.linearized().values

    def jacobian(self):
        """Returns the residuals and their Jacobian, a row for each and a column for each entry of the weights."""
        linear = self.linearized()
        return linear.values, linear.jacobian()

    def jvp(self, vectors):
        """Returns the Jacobian of the residuals times a vector, which is a tensor for each weight."""
        return self.linearized().jvp(vectors)

    def vjp(self, vector):
        """Returns a vector, a number for each residual, times their Jacobian: a tensor for each weight."""
        return self.linearized().vjp(vector)

    def sampled_gradients(self, seed, t):
        """Returns a random gradient for each weight: its squares are on average the Gauss-Newton matrix's diagonal.

        It is that of the loss with labels drawn from what the model predicts, times the root of the number of rows:
        `kopt.training.sampling.sample` says more, and for which losses.

        Args:
            seed: an integer. Draws depend on it and on `t` alone; each replica has its own.
            t: the step.
        """
        with tf.GradientTape(watch_accessed_variables=False) as tape:
            tape.watch(self.weights)
            outputs, drawn = sample(self._batch, self.weights, seed, t)
        return _slopes(tape, outputs, self.weights, drawn)

    def taps(self):
        """Returns the loss, its gradients, and a list of `kopt.training.taps.Tap`, one for each use of a layer.

        A tap is what the layer was given, and the gradient of the loss by what it made of it, before its activation.
        All in one pass forward and one back.

        Raises:
            ValueError: no layer has taps.
        """
        scale = 1.0 if self._batch.scale is None else self._batch.scale

        def ask():
            loss = self._batch.look(self.weights)
            return loss, tf.cast(scale, loss.dtype)

        self.value, grads, found = taps.look(self._batch, self.weights, ask)
        if self._batch.scale is not None:
            grads = [g if g is None else g / tf.cast(scale, g.dtype) for g in grads]
            found = [tap._replace(slopes=tf.cast(tap.slopes, tf.float32) / tf.cast(scale, tf.float32)) for tap in found]
        return self.value, grads, found

    def sampled_taps(self, seed, t):
        """Returns random gradients as `sampled_gradients` does, and taps whose slopes are of the same draw."""
        _, grads, found = taps.look(self._batch, self.weights, lambda: sample(self._batch, self.weights, seed, t))
        return grads, found

    def sum(self, tensors):
        """Returns each tensor of a list summed over all replicas; None where it is None."""
        return sum_over_replicas(tensors)


def _slopes(tape, targets, sources, vectors=None) -> list[Any]:
    """The vectors times the Jacobian of the targets by the sources, of which one without a part in them gets zeros."""
    zero = tf.UnconnectedGradients.ZERO
    return [dense(x) for x in tape.gradient(targets, sources, vectors, unconnected_gradients=zero)]


class _Split:
    """Cuts the loss off from the weights at the model's outputs, or their logits.

    Attributes:
        outputs: these, as the weights give them.
        held: the same numbers, watched by `tapes`: what the loss is computed from.
    """

    def __init__(self, tapes):
        self.tapes, self.outputs, self.held = tapes, [], []

    def __call__(self, outputs):
        return tree.map_structure(self._cut, outputs)

    def _cut(self, output):
        self.outputs.append(logits_of(output))
        self.held.append(tf.stop_gradient(self.outputs[-1]))
        for tape in self.tapes:
            tape.watch(self.held[-1])
        return in_place_of(output, self.held[-1])


def step(optimizer, batch, apply):
    """Lets an optimizer step on a batch.

    Args:
        optimizer: a Keras optimizer, kopt's or not, without a loss-scale wrapper.
        batch: a `Batch`.
        apply: takes gradients, multiplied by the batch's scale, and variables: the optimizer's or its wrapper's.
    """

    def scaled(grads, variables):
        if batch.scale is not None:
            grads = [g if g is None else g * keras.ops.cast(batch.scale, g.dtype) for g in grads]
        apply(grads, variables)

    if isinstance(optimizer, Optimizer):
        optimizer.step(Oracle(batch), batch.variables, scaled)
    else:
        apply(batch.differentiate([dense(v) for v in batch.variables])[1], batch.variables)
