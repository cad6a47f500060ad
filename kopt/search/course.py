"""The course of a search: ask, fit on every fold, tell, until there is no more to ask."""

import collections
import contextlib
import itertools
import math
import os
import pathlib
import tempfile
import time

import numpy as np
from sklearn.base import clone
from sklearn.utils.parallel import Parallel, delayed

from kopt.search.engines import make_engine
from kopt.search.evaluation import Rungs, Task, evaluate_all
from kopt.search.networks import members, number_of_jobs
from kopt.search.study import Study

PAUSE = 0.2
"""Seconds between two looks at what other workers have done."""


class Course:
    """Runs a search.

    Args:
        search: the `TunerSearchCV`.
        plan: its `kopt.search.plan.Plan`.
        project: its `Project`.
        X: rows.
        y: targets.
        options: of scikit-learn's `_fit_and_score`.
        tasks: the `Tasks`.
    """

    def __init__(self, search, plan, project, X, y, options, tasks):
        self.search, self.project, self.tasks = search, project, tasks
        self.X, self.y, self.options = X, y, options
        engine = make_engine(
            search.method,
            plan.space,
            search.n_iter,
            project.seed,
            ladder=plan.ladder,
            initial=plan.initial,
            previous=plan.previous,
        )
        self.study = Study(engine, project.journal, project.worker)
        self.engine, self.ladder = engine, plan.ladder
        self.leader = search.refit if isinstance(search.refit, str) else None
        if engine.learns and isinstance(search.scoring, list | tuple | dict) and self.leader is None:
            self._refuse_to_lead()
        self._began, self._gone, self._rungs = time.monotonic(), frozenset(), None

    def run(self):
        """Returns the trials that have a score and fits, in the order in which they were asked."""
        jobs, alone = number_of_jobs(self.search.n_jobs, self.search.estimator), self.project.journal is None
        proposes = self.engine.learns and self.ladder is None
        self._members = members(self.search.population, self.search.estimator, proposes)
        size = max(self.engine.total, 1) if alone and not self.engine.learns else jobs * self._members
        with contextlib.ExitStack() as stack:
            if self.ladder:
                self._rungs = Rungs(self.ladder.resource, stack.enter_context(self._networks()), self.ladder.high)
            self._show = stack.enter_context(_progress(self.search.verbose == 1, self.study, self.engine))
            options = dict(n_jobs=jobs, pre_dispatch=self.search.pre_dispatch, return_as="generator")
            parallel = stack.enter_context(Parallel(**options))
            while not self._is_enough():
                if batch := self.study.ask(size):
                    self._work(batch, parallel)
                elif self.study.is_over:
                    self._discard({trial.suggestion.candidate for trial in self.study.trials.values()})
                    break
                else:
                    time.sleep(PAUSE)
        return [trial for trial in self.study.trials.values() if trial.score is not None and trial.fits]

    @contextlib.contextmanager
    def _networks(self):
        """Where networks are kept from rung to rung."""
        if self.project.journal is None:
            with tempfile.TemporaryDirectory(prefix="kopt-") as directory:
                yield pathlib.Path(directory)
        else:
            directory = self.project.journal.directory / "networks"
            directory.mkdir(exist_ok=True)
            yield directory

    @property
    def _is_late(self):
        limit = self.search.time_limit
        return limit is not None and time.monotonic() - self._began > limit

    def _is_enough(self):
        """Whether the time is over, or nothing has become better for long."""
        patience, best, waited = self.search.n_iter_no_change, -math.inf, 0
        for score in self.study.scores if patience else ():
            better = math.isfinite(score) and score > best
            best, waited = (score, 0) if better else (best, waited + 1)
        return self._is_late or (patience is not None and waited >= patience)

    def _work(self, batch, parallel):
        """Fits trials on the folds that are not done, and tells their scores."""
        refused = {trial.suggestion.id for trial in batch if not (trial.fits or self._is_allowed(trial))}
        allowed = [trial for trial in batch if trial.suggestion.id not in refused]
        folds = self.project.folds
        populations = [allowed[i : i + self._members] for i in range(0, len(allowed), self._members)]
        todo = [
            (trials, fold)
            for population in populations
            for fold in range(len(folds))
            if (trials := [trial for trial in population if fold not in trial.fits])
        ]
        if self.search.verbose > 1:
            fits = sum(len(trials) for trials, _ in todo)
            print(f"Fitting {len(folds)} folds for each of {len(allowed)} candidates, totalling {fits} fits")
        # All tasks of a batch are made before the first is sent: scikit-learn's callbacks do not bear it otherwise.
        jobs = [
            delayed(evaluate_all)(
                [self._task(trial) for trial in trials],
                fold,
                self.X,
                self.y,
                folds[fold],
                parent=os.getpid(),
                rungs=self._rungs,
                journal=self.project.journal,
            )
            for trials, fold in todo
        ]
        in_time = itertools.takewhile(lambda job: not self._is_late, jobs)
        waiting = collections.deque(batch)
        self._tell(waiting, refused)
        for (trials, fold), results in zip(todo, parallel(in_time)):  # as long as there are results
            for trial, result in zip(trials, results, strict=True):
                trial.fits[fold] = result
            self._tell(waiting, refused)

    def _task(self, trial):
        return Task(trial.suggestion, clone(self.search.estimator), {**self.options, **self.tasks.fit()})

    def _is_allowed(self, trial):
        if self.search.constraint is None:
            return True
        params = clone(trial.suggestion.params, safe=False)
        return bool(self.search.constraint(clone(self.search.estimator).set_params(**params)))

    def _tell(self, waiting, refused):
        """Tells the scores that are due, in the order in which they were asked."""
        while waiting:
            trial = waiting[0]
            if trial.suggestion.id in refused:
                self.study.tell(trial, math.nan)
            elif len(trial.fits) == len(self.project.folds):
                self.study.tell(trial, self._score(trial))
            else:
                break
            waiting.popleft()
            self._show()
            self._discard(self.engine.retired)

    def _discard(self, candidates):
        """Removes the networks of candidates that need them no longer."""
        if self._rungs:
            for candidate in candidates - self._gone:
                self._rungs.discard(candidate, len(self.project.folds))
            self._gone |= candidates

    def _score(self, trial):
        """The mean of the leading metric over folds; NaN where there are several, none leads, and none has to."""
        scores = [trial.fits[fold]["test_scores"] for fold in range(len(self.project.folds))]
        several = next((score for score in scores if isinstance(score, dict)), None)
        if several is not None:
            if self.leader not in several:
                if self.engine.learns:
                    self._refuse_to_lead()
                return math.nan
            scores = [score[self.leader] if isinstance(score, dict) else score for score in scores]
        return float(np.mean(scores))

    def _refuse_to_lead(self):
        raise ValueError(
            f"TunerSearchCV: refit must name the metric that leads the search where method={self.search.method!r} and "
            f"there are several, got {self.search.refit!r}."
        )


@contextlib.contextmanager
def _progress(visible, study, engine):
    """Yields a function that shows the scores so far."""
    if not visible:
        yield lambda: None
        return
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()
    with Progress(*columns, speed_estimate_period=math.inf) as bar:  # a candidate may take longer than 30 s
        task = bar.add_task("candidates", total=engine.total)

        def show():
            best = max(filter(math.isfinite, study.scores), default=math.nan)
            text = f"candidates, best score {best:.4g}"
            bar.update(task, completed=len(study.scores), total=engine.total, description=text)

        yield show
