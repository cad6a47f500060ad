"""A line search around any optimizer."""

from typing import Any

from keras import ops

from kopt.math import together
from kopt.optimizers.base import Optimizer, Scheduled
from kopt.optimizers.wrapper import Wrapper


class LineSearch(Wrapper):
    """Takes of an optimizer's step as much as lowers the loss of the batch enough (Armijo's condition).

        d = inner's step
        s = min(1, growth · s)
        while L(w + s d) > L(w) + decrease · s ⟨∇L(w), d⟩:   s ← shrink · s
        w ← w + s d

    The learning rate of the optimizer inside becomes the longest step: give it the largest that could ever be right.
    For models that can fit their data (Vaswani et al., whose method this is around `kopt.SGD`), and for full batches.
    Each trial costs a pass forward, on the same rows and with the same dropout masks; most steps take one.

    A loss that is not finite shrinks the step like one that is too high. When no trial satisfies the condition the last
    one is taken, or none if its loss is not finite, and the next search begins as this one did. Steps with momentum may
    lead uphill on a batch: along those no length need satisfy the condition, and s stays as it was.

    What the optimizer inside keeps advances as if the whole step had been taken. The wrapper has to be the outermost,
    and optimizers that average weights (`kopt.EMA`, ...) cannot be inside: Keras's option `use_ema` averages what the
    search has found. Needs `kopt.Model`, or an estimator. Under a strategy each search tries all its lengths, since
    replicas cannot meet inside of a loop.

    Args:
        inner: the optimizer whose steps are searched.
        decrease: how much of the fall that the slope promises is enough, in [0, 1): 0.1 in the paper.
        shrink: factor of a step that is too long, in (0, 1).
        growth: the first trial over the last length, in [1, inf): the paper's is 2^(1 / batches in an epoch).
        trials: losses computed in a search, at most, from 1.

    References:
        Vaswani et al., *Painless Stochastic Gradient: Interpolation, Line-Search, and Convergence Rates*, 2019.
        https://arxiv.org/abs/1905.09997
    """

    cites = ("vaswani2019painless",)
    elementwise = True
    looks = True
    outermost = True
    sees = ("loss_before", "uphill")
    ranges = {"decrease": "[0, 1)", "shrink": "(0, 1)", "growth": "[1, inf)"}
    integers = {"trials": "[1, inf)"}

    def __init__(
        self,
        inner: Optimizer,
        *,
        decrease: Scheduled = 0.1,
        shrink: Scheduled = 0.5,
        growth: Scheduled = 1.1,
        trials: int = 20,
    ):
        super().__init__(inner)
        self.decrease, self.shrink, self.growth, self.trials = decrease, shrink, growth, trials

    def build(self, variables):
        if self.inner.averages:
            raise ValueError(
                f"LineSearch: inner must not average weights, got {self.inner!r}. Try use_ema=True in its place, which "
                "averages what the search has found."
            )
        super().build(variables)

    def own_flags(self):
        return dict(length=1.0)

    def split(self, slots):
        return {}, {name: x for name, x in slots.items() if name != "uphill"}

    def look(self, oracle):
        if oracle.replicas > 1 and self.skip_nonfinite:
            raise ValueError(
                "LineSearch: skip_nonfinite must be False on several replicas. The search itself takes no step "
                "to where the loss is not finite."
            )
        loss, slopes = oracle()
        grads, seen = slopes, {}
        if any(node.looks for _, node in self.inner._nodes()):
            grads, seen = self.inner.look(oracle)
        loss, *slopes = oracle.sum([loss, *slopes])
        return grads, seen | dict(loss_before=loss, uphill=slopes)

    def landed(self, now, weights, seen):
        oracle, h, flag = seen.oracle, self.current(), now["flags"]["length"]
        here = [now["weights"][i] for i in seen.members]
        step = [weights[i] - w for i, w in zip(seen.members, here, strict=True)]
        slope = ops.cast(together.dot([seen.parts["uphill"].get(i) for i in seen.members], step), flag.dtype)
        before = ops.cast(seen.scalars["loss_before"], flag.dtype)

        def loss_at(length):
            return ops.cast(oracle.at(together.plus(here, length, step)).loss(), flag.dtype)

        def enough(length, loss):
            fallen = loss <= before + h.decrease * length * slope
            return ops.logical_and(ops.isfinite(loss), ops.logical_or(fallen, slope >= 0))

        search = self.tried if oracle.replicas > 1 else self.searched
        length, loss = search(ops.minimum(h.growth * flag, 1), h.shrink, loss_at, enough, oracle)
        new = together.plus(here, length, step)
        new = [ops.where(ops.isfinite(loss), x, w) for x, w in zip(new, here, strict=True)]
        flags = now["flags"] | dict(length=ops.where(enough(length, loss), length, flag))
        return weights | dict(zip(seen.members, new, strict=True)), flags

    def searched(self, first, shrink, loss_at, enough, oracle) -> Any:
        """The first length that is enough, or the last tried, and the loss there."""

        def going_on(number, length, loss):
            return ops.logical_and(number < self.trials, ops.logical_not(enough(length, loss)))

        def shorter(number, length, loss):
            return number + 1, shrink * length, loss_at(shrink * length)

        return ops.while_loop(going_on, shorter, (1, first, loss_at(first)))[1:]

    def tried(self, first, shrink, loss_at, enough, oracle):
        """The same on several replicas, which add up their losses at all lengths at once."""
        lengths = first * ops.power(shrink, ops.arange(self.trials, dtype=first.dtype))
        losses = oracle.sum([ops.map(loss_at, lengths)])[0]
        good = enough(lengths, losses)
        chosen = ops.where(ops.any(good), ops.argmax(ops.cast(good, "int32")), self.trials - 1)
        return ops.take(lengths, chosen), ops.take(losses, chosen)
