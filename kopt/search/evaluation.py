"""One fit of a search: a candidate on a fold."""

import functools
import os
import pathlib
from typing import Any, NamedTuple

from sklearn import config_context, get_config
from sklearn.base import clone
from sklearn.model_selection._validation import _fit_and_score

from kopt.search.engines import Suggestion
from kopt.search.networks import best_epochs, give_gpu, is_network, networks_in


class Rungs(NamedTuple):
    """Where the networks of a search that goes on in rungs are kept.

    Attributes:
        resource: the parameter that takes the budget.
        directory: of the files.
        largest: the largest budget.
    """

    resource: str
    directory: pathlib.Path
    largest: int

    def path(self, candidate, fold):
        """The file of a candidate's network on a fold."""
        return self.directory / f"{candidate}-{fold}.npz"

    def discard(self, candidate, n_splits):
        """Removes what a candidate needs no longer."""
        for fold in range(n_splits):
            self.path(candidate, fold).unlink(missing_ok=True)

    def attach(self, estimator, path):
        """Makes the estimator with the resource go on from a file and leave one, if it can.

        kopt's estimators can, where epochs are the budget, unless they stop early or have callbacks, whose state no
        file has. These, all others, and those that a meta-estimator clones train from the beginning: to the same
        result, later, where they have a seed.
        """
        place, _, budget = self.resource.rpartition("__")
        owner = estimator.get_params()[place] if place else estimator
        if budget == "epochs" and is_network(owner) and not (owner.early_stopping or owner.callbacks):
            owner._go_on_at = path, self.largest


class Task(NamedTuple):
    """A candidate to evaluate.

    Attributes:
        suggestion: the `Suggestion`.
        estimator: a clone.
        options: of scikit-learn's `_fit_and_score`.
    """

    suggestion: Suggestion
    estimator: Any
    options: dict


def evaluate_all(tasks, *where, **how):
    """`evaluate` for each of several `Task`s on a fold; several networks of one structure train together."""
    if len(tasks) == 1:
        return [evaluate(*tasks, *where, **how)]
    from kopt.training.meeting import call_together
    from kopt.training.together import train_all

    config = get_config()

    def call(task):
        with config_context(**config):  # scikit-learn's, of each thread
            return evaluate(task, *where, **how, share=1 / len(tasks))

    return call_together([functools.partial(call, task) for task in tasks], train_all)


def evaluate(task, fold, X, y, split, *, parent, rungs=None, journal=None, share=1.0):
    """Fits a candidate on a fold, scores it, and writes the result to the journal.

    Args:
        task: the `Task`.
        fold: its number.
        X: all rows.
        y: their targets.
        split: the fold's rows to train on, and to score on.
        parent: the search's process. In others, a network trains on the GPU that is its process's own.
        rungs: a `Rungs`, where candidates are suggested again with larger budgets.
        journal: a `Journal`, or None.
        share: of the time of the fit that is the candidate's own.

    Returns:
        The dictionary of `_fit_and_score`, and `"best_epochs"`: see `best_epochs`.
    """
    suggestion, estimator, options = task
    params = suggestion.params
    if os.getpid() != parent:
        give_gpu([*networks_in(estimator).values(), *filter(is_network, params.values())])
    if rungs:
        estimator.set_params(**clone(params, safe=False))
        rungs.attach(estimator, rungs.path(suggestion.candidate, fold))
        params = {rungs.resource: suggestion.budget}
    result = _fit_and_score(
        estimator, X, y, train=split[0], test=split[1], parameters=params, return_estimator=True, **options
    )
    result["best_epochs"] = best_epochs(result.pop("estimator"))
    result["fit_time"] *= share
    if journal:
        journal.write({"fit": suggestion.id, "fold": fold, "result": result})
    return result
