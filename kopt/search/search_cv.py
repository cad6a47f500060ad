"""TunerSearchCV: scikit-learn's search, driven by an engine that is asked for candidates and told scores."""

import contextlib
import math
import warnings
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from numbers import Integral

import numpy as np
from joblib import effective_n_jobs
from sklearn.base import clone, is_classifier
from sklearn.exceptions import FitFailedWarning
from sklearn.model_selection import check_cv
from sklearn.model_selection._search import BaseSearchCV

from kopt._checks import check_choice, check_range
from kopt.search.engines import METHODS, make_engine
from kopt.search.space import Space


class TunerSearchCV(BaseSearchCV):
    """Searches hyperparameters by cross-validation: a grid, at random, or by KerasTuner's Gaussian process.

    It is a scikit-learn search, like GridSearchCV, and has the same attributes after `fit`. It takes any
    estimator, pipelines and Keras networks among them, and can itself be cross-validated.

    Args:
        estimator: the estimator to tune; every candidate is a clone of it.
        param_distributions: a dict from parameter names to lists of values or to distributions with `rvs`,
            such as `scipy.stats.loguniform(1e-4, 1e-1)`. Of a list of such dicts, each candidate is drawn
            from one: parameters that only make sense together go into a dict of their own.
        method: `"bayesian"` lets a Gaussian process propose from the scores so far; `"random"` tries the
            candidates of RandomizedSearchCV; `"grid"` tries all, those of GridSearchCV, and takes lists
            only. None tries a candidate twice: a finite space is exhausted once, then the search ends.
        n_iter: the number of candidates to try. A grid is searched whole, whatever `n_iter`.
        scoring: as in GridSearchCV: None, a name, a callable, or several as a list or dict.
        n_jobs: the number of fits at a time, over candidates and folds. With `"bayesian"`, as many
            candidates are proposed at a time as there are jobs, so more jobs mean less informed proposals.
        refit: as in GridSearchCV. With several metrics its name also leads a `"bayesian"` search.
        cv: as in GridSearchCV. Every candidate meets the same folds, also when `cv` shuffles.
        verbose: 1 shows a progress bar with the best score so far, 2 and more scikit-learn's lines.
        pre_dispatch: as in GridSearchCV.
        random_state: an int makes the candidates reproducible; independent of `n_jobs` except for
            `"bayesian"`.
        error_score: the score of a fit that fails, or `"raise"`. The search goes on after a candidate all of
            whose fits fail, and raises if there is no other.
        return_train_score: as in GridSearchCV.

    Raises:
        TypeError: `param_distributions` has the wrong form, or a distribution does not suit the method.
        ValueError: an argument is out of its range, a parameter does not exist, or all fits failed.

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
        refit: bool | str | Callable = True,
        cv=None,
        verbose=0,
        pre_dispatch: int | str = "2*n_jobs",
        random_state=None,
        error_score: float | str = np.nan,
        return_train_score=False,
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
        self.n_iter = n_iter
        self.random_state = random_state

    def _run_search(self, evaluate_candidates):
        """Asks, evaluates and tells until the engine has no more to ask."""
        space = self._check()
        engine = make_engine(self.method, space, self.param_distributions, self.n_iter, self.random_state)
        with_bar, jobs = self.verbose == 1, effective_n_jobs(self.n_jobs)
        size = jobs if engine.learns else 4 * jobs if with_bar else engine.total
        # Folds given one by one are the same for all batches as it is.
        folds = None if isinstance(self.cv, Iterable) else _SameFolds(self.cv, is_classifier(self.estimator))
        self._ledger = ledger = _Ledger()
        verbose, self.verbose = self.verbose, 0 if with_bar else self.verbose  # 1 is a line for every batch
        try:
            with _progress(with_bar, engine.total) as show:
                while batch := engine.ask(size):
                    params = [suggestion.params for suggestion in batch]
                    try:
                        ledger.results = evaluate_candidates(params, cv=folds)
                    except ValueError as error:
                        if not str(error).startswith("\nAll the "):
                            raise
                        self._keep_failures(params, error)
                    ledger.length += len(batch)
                    scores = self._scores(engine.learns)
                    for suggestion, score in zip(batch, scores[-len(batch) :], strict=True):
                        engine.tell(suggestion.id, score)
                    show(scores)
        finally:
            self.verbose = verbose
            del self._ledger
        ledger.conclude()

    def _check(self):
        """Refuses wrong arguments before any fit, and returns the space."""
        check_choice(self, METHODS, method=self.method)
        check_range(self, "[1, inf)", kind=Integral, n_iter=self.n_iter)
        if self.method == "bayesian" and isinstance(self.scoring, list | tuple | dict):
            self._require_leading_metric(isinstance(self.refit, str))
        space = Space(self.param_distributions, self.method)
        for scope in space.scopes:
            candidate = clone(self.estimator)
            for name in sorted(scope, key=lambda name: name.count("__")):  # a step before its parameters
                try:
                    candidate.set_params(**{name: clone(scope[name].example, safe=False)})
                except (AttributeError, TypeError, ValueError) as error:
                    raise ValueError(
                        f"TunerSearchCV: param_distributions must name parameters of "
                        f"{type(self.estimator).__name__}, got {name!r}. Its get_params() lists them."
                    ) from error
        return space

    def _require_leading_metric(self, there_is_one):
        if not there_is_one:
            raise ValueError(
                "TunerSearchCV: refit must name the metric that leads the search where method='bayesian' and "
                f"there are several, got {self.refit!r}."
            )

    def _scores(self, needed):
        """The score of every candidate so far; NaN where several metrics have no leader and none is needed."""
        ledger = self._ledger
        if not ledger.results:
            return np.full(ledger.length, self.error_score)
        columns = [f"mean_test_{self.refit}", "mean_test_score"]
        column = next((column for column in columns if column in ledger.results), None)
        if needed:
            self._require_leading_metric(column)
        return ledger.results[column] if column else np.full(ledger.length, np.nan)

    def _keep_failures(self, params, error):
        """Notes a batch in which every fit failed; scikit-learn raises there and keeps no trace of it."""
        ledger = self._ledger
        ledger.error = error
        ledger.failed.update(enumerate(params, start=ledger.length))
        if ledger.results:  # scikit-learn holds the same dict, and returns it in the end
            ledger.results.update(self._format_results(*ledger.table))

    def _format_results(self, candidate_params, n_splits, out, more_results=None):
        """As scikit-learn, with the failed batches in their places, and its warnings kept for the end."""
        ledger = self._ledger
        ledger.table = candidate_params, n_splits, out, more_results
        params, fits = list(candidate_params), list(out)
        for row, candidate in ledger.failed.items():
            params.insert(row, candidate)
            fits[row * n_splits : row * n_splits] = [_failed(out[0], self.error_score)] * n_splits
        with warnings.catch_warnings(record=True) as ledger.remarks:
            warnings.simplefilter("always")
            return super()._format_results(params, n_splits, fits, more_results)


@dataclass
class _Ledger:
    """What a search notes while it runs.

    Attributes:
        length: the number of candidates evaluated.
        results: the table of results as scikit-learn last returned it, empty before the first success.
        failed: the candidates of batches in which every fit failed, by row of the table.
        error: what scikit-learn said of the last such batch.
        table: the arguments of the last `_format_results`.
        remarks: the warnings about the last table.
    """

    length: int = 0
    results: dict = field(default_factory=dict)
    failed: dict = field(default_factory=dict)
    error: ValueError | None = None
    table: tuple = ()
    remarks: list = field(default_factory=list)

    def conclude(self):
        """Says once, at the end, what was wrong; raises if nothing was right."""
        if self.error and not self.results:
            raise self.error
        if self.failed:
            warnings.warn(
                f"TunerSearchCV: every fit failed for {len(self.failed)} of {self.length} candidates. "
                f"The last of them:{self.error}",
                FitFailedWarning,
                stacklevel=4,
            )
        for remark in self.remarks:
            warnings.warn(remark.message, stacklevel=4)


class _SameFolds:
    """The folds of a splitter, drawn once: otherwise one that shuffles gives every batch folds of its own."""

    def __init__(self, cv, classifier):
        self._cv, self._classifier, self._folds = cv, classifier, None

    def split(self, X, y=None, **params):
        if self._folds is None:
            splitter = check_cv(self._cv, y, classifier=self._classifier)
            self._folds = list(splitter.split(X, y, **params))
        return self._folds


def _failed(fit, error_score):
    """What this fit would have reported, had it failed; its times are unknown."""
    scores = {key: fit[key] for key in ("test_scores", "train_scores") if key in fit}
    for key, score in scores.items():
        scores[key] = dict.fromkeys(score, error_score) if isinstance(score, dict) else error_score
    return {**fit, **scores, "fit_time": math.nan, "score_time": math.nan}


@contextlib.contextmanager
def _progress(visible, total):
    """Yields a function that shows the scores so far."""
    if not visible:
        yield lambda scores: None
        return
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()
    with Progress(*columns, speed_estimate_period=math.inf) as bar:  # a candidate may take longer than 30 s
        task = bar.add_task("candidates", total=total)

        def show(scores):
            best = max(filter(math.isfinite, scores), default=math.nan)
            bar.update(task, completed=len(scores), description=f"candidates, best score {best:.4g}")

        yield show
