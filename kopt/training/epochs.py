"""Many steps of a model as one program: a loop over batches of rows that lie on the device."""

import functools
import math
import threading
import warnings

import numpy as np
import tensorflow as tf
from keras import tree

from kopt.distribute.strategy import joined, run_shared
from kopt.training import xla
from kopt.training.whole import minimizers

COUNT, ORDER = tf.TensorSpec([], tf.int32), tf.TensorSpec([None], tf.int32)
CANNOT_COMPILE = tf.errors.InvalidArgumentError, tf.errors.UnimplementedError, tf.errors.InternalError
"""What XLA raises before it has run anything."""


def over_batches(take, order, first, last, rows, size, state=(), length=None, loops=True):
    """Takes batches `first` up to `last` of rows in some order, and returns the state after them: each epoch's loop.

    Args:
        take: from the indices of a batch's rows and the state to the new state, tuples of tensors.
        order: indices of rows, an int32 vector.
        first: the first batch's number, counted from the beginning of `order`.
        last: the number after the last one's.
        rows: how many entries of `order` count: the last batch has what is left of them.
        size: rows in a batch.
        state: to begin with.
        length: rows in each of these batches, if they are not to be counted: XLA's shapes cannot depend on `rows`.
        loops: whether there may be several of them; else the first one is taken.
    """

    def body(number, state):
        start = number * size
        batch = tf.slice(order, [start], [tf.minimum(size, rows - start) if length is None else length])
        return number + 1, take(batch, state)

    if not loops:
        return body(first, tuple(state))[1]
    return tf.while_loop(lambda number, _: number < last, body, (first, tuple(state)), parallel_iterations=1)[1]


class Step:
    """A model's step as a function of tensors, traced once for batches of any number of rows.

    Args:
        step: what takes a batch: `train_step`, `test_step` or `predict_step`, of one device or `over_replicas`.
        structure: of the batch, with None where it has none and anything else in the place of tensors.
        specs: of the tensors, in order.
        loops: whether it can be taken in a loop of a graph.

    Attributes:
        traced: TensorFlow's function.
        compiled: another one, which XLA compiles for each number of rows when it is called.
        operations: the types of its operations.
        outputs: what it returns.
    """

    def __init__(self, step, structure, specs, loops=True):
        self._step, self._structure, self.specs, self.loops = step, structure, specs, loops
        self._kind = type(tf.Variable(tf.zeros(())))  # tf.Variable itself would ask the trace to make one
        self.traced = tf.function(self.plain).get_concrete_function(*specs)
        self.operations = xla.operations_of(self.traced.graph)
        self.outputs = self.traced.structured_outputs
        self.compiled = tf.function(self.plain, reduce_retracing=True, jit_compile=True)

    @tf.autograph.experimental.do_not_convert  # as Keras has it
    def plain(self, *tensors):
        """Takes the step in the graph at hand: XLA needs that in a loop, for the sake of recurrent layers' loops."""
        rest = iter(tensors)
        flat = [None if part is None else next(rest) for part in tree.flatten(self._structure)]
        with tf.variable_creator_scope(self._variable):
            return self._step(tree.pack_sequence_as(self._structure, flat))

    def _variable(self, _, **how):
        """Makes a variable outside of the trace: TensorFlow traces a function twice that makes one itself."""
        with tf.init_scope():
            return self._kind(**how)


def over_replicas(strategy, model, task):
    """A model's step for a task, on a batch of which each replica of a strategy takes its share."""
    step = getattr(model, f"{task}_step")
    beside = task == "train" and minimizers(model.optimizer)  # these call the replicas themselves

    def whole(data):
        found = step(data) if beside else run_shared(strategy, step, data)
        if task == "predict":
            return joined(strategy, found)
        return tree.map_structure(lambda x: tf.reduce_mean(tf.stack(strategy.experimental_local_results(x)), 0), found)

    return whole


class Pace:
    """How many steps a program takes in some time, by its last call.

    Args:
        most: how many it can take in a call.
    """

    def __init__(self, most=math.inf):
        self.most, self._calls, self._each = most, 0, None

    def steps(self, seconds):
        """How many steps to take in the next call. The first one compiles, and tells nothing."""
        return min((1, 8)[self._calls] if self._each is None else max(int(seconds / self._each), 1), self.most)

    def learn(self, steps, seconds):
        """Learns how long a call took."""
        self._calls += 1
        if self._calls > 1:
            self._each = seconds / steps


class Predictions:
    """A model's `predict_step` on any number of batches, compiled.

    Args:
        step: a `Step`.

    Attributes:
        joins: whether outputs of batches can be joined in a program: dense ones, that differ in their rows alone.
    """

    def __init__(self, step):
        self.step, self.pace = step, Pace()
        parts = tree.flatten(step.outputs)
        self.joins = all(tf.is_tensor(x) and x.shape.rank and None not in x.shape[1:].as_list() for x in parts)
        self._programs = {}
        self._lock = threading.Lock()

    def __call__(self, part, size, jit, planned):
        """Returns the outputs for a part of the data: arguments are those of `Epochs.__call__`.

        XLA compiles single steps, and only on demand: outputs of any number of rows are no shapes that it knows.
        """
        with self._lock:
            if jit not in self._programs:
                one = self.step.compiled if jit is True else self.step.traced
                signature = [*self.step.specs, ORDER, COUNT, COUNT, COUNT, COUNT]
                self._programs[jit] = one, tf.function(functools.partial(self._loop, one), signature)
        one, many = self._programs[jit]
        if part.tensors[0].shape[0] == part.rows <= size:  # all of it is a batch
            return one(*part.tensors)
        return many(*part.tensors, part.order, part.first, part.last, part.rows, size)

    @tf.autograph.experimental.do_not_convert
    def _loop(self, one, *arguments):
        *tensors, order, first, last, rows, size = arguments
        parts = tree.flatten(self.step.outputs)
        outputs = [tf.TensorArray(x.dtype, last - first, infer_shape=False, element_shape=x.shape) for x in parts]

        def take(indices, state):
            number, *outputs = state
            found = tree.flatten(one(*(tf.gather(tensor, indices) for tensor in tensors)))
            return number + 1, *(all.write(number, x) for all, x in zip(outputs, found, strict=True))

        _, *outputs = over_batches(take, order, first, last, rows, size, (0, *outputs))
        return tree.pack_sequence_as(self.step.outputs, [output.concat() for output in outputs])


class Program:
    """A model's `train_step` or `test_step`, any number of times in one call, compiled.

    The metrics are the model's own variables, so that it does not matter how many steps a call takes.

    Args:
        model: the model.
        step: a `Step` of it.
    """

    def __init__(self, model, step):
        self.model, self.step, self.pace = model, step, Pace(math.inf if step.loops else 1)
        # A step that returns other logs than the metrics' results speaks for itself, as in Keras's loop.
        self._speaks = not isinstance(step.outputs, dict) or step.outputs.keys() != model.get_metrics_result().keys()
        self._programs = {}
        self._lock = threading.Lock()

    def _silence(self):
        """What steps have said before the first one: a tuple of tensors, empty where they do not speak."""
        return tuple(tf.zeros(x.shape, x.dtype) for x in tree.flatten(self.step.outputs)) if self._speaks else ()

    def _said(self, logs):
        """What a step says with its logs."""
        return tuple(tree.flatten(logs)) if self._speaks else ()

    def _logs(self, said):
        """The logs after the last step."""
        return tree.pack_sequence_as(self.step.outputs, said) if self._speaks else self.model.get_metrics_result()


class Epochs(Program):
    """The program for rows that lie on the device."""

    refused = ""
    """Why XLA cannot compile it, once that is known."""

    def uses_xla(self, jit, planned):
        """Whether to compile with XLA: as the user says, or where `jit` is "auto", if it pays in these steps."""
        if jit != "auto" or self.refused:
            return jit is True
        return True in self._programs or xla.pays(planned, self.step.operations)

    def __call__(self, part, size, jit, planned):
        """Takes the steps of a part of the data, and returns the logs after them.

        Args:
            part: a `kopt.training.rows.Part`.
            size: rows in a batch.
            jit: True, False or "auto", for what pays. What XLA cannot compile then runs as a graph, with a warning.
            planned: how many steps there will be in all.
        """
        full, rest = divmod(part.rows, size)
        if not self.uses_xla(jit, planned):
            return self._run(False, part, size, part.first, part.last)
        if jit is True and xla.is_slow(self.step.operations):
            return self._run("steps", part, size, part.first, part.last)
        logs = None
        if part.first < full:
            try:
                logs = self._run(True, part, size, part.first, min(part.last, full), size)
            except CANNOT_COMPILE as error:
                if jit is True:
                    raise
                self.refused = str(error).strip().partition("\n")[0]
                warnings.warn(f"{self.model.name} runs as a graph: XLA cannot compile it, {self.refused}", stacklevel=2)
                return self._run(False, part, size, part.first, part.last)
        if part.last > full:  # a step of less rows, which XLA would compile for its own: on demand alone
            logs = self._run(jit is True, part, size, full, part.last, rest)
        return logs

    def _run(self, compiled, part, size, first, last, length=0):
        """Runs the program that XLA has compiled, or a graph, of which it may have compiled single "steps"."""
        with self._lock:
            if compiled not in self._programs:
                signature = [*self.step.specs, ORDER, COUNT, COUNT, COUNT, COUNT, ORDER]
                program = functools.partial(self._program, compiled)
                self._programs[compiled] = tf.function(program, signature, jit_compile=compiled is True)
        like = np.empty(length, "int32")
        return self._programs[compiled](*part.tensors, part.order, first, last, part.rows, size, like)

    @tf.autograph.experimental.do_not_convert
    def _program(self, compiled, *arguments):
        *tensors, order, first, last, rows, size, like = arguments
        steps = {True: self.step.plain, False: self.step.traced, "steps": self.step.compiled}
        step = steps[compiled]
        # What a step sees is the same with and without XLA, a number of rows that only XLA's compiler knows: Keras
        # weighs some of its metrics otherwise where Python knows it.
        length = tf.shape(like)[0] if compiled is True else None

        def take(indices, said):
            return self._said(step(*(tf.gather(tensor, indices) for tensor in tensors)))

        silence, loops = self._silence(), self.step.loops
        return self._logs(over_batches(take, order, first, last, rows, size, silence, length, loops))


class Streamed(Program):
    """The program for batches that an iterator yields."""

    def __call__(self, batches, steps, jit, planned):
        """Takes steps on the next batches, and returns how many there were, and the logs after them.

        Args:
            batches: an iterator of a `tf.data.Dataset`.
            steps: how many at most.
            jit: True, False or "auto", for what Keras would choose, of whether to compile each step with XLA.
            planned: how many there will be in all, which makes no difference.
        """
        with self._lock:
            if not self._programs:
                step = self.step.compiled if jit is not False and self.model.jit_compile else self.step.traced
                self._programs[True] = tf.function(functools.partial(self._program, step))
        if not self.step.loops:
            batch = batches.get_next_as_optional()
            return (1, self._one(batch)) if batch.has_value() else (0, self._logs(self._silence()))
        taken, logs = self._programs[True](batches, tf.constant(min(steps, COUNT.dtype.max)))
        return int(taken), logs

    def _one(self, batch):
        """Takes a step on a batch, and returns the logs after it."""
        return self._logs(self._said(self.step.traced(*_parts(batch))))

    @tf.autograph.experimental.do_not_convert
    def _program(self, step, batches, steps):
        def body(taken, more, said):
            batch = batches.get_next_as_optional()

            def take():
                return taken + 1, True, self._said(step(*_parts(batch)))

            return tf.cond(batch.has_value(), take, lambda: (taken, False, said))

        start = tf.constant(0), tf.constant(True), self._silence()
        taken, _, said = tf.while_loop(lambda n, more, _: more & (n < steps), body, start, parallel_iterations=1)
        return taken, self._logs(said)


def _parts(batch):
    """The tensors of an iterator's batch."""
    return [x for x in tree.flatten(batch.get_value()) if not isinstance(x, tf.experimental.Optional)]
