"""Least squares: methods that know the residuals behind a loss, and their Jacobian."""

from typing import Unpack

from keras import ops

from kopt.optimizers.base import Scheduled
from kopt.optimizers.minimizer import CommonToMinimizers, Minimizer, Point
from kopt.optimizers.packs import Slot


class GaussNewton(Minimizer):
    """Gauss-Newton: solves the least squares problem that the residuals would be, were they linear.

        p = argmin ‖J p + r‖
        x ← x + α p        with α = learning_rate · shrinkⁱ, the first at which L(x + α p) ≤ L(x) - decrease · α ‖J p‖²

    r are the residuals, half of whose sum of squares is the loss L, and J is their Jacobian: see
    `kopt.training.Oracle.linearized`. Converges in a few steps where the residuals are small at the minimum, or nearly
    linear; elsewhere, and where J lacks rank, `kopt.LevenbergMarquardt` is safer. p comes from a QR decomposition of J,
    or of Jᵀ where there are more weights than residuals, and then is the shortest of all solutions.

    Args:
        learning_rate: α at first, in [0, 2): 1 is the full step.
        backtracking: whether α shrinks until the loss falls enough. If not, every step is taken.
        decrease: the least decrease of the loss, in those that the slope promises, in (0, 0.5).
        shrink: factor of α from one trial to the next, in (0, 1).
        max_trials: of α in a step, from 1. Where none is good the weights stay.
        max_size: the most entries that J may have, from 1.
        **common: `stochastic` and `name` as in `kopt.optimizers.minimizer.Minimizer`.

    Raises:
        ValueError: the loss has no residuals, or J is larger than `max_size`.

    References:
        Nocedal and Wright, *Numerical Optimization*, 2nd edition, 2006, chapter 10.
    """

    cites = ("nocedal2006numerical",)
    remembers = False
    ranges = {"learning_rate": "[0, 2)", "decrease": "(0, 0.5)", "shrink": "(0, 1)"}
    integers = {"max_trials": "[1, inf)", "max_size": "[1, inf)"}

    def __init__(
        self,
        learning_rate: Scheduled = 1.0,
        *,
        backtracking: bool = True,
        decrease: Scheduled = 1e-4,
        shrink: Scheduled = 0.5,
        max_trials: int = 20,
        max_size: int = 2**26,
        **common: Unpack[CommonToMinimizers],
    ):
        super().__init__(learning_rate, **common)
        self.backtracking, self.decrease, self.shrink = backtracking, decrease, shrink
        self.max_trials, self.max_size = max_trials, max_size

    def iterate(self, f, at, t, h, *, evaluations, products):
        linear = f.at(at.x).linearized()
        check_size(self, linear, "Use LevenbergMarquardt(solver='cg')")
        jacobian = linear.jacobian()
        p = shortest(jacobian, linear.values)
        promised = squares(times(jacobian, p))
        slack = rounding(at.value, linear.values, times(jacobian, at.x))

        def trial(tries, good, alpha, x, value):
            to = at.x + alpha * p
            new = f.value(to)
            good = new <= at.value - h.decrease * alpha * promised + slack if self.backtracking else tries >= 0
            return tries + 1, good, h.shrink * alpha, ops.where(good, to, x), ops.where(good, new, value)

        def going_on(tries, good, *_):
            return ops.logical_and(~good, tries < self.max_trials)

        start = 0, False, h.learning_rate, at.x, at.value
        tries, _, _, x, value = ops.while_loop(going_on, trial, tuple(map(ops.convert_to_tensor, start)))
        taken = 1 + ops.cast(tries, evaluations.dtype)
        return Point(x, value, None), dict(evaluations=evaluations + taken, products=products)


class LevenbergMarquardt(Minimizer):
    """Levenberg-Marquardt: Gauss-Newton steps, damped as far as the last ones missed what they promised.

        p = argmin ‖J p + r‖² + λ ‖D p‖²
        ρ = (L(x) - L(x + p)) / (½ ‖J p‖² + λ ‖D p‖²)        the decrease of the loss over the one promised
        ρ > accept:   x ← x + p,  λ ← λ · max(shrink, 1 - (2ρ - 1)³)
        otherwise:    λ ← λ · 2, then · 4, · 8, ..., and p anew, with the same r and J

    r are the residuals, half of whose sum of squares is the loss L, and J is their Jacobian: see
    `kopt.training.Oracle.linearized`. The method for curve fitting, small physics-informed models and regression by
    small networks, on all rows at once. A step takes one Jacobian, and evaluates the loss once for each λ it tries.

    p comes from QR decompositions: of J (of Jᵀ where there are more weights than residuals) once a step, and of the
    triangle that is left, with √λ D below it, for each λ. Or, with `solver="cg"`, from conjugate gradients on JᵀJ + λ,
    by products with J and Jᵀ, without forming either.

    Args:
        learning_rate: factor of each step, in [0, 2): 1 is the method.
        initial_damping: λ at first, in (0, inf).
        accept: least gain ratio ρ of a step that is taken, in [0, 1).
        shrink: the least factor of λ after a step, in (0, 1]. Nielsen has 1/3.
        scaling: `"marquardt"`: D² is the diagonal of JᵀJ, so that units of weights do not matter. `"largest"`: the
            largest that it was in any step so far, as Moré has it, which is safer. `"identity"`: D = 1. By default
            `"largest"`, and with `"cg"` `"identity"`, which is all it can do.
        solver: `"qr"` or `"cg"`.
        tolerance: for `"cg"`: how much of the gradient may be left, in [0, 1).
        max_products: for `"cg"`: the most products with JᵀJ for each λ, from 1.
        max_trials: the most λ tried in a step, from 1. Where none is good, the weights stay, and the next step goes on
            from there.
        max_size: for `"qr"`: the most entries that J may have, from 1.
        **common: `stochastic` and `name` as in `kopt.optimizers.minimizer.Minimizer`.

    Raises:
        ValueError: the loss has no residuals, J is larger than `max_size`, or `solver="cg"` shall scale.

    References:
        Marquardt, *An Algorithm for Least-Squares Estimation of Nonlinear Parameters*, 1963.
        https://doi.org/10.1137/0111030

        Nielsen, *Damping Parameter in Marquardt's Method*, 1999. The rule for λ.

        Moré, *The Levenberg-Marquardt Algorithm: Implementation and Theory*, 1978. The decompositions.
    """

    cites = ("marquardt1963algorithm", "nielsen1999damping", "more1978levenberg")
    remembers = False
    ranges = {
        "learning_rate": "[0, 2)",
        "initial_damping": "(0, inf)",
        "accept": "[0, 1)",
        "shrink": "(0, 1]",
        "tolerance": "[0, 1)",
    }
    choices = {"scaling": ("largest", "marquardt", "identity"), "solver": ("qr", "cg")}
    integers = {"max_products": "[1, inf)", "max_trials": "[1, inf)", "max_size": "[1, inf)"}

    def __init__(
        self,
        learning_rate: Scheduled = 1.0,
        *,
        initial_damping: float = 1e-3,
        accept: Scheduled = 1e-4,
        shrink: Scheduled = 0.01,
        scaling: str | None = None,
        solver: str = "qr",
        tolerance: Scheduled = 1e-2,
        max_products: int = 100,
        max_trials: int = 20,
        max_size: int = 2**26,
        **common: Unpack[CommonToMinimizers],
    ):
        super().__init__(learning_rate, **common)
        self.initial_damping, self.accept, self.shrink = initial_damping, accept, shrink
        self.scaling, self.solver, self.tolerance = scaling, solver, tolerance
        self.max_products, self.max_trials, self.max_size = max_products, max_trials, max_size

    def build(self, variables):
        if self.solver == "cg" and self.scaling in ("largest", "marquardt"):
            raise ValueError(
                "LevenbergMarquardt: scaling must be 'identity' with solver='cg', which never sees the diagonal of "
                f"JᵀJ, got {self.scaling!r}."
            )
        super().build(variables)

    def memory(self, size):
        return dict(damping=Slot((), self.initial_damping), growth=Slot((), 2.0), scale=(size,))

    def solved(self, f, at, h, scale):
        """Returns what gives p, ‖J p‖², ‖D p‖² and the products it took for a λ, what a decrease may be off, and D."""
        linear = f.at(at.x).linearized()
        r = linear.values
        if self.solver == "cg":

            def forth(v):
                return linear.jvp(f.split(v))

            def back(u):
                return f.join(linear.vjp(u))

            def solve(damping):
                return conjugate_gradients(forth, back, r, damping, h.tolerance, self.max_products)

            return solve, rounding(at.value, r, forth(at.x)), scale
        check_size(self, linear, "Use solver='cg'")
        jacobian = linear.jacobian()
        if self.scaling != "identity":
            lengths = ops.sqrt(ops.sum(ops.square(jacobian), axis=0))
            scale = lengths if self.scaling == "marquardt" else ops.where(lengths > scale, lengths, scale)
        D = ops.where(scale > 0, scale, 1)
        damped = Damped(jacobian / D, r)

        def solve(damping):
            y = damped(damping)
            return y / D, squares(times(damped.A, y)), squares(y), ops.zeros_like(damping)

        return solve, rounding(at.value, r, times(jacobian, at.x)), scale

    def iterate(self, f, at, t, h, *, evaluations, products, damping, growth, scale):
        solve, slack, scale = self.solved(f, at, h, scale)

        def trial(tries, good, x, value, damping, growth, products):
            p, along, across, taken = solve(damping)
            to = at.x + h.learning_rate * p
            new = f.value(to)
            promised = h.learning_rate * ((1 - h.learning_rate / 2) * along + damping * across)
            rho = (at.value - new + slack) / (promised + slack)
            good = rho > h.accept  # which what is not finite is not
            after = ops.where(good, damping * ops.maximum(h.shrink, 1 - (2 * rho - 1) ** 3), damping * growth)
            growth = ops.where(good, 2.0, 2.0 * growth)
            x, value = ops.where(good, to, x), ops.where(good, new, value)
            return tries + 1, good, x, value, ops.clip(after, LEAST, MOST), growth, products + taken

        def going_on(tries, good, *_):
            return ops.logical_and(~good, tries < self.max_trials)

        start = 0, False, at.x, at.value, damping, growth, products
        tries, _, x, value, damping, growth, products = ops.while_loop(
            going_on, trial, tuple(map(ops.convert_to_tensor, start))
        )
        evaluations = evaluations + 1 + ops.cast(tries, evaluations.dtype)
        memory = dict(evaluations=evaluations, products=products, damping=damping, growth=growth, scale=scale)
        return Point(x, value, None), memory


LEAST, MOST = 1e-20, 1e20
"""Bounds of λ, whose root float32 holds, and from which a few trials lead back."""


def shortest(A, r):
    """The shortest y of those that minimize ‖A y + r‖"""
    if A.shape[0] is not None:
        return Damped(A, r)(0.0)
    is_wide = ops.shape(A)[0] < A.shape[1]  # which a graph may not know before
    return ops.cond(is_wide, lambda: Damped(A, r, wide=True)(0.0), lambda: Damped(A, r, wide=False)(0.0))


class Damped:
    """argmin ‖A y + r‖² + λ ‖y‖² for many λ, after one QR decomposition: of A, or of Aᵀ where that is smaller.

    With λ = 0 it has to be known whether A is `wide`, with fewer rows than columns.
    """

    def __init__(self, A, r, wide=None):
        self.A, (rows, columns) = A, A.shape
        self.wide = rows is not None and rows < columns if wide is None else wide
        self.Q, self.R = ops.qr(ops.transpose(A) if self.wide else A)
        self.b = r[:, None] if self.wide else ops.transpose(self.Q) @ r[:, None]

    def __call__(self, damping):
        """y, the shortest one where λ = 0 leaves a choice: R'ᵀR' = RᵀR + λ and Q'R' = R, where Aᵀ or A is Q R."""
        size = ops.shape(self.R)[1]
        below = ops.sqrt(ops.cast(damping, self.R.dtype)) * ops.eye(size, dtype=self.R.dtype)
        Q, R = ops.qr(ops.concatenate([self.R, below]))
        Q = ops.reshape(Q[: ops.shape(self.R)[0]], (-1, size))  # a graph may not know how many rows there are
        R = ops.reshape(R, (size, size))
        if self.wide:  # -Aᵀ (A Aᵀ + λ)⁻¹ r
            y = self.Q @ (Q @ ops.solve_triangular(ops.transpose(R), self.b, lower=True))
        else:
            y = ops.solve_triangular(R, ops.transpose(Q) @ self.b)
        return -y[:, 0]


def conjugate_gradients(forth, back, r, damping, tolerance, limit):
    """argmin ‖J p + r‖² + λ ‖p‖², its ‖J p‖² and ‖p‖², and the products with JᵀJ that it took: CGLS, from zero."""
    s = -back(r)
    enough = tolerance**2 * squares(s)

    def going_on(k, p, d, s, left):
        return ops.logical_and(k < limit, squares(s) > enough)

    def step(k, p, d, s, left):
        q = forth(d)
        alpha = squares(s) / (squares(q) + damping * squares(d))
        p, left = p + alpha * d, left - alpha * q
        new = back(left) - damping * p
        return k + 1, p, new + squares(new) / squares(s) * d, new, left

    start = tuple(map(ops.convert_to_tensor, (0, ops.zeros_like(s), s, s, -r)))
    k, p, _, _, left = ops.while_loop(going_on, step, start)
    return p, squares(left + r), squares(p), ops.cast(k, damping.dtype)


def squares(x):
    """‖x‖²"""
    return ops.sum(ops.square(x))


def times(A, x):
    """A x"""
    return (A @ x[:, None])[:, 0]


def rounding(value, r, Jx):
    """How much of a change of the loss is rounding: of its own sum, and of weights, which moves r by about ε J x."""
    epsilon = 2.0**-52 if value.dtype == "float64" else 2.0**-23
    tiny = 1e-37  # so that no decrease over none promised is a gain of one
    return 4 * epsilon * (value + ops.sqrt(squares(r) * squares(Jx))) + tiny


def check_size(optimizer, linear, instead):
    """Raises ValueError where the Jacobian is larger than the optimizer's `max_size`, as far as is known."""
    rows, columns = linear.shape
    rows = columns if rows is None else rows
    if rows * columns > optimizer.max_size:
        raise ValueError(
            f"{type(optimizer).__name__}: the Jacobian must have at most max_size={optimizer.max_size} entries, got "
            f"{rows} residuals by {columns} weights, which is {rows * columns}. {instead} or a larger max_size."
        )
