"""Adam's relatives and the other elementwise rules: what they reduce to, what does not matter to them, and errors."""

import keras
import numpy as np
import pytest
from keras import ops

import kopt

SHAPES = (3,), (4, 3), (4, 3)
STEPS = 8


def path(optimizer, numbers=(0, 1, 2), scale=1.0, steps=STEPS):
    """The weights of these numbers after some steps, along gradients that are `scale` times the usual ones."""
    rng = np.random.default_rng(0)
    start = [rng.standard_normal(shape).astype("float32") for shape in SHAPES]
    gradients = [[rng.standard_normal(shape).astype("float32") for shape in SHAPES] for _ in range(STEPS)]
    variables = [keras.Variable(start[i], name=f"w{i}") for i in numbers]
    optimizer.build(variables)
    for grads in gradients[:steps]:
        optimizer.apply([ops.convert_to_tensor(scale * (i + 1) * grads[i]) for i in numbers])
    return [variable.numpy() for variable in variables]


def assert_same(a, b, atol=1e-5):
    for x, y in zip(a, b, strict=True):
        np.testing.assert_allclose(x, y, rtol=0, atol=atol)


@keras.saving.register_keras_serializable("tests")
class Numbers(keras.optimizers.schedules.LearningRateSchedule):
    """One number for each step."""

    def __init__(self, numbers):
        self.numbers = tuple(numbers)

    def __call__(self, step):
        return ops.take(ops.convert_to_tensor(self.numbers, "float32"), ops.cast(step, "int32"))

    def get_config(self):
        return {"numbers": self.numbers}


@pytest.mark.parametrize(
    ("special", "general"),
    [
        (kopt.Adam(0.1), kopt.QHAdam(0.1, beta_1=0.9, nu_1=1.0, nu_2=1.0)),
        (kopt.Adam(0.1), kopt.AdEMAMix(0.1, alpha=0.0)),
        (kopt.Adam(0.1, beta_1=0.0), kopt.LaProp(0.1, beta_1=0.0, epsilon=1e-8)),
        (kopt.AdamW(0.1, beta_1=0.0), kopt.NadamW(0.1, beta_1=0.0)),
        (kopt.AdamW(0.1, weight_decay=0.1), kopt.AdamW(0.1, weight_decay=0.1, weight_decay_mode="corrected")),
        (kopt.AdamW(0.1, weight_decay=0.1), kopt.AdamW(0.1, weight_decay=0.01, weight_decay_mode="independent")),
        (kopt.SGD(0.1), kopt.QHM(0.1, nu=0.0)),
        (kopt.SGD(0.1, momentum=0.9), kopt.QHM(1.0, momentum=0.9, nu=1.0)),
        (kopt.SGD(0.1), kopt.AggMo(0.1, velocities=1)),
        (kopt.Lion(0.1, beta_1=0.9, beta_2=0.9), kopt.Signum(0.1, momentum=0.9, weight_decay=0.01)),
        (kopt.Signum(0.1, momentum=0.0), kopt.LaProp(0.1, beta_1=0.0, beta_2=0.0)),
    ],
    ids=repr,
)
def test_a_rule_is_a_special_case_of_another(special, general):
    assert_same(path(special), path(general))


@pytest.mark.parametrize(
    "optimizer",
    [
        kopt.Lion(0.1),
        kopt.Signum(0.1),
        kopt.Signum(0.1, momentum=0.0),
        kopt.Rprop(0.1),
        kopt.NovoGrad(0.1, epsilon=0.0),
        kopt.NadamW(0.1, epsilon=0.0),
        kopt.StableAdamW(0.1, epsilon=0.0),
        kopt.AdaBelief(0.1, epsilon=0.0),
        kopt.Yogi(0.1, epsilon=0.0, initial_accumulator_value=0.0),
        kopt.RAdam(0.1, beta_2=0.9, epsilon=0.0, early="skip"),
        kopt.AdEMAMix(0.1, epsilon=0.0),
        kopt.Adan(0.1, epsilon=0.0),
        kopt.LaProp(0.1, epsilon=0.0),
        kopt.ADOPT(0.1, epsilon=1e-30),
        kopt.QHAdam(0.1, epsilon=0.0),
    ],
    ids=repr,
)
def test_the_gradients_scale_changes_nothing(optimizer):
    assert_same(path(optimizer), path(type(optimizer)(**optimizer.get_params()), scale=1000.0), atol=2e-5)


@pytest.mark.parametrize("optimizer", [kopt.StableAdamW(0.1), kopt.NovoGrad(0.1), kopt.MARS(0.1)], ids=repr)
def test_weights_of_one_shape_do_not_disturb_each_other(optimizer):
    alone = [weights for i in range(3) for weights in path(type(optimizer)(**optimizer.get_params()), numbers=(i,))]
    assert_same(path(optimizer), alone)


RATES = 0.0, 0.05, 0.1, 0.1, 0.08, 0.05, 0.02, 0.0


@pytest.mark.parametrize(
    ("mode", "factors"),
    [
        ("corrected", [rate / max(RATES[: k + 1]) if rate else 0.0 for k, rate in enumerate(RATES)]),
        ("independent", [1 / max(RATES[: k + 1]) if rate else 0.0 for k, rate in enumerate(RATES)]),
    ],
)
@pytest.mark.parametrize("cls", [kopt.AdamW, kopt.NadamW, kopt.StableAdamW])
def test_the_mode_of_the_decay_is_a_schedule_of_it(cls, mode, factors):
    coupled = cls(Numbers(RATES), weight_decay=Numbers([0.1 * factor for factor in factors]))
    assert_same(path(cls(Numbers(RATES), weight_decay=0.1, weight_decay_mode=mode)), path(coupled))


@pytest.mark.parametrize("cls", [kopt.AdamW, kopt.LAMB])
def test_no_decay_spares_weights_in_every_mode(cls):
    (spared,) = path(cls(0.1, weight_decay_mode="corrected", no_decay="w"), numbers=(1,))
    (plain,) = path(cls(0.1, weight_decay=None), numbers=(1,))
    np.testing.assert_array_equal(spared, plain)


def test_radam_may_stand_still_until_it_can_trust_the_variance():
    def moved(steps, **options):
        (start,), (end,) = (path(kopt.RAdam(rate, **options), numbers=(1,), steps=steps) for rate in (0.0, 0.1))
        return np.abs(end - start).max()

    assert moved(5, early="skip") == 0 < moved(6, early="skip") < moved(5)


def test_novograds_first_time_is_that_of_the_first_gradient():
    weights = []
    for leading_zeros in (0, 3):
        optimizer, w = kopt.NovoGrad(0.1), keras.Variable(np.ones(3, "float32"))
        for size in [0.0] * leading_zeros + [1.0, 2.0]:
            optimizer.apply([ops.convert_to_tensor(np.float32([size, -size, size]))], [w])
        weights.append(w.numpy())
    assert_same(weights[:1], weights[1:])


def test_adopts_first_step_moves_nothing():
    w = keras.Variable(np.ones(3, "float32"))
    kopt.ADOPT(0.1).apply([ops.ones(3)], [w])
    np.testing.assert_array_equal(w.numpy(), np.ones(3))


def test_mars_keeps_a_gradient_only_where_it_corrects():
    assert "before" not in kopt.MARS().slots((3,))
    assert "before" in kopt.MARS().slots((4, 3))
    assert "before" in kopt.MARS(optimize_1d=True).slots((3,))


def test_madgrad_stays_where_the_learning_rate_is_zero():
    stopped = path(kopt.MADGRAD(Numbers([0.1] * 4 + [0.0] * 4)))
    assert_same(stopped, path(kopt.MADGRAD(0.1), steps=4), atol=1e-6)


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: kopt.AdamW(weight_decay_mode="decoupled"), ValueError,
         "AdamW: weight_decay_mode must be one of 'coupled', 'independent', 'corrected', got 'decoupled'."),
        (lambda: kopt.RAdam(early="sgd"), ValueError, "RAdam: early must be one of 'momentum', 'skip', got 'sgd'."),
        (lambda: kopt.AdEMAMix(warmup_steps=0), ValueError,
         "AdEMAMix: warmup_steps must be an integer in [1, inf), got 0."),
        (lambda: kopt.AdEMAMix(warmup_steps=1.5), TypeError,
         "AdEMAMix: warmup_steps must be an integer in [1, inf), got 1.5."),
        (lambda: kopt.AggMo(velocities=0), ValueError, "AggMo: velocities must be an integer in [1, inf), got 0."),
        (lambda: kopt.ADOPT(epsilon=0), ValueError, "ADOPT: epsilon must be a number in (0, inf), got 0."),
        (lambda: kopt.QHM(nu=1.5), ValueError, "QHM: nu must be a number in [0, 1], got 1.5."),
        (lambda: kopt.Rprop(eta_plus=0.9), ValueError, "Rprop: eta_plus must be a number in (1, inf), got 0.9."),
        (lambda: kopt.AdaBound(gamma=0), ValueError, "AdaBound: gamma must be a number in (0, inf), got 0."),
    ],
)  # fmt: skip
def test_a_wrong_argument_is_refused(make, error, message):
    with pytest.raises(error) as refusal:
        make()
    assert str(refusal.value) == message
