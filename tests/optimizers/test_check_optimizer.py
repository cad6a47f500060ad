"""The public checks find what they promise to find: rules with one mistake each."""

import keras
import pytest
from keras import ops

import kopt
from kopt.math import norm
from kopt.testing import check_optimizer, optimizer_checks, optimizers


class Heavy(kopt.Optimizer):
    """Momentum, right."""

    elementwise = True

    def __init__(self, learning_rate=0.1, *, momentum=0.9, **common):
        super().__init__(learning_rate, **common)
        self.momentum = momentum

    def slots(self, shape):
        return dict(m=shape)

    def direction(self, g, w, t, h, *, m):
        m = h.momentum * m + g
        return m, dict(m=m)


class IgnoresItsMomentum(Heavy):
    def direction(self, g, w, t, h, *, m):
        m = 0.9 * m + g
        return m, dict(m=m)


class ReadsItsMomentumWhileTracing(Heavy):
    def direction(self, g, w, t, h, *, m):
        m = self._given["momentum"] * m + g
        return m, dict(m=m)


class CannotStandStill(Heavy):
    def finish(self, u, w, h):
        return super().finish(u, w, h) / h.learning_rate


class LooksAtTheShape(Heavy):
    def direction(self, g, w, t, h, *, m):
        m = h.momentum * m + g
        return m / (1 + ops.max(ops.abs(m), axis=-1, keepdims=True)), dict(m=m)


class DropsTheDecay(Heavy):
    def finish(self, u, w, h):
        return u


class GivesNaNForZeros(Heavy):
    elementwise = False

    def direction(self, g, w, t, h, *, m):
        m = h.momentum * m + g
        return m / norm(m), dict(m=m)


class KeepsWhatItDoesNotSave(Heavy):
    def get_config(self):
        return super().get_config() | {"momentum": 0.5}


MISTAKES = {
    IgnoresItsMomentum: optimizers.check_hyperparameters_matter,
    ReadsItsMomentumWhileTracing: optimizers.check_compiled,
    CannotStandStill: optimizers.check_fit,
    LooksAtTheShape: optimizers.check_elementwise,
    DropsTheDecay: optimizers.check_no_decay,
    GivesNaNForZeros: optimizers.check_gradients,
    KeepsWhatItDoesNotSave: optimizers.check_parameters,
}


@pytest.mark.parametrize(("mistaken", "check"), MISTAKES.items(), ids=lambda x: x.__name__)
def test_a_mistake_is_found(mistaken, check):
    with pytest.raises(AssertionError):
        check(mistaken(0.1))


@pytest.mark.slow
def test_a_right_rule_passes():
    assert check_optimizer(Heavy(0.1)) == [check.__name__ for check in optimizer_checks()]


def test_wrong_arguments_are_refused():
    with pytest.raises(TypeError, match=r"^check_optimizer: optimizer must be an instance of kopt\.Optimizer, got"):
        check_optimizer(keras.optimizers.SGD(0.1))
    with pytest.raises(TypeError, match=r"^check_optimizer: momentum must be a number, got"):
        check_optimizer(Heavy(0.1, momentum=keras.optimizers.schedules.ExponentialDecay(0.9, 10, 0.5)))
