"""Rows mixed with one another, and their targets with them."""

import keras
from keras import ops, tree

from kopt._checks import check_choice
from kopt.layers.base import Scheduled
from kopt.layers.wrapped import calls_changed
from kopt.objectives.base import Drawing, floats


class _Mixing(Drawing):
    """A loss of two targets: λ · loss(z, y) + (1 - λ) · loss(z, y'), with y' those of the rows in another order."""

    ranges = {"alpha": "(0, inf)"}

    def __init__(self, alpha: Scheduled, seed=None, **kwargs):
        super().__init__(seed, **kwargs)
        self._set_rates(alpha=alpha)

    def _share(self):
        """λ ~ Beta(α, α), one for the batch."""
        alpha = ops.cast(self._now().alpha, keras.config.floatx())
        return beta((), alpha, self.seed_generator)

    def _order(self, look):
        """The rows that each row is mixed with."""
        return ops.argsort(keras.random.uniform((look.rows,), seed=self.seed_generator))

    def _loss(self, look, outputs, share, order):
        y, w = (tree.map_structure(lambda part: taken(part, order), parts) for parts in (look.y, look.sample_weight))
        one, other = look.loss(outputs), look.loss(outputs, y, w)
        share = ops.cast(share, one.dtype)
        return share * one + (1 - share) * other


class MixUp(_Mixing):
    """Trains on means of two rows, with the same mean of their losses.

        x̃ = λ x + (1 - λ) x',  L = λ loss(f(x̃), y) + (1 - λ) loss(f(x̃), y'),  λ ~ Beta(α, α)

    x' and y' are the rows in another order. For a crossentropy the loss is that of mixed labels; losses, not labels,
    are mixed so that labels may be numbers of classes, several at once, or targets of a regression, each with the
    weight of its row. Metrics in training are those of mixed rows, whose accuracy is low.

    Args:
        alpha: in (0, inf), or a schedule. The paper has 0.1 to 0.4 on ImageNet, 1 on CIFAR-10.
        seed: an integer, for the same draws in every run; None draws a new one.
        **kwargs: those of `keras.layers.Layer`.

    Raises:
        TypeError: `alpha` is neither a number nor a schedule.
        ValueError: `alpha` is not positive; in `fit`, rows are no floats.

    References:
        Zhang et al., *mixup: Beyond Empirical Risk Minimization*, 2018. https://arxiv.org/abs/1710.09412
    """

    def __init__(self, alpha: Scheduled = 0.2, seed=None, **kwargs):
        super().__init__(alpha, seed, **kwargs)

    def total(self, look):
        floats(self, look.x, "to be mixed")
        share, order = self._share(), self._order(look)
        outputs = look.outputs(tree.map_structure(lambda x: mix(x, share, order), look.x))
        return outputs, self._loss(look, outputs, share, order)


class CutMix(_Mixing):
    """Trains on images with a rectangle of another image, and the losses of both by area.

        x̃ = x outside of a rectangle, x' within;  L = λ loss(f(x̃), y) + (1 - λ) loss(f(x̃), y')

    The rectangle has the image's proportions, the area 1 - λ with λ ~ Beta(α, α), and a centre that is drawn uniformly;
    where it is cut off at the border, λ becomes what is left of the image. One rectangle for the batch, as in the
    authors' code.

    Args:
        alpha: in (0, inf), or a schedule; the paper's is 1.
        data_format: `"channels_last"` or `"channels_first"`; None for that of `keras.config.image_data_format()`.
        seed: an integer, for the same draws in every run; None draws a new one.
        **kwargs: those of `keras.layers.Layer`.

    Raises:
        TypeError: `alpha` is neither a number nor a schedule.
        ValueError: an argument is out of its range; in `fit`, rows are no images.

    References:
        Yun et al., *CutMix: Regularization Strategy to Train Strong Classifiers with Localizable Features*, 2019.
        https://arxiv.org/abs/1905.04899
    """

    def __init__(self, alpha: Scheduled = 1.0, data_format=None, seed=None, **kwargs):
        super().__init__(alpha, seed, **kwargs)
        data_format = data_format or keras.config.image_data_format()
        self.data_format = check_choice(self, ("channels_last", "channels_first"), data_format=data_format)

    def total(self, look):
        floats(self, look.x, "to be mixed")
        if tree.is_nested(look.x) or len(look.x.shape) != 4:
            shapes = tree.map_structure(lambda x: tuple(x.shape), look.x)
            raise ValueError(f"CutMix: rows must be images, one tensor of shape (rows, *three axes), got {shapes}.")
        share, order = self._share(), self._order(look)
        sides = look.x.shape[2:] if self.data_format == "channels_first" else look.x.shape[1:3]
        within = self._rectangle(sides, share)
        left = 1 - ops.mean(ops.cast(within, share.dtype))
        inside = within[None, None] if self.data_format == "channels_first" else within[None, :, :, None]
        outputs = look.outputs(ops.where(inside, ops.take(look.x, order, axis=0), look.x))
        return outputs, self._loss(look, outputs, left, order)

    def _rectangle(self, sides, share):
        """Whether each position lies within."""
        lines = []
        for side in sides:
            length = ops.floor(side * ops.sqrt(1 - share))
            centre = ops.floor(side * keras.random.uniform((), seed=self.seed_generator, dtype=share.dtype))
            low, high = (ops.clip(centre + sign * ops.floor(length / 2), 0, side) for sign in (-1, 1))
            places = ops.arange(side, dtype=share.dtype)
            lines.append(ops.logical_and(places >= low, places < high))
        return ops.logical_and(lines[0][:, None], lines[1][None, :])


class ManifoldMixup(_Mixing):
    """Mixes rows at their input or behind a hidden layer, drawn anew for each batch, and their losses alike.

        h̃ = λ h + (1 - λ) h',  L = λ loss(z, y) + (1 - λ) loss(z, y'),  λ ~ Beta(α, α)

    with h the output of the layer that is drawn, or the rows.

    Args:
        layers: names of layers of the model behind which to mix, at least one.
        alpha: in (0, inf), or a schedule; the paper's is 2.
        inputs: whether to mix at the input, too.
        seed: an integer, for the same draws in every run; None draws a new one.
        **kwargs: those of `keras.layers.Layer`.

    Raises:
        TypeError: `alpha` is neither a number nor a schedule, or `layers` no names.
        ValueError: `alpha` is not positive; in `fit`, the model has no such layer.

    References:
        Verma et al., *Manifold Mixup: Better Representations by Interpolating Hidden States*, 2019.
        https://arxiv.org/abs/1806.05236
    """

    def __init__(self, layers, alpha: Scheduled = 2.0, inputs=True, seed=None, **kwargs):
        super().__init__(alpha, seed, **kwargs)
        self.layers = [layers] if isinstance(layers, str) else list(layers)
        if not self.layers or not all(isinstance(name, str) for name in self.layers):
            raise TypeError(f"ManifoldMixup: layers must be names of layers, got {layers!r}.")
        self.inputs = check_choice(self, (True, False), inputs=inputs)

    def total(self, look):
        share, order = self._share(), self._order(look)
        known = {layer.name: layer for layer in look.model._flatten_layers(include_self=False)}
        if missing := [name for name in self.layers if name not in known]:
            raise ValueError(f"ManifoldMixup: {look.model.name} has no layer {missing[0]!r}, but {', '.join(known)}.")
        if self.inputs:
            floats(self, look.x, "to be mixed")
        places = len(self.layers) + self.inputs
        drawn = ops.floor(places * keras.random.uniform((), seed=self.seed_generator))
        number = {known[name]: i for i, name in enumerate(self.layers)}

        def mixed(h, place):
            return tree.map_structure(lambda part: ops.where(drawn == place, mix(part, share, order), part), h)

        def changed(layer, call):
            return lambda *args, **kwargs: mixed(call(*args, **kwargs), number[layer])

        x = mixed(look.x, len(self.layers)) if self.inputs else look.x
        with calls_changed(list(number), changed):
            outputs = look.outputs(x)
        return outputs, self._loss(look, outputs, share, order)


def beta(shape, alpha, seed):
    """Draws from Beta(α, α), as G / (G + G') with two draws from Gamma(α): Keras's own XLA cannot compile on a CPU.

    Args:
        shape: of the draws, a tuple.
        alpha: a positive scalar tensor.
        seed: a `keras.random.SeedGenerator`.
    """
    one, other = (_log_gamma(shape, alpha, seed) for _ in range(2))
    return ops.sigmoid(one - other)


def _log_gamma(shape, alpha, seed):
    """ln G with G ~ Gamma(α): of Gamma(α + 1), by Marsaglia and Tsang's rejection, times U to the power of 1 / α.

    Of 32 proposals the first that is accepted counts; each is with a chance above 0.95.
    """
    d = alpha + 2 / 3
    x, u = (draw((32, *shape), dtype=d.dtype, seed=seed) for draw in (keras.random.normal, keras.random.uniform))
    v = (1 + x / ops.sqrt(9 * d)) ** 3
    log_v = ops.log(ops.maximum(v, 1e-30))
    accepted = ops.logical_and(v > 0, ops.log(u) < x * x / 2 + d * (1 - v + log_v))
    first = ops.argmax(ops.cast(accepted, "int32"), axis=0)
    tail = keras.random.uniform(shape, 1e-30, 1.0, dtype=d.dtype, seed=seed)
    return ops.log(d) + ops.take_along_axis(log_v, first[None], axis=0)[0] + ops.log(tail) / alpha


def taken(x, order):
    """The rows in another order; None where there are none."""
    return None if x is None else ops.take(x, order, axis=0)


def mix(x, share, order):
    """λ x + (1 - λ) x', with x' the rows in another order."""
    share = ops.cast(share, x.dtype)
    return share * x + (1 - share) * ops.take(x, order, axis=0)
