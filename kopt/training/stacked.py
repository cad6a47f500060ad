"""The steps of several like models as one: what each has in variables is stacked along a first axis."""

import warnings
from typing import Any

import keras
import tensorflow as tf
from keras import tree

from kopt._backend import pure
from kopt.training.alike import OWNER
from kopt.training.model import track_loss
from kopt.training.oracle import Batch, computing, step
from kopt.training.program import weights


class Stacked:
    """Several models with their optimizers, whose epochs are one program.

    The first model's layers, loss, metrics and optimizer compute, at the values that variables have in each model. The
    number of steps taken so far is kept once where it is the same in all, so that what an optimizer does only every so
    many steps is not computed in all the others.

    Args:
        models: built and compiled `keras.Model`s of one structure, with optimizers that are built.
        batch_size: rows in a step.
        evaluated: rows to evaluate at a time.
        jit_compile: whether XLA compiles the programs; "auto" if it can.

    Attributes:
        state: for each variable a tensor, whose first axis counts models.
        steps: how many steps all have taken, in a list; none where that lies in `state`.
    """

    def __init__(self, models, batch_size, evaluated, jit_compile):
        self.models, self.batch_size, self.evaluated = models, batch_size, evaluated
        self.model, self.optimizer = models[0], pure(models[0].optimizer)
        taken = {int(model.optimizer._iterations.numpy()) for model in models}
        self.steps = [tf.constant(taken.pop(), "int64")] if len(taken) == 1 else []
        self.variables = [self._variables(model) for model in models]
        self.state = [tf.stack([v.value for v in alike]) for alike in zip(*self.variables, strict=True)]
        self.jit_compile, self._compiled = jit_compile, {}

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
        arrays = [tensor.numpy() for tensor in self.state]
        for number, (model, variables) in enumerate(zip(self.models, self.variables, strict=True)):
            for variable, array in zip(variables, arrays, strict=True):
                variable.assign(array[number])
            for steps in self.steps:
                model.optimizer._iterations.assign(steps)

    def _run(self, function, *arguments):
        """Calls a function's program, compiled at the first call: all later ones get tensors of the same shapes."""
        if function not in self._compiled:
            self._compiled[function] = self._compile(function, arguments)
        return self._compiled[function](*arguments)

    def _compile(self, function, arguments):
        def program(jit_compile):
            made = tf.function(function, jit_compile=jit_compile, autograph=False)
            try:
                return made.get_concrete_function(*arguments)
            except (NotImplementedError, TypeError, ValueError) as error:
                raise ValueError(
                    f"{OWNER}: TensorFlow cannot take this step for several models at once: {error} Train them apart."
                ) from error

        if self.jit_compile != "auto":
            return program(self.jit_compile)
        try:
            by_xla = program(True)
            by_xla(*arguments)  # which compiles it, and changes nothing
            return by_xla
        except (tf.errors.InvalidArgumentError, tf.errors.UnimplementedError) as error:
            reason = str(error).partition("\n")[0]
            warnings.warn(f"{OWNER}: runs without XLA, which cannot compile it: {reason}", stacklevel=5)
            self.jit_compile = False
            return program(False)

    def _variables(self, model):
        variables = *weights(model), *model.optimizer.variables
        return [v for v in variables if not (self.steps and v is model.optimizer._iterations)]

    def _epoch(self, state, steps, data, order):
        full, rest = divmod(order.shape[-1], self.batch_size)

        def batch(state, steps, metrics, start, size):
            rows = tf.gather(order, start + tf.range(size), axis=-1)
            some = tree.map_structure(lambda x: tf.gather(x, rows), data)
            state, metrics = self._step(state, steps, metrics, some, one_batch=order.shape.rank == 1)
            return state, [taken + 1 for taken in steps], metrics

        def body(number, state, steps, metrics):
            return number + 1, *batch(state, steps, metrics, number * self.batch_size, self.batch_size)

        begin: Any = tf.constant(0), state, steps, self._unused_metrics()
        _, state, steps, metrics = tf.while_loop(lambda number, *_: number < full, body, begin, parallel_iterations=1)
        if rest:
            state, steps, metrics = batch(state, steps, metrics, full * self.batch_size, rest)
        return state, steps, self._results(metrics)

    def _look_at_all(self, state, data):
        size = tree.flatten(data)[0].shape[0]
        full, rest = divmod(size, self.evaluated)

        def batch(metrics, start, size):
            some = tree.map_structure(lambda x: tf.gather(x, start + tf.range(size)), data)
            return self._look(state, metrics, some)

        def body(number, metrics):
            return number + 1, batch(metrics, number * self.evaluated, self.evaluated)

        begin = tf.constant(0), self._unused_metrics()
        metrics = tf.while_loop(lambda number, _: number < full, body, begin, parallel_iterations=1)[1]
        return self._results(batch(metrics, full * self.evaluated, rest) if rest else metrics)

    def _step(self, state, steps, metrics, batch, one_batch):
        """State and metrics of all models after a step, on one batch or on one for each."""

        def step(state, metrics, batch):
            with self._at(state, metrics, steps) as scope:
                train_step(self.model, self.optimizer, batch)
            return self._left_in(scope)

        if one_batch:
            return _mapped(lambda own: step(own[0], own[1], batch), (state, metrics))
        return _mapped(lambda own: step(own[0], own[1], own[2]), (state, metrics, batch))

    def _look(self, state, metrics, batch):
        """Metrics of all models after a look at a batch."""

        def look(own):
            state, metrics = own
            with self._at(state, metrics) as scope:
                self.model.test_step(batch)
            return self._left_in(scope)[1]

        return _mapped(look, (state, metrics))

    def _results(self, metrics):
        def results(metrics):
            with self._at((), metrics):
                return self.model.get_metrics_result()

        return _mapped(results, metrics)

    def _unused_metrics(self):
        """What metrics hold before the first batch, for each model."""
        variables = self.model.metrics_variables
        with keras.StatelessScope([(variable, variable.value) for variable in variables]) as scope:
            self.model.reset_metrics()
        fresh = [scope.get_current_value(variable) for variable in variables]
        return [tf.stack([value] * len(self.models)) for value in fresh]

    def _at(self, state, metrics, steps=()):
        """A scope in which the first model's variables hold these values."""
        held = [*zip(self.variables[0], state, strict=False), *zip(self.model.metrics_variables, metrics, strict=True)]
        return keras.StatelessScope([*held, *((self.model.optimizer._iterations, taken) for taken in steps)])

    def _left_in(self, scope):
        """The state and the metrics at the end of a scope."""
        both = self.variables[0], self.model.metrics_variables
        return tuple([scope.get_current_value(variable) for variable in variables] for variables in both)


def _mapped(function, arguments):
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
