"""Different optimizers for different weights."""

import re
from collections.abc import Iterable, Mapping
from typing import Unpack

from kopt._keras import OPTIMIZER_OPTIONS
from kopt.optimizers.base import Common, Optimizer, Scheduled
from kopt.optimizers.hyperparameters import OPTIONS, checked_patterns
from kopt.optimizers.packs import Factors
from kopt.optimizers.wrapper import INHERITED, check_part


def check_without_options(owner, argument, part, *, may_have=("groups", "no_decay")):
    """Raises if an optimizer cannot be inside another, or has options that would have no effect there."""
    check_part(owner, argument, part)
    for _, node in part._nodes():
        for name in sorted(set(INHERITED) - set(may_have)):
            if (value := getattr(node, name)) != (OPTIMIZER_OPTIONS | OPTIONS)[name]:
                raise ValueError(
                    f"{type(owner).__name__}: {argument} must leave {name} to the optimizer around it, "
                    f"got {value!r} in {node!r}."
                )


class _Router(Optimizer):
    """What routers have in common: the optimizers inside, and how their numbers follow the router's."""

    def parts(self) -> dict[str, Optimizer]:
        """The optimizers inside, by name."""
        raise NotImplementedError

    def choose(self, path, shape) -> str:
        """The name of the optimizer for the weight of this path and shape."""
        raise NotImplementedError

    def routes(self):
        return {f"{n}/{r}": _Part(self, rule) for n, part in self.parts().items() for r, rule in part.routes().items()}

    def route(self, path, shape):
        name = self.choose(path, shape)
        return f"{name}/{self.parts()[name].route(path, shape)}"

    def build(self, variables):
        if not self.built:
            for name, part in self.parts().items():
                check_without_options(self, name, part)
        super().build(variables)

    @property
    def averages(self):  # pyright: ignore[reportIncompatibleVariableOverride]
        """Whether one of the optimizers inside averages weights."""
        return any(part.averages for part in self.parts().values())

    def _nodes(self, prefix=""):
        yield prefix, self
        for number, part in enumerate(self.parts().values()):
            yield from part._nodes(f"{prefix}{number}_")


class _Part:
    """A rule of an optimizer inside a router: its own, but for what the router says of all weights."""

    def __init__(self, router, rule):
        self.router, self.rule = router, rule

    def __getattr__(self, name):
        return getattr(self.rule, name)

    def _namespace(self, numbers, dtype, factors, shared, last):
        common = numbers[id(self.router._given)]
        numbers = dict(numbers)
        for _, node in self.rule._nodes():
            own = numbers[id(node._given)]
            if "learning_rate" in own:
                rate = dict(learning_rate=own["learning_rate"] * common["learning_rate"])
                numbers[id(node._given)] = own | {n: common[n] for n in ("weight_decay",) if n in common} | rate
        return self.rule._namespace(numbers, dtype, factors, shared, last)

    def _factors(self, path):
        own, common = self.rule._factors(path), self.router._factors(path)
        return Factors(own.learning_rate * common.learning_rate, own.weight_decay * common.weight_decay)

    def _check_patterns(self, paths):
        self.rule._check_patterns(paths)
        self.router._check_patterns(paths)


class Route(_Router):
    """Gives each weight to the optimizer of the first pattern that its path matches.

        optimizer = kopt.Route({"embedding": kopt.SGD(1.0), "bias$|gamma$": kopt.Adam(1e-3)}, kopt.Lion(1e-4))

    For weights that want other *rules*; where another learning rate or decay is enough, `groups` of any optimizer is
    simpler. The router's learning rate multiplies those of the optimizers inside, so that one schedule, or one
    callback that sets it, leads them all. Its other options (`clipnorm`, `use_ema`, ...) hold for all weights, and so
    does its `weight_decay`, in the place of theirs, if it is given.

    Args:
        optimizers: kopt optimizers by regular expression, the first match counts; each with its own learning rate.
        otherwise: the optimizer of the weights that no pattern matches.
        learning_rate: a factor in [0, inf) of all learning rates, or a schedule.
        **common: see `kopt.Optimizer`.

    Raises:
        TypeError: one of them is no kopt optimizer.
        ValueError: one of them is built already, or has an option that only the router can have.
    """

    def __init__(
        self,
        optimizers: Mapping[str, Optimizer],
        otherwise: Optimizer,
        *,
        learning_rate: Scheduled = 1.0,
        **common: Unpack[Common],
    ):
        super().__init__(learning_rate, **common)
        checked_patterns(type(self).__name__, "optimizers", optimizers)
        for pattern, part in optimizers.items():
            check_without_options(self, f"optimizers, at {pattern!r},", part)
        check_without_options(self, "otherwise", otherwise)
        self.__dict__["optimizers"] = dict(optimizers)  # plain, where Keras would make a tracked dictionary of it
        self.otherwise = otherwise

    def parts(self):
        return self.optimizers | {"": self.otherwise}

    def choose(self, path, shape):
        return next((pattern for pattern in self.optimizers if re.search(pattern, path)), "")


class Matrices(_Router):
    """Gives kernels to one optimizer and all else to another: what methods for matrices are made for.

        optimizer = kopt.Matrices(kopt.SOAP(3e-3), kopt.AdamW(1e-3), exclude=("embedding", "head"))

    Kernels are the weights of two or more axes whose path does not match `exclude`. The learning rate multiplies
    those of the two, as in `kopt.Route`. Muon has AdamW beside it already: this is for other companions.

    Args:
        matrices: the optimizer of the kernels.
        others: the optimizer of embeddings, biases, scales, and what `exclude` names.
        exclude: regular expressions; a weight whose path one of them matches is no kernel. Name the last layer where
            a method wants it left out: nothing in a path tells.
        learning_rate: a factor in [0, inf) of both learning rates, or a schedule.
        **common: see `kopt.Optimizer`.

    Raises:
        TypeError: one of them is no kopt optimizer.
        ValueError: one of them is built already, or has an option that only the router can have.
    """

    patterns = ("exclude",)

    def __init__(
        self,
        matrices: Optimizer,
        others: Optimizer,
        *,
        exclude: str | Iterable[str] = ("embedding",),
        learning_rate: Scheduled = 1.0,
        **common: Unpack[Common],
    ):
        super().__init__(learning_rate, **common)
        for name, part in dict(matrices=matrices, others=others).items():
            check_without_options(self, name, part)
        self.matrices, self.others = matrices, others
        self.exclude = exclude

    def parts(self):
        return dict(matrices=self.matrices, others=self.others)

    def choose(self, path, shape):
        excluded = len(shape) < 2 or any(re.search(pattern, path) for pattern in self.exclude)
        return "others" if excluded else "matrices"
