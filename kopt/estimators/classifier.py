"""A Keras network as a scikit-learn classifier."""

import numpy as np
from sklearn.base import ClassifierMixin, _fit_context
from sklearn.utils import column_or_1d
from sklearn.utils._param_validation import StrOptions
from sklearn.utils.class_weight import compute_sample_weight
from sklearn.utils.extmath import softmax
from sklearn.utils.multiclass import check_classification_targets, type_of_target

from kopt.estimators.base import KerasEstimator


class KerasClassifier(ClassifierMixin, KerasEstimator):
    """A classifier made of a Keras network, for two classes, many, or several labels at once.

    Networks of one structure share one compiled program: of a grid search over learning rates only the first fit
    compiles. Weights are the estimator's own. Two fits with the same `random_state` are equal bit for bit.

    Args:
        model: None for a multilayer perceptron (parameters `model__hidden_layer_sizes`, `model__activation`,
            `model__dropout`, `model__drop_path`); a function that returns a `keras.Model`, and gets those of
            `n_features_in_`, `n_outputs_`, `n_classes_` and `target_type_` that its signature names, besides
            `model__*`; or a `keras.Model`, of which each fit trains a copy that starts from the model's present
            weights. The last layer has `n_outputs_` units (one for two classes), or one for each class; without
            softmax or sigmoid its outputs are taken for logits.
        optimizer: name, class or instance of an optimizer of kopt or Keras; None means `kopt.Adam()`. An instance
            is copied, never changed. `optimizer__*` sets its parameters.
        loss: name of a loss in `keras.losses`, a `keras.losses.Loss`, or a function of targets and outputs that
            returns a value for each row. None means cross-entropy. With one unit for each class, losses other than
            the sparse cross-entropy see indicators of the classes.
        class_weight: weights by class, or "balanced" for weights inverse to the classes' frequencies.
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
        classes_: the labels; for several labels at once, their numbers.
        n_classes_: how many there are.
        n_outputs_: units that the last layer of `model` is asked for.
        target_type_: "binary", "multiclass" or "multilabel-indicator".
        n_features_in_: columns of the rows.
        model_: the trained network, a `keras.Model`.
        loss_curve_: the mean loss of each epoch.
        history_: the same by name, with "val_loss" when stopping early.
        n_iter_: epochs trained.

    Examples:
        >>> from sklearn.datasets import load_iris
        >>> from sklearn.pipeline import make_pipeline
        >>> from sklearn.preprocessing import StandardScaler
        >>> from kopt import KerasClassifier
        >>> X, y = load_iris(return_X_y=True)
        >>> net = KerasClassifier(optimizer="AdamW", optimizer__learning_rate=0.01, random_state=0)
        >>> make_pipeline(StandardScaler(), net).fit(X, y).score(X, y) > 0.95
        True
    """

    _parameter_constraints = KerasEstimator._parameter_constraints | {
        "class_weight": [dict, StrOptions({"balanced"}), None]
    }
    _checks_of_y = {}
    _facts = ("n_features_in_", "n_outputs_", "n_classes_", "target_type_")

    def __init__(
        self,
        model=None,
        *,
        optimizer=None,
        loss=None,
        class_weight=None,
        epochs=100,
        batch_size: int | str = "auto",
        early_stopping=False,
        validation_fraction=0.1,
        n_iter_no_change=10,
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
            warm_start=warm_start,
            strategy=strategy,
            device=device,
            dtype=dtype,
            random_state=random_state,
            verbose=verbose,
            **model__or_optimizer__,
        )
        self.class_weight = class_weight

    @_fit_context(prefer_skip_nested_validation=True)
    def partial_fit(self, X, y, classes=None, sample_weight=None):
        """Trains for one epoch, going on from where the last call stopped, and returns the estimator.

        Args:
            X: as in `fit`.
            y: as in `fit`.
            classes: all labels that will ever come, for the first call.
            sample_weight: as in `fit`.
        """
        return self._go_on(X, y, sample_weight, classes=classes)

    def predict_proba(self, X):
        """Returns the probability of each class, of shape (rows, classes); of each label for several at once."""
        z = self._outputs(X)
        if self._softmax:
            p = softmax(z) if self._logits else np.clip(z, 0, 1)
            return p / p.sum(axis=1, keepdims=True)
        p = (1 + np.tanh(z / 2)) / 2 if self._logits else np.clip(z, 0, 1)
        return p if self._multilabel else np.hstack([1 - p, p])

    def decision_function(self, X):
        """Returns a score for each class, of shape (rows, classes): its logit. For two classes, one of shape (rows,).

        It is above zero for the second class.
        """
        z = self._outputs(X)
        if not self._logits:
            tiny = np.finfo(z.dtype).tiny
            z = np.log(np.maximum(z, tiny)) - (0 if self._softmax else np.log(np.maximum(1 - z, tiny)))
        if self._multilabel or z.shape[1] > 2:
            return z
        return z[:, 1] - z[:, 0] if z.shape[1] == 2 else z[:, 0]

    def predict(self, X):
        """Returns the label of each row; indicators for several labels at once."""
        score = self.decision_function(X)
        if self._multilabel:
            return (score > 0).astype(int)
        if self._softmax and len(self.classes_) != 2:
            return self.classes_[score.reshape(len(score), -1).argmax(axis=1)]
        return self.classes_[(score > 0).astype(int)]

    # ---- targets and loss ----------------------------------------------------------------------------------------

    @property
    def _multilabel(self):
        return self.target_type_.startswith("multilabel")

    def _class_weighted(self, w, y):
        if self.class_weight is None:
            return w
        return (w * compute_sample_weight(self.class_weight, y)).astype(w.dtype)

    def _learn_targets(self, y, begin, classes=None):
        check_classification_targets(y)
        kind = type_of_target(y)
        if kind == "multiclass-multioutput":
            raise ValueError("KerasClassifier: y must hold one label a row, or 0s and 1s for several, got several.")
        multilabel = kind.startswith("multilabel")
        dense = y.toarray() if hasattr(y, "toarray") else np.asarray(y)
        y = dense if multilabel else column_or_1d(y, warn=True)
        if begin:
            self.classes_ = np.arange(y.shape[1]) if multilabel else np.unique(y if classes is None else classes)
            self.n_classes_ = len(self.classes_)
            two = not multilabel and self.n_classes_ == 2
            self.target_type_ = kind if multilabel else "binary" if self.n_classes_ <= 2 else "multiclass"
            self.n_outputs_ = 1 if two else self.n_classes_
        if multilabel != self._multilabel or (multilabel and y.shape[1] != self.n_classes_):
            raise ValueError(f"KerasClassifier: y must be {self.target_type_} as before, got {kind}.")
        if multilabel:
            return y
        if new := set(np.unique(y)) - set(self.classes_):
            raise ValueError(f"KerasClassifier: y must hold known classes, got {sorted(new)}. Pass classes at first.")
        return np.searchsorted(self.classes_, y)

    def _strata(self, codes):
        return None if self._multilabel else codes

    def _fit_loss(self, model, units, dtype):
        """Reads from the model what its outputs mean; returns the loss, and the shape and dtype of a target."""
        from kopt.training import losses

        if units not in {self.n_outputs_, self.n_classes_}:
            raise ValueError(
                f"KerasClassifier: model must end in n_outputs_ = {self.n_outputs_} units, got {units} units."
            )
        self._softmax = not self._multilabel and units == self.n_classes_
        self._logits = losses.takes_logits(model, self.loss)
        default = "sparse_categorical_crossentropy" if self._softmax else "binary_crossentropy"
        loss = losses.resolve(self.loss or default, self._logits, type(self).__name__)
        self._target = ((), "int32") if self._softmax and losses.is_sparse(loss) else ((units,), dtype)
        return loss, self._target

    def _encoded(self, codes):
        shape, dtype = self._target
        if self._softmax and shape:
            codes = np.eye(self.n_classes_)[codes]
        return codes.reshape(-1, *shape).astype(dtype)

    def __sklearn_tags__(self):
        tags = super().__sklearn_tags__()
        tags.classifier_tags.multi_label = True
        return tags
