"""Wrappers that evaluate at other weights than those they train: averages of the weights along the path."""

from keras import ops

from kopt.math import debias, ratio
from kopt.optimizers.base import Scheduled
from kopt.optimizers.wrapper import Wrapper


class Average(Wrapper):
    """A running average of the weights, for evaluation, beside the weights that another optimizer trains.

        average ← average + share(t) · (w - average)        w: the weight after the step

    A subclass writes `share`. What is kept is the weight less its average, which starts at zero: a weight whose first
    gradient comes late is its own average until then.
    """

    averages = True  # pyright: ignore[reportAssignmentType]
    elementwise = True

    def __init__(self, inner):
        super().__init__(inner)
        if inner.averages:
            raise ValueError(f"{type(self).__name__}: inner must not average weights itself, got {inner!r}.")

    def share(self, t, h):
        """The part of the latest weight in the average, in [0, 1]."""
        raise NotImplementedError(f"{type(self).__name__} must define share(t, h).")

    def own_slots(self, shape):
        return dict(lag=shape)

    def direction(self, g, w, t, h, *, lag, **slots):
        u, slots = self.inner.direction(g, w, t, h.inner, **slots)
        u = self.inner.finish(u, w, h.inner)
        return u, dict(lag=(1 - self.share(t, h)) * (lag - h.learning_rate * u), **slots)

    def finish(self, u, w, h):
        return u  # the optimizer inside has finished it

    def evaluation(self, w, h, *, lag, **slots):
        return w - lag, dict(lag=w, **slots)

    def training(self, w, h, *, lag, **slots):
        return lag, dict(lag=lag - w, **slots)


class EMA(Average):
    """Trains with any optimizer, and evaluates at the exponential moving average of its weights.

        average ← momentum · average + (1 - momentum) · w
        evaluated at average / (1 - momentumᵗ)

    Smooths the noise of the last steps, so that much of what a falling learning rate gains is had at any time. It
    costs one copy of the weights. Take 0.999 for thousands of steps, 0.9999 for hundreds of thousands; with the rate
    decayed to zero there is little left to gain. Networks with batch normalization need their statistics made anew for
    the average: `kopt.SwapWeights(data)`.

    The average starts at nothing and is divided by the sum of its weights, as Adam's moments are, so that it holds no
    trace of the initial weights. PyTorch's `get_ema_multi_avg_fn` starts at the weights after the first step instead:
    `debias=False`. Keras's `use_ema` does that too, and leaves the average in the model after `fit`, where the next
    `fit` starts from it; here training goes on where it was.

    Args:
        inner: the optimizer that trains.
        momentum: the part of the average that stays in each step, in [0, 1).
        debias: whether the average is divided by the sum of its weights.

    References:
        Polyak and Juditsky, *Acceleration of Stochastic Approximation by Averaging*, 1992.
        https://doi.org/10.1137/0330046
        Morales-Brotons, Vogels and Hendrikx, *Exponential Moving Average of Weights in Deep Learning: Dynamics and
        Benefits*, 2024. https://arxiv.org/abs/2411.18704
    """

    cites = ("polyak1992acceleration", "morales2024ema")
    ranges = {"momentum": "[0, 1)"}

    def __init__(self, inner, *, momentum: Scheduled = 0.999, debias=True):
        super().__init__(inner)
        self.momentum, self.debias = momentum, debias

    def share(self, t, h):
        share = 1 - h.momentum
        return debias(share, h.momentum, t) if self.debias else ops.where(t == 1, 1.0, share)


class SWA(Average):
    """Trains with any optimizer, and evaluates at the mean of its weights from some step on.

        average ← mean of w after steps start + every, start + 2 · every, …

    Stochastic weight averaging: train for three quarters of the steps as usual, then on with a constant, rather large
    learning rate (or one that rises and falls every `every` steps), and average the weights once an epoch. The mean
    lies in a wider optimum than any of them. Until the first snapshot it is evaluated at the weights themselves.
    Networks with batch normalization need their statistics made anew for the average: `kopt.SwapWeights(data)`.

    The learning rate's course is a schedule of the optimizer inside. PyTorch counts updates in the training loop, Keras
    has no such average.

    Args:
        inner: the optimizer that trains.
        start: steps before averaging starts, an integer in [0, inf).
        every: steps from one snapshot to the next, an integer in [1, inf).

    References:
        Izmailov et al., *Averaging Weights Leads to Wider Optima and Better Generalization*, 2018.
        https://arxiv.org/abs/1803.05407
    """

    cites = ("izmailov2018swa",)
    integers = {"start": "[0, inf)", "every": "[1, inf)"}

    def __init__(self, inner, *, start: int = 0, every: int = 1):
        super().__init__(inner)
        self.start = start
        self.every = every

    def share(self, t, h):
        since, first = t - self.start, t <= self.start + self.every
        due = ops.logical_or(first, ops.mod(since, self.every) == 0)
        return ops.where(due, 1 / ops.maximum(since / self.every, 1.0), 0.0)


class PolynomialAverage(Average):
    """Trains with any optimizer, and evaluates at an average in which a step counts the more, the later it is.

        average ← average + (power + 1) / (power + t) · (w - average)

    In the average, step t counts about as t to the `power`: with 8, the last fifth of the steps is most of it, however
    many there are. Nothing has to be tuned to the length of training, so it goes with DoG, whose authors use it.

    Args:
        inner: the optimizer that trains.
        power: the γ of the paper, in [0, inf); 0 is the mean of all weights.

    References:
        Shamir and Zhang, *Stochastic Gradient Descent for Non-smooth Optimization: Convergence Results and Optimal
        Averaging Schemes*, 2013. https://proceedings.mlr.press/v28/shamir13.html
    """

    cites = ("shamir2013averaging",)
    ranges = {"power": "[0, inf)"}

    def __init__(self, inner, *, power: Scheduled = 8.0):
        super().__init__(inner)
        self.power = power

    def share(self, t, h):
        return (h.power + 1) / (h.power + t)


class Lookahead(Average):
    """Lets an optimizer run ahead for some steps, then goes a part of the way after it, and starts again from there.

        each `every` steps:  slow ← slow + slow_step · (w - slow),  w ← slow

    Damps what oscillates and keeps what goes one way, so that the optimizer inside may be given a larger learning rate
    and tuned less. It costs one copy of the weights. Evaluation is at the slow weights, as in the paper.

    The state of the optimizer inside stays as it is when the weights go back (in the paper's experiments too; optax
    can reset it). A step with a learning rate of zero changes nothing, the slow weights included.

    Args:
        inner: the optimizer that runs ahead.
        every: steps from one synchronization to the next, an integer in [1, inf): 5 to 10 in the paper.
        slow_step: the part of the way that the slow weights go, in [0, 1]: 0.5 or 0.8 in the paper.

    References:
        Zhang et al., *Lookahead Optimizer: k steps forward, 1 step back*, 2019. https://arxiv.org/abs/1907.08610
    """

    cites = ("zhang2019lookahead",)
    integers = {"every": "[1, inf)"}
    ranges = {"slow_step": "[0, 1]"}

    def __init__(self, inner, *, every: int = 6, slow_step: Scheduled = 0.5):
        super().__init__(inner)
        self.every = every
        self.slow_step = slow_step

    def due(self, t, h):
        return ops.logical_and(ops.mod(t, self.every) == 0, h.learning_rate > 0)

    def share(self, t, h):
        return ops.where(self.due(t, h), h.slow_step, 0.0)

    def direction(self, g, w, t, h, **slots):
        u, slots = super().direction(g, w, t, h, **slots)
        back = ops.where(self.due(t, h), slots["lag"], 0.0)
        return u + ratio(back, h.learning_rate), slots | dict(lag=slots["lag"] - back)
