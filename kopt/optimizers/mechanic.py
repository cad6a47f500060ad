"""Mechanic: a scale for the steps of any optimizer, learned while it trains."""

from keras import ops

from kopt.math import ratio
from kopt.optimizers.base import Scheduled
from kopt.optimizers.wrapper import Wrapper


class Mechanic(Wrapper):
    """Learns the learning rate of any optimizer: the scale of its path, by which the loss would have been lowest.

        Δ: the path of the optimizer inside, without scale        w = w₀ + Σs · Δ
        p ← ⟨g + decay · Σs · ‖g‖ / ‖w‖ · w, -Δ⟩
        r ← β r + clip(p, ±m) s,  m ← max(β m, |p|),  v ← β² v + p²
        s ← (initial_scale / number · m + max(r, 0)) / √v        one for each β of 0.9, 0.99, 0.999, …

    Give the optimizer inside a learning rate of 1, or a schedule whose peak is 1, and let Mechanic find the factor. It
    works for the usual optimizers; not for those whose step has a length of its own (LAMB, LARS). One copy of the
    weights is kept, and six scales.

    As optax's `mechanize`, by the authors, with its clipping of p. Here the displacement Σs · Δ is summed from the
    steps, where optax subtracts a copy of w₀, and a step with a learning rate of zero moves nothing, where a new scale
    would stretch the path behind it.

    Args:
        inner: the optimizer whose steps are scaled.
        decay: λ, pulls the scale down with the weights, in [0, inf); it is no weight decay of the optimizer inside.
        epsilon: added to each denominator, in [0, inf).
        initial_scale: of the steps, for each β, in (0, inf).
        number: of the decays β, an integer in [1, inf).

    References:
        Cutkosky, Defazio and Mehta, *Mechanic: A Learning Rate Tuner*, 2023. https://arxiv.org/abs/2306.00144
    """

    elementwise = True
    cites = ("cutkosky2023mechanic",)
    integers = {"number": "[1, inf)"}
    ranges = {"decay": "[0, inf)", "initial_scale": "(0, inf)"}

    def __init__(
        self,
        inner,
        *,
        decay: Scheduled = 1e-2,
        epsilon: Scheduled = 1e-8,
        initial_scale: float = 1e-6,
        number: int = 6,
    ):
        super().__init__(inner)
        self.decay, self.epsilon, self.initial_scale = decay, epsilon, initial_scale
        self.number = number

    def own_slots(self, shape):
        return dict(moved=shape)

    def shared(self):
        zeros = [0.0] * self.number
        own = dict(scales=[self.initial_scale] * self.number, largest=zeros, squares=zeros, rewards=zeros)
        return super().shared() | own

    def measure(self, g, w, t, h, *, moved, **slots):
        own = dict(gg=ops.sum(g * g), ww=ops.sum(w * w), gm=ops.sum(g * moved), wm=ops.sum(w * moved))
        return super().measure(g, w, t, h, **slots) | own

    def advance(self, t, h, *, gg, ww, gm, wm, **sums):
        beta = 1 - ops.power(0.1, ops.arange(1, self.number + 1, dtype=h.scales.dtype))
        scale = ops.sum(h.scales)
        decay = h.decay * scale * ops.sqrt(gg) / (ops.sqrt(ww) + h.epsilon)
        p = (gm + decay * wm) / (scale + h.epsilon)
        clipped = ops.maximum(ops.minimum(p, h.largest), -h.largest)
        largest = ops.maximum(beta * h.largest, ops.abs(p) + h.epsilon)
        squares = ops.square(beta) * h.squares + ops.square(p)
        rewards = beta * h.rewards + clipped * h.scales
        wealth = self.initial_scale / self.number * largest + ops.maximum(rewards, 0.0)
        own = dict(scales=wealth / (ops.sqrt(squares) + h.epsilon), largest=largest, squares=squares, rewards=rewards)
        return super().advance(t, h, **sums) | own

    def direction(self, g, w, t, h, *, moved, **slots):
        u, slots = self.inner.direction(g, w, t, h.inner, **slots)
        before, scale = ops.sum(h.last.scales), ops.sum(h.scales)
        stretch = scale / (before + h.epsilon) - 1
        u = scale * self.inner.finish(u, w, h.inner) + ratio(stretch * moved, h.learning_rate)
        return u, dict(moved=moved + h.learning_rate * u, **slots)

    def finish(self, u, w, h):
        return u  # the optimizer inside has finished it
