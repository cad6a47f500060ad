"""Penalties of a kernel's singular values: how far they are from 1, and how large the largest is."""

from numbers import Integral

import numpy as np
from keras import ops

from kopt._checks import check_choice, check_range
from kopt.math import safe_norm, transpose
from kopt.penalties.base import Penalty, matrix


class Orthogonal(Penalty):
    """Pulls the columns of a kernel towards orthonormal ones, so that its layer changes no lengths.

        soft         strength · ‖WᵀW - I‖²             over all entries
        coherence    strength · max_i Σ_j |WᵀW - I|_ij
        spectral     strength · σ(WᵀW - I)             the largest singular value

    The kernel of a convolution is seen as a matrix: a column for each filter. Where there are more columns than rows,
    no kernel has orthonormal columns: there the rows are to be, WWᵀ - I.

    In the paper the spectral form (SRIP) is the best of them. The authors' code multiplies the strength by 0.001 after
    20 epochs, and further in steps to 0. The paper's double soft form, ‖WᵀW - I‖² + ‖WWᵀ - I‖², is the soft one
    with twice the strength, a constant apart, and so is none of its own here.

    The authors' code takes one power iteration from new random numbers at each step, differentiates through it, and
    penalizes the square of what it gives. Here σ is the paper's, not squared, by power iterations that begin at fixed
    numbers and are not differentiated: their vector is the slope's own as far as they have converged.

    Args:
        strength: in [0, inf).
        form: `"soft"`, `"coherence"` or `"spectral"`.
        steps: power iterations of the spectral form, from 1. Each costs as much as a pass of two rows.

    Raises:
        TypeError: `strength` is no number, or `steps` no integer.
        ValueError: one is out of range, or `form` is another word; when called, a weight has fewer than two axes.

    References:
        Bansal, Chen and Wang, *Can We Gain More from Orthogonality Regularizations in Training Deep CNNs?*, 2018.
        https://arxiv.org/abs/1810.09102
    """

    def __init__(self, strength, form="soft", steps=10):
        super().__init__(strength)
        self.form = check_choice(self, ("soft", "coherence", "spectral"), form=form)
        self.steps = int(check_range(self, "[1, inf)", kind=Integral, steps=steps))

    def value(self, w):
        """The form, of the kernel as a matrix"""
        w = matrix(self, w)
        w = transpose(w) if w.shape[0] < w.shape[1] else w
        if self.form == "spectral":

            def away(x):
                return transpose(w) @ (w @ x) - x

            return safe_norm(away(leading(away, w.shape[1], self.steps, w.dtype)), (0, 1))[0, 0]
        away = transpose(w) @ w - ops.eye(w.shape[1], dtype=w.dtype)
        return ops.sum(ops.square(away)) if self.form == "soft" else ops.max(ops.sum(ops.abs(away), axis=1))


class SpectralNorm(Penalty):
    """Pulls the largest singular value of a kernel down, and with it how much the layer can stretch a change.

        strength / 2 · σ(W)²

    For networks that are to change little when their inputs do. The kernel of a convolution is seen as a matrix: a
    column for each filter. Others are left as they are: unlike weight decay it does not pull down directions that the
    layer does not stretch.

    The paper takes one power iteration at each step, from where the last step's ended. A regularizer keeps no state:
    here `steps` iterations begin at fixed numbers. They are not differentiated, as in the paper.

    Args:
        strength: λ, in [0, inf); 0.01 in the paper.
        steps: power iterations, from 1. Each costs as much as a pass of two rows.

    Raises:
        TypeError: `strength` is no number, or `steps` no integer.
        ValueError: one is out of range; when called, a weight has fewer than two axes.

    References:
        Yoshida and Miyato, *Spectral Norm Regularization for Improving the Generalizability of Deep Learning*, 2017.
        https://arxiv.org/abs/1705.10941
    """

    def __init__(self, strength, steps=10):
        super().__init__(strength)
        self.steps = int(check_range(self, "[1, inf)", kind=Integral, steps=steps))

    def value(self, w):
        """σ(W)² / 2"""
        w = matrix(self, w)
        x = leading(lambda x: transpose(w) @ (w @ x), w.shape[1], self.steps, w.dtype)
        return ops.sum(ops.square(w @ x)) / 2


def leading(product, size, steps, dtype):
    """The direction that a symmetric matrix stretches most, by power iterations from fixed numbers; a constant"""
    x = ops.convert_to_tensor(np.random.default_rng(0).standard_normal((size, 1)), dtype)

    def step(_, x):
        return product(x / ops.maximum(safe_norm(x, (0, 1)), np.finfo(np.float32).tiny))

    x = ops.fori_loop(0, steps, step, x)
    length = safe_norm(x, (0, 1))
    start = ops.convert_to_tensor(np.eye(size, 1), dtype)
    return ops.stop_gradient(ops.where(length > 0, x / ops.where(length > 0, length, 1), start))
