"""Makes the reference trajectories of layer-wise rules and of small wrappers. See `make.py`.

pip install torch==2.13.0 optax==0.2.8 timm==1.0.31 pytorch_optimizer==4.1.0
python tests/references/make_layerwise.py
"""

import numpy as np
import pytorch_optimizer
import timm.utils
import torch
from make import RUNNERS, make, torch_path

SGD = ["SGD", dict(learning_rate=0.1, momentum=0.9)]
TORCH_SGD = "torch.optim.SGD(params, lr=0.1, momentum=0.9)"

CASES = {
    "lars": ("LARS", dict(learning_rate=10.0), "timm.optim.Lars(params, lr=10.0, momentum=0.9, always_adapt=True)"),
    "lars_optax": (
        "LARS",
        dict(learning_rate=10.0, epsilon=0.01, nesterov=True),
        "optax.lars(10.0, trust_coefficient=0.001, eps=0.01, momentum=0.9, nesterov=True)",
    ),
    "lars_changed": (  # timm adapts only weights that decay
        "LARS",
        dict(
            learning_rate=2.0,
            momentum=0.8,
            nesterov=True,
            trust_coefficient=0.02,
            epsilon=0.1,
            weight_decay=0.05,
            no_adaptation=["w0"],
            no_decay=["w0"],
        ),
        "timm.optim.Lars([dict(params=params[:1], weight_decay=0), dict(params=params[1:])], lr=2.0, momentum=0.8, "
        "nesterov=True, trust_coeff=0.02, eps=0.1, weight_decay=0.05)",
    ),
    "lars_clipped": (
        "LARS",
        dict(learning_rate=0.02, trust_coefficient=0.05, weight_decay=0.05, clip_ratio=True),
        "timm.optim.Lars(params, lr=0.02, momentum=0.9, trust_coeff=0.05, weight_decay=0.05, trust_clip=True)",
    ),
    "lamb_clipped": (
        "LAMB",
        dict(
            learning_rate=0.02,
            weight_decay=0.1,
            clip_ratio=True,
            no_adaptation=["w0"],
            no_decay=["w0"],
            global_clipnorm=1.0,
        ),
        "timm.optim.Lamb([dict(params=params[:1], weight_decay=0), dict(params=params[1:])], lr=0.02, "
        "weight_decay=0.1, max_grad_norm=1.0, trust_clip=True)",
    ),
    "cautious_adamw": (
        "Cautious",
        dict(inner=["AdamW", dict(learning_rate=0.02, weight_decay=0.1)]),
        "timm.optim.AdamWLegacy(params, lr=0.02, weight_decay=0.1, caution=True)",
    ),
    "cautious_lion": (
        "Cautious",
        dict(inner=["Lion", dict(learning_rate=0.02, beta_1=0.8, beta_2=0.6, weight_decay=0.1)]),
        "timm.optim.Lion(params, lr=0.02, betas=(0.8, 0.6), weight_decay=0.1, caution=True)",
    ),
    "agc": (
        "AdaptiveGradientClipping",
        dict(inner=SGD),
        f"clipped({TORCH_SGD}, lambda: timm.utils.adaptive_clip_grad(params, clip_factor=0.01, eps=1e-3))",
    ),
    "agc_changed": (
        "AdaptiveGradientClipping",
        dict(inner=SGD, clipping=0.4, epsilon=0.5, exclude=["w1"]),
        f"clipped({TORCH_SGD}, lambda: timm.utils.adaptive_clip_grad([params[0], params[2]], 0.4, eps=0.5))",
    ),
    "gradient_centralization": (
        "GradientCentralization",
        dict(inner=SGD),
        f"centralized({TORCH_SGD}, lambda: pytorch_optimizer.centralize_gradient([p.grad for p in params]))",
    ),
    "gradient_centralization_changed": (
        "GradientCentralization",
        dict(inner=["Adam", dict(learning_rate=0.05)], exclude="w1"),
        "centralized(torch.optim.Adam(params, lr=0.05), "
        "lambda: pytorch_optimizer.centralize_gradient([params[0].grad, params[2].grad]))",
    ),
}


def changed_path(call, weights, gradients):
    """Yields the weights after each step of an optimizer of PyTorch before which a function changes the gradients.

    PyTorch's kernels have the outputs first, Keras's last.
    """
    params = [torch.nn.Parameter(torch.tensor(outputs_first(w))) for w in weights]
    names = {"torch": torch, "timm": timm, "pytorch_optimizer": pytorch_optimizer, "params": params}
    pair = {name: lambda *both: both for name in ("clipped", "centralized")}
    optimizer, change = eval(call, names | pair)
    for grads in gradients:
        for param, grad in zip(params, grads, strict=True):
            param.grad = torch.tensor(outputs_first(grad))
        change()
        optimizer.step()
        yield [np.moveaxis(param.detach().numpy(), 0, -1).copy() for param in params]


def outputs_first(w):
    return np.moveaxis(w, -1, 0).copy()


if __name__ == "__main__":
    runners = {
        "timm": ("timm", torch_path),
        "clipped": ("timm", changed_path),
        "centralized": ("pytorch_optimizer", changed_path),
    }
    make(CASES, RUNNERS | runners)
