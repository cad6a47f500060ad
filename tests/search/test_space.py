"""Spaces: what they take, and codes that survive the way to an oracle and back."""

import math

import numpy as np
import pytest
from scipy import stats
from sklearn.model_selection import ParameterSampler
from sklearn.preprocessing import StandardScaler

from kopt.search.space import Space

MIXED = {
    "rate": stats.loguniform(1e-5, 1e-1),
    "units": stats.randint(4, 64),
    "count": stats.binom(6, 0.3),
    "shift": stats.norm(2, 3),
    "layers": [(8,), (8, 8), None],
    "scaler": [StandardScaler(), "passthrough"],
}
SCOPES = [
    {"kind": ["a"], "x": stats.uniform(), "n": stats.randint(0, 9)},
    {"kind": ["b", "c"], "y": [1, 2]},
    {},
]
SPACES = {
    "lists": {"b": [1, 2.5, "s", None], "a": np.array([3.0, 4.0]), "c": (True, False)},
    "mixed": MIXED,
    "scopes": SCOPES,
    "scopes of lists": [{"a": [1, 2], "b": [3]}, {"a": [5, 6, 7]}, {}],
}


@pytest.mark.parametrize("spec", SPACES.values(), ids=SPACES)
@pytest.mark.parametrize("seed", [0, 3])
def test_draws_are_those_of_scikit_learn_without_repeats(spec, seed):
    space = Space(spec, "random")
    count = min(12, space.size)
    drawn = [space.params(codes) for _, codes in zip(range(count), space.draws(count, seed, set()))]
    unique = []
    for params in ParameterSampler(spec, count if math.isfinite(space.size) else 40, random_state=seed):
        if params not in unique:
            unique.append(params)
    assert drawn == unique[:count]


@pytest.mark.parametrize("spec", SPACES.values(), ids=SPACES)
def test_coordinates_lead_back(spec):
    space = Space(spec, "bayesian")
    declared = space.hyperparameters()
    for codes in [codes for _, codes in zip(range(30), space.draws(30, 0, set()))]:
        coordinates = space.coordinates(codes)
        assert {hp.name for hp in declared.space} >= set(coordinates)
        back = space.codes(coordinates)
        assert {key: type(code) for key, code in back.items()} == {
            key: float if isinstance(code, float) else int for key, code in codes.items()
        }
        for key, code in codes.items():
            assert back[key] == pytest.approx(code, rel=1e-9)
            assert back[key] == code or isinstance(code, float)


def test_coordinates_are_quantiles():
    space = Space({"rate": stats.loguniform(1e-4, 1e-2)}, "bayesian")
    assert space.coordinates({"0:rate": 1e-3})["0:rate"] == pytest.approx(0.5)
    for end in (0.0, 1.0):
        assert math.isfinite(Space({"x": stats.norm()}, "bayesian").codes({"0:x": end})["0:x"])


def test_only_parameters_of_one_dict_are_active():
    declared = Space(SCOPES, "bayesian").hyperparameters()
    declared.values = {"scope": 1}
    active = {hp.name for hp in declared.space if declared.is_active(hp)}
    assert active == {"scope", "1:kind", "1:y"}


@pytest.mark.parametrize(
    ("spec", "size"),
    [
        (SPACES["lists"], 4 * 2 * 2),
        (SPACES["scopes of lists"], 2 + 3 + 1),
        ({"a": stats.randint(3, 8), "b": [1, 2]}, 10),
        ({"a": stats.poisson(3)}, math.inf),
        (MIXED, math.inf),
    ],
)
def test_size(spec, size):
    assert Space(spec, "random").size == size


def test_a_discrete_space_is_drawn_until_it_is_exhausted():
    space = Space({"a": stats.randint(0, 4), "b": [0, 1, 2]}, "random")
    drawn = [tuple(codes.values()) for codes in space.draws(50, 0, set())]
    assert sorted(drawn) == [(a, b) for a in range(4) for b in range(3)]


def test_draws_heed_what_others_have_seen():
    space = Space({"a": list(range(5))}, "bayesian")
    seen = {space.identity({"0:a": i}) for i in range(4)}
    assert list(space.draws(5, 0, seen)) == [{"0:a": 4}]


@pytest.mark.parametrize(
    ("spec", "method", "error", "message"),
    [
        ("C", "random", TypeError, "param_distributions must be a dict or a non-empty list of dicts, got 'C'."),
        ([], "random", TypeError, "non-empty list of dicts"),
        ([{"C": [1]}, "C"], "random", TypeError, "list of dicts"),
        ({"C": []}, "random", ValueError, r"param_distributions\['C'\] must be a list of at least one value"),
        ({"C": "abc"}, "random", TypeError, r"\['C'\] must be a list or a distribution, got 'abc'."),
        ({"C": 1.0}, "bayesian", TypeError, "must be a list or a distribution, got 1.0."),
        ({"C": {1, 2}}, "bayesian", TypeError, "must be a list or a distribution"),
        ({"C": stats.uniform()}, "grid", TypeError, "must be a list where method='grid', .* Try method='random'."),
        ({"C": np.random.RandomState}, "random", TypeError, "must be a list or a distribution"),
    ],
)
def test_wrong_notation(spec, method, error, message):
    with pytest.raises(error, match=f"^TunerSearchCV: .*{message}"):
        Space(spec, method)


class Tuples:
    """A home-made distribution: it can be drawn from, and has no quantiles."""

    def rvs(self, random_state=None):
        return tuple(random_state.randint(1, 5, size=2))


def test_a_distribution_without_quantiles_is_for_random_search_only():
    space = Space({"layers": Tuples()}, "random")
    assert len({space.identity(codes) for codes in space.draws(5, 0, set())}) == len(list(space.draws(5, 0, set())))
    with pytest.raises(TypeError, match="have ppf and cdf where method='bayesian'"):
        Space({"layers": Tuples()}, "bayesian")
