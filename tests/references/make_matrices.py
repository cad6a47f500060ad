"""Makes the reference trajectories of the matrix methods: see `make.py`.

    pip install torch==2.13.0 optax==0.2.8 tensorflow==2.21.0 kron-torch==0.3.3
    TORCHDYNAMO_DISABLE=1 PYTHONPATH=FOLDER python tests/references/make_matrices.py

FOLDER holds `soap.py` of github.com/nikhilvyas/SOAP and `distributed_shampoo` of
github.com/facebookresearch/optimizers, at the commits below. What differs from the code as it is, and nothing else
does:

* Muon iterates in the weights' dtype in the place of bfloat16. It gets the transposes of Keras's kernels.
* SOAP, Distributed Shampoo and Kron compute in float64 what they would in float32.
* Each method gets the weights in the shapes that `view` names, and where `decay` is given it is applied before the
  step; SOAP and Kron themselves decay only some weights in some steps.
* Kron gets its random numbers from TensorFlow, a copy of the gradient where it adds noise to it, and does not balance
  its factors at random.
"""

import math
import sys
from unittest import mock

import numpy as np
import torch
from make import RUNNERS, make

CASES = {  # file: (kopt class, its arguments, the reference)
    "muon": (
        "Muon",
        dict(learning_rate=0.02),
        "torch.optim.Muon(matrices, lr=0.02, weight_decay=0.0), "
        "torch.optim.AdamW(vectors, lr=0.0003, betas=(0.9, 0.95), eps=1e-10, weight_decay=0.0)",
    ),
    "muon_changed": (
        "Muon",
        dict(
            learning_rate=0.1,
            momentum=0.8,
            nesterov=False,
            steps=3,
            scale="adam-rms",
            precision=None,
            auxiliary=["embed"],
            auxiliary_rate=0.5,
            beta_1=0.7,
            beta_2=0.9,
            epsilon=0.01,
            weight_decay=0.05,
        ),
        "torch.optim.Muon(matrices, lr=0.1, momentum=0.8, nesterov=False, ns_steps=3, adjust_lr_fn='match_rms_adamw', "
        "weight_decay=0.05), torch.optim.AdamW(vectors, lr=0.05, betas=(0.7, 0.9), eps=0.01, weight_decay=0.05)",
    ),
    "soap": (
        "SOAP",
        dict(learning_rate=0.05, weight_decay=None),
        "soap.SOAP(view((3,), (4, 3), (2, 2, 3, 2)), lr=0.05, weight_decay=0.0)",
    ),
    "soap_changed": (
        "SOAP",
        dict(
            learning_rate=0.02,
            beta_1=0.8,
            beta_2=0.9,
            epsilon=0.01,
            weight_decay=0.1,
            frequency=3,
            max_size=4,
            merge=True,
        ),
        "soap.SOAP(view((3,), (4, 3), (4, 3, 2), decay=0.1), lr=0.02, betas=(0.8, 0.9), eps=0.01, weight_decay=0.0, "
        "precondition_frequency=3, max_precond_dim=4)",
    ),
    "soap_one_sided": (
        "SOAP",
        dict(learning_rate=0.02, frequency=1, max_size=3, weight_decay=None),
        "soap.SOAP(view((3,), (4, 3), (2, 2, 3, 2)), lr=0.02, weight_decay=0.0, precondition_frequency=1, "
        "max_precond_dim=3)",
    ),
    "shampoo": (  # which rounds its learning rate to float32
        "Shampoo",
        dict(learning_rate=2**-4, frequency=3, start=5),
        "distributed_shampoo.DistributedShampoo(view((3,), (4, 3), (12, 2)), lr=2**-4, betas=(0.9, 0.999), "
        "precondition_frequency=3, start_preconditioning_step=5, "
        "grafting_config=AdamPreconditionerConfig(beta2=0.999, epsilon=1e-8), **exact)",
    ),
    "shampoo_changed": (
        "Shampoo",
        dict(
            learning_rate=2**-3,
            beta_1=0.8,
            beta_2=1.0,
            epsilon=0.01,
            frequency=2,
            start=3,
            block_size=2,
            graft=None,
            graft_epsilon=0.1,
            weight_decay=0.05,
        ),
        "distributed_shampoo.DistributedShampoo(view((3,), (4, 3), (2, 2, 3, 2)), lr=2**-3, betas=(0.8, 1.0), "
        "epsilon=0.01, precondition_frequency=2, start_preconditioning_step=3, max_preconditioner_dim=2, "
        "weight_decay=0.05, **exact)",
    ),
    "shampoo_sums": (
        "Shampoo",
        dict(learning_rate=2**-3, beta_2=1.0, frequency=2, start=6, graft="adam", graft_epsilon=0.1),
        "distributed_shampoo.DistributedShampoo(view((3,), (4, 3), (12, 2)), lr=2**-3, betas=(0.9, 1.0), "
        "precondition_frequency=2, start_preconditioning_step=6, "
        "grafting_config=AdaGradPreconditionerConfig(epsilon=0.1), **exact)",
    ),
    "shampoo_sgd": (
        "Shampoo",
        dict(learning_rate=2**-6, beta_2=0.9, epsilon=1e-6, frequency=1, start=1, graft="sgd"),
        "distributed_shampoo.DistributedShampoo(view((3,), (4, 3), (12, 2)), lr=2**-6, betas=(0.9, 0.9), epsilon=1e-6, "
        "precondition_frequency=1, start_preconditioning_step=1, grafting_config=SGDPreconditionerConfig(), "
        "**exact)",
    ),
    "kron": (
        "Kron",
        dict(learning_rate=0.05),
        "kron_torch.Kron(view((3,), (4, 3), (12, 2)), lr=0.05, precond_dtype=torch.float64)",
    ),
    "kron_changed": (
        "Kron",
        dict(
            learning_rate=0.02,
            beta_1=0.8,
            preconditioner_rate=0.3,
            flat_steps=5.0,
            decay_rate=0.1,
            min_probability=0.25,
            initial_scale=2.0,
            max_size=4,
            seed=1,
            weight_decay=0.1,
        ),
        "kron_torch.Kron(view((3,), (4, 3), (12, 2), decay=0.1, seed=1), lr=0.02, b1=0.8, precond_lr=0.3, "
        "preconditioner_update_probability=kron_torch.precond_update_prob_schedule(1.0, 0.25, 0.1, 5), "
        "precond_init_scale=2.0, max_size_triangular=4, precond_dtype=torch.float64)",
    ),
    "graft": (
        "Graft",
        dict(inner=["SGD", dict(learning_rate=0.1)], heading=["Adam", dict(epsilon=1e-6)]),
        "graft(torch.optim.SGD(inner, lr=0.1), torch.optim.Adam(heading, lr=1.0, eps=1e-6))",
    ),
    "graft_changed": (
        "Graft",
        dict(inner=["Adam", dict(learning_rate=0.05)], heading=["SGD", dict(learning_rate=0.5, momentum=0.9)]),
        "graft(torch.optim.Adam(inner, lr=0.05), torch.optim.SGD(heading, lr=1.0, momentum=0.9))",
    ),
}


def graft_path(call, weights, gradients):
    """Yields the weights after steps as long as those of one optimizer and in the direction of another's."""
    copies = {name: [torch.nn.Parameter(torch.tensor(w)) for w in weights] for name in ("inner", "heading")}
    optimizers = eval(call, copies | {"torch": torch, "graft": lambda *optimizers: optimizers})
    for grads in gradients:
        moves = []
        for params, optimizer in zip(copies.values(), optimizers, strict=True):
            before = [param.detach().numpy().copy() for param in params]
            for param, grad in zip(params, grads, strict=True):
                param.grad = torch.tensor(grad)
            optimizer.step()
            moves.append([param.detach().numpy() - b for param, b in zip(params, before, strict=True)])
        lengths, directions = moves
        ratios = [np.linalg.norm(a) / (np.linalg.norm(b) or 1) for a, b in zip(lengths, directions, strict=True)]
        weights = [w + ratio * move for w, ratio, move in zip(weights, ratios, directions, strict=True)]
        yield weights


def muon_path(call, weights, gradients):
    """Yields the weights after each step: the vector with one optimizer, the transposed kernels with another."""

    def flat(w):
        return torch.tensor(w if w.ndim < 2 else w.reshape(-1, w.shape[-1]).T.copy())

    params = [torch.nn.Parameter(flat(w)) for w in weights]
    optimizers = eval(call, {"torch": torch, "vectors": params[:1], "matrices": params[1:]})
    with mock.patch.object(torch.Tensor, "bfloat16", torch.Tensor.clone):
        for grads in gradients:
            for param, grad in zip(params, grads, strict=True):
                param.grad = flat(grad)
            for optimizer in optimizers:
                optimizer.step()
            yield [p.detach().numpy().T.reshape(w.shape).copy() for p, w in zip(params, weights, strict=True)]


def viewed_path(call, weights, gradients, *, names=None, seeds=None):
    """Yields the weights after each step of an optimizer that gets them in other shapes."""
    given = {"decay": 0.0}

    def view(*shapes, **options):
        given.update(options, params=[torch.nn.Parameter(torch.tensor(w.reshape(s))) for w, s in zip(weights, shapes)])
        return given["params"]

    module = __import__(call.partition(".")[0])
    optimizer = eval(call, vars(module) | {"torch": torch, module.__name__: module, "view": view} | (names or {}))
    for step, grads in enumerate(gradients, start=1):
        if seeds is not None:
            seeds[:] = given.get("seed", 0), step
        for param, grad in zip(given["params"], grads, strict=True):
            param.grad = torch.tensor(grad.reshape(param.shape))
            param.data *= 1 - optimizer.param_groups[0]["lr"] * given["decay"]
        with mock.patch.object(torch.Tensor, "float", torch.Tensor.clone):
            optimizer.step()
        yield [p.detach().numpy().reshape(w.shape).copy() for p, w in zip(given["params"], weights, strict=True)]


def shampoo_path(call, weights, gradients):
    """Yields the weights after each step of Distributed Shampoo, which joins no axes and rounds nothing itself."""
    import distributed_shampoo

    exact = dict(
        distributed_config=distributed_shampoo.SingleDeviceDistributedConfig(target_parameter_dimensionality=math.inf),
        preconditioner_config=distributed_shampoo.RootInvShampooPreconditionerConfig(
            factor_matrix_dtype=torch.float64, inv_factor_matrix_dtype=torch.float64
        ),
    )
    return viewed_path(call, weights, gradients, names={"exact": exact})


def kron_path(call, weights, gradients):
    """Yields the weights after each step of Kron, with random numbers that kopt has too."""
    import tensorflow as tf
    from kron_torch import kron

    seeds, update = [], kron._update_precond

    def numbers(x):  # by Box and Muller, from draws that are the same with and without XLA
        bits = tf.random.stateless_uniform((2, *x.shape), seeds, None, None, tf.uint32, alg="philox").numpy() >> 8
        radius, angle = tf.constant(bits.astype("float32")) * 2.0**-24
        return torch.tensor((tf.sqrt(-2 * tf.math.log1p(-radius)) * tf.cos(2 * math.pi * angle)).numpy(), dtype=x.dtype)

    with (
        mock.patch.object(torch, "randn_like", numbers),
        mock.patch.object(kron, "_update_precond", lambda q, exprs, g, *rest: update(q, exprs, g.clone(), *rest)),
        mock.patch.object(kron, "_balance_Q"),
    ):
        yield from viewed_path(call, weights, gradients, seeds=seeds)


if __name__ == "__main__":
    runners = RUNNERS | {
        "torch": ("torch", muon_path),
        "graft": ("torch", graft_path),
        "soap": ("nikhilvyas/SOAP@a1e553530fde97d0e6b307d7c82ac6d38b072340", viewed_path),
        "distributed_shampoo": (
            "facebookresearch/optimizers@f60660661194de26d3ee78bae6d15820ff8e583d",
            shampoo_path,
        ),
        "kron_torch": ("kron-torch", kron_path),
    }
    wanted = sys.argv[1:] or list(CASES)
    make({name: CASES[name] for name in wanted}, runners)
