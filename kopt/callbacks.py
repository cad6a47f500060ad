"""Evaluation at averaged weights while `fit` runs, and the statistics of batch normalization there."""

import itertools
from numbers import Integral

import keras

from kopt._checks import check_range

_SETTINGS = "momentum", "corrects"
"""What is set otherwise while statistics are computed anew: their momentum, and whether old ones correct."""

_STATISTICS = "moving_mean", "moving_variance", "moving_stddev"
"""Names of a layer's statistics; it may have no moving_stddev, which Keras's has with `renorm`."""


def recalibrate(model, data, batches=50):
    """Computes the statistics of batch normalization anew, for the weights that the model has now.

    Averaged weights were never trained, so no moving average was kept of the means and variances that they give. They
    become the mean over some batches of each batch's own, as in PyTorch's `update_bn`. All else stays as it is, the
    random state of dropout included. Layers that are not trainable keep their statistics, as they do in `fit`.
    `kopt.layers.BatchRenormalization` corrects nothing meanwhile, and takes the mean of standard deviations, as it does
    in training.

    Args:
        model: a `keras.Model`, built.
        data: batches as `fit` takes them: `x`, `(x, y)` or `(x, y, sample_weight)` each. Training data, as augmented.
        batches: how many to use at most, an integer in [1, inf).

    Raises:
        ValueError: `data` is an array, or yields no batch.

    Example:
        >>> kopt.recalibrate(model, dataset.batch(256))  # doctest: +SKIP
    """
    check_range("recalibrate", "[1, inf)", kind=Integral, batches=batches)
    if hasattr(data, "shape"):
        raise ValueError(
            f"recalibrate: data must yield batches, got an array of shape {tuple(data.shape)}. "
            "Try tf.data.Dataset.from_tensor_slices(data).batch(256)."
        )
    if isinstance(data, keras.utils.PyDataset):
        data = map(data.__getitem__, range(len(data)))
    layers = _normalizations(model)
    renewed = {id(variable) for variable in _statistics(model)}
    kept = [(v, v.numpy()) for v in model.non_trainable_variables if id(v) not in renewed]
    settings = [(layer, name, getattr(layer, name)) for layer in layers for name in _SETTINGS if hasattr(layer, name)]
    number = 0
    try:
        for number, batch in enumerate(itertools.islice(data, batches), start=1):
            for layer, name, _ in settings:
                setattr(layer, name, 1 - 1 / number if name == "momentum" else False)  # that of the mean so far
            model(keras.utils.unpack_x_y_sample_weight(batch)[0], training=True)
    finally:
        for layer, name, value in settings:
            setattr(layer, name, value)
        for variable, value in kept:
            variable.assign(value)
    if not number:
        raise ValueError(f"recalibrate: data must yield at least one batch, got none from {data!r}.")


def _normalizations(model):
    layers = model._flatten_layers()
    return [layer for layer in layers if isinstance(layer, keras.layers.BatchNormalization) and layer.trainable]


def _statistics(model):
    return [getattr(layer, n) for layer in _normalizations(model) for n in _STATISTICS if hasattr(layer, n)]


class SwapWeights(keras.callbacks.Callback):
    """Validates, predicts and saves at the weights to evaluate at, and trains at those that are trained.

    For optimizers that keep both: `kopt.ScheduleFreeAdamW`, `kopt.EMA` and the like. The averages come into the model
    for validation and at the end of each epoch, and go out of it before the next one; put this callback before those
    that save or look at weights, such as `keras.callbacks.ModelCheckpoint`. `fit` itself, without this callback,
    validates at the weights that are trained, and leaves the averages in the model at its end.

    With `data`, the statistics of batch normalization are computed anew at the averages (`kopt.recalibrate`) for each
    evaluation, and put back where training goes on. After the last epoch they stay, with the averages.

    Args:
        data: batches that can be iterated again and again, or None where there is no batch normalization.
        batches: how many of them to use, an integer in [1, inf).

    Raises:
        ValueError: the model's optimizer keeps no averages.

    Example:
        >>> model.compile(kopt.ScheduleFreeAdamW(), "mse")  # doctest: +SKIP
        >>> model.fit(train, validation_data=test, callbacks=[kopt.SwapWeights(train)])  # doctest: +SKIP
    """

    def __init__(self, data=None, batches=50):
        super().__init__()
        self.data = data
        self.batches = check_range(self, "[1, inf)", kind=Integral, batches=batches)
        self._fitting, self._back = False, None

    def set_model(self, model):
        """Remembers the model, and its optimizer."""
        super().set_model(model)
        optimizer = getattr(model.optimizer, "inner_optimizer", model.optimizer)  # of a LossScaleOptimizer
        if not getattr(optimizer, "averages", False):
            raise ValueError(
                f"SwapWeights: the optimizer must keep averages of the weights, got {optimizer!r}. "
                f"Try kopt.EMA(kopt.AdamW())."
            )
        self._optimizer = optimizer

    def _enter(self):
        """Puts the averages into the model, and remembers the way back."""
        if self._back is not None:
            return
        statistics = [] if self.data is None else [(v, v.numpy()) for v in _statistics(self.model)]
        self._back = "evaluation" if self._optimizer.evaluating else "training", statistics
        self._optimizer.swap("evaluation")
        if self.data is not None:
            recalibrate(self.model, self.data, self.batches)

    def _leave(self):
        """Goes the way back."""
        if self._back is None:
            return
        weights, statistics = self._back
        self._optimizer.swap(weights)
        for variable, value in statistics:
            variable.assign(value)
        self._back = None

    def on_train_begin(self, logs=None):
        """Puts the weights that are trained into the model: an earlier `fit` left averages there."""
        self._fitting, self._back = True, None
        self._optimizer.swap("training")

    def on_epoch_begin(self, epoch, logs=None):
        """Goes back to training."""
        self._leave()

    def on_epoch_end(self, epoch, logs=None):
        """Puts the averages into the model, for what saves it."""
        self._enter()

    def on_train_end(self, logs=None):
        """Leaves the averages in the model."""
        self._fitting, self._back = False, None

    def on_test_begin(self, logs=None):
        """Puts the averages into the model."""
        self._enter()

    def on_test_end(self, logs=None):
        """Goes back, unless the epoch's end is still to come."""
        if not self._fitting:
            self._leave()

    def on_predict_begin(self, logs=None):
        """Puts the averages into the model."""
        self._enter()

    def on_predict_end(self, logs=None):
        """Goes back."""
        if not self._fitting:
            self._leave()
