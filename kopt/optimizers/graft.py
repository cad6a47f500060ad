"""The length of one optimizer's step, in the direction of another's."""

from kopt.math import trust_ratio
from kopt.optimizers.base import Optimizer
from kopt.optimizers.router import check_without_options
from kopt.optimizers.wrapper import Wrapper

PREFIX = "heading_"


class Graft(Wrapper):
    """Steps as long as one optimizer's, in the direction of another's, for each weight tensor.

        u = ‖u_inner‖ · u_heading / ‖u_heading‖        and u_heading where either is zero

    To try a method whose learning rates nobody knows with the rate, schedule and decay of one that is tuned: those of
    `inner` hold, and all options of `inner`; the learning rate and decay of `heading` play no part. Costs both in time
    and memory. `kopt.Shampoo` grafts by itself, for each block.

    Args:
        inner: the optimizer that gives the length, the learning rate, and the decay.
        heading: the optimizer that gives the direction. It may not keep scalars for all weights together.

    Raises:
        TypeError: one of them is no kopt optimizer.
        ValueError: one of them is built already, or `heading` keeps scalars, averages weights, or has an option that
            only `inner` can have.

    References:
        Agarwal, Anil, Hazan, Koren and Zhang, *Disentangling Adaptive Gradient Methods from Learning Rates*, 2020.
        https://arxiv.org/abs/2002.11803
    """

    cites = ("agarwal2020disentangling",)
    idle = ("heading__learning_rate", "heading__weight_decay")

    def __init__(self, inner: Optimizer, heading: Optimizer):
        super().__init__(inner)
        check_without_options(self, "heading", heading, may_have=())
        if any(rule.shared() or rule.averages for rule in heading.routes().values()):
            raise ValueError(
                f"Graft: heading must keep neither scalars for all weights nor averages, got {heading!r}. "
                "Try it as inner."
            )
        self.heading = heading

    def parts(self):
        return dict(inner=self.inner, heading=self.heading)

    def own_slots(self, shape):
        return {PREFIX + name: slot for name, slot in self.heading.slots(shape).items()}

    def split(self, slots):
        own = {name: x for name, x in slots.items() if name.startswith(PREFIX)}
        return own, {name: x for name, x in slots.items() if name not in own}

    def direction(self, g, w, t, h, **slots):
        own, inner = self.split(slots)
        length, inner = self.inner.direction(g, w, t, h.inner, **inner)
        own = {name.removeprefix(PREFIX): x for name, x in own.items()}
        u, own = self.heading.direction(g, w, t, h.heading, **own)
        return trust_ratio(length, u) * u, inner | {PREFIX + name: x for name, x in own.items()}

    def routes(self):
        return {
            f"{a}, {b}": self._view(inner=inner, heading=heading)
            for a, inner in self.inner.routes().items()
            for b, heading in self.heading.routes().items()
        }

    def route(self, path, shape):
        return f"{self.inner.route(path, shape)}, {self.heading.route(path, shape)}"
