"""The parameter `callbacks`: what it may be, and the instances that a fit calls."""

import copy
import difflib
import inspect


def instances(given, routed, owner):
    """Returns instances for one fit, which are the estimator's own: what the user gave is never changed.

    Args:
        given: None; a name, a class or an instance; a list of these; or a dictionary of them by names of the user's.
        routed: arguments of classes, by `name__argument`. The name is the user's, else that of the class.
        owner: who asks, for errors.

    Raises:
        TypeError: one is no callback of Keras.
        ValueError: there is no callback of a name, or none that takes an argument.
    """
    named = given if isinstance(given, dict) else {}
    made, left = [], dict(routed)
    for own, callback in named.items() or ((None, callback) for callback in _listed(given)):
        kind = _named(callback, owner) if isinstance(callback, str) else callback
        name = own or (kind if isinstance(kind, type) else type(kind)).__name__
        arguments = {n.removeprefix(f"{name}__"): left.pop(n) for n in routed if n.startswith(f"{name}__")}
        made.append(_made(kind, arguments, name, owner))
    for unknown in left:
        raise ValueError(f"{owner}: callbacks__{unknown} must name one of the callbacks, got {given!r}.")
    return made


def follows_validation(callback):
    """Whether a callback needs a value of held-out rows, as those that stop early do."""
    if getattr(callback, "save_best_only", True) is False:
        return False
    return str(getattr(callback, "monitor", "")).startswith("val_")


def _listed(given):
    if given is None:
        return []
    return given if isinstance(given, list | tuple) else [given]


def _made(kind, arguments, name, owner):
    import keras

    if not isinstance(kind, type):
        if not isinstance(kind, keras.callbacks.Callback):
            raise TypeError(f"{owner}: callbacks must be names, classes or instances of Keras's, got {kind!r}.")
        for argument in arguments:
            raise ValueError(f"{owner}: callbacks__{name}__{argument} needs a class to be made, got an instance.")
        return _copy(kind)
    if not issubclass(kind, keras.callbacks.Callback):
        raise TypeError(f"{owner}: callbacks must be names, classes or instances of Keras's, got {kind!r}.")
    known = inspect.signature(kind).parameters
    for argument in arguments.keys() - known.keys():
        raise ValueError(
            f"{owner}: callbacks__{name}__{argument} is no argument of {kind.__name__}; it takes {', '.join(known)}."
        )
    return kind(**arguments)


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
        near = [found[known].__name__ for known in difflib.get_close_matches(name.lower(), found, n=1)]
        hint = f" Did you mean {near[0]!r}?" if near else ""
        names = ", ".join(sorted(cls.__name__ for cls in found.values()))
        raise ValueError(f"{owner}: callbacks must be among {names}, got {name!r}.{hint}")
    return found[name.lower()]
