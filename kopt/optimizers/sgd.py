"""Gradient descent and momentum."""

from typing import Unpack

from kopt.math import ema
from kopt.optimizers.base import Common, Optimizer, Scheduled


class SGD(Optimizer):
    """Gradient descent, with the heavy ball's momentum or Nesterov's where asked.

        m ← momentum · m + g
        u = m                        or, with nesterov, u = g + momentum · m

    Without momentum u = g and nothing is kept. The velocity holds gradients, not steps (PyTorch's and optax's
    reading): a new learning rate acts on all of it at once. Keras's velocity holds steps, as Polyak's does; at a
    constant learning rate the two are the same.

    Args:
        learning_rate: in [0, inf), or a schedule.
        momentum: share of the velocity that stays, in [0, 1].
        nesterov: whether to take the gradient's part in the next velocity already.
        **common: see `kopt.Optimizer`; `weight_decay` is decoupled, which makes this SGDW.

    References:
        Polyak, *Some methods of speeding up the convergence of iteration methods*, 1964.
        Sutskever et al., *On the importance of initialization and momentum in deep learning*, 2013.
        https://proceedings.mlr.press/v28/sutskever13.html
    """

    cites = ("polyak1964some", "sutskever2013importance")
    elementwise = True

    def __init__(
        self, learning_rate: Scheduled = 0.01, *, momentum: Scheduled = 0.0, nesterov=False, **common: Unpack[Common]
    ):
        super().__init__(learning_rate, **common)
        self.momentum, self.nesterov = momentum, nesterov

    def slots(self, shape):
        return {} if self.momentum == 0 else dict(m=shape)

    def direction(self, g, w, t, h, m=None):
        if m is None:
            return g, {}
        m = h.momentum * m + g
        return g + h.momentum * m if self.nesterov else m, dict(m=m)


class QHM(Optimizer):
    """Quasi-hyperbolic momentum: a weighted mean of the gradient and of its running mean.

        m ← momentum · m + (1 - momentum) g
        u = (1 - ν) g + ν m

    One rule that holds gradient descent (ν = 0), momentum (ν = 1), Nesterov's (ν = momentum) and more. The defaults
    are the authors' advice: a long memory that has no more than its share of the step. m is a mean, not a sum: from
    `SGD(learning_rate, momentum=β)` come with a rate of learning_rate / (1 - β), 1.0 for 0.1 at β = 0.9.

    Args:
        learning_rate: in [0, inf), or a schedule.
        momentum: decay of the mean gradient, in [0, 1].
        nu: share of the mean gradient in the step, in [0, 1].
        **common: see `kopt.Optimizer`.

    References:
        Ma and Yarats, *Quasi-hyperbolic momentum and Adam for deep learning*, 2019. https://arxiv.org/abs/1810.06801
    """

    cites = ("ma2019quasi",)
    elementwise = True
    ranges = {"nu": "[0, 1]"}

    def __init__(
        self,
        learning_rate: Scheduled = 0.1,
        *,
        momentum: Scheduled = 0.999,
        nu: Scheduled = 0.7,
        **common: Unpack[Common],
    ):
        super().__init__(learning_rate, **common)
        self.momentum, self.nu = momentum, nu

    def slots(self, shape):
        return dict(m=shape)

    def direction(self, g, w, t, h, *, m):
        m = ema(m, g, h.momentum)
        return ema(m, g, h.nu), dict(m=m)


class AggMo(Optimizer):
    """Aggregated momentum: the mean of several velocities, from none to heavy.

        mᵢ ← βᵢ mᵢ + g,  βᵢ = 1 - ratioⁱ        for i = 0, ..., velocities - 1
        u = mean of all mᵢ

    The light velocities damp the oscillations of the heavy ones: momenta of 0.99 and more become usable. By default
    β is 0, 0.9 and 0.99. For ill-conditioned problems where a tuned SGD with momentum oscillates.

    Args:
        learning_rate: in [0, inf), or a schedule; one that suits `SGD(momentum=0.9)` suits here.
        velocities: how many, from 1.
        ratio: of one velocity's 1 - β to that of the one before, in (0, 1).
        **common: see `kopt.Optimizer`.

    Raises:
        ValueError: `velocities` is below 1.

    References:
        Lucas et al., *Aggregated Momentum: Stability Through Passive Damping*, 2019. https://arxiv.org/abs/1804.00325
    """

    cites = ("lucas2019aggregated",)
    integers = {"velocities": "[1, inf)"}
    elementwise = True
    ranges = {"ratio": "(0, 1)"}

    def __init__(
        self,
        learning_rate: Scheduled = 0.01,
        *,
        velocities: int = 3,
        ratio: Scheduled = 0.1,
        **common: Unpack[Common],
    ):
        super().__init__(learning_rate, **common)
        self.velocities = velocities
        self.ratio = ratio

    def slots(self, shape):
        return {f"m{i}": shape for i in range(1, self.velocities)}  # m₀ is g

    def direction(self, g, w, t, h, **slots):
        new = {f"m{i}": (1 - h.ratio**i) * slots[f"m{i}"] + g for i in range(1, self.velocities)}
        return (g + sum(new.values())) / self.velocities, new
