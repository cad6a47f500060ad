"""The contract: what an algorithm writes. The base class does the rest."""

from typing import Any, ClassVar

from kopt.optimizers.packs import Slot


class Rule:
    """An update rule: pure functions of tensors. `kopt.Optimizer` says what they are given."""

    elementwise: ClassVar[bool] = False
    """Whether each entry of the step depends on that same entry of `g`, `w` and the slots alone."""

    averages: ClassVar[bool] = False
    """Whether the weights to evaluate at are others than those that are trained: see `swap`."""

    looks: ClassVar[bool] = False
    """Whether a step asks more of a batch than its gradient: see `look`."""

    outermost: ClassVar[bool] = False
    """Whether no other optimizer may be around it, since it decides where the step as a whole ends."""

    sees: ClassVar[tuple[str, ...]] = ()
    """The names of what `look` returns besides gradients."""

    cites: ClassVar[tuple[str, ...]] = ()
    """Keys of the papers in `references.bib`."""

    def slots(self, shape) -> dict[str, Slot | tuple[int, ...]]:
        """The state kept for a weight of this shape, by name; a bare shape starts at zero."""
        return {}

    def direction(self, g, w, t, h, **slots):
        """Returns `(u, slots)`: the direction, and the new value of each slot."""
        raise NotImplementedError(f"{type(self).__name__} must define direction(g, w, t, h, **slots).")

    def finish(self, u, w, h):
        """u + weight_decay * w"""
        return u if h.weight_decay is None else u + h.weight_decay * w

    def settle(self, w, h):
        """Returns the weights that the step ends at, from those that it has led to."""
        return w

    def shared(self) -> dict[str, float]:
        """Scalars kept once for all weights, by name, with their initial values.

        Rules find them in `h`, and what they were a step ago in `h.last`.
        """
        return {}

    def measure(self, g, w, t, h, **slots) -> dict[str, Any]:
        """What `advance` has to know of some weights, each a sum over them: the base adds up the sums of all."""
        return {}

    def advance(self, t, h, **sums) -> dict[str, Any]:
        """Returns the new value of each shared scalar: once a step, before the directions."""
        return {}

    def look(self, oracle) -> tuple[Any, dict[str, Any]]:
        """Returns the gradients to step with, and what else the rule is to see of a batch, by name: see `sees`.

        A list with a tensor for each weight comes to `measure` and `direction` beside the slots, a scalar in `h`.
        """
        return oracle.gradients(), {}

    def evaluation(self, w, h, **slots):
        """Returns `(w, slots)` to evaluate at, from those that are trained. See `averages`."""
        return w, slots

    def training(self, w, h, **slots):
        """The inverse of `evaluation`."""
        return w, slots

    @property
    def _is_elementwise(self):
        return self.elementwise

    def routes(self) -> dict[str, Any]:
        """The rules that update the weights, by name. Several only where an optimizer distributes them."""
        return {"": self}

    def route(self, path, shape) -> str:
        """Which of the `routes` updates the weight of this path and shape."""
        return ""
