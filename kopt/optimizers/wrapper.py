"""Optimizers that take optimizers: a wrapper around one, and what several have in common."""

import keras

from kopt._keras import OPTIMIZER_OPTIONS
from kopt.optimizers.base import Optimizer
from kopt.optimizers.hyperparameters import OPTIONS
from kopt.optimizers.packs import Factors, Slot

INHERITED = [name for name in (*OPTIMIZER_OPTIONS, *OPTIONS) if name not in ("name", "weight_decay")]
"""Options that a wrapper has of the optimizer inside."""


class Wrapper(Optimizer):
    """An optimizer that changes what another one does.

    The optimizer inside keeps its hyperparameters: its learning rate and weight decay are the wrapper's too
    (`wrapper.learning_rate = 0.1` sets them), and its options (`clipnorm`, `no_decay`, ...) hold. A subclass writes
    what it changes, most often `direction`. There `h` has the wrapper's own hyperparameters and `h.inner` those of
    the optimizer inside:

        u, slots = self.inner.direction(g, w, t, h.inner, **slots)

    What it keeps itself it names in `own_slots`, and `split` tells it from what the optimizer inside keeps.
    `elementwise` says that what the wrapper does is elementwise; the whole is if the optimizer inside is, too.

    Args:
        inner: a kopt optimizer that is not built yet.

    Raises:
        TypeError: `inner` is no kopt optimizer.
        ValueError: `inner` is built, so that it belongs to a model or another wrapper.
    """

    def __init__(self, inner):
        super().__init__(0.0)
        self._untrack_variable(self._learning_rate)
        del self._given["learning_rate"]
        self.inner = inner

    # ---- what a wrapper writes -----------------------------------------------------------------------------------

    def own_slots(self, shape) -> dict[str, Slot | tuple[int, ...]]:
        """The state that the wrapper itself keeps for a weight of this shape."""
        return {}

    def parts(self) -> dict[str, Optimizer]:
        """The optimizers inside, by the name of the argument that each was given as."""
        return {"inner": self.inner}

    def split(self, slots):
        """Returns the wrapper's own slots, and those of the optimizer inside."""
        own = self.own_slots(()).keys()
        return {n: x for n, x in slots.items() if n in own}, {n: x for n, x in slots.items() if n not in own}

    # ---- what it leaves to the optimizer inside ------------------------------------------------------------------

    def slots(self, shape):
        own, inner = self.own_slots(shape), self.inner.slots(shape)
        if clash := own.keys() & inner.keys():
            raise ValueError(
                f"{type(self).__name__}: inner must not keep slots of the wrapper's names, got {self.inner!r}, which "
                f"keeps {min(clash)!r}."
            )
        return inner | own

    def direction(self, g, w, t, h, **slots):
        own, inner = self.split(slots)
        u, inner = self.inner.direction(g, w, t, h.inner, **inner)
        return u, inner | own

    def finish(self, u, w, h):
        return self.inner.finish(u, w, h.inner)

    def shared(self):
        return self.inner.shared()

    def measure(self, g, w, t, h, **slots):
        return self.inner.measure(g, w, t, h.inner, **self.split(slots)[1])

    def advance(self, t, h, **sums):
        return self.inner.advance(t, h.inner, **sums)

    def look(self, oracle):
        return self.inner.look(oracle)

    def evaluation(self, w, h, **slots):
        own, inner = self.split(slots)
        w, inner = self.inner.evaluation(w, h.inner, **inner)
        return w, inner | own

    def training(self, w, h, **slots):
        own, inner = self.split(slots)
        w, inner = self.inner.training(w, h.inner, **inner)
        return w, inner | own

    def routes(self):
        return {name: self.around(rule) for name, rule in self.inner.routes().items()}

    def route(self, path, shape):
        return self.inner.route(path, shape)

    def _keepers(self):
        own = () if type(self).shared is Wrapper.shared else (id(self._given),)
        return own + self.inner._keepers()

    def around(self, rule):
        """This wrapper, with the same hyperparameters, around one of the rules of the optimizer inside."""
        return self if rule is self.inner else self._view(inner=rule)

    # ---- its numbers and options are those of the optimizer inside -----------------------------------------------

    @property
    def _is_elementwise(self):
        return self.elementwise and self.inner._is_elementwise

    @property
    def averages(self):  # pyright: ignore[reportIncompatibleVariableOverride]
        """Whether the weights to evaluate at are others than those that are trained."""
        return self.inner.averages

    def __setattr__(self, name, value):
        if name == "inner":
            check_part(self, name, value)
        if name not in ("learning_rate", "weight_decay"):
            super().__setattr__(name, value)
        elif "inner" in vars(self):  # what comes before is Keras's constructor
            setattr(self.inner, name, value)

    def __getattr__(self, name):
        return self.inner.weight_decay if name == "weight_decay" else super().__getattr__(name)

    def build(self, variables):
        if self.built:
            return
        for argument, part in self.parts().items():
            check_part(self, argument, part)
        innermost = self.inner
        while isinstance(innermost, Wrapper):
            innermost = innermost.inner
        for name in INHERITED:
            setattr(self, name, getattr(innermost, name))
        super().build(variables)

    def _nodes(self, prefix=""):
        yield prefix, self
        for name, part in self.parts().items():
            yield from part._nodes(f"{prefix}{name}_")

    def _namespace(self, numbers, dtype, factors, shared, last):
        h = super()._namespace(numbers, dtype, Factors(), shared, last)
        for name, part in self.parts().items():
            setattr(h, name, part._namespace(numbers, dtype, factors, shared, last))
        h.learning_rate, h.weight_decay = h.inner.learning_rate, h.inner.weight_decay
        return h

    def _factors(self, path):
        return self.inner._factors(path)

    def _check_patterns(self, paths):
        self.inner._check_patterns(paths)

    def _rate_after(self, steps):
        return self.inner._rate_after(steps)


def check_part(owner, argument, part, *, may_step=False):
    """Raises if something cannot be inside an optimizer; `may_step` says that it is let step by itself there."""
    who = type(owner).__name__
    if not isinstance(part, Optimizer):
        hint = f" Try {part.__name__}()." if isinstance(part, type) and issubclass(part, Optimizer) else ""
        if isinstance(part, keras.optimizers.Optimizer):
            hint = f" Try kopt.{type(part).__name__}."
        raise TypeError(f"{who}: {argument} must be a kopt optimizer, got {part!r}.{hint}")
    if not may_step and part.outermost:
        raise ValueError(
            f"{who}: {argument} must be an optimizer that others may be around, got {part!r}. Try "
            f"{type(part).__name__} around the {who}."
        )
    if not may_step and (whole := [node for _, node in part._nodes() if type(node).step is not Optimizer.step]):
        raise ValueError(
            f"{who}: {argument} must be an optimizer that has a direction for each weight, got "
            f"{type(whole[0]).__name__}, which steps on all at once. Try kopt.Switch, which leads one after another."
        )
    if argument != "inner" and (looking := [node for _, node in part._nodes() if node.looks]):
        raise ValueError(
            f"{who}: {argument} must be an optimizer that takes of each batch its gradient alone, got "
            f"{type(looking[0]).__name__}. Try {type(looking[0]).__name__} around the {who}, or for all weights."
        )
    if part._inputs is not None:
        raise ValueError(
            f"{who}: {argument} must be an optimizer that is not built, got {part!r}, which belongs to a model "
            f"already. Try sklearn.base.clone, which copies it without its state."
        )
