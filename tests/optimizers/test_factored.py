"""Adafactor and CAME: what is factored, and what that does not change."""

import keras
import numpy as np
import pytest
from keras import ops

import kopt
from kopt.optimizers.factored import factored_axes

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
    ("shape", "axes"),
    [
        ((), None),
        ((512,), None),
        ((512, 127), None),
        ((512, 128), (-1, -2)),
        ((128, 512), (-2, -1)),
        ((3, 3, 256, 512), (-2, -1)),
        ((1024, 8, 128), (-1, -3)),
        ((256, 256), (-2, -1)),
    ],
)
def test_the_two_longest_axes_are_factored(shape, axes):
    assert factored_axes(shape, 128) == axes


@pytest.mark.parametrize(("momentum", "share"), [(0.0, 0.003), (0.9, 1.003)])
def test_state_is_a_row_and_a_column(momentum, share):
    optimizer = kopt.Adafactor(momentum=momentum)
    optimizer.build([keras.Variable(np.zeros((512, 1024), "float32"), name="w")])
    assert sum(v.numpy().size for v in optimizer.variables) / (512 * 1024) == pytest.approx(share, abs=1e-3)


OPTIMIZERS = [
    kopt.Adafactor(0.1, min_dim_size_to_factor=1),
    kopt.Adafactor(0.1, min_dim_size_to_factor=1, relative_step=False, scale_parameter=False, momentum=0.9),
    kopt.CAME(0.01),
]


@pytest.mark.parametrize("optimizer", OPTIMIZERS, ids=repr)
def test_a_transposed_weight_takes_the_transposed_path(optimizer):
    turned = run(optimizer.__sklearn_clone__(), START.T, GRADIENTS.transpose(0, 2, 1))
    np.testing.assert_allclose(turned.T, run(optimizer.__sklearn_clone__()), atol=1e-5)


@pytest.mark.parametrize("optimizer", OPTIMIZERS, ids=repr)
def test_the_size_of_all_gradients_does_not_matter(optimizer):
    scaled = run(optimizer.__sklearn_clone__(), gradients=100 * GRADIENTS)
    np.testing.assert_allclose(scaled, run(optimizer.__sklearn_clone__()), atol=1e-5)


@pytest.mark.parametrize("optimizer", OPTIMIZERS, ids=repr)
def test_rows_without_a_gradient_stay_finite(optimizer):
    gradients = GRADIENTS.copy()
    gradients[:, 0] = gradients[:, :, 0] = 0
    end = run(optimizer.__sklearn_clone__(), gradients=gradients)
    assert np.isfinite(end).all()
    np.testing.assert_array_equal(end[0], START[0].astype("float32"))


def test_steps_are_relative_to_the_weight():
    """Ten times the weights, ten times the steps; and zeros move by epsilon_2."""
    optimizer = kopt.Adafactor(0.1, min_dim_size_to_factor=1)
    np.testing.assert_allclose(
        run(optimizer.__sklearn_clone__(), 10 * START), 10 * run(optimizer.__sklearn_clone__()), atol=1e-4
    )
    first = run(optimizer.__sklearn_clone__(), 0 * START, GRADIENTS[:1])
    assert np.sqrt(np.mean(first**2)) == pytest.approx(0.1 * 1e-3, rel=0.1)


def test_the_relative_step_falls():
    """In step 100 at most 1/√100, whatever the learning rate; with a warm-up in step 1 a ten-thousandth of it."""

    def first(step, **options):
        optimizer, variable = kopt.Adafactor(1.0, scale_parameter=False, **options), keras.Variable(np.zeros((4, 6)))
        optimizer.build([variable])
        optimizer.iterations.assign(step - 1)
        optimizer.apply([ops.ones((4, 6))])
        return np.sqrt(np.mean(variable.numpy() ** 2))

    assert first(100) == pytest.approx(0.1)
    assert first(1) == pytest.approx(1)
    assert first(1, warmup_init=True) == pytest.approx(1e-4)


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: kopt.Adafactor(warmup_init=True, relative_step=False), ValueError,
         "Adafactor: warmup_init must be False where relative_step is False, got True. Give a schedule"),
        (lambda: kopt.Adafactor(min_dim_size_to_factor=0), ValueError,
         "Adafactor: min_dim_size_to_factor must be an integer in [1, inf), got 0."),
        (lambda: kopt.Adafactor(min_dim_size_to_factor=1.5), TypeError,
         "Adafactor: min_dim_size_to_factor must be an integer in [1, inf), got 1.5."),
        (lambda: kopt.Adafactor(clip_threshold=0), ValueError,
         "Adafactor: clip_threshold must be a number in (0, inf), got 0."),
        (lambda: kopt.CAME(beta_3=1), ValueError, "CAME: beta_3 must be a number in [0, 1), got 1."),
    ],
)  # fmt: skip
def test_a_wrong_argument_is_refused(make, error, message):
    with pytest.raises(error) as refusal:
        make()
    assert str(refusal.value).startswith(message)
