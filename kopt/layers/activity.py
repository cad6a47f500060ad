"""Penalties of activations: layers that add to the loss, and pass on what they get."""

import keras
from keras import ops

from kopt._checks import check_choice, check_range
from kopt.layers.base import Rated, Scheduled


class DeCov(Rated):
    """Adds to the loss how much features vary together, so that each comes to say something of its own.

        loss += strength · ½ (‖C‖² - ‖diag C‖²),  C = mean over rows of (h - μ)(h - μ)ᵀ,  μ = mean over rows of h
        y = h

    Made for the wide dense layers at the end of a classifier, where it goes with dropout; it needs batches of some tens
    of rows at least, from which to tell covariances. It costs a matrix product of the features with themselves.

    Features are along the last axis, and whatever is along the others is a row: the paper has dense layers alone. What
    a mask hides counts for nothing. Each replica takes the covariance of its own rows.

    Args:
        strength: of the penalty, in [0, inf), or a schedule. The paper chose it by validation for each network.
        **kwargs: those of `keras.layers.Layer`: `name`, `dtype` and so on.

    Call arguments:
        inputs: tensor of shape `(batch, ..., features)` and any float type.
        training: whether a schedule goes on; Keras sets it.
        mask: booleans of the shape `(batch, ...)`, or of its first axes; Keras passes them.

    Raises:
        TypeError: `strength` is neither a number nor a schedule.
        ValueError: `strength` is out of range.

    References:
        Cogswell et al., *Reducing Overfitting in Deep Networks by Decorrelating Representations*, 2016.
        https://arxiv.org/abs/1511.06068
    """

    ranges = {"strength": "[0, inf)"}

    def __init__(self, strength: Scheduled, **kwargs):
        super().__init__(**kwargs)
        self._set_rates(strength=strength)

    def call(self, inputs, training=False, mask=None):
        h, share = _rows(inputs, mask)
        h = (h - ops.sum(share * h, axis=0)) * ops.sqrt(share)
        c = ops.transpose(h) @ h * (1 - ops.eye(h.shape[1], dtype=h.dtype))
        self.add_loss(ops.cast(self._now(training).strength, c.dtype) * ops.sum(ops.square(c)) / 2)
        return inputs


class ConfidencePenalty(Rated):
    """Takes from the loss the entropy of what a classifier says, so that it does not become too sure.

        loss -= strength · H,  H = mean over rows of -Σ p log p
        loss += strength · max(0, threshold - H), row by row        with a threshold
        y = p

    Put it after the last layer. Like label smoothing it is for classifiers that overfit and are too confident; the two
    do the same in different ways, and one of them is enough. The loss of validation has the term in it too.

    The threshold is for penalties that begin only where a prediction has become sure; it has the sign that the paper's
    text asks for. What a mask hides counts for nothing.

    Args:
        strength: β, in [0, inf), or a schedule. The paper searched it for each task; 0.1 is a beginning.
        threshold: Γ, in [0, inf), in nats, or None.
        activation: how inputs are distributions: `"softmax"`, probabilities of classes along the last axis;
            `"sigmoid"`, each the probability of a class of its own, whose entropies are added.
        from_logits: whether inputs are logits in the place of probabilities.
        **kwargs: those of `keras.layers.Layer`: `name`, `dtype` and so on.

    Call arguments:
        inputs: tensor of shape `(batch, ..., classes)` and any float type.
        training: whether a schedule goes on; Keras sets it.
        mask: booleans of the shape `(batch, ...)`, or of its first axes; Keras passes them.

    Raises:
        TypeError: `strength` is neither a number nor a schedule, or `threshold` no number.
        ValueError: one of them is out of range, `activation` is another word, or `from_logits` no boolean.

    References:
        Pereyra et al., *Regularizing Neural Networks by Penalizing Confident Output Distributions*, 2017.
        https://arxiv.org/abs/1701.06548
    """

    ranges = {"strength": "[0, inf)"}

    def __init__(self, strength: Scheduled, threshold=None, activation="softmax", from_logits=False, **kwargs):
        super().__init__(**kwargs)
        self._set_rates(strength=strength)
        self.threshold = threshold if threshold is None else check_range(self, "[0, inf)", threshold=threshold)
        self.activation = check_choice(self, ("softmax", "sigmoid"), activation=activation)
        self.from_logits = check_choice(self, (True, False), from_logits=from_logits)

    def call(self, inputs, training=False, mask=None):
        x, share = _rows(inputs, mask)
        entropy = self._entropy(x)[:, None]
        found = -entropy if self.threshold is None else ops.maximum(self.threshold - entropy, 0)
        self.add_loss(ops.cast(self._now(training).strength, x.dtype) * ops.sum(share * found))
        return inputs

    def _entropy(self, x):
        """Of each row, in nats."""
        if self.activation == "softmax":
            logs = ops.log_softmax(x) if self.from_logits else _log(x)
            return -ops.sum((ops.exp(logs) if self.from_logits else x) * logs, axis=-1)
        if self.from_logits:
            return ops.sum(ops.softplus(x) - x * ops.sigmoid(x), axis=-1)
        return -ops.sum(x * _log(x) + (1 - x) * _log(1 - x), axis=-1)


def _log(p):
    """log p, bounded at 0, where the entropy's slope has no bound"""
    return ops.log(ops.maximum(p, keras.config.epsilon()))


def _rows(x, mask):
    """Inputs in many bits as a matrix, a row for each place, and the share of each row, a column whose sum is 1."""
    x = ops.convert_to_tensor(x)
    wide = "float64" if keras.backend.standardize_dtype(x.dtype) == "float64" else "float32"
    rows = ops.cast(ops.reshape(x, (-1, x.shape[-1])), wide)
    places = ops.ones_like(x[..., :1], dtype=wide)
    if mask is not None:
        mask = ops.cast(mask, wide)
        places = places * ops.reshape(mask, (*ops.shape(mask), *(1 for _ in x.shape[len(mask.shape) :])))
    places = ops.reshape(places, (-1, 1))
    return rows, places / ops.maximum(ops.sum(places), 1)
