"""Constraints of weights, beside those that Keras has: for `kernel_constraint` and the like."""

import keras
from keras import ops

from kopt._checks import check_choice
from kopt.math import as_matrix, safe_norm, transpose


class Stiefel(keras.constraints.Constraint):
    """Keeps the columns of a kernel orthonormal: after each step, the kernel goes back to the Stiefel manifold.

        polar    W ← W (WᵀW)^(-1/2)                                 the nearest such matrix
        qr       W ← Q of W = QR, with the diagonal of R positive    cheaper, and near enough for small steps

    The kernel of a convolution is seen as a matrix: a column for each filter. Where there are more columns than rows,
    the rows are orthonormal. A layer so constrained changes no lengths of what it can pass on, so that deep and
    recurrent networks neither blow up nor die out; it cannot scale either: leave the last layer free.

    The polar factor is found by Newton and Schulz's iteration W ← W (3 I - WᵀW) / 2, which takes matrix products alone,
    until WᵀW = I up to rounding: a few after a step, some tens from any initial kernel. A kernel without full rank has
    no nearest matrix, and does not become orthonormal by it; with `"qr"` it does.

    Args:
        method: `"polar"` or `"qr"`.

    Raises:
        ValueError: `method` is another word; when called, a weight has fewer than two axes.

    References:
        Absil, Mahony and Sepulchre, *Optimization Algorithms on Matrix Manifolds*, 2008, section 4.1.1 (both are
        retractions). https://press.princeton.edu/absil
        Higham, *Functions of Matrices*, 2008, chapter 8 (the polar factor). https://doi.org/10.1137/1.9780898717778
    """

    def __init__(self, method="polar"):
        self.method = check_choice(self, ("polar", "qr"), method=method)

    def __call__(self, w):
        """Returns the weight, brought back."""
        w = ops.convert_to_tensor(w)
        if len(w.shape) < 2:
            raise ValueError(
                f"Stiefel: a weight must have two axes or more, as a kernel has, got the shape {tuple(w.shape)}."
            )
        wide = "float64" if keras.backend.standardize_dtype(w.dtype) == "float64" else "float32"
        x = ops.cast(ops.reshape(w, as_matrix(w.shape)), wide)
        turned = x.shape[0] < x.shape[1]
        x = transpose(x) if turned else x
        x = polar_factor(x) if self.method == "polar" else qr_factor(x)
        return ops.cast(ops.reshape(transpose(x) if turned else x, w.shape), w.dtype)

    def get_config(self):
        """Returns the constructor's arguments."""
        return dict(method=self.method)


keras.saving.register_keras_serializable("kopt")(Stiefel)


def polar_factor(w, limit=100):
    """UVᵀ of w = USVᵀ with no more columns than rows: w ← w (3 I - wᵀw) / 2 from σ(w) ≤ 1 until wᵀw = I"""
    eye = ops.eye(w.shape[1], dtype=w.dtype)
    close = (2.0**-52 if w.dtype == "float64" else 2.0**-23) * 4 * w.shape[1]

    def going(i, x, gram):
        return ops.logical_and(i < limit, ops.max(ops.abs(gram - eye)) > close)

    def body(i, x, gram):
        x = x @ (1.5 * eye - 0.5 * gram)
        return i + 1, x, transpose(x) @ x

    scale = safe_norm(w, (0, 1))
    w = w / ops.where(scale > 0, scale, 1)
    gram = transpose(w) @ w
    bound = ops.max(ops.sum(ops.abs(gram), axis=0))  # of the largest eigenvalue, and near it for a w near its factor
    bound = ops.where(bound > 0, bound, 1)
    return ops.while_loop(going, body, (0, w / ops.sqrt(bound), gram / bound))[1]


def qr_factor(w):
    """Q of w = QR, with the signs that make R's diagonal positive"""
    q, r = ops.qr(w)
    return ops.where(ops.diagonal(r) < 0, -q, q)
