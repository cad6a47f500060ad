"""What a candidate may cost: constraints of a search, judged by a network of the candidate's that is hardly trained."""

import statistics
import time
from numbers import Integral

from sklearn.utils.validation import _num_samples

from kopt._checks import check_range
from kopt.search.networks import networks_in


class _Limit:
    """A limit of what a candidate costs once it is fitted, here to a few rows, for one epoch.

    Its network shares its program with those of the search, so that what is compiled here is not compiled again.
    """

    def __init__(self, limit, X, y):
        self.limit, self.X, self.y = limit, X, y

    def __call__(self, estimator):
        """Says whether a candidate, not fitted, keeps to the limit."""
        for network in networks_in(estimator).values():
            network.set_params(epochs=1, early_stopping=False)
        try:
            fitted = estimator.fit(self.X, self.y)
        except Exception:  # the search meets it too, and does with it what error_score says
            return True
        return self._cost(fitted) <= self.limit

    def _cost(self, fitted):
        raise NotImplementedError

    def __repr__(self):
        return f"{type(self).__name__}({self.limit!r}, {_num_samples(self.X)} rows)"


class MaxLatency(_Limit):
    """A constraint of `kopt.TunerSearchCV`: to predict some rows takes no longer than so many seconds.

    A candidate, whatever estimator it is, is fitted to the rows, networks for one epoch, and then predicts them; the
    median time counts. The machine should be the one that has to keep to the limit, or like it.

        from kopt.search import MaxLatency

        kopt.TunerSearchCV(network, space, constraint=MaxLatency(0.002, X[:32], y[:32]))

    Args:
        seconds: the limit.
        X: rows to predict at a time, as many as there will be: latency depends on it. Every class should be among them.
        y: their targets.
        repeats: how many predictions to time, after one that is not.

    Raises:
        ValueError: `seconds` or `repeats` is out of range.
    """

    def __init__(self, seconds, X, y, *, repeats=20):
        super().__init__(check_range(self, "(0, inf)", seconds=seconds), X, y)
        self.repeats = check_range(self, "[1, inf)", kind=Integral, repeats=repeats)

    def _cost(self, fitted):
        return statistics.median(self._times(fitted))

    def _times(self, fitted):
        fitted.predict(self.X)
        for _ in range(self.repeats):
            began = time.perf_counter()
            fitted.predict(self.X)
            yield time.perf_counter() - began


class MaxParameters(_Limit):
    """A constraint of `kopt.TunerSearchCV`: a candidate's networks have no more than so many weights in all.

    They are built for the rows, and counted whole: what is not trained too.

        from kopt.search import MaxParameters

        kopt.TunerSearchCV(network, space, constraint=MaxParameters(50_000, X[:32], y[:32]))

    Args:
        number: the limit.
        X: a few rows. Every class should be among them.
        y: their targets.

    Raises:
        ValueError: `number` is out of range; or, in the search, an estimator holds no network that its `fit` trains.
    """

    def __init__(self, number, X, y):
        super().__init__(check_range(self, "[1, inf)", kind=Integral, number=number), X, y)

    def _cost(self, fitted):
        networks = [network for network in networks_in(fitted).values() if network.__sklearn_is_fitted__()]
        if not networks:
            raise ValueError(
                f"MaxParameters: the estimator must hold a network of kopt's that it fits itself, got {fitted!r}. "
                "Count in a function of your own."
            )
        return sum(network.model_.count_params() for network in networks)
