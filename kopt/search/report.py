"""A search as one HTML file."""

import base64
import html
import io
import pathlib
from typing import Any

import numpy as np
from sklearn.base import BaseEstimator

from kopt.search.candidates import Candidates
from kopt.search.displays import FEWEST, KINDS
from kopt.search.texts import plain

PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>{title}</title><style>
body {{ font: 15px/1.5 system-ui, sans-serif; margin: 2em auto; max-width: 72em; padding: 0 1em; color: #222 }}
table {{ border-collapse: collapse; font-size: 13px }}
th, td {{ border-bottom: 1px solid #ddd; padding: .25em .7em; text-align: right }}
th {{ cursor: pointer; background: #f5f5f5 }} tr.best td {{ background: #fff3d6; font-weight: bold }}
img {{ display: block; margin: .5em 0 }} .wide {{ overflow-x: auto }}
pre {{ background: #f5f5f5; padding: 1em; white-space: pre-wrap; overflow-wrap: anywhere }}
</style></head><body><h1>{title}</h1>
<p>{summary}</p><h2>Best parameters</h2>{best}<h2>Pictures</h2>{pictures}
<h2>Candidates</h2><p>A click on a column's name sorts by it.</p><div class="wide">{table}</div>
<h2>Search</h2><pre>{search}</pre>
<script>
document.querySelectorAll("table.candidates th").forEach((th, i) => th.onclick = () => {{
  const body = th.closest("table").tBodies[0], up = th.dataset.up = th.dataset.up === "1" ? "0" : "1";
  const key = row => {{ const t = row.cells[i].textContent, n = parseFloat(t); return isNaN(n) ? t : n; }};
  [...body.rows].sort((a, b) => (key(a) > key(b) ? 1 : -1) * (up === "1" ? 1 : -1)).forEach(row => body.append(row));
}});
</script></body></html>
"""


def write_report(search, path, metric):
    """Writes the page of a fitted search; returns its path."""
    candidates = Candidates(search, metric, f"{type(search).__name__}.report")
    results: Any = search.cv_results_
    best = getattr(search, "best_index_", None)
    names = [name for name in results if name.startswith("param_")]
    others = [name for name in results if name.startswith("mean_test_") and name != f"mean_test_{candidates.metric}"]
    heads = ["candidate", candidates.metric, "std", *(name.removeprefix("mean_test_") for name in others)]
    heads += ["fit seconds", *(name.removeprefix("param_") for name in names)]
    rows = []
    for i in range(len(candidates.scores)):
        numbers = [candidates.scores[i], candidates.deviations[i], *(results[name][i] for name in others)]
        numbers.append(results["mean_fit_time"][i])
        values = ["" if results[name][i] is np.ma.masked else _text(results[name][i]) for name in names]
        rows.append([str(i), *(f"{number:.5g}" for number in numbers), *values])
    failed = int((~candidates.finite).sum())
    summary = f"{len(rows)} candidates on {search.n_splits_} folds, of which {failed} have no score."
    page = PAGE.format(
        title=html.escape(f"{type(search).__name__} of {type(search.estimator).__name__}"),
        summary=html.escape(summary),
        best=_table([], [[name, _text(value)] for name, value in getattr(search, "best_params_", {}).items()]),
        pictures="".join(_pictures(search, candidates)),
        table=_table(heads, rows, best, "candidates"),
        search=html.escape("\n".join(f"{name}={_setting(value)}" for name, value in search.get_params(False).items())),
    )
    path = pathlib.Path(path)
    path.write_text(page, encoding="utf-8")
    return path


def _pictures(search, candidates):
    """Yields the pictures that there is enough for."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    kinds = ["progress"]
    if candidates.columns and candidates.finite.any():
        kinds.append("parallel")
    if candidates.columns and candidates.finite.sum() >= FEWEST:
        kinds += ["importance", "dependence"]
    for kind in kinds:
        display = KINDS[kind](candidates)
        figure = Figure(figsize=display.figsize, layout="constrained")
        FigureCanvasAgg(figure)
        display.plot(figure.subplots())
        file = io.BytesIO()
        figure.savefig(file, format="png", dpi=100)
        data = base64.b64encode(file.getvalue()).decode()
        yield f'<div class="wide"><img alt="{kind}" src="data:image/png;base64,{data}"></div>'


def _table(heads, rows, best=None, kind=""):
    head = "".join(f"<th>{html.escape(each)}</th>" for each in heads)
    body = "".join(
        f"<tr class={'best' if i == best else 'other'}>{''.join(f'<td>{html.escape(each)}</td>' for each in row)}</tr>"
        for i, row in enumerate(rows)
    )
    return f'<table class="{kind}"><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>'


def _setting(value):
    return repr(value) if isinstance(value, BaseEstimator) else plain(value)


def _text(value):
    return f"{value:.5g}" if isinstance(value, float) else str(value)
