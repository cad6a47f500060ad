"""Normalization of single examples, and scales that are learnt from small ones."""

from numbers import Integral

import keras
from keras import ops

from kopt._checks import check_choice, check_range
from kopt.layers.base import Layer
from kopt.layers.moments import kept, sums, wide


class Channelwise(Layer):
    """Base class of layers with weights of one number for each channel.

    Args:
        axis: that of the channels, an integer.
        **kwargs: those of `keras.layers.Layer`.
    """

    def __init__(self, axis=-1, **kwargs):
        super().__init__(**kwargs)
        self.axis = check_range(self, "(-inf, inf)", kind=Integral, axis=axis)

    def build(self, input_shape):
        self._channels(input_shape)

    def _channels(self, shape):
        """The number of channels; raises where `axis` is not one of them."""
        if not -len(shape) < self.axis < len(shape) or not self.axis:
            rule = f"axis must be one of inputs of shape {tuple(shape)}, and not the batch's"
            raise ValueError(f"{type(self).__name__}: {rule}, got {self.axis}.")
        return shape[self.axis]

    def _weight(self, name, shape, value):
        start = keras.initializers.Constant(value)
        return self.add_weight(shape=shape, initializer=start, name=name, autocast=False)

    def _spread(self, weight, x):
        """A weight of one number for each channel, in the type of x, with as many axes."""
        shape = [1] * len(x.shape)
        shape[self.axis] = -1
        return ops.reshape(ops.cast(weight, x.dtype), shape)


class FilterResponseNormalization(Channelwise):
    """Divides each channel of an example by its root mean square, and thresholds it: no batch, no mean.

        ν² = mean over space of x²
        y = max(γ x / √(ν² + |ε|) + β, τ)            without tlu: y = γ x / √(ν² + |ε|) + β

    The maximum, the paper's thresholded linear unit, takes the place of the activation: put none after it. γ, β and τ
    are learnt, one of each for each channel, from 1, 0 and 0. Training and inference are the same, and so are replicas.

    Where space is a single point, ν is |x|, and y hardly more than a sign unless ε is of the size of x²: it is learnt
    there, as ε = epsilon + |ε_l|, one ε_l for the layer, from 1e-4.

    Args:
        axis: that of the channels, an integer; 1 for channels first. The axes but this and the first are space.
        epsilon: what is added to the mean square, positive.
        learn_epsilon: whether ε is learnt; None for where all axes of space are known to have length 1, or there are
            none.
        tlu: whether to threshold.
        **kwargs: those of `keras.layers.Layer`.

    Call arguments:
        inputs: tensor of shape `(batch, ...)` and any float type. Means are in float32 or wider.
        mask: booleans for the first axes of `inputs`: where False, an entry does not count in the mean.

    Raises:
        TypeError: a number is none.
        ValueError: `epsilon` is not positive, a choice is another, or `axis` is no axis of the inputs.

    References:
        Singh and Krishnan, *Filter Response Normalization Layer*, 2020. https://arxiv.org/abs/1911.09737
    """

    def __init__(self, axis=-1, epsilon=1e-6, learn_epsilon=None, tlu=True, **kwargs):
        super().__init__(axis, **kwargs)
        self.epsilon = check_range(self, "(0, inf)", epsilon=epsilon)
        self.learn_epsilon = check_choice(self, (None, False, True), learn_epsilon=learn_epsilon)
        self.tlu = check_choice(self, (False, True), tlu=tlu)
        self.tau = self.learnt_epsilon = None

    def build(self, input_shape):
        shape = (self._channels(input_shape),)
        self.gamma, self.beta = self._weight("gamma", shape, 1), self._weight("beta", shape, 0)
        if self.tlu:
            self.tau = self._weight("tau", shape, 0)
        single = all(input_shape[axis] == 1 for axis in self._space(input_shape))
        if single if self.learn_epsilon is None else self.learn_epsilon:
            self.learnt_epsilon = self._weight("epsilon", (), 1e-4)

    def _space(self, shape):
        return [axis for axis in range(1, len(shape)) if axis != self.axis % len(shape)]

    def call(self, inputs, mask=None):
        x = wide(inputs)
        value, number = sums(ops.square(x), self._space(x.shape), kept(x, mask))
        epsilon = ops.cast(self.epsilon, x.dtype)
        if self.learnt_epsilon is not None:
            epsilon = epsilon + ops.abs(ops.cast(self.learnt_epsilon, x.dtype))
        factor = ops.rsqrt(value / ops.maximum(number, 1) + epsilon) * self._spread(self.gamma, x)
        shift = self._spread(self.beta, x)
        if self.tau is None:
            return ops.cast(x * factor + shift, self.compute_dtype)
        tau = self._spread(self.tau, x)  # max(x, τ) as a ramp above τ, whose gradient takes less time
        return ops.cast(ops.relu(x * factor + (shift - tau)) + tau, self.compute_dtype)


class LayerScale(Channelwise):
    """Multiplies each channel with a learnt number, small at the start: at the end of a residual branch.

        y = λ · x            h + LayerScale(1e-5)(block(h))

    Blocks enter one by one as their λ grow, which deep transformers need to train at all. Training and inference are
    the same, and so are replicas. `layer_scale_initial` gives the paper's start by depth.

    Args:
        initial: where λ starts, a positive number.
        axis: that of the channels, an integer; 1 for channels first.
        **kwargs: those of `keras.layers.Layer`.

    Call arguments:
        inputs: tensor of shape `(batch, ...)` and any float type.

    Raises:
        TypeError: a number is none.
        ValueError: `initial` is not positive, or `axis` is no axis of the inputs.

    References:
        Touvron et al., *Going deeper with Image Transformers*, 2021. https://arxiv.org/abs/2103.17239
    """

    def __init__(self, initial=1e-5, axis=-1, **kwargs):
        super().__init__(axis, **kwargs)
        self.initial = check_range(self, "(0, inf)", initial=initial)

    def build(self, input_shape):
        self.scale = self._weight("scale", (self._channels(input_shape),), self.initial)

    def call(self, inputs):
        return inputs * self._spread(self.scale, inputs)


def layer_scale_initial(depth):
    """Returns where `LayerScale` starts in a network of this many blocks: the same in all of them.

        0.1 up to 18 blocks, 1e-5 up to 24, 1e-6 for more

    Args:
        depth: number of blocks, a positive integer.

    References:
        Touvron et al., *Going deeper with Image Transformers*, 2021, section 2. https://arxiv.org/abs/2103.17239
    """
    check_range("layer_scale_initial", "[1, inf)", kind=Integral, depth=depth)
    return 0.1 if depth <= 18 else 1e-5 if depth <= 24 else 1e-6
