"""A space of candidates, read from scikit-learn's notation and coded for a sampler and for an oracle."""

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from numbers import Real
from typing import Any

import numpy as np
from sklearn.model_selection import ParameterGrid, ParameterSampler

from kopt.search.hyperparameters import FEW, scopes_of
from kopt.search.texts import plain

# Repeats in a row after which a space with discrete distributions counts as exhausted. Lists are exact.
PATIENCE = 1000
SCOPE = "scope"
DRAWING = ("random", "hyperband", "asha")
"""Methods that draw their candidates, and need no coordinates."""


class Dimension(ABC):
    """The values of one parameter, their codes, and where a method that learns sees them: their coordinates.

    Attributes:
        size: the number of values, `math.inf` where there is no end of them.
        sampled: what scikit-learn's sampler draws codes from.
        example: some value.
        n: coordinates are 0 .. n - 1; None where they are numbers in [0, 1].
        ordered: whether coordinates close by are of values that are alike.
    """

    size: float
    sampled: Any
    example: Any
    n: int | None
    ordered = True

    @abstractmethod
    def value(self, code):
        """The value that the estimator gets."""

    @abstractmethod
    def coordinate(self, code):
        """The coordinate of a code."""

    @abstractmethod
    def code(self, coordinate):
        """The code at a coordinate."""

    @abstractmethod
    def code_of(self, value):
        """The code of a value; raises ValueError where it is not among them."""


class _Listed(Dimension):
    """A list of values, coded by position. Numbers are ordered, and their coordinates are their ranks."""

    def __init__(self, values):
        self.values = values
        self.size = self.n = len(values)
        self.sampled = range(len(values))
        self.example = values[0]
        self.ordered = all(isinstance(value, Real) and not isinstance(value, bool) for value in values)
        self._codes = sorted(self.sampled, key=lambda code: values[code]) if self.ordered else list(self.sampled)

    def value(self, code):
        return self.values[code]

    def coordinate(self, code):
        return self._codes.index(code)

    def code(self, coordinate):
        return self._codes[coordinate]

    def code_of(self, value):
        for code, known in enumerate(self.values):
            if known is value or (type(known) is type(value) and plain(known) == plain(value)):
                return code
        raise ValueError(f"{value!r} is not in the list")


class _Drawn(Dimension):
    """A distribution: its codes are its values.

    Coordinates are the numbers themselves of a `scipy.stats.randint` of few values, and otherwise quantiles: these make
    every prior uniform, so log scales need no case of their own. A discrete value sits in the middle of its step, from
    where it maps back safely; an unbounded distribution is clipped at its ends.
    """

    def __init__(self, distribution):
        self.sampled = distribution
        self.example = distribution.rvs(random_state=np.random.RandomState(0))
        self.discrete = hasattr(distribution, "pmf")
        low, high = distribution.support() if self.discrete else (0, math.inf)
        self.size = int(high - low) + 1 if math.isfinite(high - low) else math.inf
        even = getattr(getattr(distribution, "dist", None), "name", None) == "randint"
        self.n, self._low = (int(self.size), int(low)) if even and self.size <= FEW else (None, 0)

    def value(self, code):
        return code

    def coordinate(self, code):
        if self.n:
            return int(code) - self._low
        step = self.sampled.pmf(code) if self.discrete else 0.0
        return float(self.sampled.cdf(code) - step / 2)

    def code(self, coordinate):
        if self.n:
            return coordinate + self._low
        value = self.sampled.ppf(min(max(coordinate, 1e-9), 1 - 1e-9))
        return int(value) if self.discrete else float(value)

    def code_of(self, value):
        if not isinstance(value, Real) or isinstance(value, bool):
            raise ValueError(f"{value!r} is no number")
        if hasattr(self.sampled, "support"):
            low, high = self.sampled.support()
            if not low <= float(value) <= high or (self.discrete and float(value) % 1):
                raise ValueError(f"{value!r} is not between {low} and {high}")
        return value


class Space:
    """The candidates of a search, and their codes.

    A candidate is a dict of codes: its key is `"0:C"` for parameter `C` of the first dict, its value a
    position in a list or a drawn value. Of several dicts a candidate belongs to exactly one, and `"scope"`
    says to which.

    Args:
        param_distributions: a dict, or a list of dicts, from parameter names to lists or to distributions
            (objects with `rvs`, such as frozen `scipy.stats` distributions).
            Or KerasTuner's `HyperParameters`.
        method: of the search; decides which distributions make sense.

    Raises:
        TypeError: the notation is wrong, or a distribution does not suit the method.
        ValueError: there is nothing to choose from.
    """

    def __init__(self, param_distributions, method):
        if hasattr(param_distributions, "conditional_scope"):
            param_distributions = scopes_of(param_distributions, method)
        specs = param_distributions if isinstance(param_distributions, list) else [param_distributions]
        if not specs or not all(isinstance(spec, dict) for spec in specs):
            raise TypeError(
                "TunerSearchCV: param_distributions must be a dict or a non-empty list of dicts, "
                f"got {param_distributions!r}."
            )
        self.scopes = [{name: _dimension(name, values, method) for name, values in spec.items()} for spec in specs]
        self._dimensions = {
            f"{i}:{name}": (name, dimension) for i, scope in enumerate(self.scopes) for name, dimension in scope.items()
        }

    @property
    def width(self):
        """The number of parameters to choose, over all dicts."""
        return len(self._dimensions)

    @property
    def size(self):
        """The number of candidates; `math.inf` where a distribution has no end of values."""
        return sum(math.prod(dimension.size for dimension in scope.values()) for scope in self.scopes)

    def draws(self, n_iter, random_state, seen):
        """Yields random codes that are not in `seen`, and notes them there, until the space is exhausted.

        They are those of scikit-learn's RandomizedSearchCV without the repeats.

        Args:
            n_iter: how many candidates the whole search may try.
            random_state: as in scikit-learn.
            seen: the set of identities tried so far; others may add to it meanwhile.
        """
        lists = all(isinstance(dimension, _Listed) for _, dimension in self._dimensions.values())
        # Lists are drawn without replacement: n_iter distinct points hold one that is not among the seen.
        count = min(n_iter, self.size) if lists else n_iter * PATIENCE
        repeats = 0
        for codes in ParameterSampler(self._sampled(), count, random_state=random_state):
            identity = self.identity(codes)
            repeats = repeats + 1 if identity in seen else 0
            if not repeats:
                seen.add(identity)
                yield codes
            elif repeats == PATIENCE and not lists:
                return

    def _sampled(self):
        scopes = [{f"{i}:{name}": d.sampled for name, d in scope.items()} for i, scope in enumerate(self.scopes)]
        return scopes if len(scopes) == 1 else [{**scope, SCOPE: [i]} for i, scope in enumerate(scopes)]

    def identity(self, codes):
        """Text that two candidates share exactly if they are the same."""
        return str(sorted((key, str(code)) for key, code in codes.items()))

    def params(self, codes):
        """The estimator's parameters of a candidate."""
        chosen = (self._dimensions[key] + (code,) for key, code in codes.items() if key != SCOPE)
        return {name: dimension.value(code) for name, dimension, code in chosen}

    def encode(self, params):
        """The codes of an estimator's parameters.

        Raises:
            ValueError: they are not in the space.
        """
        error: Any = None
        for i, scope in enumerate(self.scopes):
            if scope.keys() == params.keys():
                try:
                    codes = {f"{i}:{name}": scope[name].code_of(value) for name, value in params.items()}
                except ValueError as reason:
                    error = reason
                else:
                    return codes if len(self.scopes) == 1 else {**codes, SCOPE: i}
        raise ValueError(error or f"it has the parameters {', '.join(params)}, and the space {self._names()}")

    def _names(self):
        return " or ".join(", ".join(scope) for scope in self.scopes)

    def hyperparameters(self):
        """The space as KerasTuner's HyperParameters, several dicts as conditional scopes."""
        import keras_tuner

        hyperparameters = keras_tuner.HyperParameters()
        if len(self.scopes) == 1:
            self._declare(hyperparameters, 0)
            return hyperparameters
        hyperparameters.Choice(SCOPE, list(range(len(self.scopes))), ordered=False)
        for i in range(len(self.scopes)):
            with hyperparameters.conditional_scope(SCOPE, [i]):
                self._declare(hyperparameters, i)
        return hyperparameters

    def _declare(self, hyperparameters, i):
        for name in sorted(self.scopes[i]):  # the order of a dict must not change the search
            dimension, key = self.scopes[i][name], f"{i}:{name}"
            if dimension.n is None:
                hyperparameters.Float(key, 0.0, 1.0, default=0.5)
            else:
                hyperparameters.Choice(key, list(range(dimension.n)), ordered=dimension.ordered)

    def drawn(self, integer, category, number):
        """Coordinates from functions that choose them: two of a key and of how many there are, one of a key."""
        coordinates = {}
        scope = 0
        if len(self.scopes) > 1:
            scope = coordinates[SCOPE] = category(SCOPE, len(self.scopes))
        for name in sorted(self.scopes[scope]):
            dimension, key = self.scopes[scope][name], f"{scope}:{name}"
            if dimension.n is None:
                coordinates[key] = number(key)
            else:
                coordinates[key] = (integer if dimension.ordered else category)(key, dimension.n)
        return coordinates

    def grid(self):
        """Yields the codes of all candidates, in the order of GridSearchCV."""
        yield from ParameterGrid(self._sampled())

    def coordinates(self, codes):
        """A candidate's codes as values of `hyperparameters()`."""
        return {key: c if key == SCOPE else self._dimensions[key][1].coordinate(c) for key, c in codes.items()}

    def codes(self, coordinates):
        """The inverse of `coordinates`."""
        return {key: c if key == SCOPE else self._dimensions[key][1].code(c) for key, c in coordinates.items()}


def _dimension(name, values, method):
    rule = f"TunerSearchCV: param_distributions[{name!r}] must be"
    if hasattr(values, "rvs"):
        if method == "grid":
            raise TypeError(f"{rule} a list where method='grid', got {values!r}. Try method='random'.")
        if method not in DRAWING and not hasattr(values, "ppf"):
            raise TypeError(
                f"{rule} a list or have ppf and cdf where method={method!r}, got {values!r}. Try method='random'."
            )
        return _Drawn(values)
    if isinstance(values, str) or not isinstance(values, Sequence | np.ndarray):
        raise TypeError(f"{rule} a list or a distribution, got {values!r}.")
    if len(values) == 0:
        raise ValueError(f"{rule} a list of at least one value, got {values!r}.")
    return _Listed(list(values))
