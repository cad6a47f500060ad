"""The tasks of a search, as scikit-learn's callbacks see them; with scikit-learn before 1.9, nothing."""

import contextlib


class Tasks:
    """The task of a whole search, with those of its fits in it.

    Args:
        search: the search that is fitted.
        X: its rows.
        y: their targets.
        params: what else `fit` got.
        refits: whether a final fit follows.
    """

    def __init__(self, search, X, y, params, refits):
        weights = params.get("sample_weight")
        self._search = search
        self._data = {"X": X, "y": y, "metadata": None if weights is None else {"sample_weight": weights}}
        self._root = self._fits = None
        if hasattr(search, "_init_callback_context"):
            self._root = self._begin(search._init_callback_context(max_subtasks=1 + refits), **self._data)

    def _begin(self, context, **data):
        return context.call_on_fit_task_begin(estimator=self._search, **data)

    @contextlib.contextmanager
    def search(self):
        """The task in which candidates are fitted, of which it is not known how many there will be."""
        if self._root is None:
            yield
            return
        self._fits = self._begin(self._root.subcontext("search", max_subtasks=None))
        yield
        self._fits.call_on_fit_task_end(estimator=self._search)

    def fit(self):
        """The context of the next fit, and whom it belongs to, as `_fit_and_score` takes them."""
        if self._fits is None:
            return {}
        return {"callback_ctx": self._fits.subcontext("candidate-split-evaluation"), "caller": self._search}

    @contextlib.contextmanager
    def refit(self, estimator):
        """The task of the final fit."""
        if self._root is None:
            yield
            return
        context = self._root.subcontext("refit-with-best-params")
        with context.propagate_callback_context(estimator):
            self._begin(context, **self._data)
            yield
            context.call_on_fit_task_end(estimator=self._search, **self._data)

    def end(self):
        """Tells that the search is done."""
        if self._root is not None:
            self._root.call_on_fit_task_end(estimator=self._search, **self._data)
