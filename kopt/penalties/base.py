"""What penalties share: arguments written once, in the signature, and kernels seen as matrices."""

import inspect

import keras
from keras import ops

from kopt._checks import check_range
from kopt.math import as_matrix


class Penalty(keras.regularizers.Regularizer):
    """Base class of kopt's penalties: a subclass keeps the arguments of its `__init__` under their names.

    The config and the round trip through a saved model follow from the signature. A subclass writes `value`.

    Args:
        strength: factor of the penalty, in [0, inf).

    Raises:
        TypeError: `strength` is no number.
        ValueError: `strength` is out of range.
    """

    def __init__(self, strength):
        if callable(strength):
            raise TypeError(
                f"{type(self).__name__}: strength must be a number in [0, inf), since nobody tells a penalty the step, "
                f"got {strength!r}. Try setting strength to another number, and compile the model again."
            )
        self.strength = float(check_range(self, "[0, inf)", strength=strength))

    def __init_subclass__(cls, **kwargs):
        """Makes the class known to `keras.saving` under its package's name, as in `kopt>GroupLasso`."""
        super().__init_subclass__(**kwargs)
        keras.saving.register_keras_serializable(cls.__module__.partition(".")[0])(cls)

    def value(self, w):
        """The penalty of one weight, without its strength."""
        raise NotImplementedError(f"{type(self).__name__} must define value(w).")

    def __call__(self, w):
        """Returns the penalty of a weight: a scalar of its type, of float32 for a type of fewer bits."""
        return self.strength * self.value(in_many_bits(w))

    def get_config(self):
        """Returns the constructor's arguments."""
        return {name: getattr(self, name) for name in inspect.signature(type(self)).parameters}

    def __repr__(self):
        return f"{type(self).__name__}({', '.join(f'{name}={x!r}' for name, x in self.get_config().items())})"

    def __eq__(self, other):
        return type(other) is type(self) and other.get_config() == self.get_config()

    def __hash__(self):
        return hash(repr(self))


def in_many_bits(w):
    """A weight as a tensor, in float32 where its type has fewer bits: sums over it would lose most of them."""
    w = ops.convert_to_tensor(w)
    return w if keras.backend.standardize_dtype(w.dtype) == "float64" else ops.cast(w, "float32")


def matrix(owner, w):
    """A kernel as a matrix (inputs, outputs): of a convolution, what a filter covers is its inputs.

    Raises:
        ValueError: it has fewer than two axes.
    """
    if len(w.shape) < 2:
        raise ValueError(
            f"{type(owner).__name__}: a weight must have two axes or more, as a kernel has, got the shape "
            f"{tuple(w.shape)}."
        )
    return ops.reshape(w, as_matrix(w.shape))
