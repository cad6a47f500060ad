"""What holds for the small wrappers, whatever is inside."""

import itertools

import keras
import numpy as np
import pytest

import kopt

RNG = np.random.default_rng(0)
SHAPES = (4, 3), (2, 2, 3, 5), (6,)
WEIGHTS = [RNG.standard_normal(shape).astype("float32") for shape in SHAPES]
GRADS = [[RNG.standard_normal(shape).astype("float32") for shape in SHAPES] for _ in range(5)]


def path(optimizer, weights=WEIGHTS):
    """The weights before and after each of some steps."""
    variables = [keras.Variable(w, name=f"w{i}") for i, w in enumerate(weights)]
    found = [weights]
    for grads in GRADS:
        optimizer.apply(grads, variables)
        found.append([variable.numpy() for variable in variables])
    return found


def equal(a, b, rtol=1e-6):
    return all(np.allclose(x, y, rtol=rtol, atol=rtol) for x, y in zip(a, b, strict=True))


def test_a_cautious_step_never_goes_against_the_gradient():
    found = path(kopt.Cautious(kopt.SGD(0.1, momentum=0.9)))
    for (before, after), grads in zip(itertools.pairwise(found), GRADS, strict=True):
        for w, v, g in zip(before, after, grads, strict=True):
            assert ((w - v) * g >= -1e-7).all()
    assert not equal(found[-1], path(kopt.SGD(0.1, momentum=0.9))[-1])


def test_caution_changes_nothing_without_momentum():
    assert equal(path(kopt.Cautious(kopt.SGD(0.1)))[-1], path(kopt.SGD(0.1))[-1])


def test_a_cautious_step_is_as_long_as_before():
    """Signs are left out, so that the mean of what is left must be one."""
    found = path(kopt.Cautious(kopt.Lion(0.1, weight_decay=None)))
    for before, after in itertools.pairwise(found):
        for w, v in zip(before, after, strict=True):
            assert np.abs(w - v).mean() == pytest.approx(0.1, rel=1e-5)


def test_where_no_entry_agrees_nothing_moves():
    variable = keras.Variable(np.zeros(3, "float32"))
    optimizer = kopt.Cautious(kopt.SGD(1.0, momentum=0.9))
    optimizer.apply([np.full(3, 1.0, "float32")], [variable])
    optimizer.apply([np.full(3, -0.1, "float32")])
    np.testing.assert_array_equal(variable.numpy(), np.full(3, -1.0))


def test_centralized_gradients_keep_the_mean_of_each_units_weights():
    first, *_, last = path(kopt.GradientCentralization(kopt.SGD(0.1, momentum=0.9)))
    for before, after in list(zip(first, last, strict=True))[:2]:
        axes = tuple(range(before.ndim - 1))
        np.testing.assert_allclose(before.mean(axes), after.mean(axes), atol=1e-6)
        assert np.abs(before - after).max() > 0.1
    assert np.array_equal(last[2], path(kopt.SGD(0.1, momentum=0.9))[-1][2])


def test_embeddings_are_not_centralized():
    gradient = np.zeros((5, 2), "float32")
    gradient[1] = 1
    variable = keras.Variable(np.zeros((5, 2)), name="embeddings")
    kopt.GradientCentralization(kopt.SGD(1.0)).apply([gradient], [variable])
    np.testing.assert_array_equal(variable.numpy(), -gradient)


def test_clipped_gradients_are_a_small_part_of_each_units_weights():
    first, second, *_ = path(kopt.AdaptiveGradientClipping(kopt.SGD(1.0), clipping=0.01))
    for w, v, g in zip(first, second, GRADS[0], strict=True):
        axes = tuple(range(w.ndim - 1)) or None
        lengths = np.linalg.norm((w - v).reshape(-1, w.shape[-1] if axes else 1), axis=0)
        np.testing.assert_allclose(lengths, 0.01 * np.linalg.norm(w.reshape(-1, lengths.size), axis=0), rtol=1e-3)
        assert ((w - v) * g >= 0).all()


def test_short_gradients_are_not_clipped():
    assert equal(path(kopt.AdaptiveGradientClipping(kopt.SGD(0.1), clipping=100.0))[-1], path(kopt.SGD(0.1))[-1])


def test_weights_of_zero_can_begin_to_move():
    zeros = [np.zeros_like(w) for w in WEIGHTS]
    _, second, *_ = path(kopt.AdaptiveGradientClipping(kopt.SGD(1.0), clipping=0.1, epsilon=0.5), zeros)
    assert np.linalg.norm(second[2]) == pytest.approx(0.05, rel=1e-5)


@pytest.mark.parametrize("wrap", [kopt.AdaptiveGradientClipping, kopt.GradientCentralization])
@pytest.mark.parametrize("inner", [kopt.Nadam, kopt.AdamW])
def test_what_is_excluded_is_updated_as_if_alone(wrap, inner):
    plain, wrapped = path(inner(0.1))[-1], path(wrap(inner(0.1), exclude=["w1$", "2"]))[-1]
    assert equal(plain[1:], wrapped[1:])
    assert np.abs(plain[0] - wrapped[0]).max() > 1e-3


def test_what_the_optimizer_inside_measures_is_the_changed_gradient():
    """DoG divides by the length of all gradients so far."""
    inside = kopt.DoG(initial_distance=0.1)
    scaled = path(kopt.AdaptiveGradientClipping(inside, clipping=0.01))[1]
    plain = path(kopt.DoG(initial_distance=0.1))[1]
    length = [
        sum(np.sum((w - v) ** 2) for w, v in zip(WEIGHTS, after, strict=True)) ** 0.5 for after in (scaled, plain)
    ]
    assert length[0] == pytest.approx(length[1], rel=1e-3)


def test_wrappers_wrap_wrappers():
    both = kopt.Cautious(kopt.GradientCentralization(kopt.Muon(0.1), exclude="w0"))
    found = path(both)[-1]
    assert all(np.isfinite(w).all() for w in found)
    assert not equal(found[:1], path(kopt.Muon(0.1))[-1][:1])


@pytest.mark.parametrize("wrap", [kopt.AdaptiveGradientClipping, kopt.GradientCentralization])
def test_what_is_no_regular_expression_is_refused(wrap):
    with pytest.raises(ValueError, match=rf"^{wrap.__name__}: exclude must hold regular expressions, got '\('"):
        wrap(kopt.SGD(), exclude="(")


def test_ranges_are_checked():
    with pytest.raises(
        ValueError, match=r"^AdaptiveGradientClipping: clipping must be a number in \(0, inf\), got 0\.$"
    ):
        kopt.AdaptiveGradientClipping(kopt.SGD(), clipping=0)


def test_noise_of_gradients_fades_as_in_the_paper():
    """With a learning rate of 1 and no gradient the step is the noise."""
    variables = [keras.Variable(np.zeros(shape, "float32")) for shape in [(40, 50), (40, 50), (50, 41)]]
    optimizer, before = kopt.GradientNoise(kopt.SGD(1.0), eta=0.5, gamma=0.8, seed=3), np.zeros((40, 50))
    drawn = []
    for t in range(1, 4):
        optimizer.apply([np.zeros(v.shape, "float32") for v in variables], variables)
        noise = before - variables[0].numpy()
        before = variables[0].numpy()
        assert abs(noise.mean()) < 4 * noise.std() / np.sqrt(noise.size)
        np.testing.assert_allclose(noise.var(), 0.5 / t**0.8, rtol=0.15)
        drawn.append(noise / noise.std())
    others = [-v.numpy() for v in variables]
    draws = [*(d.ravel() for d in drawn), *(w.ravel()[:2000] for w in others)]
    correlations = np.corrcoef(draws)[np.triu_indices(len(draws), 1)]
    assert np.sort(np.abs(correlations))[:-3].max() < 0.1  # but that of the first weight with its own three steps
