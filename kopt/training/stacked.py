"""The steps of several like models as one: what each has in variables is stacked along a first axis."""

import warnings
from typing import Any

import keras
import tensorflow as tf
from keras import tree

from kopt._backend import pure
from kopt.training.alike import OWNER
from kopt.training.batch import Batch
from kopt.training.model import track_loss
from kopt.training.oracle import computing, step
from kopt.training.program import weights

MANY = 1000
"""Steps from which a program by XLA, faster once compiled, is worth the second that it takes longer to compile."""


class Stacked:
    """Several like models with their optimizers, in the variables of the first one.

    The first model's layers, loss and optimizer compute, at the values that variables have in each model. The number of
    steps taken so far is kept once where it is the same in all, so that what an optimizer does only every so many steps
    is not computed in all the others.

    Args:
        optimizer: the first model's, built.
        variables: the first model's and its optimizer's, those that training changes.
        jit_compile: whether XLA compiles the programs; "auto" if it can.
        owner: who asks, for errors.

    Attributes:
        optimizer: the optimizer in a form that assigns to no variable.
        state: for each variable a tensor, whose first axis counts models.
        steps: how many steps all have taken, in a list; none where that lies in `state`.
    """

    def __init__(self, optimizer, variables, jit_compile, owner):
        self.optimizer, self.jit_compile, self.owner = pure(optimizer), jit_compile, owner
        self._all = variables
        self._place = next(i for i, v in enumerate(variables) if v is optimizer._iterations)
        self._compiled = {}

    def load(self, states):
        """Takes the values of the variables in each model."""
        taken = {int(values[self._place]) for values in states}
        self.steps = [tf.constant(taken.pop(), "int64")] if len(taken) == 1 else []
        self.variables = self._without_steps(self._all)
        tensors = [[tf.convert_to_tensor(value) for value in self._without_steps(values)] for values in states]
        self.state = [tf.stack(alike) for alike in zip(*tensors, strict=True)]

    def states(self):
        """Returns the values of the variables in each model, as arrays."""
        arrays = [tensor.numpy() for tensor in self.state]
        found = [[array[number] for array in arrays] for number in range(len(arrays[0]))]
        for steps in self.steps:
            for values in found:
                values.insert(self._place, steps.numpy())
        return found

    def _without_steps(self, values):
        values = list(values)
        if self.steps:
            del values[self._place]
        return values

    def _program(self, function, *arguments):
        """A function's program, compiled for such arguments: all later ones have the same shapes."""
        key = function, len(self.steps)
        if key not in self._compiled:
            self._compiled[key] = self._compile(function, arguments)
        return self._compiled[key]

    def _run(self, function, *arguments):
        return self._program(function, *arguments)(*arguments)

    def _compile(self, function, arguments):
        def program(jit_compile):
            made = tf.function(function, jit_compile=jit_compile, autograph=False)
            try:
                return made.get_concrete_function(*arguments)
            except (NotImplementedError, TypeError, ValueError) as error:
                raise ValueError(
                    f"{self.owner}: TensorFlow cannot take this step for several models at once: {error} "
                    "Train them apart."
                ) from error

        if self.jit_compile != "auto":
            return program(self.jit_compile)
        try:
            by_xla = program(True)
            by_xla(*arguments)  # which compiles it, and changes nothing
            return by_xla
        except (tf.errors.InvalidArgumentError, tf.errors.UnimplementedError) as error:
            reason = str(error).partition("\n")[0]
            warnings.warn(f"{self.owner}: runs without XLA, which cannot compile it: {reason}", stacklevel=5)
            self.jit_compile = False
            return program(False)

    def _at(self, state, steps=(), others=()):
        """A scope in which the variables hold these values, and others theirs: pairs of variables and values."""
        held = [*zip(self.variables, state, strict=False), *others]
        return keras.StatelessScope([*held, *((self.optimizer._iterations, taken) for taken in steps)])

    def _left_in(self, scope, variables=None):
        """The values of variables, those that training changes or others, at the end of a scope."""
        return [scope.get_current_value(v) for v in (self.variables if variables is None else variables)]


class StackedModels(Stacked):
    """Several compiled `keras.Model`s, which train and evaluate by the loss and the metrics of the first one.

    Args:
        models: built and compiled, of one structure, with optimizers that are built.
        batch_size: rows in a step.
        evaluated: rows to evaluate at a time.
        jit_compile: whether XLA compiles the programs; "auto" if it can.
    """

    def __init__(self, models, batch_size, evaluated, jit_compile):
        self.models, self.batch_size, self.evaluated = models, batch_size, evaluated
        self.model = models[0]
        super().__init__(self.model.optimizer, self._of(self.model), jit_compile, OWNER)
        self.load([[v.value for v in self._of(model)] for model in models])

    @staticmethod
    def _of(model):
        return [*weights(model), *model.optimizer.variables]

    def train(self, data, order):
        """Trains for an epoch, and returns the metrics of each model, by name.

        Args:
            data: x and, where there are, y and weights: nests of tensors, in a tuple.
            order: the numbers of the rows as all models see them; or a row of numbers for each model.
        """
        self.state, self.steps, logs = self._run(self._epoch, self.state, self.steps, data, order)
        return logs

    def evaluate(self, data):
        """Returns the metrics of each model on these data, by name."""
        return self._run(self._look_at_all, self.state, data)

    def write_back(self):
        """Gives each model its values."""
        for model, values in zip(self.models, self.states(), strict=True):
            for variable, value in zip(self._of(model), values, strict=True):
                variable.assign(value)

    def _epoch(self, state, steps, data, order):
        def take(start, size, carried):
            state, steps, metrics = carried
            rows = tf.gather(order, start + tf.range(size), axis=-1)
            some = tree.map_structure(lambda x: tf.gather(x, rows), data)
            state, metrics = self._step(state, steps, metrics, some, one_batch=order.shape.rank == 1)
            return state, [taken + 1 for taken in steps], metrics

        begin = state, steps, self._unused_metrics()
        state, steps, metrics = in_batches(take, order.shape[-1], self.batch_size, begin)
        return state, steps, self._results(metrics)

    def _look_at_all(self, state, data):
        def take(start, size, metrics):
            some = tree.map_structure(lambda x: tf.gather(x, start + tf.range(size)), data)
            return self._look(state, metrics, some)

        rows = tree.flatten(data)[0].shape[0]
        return self._results(in_batches(take, rows, self.evaluated, self._unused_metrics()))

    def _step(self, state, steps, metrics, batch, one_batch):
        """State and metrics of all models after a step, on one batch or on one for each."""

        def step(state, metrics, batch):
            with self._at(state, steps, self._measured(metrics)) as scope:
                train_step(self.model, self.optimizer, batch)
            return self._left_in(scope), self._left_in(scope, self.model.metrics_variables)

        if one_batch:
            return mapped(lambda own: step(own[0], own[1], batch), (state, metrics))
        return mapped(lambda own: step(own[0], own[1], own[2]), (state, metrics, batch))

    def _look(self, state, metrics, batch):
        """Metrics of all models after a look at a batch."""

        def look(own):
            state, metrics = own
            with self._at(state, others=self._measured(metrics)) as scope:
                self.model.test_step(batch)
            return self._left_in(scope, self.model.metrics_variables)

        return mapped(look, (state, metrics))

    def _results(self, metrics):
        def results(metrics):
            with self._at((), others=self._measured(metrics)):
                return self.model.get_metrics_result()

        return mapped(results, metrics)

    def _measured(self, metrics):
        return list(zip(self.model.metrics_variables, metrics, strict=True))

    def _unused_metrics(self):
        """What metrics hold before the first batch, for each model."""
        variables = self.model.metrics_variables
        with keras.StatelessScope([(variable, variable.value) for variable in variables]) as scope:
            self.model.reset_metrics()
        return [tf.stack([value] * len(self.models)) for value in self._left_in(scope, variables)]


def in_batches(take, rows, size, carried):
    """Takes batches of rows until there are none left, and returns what is carried from one to the next.

    Args:
        take: from the first row of a batch, its size and what is carried to what is carried on.
        rows: how many there are, a Python number.
        size: rows in a batch; the last one has what is left of them.
        carried: to begin with, a nest of tensors.
    """
    full, rest = divmod(rows, size)

    def body(number, carried):
        return number + 1, take(number * size, size, carried)

    begin: Any = tf.constant(0), carried
    carried = tf.while_loop(lambda number, _: number < full, body, begin, parallel_iterations=1)[1]
    return take(full * size, rest, carried) if rest else carried


def mapped(function, arguments):
    """`function(arguments)` for each model at once; one by one within the program where an operation has no such form.

    Random numbers are of that kind: they are those that a model draws alone.
    """
    return tf.vectorized_map(function, arguments, warn=False)


def train_step(model, optimizer, batch):
    """Takes a step of `kopt.Model`'s on a batch, with an optimizer in the place of the model's own."""
    x, y, sample_weight = keras.utils.unpack_x_y_sample_weight(batch)
    scale = None if optimizer.loss_scale_factor is None else optimizer.scale_loss(1.0)
    look = Batch(model, computing(model, batch), scale, getattr(model, "fresh_noise", False), model.loss)
    step(optimizer, look, optimizer.apply)
    track_loss(model, optimizer, look.loss, x)
    model.compute_metrics(x, y, look.outputs, sample_weight)
