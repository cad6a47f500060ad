"""Symmetric matrices of which only products with vectors are known: solved, minimized in a ball, approximated."""

from typing import Any, NamedTuple

import numpy as np
from keras import ops, tree

from kopt.math.ratios import ratio


class Iterate(NamedTuple):
    """Where conjugate gradients are.

    Attributes:
        x: the solution so far.
        r: its residual b - A x.
        p: the direction to take next.
        rz: ⟨r, M⁻¹ r⟩, with the preconditioner M.
        model: ½ ⟨x, A x⟩ - ⟨b, x⟩, which falls from iterate to iterate.
    """

    x: Any
    r: Any
    p: Any
    rz: Any
    model: Any


class Solution(NamedTuple):
    """What conjugate gradients found.

    Attributes:
        x: the solution.
        model: ½ ⟨x, A x⟩ - ⟨b, x⟩.
        products: how many were taken.
        stopped: whether the way ended where the matrix is not positive, or at the boundary.
    """

    x: Any
    model: Any
    products: Any
    stopped: Any


def same(x):
    """x: no preconditioner"""
    return x


def length(x):
    """‖x‖"""
    return ops.sqrt(ops.vdot(x, x))


def choose(condition, a, b):
    """a where a scalar condition holds, else b, in each part of a structure"""
    return tree.map_structure(lambda x, y: ops.where(condition, x, y), a, b)


# ---- conjugate gradients ---------------------------------------------------------------------------------------------


def start(b, x, product_x, inverse=same):
    """r = b - A x,  p = M⁻¹ r"""
    r = b - product_x
    z = inverse(r)
    return Iterate(x, r, z, ops.vdot(r, z), -ops.vdot(b + r, x) / 2)


def advance(at, product_p, inverse=same, beta=1.0):
    """α = ⟨r, p⟩ / ⟨p, A p⟩,  x + α p,  r - α A p,  p = z + β ⟨r, z⟩ / ⟨r, z⟩₋₁ p, with β = 0 to begin anew"""
    slope = ops.vdot(at.r, at.p)  # in exact arithmetic ⟨r, z⟩, but after an x to begin with
    alpha = ratio(slope, ops.vdot(at.p, product_p))
    r = at.r - alpha * product_p
    z = inverse(r)
    rz = ops.vdot(r, z)
    return Iterate(at.x + alpha * at.p, r, z + beta * rz / at.rz * at.p, rz, at.model - alpha * slope / 2)


def conjugate_gradients(product, b, x=None, *, tolerance, limit, inverse=same):
    """Solves A x = b for a symmetric A by preconditioned conjugate gradients.

    They end where the residual is short, and where a direction is not one of positive curvature: there with the
    iterate so far, which is a direction of descent of ½ ⟨x, A x⟩ - ⟨b, x⟩; and in place of the first iterate, with
    the step along the first direction whose length the size of the curvature gives, as scipy's Newton-CG does.
    Curvature counts as positive where it is more than what rounding leaves of the largest that was met.

    Args:
        product: returns A times a vector.
        b: a vector.
        x: a guess of the solution, or None. Its best multiple is where they begin, so that even a bad one leads down;
            that costs a product. Zero, if there is no positive curvature along it.
        tolerance: ends where ‖b - A x‖ ≤ tolerance ‖b‖.
        limit: the most products to take, that of the guess not counted.
        inverse: returns M⁻¹ times a vector, for a positive M whose inverse is near to A's.
    """
    nowhere, epsilon = ops.zeros_like(b), np.finfo(ops.dtype(b)).eps
    cold, target = start(b, nowhere, nowhere, inverse), tolerance * length(b)

    def going(i, at, stopped, largest):
        return (i < limit) & (length(at.r) > target) & (at.rz > 0) & ~stopped

    def body(i, at, stopped, largest):
        product_p, guessed = product(at.p), i < 0
        curvature, size = ops.vdot(at.p, product_p), ops.vdot(at.p, at.p)
        largest = ops.maximum(largest, ratio(ops.abs(curvature), size))
        bent = ~(curvature > epsilon * largest * size)
        scale = ops.where(curvature < 0, at.rz / -curvature, 1)
        first = at._replace(x=at.x + scale * at.p, model=at.model - scale * at.rz + scale**2 * curvature / 2)
        end = choose(guessed, cold, choose(i == 0, first, at))
        ahead = advance(at, product_p, inverse, ops.where(guessed, ops.zeros_like(size), 1))
        return i + 1, choose(bent, end, ahead), bent & ~guessed, largest

    i, at = (0, cold) if x is None else (-1, cold._replace(p=x))
    nothing = ops.full((), i, "int32"), at, ops.zeros((), "bool"), ops.zeros_like(target)
    i, at, stopped, _ = ops.while_loop(going, body, nothing)
    return Solution(at.x, at.model, i + (x is not None), stopped)


def steihaug(product, g, radius, *, tolerance, limit):
    """Minimizes ⟨g, x⟩ + ½ ⟨x, A x⟩ over ‖x‖ ≤ radius, nearly: by conjugate gradients, as far as the ball goes.

    They end where the residual is short; where they would leave the ball, on its boundary; and where a direction is not
    one of positive curvature, at the lower of the two points in which its line meets the boundary.

    Args:
        product: returns A times a vector.
        g: a vector.
        radius: a scalar; at 0 the answer is 0.
        tolerance: ends where ‖g + A x‖ ≤ tolerance ‖g‖.
        limit: the most products to take.
    """
    target = tolerance * length(g)

    def going(i, at, stopped):
        return (i < limit) & (length(at.r) > target) & ~stopped

    def body(i, at, stopped):
        product_p = product(at.p)
        curvature = ops.vdot(at.p, product_p)
        ahead, bent = advance(at, product_p), ~(curvature > 0)
        leaves = bent | ~(length(ahead.x) < radius)
        back, forth = ((t, t**2 * curvature / 2 - t * at.rz) for t in to_the_sphere(at.x, at.p, radius))
        t, change = choose(bent & (back[1] < forth[1]), back, forth)
        edge = at._replace(x=at.x + t * at.p, model=at.model + change)
        return i + 1, choose(leaves, edge, ahead), leaves

    nowhere = ops.zeros_like(g)
    nothing = ops.zeros((), "int32"), start(-g, nowhere, nowhere), ops.zeros((), "bool")
    i, at, stopped = ops.while_loop(going, body, nothing)
    return Solution(at.x, at.model, i, stopped)


def to_the_sphere(x, p, radius):
    """Both t for which ‖x + t p‖ = radius, the negative one first, for an x inside"""
    a, b, c = ops.vdot(p, p), ops.vdot(x, p), ops.vdot(x, x) - radius**2
    root = ops.sqrt(ops.maximum(b**2 - a * c, 0))
    far = ops.where(b < 0, root, -root) - b
    t, u = far / a, c / ops.where(far == 0, 1, far)  # without cancellation
    return ops.minimum(t, u), ops.maximum(t, u)


# ---- an approximation of low rank ------------------------------------------------------------------------------------


class LowRank(NamedTuple):
    """U diag(values) Uᵀ: orthonormal columns, and eigenvalues from the largest to the least."""

    vectors: Any
    values: Any


def nystrom(product, omega):
    """Approximates a positive semidefinite A by A Ω (Ωᵀ A Ω)⁺ Ωᵀ A: the randomized Nyström approximation, made stable.

    A shift as small as rounding makes ΩᵀAΩ positive, and is taken from the eigenvalues in the end. Where A has negative
    eigenvalues that Ω meets, the shift is larger by the most negative. Of products that are not finite nothing is made.

    Args:
        product: returns A times a vector.
        omega: normal random numbers (size, rank); takes a product for each column.

    References:
        Frangella, Tropp and Udell, *Randomized Nyström Preconditioning*, 2023. https://arxiv.org/abs/2110.02820
    """
    omega = ops.qr(omega)[0]
    y = ops.transpose(ops.map(product, ops.transpose(omega)))
    y = ops.where(ops.all(ops.isfinite(y)), y, 0)  # of which there are no eigenvalues
    values, vectors = ops.eigh(symmetric(ops.transpose(omega) @ y))
    least = np.finfo(ops.dtype(omega)).eps * length(ops.reshape(y, (-1,)))
    least = ops.where(least > 0, least, 1)  # of a matrix of zeros
    shift = least + ops.maximum(-ops.min(values), 0)
    root = (y + shift * omega) @ (vectors / ops.sqrt(ops.maximum(values + shift, least)))
    q, r = ops.qr(root)
    values, vectors = ops.eigh(symmetric(r @ ops.transpose(r)))
    return LowRank(q @ ops.flip(vectors, -1), ops.flip(ops.maximum(values - shift, 0), -1))


def symmetric(a):
    """(a + aᵀ) / 2"""
    return (a + ops.transpose(a)) / 2


def nystrom_inverse(approximation, damping, x):
    """(λᵣ + μ) U (Λ + μ)⁻¹ Uᵀ x + x - U Uᵀ x, which is (λᵣ + μ) times the inverse of UΛUᵀ + λᵣ(I - UUᵀ) + μ"""
    vectors, values = approximation
    along = ops.matmul(x, vectors)
    return x + ops.matmul(vectors, ((values[-1] + damping) / (values + damping) - 1) * along)
