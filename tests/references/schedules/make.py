"""Makes `values.json` beside this file: the values of other libraries' schedules, step by step, in float64.

A case pairs a kopt schedule, as an expression, with the same schedule made by another library. PyTorch's sets a
number of an optimizer, `sgd(rate)`: the learning rate, or the momentum where the case says so.

The tests read the file and need none of this. To make it again:

    pip install torch==2.13.0 optax==0.2.8 transformers==5.23.0 pytorch_optimizer==4.1.0
    python tests/references/schedules/make.py
"""

import json
from importlib.metadata import version
from pathlib import Path

import jax
import optax
import pytorch_optimizer
import torch
import transformers

HERE = Path(__file__).parent
STEPS = 24

CASES = [  # kopt, the reference, what of its optimizer is read
    ("Linear(0.5, 20)", "optax.linear_schedule(0.5, 0.0, 20)"),
    ("Linear(0.1, 10, final=0.7)", "optax.linear_schedule(0.1, 0.7, 10)"),
    ("Cosine(0.5, 20)", "optax.cosine_decay_schedule(0.5, 20)"),
    ("Cosine(0.5, 16, final=0.1)", "optax.cosine_decay_schedule(0.5, 16, alpha=0.2)"),
    ("REX(0.5, 20)", "pytorch_optimizer.REXScheduler(sgd(0.5), 20, max_lr=0.5)"),
    ("REX(0.5, 10, final=0.1)", "pytorch_optimizer.REXScheduler(sgd(0.5), 10, 0.5, 0.1)"),
    ("SquareRoot(0.5, 20)", "pytorch_optimizer.get_wsd_schedule(sgd(0.5), 0, 0, 20)"),
    (
        "SquareRoot(0.5, 10, final=0.1)",
        "transformers.get_wsd_schedule(sgd(0.5), 0, 10, num_stable_steps=0, decay_type='1-sqrt', min_lr_ratio=0.2)",
    ),
    ("Warmup(0.5, 8)", "transformers.get_constant_schedule_with_warmup(sgd(0.5), 8)"),
    ("Warmup(0.5, 8, initial=0.1)", "optax.warmup_constant_schedule(0.1, 0.5, 8)"),
    ("Warmup(Linear(0.5, 12), 8)", "transformers.get_linear_schedule_with_warmup(sgd(0.5), 8, 20)"),
    (
        "Warmup(Cosine(0.5, 12, final=0.1), 8, initial=0.2)",
        "optax.warmup_cosine_decay_schedule(0.2, 0.5, 8, 20, end_value=0.1)",
    ),
    ("Warmup(InverseSquareRoot(0.5, 8), 8)", "transformers.get_inverse_sqrt_schedule(sgd(0.5), 8)"),
    ("Warmup(InverseSquareRoot(0.5, 5), 3)", "transformers.get_inverse_sqrt_schedule(sgd(0.5), 3, timescale=5)"),
    (
        "Join([Linear(0.1, 4, final=0.5), 0.3, Cosine(0.5, 6)], [5, 9])",
        "optax.join_schedules([optax.linear_schedule(0.1, 0.5, 4), lambda step: 0.3, "
        "optax.cosine_decay_schedule(0.5, 6)], [5, 9])",
    ),
    (
        "Join([Warmup(0.5, 4, initial=0.1), Linear(0.4, 10, final=0.2)], [12])",
        "optax.join_schedules([optax.warmup_constant_schedule(0.1, 0.5, 4), "
        "optax.linear_schedule(0.4, 0.2, 10)], [12])",
    ),
    (
        "WarmupStableDecay(0.5, 20, warmup_steps=4, decay_steps=6)",
        "pytorch_optimizer.get_wsd_schedule(sgd(0.5), 4, 10, 6)",
    ),
    (
        "WarmupStableDecay(0.5, 20, warmup_steps=3, decay_steps=8, decay='cosine', initial=0.1, final=0.1)",
        "transformers.get_wsd_schedule(sgd(0.5), 3, 8, num_stable_steps=9, decay_type='cosine', min_lr_ratio=0.2)",
    ),
    (
        "WarmupStableDecay(0.5, 20, warmup_steps=0, decay_steps=20, decay='linear')",
        "transformers.get_wsd_schedule(sgd(0.5), 0, 20, num_stable_steps=0, decay_type='linear')",
    ),
    ("OneCycle(0.5, 24)", "torch.optim.lr_scheduler.OneCycleLR(sgd(0.5), 0.5, 24)"),
    (
        "OneCycle(0.85, 24, initial=0.95, final=0.95)",
        "torch.optim.lr_scheduler.OneCycleLR(sgd(0.5), 0.5, 24)",
        "momentum",
    ),
    (
        "OneCycle(0.5, 24, initial=0.05, final=0.001, rise=0.45, anneal='linear')",
        "torch.optim.lr_scheduler.OneCycleLR(sgd(0.5), 0.5, 24, pct_start=0.45, anneal_strategy='linear', "
        "div_factor=10, final_div_factor=50)",
    ),
    (
        "OneCycle(0.5, 24, three_phase=True)",
        "torch.optim.lr_scheduler.OneCycleLR(sgd(0.5), 0.5, 24, three_phase=True)",
    ),
    (
        "OneCycle(0.8, 24, initial=0.9, final=0.9, rise=0.4, anneal='linear', three_phase=True)",
        "torch.optim.lr_scheduler.OneCycleLR(sgd(0.5), 0.5, 24, pct_start=0.4, anneal_strategy='linear', "
        "base_momentum=0.8, max_momentum=0.9, three_phase=True)",
        "momentum",
    ),
]
LIBRARIES = {m.__name__: m for m in (optax, pytorch_optimizer, torch, transformers)}


def sgd(rate):
    """An optimizer for a scheduler of PyTorch."""
    return torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=rate, momentum=0.5)


def values(call, read="lr"):
    """Returns what a schedule has at each step."""
    schedule = eval(call, LIBRARIES | {"sgd": sgd})
    if callable(schedule):
        return [float(schedule(step)) for step in range(STEPS)]
    (group,) = schedule.optimizer.param_groups
    found = []
    if isinstance(schedule, pytorch_optimizer.REXScheduler):
        schedule.step_t = 0  # it leaves out step 0
        schedule.step()
    for _ in range(STEPS):
        found.append(float(group[read]))
        schedule.optimizer.step()
        if len(found) < STEPS:
            schedule.step()
    return found


def main():
    """Writes every case, one on each line."""
    jax.config.update("jax_enable_x64", True)
    lines = []
    for kopt, call, *read in CASES:
        library = call.partition(".")[0]
        case = {
            "schedule": kopt,
            "reference": {"library": library, "version": version(library).partition("+")[0], "call": call},
            "values": [float(f"{value:.12g}") for value in values(call, *read)],
        }
        lines.append(json.dumps(case))
    (HERE / "values.json").write_text("[\n" + ",\n".join(lines) + "\n]\n")


if __name__ == "__main__":
    main()
