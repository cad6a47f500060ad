"""K-FAC for full batches: rate, momentum and damping from a quadratic model of the loss."""

import math
from typing import Unpack

from keras import ops

from kopt.math import together
from kopt.math.quadratic import adapted_log, best_pair
from kopt.optimizers.base import CommonButDecay, Scheduled
from kopt.optimizers.kronecker_factored import KroneckerFactored


class AdaptiveKFAC(KroneckerFactored):
    """K-FAC that finds its learning rate, momentum and damping itself: for full batches, or very large ones.

        d: the direction of `kopt.KFAC`;   m: the last step
        α, μ: those that minimize M = ½ uᵀ (C + λ I) u - ⟨u, ∇L⟩ of u = α d + μ m, with the Gauss-Newton matrix C
        u = m = α d + μ m
        every `adapt_every` steps T, with ρ = (L(w) - L(w - η u)) / -M of λ = 0:
        λ ← λ (19/20)ᵀ where ρ > 3/4,   λ / (19/20)ᵀ where ρ < 1/4

    Two products with the Gauss-Newton matrix, of about 1.4 gradients each, come on top of `kopt.KFAC`'s step. On
    mini-batches the model's minimum is that of the batch, and noise makes steps too long: use `kopt.KFAC` there.

    As in kfac-jax ρ's model has no damping, one λ serves the factors and the model, and no step is taken back.
    Penalties (`kernel_regularizer`) are part of C; in the factors they do not count, where the paper adds them to λ.

    Args:
        learning_rate: η, in [0, inf), or a schedule: what the step that the model asks for is multiplied by.
        damping: λ at the start, in (0, inf), in units of the loss. Later values are multiples of it.
        beta_2: decay of the factors, in [0, 1); in the first steps they are the mean of all there were.
        weight_decay: in [0, inf), a schedule, or None for no decay.
        fisher: "sampled" or "empirical": see `kopt.KFAC`.
        sharing: "expand" or "reduce": see `kopt.KFAC`.
        factors_every: steps from one estimate of the factors to the next, from 1.
        inverse_every: steps from one inverse to the next, from 1.
        adapt_every: T, from 1.
        burn_in: in so many first steps factors and inverses are renewed each time, from 0.
        seed: of the draws, an integer in [0, 2³¹).
        **common: see `kopt.Optimizer`.

    Raises:
        ValueError: as `kopt.KFAC`.

    References:
        Martens and Grosse, *Optimizing Neural Networks with Kronecker-factored Approximate Curvature*, 2015, sections
        6.4, 6.5 and 7. https://arxiv.org/abs/1503.05671
    """

    cites = ("martens2015kfac",)
    integers = {"adapt_every": "[1, inf)"}

    def __init__(
        self,
        learning_rate: Scheduled = 1.0,
        *,
        damping: Scheduled = 1e-3,
        beta_2: Scheduled = 0.95,
        weight_decay: Scheduled | None = None,
        fisher: str = "sampled",
        sharing: str = "expand",
        factors_every: int = 1,
        inverse_every: int = 5,
        adapt_every: int = 5,
        burn_in: int = 10,
        seed: int = 0,
        **common: Unpack[CommonButDecay],
    ):
        super().__init__(
            learning_rate,
            damping=damping,
            beta_2=beta_2,
            weight_decay=weight_decay,
            fisher=fisher,
            sharing=sharing,
            factors_every=factors_every,
            inverse_every=inverse_every,
            burn_in=burn_in,
            seed=seed,
            **common,
        )
        self.adapt_every = adapt_every

    def memory(self):
        return super().memory() | {"log_scale": ()}

    def damping_now(self, memory, h):
        return h.damping * ops.exp(memory["log_scale"])

    def combine(self, oracle, loss, g, d, memory, h):
        damping, last = self.damping_now(memory, h), [ops.cast(x, self._wide) for x in self._held("m")]
        plane = Plane(oracle, g, d, last)
        alpha, mu = plane.minimizer(damping)
        d = [x if x is None else alpha * x for x in d]
        to = together.plus(oracle.weights, -h.learning_rate, together.plus(d, mu, last))
        due = (self._taken() + 1) % self.adapt_every == 0
        before, after = oracle.sum([loss, ops.cond(due, lambda: oracle.at(to).loss(), lambda: loss)])
        promised = plane.decrease(h.learning_rate * alpha, h.learning_rate * mu)
        ratio = ops.cast(before - after, self._wide) / ops.where(promised == 0, 1, promised)
        ratio = ops.where(ops.logical_and(due, promised != 0), ratio, 0.5)
        scale = adapted_log(memory["log_scale"], ratio, self.adapt_every * math.log(20 / 19))
        return d, mu, {"log_scale": scale}


class Plane:
    """The quadratic model of a loss along two directions, downhill: its curvature and its slope there.

    Args:
        oracle: what knows the Gauss-Newton matrix.
        g: the gradient.
        *directions: two, each with a tensor for each weight, or None where there is no gradient.
    """

    def __init__(self, oracle, g, *directions):
        self.slope = [together.dot(v, g) for v in directions]
        vectors = [_whole(v, oracle.weights) for v in directions]
        (first, last), (bent, bent_last) = vectors, [oracle.gnvp(v) for v in vectors]
        self.curvature = oracle.sum(
            [together.dot(*pair) for pair in ((first, bent), (first, bent_last), (last, bent_last))]
        )
        self.lengths = [together.dot(*pair) for pair in ((first, first), (first, last), (last, last))]

    def minimizer(self, damping):
        """How far to go along each, where damping · I is added to the curvature."""
        return best_pair([c + damping * x for c, x in zip(self.curvature, self.lengths, strict=True)], self.slope)

    def decrease(self, first, second):
        """By how much the loss falls, so far along each, without damping."""
        k11, k12, k22 = self.curvature
        s1, s2 = self.slope
        return first * s1 + second * s2 - (first**2 * k11 + 2 * first * second * k12 + second**2 * k22) / 2


def _whole(vectors, weights):
    """A tensor for each weight, in its type: zeros in the place of None."""
    pairs = zip(vectors, weights, strict=True)
    return [ops.zeros_like(w) if x is None else ops.cast(x, w.dtype) for x, w in pairs]
