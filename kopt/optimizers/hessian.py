"""Adaptive methods that divide by the diagonal of the Hessian, as products with random signs estimate it."""

from typing import Unpack

from keras import ops

from kopt._backend import uniform
from kopt.math import debias, ema, mean, power
from kopt.optimizers.base import Common, CommonButDecay, Optimizer, Scheduled


def signs(shape, seed, t, dtype):
    """1 or -1, each as likely"""
    return ops.cast(2 * ops.floor(2 * uniform(shape, seed, t, "float32")) - 1, dtype)  # the same for every dtype


class Diagonal(Optimizer):
    """What these methods have in common: at every few steps an estimate of the diagonal is seen."""

    looks = True
    sees = ("diagonal",)
    integers = {"every": "[1, inf)", "seed": f"[0, {2**30})"}

    every: int
    seed: int

    def estimate(self, hvp, weights, t):
        """z ⊙ Hz for random signs z, on average the diagonal of H (Hutchinson): a tensor for each weight"""
        z = [signs(w.shape, self.seed + number, t, w.dtype) for number, w in enumerate(weights)]
        return [x * product for x, product in zip(z, hvp(z), strict=True)]

    def whole(self, oracle, found):
        """The estimate of all replicas, from what each has found."""
        return oracle.sum(found)

    def due(self, t):
        """Whether the step sees an estimate."""
        return ops.equal((ops.cast(t, "int32") - 1) % self.every, 0)

    def asked(self, oracle):
        """The gradients, and what `estimate` works with."""
        return oracle.gradients_and_hvp() if self.every == 1 else (oracle.gradients(), oracle.hvp)

    def look(self, oracle):
        t, weights, (grads, ask) = self._taken() + 1, oracle.weights, self.asked(oracle)
        if self.every == 1:
            found = self.estimate(ask, weights, t)
        else:
            nothing = [ops.zeros_like(w) for w in weights]
            found = ops.cond(self.due(t), lambda: self.estimate(ask, weights, t), lambda: nothing)
        return grads, dict(diagonal=self.whole(oracle, found))


class AdaHessian(Diagonal):
    """Adam whose denominator is the curvature, in the place of the gradient's size.

        D = |z ⊙ Hz|,  z random signs, averaged over the inputs of a unit, or over the pixels of a kernel
        v ← β₂ v + (1 - β₂) D²                                     at every `every` steps
        u = m̂ / (v̂^(power / 2) + ε)

    A step that knows how sharply the loss bends along each weight: well-conditioned where Adam is not, and less
    sensitive to the learning rate. A step costs about 2.5 gradients, less where the curvature is looked at only at
    every few steps. Averages are over the first axis of a matrix, and over all but the last two axes of a kernel: one
    number for each unit, or pair of channels.

    Signs depend on `seed` and the step alone, the same on all replicas. Works in `kopt.Model`, and in a plain
    `keras.Model` that is not run eagerly and has no layers that normalize. v̂ is corrected for the number of times that
    the curvature was looked at, so that `every` changes what a step costs and not how long the first ones are.

    Args:
        learning_rate: in [0, inf), or a schedule.
        beta_1: decay of the mean gradient, in [0, 1).
        beta_2: decay of the mean squared curvature, in [0, 1).
        epsilon: smallest scale of a step's denominator, in [0, inf).
        power: of the curvature in the denominator, in [0, 1]: 1 is Newton's, 0 none.
        spatial_average: whether the curvature is averaged.
        every: steps from one look at the curvature to the next, from 1.
        seed: of the random signs, an integer in [0, 2**30).
        **common: see `kopt.Optimizer`.

    References:
        Yao et al., *ADAHESSIAN: An Adaptive Second Order Optimizer for Machine Learning*, 2021.
        https://arxiv.org/abs/2006.00719
    """

    cites = ("yao2021adahessian",)
    ranges = {"power": "[0, 1]"}

    def __init__(
        self,
        learning_rate: Scheduled = 0.15,
        *,
        beta_1: Scheduled = 0.9,
        beta_2: Scheduled = 0.999,
        epsilon: Scheduled = 1e-4,
        power: Scheduled = 1.0,
        spatial_average: bool = True,
        every: int = 1,
        seed: int = 0,
        **common: Unpack[Common],
    ):
        super().__init__(learning_rate, **common)
        self.beta_1, self.beta_2, self.epsilon, self.power = beta_1, beta_2, epsilon, power
        self.spatial_average, self.every, self.seed = spatial_average, every, seed

    @property
    def _is_elementwise(self):
        return not self.spatial_average

    def averaged(self, rank):
        """How many of the first axes of a weight the curvature is averaged over."""
        return 0 if not self.spatial_average or rank < 2 else max(1, rank - 2)

    def slots(self, shape):
        first = self.averaged(len(shape))
        return dict(m=shape, v=(1,) * first + tuple(shape[first:]))

    def direction(self, g, w, t, h, *, m, v, diagonal):
        d = ops.abs(diagonal)
        if first := self.averaged(len(w.shape) - 1):  # the first axis counts weights
            d = mean(d, tuple(range(1, first + 1)))
        m, v = ema(m, g, h.beta_1), ops.where(self.due(t), ema(v, d * d, h.beta_2), v)
        looks = ops.floor((t - 1) / self.every) + 1
        size = power(debias(v, h.beta_2, looks), h.power / 2)
        return debias(m, h.beta_1, t) / (size + h.epsilon), dict(m=m, v=v)


class SophiaH(Diagonal):
    """Momentum over the curvature, each entry clipped: Newton's step where it can be trusted, else Lion's.

        d ← β₂ d + (1 - β₂) z ⊙ Hz,  z random signs                 at every `every` steps
        m ← β₁ m + (1 - β₁) g
        u = clip(m / max(γ d, ε), ±1)

    For the pretraining of language models, where a look at the curvature at every tenth step costs little. Where the
    curvature is small or negative the step is the sign of m. Set γ so that a tenth to a half of the entries are not
    clipped; the learning rate slightly smaller than AdamW's, and the decay twice as large. As in the paper, m and d
    start at zero and no bias is corrected, which keeps the first steps at the sign of m; and as in the authors' code
    the learning rate is that of the clipped step (the paper's, times γ).

    Signs depend on `seed` and the step alone, the same on all replicas. Works in `kopt.Model`, and in a plain
    `keras.Model` that is not run eagerly and has no layers that normalize.

    Args:
        learning_rate: in [0, inf), or a schedule.
        beta_1: decay of the mean gradient, in [0, 1).
        beta_2: decay of the mean curvature, in [0, 1).
        gamma: factor of the curvature, in (0, inf); larger ones clip fewer entries.
        epsilon: smallest denominator, in (0, inf).
        every: steps from one look at the curvature to the next, from 1.
        seed: of the random signs, an integer in [0, 2**30).
        weight_decay: in [0, inf), a schedule, or None for no decay.
        **common: see `kopt.Optimizer`.

    References:
        Liu, Li, Hall, Liang and Ma, *Sophia: A Scalable Stochastic Second-order Optimizer for Language Model
        Pre-training*, 2024. https://arxiv.org/abs/2305.14342
    """

    cites = ("liu2024sophia",)
    elementwise = True
    ranges = {"gamma": "(0, inf)", "epsilon": "(0, inf)"}

    def __init__(
        self,
        learning_rate: Scheduled = 2e-4,
        *,
        beta_1: Scheduled = 0.965,
        beta_2: Scheduled = 0.99,
        gamma: Scheduled = 0.01,
        epsilon: Scheduled = 1e-12,
        every: int = 10,
        seed: int = 0,
        weight_decay: Scheduled | None = 0.1,
        **common: Unpack[CommonButDecay],
    ):
        super().__init__(learning_rate, weight_decay=weight_decay, **common)
        self.beta_1, self.beta_2, self.gamma, self.epsilon = beta_1, beta_2, gamma, epsilon
        self.every, self.seed = every, seed

    def slots(self, shape):
        return dict(m=shape, d=shape)

    def direction(self, g, w, t, h, *, m, d, diagonal):
        m, d = ema(m, g, h.beta_1), ops.where(self.due(t), ema(d, diagonal, h.beta_2), d)
        return ops.clip(m / ops.maximum(h.gamma * d, h.epsilon), -1, 1), dict(m=m, d=d)


class SophiaG(SophiaH):
    """Sophia with the diagonal of the Gauss-Newton matrix, from gradients at labels that the model draws itself.

        d ← β₂ d + (1 - β₂) n ĝ²                                   at every `every` steps
        m ← β₁ m + (1 - β₁) g
        u = clip(m / max(γ d, ε), ±1)

    ĝ is the gradient of the mean loss of n rows with labels drawn from the model's predictions
    (Gauss-Newton-Bartlett). A look costs a gradient, no product with the Hessian, and d is never negative. For
    crossentropies of logits, or of what a softmax or sigmoid makes, and the mean squared error; needs `kopt.Model`, or
    an estimator. Rows count by their weights, and tokens as rows, so that the authors' factor for the size of the
    batch is not needed.

    Args:
        learning_rate: in [0, inf), or a schedule.
        beta_1: decay of the mean gradient, in [0, 1).
        beta_2: decay of the mean curvature, in [0, 1).
        gamma: factor of the curvature, in (0, inf); larger ones clip fewer entries.
        epsilon: smallest denominator, in (0, inf).
        every: steps from one look at the curvature to the next, from 1.
        seed: of the labels, an integer in [0, 2**30).
        weight_decay: in [0, inf), a schedule, or None for no decay.
        **common: see `kopt.Optimizer`.

    References:
        Liu, Li, Hall, Liang and Ma, *Sophia: A Scalable Stochastic Second-order Optimizer for Language Model
        Pre-training*, 2024. https://arxiv.org/abs/2305.14342
    """

    cites = ("liu2024sophia",)

    def __init__(
        self,
        learning_rate: Scheduled = 2e-4,
        *,
        beta_1: Scheduled = 0.965,
        beta_2: Scheduled = 0.99,
        gamma: Scheduled = 0.05,
        epsilon: Scheduled = 1e-12,
        every: int = 10,
        seed: int = 0,
        weight_decay: Scheduled | None = 0.1,
        **common: Unpack[CommonButDecay],
    ):
        super().__init__(
            learning_rate,
            beta_1=beta_1,
            beta_2=beta_2,
            gamma=gamma,
            epsilon=epsilon,
            every=every,
            seed=seed,
            weight_decay=weight_decay,
            **common,
        )

    def asked(self, oracle):
        return oracle.gradients(), oracle.sampled_gradients

    def estimate(self, sampled_gradients, weights, t):
        return sampled_gradients(self.seed, t)

    def whole(self, oracle, found):
        return [ops.square(x) for x in oracle.sum(found)]
