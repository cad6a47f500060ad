"""KerasTuner's HyperParameters as a space of lists and distributions."""

import itertools
from typing import Any

import numpy as np
from sklearn.utils import check_random_state

FEW = 1000
"""Numbers of no more values are listed."""


class HyperParameter:
    """A number of KerasTuner's, as a distribution in scipy's manner."""

    def __init__(self, hyperparameter):
        self.hyperparameter = hyperparameter

    def rvs(self, random_state=None):
        """Draws a value."""
        return self.ppf(check_random_state(random_state).random_sample())

    def ppf(self, q):
        """The value at a quantile."""
        return self.hyperparameter.prob_to_value(q)

    def cdf(self, value):
        """The quantile of a value."""
        return self.hyperparameter.value_to_prob(value)

    def support(self):
        """The least and the greatest value."""
        return self.hyperparameter.min_value, self.hyperparameter.max_value

    def __eq__(self, other):
        return type(other) is type(self) and other.hyperparameter is self.hyperparameter

    def __repr__(self):
        return repr(self.hyperparameter)


class HyperInteger(HyperParameter):
    """An integer of KerasTuner's."""

    def pmf(self, value):
        """How far the quantiles of a value reach beyond `cdf`, which is in the middle of them already."""
        return 0.0


def scopes_of(hyperparameters, method):
    """The dicts of lists and distributions that say the same; several where some are conditional.

    Every combination of values of parameters that others depend on has a dict of its own.

    Args:
        hyperparameters: `keras_tuner.HyperParameters`.
        method: of the search; a grid takes KerasTuner's ten values of a number without steps.
    """
    space = hyperparameters.space
    parents = {condition.name for each in space for condition in each.conditions}
    choices = [[(each.name, value) for value in _values(each, method)] for each in space if each.name in parents]
    scopes = []
    for chosen in map(dict, itertools.product(*choices)):
        active = [each for each in space if all(condition.is_active(chosen) for condition in each.conditions)]
        scope = {each.name: [chosen[each.name]] if each.name in parents else _values(each, method) for each in active}
        if scope not in scopes:
            scopes.append(scope)
    return scopes


def _values(hyperparameter, method) -> Any:
    kind = type(hyperparameter).__name__
    if kind == "Fixed":
        return [hyperparameter.value]
    if kind in ("Choice", "Boolean"):
        return list(hyperparameter.values)
    if hyperparameter.step is not None and hyperparameter._get_n_values() <= FEW:
        points = [hyperparameter.value_to_prob(value) for value in hyperparameter.values]
        return [hyperparameter.prob_to_value(u) for u in np.sort(points)]
    if method == "grid":
        return sorted(hyperparameter.values)
    return (HyperInteger if kind == "Int" else HyperParameter)(hyperparameter)
