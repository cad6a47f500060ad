"""A Keras network as a scikit-learn regressor."""

from sklearn.base import RegressorMixin, _fit_context

from kopt.estimators.base import KerasEstimator
from kopt.estimators.targets import ValueTargets


class KerasRegressor(RegressorMixin, ValueTargets, KerasEstimator):
    """A regressor made of a Keras network, for one target or several.

    Networks of one structure share one compiled program: of a grid search over learning rates only the first fit
    compiles. Weights are the estimator's own. Two fits with the same `random_state` are equal bit for bit.

    Args:
        model: None for a multilayer perceptron (parameters `model__hidden_layer_sizes`, `model__activation`,
            `model__dropout`, `model__drop_path`); a function that returns a `keras.Model` with `n_outputs_` units
            at its end, in one output or several, and gets those of `n_features_in_`, `input_shape_` and `n_outputs_`
            that its signature names, besides `model__*`; or a `keras.Model`, of which each fit trains a copy that
            starts from the model's present weights.
        optimizer: name, class or instance of an optimizer of kopt or Keras; None means `kopt.Adam()`. An instance
            is copied, never changed. `optimizer__*` sets its parameters.
        loss: name of a loss in `keras.losses`, a `keras.losses.Loss`, or a function of targets and outputs that
            returns a value for each row. None means the mean squared error.
        epochs: how often to go over the rows, at most.
        batch_size: rows in a step; "auto" is a fiftieth of all, but 32 to 256.
        early_stopping: whether to hold out some rows, and stop when they get no better; the best weights are kept.
        validation_fraction: share of the rows to hold out, if `early_stopping`, `scoring` or a callback that follows
            "val_..." asks for it.
        n_iter_no_change: epochs no better than the best after which to stop.
        scoring: what to judge the rows held out by, after each epoch: a scorer of scikit-learn, by name or as a
            function of estimator, rows and targets; several, as in `sklearn.metrics.check_scoring`, of which the first
            decides on stopping; or None for the loss.
        callbacks: `keras.callbacks.Callback`s to call: a name, a class or an instance, a list of these, or a dictionary
            by names of your own. Each fit uses copies of instances. `callbacks__name__argument` sets what a class is
            made with, where the name is that of the class or in the dictionary.
        objective: what steps minimize in the place of the loss, one of `kopt.objectives`: a name, a class or an
            instance, which is copied; None for the loss. `objective__*` sets its parameters. Without a seed of its own
            it draws by `random_state`.
        warm_start: whether `fit` goes on from the weights of the fit before.
        strategy: None for one device, "auto" for all devices of the best kind there are, "mirrored", "multi_worker" for
            several processes, or a `MirroredStrategy`, `MultiWorkerMirroredStrategy` or `OneDeviceStrategy` of
            `tf.distribute`.
        device: the one device to compute on, as "CPU" or "GPU:1"; None for TensorFlow's choice or the strategy's.
        dtype: name of the Keras dtype policy of layers that do not say otherwise: "float32", "float64",
            "mixed_bfloat16", "mixed_float16" (with the loss scaled, as in Keras), "bfloat16" or "float16". None
            computes in the rows' own: 32 bits for floats of 32 bits, else 64. Predictions have 32 or 64 bits.
        random_state: seed of weights, shuffling, dropout and the held-out rows.
        verbose: whether to show a progress bar.
        **model__or_optimizer__: parameters of the network, the optimizer, the objective and callbacks, by `model__`,
            `optimizer__`, `objective__` and `callbacks__name__`.

    Attributes:
        n_outputs_: number of targets.
        n_features_in_: columns of the rows.
        model_: the trained network, a `keras.Model`.
        n_iter_: epochs trained.
        loss_curve_: the mean loss of each epoch.
        best_loss_: the lowest of them.
        validation_scores_: the score of the rows held out after each epoch, higher for better: without `scoring` the
            negative loss. None if no rows are held out.
        best_validation_score_: the highest of them.
        history_: all that is known of each epoch, by name: "loss", "val_loss", "val_accuracy", ...
        callbacks_: the callbacks that the last fit called, if there are any. They are not pickled.

    Examples:
        >>> from sklearn.datasets import make_regression
        >>> from kopt import KerasRegressor
        >>> X, y = make_regression(200, 5, random_state=0)
        >>> KerasRegressor(optimizer__learning_rate=0.03, random_state=0).fit(X, y / 100).score(X, y / 100) > 0.95
        True
    """

    @_fit_context(prefer_skip_nested_validation=True)
    def partial_fit(self, X, y, sample_weight=None):
        """Trains for one epoch, going on from where the last call stopped, and returns the estimator.

        Args:
            X: as in `fit`.
            y: as in `fit`.
            sample_weight: as in `fit`.
        """
        return self._go_on(X, y, sample_weight)

    def predict(self, X, mc_samples=None, return_std=False):
        """Returns the target of each row, of the shape that `fit` was given.

        Args:
            X: as in `fit`.
            mc_samples: over how many draws of the network's dropout to take the mean (Monte-Carlo dropout); None for
                one prediction without dropout. `random_state` seeds the draws.
            return_std: whether to return the standard deviation over draws, too: what the network does not know of the
                mean of the targets.

        Raises:
            ValueError: the network draws no random numbers, or `return_std` is given without `mc_samples`.
        """
        return self._sampled(X, mc_samples, return_std, lambda z: z[:, 0] if self._one_column else z)

    def __sklearn_tags__(self):
        tags = super().__sklearn_tags__()
        tags.target_tags.multi_output = True
        return tags
