"""Parameters of an estimator: its own by name, those of its parts by prefix, and what they may be."""

import contextlib
import copy
import functools
import inspect
import sys
from typing import Any

from sklearn.base import BaseEstimator
from sklearn.metrics import get_scorer_names
from sklearn.utils._param_validation import InvalidParameterError

from kopt._checks import check_range, needs_tensorflow
from kopt._forks import check_fork
from kopt.estimators import callbacks, objectives
from kopt.estimators.networks import check_mlp, mlp
from kopt.estimators.vocabulary import ARGUMENTS, advice, hint

ROUTES = ("model__", "optimizer__", "objective__", "callbacks__")


class Parameters(BaseEstimator):
    """An estimator that also takes parameters of its parts, by `ROUTES`, and checks all before anything is computed."""

    model: Any
    optimizer: Any
    loss: Any
    objective: Any
    scoring: Any
    callbacks: Any
    strategy: Any
    device: Any
    _facts: tuple[str, ...] = ()
    """What the data say that a function which makes a network may ask for, by name."""

    def _take(self, routed):
        """Keeps what the constructor was given besides its own parameters."""
        for name in routed:
            self._check_name(name)
        self.__dict__.update(routed)

    def get_params(self, deep=True):
        """Returns the parameters by name, `model__*`, `optimizer__*`, `objective__*` and `callbacks__*` included.

        Args:
            deep: whether to add the parameters of an optimizer or objective given as an instance.
        """
        routed = {name: value for name, value in vars(self).items() if name.startswith(ROUTES)}
        return super().get_params(deep) | routed

    def set_params(self, **params):
        """Sets parameters by name and returns the estimator.

        `optimizer__*` are kept beside an optimizer given as an instance, which itself is never changed; and so are
        `objective__*`.

        Raises:
            sklearn.utils._param_validation.InvalidParameterError: a name is no parameter's.
        """
        for name in params:
            self._check_name(name)
        super().set_params(**{name: value for name, value in params.items() if not name.startswith(ROUTES)})
        self.__dict__.update({name: value for name, value in params.items() if name.startswith(ROUTES)})
        return self

    def __getstate__(self):
        if not isinstance(self.strategy, str | None):
            import kopt.distribute.strategy  # noqa: F401 - teaches pickle about strategies
        return super().__getstate__()

    def __sklearn_clone__(self):
        if not _is_model(self.model):
            return super().__sklearn_clone__()
        bare = copy.copy(self)
        bare.model = None
        twin = super(Parameters, bare).__sklearn_clone__()
        twin.model = self.model  # which no fit changes; to copy it takes Keras a while, and fails once it is compiled
        return twin

    def _check_name(self, name):
        own = self._get_param_names()
        part, _, inside = name.partition("__")
        if name.startswith(ROUTES) or (part in own and (not inside or hasattr(getattr(self, part), "set_params"))):
            return
        takes = ", ".join([*own, *(f"{route}*" for route in ROUTES)])
        raise InvalidParameterError(
            f"{type(self).__name__}: {name} is no parameter; it takes {takes}.{advice(name, own, ROUTES)}"
        )

    def _routed(self, route):
        return {name.removeprefix(route): value for name, value in vars(self).items() if name.startswith(route)}

    def _refuse(self, route, unknown, of, known):
        takes = ", ".join(known) or "none"
        raise InvalidParameterError(
            f"{type(self).__name__}: {route}{unknown} is no parameter of {of}; it takes {takes}.{hint(unknown, known)}"
        )

    # ---- what they may be ----------------------------------------------------------------------------------------

    def _validate_params(self):
        """Checks all parameters; TensorFlow is imported only for those of Keras's objects, and makes no tensor."""
        super()._validate_params()
        self._check_routed_names()
        self._check_scoring()
        network = {f"model__{name}": value for name, value in self._routed("model__").items()}
        if self.model is None:
            check_mlp(type(self).__name__, network)
        if self.strategy is not None and self.device is not None:
            raise InvalidParameterError(
                f"{type(self).__name__}: device must be None where a strategy chooses the devices, got {self.device!r} "
                f"with strategy={self.strategy!r}. Give one of them."
            )
        activation = network.get("model__activation") if self.model is None else None
        if self.optimizer is not None or self._routed("optimizer__") or isinstance(self.loss or activation, str):
            require_tensorflow(type(self).__name__)
            self._check_optimizer_values()
            self._check_loss()
            self._check_activation(activation)
        if self.objective is not None or self._routed("objective__"):
            require_tensorflow(type(self).__name__)
            self._objective_to_build()
        if self.callbacks is not None or self._routed("callbacks__"):
            require_tensorflow(type(self).__name__)
            callbacks.planned(self.callbacks, self._routed("callbacks__"), type(self).__name__)

    def _check_scoring(self):
        names = [self.scoring] if isinstance(self.scoring, str) else self.scoring
        for name in names if isinstance(names, list | tuple) else ():
            if name not in (known := get_scorer_names()):
                raise InvalidParameterError(
                    f"{type(self).__name__}: scoring must be names of scikit-learn's scorers, got {name!r}."
                    f"{hint(name, known)}"
                )

    def _check_routed_names(self):
        """Checks that the network and the optimizer have the parameters that they are given."""
        self._model_to_build(**dict.fromkeys(self._facts))
        if routed := self._routed("optimizer__"):
            require_tensorflow(type(self).__name__)
            kind, inside = self._optimizer_kind()
            known = list(dict.fromkeys([*known_of(kind), *inside]))
            for name in routed:
                if name not in known:
                    self._refuse("optimizer__", name, kind.__name__, [each for each in known if each != "name"])

    def _check_optimizer_values(self):
        from kopt.optimizers import Optimizer
        from kopt.optimizers.hyperparameters import RANGES

        kind, _ = self._optimizer_kind()
        own = known_of(kind)
        for name, value in self._routed("optimizer__").items():
            with invalid(f"{type(self).__name__}: optimizer__{name}: "):
                if name in own and issubclass(kind, Optimizer):
                    kind.check_argument(name, value)
                elif name in own and name in RANGES and isinstance(value, int | float):
                    check_range(kind.__name__, RANGES[name], **{name: value})

    def _check_loss(self):
        from kopt.training import losses

        if self.loss is not None:
            with invalid():
                losses.resolve(self.loss, True, type(self).__name__)

    def _check_activation(self, activation):
        import keras

        if not isinstance(activation, str):
            return
        try:
            keras.activations.get(activation)
        except ValueError:
            known = [name for name, held in vars(keras.activations).items() if inspect.isfunction(held)]
            raise InvalidParameterError(
                f"{type(self).__name__}: model__activation must be the name of a function in keras.activations, got "
                f"{activation!r}.{hint(activation, known)}"
            ) from None

    # ---- what they make ------------------------------------------------------------------------------------------

    def _optimizer_kind(self):
        """The optimizer's class, and the parameters that an instance has, those of optimizers inside it too."""
        given = "Adam" if self.optimizer is None else self.optimizer
        if isinstance(given, str):
            given = _optimizer_named(given, type(self).__name__)
        kind = given if isinstance(given, type) else type(given)
        if not hasattr(kind, "from_config"):
            raise InvalidParameterError(
                f"{type(self).__name__}: optimizer must be a name, a class or an instance, got {given!r}."
            )
        return kind, given.get_params() if hasattr(given, "get_params") and not isinstance(given, type) else {}

    def _optimizer_to_build(self):
        """The optimizer's class and its configuration."""
        kind, _ = self._optimizer_kind()
        is_instance = type(self.optimizer) is kind
        config = dict(self.optimizer.get_config() if is_instance else _default_config(kind))
        routed = self._routed("optimizer__")
        config |= {name: value for name, value in routed.items() if name in config}
        if nested := {name: value for name, value in routed.items() if name not in config}:  # as in inner__beta_1
            with invalid(f"{type(self).__name__}: optimizer__"):
                config = kind.from_config(dict(config)).set_params(**nested).get_config()
        return kind, config

    def _objective_to_build(self):
        """The objective as Keras serializes it, or None."""
        return objectives.planned(self.objective, self._routed("objective__"), type(self).__name__)

    def _model_to_build(self, **facts):
        """The function without arguments that makes the network, from what the data say."""
        routed = self._routed("model__")
        if _is_model(self.model):
            for name in routed:
                self._refuse("model__", name, "a model that is built already", ())
            return functools.partial(copy_of, self.model)
        build = mlp if self.model is None else self.model
        name = getattr(build, "__name__", repr(build))
        parameters = inspect.signature(build).parameters.values()
        known = {p.name: p.default for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)}
        if not any(p.kind is p.VAR_KEYWORD for p in parameters):
            for unknown in routed.keys() - known.keys():
                self._refuse("model__", unknown, name, [own for own in known if own not in facts])
        given = {fact: value for fact, value in facts.items() if fact in known} | routed
        for missing in (n for n, default in known.items() if default is inspect.Parameter.empty and n not in given):
            advised = ARGUMENTS.get(missing)
            raise InvalidParameterError(
                f"{type(self).__name__}: model must get all it needs, and {name} needs {missing}. "
                + (f"In kopt {advised}." if advised else f"Pass model__{missing}.")
            )
        return functools.partial(build, **given)


def require_tensorflow(owner):
    """Imports Keras, and says what is amiss where it cannot compute with TensorFlow."""
    check_fork(owner)
    with needs_tensorflow(owner):
        import keras
    if (backend := keras.backend.backend()) != "tensorflow":
        raise RuntimeError(f"{owner}: KERAS_BACKEND must be 'tensorflow', on which it trains, got {backend!r}.")


@contextlib.contextmanager
def invalid(before=""):
    """Makes scikit-learn's error of one that a value is of the wrong type or out of range."""
    try:
        yield
    except (TypeError, ValueError) as error:
        raise InvalidParameterError(f"{before}{error}") from None


@functools.cache
def known_of(kind):
    """The arguments of an optimizer's constructor: its own, and those that all optimizers take."""
    from kopt._keras import OPTIMIZER_OPTIONS
    from kopt.optimizers import Optimizer

    if issubclass(kind, Optimizer):
        return list(kind._signature())
    own = [p.name for p in inspect.signature(kind).parameters.values() if p.kind is not p.VAR_KEYWORD]
    return list(dict.fromkeys([*own, *OPTIMIZER_OPTIONS]))


def _is_model(model):
    keras = sys.modules.get("keras")  # where it is not imported, nobody can have made a model
    return keras is not None and isinstance(model, keras.Model)


def _optimizer_named(name, owner):
    found = _optimizers()
    if name.lower() not in found:
        names = [cls.__name__ for cls in found.values()]
        raise InvalidParameterError(
            f"{owner}: optimizer must be one of {', '.join(sorted(names))}, got {name!r}.{hint(name, names)}"
        )
    return found[name.lower()]


@functools.cache
def _optimizers():
    """The classes of optimizers by their names in lower case."""
    import keras

    from kopt import optimizers

    return {
        known.lower(): cls
        for source in (keras.optimizers, optimizers)  # kopt's own come last, and win
        for known, cls in vars(source).items()
        if isinstance(cls, type) and issubclass(cls, keras.optimizers.Optimizer) and _stands_alone(cls)
    }


def _stands_alone(optimizer):
    """Whether a name is all that an optimizer's class needs: bases and what takes another optimizer need more."""
    required = [p for p in inspect.signature(optimizer).parameters.values() if p.default is p.empty]
    return optimizer.__name__ != "Optimizer" and all(p.kind in (p.VAR_KEYWORD, p.VAR_POSITIONAL) for p in required)


@functools.cache
def _default_config(kind):
    return kind().get_config()


def copy_of(template):
    """Returns a model like this one, with weights of its own that are equal."""
    import keras

    twin = keras.models.clone_model(template)
    twin.set_weights(template.get_weights())
    for layer in twin._flatten_layers():
        if hasattr(layer, "finalize_state"):  # of a preprocessing layer: what it computes with, from its weights
            layer.finalize_state()
    return twin
