"""Ways from one value to another."""

import math

from keras import ops

from kopt.schedules.base import Schedule, number


class Anneal(Schedule):
    """Base class of ways from one value to another: a subclass writes `curve`.

        value = initial + (final - initial) · curve(x)        x = min(step / steps, 1)

    Args:
        initial: value at step 0, any number.
        steps: number of steps until `final`, in (0, inf).
        final: value from then on, any number.
    """

    def __init__(self, initial: float, steps: float, final: float = 0.0):
        self.initial = number(self, initial=initial)
        self.steps = number(self, "(0, inf)", steps=steps)
        self.final = number(self, final=final)

    def curve(self, x):
        """Returns the part of the way that is gone, from 0 to 1, after the part `x` of the steps."""
        raise NotImplementedError(f"{type(self).__name__} must define curve(x).")

    def at(self, step):
        return self.initial + (self.final - self.initial) * self.curve(ops.minimum(step / self.steps, 1))


class Linear(Anneal):
    """A straight line: curve(x) = x.

    Down to zero behind a `Warmup`, it is BERT's schedule, and hard to beat where the number of steps is known.

    Args:
        initial: value at step 0, any number.
        steps: number of steps until `final`, in (0, inf).
        final: value from then on, any number.

    References:
        Defazio et al., *Optimal Linear Decay Learning Rate Schedules and Further Refinements*, 2023.
        https://arxiv.org/abs/2310.07831
    """

    def curve(self, x):
        return x


class Cosine(Anneal):
    """Half a wave, flat at both ends: curve(x) = (1 - cos πx) / 2.

    SGDR without its restarts, for which Keras has `CosineDecayRestarts`.

    Args:
        initial: value at step 0, any number.
        steps: number of steps until `final`, in (0, inf).
        final: value from then on, any number.

    References:
        Loshchilov and Hutter, *SGDR: Stochastic Gradient Descent with Warm Restarts*, 2017.
        https://arxiv.org/abs/1608.03983
    """

    def curve(self, x):
        return (1 - ops.cos(math.pi * x)) / 2


class SquareRoot(Anneal):
    """Fast at first, then slower: curve(x) = √x, the "1-sqrt" cooldown.

    Made for the short last part of training, see `WarmupStableDecay`; from the first step on it falls too soon.

    Args:
        initial: value at step 0, any number.
        steps: number of steps until `final`, in (0, inf).
        final: value from then on, any number.

    References:
        Hägele et al., *Scaling Laws and Compute-Optimal Training Beyond Fixed Training Durations*, 2024.
        https://arxiv.org/abs/2405.18392
    """

    def curve(self, x):
        return ops.sqrt(x)


class REX(Anneal):
    """Reflected exponential, slow at first, then ever faster: curve(x) = 1 - (1 - x) / (1/2 + (1 - x) / 2).

    Always above `Linear`; made for training whose budget of steps is known, be it small or large.

    Args:
        initial: value at step 0, any number.
        steps: number of steps until `final`, in (0, inf).
        final: value from then on, any number.

    References:
        Chen et al., *REX: Revisiting Budgeted Training with an Improved Schedule*, 2022.
        https://arxiv.org/abs/2107.04197
    """

    def curve(self, x):
        return x / (2 - x)


class InverseSquareRoot(Schedule):
    """Falls ever more slowly, with no end in view: initial · √(timescale / (timescale + step)).

    Behind a warmup as long as its timescale it is the Transformer's: `Warmup(InverseSquareRoot(peak, 4000), 4000)`
    is peak · min(step / 4000, √(4000 / step)).

    Args:
        initial: value at step 0, any number.
        timescale: number of steps until the value has fallen by √2, in (0, inf).

    References:
        Vaswani et al., *Attention Is All You Need*, 2017. https://arxiv.org/abs/1706.03762
    """

    def __init__(self, initial: float, timescale: float):
        self.initial = number(self, initial=initial)
        self.timescale = number(self, "(0, inf)", timescale=timescale)

    def at(self, step):
        return self.initial * ops.sqrt(self.timescale / (self.timescale + step))
