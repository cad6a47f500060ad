"""A Keras network as a scikit-learn regressor."""

from sklearn.base import RegressorMixin, _fit_context
from sklearn.utils import column_or_1d

from kopt.estimators.base import KerasEstimator


class KerasRegressor(RegressorMixin, KerasEstimator):
    """A regressor made of a Keras network, for one target or several.

    Networks of one structure share one compiled program: of a grid search over learning rates only the first fit
    compiles. Weights are the estimator's own. Two fits with the same `random_state` are equal bit for bit.

    Args:
        model: None for a multilayer perceptron (parameters `model__hidden_layer_sizes`, `model__activation`,
            `model__dropout`, `model__drop_path`); a function that returns a `keras.Model` with `n_outputs_` units
            at its end, and gets those of `n_features_in_` and `n_outputs_` that its signature names, besides
            `model__*`; or a `keras.Model`, of which each fit trains a copy that starts from the model's present
            weights.
        optimizer: name, class or instance of an optimizer of kopt or Keras; None means `kopt.Adam()`. An instance
            is copied, never changed. `optimizer__*` sets its parameters.
        loss: name of a loss in `keras.losses`, a `keras.losses.Loss`, or a function of targets and outputs that
            returns a value for each row. None means the mean squared error.
        epochs: how often to go over the rows, at most.
        batch_size: rows in a step; "auto" is a fiftieth of all, but 32 to 256.
        early_stopping: whether to hold out some rows, and stop when their loss no longer falls; the weights
            with the lowest are kept.
        validation_fraction: share of the rows to hold out.
        n_iter_no_change: epochs without a lower loss after which to stop.
        warm_start: whether `fit` goes on from the weights of the fit before.
        strategy: None for one device, "auto" for all devices of the best kind there are, "mirrored", or a
            `tf.distribute.MirroredStrategy` or `OneDeviceStrategy`.
        device: the one device to compute on, as "CPU" or "GPU:1"; None for TensorFlow's choice or the strategy's.
        dtype: name of the Keras dtype policy of layers that do not say otherwise: "float32", "float64",
            "mixed_bfloat16", "mixed_float16" (with the loss scaled, as in Keras), "bfloat16" or "float16". None
            computes in the rows' own: 32 bits for floats of 32 bits, else 64. Predictions have 32 or 64 bits.
        random_state: seed of weights, shuffling, dropout and the held-out rows.
        verbose: whether to show a progress bar.
        **model__or_optimizer__: parameters of the network and of the optimizer, by these prefixes.

    Attributes:
        n_outputs_: number of targets.
        n_features_in_: columns of the rows.
        model_: the trained network, a `keras.Model`.
        loss_curve_: the mean loss of each epoch.
        history_: the same by name, with "val_loss" when stopping early.
        n_iter_: epochs trained.

    Examples:
        >>> from sklearn.datasets import make_regression
        >>> from kopt import KerasRegressor
        >>> X, y = make_regression(200, 5, random_state=0)
        >>> KerasRegressor(optimizer__learning_rate=0.03, random_state=0).fit(X, y / 100).score(X, y / 100) > 0.95
        True
    """

    _checks_of_y = {"y_numeric": True}
    _facts = ("n_features_in_", "n_outputs_")

    @_fit_context(prefer_skip_nested_validation=True)
    def partial_fit(self, X, y, sample_weight=None):
        """Trains for one epoch, going on from where the last call stopped, and returns the estimator.

        Args:
            X: as in `fit`.
            y: as in `fit`.
            sample_weight: as in `fit`.
        """
        return self._go_on(X, y, sample_weight)

    def predict(self, X):
        """Returns the target of each row, of the shape that `fit` was given."""
        z = self._outputs(X)
        return z[:, 0] if self._one_column else z

    def _learn_targets(self, y, begin):
        y = column_or_1d(y, warn=True) if y.ndim == 2 and y.shape[1] == 1 else y
        n_outputs = y.size // len(y)
        if begin:
            self._one_column, self.n_outputs_ = y.ndim == 1, n_outputs
        if n_outputs != self.n_outputs_:
            raise ValueError(f"KerasRegressor: y must have {self.n_outputs_} targets as before, got {n_outputs}.")
        return y

    def _strata(self, y):
        return None

    def _fit_loss(self, model, units, dtype):
        """Returns the loss, and the shape and dtype of a target."""
        from kopt.training import losses

        if units != self.n_outputs_:
            raise ValueError(
                f"KerasRegressor: model must end in n_outputs_ = {self.n_outputs_} units, got {units} units."
            )
        self._target = (units,), dtype
        return losses.resolve(self.loss or "mean_squared_error", True, type(self).__name__), self._target

    def _encoded(self, y):
        shape, dtype = self._target
        return y.reshape(-1, *shape).astype(dtype)

    def __sklearn_tags__(self):
        tags = super().__sklearn_tags__()
        tags.target_tags.multi_output = True
        return tags
