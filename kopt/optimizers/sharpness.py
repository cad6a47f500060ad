"""Sharpness-aware minimization: steps along the gradient of the worst nearby weights."""

from typing import Any

from keras import ops

from kopt.math import together
from kopt.optimizers.base import Optimizer, Scheduled
from kopt.optimizers.wrapper import Wrapper


class SAM(Wrapper):
    """Sharpness-aware minimization: steps any optimizer along the gradient at the worst weights nearby.

        ε = ρ g / ‖g‖
        u = inner(∇L(w + ε))

    For better generalization, most of all with few or wrongly labelled data, at twice the cost of a step. Norms are
    over all weights together. Both gradients are of the same batch, with the same dropout masks, and the statistics
    of batch normalization move at w alone. Needs `kopt.Model`, or an estimator.

    Args:
        inner: the optimizer that steps, most often `kopt.SGD` with momentum, or `kopt.AdamW`.
        rho: how far to climb, in [0, inf): 0.05 for convolutional networks, up to 0.5 for transformers.
        synchronized: whether replicas climb together, along the gradient of the whole batch. If not, each climbs along
            that of its own rows, as in the paper's experiments ("m-sharpness"): smaller parts regularize more.

    References:
        Foret, Kleiner, Mobahi and Neyshabur, *Sharpness-Aware Minimization for Efficiently Improving Generalization*,
        2021. https://arxiv.org/abs/2010.01412
    """

    cites = ("foret2021sam",)
    elementwise = True
    looks = True
    ranges = {"rho": "[0, inf)"}

    def __init__(self, inner: Optimizer, *, rho: Scheduled = 0.05, synchronized: bool = True):
        super().__init__(inner)
        self.rho, self.synchronized = rho, synchronized

    def climb(self, g, w, h) -> list[Any]:
        """ρ g / ‖g‖, for each weight"""
        scale = h.rho / _positive(together.length(g))
        return [x if x is None else scale * ops.cast(x, scale.dtype) for x in g]

    def above(self, oracle):
        """The gradients at these weights, and the oracle that answers for the worst nearby."""
        g = oracle.gradients()
        whole = oracle.sum(g) if self.synchronized else g
        return g, oracle.at(together.plus(oracle.weights, 1.0, self.climb(whole, oracle.weights, self.current())))

    def look(self, oracle):
        return self.inner.look(self.above(oracle)[1])


class ASAM(SAM):
    """Adaptive SAM: climbs further for larger weights, so that rescaling layers does not change what is sharp.

        T = |w| + η
        ε = ρ T² g / ‖T g‖
        u = inner(∇L(w + ε))

    Larger `rho` than SAM's: 0.5 to 2. As in the authors' code, but for biases, which there have T = 1.

    Args:
        inner: the optimizer that steps.
        rho: how far to climb, in [0, inf), in sizes of the weights.
        eta: least size of a weight, in [0, inf).
        synchronized: whether replicas climb together: see `kopt.SAM`.

    References:
        Kwon, Kim, Park and Choi, *ASAM: Adaptive Sharpness-Aware Minimization for Scale-Invariant Learning of Deep
        Neural Networks*, 2021. https://arxiv.org/abs/2102.11600
    """

    cites = ("kwon2021asam",)
    ranges = {"eta": "[0, inf)"}

    def __init__(self, inner: Optimizer, *, rho: Scheduled = 0.5, eta: Scheduled = 0.01, synchronized: bool = True):
        super().__init__(inner, rho=rho, synchronized=synchronized)
        self.eta = eta

    def climb(self, g, w, h):
        """ρ T² g / ‖T g‖"""
        sizes = [ops.abs(ops.cast(x, h.eta.dtype)) + h.eta for x in w]
        scaled = [x if x is None else size * ops.cast(x, size.dtype) for x, size in zip(g, sizes, strict=True)]
        scale = h.rho / _positive(together.length(scaled))
        return [x if x is None else scale * size * x for x, size in zip(scaled, sizes, strict=True)]


class GSAM(SAM):
    """Gap-guided SAM: lowers the loss nearby and, across it, the gap between that and the loss at hand.

        ε = ρ g / ‖g‖
        gₛ = ∇L(w + ε)
        u = inner(gₛ - α (g - ⟨g, gₛ⟩ / ‖gₛ‖² gₛ))

    The part of g that is orthogonal to gₛ leads up to a larger gap: a step against it leaves the loss nearby as it is.
    The paper lets ρ fall with the learning rate: give `rho` a schedule of the same form.

    Args:
        inner: the optimizer that steps.
        rho: how far to climb, in [0, inf).
        alpha: weight of the gap, in [0, inf): 0 is SAM.
        synchronized: whether replicas climb together: see `kopt.SAM`.

    References:
        Zhuang et al., *Surrogate Gap Minimization Improves Sharpness-Aware Training*, 2022.
        https://arxiv.org/abs/2203.08065
    """

    cites = ("zhuang2022gsam",)
    ranges = {"alpha": "[0, inf)"}

    def __init__(self, inner: Optimizer, *, rho: Scheduled = 0.05, alpha: Scheduled = 0.4, synchronized: bool = True):
        super().__init__(inner, rho=rho, synchronized=synchronized)
        self.alpha = alpha

    def look(self, oracle):
        g, above = self.above(oracle)
        sharp, seen = self.inner.look(above)
        whole, whole_sharp = oracle.sum(g), oracle.sum(sharp)
        along = together.dot(whole, whole_sharp) / _positive(together.dot(whole_sharp, whole_sharp))
        alpha = self.current().alpha
        return together.plus(together.plus(sharp, -alpha, g), alpha * along, sharp), seen


class LookSAM(SAM):
    """SAM that climbs at every few steps, and in between remembers which way it led.

        every `every` steps:  gₛ = ∇L(w + ρ g / ‖g‖),   v = gₛ - ⟨g, gₛ⟩ / ‖g‖² g
        in between:           gₛ = g + α ‖g‖ / ‖v‖ v
        u = inner(gₛ)

    The part v of gₛ that is orthogonal to g changes slowly. Costs 1 + 1 / `every` gradients a step, and a slot.

    Args:
        inner: the optimizer that steps.
        rho: how far to climb, in [0, inf).
        alpha: length of what is remembered, in lengths of the gradient, in [0, inf).
        every: steps from one climb to the next, from 1.
        synchronized: whether replicas climb together: see `kopt.SAM`.

    References:
        Liu, Mai, Chen, Hsieh and You, *Towards Efficient and Scalable Sharpness-Aware Minimization*, 2022.
        https://arxiv.org/abs/2203.02714
    """

    cites = ("liu2022looksam",)
    sees = ("across_now",)
    ranges = {"alpha": "[0, inf)"}
    integers = {"every": "[1, inf)"}

    def __init__(
        self,
        inner: Optimizer,
        *,
        rho: Scheduled = 0.1,
        alpha: Scheduled = 0.7,
        every: int = 5,
        synchronized: bool = True,
    ):
        super().__init__(inner, rho=rho, synchronized=synchronized)
        self.alpha, self.every = alpha, every

    def own_slots(self, shape):
        return dict(across=shape)

    def build(self, variables):
        if any(node.looks for _, node in self.inner._nodes()):
            raise ValueError(f"LookSAM: inner must take of each batch its gradient alone, got {self.inner!r}. Try SAM.")
        super().build(variables)

    def look(self, oracle):
        h, steps = self.current(), self._taken()
        g, above = self.above(oracle)
        due, has_part = steps % self.every == 0, [x is not None for x in g]
        g = [ops.zeros_like(w) if x is None else x for x, w in zip(g, oracle.weights, strict=True)]

        def climbed():
            return [ops.zeros_like(x) if y is None else y for x, y in zip(g, above.gradients(), strict=True)]

        sharp = ops.cond(due, climbed, lambda: g)
        whole, whole_sharp = oracle.sum(g), oracle.sum(sharp)
        along = together.dot(whole, whole_sharp) / _positive(together.dot(whole, whole))
        across = together.plus(whole_sharp, -along, whole)
        across = [ops.where(due, new, old) for new, old in zip(across, self._held("across"), strict=True)]
        scale = h.alpha * together.length(whole) / _positive(together.length(across)) / oracle.replicas
        recalled = together.plus(g, scale, across)
        u = [ops.where(due, x, y) if has else None for x, y, has in zip(sharp, recalled, has_part, strict=True)]
        return u, dict(across_now=across)

    def split(self, slots):
        own = {name: x for name, x in slots.items() if name in ("across", *self.sees)}
        return own, {name: x for name, x in slots.items() if name not in own}

    def direction(self, g, w, t, h, **slots):
        own, inner = self.split(slots)
        u, inner = self.inner.direction(g, w, t, h.inner, **inner)
        return u, inner | dict(across=own["across_now"])


def _positive(x):
    """x, and 1 where it is zero"""
    return ops.where(x > 0, x, 1)
