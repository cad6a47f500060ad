"""Every optimizer takes the path that another library took on the same gradients: `references/make.py`."""

import inspect
import json
import os
from pathlib import Path

import keras
import numpy as np
import pytest
from keras import ops

from kopt import optimizers
from kopt.optimizers.minimizer import Minimizer
from kopt.testing import backends, runs

FOLDER = Path(__file__).parents[1] / "references"
CASES = {path.stem: json.loads(path.read_text()) for path in sorted(FOLDER.glob("*.json"))}
PROBLEM = CASES.pop("problem")
OPTIMIZERS = [
    cls
    for cls in map(vars(optimizers).get, optimizers.__all__)
    if isinstance(cls, type) and issubclass(cls, optimizers.Optimizer) and cls.cites  # all but the bases
    if not issubclass(cls, Minimizer)  # which need a loss of their own: see the tests of each family
    if not cls.__name__.endswith("KFAC")  # which need a network: test_kfac.py has its steps in NumPy
    if cls not in (optimizers.Proximal, optimizers.GradientNoise)  # test_proximal.py and test_wrappers.py have theirs
]

float64 = pytest.param(
    "float64",
    1e-9,
    id="float64",
    marks=pytest.mark.skipif(
        keras.backend.backend() == "jax" and not os.environ.get("JAX_ENABLE_X64"),
        reason="JAX has float64 only where JAX_ENABLE_X64 is set",
    ),
)


def made(optimizer, arguments):
    """An optimizer of kopt; those inside it are lists of their class and their arguments."""
    nested = {n: made(*x) for n, x in arguments.items() if isinstance(x, list) and isinstance(x[-1], dict)}
    return getattr(optimizers, optimizer)(**arguments | nested)


@pytest.mark.parametrize(
    ("dtype", "tolerance"), [float64, pytest.param("float32", 1e-5, id="float32", marks=pytest.mark.slow)]
)
@pytest.mark.parametrize("name", CASES)
def test_the_path_is_the_references(name, dtype, tolerance):
    case = CASES[name]
    if case["optimizer"] == "Kron" and keras.backend.backend() != "tensorflow":
        pytest.skip("the random numbers of this path are TensorFlow's")
    optimizer = made(case["optimizer"], case["arguments"])
    variables = [keras.Variable(np.array(w, dtype), name=f"w{i}") for i, w in enumerate(PROBLEM["weights"])]
    optimizer.build(variables)
    take, path = optimizer.apply, {}
    if runs.looks(optimizer):  # at the loss that make_looking.py has

        def take(gradients):
            optimizer.step(runs.Bowl(variables, gradients, steps=optimizer._taken()), variables)

    apply = backends.compiled_step(take, optimizer, variables, lambda: None, xla=False)
    for step, grads in enumerate(PROBLEM["gradients"], start=1):
        apply([ops.convert_to_tensor(g, dtype) for g in grads])
        if name.endswith("_evaluation") and str(step) in case["path"]:
            optimizer.swap("evaluation")  # and the next step swaps back
        path[str(step)] = [w.numpy() for w in variables]
    for step, weights in case["path"].items():
        for w, expected in zip(path[step], weights, strict=True):
            assert w.dtype == dtype
            scale = max(1, np.abs(expected).max())
            np.testing.assert_allclose(w, expected, rtol=0, atol=tolerance * scale, err_msg=f"step {step}")


def has_a_loss_of_its_own(cls):
    """Minimizers search one function, not one for each step: their paths are in `references/minimizers`."""
    return issubclass(cls, Minimizer)


@pytest.mark.parametrize(
    "optimizer", [cls for cls in OPTIMIZERS if not has_a_loss_of_its_own(cls)], ids=lambda cls: cls.__name__
)
def test_some_case_changes_each_hyperparameter(optimizer):
    own = {p.name for p in inspect.signature(optimizer).parameters.values() if p.kind is not p.VAR_KEYWORD}
    changed = [case["arguments"] for case in CASES.values() if case["optimizer"] == optimizer.__name__]
    assert own - {"no_decay"} <= {name for arguments in changed for name in arguments}
