"""A second moment in factors: the means of its rows and of its columns in the place of all entries."""

from typing import Unpack

from keras import ops

from kopt.math import ema, mean, rms
from kopt.optimizers.base import Common, Optimizer, Scheduled


def factored_axes(shape, smallest=1):
    """The two longest axes of a shape, counted from its end; None where there are none of at least `smallest`."""
    longest = sorted(range(-len(shape), 0), key=lambda axis: shape[axis])[-2:]
    return tuple(longest) if len(longest) == 2 and shape[longest[0]] >= smallest else None


def factors(shape, axes):
    """The shapes of the means over the second and over the first of two axes."""
    ndim = len(shape)
    return tuple(tuple(1 if i - ndim == axis else n for i, n in enumerate(shape)) for axis in reversed(axes))


def ema_of_factors(row, column, x, beta, axes):
    """beta * (row, column) + (1 - beta) * means of x over one axis and over the other"""
    one, other = axes
    row = ema(row, mean(x, (other,)), beta)
    return row, ema(column, mean(x, (one,)), beta)


def rsqrt_of_factors(row, column, axes):
    """(row column / mean(row))^-1/2, each factor by itself: their product may be too small for a float32"""
    return ops.rsqrt(row / mean(row, (axes[0],))) * ops.rsqrt(column)


def clip_rms(u, threshold):
    """u / max(1, RMS(u) / threshold)"""
    return u / ops.maximum(1.0, rms(u) / threshold)


class Adafactor(Optimizer):
    """Adam's second moment in two factors and no first one: state of rows + columns in the place of 2 rows · columns.

        β = min(beta_2_cap, 1 - t^-decay_rate),   x = g² + ε₁
        R ← β R + (1 - β) mean of x over columns,   C ← β C + (1 - β) mean of x over rows
        u = g / √(R C / mean(R)),   u ← u / max(1, RMS(u) / clip_threshold)
        w ← w - ρ · max(ε₂, RMS(w)) · u        ρ = min(learning_rate, 1/√t)

    For networks whose state does not fit beside their weights. Steps are relative to the size of each weight tensor,
    so learning rates are not Adam's: 1e-2 by default. Weights without two axes of `min_dim_size_to_factor` keep the
    full second moment; of more than two axes the two longest are factored, and the others are taken one by one.

    Two forms are in use. The default is the paper's, which trained T5. With a rate of your own, as for fine-tuning and
    in *Scaling Vision Transformers*:
    `Adafactor(1e-3, relative_step=False, scale_parameter=False, momentum=0.9, beta_2_cap=0.999)`.

    The momentum averages directions, scaled by RMS(w) but not by the rate (optax's order; transformers averages steps).
    The decay is multiplied by ρ alone; in transformers by max(ε₂, RMS(w)) too, in optax by nothing.

    Args:
        learning_rate: in [0, inf), or a schedule; with `relative_step` the largest ρ.
        beta_2_cap: largest decay of the second moment, in [0, 1]; 1 for the paper's, which has no limit.
        decay_rate: how fast that decay approaches 1, in [0, inf).
        clip_threshold: largest root mean square of a tensor's direction, in (0, inf).
        momentum: decay of the mean direction, in [0, 1]; 0 keeps none and costs no memory.
        epsilon_1: added to each squared gradient, in [0, inf).
        epsilon_2: smallest size of a weight tensor, in [0, inf), so that zeros can grow.
        relative_step: whether ρ falls as 1/√t; otherwise it is the learning rate.
        scale_parameter: whether to multiply by max(ε₂, RMS(w)).
        warmup_init: whether ρ begins at learning_rate / 10⁴ and grows for 10⁴ steps; needs `relative_step`.
        min_dim_size_to_factor: an integer in [1, inf).
        **common: see `kopt.Optimizer`.

    Raises:
        ValueError: `warmup_init` without `relative_step`.

    References:
        Shazeer and Stern, *Adafactor: Adaptive Learning Rates with Sublinear Memory Cost*, 2018.
        https://arxiv.org/abs/1804.04235
        Zhai et al., *Scaling Vision Transformers*, 2022. https://arxiv.org/abs/2106.04560
    """

    cites = ("shazeer2018adafactor", "zhai2022scaling")
    ranges = {
        "beta_2_cap": "[0, 1]",
        "decay_rate": "[0, inf)",
        "clip_threshold": "(0, inf)",
        "epsilon_1": "[0, inf)",
        "epsilon_2": "[0, inf)",
    }
    integers = {"min_dim_size_to_factor": "[1, inf)"}

    def __init__(
        self,
        learning_rate: Scheduled = 1e-2,
        *,
        beta_2_cap: Scheduled = 1.0,
        decay_rate: Scheduled = 0.8,
        clip_threshold: Scheduled = 1.0,
        momentum: Scheduled = 0.0,
        epsilon_1: Scheduled = 1e-30,
        epsilon_2: Scheduled = 1e-3,
        relative_step=True,
        scale_parameter=True,
        warmup_init=False,
        min_dim_size_to_factor=128,
        **common: Unpack[Common],
    ):
        super().__init__(learning_rate, **common)
        self.beta_2_cap, self.decay_rate, self.clip_threshold = beta_2_cap, decay_rate, clip_threshold
        self.momentum, self.epsilon_1, self.epsilon_2 = momentum, epsilon_1, epsilon_2
        self.relative_step, self.scale_parameter, self.warmup_init = relative_step, scale_parameter, warmup_init
        self.min_dim_size_to_factor = min_dim_size_to_factor
        if warmup_init and not relative_step:
            raise ValueError(
                "Adafactor: warmup_init must be False where relative_step is False, got True. "
                "Give a schedule that warms up as the learning rate."
            )

    def slots(self, shape):
        kept = {} if self.momentum == 0 else dict(m=shape)
        if axes := factored_axes(shape, self.min_dim_size_to_factor):
            row, column = factors(shape, axes)
            return kept | dict(row=row, column=column)
        return kept | dict(v=shape)

    def direction(self, g, w, t, h, *, m=None, v=None, row=None, column=None):
        beta = ops.minimum(h.beta_2_cap, 1 - ops.power(t, -h.decay_rate))
        x = g * g + h.epsilon_1
        if v is None:
            axes = factored_axes(g.shape[1:])
            row, column = ema_of_factors(row, column, x, beta, axes)
            u, kept = g * rsqrt_of_factors(row, column, axes), dict(row=row, column=column)
        else:
            v = ema(v, x, beta)
            u, kept = g * ops.rsqrt(v), dict(v=v)
        u = clip_rms(u, h.clip_threshold)
        if self.scale_parameter:
            u = u * ops.maximum(h.epsilon_2, rms(w))
        if m is None:
            return u, kept
        m = ema(m, u, h.momentum)
        return m, kept | dict(m=m)

    def shared(self):
        return dict(relative=1.0) if self.relative_step else {}

    def advance(self, t, h):
        """ρ / learning_rate, with ρ = min(learning_rate, 1/√t), or min(learning_rate · t / 10⁴, 1/√t) to warm up"""
        if not self.relative_step:
            return {}
        longest = 1e4 / t if self.warmup_init else 1.0
        return dict(relative=1 / ops.maximum(longest, h.learning_rate * ops.sqrt(t)))

    def finish(self, u, w, h):
        u = super().finish(u, w, h)
        return h.relative * u if self.relative_step else u


class CAME(Optimizer):
    """Adafactor with momentum that trusts itself less where its direction has been unstable.

        u = g / √(R C / mean(R)),  R, C of g² + ε₁ as in Adafactor, at a constant β₂
        u ← u / max(1, RMS(u) / clip_threshold)
        m ← β₁ m + (1 - β₁) u
        u = m / √(R' C' / mean(R')),  R', C' of (u - m)² + ε₂ in the same way, at β₃

    For large models in the place of Adam: one full array instead of two. No bias is corrected, so the first steps are
    long: warm up. Weights of one axis keep the full second moment and no instability: their direction is m. As in
    Adafactor the two longest axes are factored; the authors' code takes the last two, which for a convolution in
    PyTorch are the window's.

    Args:
        learning_rate: in [0, inf), or a schedule; the authors' for language models is the default.
        beta_1: decay of the mean direction, in [0, 1).
        beta_2: decay of the second moment, in [0, 1).
        beta_3: decay of the instability, in [0, 1).
        clip_threshold: largest root mean square of a tensor's direction, in (0, inf).
        epsilon_1: added to each squared gradient, in [0, inf).
        epsilon_2: added to each squared difference, in [0, inf).
        **common: see `kopt.Optimizer`.

    References:
        Luo et al., *CAME: Confidence-guided Adaptive Memory Efficient Optimization*, 2023.
        https://arxiv.org/abs/2307.02047
    """

    cites = ("luo2023came",)
    ranges = {"beta_3": "[0, 1)", "clip_threshold": "(0, inf)", "epsilon_1": "[0, inf)", "epsilon_2": "[0, inf)"}

    def __init__(
        self,
        learning_rate: Scheduled = 2e-4,
        *,
        beta_1: Scheduled = 0.9,
        beta_2: Scheduled = 0.999,
        beta_3: Scheduled = 0.9999,
        clip_threshold: Scheduled = 1.0,
        epsilon_1: Scheduled = 1e-30,
        epsilon_2: Scheduled = 1e-16,
        **common: Unpack[Common],
    ):
        super().__init__(learning_rate, **common)
        self.beta_1, self.beta_2, self.beta_3 = beta_1, beta_2, beta_3
        self.clip_threshold, self.epsilon_1, self.epsilon_2 = clip_threshold, epsilon_1, epsilon_2

    def slots(self, shape):
        if (axes := factored_axes(shape)) is None:
            return dict(m=shape, v=shape)
        row, column = factors(shape, axes)
        return dict(m=shape, row=row, column=column, unstable_row=row, unstable_column=column)

    def direction(self, g, w, t, h, *, m, v=None, row=None, column=None, unstable_row=None, unstable_column=None):
        x = g * g + h.epsilon_1
        if v is not None:
            v = ema(v, x, h.beta_2)
            m = ema(m, clip_rms(g * ops.rsqrt(v), h.clip_threshold), h.beta_1)
            return m, dict(m=m, v=v)
        axes = factored_axes(g.shape[1:])
        row, column = ema_of_factors(row, column, x, h.beta_2, axes)
        u = clip_rms(g * rsqrt_of_factors(row, column, axes), h.clip_threshold)
        m = ema(m, u, h.beta_1)
        unstable = ops.square(u - m) + h.epsilon_2
        unstable_row, unstable_column = ema_of_factors(unstable_row, unstable_column, unstable, h.beta_3, axes)
        slots = dict(m=m, row=row, column=column, unstable_row=unstable_row, unstable_column=unstable_column)
        return m * rsqrt_of_factors(unstable_row, unstable_column, axes), slots
