"""Makes the reference trajectories of parameter-free and averaging optimizers. See `make.py`.

    pip install torch==2.13.0 optax==0.2.8 prodigyopt==1.1.2 dadaptation==3.2 schedulefree==1.4.1
    PYTHONPATH=<folder> python tests/references/make_averages.py

The folder is `src` of https://github.com/formll/dog at the commit named below. An optimizer inside another is written
`["SGD", {"learning_rate": 0.1}]`. Where a file's name ends in `_evaluation`, its path is of the weights to evaluate at,
else of those that are trained. Distances start at 0.01 or more, so that they grow within the 30 steps; where no bias is
corrected, 1 - beta_2 is a power of two, which has no error in float32.
"""

import collections
import importlib

import optax
import torch
from make import RUNNERS, make, torch_path

SGD = ["SGD", dict(learning_rate=0.1, momentum=0.9)]
TORCH_SGD = "torch.optim.SGD(params, lr=0.1, momentum=0.9)"
OPTAX_SGD = "optax.sgd(0.1, momentum=0.9)"

CASES = {
    "prodigy": (
        "Prodigy",
        dict(initial_distance=0.01, beta_2=1 - 2**-10),
        "prodigyopt.Prodigy(params, d0=0.01, betas=(0.9, 1 - 2**-10))",
    ),
    "prodigy_changed": (
        "Prodigy",
        dict(
            learning_rate=1.5,
            beta_1=0.8,
            beta_2=0.95,
            beta_3=0.99,
            epsilon=0.01,
            initial_distance=0.02,
            distance_factor=4.0,
            growth_rate=1.2,
            bias_correction=True,
            safeguard_warmup=True,
            stride=3,
            weight_decay=0.1,
        ),
        "prodigyopt.Prodigy(params, lr=1.5, betas=(0.8, 0.95), beta3=0.99, eps=0.01, d0=0.02, d_coef=4, "
        "growth_rate=1.2, use_bias_correction=True, safeguard_warmup=True, slice_p=3, weight_decay=0.1)",
    ),
    "prodigy_optax": (
        "Prodigy",
        dict(learning_rate=2.0, beta_2=0.9, initial_distance=0.01, distance_factor=3.0, bias_correction=True),
        "optax.contrib.prodigy(2.0, betas=(0.9, 0.9), estim_lr0=0.01, estim_lr_coef=3.0)",
    ),
    "dadapt_adam": (
        "DAdaptAdam",
        dict(initial_distance=0.01, beta_2=1 - 2**-10),
        "dadaptation.DAdaptAdam(params, d0=0.01, betas=(0.9, 1 - 2**-10))",
    ),
    "dadapt_adam_changed": (
        "DAdaptAdam",
        dict(
            learning_rate=1.5,
            beta_1=0.8,
            beta_2=0.95,
            epsilon=0.01,
            initial_distance=0.02,
            growth_rate=1.3,
            bias_correction=True,
            weight_decay=0.1,
        ),
        "dadaptation.DAdaptAdam(params, lr=1.5, betas=(0.8, 0.95), eps=0.01, d0=0.02, growth_rate=1.3, "
        "use_bias_correction=True, weight_decay=0.1, decouple=True)",
    ),
    "dadapt_adam_optax": (
        "DAdaptAdam",
        dict(initial_distance=0.01, bias_correction=True, weight_decay=0.1),
        "optax.contrib.dadapt_adamw(1.0, estim_lr0=0.01, weight_decay=0.1)",
    ),
    "dadapt_sgd": (
        "DAdaptSGD",
        dict(initial_distance=0.1),
        "dadaptation.DAdaptSGD(params, d0=0.1)",
    ),
    "dadapt_sgd_changed": (
        "DAdaptSGD",
        dict(learning_rate=1.5, momentum=0.8, initial_distance=0.2, growth_rate=1.3, weight_decay=0.05),
        "dadaptation.DAdaptSGD(params, lr=1.5, momentum=0.8, d0=0.2, growth_rate=1.3, weight_decay=0.05)",
    ),
    "dog": ("DoG", dict(initial_distance=0.01), "dog.DoG(params, reps_rel=0.01)"),
    "dog_changed": (
        "DoG",
        dict(learning_rate=0.5, initial_distance=0.1, epsilon=1.0, weight_decay=0.05),
        "dog.DoG(params, lr=0.5, reps_rel=0.1, eps=1.0, weight_decay=0.05)",
    ),
    "ldog": ("LDoG", dict(initial_distance=0.01), "dog.LDoG(params, reps_rel=0.01)"),
    "ldog_changed": (
        "LDoG",
        dict(learning_rate=0.5, initial_distance=0.1, epsilon=1.0, weight_decay=0.05),
        "dog.LDoG(params, lr=0.5, reps_rel=0.1, eps=1.0, weight_decay=0.05)",
    ),
    "dowg": ("DoWG", dict(), "optax.contrib.dowg()"),
    "dowg_changed": (
        "DoWG",
        dict(learning_rate=0.5, initial_distance=0.1, epsilon=0.3, weight_decay=0.05),
        "optax.contrib.dowg(0.5, init_estim_sq_dist=0.1**2, eps=0.3, weight_decay=0.05)",
    ),
    "mechanic": (
        "Mechanic",
        dict(inner=["SGD", dict(learning_rate=1.0)], initial_scale=0.01),
        "optax.contrib.mechanize(optax.sgd(1.0), s_init=0.01)",
    ),
    "mechanic_changed": (
        "Mechanic",
        dict(
            inner=["AdamW", dict(learning_rate=0.5, weight_decay=0.1)],
            decay=0.1,
            epsilon=1e-3,
            initial_scale=0.1,
            number=3,
        ),
        "optax.contrib.mechanize(optax.adamw(0.5, weight_decay=0.1), weight_decay=0.1, eps=1e-3, s_init=0.1, "
        "num_betas=3)",
    ),
    "lookahead": (
        "Lookahead",
        dict(inner=SGD),
        f"lookahead(optax.lookahead({OPTAX_SGD}, sync_period=6, slow_step_size=0.5))",
    ),
    "lookahead_changed": (
        "Lookahead",
        dict(inner=SGD, every=4, slow_step=0.8),
        f"lookahead(optax.lookahead({OPTAX_SGD}, sync_period=4, slow_step_size=0.8))",
    ),
    "lookahead_changed_evaluation": (
        "Lookahead",
        dict(inner=SGD, every=4, slow_step=0.8),
        f"slow(optax.lookahead({OPTAX_SGD}, sync_period=4, slow_step_size=0.8))",
    ),
    "ema_evaluation": ("EMA", dict(inner=SGD), f"averaged({TORCH_SGD}, debiased=0.999)"),
    "ema_changed_evaluation": (
        "EMA",
        dict(inner=SGD, momentum=0.8, debias=False),
        f"averaged({TORCH_SGD}, ema=0.8)",
    ),
    "swa_evaluation": ("SWA", dict(inner=SGD), f"averaged({TORCH_SGD}, swa=(0, 1))"),
    "swa_changed_evaluation": ("SWA", dict(inner=SGD, start=3, every=3), f"averaged({TORCH_SGD}, swa=(3, 3))"),
    "polynomial_average_evaluation": (
        "PolynomialAverage",
        dict(inner=SGD),
        f"averaged({TORCH_SGD}, polynomial=8)",
    ),
    "polynomial_average_changed_evaluation": (
        "PolynomialAverage",
        dict(inner=SGD, power=3.0),
        f"averaged({TORCH_SGD}, polynomial=3)",
    ),
}

for name, optimizer, arguments, call in [
    (
        "schedule_free_adamw",
        "ScheduleFreeAdamW",
        dict(learning_rate=0.05),
        "schedulefree.AdamWScheduleFreeReference(params, lr=0.05)",
    ),
    (
        "schedule_free_adamw_changed",
        "ScheduleFreeAdamW",
        dict(
            learning_rate=0.1,
            beta_1=0.7,
            beta_2=0.95,
            epsilon=0.01,
            warmup_steps=7,
            step_power=0.5,
            rate_power=1.0,
            weight_decay=0.1,
        ),
        "schedulefree.AdamWScheduleFreeReference(params, lr=0.1, betas=(0.7, 0.95), eps=0.01, warmup_steps=7, r=0.5, "
        "weight_lr_power=1, weight_decay=0.1)",
    ),
    (
        "schedule_free_sgd",
        "ScheduleFreeSGD",
        dict(learning_rate=0.1),
        "schedulefree.SGDScheduleFreeReference(params, lr=0.1)",
    ),
    (
        "schedule_free_sgd_changed",
        "ScheduleFreeSGD",
        dict(learning_rate=0.2, beta_1=0.7, warmup_steps=7, step_power=0.5, rate_power=1.0, weight_decay=0.1),
        "schedulefree.SGDScheduleFreeReference(params, lr=0.2, momentum=0.7, warmup_steps=7, r=0.5, weight_lr_power=1, "
        "weight_decay=0.1)",
    ),
    (
        "schedule_free_radam",
        "ScheduleFreeRAdam",
        dict(learning_rate=0.05),
        "schedulefree.RAdamScheduleFree(params, lr=0.05, foreach=False)",
    ),
    (
        "schedule_free_radam_changed",
        "ScheduleFreeRAdam",
        dict(
            learning_rate=0.1,
            beta_1=0.7,
            beta_2=0.95,
            epsilon=0.01,
            step_power=0.5,
            rate_power=1.0,
            silent=False,
            weight_decay=0.1,
        ),
        "schedulefree.RAdamScheduleFree(params, lr=0.1, betas=(0.7, 0.95), eps=0.01, r=0.5, weight_lr_power=1, "
        "silent_sgd_phase=False, weight_decay=0.1, foreach=False)",
    ),
    (
        "schedule_free",
        "ScheduleFree",
        dict(inner=["Adam", dict(learning_rate=0.05, beta_1=0.0)]),
        "schedulefree.ScheduleFreeWrapperReference(torch.optim.Adam(params, lr=0.05, betas=(0.0, 0.999)))",
    ),
    (
        "schedule_free_prodigy",  # with beta_1 = 0 the package multiplies by the new distance
        "ScheduleFree",
        dict(inner=["Prodigy", dict(initial_distance=0.01, beta_1=0.5, beta_2=1 - 2**-10)]),
        "schedulefree.ScheduleFreeWrapperReference(prodigyopt.Prodigy(params, d0=0.01, betas=(0.5, 1 - 2**-10)))",
    ),
    (
        "schedule_free_changed",
        "ScheduleFree",
        dict(
            inner=["AdamW", dict(learning_rate=0.1, beta_1=0.5, weight_decay=0.1)],
            beta_1=0.7,
            step_power=0.5,
            rate_power=1.0,
        ),
        "schedulefree.ScheduleFreeWrapperReference(torch.optim.AdamW(params, lr=0.1, betas=(0.5, 0.999), "
        "weight_decay=0), momentum=0.7, r=0.5, weight_lr_power=1, weight_decay_at_y=0.1)",
    ),
]:
    CASES[name] = (optimizer, arguments, call)
    CASES[f"{name}_evaluation"] = (optimizer, arguments, f"evaluated({call})")


def dadaptation_path(call, weights, gradients):
    """Yields the weights after each step of D-Adaptation, the gradient of L2 added to that of DAdaptSGD beforehand.

    The package forgets it in the norm of the first gradient, where its `add` is not in place.
    """
    import dadaptation

    params = [torch.nn.Parameter(torch.tensor(w)) for w in weights]
    optimizer = eval(call, {"dadaptation": dadaptation, "params": params})
    decay = 0.0
    if isinstance(optimizer, dadaptation.DAdaptSGD):
        decay, optimizer.param_groups[0]["weight_decay"] = optimizer.param_groups[0]["weight_decay"], 0
    for grads in gradients:
        for param, grad in zip(params, grads, strict=True):
            param.grad = torch.tensor(grad) + decay * param.detach()
        optimizer.step()
        yield [param.detach().numpy().copy() for param in params]


def schedulefree_path(call, weights, gradients, to="train"):
    """Yields the weights after each step of a Schedule-Free optimizer: in training, or in evaluation.

    The wrapper gets a state of its own: in that of the optimizer inside, PyTorch's own take its z for their state.
    """
    import prodigyopt
    import schedulefree
    from schedulefree.wrap_schedulefree_reference import ScheduleFreeWrapperReference

    class Apart(ScheduleFreeWrapperReference):
        state = collections.defaultdict(dict)

    schedulefree.ScheduleFreeWrapperReference = Apart
    params = [torch.nn.Parameter(torch.tensor(w)) for w in weights]
    optimizer = eval(call, {"schedulefree": schedulefree, "prodigyopt": prodigyopt, "torch": torch, "params": params})
    optimizer.train()
    for grads in gradients:
        for param, grad in zip(params, grads, strict=True):
            param.grad = torch.tensor(grad)
        optimizer.step()
        getattr(optimizer, to)()
        yield [param.detach().numpy().copy() for param in params]
        optimizer.train()


def evaluated_path(call, weights, gradients):
    """Yields the weights to evaluate at after each step."""
    return schedulefree_path(call.removeprefix("evaluated"), weights, gradients, "eval")


def lookahead_path(call, weights, gradients, of="fast"):
    """Yields the weights after each step of `optax.lookahead`: those that run ahead, or the slow ones."""
    rule = eval(call.partition("(")[2].removesuffix(")"), {"optax": optax})
    params = optax.LookaheadParams.init_synced(weights)
    state = rule.init(params)
    for grads in gradients:
        updates, state = rule.update(grads, state, params)
        params = optax.apply_updates(params, updates)
        yield getattr(params, of)


def slow_path(call, weights, gradients):
    """Yields the slow weights of `optax.lookahead` after each step."""
    return lookahead_path(call, weights, gradients, "slow")


def averaged_path(call, weights, gradients):
    """Yields averages of the weights after each step of a `torch.optim` optimizer."""
    from torch.optim import swa_utils

    def averaged(optimizer, **how):
        return optimizer, *how.items()

    params = [torch.nn.Parameter(torch.tensor(w)) for w in weights]
    optimizer, (kind, setting) = eval(call, {"averaged": averaged, "torch": torch, "params": params})
    model = torch.nn.ParameterList(params)
    start, every = setting if kind == "swa" else (0, 1)
    if kind == "polynomial":
        averager = importlib.import_module("dog").PolynomialDecayAverager(model, setting)
        average, update = averager.averaged_model, averager.step
    elif kind == "debiased":
        rule = optax.ema(setting, debias=True)
        state, average = rule.init(weights), None
    else:
        function = swa_utils.get_swa_multi_avg_fn() if kind == "swa" else swa_utils.get_ema_multi_avg_fn(setting)
        average = swa_utils.AveragedModel(model, multi_avg_fn=function)

        def update():
            average.update_parameters(model)

    for step, grads in enumerate(gradients, start=1):
        for param, grad in zip(params, grads, strict=True):
            param.grad = torch.tensor(grad)
        optimizer.step()
        now = [param.detach().numpy().copy() for param in params]
        if kind == "debiased":
            now, state = rule.update(now, state)
            yield now
            continue
        if step > start and (step - start) % every == 0:
            update()
        yield now if step < start + every else [param.detach().numpy().copy() for param in average.parameters()]


if __name__ == "__main__":
    make(
        CASES,
        RUNNERS
        | {
            "prodigyopt": ("prodigyopt", torch_path),
            "dadaptation": ("dadaptation", dadaptation_path),
            "dog": ("formll/dog@8d45cf5", torch_path),
            "schedulefree": ("schedulefree", schedulefree_path),
            "evaluated": ("schedulefree", evaluated_path),
            "lookahead": ("optax", lookahead_path),
            "slow": ("optax", slow_path),
            "averaged": ("torch", averaged_path),
        },
    )
