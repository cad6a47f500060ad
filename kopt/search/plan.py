"""What a search looks for; and what is wrong with it, before any fit."""

import contextlib
import difflib
from numbers import Integral
from typing import NamedTuple

from sklearn.base import clone

from kopt._checks import check_choice, check_range
from kopt.search.candidates import Candidates
from kopt.search.engines import HALVING, METHODS, SETTLED, is_oracle, is_sampler
from kopt.search.halving import Ladder
from kopt.search.networks import networks_in
from kopt.search.space import Space


class Plan(NamedTuple):
    """What a search looks for.

    Attributes:
        space: the `Space`.
        ladder: the `Ladder` of a method that halves, or None.
        initial: candidates to try first.
        previous: pairs of candidates and their scores, from elsewhere.
    """

    space: Space
    ladder: Ladder | None
    initial: list
    previous: list


def plan_of(search):
    """Refuses wrong arguments before any fit, and returns the plan of the search."""
    if not (is_oracle(search.method) or is_sampler(search.method) or callable(search.method)):
        check_choice(search, METHODS, method=search.method)
    check_choice(search, (True, False), resume=search.resume)
    check_range(search, "[1, inf)", kind=Integral, n_iter=search.n_iter)
    check_range(search, "(0, inf)", heartbeat=search.heartbeat)
    if search.population != "auto":
        check_range(search, "[1, inf)", kind=Integral, population=search.population)
        if search.population > 1 and not networks_in(search.estimator):
            raise ValueError(
                "TunerSearchCV: population must be 'auto' or 1 where the estimator holds no Keras estimator of kopt's, "
                f"got {search.population!r}."
            )
    if search.time_limit is not None:
        check_range(search, "(0, inf)", time_limit=search.time_limit)
    if search.n_iter_no_change is not None:
        check_range(search, "[1, inf)", kind=Integral, n_iter_no_change=search.n_iter_no_change)
    if search.constraint is not None and not callable(search.constraint):
        raise TypeError(f"TunerSearchCV: constraint must be a function or None, got {search.constraint!r}.")
    space = Space(search.param_distributions, search.method)
    _check_names(search, space)
    return Plan(
        space,
        _ladder(search, space) if search.method in HALVING else None,
        _initial(search, space),
        _previous(search, space) if search.previous is not None else [],
    )


def _initial(search, space):
    """The candidates to try first, without repeats."""
    if not isinstance(search.initial_params, list | tuple):
        raise TypeError(f"TunerSearchCV: initial_params must be a list of dicts, got {search.initial_params!r}.")
    found = {}
    for i, params in enumerate(search.initial_params):
        try:
            found[space.identity(space.encode(params))] = params
        except (AttributeError, ValueError) as error:
            raise ValueError(
                f"TunerSearchCV: initial_params[{i}] must be a candidate of param_distributions, got {params!r}: "
                f"{error}."
            ) from error
    return list(found.values())


def _previous(search, space):
    """What an earlier search knows of candidates of this one."""
    if search.method in SETTLED:
        raise ValueError(
            f"TunerSearchCV: previous must be None where method={search.method!r} does not learn from it, got a "
            f"{type(search.previous).__name__}. Try method='bayesian'."
        )
    known = Candidates(
        search.previous, search.refit if isinstance(search.refit, str) else None, "TunerSearchCV: previous"
    )
    pairs = []
    for params, score in zip(search.previous.cv_results_["params"], known.scores, strict=True):
        with contextlib.suppress(ValueError):
            space.encode(params)
            pairs.append((params, float(score)))
    if not pairs:
        raise ValueError("TunerSearchCV: previous must have tried candidates of param_distributions, got none.")
    return pairs


def _check_names(search, space):
    for scope in space.scopes:
        candidate = clone(search.estimator)
        for name in sorted(scope, key=lambda name: name.count("__")):  # a step before its parameters
            try:
                candidate.set_params(**{name: clone(scope[name].example, safe=False)})
            except (AttributeError, TypeError, ValueError) as error:
                near = difflib.get_close_matches(name, candidate.get_params(), n=3)
                hint = f" Did you mean {' or '.join(map(repr, near))}?" if near else " Its get_params() lists them."
                raise ValueError(
                    f"TunerSearchCV: param_distributions must name parameters of "
                    f"{type(search.estimator).__name__}, got {name!r}.{hint}"
                ) from error
        for part in (candidate, *candidate.get_params().values()):
            if hasattr(part, "_check_routed_names"):  # kopt's estimators take any name after optimizer__
                part._check_routed_names()


def _ladder(search, space):
    """The budgets of a method that halves."""
    params = search.estimator.get_params()
    resource = search.resource
    if resource is None:
        found = [f"{name}__epochs".removeprefix("__") for name in networks_in(search.estimator)]
        if len(found) != 1:
            raise ValueError(
                f"TunerSearchCV: resource must name the parameter that is the budget where the estimator holds "
                f"{len(found)} Keras estimators and method={search.method!r}, got None."
            )
        (resource,) = found
    if resource not in params or any(resource in scope for scope in space.scopes):
        raise ValueError(
            f"TunerSearchCV: resource must be a parameter of {type(search.estimator).__name__} that is not in "
            f"param_distributions, got {resource!r}."
        )
    high = params[resource] if search.max_resources is None else search.max_resources
    check_range(search, "[1, inf)", kind=Integral, max_resources=high)
    check_range(search, f"[1, {high}]", kind=Integral, min_resources=search.min_resources)
    check_range(search, "[2, inf)", kind=Integral, factor=search.factor)
    return Ladder(resource, search.min_resources, high, search.factor)
