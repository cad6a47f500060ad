"""Where a fit stands, and the order in which it visits rows: a function of nothing else."""

import dataclasses
import random

import numpy as np


@dataclasses.dataclass
class Progress:
    """Where a fit stands: with the model's variables, all that it takes to go on from there.

    A callback finds it as `model.progress`. One that sets it in `on_train_begin` decides where `fit` begins: at step
    `step` of epoch `epoch`, in the order of `seed`.

    Attributes:
        seed: of the order of rows.
        epoch: the present one, from 0.
        step: how many steps of it have been taken.
    """

    seed: int
    epoch: int = 0
    step: int = 0

    @classmethod
    def begin(cls, epoch):
        """At the beginning of an epoch, with a seed of Python's generator, which `keras.utils.set_random_seed` sets."""
        return cls(random.getrandbits(31), epoch)


def order_of(rows, batch_size, shuffle, seed, number):
    """The rows' indices in the order of a pass over all of them.

    Args:
        rows: how many there are.
        batch_size: rows in a batch.
        shuffle: whether to shuffle them; `"batch"` for within each full batch alone.
        seed: an integer.
        number: of the pass, from 0. Passes have different orders.
    """
    indices = np.arange(rows, dtype="int32")
    if not shuffle:
        return indices
    rng = np.random.default_rng((seed, number))
    if shuffle == "batch":
        full = indices[: rows - rows % batch_size].reshape(-1, batch_size)
        rng.permuted(full, axis=1, out=full)
    else:
        rng.shuffle(indices)
    return indices
