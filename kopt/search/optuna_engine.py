"""Optuna's samplers as an engine. Needs Optuna: the extra kopt[optuna]."""

import contextlib
import copy
import math

from sklearn.utils import check_random_state

from kopt.search.engines import ProposingEngine


class OptunaEngine(ProposingEngine):
    """Asks and tells a study of Optuna's, in memory. What failed is told as the worst score so far.

    Args:
        sampler: an `optuna.samplers.BaseSampler`, which is copied; None for Optuna's TPE.
        space: the `Space`.
        total: how many candidates to suggest at most.
        random_state: of the default sampler.
    """

    def __init__(self, sampler, space, total, random_state):
        super().__init__(space, total)
        self._optuna = _imported()
        if sampler is None:
            seed = int(check_random_state(random_state).randint(2**31 - 1))
            sampler = self._optuna.samplers.TPESampler(seed=seed)
        with self._calm():
            self._study = self._optuna.create_study(direction="maximize", sampler=copy.deepcopy(sampler))
        self._worst = 0.0
        self._finite = False

    def _propose(self):
        trial = self._study.ask()
        return str(trial.number), self.space.drawn(
            lambda key, n: trial.suggest_int(key, 0, n - 1),
            lambda key, n: trial.suggest_categorical(key, list(range(n))),
            lambda key: trial.suggest_float(key, 0.0, 1.0),
        )

    def _end(self, id, score):
        if math.isfinite(score):
            self._worst, self._finite = min(score, self._worst) if self._finite else score, True
        self._study.tell(int(id), score if math.isfinite(score) else self._worst)

    def _add(self, coordinates, score):
        self._study.enqueue_trial(coordinates)
        id, _ = self._propose()
        self._end(id, score)
        return id

    @contextlib.contextmanager
    def _calm(self):
        """Silences Optuna's log."""
        level = self._optuna.logging.get_verbosity()
        self._optuna.logging.set_verbosity(self._optuna.logging.WARNING)
        try:
            yield
        finally:
            self._optuna.logging.set_verbosity(level)


def _imported():
    try:
        import optuna  # pyright: ignore[reportMissingImports]
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            "TunerSearchCV: method='optuna' needs Optuna, which is not installed. Install kopt[optuna].",
            name=error.name,
        ) from error
    return optuna
