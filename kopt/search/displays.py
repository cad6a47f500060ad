"""Pictures of a search, as scikit-learn's displays: `from_search` computes, `plot` draws."""

from abc import ABC, abstractmethod
from typing import Any

import numpy as np

from kopt._checks import check_choice, pyplot
from kopt.search.candidates import Candidates

FEWEST = 5
"""Candidates with a score from which on there is something to learn from them."""


class _Display(ABC):
    """What the displays share.

    Attributes:
        ax_, figure_: what `plot` drew on.
    """

    ax_: Any
    figure_: Any
    figsize = (7.0, 4.0)
    """Inches of a figure of its own."""

    @abstractmethod
    def __init__(self, candidates, **options):
        """Computes what to draw of the `Candidates`."""

    @abstractmethod
    def plot(self, ax=None):
        """Draws on matplotlib axes, or on a new figure, and returns this object."""

    @classmethod
    def from_search(cls, search, *, metric=None, ax=None, **options):
        """Computes the picture of a fitted search, and draws it.

        Args:
            search: a fitted `TunerSearchCV`, `GridSearchCV` or another with `cv_results_`.
            metric: which of several metrics; by default the one in `refit`.
            ax: matplotlib axes; None makes a figure.
            **options: see the class.

        Raises:
            ValueError: the search is not fitted, has no such metric, or has too few candidates with a score.
            ModuleNotFoundError: matplotlib is not installed.
        """
        return cls(Candidates(search, metric, cls.__name__), **options).plot(ax)

    def _axes(self, ax):
        """Axes to draw on, of which this object keeps track."""
        if ax is None:
            ax = pyplot(self).subplots(figsize=self.figsize, layout="constrained")[1]
        self.ax_, self.figure_ = ax, ax.figure
        return ax


class SearchProgressDisplay(_Display):
    """The score of each candidate in the order in which they were tried, and the best one so far.

    Attributes:
        scores, deviations: of each candidate over the folds; NaN where it failed.
        best: the best score so far.
    """

    def __init__(self, candidates):
        self.metric, self.scores, self.deviations = candidates.metric, candidates.scores, candidates.deviations
        self.best = np.fmax.accumulate(np.where(candidates.finite, self.scores, np.nan))

    def plot(self, ax=None):
        """Draws."""
        ax = self._axes(ax)
        numbers, failed = np.arange(1, len(self.scores) + 1), ~np.isfinite(self.scores)
        ax.errorbar(
            numbers, self.scores, self.deviations, fmt=".", color="0.55", ecolor="0.85", label="mean and std over folds"
        )
        ax.step(numbers, self.best, where="post", color="C0", label="best so far")
        if failed.any():
            bottom = ax.get_ylim()[0]
            ax.plot(numbers[failed], np.full(failed.sum(), bottom), "x", color="C3", clip_on=False, label="failed")
        ax.set(xlabel="candidate", ylabel=self.metric)
        ax.locator_params("x", integer=True)
        ax.legend(loc="lower right")
        return self


class ParallelCoordinatesDisplay(_Display):
    """Each candidate as a line through its parameters' values, in the colour of its score; the best one is on top.

    A line has a gap where a candidate lacks a parameter. Failed candidates are left out.

    Attributes:
        columns: the `kopt.search.candidates.Column` of each parameter.
        lines: heights in [0, 1], of shape (candidates with a score, parameters).
        scores: the scores of those.
    """

    def __init__(self, candidates):
        self.metric, self.columns = candidates.metric, candidates.columns
        if not self.columns or not candidates.finite.any():
            raise ValueError(f"{type(self).__name__}: search must have tried several values with a score, got none.")
        self.scores = candidates.scores[candidates.finite]
        spans = [column.span for column in self.columns]
        heights = [(column.codes - low) / (high - low) for column, (low, high) in zip(self.columns, spans)]
        self.lines = np.stack(heights, axis=1)[candidates.finite]
        self.figsize = (max(6.0, 1.4 * len(self.columns) + 1.5), 4.5)

    def plot(self, ax=None):
        """Draws."""
        from matplotlib import cm, colors

        n = len(self.columns)
        ax = self._axes(ax)
        worst = np.quantile(self.scores, 0.1)  # a disaster would leave all others in one colour
        norm = colors.Normalize(worst, self.scores.max()) if worst < self.scores.max() else colors.Normalize()
        cmap = cm.ScalarMappable(norm, "viridis")
        order = np.argsort(self.scores, kind="stable")
        for i in order:
            last = i == order[-1]
            look: Any = {"linewidth": 3, "zorder": 3} if last else {"linewidth": 1, "alpha": 0.6}
            color = "C3" if last else cmap.to_rgba(self.scores[i])
            ax.plot(range(n), self.lines[i], color=color, marker=".", label="best" if last else None, **look)
        for i, column in enumerate(self.columns):
            ax.axvline(i, color="0.3", linewidth=0.8, zorder=0)
            low, high = column.span
            for code, text in zip(*column.ticks()):
                box = {"facecolor": "white", "alpha": 0.75, "edgecolor": "none", "pad": 0.6}
                height = (code - low) / (high - low)
                ax.text(i + 0.04, height, text, fontsize=7, va="center", bbox=box, zorder=4)
        ax.set_xticks(range(n), [column.label for column in self.columns], rotation=20, ha="right")
        ax.set_yticks([])
        ax.set_xlim(-0.1, n - 0.5)
        for side in ("left", "right", "top", "bottom"):
            ax.spines[side].set_visible(False)
        ax.figure.colorbar(cmap, ax=ax, label=self.metric, extend="min", pad=0.02)
        ax.legend(loc="lower right", bbox_to_anchor=(1.0, 1.0), fontsize=8)
        return self


class SurrogateDisplay(_Display):
    """How the score depends on one or two parameters, whatever the others: by a random forest fitted to the candidates.

    At each value the forest's predictions are averaged over the other parameters of all candidates (partial
    dependence, Friedman 2001); the band is the standard deviation over its trees. It describes the candidates that were
    tried: where there are few, it knows little.

    Args:
        candidates: the candidates.
        parameters: one name or a pair; by default the most important parameter.

    Attributes:
        columns: the parameters' `kopt.search.candidates.Column`.
        grids: their codes, an array for each.
        mean, deviation: of the score, of shape (values,) or (values of the second, values of the first).
    """

    def __init__(self, candidates, parameters=None):
        owner = type(self).__name__
        forest, matrix = _forest(candidates, owner)
        if parameters is None:
            parameters = ImportanceDisplay(candidates).names[0]
        wanted = [parameters] if isinstance(parameters, str) else list(parameters)
        names = [column.name for column in candidates.columns]
        if len(wanted) not in (1, 2) or not set(wanted) <= set(names):
            raise ValueError(f"{owner}: parameters must be one or two of {', '.join(names)}, got {parameters!r}.")
        self.metric, places = candidates.metric, [names.index(name) for name in wanted]
        self.columns = [candidates.columns[i] for i in places]
        self.grids = [_grid(column) for column in self.columns]
        points = np.stack([each.ravel() for each in np.meshgrid(*self.grids)], axis=1)
        rows = np.repeat(matrix[None], len(points), axis=0)
        rows[:, :, places] = points[:, None, :]
        flat = rows.reshape(-1, matrix.shape[1]).astype(np.float32)  # as the trees ask for
        trees = np.stack([tree.predict(flat).reshape(rows.shape[:2]).mean(axis=1) for tree in forest.estimators_])
        shape = [len(grid) for grid in reversed(self.grids)]
        self.mean, self.deviation = trees.mean(axis=0).reshape(shape), trees.std(axis=0).reshape(shape)
        self._tried = [c.codes[candidates.finite] for c in self.columns], candidates.scores[candidates.finite]

    def plot(self, ax=None):
        """Draws."""
        ax = self._axes(ax)
        codes, scores = self._tried
        if len(self.columns) == 1:
            (grid,), label = self.grids, "expected, whatever the others"
            ax.plot(codes[0], scores, ".", color="0.5", label="candidates")
            if self.columns[0].names:
                ax.errorbar(grid, self.mean, self.deviation, fmt="o", capsize=3, label=label)
                ax.set_xlim(-0.5, len(grid) - 0.5)
            else:
                ax.fill_between(grid, self.mean - self.deviation, self.mean + self.deviation, alpha=0.2, linewidth=0)
                ax.plot(grid, self.mean, label=label)
            low = min(self.mean.min(), np.quantile(scores, 0.1))
            ax.set_ylim(low - 0.1 * (scores.max() - low) - 1e-9, scores.max() + 0.1 * (scores.max() - low) + 1e-9)
            ax.set_ylabel(self.metric)
            ax.legend(loc="best", fontsize=8)
        else:
            image = ax.pcolormesh(*self.grids, self.mean, shading="nearest", cmap="viridis")
            ax.plot(*codes, "o", markersize=4, markerfacecolor="none", color="white", label="candidates")
            ax.figure.colorbar(image, ax=ax, label=self.metric)
            _label(ax, "y", self.columns[1])
        _label(ax, "x", self.columns[0])
        return self


class ImportanceDisplay(_Display):
    """How much worse a random forest, fitted to the candidates, tells scores when a parameter's values are shuffled.

    The loss of R², divided by the sum of all losses (permutation importance, Breiman 2001), over ten shuffles.

    Args:
        candidates: the candidates.

    Attributes:
        names: the parameters, the most important first.
        importances, deviations: their shares, and the standard deviations.
    """

    def __init__(self, candidates):
        from sklearn.inspection import permutation_importance

        forest, matrix = _forest(candidates, type(self).__name__)
        found: Any = permutation_importance(
            forest, matrix, candidates.scores[candidates.finite], n_repeats=10, random_state=0
        )
        order = np.argsort(-found.importances_mean, kind="stable")
        total = max(found.importances_mean.clip(0).sum(), np.finfo(float).tiny)
        self.metric = candidates.metric
        self.names = [candidates.columns[i].name for i in order]
        self.labels = [candidates.columns[i].label for i in order]
        self.importances = found.importances_mean[order] / total
        self.deviations = found.importances_std[order] / total
        self.figsize = (6.0, 0.4 * len(self.names) + 1.4)

    def plot(self, ax=None):
        """Draws."""
        ax = self._axes(ax)
        ax.barh(range(len(self.names)), self.importances, xerr=self.deviations, color="C0", ecolor="0.4", capsize=3)
        ax.set_yticks(range(len(self.names)), self.labels)
        ax.invert_yaxis()
        ax.set(xlabel=f"share in {self.metric}", xlim=(min(0, self.importances.min()), None))
        return self


KINDS = {
    "progress": SearchProgressDisplay,
    "parallel": ParallelCoordinatesDisplay,
    "dependence": SurrogateDisplay,
    "importance": ImportanceDisplay,
}


class Pictures:
    """Gives a search its pictures."""

    def plot(self, kind="progress", *, ax=None, metric=None, **options):
        """Draws the search.

        Args:
            kind: `"progress"` for the scores in order, `"parallel"` for each candidate as a line through its values,
                `"importance"` for which parameters matter, `"dependence"` for how the score depends on one or two.
            ax: matplotlib axes; None makes a figure.
            metric: which of several metrics; by default the one in `refit`.
            **options: for `"dependence"`: `parameters`, a name or a pair.

        Returns:
            The display, with `ax_` and `figure_`: see `kopt.search.displays`.
        """
        return KINDS[check_choice(self, tuple(KINDS), kind=kind)].from_search(self, metric=metric, ax=ax, **options)

    def report(self, path, *, metric=None):
        """Writes what was found to one HTML file: the best parameters, the pictures, and all candidates.

        Args:
            path: of the file, which is replaced where there is one.
            metric: which of several metrics; by default the one in `refit`.

        Returns:
            The path.
        """
        from kopt.search.report import write_report

        return write_report(self, path, metric)

    def to_tensorboard(self, directory):
        """Writes the candidates for TensorBoard's HParams page: a run for each, in folders of their own.

        Args:
            directory: as in `tensorboard --logdir directory`.

        Raises:
            ModuleNotFoundError: TensorBoard is not installed.
        """
        from kopt.search.tensorboard import write_runs

        write_runs(self, directory)


def _forest(candidates, owner):
    from sklearn.ensemble import RandomForestRegressor

    if candidates.finite.sum() < FEWEST or not candidates.columns:
        raise ValueError(
            f"{owner}: search must have at least {FEWEST} candidates with a score and a parameter that varies, got "
            f"{candidates.finite.sum()} and {len(candidates.columns)}."
        )
    matrix = candidates.matrix()
    forest = RandomForestRegressor(200, min_samples_leaf=2, random_state=0)
    return forest.fit(matrix, candidates.scores[candidates.finite]), matrix


def _grid(column, n=40):
    low, high = column.span
    return np.arange(len(column.names), dtype=float) if column.names else np.linspace(low, high, n)


def _label(ax, axis, column):
    ticks = column.ticks()
    getattr(ax, f"set_{axis}ticks")(*ticks)
    if axis == "x" and column.names and sum(map(len, column.names)) > 40:
        ax.tick_params("x", rotation=20)
    getattr(ax, f"set_{axis}label")(column.label)
