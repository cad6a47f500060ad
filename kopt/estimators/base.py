"""What the estimators share: parameters, validation of data, and the course of a fit."""

import dataclasses
from numbers import Integral, Real

import numpy as np
from sklearn.base import _fit_context
from sklearn.utils import check_random_state
from sklearn.utils._param_validation import HasMethods, Hidden, Interval, StrOptions
from sklearn.utils.validation import _check_sample_weight, check_is_fitted, validate_data

from kopt._checks import check_range
from kopt.estimators.callback_support import CallbackSupport
from kopt.estimators.display import Display
from kopt.estimators.files import Files
from kopt.estimators.parameters import invalid, require_tensorflow
from kopt.estimators.rows import Rows
from kopt.estimators.sources import gathered

DTYPES = {"float32", "float64", "mixed_float16", "mixed_bfloat16", "float16", "bfloat16"}
"""Names of Keras's dtype policies in which a network may train."""


class KerasEstimator(CallbackSupport, Files, Display):
    """Base of `kopt.KerasClassifier`, `kopt.KerasRegressor` and `kopt.KerasTransformer`."""

    _go_on_at = None
    """A file of `Network.keep` from which the next `fit` goes on, and to which it writes; and how many epochs are
    planned in all. Set by a search in rungs."""

    _parameter_constraints = {
        "model": [callable, None],
        "optimizer": [str, callable, HasMethods(["apply", "get_config"]), None],
        "loss": [str, callable, None],
        "objective": [str, callable, HasMethods(["total", "get_config"]), None],
        "epochs": [Interval(Integral, 1, None, closed="left")],
        "batch_size": [StrOptions({"auto"}), Interval(Integral, 1, None, closed="left")],
        "early_stopping": ["boolean"],
        "validation_fraction": [Interval(Real, 0, 1, closed="neither")],
        "n_iter_no_change": [Interval(Integral, 1, None, closed="left")],
        "scoring": [str, callable, list, tuple, dict, None],
        "callbacks": [str, callable, list, tuple, dict, HasMethods(["on_epoch_end", "set_model"]), None],
        "warm_start": ["boolean"],
        "strategy": [
            StrOptions({"auto", "mirrored", "multi_worker"}),
            Hidden(StrOptions({"tpu"})),  # to be refused with what there is
            HasMethods(["scope", "run"]),
            None,
        ],
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
        self.model = model
        self.optimizer = optimizer
        self.loss = loss
        self.epochs = epochs
        self.batch_size = batch_size
        self.early_stopping = early_stopping
        self.validation_fraction = validation_fraction
        self.n_iter_no_change = n_iter_no_change
        self.scoring = scoring
        self.callbacks = callbacks
        self.objective = objective
        self.warm_start = warm_start
        self.strategy = strategy
        self.device = device
        self.dtype = dtype
        self.random_state = random_state
        self.verbose = verbose
        self._take(model__or_optimizer__)

    # ---- fitting -------------------------------------------------------------------------------------------------

    @_fit_context(prefer_skip_nested_validation=True)
    def fit(self, X, y=None, sample_weight=None):
        """Trains a network on rows `X` and targets `y`, and returns the estimator.

        Args:
            X: array, frame or sparse matrix of shape (rows, features), or with a `model` of your own an array of shape
                (rows, ...). Floats of 32 bits are computed with as such, all others in 64 bits. Of a file mapped to
                memory (`numpy.memmap`) only a few megabytes are in memory at a time. Or a `tf.data.Dataset`, a
                `keras.utils.PyDataset` or a generator of batches (rows, y) or (rows, y, weights), which is read into
                memory to its end.
            y: targets, a row each; None where `X` brings them.
            sample_weight: a weight for each row, not negative; a row of weight 0 counts as absent.

        Raises:
            sklearn.utils._param_validation.InvalidParameterError: a parameter is out of its range, or `model__*`,
                `optimizer__*` or `callbacks__*` names none.
            ValueError: data and network do not fit together.
        """
        begin = not (self.warm_start and self.__sklearn_is_fitted__())
        return self._fit(X, y, sample_weight, begin=begin, epochs=self.epochs, fresh=True)

    def _go_on(self, X, y, sample_weight, **targets):
        """What `partial_fit` does."""
        for name, value, plain in (
            ("early_stopping", bool(self.early_stopping), False),
            ("scoring", self.scoring, None),
        ):
            if value is not plain:
                raise ValueError(f"{type(self).__name__}: partial_fit needs {name}={plain}, got {value!r}.")
        begin = not self.__sklearn_is_fitted__()
        return self._fit(X, y, sample_weight, begin=begin, epochs=1, fresh=begin, holds_out=False, **targets)

    def _fit(self, X, y, sample_weight, *, begin, epochs, fresh, holds_out=True, **targets):
        """Trains; `begin` learns what the data look like, `fresh` makes a new network and optimizer.

        Rows may be held out where `holds_out` says so.
        """
        require_tensorflow(type(self).__name__)
        from kopt.estimators.followers import followers_of

        X, y, sample_weight = gathered(X, y, sample_weight, type(self).__name__)
        table = X
        X, y = self._validated(X, y, begin)
        if begin:
            self.__dict__.pop("_network", None)  # a fit that fails must not leave an older network with newer facts
        owner, w = type(self).__name__, self._weights(sample_weight, X)
        table = table if hasattr(self, "feature_names_in_") else X
        rows = Rows(X, y, w, table, None if sample_weight is None else w).present(owner)
        codes = self._learn_targets(rows.X if y is None else rows.y, begin, **targets)
        rows = dataclasses.replace(rows, codes=codes, w=self._class_weighted(rows.w, rows.y)).present(owner)
        random = check_random_state(self.random_state)
        network = self._new_network(X.dtype.name, random) if fresh else self._network
        if not fresh:
            network.check_objective(self._objective_to_build())
            network.set_optimizer(*self._optimizer_to_build())
        if fresh and not begin:
            network.start_from(self._network.own_weights)
            network.history = {name: list(values) for name, values in self._network.history.items()}
        rows, followers, judge = followers_of(self, rows, epochs, random if holds_out else None)
        file, planned = self._go_on_at or (None, epochs)
        if file is not None:
            epochs -= network.go_on(file)
        network.train(
            rows.X, self._encoded(rows.codes), rows.w,
            epochs=epochs,
            batch_size=None if self.batch_size == "auto" else min(self.batch_size, len(rows.w)),
            followers=followers,
            planned=planned,
        )  # fmt: skip
        if file is not None:
            network.keep(file)
            del self._go_on_at
        self._network = network
        self.history_, self.loss_curve_ = network.history, network.history["loss"]
        self.n_iter_, self.best_loss_ = len(self.loss_curve_), min(self.loss_curve_, default=None)
        scores = judge and [judge.sign * value for value in self.history_[f"val_{judge.name}"]]
        self.validation_scores_, self.best_validation_score_ = scores, max(scores or [], default=None)
        return self

    def _new_network(self, dtype, random):
        from kopt.distribute.workers import agree
        from kopt.training.network import Blueprint, Network

        facts = {name: getattr(self, name) for name in self._facts if hasattr(self, name)}
        build = self._model_to_build(**facts)
        owner = type(self).__name__
        objective = self._objective_to_build()
        blueprint = Blueprint(build, self.input_shape_, dtype, self.strategy, owner, self.device, self.dtype, objective)
        with invalid():  # the devices that there are
            agree(random, blueprint.placed)
        optimizer = self._optimizer_to_build()
        seeds = random.randint(2**31 - 1, size=2)
        draft, units, initial = blueprint.draft(int(seeds[0]))
        loss, target = self._fit_loss(draft, units, dtype)
        return Network(blueprint, draft, initial, optimizer, loss, target, int(seeds[1]))

    def _validated(self, X, y, begin):
        dtype = self._row_dtypes() if begin else self._network.blueprint.dtype
        given = y is not None or self.__sklearn_tags__().target_tags.required
        targets = {"y": y, "multi_output": True, **self._checks_of_y} if given else {}
        X, y = self._checked(X, begin, dtype=dtype, **targets)
        if begin and self.model is None and X.ndim > 2:
            raise ValueError(
                f"{type(self).__name__}: X must have shape (rows, features) for the default network, got shape "
                f"{X.shape}. Pass as model a function that builds a network for its argument input_shape_."
            )
        return X, y

    def _checked(self, X, begin, **checks):
        """The rows and, if there are any, the targets; `begin` learns the shape of a row."""
        found = validate_data(self, X, reset=begin, accept_sparse="csr", allow_nd=True, **checks)
        X, y = found if isinstance(found, tuple) else (found, None)
        if begin:
            self.input_shape_ = tuple(X.shape[1:])
        if X.shape[1:] != self.input_shape_:
            who = type(self).__name__
            raise ValueError(f"{who}: rows of X must have shape {self.input_shape_} as in fit, got {X.shape[1:]}.")
        return X, y

    def _rows(self, X):
        """Rows for the fitted network."""
        check_is_fitted(self)
        X = gathered(X, owner=type(self).__name__)[0]
        return self._checked(X, begin=False, dtype=self._network.blueprint.dtype)[0]

    def _row_dtypes(self):
        """What rows may be: float64 or float32 as they come, unless `dtype` says it."""
        if self.dtype is None:
            return [np.float64, np.float32]
        return np.float64 if self.dtype == "float64" else np.float32

    def _class_weighted(self, w, y):
        return w

    def _weights(self, sample_weight, X):
        w = _check_sample_weight(sample_weight, X, dtype=X.dtype)
        if (w < 0).any():
            raise ValueError(f"{type(self).__name__}: sample_weight must not be negative, got {w.min()}.")
        return w

    # ---- the fitted network --------------------------------------------------------------------------------------

    def _outputs(self, X):
        rows = self._rows(X)
        return self._network(rows)

    def _sampled(self, X, mc_samples, return_std, meaning):
        """What outputs mean, on average over draws of the network's noise; and its standard deviation, if asked for."""
        if mc_samples is None:
            if return_std:
                raise ValueError(f"{type(self).__name__}: return_std needs mc_samples, the number of draws.")
            return meaning(self._outputs(X))
        check_range(self, "[1, inf)", kind=Integral, mc_samples=mc_samples)
        seed = check_random_state(self.random_state).randint(2**31 - 1)
        drawn = [meaning(z) for z in self._network.draws(self._rows(X), mc_samples, seed)]
        several = isinstance(drawn[0], list)
        each = [np.stack(parts) for parts in (zip(*drawn, strict=True) if several else [drawn])]
        means, spreads = [d.mean(axis=0) for d in each], [d.std(axis=0) for d in each]
        found = (means, spreads) if several else (means[0], spreads[0])
        return found if return_std else found[0]

    @property
    def model_(self):
        """The trained network, a `keras.Model` with weights of its own."""
        check_is_fitted(self)
        return self._network.model()

    def __getstate__(self):
        state = super().__getstate__()
        return {name: value for name, value in state.items() if name != "callbacks_"}  # some hold open files

    def __sklearn_is_fitted__(self):
        return hasattr(self, "_network")

    def __sklearn_tags__(self):
        tags = super().__sklearn_tags__()
        tags.input_tags.sparse = True
        return tags
