"""Penalties by proximal steps, with exact zeros."""

import re
from collections.abc import Mapping

from kopt.optimizers.base import Optimizer
from kopt.optimizers.hyperparameters import checked_patterns
from kopt.optimizers.wrapper import Wrapper
from kopt.penalties import Sparse


class Proximal(Wrapper):
    """Lets the proximal map of a penalty follow each step of any optimizer, so that weights become exactly zero.

        w ← prox(inner's step from w),  prox(x) = argmin_z ½ ‖z - x‖² + learning_rate · penalty(z)

        optimizer = kopt.Proximal(kopt.SGD(0.1), {"hidden/kernel": kopt.penalties.GroupLasso(1e-3)})

    Take it where weights or whole units are to be cut out. The same penalty as a regularizer of the layer makes them
    small, and never zero; do not use both, for it would count twice. The loss that is printed is without the penalty.

    The learning rate is that of the step at hand, with its schedule and the factor of the weight's group. With SGD
    without momentum this is proximal gradient descent, which ends at the minimum of loss and penalty. Other optimizers
    take other steps u than the gradient, and end where -u, not the gradient, balances the penalty:

    - SGD with momentum: u grows to gradient / (1 - momentum), so that a penalty counts 1 - momentum as much.
    - Adaptive ones: the proximal map is that of plain distances and not of Adam's own (ProxGen), so that the strength
      is in units of steps and not of the loss, as a decoupled weight decay is. All weights that steps of one length
      reach are pulled with the same force, and the map costs nothing more.
    - Optimizers that find their own rate (DoG, Prodigy, Mechanic) do not say what they have found: the map takes
      their `learning_rate` alone.

    The wrapper has to be the outermost, and optimizers that average weights (`kopt.EMA`, ...) cannot be inside: Keras's
    option `use_ema` averages what the map has left.

    Args:
        inner: the optimizer that takes the steps.
        penalties: of `kopt.penalties` those that are `Sparse`, by regular expression; for each weight the first counts
            that its path matches.

    Raises:
        TypeError: `inner` is no kopt optimizer, or `penalties` maps to something else.
        ValueError: `inner` is built or averages weights; there are no penalties, or a pattern is no regular expression;
            when built, a pattern matches no weight, or a weight lacks the axes of its penalty.

    References:
        Parikh and Boyd, *Proximal Algorithms*, 2014, section 4.2. https://doi.org/10.1561/2400000003
        Yun, Lozano and Yang, *A General Family of Stochastic Proximal Gradient Methods for Deep Learning*, 2020
        (ProxGen). https://arxiv.org/abs/2006.07065
    """

    cites = ("parikh2014proximal", "yun2020proxgen")
    outermost = True

    penalty: Sparse | None = None
    """Of the weights of one of the `routes`."""

    _of_a_route = False

    def __init__(self, inner: Optimizer, penalties: Mapping[str, Sparse]):
        super().__init__(inner)
        if not isinstance(penalties, Mapping) or not all(isinstance(p, Sparse) for p in penalties.values()):
            raise TypeError(
                "Proximal: penalties must map patterns to penalties with a proximal map, as in {'kernel': "
                f"kopt.penalties.GroupLasso(1e-3)}}, got {penalties!r}."
            )
        if not penalties:
            raise ValueError("Proximal: penalties must name one or more, got {}.")
        checked_patterns("Proximal", "penalties", penalties)
        if inner.averages:
            raise ValueError(
                f"Proximal: inner must not average weights, got {inner!r}. Try use_ema=True in its place, which "
                "averages what the proximal map has left."
            )
        self.__dict__["penalties"] = dict(penalties)  # plain, where Keras would make a tracked dictionary of it

    @property
    def _is_elementwise(self):
        penalties = [self.penalty] if self._of_a_route else self.penalties.values()
        return self.inner._is_elementwise and all(p is None or p.elementwise for p in penalties)

    def routes(self):
        rules = super().routes()
        return {
            f"{number} {name}": rule._view(penalty=penalty, _of_a_route=True)
            for number, penalty in enumerate((*self.penalties.values(), None))
            for name, rule in rules.items()
        }

    def route(self, path, shape):
        number, penalty = self._matched(path)
        if penalty is not None:
            penalty.check_shape(shape)
        return f"{number} {super().route(path, shape)}"

    def _matched(self, path):
        """The number of the penalty of the weight at this path, and the penalty; the last is None."""
        found = (pair for pair in enumerate(self.penalties.items()) if re.search(pair[1][0], path))
        number, (_, penalty) = next(found, (len(self.penalties), ("", None)))
        return number, penalty

    def _check_patterns(self, paths):
        super()._check_patterns(paths)
        for pattern in self.penalties:
            if not any(re.search(pattern, path) for path in paths):
                raise ValueError(
                    f"Proximal: penalties must match a weight's path, and {pattern!r} matches none of "
                    f"{', '.join(paths[:8])}{', ...' if len(paths) > 8 else ''}."
                )

    def settle(self, w, h):
        return w if self.penalty is None else self.penalty.shrunk(w, h.learning_rate)
