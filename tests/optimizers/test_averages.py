"""Optimizers whose weights to evaluate at are others than those they train: what they reduce to, and the swap."""

import keras
import numpy as np
import pytest
from keras import ops

import kopt

SHAPES = (3,), (4, 3), (4, 3)
AVERAGING = {
    "ScheduleFreeAdamW": lambda: kopt.ScheduleFreeAdamW(0.05),
    "ScheduleFreeSGD": lambda: kopt.ScheduleFreeSGD(0.1),
    "ScheduleFreeRAdam": lambda: kopt.ScheduleFreeRAdam(0.05, beta_2=0.95),
    "ScheduleFree": lambda: kopt.ScheduleFree(kopt.LAMB(0.05, beta_1=0)),
    "EMA": lambda: kopt.EMA(kopt.AdamW(0.05), momentum=0.9),
    "SWA": lambda: kopt.SWA(kopt.AdamW(0.05), start=2, every=2),
    "PolynomialAverage": lambda: kopt.PolynomialAverage(kopt.AdamW(0.05)),
    "Lookahead": lambda: kopt.Lookahead(kopt.Adam(0.05), every=3),
}


def trained(optimizer, steps=8, swaps=False):
    """Weights after some steps along random gradients, and the weights to evaluate at."""
    rng = np.random.default_rng(0)
    variables = [keras.Variable(rng.standard_normal(shape), dtype="float32") for shape in SHAPES]
    for _ in range(steps):
        gradients = [rng.standard_normal(shape).astype("float32") for shape in SHAPES]
        optimizer.apply([ops.convert_to_tensor(g) for g in gradients], variables)
        if swaps:
            optimizer.swap("evaluation")
            optimizer.swap("training")
    weights = [w.numpy() for w in variables]
    optimizer.swap("evaluation")
    return np.concatenate([w.ravel() for w in weights]), np.concatenate([w.numpy().ravel() for w in variables])


@pytest.mark.parametrize("make", AVERAGING.values(), ids=AVERAGING)
def test_swaps_change_nothing_but_the_weights_of_the_moment(make):
    plain, swapped = trained(make()), trained(make(), swaps=True)
    assert np.abs(plain[0] - plain[1]).max() > 1e-3
    np.testing.assert_allclose(plain, swapped, rtol=0, atol=1e-5)


@pytest.mark.parametrize("make", AVERAGING.values(), ids=AVERAGING)
def test_a_swap_is_done_once_and_back_by_itself(make):
    optimizer, w = make(), keras.Variable(np.ones(3), dtype="float32")
    optimizer.swap("evaluation")  # not built: nothing to swap
    optimizer.build([w])
    optimizer.swap("evaluation")  # no step: nothing to swap
    np.testing.assert_array_equal(w.numpy(), np.ones(3))
    for _ in range(8):
        optimizer.apply([ops.convert_to_tensor([1.0, -2.0, 3.0])])
    assert not optimizer.evaluating
    at_training = w.numpy()
    optimizer.swap("evaluation")
    at_evaluation = w.numpy()
    optimizer.swap("evaluation")
    np.testing.assert_array_equal(w.numpy(), at_evaluation)
    assert optimizer.evaluating
    optimizer.learning_rate = 0.0
    optimizer.apply([ops.convert_to_tensor([1.0, -2.0, 3.0])])  # a step that moves nothing
    assert not optimizer.evaluating
    np.testing.assert_allclose(w.numpy(), at_training, rtol=0, atol=1e-6)


@pytest.mark.parametrize("make", AVERAGING.values(), ids=AVERAGING)
def test_a_weight_without_gradients_is_its_own_average(make):
    optimizer = make()
    idle, busy = (keras.Variable(np.full((4, 3), 2.0), dtype="float32") for _ in range(2))
    late = keras.Variable(np.full(3, 2.0), dtype="float32")
    optimizer.build([idle, busy, late])
    for step in range(6):
        grads = [(ops.ones((4, 3)), busy)] + [(ops.ones(3), late)] * (step > 2)
        optimizer.apply(*zip(*grads, strict=True))
    optimizer.swap("evaluation")
    np.testing.assert_array_equal(idle.numpy(), np.full((4, 3), 2.0))
    assert (late.numpy() <= 2).all()
    assert (late.numpy() > 1).all(), late.numpy()


@pytest.mark.parametrize(
    ("wrapper", "own"),
    [
        (lambda: kopt.ScheduleFree(kopt.SGD(0.1)), lambda: kopt.ScheduleFreeSGD(0.1)),
        (
            lambda: kopt.ScheduleFree(kopt.AdamW(0.1, beta_1=0, weight_decay=0.1), beta_1=0.8, step_power=1),
            lambda: kopt.ScheduleFreeAdamW(0.1, weight_decay=0.1, beta_1=0.8, step_power=1),
        ),
        (lambda: kopt.EMA(kopt.SGD(0.1), momentum=0), lambda: kopt.SWA(kopt.SGD(0.1), start=10**6)),
        (lambda: kopt.SWA(kopt.SGD(0.1)), lambda: kopt.PolynomialAverage(kopt.SGD(0.1), power=0)),
        (
            lambda: kopt.Lookahead(kopt.SGD(0.1), every=3, slow_step=1),
            lambda: kopt.Lookahead(kopt.SGD(0.1), every=1, slow_step=1),
        ),
    ],
)  # fmt: skip
def test_special_cases_agree(wrapper, own):
    (path, average), (other, other_average) = trained(wrapper(), steps=12), trained(own(), steps=12)
    np.testing.assert_allclose(path, other, rtol=0, atol=1e-5)
    np.testing.assert_allclose(average, other_average, rtol=0, atol=1e-5)


def test_what_interpolates_all_the_way_evaluates_where_it_trains():
    weights, average = trained(kopt.ScheduleFreeSGD(0.1, beta_1=1))
    np.testing.assert_array_equal(weights, average)


@pytest.mark.slow
@pytest.mark.parametrize(
    "make",
    [
        lambda: kopt.EMA(kopt.SGD(0.2), momentum=0.95),
        lambda: kopt.SWA(kopt.SGD(0.2), start=100),
        lambda: kopt.PolynomialAverage(kopt.SGD(0.2)),
        lambda: kopt.ScheduleFreeSGD(0.2),
    ],
)
def test_an_average_smooths_noise(make):
    """On a noisy parabola, an average is at least twice as near to the minimum as the weights of plain SGD."""
    distances = []
    for optimizer in kopt.SGD(0.2), make():
        rng = np.random.default_rng(0)
        w = keras.Variable(np.full(200, 1.0), dtype="float32")
        for _ in range(200):
            optimizer.apply([w.value + rng.standard_normal(200).astype("float32")], [w])
        optimizer.finalize_variable_values([w])
        distances.append(np.abs(w.numpy()).mean())
    assert distances[1] < 0.5 * distances[0], distances


@pytest.mark.parametrize("make", AVERAGING.values(), ids=AVERAGING)
def test_averages_of_averages_are_refused(make):
    for wrapper in kopt.EMA, kopt.ScheduleFree, kopt.Lookahead:
        with pytest.raises(ValueError, match=rf"^{wrapper.__name__}: inner must not average weights itself, got "):
            wrapper(make())


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: kopt.EMA(kopt.SGD(), momentum=1), "EMA: momentum must be a number in [0, 1), got 1."),
        (lambda: kopt.SWA(kopt.SGD(), start=-1), "SWA: start must be an integer in [0, inf), got -1."),
        (lambda: kopt.SWA(kopt.SGD(), every=0), "SWA: every must be an integer in [1, inf), got 0."),
        (lambda: kopt.PolynomialAverage(kopt.SGD(), power=-1),
         "PolynomialAverage: power must be a number in [0, inf), got -1."),
        (lambda: kopt.Lookahead(kopt.SGD(), every=0), "Lookahead: every must be an integer in [1, inf), got 0."),
        (lambda: kopt.Lookahead(kopt.SGD(), slow_step=2), "Lookahead: slow_step must be a number in [0, 1], got 2."),
        (lambda: kopt.ScheduleFreeAdamW(beta_1=0), "ScheduleFreeAdamW: beta_1 must be a number in (0, 1], got 0."),
        (lambda: kopt.ScheduleFreeSGD(warmup_steps=-1),
         "ScheduleFreeSGD: warmup_steps must be an integer in [0, inf), got -1."),
        (lambda: kopt.ScheduleFreeRAdam(silent=1), "ScheduleFreeRAdam: silent must be one of True, False, got 1."),
        (lambda: kopt.SGD().swap("evaluation"), "SGD.swap needs an optimizer that averages weights. "
         "Try kopt.EMA(SGD(...))."),
    ],
)  # fmt: skip
def test_a_wrong_argument_is_refused(make, message):
    with pytest.raises(ValueError) as refusal:  # noqa: PT011
        make()
    assert str(refusal.value) == message
