"""Schedule-Free: an average of the iterates in the place of a falling learning rate."""

from typing import Unpack

from keras import ops

from kopt.math import debias, ema, ratio, rectified
from kopt.optimizers.base import Common, Optimizer, Scheduled
from kopt.optimizers.wrapper import Wrapper


class Interpolated(Optimizer):
    """What all Schedule-Free optimizers share: the paths x, y and z of the paper, and how they hang together.

        z ← z - γ u
        x ← (1 - c) x + c z
        y ← β₁ x + (1 - β₁) z

    u is the direction of a base rule, γ the learning rate, warmed up, and c the share of tʳ · max(γ)ᵖ in the sum of
    these over all steps so far, where r is `step_power` and p `rate_power`. Gradients are taken at y. The model holds y
    in training and x in evaluation. What is kept is y - z, which starts at zero:

        y - z ← (1 - c) (y - z + β₁ γ u)        x = y + (1 / β₁ - 1) (y - z)

    A step with a learning rate of zero has no share, and changes nothing.
    """

    averages = True
    elementwise = True
    ranges = {"beta_1": "(0, 1]", "step_power": "[0, inf)", "rate_power": "[0, inf)"}

    def base_step(self, g, z, y, t, h, **slots):
        """Returns `(u, slots)` of the base rule."""
        raise NotImplementedError(f"{type(self).__name__} must define base_step(g, z, y, t, h, **slots).")

    def factor(self, t, h):
        """Of the learning rate: a linear warm-up"""
        return ops.minimum(t / self.warmup_steps, 1.0) if self.warmup_steps else 1.0

    def shared(self):
        return super().shared() | dict(largest_rate=0.0, total=0.0, share=0.0)

    def advance(self, t, h, **sums):
        new = super().advance(t, h, **sums)
        rate = h.learning_rate * self.factor(t, h) * new.get("distance", 1.0)  # which a parameter-free rule inside has
        largest = ops.maximum(h.largest_rate, rate)
        counts = ops.where(rate > 0, ops.power(t, h.step_power) * ops.power(largest, h.rate_power), 0.0)
        total = h.total + counts
        return new | dict(largest_rate=largest, total=total, share=ratio(counts, total))

    def direction(self, g, w, t, h, *, y_less_z, **slots):
        u, slots = self.base_step(g, w - y_less_z, w, t, h, **slots)
        u = self.factor(t, h) * u
        c, beta = h.share, h.beta_1
        after = (1 - c) * (y_less_z + beta * h.learning_rate * u)
        return (1 - beta + beta * c) * u + ratio(c * y_less_z, h.learning_rate), dict(y_less_z=after, **slots)

    def finish(self, u, w, h):
        return u  # the decay is in it

    def evaluation(self, w, h, *, y_less_z, **slots):
        return w + (1 / h.beta_1 - 1) * y_less_z, dict(y_less_z=y_less_z, **slots)

    def training(self, w, h, *, y_less_z, **slots):
        return w - (1 / h.beta_1 - 1) * y_less_z, dict(y_less_z=y_less_z, **slots)


class ScheduleFree(Interpolated, Wrapper):
    """Makes any optimizer Schedule-Free: as good at any time as with a schedule that ends then, and none to choose.

        y = β₁ x + (1 - β₁) z                                   gradients are taken here
        z ← z - γ u(∇f(y))                                      u: the step of the optimizer inside
        x ← (1 - c) x + c z,  c = tʳ max(γ)ᵖ / Σ tʳ max(γ)ᵖ      evaluation is here

    Give the optimizer inside no momentum of its own (`kopt.SGD()`, `kopt.RMSprop()`, `kopt.AdamW(beta_1=0)`): β₁ is the
    momentum. Use a learning rate that warms up and stays, never one that falls. `fit` leaves the model at x;
    between, `optimizer.swap("evaluation")` and `kopt.SwapWeights()` put x in the place of y, and networks with batch
    normalization need their statistics made anew there: `kopt.SwapWeights(data)`.

    The optimizer inside sees z as its weights, which it moves; its weight decay is taken at y, as the authors advise.
    optax's wrapper shows it y for both, the authors' z.

    Args:
        inner: the optimizer that moves z.
        beta_1: the part of x in y, in (0, 1]; the `momentum` of the authors' wrapper.
        step_power: r, the power of the step in a step's share of the average, in [0, inf).
        rate_power: p, the power of the largest learning rate so far in it, in [0, inf).

    References:
        Defazio et al., *The Road Less Scheduled*, 2024. https://arxiv.org/abs/2405.15682
    """

    cites = ("defazio2024schedulefree",)

    def __init__(
        self,
        inner,
        *,
        beta_1: Scheduled = 0.9,
        step_power: Scheduled = 0.0,
        rate_power: Scheduled = 2.0,
    ):
        super().__init__(inner)
        if inner.averages:
            raise ValueError(f"ScheduleFree: inner must not average weights itself, got {inner!r}.")
        self.beta_1, self.step_power, self.rate_power = beta_1, step_power, rate_power

    def factor(self, t, h):
        return 1.0  # a warm-up is the learning rate's own schedule

    def own_slots(self, shape):
        return dict(y_less_z=shape)

    def measure(self, g, w, t, h, *, y_less_z, **slots):
        return self.inner.measure(g, w - y_less_z, t, h.inner, **slots)

    def base_step(self, g, z, y, t, h, **slots):
        u, slots = self.inner.direction(g, z, t, h.inner, **slots)
        return self.inner.finish(u, y, h.inner), slots


class ScheduleFreeAdamW(Interpolated):
    """AdamW without a schedule: the base rule is AdamW without momentum, β₁ interpolates.

        y = β₁ x + (1 - β₁) z
        v ← β₂ v + (1 - β₂) g²                            g: the gradient at y
        z ← z - γ (g / (√v̂ + ε) + weight_decay · y)       γ: learning_rate, warmed up;  v̂ = v / (1 - β₂ᵗ)
        x ← (1 - c) x + c z                               c = tʳ max(γ)ᵖ / Σ tʳ max(γ)ᵖ

    Where the number of steps is not known beforehand, or a schedule is one choice too many: the winner of AlgoPerf's
    self-tuning track. Start with a learning rate 1 to 10 times AdamW's, a warm-up of some per cent of the steps, and
    β₁ of 0.9, or 0.95 to 0.98 for long runs; add no schedule that falls. `fit` leaves the model at x;
    `kopt.SwapWeights` puts x there for validation and checkpoints, and makes new statistics of batch normalization.

    As the authors' reference. Keras's class of this name reads z after it was changed, so that its `beta_1` does
    nothing; it averages with equal shares, decays y alone, and never evaluates at x.

    Args:
        learning_rate: in [0, inf), or a schedule that does not fall.
        beta_1: the part of x in y, in (0, 1].
        beta_2: decay of the mean square, in [0, 1).
        epsilon: smallest scale of a step's denominator, in [0, inf).
        warmup_steps: steps of linear warm-up, an integer in [0, inf).
        step_power: r, the power of the step in a step's share of the average, in [0, inf).
        rate_power: p, the power of the largest learning rate so far in it, in [0, inf).
        **common: see `kopt.Optimizer`.

    References:
        Defazio et al., *The Road Less Scheduled*, 2024. https://arxiv.org/abs/2405.15682
    """

    cites = ("defazio2024schedulefree",)
    integers = {"warmup_steps": "[0, inf)"}

    def __init__(
        self,
        learning_rate: Scheduled = 0.0025,
        *,
        beta_1: Scheduled = 0.9,
        beta_2: Scheduled = 0.999,
        epsilon: Scheduled = 1e-8,
        warmup_steps: int = 0,
        step_power: Scheduled = 0.0,
        rate_power: Scheduled = 2.0,
        **common: Unpack[Common],
    ):
        super().__init__(learning_rate, **common)
        self.beta_1, self.beta_2, self.epsilon = beta_1, beta_2, epsilon
        self.step_power, self.rate_power = step_power, rate_power
        self.warmup_steps = warmup_steps

    def slots(self, shape):
        return dict(v=shape, y_less_z=shape)

    def base_step(self, g, z, y, t, h, *, v):
        v = ema(v, g * g, h.beta_2)
        return Optimizer.finish(self, g / (ops.sqrt(debias(v, h.beta_2, t)) + h.epsilon), y, h), dict(v=v)


class ScheduleFreeSGD(Interpolated):
    """Gradient descent without a schedule.

        y = β₁ x + (1 - β₁) z
        z ← z - γ (g + weight_decay · y)       g: the gradient at y;  γ: learning_rate, warmed up
        x ← (1 - c) x + c z                    c = tʳ max(γ)ᵖ / Σ tʳ max(γ)ᵖ

    For what SGD with momentum and a falling rate trains well, without the schedule. Start with a learning rate 10 to 50
    times that of SGD with momentum, and a warm-up. See `kopt.ScheduleFreeAdamW` for evaluation.

    Args:
        learning_rate: in [0, inf), or a schedule that does not fall.
        beta_1: the part of x in y, in (0, 1]; the authors' `momentum`.
        warmup_steps: steps of linear warm-up, an integer in [0, inf).
        step_power: r, the power of the step in a step's share of the average, in [0, inf).
        rate_power: p, the power of the largest learning rate so far in it, in [0, inf).
        **common: see `kopt.Optimizer`.

    References:
        Defazio et al., *The Road Less Scheduled*, 2024. https://arxiv.org/abs/2405.15682
    """

    cites = ("defazio2024schedulefree",)
    integers = {"warmup_steps": "[0, inf)"}

    def __init__(
        self,
        learning_rate: Scheduled = 1.0,
        *,
        beta_1: Scheduled = 0.9,
        warmup_steps: int = 0,
        step_power: Scheduled = 0.0,
        rate_power: Scheduled = 2.0,
        **common: Unpack[Common],
    ):
        super().__init__(learning_rate, **common)
        self.beta_1, self.step_power, self.rate_power = beta_1, step_power, rate_power
        self.warmup_steps = warmup_steps

    def slots(self, shape):
        return dict(y_less_z=shape)

    def base_step(self, g, z, y, t, h):
        return Optimizer.finish(self, g, y, h), {}


class ScheduleFreeRAdam(Interpolated):
    """Schedule-Free AdamW that needs no warm-up: the learning rate is RAdam's, rectified for the few squares in v.

        γ = learning_rate · √((ρ - 4)(ρ - 2) ρ∞ / ((ρ∞ - 4)(ρ∞ - 2) ρ))
        ρ = ρ∞ - 2t β₂ᵗ / (1 - β₂ᵗ),  ρ∞ = 2 / (1 - β₂) - 1                the rest as in `kopt.ScheduleFreeAdamW`

    In the first steps, while ρ ≤ 4, RAdam's rectification is not defined: nothing moves then, or, with
    `silent=False`, plain gradients do, whose size may ruin the weights. See `kopt.ScheduleFreeAdamW` for the rest.

    Args:
        learning_rate: in [0, inf), or a schedule that does not fall.
        beta_1: the part of x in y, in (0, 1].
        beta_2: decay of the mean square, in [0, 1).
        epsilon: smallest scale of a step's denominator, in [0, inf).
        step_power: r, the power of the step in a step's share of the average, in [0, inf).
        rate_power: p, the power of the largest learning rate so far in it, in [0, inf).
        silent: whether nothing moves while ρ ≤ 4; the authors' `silent_sgd_phase`.
        **common: see `kopt.Optimizer`.

    References:
        Defazio et al., *The Road Less Scheduled*, 2024. https://arxiv.org/abs/2405.15682
        Liu et al., *On the Variance of the Adaptive Learning Rate and Beyond*, 2020. https://arxiv.org/abs/1908.03265
    """

    cites = ("defazio2024schedulefree", "liu2020variance")

    def __init__(
        self,
        learning_rate: Scheduled = 0.0025,
        *,
        beta_1: Scheduled = 0.9,
        beta_2: Scheduled = 0.999,
        epsilon: Scheduled = 1e-8,
        step_power: Scheduled = 0.0,
        rate_power: Scheduled = 2.0,
        silent=True,
        **common: Unpack[Common],
    ):
        super().__init__(learning_rate, **common)
        self.beta_1, self.beta_2, self.epsilon = beta_1, beta_2, epsilon
        self.step_power, self.rate_power, self.silent = step_power, rate_power, silent

    def slots(self, shape):
        return dict(v=shape, y_less_z=shape)

    def factor(self, t, h):
        rho, rectifier = rectified(h.beta_2, t)
        return ops.where(rho > 4, rectifier, 0.0 if self.silent else 1.0)

    def base_step(self, g, z, y, t, h, *, v):
        v = ema(v, g * g, h.beta_2)
        rho, _ = rectified(h.beta_2, t)
        u = ops.where(rho > 4, g / (ops.sqrt(debias(v, h.beta_2, t)) + h.epsilon), g)
        return Optimizer.finish(self, u, y, h), dict(v=v)
