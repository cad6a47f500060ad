"""Makes the reference trajectories beside this file: one problem, and one path through it for each case.

A case pairs a kopt optimizer and its arguments with the same rule made by another library, in float64. All
cases share the weights and gradients of `problem.json`, stored so that no random stream has to be reproduced:
gradients of mixed sign whose size changes from step to step, a vector that starts at zero and has no gradient
in the first step, a matrix whose first row has none in the first three. Each other file holds a case and the
weights after some of its 30 steps. Where libraries differ, the reference is the one that follows the paper.

The tests read the files and need none of this. To make them again:

    pip install torch==2.13.0 optax==0.2.8 tensorflow==2.21.0 keras==3.15.1
    python tests/references/make.py

Each `make_….py` beside it holds the cases of more optimizers, made with the functions of this file, and says what it
needs installed.
"""

import importlib.metadata
import json
from pathlib import Path

import jax
import numpy as np
import optax
import torch

HERE = Path(__file__).parent
SHAPES = (3,), (4, 3), (2, 2, 3, 2)
STEPS = 30
SAVED = 1, 2, 5, 10, 30

CASES = {  # file: (kopt class, its arguments, the reference)
    "sgd": ("SGD", dict(learning_rate=0.1), "torch.optim.SGD(params, lr=0.1)"),
    "sgd_momentum": (
        "SGD",
        dict(learning_rate=0.1, momentum=0.9),
        "torch.optim.SGD(params, lr=0.1, momentum=0.9)",
    ),
    "sgd_changed": (
        "SGD",
        dict(learning_rate=0.2, momentum=0.8, nesterov=True, weight_decay=0.05),
        "optax.chain(optax.trace(0.8, nesterov=True), optax.add_decayed_weights(0.05), optax.scale(-0.2))",
    ),
    "adagrad": (
        "Adagrad",
        dict(learning_rate=0.1),
        "optax.adagrad(0.1, initial_accumulator_value=0.1, eps=1e-7)",
    ),
    "adagrad_changed": (
        "Adagrad",
        dict(learning_rate=0.2, initial_accumulator_value=0.5, epsilon=0.01, weight_decay=0.05),
        "optax.chain(optax.scale_by_rss(0.5, eps=0.01), optax.add_decayed_weights(0.05), optax.scale(-0.2))",
    ),
    "adadelta": (
        "Adadelta",
        dict(learning_rate=10.0),
        "torch.optim.Adadelta(params, lr=10.0, rho=0.95, eps=1e-7)",
    ),
    "adadelta_changed": (
        "Adadelta",
        dict(learning_rate=0.5, rho=0.8, epsilon=0.01, weight_decay=0.05),
        "optax.chain(optax.scale_by_adadelta(0.8, eps=0.01), optax.add_decayed_weights(0.05), optax.scale(-0.5))",
    ),
    "rmsprop": ("RMSprop", dict(learning_rate=0.01), "optax.rmsprop(0.01, decay=0.9, eps=1e-7)"),
    "rmsprop_momentum": (
        "RMSprop",
        dict(learning_rate=0.01, momentum=0.9),
        "optax.rmsprop(0.01, decay=0.9, eps=1e-7, momentum=0.9)",
    ),
    "rmsprop_changed": (
        "RMSprop",
        dict(learning_rate=0.02, rho=0.8, momentum=0.7, epsilon=0.01, centered=True, weight_decay=0.05),
        "optax.chain(optax.scale_by_stddev(0.8, eps=0.01), optax.trace(0.7), "
        "optax.add_decayed_weights(0.05), optax.scale(-0.02))",
    ),
    "adam": (
        "Adam",
        dict(learning_rate=0.05),
        "torch.optim.Adam(params, lr=0.05, betas=(0.9, 0.999), eps=1e-8)",
    ),
    "adam_changed": (
        "Adam",
        dict(learning_rate=0.02, beta_1=0.8, beta_2=0.95, epsilon=0.01, weight_decay=0.05),
        "torch.optim.AdamW(params, lr=0.02, betas=(0.8, 0.95), eps=0.01, weight_decay=0.05)",
    ),
    "amsgrad": (
        "AMSGrad",
        dict(learning_rate=0.05),
        "torch.optim.Adam(params, lr=0.05, betas=(0.9, 0.999), eps=1e-8, amsgrad=True)",
    ),
    "amsgrad_changed": (
        "AMSGrad",
        dict(learning_rate=0.02, beta_1=0.8, beta_2=0.7, epsilon=0.01, weight_decay=0.05),
        "torch.optim.AdamW(params, lr=0.02, betas=(0.8, 0.7), eps=0.01, weight_decay=0.05, amsgrad=True)",
    ),
    "adamw": (
        "AdamW",
        dict(learning_rate=0.05),
        "torch.optim.AdamW(params, lr=0.05, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.004)",
    ),
    "adamw_changed": (
        "AdamW",
        dict(learning_rate=0.02, beta_1=0.8, beta_2=0.95, epsilon=0.01, weight_decay=0.1),
        "optax.adamw(0.02, b1=0.8, b2=0.95, eps=0.01, weight_decay=0.1)",
    ),
    "adamax": (  # torch and optax add epsilon to |g| inside the maximum: no difference at 1e-30
        "Adamax",
        dict(learning_rate=0.05, epsilon=1e-30),
        "torch.optim.Adamax(params, lr=0.05, betas=(0.9, 0.999), eps=1e-30)",
    ),
    "adamax_changed": (  # Keras adds epsilon outside; it casts numbers by way of float32, which these survive
        "Adamax",
        dict(learning_rate=2**-5, beta_1=0.75, beta_2=0.875, epsilon=2**-7, weight_decay=2**-4),
        "keras.optimizers.Adamax(2**-5, beta_1=0.75, beta_2=0.875, epsilon=2**-7, weight_decay=2**-4)",
    ),
    "nadam": (
        "Nadam",
        dict(learning_rate=0.05),
        "torch.optim.NAdam(params, lr=0.05, betas=(0.9, 0.999), eps=1e-8, momentum_decay=0.004)",
    ),
    "nadam_changed": (
        "Nadam",
        dict(learning_rate=0.02, beta_1=0.8, beta_2=0.95, epsilon=0.01, momentum_decay=0.5, weight_decay=0.1),
        "torch.optim.NAdam(params, lr=0.02, betas=(0.8, 0.95), eps=0.01, momentum_decay=0.5, "
        "weight_decay=0.1, decoupled_weight_decay=True)",
    ),
    "ftrl": (
        "Ftrl",
        dict(learning_rate=0.1),
        "ftrl(accum=0.1, lr=0.1, l1=0, l2=0, l2_shrinkage=0, lr_power=-0.5)",
    ),
    "ftrl_changed": (  # the paper's rate is α / (β + √n): β adds β / α to the denominator, which holds 2 l2
        "Ftrl",
        dict(
            learning_rate=0.2,
            learning_rate_power=-0.7,
            initial_accumulator_value=0.5,
            l1_regularization_strength=0.3,
            l2_regularization_strength=0.1,
            l2_shrinkage_regularization_strength=0.2,
            beta=0.3,
        ),
        "ftrl(accum=0.5, lr=0.2, l1=0.3, l2=0.1 + 0.3 / (2 * 0.2), l2_shrinkage=0.2, lr_power=-0.7)",
    ),
    "lion": ("Lion", dict(learning_rate=0.01), "optax.lion(0.01, b1=0.9, b2=0.99, weight_decay=0.01)"),
    "lion_changed": (
        "Lion",
        dict(learning_rate=0.02, beta_1=0.8, beta_2=0.6, weight_decay=0.1),
        "optax.lion(0.02, b1=0.8, b2=0.6, weight_decay=0.1)",
    ),
    "lamb": (
        "LAMB",
        dict(learning_rate=0.05),
        "optax.lamb(0.05, b1=0.9, b2=0.999, eps=1e-6, weight_decay=0.01)",
    ),
    "lamb_changed": (
        "LAMB",
        dict(learning_rate=0.02, beta_1=0.8, beta_2=0.95, epsilon=0.01, weight_decay=0.1),
        "optax.lamb(0.02, b1=0.8, b2=0.95, eps=0.01, weight_decay=0.1)",
    ),
}


def torch_path(call, weights, gradients):
    """Yields the weights after each step of an optimizer with PyTorch's interface."""
    params = [torch.nn.Parameter(torch.tensor(w)) for w in weights]
    library = __import__(call.partition("(")[0].rpartition(".")[0])  # for "timm.optim.X(", imports it and returns timm
    optimizer = eval(call, {library.__name__: library, "params": params})
    for grads in gradients:
        for param, grad in zip(params, grads, strict=True):
            param.grad = torch.tensor(grad)
        optimizer.step()
        yield [param.detach().numpy().copy() for param in params]


def optax_path(call, weights, gradients, **names):
    """Yields the weights after each step of an optax transformation, in whose call these names may occur."""
    rule = eval(call, {"optax": optax} | names)
    state = rule.init(weights)
    for grads in gradients:
        updates, state = rule.update(grads, state, weights)
        weights = optax.apply_updates(weights, updates)
        yield weights


def keras_path(call, weights, gradients):
    """Yields the weights after each step of a Keras optimizer."""
    import keras

    keras.config.set_floatx("float64")
    variables = [keras.Variable(w) for w in weights]
    optimizer = eval(call, {"keras": keras})
    for grads in gradients:
        optimizer.apply(grads, variables)
        yield [variable.numpy() for variable in variables]


def ftrl_path(call, weights, gradients):
    """Yields the weights after each step of TensorFlow's operation `ResourceApplyFtrlV2`."""
    import tensorflow as tf

    options = eval(call, {"ftrl": dict})
    initial = options.pop("accum")
    variables = [tf.Variable(w) for w in weights]
    accums = [tf.Variable(np.full_like(w, initial)) for w in weights]
    linears = [tf.Variable(np.zeros_like(w)) for w in weights]
    for grads in gradients:
        for var, accum, linear, grad in zip(variables, accums, linears, grads, strict=True):
            tf.raw_ops.ResourceApplyFtrlV2(
                var=var.handle, accum=accum.handle, linear=linear.handle, grad=grad, **options
            )
        yield [var.numpy() for var in variables]


RUNNERS = {
    "torch": ("torch", torch_path),
    "optax": ("optax", optax_path),
    "keras": ("keras", keras_path),
    "ftrl": ("tensorflow", ftrl_path),
}
"""What a call begins with: the installed library it belongs to, and how it is run."""


def problem(seed=0):
    """Returns the initial weights and the gradients of every step, in few digits."""
    rng = np.random.default_rng(seed)
    weights = [rng.standard_normal(shape).round(2) for shape in SHAPES]
    sizes = 10 ** rng.uniform(-1, 1, STEPS)
    gradients = [[(size * rng.standard_normal(shape)).round(4) for shape in SHAPES] for size in sizes]
    weights[0][:] = 0
    gradients[0][0][:] = 0
    for grads in gradients[:3]:
        grads[1][0] = 0
    return weights, gradients


def case(optimizer, arguments, call, weights, gradients, runners):
    """Returns one case as it is written: the weights after the `SAVED` steps, in 12 significant digits."""
    library, run = runners[call.partition("(")[0].partition(".")[0]]
    path = dict(enumerate(run(call, weights, gradients), start=1))
    twelve_digits = np.vectorize(lambda x: float(f"{x:.12g}"))
    return {
        "optimizer": optimizer,
        "arguments": arguments,
        "reference": {
            "library": library.partition("@")[0],
            "version": library.partition("@")[2] or importlib.metadata.version(library).partition("+")[0],
            "call": call,
        },
        "path": {step: [twelve_digits(w).tolist() for w in path[step]] for step in SAVED},
    }


def write(name, content):
    """Writes a JSON object with each of its entries on one line."""
    lines = (f"  {json.dumps(key)}: {json.dumps(value)}" for key, value in content.items())
    (HERE / f"{name}.json").write_text("{\n" + ",\n".join(lines) + "\n}\n")


def make(cases, runners=RUNNERS):
    """Writes the problem and every case.

    Args:
        cases: as in `CASES`.
        runners: as in `RUNNERS`. Code that is not installed is named by its repository and commit,
            `"owner/name@commit"`.
    """
    torch.set_default_dtype(torch.float64)  # NAdam keeps its product of momenta in the default type
    jax.config.update("jax_enable_x64", True)
    weights, gradients = problem()
    listed = [[g.tolist() for g in grads] for grads in gradients]
    write("problem", {"weights": [w.tolist() for w in weights], "gradients": listed})
    for name, (optimizer, arguments, call) in cases.items():
        write(name, case(optimizer, arguments, call, weights, gradients, runners))


if __name__ == "__main__":
    make(CASES)
