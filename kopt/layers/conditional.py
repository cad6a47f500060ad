"""Features scaled and shifted by what another input says: alone, or after normalization."""

import inspect
from numbers import Integral

import keras
from keras import ops

from kopt._checks import check_choice, check_range
from kopt.layers.moments import moments, wide
from kopt.layers.normalization import Channelwise


class FiLM(Channelwise):
    """Scales and shifts each channel of the features by amounts that a condition gives.

        y = (1 + Δγ) x + β,  (Δγ, β) = W c + b            for a vector c
        (Δγ, β) = the row of W of that class              for a class

    Of the features' own shape. Training and inference are the same, and so are replicas. With the default W starts at
    zero, and the layer at the identity; another initializer starts it with the condition in effect.

    Args:
        classes: None for conditions that are vectors; or a positive integer, the number of classes.
        axis: that of the features' channels, an integer; 1 for channels first.
        kernel_initializer: a Keras initializer, of W.
        **kwargs: those of `keras.layers.Layer`.

    Call arguments:
        inputs: a list `[features, condition]`: of shape `(batch, ...)`, and `(batch, size)`; or of integers in
            [0, classes) and shape `(batch,)` or `(batch, 1)`. The mask of the features passes.

    Raises:
        TypeError: a number is none.
        ValueError: `classes` is not positive, inputs are not two of these shapes, or `axis` is no axis of the features.

    References:
        Perez et al., *FiLM: Visual Reasoning with a General Conditioning Layer*, 2018. https://arxiv.org/abs/1709.07871
    """

    def __init__(self, classes=None, axis=-1, kernel_initializer="zeros", **kwargs):
        super().__init__(axis, **kwargs)
        self.classes = classes if classes is None else check_range(self, "[1, inf)", kind=Integral, classes=classes)
        self.kernel_initializer = keras.initializers.get(kernel_initializer)
        self.bias = None

    def build(self, input_shape):
        features, condition = self._two(input_shape)
        channels = self._channels(features)
        fits = len(condition) == 2 if self.classes is None else tuple(condition[1:]) in ((), (1,))
        if not fits:
            rule = "(batch, size)" if self.classes is None else "(batch,) or (batch, 1)"
            raise ValueError(f"{type(self).__name__}: the condition must have shape {rule}, got {tuple(condition)}.")
        rows = condition[-1] if self.classes is None else self.classes
        start = self.kernel_initializer
        self.kernel = self.add_weight(shape=(rows, 2 * channels), initializer=start, name="kernel")
        if self.classes is None:
            self.bias = self.add_weight(shape=(2 * channels,), initializer="zeros", name="bias")

    def _two(self, inputs):
        if not isinstance(inputs, list | tuple) or len(inputs) != 2 or not hasattr(inputs[0], "__len__"):
            raise ValueError(f"{type(self).__name__}: inputs must be [features, condition], got {inputs!r}.")
        return inputs

    def call(self, inputs):
        features, condition = inputs
        return self._modulated(features, condition)

    def _modulated(self, x, condition):
        if self.classes is None:
            amounts = ops.matmul(condition, self.kernel) + self.bias
        else:
            amounts = ops.take(self.kernel, ops.reshape(ops.cast(condition, "int32"), (-1,)), axis=0)
        scale, shift = (self._beside(part, x) for part in ops.split(ops.cast(amounts, x.dtype), 2, axis=-1))
        return ops.cast(x * (1 + scale) + shift, self.compute_dtype)

    def _beside(self, amounts, x):
        """Amounts of shape (batch, channels), with as many axes as x."""
        shape = [1] * len(x.shape)
        shape[0], shape[self.axis] = -1, amounts.shape[-1]
        return ops.reshape(amounts, shape)

    def compute_mask(self, inputs, previous_mask=None):
        return previous_mask[0] if isinstance(previous_mask, list | tuple) else previous_mask

    def compute_output_shape(self, input_shape):
        return input_shape[0]


class ConditionalNormalization(FiLM):
    """Normalizes the features, and scales and shifts them by amounts that a condition gives.

        x̂ = (x - μ) / √(σ² + epsilon)
        y = (1 + Δγ) x̂ + β,  (Δγ, β) = W c + b, or the row of W of a class

    μ and σ² are those of

        "batch"        each channel, over the batch: conditional batch normalization (de Vries et al.)
        "layer"        each position, over its channels: the adaptive layer norm of transformers
        "instance"     each channel of an example, over space: conditional instance normalization; AdaIN in StyleGAN

    or what another layer computes. Keras's layers do the normalizing, and `kopt.recalibrate` finds the batch
    normalization inside. Replicas give what one device gives, but for batches: for those give
    `SyncBatchNormalization(center=False, scale=False)`. A class that a batch has few of is normalized with the others.

    Args:
        normalization: one of these words, or a layer, which is to have no scale and shift of its own.
        classes: None for conditions that are vectors; or a positive integer, the number of classes.
        axis: that of the features' channels, an integer; 1 for channels first.
        epsilon: what is added to the variance, positive; not used where `normalization` is a layer.
        kernel_initializer: a Keras initializer, of W.
        **kwargs: those of `keras.layers.Layer`.

    Call arguments:
        inputs: a list `[features, condition]`: of shape `(batch, ...)`, and `(batch, size)`; or of integers in
            [0, classes) and shape `(batch,)` or `(batch, 1)`.
        training: whether to use the batch's statistics; Keras sets it.
        mask: of the features; batch normalization leaves out what is masked.

    Raises:
        TypeError: a number is none.
        ValueError: a choice is another, a number out of its range, inputs are not two of these shapes, `axis` is no
            axis of the features, or they have no space for `"instance"`.

    References:
        de Vries et al., *Modulating early visual processing by language*, 2017. https://arxiv.org/abs/1707.00683
        Dumoulin et al., *A Learned Representation For Artistic Style*, 2017. https://arxiv.org/abs/1610.07629
        Karras et al., *A Style-Based Generator Architecture for GANs*, 2019. https://arxiv.org/abs/1812.04948
    """

    def __init__(self, normalization, classes=None, axis=-1, epsilon=1e-3, kernel_initializer="zeros", **kwargs):
        super().__init__(classes, axis, kernel_initializer, **kwargs)
        self.epsilon = check_range(self, "(0, inf)", epsilon=epsilon)
        if not isinstance(normalization, keras.layers.Layer):
            check_choice(self, ("batch", "layer", "instance"), normalization=normalization)
        self.normalization = normalization
        how = dict(axis=axis, epsilon=epsilon, center=False, scale=False, dtype=self.dtype_policy)
        if normalization == "batch":
            self.inner = keras.layers.BatchNormalization(**how)
        elif normalization == "layer":
            self.inner = keras.layers.LayerNormalization(**how)
        elif normalization == "instance":
            self.inner = keras.layers.GroupNormalization(groups=-1, **how)
        else:
            self.inner = normalization
        self._takes_mask = "mask" in inspect.signature(self.inner.call).parameters

    def build(self, input_shape):
        super().build(input_shape)
        if self.normalization == "instance" and len(input_shape[0]) < 3:
            shape = tuple(input_shape[0])
            raise ValueError(f"ConditionalNormalization: features must have space, got those of shape {shape}.")
        if not self.inner.built:
            self.inner.build(input_shape[0])

    def call(self, inputs, training=False, mask=None):
        features, condition = inputs
        how = dict(mask=self.compute_mask(inputs, mask)) if self._takes_mask else {}
        return self._modulated(self.inner(features, training=training, **how), condition)


def adain(content, style, axis=-1, epsilon=1e-5):
    """Adaptive instance normalization: content with the mean and deviation that style has, channel by channel.

        y = σ(style) (content - μ(content)) / σ(content) + μ(style),  σ = √(variance over space + epsilon)

    Args:
        content: tensor of shape `(batch, ...)`, with space.
        style: tensor of as many axes and channels.
        axis: that of the channels, an integer.
        epsilon: what is added to both variances.

    Returns:
        A tensor of the shape and type of `content`.

    References:
        Huang and Belongie, *Arbitrary Style Transfer in Real-time with Adaptive Instance Normalization*, 2017.
            https://arxiv.org/abs/1703.06868
    """
    content, style = ops.convert_to_tensor(content), ops.convert_to_tensor(style)
    x, other = wide(content), wide(style)
    space = [a for a in range(1, len(x.shape)) if a != axis % len(x.shape)]
    (mean, variance, *_), (new_mean, new_variance, *_) = moments(x, space), moments(other, space)
    y = (x - mean) * ops.sqrt((new_variance + epsilon) / (variance + epsilon)) + new_mean
    return ops.cast(y, content.dtype)
