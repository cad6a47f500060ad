"""ShakeDrop: noise that multiplies a residual branch, by other numbers forward than backward."""

import keras
from keras import ops

from kopt._checks import check_range
from kopt.layers.base import Noise, Scheduled


class ShakeDrop(Noise):
    """Multiplies a residual branch by a random number, and its gradient by another.

        forward    y = (b + α - b α) · x
        backward   g_x = (b + β - b β) · g_y
        b ~ Bernoulli(1 - rate), one for the batch;  α, β uniform, one of each for each example        when training
        y = (1 - rate + rate · E[α]) · x                                                               else

    A strong regularizer, made for very deep residual networks that end each branch in a batch normalization, without
    which it diverges; put it behind that, before the sum. Rates grow with depth: `kopt.layers.linear_depth(0.5, ...)`.
    One b for the batch is as in the authors' code. With several replicas each draws its own.

    Args:
        rate: probability that a branch is disturbed, in [0, 1), or a schedule. At inference a schedule's last value.
        alpha: lower and upper bound of α, two numbers.
        beta: lower and upper bound of β, two numbers.
        seed: an integer, for the same draws in every run; None draws a new one.
        **kwargs: those of `keras.layers.Layer`.

    Call arguments:
        inputs: tensor of shape `(batch, ...)` and any float type.
        training: whether to disturb; Keras sets it.

    Raises:
        TypeError: `rate` is neither a number nor a schedule, or a bound no number.
        ValueError: `rate` is not in [0, 1), or `alpha` or `beta` no two numbers in order.

    References:
        Yamada et al., *ShakeDrop Regularization for Deep Residual Learning*, 2018. https://arxiv.org/abs/1802.02375
    """

    def __init__(self, rate: Scheduled = 0.5, alpha=(-1.0, 1.0), beta=(0.0, 1.0), seed=None, **kwargs):
        super().__init__(seed, **kwargs)
        self._set_rates(rate=rate)
        self.alpha, self.beta = self._interval(alpha=alpha), self._interval(beta=beta)

    def _interval(self, **given):
        ((name, bounds),) = given.items()
        if not isinstance(bounds, tuple | list) or len(bounds) != 2:
            raise ValueError(f"ShakeDrop: {name} must be two numbers in order, got {bounds!r}.")
        low, high = (check_range(self, "(-inf, inf)", **{name: bound}) for bound in bounds)
        if low > high:
            raise ValueError(f"ShakeDrop: {name} must be two numbers in order, got {bounds!r}.")
        return low, high

    def call(self, inputs, training=False):
        if not training:
            rate = self._now(training=False).rate
            return inputs * ops.cast(1 - rate + rate * sum(self.alpha) / 2, inputs.dtype)
        b = keras.random.uniform((), seed=self.seed_generator) >= self._now().rate
        forward, backward = (self._factor(b, bounds, inputs) for bounds in (self.alpha, self.beta))
        return backward * inputs + ops.stop_gradient((forward - backward) * inputs)

    def _factor(self, b, bounds, x):
        """b + α - b α, for each example."""
        shape = (ops.shape(x)[0], *(1 for _ in x.shape[1:]))
        drawn = keras.random.uniform(shape, *bounds, seed=self.seed_generator)
        return ops.cast(ops.where(b, ops.ones_like(drawn), drawn), x.dtype)
