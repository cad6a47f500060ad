"""Quantized moments: what is coded, how much memory that takes, and how near the path stays."""

import keras
import numpy as np
import pytest
from keras import ops

import kopt

RNG = np.random.default_rng(0)
START = RNG.standard_normal((64, 70))
GRADIENTS = RNG.standard_normal((20, 64, 70)) * 10.0 ** RNG.uniform(-1, 0, (64, 70))


def built(optimizer, start=START):
    variable = keras.Variable(np.asarray(start, "float32"), name="w")
    optimizer.build([variable])
    return optimizer, variable


def run(optimizer, gradients=GRADIENTS):
    optimizer, variable = built(optimizer)
    for gradient in gradients:
        optimizer.apply([ops.convert_to_tensor(gradient, "float32")])
    return variable.numpy()


@pytest.mark.parametrize(("bits", "bytes_per_weight"), [(8, 2 + 2 * 4 / 256), (4, 1 + 2 * 4 / 128)])
def test_memory(bits, bytes_per_weight):
    optimizer, variable = built(kopt.Quantized(kopt.Adam(), bits=bits), np.zeros((256, 512)))
    held = sum(v.numpy().nbytes for v in optimizer.variables if len(v.shape))
    assert held / variable.numpy().size == pytest.approx(bytes_per_weight)


@pytest.mark.parametrize(("bits", "distance"), [(8, 0.05), (4, 0.6)])
def test_the_path_is_near_the_exact_one(bits, distance):
    exact = run(kopt.Adam(0.01)) - START
    found = run(kopt.Quantized(kopt.Adam(0.01), bits=bits)) - START
    assert np.linalg.norm(found - exact) < distance * np.linalg.norm(exact)


def test_no_second_moment_is_zero_where_its_block_is_not():
    """In a block with one entry a million times the others, their steps stay of Adam's size when gradients vanish."""
    gradients = np.full((2, 64, 70), 1e-6)
    gradients[0, ::2, ::2] = 1
    gradients[1] = 0
    moved = np.abs(run(kopt.Quantized(kopt.Adam(0.01)), gradients) - START.astype("float32"))
    assert moved.max() < 0.05


def test_small_and_other_slots_stay():
    rule = kopt.Quantized(kopt.Adam())
    assert rule.slots((64, 63)) == kopt.Quantized(kopt.Adam(), bits=4).slots((64, 63))
    assert set(rule.slots((64, 63))) == {"m", "v"}
    assert set(rule.slots((64, 64))) == {"m_codes", "m_scales", "v_codes", "v_scales"}
    assert set(kopt.Quantized(kopt.Prodigy()).slots((64, 64))) >= {"m_codes", "v_codes", "s", "moved"}
    assert set(kopt.Quantized(kopt.AMSGrad()).slots((64, 64))) >= {"v_max_codes"}
    assert set(kopt.Quantized(kopt.Adafactor(momentum=0.9)).slots((256, 512))) == {
        "m_codes",
        "m_scales",
        "row",
        "column",
    }


def test_slots_begin_with_what_the_inner_optimizer_says():
    rule = kopt.Quantized(kopt.Adagrad(initial_accumulator_value=0.3))
    slots = {n: ops.full((1, *s.shape), s.initial, s.dtype or "float32") for n, s in rule.slots((64, 70)).items()}
    np.testing.assert_allclose(rule._decoded((64, 70), slots)["v"], np.full((1, 64, 70), 0.3), rtol=1e-6)


def test_averages_are_evaluated_exactly():
    optimizer, variable = built(kopt.Quantized(kopt.ScheduleFreeAdamW(0.1)))
    for gradient in GRADIENTS[:3]:
        optimizer.apply([ops.convert_to_tensor(gradient, "float32")])
    before, state = variable.numpy(), [v.numpy() for v in optimizer.variables]
    optimizer.swap("evaluation")
    assert np.abs(variable.numpy() - before).max() > 1e-3
    optimizer.swap("training")
    np.testing.assert_allclose(variable.numpy(), before, atol=1e-5)
    for now, then in zip(optimizer.variables, state, strict=True):
        np.testing.assert_allclose(now.numpy(), then, atol=1e-5)


def test_sums_over_weights_are_those_of_the_inner_optimizer():
    """D-Adaptation finds nearly the same distance."""
    np.testing.assert_allclose(run(kopt.Quantized(kopt.Prodigy())), run(kopt.Prodigy()), atol=1e-3)


def test_it_goes_around_what_goes_around():
    galore = kopt.Quantized(kopt.GaLore(kopt.Adam(), rank=16), min_size=512)
    assert set(galore.slots((64, 70))) == {"m_codes", "m_scales", "v_codes", "v_scales", "projection"}
    assert np.isfinite(run(galore, GRADIENTS[:2])).all()


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: kopt.Quantized(kopt.Adam(), bits=2), ValueError, "Quantized: bits must be one of 8, 4, got 2."),
        (lambda: kopt.Quantized(kopt.Adam(), block=3), ValueError, "Quantized: block must be even, got 3."),
        (lambda: kopt.Quantized(kopt.Adam(), block=1), ValueError,
         "Quantized: block must be an integer in [2, inf), got 1."),
        (lambda: kopt.Quantized(kopt.Adam(), block=2.0), TypeError,
         "Quantized: block must be an integer in [2, inf), got 2.0."),
        (lambda: kopt.Quantized(kopt.Adam(), min_size=0), ValueError,
         "Quantized: min_size must be an integer in [1, inf), got 0."),
        (lambda: kopt.Quantized(kopt.SGD()), ValueError,
         "Quantized: inner must keep moments, in slots called m or v, got SGD()."),
    ],
)  # fmt: skip
def test_a_wrong_argument_is_refused(make, error, message):
    with pytest.raises(error) as refusal:
        make()
    assert str(refusal.value).startswith(message)
