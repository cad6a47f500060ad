"""Optimizers that estimate their step size: what does not matter to them, and errors."""

import keras
import numpy as np
import pytest
from keras import ops

import kopt

SHAPES = (3,), (4, 3), (4, 3)
ESTIMATING = {
    "Prodigy": lambda: kopt.Prodigy(initial_distance=0.05, epsilon=1e-30),
    "DAdaptAdam": lambda: kopt.DAdaptAdam(initial_distance=0.05, epsilon=1e-30),
    "DAdaptSGD": lambda: kopt.DAdaptSGD(initial_distance=0.2, momentum=0.5),
    "DoG": lambda: kopt.DoG(initial_distance=0.05, epsilon=0),
    "LDoG": lambda: kopt.LDoG(initial_distance=0.05, epsilon=0),
    "DoWG": lambda: kopt.DoWG(initial_distance=0.1, epsilon=0),
}


def path(optimizer, scale=1.0, steps=8):
    """Weights after some steps along random gradients, `scale` times as large."""
    rng = np.random.default_rng(0)
    variables = [keras.Variable(rng.standard_normal(shape), dtype="float32") for shape in SHAPES]
    for _ in range(steps):
        gradients = [scale * rng.standard_normal(shape).astype("float32") for shape in SHAPES]
        optimizer.apply([ops.convert_to_tensor(g) for g in gradients], variables)
    return np.concatenate([w.numpy().ravel() for w in variables])


def distance_after(optimizer, start, dtype, steps=100):
    """The estimated distance from a start to the minimum of a parabola at the origin."""
    w = keras.Variable(np.full(4, start), dtype=dtype)
    for _ in range(steps):
        optimizer.apply([w.value + 0.0], [w])
    return float(optimizer._kept.shared[""]["distance"].numpy())


@pytest.mark.parametrize("make", ESTIMATING.values(), ids=ESTIMATING)
def test_the_size_of_gradients_does_not_matter(make):
    np.testing.assert_allclose(path(make()), path(make(), scale=64.0), rtol=0, atol=1e-5)


@pytest.mark.parametrize("make", ESTIMATING.values(), ids=ESTIMATING)
def test_zero_gradients_at_first_leave_the_weights_and_the_estimate(make):
    optimizer = make()
    variable = keras.Variable(np.ones((4, 3)), dtype="float32")
    optimizer.apply([ops.zeros((4, 3))], [variable])
    np.testing.assert_array_equal(variable.numpy(), np.ones((4, 3)))
    optimizer.apply([ops.ones((4, 3))], [variable])
    assert np.isfinite(variable.numpy()).all()
    assert (variable.numpy() < 1).all()


@pytest.mark.parametrize("make", [lambda: kopt.Prodigy(), lambda: kopt.DAdaptAdam(), lambda: kopt.DAdaptSGD()])
def test_the_estimate_grows_to_the_distance_from_a_millionth(make):
    reached = distance_after(make(), 5.0, "float32")
    assert 0.5 < reached < 20, reached  # the distance is 5 for each entry, 10 for all


def test_steps_too_short_for_the_weights_type_count_in_the_estimate():
    """A displacement of a millionth is nothing beside a float32 weight of 100, but it is not lost."""
    narrow, wide = (distance_after(kopt.Prodigy(), 100.0, dtype, steps=20) for dtype in ("float32", "float64"))
    assert narrow > 1e-5
    np.testing.assert_allclose(narrow, wide, rtol=0.01)


def test_growth_is_bounded_after_the_first_leap():
    bounded = kopt.Prodigy(growth_rate=1.5)
    w, reached = keras.Variable(np.full(4, 5.0), dtype="float32"), []
    for _ in range(8):
        bounded.apply([w.value + 0.0], [w])
        reached.append(float(bounded._kept.shared[""]["distance"].numpy()))
    ratios = np.array(reached[3:]) / reached[2:-1]
    assert (ratios < 1.5 + 1e-5).all()
    assert ratios.max() > 1.4


def test_mechanic_finds_the_scale_of_a_millionth_of_a_step():
    w = keras.Variable(np.full(4, 5.0), dtype="float32")
    optimizer = kopt.Mechanic(kopt.SGD(1.0))
    for _ in range(300):
        optimizer.apply([w.value + 0.0], [w])
    assert np.abs(w.numpy()).max() < 0.5


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: kopt.Prodigy(growth_rate=1), "Prodigy: growth_rate must be a number in (1, inf), got 1."),
        (lambda: kopt.Prodigy(beta_3=1), "Prodigy: beta_3 must be a number in [0, 1), got 1."),
        (lambda: kopt.Prodigy(stride=0), "Prodigy: stride must be an integer in [1, inf), got 0."),
        (lambda: kopt.Prodigy(initial_distance=0), "Prodigy: initial_distance must be a number in (0, inf), got 0."),
        (lambda: kopt.DAdaptAdam(growth_rate=0.5), "DAdaptAdam: growth_rate must be a number in (1, inf), got 0.5."),
        (lambda: kopt.DAdaptSGD(momentum=1), "DAdaptSGD: momentum must be a number in [0, 1), got 1."),
        (lambda: kopt.DoG(initial_distance=-1), "DoG: initial_distance must be a number in (0, inf), got -1."),
        (lambda: kopt.Mechanic(kopt.SGD(), number=0), "Mechanic: number must be an integer in [1, inf), got 0."),
    ],
)
def test_a_wrong_argument_is_refused(make, message):
    with pytest.raises(ValueError) as refusal:  # noqa: PT011
        make()
    assert str(refusal.value) == message
