"""A network's training and prediction, compiled: an epoch is one program over rows that lie on the device."""

import contextlib
import functools
import math
import threading
import warnings
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from kopt._keras import is_seed
from kopt.distribute import strategy as distributed
from kopt.distribute.alone import applying
from kopt.distribute.checks import loops
from kopt.noise import noise_in
from kopt.training import losses, xla
from kopt.training.batch import Batch, as_they_are
from kopt.training.cache import Cache
from kopt.training.epochs import CANNOT_COMPILE, over_batches
from kopt.training.everywhere import step_everywhere
from kopt.training.look import WeightedLook, others_of
from kopt.training.oracle import refuse, step
from kopt.training.several import within
from kopt.training.whole import minimizers, whole_batch

WHOLE = 2**26
"""Training rows of more bytes than this go to the device in blocks, so that they may be a file mapped to memory."""

BLOCK = 2**23
"""Bytes in a block."""

ROWS = 4096
"""Rows predicted at a time."""

FEW = 2500
"""Steps for which XLA never pays: to compile an operation takes as long as calling it so often."""


def program(model, optimizer, loss, strategy, rows):
    """Returns the program for these: of one device, or of several replicas.

    Args:
        model: a built `keras.Model`, made in the strategy's scope, as the optimizer.
        optimizer: built for the model's trainable variables.
        loss: as `kopt.training.losses.resolve` returns it.
        strategy: as `kopt.distribute.strategy.resolve` returns it.
        rows: the `tf.TensorSpec`s of rows, targets and weights.
    """
    kind = Program if distributed.replicas(strategy) == 1 else SharedProgram
    return kind(model, optimizer, loss, strategy, rows)


class Program:
    """One structure's compiled functions, with a model and an optimizer whose values every fit replaces.

    Training works in the variables of the model, under `lock`. Prediction takes weights as arguments, so that it
    needs no lock, and any number of networks share it.

    Attributes:
        populations: the `kopt.training.together.StackedNetworks` that were made of it.
    """

    def __init__(self, model, optimizer, loss, strategy, rows):
        self.model, self.loss = model, loss
        self.outer = optimizer  # a loss-scale wrapper, or the optimizer itself
        self.optimizer: Any = getattr(optimizer, "inner_optimizer", optimizer)
        self.strategy, self.rows = strategy, rows
        self.lock = threading.RLock()
        self.weights = weights(model)
        self.populations, self._compiled_epochs, self._refused = Cache(size=4), Cache(size=4), ""
        self._hidden = {}
        self._unused = [v.numpy() for v in self.variables[len(self.weights) :]]
        order, batch_size = tf.TensorSpec([None], tf.int32), tf.TensorSpec([], tf.int32)
        self.epoch = tf.function(self._epoch, [*rows, order, batch_size], autograph=False)

    @functools.cached_property
    def predict(self):
        """The compiled outputs of rows and weights, in the rows' dtype."""
        return self._compiled(self.model)

    @functools.cached_property
    def draw(self):
        """The same with the noise of training, for weights of `kopt.noise.reseeded`."""
        return self._compiled(self.model, noisy=True)

    def hidden(self, place):
        """The same for the layer at a place: see `kopt.training.several.within`."""
        with self.lock, distributed.scope(self.strategy):
            if place not in self._hidden:
                self._hidden[place] = self._compiled(within(self.model, place))
            return self._hidden[place]

    def _compiled(self, model, noisy=False):
        rows = self.rows[0]

        def outputs(X, *weights):
            noise = noise_in(model) if noisy else contextlib.nullcontext()
            with noise, keras.StatelessScope(list(zip(self.weights, weights, strict=True))):
                return tf.cast(model(X, training=False), rows.dtype)

        weights = [tf.TensorSpec(w.shape, w.dtype) for w in self.weights]
        with self.lock, distributed.scope(self.strategy):
            function = tf.function(outputs, [rows, *weights], autograph=False).get_concrete_function()
            return direct(function, optimizes=True)

    @property
    def variables(self):
        """All that training changes: weights, then what the optimizer keeps."""
        return [v.value if isinstance(v, keras.Variable) else v for v in (*self.weights, *self.outer.variables)]

    def load(self, state):
        """Assigns arrays to the variables."""
        for variable, array in zip(self.variables, state, strict=True):
            variable.assign(array)

    def state(self):
        """Returns the variables as arrays."""
        return [variable.numpy() for variable in self.variables]

    def batch_size(self, X, batch_size):
        """The rows in a step of a fit that begins: all, where the optimizer takes the data set as one batch.

        Else, where None is asked for, a fiftieth, but 32 to 256: small data get more steps, large data faster ones.
        """
        for minimizer in minimizers(self.optimizer):
            batch_size = whole_batch(minimizer, X, batch_size)
            minimizer.forget()
        return batch_size or min(max(X.shape[0] // 50, 32), 256, X.shape[0])

    def unused_optimizer(self, inputs):
        """Returns what an optimizer with these inputs keeps before its first step, as arrays."""
        kept = self.variables[len(self.weights) :]
        with self.lock, distributed.scope(self.strategy):
            for variable, array in zip(kept, self._unused, strict=True):
                variable.assign(array)
            self.set_inputs(inputs)
            return [variable.numpy() for variable in kept]

    def set_inputs(self, inputs):
        """Sets hyperparameters of the optimizer that it keeps in variables."""
        for name, value in inputs.items():
            *parts, own = name.split("__")
            setattr(functools.reduce(getattr, parts, self.optimizer), own, value)

    def swap(self, to):
        """Puts the averages of weights into the model for "evaluation", and those that are trained for "training"."""
        if getattr(self.optimizer, "averages", False):
            self.optimizer.swap(to)

    def epochs(self, X, y, w, batch_size, planned):
        """Returns a function that trains for an epoch in the order it is given, and returns the sum of w · loss.

        Args:
            X: rows, dense or sparse.
            y: targets.
            w: positive weights of the rows.
            batch_size: rows in a step; the last one of an epoch takes what is left.
            planned: how many epochs there are in all. On this alone, and what is computed, it depends whether XLA
                compiles the steps, so that like fits are equal; it does not where random numbers are drawn, which would
                be others.
        """
        if not in_blocks(X):
            rows = self.on_device(X, y, w)
            function: Any = self.epoch.get_concrete_function()
            graph, size = direct(function, optimizes=False), tf.constant(batch_size)

            def as_graph(order):
                return float(graph(*rows, tf.constant(order), size))

            if not self._pays(len(w) // batch_size * planned, function.graph):
                return as_graph
            key = len(w), batch_size
            by_xla = self._compiled_epochs.find(key, lambda: self._compile(rows, batch_size))
            return functools.partial(self._epoch_by_xla, by_xla, rows, as_graph)
        block = max(BLOCK // (_bytes_of_row(X) * batch_size), 1) * batch_size

        def within_block(these):
            rows = dense(X[these]), dense(y[these]), w[these]
            return float(self.epoch(*rows, np.arange(len(these), dtype="int32"), batch_size))

        def epoch(order):
            total = 0.0
            for start in range(0, len(order), block):
                total += within_block(order[start : start + block])
            return total

        return epoch

    def on_device(self, X, y, w):
        """Rows, targets and weights as tensors."""
        return [tf.constant(dense(a), spec.dtype) for a, spec in zip((X, y, w), self.rows, strict=True)]

    def _pays(self, steps, graph):
        """Whether XLA is worth its time for so many steps of this graph, as far as it can compile them."""
        if self._refused or steps < FEW or any(map(is_seed, self.weights)):
            return False
        return xla.pays(steps, xla.operations_of_loop(graph))

    def _compile(self, rows, batch_size):
        """A program of the whole batches of an epoch, which XLA compiles when it is first called."""
        whole = len(rows[0]) // batch_size * batch_size

        def epoch(X, y, w, order):
            return self._loop(X, y, w, order, 0, whole // batch_size, whole, batch_size, batch_size)

        compiled = tf.function(epoch, jit_compile=True, autograph=False)
        return compiled.get_concrete_function(*rows, tf.TensorSpec([whole], tf.int32))

    def _epoch_by_xla(self, by_xla, rows, as_graph, order):
        """An epoch whose last batch, if it is smaller, runs as a graph."""
        whole, total = 0 if self._refused else by_xla.inputs[len(rows)].shape[0], 0.0
        try:
            total = float(by_xla(*rows, tf.constant(order[:whole]))) if whole else 0.0
        except CANNOT_COMPILE as error:
            whole, self._refused = 0, str(error).strip().partition("\n")[0]
            warnings.warn(f"{self.model.name} runs as a graph: XLA cannot compile it, {self._refused}", stacklevel=2)
        return total + (as_graph(order[whole:]) if whole < len(order) else 0.0)

    def evaluate(self, X, y, w):
        """The weighted mean of the loss at the present weights, without penalties."""
        weights = [tf.convert_to_tensor(v.value) for v in self.weights]
        outputs = predictions(self.predict, X, weights)
        return np.average(losses.values(self.loss, tf.constant(dense(y)), tf.constant(outputs)), weights=w)

    def _epoch(self, X, y, w, order, batch_size):
        rows = tf.size(order)
        return self._loop(X, y, w, order, 0, (rows + batch_size - 1) // batch_size, rows, batch_size)

    def _loop(self, X, y, w, order, first, last, rows, size, length=None):
        """Steps on batches, as `over_batches` takes them; returns the sum of w · loss."""

        def take(batch, state):
            (total,) = state
            w_batch = tf.gather(w, batch)
            weight = tf.reduce_sum(w_batch)
            loss = self._step(tf.gather(X, batch), tf.gather(y, batch), w_batch, weight)
            return (total + weight * loss,)

        begin = (tf.zeros([], w.dtype),)
        return over_batches(take, order, tf.constant(first), last, rows, size, begin, length)[0]

    def _step(self, X, y, w, weight):
        """Updates the weights from these rows, and returns their part of the loss of a batch of this `weight`."""
        batch = self.batch(X, y, w, weight)
        step(self.optimizer, batch, applying(self.outer, self.model.variables))
        return batch.loss

    def batch(self, X, y, w, weight):
        """What an optimizer looks at in these rows: their part of the loss of a batch of this `weight`.

        The parts of all replicas add up to the batch's loss, and so their gradients to its gradient.
        """
        objective: Any = getattr(self.model, "objective", None)

        def compute(through):
            look = WeightedLook(self.model, X, y, w, self.loss, weight, type(objective).__name__)
            if objective is None:
                outputs = look.outputs()
                return outputs, look.loss(through(outputs))
            if through is not as_they_are:
                refuse(objective)
            return objective.total(look)

        wrapped = self.outer is not self.optimizer
        factor = self.outer.scale_loss(1.0) if wrapped else self.optimizer.loss_scale_factor
        return Batch(self.model, compute, factor, getattr(self.model, "fresh_noise", False), self.loss)


class SharedProgram(Program):
    """The same over several replicas, each of which gets its share of each batch."""

    def __init__(self, model, optimizer, loss, strategy, rows):
        super().__init__(model, optimizer, loss, strategy, rows)
        self.step = tf.function(self._shared_step, self.rows, autograph=False)

    def epochs(self, X, y, w, batch_size, planned):
        """As `Program.epochs`, without XLA; one call for each step where replicas cannot sum in loops."""
        if loops(self.strategy):
            return super().epochs(X, y, w, batch_size, planned)

        def epoch(order):
            parts = [order[start : start + batch_size] for start in range(0, len(order), batch_size)]
            return float(sum(self.step(dense(X[part]), dense(y[part]), w[part]) for part in parts))

        return epoch

    def _pays(self, steps, graph):
        return False

    def _shared_step(self, X, y, w):
        return self._step(X, y, w, tf.reduce_sum(w)) * tf.reduce_sum(w)

    def _step(self, X, y, w, weight):
        def batch_of(share):
            X, y, w = share
            return self.batch(X, y, w, weight)

        def share_of_step(share):
            batch = batch_of(share)
            step(self.optimizer, batch, applying(self.outer, self.model.variables))
            return batch.loss

        rows = X, y, w
        if minimizers(self.optimizer):
            found = step_everywhere(self.optimizer, self.strategy, rows, batch_of, lambda _, batch: batch.loss)
        else:
            found = distributed.run_shared(self.strategy, share_of_step, rows)
        return self.strategy.reduce(tf.distribute.ReduceOp.SUM, found, axis=None)


def weights(model):
    """All of a model's variables, the trainable ones first, the objective's last."""
    return [*model.trainable_variables, *others_of(model)]


def in_blocks(X):
    """Whether rows are so many bytes that they go to the device in blocks."""
    return X.shape[0] * _bytes_of_row(X) > WHOLE


def _bytes_of_row(X):
    return math.prod(X.shape[1:]) * X.dtype.itemsize


def direct(function, optimizes):
    """A concrete function with one output, to call past TensorFlow's checks, with tensors that are as it wants them.

    These take longer than a small network. On a CPU alone: elsewhere TensorFlow has to see which tensors go where.

    Args:
        function: the function.
        optimizes: whether TensorFlow may take its time to improve the graph before the first call, which pays for
            predictions. The steps of a training become no faster.
    """
    if tf.config.list_logical_devices("GPU"):
        return function
    config = tf.compat.v1.ConfigProto()
    config.graph_options.rewrite_options.disable_meta_optimizer = not optimizes
    how = {"Tout": [function.output_dtypes], "f": function, "config_proto": config.SerializeToString()}

    def call(*tensors):
        return tf.raw_ops.StatefulPartitionedCall(args=[*tensors, *function.captured_inputs], **how)[0]

    return call


def predictions(predict, X, weights):
    """The outputs of a compiled `predict` for any number of rows, dense or sparse, `ROWS` at a time."""
    blocks = [predict(tf.constant(dense(X[i : i + ROWS])), *weights).numpy() for i in range(0, X.shape[0], ROWS)]
    return blocks[0] if len(blocks) == 1 else np.concatenate(blocks)


def dense(X):
    """Rows as an array."""
    return X.toarray() if hasattr(X, "toarray") else np.asarray(X)
