"""Momentum whose singular values are all made alike."""

import math
import re
from collections.abc import Iterable
from typing import Unpack

from keras import ops

from kopt.math import as_matrix, ema, newton_schulz
from kopt.optimizers.adam import Adam
from kopt.optimizers.base import Common, Optimizer, Scheduled

AUXILIARY_RATES = {"spectral": 0.015, "adam-rms": 1.0}
"""What each scale's learning rate is multiplied by to be AdamW's."""


class Muon(Optimizer):
    """Momentum, orthogonalized: each matrix moves by the same amount along all of its singular vectors.

        m ← β m + (1 - β) g
        n = β m + (1 - β) g          or, without nesterov, n = m
        u = s · U Vᵀ                 of n = U S Vᵀ, nearly, by Newton-Schulz iterations in the place of the SVD

    For the kernels of hidden layers, in networks of all sizes: about as cheap as Adam, with one moment less, and a
    third to a half fewer steps on language models. A kernel of more than two axes is taken as a matrix of
    (height · width · inputs, outputs). Weights of fewer than two axes, and those whose path matches `auxiliary`, get
    AdamW, with the same schedule of the learning rate: embeddings by default. The authors leave the last layer to
    AdamW too, which nothing in a path tells: name it, as in `auxiliary=("embedding", "head")`.

    The scale s is √max(1, outputs / inputs) as in the authors' code, whose weights are (outputs, inputs) where
    Keras's are (inputs, outputs), or with "adam-rms" 0.2 √max(inputs, outputs), which makes a step as large as Adam's:
    there Adam's learning rate and decay will do. For convolutions both count height · width among the inputs (the
    authors' code leaves it out, optax does as here). Keras's Muon has the second scale, orthogonalizes matrices only,
    and excludes by names of layers. For other optimizers beside Muon see `kopt.Matrices`.

    Args:
        learning_rate: in [0, inf), or a schedule; about 0.02 for "spectral", Adam's for "adam-rms".
        momentum: share of the mean gradient that stays, in [0, 1].
        nesterov: whether to take the gradient's part in the next mean already.
        steps: Newton-Schulz iterations, from 1. Five leave the singular values between about 0.7 and 1.2.
        scale: `"spectral"` or `"adam-rms"`.
        precision: dtype in which to iterate, `"bfloat16"` for speed on accelerators, or None for the weight's (float32
            for half precision).
        auxiliary: regular expressions; a weight whose path one of them matches gets AdamW.
        auxiliary_rate: AdamW's learning rate, in multiples of Muon's, in [0, inf); None for 0.015 with "spectral" and 1
            with "adam-rms".
        beta_1: decay of AdamW's mean gradient, in [0, 1).
        beta_2: decay of AdamW's mean square, in [0, 1).
        epsilon: smallest scale of the denominator of AdamW's step, in [0, inf).
        **common: see `kopt.Optimizer`; `weight_decay` is decoupled, and multiplied by the rate of each.

    References:
        Jordan et al., *Muon: An optimizer for hidden layers in neural networks*, 2024.
        https://kellerjordan.github.io/posts/muon/
        Liu et al., *Muon is Scalable for LLM Training*, 2025. https://arxiv.org/abs/2502.16982
    """

    cites = ("jordan2024muon", "liu2025muon")
    integers = {"steps": "[1, inf)"}
    ranges = {"auxiliary_rate": "[0, inf)"}
    choices = {"scale": tuple(AUXILIARY_RATES), "precision": ("bfloat16",)}
    patterns = ("auxiliary",)

    def __init__(
        self,
        learning_rate: Scheduled = 0.02,
        *,
        momentum: Scheduled = 0.95,
        nesterov: bool = True,
        steps: int = 5,
        scale: str = "spectral",
        precision: str | None = None,
        auxiliary: str | Iterable[str] = ("embedding",),
        auxiliary_rate: float | None = None,
        beta_1: Scheduled = 0.9,
        beta_2: Scheduled = 0.95,
        epsilon: Scheduled = 1e-10,
        **common: Unpack[Common],
    ):
        super().__init__(learning_rate, **common)
        self.momentum, self.nesterov = momentum, nesterov
        self.steps = steps
        self.scale, self.precision = scale, precision
        self.auxiliary = auxiliary
        self.auxiliary_rate = auxiliary_rate
        self.beta_1, self.beta_2, self.epsilon = beta_1, beta_2, epsilon

    def routes(self):
        return {"": self, "auxiliary": self._view(_Auxiliary)}

    def route(self, path, shape):
        excluded = len(shape) < 2 or any(re.search(pattern, path) for pattern in self.auxiliary)
        return "auxiliary" if excluded else ""

    def slots(self, shape):
        return dict(m=shape)

    def direction(self, g, w, t, h, *, m):
        inputs, outputs = as_matrix(g.shape[1:])
        m = ema(m, g, h.momentum)
        n = ema(m, g, h.momentum) if self.nesterov else m
        n = ops.cast(ops.reshape(n, (-1, inputs, outputs)), self.precision or g.dtype)
        u = ops.reshape(ops.cast(newton_schulz(n, self.steps), g.dtype), g.shape)
        if self.scale == "spectral":
            return math.sqrt(max(1, outputs / inputs)) * u, dict(m=m)
        return 0.2 * math.sqrt(max(inputs, outputs)) * u, dict(m=m)


class _Auxiliary(Adam):
    """What Muon does with weights that are no matrices: AdamW, with Muon's hyperparameters."""

    def finish(self, u, w, h):
        rate = AUXILIARY_RATES[self.scale] if self.auxiliary_rate is None else self.auxiliary_rate
        return rate * super().finish(u, w, h)
