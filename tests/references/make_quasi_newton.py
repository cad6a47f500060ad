"""Makes the reference paths of quasi-Newton methods and conjugate gradients, in `minimizers/`, in float64.

    pip install optax==0.2.8 scipy==1.17.1
    python tests/references/make_quasi_newton.py path/to/modified_optimize.py

with the file of jorgeurban/self_scaled_algorithms_pinns at commit a4e7bc1. The function is that of the tests:
Σ log cosh(A w - b) + ¼ ‖w‖², with A and b below. Each file holds a case, the weights after each step, and what made
them.
"""

import importlib.metadata
import importlib.util
import json
import sys
from pathlib import Path

import jax
import numpy as np
import optax
import scipy.optimize

A = np.sin(np.arange(1.0, 49.0)).reshape(8, 6) * np.linspace(0.3, 1, 6)
b = 2 * np.cos(np.arange(8.0))
START = np.linspace(-1, 1, 6)
STEPS = 9


def function(w):
    """The value and the gradient."""
    z = A @ w - b
    return np.sum(np.logaddexp(z, -z) - np.log(2)) + 0.25 * w @ w, A.T @ np.tanh(z) + 0.5 * w


def optax_path(call):
    """The weights after each step of `optax.lbfgs` without a line search."""
    jax.config.update("jax_enable_x64", True)
    optimizer = eval(call, {"optax": optax})
    w = jax.numpy.array(START)
    state = optimizer.init(w)
    for _ in range(STEPS):
        updates, state = optimizer.update(jax.numpy.array(function(np.array(w))[1]), state, w)
        w = optax.apply_updates(w, updates)
        yield np.array(w)


def scipy_path(call):
    """The weights after each step of a method of scipy's."""
    path = []
    known = {"scipy": scipy, "function": function, "w": START, "keep": lambda w: path.append(np.array(w))}
    eval(call, known)
    return path[:STEPS]


def scaled_path(call):
    """The weights after each step of the authors' self-scaled methods, which are a module of scipy.optimize."""
    import scipy._lib._util

    scipy._lib._util.__dict__.setdefault("check_random_state", None)  # which newer ones do not have
    spec = importlib.util.spec_from_file_location("scipy.optimize.modified_optimize", sys.argv[1])
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    path = []

    def keep(intermediate_result):
        path.append(np.array(intermediate_result.x))

    known = {"minimize": module._minimize_bfgs, "keep": keep, "w": START, "gtol": 1e-9}
    known |= {"value": lambda w: function(w)[0], "gradient": lambda w: function(w)[1]}
    eval(call, known)
    return path[:STEPS]


SCIPY = "scipy.optimize.minimize(function, w, jac=True, method='{}', callback=keep, options={})"
SCALED = "minimize(value, w, jac=gradient, gtol=gtol, callback=keep, method_bfgs='{}', initial_scale={})"
CASES = {  # file: (kopt class, its arguments, the reference)
    "lbfgs": (
        "LBFGS",
        dict(learning_rate=1.0, line_search="backtracking"),
        "optax.lbfgs(learning_rate=1.0, memory_size=10, linesearch=None)",
    ),
    "lbfgs_changed": (
        "LBFGS",
        dict(learning_rate=0.5, pairs=3, line_search="backtracking"),
        "optax.lbfgs(learning_rate=0.5, memory_size=3, linesearch=None)",
    ),
    "bfgs": ("BFGS", dict(), SCIPY.format("BFGS", dict(gtol=1e-9))),
    "bfgs_changed": ("BFGS", dict(initial_scaling=True), SCALED.format("BFGS", True)),
    "ssbfgs": ("SSBFGS", dict(), SCALED.format("SSBFGS_AB", False)),
    "ssbfgs_changed": ("SSBFGS", dict(initial_scaling=True), SCALED.format("SSBFGS_AB", True)),
    "ssbroyden": ("SSBroyden", dict(), SCALED.format("SSBroyden2", False)),
    "ssbroyden_changed": ("SSBroyden", dict(initial_scaling=True), SCALED.format("SSBroyden2", True)),
    "nonlinear_cg": (
        "NonlinearCG",
        dict(curvature=0.4),
        SCIPY.format("CG", dict(gtol=1e-9)),
    ),
}
MADE_BY = {
    "optax": (optax_path, f"optax {importlib.metadata.version('optax')}"),
    "scipy": (scipy_path, f"scipy {importlib.metadata.version('scipy')}"),
    "minimize": (scaled_path, "jorgeurban/self_scaled_algorithms_pinns@a4e7bc1"),
}

if __name__ == "__main__":
    for name, (cls, arguments, call) in CASES.items():
        path, made_by = MADE_BY[call.split(".")[0].split("(")[0]]
        case = dict(optimizer=cls, arguments=arguments, reference=call, made_by=made_by)
        case["path"] = [w.tolist() for w in path(call)]
        file = Path(__file__).with_name("minimizers") / f"{name}.json"
        file.write_text(json.dumps(case, indent=1) + "\n")
    problem = dict(A=A.tolist(), b=b.tolist(), start=START.tolist())
    Path(__file__).with_name("minimizers").joinpath("problem.json").write_text(json.dumps(problem) + "\n")
