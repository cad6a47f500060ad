"""Predictions that are not too sure, the same twice, or flat: changes of the loss, and penalties beside it."""

from numbers import Integral

import keras
from keras import ops, tree

from kopt._checks import check_range
from kopt.layers.base import Scheduled
from kopt.objectives.base import Drawing, Objective, floats
from kopt.training.look import wide
from kopt.training.losses import logits_of


class RDrop(Objective):
    """Two looks at each batch, with other dropout, are to predict the same.

        L = ½ (loss(z₁, y) + loss(z₂, y)) + strength · ½ (KL(p₁ ‖ p₂) + KL(p₂ ‖ p₁))

    as in the authors' code; in the paper the two losses are added. The model must have dropout.

    Args:
        strength: in [0, inf), or a schedule; the authors' code has 1 for language models, 5 for translation.
        **kwargs: those of `keras.layers.Layer`.

    Raises:
        TypeError: `strength` is neither a number nor a schedule.
        ValueError: it is negative; in `fit`, the loss is neither a crossentropy of logits, softmax or sigmoid nor the
            mean squared error.

    References:
        Wu et al., *R-Drop: Regularized Dropout for Neural Networks*, 2021. https://arxiv.org/abs/2106.14448
    """

    ranges = {"strength": "[0, inf)"}

    def __init__(self, strength: Scheduled = 1.0, **kwargs):
        super().__init__(**kwargs)
        self._set_rates(strength=strength)

    def total(self, look):
        one, two = look.outputs(), look.outputs()
        loss = (look.loss(one) + look.loss(two)) / 2
        apart = (look.divergence(one, two) + look.divergence(two, one)) / 2
        return one, loss + ops.cast(self._now().strength, loss.dtype) * ops.cast(apart, loss.dtype)


class Flooding(Objective):
    """Keeps the training loss at a level: below it, steps go uphill.

        L = |loss - level| + level

    The loss is that of the whole batch, on all replicas together.

    Args:
        level: in [0, inf), or a schedule; to be found by validation.
        **kwargs: those of `keras.layers.Layer`.

    Raises:
        TypeError: `level` is neither a number nor a schedule.
        ValueError: it is negative.

    References:
        Ishida et al., *Do We Need Zero Training Loss After Achieving Zero Training Error?*, 2020.
        https://arxiv.org/abs/2002.08709
    """

    ranges = {"level": "[0, inf)"}

    def __init__(self, level: Scheduled, **kwargs):
        super().__init__(**kwargs)
        self._set_rates(level=level)

    def total(self, look):
        outputs = look.outputs()
        loss = look.loss(outputs)
        level = ops.cast(self._now().level, loss.dtype)
        part = ops.cast(look.rows, loss.dtype) / ops.cast(look.batch, loss.dtype)  # of the level: a replica's
        uphill = ops.cast(ops.stop_gradient(look.sum(loss)) < level, loss.dtype)
        return outputs, (1 - 2 * uphill) * (loss - part * level) + part * level


class GradientPenalty(Objective):
    """Wants the loss of each row to be flat around it.

        L = loss + strength · mean over rows of ‖∇ₓ loss(f(x), y)‖²

    The gradient is that of a row's own loss, with its weight. With batch normalization, through which rows look at each
    other, it is what the loss of all changes with the row.

    Args:
        strength: in [0, inf), or a schedule.
        **kwargs: those of `keras.layers.Layer`.

    Raises:
        TypeError: `strength` is neither a number nor a schedule.
        ValueError: it is negative; in `fit`, rows are no floats.

    References:
        Drucker and LeCun, *Improving Generalization Performance Using Double Backpropagation*, 1992.
    """

    ranges = {"strength": "[0, inf)"}

    def __init__(self, strength: Scheduled, **kwargs):
        super().__init__(**kwargs)
        self._set_rates(strength=strength)

    def total(self, look):
        (outputs, loss), slopes = look.with_slopes(look.at, floats(self, look.x, "to be moved"))
        steepness = sum(ops.sum(ops.square(ops.cast(g, loss.dtype))) for g in slopes)
        penalty = steepness * ops.cast(look.batch, loss.dtype)  # mean of squares of gradients, each of 1 / batch
        return outputs, loss + ops.cast(self._now().strength, loss.dtype) * penalty


class JacobianPenalty(Drawing):
    """Wants outputs that change little with the rows: a bound on what noise of the inputs can do.

        L = loss + strength / 2 · mean over rows of ‖J‖²,  J = ∂z / ∂x
        ‖J‖² ≈ C / projections · Σ ‖vᵀJ‖²,  v uniform on the unit sphere of the C outputs

    z are the logits, where there is a softmax or sigmoid. The estimate is unbiased, and costs a backward pass for each
    projection.

    Args:
        strength: in [0, inf), or a schedule; the authors' code has 0.01.
        projections: in [1, inf); the paper's is 1.
        seed: an integer, for the same draws in every run; None draws a new one.
        **kwargs: those of `keras.layers.Layer`.

    Raises:
        TypeError: `strength` is neither a number nor a schedule, or `projections` no integer.
        ValueError: either is out of its range; in `fit`, rows are no floats.

    References:
        Hoffman et al., *Robust Learning with Jacobian Regularization*, 2019. https://arxiv.org/abs/1908.02729
    """

    ranges = {"strength": "[0, inf)"}

    def __init__(self, strength: Scheduled = 0.01, projections=1, seed=None, **kwargs):
        super().__init__(seed, **kwargs)
        self._set_rates(strength=strength)
        self.projections = check_range(self, "[1, inf)", kind=Integral, projections=projections)

    def total(self, look):
        x, squares, first = floats(self, look.x, "to be moved"), 0.0, None
        for _ in range(self.projections):
            (outputs, _), slopes = look.with_slopes(lambda x: self._projected(look, x), x)
            first = outputs if first is None else first
            squares += sum(ops.sum(ops.square(wide(g))) for g in slopes)
        loss = look.loss(first)
        mean = ops.cast(squares / self.projections, loss.dtype) / ops.cast(look.batch, loss.dtype)
        return first, loss + ops.cast(self._now().strength, loss.dtype) / 2 * mean

    def _projected(self, look, x):
        """The outputs, and √C · vᵀz summed over rows."""
        outputs = look.outputs(x)
        logits = [wide(ops.reshape(logits_of(z), (look.rows, -1))) for z in tree.flatten(outputs)]
        z = ops.concatenate(logits, axis=1)
        v = keras.random.normal(ops.shape(z), dtype=z.dtype, seed=self.seed_generator)
        v = v / ops.sqrt(ops.mean(ops.square(v), axis=1, keepdims=True))
        return outputs, ops.sum(v * z)


class LabelSmoothing(Objective):
    """Mixes labels with the uniform distribution, whatever form they have.

        L = (1 - smoothing) · loss(z, y) + smoothing · loss(z, uniform)

    for a softmax; for sigmoids with ½ in the place of each label. Keras's `label_smoothing` is the same for indicators
    of classes, and there is none for their numbers.

    Args:
        smoothing: in [0, 1), or a schedule; 0.1 is customary.
        **kwargs: those of `keras.layers.Layer`.

    Raises:
        TypeError: `smoothing` is neither a number nor a schedule.
        ValueError: it is out of its range; in `fit`, the loss is no crossentropy of logits, softmax or sigmoid.

    References:
        Szegedy et al., *Rethinking the Inception Architecture for Computer Vision*, 2016.
        https://arxiv.org/abs/1512.00567
    """

    ranges = {"smoothing": "[0, 1)"}

    def __init__(self, smoothing: Scheduled = 0.1, **kwargs):
        super().__init__(**kwargs)
        self._set_rates(smoothing=smoothing)

    def total(self, look):
        outputs = look.outputs()
        loss = look.loss(outputs)
        s = ops.cast(self._now().smoothing, loss.dtype)
        each = [None if kind is None else self._uniform(kind, z) for kind, z in classified(self, look, outputs)]
        hard = loss - sum_of_penalties(look, loss)
        return outputs, loss - s * hard + s * ops.cast(look.mean(each), loss.dtype)

    def _uniform(self, kind, z):
        log_p = ops.log_softmax(z) if kind == "softmax" else (ops.log_sigmoid(z) + ops.log_sigmoid(-z)) / 2
        return -ops.mean(log_p, axis=-1)


class OnlineLabelSmoothing(Objective):
    """Label smoothing with the probabilities that the model itself gave to rows of a class that it predicted rightly.

        L = weight · loss(z, y) + (1 - weight) · -Σ_k S[y, k] ln p_k
        S[c] = mean of p over the rows of class c that were predicted as c in the `period` steps before

    Before the first `period` steps are over, S is uniform.

    Args:
        classes: how many there are, in [2, inf). The model has one output, the logits or the softmax of these.
        period: the steps of an epoch, after which S is renewed: in [1, inf).
        weight: of the labels themselves, in [0, 1]; the paper's is 0.5.
        **kwargs: those of `keras.layers.Layer`.

    Raises:
        TypeError: a number is none.
        ValueError: a number is out of its range; in `fit`, the loss is no crossentropy of a softmax, or there are
            several outputs.

    References:
        Zhang et al., *Delving Deep into Label Smoothing*, 2021. https://arxiv.org/abs/2011.12562
    """

    def __init__(self, classes, period, weight=0.5, **kwargs):
        super().__init__(**kwargs)
        self.classes = check_range(self, "[2, inf)", kind=Integral, classes=classes)
        self.period = check_range(self, "[1, inf)", kind=Integral, period=period)
        self.weight = check_range(self, "[0, 1]", weight=weight)
        how = dict(trainable=False, aggregation="mean")
        uniform = keras.initializers.Constant(1 / classes)
        self.soft = self.add_weight(shape=(classes, classes), initializer=uniform, name="soft", **how)
        self.sums = self.add_weight(shape=(classes, classes), initializer="zeros", name="sums", **how)
        how["aggregation"] = "only_first_replica"  # of integers there is no mean
        self.taken = self.add_weight(shape=(), initializer="zeros", dtype="int32", name="taken", **how)

    def total(self, look):
        outputs = look.outputs()
        loss, dtype = look.loss(outputs), self.soft.dtype
        ((kind, z), *others) = classified(self, look, outputs)
        if kind != "softmax" or others or z.shape[-1] != self.classes or len(z.shape) != 2:
            raise ValueError(
                f"OnlineLabelSmoothing: the model must have one softmax of {self.classes} classes, got outputs of "
                f"shapes {[tuple(z.shape) for z in tree.flatten(outputs)]}."
            )
        y = tree.flatten(look.y)[0]
        indicators = len(y.shape) == 2 and y.shape[1] == self.classes
        numbers = ops.cast(ops.argmax(y, -1) if indicators else ops.reshape(y, (look.rows,)), "int32")
        log_p = ops.cast(ops.log_softmax(z), dtype)
        table = ops.convert_to_tensor(self.soft)
        each = -ops.sum(ops.take(table, numbers, axis=0) * log_p, axis=-1)
        hard = loss - sum_of_penalties(look, loss)
        self._learn(look, numbers, log_p, table)
        return outputs, loss + (1 - self.weight) * (ops.cast(look.mean(each), loss.dtype) - hard)

    def _learn(self, look, numbers, log_p, table):
        right = ops.cast(ops.argmax(log_p, -1), "int32") == numbers
        rows = ops.one_hot(numbers, self.classes, dtype=log_p.dtype) * ops.cast(right, log_p.dtype)[:, None]
        sums = ops.convert_to_tensor(self.sums) + look.sum(ops.stop_gradient(ops.transpose(rows) @ ops.exp(log_p)))
        taken = ops.convert_to_tensor(self.taken) + 1
        over = taken >= self.period
        total = ops.sum(sums, axis=1, keepdims=True)  # of the rows of each class that were predicted rightly
        renewed = ops.where(total > 0, sums / ops.maximum(total, 1e-12), table)
        self.soft.assign(ops.where(over, renewed, table))
        self.sums.assign(ops.where(over, ops.zeros_like(sums), sums))
        self.taken.assign(ops.where(over, ops.zeros_like(taken), taken))


def classified(owner, look, outputs):
    """The kind and the logits of each output, if each loss is a crossentropy; the kind is None where there is no loss.

    Raises:
        ValueError: one is not.
    """
    kinds = look.kinds(outputs)
    if "normal" in kinds:
        raise ValueError(f"{type(owner).__name__}: the loss must be a crossentropy, got the mean squared error.")
    return [(kind, wide(logits_of(z))) for kind, z in zip(kinds, tree.flatten(outputs), strict=True)]


def sum_of_penalties(look, loss):
    """What the losses of layers and the penalties of weights add to a loss, on this replica."""
    losses = look.model.losses
    share = ops.cast(look.rows, loss.dtype) / ops.cast(look.batch, loss.dtype)
    return sum((ops.cast(penalty, loss.dtype) * share for penalty in losses), ops.zeros_like(loss))
