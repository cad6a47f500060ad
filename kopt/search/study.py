"""What a search has asked, fitted and told, in that order; in memory, or in a journal that others share."""

import contextlib
from dataclasses import dataclass, field

from kopt.search.engines import Suggestion
from kopt.search.texts import plain


@dataclass
class Trial:
    """A suggestion on its way to a score.

    Attributes:
        suggestion: what to fit.
        worker: who does it.
        fits: what scikit-learn reports of each fold that is done, by the fold's number.
        score: what the engine was told; None before.
    """

    suggestion: Suggestion
    worker: str
    fits: dict = field(default_factory=dict)
    score: float | None = None


class Study:
    """The trials of a search.

    With a journal, everything that happens is written there before it counts, and what is there already happens first:
    a search that was interrupted goes on, and workers that share a journal see the same engine in the same state.

    Args:
        engine: the `Engine`, fresh.
        journal: a `Journal` that has its beginning, or None.
        worker: a `Worker`, where there is a journal.

    Attributes:
        trials: the trials by id, in the order in which they were asked.
    """

    def __init__(self, engine, journal=None, worker=None):
        self.engine, self.journal, self.worker = engine, journal, worker
        self.trials = {}
        self._me = worker.name if worker else ""

    @property
    def scores(self):
        """The scores that were told, in the order in which they were asked."""
        return [trial.score for trial in self.trials.values() if trial.score is not None]

    @property
    def is_over(self):
        """Whether every trial that was asked has its score."""
        return all(trial.score is not None for trial in self.trials.values())

    def ask(self, n):
        """Returns at most `n` trials to work on: what gone workers left, then new ones."""
        with self._turn():
            batch = [trial for trial in self.trials.values() if self._is_left(trial)][:n]
            for trial in batch:
                self._do({"take": trial.suggestion.id, "worker": self._me})
            if len(batch) < n and (suggestions := self.engine.ask(n - len(batch))):
                asked = [(suggestion.id, _text(suggestion.params)) for suggestion in suggestions]
                self._write({"ask": n - len(batch), "worker": self._me, "asked": asked})
                batch += [self._begin(suggestion, self._me) for suggestion in suggestions]
        return batch

    def tell(self, trial, score):
        """Tells the engine a trial's score, unless somebody else did."""
        with self._turn():
            if trial.score is None:
                self._do({"tell": trial.suggestion.id, "score": score})

    def _is_left(self, trial):
        if self.worker is None or trial.score is not None or trial.worker == self._me:
            return False
        return self.worker.is_gone(trial.worker)

    @contextlib.contextmanager
    def _turn(self):
        if self.journal is None:
            yield
            return
        with self.journal.locked():
            for record in self.journal.news():
                self._apply(record)
            yield
            self.journal.news()  # own records

    def _do(self, record):
        self._write(record)
        self._apply(record)

    def _write(self, record):
        if self.journal is not None:
            self.journal.append(record)

    def _begin(self, suggestion, worker):
        return self.trials.setdefault(suggestion.id, Trial(suggestion, worker))

    def _apply(self, record):
        """Makes happen what a record says."""
        match record:
            case {"ask": n, "worker": worker, "asked": asked}:
                suggestions = self.engine.ask(n)
                found = [[suggestion.id, _text(suggestion.params)] for suggestion in suggestions]
                if found != asked:
                    raise ValueError(
                        f"TunerSearchCV: directory must hold a search that proposes the same candidates again, got "
                        f"{asked} where this one proposes {found}. Do its libraries have the same versions? "
                        "resume=False begins anew."
                    )
                for suggestion in suggestions:
                    self._begin(suggestion, worker)
            case {"take": id, "worker": worker}:
                self.trials[id].worker = worker
            case {"fit": id, "fold": fold, "result": result}:
                self.trials[id].fits[fold] = result
            case {"tell": id, "score": score}:
                self.trials[id].score = score
                self.engine.tell(id, score)


def _text(params):
    """Candidates as text, in which numbers agree if they do to six digits: the last ones depend on the machine."""
    return {name: f"{value:.6g}" if isinstance(value, float) else plain(value) for name, value in params.items()}
