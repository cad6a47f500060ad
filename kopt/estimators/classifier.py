"""A Keras network as a scikit-learn classifier."""

from typing import Any

import numpy as np
from scipy.special import expit, log_expit, log_softmax, softmax
from sklearn.base import ClassifierMixin, _fit_context
from sklearn.utils._param_validation import StrOptions
from sklearn.utils.class_weight import compute_sample_weight

from kopt.estimators.base import KerasEstimator
from kopt.estimators.targets import ClassTargets


class KerasClassifier(ClassifierMixin, ClassTargets, KerasEstimator):
    """A classifier made of a Keras network, for two classes, many, several labels at once, or several targets.

    Networks of one structure share one compiled program: of a grid search over learning rates only the first fit
    compiles. Weights are the estimator's own. Two fits with the same `random_state` are equal bit for bit.

    Args:
        model: None for a multilayer perceptron (parameters `model__hidden_layer_sizes`, `model__activation`,
            `model__dropout`, `model__drop_path`); a function that returns a `keras.Model`, and gets those of
            `n_features_in_`, `input_shape_`, `n_outputs_`, `n_classes_` and `target_type_` that its signature names,
            besides `model__*`; or a `keras.Model`, of which each fit trains a copy that starts from the model's present
            weights. The last layer has `n_outputs_` units (one for two classes), or one for each class; without
            softmax or sigmoid its outputs are taken for logits. For several targets it has units for all of their
            classes, side by side; or the model has an output for each target.
        optimizer: name, class or instance of an optimizer of kopt or Keras; None means `kopt.Adam()`. An instance
            is copied, never changed. `optimizer__*` sets its parameters.
        loss: name of a loss in `keras.losses`, a `keras.losses.Loss`, or a function of targets and outputs that
            returns a value for each row. None means cross-entropy. With one unit for each class, losses other than
            the sparse cross-entropy see indicators of the classes.
        class_weight: weights by class, or "balanced" for weights inverse to the classes' frequencies. For several
            targets a list of such weights, which are multiplied.
        epochs: how often to go over the rows, at most.
        batch_size: rows in a step; "auto" is a fiftieth of all, but 32 to 256.
        early_stopping: whether to hold out some rows, and stop when they get no better; the best weights are kept.
        validation_fraction: share of the rows to hold out, if `early_stopping`, `scoring` or a callback that follows
            "val_..." asks for it, with the classes in the same shares.
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
        classes_: the labels; for several labels at once, their numbers; for several targets, a list of the labels of
            each.
        n_classes_: how many there are; for several targets, a list.
        n_outputs_: units that the last layer of `model` is asked for.
        target_type_: "binary", "multiclass", "multilabel-indicator" or "multiclass-multioutput".
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
        "class_weight": [dict, list, StrOptions({"balanced"}), None]
    }

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

    def predict_proba(self, X, mc_samples=None, return_std=False):
        """Returns the probability of each class, of shape (rows, classes); of each label for several at once.

        For several targets it is a list, with an array for each.

        Args:
            X: as in `fit`.
            mc_samples: over how many draws of the network's dropout to take the mean (Monte-Carlo dropout); None for
                one prediction without dropout. `random_state` seeds the draws.
            return_std: whether to return the standard deviation over draws, too: what the network does not know.

        Raises:
            ValueError: the network draws no random numbers, or `return_std` is given without `mc_samples`.
        """
        return self._sampled(X, mc_samples, return_std, lambda z: self._each(z, self._probabilities))

    def predict_log_proba(self, X):
        """Returns the logarithms of `predict_proba`, exact where these are too small for a number."""
        return self._each(self._outputs(X), self._log_probabilities)

    def decision_function(self, X):
        """Returns a score for each class, of shape (rows, classes): its logit. For two classes, one of shape (rows,).

        It is above zero for the second class. For several targets it is a list, with an array for each.
        """
        return self._each(self._outputs(X), self._scores)

    def predict(self, X):
        """Returns the label of each row; indicators for several labels at once, columns for several targets."""
        scores: Any = self.decision_function(X)
        if self._multilabel:
            return (scores > 0).astype(int)
        if not self._multioutput:
            return self._label(scores, self.classes_)
        return np.stack([self._label(own, classes) for own, classes in zip(scores, self.classes_, strict=True)], axis=1)

    def score(self, X, y, sample_weight=None):
        """Returns the share of rows whose labels, or all of them where there are several, are predicted.

        Args:
            X: as in `fit`.
            y: true labels.
            sample_weight: a weight for each row.
        """
        if not self._multioutput:
            return super().score(X, y, sample_weight)
        return float(np.average((np.asarray(y) == self.predict(X)).all(axis=1), weights=sample_weight))

    # ---- what outputs mean ---------------------------------------------------------------------------------------

    def _each(self, z, meaning):
        if not self._multioutput:
            return meaning(z)
        return [meaning(head) for head in np.split(z, np.cumsum(self.n_classes_)[:-1], axis=1)]

    def _probabilities(self, z):
        if self._softmax:
            p = softmax(z, axis=1) if self._logits else np.clip(z, 0, 1)
            return p / p.sum(axis=1, keepdims=True)
        p = expit(z) if self._logits else np.clip(z, 0, 1)
        return p if self._multilabel else np.hstack([1 - p, p])

    def _log_probabilities(self, z):
        if not self._logits:
            with np.errstate(divide="ignore"):
                return np.log(self._probabilities(z))
        if self._softmax:
            return log_softmax(z, axis=1)
        return log_expit(z) if self._multilabel else log_expit(np.hstack([-z, z]))

    def _scores(self, z):
        if not self._logits:
            tiny = np.finfo(z.dtype).tiny
            z = np.log(np.maximum(z, tiny)) - (0 if self._softmax else np.log(np.maximum(1 - z, tiny)))
        if self._multilabel or z.shape[1] > 2:
            return z
        return z[:, 1] - z[:, 0] if z.shape[1] == 2 else z[:, 0]

    def _label(self, scores, classes):
        if scores.ndim == 2:
            return classes[scores.argmax(axis=1)]
        return classes[(scores > 0).astype(int) if len(classes) > 1 else np.zeros(len(scores), int)]

    def _class_weighted(self, w, y):
        if self.class_weight is None:
            return w
        return (w * compute_sample_weight(self.class_weight, y)).astype(w.dtype)

    def __sklearn_tags__(self):
        tags = super().__sklearn_tags__()
        tags.classifier_tags.multi_label = True
        tags.target_tags.multi_output = True
        return tags
