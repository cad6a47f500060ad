"""What a user got wrong, in the house style: one sentence with class, argument, rule and value, and the fix."""

import contextlib
import math
from numbers import Integral, Real
from typing import Any


class Refusal(Exception):
    """What was asked for on the command line cannot be had; one sentence says why."""


def check_range(owner, interval, *, kind: Any = Real, **given: Any) -> Any:
    """Returns the one value in `given` if it is a number in `interval`, else raises.

    Args:
        owner: who asks, a name or an object (its class is named).
        interval: `"[0, 1)"`-style text: brackets include the bound, parentheses do not.
        kind: `numbers.Real` or `numbers.Integral`.
        **given: the argument, by its name.

    Raises:
        TypeError: the value is no number of this kind.
        ValueError: the value lies outside the interval.
    """
    ((name, value),) = given.items()
    who = owner if isinstance(owner, str) else type(owner).__name__
    noun = "an integer" if kind is Integral else "a number"
    rule = f"{who}: {name} must be {noun} in {interval}, got {value!r}."
    if isinstance(value, bool) or not isinstance(value, kind):
        raise TypeError(rule)
    low, high = (float(bound) for bound in interval[1:-1].split(","))
    above = value >= low if interval[0] == "[" else value > low
    below = value <= high if interval[-1] == "]" else value < high
    if math.isnan(value) or not (above and below):
        raise ValueError(rule)
    return value


def check_choice(owner, choices, **given: Any) -> Any:
    """Returns the one value in `given` if it is among `choices`, else raises ValueError."""
    ((name, value),) = given.items()
    who = owner if isinstance(owner, str) else type(owner).__name__
    if not any(value is choice or (type(value) is type(choice) and value == choice) for choice in choices):
        listed = ", ".join(map(repr, choices))
        raise ValueError(f"{who}: {name} must be one of {listed}, got {value!r}.")
    return value


@contextlib.contextmanager
def needs_tensorflow(owner):
    """Around an import: where it fails for want of TensorFlow, says which extras bring it."""
    try:
        yield
    except ModuleNotFoundError as error:
        if error.name != "tensorflow":
            raise
        raise ModuleNotFoundError(
            f"{owner} needs TensorFlow, which is not installed. Install one of kopt[tensorflow], kopt[tensorflow-cpu], "
            "kopt[gpu] or kopt[tpu]; optimizers and layers also run with KERAS_BACKEND=jax.",
            name=error.name,
        ) from error


def pyplot(owner):
    """Returns `matplotlib.pyplot`; where matplotlib is missing, says which extra brings it."""
    try:
        import matplotlib.pyplot as plt
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            f"{type(owner).__name__}.plot needs matplotlib, which is not installed. Install kopt[plot].",
            name=error.name,
        ) from error
    return plt
