"""Makes what scipy's Newton-CG and trust-region Newton-CG do on test functions, and its Steihaug on random problems.

    pip install scipy==1.17.1 tensorflow==2.21.0 keras==3.15.1
    python tests/references/make_newton.py

Of each run, `newton/scipy.json` has the number of iterations to 1e-8, the last value, and some of the iterates; of each
problem, the matrix, the gradient, the radius, and the step.
"""

import json
from pathlib import Path

import numpy as np
import scipy
import tensorflow as tf
from scipy.optimize._trustregion_ncg import CGSteihaugSubproblem

from kopt.testing.functions import FUNCTIONS, Plain

NAMES = "rosenbrock2", "rosenbrock10", "beale", "wood", "helical_valley", "powell_singular", "quadratic100"
SAVED = 1, 2, 5, 10, 20, 40
RUNS = {  # name: (method, options)
    "newton-cg": ("newton-cg", dict(xtol=1e-12, maxiter=800)),
    "trust-ncg": ("trust-ncg", dict(gtol=1e-12, maxiter=800)),
    "trust-ncg changed": (
        "trust-ncg",
        dict(gtol=1e-12, maxiter=60, initial_trust_radius=0.3, max_trust_radius=0.5, eta=0.05),
    ),
}


def run(name, method, options):
    """The values at all iterates to 1e-8, and some of the iterates."""
    function, start = FUNCTIONS[name]
    values, path = [], {}

    def oracle(x):
        return Plain(function, [tf.constant(x)])

    def value_and_gradient(x):
        value, (gradient,) = oracle(x)()
        return float(value), gradient.numpy()

    def seen(intermediate_result):
        values.append(float(intermediate_result.fun))
        if len(values) in SAVED and len(start) <= 10:
            path[len(values)] = np.array(intermediate_result.x).tolist()
        if values[-1] <= 1e-8:
            raise StopIteration

    def product(x, v):
        return oracle(x).hvp([tf.constant(v)])[0].numpy()

    scipy.optimize.minimize(
        value_and_gradient, start, jac=True, hessp=product, method=method, options=options, callback=seen
    )
    return dict(iterations=len(values) if values[-1] <= 1e-8 else None, value=values[-1], path=path)


class Watched(CGSteihaugSubproblem):
    """Remembers where it met the boundary."""

    met = None

    def get_boundaries_intersections(self, z, d, trust_radius):
        """As in the library."""
        ends = super().get_boundaries_intersections(z, d, trust_radius)
        self.met = z, d, ends
        return ends


def subproblems():
    """Random problems and Steihaug's steps: inside, on the boundary, and along negative curvature forth and back."""
    rng, found = np.random.default_rng(0), []
    wanted = {"inside": 2, "boundary": 2, "forth": 2, "back": 2}
    while any(wanted.values()):
        a, g, radius = rng.normal(size=(4, 4)), rng.normal(size=4), float(10 ** rng.uniform(-1, 1))
        a = a @ a.T - rng.choice([0, 3]) * np.eye(4)
        problem = Watched(np.zeros(4), lambda x: 0.0, lambda x, g=g: g, None, lambda x, p, a=a: a @ p)
        step, _ = problem.solve(radius)
        kind = "inside"
        if problem.met:
            z, d, (back, _) = problem.met
            kind = "boundary" if d @ a @ d > 0 else "back" if np.allclose(step, z + back * d) else "forth"
        if wanted[kind]:
            wanted[kind] -= 1
            found.append(dict(kind=kind, a=a.tolist(), g=g.tolist(), radius=radius, step=step.tolist()))
    return found


if __name__ == "__main__":
    runs = {run_name: {n: run(n, *how) for n in NAMES} for run_name, how in RUNS.items()}
    made = dict(reference=f"scipy {scipy.__version__}", runs=runs, subproblems=subproblems())
    folder = Path(__file__).parent / "newton"
    folder.mkdir(exist_ok=True)
    (folder / "scipy.json").write_text(json.dumps(made) + "\n")
