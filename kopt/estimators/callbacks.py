"""The parameter `callbacks`: what it may be, and the instances that a fit calls."""

import copy
import inspect

from sklearn.utils._param_validation import InvalidParameterError

from kopt.estimators.vocabulary import hint


def instances(given, routed, owner):
    """Returns instances for one fit, which are the estimator's own: what the user gave is never changed.

    Args:
        given: None; a name, a class or an instance; a list of these; or a dictionary of them by names of the user's.
        routed: arguments of classes, by `name__argument`. The name is the user's, else that of the class.
        owner: who asks, for errors.

    Raises:
        sklearn.utils._param_validation.InvalidParameterError: one is no callback of Keras, there is none of a name, or
            none that takes an argument.
    """
    return [
        kind(**arguments) if isinstance(kind, type) else _copy(kind)
        for kind, arguments in planned(given, routed, owner)
    ]


def planned(given, routed, owner):
    """Returns classes with their arguments, and instances with none; the arguments are as for `instances`."""
    named = given if isinstance(given, dict) else {}
    plan, left = [], dict(routed)
    for own, callback in named.items() or ((None, callback) for callback in _listed(given)):
        kind = _named(callback, owner) if isinstance(callback, str) else callback
        name = own or (kind if isinstance(kind, type) else type(kind)).__name__
        arguments = {n.removeprefix(f"{name}__"): left.pop(n) for n in routed if n.startswith(f"{name}__")}
        _check(kind, arguments, f"callbacks__{name}__", owner)
        plan.append((kind, arguments))
    for unknown in left:
        raise InvalidParameterError(f"{owner}: callbacks__{unknown} must name one of the callbacks, got {given!r}.")
    return plan


def follows_validation(callback):
    """Whether a callback needs a value of held-out rows, as those that stop early do."""
    if getattr(callback, "save_best_only", True) is False:
        return False
    return str(getattr(callback, "monitor", "")).startswith("val_")


def _listed(given):
    if given is None:
        return []
    return given if isinstance(given, list | tuple) else [given]


def _check(kind, arguments, route, owner):
    import keras

    base = keras.callbacks.Callback
    if not (issubclass(kind, base) if isinstance(kind, type) else isinstance(kind, base)):
        raise InvalidParameterError(f"{owner}: callbacks must be names, classes or instances of Keras's, got {kind!r}.")
    if arguments and not isinstance(kind, type):
        raise InvalidParameterError(
            f"{owner}: {route}{next(iter(arguments))} needs a class to be made, got an instance."
        )
    known = list(inspect.signature(kind).parameters) if arguments else []
    for argument in arguments.keys() - known:
        raise InvalidParameterError(
            f"{owner}: {route}{argument} is no argument of {kind.__name__}; it takes {', '.join(known)}."
            f"{hint(argument, known)}"
        )


def _copy(callback):
    """A copy without the model that the callback was last used with."""
    from kopt.training.followers import detach

    alone = copy.copy(callback)
    detach(alone)
    return copy.deepcopy(alone)


def _named(name, owner):
    import keras

    from kopt import callbacks

    found = {
        known.lower(): cls
        for source in (keras.callbacks, callbacks)
        for known, cls in vars(source).items()
        if isinstance(cls, type) and issubclass(cls, keras.callbacks.Callback) and cls is not keras.callbacks.Callback
    }
    if name.lower() not in found:
        names = [cls.__name__ for cls in found.values()]
        raise InvalidParameterError(
            f"{owner}: callbacks must be among {', '.join(sorted(names))}, got {name!r}.{hint(name, names)}"
        )
    return found[name.lower()]
