"""Who follows a fit: validation, early stopping, the progress bar, Keras's callbacks."""

import dataclasses
from typing import Any

import keras
import numpy as np

from kopt.training.loop import asks_for_batches


@dataclasses.dataclass(frozen=True)
class Course:
    """A fit under way, as its followers see it.

    Attributes:
        network: the `Network` that is trained. Until the end its arrays are those that it had before.
        program: the `Program` in whose variables it is trained.
        first: the number of the first epoch, from 0; not 0 where a fit goes on.
        epochs: how many there are at most.
        steps: batches in each.
    """

    network: Any
    program: Any
    first: int
    epochs: int
    steps: int

    def snapshot(self):
        """Returns a network of its own with the weights of this moment."""
        _ = self.program.predict  # compiled here, under the program's lock, for which a scorer's threads would wait
        return self.network.at(self.program.state())


class Follower:
    """Is told of each epoch of a fit, and may add to what is known of it, and stop it.

    Attributes:
        looks: whether it looks at the weights at the end of an epoch: they are then those to evaluate at.
        wants_batches: whether it is told of each batch. The compiled program then takes one at a time.
    """

    looks = True
    wants_batches = False

    def begin(self, course):
        """A fit begins."""

    def begin_epoch(self, number):
        """An epoch begins; the first one ever has number 0."""

    def begin_batch(self, number):
        """A batch begins, the epoch's first one with number 0."""

    def end_batch(self, number, logs):
        """A batch ended. Returns whether to stop; `logs` has the mean "loss" of the epoch so far."""

    def end_epoch(self, number, logs):
        """An epoch ended. Returns whether to stop; what it adds to the numbers in `logs` goes to the history."""

    def restore(self):
        """The epochs are over; where weights are averaged, the averages are not the weights yet."""

    def end(self, logs):
        """The fit ends; weights that it puts into the program's model now are kept. `logs` are the last epoch's."""


class All(Follower):
    """Several followers, told in order.

    Args:
        followers: these.
    """

    def __init__(self, followers):
        self.followers = list(followers)
        self.looks = any(follower.looks for follower in self.followers)
        self.wants_batches = any(follower.wants_batches for follower in self.followers)

    def begin(self, course):
        """Tells all."""
        for follower in self.followers:
            follower.begin(course)

    def begin_epoch(self, number):
        """Tells all."""
        for follower in self.followers:
            follower.begin_epoch(number)

    def begin_batch(self, number):
        """Tells those that want batches."""
        for follower in self.followers:
            if follower.wants_batches:
                follower.begin_batch(number)

    def end_batch(self, number, logs):
        """Tells those that want batches; returns whether one of them wants to stop."""
        return any([follower.end_batch(number, logs) for follower in self.followers if follower.wants_batches])

    def end_epoch(self, number, logs):
        """Tells all; returns whether one of them wants to stop."""
        return any([follower.end_epoch(number, logs) for follower in self.followers])

    def restore(self):
        """Tells all."""
        for follower in self.followers:
            follower.restore()

    def end(self, logs):
        """Tells all."""
        for follower in self.followers:
            follower.end(logs)


class Validation(Follower):
    """Adds the loss of rows that are held out, "val_loss".

    Args:
        X: rows.
        y: targets.
        w: weights.

    Attributes:
        name: of what to judge an epoch by, after "val_".
        sign: 1 where higher is better, else -1.
    """

    name, sign = "loss", -1

    def __init__(self, X, y, w):
        self.rows = X, y, w

    def begin(self, course):
        """Keeps the program."""
        self._program = course.program

    def end_epoch(self, number, logs):
        """Adds the loss."""
        logs["val_loss"] = float(self._program.evaluate(*self.rows))


class Patience(Follower):
    """Stops after some epochs that are no better than the best, and puts the weights back that were best.

    Args:
        epochs: how many.
        judge: the follower, called before, that says by what: it has a `name` and a `sign`, as `Validation` has.
    """

    def __init__(self, epochs, judge):
        self.epochs, self.judge = epochs, judge

    def begin(self, course):
        """Forgets what was best before."""
        self._program, self._best, self._state, self._waited = course.program, -np.inf, None, 0

    def end_epoch(self, number, logs):
        """Compares with the best."""
        self._waited += 1
        if (value := self.judge.sign * logs[f"val_{self.judge.name}"]) > self._best:
            self._best, self._state, self._waited = value, self._program.state(), 0
        return self._waited >= self.epochs

    def restore(self):
        """Puts the best weights back."""
        if self._state is not None:
            self._program.load(self._state)


class Progress(Follower):
    """Keras's progress bar, a step of which is an epoch."""

    looks = False

    def begin(self, course):
        """Draws an empty bar."""
        self._first, self._last = course.first, None
        self._bar = keras.utils.Progbar(course.epochs, unit_name="epoch")

    def end_epoch(self, number, logs):
        """Draws one step more."""
        self._last = number + 1 - self._first
        self._bar.stateful_metrics |= logs.keys()
        self._bar.update(self._last, list(logs.items()), finalize=self._last == self._bar.target)

    def end(self, logs):
        """Ends the line where the fit has stopped early."""
        if self._last and self._last != self._bar.target:
            self._bar.update(self._last, finalize=True)


class KerasCallbacks(Follower):
    """Calls Keras's callbacks, with the program's model as theirs.

    Args:
        callbacks: instances of `keras.callbacks.Callback`, for this fit alone.
    """

    def __init__(self, callbacks):
        self.callbacks = callbacks
        self.wants_batches = any(asks_for_batches(callback, "train") for callback in callbacks)

    def begin(self, course):
        """Sets the model and its optimizer."""
        self._model = course.program.model
        self._model.optimizer, self._model.stop_training = course.program.optimizer, False
        facts = {"epochs": course.first + course.epochs, "steps": course.steps, "verbose": 0}
        self._logs = {}
        last = keras.callbacks.LambdaCallback(on_epoch_end=lambda epoch, logs: self._logs.update(logs))
        self._list = keras.callbacks.CallbackList([*self.callbacks, last], model=self._model, **facts)
        self._list.on_train_begin()

    def begin_epoch(self, number):
        """Calls `on_epoch_begin`."""
        self._list.on_epoch_begin(number)

    def begin_batch(self, number):
        """Calls `on_train_batch_begin`."""
        self._list.on_train_batch_begin(number)

    def end_batch(self, number, logs):
        """Calls `on_train_batch_end`."""
        self._list.on_train_batch_end(number, logs)
        return self._model.stop_training

    def end_epoch(self, number, logs):
        """Calls `on_epoch_end`; what callbacks add to the numbers stays."""
        self._list.on_epoch_end(number, logs)
        logs |= self._logs
        return self._model.stop_training

    def end(self, logs):
        """Calls `on_train_end`."""
        self._list.on_train_end(logs)
        for callback in self.callbacks:
            detach(callback)


def detach(callback):
    """Takes from a Keras callback the model that it was last used with."""
    callback._model = None
