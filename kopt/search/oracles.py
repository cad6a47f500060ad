"""KerasTuner's oracles as engines. Imported only where one is used: KerasTuner imports Keras."""

import contextlib
import copy
import math
import sys
import warnings
import weakref

import keras_tuner
from keras_tuner.src.engine import oracle as engine_of_oracles
from keras_tuner.src.engine.trial import Trial as trial_of
from sklearn.utils import check_random_state
from threadpoolctl import threadpool_limits

from kopt.search.engines import ProposingEngine
from kopt.search.gaussian_process_oracle import GaussianProcessOracle, initial_points


class KerasTunerEngine(ProposingEngine):
    """Asks and tells an oracle, without a tuner and without a file.

    Args:
        oracle: the oracle, which the engine takes over.
        space: the `Space`.
        total: how many candidates to suggest at most.
    """

    def __init__(self, oracle, space, total):
        super().__init__(space, total)
        self.oracle = oracle
        oracle.save = oracle._save_trial = _nothing
        oracle.verbose, oracle.max_consecutive_failed_trials, oracle.max_trials = 0, sys.maxsize, None
        oracle.hyperparameters = space.hyperparameters()
        weakref.finalize(self, _forget, oracle)

    def _propose(self):
        # Every trial has a worker of its own: KerasTuner gives one worker the same trial again.
        trial = self.oracle.create_trial(f"worker {len(self.oracle.trials)}")
        return (trial.trial_id, trial.hyperparameters.values) if trial.status == "RUNNING" else None

    def _end(self, id, score):
        objective = self.oracle.objective
        value = float(score) if math.isfinite(score) else math.nan
        self.oracle.update_trial(id, {objective.name: -value if objective.direction == "min" else value})
        trial = self.oracle.get_trial(id)
        trial.status = "COMPLETED"
        self.oracle.end_trial(trial)

    def _add(self, coordinates, score):
        id = f"known {len(self.oracle.trials)}"
        hyperparameters = self.oracle.get_space()
        hyperparameters.values = coordinates
        self.oracle.trials[id] = trial_of(hyperparameters, id, "RUNNING")
        self.oracle.start_order.append(id)
        self._end(id, score)
        return id

    @contextlib.contextmanager
    def _calm(self):
        """Silences KerasTuner's deprecated threading calls.

        The matrices are small: more threads than one make a proposal three times as expensive.
        """
        with warnings.catch_warnings(), threadpool_limits(1):
            warnings.simplefilter("ignore")
            yield


def make_oracle(method, space, n_iter, random_state):
    """Returns kopt's own oracle, or a copy of the user's."""
    if method == "bayesian":
        # Nearby seeds of KerasTuner's share their points; kopt's do not, and take any.
        seed = int(check_random_state(random_state).randint(2**31 - 1))
        initial = initial_points(space.width, n_iter)
        return GaussianProcessOracle(keras_tuner.Objective("score", "max"), n_iter, initial, seed)
    if isinstance(method, keras_tuner.oracles.HyperbandOracle):
        who = type(method).__name__
        raise ValueError(
            f"TunerSearchCV: method must be 'hyperband', which has budgets for folds, got KerasTuner's {who}."
        )
    oracle = copy.deepcopy(method)
    oracle.objective = oracle.objective or keras_tuner.Objective("score", "max")
    return oracle


def _nothing(*args):
    """Writes nothing."""


def _forget(oracle):
    """Frees an oracle, which KerasTuner keeps for as long as the process lives."""
    for table in (engine_of_oracles.LOCKS, engine_of_oracles.THREADS):
        table.pop(oracle, None)
