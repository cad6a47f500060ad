"""A layer of a Keras network as a scikit-learn transformer."""

from numbers import Integral

from sklearn.base import ClassNamePrefixFeaturesOutMixin, TransformerMixin, _fit_context
from sklearn.utils._param_validation import Interval, StrOptions
from sklearn.utils.multiclass import type_of_target

from kopt.estimators.base import KerasEstimator
from kopt.estimators.targets import ClassTargets, ValueTargets


class KerasTransformer(ClassNamePrefixFeaturesOutMixin, TransformerMixin, ClassTargets, ValueTargets, KerasEstimator):
    """Turns rows into what a layer of a Keras network makes of them.

    The network is trained on targets, as `kopt.KerasClassifier` or `kopt.KerasRegressor` trains it; without targets, to
    give each row back (an autoencoder, of which a narrow layer is the code).

    Args:
        model: as in `kopt.KerasClassifier` and `kopt.KerasRegressor`. Without targets its last layer has as many units
            as a row has numbers. It is functional or sequential, so that its layers can be seen.
        layer: the name of a layer of the model, or its number, counted from the end where negative. None means what
            the last layer with weights is given. The layers of the default network are "hidden_1", "hidden_2", ...
        task: "classification", "regression", or "auto": the latter where targets are numbers that are not whole.
        optimizer: as in `kopt.KerasClassifier`.
        loss: as in `kopt.KerasClassifier` or `kopt.KerasRegressor`.
        epochs: how often to go over the rows, at most; 0 takes a trained `keras.Model` as it is.
        batch_size: as in `kopt.KerasClassifier`, and so are all that follow.
        early_stopping: whether to hold out some rows, and stop when they get no better.
        validation_fraction: share of the rows to hold out.
        n_iter_no_change: epochs without a better value after which to stop.
        scoring: a function of the transformer, rows and targets that scores the rows held out after each epoch.
        callbacks: Keras's callbacks.
        objective: as in `kopt.KerasClassifier`.
        warm_start: whether `fit` goes on from the weights of the fit before.
        strategy: of the devices to use.
        device: the one device to use.
        dtype: name of the Keras dtype policy of layers that do not say otherwise.
        random_state: seed of weights, shuffling, dropout and the held-out rows.
        verbose: whether to show a progress bar.
        **model__or_optimizer__: parameters of the network, the optimizer and the objective, by these prefixes, and of
            callbacks, by `callbacks__name__`.

    Attributes:
        task_: "classification", "regression", or "reconstruction" without targets.
        n_features_in_: columns of the rows.
        model_: the trained network, a `keras.Model`.
        loss_curve_: the mean loss of each epoch. Other attributes of the epochs are as in `kopt.KerasClassifier`.

    Examples:
        >>> from sklearn.datasets import load_iris
        >>> from kopt import KerasTransformer
        >>> X, y = load_iris(return_X_y=True)
        >>> KerasTransformer(model__hidden_layer_sizes=(32, 3), epochs=5).fit_transform(X, y).shape
        (150, 3)
    """

    _parameter_constraints = KerasEstimator._parameter_constraints | {
        "layer": [str, Integral, None],
        "task": [StrOptions({"auto", "classification", "regression"})],
        "epochs": [Interval(Integral, 0, None, closed="left")],
    }

    def __init__(
        self,
        model=None,
        *,
        layer=None,
        task="auto",
        optimizer=None,
        loss=None,
        epochs=100,
        batch_size: int | str = "auto",
        early_stopping=False,
        validation_fraction=0.1,
        n_iter_no_change=10,
        scoring=None,
        callbacks=None,
        objective=None,
        warm_start=False,
        strategy=None,
        device=None,
        dtype=None,
        random_state=None,
        verbose=0,
        **model__or_optimizer__,
    ):
        super().__init__(
            model,
            optimizer=optimizer,
            loss=loss,
            epochs=epochs,
            batch_size=batch_size,
            early_stopping=early_stopping,
            validation_fraction=validation_fraction,
            n_iter_no_change=n_iter_no_change,
            scoring=scoring,
            callbacks=callbacks,
            objective=objective,
            warm_start=warm_start,
            strategy=strategy,
            device=device,
            dtype=dtype,
            random_state=random_state,
            verbose=verbose,
            **model__or_optimizer__,
        )
        self.layer = layer
        self.task = task

    @_fit_context(prefer_skip_nested_validation=True)
    def fit(self, X, y=None, sample_weight=None):
        """Trains a network on rows `X` and targets `y`, or on rows alone, and returns the transformer.

        Args:
            X: as in `kopt.KerasClassifier.fit`.
            y: targets, a row each, or None.
            sample_weight: a weight for each row, not negative; a row of weight 0 counts as absent.
        """
        begin = not (self.warm_start and self.__sklearn_is_fitted__())
        return self._fit(X, y, sample_weight, begin=begin, epochs=self.epochs, fresh=True)

    @_fit_context(prefer_skip_nested_validation=True)
    def partial_fit(self, X, y=None, classes=None, sample_weight=None):
        """Trains for one epoch, going on from where the last call stopped, and returns the transformer.

        Args:
            X: as in `fit`.
            y: as in `fit`.
            classes: all labels that will ever come, for the first call, if there are labels.
            sample_weight: as in `fit`.
        """
        return self._go_on(X, y, sample_weight, **({} if classes is None else {"classes": classes}))

    def transform(self, X):
        """Returns the outputs of the layer, of shape (rows, features); with more axes than these they are flattened."""
        rows = self._rows(X)
        return self._network.hidden(rows, self._place)

    # ---- targets -------------------------------------------------------------------------------------------------

    @property
    def _checks_of_y(self):
        return ValueTargets._checks_of_y if self.task == "regression" else {}

    @property
    def _targets(self):
        return ClassTargets if self.task_ == "classification" else ValueTargets

    def _validated(self, X, y, begin):
        X, y = super()._validated(X, y, begin)
        if begin:
            self.task_ = self._task_of(y)
        if (y is None) != (self.task_ == "reconstruction"):
            raise ValueError(f"{type(self).__name__}: y must be as before, for {self.task_}, got {y!r}.")
        return X, y

    def _task_of(self, y):
        if y is None:
            return "reconstruction"
        if self.task != "auto":
            return self.task
        return "regression" if type_of_target(y).startswith("continuous") else "classification"

    def _learn_targets(self, y, begin, **classes):
        for fact in ("classes_", "n_classes_", "target_type_") if begin else ():  # of an earlier task
            self.__dict__.pop(fact, None)
        if self.task_ != "reconstruction":
            return self._targets._learn_targets(self, y, begin, **classes)
        if begin:
            self.n_outputs_ = y[:1].size if y.ndim > 2 else y.shape[1]
        return y

    def _strata(self, codes):
        return self._targets._strata(self, codes)

    def _fit_loss(self, model, units, dtype):
        from kopt.training import several

        loss, target = self._targets._fit_loss(self, model, units, dtype)
        self._place = several.place(model, self.layer, type(self).__name__)
        self._n_features_out = several.within(model, self._place).output_shape[1]
        return loss, target

    def _encoded(self, codes):
        if self.task_ == "reconstruction" and codes.ndim == 2:
            return codes  # the rows themselves, sparse or in a file
        return self._targets._encoded(self, codes)

    def __sklearn_tags__(self):
        tags = super().__sklearn_tags__()
        tags.transformer_tags.preserves_dtype = ["float64", "float32"]
        return tags
