"""Makes the reference trajectories of Adam's relatives and of the other elementwise rules. See `make.py`.

    pip install torch==2.15.0 optax==0.2.8 timm==1.0.31 pytorch_optimizer==4.1.0 adabelief_pytorch==0.2.1 madgrad==1.3
    PYTHONPATH=<folders> python tests/references/make_adam.py

The folders are of the authors' own code, at the commits named below, in this order:
`src` of https://github.com/iShohei220/adopt, `MARS/optimizers` of https://github.com/AGI-Arena/MARS, and the roots of
https://github.com/sail-sg/Adan, https://github.com/facebookresearch/qhoptim and
https://github.com/warner-benjamin/optimi.
"""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import torch
from make import RUNNERS, make, optax_path, torch_path

CASES = {
    "adamw_independent": (
        "AdamW",
        dict(learning_rate=0.02, beta_1=0.8, beta_2=0.95, weight_decay=0.002, weight_decay_mode="independent"),
        "torch.optim.AdamW(params, lr=0.02, betas=(0.8, 0.95), eps=1e-8, weight_decay=0.002 / 0.02)",
    ),
    "nadamw": (
        "NadamW",
        dict(learning_rate=0.05),
        "timm.optim.NAdamW(params, lr=0.05, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.004)",
    ),
    "nadamw_changed": (
        "NadamW",
        dict(
            learning_rate=0.02,
            beta_1=0.8,
            beta_2=0.95,
            epsilon=0.01,
            weight_decay=0.1,
            weight_decay_mode="corrected",
        ),
        "timm.optim.NAdamW(params, lr=0.02, betas=(0.8, 0.95), eps=0.01, weight_decay=0.1, "
        "corrected_weight_decay=True)",
    ),
    "radam": (  # torch adds epsilon before the bias is corrected: no difference at 1e-30
        "RAdam",
        dict(learning_rate=0.05, epsilon=1e-30),
        "torch.optim.RAdam(params, lr=0.05, betas=(0.9, 0.999), eps=1e-30)",
    ),
    "radam_changed": (
        "RAdam",
        dict(learning_rate=0.02, beta_1=0.8, beta_2=0.95, epsilon=0.01, weight_decay=0.1),
        "optax.chain(optax.scale_by_radam(b1=0.8, b2=0.95, eps=0.01), "
        "optax.add_decayed_weights(0.1), optax.scale(-0.02))",
    ),
    "radam_skip": (
        "RAdam",
        dict(learning_rate=0.05, beta_2=0.95, epsilon=1e-30, early="skip"),
        "pytorch_optimizer.RAdam(params, lr=0.05, betas=(0.9, 0.95), eps=1e-30, degenerated_to_sgd=False)",
    ),
    "adabelief": (
        "AdaBelief",
        dict(learning_rate=0.05),
        "adabelief_pytorch.AdaBelief(params, lr=0.05, betas=(0.9, 0.999), eps=1e-16, rectify=False, "
        "print_change_log=False)",
    ),
    "adabelief_changed": (
        "AdaBelief",
        dict(learning_rate=0.02, beta_1=0.8, beta_2=0.95, epsilon=0.01, weight_decay=0.1),
        "optax.chain(optax.scale_by_belief(b1=0.8, b2=0.95, eps=0.01, eps_root=0.01), "
        "optax.add_decayed_weights(0.1), optax.scale(-0.02))",
    ),
    "yogi": (
        "Yogi",
        dict(learning_rate=0.05),
        "optax.chain(mean_from_zero(optax.scale_by_yogi(b1=0.9, b2=0.999, eps=1e-3, "
        "initial_accumulator_value=1e-6)), optax.scale(-0.05))",
    ),
    "yogi_changed": (
        "Yogi",
        dict(
            learning_rate=0.02,
            beta_1=0.8,
            beta_2=0.95,
            epsilon=0.01,
            initial_accumulator_value=0.1,
            weight_decay=0.1,
        ),
        "optax.chain(mean_from_zero(optax.scale_by_yogi(b1=0.8, b2=0.95, eps=0.01, "
        "initial_accumulator_value=0.1)), optax.add_decayed_weights(0.1), optax.scale(-0.02))",
    ),
    "stableadamw": (
        "StableAdamW",
        dict(learning_rate=0.05),
        "optimi.StableAdamW(params, lr=0.05, betas=(0.9, 0.99), eps=1e-6, weight_decay=0.01, foreach=False)",
    ),
    "stableadamw_changed": (
        "StableAdamW",
        dict(
            learning_rate=0.02,
            beta_1=0.8,
            beta_2=0.95,
            epsilon=0.3,
            weight_decay=0.002,
            weight_decay_mode="independent",
        ),
        "optimi.StableAdamW(params, lr=0.02, betas=(0.8, 0.95), eps=0.3, weight_decay=0.002, decouple_lr=True, "
        "foreach=False)",
    ),
    "novograd": (
        "NovoGrad",
        dict(learning_rate=0.05),
        "timm.optim.NvNovoGrad(params, lr=0.05, betas=(0.95, 0.98), eps=1e-8)",
    ),
    "novograd_changed": (
        "NovoGrad",
        dict(learning_rate=0.02, beta_1=0.8, beta_2=0.5, epsilon=0.1, weight_decay=0.1),
        "timm.optim.NvNovoGrad(params, lr=0.02, betas=(0.8, 0.5), eps=0.1, weight_decay=0.1)",
    ),
    "adabound": (
        "AdaBound",
        dict(learning_rate=0.05, final_ratio=2.0),
        "pytorch_optimizer.AdaBound(params, lr=0.05, betas=(0.9, 0.999), eps=1e-8, final_lr=0.1, gamma=1e-3)",
    ),
    "adabound_changed": (
        "AdaBound",
        dict(learning_rate=0.02, beta_1=0.8, beta_2=0.95, epsilon=0.01, final_ratio=1.5, gamma=0.1, weight_decay=0.1),
        "pytorch_optimizer.AdaBound(params, lr=0.02, betas=(0.8, 0.95), eps=0.01, final_lr=0.03, gamma=0.1, "
        "weight_decay=0.1, weight_decouple=True)",
    ),
    "ademamix": (
        "AdEMAMix",
        dict(learning_rate=0.05),
        "optax.contrib.ademamix(0.05, b1=0.9, b2=0.999, b3=0.9999, alpha=5, eps=1e-8)",
    ),
    "ademamix_changed": (  # with the paper's schedules, for a T of 20
        "AdEMAMix",
        dict(
            learning_rate=0.02,
            beta_1=0.8,
            beta_2=0.95,
            beta_3=0.99,
            alpha=3.0,
            epsilon=0.01,
            warmup_steps=20,
            weight_decay=0.1,
        ),
        "optax.contrib.ademamix(0.02, b1=0.8, b2=0.95, eps=0.01, weight_decay=0.1, "
        "alpha=lambda k: jnp.minimum(jnp.float64(k + 1) / 20, 1) * 3, "
        "b3=lambda k: jnp.minimum(0.99, jnp.exp(log(0.8) * log(0.99) "
        "/ ((1 - jnp.float64(k + 1) / 20) * log(0.99) + jnp.float64(k + 1) / 20 * log(0.8)))))",
    ),
    "adan": (
        "Adan",
        dict(learning_rate=0.05, weight_decay=0.02),
        "adan.Adan(params, lr=0.05, betas=(0.98, 0.92, 0.99), eps=1e-8, weight_decay=0.02, foreach=False)",
    ),
    "adan_changed": (
        "Adan",
        dict(
            learning_rate=0.02,
            beta_1=0.8,
            beta_2=0.7,
            beta_3=0.95,
            epsilon=0.01,
            proximal=False,
            weight_decay=0.1,
        ),
        "adan.Adan(params, lr=0.02, betas=(0.8, 0.7, 0.95), eps=0.01, weight_decay=0.1, no_prox=True, foreach=False)",
    ),
    "laprop": (
        "LaProp",
        dict(learning_rate=0.05),
        "timm.optim.LaProp(params, lr=0.05, betas=(0.9, 0.999), eps=1e-15)",
    ),
    "laprop_changed": (
        "LaProp",
        dict(learning_rate=0.02, beta_1=0.8, beta_2=0.95, epsilon=0.01, weight_decay=0.1),
        "optax.chain(optax.scale_by_rms(0.95, eps=0.01, eps_in_sqrt=False, bias_correction=True), "
        "optax.ema(0.8, debias=True), optax.add_decayed_weights(0.1), optax.scale(-0.02))",
    ),
    "adopt": (
        "ADOPT",
        dict(learning_rate=0.02),
        "adopt.ADOPT(params, lr=0.02, betas=(0.9, 0.9999), eps=1e-6, foreach=False)",
    ),
    "adopt_changed": (
        "ADOPT",
        dict(learning_rate=0.02, beta_1=0.8, beta_2=0.95, epsilon=0.3, weight_decay=0.1),
        "optax.chain(optax.contrib.scale_by_adopt(b1=0.8, b2=0.95, eps=0.3), "
        "optax.add_decayed_weights(0.1), optax.scale(-0.02))",
    ),
    "mars": (
        "MARS",
        dict(learning_rate=0.05),
        "mars.MARS(params, lr=0.05, betas=(0.95, 0.99), gamma=0.025, "
        "lr_1d=0.05, betas_1d=(0.95, 0.99), weight_decay_1d=0)",
    ),
    "mars_changed": (
        "MARS",
        dict(
            learning_rate=0.02,
            beta_1=0.8,
            beta_2=0.95,
            epsilon=0.01,
            gamma=0.5,
            optimize_1d=True,
            weight_decay=0.1,
        ),
        "mars.MARS(params, lr=0.02, betas=(0.8, 0.95), eps=0.01, gamma=0.5, optimize_1d=True, weight_decay=0.1)",
    ),
    "qhadam": (
        "QHAdam",
        dict(learning_rate=0.05),
        "qhoptim.pyt.QHAdam(params, lr=0.05, betas=(0.995, 0.999), nus=(0.7, 1), eps=1e-8)",
    ),
    "qhadam_changed": (
        "QHAdam",
        dict(learning_rate=0.02, beta_1=0.8, beta_2=0.95, epsilon=0.01, nu_1=0.4, nu_2=0.6, weight_decay=0.1),
        "qhoptim.pyt.QHAdam(params, lr=0.02, betas=(0.8, 0.95), nus=(0.4, 0.6), eps=0.01, weight_decay=0.1, "
        "decouple_weight_decay=True)",
    ),
    "madgrad": (  # the authors add epsilon to the learning rate
        "MADGRAD",
        dict(learning_rate=0.05),
        "madgrad.MADGRAD(params, lr=0.05 - 1e-6, momentum=0.9, eps=1e-6)",
    ),
    "madgrad_changed": (
        "MADGRAD",
        dict(learning_rate=0.02, momentum=0.7, epsilon=0.01, weight_decay=0.1),
        "madgrad.MADGRAD(params, lr=0.02 - 0.01, momentum=0.7, eps=0.01, weight_decay=0.1, decouple_decay=True)",
    ),
    "qhm": (
        "QHM",
        dict(learning_rate=0.1),
        "qhoptim.pyt.QHM(params, lr=0.1, momentum=0.999, nu=0.7)",
    ),
    "qhm_changed": (
        "QHM",
        dict(learning_rate=0.2, momentum=0.8, nu=0.4, weight_decay=0.05),
        "qhoptim.pyt.QHM(params, lr=0.2, momentum=0.8, nu=0.4, weight_decay=0.05, weight_decay_type='direct')",
    ),
    "aggmo": (
        "AggMo",
        dict(learning_rate=0.1),
        "pytorch_optimizer.AggMo(params, lr=0.1, betas=(0, 0.9, 0.99))",
    ),
    "aggmo_changed": (
        "AggMo",
        dict(learning_rate=0.2, velocities=4, ratio=0.3, weight_decay=0.05),
        "pytorch_optimizer.AggMo(params, lr=0.2, betas=(0, 0.7, 0.91, 0.973), weight_decay=0.05, weight_decouple=True)",
    ),
    "signsgd": ("Signum", dict(learning_rate=0.01, momentum=0.0), "optax.sign_sgd(0.01)"),
    "signum": ("Signum", dict(learning_rate=0.01), "optax.signum(0.01, beta=0.9)"),
    "signum_changed": (
        "Signum",
        dict(learning_rate=0.02, momentum=0.6, weight_decay=0.1),
        "optax.chain(optax.ema(0.6, debias=False), optax.scale_by_sign(), "
        "optax.add_decayed_weights(0.1), optax.scale(-0.02))",
    ),
    "rprop": (
        "Rprop",
        dict(learning_rate=0.01),
        "torch.optim.Rprop(params, lr=0.01, etas=(0.5, 1.2), step_sizes=(1e-6, 50))",
    ),
    "rprop_changed": (
        "Rprop",
        dict(learning_rate=0.02, eta_minus=0.3, eta_plus=1.6, min_step=0.5, max_step=2.0),
        "torch.optim.Rprop(params, lr=0.02, etas=(0.3, 1.6), step_sizes=(0.01, 0.04))",
    ),
}


def mean_from_zero(rule):
    """optax's Yogi, but that its mean gradient starts at zero, as in the paper."""

    def init(weights):
        state = rule.init(weights)
        return state._replace(mu=jax.tree.map(jnp.zeros_like, state.mu))

    return optax.GradientTransformation(init, rule.update)


def mars_path(call, weights, gradients):
    """Yields the weights after each step of MARS.

    The authors take weights of two axes for matrices, and those of more for vectors: here these have two, which
    changes nothing else. They take the gradient before the first for zero, where the paper has x₁ = x₀ and so the
    first gradient itself.
    """
    import mars

    def matrix(w):
        return w if w.ndim < 2 else w.reshape(-1, w.shape[-1])

    params = [torch.nn.Parameter(torch.tensor(matrix(w))) for w in weights]
    optimizer = eval(call, {"mars": mars, "params": params})
    for param, grad in zip(params, gradients[0], strict=True):
        zero = torch.zeros_like(param)
        state = dict(step=0, exp_avg=zero, exp_avg_sq=zero.clone(), last_grad=torch.tensor(matrix(grad)))
        optimizer.state[param].update(state)
    for grads in gradients:
        for param, grad in zip(params, grads, strict=True):
            param.grad = torch.tensor(matrix(grad))
        optimizer.step()
        yield [np.reshape(param.detach().numpy().copy(), w.shape) for param, w in zip(params, weights, strict=True)]


if __name__ == "__main__":
    packages = {name: (name, torch_path) for name in ("timm", "pytorch_optimizer", "adabelief_pytorch", "madgrad")}
    make(
        CASES,
        RUNNERS
        | packages
        | {
            "optax": ("optax", functools.partial(optax_path, jnp=jnp, log=math.log, mean_from_zero=mean_from_zero)),
            "adan": ("sail-sg/Adan@2c65bea", torch_path),
            "adopt": ("iShohei220/adopt@6468572", torch_path),
            "mars": ("AGI-Arena/MARS@4831e28", mars_path),
            "qhoptim": ("facebookresearch/qhoptim@e81dea3", torch_path),
            "optimi": ("warner-benjamin/optimi@17a3d54", torch_path),
        },
    )
