"""K-FAC: the natural gradient, with a Kronecker product for the curvature of each layer."""

from typing import Unpack

from keras import ops

from kopt.math import together
from kopt.optimizers.base import CommonButDecay, Scheduled
from kopt.optimizers.kronecker_factored import KroneckerFactored


class KFAC(KroneckerFactored):
    """Natural gradient by Kronecker factors: each layer's step is undone of what its inputs and its slopes share.

        A ← ema(mean of a aᵀ),   G ← ema(sum of s sᵀ)       a: a layer's inputs and a 1; s: the slopes of its outputs
        π² = (tr A / dim A) / (tr G / dim G)
        d = (A + π √λ I)⁻¹ ∇W (G + √λ / π I)⁻¹
        m ← μ m + min(1, √(κ / (η² ⟨d, ∇W⟩))) d
        u = m

    For networks of dense layers and convolutions that Adam trains slowly: deep and narrow ones, autoencoders, large
    batches. It takes fewer steps, each of which costs more. `kopt.AdaptiveKFAC` finds rate, momentum and damping
    itself, where the batch is the data set. Needs `kopt.Model`.

    A layer's factors come from its taps: those of `Dense`, of `EinsumDense` as attention has them, and of convolutions
    without groups. In every other weight whose name ends in `kernel` (of a recurrent cell, say), x xᵀ and xᵀx / ‖x‖² of
    a random gradient x are its factors, as in tensor normal training; a warning names them. All further weights, those
    of normalization and embeddings, have the diagonal D of the same curvature instead, estimated by squares of random
    gradients: d = g / (D + λ). `optimizer.diagonal` names these.

    Random gradients and slopes are those of labels drawn from what the model predicts ("sampled"), for which the loss
    must be a crossentropy or the mean squared error; s sᵀ is then on average the Gauss-Newton matrix, of which A ⊗ G is
    the layer's part. Those of the given labels ("empirical") suit every loss, are scaled to as many rows as the loss is
    the mean of, and follow the curvature less well.

    Args:
        learning_rate: η, in [0, inf), or a schedule.
        momentum: μ, in [0, 1].
        damping: λ, in (0, inf), in units of the loss: the less, the further it trusts the factors.
        kl_clip: κ, in (0, inf): the largest curvature-weighted square of a step, twice what it may change the model's
            predictions as a divergence.
        beta_2: decay of the factors, in [0, 1); in the first steps they are the mean of all there were.
        weight_decay: in [0, inf), a schedule, or None for no decay.
        fisher: "sampled" or "empirical": of which labels the slopes are.
        sharing: what a kernel's many uses within a row do (positions of a convolution, words of a text): "expand" takes
            each for a row of its own; "reduce" takes the mean of a row's inputs and the sum of its slopes, which is
            cheaper, and right where a mean over positions ends the model.
        factors_every: steps from one estimate of the factors to the next, from 1.
        inverse_every: steps from one inverse to the next, from 1.
        burn_in: in so many first steps both are renewed each time, from 0.
        seed: of the draws, an integer in [0, 2³¹).
        **common: see `kopt.Optimizer`.

    Raises:
        ValueError: at the first step, if no layer of the model has taps, or for "sampled" if the loss draws no labels.

    References:
        Martens and Grosse, *Optimizing Neural Networks with Kronecker-factored Approximate Curvature*, 2015.
        https://arxiv.org/abs/1503.05671
        Grosse and Martens, *A Kronecker-factored Approximate Fisher Matrix for Convolution Layers*, 2016.
        https://arxiv.org/abs/1602.01407
        Eschenhagen et al., *Kronecker-Factored Approximate Curvature for Modern Neural Network Architectures*, 2023.
        https://arxiv.org/abs/2311.00636
        Ren and Goldfarb, *Tensor Normal Training for Deep Learning Models*, 2021. https://arxiv.org/abs/2106.02925
    """

    cites = ("martens2015kfac", "grosse2016kfc", "eschenhagen2023kfac", "ren2021tnt")
    ranges = {"kl_clip": "(0, inf)"}

    def __init__(
        self,
        learning_rate: Scheduled = 0.1,
        *,
        momentum: Scheduled = 0.9,
        damping: Scheduled = 1e-3,
        kl_clip: Scheduled = 1e-3,
        beta_2: Scheduled = 0.95,
        weight_decay: Scheduled | None = None,
        fisher: str = "sampled",
        sharing: str = "expand",
        factors_every: int = 5,
        inverse_every: int = 5,
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
        self.momentum, self.kl_clip = momentum, kl_clip

    def combine(self, oracle, loss, g, d, memory, h):
        """min(1, √(κ / (η² ⟨d, g⟩))) d"""
        square = ops.square(h.learning_rate) * together.dot(d, g)
        scale = ops.sqrt(h.kl_clip / ops.maximum(square, h.kl_clip))
        return [x if x is None else scale * x for x in d], h.momentum, {}
