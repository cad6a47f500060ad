"""A step size for each weight, from the squares of its gradients: Adagrad, Adadelta, RMSprop, MADGRAD."""

from typing import Unpack

from keras import ops

from kopt.math import at_first, ema
from kopt.optimizers.base import Common, Optimizer, Scheduled
from kopt.optimizers.packs import Slot


class Adagrad(Optimizer):
    """Steps shrink with the sum of all squared gradients: rare features keep large steps.

        v ← v + g²
        u = g / √(v + ε)

    For sparse data and convex problems; in long trainings of networks its steps die out. ε lies inside the root, as
    in Keras and optax; the paper and PyTorch add it outside.

    Args:
        learning_rate: in [0, inf), or a schedule.
        initial_accumulator_value: where v starts, in [0, inf).
        epsilon: smallest v, in [0, inf).
        **common: see `kopt.Optimizer`.

    References:
        Duchi, Hazan and Singer, *Adaptive Subgradient Methods for Online Learning and Stochastic Optimization*, 2011.
        https://jmlr.org/papers/v12/duchi11a.html
    """

    cites = ("duchi2011adaptive",)
    elementwise = True
    ranges = {"initial_accumulator_value": "[0, inf)"}

    def __init__(
        self,
        learning_rate: Scheduled = 1e-3,
        *,
        initial_accumulator_value: float = 0.1,
        epsilon: Scheduled = 1e-7,
        **common: Unpack[Common],
    ):
        super().__init__(learning_rate, **common)
        self.initial_accumulator_value, self.epsilon = initial_accumulator_value, epsilon

    def slots(self, shape):
        return dict(v=Slot(shape, self.initial_accumulator_value))

    def direction(self, g, w, t, h, *, v):
        v = v + g * g
        return g / ops.sqrt(v + h.epsilon), dict(v=v)


class Adadelta(Optimizer):
    """Steps in the weight's own units: the ratio of recent steps to recent gradients.

        v ← ρ v + (1 - ρ) g²
        u = √(d + ε) / √(v + ε) · g
        d ← ρ d + (1 - ρ) u²

    The paper has no learning rate: 1.0 is its rule, and Keras's default of 0.001 is a thousand times slower.

    Args:
        learning_rate: in [0, inf), or a schedule.
        rho: decay of both means, in [0, 1).
        epsilon: sets the size of the first steps, in [0, inf).
        **common: see `kopt.Optimizer`.

    References:
        Zeiler, *ADADELTA: An Adaptive Learning Rate Method*, 2012. https://arxiv.org/abs/1212.5701
    """

    cites = ("zeiler2012adadelta",)
    elementwise = True

    def __init__(
        self,
        learning_rate: Scheduled = 1e-3,
        *,
        rho: Scheduled = 0.95,
        epsilon: Scheduled = 1e-7,
        **common: Unpack[Common],
    ):
        super().__init__(learning_rate, **common)
        self.rho, self.epsilon = rho, epsilon

    def slots(self, shape):
        return dict(v=shape, d=shape)

    def direction(self, g, w, t, h, *, v, d):
        v = ema(v, g * g, h.rho)
        u = ops.sqrt(d + h.epsilon) / ops.sqrt(v + h.epsilon) * g
        return u, dict(v=v, d=ema(d, u * u, h.rho))


class RMSprop(Optimizer):
    """The gradient over the root of its recent mean square; centered, over its standard deviation.

        v ← ρ v + (1 - ρ) g²
        a ← ρ a + (1 - ρ) g                       (centered; else a = 0)
        u = g / √(v - a² + ε)
        m ← momentum · m + u,  u = m              (with momentum)

    ε lies inside the root, as in Graves's paper and Keras; PyTorch adds it outside. The momentum gathers directions,
    not steps, as in PyTorch: see `kopt.SGD`.

    Args:
        learning_rate: in [0, inf), or a schedule.
        rho: decay of the means, in [0, 1).
        momentum: share of the velocity that stays, in [0, 1].
        epsilon: smallest square of a step's denominator, in [0, inf).
        centered: whether to subtract the square of the mean gradient.
        **common: see `kopt.Optimizer`.

    References:
        Tieleman and Hinton, *Lecture 6.5: rmsprop*, 2012. Graves, *Generating Sequences With Recurrent Neural
        Networks*, 2013 (centered). https://arxiv.org/abs/1308.0850
    """

    cites = ("tieleman2012lecture", "graves2013generating")
    elementwise = True

    def __init__(
        self,
        learning_rate: Scheduled = 1e-3,
        *,
        rho: Scheduled = 0.9,
        momentum: Scheduled = 0.0,
        epsilon: Scheduled = 1e-7,
        centered=False,
        **common: Unpack[Common],
    ):
        super().__init__(learning_rate, **common)
        self.rho, self.momentum, self.epsilon, self.centered = rho, momentum, epsilon, centered

    def slots(self, shape):
        kept = dict(v=shape)
        if self.centered:
            kept["a"] = shape
        if self.momentum != 0:
            kept["m"] = shape
        return kept

    def direction(self, g, w, t, h, *, v, a=None, m=None):
        new = dict(v=ema(v, g * g, h.rho))
        variance = new["v"]
        if a is not None:
            new["a"] = ema(a, g, h.rho)
            variance = variance - new["a"] ** 2
        u = g / ops.sqrt(variance + h.epsilon)
        if m is not None:
            u = new["m"] = h.momentum * m + u
        return u, new


class MADGRAD(Optimizer):
    """Dual averaging: Adagrad with a cube root, stepping from the first weights by all gradients so far, and momentum.

        λ = learning_rate · √t
        s ← s + λ g,  v ← v + λ g²
        w ← momentum · w + (1 - momentum) · (x₀ - s / (∛v + ε))        x₀: the weights at the first step

    Where Adam generalizes worse than SGD (images) and SGD does not get off the ground (sparse data, translation).
    Its learning rate is its own: search it in powers of ten. It wants less decay than others, often none, and a decay
    tuned for SGD is far too large; the authors' code adds theirs to the gradient by default, where this is decoupled,
    their `decouple_decay`. They also add ε to the learning rate, for which the paper has no place.

    Args:
        learning_rate: in [0, inf), or a schedule.
        momentum: share of the old weights in the new, in [0, 1].
        epsilon: smallest denominator of a step, in [0, inf).
        **common: see `kopt.Optimizer`.

    References:
        Defazio and Jelassi, *Adaptivity without Compromise: A Momentumized, Adaptive, Dual Averaged Gradient Method
        for Stochastic Optimization*, 2022. https://arxiv.org/abs/2101.11075
    """

    cites = ("defazio2022momentumized",)
    elementwise = True

    def __init__(
        self,
        learning_rate: Scheduled = 0.01,
        *,
        momentum: Scheduled = 0.9,
        epsilon: Scheduled = 1e-6,
        **common: Unpack[Common],
    ):
        super().__init__(learning_rate, **common)
        self.momentum, self.epsilon = momentum, epsilon

    def slots(self, shape):
        return dict(s=shape, v=shape, x0=shape)

    def direction(self, g, w, t, h, *, s, v, x0):
        x0, step = at_first(t, w, x0), h.learning_rate * ops.sqrt(t)
        s, v = s + step * g, v + step * g * g
        z = x0 - s / (ops.power(v, 1 / 3) + h.epsilon)
        return ops.divide_no_nan((1 - h.momentum) * (w - z), h.learning_rate), dict(s=s, v=v, x0=x0)
