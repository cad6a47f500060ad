"""The batch normalization family: statistics of all replicas, of parts of the batch, or corrected by moving ones."""

from numbers import Integral
from typing import ClassVar

import keras
from keras import ops

from kopt._backend import replicas, sum_over_replicas
from kopt._checks import check_choice, check_range
from kopt.layers.base import Rated, Scheduled
from kopt.layers.moments import kept, moments, sums, wide


class BatchStatistics(Rated, keras.layers.BatchNormalization):
    """Base class: Keras's layer, with its weights and its inference, and another normalization in training.

    A subclass returns the normalized inputs from `normalized`, and gives to `_keep` what is to be kept of the batch.

    Args:
        axis: that of the channels, an integer; not that of the batch.
        momentum: of the moving statistics, in [0, 1).
        epsilon: what is added to the variance, positive.
        **kwargs: those of `keras.layers.BatchNormalization`: `center`, `scale`, `gamma_initializer` and so on.
    """

    def __init__(self, axis=-1, momentum=0.99, epsilon=1e-3, **kwargs):
        for name in ("renorm", "synchronized"):
            if kwargs.get(name):
                raise ValueError(f"{type(self).__name__}: {name} must be False, got {kwargs[name]!r}.")
        check_range(self, "(-inf, inf)", kind=Integral, axis=axis)
        check_range(self, "[0, 1)", momentum=momentum)
        check_range(self, "(0, inf)", epsilon=epsilon)
        super().__init__(axis=axis, momentum=momentum, epsilon=epsilon, **kwargs)

    def build(self, input_shape):
        if not -len(input_shape) < self.axis < len(input_shape) or not self.axis:
            rule = f"axis must be one of inputs of shape {tuple(input_shape)}, and not the batch's"
            raise ValueError(f"{type(self).__name__}: {rule}, got {self.axis}.")
        super().build(input_shape)

    def normalized(self, x, axes, weights, gamma):
        """Returns x without a mean, over a deviation, times γ, and what is then added; keeps the batch's statistics.

        Args:
            x: tensor of float32 or wider.
            axes: all axes but that of the channels.
            weights: tensor of ones and zeros, with as many axes as x, or None.
            gamma: small tensor with as many axes, or 1. What multiplies it is to be small, too: each pass over the
                large one costs as much as all else.

        Returns:
            A tensor of the shape of x, and a small one or None.
        """
        raise NotImplementedError

    def call(self, inputs, training=False, mask=None):
        x = wide(inputs)
        axes = [axis for axis in range(len(x.shape)) if axis != self.axis % len(x.shape)]
        gamma = 1 if self.gamma is None else self._spread(self.gamma, x)
        if training and self.trainable:
            x, shift = self.normalized(x, axes, kept(x, mask), gamma)
        else:
            factor = ops.rsqrt(self._spread(self.moving_variance, x) + self.epsilon)
            x, shift = (x - self._spread(self.moving_mean, x)) * (factor * gamma), None
        if self.beta is not None:
            beta = self._spread(self.beta, x)
            shift = beta if shift is None else shift + beta
        return ops.cast(x if shift is None else x + shift, self.compute_dtype)

    def _spread(self, weight, x):
        """A weight of one number for each channel, in the type of x, with as many axes."""
        shape = [1] * len(x.shape)
        shape[self.axis] = -1
        return ops.reshape(ops.cast(weight, x.dtype), shape)

    def _keep(self, mean, variance):
        """Moves the statistics for inference towards these."""
        self._set(self.moving_mean, self._moved(self._spread(self.moving_mean, mean), mean))
        self._set(self.moving_variance, self._moved(self._spread(self.moving_variance, variance), variance))

    def _moved(self, old, new):
        return old * self.momentum + new * (1 - self.momentum)

    def _set(self, moving, value):
        moving.assign(ops.reshape(value, moving.shape))

    def get_config(self):
        """Returns the constructor's arguments, without those that only some versions of Keras know."""
        return {name: value for name, value in super().get_config().items() if not name.startswith("renorm")}


class SyncBatchNormalization(BatchStatistics):
    """Batch normalization with the statistics of the batch over all replicas.

        n = Σ_replicas rows,  μ = Σ x / n,  σ² = Σ (x - μ)² / n        when training, over all replicas
        y = γ (x - μ) / √(σ² + epsilon) + β

    Sums and numbers of entries are added up, so that replicas with unequal numbers of rows, none at all, or unequal
    masks give what one device gives. At inference μ and σ² are the moving averages. Where there is one replica, and on
    JAX, where a sharded batch is one array, it computes what `keras.layers.BatchNormalization` does.

    Differs from `keras.layers.BatchNormalization(synchronized=True)`, which with a mask does not synchronize, and takes
    the variance as E x² - (E x)²: in float32 that is off by a quarter at a mean of a thousand standard deviations.

    Args:
        axis: that of the channels, an integer; 1 for channels first.
        momentum: of the moving averages, in [0, 1).
        epsilon: what is added to the variance, positive.
        **kwargs: those of `keras.layers.BatchNormalization`, but for `synchronized` and `renorm`.

    Call arguments:
        inputs: tensor of shape `(batch, ...)` and any float type. Statistics are in float32 or wider.
        training: whether to use the batch's statistics; Keras sets it. A layer that is not trainable never does.
        mask: booleans for the first axes of `inputs`: where False, an entry does not count. It is normalized all the
            same.

    Raises:
        TypeError: an argument is not a number.
        ValueError: a number is out of its range, or `axis` is no axis of the inputs.

    References:
        Ioffe and Szegedy, *Batch Normalization*, 2015. https://arxiv.org/abs/1502.03167
        Peng et al., *MegDet*, 2018 (over replicas). https://arxiv.org/abs/1711.07240
    """

    def normalized(self, x, axes, weights, gamma):
        mean, variance, _, away = moments(x, axes, weights, synchronized=True)
        self._keep(mean, variance)
        return away * (ops.rsqrt(variance + self.epsilon) * gamma), None


class BatchRenormalization(BatchStatistics):
    """Batch normalization corrected to what it will be at inference: for small batches, or rows that are related.

        r = clip(σ_B / σ, 1 / r_max, r_max),  d = clip((μ_B - μ) / σ, -d_max, d_max)        no gradient through either
        y = γ ((x - μ_B) / σ_B · r + d) + β,  σ_B = √(Var_B x + epsilon)                    when training
        μ ← μ + (1 - momentum) (μ_B - μ),  σ ← σ + (1 - momentum) (σ_B - σ)                 after that
        y = γ (x - μ) / σ + β                                                               else

    Where nothing is clipped, training and inference compute the same from the same moving statistics. `r_max=1` and
    `d_max=0` is batch normalization. The weight `moving_variance` holds σ² - epsilon, as in Keras's layer.

    Replicas normalize with their own batches, and keep the statistics of all; with `synchronized` two replicas give
    what one device gives. `keras.layers.BatchNormalization(renorm=True)`, which newer versions have, takes no
    schedules, and keeps other moving statistics for training than for inference.

    Args:
        axis: that of the channels, an integer; 1 for channels first.
        momentum: of the moving statistics, in [0, 1). The paper's is 0.99; they take part in training here.
        epsilon: what is added to the variance, positive.
        r_max: bound of the scale, in [1, inf], or a schedule. The paper's grows from 1 to 3.
        d_max: bound of the shift, in [0, inf], or a schedule. The paper's grows from 0 to 5.
        synchronized: whether the batch is that of all replicas.
        **kwargs: those of `keras.layers.BatchNormalization`, but for `renorm`.

    Call arguments:
        inputs: tensor of shape `(batch, ...)` and any float type. Statistics are in float32 or wider.
        training: whether to use the batch's statistics; Keras sets it. A layer that is not trainable never does.
        mask: booleans for the first axes of `inputs`: where False, an entry does not count. It is normalized all the
            same.

    Raises:
        TypeError: an argument is not of its kind.
        ValueError: a number is out of its range, or `axis` is no axis of the inputs.

    References:
        Ioffe, *Batch Renormalization*, 2017. https://arxiv.org/abs/1702.03275
    """

    ranges: ClassVar[dict[str, str]] = {"r_max": "[1, inf]", "d_max": "[0, inf]"}

    corrects = True
    """False where `kopt.recalibrate` looks for new statistics, which those of old weights are not to distort."""

    def __init__(
        self,
        axis=-1,
        momentum=0.99,
        epsilon=1e-3,
        r_max: Scheduled = 3.0,
        d_max: Scheduled = 5.0,
        synchronized=False,
        **kwargs,
    ):
        super().__init__(axis, momentum, epsilon, **kwargs)
        self._set_rates(r_max=r_max, d_max=d_max)
        self.synchronized = check_choice(self, (False, True), synchronized=synchronized)

    def normalized(self, x, axes, weights, gamma):
        batch_mean, variance, number, away = moments(x, axes, weights, self.synchronized)
        batch_deviation = ops.sqrt(variance + self.epsilon)
        mean = self._spread(self.moving_mean, x)
        deviation = ops.sqrt(self._spread(self.moving_variance, x) + self.epsilon)
        factor, shift = gamma / batch_deviation, None
        if self.corrects:
            now = self._now()
            r_max, d_max = ops.cast(now.r_max, x.dtype), ops.cast(now.d_max, x.dtype)
            r = ops.minimum(ops.maximum(batch_deviation / deviation, 1 / r_max), r_max)
            d = ops.minimum(ops.maximum((batch_mean - mean) / deviation, -d_max), d_max)
            factor, shift = factor * ops.stop_gradient(r), ops.stop_gradient(d) * gamma
        if not self.synchronized:
            batch_mean, batch_deviation = pooled(number, batch_mean, batch_deviation)
        self._set(self.moving_mean, self._moved(mean, batch_mean))
        new = ops.square(self._moved(deviation, batch_deviation)) - self.epsilon
        self._set(self.moving_variance, ops.maximum(new, 0))
        return away * factor, shift


class GhostBatchNormalization(BatchStatistics):
    """Batch normalization of parts of the batch, each by itself: large batches keep the noise of small ones.

        ghosts = max(1, ⌊rows / virtual_batch_size⌋)
        y = γ (x - μ_g) / √(σ_g² + epsilon) + β,  for the rows of each ghost g        when training
        y = γ (x - μ) / √(σ² + epsilon) + β                                           else

    A ghost is a run of consecutive rows. What is left over is shared out, one row to each of the first ghosts, or more
    where there are few: their sizes differ by one at most, and none is smaller than `virtual_batch_size`, unless the
    batch is, which then is one ghost.

    The moving averages move once for each batch, to the mean of the ghosts' means and that of their variances, each
    weighted by its number of entries. The paper moves them once for each ghost: `momentum` to the power of the number
    of ghosts remembers as long.

    Replicas make ghosts of their own rows, and keep the statistics of all: where all have a multiple of
    `virtual_batch_size`, they give what one device gives.

    Args:
        virtual_batch_size: rows of a ghost, a positive integer.
        axis: that of the channels, an integer; 1 for channels first.
        momentum: of the moving averages, in [0, 1).
        epsilon: what is added to the variance, positive.
        **kwargs: those of `keras.layers.BatchNormalization`, but for `synchronized` and `renorm`.

    Call arguments:
        inputs: tensor of shape `(batch, ...)` and any float type. Statistics are in float32 or wider.
        training: whether to use the batch's statistics; Keras sets it. A layer that is not trainable never does.
        mask: booleans for the first axes of `inputs`: where False, an entry does not count. It is normalized all the
            same.

    Raises:
        TypeError: an argument is not of its kind.
        ValueError: a number is out of its range, or `axis` is no axis of the inputs.

    References:
        Hoffer et al., *Train longer, generalize better*, 2017, algorithm 1. https://arxiv.org/abs/1705.08741
    """

    def __init__(self, virtual_batch_size, axis=-1, momentum=0.99, epsilon=1e-3, **kwargs):
        super().__init__(axis, momentum, epsilon, **kwargs)
        self.virtual_batch_size = check_range(self, "[1, inf)", kind=Integral, virtual_batch_size=virtual_batch_size)

    def normalized(self, x, axes, weights, gamma):
        ghosts = Ghosts(ops.shape(x)[0], self.virtual_batch_size)
        value, number = map(ghosts.sums, sums(x, axes[1:], weights))
        mean = value / ops.maximum(number, 1)
        away = x - ghosts.to_rows(mean)
        variance = ghosts.sums(sums(ops.square(away), axes[1:], weights)[0]) / ops.maximum(number, 1)
        self._keep(*pooled(number, mean, variance))
        return away * ghosts.to_rows(ops.rsqrt(variance + self.epsilon) * gamma), None


class Ghosts:
    """Runs of rows, whose lengths differ by one at most, none below `size` unless there is one run alone.

    Sums over them, and what takes their values back to rows, are each the other's gradient.

    Args:
        rows: an integer, or a scalar tensor of one.
        size: an integer.

    Attributes:
        number: how many there are.
        longer: how many of them, the first ones, have a row more than the others.
    """

    def __init__(self, rows, size):
        self._rows, self._known = rows, isinstance(rows, int)
        self.number = (max if self._known else ops.maximum)(rows // size, 1)
        self._short, self.longer = rows // self.number, rows % self.number

    def of_row(self):
        """The ghost of each row."""
        row, border = ops.arange(self._rows, dtype="int32"), self.longer * (self._short + 1)
        behind = (row - border) // ops.maximum(self._short, 1)
        return ops.where(row < border, row // (self._short + 1), self.longer + behind)

    def sums(self, x):
        """Sums over the rows of each ghost."""
        return self._either(x, self._equal_sums, lambda x: ops.segment_sum(x, self.of_row(), self.number), self.to_rows)

    def to_rows(self, x):
        """What there is for each ghost, for each of its rows."""
        return self._either(x, self._equal_rows, lambda x: ops.take(x, self.of_row(), axis=0), self.sums)

    def _either(self, x, equal, unequal, transposed):
        """A linear function: `equal`, in half of the time, where all ghosts have as many rows."""
        if self._known:
            return unequal(x) if self.longer else equal(x)

        @ops.custom_gradient  # XLA has none for a condition in which shapes are open
        def chosen(x):
            return ops.cond(self.longer > 0, lambda: unequal(x), lambda: equal(x)), lambda slope: transposed(slope)

        return chosen(x)

    def _equal_sums(self, x):
        x = x if self._known else x[: self.number * self._short]  # all of them, but where XLA compiles this in vain
        return ops.sum(ops.reshape(x, (self.number, self._short, *ops.shape(x)[1:])), axis=1)

    def _equal_rows(self, x):
        each, length = ops.shape(x)[1:], self._short
        if not self._known:
            length = length + ops.cast(self.longer > 0, length.dtype)
        rows = ops.broadcast_to(x[:, None], (self.number, length, *each))
        rows = ops.reshape(rows, (self.number * length, *each))
        return rows if self._known else rows[: self._rows]


def pooled(number, *values):
    """Means of each of these, weighted by numbers of entries, over the first axis and all replicas."""
    values = [ops.sum(number * x, 0, keepdims=True) for x in values]
    number = ops.sum(number, 0, keepdims=True)
    if replicas() > 1:  # by one reduction over them
        total = ops.stack([ops.broadcast_to(number, ops.shape(values[0])), *values])
        number, *values = ops.unstack(sum_over_replicas([total])[0], 1 + len(values))
    return [x / ops.maximum(number, 1) for x in values]
