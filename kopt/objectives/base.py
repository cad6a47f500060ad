"""What a step minimizes in the place of the batch's loss."""

import keras
from keras import tree

from kopt.layers.base import Noise, Rated


class Objective(Rated):
    """Base class of objectives, for `kopt.Model.compile(objective=...)`.

    A subclass writes `total(look)`. It is told by a `kopt.training.look.Look`: the batch, the model's outputs for it
    or for other rows, and the loss.

    Args:
        **kwargs: those of `keras.layers.Layer`.
    """

    def total(self, look):
        """Returns the model's outputs, of which metrics are computed, and the loss to minimize: a scalar tensor."""
        raise NotImplementedError(f"{type(self).__name__} must define total(look).")


class Drawing(Objective, Noise):
    """Base class of objectives that draw random numbers, whose state is part of the model's: a resumed fit draws on.

    Args:
        seed: an integer, for the same draws in every run; None draws a new one.
        **kwargs: those of `keras.layers.Layer`.
    """

    def save_own_variables(self, store):
        """Writes weights and the random state, of which Keras keeps none in files."""
        super().save_own_variables(store)
        store["seed"] = keras.ops.convert_to_numpy(self.seed_generator.state)

    def load_own_variables(self, store):
        """Reads what `save_own_variables` wrote."""
        self.seed_generator.state.assign(store["seed"])
        names = set(store.keys()) - {"seed"}
        super().load_own_variables({name: store[name] for name in names})


def floats(owner, x, purpose):
    """Returns rows, if all of them are floats.

    Raises:
        ValueError: some are not.
    """
    for part in tree.flatten(x):
        if "float" not in keras.backend.standardize_dtype(part.dtype):
            raise ValueError(f"{type(owner).__name__}: rows must be floats {purpose}, got {part.dtype}.")
    return x
