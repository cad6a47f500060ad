"""KerasTuner's oracles as engines. Imported only where one is used: importing KerasTuner imports Keras."""

import contextlib
import math
import sys
import warnings

import keras_tuner
import numpy as np
from sklearn.gaussian_process import GaussianProcessRegressor
from sklearn.utils import check_random_state
from threadpoolctl import threadpool_limits

from kopt.search.engines import Engine, Suggestion


class _Process(GaussianProcessRegressor):
    """scikit-learn's Gaussian process, quick to ask one row at a time.

    KerasTuner asks it for up to 10,000 single rows in a proposal, where scikit-learn's checks of its input
    take three quarters of the time.
    """

    def fit(self, X, y):
        super().fit(X, y)
        self._whiten = np.linalg.inv(self.L_).T
        return self

    def predict(self, X, return_std=False, return_cov=False):
        if not return_std or not hasattr(self, "_whiten"):
            return super().predict(X, return_std=return_std, return_cov=return_cov)
        covariance = self.kernel_(X, self.X_train_)
        mean = self._y_train_mean + self._y_train_std * (covariance @ self.alpha_)
        variance = self.kernel_.diag(X) - np.sum((covariance @ self._whiten) ** 2, axis=1)
        return mean, self._y_train_std * np.sqrt(np.maximum(variance, 0.0))


class BayesianOracle(keras_tuner.oracles.BayesianOptimizationOracle):
    """KerasTuner's Gaussian process, which here proposes nothing twice and learns from failures.

    A proposal that repeats gives way to a random candidate not yet tried, and the search ends when there is
    none. A failed candidate counts as bad as the worst one so far, so that the process leaves its region.
    Nothing is written to disk.

    Args:
        space: the `Space`.
        n_iter: the number of candidates to try.
        random_state: as in scikit-learn.
    """

    def __init__(self, space, n_iter, random_state):
        rng = check_random_state(random_state)
        super().__init__(
            objective=keras_tuner.Objective("score", "max"),
            max_trials=n_iter,
            num_initial_points=min(3 * space.width, max(3, n_iter // 3)),
            hyperparameters=space.hyperparameters(),
            seed=rng.randint(1, 2**31 - 1),  # KerasTuner takes 0 for None, and seeds close by share their points
            max_consecutive_failed_trials=sys.maxsize,
        )
        self.verbose = 0
        self._space = space
        self._seen = set()
        self._fresh = space.draws(n_iter, rng, self._seen)
        self._finite, self._failed = [], []

    def _make_gpr(self):
        return _Process(**super()._make_gpr().get_params(deep=False))

    def populate_space(self, trial_id):
        """Proposes a candidate, never one twice."""
        coordinates = super().populate_space(trial_id)["values"]
        codes = coordinates and self._space.codes(coordinates)
        if codes and self._space.identity(codes) not in self._seen:
            self._seen.add(self._space.identity(codes))
        else:
            codes = next(self._fresh, None)
        if codes is None:
            return {"status": "STOPPED"}
        return {"status": "RUNNING", "values": self._space.coordinates(codes)}

    def score_trial(self, trial):
        """Keeps every failed candidate at the worst finite score so far."""
        super().score_trial(trial)
        (self._finite if math.isfinite(trial.score) else self._failed).append(trial)
        worst = min((trial.score for trial in self._finite), default=0.0)
        for failed in self._failed:
            failed.score = worst

    def save(self):
        """Writes nothing."""

    def _save_trial(self, trial):
        """Writes nothing."""


@contextlib.contextmanager
def _quiet():
    """Silences KerasTuner's deprecated threading calls and its regressor's length scales at a bound."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


class KerasTunerEngine(Engine):
    """Asks and tells an oracle, without a tuner."""

    learns = True

    def __init__(self, oracle, space):
        self.oracle, self.space, self.total = oracle, space, oracle.max_trials

    def ask(self, n):
        """Returns at most `n` suggestions of the oracle."""
        suggestions = []
        # Its matrices are small: more threads than one make a proposal three times as expensive.
        with _quiet(), threadpool_limits(1):
            while len(suggestions) < n:
                # Every trial has a worker of its own: KerasTuner gives one worker the same trial again.
                trial = self.oracle.create_trial(f"worker {len(self.oracle.trials)}")
                if trial.status != "RUNNING":
                    break
                params = self.space.params(self.space.codes(trial.hyperparameters.values))
                suggestions.append(Suggestion(trial.trial_id, params))
        return suggestions

    def tell(self, id, score):
        """Ends the trial with this score."""
        with _quiet():
            self.oracle.update_trial(id, {"score": float(score) if math.isfinite(score) else math.nan})
            trial = self.oracle.get_trial(id)
            trial.status = "COMPLETED"
            self.oracle.end_trial(trial)
