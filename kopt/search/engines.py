"""Engines: what proposes candidates and is told their scores. They know no data, no model and no file."""

import contextlib
import itertools
import math
from abc import abstractmethod
from typing import Any, NamedTuple, Protocol

METHODS = ("grid", "random", "bayesian", "hyperband", "asha", "optuna")
HALVING = ("hyperband", "asha")
"""Methods that give candidates a budget."""
SETTLED = ("grid", "random", *HALVING)
"""Methods whose candidates do not depend on scores."""
PATIENCE = 50
"""After so many proposals in a row that repeat others, nobody is asked for more."""


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

    def observe(self, params: dict, score: float) -> None:
        """Takes the score of a candidate that it did not suggest, and will not suggest.

        Raises:
            ValueError: the engine has no use for it.
        """
        raise ValueError(f"TunerSearchCV: previous must be None where the engine is a {type(self).__name__}.")

    def begin_with(self, candidates: list[dict]) -> None:
        """Takes the candidates to suggest first.

        Raises:
            ValueError: the engine does not take any.
        """
        who = type(self).__name__
        raise ValueError(
            f"TunerSearchCV: initial_params must be empty where the engine is a {who}, got {candidates!r}."
        )


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


class ProposingEngine(Engine):
    """An engine around something that proposes coordinates, and may propose the same again.

    A candidate that is proposed again is not suggested again: who proposed it is told the score that it had. One who
    only repeats himself is not asked any more: the rest is drawn at random. He is told of candidates that are not his,
    those to begin with and those that were drawn, when their scores are known.

    Args:
        space: the `Space`.
        total: how many candidates to suggest at most.
    """

    learns = True

    def __init__(self, space, total):
        self.space, self.total = space, total
        self._proposals = {}  # of each candidate, by identity: those that are it, the first of which is suggested
        self._scores, self._repeats = {}, 0
        self._given, self._rest = [], None
        self._others = {}  # the coordinates of what was suggested and not proposed, by name

    def ask(self, n):
        """Returns at most `n` suggestions."""
        suggestions = []
        with self._calm():
            while len(suggestions) < n and len(self._proposals) < self.total:
                proposal = self._next()
                if proposal is None:
                    break
                id, coordinates = proposal
                codes = self.space.codes(coordinates)
                same = self._proposals.setdefault(self.space.identity(codes), [])
                same.append(id)
                if len(same) == 1:
                    suggestions.append(Suggestion(id, self.space.params(codes)))
                elif same[0] in self._scores:
                    self._end(id, self._scores[same[0]])
                if self._repeats < PATIENCE:
                    self._repeats = self._repeats + 1 if len(same) > 1 else 0
        return suggestions

    def tell(self, id, score):
        """Tells the score of a suggestion, and of those that repeat it."""
        self._scores[id] = score
        with self._calm():
            for each in next(same for same in self._proposals.values() if same[0] == id):
                if each in self._others:
                    self._add(self._others[each], score)
                else:
                    self._end(each, score)

    def begin_with(self, candidates):
        """Takes the candidates to suggest first."""
        self._given = [self.space.encode(params) for params in candidates]

    def _next(self):
        """A name and coordinates: of what is given, then of what is proposed, then of what nobody proposed; or None."""
        if self._given:
            return self._other(self._given.pop(0))
        if self._repeats < PATIENCE:
            return self._propose()
        if self._rest is None:
            n = self.space.size if math.isfinite(self.space.size) else self.total
            self._rest = self.space.draws(n, 0, set(self._proposals))
        codes = next(self._rest, None)
        return None if codes is None else self._other(codes)

    def _other(self, codes):
        id = f"other {len(self._others)}"
        self._others[id] = self.space.coordinates(codes)
        return id, self._others[id]

    def observe(self, params, score):
        """Takes the score of a candidate that it did not suggest, and will not suggest."""
        codes = self.space.encode(params)
        identity = self.space.identity(codes)
        if identity not in self._proposals:
            with self._calm():
                id = self._add(self.space.coordinates(codes), score)
            self._proposals[identity], self._scores[id] = [id], score
            self.total += 1

    @abstractmethod
    def _propose(self) -> Any:
        """A proposal's name and its coordinates, or None where there is no more."""

    @abstractmethod
    def _end(self, id, score):
        """Tells a proposal's score."""

    @abstractmethod
    def _add(self, coordinates, score):
        """Tells the score of somebody else's candidate; returns a name for it."""

    def _calm(self):
        return contextlib.nullcontext()


def is_oracle(method):
    """Whether a method is an oracle of KerasTuner's."""
    return hasattr(method, "populate_space")


def is_sampler(method):
    """Whether a method is a sampler of Optuna's."""
    return hasattr(method, "sample_independent")


def make_engine(method, space, n_iter, random_state, *, ladder=None, initial=(), previous=()) -> Engine:
    """Returns the engine of a method.

    Grid and random candidates come from scikit-learn: the same ones in the same order as GridSearchCV and
    RandomizedSearchCV, without importing TensorFlow. KerasTuner's grid takes 14 ms a candidate at 1024 (its
    time is quadratic) and its random oracle gives up on a small space before it is exhausted.

    Args:
        method: a name from `METHODS`, a `keras_tuner.Oracle`, an `optuna.samplers.BaseSampler`, or a function of the
            space, the number of candidates and the seed that returns an engine.
        space: the `Space`.
        n_iter: the number of candidates.
        random_state: as in scikit-learn.
        ladder: the `kopt.search.halving.Ladder` of a method that halves.
        initial: candidates to try first.
        previous: pairs of candidates and scores that are known already, for methods that learn from them.
    """
    if method == "hyperband":
        from kopt.search.halving import Hyperband

        return Hyperband(ladder, lambda n: _first(initial, space, space.draws(n, random_state, set())))
    if method == "grid":
        return FixedEngine(_first(initial, space, space.grid()), space.size)
    total = min(n_iter, space.size)
    if method in ("random", "asha"):
        draws = itertools.islice(_first(initial, space, space.draws(total, random_state, set())), total)
        if method == "random":
            return FixedEngine(draws, total)
        from kopt.search.halving import SuccessiveHalving

        return SuccessiveHalving(ladder, draws, total)
    if method == "optuna" or is_sampler(method):
        from kopt.search.optuna_engine import OptunaEngine

        engine: Any = OptunaEngine(None if method == "optuna" else method, space, total, random_state)
    elif callable(method):
        engine = method(space, total, random_state)
    else:
        from kopt.search.oracles import KerasTunerEngine, make_oracle

        engine = KerasTunerEngine(make_oracle(method, space, total, random_state), space, total)
    for params, score in previous:
        engine.observe(params, score)
    if initial:
        engine.begin_with(initial)
    return engine


def _first(initial, space, codes):
    """The parameters of some candidates, then of all others."""
    known = {space.identity(space.encode(params)) for params in initial}
    return itertools.chain(initial, (space.params(each) for each in codes if space.identity(each) not in known))
