"""Makes the reference trajectories of optimizers that see the curvature, the loss, or other weights: see `make.py`.

    pip install torch==2.14.1 optax==0.2.8 pytorch_optimizer==4.1.0
    python tests/references/make_curved.py

with `instruction` of amirgholami/adahessian, `sophia.py` of Liuhong99/Sophia, `momo` of fabian-sp/MoMo and
`MARS/optimizers` of AGI-Arena/MARS, at the commits named below, on the path. The loss of each step is that of
`make_looking.py`. Its Hessian is diagonal, so that any random signs give its diagonal exactly: no stream of random
numbers has to be reproduced.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import torch
from make import RUNNERS, make
from make_looking import curvatures, loss_of

TORCH = {1: (0,), 2: (1, 0), 4: (3, 2, 0, 1)}
"""The axes of Keras's kernels in the order that torch's have."""


def in_torch(w):
    """A weight in torch's order of axes."""
    return np.transpose(w, TORCH[w.ndim]).copy()


def in_keras(w):
    """A weight back in Keras's order."""
    return np.transpose(w, np.argsort(TORCH[w.ndim])).copy()


def differentiated(params, grads, steps):
    """Computes the gradients of a step's loss, such that they can be differentiated again; returns the loss."""
    for param in params:
        param.grad = None
    with torch.enable_grad():
        loss = loss_of(params, grads, steps)
        loss.backward(create_graph=True)
    return loss


def adahessian_path(call, weights, gradients):
    """Yields the weights after each step of the authors' AdaHessian, with whatever signs."""
    import adahessian

    signs = torch.randint_like
    torch.randint_like = lambda p, high, device: signs(p, high=high)
    params = [torch.nn.Parameter(torch.tensor(in_torch(w))) for w in weights]
    optimizer = eval(call, {"adahessian": adahessian, "params": params})
    numbers = [torch.tensor(in_torch(np.arange(w.size).reshape(w.shape))) for w in weights]
    for steps, grads in enumerate(gradients):
        for param in params:
            param.grad = None
        parts = zip(params, grads, numbers, strict=True)
        loss = sum(
            (torch.tensor(in_torch(g)) * w + 0.5 * (1 + 0.8 * torch.sin(n + steps)) * w * w).sum() for w, g, n in parts
        )
        loss.backward(create_graph=True)
        optimizer.step()
        yield [in_keras(param.detach().numpy()) for param in params]
    torch.randint_like = signs


def given_path(call, weights, gradients):
    """Yields the weights after each step of an optimizer of the package that is given the Hessian's diagonal.

    AdaHessian's mean square is there corrected for the number of steps, also where it is updated at every few: here
    for the number of its updates.
    """
    import pytorch_optimizer

    class Counted(pytorch_optimizer.AdaHessian):
        def debias(self, beta, step):
            every = self.update_period if beta == self.defaults["betas"][1] else 1
            return super().debias(beta, -(-step // every))

    params = [torch.nn.Parameter(torch.tensor(w)) for w in weights]
    known = {"pytorch_optimizer": pytorch_optimizer, "given": Counted, "params": params}
    optimizer = eval(call, known)
    for steps, grads in enumerate(gradients):
        differentiated(params, grads, steps)
        due = steps % optimizer.update_period == 0
        optimizer.step(hessian=curvatures([w.shape for w in weights], steps) if due else None)
        yield [param.detach().numpy().copy() for param in params]


def sophia_path(call, weights, gradients):
    """Yields the weights after each step of the authors' SophiaG, given gradients whose squares are the diagonal."""
    import sophia

    params = [torch.nn.Parameter(torch.tensor(w)) for w in weights]
    optimizer = eval(call, {"sophia": sophia, "params": params})
    for steps, grads in enumerate(gradients):
        if steps % 10 == 0:
            for param, curvature in zip(params, curvatures([w.shape for w in weights], steps), strict=True):
                param.grad = torch.sqrt(curvature)
            optimizer.update_hessian()
        differentiated(params, grads, steps)
        optimizer.step(bs=1)
        yield [param.detach().numpy().copy() for param in params]


def momo_path(call, weights, gradients):
    """Yields the weights after each step of the authors' MoMo."""
    import momo

    params = [torch.nn.Parameter(torch.tensor(w)) for w in weights]
    optimizer = eval(call, {"momo": momo, "params": params})
    for steps, grads in enumerate(gradients):
        loss = differentiated(params, grads, steps)
        optimizer.step(loss=loss.detach())
        yield [param.detach().numpy().copy() for param in params]


def optax_loss_path(call, weights, gradients):
    """Yields the weights after each step of an optimizer of optax that is given the loss, and can compute it anew.

    The norm in its `polyak_sgd` is that of gradients that are scaled already, so that `scaling` is c.
    """

    def loss(params, grads, steps):
        parts = zip(params, grads, curvatures([w.shape for w in weights], steps), strict=True)
        return sum(jnp.sum(g * w + 0.5 * a.numpy() * w * w) for w, g, a in parts)

    rule = eval(call.replace("optax_loss", "optax"), {"optax": optax})
    params = [jnp.asarray(w) for w in weights]
    state = rule.init(params)
    for steps, grads in enumerate(gradients):
        value_fn = functools.partial(loss, grads=grads, steps=steps)
        value, slopes = jax.value_and_grad(value_fn)(params)
        updates, state = rule.update(slopes, state, params, value=value, grad=slopes, value_fn=value_fn)
        params = optax.apply_updates(params, updates)
        yield [np.asarray(w) for w in params]


def exact_mars_path(call, weights, gradients):
    """Yields the weights after each step of MARS, given the gradient at the last weights."""
    import mars

    def matrix(w):
        return w if w.ndim < 2 else w.reshape(-1, w.shape[-1])

    def slopes(w, grads, steps):
        parts = zip(w, grads, curvatures([x.shape for x in weights], steps), strict=True)
        return [torch.tensor(matrix(g + a.numpy() * x)) for x, g, a in parts]

    params = [torch.nn.Parameter(torch.tensor(matrix(w))) for w in weights]
    optimizer = eval(call.replace("exact_mars", "mars"), {"mars": mars, "params": params})
    before = weights
    for steps, grads in enumerate(gradients):
        now = [np.reshape(param.detach().numpy().copy(), w.shape) for param, w in zip(params, weights, strict=True)]
        now = now if steps else weights
        for param, g, last in zip(params, slopes(now, grads, steps), slopes(before, grads, steps), strict=True):
            param.grad = g
            if not steps:
                optimizer.state[param].update(step=0, exp_avg=0 * g, exp_avg_sq=0 * g)
            optimizer.state[param]["last_grad"] = last
        optimizer.step()
        before = now
        yield [np.reshape(param.detach().numpy().copy(), w.shape) for param, w in zip(params, weights, strict=True)]


CASES = {  # file: (kopt class, its arguments, the reference)
    "adahessian": (
        "AdaHessian",
        dict(learning_rate=0.1),
        "adahessian.Adahessian(params, lr=0.1)",
    ),
    "adahessian_power": (
        "AdaHessian",
        dict(learning_rate=0.05, beta_1=0.8, beta_2=0.9, epsilon=0.01, power=0.5, weight_decay=0.1, seed=3),
        "adahessian.Adahessian(params, lr=0.05, betas=(0.8, 0.9), eps=0.01, hessian_power=0.5, weight_decay=0.1)",
    ),
    "adahessian_changed": (
        "AdaHessian",
        dict(learning_rate=0.05, beta_2=0.8, epsilon=0.01, spatial_average=False, every=4, weight_decay=0.1),
        "given(params, lr=0.05, betas=(0.9, 0.8), eps=0.01, update_period=4, weight_decay=0.1)",
    ),
    "sophiah": (
        "SophiaH",
        dict(learning_rate=0.05),
        "pytorch_optimizer.SophiaH(params, lr=5.0, betas=(0.965, 0.99), p=0.01, update_period=10, weight_decay=0.001, "
        "weight_decouple=True, eps=1e-10)",
    ),
    "sophiah_changed": (
        "SophiaH",
        dict(
            learning_rate=0.05,
            beta_1=0.8,
            beta_2=0.7,
            gamma=0.5,
            epsilon=0.2,
            every=3,
            seed=5,
            weight_decay=0.2,
        ),
        "pytorch_optimizer.SophiaH(params, lr=0.1, betas=(0.8, 0.7), p=0.5, update_period=3, weight_decay=0.1, "
        "weight_decouple=True, eps=0.4)",
    ),
    "sophiag": (
        "SophiaG",
        dict(learning_rate=0.05),
        "sophia.SophiaG(params, lr=0.05, betas=(0.965, 0.99), rho=0.05, weight_decay=0.1)",
    ),
    "sophiag_changed": (
        "SophiaG",
        dict(
            learning_rate=0.05,
            beta_1=0.8,
            beta_2=0.7,
            gamma=0.5,
            epsilon=0.2,
            every=3,
            seed=5,
            weight_decay=None,
        ),
        "pytorch_optimizer.SophiaH(params, lr=0.1, betas=(0.8, 0.7), p=0.5, update_period=3, eps=0.4)",
    ),
    "sps": (
        "SPS",
        dict(lower_bound=-30.0),
        "optax_loss.polyak_sgd(max_learning_rate=2.0, scaling=0.5, f_min=-30.0, variant='sps+')",
    ),
    "sps_changed": (
        "SPS",
        dict(learning_rate=0.3, c=0.8, lower_bound=-10.0, weight_decay=0.1),
        "optax_loss.chain(optax.polyak_sgd(max_learning_rate=0.375, scaling=0.8, f_min=-10.0, variant='sps+'), "
        "optax.add_decayed_weights(-0.03))",
    ),
    "momo": ("MoMo", dict(learning_rate=0.2, lower_bound=-30.0), "momo.Momo(params, lr=0.2, lb=-30.0)"),
    "momo_changed": (
        "MoMo",
        dict(learning_rate=0.5, momentum=0.7, lower_bound=-10.0, bias_correction=True, weight_decay=0.2),
        "momo.Momo(params, lr=0.5, beta=0.7, lb=-10.0, bias_correction=True, weight_decay=0.2)",
    ),
    "momo_estimating": (
        "MoMo",
        dict(learning_rate=0.5, lower_bound=-60.0, estimate_bound=True, weight_decay=0.2),
        "momo.Momo(params, lr=0.5, lb=-60.0, use_fstar=True, weight_decay=0.2)",
    ),
    "momo_adam": (
        "MoMoAdam",
        dict(learning_rate=0.5, lower_bound=-30.0),
        "momo.MomoAdam(params, lr=0.5, lb=-30.0)",
    ),
    "momo_adam_changed": (
        "MoMoAdam",
        dict(
            learning_rate=0.3,
            beta_1=0.7,
            beta_2=0.9,
            epsilon=0.1,
            lower_bound=-60.0,
            estimate_bound=True,
            weight_decay=0.2,
        ),
        "momo.MomoAdam(params, lr=0.3, betas=(0.7, 0.9), eps=0.1, lb=-60.0, use_fstar=True, weight_decay=0.2)",
    ),
    "exact_mars": (
        "ExactMARS",
        dict(learning_rate=0.05),
        "exact_mars.MARS(params, lr=0.05, betas=(0.95, 0.99), gamma=0.025, is_approx=False, "
        "lr_1d=0.05, betas_1d=(0.95, 0.99), weight_decay_1d=0)",
    ),
    "exact_mars_changed": (
        "ExactMARS",
        dict(
            learning_rate=0.02,
            beta_1=0.8,
            beta_2=0.95,
            epsilon=0.01,
            gamma=0.5,
            optimize_1d=True,
            weight_decay=0.1,
        ),
        "exact_mars.MARS(params, lr=0.02, betas=(0.8, 0.95), eps=0.01, gamma=0.5, is_approx=False, optimize_1d=True, "
        "weight_decay=0.1)",
    ),
    "line_search": (
        "LineSearch",
        dict(inner=["SGD", dict(learning_rate=4.0)]),
        "optax_loss.chain(optax.sgd(4.0), optax.scale_by_backtracking_linesearch(19, slope_rtol=0.1, "
        "decrease_factor=0.5, increase_factor=1.1))",
    ),
    "line_search_changed": (
        "LineSearch",
        dict(inner=["SGD", dict(learning_rate=4.0)], decrease=0.4, shrink=0.7, growth=1.5, trials=8),
        "optax_loss.chain(optax.sgd(4.0), optax.scale_by_backtracking_linesearch(7, slope_rtol=0.4, "
        "decrease_factor=0.7, increase_factor=1.5))",
    ),
}

CURVED = {
    "adahessian": ("amirgholami/adahessian@85ebc00", adahessian_path),
    "pytorch_optimizer": ("pytorch_optimizer", given_path),
    "given": ("pytorch_optimizer", given_path),
    "sophia": ("Liuhong99/Sophia@a7e1572", sophia_path),
    "momo": ("fabian-sp/MoMo@7be52f2", momo_path),
    "optax_loss": ("optax", optax_loss_path),
    "exact_mars": ("AGI-Arena/MARS@4831e28", exact_mars_path),
}

if __name__ == "__main__":
    make(CASES, RUNNERS | CURVED)
