"""Predictions with the noise of training: dropout as a sample of networks."""

import contextlib
from numbers import Integral

import keras
import numpy as np
from keras import tree

from kopt._backend import compiled
from kopt._checks import check_range
from kopt._keras import is_seed
from kopt.layers.wrapped import calls_changed


@contextlib.contextmanager
def noise_in(model):
    """A context in which layers of a model that draw random numbers do so at inference, too. All else is as there is.

    Raises:
        ValueError: no layer draws any.
    """
    noisy = [layer for layer in model._flatten_layers(include_self=False) if _draws(layer)]
    if not noisy:
        raise ValueError(
            f"monte_carlo: {model.name} must have a layer that draws random numbers in training, as "
            "keras.layers.Dropout does: else its predictions are all the same."
        )

    def training(layer, call):
        return lambda *args, **kwargs: call(*args, **kwargs | dict(training=True))

    with calls_changed(noisy, training):
        yield


def _draws(layer):
    """Whether a layer, not one inside of it, has a generator of random numbers for its training."""
    owns = any(isinstance(value, keras.random.SeedGenerator) for value in vars(layer).values())
    return owns and layer._call_has_training_arg and getattr(layer, "rate", 1) != 0


def monte_carlo(model, x, samples=50, batch_size=256, seed=None):
    """Predicts several times, with dropout and other noise as in training: a sample of what the model might say.

    The mean over samples is the prediction of a Bayesian approximation, and their spread what the model does not know
    of the function; add the noise of the targets to have that of the targets. Batch normalization and all else compute
    as at inference, and nothing in the model changes.

    Args:
        model: a built `keras.Model` with dropout, or with other layers that draw random numbers.
        x: rows, as `predict` takes them: an array, or several in lists and dicts.
        samples: how many predictions, in [1, inf).
        batch_size: rows at a time, in [1, inf).
        seed: an integer, for the same draws in every call; None draws new ones.

    Returns:
        An array of shape `(samples, rows, ...)`; several, in the structure of the model's outputs, where these are
        several.

    Raises:
        ValueError: no layer draws random numbers, or a number is out of its range.

    References:
        Gal and Ghahramani, *Dropout as a Bayesian Approximation*, 2016. https://arxiv.org/abs/1506.02142

    Example:
        >>> draws = kopt.monte_carlo(model, x, samples=100)  # doctest: +SKIP
        >>> mean, spread = draws.mean(axis=0), draws.std(axis=0)  # doctest: +SKIP
    """
    check_range("monte_carlo", "[1, inf)", kind=Integral, samples=samples)
    check_range("monte_carlo", "[1, inf)", kind=Integral, batch_size=batch_size)
    variables = [*model.trainable_variables, *model.non_trainable_variables]
    rng = np.random.default_rng(seed)

    def outputs(values, x):
        with noise_in(model), keras.StatelessScope(list(zip(variables, values, strict=True))):
            return model(x, training=False)

    predict, values = compiled(outputs), [v.value for v in variables]
    x = tree.map_structure(np.asarray, x)
    starts = range(0, len(tree.flatten(x)[0]), batch_size)
    blocks = [tree.map_structure(lambda part, i=i: part[i : i + batch_size], x) for i in starts]
    drawn = []
    for _ in range(samples):
        found = [predict(reseeded(variables, values, rng), block) for block in blocks]
        drawn.append(tree.map_structure(lambda *parts: np.concatenate([*map(np.asarray, parts)]), *found))
    return tree.map_structure(lambda *parts: np.stack(parts), *drawn)


def reseeded(variables, values, rng):
    """Values of variables, with new states drawn for generators of random numbers."""
    return [
        rng.integers(2**31, size=v.shape).astype(v.dtype) if is_seed(v) else value
        for v, value in zip(variables, values, strict=True)
    ]
