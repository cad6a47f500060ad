"""What targets are, how a network has them, and what its outputs are asked to be: classes, and values."""

from typing import Any

import numpy as np
from sklearn.utils import column_or_1d
from sklearn.utils.multiclass import check_classification_targets, type_of_target


class ClassTargets:
    """The part of an estimator that learns classes. `target_type_` says of which kind.

    - "binary", "multiclass": a label a row. `classes_` are the labels.
    - "multilabel-indicator": several at once, as columns of 0 and 1. `classes_` are the columns' numbers.
    - "multiclass-multioutput": several targets with a label each, as columns. `classes_` and `n_classes_` are lists.
    """

    loss: Any
    classes_: Any
    n_classes_: Any

    _checks_of_y = {}
    _facts = ("n_features_in_", "n_outputs_", "input_shape_", "n_classes_", "target_type_")

    @property
    def _multilabel(self):
        return self.target_type_.startswith("multilabel")

    @property
    def _multioutput(self):
        return self.target_type_ == "multiclass-multioutput"

    def _learn_targets(self, y, begin, classes=None):
        """Returns the numbers of labels, or indicators; learns the classes where a fit begins."""
        check_classification_targets(y)
        kind = type_of_target(y)
        if kind in ("binary", "multiclass"):
            y, kind = column_or_1d(y, warn=True), "multiclass"
        y = y.toarray() if hasattr(y, "toarray") else np.asarray(y)
        if begin:
            self._learn_classes(kind, y, classes)
        columns = [y] if y.ndim == 1 else list(y.T)
        classes = self.classes_ if self._multioutput else [self.classes_]
        known = len(self.classes_) if self._multilabel else len(classes)
        single = self.target_type_ in ("binary", "multiclass")
        fits = (kind == "multiclass") if single else kind.startswith("multilabel") or self._multioutput
        if not fits or len(columns) != known:
            raise ValueError(
                f"{type(self).__name__}: y must be {self.target_type_} as before, in {known} columns, "
                f"got {kind} in {len(columns)}."
            )
        if self._multilabel:
            return y
        codes = [self._codes(column, own) for column, own in zip(columns, classes, strict=True)]
        return np.stack(codes, axis=1) if self._multioutput else codes[0]

    def _learn_classes(self, kind, y, classes):
        if kind == "multiclass":
            self.classes_ = np.unique(y if classes is None else classes)
            self.n_classes_ = len(self.classes_)
            self.target_type_ = "binary" if self.n_classes_ <= 2 else kind
            self.n_outputs_ = 1 if self.n_classes_ == 2 else self.n_classes_
        elif kind.startswith("multilabel") and (classes is None or np.ndim(classes[0]) == 0):
            self.target_type_, self.classes_ = kind, np.arange(y.shape[1])
            self.n_outputs_ = self.n_classes_ = y.shape[1]
        else:
            self.target_type_ = "multiclass-multioutput"
            self.classes_ = [np.unique(column) for column in (y.T if classes is None else classes)]
            self.n_classes_ = [len(own) for own in self.classes_]
            self.n_outputs_ = sum(self.n_classes_)

    def _codes(self, y, classes):
        if new := set(np.unique(y)) - set(classes):
            who = type(self).__name__
            raise ValueError(f"{who}: y must hold known classes, got {sorted(new)}. Pass classes at first.")
        return np.searchsorted(classes, y)

    def _strata(self, codes):
        return codes if codes.ndim == 1 else None

    def _fit_loss(self, model, units, dtype):
        """Reads from the model what its outputs mean; returns the loss, and the shape and dtype of a target."""
        from kopt.training import losses

        who, heads = type(self).__name__, tuple(self.n_classes_) if self._multioutput else (self.n_classes_,)
        if units not in {heads, (self.n_outputs_,)}:
            each = f", or several outputs of {heads} units" if self._multioutput else ""
            raise ValueError(
                f"{who}: model must end in n_outputs_ = {self.n_outputs_} units{each}, "
                f"got {' and '.join(map(str, units))} units."
            )
        self._softmax = self._multioutput or (not self._multilabel and units == heads)
        self._logits = losses.takes_logits(model, self.loss)
        default = "sparse_categorical_crossentropy" if self._softmax else "binary_crossentropy"
        loss = losses.resolve(self.loss or default, self._logits, who)
        numbers = self._softmax and losses.is_sparse(loss)
        shape = (len(heads),) if self._multioutput else ()
        self._target = (shape, "int32") if numbers else ((sum(units),), dtype)
        return (losses.Heads(loss, heads) if self._multioutput else loss), self._target

    def _encoded(self, codes):
        shape, dtype = self._target
        if self._softmax and dtype != "int32":
            each = [(codes, self.n_classes_)] if not self._multioutput else zip(codes.T, self.n_classes_, strict=True)
            codes = np.concatenate([np.eye(classes)[column] for column, classes in each], axis=1)
        return codes.reshape(-1, *shape).astype(dtype)


class ValueTargets:
    """The part of an estimator that learns numbers, in one column or several."""

    loss: Any

    _checks_of_y = {"y_numeric": True}
    _facts = ("n_features_in_", "n_outputs_", "input_shape_")

    def _learn_targets(self, y, begin):
        y = column_or_1d(y, warn=True) if y.ndim == 2 and y.shape[1] == 1 else y
        n_outputs = y.size // len(y)
        if begin:
            self._one_column, self.n_outputs_ = y.ndim == 1, n_outputs
        if n_outputs != self.n_outputs_:
            who = type(self).__name__
            raise ValueError(f"{who}: y must have {self.n_outputs_} targets as before, got {n_outputs}.")
        return y

    def _strata(self, y):
        return None

    def _fit_loss(self, model, units, dtype):
        """Returns the loss, and the shape and dtype of a target."""
        from kopt.training import losses

        if sum(units) != self.n_outputs_:
            who = type(self).__name__
            raise ValueError(f"{who}: model must end in n_outputs_ = {self.n_outputs_} units, got {sum(units)} units.")
        self._target = (self.n_outputs_,), dtype
        return losses.resolve(self.loss or "mean_squared_error", True, type(self).__name__), self._target

    def _encoded(self, y):
        shape, dtype = self._target
        return y.reshape(-1, *shape).astype(dtype)
