"""Like fits share a program: they compile nothing, keep to themselves in threads, and leave nothing behind."""

import concurrent.futures
import gc
import weakref

import numpy as np
import pytest

from kopt import KerasClassifier
from kopt.training import network
from kopt.training.cache import Cache

X = np.random.default_rng(0).standard_normal((64, 4)).astype("float32")
y = (X.sum(1) > 0).astype(int)


def compiled():
    """How many programs there are, and how often their epochs were traced."""
    programs = network.PROGRAMS._values.values()
    return len(programs), sum(program.epoch.experimental_get_tracing_count() for program in programs)


def fitted(seed=0, **parameters):
    net = KerasClassifier(epochs=2, batch_size=32, random_state=seed, model__hidden_layer_sizes=3).set_params(
        **parameters
    )
    net.fit(X, y)
    return net, net.predict_proba(X)


@pytest.fixture(scope="module")
def first():
    """A fit that compiles, the first in a cache of its own, and what comes of it."""
    kept, network.PROGRAMS = network.PROGRAMS, Cache(size=32)
    yield fitted()
    network.PROGRAMS = kept


def test_a_like_fit_compiles_nothing(first):
    before = compiled()
    assert min(before) > 0
    others = [fitted(seed, optimizer__learning_rate=rate)[1] for seed, rate in ((0, 1e-3), (1, 1e-3), (0, 0.1))]
    fitted(batch_size=16)
    assert compiled() == before
    np.testing.assert_array_equal(others[0], first[1])
    assert all((other != first[1]).any() for other in others[1:])
    fitted(model__hidden_layer_sizes=5)
    assert compiled() == (before[0] + 1, before[1] + 1)


def test_threads_share_a_program(first):
    alone = [fitted(seed)[1] for seed in range(4)]
    before = compiled()
    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        together = list(pool.map(lambda seed: fitted(seed % 4)[1], range(12)))
    assert compiled() == before
    for number, found in enumerate(together):
        np.testing.assert_array_equal(found, alone[number % 4])


def test_two_hundred_fits_leave_nothing_behind(first):
    for _ in range(10):  # what is made once is made
        fitted()
    gc.collect()
    before, arrays = len(gc.get_objects()), []  # arrays are no objects that the collector counts
    for _ in range(200):
        arrays += map(weakref.ref, fitted()[0]._network.weights)
    gc.collect()
    assert not any(array() is not None for array in arrays), "weights outlive their estimator"
    del arrays
    assert len(gc.get_objects()) - before < 200, "each fit leaves an object behind"


def test_the_least_used_make_room():
    cache, made = Cache(size=2), []

    def find(key):
        return cache.find(key, lambda: made.append(key) or key)

    for key in "a", "b", "a", "c", "a", "b":
        assert find(key) == key
    assert made == ["a", "b", "c", "b"]
    assert network.PROGRAMS.size < 100
