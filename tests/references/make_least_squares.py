"""Makes the references of least squares, in `least_squares/`: fits of curves by other libraries, in float64.

    pip install scipy==1.17.1 jaxopt==0.8.5 optimistix==0.1.0 pyceres==2.6 jax==0.10.2
    python tests/references/make_least_squares.py

Each file holds a curve, as an expression of its parameters b and of x, its data and where the fit starts, and

    minpack       the end of MINPACK's `lmder`, its evaluations, and the Jacobians until b is right to 1e-8
    jaxopt        the path of Levenberg-Marquardt with D = 1 and Nielsen's rule, after each step that is taken
    ceres         the same with D² the diagonal of JᵀJ, from Ceres
    optimistix    the path of Gauss-Newton, where its full steps converge
"""

import importlib.metadata
import itertools
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import jaxopt
import numpy as np
import optimistix
import pyceres
from scipy.optimize import least_squares

jax.config.update("jax_enable_x64", True)
FOLDER = Path(__file__).parent / "least_squares"
STEPS = 12


def noisy(formula, b, x, noise, seed):
    """Points beside a curve."""
    clean = eval(formula, {"b": b, "x": x, "exp": np.exp})
    return x.tolist(), np.round(clean + noise * np.random.default_rng(seed).standard_normal(len(x)), 4).tolist()


DECAY = "b[0] * exp(-b[1] * x) + b[2]"
PEAK = "b[0] * exp(-0.5 * ((x - b[1]) / b[2]) ** 2) + b[3]"
MISRA = (  # https://www.itl.nist.gov/div898/strd/nls/data/misra1a.shtml
    [77.6, 114.9, 141.1, 190.8, 239.9, 289.0, 332.8, 378.4, 434.8, 477.3, 536.8, 593.1, 689.1, 760.0],
    [10.07, 14.73, 17.94, 23.93, 29.61, 35.18, 40.02, 44.82, 50.76, 55.05, 61.01, 66.40, 75.47, 81.78],
)
RAT42 = (  # https://www.itl.nist.gov/div898/strd/nls/data/ratkowsky2.shtml
    [9.0, 14.0, 21.0, 28.0, 42.0, 57.0, 63.0, 70.0, 79.0],
    [8.93, 10.80, 18.59, 22.33, 39.35, 56.11, 61.73, 64.62, 67.08],
)
CURVES = {  # name: formula, data, start
    "decay": (DECAY, noisy(DECAY, [3.0, 1.3, 0.5], np.linspace(0, 5, 60), 0.1, 1), [1.0, 0.1, 5.0]),
    "peak": (PEAK, noisy(PEAK, [2.0, 2.2, 0.4, 0.3], np.linspace(0, 5, 60), 0.05, 2), [1.0, 1.2, 1.0, 0.0]),
    "misra1a_far": ("b[0] * (1 - exp(-b[1] * x))", MISRA, [500.0, 1e-4]),
    "misra1a_near": ("b[0] * (1 - exp(-b[1] * x))", MISRA, [250.0, 5e-4]),
    "rat42_far": ("b[0] / (1 + exp(b[1] - b[2] * x))", RAT42, [100.0, 1.0, 0.1]),
    "rat42_near": ("b[0] / (1 + exp(b[1] - b[2] * x))", RAT42, [75.0, 2.5, 0.07]),
}


def errors(formula, data):
    """The residuals as a function of the parameters, and their Jacobian."""
    x, y = map(jnp.asarray, data)

    def residuals(b):
        return eval(formula, {"b": b, "x": x, "exp": jnp.exp}) - y

    return jax.jit(residuals), jax.jit(jax.jacfwd(residuals))


def version(library):
    """Name and version."""
    return f"{library} {importlib.metadata.version(library)}"


def minpack(residuals, jacobian, start):
    """Where MINPACK ends, and what it takes."""
    seen = []

    def noted(b):
        seen.append(np.array(b))
        return np.asarray(jacobian(b))

    tolerances = dict.fromkeys(("ftol", "xtol", "gtol"), 1e-12)
    found = least_squares(lambda b: np.asarray(residuals(b)), start, noted, method="lm", **tolerances)
    right = [np.all(np.abs(b - found.x) <= 1e-8 * np.abs(found.x)) for b in (*seen, found.x)]
    counts = dict(njev=int(found.njev), nfev=int(found.nfev), jacobians_until_right=right.index(True))
    return dict(library=version("scipy"), b=found.x.tolist(), cost=float(found.cost), **counts)


def before_rounding(path):
    """The steps of a path, at most so many, until one is so small that rounding decides whether the next is taken."""
    moved = [np.max(np.abs(np.subtract(a, b)) / np.abs(b)) for (a, _), (b, _) in itertools.pairwise(path)]
    small = [i for i, size in enumerate(moved) if size < 1e-5]
    return path[: min([STEPS, *small[:1]])]


def by_jaxopt(residuals, jacobian, start, damping=1e-2):
    """The path of a damping that is this times the largest entry of the diagonal of JᵀJ at first."""
    solver = jaxopt.LevenbergMarquardt(
        residuals, damping_parameter=damping, tol=0, xtol=0, gtol=0, solver="qr", materialize_jac=True, jit=True
    )
    b = jnp.asarray(start)
    state, path = solver.init_state(b), []
    first = float(state.damping_factor)
    for _ in range(3 * STEPS):
        new, state = solver.update(b, state)
        if bool(jnp.any(new != b)):
            path.append([np.asarray(new).tolist(), float(state.damping_factor)])
        b = new
    return dict(library=version("jaxopt"), initial_damping=first, path=before_rounding(path))


class Cost(pyceres.CostFunction):
    """The residuals for Ceres."""

    def __init__(self, residuals, jacobian, start):
        super().__init__()
        self.both = residuals, jacobian
        self.set_num_residuals(len(residuals(jnp.asarray(start))))
        self.set_parameter_block_sizes([len(start)])

    def Evaluate(self, parameters, residuals, jacobians):
        """Fills what Ceres gives."""
        r, J = (np.asarray(function(jnp.asarray(parameters[0]))) for function in self.both)
        residuals[:] = r
        if jacobians is not None and jacobians[0] is not None:
            jacobians[0][:] = J.ravel()
        return True


class Note(pyceres.IterationCallback):
    """Notes where Ceres is after each step that it takes."""

    def __init__(self, b):
        super().__init__()
        self.b, self.path = b, []

    def __call__(self, summary):
        """Called after each trial."""
        if summary.iteration and summary.step_is_successful:
            self.path.append([self.b.tolist(), 1 / summary.trust_region_radius])
        return pyceres.CallbackReturnType.SOLVER_CONTINUE


def by_ceres(residuals, jacobian, start):
    """The path with Ceres's own constants, but for what would end it."""
    problem, b = pyceres.Problem(), np.array(start)
    cost = Cost(residuals, jacobian, start)
    problem.add_residual_block(cost, None, [b])
    options = pyceres.SolverOptions()
    options.jacobi_scaling, options.update_state_every_iteration = False, True
    options.function_tolerance = options.gradient_tolerance = options.parameter_tolerance = 0.0
    options.max_num_iterations, options.linear_solver_type = 60, pyceres.LinearSolverType.DENSE_QR
    note = Note(b)
    options.callbacks = [note]
    pyceres.solve(options, problem, pyceres.SolverSummary())
    constants = dict(initial_damping=1 / options.initial_trust_region_radius, accept=options.min_relative_decrease)
    return dict(library=version("pyceres"), **constants, path=before_rounding(note.path))


def by_optimistix(residuals, start, end):
    """The path of full steps; None where they do not converge to this end."""
    solver = optimistix.GaussNewton(rtol=0.0, atol=0.0)
    path = []
    for steps in range(1, STEPS + 1):
        found = optimistix.least_squares(
            lambda b, _: residuals(b), solver, jnp.asarray(start), max_steps=steps + 1, throw=False
        )
        path.append(np.asarray(found.value).tolist())
    return dict(library=version("optimistix"), path=path) if np.allclose(path[-1], end) else None


if __name__ == "__main__":
    FOLDER.mkdir(exist_ok=True)
    for name, (formula, data, start) in CURVES.items():
        residuals, jacobian = errors(formula, data)
        case = dict(formula=formula, x=data[0], y=data[1], start=start, minpack=minpack(residuals, jacobian, start))
        case["jaxopt"] = by_jaxopt(residuals, jacobian, start)
        case["ceres"] = by_ceres(residuals, jacobian, start)
        case["optimistix"] = by_optimistix(residuals, start, case["minpack"]["b"])
        (FOLDER / f"{name}.json").write_text(json.dumps(case) + "\n")
        print(name, case["minpack"])
