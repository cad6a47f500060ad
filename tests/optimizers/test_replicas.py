"""Two replicas equal one device, with and without each of the options that Keras's own optimizers lose there."""

import functools

import pytest

import kopt
from kopt.testing import backends, runs

OPTIONS = [
    {},
    {"clipnorm": 0.5},
    {"clipvalue": 0.1},
    {"global_clipnorm": 0.5},
    {"gradient_accumulation_steps": 3},
    {"use_ema": True, "ema_momentum": 0.5},
    {"use_ema": True, "ema_overwrite_frequency": 2},
    {"weight_decay": 0.5, "no_decay": "vector"},
    {"groups": {"matrix": {"learning_rate": 0.5}}},
    {"skip_nonfinite": True},
]


@pytest.mark.skipif(not backends.two_devices(), reason="there are no two logical devices")
@pytest.mark.parametrize("options", OPTIONS, ids=lambda options: "-".join(options) or "plain")
@pytest.mark.parametrize(
    "optimizer",
    [
        functools.partial(kopt.Adam, 0.05),
        pytest.param(functools.partial(kopt.Prodigy, initial_distance=0.05), marks=pytest.mark.slow),
        pytest.param(functools.partial(kopt.Muon, 0.05), marks=pytest.mark.slow),
    ],
    ids=lambda optimizer: optimizer.func.__name__,
)
def test_two_replicas_equal_one_device(optimizer, options):
    one = runs.Run(optimizer(**options), dtype="float64")
    strategy = backends.mirrored(backends.two_devices())
    with strategy.scope():
        two = runs.Run(optimizer(**options), dtype="float64")
    two.step = backends.replicated_step(strategy, two.step)
    assert runs.distance(one(), two()) < 1e-6
    assert runs.distance(one.weights(), one.start) > 1e-3
    if options.get("use_ema"):
        averages = ([v.numpy() for v in run.optimizer._model_variables_moving_average] for run in (one, two))
        assert runs.distance(*averages) < 1e-6
