"""TunerSearchCV: scikit-learn's search, driven by an engine that is asked for candidates and told scores."""

import contextlib
import time
from collections.abc import Callable
from numbers import Integral

import numpy as np
from joblib import hash
from sklearn.base import _fit_context, clone, is_classifier
from sklearn.metrics._scorer import _MultimetricScorer
from sklearn.model_selection import check_cv
from sklearn.model_selection._search import BaseSearchCV
from sklearn.model_selection._validation import _insert_error_scores, _warn_or_raise_about_fit_failures
from sklearn.utils import check_random_state
from sklearn.utils.validation import _check_method_params, indexable

from kopt.search.callback_tasks import Tasks
from kopt.search.course import Course
from kopt.search.displays import Pictures
from kopt.search.networks import refit_epochs
from kopt.search.plan import plan_of
from kopt.search.project import Project, opened
from kopt.search.texts import plain

FREE = {
    "n_jobs",
    "population",
    "pre_dispatch",
    "verbose",
    "refit",
    "directory",
    "resume",
    "heartbeat",
    "time_limit",
    "previous",
}
"""Parameters that a search in a folder may change when it goes on."""


class TunerSearchCV(BaseSearchCV, Pictures):
    """Searches hyperparameters by cross-validation: a grid, at random, by a Gaussian process, or by halving.

    It is a scikit-learn search, like GridSearchCV, and has the same attributes after `fit`. It takes any
    estimator, pipelines and Keras networks among them, and can itself be cross-validated.

    Args:
        estimator: the estimator to tune; every candidate is a clone of it.
        param_distributions: a dict from parameter names to lists of values or to distributions with `rvs`,
            such as `scipy.stats.loguniform(1e-4, 1e-1)`. Of a list of such dicts, each candidate is drawn
            from one: parameters that only make sense together go into a dict of their own.
        method: `"bayesian"` lets a Gaussian process propose from the scores so far; `"random"` tries the
            candidates of RandomizedSearchCV; `"grid"` tries all, those of GridSearchCV, and takes lists
            only. `"hyperband"` and `"asha"` give many random candidates a small budget and the best of them
            more; `"optuna"` asks Optuna's TPE. A `keras_tuner.Oracle` or an `optuna.samplers.BaseSampler` of
            your own proposes what it proposes, in the search's space; a function of the space, the number of
            candidates and the seed makes a `kopt.search.engines.Engine` of your own. None tries a candidate
            twice: a finite space is exhausted once, then the search ends.
        n_iter: the number of candidates to try. A grid is searched whole and the brackets of Hyperband have
            their sizes, whatever `n_iter`.
        scoring: as in GridSearchCV: None, a name, a callable, or several as a list or dict.
        n_jobs: the number of fits at a time, over candidates and folds. Methods that learn propose as many
            candidates at a time as there are jobs, so more jobs mean less informed proposals. On a machine with
            GPUs, each process that trains networks has one for itself, and -1 means as many jobs as GPUs.
        population: how many candidates may train together, as one program, where they differ only in seeds and in the
            optimizer's numbers: see `kopt.fit_population`. Those that differ in more, or have `early_stopping`,
            `callbacks` or `verbose`, train alone. Scores are those of training alone, to rounding. `"auto"` is 16 on a
            GPU for methods that do not propose, else 1, which has the scores of GridSearchCV to the bit.
        refit: as in GridSearchCV. With several metrics its name also leads a search that learns. Where kopt's
            estimators stopped early, the final fit stops at the median of the folds' best epochs, and trains
            on all rows: see `refit_epochs_`.
        cv: as in GridSearchCV. Every candidate meets the same folds, also when `cv` shuffles.
        verbose: 1 shows a progress bar with the best score so far, 2 and more scikit-learn's lines.
        pre_dispatch: as in GridSearchCV.
        random_state: an int makes the candidates reproducible; independent of `n_jobs` except for methods
            that learn.
        error_score: the score of a fit that fails, or `"raise"`. The search goes on after a candidate all of
            whose fits fail, and raises if there is no other.
        return_train_score: as in GridSearchCV.
        resource: for `"hyperband"` and `"asha"` the name of the integer parameter that is the budget, such as
            `"epochs"` or `"kerasclassifier__epochs"`, `"max_iter"`, `"n_estimators"`. By default the `epochs`
            of the kopt estimator within. A kopt estimator goes on from where it was when it gets a larger
            budget, to the same weights as if trained at once; others are fitted anew.
        min_resources: the smallest budget.
        max_resources: the largest budget; by default the parameter's value in `estimator`.
        factor: by how much budgets grow, and candidates become fewer.
        directory: a folder that keeps every result as soon as it is there. The same search, run again after
            whatever end, goes on from there to the same results; several processes, on machines that share
            the folder, may run it at the same time and share the work.
        resume: whether to go on with a search that `directory` holds; if not, it is removed.
        heartbeat: the number of seconds without a sign of life after which another worker takes over what one
            on another machine began.
        time_limit: the number of seconds after which no further fit begins; what is not complete is left out.
        n_iter_no_change: the number of candidates without a better score after which the search ends; None
            for no such end.
        constraint: a function that takes an estimator with a candidate's parameters, not fitted, and says
            whether to try it: one of yours, `kopt.search.MaxLatency` or `kopt.search.MaxParameters`. A candidate
            that is refused is told to the method as a failure, and is no row of `cv_results_`.
        initial_params: candidates to try first, as dicts from all of a dict's parameter names to values; they
            count among `n_iter`.
        previous: an earlier search, fitted, from whose scores a method that learns begins. What is not in
            `param_distributions` is left out; nothing of it is tried again.

    Attributes:
        refit_epochs_: the number of epochs of the final fit of each estimator that stopped early on the folds,
            by the name of its parameter; empty where none did.

    Raises:
        TypeError: `param_distributions` has the wrong form, or a distribution does not suit the method.
        ValueError: an argument is out of its range, a parameter does not exist, all fits failed, or
            `directory` holds another search.

    Example:
        >>> from scipy.stats import loguniform
        >>> from sklearn.datasets import load_iris
        >>> from sklearn.linear_model import LogisticRegression
        >>> import kopt
        >>> search = kopt.TunerSearchCV(LogisticRegression(), {"C": loguniform(1e-3, 1e3)}, method="random")
        >>> search.fit(*load_iris(return_X_y=True)).best_params_
    """

    def __init__(
        self,
        estimator,
        param_distributions,
        *,
        method="bayesian",
        n_iter=10,
        scoring=None,
        n_jobs=None,
        population: int | str = "auto",
        refit: bool | str | Callable = True,
        cv=None,
        verbose=0,
        pre_dispatch: int | str = "2*n_jobs",
        random_state=None,
        error_score: float | str = np.nan,
        return_train_score=False,
        resource=None,
        min_resources=1,
        max_resources=None,
        factor=3,
        directory=None,
        resume=True,
        heartbeat=60.0,
        time_limit=None,
        n_iter_no_change=None,
        constraint=None,
        initial_params=(),
        previous=None,
    ):
        super().__init__(
            estimator=estimator,
            scoring=scoring,
            n_jobs=n_jobs,
            refit=refit,
            cv=cv,
            verbose=verbose,
            pre_dispatch=pre_dispatch,
            error_score=error_score,
            return_train_score=return_train_score,
        )
        self.param_distributions = param_distributions
        self.method = method
        self.population = population
        self.n_iter = n_iter
        self.random_state = random_state
        self.resource = resource
        self.min_resources = min_resources
        self.max_resources = max_resources
        self.factor = factor
        self.directory = directory
        self.resume = resume
        self.heartbeat = heartbeat
        self.time_limit = time_limit
        self.n_iter_no_change = n_iter_no_change
        self.constraint = constraint
        self.initial_params = initial_params
        self.previous = previous

    @_fit_context(prefer_skip_nested_validation=False)
    def fit(self, X, y=None, **params):
        """Searches, and fits the best candidate to all rows.

        Args:
            X: rows.
            y: targets, or None.
            **params: for the estimator's `fit`, the scorer and the splitter, as in GridSearchCV.
        """
        scorers, metric = self._get_scorers()
        X, y = indexable(X, y)
        params = _check_method_params(X, params=params)
        routed = self._get_routed_params_for_fit(params)
        plan = plan_of(self)
        folds = self._draw_folds(X, y, routed.splitter.split)
        self.n_splits_ = len(folds)
        tasks = Tasks(self, X, y, params, bool(self.refit))
        with self._project((X, y, params), folds, plan) as project, tasks.search():
            options = dict(
                scorer=scorers,
                fit_params=routed.estimator.fit,
                score_params=routed.scorer.score,
                return_train_score=self.return_train_score,
                return_n_test_samples=True,
                return_times=True,
                error_score=self.error_score,
                verbose=self.verbose if self.verbose > 1 else 0,
            )
            trials = Course(self, plan, project, X, y, options, tasks).run()
        self._conclude(trials, metric, plan.ladder)
        if self.refit:
            self._refit(X, y, routed.estimator.fit, tasks)
        self.scorer_ = scorers._scorers if isinstance(scorers, _MultimetricScorer) else scorers
        tasks.end()
        return self

    def _draw_folds(self, X, y, split_params):
        """The folds, drawn once: a splitter that shuffles gives others each time."""
        splitter = check_cv(self.cv, y, classifier=is_classifier(self.estimator))
        folds = list(splitter.split(X, y, **split_params))
        if len(folds) != (n := splitter.get_n_splits(X, y, **split_params)):
            raise ValueError(
                f"cv.split and cv.get_n_splits return inconsistent results. Expected {n} splits, got {len(folds)}"
            )
        return folds

    def _project(self, data, folds, plan):
        """What the search works with: in memory, or in a folder."""
        if self.directory is None:
            return contextlib.nullcontext(Project(folds, self.random_state))
        seed = self.random_state
        if not isinstance(seed, Integral):
            seed = int(check_random_state(seed).randint(2**31 - 1))
        return opened(
            self.directory, self._settings(data, plan), folds, seed, resume=self.resume, heartbeat=self.heartbeat
        )

    def _settings(self, data, plan):
        """Everything that decides what the search finds, as text."""
        params = {name: value for name, value in self.get_params(deep=False).items() if name not in FREE}
        estimator = params.pop("estimator")
        params |= {f"estimator__{name}": value for name, value in estimator.get_params().items()}
        params |= {"estimator": type(estimator), "previous": plan.previous}
        params["leading metric"] = self.refit if isinstance(self.refit, str) else None
        return {name: plain(value) for name, value in params.items()} | {"data": hash(data)}

    def _conclude(self, trials, metric, ladder):
        """Sets what GridSearchCV has: the table, and what is best in it."""
        fits = [fit for trial in trials for _, fit in sorted(trial.fits.items())]
        if not fits:
            raise ValueError("TunerSearchCV: time_limit and constraint must leave candidates to try, got none.")
        out = [{name: value for name, value in fit.items() if name != "best_epochs"} for fit in fits]
        _warn_or_raise_about_fit_failures(out, self.error_score)
        if callable(self.scoring):
            _insert_error_scores(out, self.error_score)
        budgets = {"n_resources": [trial.suggestion.budget for trial in trials]} if ladder else None
        params = [trial.suggestion.params for trial in trials]
        self.cv_results_ = self._format_results(params, self.n_splits_, out, budgets)
        first = out[0]["test_scores"]
        self.multimetric_ = isinstance(first, dict)
        if callable(self.scoring) and self.multimetric_:
            self._check_refit_for_multimetric(first)
            metric = self.refit
        if self.refit or not self.multimetric_:
            self.best_index_ = self._select_best_index(self.refit, metric, self.cv_results_)
            if not callable(self.refit):
                self.best_score_ = self.cv_results_[f"mean_test_{metric}"][self.best_index_]
            self.best_params_ = params[self.best_index_]
            best = trials[self.best_index_].fits.values()
            self.refit_epochs_ = refit_epochs(list(best))

    @staticmethod
    def _select_best_index(refit, refit_metric, results):
        """As scikit-learn; where there are budgets, among those candidates only that got the largest."""
        if callable(refit) or "n_resources" not in results:
            return BaseSearchCV._select_best_index(refit, refit_metric, results)
        scores, budgets = results[f"mean_test_{refit_metric}"], results["n_resources"]
        finite = np.isfinite(scores)
        largest = budgets == budgets[finite].max(initial=budgets.min())
        return int(np.argmax(np.where(finite & largest, scores, -np.inf)))

    def _refit(self, X, y, fit_params, tasks):
        best = clone(self.estimator).set_params(**clone(self.best_params_, safe=False))
        for name, epochs in self.refit_epochs_.items():
            prefix = f"{name}__" if name else ""
            best.set_params(**{f"{prefix}epochs": epochs, f"{prefix}early_stopping": False})
        self.best_estimator_ = best
        with tasks.refit(best):
            began = time.time()
            best.fit(X, **fit_params) if y is None else best.fit(X, y, **fit_params)
            self.refit_time_ = time.time() - began
        if hasattr(best, "feature_names_in_"):
            self.feature_names_in_ = best.feature_names_in_
