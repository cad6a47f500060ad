"""The objective of an estimator: a name, a class or an instance of `kopt.objectives`, and its parameters."""

import inspect

from sklearn.utils._param_validation import InvalidParameterError

from kopt.estimators.vocabulary import hint


def planned(given, routed, owner):
    """Returns the objective of an estimator as Keras serializes it, its own arguments alone; None for none.

    Args:
        given: what the estimator got as `objective`.
        routed: what it got as `objective__*`, by name.
        owner: the estimator, for errors.

    Raises:
        InvalidParameterError: there is no such objective, or it has no such parameter, or one is missing or wrong.
    """
    if given is None:
        for name in routed:
            raise InvalidParameterError(f"{owner}: objective must be given with objective__{name}, got None.")
        return None
    import keras

    from kopt._keras import sketching

    kind = _kind(given, owner)
    parameters = inspect.signature(kind).parameters.values()
    known = {p.name: p.default for p in parameters if p.kind is not p.VAR_KEYWORD}
    for name in routed:
        if name not in known:
            raise InvalidParameterError(
                f"{owner}: objective__{name} is no parameter of {kind.__name__}; it takes {', '.join(known)}."
                f"{hint(name, known)}"
            )
    has = {} if isinstance(given, type | str) else {name: getattr(given, name) for name in known}
    for name, default in known.items():
        if default is inspect.Parameter.empty and name not in has | routed:
            raise InvalidParameterError(
                f"{owner}: objective must get all it needs, and {kind.__name__} needs {name}. Pass objective__{name}."
            )
    try:
        with sketching():
            made = keras.saving.serialize_keras_object(kind(**has | routed))
    except (TypeError, ValueError) as error:
        raise InvalidParameterError(f"{owner}: objective: {error}") from None
    return made | {"config": {name: value for name, value in made["config"].items() if name in known}}


def _kind(given, owner):
    """The class of an objective."""
    from kopt import objectives

    names = [name for name in objectives.__all__ if name != "Objective"]
    if isinstance(given, str):
        if given not in names:
            raise InvalidParameterError(
                f"{owner}: objective must be one of {', '.join(sorted(names))}, got {given!r}.{hint(given, names)}"
            )
        return getattr(objectives, given)
    kind = given if isinstance(given, type) else type(given)
    if not issubclass(kind, objectives.Objective):
        raise InvalidParameterError(f"{owner}: objective must be one of kopt.objectives, got {given!r}.")
    return kind
