"""Schedules have the values of other libraries' (`references/schedules/make.py`), and survive all that Keras does."""

import json
from pathlib import Path

import keras
import numpy as np
import pytest
from keras import ops

import kopt
from kopt import schedules

CASES = json.loads((Path(__file__).parents[1] / "references" / "schedules" / "values.json").read_text())
STEPS = len(CASES[0]["values"])
PUBLIC = [getattr(schedules, name) for name in schedules.__all__ if name not in ("Schedule", "Anneal")]


def made(case):
    return eval(case["schedule"], vars(schedules))


def compiled(function):
    if keras.backend.backend() == "jax":
        import jax

        return jax.jit(function)
    import tensorflow as tf

    return tf.function(function, jit_compile=True)


def values(schedule, steps=range(STEPS), dtype="int32"):
    return ops.convert_to_numpy(schedule(ops.convert_to_tensor(steps, dtype)))


@pytest.mark.parametrize("case", CASES, ids=lambda case: case["schedule"])
def test_the_values_are_the_references(case):
    np.testing.assert_allclose(values(made(case)), case["values"], rtol=0, atol=1e-7)


@pytest.mark.parametrize("case", [CASES[13], CASES[-1]], ids=lambda case: case["schedule"])
def test_a_compiled_step_asks_for_one_value(case):
    schedule = compiled(made(case))
    asked = [schedule(ops.convert_to_tensor(step, "int32")) for step in range(STEPS)]
    assert {tuple(value.shape) for value in asked} == {()}
    np.testing.assert_allclose([float(value) for value in asked], case["values"], rtol=0, atol=1e-7)


@pytest.mark.skipif(keras.backend.backend() == "jax", reason="keras.ops.cos is float32 at most on JAX")
@pytest.mark.parametrize("case", CASES, ids=lambda case: case["schedule"])
def test_the_values_are_exact_where_the_step_is(case):
    np.testing.assert_allclose(values(made(case), dtype="float64"), case["values"], rtol=0, atol=1e-11)


@pytest.mark.parametrize("cls", PUBLIC, ids=lambda cls: cls.__name__)
def test_every_schedule_has_two_references(cls):
    assert sum(case["schedule"].count(f"{cls.__name__}(") for case in CASES) >= 2


@pytest.mark.parametrize("case", CASES, ids=lambda case: case["schedule"])
def test_config_and_repr_lead_back(case):
    schedule = made(case)
    config = json.loads(json.dumps(keras.saving.serialize_keras_object(schedule)))
    assert config["registered_name"] == f"kopt>{type(schedule).__name__}"
    again = keras.saving.deserialize_keras_object(config)
    assert again.get_config() == schedule.get_config()
    assert eval(repr(schedule), vars(schedules)).get_config() == schedule.get_config()
    np.testing.assert_array_equal(values(again), values(schedule))


def test_schedules_of_keras_may_be_pieces():
    theirs = keras.optimizers.schedules.PolynomialDecay(0.5, 12)
    ours = schedules.Warmup(theirs, 8)
    again = type(ours).from_config(ours.get_config())
    reference = schedules.Warmup(schedules.Linear(0.5, 12, final=1e-4), 8)
    np.testing.assert_allclose(values(again), values(reference), atol=1e-7)


def test_the_transformers_schedule_is_the_papers():
    steps = np.arange(1, 100)
    schedule = schedules.Warmup(schedules.InverseSquareRoot(0.5, 10), 10)
    np.testing.assert_allclose(values(schedule, steps), 0.5 * np.minimum(steps / 10, np.sqrt(10 / steps)), rtol=1e-6)


def test_many_steps_may_be_asked_for_at_once():
    schedule = schedules.Join([0.5, schedules.Linear(0.5, 4)], [2])
    assert ops.convert_to_numpy(schedule(range(8))).tolist() == [0.5, 0.5, 0.5, 0.375, 0.25, 0.125, 0, 0]


def test_steps_are_counted_exactly_in_half_precision(monkeypatch):
    monkeypatch.setattr(keras.config, "floatx", lambda: "bfloat16")
    assert values(schedules.Linear(1.0, 1000), [999]) == pytest.approx(1e-3, rel=1e-3)


def test_fit_takes_a_schedule_for_any_hyperparameter(tmp_path):
    model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(1)])
    momentum = schedules.OneCycle(0.85, 8, initial=0.95, final=0.95)
    decay = schedules.Warmup(schedules.Cosine(0.1, 6), 2)
    model.compile(kopt.SGD(schedules.OneCycle(0.1, 8), momentum=momentum, weight_decay=decay), "mse")
    x = np.random.default_rng(0).standard_normal((32, 3)).astype("float32")
    model.fit(x, x[:, :1], batch_size=8, epochs=2, verbose=0)
    model.save(file := tmp_path / "model.keras")
    loaded = keras.saving.load_model(file).optimizer
    assert loaded.get_config() == model.optimizer.get_config()
    assert isinstance(loaded.momentum, schedules.OneCycle)


def test_momentum_takes_part_as_the_schedule_says():
    """Two steps with momentum 0.5, then 0.25: by hand."""
    optimizer = kopt.SGD(1.0, momentum=schedules.Linear(0.5, 1, final=0.25))
    w = keras.Variable([0.0])
    for _ in range(2):
        optimizer.apply([ops.ones(1)], [w])
    assert w.numpy() == pytest.approx(-(1 + 1.25))


class Doubling(schedules.Schedule):
    """Of one's own."""

    def __init__(self, start):
        self.start = start

    def at(self, step):
        return self.start * 2**step


class Squared(schedules.Anneal):
    def curve(self, x):
        return x**2


def test_schedules_of_ones_own():
    assert values(Doubling(0.5), [0, 3]).tolist() == [0.5, 4.0]
    assert repr(Doubling.from_config(Doubling(0.5).get_config())) == "Doubling(start=0.5)"
    assert values(Squared(1.0, 4), [0, 2, 4, 9]).tolist() == [1.0, 0.75, 0.0, 0.0]


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: schedules.Linear("0.1", 10), TypeError,
         "Linear: initial must be a number in (-inf, inf), got '0.1'."),
        (lambda: schedules.Cosine(0.1, 0), ValueError, "Cosine: steps must be a number in (0, inf), got 0."),
        (lambda: schedules.REX(0.1, 10, final=float("nan")), ValueError,
         "REX: final must be a number in (-inf, inf), got nan."),
        (lambda: schedules.InverseSquareRoot(0.1, -1), ValueError,
         "InverseSquareRoot: timescale must be a number in (0, inf), got -1."),
        (lambda: schedules.Warmup("cosine", 10), TypeError,
         "Warmup: then must be a number or a schedule, got 'cosine'."),
        (lambda: schedules.Warmup(float("inf"), 10), ValueError,
         "Warmup: then must be a number in (-inf, inf), got inf."),
        (lambda: schedules.Warmup(0.1, -1), ValueError, "Warmup: steps must be a number in [0, inf), got -1."),
        (lambda: schedules.Join([0.1, None], [5]), TypeError,
         "Join: pieces must be a number or a schedule, got None."),
        (lambda: schedules.Join([0.1, 0.2], []), ValueError,
         "Join: boundaries must be one fewer than the pieces, of which there are 2, got []."),
        (lambda: schedules.Join([], []), ValueError,
         "Join: boundaries must be one fewer than the pieces, of which there are 0, got []."),
        (lambda: schedules.Join([1, 2, 3], [5, 5]), ValueError, "Join: boundaries must ascend, got [5, 5]."),
        (lambda: schedules.WarmupStableDecay(0.1, 10, warmup_steps=5, decay_steps=6), ValueError,
         "WarmupStableDecay: warmup_steps + decay_steps must be at most steps, got 5 + 6 of 10."),
        (lambda: schedules.WarmupStableDecay(0.1, 10, warmup_steps=1, decay_steps=1, decay="exp"), ValueError,
         "WarmupStableDecay: decay must be one of 'sqrt', 'linear', 'cosine', 'rex', got 'exp'."),
        (lambda: schedules.OneCycle(0.1, 10, rise=0.1), ValueError,
         "OneCycle: rise must put the peak between the first of 10 steps and the last, got 0.1."),
        (lambda: schedules.OneCycle(0.1, 10, rise=0.7, three_phase=True), ValueError,
         "OneCycle: rise must put both turns between the first of 10 steps and the last, got 0.7."),
        (lambda: schedules.OneCycle(0.1, 10, anneal="sqrt"), ValueError,
         "OneCycle: anneal must be one of 'cosine', 'linear', got 'sqrt'."),
        (lambda: schedules.OneCycle(0.1, 10, three_phase=1), ValueError,
         "OneCycle: three_phase must be one of True, False, got 1."),
    ],
)  # fmt: skip
def test_a_wrong_argument_is_refused(make, error, message):
    with pytest.raises(error) as refusal:
        make()
    assert str(refusal.value) == message


@pytest.mark.parametrize(("cls", "method"), [(schedules.Schedule, "at(step)"), (schedules.Anneal, "curve(x)")], ids=str)
def test_a_subclass_must_write_its_part(cls, method):
    unfinished = type("Unfinished", (cls,), {})
    schedule = unfinished(*[0.1, 10] if cls is schedules.Anneal else [])
    with pytest.raises(NotImplementedError, match=rf"^Unfinished must define {method[:-1].replace('(', '.')}"):
        schedule(0)
