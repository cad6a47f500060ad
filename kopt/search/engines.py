"""Engines: what proposes candidates and is told their scores. They know no data, no model and no file."""

import itertools
from typing import NamedTuple, Protocol

from sklearn.model_selection import ParameterGrid

METHODS = ("grid", "random", "bayesian", "hyperband", "asha")
HALVING = ("hyperband", "asha")
"""Methods that give candidates a budget."""


class Suggestion(NamedTuple):
    """A candidate that an engine wants to see scored.

    Attributes:
        id: of the suggestion.
        params: the estimator's parameters, the resource among them where there is a budget.
        budget: how much of the resource it is to be trained with, in all; None where there is no such thing.
        candidate: which candidate it is, where one is suggested again with a larger budget; else None.
    """

    id: str
    params: dict
    budget: int | None = None
    candidate: str | None = None


class Engine(Protocol):
    """The boundary between a search and what drives it.

    What an engine asks must follow from its arguments and from the calls of `ask` and `tell` so far, in their order: a
    search is resumed, and shared by several processes, by making the same calls again. An `ask` that returns nothing
    must leave the engine as it was.

    Attributes:
        learns: whether scores change what is asked next; if so, small batches are better.
        total: the number of suggestions after which the search ends at the latest.
        retired: the candidates that get no larger budget any more.
    """

    learns: bool
    total: int
    retired: frozenset = frozenset()

    def ask(self, n: int) -> list[Suggestion]:
        """Returns at most `n` suggestions; none where all are asked, or the next depends on scores yet to be told."""
        ...

    def tell(self, id: str, score: float) -> None:
        """Takes the score of a suggestion, greater is better; NaN or infinite where it failed."""
        ...


class FixedEngine(Engine):
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


def make_engine(method, space, param_distributions, n_iter, random_state, ladder=None):
    """Returns the engine of a method.

    Grid and random candidates come from scikit-learn: the same ones in the same order as GridSearchCV and
    RandomizedSearchCV, without importing TensorFlow. KerasTuner's grid takes 14 ms a candidate at 1024 (its
    time is quadratic) and its random oracle gives up on a small space before it is exhausted.
    """
    if method == "grid":
        grid = ParameterGrid(param_distributions)
        return FixedEngine(grid, len(grid))
    if method == "hyperband":
        from kopt.search.halving import Hyperband

        return Hyperband(ladder, lambda n: map(space.params, space.draws(n, random_state, set())))
    total = min(n_iter, space.size)
    if method == "bayesian" or not isinstance(method, str):
        from kopt.search.oracles import KerasTunerEngine, make_oracle

        return KerasTunerEngine(make_oracle(method, space, total, random_state), space, total)
    draws = map(space.params, itertools.islice(space.draws(total, random_state, set()), total))
    if method == "random":
        return FixedEngine(draws, total)
    from kopt.search.halving import SuccessiveHalving

    return SuccessiveHalving(ladder, draws, total)
