"""What a step minimizes in the place of the batch's loss."""

from kopt.layers.base import Noise


class Objective(Noise):
    """Base class of objectives, for `kopt.Model.compile(objective=...)`.

    A subclass writes `total(look)`. It is told by a `kopt.training.look.Look`: the batch, the model's outputs for it
    or for other rows, and the loss. Its random state is part of the model's: a fit that is resumed draws on.

    Args:
        seed: an integer, for the same draws in every run; None draws a new one.
        **kwargs: those of `keras.layers.Layer`.
    """

    def total(self, look):
        """Returns the model's outputs, of which metrics are computed, and the loss to minimize: a scalar tensor."""
        raise NotImplementedError(f"{type(self).__name__} must define total(look).")
