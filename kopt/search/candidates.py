"""The candidates of a search as a table of numbers, to draw and to learn from."""

import math
from numbers import Real
from typing import Any

import numpy as np

SPAN = 50
"""How many times the smallest value the largest has to be, at least, for a logarithmic scale."""


class Column:
    """The values of one parameter, as numbers.

    Args:
        name: the parameter's.
        values: of each candidate, `np.ma.masked` where it does not have the parameter.

    Attributes:
        name: the parameter's.
        label: its name, short.
        log: whether it has a logarithmic scale.
        names: of the categories, by code; None for numbers.
        codes: a number for each candidate, its logarithm on a logarithmic scale; NaN where a candidate does not have
            the parameter.
    """

    def __init__(self, name, values):
        self.name = self.label = name
        there = [value for value in values if value is not np.ma.masked]
        numbers = all(isinstance(v, Real) and not isinstance(v, bool | np.bool_) for v in there)
        self.names: Any = None
        self.log = False
        if numbers:
            self.log = _is_logarithmic(there)
            code = math.log10 if self.log else float
        else:
            self.names = sorted({_short(value) for value in there})
            code = lambda value: float(self.names.index(_short(value)))  # noqa: E731
        self.codes = np.array([math.nan if v is np.ma.masked else code(v) for v in values])

    @property
    def span(self):
        """The smallest and the largest code."""
        low, high = np.nanmin(self.codes), np.nanmax(self.codes)
        return (low, high) if low < high else (low - 0.5, high + 0.5)

    def ticks(self, n=4):
        """Codes to mark on an axis, and what to write there."""
        if self.names is not None:
            return list(range(len(self.names))), self.names
        low, high = self.span
        codes = [low + (high - low) * i / n for i in range(n + 1)]
        if self.log:  # powers of ten
            powers = range(math.ceil(low), math.floor(high) + 1)
            codes = list(powers[:: -(-len(powers) // (n + 2))]) if len(powers) > 1 else codes
        return codes, [f"{10**code if self.log else code:.3g}" for code in codes]


class Candidates:
    """What a search has tried.

    Args:
        search: a fitted search of scikit-learn's or kopt's.
        metric: the name of a metric, where there are several.
        owner: who asks, for errors.

    Attributes:
        columns: a `Column` for each parameter that has more than one value.
        scores, deviations: of each candidate, over folds.
        metric: the metric's name.
    """

    columns: list[Column]

    def __init__(self, search, metric, owner):
        if not hasattr(search, "cv_results_"):
            raise ValueError(f"{owner}: search must be fitted, got {type(search).__name__}. Call fit before.")
        results: Any = search.cv_results_
        known = [name.removeprefix("mean_test_") for name in results if name.startswith("mean_test_")]
        if metric is None:
            refit = getattr(search, "refit", None)
            metric = known[0] if len(known) == 1 else refit
        if metric not in known:
            raise ValueError(f"{owner}: metric must be one of {', '.join(map(repr, known))}, got {metric!r}.")
        self.metric = metric
        self.scores, self.deviations = (results[f"{kind}_test_{metric}"] for kind in ("mean", "std"))
        columns = [
            Column(name.removeprefix("param_"), list(values))
            for name, values in results.items()
            if name.startswith("param_")
        ]
        self.columns = [column for column in columns if _varies(column)]
        _shorten(self.columns)

    @property
    def finite(self):
        """Which candidates have a score."""
        return np.isfinite(self.scores)

    def matrix(self):
        """The codes of candidates with a score, a column for each parameter; below all others where there is none."""
        return np.stack(
            [np.where(np.isnan(c.codes), c.span[0] - 1.0, c.codes)[self.finite] for c in self.columns], axis=1
        )


def _is_logarithmic(values):
    """Whether numbers span much, and their logarithms lie more evenly than they do: the median nearer to the middle."""
    if min(values) <= 0 or max(values) / min(values) < SPAN:
        return False
    off = [abs((np.median(x) - x.min()) / np.ptp(x) - 0.5) for x in (np.log(values), np.array(values, float))]
    return bool(off[0] < off[1])


def _varies(column):
    codes = column.codes
    return len(set(codes[~np.isnan(codes)])) + np.isnan(codes).any() > 1


def _shorten(columns):
    """Labels: the last part of each name, or as many as tell it from the others."""
    for column in columns:
        parts = column.name.split("__")
        others = [c.name.split("__") for c in columns if c is not column]
        length = 1
        while length < len(parts) and any(other[-length:] == parts[-length:] for other in others):
            length += 1
        column.label = "__".join(parts[-length:])


def _short(value):
    text = str(getattr(value, "__name__", value))
    return text if len(text) <= 24 else f"{text[:21]}..."
