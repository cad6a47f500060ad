"""KerasTuner's hyperparameters as numbers: coordinates in a cube to search in, and features for a Gaussian process."""

import itertools
import math
from typing import Any

import numpy as np

FINE = 2**16
"""The number of values from which on an axis counts as continuous."""


class Axis:
    """One hyperparameter.

    Attributes:
        values: its values in order, where they are few; else None.
        points: their coordinates.
        categories: whether the values have no order.
    """

    values: Any
    points: Any

    def __init__(self, hyperparameter):
        self.hyperparameter, self.name = hyperparameter, hyperparameter.name
        kind = type(hyperparameter).__name__
        self.categories = kind == "Boolean" or (kind == "Choice" and not hyperparameter.ordered)
        few = kind in ("Boolean", "Choice") or (
            hyperparameter.step is not None and hyperparameter._get_n_values() < FINE
        )
        if kind == "Int" and not few:
            few = hyperparameter.max_value - hyperparameter.min_value < FINE
        self.values = self.points = None
        if few:
            values = hyperparameter.values
            if kind == "Int" and hyperparameter.step is None:  # KerasTuner lists ten
                values = range(hyperparameter.min_value, hyperparameter.max_value + 1)
            self.points = np.sort([hyperparameter.value_to_prob(value) for value in values])
            self.values = [hyperparameter.prob_to_value(u) for u in self.points]

    @property
    def size(self):
        """The number of values."""
        return math.inf if self.values is None else len(self.values)

    def snap(self, u):
        """The nearest coordinates that have a value."""
        return u if self.points is None else self.points[self.positions(u)]

    def positions(self, u):
        """The positions of the values nearest to coordinates."""
        middles = (self.points[1:] + self.points[:-1]) / 2
        return np.searchsorted(middles, u)

    def value(self, u):
        """The value at a coordinate."""
        if self.values is None:
            return self.hyperparameter.prob_to_value(u)
        return self.values[int(self.positions(u))]

    def features(self, u, is_conditional):
        """Columns in which Euclidean distances make sense; that of a value to none at all is about 1.

        Categories are at a distance of 1 from each other. A parameter that may be inactive lies on an arc around the
        point that stands for inactive.
        """
        if self.categories:
            return np.eye(len(self.values))[self.positions(u)] / math.sqrt(2)
        if is_conditional:
            return np.stack([np.cos(math.pi / 3 * u), np.sin(math.pi / 3 * u)], axis=1)
        return u[:, None]


class Axes:
    """All hyperparameters of a space but the fixed ones, and those of only one value.

    Attributes:
        categories: of each axis, whether its values have no order.
        groups: the axis of each column of `features`.

    A point is an array of coordinates in [0, 1), one for each axis, also where its parameter is not active.

    Args:
        hyperparameters: KerasTuner's list, as in `HyperParameters.space`.

    Source of the arcs:
        K. Swersky et al., "Raiders of the Lost Architecture: Kernels for Bayesian Optimization in Conditional Parameter
        Spaces", BayesOpt workshop at NeurIPS (2013).
    """

    def __init__(self, hyperparameters):
        self._all = [h if type(h).__name__ == "Fixed" else Axis(h) for h in hyperparameters]
        self.axes = [axis for axis in self._all if isinstance(axis, Axis) and axis.size > 1]
        self.categories = np.array([axis.categories for axis in self.axes], bool)
        self.groups = np.repeat(np.arange(len(self.axes)), [self._width(axis) for axis in self.axes])

    def _width(self, axis):
        return len(axis.values) if axis.categories else 1 + bool(axis.hyperparameter.conditions)

    def __len__(self):
        return len(self.axes)

    def snap(self, points):
        """The nearest points that are candidates."""
        return np.stack([axis.snap(points[:, i]) for i, axis in enumerate(self.axes)], axis=1)

    def active(self, points):
        """Which parameters the candidates have, of the shape of points."""
        active = np.ones(points.shape, bool)
        for i, axis in enumerate(self.axes):
            for condition in axis.hyperparameter.conditions:
                # Scopes that exclude each other may have parents of one name.
                parents = [(j, axis) for j, axis in enumerate(self.axes[:i]) if axis.name == condition.name]
                met = [self._meets(parent, points[:, j], condition) & active[:, j] for j, parent in parents]
                if met:
                    active[:, i] &= np.logical_or.reduce(met)
        return active

    @staticmethod
    def _meets(parent, u, condition):
        return np.array([value in condition.values for value in parent.values])[parent.positions(u)]

    def features(self, points):
        """The columns for a Gaussian process: of each axis its own, zero where it is not active."""
        active = self.active(points)
        columns = [
            axis.features(points[:, i], bool(axis.hyperparameter.conditions)) * active[:, i : i + 1]
            for i, axis in enumerate(self.axes)
        ]
        return np.concatenate(columns, axis=1)

    def values(self, point):
        """The values that a candidate has, by name."""
        coordinates = dict(zip(self.axes, point))
        values = {}
        for each in self._all:  # parents come first
            fixed = not isinstance(each, Axis)
            conditions = each.conditions if fixed else each.hyperparameter.conditions
            if all(condition.is_active(values) for condition in conditions):
                values[each.name] = each.value if fixed else each.value(coordinates.get(each, 0.5))
        return values

    def point(self, values):
        """The point of a candidate's values; where one is missing, its default's."""
        return np.array(
            [
                axis.hyperparameter.value_to_prob(values.get(axis.name, axis.hyperparameter.default))
                for axis in self.axes
            ]
        )

    def all_values(self):
        """Yields every candidate of a finite space, and some more than once."""
        for point in itertools.product(*(axis.points for axis in self.axes if axis.points is not None)):
            yield self.values(point)

    @property
    def is_finite(self):
        """Whether there is an end of candidates."""
        return all(axis.values is not None for axis in self.axes)


def identity(values):
    """What two candidates share exactly if they are the same."""
    return tuple(sorted((name, str(value)) for name, value in values.items()))
