"""Makes the reference trajectories of optimizers that look at more than a gradient: see `make.py`.

    pip install torch==2.15.0 optax==0.2.8 pytorch_optimizer==4.1.0
    python tests/references/make_looking.py

with `asam.py` of SamsungLabs/ASAM and `gsam` of juntang-zhuang/GSAM, at the commits named below, on the path.
The loss of each step is Σ ⟨g, w⟩ + ½ ⟨a, w²⟩, with the problem's gradients for g and a = 1 + 0.8 sin(s, s + 1, ...) in
each weight, s being the steps taken before. The package computes norms in float32, and its LookSAM adds 1e-8 to one;
here they are exact.
"""

import importlib
import inspect
from types import SimpleNamespace

import numpy as np
import torch
from make import RUNNERS, make


def curvatures(shapes, steps):
    """The Hessian's diagonal after so many steps."""
    return [torch.tensor(1 + 0.8 * np.sin(np.arange(np.prod(shape)).reshape(shape) + steps)) for shape in shapes]


def loss_of(params, grads, steps):
    """The loss of a step."""
    parts = zip(params, grads, curvatures([w.shape for w in params], steps), strict=True)
    return sum((torch.tensor(g) * w + 0.5 * a * w * w).sum() for w, g, a in parts)


class Named:
    """Parameters under names that authors' code takes for weights, not biases."""

    def __init__(self, params):
        self.params = params

    def named_parameters(self):
        """All of them."""
        return [(f"weight_{number}", param) for number, param in enumerate(self.params)]


def exact(library):
    """The package's SAM and LookSAM with norms in float64, to which nothing is added."""
    names = dict(vars(inspect.getmodule(library.SAM)))
    names["get_global_gradient_norm"] = lambda groups, **_: sum(
        (p.grad**2).sum() for group in groups for p in group["params"]
    ).reshape(1)
    for cls in (library.SAM, library.LookSAM):
        exec(inspect.getsource(cls).replace("norm(p=2) + 1e-8", "norm(p=2)"), names)
    return SimpleNamespace(**names)


def sharp_path(call, weights, gradients):
    """Yields the weights after each step of an optimizer that calls a closure for a second gradient."""
    library = importlib.import_module({"gsam": "gsam.gsam"}.get(name := call.partition(".")[0], name))
    if name == "pytorch_optimizer":
        library = exact(library)
    flat = "flat" in call  # one vector, where the library looks at each weight by itself
    params = [torch.nn.Parameter(torch.tensor(w)) for w in weights]
    shapes, sizes = [p.shape for p in params], [p.numel() for p in params]
    whole = [torch.nn.Parameter(torch.cat([p.detach().ravel() for p in params]))]
    rho = SimpleNamespace(step=lambda: 0.2)
    known = {"params": params, "flat": whole, "torch": torch, "model": torch.nn.Module(), "rho": rho}
    optimizer = eval(call, {name: library} | known)
    for steps, grads in enumerate(gradients):

        @torch.enable_grad()
        def closure(grads=grads, steps=steps):
            optimizer.zero_grad()
            parts = [p.view(s) for p, s in zip(whole[0].split(sizes), shapes, strict=True)] if flat else params
            loss = loss_of(parts, grads, steps)
            loss.backward()
            return params, loss  # GSAM wants two

        closure()
        optimizer.step(closure)
        parts = [p.view(s) for p, s in zip(whole[0].split(sizes), shapes, strict=True)] if flat else params
        yield [p.detach().numpy().copy() for p in parts]


def asam_path(call, weights, gradients):
    """Yields the weights after each step of the authors' ASAM."""
    import asam

    params = [torch.nn.Parameter(torch.tensor(w)) for w in weights]
    optimizer = eval(call, {"asam": asam, "torch": torch, "params": params, "model": Named(params)})
    for steps, grads in enumerate(gradients):
        loss_of(params, grads, steps).backward()
        optimizer.ascent_step()
        loss_of(params, grads, steps).backward()
        optimizer.descent_step()
        yield [param.detach().numpy().copy() for param in params]


CASES = {  # file: (kopt class, its arguments, the reference)
    "sam": (
        "SAM",
        dict(inner=["SGD", dict(learning_rate=0.1, momentum=0.9)]),
        "pytorch_optimizer.SAM(params, torch.optim.SGD, rho=0.05, lr=0.1, momentum=0.9)",
    ),
    "sam_changed": (
        "SAM",
        dict(inner=["AdamW", dict(learning_rate=0.02, weight_decay=0.05)], rho=0.7, synchronized=False),
        "pytorch_optimizer.SAM(params, torch.optim.AdamW, rho=0.7, lr=0.02, weight_decay=0.05)",
    ),
    "asam": (
        "ASAM",
        dict(inner=["SGD", dict(learning_rate=0.1, momentum=0.9)]),
        "asam.ASAM(torch.optim.SGD(params, lr=0.1, momentum=0.9), model)",
    ),
    "asam_changed": (
        "ASAM",
        dict(inner=["Adam", dict(learning_rate=0.05)], rho=1.5, eta=0.3, synchronized=False),
        "asam.ASAM(torch.optim.Adam(params, lr=0.05), model, rho=1.5, eta=0.3)",
    ),
    "gsam": (
        "GSAM",
        dict(inner=["SGD", dict(learning_rate=0.1, momentum=0.9)], rho=0.2),
        "gsam.GSAM(params, torch.optim.SGD(params, lr=0.1, momentum=0.9), model, 0.4, rho)",
    ),
    "gsam_changed": (
        "GSAM",
        dict(inner=["SGD", dict(learning_rate=0.05)], rho=0.2, alpha=0.9, synchronized=False),
        "gsam.GSAM(params, torch.optim.SGD(params, lr=0.05), model, 0.9, rho)",
    ),
    "looksam": (
        "LookSAM",
        dict(inner=["SGD", dict(learning_rate=0.1)], rho=1.0, alpha=0.7, every=5),
        "pytorch_optimizer.LookSAM(flat, torch.optim.SGD, rho=1.0, k=5, alpha=0.7, lr=0.1)",
    ),
    "looksam_changed": (
        "LookSAM",
        dict(inner=["Adam", dict(learning_rate=0.05)], rho=0.5, alpha=0.3, every=3, synchronized=False),
        "pytorch_optimizer.LookSAM(flat, torch.optim.Adam, rho=0.5, k=3, alpha=0.3, lr=0.05)",
    ),
}

LOOKERS = {
    "pytorch_optimizer": ("pytorch_optimizer", sharp_path),
    "gsam": ("juntang-zhuang/GSAM@a770275", sharp_path),
    "asam": ("SamsungLabs/ASAM@f156a68", asam_path),
}

if __name__ == "__main__":
    make(CASES, RUNNERS | LOOKERS)
