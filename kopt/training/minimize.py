"""`kopt.minimize`: the loss of a model over a data set, minimized as scipy would."""

import functools
import math
import time

import keras
import numpy as np
import tensorflow as tf
from keras import tree
from scipy.optimize import OptimizeResult

from kopt import optimizers
from kopt._backend import dense
from kopt._checks import check_choice, check_range
from kopt.optimizers import Optimizer, Switch
from kopt.optimizers.minimizer import Minimizer
from kopt.training.batch import Batch
from kopt.training.micro_batches import MicroBatched, Rows, Stream, check_adds_up
from kopt.training.model import Model
from kopt.training.oracle import Oracle, computing
from kopt.training.whole import minimizers

CHUNK = 100
"""Iterations in one program, at most."""

PATIENCE = 10
"""Iterations without a step after which there is none to be had."""

EARLY, LONG = 2500, 2500
"""XLA's program takes seconds to compile: it takes over after so many iterations, where it may run for so many more.

It saves about a millisecond in each: who waits as long as a mistake would cost loses no more than twice the best.
"""

RUNNING, CONVERGED, LIMIT, STALLED, DIVERGED, STOPPED = -1, 0, 1, 2, 3, 99
MESSAGES = {
    CONVERGED: "The gradient is within gtol, or the decrease of the loss within ftol, or the loss within ftarget.",
    LIMIT: "The number of iterations reached maxiter.",
    STALLED: f"No step that decreases the loss was found in {PATIENCE} iterations, most often for want of precision.",
    DIVERGED: "The loss is not finite any more.",
    STOPPED: "`callback` raised `StopIteration`.",
}


def minimize(
    model,
    x,
    y=None,
    *,
    method="LBFGS",
    options=None,
    loss=None,
    sample_weight=None,
    maxiter=1000,
    gtol=1e-5,
    ftol=0.0,
    ftarget=None,
    micro_batch_size=None,
    jit_compile="auto",
    callback=None,
    verbose="auto",
):
    """Minimizes the loss of a Keras model over a whole data set, and leaves the model at the minimum.

    The loss is that of `fit` with all rows in one batch, penalties included. Iterations run in compiled programs, up to
    a hundred in each.

        model.compile(loss="mse")
        result = kopt.minimize(model, x, y, method="BFGS", maxiter=500)

    Args:
        model: a `keras.Model`, of kopt or not, compiled with a loss; or not compiled, and `loss` given.
        x: all rows: an array, a list or dict of arrays; or a `tf.data.Dataset` of micro-batches `(x, y)` or
            `(x, y, sample_weight)`, which may be larger than memory.
        y: their targets.
        method: the name of a kopt optimizer, or an instance; a `kopt.Switch` too.
        options: arguments of the optimizer, where `method` is a name.
        loss: a Keras loss or its name, with which the model is compiled if it is not yet.
        sample_weight: weights of the rows.
        maxiter: the largest number of iterations, from 1.
        gtol: the largest entry of the gradient at which to stop, in [0, inf).
        ftol: the decrease of the loss in an iteration, relative to the loss or to 1 if that is larger, at which to
            stop, in [0, inf); 0 for never.
        ftarget: a loss at which to stop.
        micro_batch_size: how many rows to compute with at a time: the same result, to rounding, in less memory. None
            for all. It needs losses that are means over rows, and neither dropout nor batch normalization.
        jit_compile: whether programs are compiled by XLA: True, False, or "auto", which is for arrays, after 2500
            iterations, if as many more may come, since XLA's programs are fast and take seconds to compile.
        callback: called after each iteration with an `OptimizeResult` that has `x`, `nit` and `fun` (the loss after the
            iteration, or before it where the method does not know better), named `intermediate_result` as in scipy; it
            may raise `StopIteration`.
        verbose: 0 for silence, 1 for a progress bar; "auto" is 1.

    Returns:
        A `scipy.optimize.OptimizeResult`: `x` the trained weights as one vector, `fun` the loss there, `jac` its
        gradient, `nit` iterations, `nfev` evaluations of the loss and its gradient, `nhev` products with the curvature,
        `success`, `status`, `message`, and `history`, the loss before each iteration.

    Raises:
        TypeError: `model` is no Keras model, or `method` neither a name nor a kopt optimizer.
        ValueError: an argument is out of range, the model has no loss, or the loss is not finite at the start.
    """
    if not isinstance(model, keras.Model):
        raise TypeError(f"minimize: model must be a keras.Model, got {model!r}.")
    check_range("minimize", "[1, inf)", maxiter=maxiter)
    check_range("minimize", "[0, inf)", gtol=gtol)
    check_range("minimize", "[0, inf)", ftol=ftol)
    if ftarget is not None:
        check_range("minimize", "(-inf, inf)", ftarget=ftarget)
    check_choice("minimize", (True, False, "auto"), jit_compile=jit_compile)
    check_choice("minimize", (0, 1, "auto"), verbose=verbose)
    optimizer = _optimizer(method, options or {})
    _compile(model, loss, optimizer)
    data, whole = _data(x, y, sample_weight, micro_batch_size, model)
    ends = dict(gtol=gtol, ftol=ftol, ftarget=-math.inf if ftarget is None else float(ftarget))
    search = _Search(model, optimizer, data, whole, ends)
    pays = jit_compile == "auto" and not isinstance(data, Stream) and maxiter >= EARLY + LONG
    graph = EARLY if pays else 0 if jit_compile is True else maxiter
    return search.run(maxiter, graph, callback, verbose)


def _optimizer(method, options):
    if isinstance(method, Optimizer):
        if options:
            raise ValueError(f"minimize: options must be None where method is an instance, got {options!r}.")
        return method
    names = {n.lower(): n for n in optimizers.__all__ if isinstance(getattr(optimizers, n), type)}
    if not isinstance(method, str):
        raise TypeError(f"minimize: method must be the name of a kopt optimizer or an instance, got {method!r}.")
    if method.lower() not in names:
        known = ", ".join(n for n in names.values() if issubclass(getattr(optimizers, n), Minimizer))
        raise ValueError(f"minimize: method must be an optimizer of kopt, such as {known}, got {method!r}.")
    return getattr(optimizers, names[method.lower()])(**options)


def _compile(model, loss, optimizer):
    """Gives the model a loss, where it has none."""
    own = type(model).compute_loss not in (keras.Model.compute_loss, Model.compute_loss)
    own = own or getattr(model, "compute_residuals", None) is not None
    if model.compiled and loss is not None:
        raise ValueError(f"minimize: loss must be None for a model that is compiled already, got {loss!r}.")
    if not model.compiled and loss is None and not own:
        raise ValueError("minimize: model must be compiled with a loss, or loss given, got neither. Try loss='mse'.")
    if not model.compiled:
        model.compile(optimizer, loss)


def _data(x, y, sample_weight, size, model):
    """The rows, and whether they are one batch."""
    if isinstance(x, tf.data.Dataset):
        if y is not None or sample_weight is not None or size is not None:
            raise ValueError(
                "minimize: y, sample_weight and micro_batch_size must be None where x is a Dataset, which has them."
            )
        check_adds_up(model, "minimize")
        return Stream(x), False
    arrays = tuple(part for part in (x, y, sample_weight) if part is not None)
    if y is None and sample_weight is not None:
        raise ValueError("minimize: sample_weight needs y, got None.")
    arrays = tree.map_structure(_tensor, arrays)
    lengths = {array.shape[0] for array in tree.flatten(arrays)}
    if len(lengths) != 1 or 0 in lengths:
        raise ValueError(f"minimize: x, y and sample_weight must have equally many rows, got {sorted(lengths)}.")
    if size is None or size >= max(lengths):
        return arrays, True
    check_range("minimize", "[1, inf)", micro_batch_size=size)
    check_adds_up(model, "minimize")
    return Rows(arrays, size), False


def _tensor(array):
    """An array as a tensor, floats in Keras's own type, as `fit` has them."""
    array = tf.convert_to_tensor(array)
    return tf.cast(array, keras.config.floatx()) if array.dtype.is_floating else array


class _Search:
    """A minimization: its programs, and what they need."""

    def __init__(self, model, optimizer, data, whole, ends):
        self.model, self.optimizer, self.data, self.whole, self.ends = model, optimizer, data, whole, ends
        self._meet(data if whole else data.some())
        self._check_start()

    def _meet(self, part):
        """Builds what is built at the first look: outside of any program, and on one row."""
        row = tree.map_structure(lambda x: x[:1], part)
        if not self.model.built:
            self.model(keras.utils.unpack_x_y_sample_weight(row)[0])
        self._silent(row).loss()
        self.optimizer.build(self.model.trainable_variables)
        for minimizer in minimizers(self.optimizer):
            minimizer.forget()

    def _silent(self, data):
        """An oracle for rows whose looks change nothing."""
        return Oracle(Batch(self.model, None).of(computing(self.model, data)))

    def _check_start(self):
        fun, jac = self.answer()
        if not (np.isfinite(fun) and np.isfinite(jac).all()):
            raise ValueError(f"minimize: the loss and its gradient must be finite at the start, got a loss of {fun}.")

    def _oracle(self):
        if self.whole:
            return Oracle(Batch(self.model, computing(self.model, self.data)))
        return MicroBatched(Batch(self.model, None), self.data, lambda part: computing(self.model, part))

    def _program(self, xla):
        """The iterations, compiled."""
        numbers = [tf.TensorSpec([], tf.int32)] * 2 + [tf.TensorSpec([], tf.float64)]
        return tf.function(self._iterations, numbers, jit_compile=xla, autograph=False).get_concrete_function()

    def _iterations(self, limit, stalls, last):
        """Up to so many iterations, after so many without a step and a loss at the end of the last one.

        Returns how many there were, the status, the new numbers, and the losses before each.
        """
        variables = self.model.trainable_variables

        def iteration(i, status, stalls, last, losses):
            before = [dense(v) for v in variables]
            loss = tf.cast(self.optimizer.step(self._oracle(), variables), losses.dtype)
            moved = tf.reduce_any([tf.reduce_any(dense(v) != w) for v, w in zip(variables, before, strict=True)])
            value, slope = (tf.cast(number, losses.dtype) for number in measured(self.optimizer))
            value = tf.where(tf.math.is_nan(value), loss, value)
            stalls = tf.where(moved, 0, stalls + 1)
            status = tf.where(stalls >= PATIENCE, STALLED, RUNNING)
            status = tf.where(self._is_end(last, value, slope, moved), CONVERGED, status)
            status = tf.where(tf.math.is_finite(loss), status, DIVERGED)
            return i + 1, status, stalls, value, tf.tensor_scatter_nd_update(losses, [[i]], [loss])

        start = tf.constant(0), tf.constant(RUNNING), stalls, last, tf.zeros(CHUNK, "float64")
        return tf.while_loop(lambda i, status, *_: (i < limit) & (status == RUNNING), iteration, start)

    def _is_end(self, last, value, slope, moved):
        """Whether an iteration, of which the last one ended with a loss, reached what was asked for."""
        ftol = self.ends["ftol"]
        flat = last - value <= ftol * tf.maximum(tf.maximum(tf.abs(last), tf.abs(value)), 1.0)
        return (slope <= self.ends["gtol"]) | (flat & moved & (ftol > 0)) | (value <= self.ends["ftarget"])

    def answer(self):
        """The loss and its gradient, as one vector."""
        loss, grads = (self._silent(self.data) if self.whole else self._oracle())()
        pairs = zip(grads, self.model.trainable_variables, strict=True)
        return float(loss), np.concatenate([np.ravel(np.zeros(v.shape, v.dtype) if g is None else g) for g, v in pairs])

    def run(self, maxiter, graph, callback, verbose):
        """Iterates until an end, at first for so many iterations in a graph, and tells what was found."""
        bar = keras.utils.Progbar(maxiter, unit_name="iteration", verbose=int(verbose == "auto" or verbose))
        bar.stateful_metrics = {"loss"}
        nit, status, history = 0, RUNNING, []
        stalls, last = tf.constant(0), tf.constant(math.nan, "float64")
        length, iterate, end = 1 if callback else 10, None, 0
        while status == RUNNING:
            if iterate is None or nit == end:
                iterate, end = self._program(xla=nit >= graph), graph if nit < graph else maxiter
            began = time.perf_counter()
            done, ended, stalls, last, losses = iterate(tf.constant(min(length, end - nit)), stalls, last)
            nit, status = nit + int(done), int(ended)
            history.extend(losses.numpy()[: int(done)].tolist())
            if status == RUNNING and nit >= maxiter:
                status = LIMIT
            if callback and status == RUNNING:
                status = self._call(callback, nit, float(last))
            elif time.perf_counter() - began < 0.5 and not callback:
                length = min(2 * length, CHUNK)
            bar.update(nit, [("loss", history[-1])], finalize=status != RUNNING)
        fun, jac = self.answer()
        counts = [
            sum(getattr(each, name) for each in minimizers(self.optimizer)) for name in ("evaluations", "products")
        ]
        first = nit if not minimizers(self.optimizer) else counts[0]
        return OptimizeResult(
            x=self._weights(), fun=fun, jac=jac, nit=nit, nfev=first, nhev=counts[1],
            success=status == CONVERGED, status=status, message=MESSAGES[status], history=np.array(history),
        )  # fmt: skip

    def _weights(self):
        return np.concatenate([np.ravel(v.numpy()) for v in self.model.trainable_variables])

    def _call(self, callback, nit, fun):
        try:
            callback(intermediate_result=OptimizeResult(x=self._weights(), fun=fun, nit=nit))
        except StopIteration:
            return STOPPED
        return RUNNING


def measured(optimizer):
    """The loss and the largest entry of its gradient after a step, where an optimizer knows them; else NaN."""
    if isinstance(optimizer, Switch):
        parts = [functools.partial(measured, part) for part, _ in optimizer.phases]
        return keras.ops.switch(optimizer.phase(dense(optimizer.iterations)), parts)
    known = optimizer.measured() if isinstance(optimizer, Minimizer) else (math.nan, math.nan)
    return tuple(tf.cast(number, "float64") for number in known)
