"""Makes the reference trajectories of the memory-efficient optimizers: see `make.py`.

    pip install torch==2.13.0 optax==0.2.8 transformers==5.23.0 came-pytorch==0.1.3 adam-mini==1.1.1 \
        galore-torch==1.0 apollo-torch==1.0.3 torchao==0.18.0
    python tests/references/make_memory.py

PyTorch keeps the outputs of a layer in the first axis, Keras in the last: where it matters the reference gets each
weight as a matrix with its outputs first. Some of the packages round to float32 or decay after the step; here they
stay in float64, and weights are decayed before it.
"""

import functools
import math
from unittest import mock

import jax
import torch
from make import RUNNERS, make, optax_path, torch_path

CASES = {  # file: (kopt class, its arguments, the reference)
    "adafactor": (
        "Adafactor",
        dict(learning_rate=0.5, min_dim_size_to_factor=1),
        "torch.optim.Adafactor(params, lr=0.5, eps=(1e-30, 1e-3), weight_decay=0.0)",
    ),
    "adafactor_warmup": (
        "Adafactor",
        dict(learning_rate=0.01, warmup_init=True, min_dim_size_to_factor=1),
        "transformers.Adafactor(params, relative_step=True, scale_parameter=True, warmup_init=True)",
    ),
    "adafactor_external": (
        "Adafactor",
        dict(learning_rate=0.05, relative_step=False, scale_parameter=False),
        "optax.chain(optax.scale_by_factored_rms(False, decay_rate_fn=power(1.0)), optax.clip_by_block_rms(1.0), "
        "optax.scale(-0.05))",
    ),
    "adafactor_changed": (
        "Adafactor",
        dict(
            learning_rate=0.02,
            beta_2_cap=0.7,
            decay_rate=0.6,
            clip_threshold=0.8,
            momentum=0.9,
            epsilon_1=1e-3,
            epsilon_2=0.6,
            relative_step=False,
            scale_parameter=True,
            warmup_init=False,
            min_dim_size_to_factor=3,
            weight_decay=0.05,
        ),
        "optax.chain(optax.scale_by_factored_rms(True, 0.6, 0, 3, 1e-3, power(0.7)), optax.clip_by_block_rms(0.8), "
        "optax.scale_by_param_block_rms(0.6), optax.ema(0.9, debias=False), optax.add_decayed_weights(0.05), "
        "optax.scale(-0.02))",
    ),
    "came": (  # decays that float32 holds exactly: there is no correction of the bias to make up for their rounding
        "CAME",
        dict(learning_rate=0.01, beta_2=1 - 2**-10, beta_3=1 - 2**-13),
        "came_pytorch.CAME(params, lr=0.01, betas=(0.9, 1 - 2**-10, 1 - 2**-13))",
    ),
    "came_changed": (
        "CAME",
        dict(
            learning_rate=0.02,
            beta_1=0.8,
            beta_2=0.95,
            beta_3=0.9,
            clip_threshold=0.7,
            epsilon_1=1e-3,
            epsilon_2=1e-2,
            weight_decay=0.05,
        ),
        "came_pytorch.CAME(params, lr=0.02, betas=(0.8, 0.95, 0.9), clip_threshold=0.7, eps=(1e-3, 1e-2), "
        "weight_decay=0.05)",
    ),
    "adam_mini": (
        "AdamMini",
        dict(learning_rate=0.05, weight_decay=None),
        "adam_mini.Adam_mini(named, lr=0.05, verbose=False)",
    ),
    "adam_mini_changed": (  # it never decays what is called a bias
        "AdamMini",
        dict(
            learning_rate=0.02,
            beta_1=0.8,
            beta_2=0.95,
            epsilon=0.01,
            weight_decay=0.002,
            weight_decay_mode="independent",
            no_decay=["^w0$"],
        ),
        "adam_mini.Adam_mini(named, lr=0.02, betas=(0.8, 0.95), eps=0.01, weight_decay=0.002 / 0.02, verbose=False)",
    ),
    "sm3": (
        "SM3",
        dict(learning_rate=0.1),
        "optax.chain(optax.scale_by_sm3(0.9, 1.0, eps=0.0), optax.scale(-0.1))",
    ),
    "sm3_changed": (
        "SM3",
        dict(learning_rate=0.2, momentum=0.0, weight_decay=0.05),
        "optax.chain(optax.scale_by_sm3(0.0, 1.0, eps=0.0), optax.add_decayed_weights(0.05), optax.scale(-0.2))",
    ),
    "galore": (  # their epsilon is added before the bias is corrected: no difference at 1e-30
        "GaLore",
        dict(inner=["Adam", dict(learning_rate=0.2, epsilon=1e-30)], rank=2),
        "galore_torch.GaLoreAdamW(low_rank(rank=2, update_proj_gap=200, scale=0.25), lr=0.2, eps=1e-30, "
        "no_deprecation_warning=True)",
    ),
    "galore_changed": (  # without momentum, which feels the signs that a decomposition leaves open
        "GaLore",
        dict(
            inner=["AdamW", dict(learning_rate=0.1, beta_1=0.0, beta_2=0.9, epsilon=1e-30, weight_decay=0.1)],
            rank=1,
            gap=7,
            scale=0.5,
        ),
        "galore_torch.GaLoreAdamW(low_rank(rank=1, update_proj_gap=7, scale=0.5, decay=0.1), lr=0.1, betas=(0.0, 0.9), "
        "eps=1e-30, no_deprecation_warning=True)",
    ),
    "apollo": (
        "APOLLO",
        dict(learning_rate=0.05, rank=2, projection="svd"),
        "apollo_torch.APOLLOAdamW(low_rank(rank=2, update_proj_gap=200, scale=1, proj='svd', scale_type='channel'), "
        "lr=0.05)",
    ),
    "apollo_changed": (
        "APOLLO",
        dict(
            learning_rate=0.02,
            beta_1=0.0,
            beta_2=0.9,
            epsilon=0.01,
            scale=2.0,
            rank=1,
            gap=7,
            projection="svd",
            seed=1,
            weight_decay=0.1,
        ),
        "apollo_torch.APOLLOAdamW(low_rank(rank=1, update_proj_gap=7, scale=2.0, proj='svd', scale_type='channel', "
        "decay=0.1), lr=0.02, betas=(0.0, 0.9), eps=0.01)",
    ),
    "apollo_mini": (
        "APOLLOMini",
        dict(learning_rate=0.01, projection="svd"),
        "apollo_torch.APOLLOAdamW(low_rank(rank=1, update_proj_gap=200, scale=128, proj='svd', scale_type='tensor'), "
        "lr=0.01)",
    ),
    "apollo_mini_changed": (
        "APOLLOMini",
        dict(
            learning_rate=0.02,
            beta_1=0.0,
            beta_2=0.9,
            epsilon=0.01,
            scale=2.0,
            rank=2,
            gap=7,
            projection="svd",
            seed=1,
            weight_decay=0.1,
        ),
        "apollo_torch.APOLLOAdamW(low_rank(rank=2, update_proj_gap=7, scale=2.0, proj='svd', scale_type='tensor', "
        "decay=0.1), lr=0.02, betas=(0.0, 0.9), eps=0.01)",
    ),
    "quantized": (
        "Quantized",
        dict(inner=["Adam", dict(learning_rate=0.05)], block=4, min_size=1),
        "low_bit_adam(bits=8, block=4, lr=0.05, betas=(0.9, 0.999), eps=1e-8)",
    ),
    "quantized_changed": (
        "Quantized",
        dict(
            inner=["Adam", dict(learning_rate=0.02, beta_1=0.8, beta_2=0.95, epsilon=0.01)],
            bits=4,
            block=8,
            min_size=2,
        ),
        "low_bit_adam(bits=4, block=8, lr=0.02, betas=(0.8, 0.95), eps=0.01)",
    ),
}


def factored_path(call, weights, gradients):
    """An optax path in whose call `power(cap)` is min(cap, 1 - t^-exponent), which optax itself rounds to float32."""

    def power(cap):
        return lambda step, exponent: jax.numpy.minimum(cap, 1 - (step + 1.0) ** -exponent)

    yield from optax_path(call, weights, gradients, power=power)


def outputs_first(array):
    """A Keras weight as PyTorch has it, as a matrix."""
    return array if array.ndim < 2 else array.reshape(-1, array.shape[-1]).T


def outputs_last(array, shape):
    """The inverse of `outputs_first`."""
    return array.T.reshape(shape)


def matrices_path(step_of, call, weights, gradients):
    """Yields the weights after each step of an optimizer that `step_of(call, params)` makes, in PyTorch's layout."""
    params = [torch.nn.Parameter(torch.tensor(outputs_first(w))) for w in weights]
    step = step_of(call, params)
    for grads in gradients:
        for param, grad in zip(params, grads, strict=True):
            param.grad = torch.tensor(outputs_first(grad))
        step()
        yield [outputs_last(p.detach().numpy().copy(), w.shape) for p, w in zip(params, weights, strict=True)]


def adam_mini_step(call, params):
    """Adam-mini on a bias and on two weights of which it knows by their names that they have units."""
    import adam_mini

    named = [("bias" if param.ndim < 2 else "mlp", param) for param in params]
    return eval(call, {"adam_mini": adam_mini, "named": named}).step


def low_rank_step(call, params):
    """GaLore or APOLLO on the matrices that have more than `rank` rows and columns, Adam on the others."""
    library = __import__(call.partition(".")[0])

    def low_rank(rank, decay=0.0, **options):
        projected = [param for param in params if param.ndim == 2 and min(param.shape) > rank]
        others = [param for param in params if not any(param is other for other in projected)]
        matrices = dict(params=projected, rank=rank, proj_type="std", decay=decay, **options)
        return [matrices, dict(params=others, decay=decay)]

    optimizer = eval(call, {library.__name__: library, "low_rank": low_rank})

    @torch.no_grad()
    def step():
        for group in optimizer.param_groups:
            for param in group["params"]:
                param.mul_(1 - group["lr"] * group["decay"])
        with mock.patch.object(torch.Tensor, "float", lambda x: x):  # with which they round before a decomposition
            optimizer.step()

    return step


def low_bit_adam_path(call, weights, gradients):
    """Yields the weights after each step of Adam whose moments go through torchao's quantization, in float64."""
    from torchao.optim import quant_utils

    options = eval(call, {"low_bit_adam": dict})
    bits, block, (beta_1, beta_2) = options["bits"], options["block"], options["betas"]
    signed = quant_utils.create_dynamic_map(True, bits - 1, bits)
    unsigned = torch.linspace(0, 1, 17)[1:] if bits == 4 else torch.tensor(quant_utils.create_dynamic_map(False))
    if bits == 8:
        unsigned[0] = 5.5e-8  # in the place of 0
    maps = torch.tensor(signed), unsigned
    quantize = getattr(quant_utils, f"quantize_{bits}bit_with_qmap")

    def rounded(x, values):
        padded = torch.nn.functional.pad(x.flatten(), (0, -x.numel() % block))
        relative, scale = quant_utils.scale_tensor(padded, block)
        return quant_utils.dequant_with_qmap(quantize(relative, values), values, scale)[: x.numel()].view(x.shape)

    weights = [torch.tensor(w) for w in weights]
    moments = [[torch.zeros_like(w), torch.zeros_like(w)] for w in weights]
    for t, grads in enumerate(gradients, start=1):
        for i, g in enumerate(map(torch.tensor, grads)):
            m, v = moments[i]
            m, v = m.lerp(g, 1 - beta_1), v.lerp(g.square(), 1 - beta_2)
            moments[i] = [rounded(x, values) for x, values in zip((m, v), maps, strict=True)]
            step = m / (1 - beta_1**t) / (v.sqrt() / math.sqrt(1 - beta_2**t) + options["eps"])
            weights[i] = weights[i] - options["lr"] * step
        yield [w.numpy() for w in weights]


MINE = {
    "optax": ("optax", factored_path),
    "transformers": ("transformers", torch_path),
    "came_pytorch": ("came-pytorch", torch_path),
    "adam_mini": ("adam-mini", functools.partial(matrices_path, adam_mini_step)),
    "galore_torch": ("galore-torch", functools.partial(matrices_path, low_rank_step)),
    "apollo_torch": ("apollo-torch", functools.partial(matrices_path, low_rank_step)),
    "low_bit_adam": ("torchao", low_bit_adam_path),
}

if __name__ == "__main__":
    make(CASES, RUNNERS | MINE)
