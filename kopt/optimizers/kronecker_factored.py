"""The curvature of a network as a Kronecker product for each layer: what the kinds of K-FAC have in common."""

import warnings
from typing import Any, Unpack

from keras import ops, tree

from kopt._backend import assign, dense, outside_the_trace
from kopt.math import ema
from kopt.math.kronecker import (
    damped,
    expanded,
    factors_of,
    gram_of_rows,
    mean_gram_of_rows,
    positive_inverse,
    reduced,
    with_one,
)
from kopt.optimizers.base import CommonButDecay, Optimizer, Scheduled
from kopt.optimizers.blocks import blocks

SHARING = {"expand": expanded, "reduce": reduced}
SIDES = ("inputs", "outputs")


class KroneckerFactored(Optimizer):
    """Base class of the kinds of K-FAC, which estimates the curvature and multiplies the gradient by its inverse.

    A subclass writes `combine`: how the direction that comes of it and the last one make a step. `kopt.KFAC` says what
    the arguments are.
    """

    looks = True
    sees = ("mu",)
    ranges = {"damping": "(0, inf)"}
    integers = {
        "factors_every": "[1, inf)",
        "inverse_every": "[1, inf)",
        "burn_in": "[0, inf)",
        "seed": f"[0, {2**31})",
    }
    choices = {"fisher": ("sampled", "empirical"), "sharing": tuple(SHARING)}

    def __init__(
        self,
        learning_rate: Scheduled = 0.1,
        *,
        damping: Scheduled = 1e-3,
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
        super().__init__(learning_rate, weight_decay=weight_decay, **common)
        self.damping, self.beta_2, self.fisher, self.sharing = damping, beta_2, fisher, sharing
        self.factors_every, self.inverse_every, self.burn_in = factors_every, inverse_every, burn_in
        self.seed = seed

    # ---- the step --------------------------------------------------------------------------------------------------

    def slots(self, shape):
        return dict(m=shape)

    def direction(self, g, w, t, h, *, m):
        m = h.mu * m + g
        return m, dict(m=m)

    def look(self, oracle):
        h, memory = self.current(), tree.map_structure(dense, self._memory)
        loss, g, taps = oracle.taps() if self.fisher == "empirical" else (*oracle(), None)
        g = [x if x is None else ops.cast(x, self._wide) for x in oracle.sum(g)]
        new = memory | self.estimate(oracle, g, taps, memory, h)
        u, mu, more = self.combine(oracle, loss, g, self.precondition(g, new, h), new, h)
        self._remember(oracle, new | more, memory, g)
        pairs = zip(u, oracle.weights, strict=True)  # of which the base adds up what replicas return
        return [x if x is None else ops.cast(x / oracle.replicas, w.dtype) for x, w in pairs], {"mu": mu}

    def combine(self, oracle, loss, g, d, memory, h) -> tuple[list[Any], Any, dict[str, Any]]:
        """How to step along the direction d = C⁻¹ g: what is added to the momentum, and what this is multiplied by.

        Third comes what changes in memory.
        """
        raise NotImplementedError

    def damping_now(self, memory, h):
        """λ"""
        return h.damping

    # ---- the curvature ---------------------------------------------------------------------------------------------

    def estimate(self, oracle, g, taps, memory, h):
        """The factors and their inverses, each renewed where it is time: what changes in memory.

        The gradient g and its taps, or None, are those of the given labels.
        """
        t, measured = self._taken(), ("inputs", "outputs", "squares", "updates")
        part = ops.cast(oracle.part * oracle.replicas, self._wide)
        terms = None if taps is None else ops.cast(oracle.terms, self._wide)

        def now(every):
            return ops.logical_or(t < self.burn_in, t % every == 0)

        def measure():
            if taps is None:
                drawn, seen = oracle.sampled_taps(self.seed, t)
                found = self.statistics(drawn, seen, oracle.replicas, oracle.replicas, part)
            else:
                found = self.statistics(g, taps, terms, oracle.replicas * terms, part)
            k = memory["updates"] + 1
            beta = ops.minimum(h.beta_2, 1 - 1 / k)
            new = {n: [ema(x, y, beta) for x, y in zip(memory[n], found[n], strict=True)] for n in found}
            return new | {"updates": k}

        def invert():
            pairs = zip(new["inputs"], new["outputs"], strict=True)
            inverses = [[positive_inverse(x) for x in damped(a, g, damping)] for a, g in pairs]
            return {f"inverse_{side}": [pair[i] for pair in inverses] for i, side in enumerate(SIDES)}

        new = ops.cond(now(self.factors_every), measure, lambda: {name: memory[name] for name in measured})
        if oracle.replicas > 1:  # a mean over replicas, each of which has decayed what all had
            new |= {n: [x / oracle.replicas for x in oracle.sum(new[n])] for n in measured if n != "updates"}
        damping = self.damping_now(memory, h)
        kept = {f"inverse_{side}": memory[f"inverse_{side}"] for side in SIDES}
        return new | ops.cond(now(self.inverse_every), invert, lambda: kept)

    def statistics(self, grads, taps, scale, tap_scale, part):
        """A and G of each block and D of the other weights: their means over the replicas are those of the batch.

        Squares of gradients are multiplied by `scale`, those of the taps' slopes by `tap_scale`, and means over the
        replica's rows by `part`: how many it has, compared to all replicas' mean.
        """
        grads, factors = [g if g is None else ops.cast(g, self._wide) for g in grads], []
        for block in self._blocks:
            rows = [tap.rows(self._wide) for tap in taps if (tap.kernel, tap.bias) == (block.kernel, block.bias)]
            rows = [SHARING[self.sharing](x, s) for x, s in rows if s.shape[-1] == block.outputs]
            whole = block.join(grads)
            if rows:
                x, s = (ops.concatenate(side) for side in zip(*rows, strict=True))
                a = part * mean_gram_of_rows(x if block.bias is None else with_one(x))
                g = tap_scale * gram_of_rows(s)
            elif whole is None:  # no part in the loss
                a, g = (ops.zeros((n, n), self._wide) for n in (block.inputs, block.outputs))
            else:
                self._warn(block)
                a, g = factors_of(whole)
                a = scale * a
            factors.append((a, g))
        zeros = [ops.zeros_like(variable) for variable in self._memory["squares"]]
        squares = [(grads[n], zero) for n, zero in zip(self._others, zeros, strict=True)]
        squares = [zero if x is None else scale * x * x for x, zero in squares]
        return dict(inputs=[a for a, _ in factors], outputs=[g for _, g in factors], squares=squares)

    def precondition(self, g, memory, h):
        """A⁻¹ ∇W G⁻¹ of each block, g / (D + λ) of the other weights; None where there is no gradient."""
        found, damping = {}, self.damping_now(memory, h)
        pairs = zip(*(memory[f"inverse_{side}"] for side in SIDES), strict=True)
        for block, (left, right) in zip(self._blocks, pairs, strict=True):
            whole = block.join(g)
            if whole is not None:
                found |= block.split(left @ whole @ right)
        for n, square in zip(self._others, memory["squares"], strict=True):
            found[n] = None if g[n] is None else g[n] / (square + damping)
        return [None if x is None else ops.reshape(found[n], x.shape) for n, x in enumerate(g)]

    # ---- what is kept ----------------------------------------------------------------------------------------------

    def memory(self) -> dict[str, Any]:
        """What is kept besides slots, by name: the shape of each, or a list with a shape for each block or weight."""
        sides = {side: [(n, n) for n in (getattr(block, side) for block in self._blocks)] for side in SIDES}
        squares = [tuple(self._trainable_variables[n].shape) for n in self._others]
        inverses = {f"inverse_{side}": shapes for side, shapes in sides.items()}
        return sides | inverses | {"squares": squares, "updates": ()}

    def build(self, variables):
        if self.built:
            return
        super().build(variables)
        paths = [getattr(variable, "path", variable.name) for variable in variables]
        found = blocks(paths, [tuple(variable.shape) for variable in variables])
        inside = {n for block in found for n in (block.kernel, block.bias)}
        others = [n for n in range(len(paths)) if n not in inside]
        self.__dict__.update(_blocks=found, _others=others, diagonal=tuple(paths[n] for n in others), _warned=set())
        with outside_the_trace():
            self.__dict__["_memory"] = {name: self._kept_for(name, shape) for name, shape in self.memory().items()}

    def _kept_for(self, name, shape):
        if isinstance(shape, list):
            return [self._kept_for(f"{name}_{number}", one) for number, one in enumerate(shape)]
        return self.add_variable(shape, "zeros", self._wide, name=name)

    def _remember(self, oracle, new, old, g):
        """Assigns what has changed in memory; nothing where the base is going to leave out the step."""
        if self.skip_nonfinite or oracle.scaled:
            seen = [x for x in (*g, *tree.flatten(new)) if x is not None]
            finite = ops.all(ops.stack([ops.all(ops.isfinite(x)) for x in seen]))
            new = tree.map_structure(lambda x, y: ops.where(finite, x, y), new, old)
        for variable, value in zip(*map(tree.flatten, (self._memory, new)), strict=True):
            assign(variable, value)

    def _warn(self, block):
        """Says, once, of which kernel the factors are those of its gradient."""
        if block.path not in self._warned:
            self._warned.add(block.path)
            warnings.warn(
                f"{type(self).__name__}: {block.path} has no taps (see kopt.training.taps), so its factors are "
                "estimated from random gradients.",
                stacklevel=2,
            )
