"""Runs that the checks compare: a few weights and gradients for an optimizer, a small model, and what may change."""

import functools
import json
import math

import keras
import numpy as np
from keras import ops

from kopt._backend import dense, replicas, sum_over_replicas
from kopt.optimizers.base import Optimizer
from kopt.optimizers.wrapper import Wrapper
from kopt.testing import backends

SHAPES = {"vector": (3,), "matrix": (4, 3), "convolution": (2, 2, 3, 2)}
STEPS = 8


class Run:
    """Weights of several shapes, an optimizer, and gradients of mixed signs for it."""

    def __init__(self, optimizer, *, dtype="float32", shapes=SHAPES, compiled=False, xla=False):
        rngs = [np.random.default_rng(len(shape)) for shape in shapes.values()]  # a weight's own, whatever is beside it
        self.optimizer, self.traces = optimizer, 0
        draws = [rng.standard_normal((STEPS + 1, *s)) for rng, s in zip(rngs, shapes.values(), strict=True)]
        self.start = [draw[0].astype("float32") for draw in draws]
        self.variables = [keras.Variable(w, dtype=dtype, name=n) for n, w in zip(shapes, self.start, strict=True)]
        self.gradients = [[ops.convert_to_tensor(draw[i], dtype) for draw in draws] for i in range(1, STEPS + 1)]
        optimizer.build(self.variables)
        self.state = [v.numpy() for v in optimizer.variables]
        self.step = self._step
        if compiled:
            self.step = backends.compiled_step(self._step, optimizer, self.variables, self._traced, xla)

    def _step(self, gradients, share=None):
        """Takes a step with a share of these gradients; where they are looked for, of a loss that has them at 0."""
        if share is not None:
            gradients = [share * g for g in gradients]
        if looks(self.optimizer):
            steps = self.optimizer._taken()
            self.optimizer.step(Bowl(self.variables, gradients, share, steps), self.variables)
        else:
            self.optimizer.apply(gradients, self.variables)

    def _traced(self):
        self.traces += 1

    def __call__(self, steps=STEPS):
        """The weights after these steps; with the weights for evaluation, where those are others."""
        for gradients in self.gradients[:steps]:
            self.step(gradients)
        self.trained = self.weights()
        if not self.optimizer.averages:
            return self.trained
        self.optimizer.swap("evaluation")
        return [w + 2 * x for w, x in zip(self.trained, self.weights(), strict=True)]  # shows a change of either

    def weights(self):
        """The weights now, in float64."""
        return [np.asarray(v.numpy(), "float64") for v in self.variables]

    def reset(self):
        """Back to the weights and the state of the beginning."""
        variables = (*self.variables, *self.optimizer.variables)
        for variable, value in zip(variables, (*self.start, *self.state), strict=True):
            variable.assign(value)


class Bowl:
    """An oracle that answers for Σ ⟨g, w⟩ + ½ ⟨a, w²⟩, with slopes g, and curvatures a that change with the steps."""

    scaled = noisy = False
    terms, value = 1, None

    def __init__(self, variables, slopes, share=None, steps=0, weights=None):
        self.variables, self.slopes, self.steps, self.replicas = variables, slopes, steps, replicas()
        self.part = 1 / self.replicas
        self.share = 1.0 if share is None else share
        self.weights = [dense(v) for v in variables] if weights is None else weights

    def curvatures(self):
        """The diagonal of the Hessian: between 0.2 and 1.8, or a share of that."""
        return [ops.cast(self.share * a, v.dtype) for a, v in zip(self._whole(), self.variables, strict=True)]

    def _whole(self):
        for v in self.variables:
            wide, numbers = "float64" if v.dtype == "float64" else "float32", np.arange(math.prod(v.shape))
            waves = 1 + 0.8 * np.sin(np.arange(64)[:, None] + numbers)  # by NumPy, since Keras's sine on JAX is float32
            turn = ops.take(ops.convert_to_tensor(waves, wide), ops.cast(self.steps, "int32") % 64, axis=0)
            yield ops.reshape(turn, v.shape)

    def at(self, weights):
        """The oracle at other weights."""
        return Bowl(self.variables, self.slopes, self.share, self.steps, weights)

    def _parts(self):
        slopes = [g if g is None else dense(g) for g in self.slopes]
        return zip(slopes, self.curvatures(), self.weights, strict=True)

    def gradients(self):
        """g + a w"""
        return [g if g is None else g + a * w for g, a, w in self._parts()]

    def loss(self):
        """The value."""
        return sum(ops.sum(g * w + 0.5 * a * w * w) for g, a, w in self._parts() if g is not None)

    def __call__(self):
        """The loss and its gradients."""
        return self.loss(), self.gradients()

    def hvp(self, vectors):
        """a v"""
        return [a * v for a, v in zip(self.curvatures(), vectors, strict=True)]

    gnvp = hvp

    def gradients_and_hvp(self):
        """The gradients, and `hvp`."""
        return self.gradients(), self.hvp

    def sampled_gradients(self, seed, t):
        """√a, whose squares are a without any chance."""
        return [ops.cast(self.share * ops.sqrt(a), v.dtype) for a, v in zip(self._whole(), self.variables, strict=True)]

    def taps(self):
        """The loss, its gradients, and no taps: there are no layers."""
        return *self(), []

    def sampled_taps(self, seed, t):
        """Tensors whose squares are a, on all replicas together, now a bit more and then a bit less; and no taps."""
        curvatures = self.curvatures()
        return [ops.sqrt(a * (1 + ops.sin(ops.cast(t, a.dtype)) / 2)) for a in curvatures], []

    def report(self, loss):
        """Nobody asks."""

    def sum(self, tensors):
        """Over all replicas."""
        return sum_over_replicas(tensors)


def looks(optimizer):
    """Whether an optimizer, or one inside it, asks more of a batch than its gradient."""
    return any(node.looks for _, node in optimizer._nodes())


def fits(optimizer):
    """Whether there is a model here whose `fit` the optimizer can work in: `kopt.Model` is TensorFlow's."""
    return backends.BACKEND == "tensorflow" or not looks(optimizer)


def accumulates(optimizer):
    """Whether the gradients of several batches may be accumulated."""
    return not any(node.sees for _, node in optimizer._nodes())


def run(optimizer, **how):
    """The weights that a run ends with."""
    return Run(optimizer, **how)()


def path(optimizer, **changes):
    """The eager path of an optimizer with these changes, remembered: several checks compare with it."""
    changed = copy(optimizer, **changes)
    return path_of(type(changed), json.dumps(changed.get_config()))


@functools.lru_cache(maxsize=64)
def path_of(kind, config):
    """What `path` remembers: a config is text, which a cache can look up."""
    return run(kind.from_config(json.loads(config)))


def copy(optimizer, **changes):
    """The optimizer anew, with these changes to it or to an optimizer inside."""
    placed = {place(optimizer, name): value for name, value in changes.items()}
    return type(optimizer).from_config(optimizer.get_config()).set_params(**placed)


def place(optimizer, name):
    """The parameter's name, as `set_params` has it: inside a wrapper, where it is not the wrapper's own."""
    known = optimizer.get_params()
    while name not in known:
        name = f"inner__{name}"
        assert name.count("inner__") < 9, f"{optimizer!r} has no parameter {name!r}"
    return name


def owner_of(optimizer, name):
    """The optimizer, inside or not, that a parameter's name leads to, and its name there."""
    while (parts := name.partition("__"))[1]:
        optimizer, name = getattr(optimizer, parts[0]), parts[2]
    return optimizer, name


def rate(optimizer):
    """The learning rate, its own or that of the optimizer inside."""
    return optimizer.get_params()[place(optimizer, "learning_rate")]


def numbers(optimizer):
    """The hyperparameters that are numbers now, those of optimizers inside included."""
    found = {}
    for name, value in optimizer.get_params().items():
        owner, own = owner_of(optimizer, name)
        if name not in optimizer.idle and (own == "learning_rate" or own in owner._float_inputs()):
            found[name] = value
    return found


def interval(optimizer, name):
    """The range of a hyperparameter, as its errors print it."""
    owner, own = owner_of(optimizer, name)
    return owner._declared("ranges").get(own, "(-inf, inf)")


def other_values(optimizer):
    """For each number another one in its range, far enough away to matter."""
    values = numbers(optimizer) | {name: value for name, value in optimizer.get_params().items() if is_initial(name)}
    bounded = {name: interval(optimizer, name).split(",")[1].strip(" )]") == "1" for name in values}
    return {
        name: (value / 2 or 0.5) if bounded[name] else (value - 0.25 if value < 0 else 2 * value + 0.1)
        for name, value in values.items()
    }


def sums_over_weights(optimizer):
    """Whether what one weight does may depend on all."""
    measures = any(type(node).measure not in (Optimizer.measure, Wrapper.measure) for _, node in optimizer._nodes())
    return measures or looks(optimizer)


def is_initial(name):
    """Whether the parameter fills slots, and is of no use once they are filled."""
    return name.rpartition("__")[2].startswith("initial_")


def distance(a, b):
    """The largest difference between any two entries of two lists of arrays."""
    return max(float(np.abs(x - y).max()) for x, y in zip(a, b, strict=True))


def expect_error(kind, call):
    """The call must raise this kind of error."""
    try:
        call()
    except kind:
        return
    raise AssertionError(f"no {kind.__name__} for a wrong argument")


def small_model(optimizer, policy="float32", **how):
    """A small model with an embedding (sparse gradients), kernels and biases."""
    keras.utils.set_random_seed(0)
    layers = keras.layers
    model = keras.Sequential(
        [
            keras.Input((2,), dtype="int32"),
            layers.Embedding(5, 3, dtype=policy, name="embedding"),
            layers.Flatten(),
            layers.Dense(4, "tanh", dtype=policy, name="hidden"),
            layers.Dense(1, dtype=policy, name="head"),
        ]
    )
    if looks(optimizer):
        model = backends.looking(model)
    if policy == "mixed_float16":
        optimizer = keras.optimizers.LossScaleOptimizer(optimizer)
    model.compile(optimizer, "mse", **{"jit_compile": False} | how)
    return model


def fitted(model):
    """The model after five steps, with each of two batches more than once."""
    rng = np.random.default_rng(1)
    x, y = rng.integers(0, 5, (16, 2)).astype("int32"), rng.standard_normal((16, 1)).astype("float32")
    x, y = (
        np.concatenate([x, x, x[:8]]),
        np.concatenate([y, y, y[:8]]),
    )  # one epoch: to begin another costs more than a step
    model.fit(x, y, batch_size=8, epochs=1, shuffle=False, verbose=0)
    return model
