"""KerasTuner's oracles as engines. Imported only where one is used: KerasTuner imports Keras."""

import contextlib
import copy
import math
import sys
import warnings
import weakref

import keras_tuner
from keras_tuner.src.engine import oracle as engine_of_oracles
from sklearn.utils import check_random_state
from threadpoolctl import threadpool_limits

from kopt.search.engines import Engine, Suggestion
from kopt.search.gaussian_process_oracle import GaussianProcessOracle, initial_points

PATIENCE = 50
"""After so many proposals in a row that repeat others, an oracle counts as having no more."""


class KerasTunerEngine(Engine):
    """Asks and tells an oracle, without a tuner and without a file.

    A candidate that the oracle proposes again is not suggested again: the oracle is told the score that it had.

    Args:
        oracle: the oracle, which the engine takes over.
        space: the `Space`.
        total: how many candidates to suggest at most.
    """

    learns = True

    def __init__(self, oracle, space, total):
        self.oracle, self.space, self.total = oracle, space, total
        oracle.save = oracle._save_trial = _nothing
        oracle.verbose, oracle.max_consecutive_failed_trials, oracle.max_trials = 0, sys.maxsize, None
        oracle.hyperparameters = space.hyperparameters()
        self._trials = {}  # of each candidate: the trials that are it, the first of which is suggested
        self._scores, self._repeats = {}, 0
        weakref.finalize(self, _forget, oracle)

    def ask(self, n):
        """Returns at most `n` suggestions of the oracle."""
        suggestions = []
        # Its matrices are small: more threads than one make a proposal three times as expensive.
        with _quiet(), threadpool_limits(1):
            while len(suggestions) < n and len(self._trials) < self.total and self._repeats < PATIENCE:
                # Every trial has a worker of its own: KerasTuner gives one worker the same trial again.
                trial = self.oracle.create_trial(f"worker {len(self.oracle.trials)}")
                if trial.status != "RUNNING":
                    break
                codes = self.space.codes(trial.hyperparameters.values)
                same = self._trials.setdefault(self.space.identity(codes), [])
                same.append(trial.trial_id)
                self._repeats = self._repeats + 1 if len(same) > 1 else 0
                if len(same) == 1:
                    suggestions.append(Suggestion(trial.trial_id, self.space.params(codes)))
                elif same[0] in self._scores:
                    self._end(trial.trial_id, self._scores[same[0]])
        return suggestions

    def tell(self, id, score):
        """Ends the trial with this score, and those that repeat it."""
        self._scores[id] = score
        with _quiet():
            for trial in next(same for same in self._trials.values() if same[0] == id):
                self._end(trial, score)

    def _end(self, id, score):
        objective = self.oracle.objective
        value = float(score) if math.isfinite(score) else math.nan
        self.oracle.update_trial(id, {objective.name: -value if objective.direction == "min" else value})
        trial = self.oracle.get_trial(id)
        trial.status = "COMPLETED"
        self.oracle.end_trial(trial)


def make_oracle(method, space, n_iter, random_state):
    """Returns kopt's own oracle, or a copy of the user's."""
    if method == "bayesian":
        # Nearby seeds of KerasTuner's share their points; kopt's do not, and take any.
        seed = int(check_random_state(random_state).randint(2**31 - 1))
        initial = initial_points(space.width, n_iter)
        return GaussianProcessOracle(keras_tuner.Objective("score", "max"), n_iter, initial, seed)
    oracle = copy.deepcopy(method)
    oracle.objective = oracle.objective or keras_tuner.Objective("score", "max")
    return oracle


def _nothing(*args):
    """Writes nothing."""


def _forget(oracle):
    """Frees an oracle, which KerasTuner keeps for as long as the process lives."""
    for table in (engine_of_oracles.LOCKS, engine_of_oracles.THREADS):
        table.pop(oracle, None)


@contextlib.contextmanager
def _quiet():
    """Silences KerasTuner's deprecated threading calls."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
