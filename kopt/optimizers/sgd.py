"""Gradient descent and momentum."""

from typing import Unpack

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
