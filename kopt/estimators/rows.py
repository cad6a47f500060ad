"""The rows of a fit, with all that belongs to each; taking some of them copies no large matrix."""

import dataclasses
import math
from typing import Any

import numpy as np
from sklearn.utils import _safe_indexing

LARGE = 2**23
"""Bytes of a matrix from which on some of its rows are not copied, but looked up."""


@dataclasses.dataclass(frozen=True)
class Rows:
    """What a fit was given, a row each.

    Attributes:
        X: rows to compute with.
        y: targets, as the user has them.
        w: weights in the loss.
        given: what to show to others for X: where columns have names, the user's table.
        sample_weight: the user's weights, or None.
        codes: targets, as the network has them; None before they are known.
    """

    X: Any
    y: Any
    w: Any
    given: Any
    sample_weight: Any = None
    codes: Any = None

    def take(self, index):
        """Returns some of the rows."""
        X = some(self.X, index)
        others = {name: a for name, a in vars(self).items() if name != "X"}
        return Rows(
            X, **{n: a if a is None else X if a is self.X else _safe_indexing(a, index) for n, a in others.items()}
        )

    def present(self, owner):
        """Returns the rows whose weight is not zero."""
        if not self.w.any():
            raise ValueError(f"{owner}: sample_weight must not be zero for every row.")
        return self if self.w.all() else self.take(np.flatnonzero(self.w))

    def metadata(self):
        """Returns the arguments that `score` takes besides rows and targets."""
        return {} if self.sample_weight is None else {"sample_weight": self.sample_weight}


def some(a, index):
    """Some rows of an array or a table, of which a large dense one is left where it is."""
    if isinstance(a, np.ndarray | Some) and len(index) * math.prod(a.shape[1:]) * a.dtype.itemsize > LARGE:
        return Some(a, index)
    return _safe_indexing(a, index) if not isinstance(a, Some) else a[index]


class Some:
    """Rows of an array, looked up when they are asked for."""

    def __init__(self, array, index):
        if isinstance(array, Some):
            array, index = array.array, array.index[index]
        self.array, self.index = array, index
        self.shape, self.dtype, self.ndim = (len(index), *array.shape[1:]), array.dtype, array.ndim

    def __len__(self):
        return len(self.index)

    def __getitem__(self, rows):
        return self.array[self.index[rows]]

    def __array__(self, dtype=None, copy=None):
        return np.asarray(self[:], dtype)
