"""Searches killed at random moments, and workers killed at work. Run in a process of its own, which forks: no Keras."""

import json
import os
import pathlib
import random
import signal
import sys
import time
import traceback
import warnings

import numpy as np
from scipy import stats
from sklearn.base import BaseEstimator, RegressorMixin

import kopt

X, y = np.arange(12.0).reshape(-1, 1), np.arange(12.0)


class Slow(RegressorMixin, BaseEstimator):
    """Scores -(x - 0.3)**2 - noise of the fold, after a while; fails at some x."""

    def __init__(self, x=0.0, steps=1, seconds=0.0):
        self.x, self.steps, self.seconds = x, steps, seconds

    def fit(self, X, y):
        time.sleep(self.seconds)
        if self.x > 0.9:
            raise RuntimeError("x is too large")
        self.first_ = float(X[0, 0])
        return self

    def score(self, X, y):
        return -((self.x - 0.3) ** 2) - 1e-3 * self.first_ / self.steps


def search(method, directory, seconds=0.002):
    grid = method == "grid"
    space = {"x": list(np.linspace(0, 1, 12)) if grid else stats.uniform()}
    halving = dict(resource="steps", max_resources=9) if method in ("hyperband", "asha") else {}
    options = dict(n_iter=12, cv=3, random_state=0, refit=False, directory=directory, **halving)
    return kopt.TunerSearchCV(Slow(seconds=seconds), space, method=method, **options)


def fitted(*args):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return search(*args).fit(X, y)


def table(found):
    results = found.cv_results_
    kept = [name for name in sorted(results) if "time" not in name and "param" not in name]
    return repr({name: results[name].tolist() for name in kept}) + repr(results["params"])


def child(*args):
    """Forks a process that searches."""
    if pid := os.fork():
        return pid
    status = 1
    try:
        fitted(*args)
        status = 0
    except Exception:
        traceback.print_exc()
    os._exit(status)


def killed(method, directory, kills, rng):
    """Kills a search at random moments, as often as asked or until it is done; returns how often."""
    for count in range(kills):
        pid = child(method, directory)
        time.sleep(rng.uniform(0.0, 0.06))
        os.kill(pid, signal.SIGKILL)
        status = os.waitpid(pid, 0)[1]
        assert status in (0, signal.SIGKILL), status
        if status == 0:
            return count
    return kills


def journal(directory):
    """The records of a search's journal so far."""
    path = pathlib.Path(directory, "journal.jsonl")
    lines = path.read_text().splitlines(keepends=True) if path.exists() else []
    return [json.loads(line) for line in lines if line.endswith("\n")]


def fits(directory):
    """How often each fold of each suggestion is in the journal."""
    return [(record["fit"], record["fold"]) for record in journal(directory) if "fit" in record]


def kill_searches(root, kills):
    rng, total, runs = random.Random(0), 0, 0
    methods = ["grid", "random", "hyperband", "asha", "bayesian"]
    straight = {method: table(fitted(method, None)) for method in methods}
    while total < kills:
        method = methods[runs % len(methods)]
        directory = f"{root}/{runs}"
        total += killed(method, directory, kills - total, rng)
        assert table(fitted(method, directory)) == straight[method], (method, directory)
        assert len(fits(directory)) == len(set(fits(directory))), directory
        runs += 1
    print(json.dumps({"kills": total, "searches": runs}))


def kill_a_worker(root):
    """Three processes share a search; one is killed at work."""
    directory = f"{root}/shared"
    workers = [child("random", directory, 0.05) for _ in range(3)]
    while not any("ask" in record and f"-{workers[0]}-" in record["worker"] for record in journal(directory)):
        time.sleep(0.01)
    os.kill(workers[0], signal.SIGKILL)  # at the first of three fits
    statuses = [os.waitpid(pid, 0)[1] for pid in workers]
    assert statuses == [signal.SIGKILL, 0, 0], statuses
    records = journal(directory)
    names = {record["worker"] for record in records if "worker" in record}
    takes = [record for record in records if "take" in record]
    assert table(fitted("random", directory, 0.05)) == table(fitted("random", None))
    print(json.dumps({"workers": len(names), "takes": len(takes), "left": os.listdir(f"{directory}/workers")}))


if __name__ == "__main__":
    what, *args = sys.argv[1:]
    {"searches": lambda root, n: kill_searches(root, int(n)), "worker": kill_a_worker}[what](*args)
