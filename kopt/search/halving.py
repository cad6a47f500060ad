"""Engines that give many candidates a little, and more to the best: Hyperband, and asynchronous halving."""

import math
from typing import NamedTuple

from kopt.search.engines import Engine, Suggestion


class Ladder(NamedTuple):
    """The budgets of a method that halves.

    Attributes:
        resource: the name of the parameter that takes the budget, such as `"epochs"`.
        low: the smallest budget.
        high: the largest.
        factor: η, by which budgets grow from rung to rung, and candidates become fewer.
    """

    resource: str
    low: int
    high: int
    factor: int

    @property
    def rungs(self):
        """The budgets, from the smallest: high / η^s for s = s_max .. 0."""
        # A logarithm would round: log(243, 3) is 4.999...
        steps, budget = 0, self.high
        while budget >= self.low * self.factor:
            budget, steps = budget / self.factor, steps + 1
        return [round(self.high / self.factor**s) for s in range(steps, -1, -1)]

    def suggest(self, name, params, budget):
        """The suggestion to train a candidate with a budget."""
        return Suggestion(f"{name}@{budget}", {**params, self.resource: budget}, budget, name)


class _Climber:
    """A candidate on its way."""

    def __init__(self, name, params):
        self.name, self.params, self.score = name, params, math.nan


def _best_first(climbers):
    """Finite scores, the greatest first; of equal ones the earlier."""
    return sorted((c for c in climbers if math.isfinite(c.score)), key=lambda c: -c.score)


class Hyperband(Engine):
    """Brackets of successive halving, from many candidates with a small budget to few with the largest.

    Bracket s = s_max .. 0 begins with ⌈(s_max + 1) / (s + 1) · η^s⌉ random candidates and the budget high / η^s; of
    each rung the best ⌊n / η⌋ go on with η times the budget. A candidate that fails in a bracket's first rung gives
    its place to a new one, so that failures leave no bracket empty.

    Args:
        ladder: the `Ladder`.
        draws: function from a number to as many new candidates' parameters, or fewer where the space is exhausted.

    Source:
        L. Li et al., "Hyperband: A Novel Bandit-Based Approach to Hyperparameter Optimization", JMLR 18 (2018),
        algorithm 1.
    """

    learns = True

    def __init__(self, ladder, draws):
        self.ladder, self.retired = ladder, frozenset()
        rungs, top = ladder.rungs, len(ladder.rungs) - 1
        sizes = [math.ceil((top + 1) / (s + 1) * ladder.factor**s) for s in range(top, -1, -1)]
        self._brackets = [(rungs[i:], n) for i, n in enumerate(sizes)]
        self._spare = sum(sizes)  # as many failures are replaced at most
        self._draws = draws(sum(sizes) + self._spare)
        self.total = sum(n // ladder.factor**k for budgets, n in self._brackets for k in range(len(budgets)))
        self._count, self._queue, self._out, self._done = 0, [], {}, []
        self._budgets, self._size, self._length = [], 0, 0

    def ask(self, n):
        """Returns candidates of the current rung; none while it waits for scores."""
        if not self._queue and not self._out:
            self._climb()
        taken, self._queue = self._queue[:n], self._queue[n:]
        suggestions = [self.ladder.suggest(climber.name, climber.params, self._budgets[0]) for climber in taken]
        self._out.update({suggestion.id: climber for suggestion, climber in zip(suggestions, taken, strict=True)})
        return suggestions

    def tell(self, id, score):
        """Takes a score; a failure in the first rung is replaced."""
        climber = self._out.pop(id)
        climber.score = score
        self._done.append(climber)
        if not math.isfinite(score):
            self.retired |= {climber.name}
            if len(self._budgets) == self._length and self._spare:
                fresh = self._new(1)
                self._queue, self._spare, self.total = self._queue + fresh, self._spare - 1, self.total + len(fresh)

    def _climb(self):
        """Promotes the best of the rung that is done; after the last rung, begins the next bracket."""
        best = _best_first(self._done)[: self._size // self.ladder.factor if len(self._budgets) > 1 else 0]
        self.retired |= {climber.name for climber in self._done} - {climber.name for climber in best}
        self._queue, self._done, self._size, self._budgets = best, [], len(best), self._budgets[1:]
        while not self._queue and self._brackets:
            self._budgets, planned = self._brackets.pop(0)
            self._queue, self._length = self._new(planned), len(self._budgets)
            self._size = len(self._queue)  # fewer where the space ends

    def _new(self, n):
        fresh = [_Climber(str(self._count + i), params) for i, (_, params) in enumerate(zip(range(n), self._draws))]
        self._count += len(fresh)
        return fresh


class SuccessiveHalving(Engine):
    """Asynchronous successive halving: a candidate goes on as soon as it is among the best 1/η of its rung so far.

    Nobody waits for a rung to be complete, so that any number of workers is kept busy.

    Args:
        ladder: the `Ladder`.
        draws: iterator over new candidates' parameters.
        n_iter: the number of candidates.

    Source:
        L. Li et al., "A System for Massively Parallel Hyperparameter Tuning", MLSys (2020), algorithm 2.
    """

    learns = True

    def __init__(self, ladder, draws, n_iter):
        self.ladder, self._draws, self.retired = ladder, draws, frozenset()
        self._rungs = [[] for _ in ladder.rungs]  # of each, who has a score in it
        self._promoted = [set() for _ in ladder.rungs]
        self._out, self._count = {}, 0
        self.total = sum(max(n_iter // ladder.factor**k, 1) for k in range(len(ladder.rungs)))

    def ask(self, n):
        """Returns promotions, from the highest rung down, and new candidates when there are none."""
        suggestions = []
        while len(suggestions) < n and (job := self._job()):
            climber, rung = job
            suggestions.append(self.ladder.suggest(climber.name, climber.params, self.ladder.rungs[rung]))
            self._out[suggestions[-1].id] = climber, rung
        return suggestions

    def tell(self, id, score):
        """Takes a score."""
        climber, rung = self._out.pop(id)
        self._rungs[rung].append((climber, score))
        if rung == len(self._rungs) - 1 or not math.isfinite(score):
            self.retired |= {climber.name}

    def _job(self):
        for rung in range(len(self._rungs) - 2, -1, -1):
            scored = self._rungs[rung]
            finite = [(climber, score) for climber, score in scored if math.isfinite(score)]
            best = sorted(finite, key=lambda each: -each[1])[: len(scored) // self.ladder.factor]
            for climber, _ in best:
                if climber.name not in self._promoted[rung]:
                    self._promoted[rung].add(climber.name)
                    return climber, rung + 1
        params = next(self._draws, None)
        if params is None:
            return None
        self._count += 1
        return _Climber(str(self._count - 1), params), 0
