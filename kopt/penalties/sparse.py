"""Penalties that make weights zero, one by one or by groups; each has a proximal map that makes the zeros exact."""

import math
from collections.abc import Sequence
from numbers import Integral
from typing import Any

from keras import ops

from kopt._checks import check_range
from kopt.math import block_soft_threshold, safe_norm, soft_threshold
from kopt.penalties.base import Penalty, in_many_bits


class Sparse(Penalty):
    """Base class of penalties with a proximal map, which `kopt.Proximal` takes.

    A subclass writes `value` and `shrunk`. Axes of a weight are counted from the end: `shrunk` gets a stack of weights,
    whose first axis counts them.
    """

    elementwise = False
    """Whether each entry is penalized by itself."""

    def shrunk(self, w, step):
        """The proximal map of a stack of weights: argminₓ ½ ‖x - w‖² + step · strength · value(x), for each."""
        raise NotImplementedError(f"{type(self).__name__} must define shrunk(w, step).")

    def prox(self, w, step):
        """Returns argminₓ ½ ‖x - w‖² + step · penalty(x): the weight, shrunk; zeros in it are exact.

        Args:
            w: a weight.
            step: a number in [0, inf) or a scalar tensor.
        """
        return ops.squeeze(self.shrunk(ops.expand_dims(in_many_bits(w), 0), step), 0)

    def check_shape(self, shape):
        """Raises ValueError if a weight of this shape cannot be penalized."""


class Lasso(Sparse):
    """Pulls each entry of a weight to zero with the same force.

        strength · Σ |w|        prox: sign(w) · max(|w| - step · strength, 0)

    As `keras.regularizers.L1`, with a proximal map. As a regularizer it makes entries small, and hardly ever zero: its
    gradient jumps over the zero. In `kopt.Proximal` the zeros are exact.

    Args:
        strength: in [0, inf).

    Raises:
        TypeError: `strength` is no number.
        ValueError: `strength` is out of range.

    References:
        Tibshirani, *Regression Shrinkage and Selection via the Lasso*, 1996.
        https://doi.org/10.1111/j.2517-6161.1996.tb02080.x
    """

    elementwise = True

    def value(self, w):
        """Σ |w|"""
        return ops.sum(absolute(w))

    def shrunk(self, w, step):
        """sign(w) max(|w| - step · strength, 0)"""
        return soft_threshold(w, step * self.strength)


class GroupLasso(Sparse):
    """Pulls groups of entries to zero as wholes: all that leads to a unit, or all that an input leads to.

        strength · Σ_g √size_g · ‖w_g‖        prox: max(1 - step · strength · √size_g / ‖w_g‖, 0) · w_g

    A group that is zero can be cut out of the network: this is pruning of units, filters or channels. As a regularizer
    it makes groups small; in `kopt.Proximal` they become exactly zero. Its slope at a group of zeros is taken as 0.

    The factor √size is that of the paper. Wen et al., who brought groups to convolutions, leave it out: take
    `strength / √size` for their numbers.

    Args:
        strength: in [0, inf).
        by: what a group belongs to: `"unit"`, an output, that is an index of the last axis: a unit of a dense layer, a
            filter of a convolution; `"input"`, an index of the last axis but one: an input feature, a channel, a row of
            an embedding; or axes, counted from the end, each of whose indices has a group: -2 for the heads of
            attention's query, key and value kernels. A bias has groups of one by unit.

    Raises:
        TypeError: `strength` is no number.
        ValueError: `strength` is out of range, or `by` is nothing of this; when called, a weight has no such axis.

    References:
        Yuan and Lin, *Model Selection and Estimation in Regression with Grouped Variables*, 2006.
        https://doi.org/10.1111/j.1467-9868.2005.00532.x
        Wen et al., *Learning Structured Sparsity in Deep Neural Networks*, 2016. https://arxiv.org/abs/1608.03665
    """

    def __init__(self, strength, by: str | int | Sequence[int] = "unit"):
        super().__init__(strength)
        self.by = list(by) if isinstance(by, list | tuple) else by
        axes: Any = {"unit": -1, "input": -2}.get(by, by) if isinstance(by, str) else by
        axes = axes if isinstance(axes, list | tuple) else [axes]
        if not axes or not all(isinstance(a, Integral) and not isinstance(a, bool) and a < 0 for a in axes):
            raise ValueError(
                f"{type(self).__name__}: by must be 'unit', 'input', or axes counted from the end, as -2, got {by!r}."
            )
        self._apart = {int(axis) for axis in axes}

    def check_shape(self, shape):
        """Raises ValueError if a weight of this shape lacks an axis that groups belong to."""
        if len(shape) < -min(self._apart):
            raise ValueError(
                f"{type(self).__name__}: a weight must have {-min(self._apart)} axes or more with by={self.by!r}, got "
                f"the shape {tuple(shape)}."
            )

    def _lengths(self, w, rank):
        """The axes within a group of weights of this rank, from the end, and √size."""
        self.check_shape(w.shape[len(w.shape) - rank :])
        axes = tuple(axis for axis in range(-rank, 0) if axis not in self._apart)
        return axes, math.sqrt(math.prod(w.shape[axis] for axis in axes))

    def value(self, w):
        """Σ_g √size_g · ‖w_g‖"""
        axes, root = self._lengths(w, len(w.shape))
        return root * ops.sum(safe_norm(w, axes) if axes else absolute(w))

    def shrunk(self, w, step):
        """max(1 - step · strength · √size / ‖w_g‖, 0) w_g"""
        axes, root = self._lengths(w, len(w.shape) - 1)
        force = step * self.strength * root
        return block_soft_threshold(w, force, axes) if axes else soft_threshold(w, force)


class SparseGroupLasso(GroupLasso):
    """Pulls groups to zero as wholes, and single entries in the groups that stay.

        strength · (l1_share · Σ |w| + (1 - l1_share) · Σ_g √size_g · ‖w_g‖)

    The proximal map is that of the lasso, then that of the group lasso: in this order the two together are exact.

    Args:
        strength: in [0, inf).
        l1_share: α, the part of the lasso, in [0, 1]; 0.95 in the paper's simulations.
        by: what a group belongs to, as in `GroupLasso`.

    Raises:
        TypeError: `strength` or `l1_share` is no number.
        ValueError: one is out of range, or `by` is wrong as in `GroupLasso`.

    References:
        Simon, Friedman, Hastie and Tibshirani, *A Sparse-Group Lasso*, 2013.
        https://doi.org/10.1080/10618600.2012.681250
    """

    def __init__(self, strength, l1_share, by: str | int | Sequence[int] = "unit"):
        super().__init__(strength, by)
        self.l1_share = float(check_range(self, "[0, 1]", l1_share=l1_share))

    def value(self, w):
        """α Σ |w| + (1 - α) Σ_g √size_g · ‖w_g‖"""
        return self.l1_share * ops.sum(absolute(w)) + (1 - self.l1_share) * super().value(w)

    def shrunk(self, w, step):
        """The group lasso's map of the lasso's"""
        w = soft_threshold(w, step * self.strength * self.l1_share)
        return super().shrunk(w, step * (1 - self.l1_share))


def absolute(w):
    """|w|, with the slope 0 at 0, where JAX has 1"""
    return w * ops.stop_gradient(ops.sign(w))
