"""What both estimators share: parameters, validation of data, and the course of a fit."""

from numbers import Integral, Real

import numpy as np
from sklearn.base import _fit_context
from sklearn.model_selection import train_test_split
from sklearn.utils import _safe_indexing, check_random_state
from sklearn.utils._param_validation import HasMethods, Interval, StrOptions
from sklearn.utils.validation import _check_sample_weight, check_is_fitted, validate_data

from kopt.estimators.display import Display
from kopt.estimators.files import Files
from kopt.estimators.parameters import invalid, require_tensorflow

DTYPES = {"float32", "float64", "mixed_float16", "mixed_bfloat16", "float16", "bfloat16"}
"""Names of Keras's dtype policies in which a network may train."""


class KerasEstimator(Files, Display):
    """Base of `kopt.KerasClassifier` and `kopt.KerasRegressor`."""

    _parameter_constraints = {
        "model": [callable, None],
        "optimizer": [str, callable, HasMethods(["apply", "get_config"]), None],
        "loss": [str, callable, None],
        "epochs": [Interval(Integral, 1, None, closed="left")],
        "batch_size": [StrOptions({"auto"}), Interval(Integral, 1, None, closed="left")],
        "early_stopping": ["boolean"],
        "validation_fraction": [Interval(Real, 0, 1, closed="neither")],
        "n_iter_no_change": [Interval(Integral, 1, None, closed="left")],
        "warm_start": ["boolean"],
        "strategy": [StrOptions({"auto", "mirrored"}), HasMethods(["scope", "run"]), None],
        "device": [str, None],
        "dtype": [StrOptions(DTYPES), None],
        "random_state": ["random_state"],
        "verbose": ["verbose"],
    }

    def __init__(
        self,
        model=None,
        *,
        optimizer=None,
        loss=None,
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
        self.model = model
        self.optimizer = optimizer
        self.loss = loss
        self.epochs = epochs
        self.batch_size = batch_size
        self.early_stopping = early_stopping
        self.validation_fraction = validation_fraction
        self.n_iter_no_change = n_iter_no_change
        self.warm_start = warm_start
        self.strategy = strategy
        self.device = device
        self.dtype = dtype
        self.random_state = random_state
        self.verbose = verbose
        self._take(model__or_optimizer__)

    # ---- fitting -------------------------------------------------------------------------------------------------

    @_fit_context(prefer_skip_nested_validation=True)
    def fit(self, X, y, sample_weight=None):
        """Trains a network on rows `X` and targets `y`, and returns the estimator.

        Args:
            X: array, frame or sparse matrix of shape (rows, features). Floats of 32 bits are computed with as
                such, all others in 64 bits.
            y: targets, a row each.
            sample_weight: a weight for each row, not negative; a row of weight 0 counts as absent.

        Raises:
            sklearn.utils._param_validation.InvalidParameterError: a parameter is out of its range, or `model__*` or
                `optimizer__*` names none.
            ValueError: data and network do not fit together.
        """
        begin = not (self.warm_start and self.__sklearn_is_fitted__())
        return self._fit(X, y, sample_weight, begin=begin, epochs=self.epochs, fresh=True)

    def _go_on(self, X, y, sample_weight, **targets):
        """What `partial_fit` does."""
        if self.early_stopping:
            raise ValueError(f"{type(self).__name__}: partial_fit needs early_stopping=False, got True.")
        begin = not self.__sklearn_is_fitted__()
        return self._fit(X, y, sample_weight, begin=begin, epochs=1, fresh=begin, **targets)

    def _fit(self, X, y, sample_weight, *, begin, epochs, fresh, **targets):
        """Trains; `begin` learns what the data look like, `fresh` makes a new network and optimizer."""
        require_tensorflow(type(self).__name__)
        X, y = self._validated(X, y, begin)
        if begin:
            self.__dict__.pop("_network", None)  # a fit that fails must not leave an older network with newer facts
        w = self._weights(sample_weight, X)
        X, y, w = self._present(w, X, y, w)
        codes = self._learn_targets(y, begin, **targets)
        w = self._class_weighted(w, y)
        X, codes, w = self._present(w, X, codes, w)
        random = check_random_state(self.random_state)
        network = self._new_network(X.dtype.name, random) if fresh else self._network
        if not fresh:
            network.set_optimizer(*self._optimizer_to_build())
        if fresh and not begin:
            network.start_from(self._network.weights)
            network.history = {name: list(values) for name, values in self._network.history.items()}
        validation = None
        if self.early_stopping:
            X, X_val, codes, codes_val, w, w_val = train_test_split(
                X, codes, w,
                test_size=self.validation_fraction,
                random_state=random.randint(2**31 - 1),
                stratify=self._strata(codes),
            )  # fmt: skip
            validation = X_val, self._encoded(codes_val), w_val
        network.train(
            X, self._encoded(codes), w,
            epochs=epochs,
            batch_size=None if self.batch_size == "auto" else min(self.batch_size, len(w)),
            validation=validation,
            patience=self.n_iter_no_change,
            verbose=bool(self.verbose),
        )  # fmt: skip
        self._network = network
        self.history_ = network.history
        self.loss_curve_ = network.history["loss"]
        self.n_iter_ = len(self.loss_curve_)
        return self

    def _new_network(self, dtype, random):
        from kopt.training.network import Blueprint, Network

        optimizer = self._optimizer_to_build()
        facts = {name: getattr(self, name) for name in self._facts}
        build = self._model_to_build(**facts)
        owner = type(self).__name__
        blueprint = Blueprint(build, self.n_features_in_, dtype, self.strategy, owner, self.device, self.dtype)
        with invalid():  # the devices that there are
            _ = blueprint.placed
        seeds = random.randint(2**31 - 1, size=2)
        draft, units, initial = blueprint.draft(int(seeds[0]))
        loss, target = self._fit_loss(draft, units, dtype)
        return Network(blueprint, draft, initial, optimizer, loss, target, int(seeds[1]))

    def _validated(self, X, y, begin):
        dtype = self._network.blueprint.dtype if not begin else self._row_dtypes()
        return validate_data(
            self, X, y, reset=begin, accept_sparse="csr", dtype=dtype, multi_output=True, **self._checks_of_y
        )

    def _row_dtypes(self):
        """What rows may be: float64 or float32 as they come, unless `dtype` says it."""
        if self.dtype is None:
            return [np.float64, np.float32]
        return np.float64 if self.dtype == "float64" else np.float32

    def _present(self, w, *arrays):
        """The arrays' rows whose weight is not zero."""
        if not w.any():
            raise ValueError(f"{type(self).__name__}: sample_weight must not be zero for every row.")
        return arrays if w.all() else [_safe_indexing(a, np.flatnonzero(w)) for a in arrays]

    def _class_weighted(self, w, y):
        return w

    def _weights(self, sample_weight, X):
        w = _check_sample_weight(sample_weight, X, dtype=X.dtype)
        if (w < 0).any():
            raise ValueError(f"{type(self).__name__}: sample_weight must not be negative, got {w.min()}.")
        return w

    # ---- the fitted network --------------------------------------------------------------------------------------

    def _outputs(self, X):
        check_is_fitted(self)
        X = validate_data(self, X, reset=False, accept_sparse="csr", dtype=self._network.blueprint.dtype)
        return self._network(X)

    @property
    def model_(self):
        """The trained network, a `keras.Model` with weights of its own."""
        check_is_fitted(self)
        return self._network.model()

    def __sklearn_is_fitted__(self):
        return hasattr(self, "_network")

    def __sklearn_tags__(self):
        tags = super().__sklearn_tags__()
        tags.input_tags.sparse = True
        return tags
