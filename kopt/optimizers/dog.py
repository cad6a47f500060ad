"""Distance over gradients: steps as long as the weights have moved, over the gradients that it took."""

from typing import Unpack

from keras import ops

from kopt.math import norm, ratio
from kopt.optimizers.base import Common, Optimizer, Scheduled


class DoG(Optimizer):
    """Gradient descent whose step size is the largest distance from the start, over the root of all squared gradients.

        r ← max(r, ‖w - w₀‖),  at first initial_distance · (1 + ‖w₀‖)
        G ← G + ‖g‖²
        w ← w - learning_rate · r / √(G + ε) · g

    No learning rate to tune (leave it at 1) and no schedule to choose. In its place the theory, and the results of
    the paper, need an *average of the iterates*: train with `kopt.PolynomialAverage(kopt.DoG())`. For fine-tuning and
    for convex problems; a deep network from scratch wants an adaptive method.

    Norms are over all weights together. The displacement is summed from the steps, where other libraries subtract a
    copy of w₀: the first steps, a millionth long, survive in float32. Weight decay is added to the gradient before
    all else, as in the authors' code.

    Args:
        learning_rate: a factor of the step, in [0, inf), or a schedule: the paper's c, 1.
        initial_distance: the first r, relative to 1 + ‖w₀‖, in (0, inf); the paper has 1e-4 for networks with batch
            normalization.
        epsilon: added to the sum of squares, in [0, inf).
        **common: see `kopt.Optimizer`.

    References:
        Ivgi, Hinder and Carmon, *DoG is SGD's Best Friend: A Parameter-Free Dynamic Step Size Schedule*, 2023.
        https://arxiv.org/abs/2302.12022
    """

    cites = ("ivgi2023dog",)
    elementwise = True
    ranges = {"initial_distance": "(0, inf)"}

    def __init__(
        self,
        learning_rate: Scheduled = 1.0,
        *,
        initial_distance: float = 1e-6,
        epsilon: Scheduled = 1e-8,
        **common: Unpack[Common],
    ):
        super().__init__(learning_rate, **common)
        self.initial_distance, self.epsilon = initial_distance, epsilon

    def slots(self, shape):
        return dict(moved=shape)

    def shared(self):
        return dict(distance=0.0, squares=0.0)

    def measure(self, g, w, t, h, *, moved):
        g = Optimizer.finish(self, g, w, h)
        return dict(gg=ops.sum(g * g), ww=ops.sum(w * w), moved=ops.sum(moved * moved))

    def advance(self, t, h, *, gg, ww, moved):
        first = self.initial_distance * (1 + ops.sqrt(ww))
        distance = ops.where(h.distance == 0, first, ops.maximum(h.distance, ops.sqrt(moved)))
        return dict(distance=distance, squares=h.squares + gg)

    def rate(self, h):
        return ratio(h.distance, ops.sqrt(h.squares + h.epsilon))

    def direction(self, g, w, t, h, *, moved):
        u = self.rate(h) * Optimizer.finish(self, g, w, h)
        return u, dict(moved=moved + h.learning_rate * u)

    def finish(self, u, w, h):
        return u  # the decay is in it


class DoWG(DoG):
    """DoG whose sum of squared gradients weighs each by the squared distance it was met at.

        r ← max(r, ‖w - w₀‖),  at first initial_distance
        G ← G + r² ‖g‖²
        w ← w - learning_rate · r² / (√G + ε) · g

    Early gradients, met when little was known of the distance, count little: steps are larger than DoG's, and in theory
    the method adapts to smooth and to nonsmooth problems alike. As with DoG, evaluate an average of the iterates.

    The authors' code (and optax) gives ε = 1e-4 also as the first r², here `initial_distance=1e-2`; the paper has no ε.

    Args:
        learning_rate: a factor of the step, in [0, inf), or a schedule: 1 in the paper.
        initial_distance: the first r, in (0, inf).
        epsilon: smallest denominator of a step, in [0, inf).
        **common: see `kopt.Optimizer`.

    References:
        Khaled, Mishchenko and Jin, *DoWG Unleashed: An Efficient Universal Parameter-Free Gradient Descent Method*,
        2023. https://arxiv.org/abs/2305.16284
    """

    cites = ("khaled2023dowg",)

    def __init__(
        self,
        learning_rate: Scheduled = 1.0,
        *,
        initial_distance: float = 1e-2,
        epsilon: Scheduled = 1e-4,
        **common: Unpack[Common],
    ):
        super().__init__(learning_rate, initial_distance=initial_distance, epsilon=epsilon, **common)

    def shared(self):
        return dict(distance=self.initial_distance, squares=0.0)

    def advance(self, t, h, *, gg, moved, **_):
        distance = ops.maximum(h.distance, ops.sqrt(moved))
        return dict(distance=distance, squares=h.squares + ops.square(distance) * gg)

    def rate(self, h):
        return ratio(ops.square(h.distance), ops.sqrt(h.squares) + h.epsilon)


class LDoG(DoG):
    """DoG layer by layer: each weight has a distance and a sum of squared gradients of its own.

        r ← max(r, ‖w - w₀‖),  at first initial_distance · (1 + ‖w₀‖)
        G ← G + ‖g‖²
        w ← w - learning_rate · r / √(G + ε) · g          with the norms of this weight alone

    In the paper ahead of DoG on most networks, and less sure to converge: it is not covered by the theory. Evaluate an
    average of the iterates here too.

    Args:
        learning_rate: a factor of the step, in [0, inf), or a schedule: the paper's c, 1.
        initial_distance: the first r, relative to 1 + ‖w₀‖, in (0, inf); the paper has 1e-4 for networks with batch
            normalization.
        epsilon: added to the sum of squares, in [0, inf).
        **common: see `kopt.Optimizer`.

    References:
        Ivgi, Hinder and Carmon, *DoG is SGD's Best Friend: A Parameter-Free Dynamic Step Size Schedule*, 2023.
        https://arxiv.org/abs/2302.12022
    """

    cites = ("ivgi2023dog",)
    elementwise = False

    def slots(self, shape):
        one = tuple(1 for _ in shape)
        return dict(moved=shape, distance=one, squares=one)

    def shared(self):
        return {}

    def measure(self, g, w, t, h, **_):
        return {}

    def advance(self, t, h):
        return {}

    def direction(self, g, w, t, h, *, moved, distance, squares):
        g = Optimizer.finish(self, g, w, h)
        first = self.initial_distance * (1 + norm(w))
        distance = ops.where(distance == 0, first, ops.maximum(distance, norm(moved)))
        squares = squares + ops.square(norm(g))
        u = ratio(distance, ops.sqrt(squares + h.epsilon)) * g
        return u, dict(moved=moved + h.learning_rate * u, distance=distance, squares=squares)
