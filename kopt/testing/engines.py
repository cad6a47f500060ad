"""What every engine of a search must do."""

import math

import numpy as np
from scipy import stats

from kopt.search.space import Space

SMALL = {"a": [0, 1, 2, 3], "b": [None, (1,), "s"]}
LINE = {"x": stats.uniform(), "y": stats.loguniform(1e-3, 1e3)}
SEVERAL = [{"kind": ["a"], "x": stats.uniform()}, {"kind": ["b"], "n": stats.randint(0, 5)}]


def check_engine(make):
    """Checks an engine of a search: what it asks, what it learns, how it ends.

    Args:
        make: a function of a `kopt.search.space.Space`, a number of candidates and a seed, that returns a fresh
            `kopt.search.engines.Engine`.

    Raises:
        AssertionError: it breaks a rule, which the message says.
    """
    _check_end(make)
    _check_seeds(make)
    _check_batches(make)
    _check_failures(make)
    _check_conditions(make)
    if make(Space(LINE, "bayesian"), 4, 0).learns:
        _check_learning(make)


def _drive(make, spec, n, seed=0, batch=1, score=lambda params: 0.5):
    """Asks an engine to its end; returns the candidates in order."""
    engine, tried, ids = make(Space(spec, "bayesian"), n, seed), [], []
    while suggestions := engine.ask(batch):
        assert len(suggestions) <= batch, f"an engine must suggest at most {batch}, got {len(suggestions)}"
        ids += [suggestion.id for suggestion in suggestions]
        tried += [suggestion.params for suggestion in suggestions]
        for suggestion in suggestions:
            engine.tell(suggestion.id, score(suggestion.params))
    assert len(ids) == len(set(ids)), "every suggestion must have an id of its own"
    assert len(tried) <= engine.total, f"total is {engine.total}, and there were {len(tried)}"
    assert engine.ask(1) == [], "an engine that is at its end must stay there"
    return tried


def _check_end(make):
    for batch in (1, 5):
        tried = _drive(make, SMALL, 40, batch=batch)
        different = len({str(params) for params in tried})
        assert len(tried) == different == 12, (
            f"12 candidates must be tried once, got {len(tried)}, {different} different"
        )
    assert len(_drive(make, LINE, 6, batch=4)) == 6, "the number of candidates must be kept"


def _check_seeds(make):
    first, again, other = (_drive(make, LINE, 5, seed, score=_bowl) for seed in (0, 0, 1))
    assert first == again, "the same seed must give the same candidates"
    assert not {p["x"] for p in first} & {p["x"] for p in other}, "another seed must give other candidates"


def _check_batches(make):
    """Suggestions are different while none is told, and may be told in any order."""
    engine = make(Space(LINE, "bayesian"), 12, 0)
    waiting, rng = [], np.random.default_rng(0)
    for _ in range(4):
        waiting += engine.ask(3)
        different = {suggestion.params["x"] for suggestion in waiting}
        assert len(different) == len(waiting), "candidates that wait for scores must differ"
        for i in sorted(rng.permutation(len(waiting))[:2], reverse=True):
            suggestion = waiting.pop(i)
            engine.tell(suggestion.id, _bowl(suggestion.params))


def _check_failures(make):
    """Scores that are not finite are taken, and do not end a search."""
    bad = iter([math.nan, math.inf, -math.inf] * 100)
    assert len(_drive(make, LINE, 8, score=lambda params: next(bad))) == 8, "failures must not end a search"
    tried = _drive(make, LINE, 12, score=lambda p: math.nan if p["x"] > 0.5 else _bowl(p))
    assert len(tried) == 12, "failures must not end a search"


def _check_conditions(make):
    for params in _drive(make, SEVERAL, 9, batch=2):
        names = {"kind", "x"} if params["kind"] == "a" else {"kind", "n"}
        assert set(params) == names, f"a candidate must be of one dict, got {params}"
        assert 0 <= params.get("x", 0) <= 1, f"x must be in its range, got {params}"
        assert params.get("n", 0) in range(5), f"n must be in its range, got {params}"


def _check_learning(make):
    # Of 30 random candidates one lies so close to the maximum; one that learns looks there, and elsewhere when sure.
    close = sum(-_bowl(params) < 0.01 for params in _drive(make, LINE, 30, score=_bowl))
    assert close >= 5, f"an engine that learns must look near the maximum, got {close} of 30 candidates there"


def _bowl(params):
    return -((params["x"] - 0.3) ** 2) - (math.log10(params["y"]) / 6) ** 2
