"""Engines: what proposes candidates and is told their scores. They know no data, no model and no file."""

import itertools
from typing import NamedTuple, Protocol

from sklearn.model_selection import ParameterGrid

METHODS = ("grid", "random", "bayesian")


class Suggestion(NamedTuple):
    """A candidate that an engine wants to see scored."""

    id: str
    params: dict


class Engine(Protocol):
    """The boundary between a search and what drives it.

    Attributes:
        learns: whether scores change what is asked next; if so, small batches are better.
        total: the number of candidates after which the search ends at the latest.
    """

    learns: bool
    total: int

    def ask(self, n: int) -> list[Suggestion]:
        """Returns at most `n` suggestions; none where the search is over."""
        ...

    def tell(self, id: str, score: float) -> None:
        """Takes the score of a suggestion, greater is better; NaN or infinite where it failed."""
        ...


class FixedEngine:
    """Candidates settled beforehand."""

    learns = False

    def __init__(self, candidates, total):
        self._suggestions = (Suggestion(str(i), params) for i, params in enumerate(candidates))
        self.total = total

    def ask(self, n):
        """Returns the next `n` candidates."""
        return list(itertools.islice(self._suggestions, n))

    def tell(self, id, score):
        """Learns nothing."""


def make_engine(method, space, param_distributions, n_iter, random_state):
    """Returns the engine of a method.

    Grid and random candidates come from scikit-learn: the same ones in the same order as GridSearchCV and
    RandomizedSearchCV, without importing TensorFlow. KerasTuner's grid takes 14 ms a candidate at 1024 (its
    time is quadratic) and its random oracle gives up on a small space before it is exhausted.
    """
    if method == "grid":
        grid = ParameterGrid(param_distributions)
        return FixedEngine(grid, len(grid))
    total = min(n_iter, space.size)
    if method == "random":
        draws = itertools.islice(space.draws(total, random_state, set()), total)
        return FixedEngine(map(space.params, draws), total)
    from kopt.search.oracles import BayesianOracle, KerasTunerEngine

    return KerasTunerEngine(BayesianOracle(space, total, random_state), space)
