"""Engines: what they ask, what they learn, what they leave alone."""

import importlib.util
import math
import os
import warnings

import numpy as np
import pytest
from scipy import stats

from kopt.search.engines import FixedEngine, ProposingEngine, make_engine
from kopt.search.space import Space
from kopt.testing import check_engine

NEEDS_OPTUNA = pytest.mark.skipif(not importlib.util.find_spec("optuna"), reason="needs Optuna")

ENGINES = ["random", "bayesian", pytest.param("optuna", marks=NEEDS_OPTUNA)]
SQUARE = {"x": stats.uniform(), "y": stats.uniform()}
SMALL = {"a": list(range(4)), "b": [None, (1,), "s"]}


def bowl(params):
    return -((params["x"] - 0.3) ** 2) - (params["y"] - 0.7) ** 2 - 5


def drive(method, spec, n_iter, random_state=0, batch=1, score=bowl):
    engine = make_engine(method, Space(spec, method), n_iter, random_state)
    tried = []
    while suggestions := engine.ask(batch):
        tried += [suggestion.params for suggestion in suggestions]
        for suggestion in suggestions:
            engine.tell(suggestion.id, score(suggestion.params))
    assert len(tried) <= engine.total
    return tried


def constant(params):
    return 0.5


@pytest.mark.parametrize("method", ["grid", "random", "bayesian"])
@pytest.mark.parametrize("batch", [1, 5])
def test_a_finite_space_is_exhausted_once(method, batch):
    tried = drive(method, SMALL, 40, batch=batch, score=constant)
    assert len(tried) == 12
    assert {(p["a"], p["b"]) for p in tried} == {(a, b) for a in SMALL["a"] for b in SMALL["b"]}


def test_a_discrete_space_is_exhausted_once_by_the_oracle_too():
    tried = drive("bayesian", {"n": stats.randint(0, 6)}, 20, score=lambda params: float(params["n"]))
    assert sorted(params["n"] for params in tried) == list(range(6))


@pytest.mark.parametrize("method", ["random", "bayesian"])
def test_seeds(method):
    first, again, other = (drive(method, SQUARE, 5, random_state=seed) for seed in (0, 0, 1))
    assert first == again
    assert not {p["x"] for p in first} & {p["x"] for p in other}


@pytest.mark.parametrize("method", ["random", "bayesian"])
def test_no_seed_draws_anew(method):
    assert drive(method, SQUARE, 3, random_state=None) != drive(method, SQUARE, 3, random_state=None)


def test_n_iter_is_the_number_of_candidates():
    for method in ("random", "bayesian"):
        assert len(drive(method, SQUARE, 4, batch=3)) == 4


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(3))
def test_the_process_gathers_at_the_maximum(seed):
    def regret(params):
        return (params["x"] - 0.3) ** 2

    line = {"x": stats.uniform()}
    tried = {m: drive(m, line, 9, seed, score=lambda params: -regret(params)) for m in ("bayesian", "random")}
    _, second = sorted(map(regret, tried["bayesian"]))[:2]
    _, guessed = sorted(map(regret, tried["random"]))[:2]
    assert second < 1e-4 < guessed


@pytest.mark.slow
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_a_region_that_fails_is_left(bad):
    tried = drive("bayesian", SQUARE, 14, score=lambda p: bad if p["x"] >= 0.6 else bowl(p), random_state=1)
    assert sum(params["x"] >= 0.6 for params in tried[6:]) <= 1


def test_failures_count_as_worse_than_the_worst():
    from kopt.search.gaussian_process_oracle import settled

    engine = make_engine("bayesian", Space(SQUARE, "bayesian"), 9, 0)
    for suggestion, score in zip(engine.ask(4), [math.nan, -3.0, math.inf, -7.0], strict=True):
        engine.tell(suggestion.id, score)
    found = settled(engine.oracle._observations()[1])
    assert found[1] == -3.0
    assert found[0] == found[2] == pytest.approx(2 * found[3] - found[1])
    assert found[3] < found[1]
    assert settled(np.array([math.nan, math.inf])).tolist() == [0.0, 0.0]


def test_a_batch_is_of_different_candidates():
    engine = make_engine("bayesian", Space(SQUARE, "bayesian"), 10, 0)
    for suggestion in engine.ask(4):
        engine.tell(suggestion.id, bowl(suggestion.params))
    batch = engine.ask(3)
    assert len({suggestion.params["x"] for suggestion in batch}) == 3
    assert len({suggestion.id for suggestion in batch}) == 3


def test_several_dicts_are_told_apart():
    spec = [{"kind": ["a"], "x": stats.uniform()}, {"kind": ["b"], "y": [1, 2]}, {}]
    tried = drive("bayesian", spec, 6, score=constant)
    assert {tuple(params) for params in tried} == {("kind", "x"), ("kind", "y"), ()}
    assert all(params["kind"] == ("a" if "x" in params else "b") for params in tried if params)
    assert sum(params == {} for params in tried) == 1


def test_the_oracle_is_quiet_and_writes_nothing(tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        drive("bayesian", SQUARE, 5)
    assert os.listdir() == []
    assert "".join(capfd.readouterr()) == ""


@pytest.mark.parametrize(("n_iter", "initial"), [(3, 3), (10, 3), (15, 5), (60, 6)])
def test_scattered_points_leave_room_for_proposals(n_iter, initial, monkeypatch):
    from kopt.search.gaussian_process_oracle import GaussianProcessOracle

    fitted = []
    ranked = GaussianProcessOracle._ranked
    monkeypatch.setattr(
        GaussianProcessOracle, "_ranked", lambda self, *args: fitted.append(len(self.trials)) or ranked(self, *args)
    )
    drive("bayesian", SQUARE, n_iter)
    assert fitted[:1] == ([initial] if n_iter > 3 else [])


def test_an_oracle_of_ones_own_is_asked_too():
    import keras_tuner

    for oracle in (
        keras_tuner.oracles.RandomSearchOracle(max_trials=2, seed=1),
        keras_tuner.oracles.BayesianOptimizationOracle(keras_tuner.Objective("loss", "min"), 3, seed=1),
    ):
        assert len(drive(oracle, SMALL, 7, score=lambda params: -params["a"])) == 7
        assert oracle.trials == {}  # a copy is asked


@pytest.mark.parametrize("direction", ["min", "max"])
def test_an_oracles_best_trial_is_the_best_candidate(direction):
    import keras_tuner

    def score(params):
        return params["a"] + len(str(params["b"])) / 10

    oracle = keras_tuner.oracles.RandomSearchOracle(keras_tuner.Objective("loss", direction), seed=1)
    engine = make_engine(oracle, Space(SMALL, oracle), 7, 0)
    suggestions = engine.ask(7)
    for suggestion in suggestions:
        engine.tell(suggestion.id, score(suggestion.params))
    (best,) = engine.oracle.get_best_trials(1)
    assert best.trial_id == max(suggestions, key=lambda suggestion: score(suggestion.params)).id


def test_keras_tuners_hyperband_is_refused():
    import keras_tuner

    oracle = keras_tuner.oracles.HyperbandOracle(keras_tuner.Objective("loss", "min"))
    with pytest.raises(ValueError, match=r"method must be 'hyperband', .*, got KerasTuner's HyperbandOracle\.$"):
        make_engine(oracle, Space(SMALL, oracle), 7, 0)


def test_an_oracle_is_freed():
    import gc
    import weakref

    engine = make_engine("bayesian", Space(SQUARE, "bayesian"), 4, 0)
    engine.ask(2)
    oracle = weakref.ref(engine.oracle)
    del engine
    gc.collect()
    assert oracle() is None


# ---- the contract ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ENGINES)
def test_the_contract(method):
    check_engine(lambda space, n, seed: make_engine(method, space, n, seed))


@NEEDS_OPTUNA
def test_a_sampler_of_ones_own_is_asked_too():
    import optuna

    sampler = optuna.samplers.RandomSampler(seed=3)
    tried = drive(sampler, SQUARE, 4)
    assert drive(sampler, SQUARE, 4) == tried  # a copy is asked


class Broken(ProposingEngine):
    """Proposes the same things in turn, whatever the scores."""

    def __init__(self, space, total, seed, patience=0):
        super().__init__(space, total)
        self.count = 0

    def _propose(self):
        self.count += 1
        return str(self.count), self.space.drawn(
            lambda key, n: self.count % n, lambda key, n: 0, lambda key: self.count / 100
        )

    def _end(self, id, score):
        pass

    def _add(self, coordinates, score):
        return "known"


def test_the_contract_finds_what_is_broken():
    with pytest.raises(AssertionError, match="another seed must give other candidates"):
        check_engine(Broken)


def test_who_repeats_himself_is_not_asked_for_the_rest():
    tried = drive(lambda space, n, seed: Broken(space, n, seed), SMALL, 40, batch=3, score=constant)  # it knows four
    assert len(tried) == len({str(params) for params in tried}) == 12


# ---- what is known beforehand ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["grid", "random", "bayesian", pytest.param("optuna", marks=NEEDS_OPTUNA)])
def test_initial_candidates_come_first_and_once(method):
    initial = [{"a": 2, "b": "s"}, {"a": 0, "b": (1,)}]
    engine = make_engine(method, Space(SMALL, method), 40, 0, initial=initial)
    tried = []
    while suggestions := engine.ask(3):
        tried += [suggestion.params for suggestion in suggestions]
        for suggestion in suggestions:
            engine.tell(suggestion.id, float(suggestion.params["a"]))
    assert tried[:2] == initial
    assert len(tried) == len({str(params) for params in tried}) == engine.total == 12


@pytest.mark.parametrize("method", ["bayesian", pytest.param("optuna", marks=NEEDS_OPTUNA)])
def test_initial_candidates_may_fail_and_wait(method):
    """They are not proposed again, though they failed, or have no score yet."""
    initial = [{"a": 2, "b": "s"}, {"a": 0, "b": (1,)}]
    engine = make_engine(method, Space(SMALL, method), 40, 0, initial=initial)
    failed, waiting = engine.ask(2)
    assert [failed.params, waiting.params] == initial
    engine.tell(failed.id, math.nan)
    tried = [*initial]
    while suggestions := engine.ask(1):
        tried += [suggestions[0].params]
        engine.tell(suggestions[0].id, 0.5)
    engine.tell(waiting.id, 0.7)
    assert len(tried) == len({str(params) for params in tried}) == 12


def test_an_engine_without_use_for_them_refuses_what_is_known_beforehand():
    fixed = FixedEngine([], 0)
    for known, message in [
        ({"initial": [{"a": 2, "b": "s"}]}, "initial_params must be empty where the engine is a FixedEngine, got"),
        ({"previous": [({"a": 2, "b": "s"}, 1.0)]}, "previous must be None where the engine is a FixedEngine"),
    ]:
        with pytest.raises(ValueError, match=f"^TunerSearchCV: {message}"):
            make_engine(lambda space, n, seed: fixed, Space(SMALL, "bayesian"), 4, 0, **known)


@pytest.mark.parametrize("method", ["bayesian", pytest.param("optuna", marks=NEEDS_OPTUNA)])
def test_an_engine_learns_from_what_it_did_not_suggest(method):
    rng = np.random.default_rng(0)
    known = [{"x": x, "y": y} for x, y in rng.random((40, 2))]
    known = [(params, bowl(params)) for params in known]
    engine = make_engine(method, Space(SQUARE, method), 8, 0, previous=known)
    tried = []
    while suggestions := engine.ask(1):
        tried += [suggestions[0].params]
        engine.tell(suggestions[0].id, bowl(tried[-1]))
    assert len(tried) == 8
    assert np.mean([bowl(params) for params in tried]) > np.mean([score for _, score in known]) + 0.1


def test_candidates_are_encoded_or_refused():
    space = Space([SMALL, {"n": stats.randint(2, 5)}], "bayesian")
    for params in ({"a": 3, "b": None}, {"n": 4}):
        assert space.params(space.encode(params)) == params
    for params, message in [({"a": 9, "b": None}, "9 is not in the list"), ({"n": 5}, "5 is not between 2 and 4")]:
        with pytest.raises(ValueError, match=message):
            space.encode(params)
    with pytest.raises(ValueError, match="it has the parameters x, and the space a, b or n"):
        space.encode({"x": 1})
