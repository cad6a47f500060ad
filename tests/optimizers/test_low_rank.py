"""GaLore and APOLLO: what is projected, and what that does not change."""

import keras
import numpy as np
import pytest
from keras import ops

import kopt
from kopt.optimizers.low_rank import as_weights, leading, sides, wide

RNG = np.random.default_rng(0)
START = RNG.standard_normal((4, 6))
GRADIENTS = RNG.standard_normal((5, 4, 6))


def run(optimizer, start=START, gradients=GRADIENTS):
    variable = keras.Variable(np.asarray(start, "float32"), name="w")
    optimizer.build([variable])
    for gradient in gradients:
        optimizer.apply([ops.convert_to_tensor(gradient, "float32")])
    return variable.numpy()


@pytest.mark.parametrize(
    ("shape", "found"),
    [((), None), ((9,), None), ((2, 9), None), ((3, 9), (3, 9)), ((9, 3), (3, 9)), ((2, 3, 4, 5), (5, 24))],
)
def test_sides(shape, found):
    assert sides(shape, 2) == found


@pytest.mark.parametrize("shape", [(3, 4, 6), (3, 6, 4), (2, 2, 3, 2), (2, 1, 1, 3)])
def test_matrices_are_wide_and_come_back(shape):
    x = ops.convert_to_tensor(RNG.standard_normal(shape))
    assert len(wide(x).shape) == 3
    assert wide(x).shape[1] <= wide(x).shape[2]
    np.testing.assert_array_equal(as_weights(wide(x), shape), x)


def test_leading_vectors_are_those_of_the_decomposition():
    x = RNG.standard_normal((3, 4, 6))
    before = np.linalg.svd(RNG.standard_normal((3, 4, 6)))[0][..., :2]
    found = ops.convert_to_numpy(leading(ops.convert_to_tensor(x), 2, before))
    expected = np.linalg.svd(x)[0][..., :2]
    np.testing.assert_allclose(np.abs(np.sum(found * expected, axis=1)), 1, rtol=1e-5)
    assert (np.sum(found * before, axis=1) >= 0).all()


@pytest.mark.parametrize(
    "optimizer",
    [kopt.GaLore(kopt.Adam(0.1), rank=2, gap=3), kopt.APOLLO(0.1, rank=2, gap=3, projection="svd")],
    ids=repr,
)
def test_rotations_of_the_shorter_side_commute(optimizer):
    rotation = np.linalg.qr(RNG.standard_normal((4, 4)))[0]
    end = run(optimizer.__sklearn_clone__())
    rotated = run(optimizer.__sklearn_clone__(), rotation @ START, rotation @ GRADIENTS)
    np.testing.assert_allclose(rotated, rotation @ end, atol=1e-4)


def test_galore_of_small_weights_is_the_inner_optimizer():
    np.testing.assert_array_equal(run(kopt.GaLore(kopt.Adam(0.1), rank=4)), run(kopt.Adam(0.1)))


def test_galore_steps_in_the_leading_directions():
    end = run(kopt.GaLore(kopt.Adam(0.1), rank=2))
    assert np.linalg.matrix_rank(end - START, tol=1e-4) == 2


def test_galore_decays_the_whole_weight():
    """Also where the gradient's directions do not reach."""
    no_gradient = np.zeros_like(GRADIENTS[:1])
    end = run(kopt.GaLore(kopt.AdamW(0.1, weight_decay=0.5), rank=2), gradients=no_gradient)
    np.testing.assert_allclose(end, 0.95 * START, rtol=1e-5)


@pytest.mark.parametrize("optimizer", [kopt.APOLLO(0.1, rank=2), kopt.APOLLOMini(0.1)], ids=repr)
def test_apollo_steps_along_the_gradient(optimizer):
    """Each channel of the first step, or all of it, is in proportion to the gradient's."""
    ratio = (START - run(optimizer, gradients=GRADIENTS[:1])) / GRADIENTS[0]
    np.testing.assert_allclose(ratio, np.broadcast_to(ratio[:1], ratio.shape), rtol=1e-3)
    assert (np.ptp(ratio) < 1e-3 * ratio.max()) == isinstance(optimizer, kopt.APOLLOMini)


def test_apollo_projects_anew_every_gap_steps():
    def moved(step, **arguments):
        optimizer = kopt.APOLLO(0.1, rank=1, beta_1=0.0, beta_2=0.0, **arguments)
        return run(optimizer, gradients=GRADIENTS[:step])

    np.testing.assert_array_equal(moved(2, gap=2), moved(2, gap=3))
    assert np.abs(moved(3, gap=2) - moved(3, gap=3)).max() > 1e-4
    assert np.abs(moved(1, seed=0) - moved(1, seed=1)).max() > 1e-4


def test_a_random_projection_keeps_lengths():
    """So that with all of Adam's state in sight APOLLO judges each channel as if it saw the gradient itself."""
    optimizer = kopt.APOLLO(rank=300)
    g = RNG.standard_normal((1, 400, 500)).astype("float32")
    kept = {name: ops.zeros((1, *shape)) for name, shape in optimizer.slots((400, 500)).items()}
    h = type("h", (), dict(beta_1=0.0, beta_2=0.5, epsilon=0.0, scale=1.0))
    _, new = optimizer.direction(ops.convert_to_tensor(g), None, ops.convert_to_tensor(1.0), h, **kept)
    lengths = np.linalg.norm(ops.convert_to_numpy(new["m"]), axis=1) / np.linalg.norm(g, axis=1)
    assert np.abs(lengths.mean() - 1) < 0.01
    assert lengths.std() < 0.1


def test_apollo_limits_growth():
    """A hundredfold gradient makes the direction 1.01 times as long, but after zeros it is free."""

    def lengths(sizes):
        ends = [run(kopt.APOLLO(1.0, rank=2, beta_1=0.0, beta_2=0.0), 0 * START, [s * GRADIENTS[0] for s in sizes[:n]])
                for n in range(len(sizes) + 1)]  # fmt: skip
        return np.linalg.norm(np.diff(ends, axis=0), axis=(1, 2))

    free = lengths([1, 1])
    assert free[0] == pytest.approx(free[1], rel=1e-3)
    after_zeros = lengths([1, 0, 1])
    assert after_zeros[1] == 0
    assert after_zeros[2] == pytest.approx(free[0], rel=1e-3)


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: kopt.GaLore(kopt.Adam(), rank=0), ValueError, "GaLore: rank must be an integer in [1, inf), got 0."),
        (lambda: kopt.GaLore(kopt.Adam(), gap=0), ValueError, "GaLore: gap must be an integer in [1, inf), got 0."),
        (lambda: kopt.GaLore(kopt.LAMB()), ValueError,
         "GaLore: inner must be an elementwise optimizer that neither sums over weights nor averages them, got LAMB("),
        (lambda: kopt.GaLore(kopt.Prodigy()), ValueError, "GaLore: inner must be an elementwise"),
        (lambda: kopt.GaLore(kopt.ScheduleFreeSGD()), ValueError, "GaLore: inner must be an elementwise"),
        (lambda: kopt.APOLLO(rank=1.5), TypeError, "APOLLO: rank must be an integer in [1, inf), got 1.5."),
        (lambda: kopt.APOLLO(gap=0), ValueError, "APOLLO: gap must be an integer in [1, inf), got 0."),
        (lambda: kopt.APOLLO(projection="qr"), ValueError,
         "APOLLO: projection must be one of 'random', 'svd', got 'qr'."),
        (lambda: kopt.APOLLO(seed=-1), ValueError, "APOLLO: seed must be an integer in [0, 2147483648), got -1."),
    ],
)  # fmt: skip
def test_a_wrong_argument_is_refused(make, error, message):
    with pytest.raises(error) as refusal:
        make()
    assert str(refusal.value).startswith(message)
