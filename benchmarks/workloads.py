"""What `suite.py` trains: small problems on data that scikit-learn brings along, the same for every library.

A problem is written in the names that NumPy, `jax.numpy` and `keras.ops` share. So each library takes its steps from
the same weights, over the same batches, down the same loss.
"""

from functools import cached_property
from itertools import pairwise
from pathlib import Path

import numpy as np
from scipy.optimize import minimize
from sklearn import datasets


class Problem:
    """A loss, where it starts, and the score that is looked at.

    Attributes:
        weights: the initial weights by name, in its dtype.
        batches: the rows of each step's batch, `(steps, rows)`; a full batch names none.
    """

    steps = 0
    """How many are allowed."""
    every = 1
    """Steps from one look at the score to the next."""
    target = 0.0
    """The score to reach; lower is better."""
    seeded = True
    """Whether the seed changes anything."""
    figure = "steps"
    """What is compared: the steps to the target, or the last score."""
    dtype = "float64"
    """In float32 rounding decides: optax's own Prodigy takes 289 or 349 steps on the wines, by the order of a sum."""
    ends_there = False
    """Whether nothing more is of interest when the target is reached."""

    def __init__(self, seed):
        rng = np.random.default_rng(seed)
        self.weights = {name: w.astype(self.dtype) for name, w in self.start(rng).items()}
        self.batches = self.order(rng).astype("int32")

    def start(self, rng):
        """Returns the initial weights by name."""
        raise NotImplementedError

    def order(self, rng):
        """Returns the rows of each step's batch."""
        return np.zeros((self.steps, 0))

    def loss(self, xp, w, rows):
        """What a step descends."""
        raise NotImplementedError

    def score(self, xp, w):
        """What has to come down to the target."""
        raise NotImplementedError

    def error(self, w):
        """The percentage of unseen rows that a classifier gets wrong."""
        return None


# ---- parts -------------------------------------------------------------------------------------------------


def cross_entropy(xp, logits, labels):
    """The mean of -log softmax(logits)[label]."""
    logits = logits - xp.max(logits, axis=-1, keepdims=True)
    chosen = xp.take_along_axis(logits, labels[..., None], axis=-1)[..., 0]
    return xp.mean(xp.log(xp.sum(xp.exp(logits), axis=-1)) - chosen)


def glorot(rng, *shape):
    """A kernel of the last two axes, uniform, whose outputs vary as its inputs do."""
    limit = np.sqrt(6 / sum(shape[-2:]))
    return rng.uniform(-limit, limit, shape)


def dense(rng, widths):
    """Weights of a stack of dense layers, by name."""
    weights = {}
    for i, (inputs, outputs) in enumerate(pairwise(widths)):
        weights |= {f"dense_{i}/kernel": glorot(rng, inputs, outputs), f"dense_{i}/bias": np.zeros(outputs)}
    return weights


def stack(xp, w, x, activation):
    """The outputs of a stack of dense layers, the last one linear."""
    for i in range(len(w) // 2):
        x = xp.matmul(x if i == 0 else activation(x), w[f"dense_{i}/kernel"]) + w[f"dense_{i}/bias"]
    return x


def digits():
    """Handwritten digits in [0, 1] and their labels: 1497 to train on, and 300 to test."""
    X, y = datasets.load_digits(return_X_y=True)
    order = np.random.default_rng(0).permutation(len(y))
    X, y = X[order] / 16, y[order].astype("int32")
    return X[:1497], y[:1497], X[1497:], y[1497:]


# ---- problems ----------------------------------------------------------------------------------------------


class DigitsMLP(Problem):
    """Handwritten digits, 64-128-64-10 with ReLU, batches of 128: the cross-entropy of all 1497 rows."""

    steps, target = 600, 0.01
    data = cached_property(lambda self: digits())

    def start(self, rng):
        return dense(rng, [64, 128, 64, 10])

    def order(self, rng):
        rows, batch = 1497, 128
        a_round = rows // batch
        rounds = [rng.permutation(rows)[: a_round * batch] for _ in range(-(-self.steps // a_round))]
        return np.concatenate(rounds).reshape(-1, batch)[: self.steps]

    def loss(self, xp, w, rows):
        X, y, _, _ = self.data
        return cross_entropy(xp, self.logits(xp, w, xp.take(X, rows, axis=0)), xp.take(y, rows, axis=0))

    def score(self, xp, w):
        X, y, _, _ = self.data
        return cross_entropy(xp, self.logits(xp, w, X), y)

    def logits(self, xp, w, X):
        return stack(xp, w, X, lambda x: xp.maximum(x, 0))

    def error(self, w):
        _, _, X, y = self.data
        return 100 * np.mean(self.logits(np, w, X).argmax(-1) != y)


class Autoencoder(Problem):
    """The digits through 8 numbers, 64-100-50-25-8-25-50-100-64 with tanh, full batch: nats an image above entropy."""

    steps, target, ends_there = 600, 1.5, True
    data = cached_property(lambda self: digits()[0])

    def start(self, rng):
        return dense(rng, [64, 100, 50, 25, 8, 25, 50, 100, 64])

    def loss(self, xp, w, rows):
        z = stack(xp, w, self.data, xp.tanh)
        each = xp.maximum(z, 0) - z * self.data + xp.log1p(xp.exp(-xp.abs(z)))
        return xp.mean(xp.sum(each, axis=-1))

    def score(self, xp, w):
        return self.loss(xp, w, None) - self.entropy

    @cached_property
    def entropy(self):
        """The least loss there is: -p log p - (1 - p) log(1 - p), summed over pixels."""
        p = np.clip(self.data, 1e-12, 1 - 1e-12)
        return -np.mean(np.sum(p * np.log(p) + (1 - p) * np.log(1 - p), axis=-1))


class Logistic(Problem):
    """Softmax regression with a ridge, from W = 0, full batch: the loss above its minimum.

    A subclass says how to `load` its data, and along which axis the largest absolute value is made 1 (`scaled`).
    """

    steps, target, seeded, ends_there = 3000, 1e-3, False, True
    ridge = 1e-4

    @cached_property
    def data(self):
        X, y = self.load(return_X_y=True)
        X = X / np.abs(X).max(axis=self.scaled)
        return np.c_[X, np.ones(len(X))], y.astype("int32")

    def start(self, rng):
        X, y = self.data
        return {"kernel": np.zeros((X.shape[1], y.max() + 1))}

    def loss(self, xp, w, rows):
        X, y = self.data
        return cross_entropy(xp, xp.matmul(X, w["kernel"]), y) + self.ridge / 2 * xp.sum(w["kernel"] ** 2)

    def score(self, xp, w):
        return self.loss(xp, w, None) - self.minimum

    @cached_property
    def minimum(self):
        """The loss where scipy's L-BFGS-B ends, in float64."""
        X, y = self.data
        shape = self.weights["kernel"].shape

        def loss_and_gradient(w):
            w = w.reshape(shape)
            p = np.exp(X @ w)
            p /= p.sum(axis=-1, keepdims=True)
            gradient = X.T @ (p - np.eye(shape[1])[y]) / len(y) + self.ridge * w
            return self.loss(np, {"kernel": w}, None), gradient.ravel()

        limits = dict(maxiter=10_000, maxfun=10_000, ftol=1e-15, gtol=1e-9)
        return minimize(loss_and_gradient, np.zeros(shape).ravel(), jac=True, method="L-BFGS-B", options=limits).fun


class BreastCancer(Logistic):
    """Softmax regression, 569 tumours, 30 features, 2 classes, from W = 0, full batch: the loss above its minimum."""

    load, scaled = staticmethod(datasets.load_breast_cancer), 0


class Wine(Logistic):
    """Softmax regression, 178 wines, 13 features, 3 classes, from W = 0, full batch: the loss above its minimum."""

    load, scaled = staticmethod(datasets.load_wine), 0


class DigitsLogistic(Logistic):
    """Softmax regression, 1797 digits, 64 pixels, 10 classes, from W = 0, full batch: the loss above its minimum."""

    load, scaled = staticmethod(datasets.load_digits), None


class Characters(Problem):
    """A transformer of 2 layers, 4 heads and 64 channels that reads scikit-learn's own data-set descriptions.

    Batches of 16 windows of 48 characters; the score is the cross-entropy of the text's last tenth.
    """

    steps, every, target, figure = 400, 10, 2.55, "score"
    dtype = "float32"
    window, batch, layers, heads, channels = 48, 16, 2, 4, 64

    @cached_property
    def data(self):
        files = sorted((Path(datasets.__file__).parent / "descr").glob("*.rst"))
        text = "".join(file.read_text(encoding="utf-8") for file in files)
        codes = np.unique(list(text), return_inverse=True)[1].astype("int32")
        return np.split(codes, [len(codes) * 9 // 10])

    def start(self, rng):
        d, characters = self.channels, max(codes.max() for codes in self.data) + 1
        weights = {
            "embedding": rng.normal(0, 0.1, (characters, d)),
            "position_embedding": rng.normal(0, 0.1, (self.window, d)),
            "norm/scale": np.ones(d),
            "head/kernel": glorot(rng, d, characters),
            "head/bias": np.zeros(characters),
        }
        for i in range(self.layers):
            weights |= {f"{i}/{name}/kernel": glorot(rng, d, d) for name in ("query", "key", "value", "mix")}
            weights |= {f"{i}/norm_{part}/scale": np.ones(d) for part in ("attention", "mlp")}
            weights |= {f"{i}/up/kernel": glorot(rng, d, 4 * d), f"{i}/up/bias": np.zeros(4 * d)}
            weights |= {f"{i}/down/kernel": glorot(rng, 4 * d, d), f"{i}/down/bias": np.zeros(d)}
        return weights

    def order(self, rng):
        return rng.integers(len(self.data[0]) - self.window, size=(self.steps, self.batch))

    def loss(self, xp, w, rows):
        places = rows[:, None] + np.arange(self.window + 1, dtype="int32")
        return self.loss_of(xp, w, xp.take(self.data[0], places, axis=0))

    def score(self, xp, w):
        codes = self.data[1]
        starts = np.arange(0, len(codes) - self.window, self.window)
        return self.loss_of(xp, w, codes[starts[:, None] + np.arange(self.window + 1)])

    def loss_of(self, xp, w, codes):
        """The cross-entropy of each character of these windows but the first, given those before it."""
        x = xp.take(w["embedding"], codes[:, :-1], axis=0) + w["position_embedding"]
        for i in range(self.layers):
            x = x + self.attention(xp, w, i, norm(xp, x, w[f"{i}/norm_attention/scale"]))
            z = xp.matmul(norm(xp, x, w[f"{i}/norm_mlp/scale"]), w[f"{i}/up/kernel"]) + w[f"{i}/up/bias"]
            x = x + xp.matmul(xp.maximum(z, 0), w[f"{i}/down/kernel"]) + w[f"{i}/down/bias"]
        logits = xp.matmul(norm(xp, x, w["norm/scale"]), w["head/kernel"]) + w["head/bias"]
        return cross_entropy(xp, logits, codes[:, 1:])

    def attention(self, xp, w, i, x):
        """Each character's mix of those up to itself."""
        split = -1, self.window, self.heads, self.channels // self.heads
        q, k, v = (xp.reshape(xp.matmul(x, w[f"{i}/{name}/kernel"]), split) for name in ("query", "key", "value"))
        future = np.triu(np.full((self.window, self.window), -1e9, "float32"), 1)
        weights = xp.einsum("bqhd,bkhd->bhqk", q, k) / np.float32(np.sqrt(split[-1])) + future
        weights = xp.exp(weights - xp.max(weights, axis=-1, keepdims=True))
        weights = weights / xp.sum(weights, axis=-1, keepdims=True)
        mixed = xp.reshape(xp.einsum("bhqk,bkhd->bqhd", weights, v), (-1, self.window, self.channels))
        return xp.matmul(mixed, w[f"{i}/mix/kernel"])


def norm(xp, x, scale):
    """Root-mean-square normalization over channels."""
    return scale * x / xp.sqrt(xp.mean(x * x, axis=-1, keepdims=True) + 1e-6)


WORKLOADS = {
    "digits-mlp": DigitsMLP,
    "autoencoder": Autoencoder,
    "logistic-cancer": BreastCancer,
    "logistic-wine": Wine,
    "logistic-digits": DigitsLogistic,
    "char-lm": Characters,
}
