"""Residuals of a batch: numbers half of whose sum of squares is the loss, and their Jacobian.

The loss of a model is Σ c ℓ over the elements of a batch, and a penalty. Keras multiplies by sample weights, class
weights, masks and loss weights, and divides by the size of the batch; c is what all that comes to, the derivative of
the loss by ℓ. So that none of it is written here again, a look at the batch notes each ℓ as it is computed, and a tape
gives c.

    mean squared error              r = √(2c) (y_pred - y), with its sign, for each number of each output
    any other loss of elements      r = √(2cℓ)
    an L2 penalty λ Σ w²            r = √(2λ) w
"""

import contextlib
import functools
import math
import threading
from typing import Any, NamedTuple

import keras
import tensorflow as tf
from keras import ops

from kopt.penalties import WeightDecay

BLOCK = 2**15
"""About so many entries of a Jacobian are computed at once, in whole rows or columns, and four of these at least."""

_theirs = keras.losses.Loss.__call__
_lock = threading.Lock()
_SIGNED = (keras.losses.cosine_similarity, keras.losses.poisson)


class Residuals:
    """The residuals of a batch at some weights, and products with their Jacobian without another look.

    Args:
        batch: a `kopt.training.batch.Batch`.
        weights: a tensor for each trainable weight of its model.

    Attributes:
        values: the residuals, a vector: first those of the data, then those of penalties.

    Raises:
        ValueError: the loss is no sum of squares.
    """

    def __init__(self, batch, weights):
        tape = functools.partial(tf.GradientTape, persistent=True, watch_accessed_variables=False)
        self._weights, self._sizes = weights, [w.shape.num_elements() for w in weights]
        with tape() as self._second:
            with tape() as self._back:
                self._back.watch(weights)
                self.values = residuals(batch, weights)
            self._duals = tf.zeros_like(self.values)
            self._second.watch(self._duals)
            self._pulled = self._joined(self._slopes(self._back, self.values, weights, self._duals))

    @property
    def shape(self):
        """Rows and columns of the Jacobian: residuals, None where only the running step knows, and weights."""
        return self.values.shape[0], sum(self._sizes)

    def jvp(self, vectors):
        """Returns the Jacobian times a vector, which is a tensor for each weight: a number for each residual."""
        return self._push(self._joined(vectors))

    def vjp(self, vector):
        """Returns a vector, a number for each residual, times the Jacobian: a tensor for each weight."""
        return self._slopes(self._back, self.values, self._weights, vector)

    def jacobian(self):
        """Returns the Jacobian: a row for each residual, a column for each entry of the weights, laid end to end.

        Rows come by reverse and columns by forward mode, whichever are fewer; many at once, by `tf.vectorized_map`, but
        one by one eagerly, and where a loop in the model (a recurrent layer) cannot be vectorized.
        """
        rows, columns = self.shape
        if rows is not None and rows < columns:
            return _at_units(lambda u: self._joined(self.vjp(u)), rows, columns, self.values.dtype)
        return tf.transpose(_at_units(self._push, columns, rows, self.values.dtype))

    def _push(self, v):
        """The Jacobian times one long vector: the derivative of its transpose's product, which is linear, at zero."""
        return self._slopes(self._second, self._pulled, self._duals, v)

    def _joined(self, tensors):
        return tf.concat([tf.reshape(tf.cast(x, self.values.dtype), (-1,)) for x in tensors], 0)

    @staticmethod
    def _slopes(tape, target, sources, vector) -> Any:
        return tape.gradient(target, sources, vector, unconnected_gradients=tf.UnconnectedGradients.ZERO)


def _at_units(function, number, width, dtype):
    """The values, of so many numbers each, of a function at the unit vectors: a row for each."""
    if tf.executing_eagerly():  # where to vectorize is to trace at each call
        return tf.stack([function(unit) for unit in tf.eye(number, dtype=dtype)])
    most = max(4, BLOCK // (width or BLOCK // 32))
    block = math.ceil(number / math.ceil(number / most))  # so that all blocks are about as large

    def some(start):
        units = tf.one_hot(start + tf.range(block), number, dtype=dtype)
        try:
            return tf.vectorized_map(function, units)
        except ValueError:  # which a loop in the model may raise
            return tf.map_fn(function, units)

    if block == number:
        return some(0)
    blocks = tf.map_fn(some, tf.range(0, number, block), fn_output_signature=dtype)
    return tf.ensure_shape(tf.reshape(blocks, (-1, tf.shape(blocks)[-1]))[:number], (number, width))


class _Term(NamedTuple):
    """Elements of a loss: what the loss sums with weights, and for squares what is squared."""

    values: Any
    error: Any = None


def residuals(batch, weights):
    """Returns the residuals of a batch at some weights, as one vector.

    Raises:
        ValueError: the loss is no sum of squares.
    """
    model = batch.model
    penalties = [_penalty(model, variable) for variable in batch.variables]
    owner = next(cls for cls in type(model).__mro__ if "compute_loss" in vars(cls))
    if owner.__module__.partition(".")[0] not in ("keras", "kopt"):
        raise _refusal(model, f"{owner.__name__}.compute_loss makes a loss of its own")
    with tf.GradientTape(watch_accessed_variables=False) as tape, _noted(model, tape) as terms:
        loss = batch.look(weights)
    if batch.added:
        raise _refusal(model, "add_loss or an activity regularizer adds to it")
    if not terms and not any(penalties):
        raise _refusal(model, "it is made of no keras.losses.Loss")
    shares = tape.gradient(loss, [term.values for term in terms], unconnected_gradients=tf.UnconnectedGradients.ZERO)
    parts = [_rooted(*pair) for pair in zip(terms, map(tf.stop_gradient, shares), strict=True)]
    parts += [ops.sqrt(2 * ops.cast(l2, w.dtype)) * w for l2, w in zip(penalties, weights, strict=True) if l2]
    return tf.concat([tf.reshape(tf.cast(part, loss.dtype), (-1,)) for part in parts], 0)


def _rooted(term, share):
    """√(2c) times what is squared, or √(2cℓ), whose derivative is taken for 0 at 0."""
    if term.error is not None:
        return tf.sqrt(2 * share) * term.error
    check = tf.debugging.assert_non_negative(term.values, "A loss without residuals: it must not be negative.")
    with tf.control_dependencies([check] if check is not None else []):
        square = 2 * share * term.values
    zero = square == 0
    return tf.where(zero, tf.zeros_like(square), tf.sqrt(tf.where(zero, tf.ones_like(square), square)))


@contextlib.contextmanager
def _noted(model, tape):
    """A context in which each loss of Keras notes its elements, watched by a tape."""
    terms, inside = [], threading.get_ident()

    def call(loss, y_true, y_pred, sample_weight=None):
        if threading.get_ident() != inside:
            return _theirs(loss, y_true, y_pred, sample_weight)
        function, noting = getattr(loss, "fn", None), object.__new__(type(loss))
        vars(noting).update(vars(loss))  # Keras's copies are made of configs
        if function in _SIGNED:
            raise _refusal(model, f"the elements of {loss.name} may be negative")
        if function is keras.losses.mean_squared_error and type(loss).call is keras.losses.MeanSquaredError.call:
            noting.fn = squares
        else:
            noting.call = functools.partial(elements, loss)
        return _theirs(noting, y_true, y_pred, sample_weight)

    def squares(y_true, y_pred):
        error = y_pred - y_true
        tape.watch(square := ops.square(error))
        terms.append(_Term(square, error))
        return ops.mean(square, axis=-1)

    def elements(loss, y_true, y_pred):
        noted = len(terms)
        values = ops.convert_to_tensor(loss.call(y_true, y_pred))
        del terms[noted:]  # of losses that this one is made of
        if not values.shape.rank:
            raise _refusal(model, f"{loss.name} is one number for all elements")
        tape.watch(values)
        terms.append(_Term(values))
        return values

    with _lock:
        keras.losses.Loss.__call__ = call
        try:
            yield terms
        finally:
            keras.losses.Loss.__call__ = _theirs


def _penalty(model, variable):
    """λ, where a weight is penalized by λ Σ w²; 0 where it is not penalized."""
    regularizer = variable.regularizer
    if regularizer is None or isinstance(regularizer, WeightDecay):  # which adds nothing to the loss
        return 0.0
    plain = type(regularizer) in (keras.regularizers.L2, keras.regularizers.L1L2)
    if not plain or getattr(regularizer, "l1", 0.0):
        raise _refusal(model, f"{type(regularizer).__name__} penalizes {variable.path} by no square")
    return float(regularizer.l2)


def _refusal(model, why):
    return ValueError(
        f"The loss of {model.name!r} has no residuals, for {why}. Compile a mean squared error or another loss with a "
        "value from 0 for each element, with L2 penalties at most, or define compute_residuals in the model."
    )
