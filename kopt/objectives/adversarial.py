"""Training on what misleads the model most, close to the rows."""

from numbers import Integral

import keras
from keras import ops, tree

from kopt._checks import check_range
from kopt.layers.base import Scheduled
from kopt.objectives.base import Drawing, Objective, floats


class FGSM(Objective):
    """Adversarial training by the fast gradient sign method.

        L = (1 - share) · loss(f(x), y) + share · loss(f(x + ε sign ∇ₓ loss(f(x), y)), y)

    Args:
        epsilon: ε, how far each number of a row moves, in the rows' units: in [0, inf), or a schedule.
        share: of the disturbed rows in the loss, in [0, 1]; the paper's is 0.5.
        **kwargs: those of `keras.layers.Layer`.

    Raises:
        TypeError: `epsilon` is neither a number nor a schedule, or `share` no number.
        ValueError: either is out of its range; in `fit`, rows are no floats.

    References:
        Goodfellow et al., *Explaining and Harnessing Adversarial Examples*, 2015. https://arxiv.org/abs/1412.6572
    """

    ranges = {"epsilon": "[0, inf)"}

    def __init__(self, epsilon: Scheduled, share=0.5, **kwargs):
        super().__init__(**kwargs)
        self._set_rates(epsilon=epsilon)
        self.share = check_range(self, "[0, 1]", share=share)

    def total(self, look):
        x = floats(self, look.x, "to be moved")
        (outputs, loss), slopes = look.with_slopes(look.at, x)
        epsilon = self._now().epsilon
        moved = along(x, [ops.stop_gradient(ops.sign(g)) for g in slopes], epsilon)
        return outputs, (1 - self.share) * loss + self.share * look.loss(look.outputs(moved))


class VAT(Drawing):
    """Virtual adversarial training: the prediction is to stay as it is in the direction in which it changes most.

        r = ε d / ‖d‖,  d ← ∇_d KL(f(x) ‖ f(x + ξ d / ‖d‖)) from a random start, `iterations` times
        L = loss(f(x), y) + strength · KL(f(x) ‖ f(x + r)),  without a gradient through the first f(x)

    Labels have no part in the second term. The norms are of each row, all of its tensors together.

    Args:
        epsilon: length of the step, in [0, inf), or a schedule. It is what to tune: the authors' code has 2.5 to 10
            for images.
        strength: in [0, inf), or a schedule; the paper's is 1.
        xi: ξ, of finite differences, in (0, inf). The authors' 1e-6 drowns in rounding in float32.
        iterations: of the power method, in [1, inf); the paper's is 1.
        seed: an integer, for the same draws in every run; None draws a new one.
        **kwargs: those of `keras.layers.Layer`.

    Raises:
        TypeError: a number is none, nor a schedule where it may be one.
        ValueError: a number is out of its range; in `fit`, rows are no floats, or the loss is neither a crossentropy of
            logits, softmax or sigmoid nor the mean squared error.

    References:
        Miyato et al., *Virtual Adversarial Training*, 2018. https://arxiv.org/abs/1704.03976
    """

    ranges = {"epsilon": "[0, inf)", "strength": "[0, inf)"}

    def __init__(self, epsilon: Scheduled, strength: Scheduled = 1.0, xi=1e-2, iterations=1, seed=None, **kwargs):
        super().__init__(seed, **kwargs)
        self._set_rates(epsilon=epsilon, strength=strength)
        self.xi = check_range(self, "(0, inf)", xi=xi)
        self.iterations = check_range(self, "[1, inf)", kind=Integral, iterations=iterations)

    def total(self, look):
        x, rates = floats(self, look.x, "to be moved"), self._now()
        outputs = look.outputs(x)
        loss = look.loss(outputs)
        held = still(outputs)

        def away(x):
            return (look.divergence(held, look.outputs(x)),)

        d = unit([keras.random.normal(ops.shape(p), dtype=p.dtype, seed=self.seed_generator) for p in tree.flatten(x)])
        for _ in range(self.iterations):
            _, slopes = look.with_slopes(away, along(x, d, self.xi))
            d = unit([ops.stop_gradient(g) for g in slopes])
        (divergence,) = away(along(x, d, rates.epsilon))
        return outputs, loss + ops.cast(rates.strength, loss.dtype) * ops.cast(divergence, loss.dtype)


class TRADES(Drawing):
    """Adversarial training that trades accuracy against robustness.

        L = loss(f(x), y) + strength · max over ‖r‖_∞ ≤ ε of KL(f(x) ‖ f(x + r))

    The maximum is looked for by `iterations` steps along the sign of the gradient, cut back to the box after each, from
    a start that is 0.001 times standard normal.

    Args:
        epsilon: ε, half the width of the box, in the rows' units: in [0, inf), or a schedule.
        strength: in [0, inf), or a schedule; the paper's, 1 / λ there, is 1 to 6.
        step_size: of a step, in (0, inf); None for ε / 4.
        iterations: in [1, inf); the paper's is 10.
        seed: an integer, for the same draws in every run; None draws a new one.
        **kwargs: those of `keras.layers.Layer`.

    Raises:
        TypeError: a number is none, nor a schedule where it may be one.
        ValueError: as for `VAT`.

    References:
        Zhang et al., *Theoretically Principled Trade-off between Robustness and Accuracy*, 2019.
        https://arxiv.org/abs/1901.08573
    """

    ranges = {"epsilon": "[0, inf)", "strength": "[0, inf)"}

    def __init__(
        self, epsilon: Scheduled, strength: Scheduled = 6.0, step_size=None, iterations=10, seed=None, **kwargs
    ):
        super().__init__(seed, **kwargs)
        self._set_rates(epsilon=epsilon, strength=strength)
        self.step_size = step_size if step_size is None else check_range(self, "(0, inf)", step_size=step_size)
        self.iterations = check_range(self, "[1, inf)", kind=Integral, iterations=iterations)

    def total(self, look):
        x, rates = floats(self, look.x, "to be moved"), self._now()
        outputs = look.outputs(x)
        loss = look.loss(outputs)
        held, epsilon = still(outputs), rates.epsilon
        size = epsilon / 4 if self.step_size is None else self.step_size
        r = [1e-3 * keras.random.normal(ops.shape(p), dtype=p.dtype, seed=self.seed_generator) for p in tree.flatten(x)]

        def away(x):
            return (look.divergence(held, look.outputs(x)),)

        for _ in range(self.iterations):
            _, slopes = look.with_slopes(away, along(x, r, 1.0))
            ahead = [a + ops.cast(size, a.dtype) * ops.sign(g) for a, g in zip(r, slopes, strict=True)]
            edges = [ops.cast(epsilon, a.dtype) for a in ahead]
            r = [ops.stop_gradient(ops.clip(a, -edge, edge)) for a, edge in zip(ahead, edges, strict=True)]
        divergence = look.divergence(outputs, look.outputs(along(x, r, 1.0)))
        return outputs, loss + ops.cast(rates.strength, loss.dtype) * ops.cast(divergence, loss.dtype)


def along(x, directions, size):
    """x + size · direction, for each tensor of the rows."""
    moved = [p + ops.cast(size, p.dtype) * d for p, d in zip(tree.flatten(x), directions, strict=True)]
    return tree.pack_sequence_as(x, moved)


def still(outputs):
    """Outputs through which no gradient goes."""
    return tree.map_structure(_still, outputs)


def _still(output):
    held = ops.stop_gradient(output)
    logits = getattr(output, "_keras_logits", None)
    if logits is not None:
        held._keras_logits = ops.stop_gradient(logits)
    return held


def unit(directions):
    """Directions whose length, over all tensors of a row, is 1; a row of zeros stays zero, as where units are dead."""
    flat = ops.concatenate([ops.reshape(d, (ops.shape(d)[0], -1)) for d in directions], axis=1)
    largest = ops.maximum(ops.max(ops.abs(flat), axis=1, keepdims=True), ops.cast(1e-30, flat.dtype))
    lengths = largest * ops.sqrt(ops.sum(ops.square(flat / largest), axis=1, keepdims=True))  # squares underflow
    lengths = ops.where(lengths > 0, lengths, ops.ones_like(lengths))
    return [d / ops.cast(ops.reshape(lengths, (-1, *(1 for _ in d.shape[1:]))), d.dtype) for d in directions]
