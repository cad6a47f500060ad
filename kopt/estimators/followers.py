"""What follows a fit on scikit-learn's side: scores of rows held out, and callbacks. Imports TensorFlow."""

import copy
import inspect

import numpy as np
from sklearn.metrics import check_scoring
from sklearn.model_selection import train_test_split

from kopt.estimators import callbacks
from kopt.training.followers import Follower, KerasCallbacks, Patience, Progress, Validation


def followers_of(estimator, rows, epochs, random):
    """Holds out rows, if an estimator's parameters ask for it.

    Args:
        estimator: with the parameters.
        rows: the `kopt.estimators.rows.Rows` of the fit.
        epochs: how many there are at most.
        random: a `numpy.random.RandomState`, or None where no rows may be held out.

    Returns:
        The rows left to train on; who follows the training, in order; and that one of them who judges each epoch by
        rows held out, or None.
    """
    owner = type(estimator).__name__
    called = callbacks.instances(estimator.callbacks, estimator._routed("callbacks__"), owner)
    vars(estimator).pop("callbacks_", None)
    if called:
        estimator.callbacks_ = called
    followers, judge = [], None
    needy = [callback for callback in called if callbacks.follows_validation(callback)]
    if estimator.early_stopping or estimator.scoring is not None or needy:
        if random is None:
            raise ValueError(
                f"{owner}: partial_fit holds out no rows, and {type(needy[0]).__name__} needs some for "
                f"{needy[0].monitor}. Set monitor='loss'."
            )
        parts = train_test_split(
            np.arange(len(rows.w)),
            test_size=estimator.validation_fraction,
            random_state=random.randint(2**31 - 1),
            stratify=estimator._strata(rows.codes),
        )
        rows, held_out = (rows.take(part) for part in parts)
        followers.append(Validation(held_out.X, estimator._encoded(held_out.codes), held_out.w))
        if estimator.scoring is not None:
            followers.append(Scores(estimator, held_out))
        judge = followers[-1]
    if estimator.early_stopping:
        followers.append(Patience(estimator.n_iter_no_change, judge))
    if called:
        followers.append(KerasCallbacks(called))
    if hasattr(estimator, "_skl_callbacks"):  # set by `set_callbacks`, which scikit-learn has from version 1.9 on
        followers.append(Tasks(estimator, epochs, rows))
    if estimator.verbose:
        followers.append(Progress())
    return rows, followers, judge


class Scores(Follower):
    """Adds scores of rows that are held out, "val_" and the score's name each.

    Args:
        estimator: what is fitted, as it will be but for its network. Its `scoring` tells the scores.
        rows: the `kopt.estimators.rows.Rows` held out.

    Attributes:
        name: of what to judge an epoch by, after "val_": of several scores, the first.
        sign: 1, for higher is better.
    """

    sign = 1

    def __init__(self, estimator, rows):
        self.estimator, self.rows = estimator, rows
        self.scorer = check_scoring(estimator, estimator.scoring)
        self.name = estimator.scoring if isinstance(estimator.scoring, str) else "score"
        plain = inspect.isfunction(self.scorer) and "sample_weight" not in inspect.signature(self.scorer).parameters
        self._weights = {} if plain else rows.metadata()  # none for a function that has no room for them

    def begin(self, course):
        """Keeps the fit."""
        self._course = course

    def end_epoch(self, number, logs):
        """Adds the scores."""
        fitted = copy.copy(self.estimator)
        fitted._network = self._course.snapshot()
        scores = self.scorer(fitted, self.rows.given, self.rows.y, **self._weights)
        scores = scores if isinstance(scores, dict) else {self.name: scores}
        self.name = next(iter(scores))
        logs.update({f"val_{name}": float(score) for name, score in scores.items()})


class Tasks(Follower):
    """Calls the callbacks that were set on an estimator: the fit is a task, and each of its epochs one within.

    Args:
        estimator: what is fitted, with a `kopt.estimators.callback_support.CallbackSupport`.
        epochs: how many there are at most.
        rows: the `kopt.estimators.rows.Rows` to train on.
    """

    def __init__(self, estimator, epochs, rows):
        self.estimator = estimator
        self._data = {"estimator": estimator, "X": rows.given, "y": rows.y, "metadata": rows.metadata()}
        self._fit = estimator._init_callback_context(max_subtasks=epochs)

    def begin(self, course):
        """Tells that the fit begins."""
        self._course = course
        self._fit.call_on_fit_task_begin(**self._data)

    def begin_epoch(self, number):
        """Tells that an epoch begins."""
        self._epoch = self._fit.subcontext("epoch")
        self._epoch.call_on_fit_task_begin(**self._data)

    def end_epoch(self, number, logs):
        """Tells that it ended."""
        return self._end(self._epoch)

    def end(self, logs):
        """Tells that the fit ends."""
        self._end(self._fit)

    def _end(self, task):
        return task.call_on_fit_task_end(
            **self._data, reconstruction_attributes=lambda: {"_network": self._course.snapshot()}
        )
