"""Pictures, report and TensorBoard: what they show, against numbers computed apart."""

import re
import sys

import matplotlib
import numpy as np
import pytest
from scipy import stats
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.datasets import load_iris
from sklearn.exceptions import FitFailedWarning
from sklearn.model_selection import GridSearchCV
from sklearn.preprocessing import StandardScaler

from kopt.search import (
    ImportanceDisplay,
    ParallelCoordinatesDisplay,
    SearchProgressDisplay,
    SurrogateDisplay,
    TunerSearchCV,
)
from kopt.search.candidates import Column
from kopt.search.report import write_report

matplotlib.use("Agg")
X, y = load_iris(return_X_y=True)


class Plane(ClassifierMixin, BaseEstimator):
    """Scores rate's logarithm and twice the size, and does not mind the colour."""

    def __init__(self, rate=1.0, size=0.0, colour="red", part=None):
        self.rate, self.size, self.colour, self.part = rate, size, colour, part

    def fit(self, X, y):
        if self.rate > 0.5:
            raise ValueError("rate is too large")
        return self

    def score(self, X, y):
        return np.log10(self.rate) + 2 * self.size + 1e-3 * X[0, 0]


SPACE = {"rate": stats.loguniform(1e-4, 1e0), "size": stats.uniform(0, 4), "colour": ["red", "blue", None]}


@pytest.fixture(scope="module")
def search():
    options = dict(method="random", n_iter=60, cv=2, random_state=0, refit=False)
    with pytest.warns(FitFailedWarning), pytest.warns(UserWarning, match="non-finite"):
        return TunerSearchCV(Plane(), SPACE, **options).fit(X, y)


@pytest.fixture(autouse=True)
def _closed():
    yield
    matplotlib.pyplot.close("all")


def test_progress(search):
    display = search.plot()
    scores = search.cv_results_["mean_test_score"]
    assert isinstance(display, SearchProgressDisplay)
    assert np.isnan(scores).any()
    assert display.best[-1] == np.nanmax(scores)
    for i in range(1, len(scores)):
        assert display.best[i] == np.nanmax(scores[: i + 1])
    failed = next(line for line in display.ax_.lines if line.get_label() == "failed")
    assert failed.get_xdata().tolist() == (np.flatnonzero(np.isnan(scores)) + 1).tolist()


def test_parallel_coordinates(search):
    display = ParallelCoordinatesDisplay.from_search(search)
    finite = np.isfinite(search.cv_results_["mean_test_score"])
    by_name = {column.name: i for i, column in enumerate(display.columns)}
    rates = np.log10(search.cv_results_["param_rate"].data.astype(float))
    low, high = rates.min(), rates.max()
    np.testing.assert_allclose(display.lines[:, by_name["rate"]], ((rates - low) / (high - low))[finite])
    assert display.columns[by_name["colour"]].names == ["None", "blue", "red"]
    assert set(display.lines[:, by_name["colour"]]) == {0.0, 0.5, 1.0}
    best = next(line for line in display.ax_.lines if line.get_label() == "best")
    np.testing.assert_array_equal(best.get_ydata(), display.lines[display.scores.argmax()])


@pytest.mark.parametrize(
    ("values", "log"),
    [([1e-4, 1e-3, 1e-2, 1e-1], True), (list(range(1, 101)), False), ([0.5, 1.0, 4.0], False), ([-1.0, 100.0], False)],
)
def test_scales_are_those_on_which_values_lie_evenly(values, log):
    assert Column("rate", values).log is log


def test_importance_finds_what_matters(search):
    display = search.plot("importance")
    assert isinstance(display, ImportanceDisplay)
    assert display.names == ["size", "rate", "colour"]
    assert display.importances[0] > 5 * display.importances[1]
    assert abs(display.importances[2]) < 0.02
    assert display.importances.clip(0).sum() == pytest.approx(1)


def test_dependence_is_the_slope(search):
    display = search.plot("dependence", parameters="size")
    assert isinstance(display, SurrogateDisplay)
    inner = slice(8, 32)
    slope, _ = np.polyfit(display.grids[0][inner], display.mean[inner], 1)
    assert slope == pytest.approx(2, rel=0.2)
    pair = SurrogateDisplay.from_search(search, parameters=("rate", "size"))
    assert pair.mean.shape == (40, 40)
    assert pair.mean[-1].mean() - pair.mean[0].mean() == pytest.approx(8, rel=0.25)
    assert search.plot("dependence").columns[0].name == "size"  # the most important one
    categories = search.plot("dependence", parameters="colour")
    assert np.ptp(categories.mean) < 0.3


def test_conditional_parameters_leave_gaps():
    spaces = [{"size": stats.uniform(0, 4), "rate": [0.1, 0.2]}, {"part": [StandardScaler()], "rate": [0.1]}]
    search = TunerSearchCV(Plane(), spaces, method="random", n_iter=8, cv=2, random_state=0).fit(X, y)
    display = search.plot("parallel")
    by_name = {column.name: i for i, column in enumerate(display.columns)}
    there = ~search.cv_results_["param_size"].mask
    assert np.array_equal(np.isfinite(display.lines[:, by_name["size"]]), there)
    assert np.array_equal(np.isfinite(display.lines[:, by_name["part"]]), ~there)
    assert search.plot("importance").importances.shape == (3,)


def test_of_any_search_with_several_metrics(tmp_path):
    scoring = {"up": lambda e, X, y: e.size, "down": lambda e, X, y: -e.size}
    search = GridSearchCV(Plane(rate=0.1), {"size": [0, 1, 2]}, scoring=scoring, refit=False, cv=2).fit(X, y)
    display = SearchProgressDisplay.from_search(search, metric="down")
    assert display.scores.tolist() == [0, -1, -2]
    heads = re.findall("<th>(.*?)</th>", write_report(search, tmp_path / "report.html", "down").read_text())
    assert heads == ["candidate", "down", "std", "up", "fit seconds", "size"]
    rule = r"^SearchProgressDisplay: metric must be one of 'up', 'down', got False\.$"
    with pytest.raises(ValueError, match=rule):
        SearchProgressDisplay.from_search(search)


def test_clear_errors(search, monkeypatch):
    with pytest.raises(ValueError, match=r"^TunerSearchCV: kind must be one of 'progress', .*, got 'pie'\.$"):
        search.plot("pie")
    with pytest.raises(ValueError, match=r"^SurrogateDisplay: parameters must be one or two of .*, got 'sise'\.$"):
        search.plot("dependence", parameters="sise")
    with pytest.raises(ValueError, match=r"^SearchProgressDisplay: search must be fitted"):
        TunerSearchCV(Plane(), SPACE).plot()
    few = TunerSearchCV(Plane(0.1), {"size": [1, 2]}, method="grid", cv=2).fit(X, y)
    with pytest.raises(ValueError, match=r"^ImportanceDisplay: search must have at least 5 .*, got 2 and 1\.$"):
        few.plot("importance")
    monkeypatch.setitem(sys.modules, "matplotlib.pyplot", None)
    with pytest.raises(
        ModuleNotFoundError, match=r"\.plot needs matplotlib, which is not installed. Install kopt\[plot\]\.$"
    ):
        search.plot()


def test_the_report_is_whole_and_safe(tmp_path):
    nasty = "<script>alert(1)</script>"
    search = TunerSearchCV(Plane(0.1), {"colour": [nasty, "b"], "size": [0, 1, 2]}, method="grid", cv=2).fit(X, y)
    path = search.report(tmp_path / "report.html")
    page = path.read_text()
    assert nasty not in page
    assert "&lt;script&gt;alert(1)" in page
    assert page.count("data:image/png;base64,") == 4
    assert page.count("<tr class=") - 1 == 6 + len(search.best_params_) - 1
    assert page.count("<tr class=best>") == 1
    assert "http" not in page.replace("http://www.w3.org", "")  # nothing is fetched
    few = TunerSearchCV(Plane(0.1), {"size": [1, 2]}, method="grid", cv=2).fit(X, y).report(tmp_path / "few.html")
    assert few.read_text().count("data:image/png;base64,") == 2


def test_tensorboard_is_asked_for_by_name(search, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorboard", None)
    rule = r"^TunerSearchCV.to_tensorboard needs tensorboard, which is not installed\. Try pip install tensorboard\.$"
    with pytest.raises(ModuleNotFoundError, match=rule):
        search.to_tensorboard(tmp_path)


def test_tensorboard_gets_a_run_for_each_candidate(search, tmp_path):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    from tensorboard.plugins.hparams import metadata

    search.to_tensorboard(tmp_path)
    scores = search.cv_results_["mean_test_score"]
    for row in (0, int(np.flatnonzero(np.isnan(scores))[0])):
        run = EventAccumulator(str(tmp_path / f"candidate-{row}")).Reload()
        (written,) = run.Scalars("mean_test_score")
        np.testing.assert_allclose(written.value, scores[row], rtol=1e-6)
        begin, end = (
            run.SummaryMetadata(tag).plugin_data.content
            for tag in (metadata.SESSION_START_INFO_TAG, metadata.SESSION_END_INFO_TAG)
        )
        assert set(metadata.parse_session_start_info_plugin_data(begin).hparams) == set(SPACE)
        status = metadata.parse_session_end_info_plugin_data(end).status
        assert status == (2 if np.isnan(scores[row]) else 1)  # the plugin's numbers of failure and success
