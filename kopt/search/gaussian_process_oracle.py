"""An oracle for KerasTuner that asks a Gaussian process. Imported only where it is used: KerasTuner imports Keras."""

import math

import keras_tuner
import numpy as np
from scipy.optimize import minimize
from scipy.stats import qmc

from kopt.search.axes import Axes, identity
from kopt.search.gaussian_process import GaussianProcess, log_expected_improvement

SPREAD = 1500
"""Candidates all over the space, at which a proposal looks first."""
NEAR = (0.2, 0.05, 0.01)
"""Standard deviations of candidates around the best ones so far."""
REFINED = (0.1, 0.03, 0.01, 0.003)
"""The same around those of the greatest improvement."""
ROUNDS = 3
KEPT = 12


class GaussianProcessOracle(keras_tuner.Oracle):
    """Proposes the candidate of the greatest expected improvement under a Gaussian process.

    It has a length scale for each hyperparameter and learns the noise of scores. Categories are told from numbers, and
    a conditional hyperparameter counts only where it is active. Nothing is proposed twice: a finite space is exhausted
    once, and the search stops. A failed trial, or one without a finite score, counts as worse than all others, so that
    its region is left. Trials that still run count as what the process expects of them, so that workers get different
    proposals.

    For any tuner of KerasTuner, and what `kopt.TunerSearchCV` uses for `method="bayesian"`.

    Args:
        objective: as in KerasTuner.
        max_trials: the number of trials.
        num_initial_points: how many trials to scatter by Sobol's sequence before the first proposal; by default four
            and one for each hyperparameter, but at most a third of `max_trials`, and at least three.
        seed: an integer, 0 among them, makes the trials reproducible.
        hyperparameters: as in KerasTuner.
        **options: of `keras_tuner.Oracle`.

    Sources:
        D. R. Jones, M. Schonlau and W. J. Welch, "Efficient Global Optimization of Expensive Black-Box Functions",
        J. Global Optimization 13 (1998); D. Ginsbourger, R. Le Riche and L. Carraro, "Kriging Is Well-Suited to
        Parallelize Optimization" (2010), for trials that still run; see also `kopt.search.gaussian_process`.
    """

    def __init__(
        self, objective=None, max_trials=10, num_initial_points=None, seed=None, hyperparameters=None, **options
    ):
        super().__init__(
            objective=objective, max_trials=max_trials, hyperparameters=hyperparameters, seed=seed, **options
        )
        if seed is not None:
            self.seed = seed  # KerasTuner takes 0 for None
        self.num_initial_points = num_initial_points
        self._theta = None

    # ---- KerasTuner's side ---------------------------------------------------------------------------------------

    def populate_space(self, trial_id):
        """Returns the next candidate, or that there is none."""
        axes = Axes(self.hyperparameters.space)
        known = {identity(trial.hyperparameters.values) for trial in self.trials.values()}
        for values in self._proposals(axes):
            if identity(values) not in known:
                return {"status": "RUNNING", "values": values}
        return {"status": "STOPPED"}

    def get_state(self):
        """KerasTuner's state, and where the next fit of the process begins."""
        theta = None if self._theta is None else self._theta.tolist()
        return super().get_state() | {"num_initial_points": self.num_initial_points, "theta": theta}

    def set_state(self, state):
        """Goes on from a state."""
        super().set_state(state)
        self.num_initial_points = state["num_initial_points"]
        self._theta = None if state["theta"] is None else np.array(state["theta"])

    # ---- proposals -----------------------------------------------------------------------------------------------

    def _proposals(self, axes):
        """Yields candidates, the best first, each of which may be known; ends when there are no others."""
        count = len(self.trials)
        rng = np.random.default_rng([self.seed, count])
        if not len(axes):
            yield axes.values(())
            return
        done, scores = self._observations()
        initial = self.num_initial_points
        if initial is None:
            initial = initial_points(len(axes), self.max_trials or math.inf)
        if count >= initial and len(done) > 1:
            yield from map(axes.values, self._ranked(axes, done, scores, rng))
        else:
            sobol = qmc.Sobol(len(axes), seed=self.seed)
            points = sobol.random_base2(math.ceil(math.log2(count + 1)) if count else 0)
            yield axes.values(axes.snap(points[count : count + 1])[0])
        for point in axes.snap(rng.random((SPREAD, len(axes)))):
            yield axes.values(point)
        if axes.is_finite:
            yield from axes.all_values()

    def _observations(self):
        """The values of trials that ended, and their scores, greater is better; not finite where they failed."""
        ended = [self.trials[id] for id in self.end_order]
        sign = 1.0 if self.objective.direction == "max" else -1.0
        scores = [sign * t.score if t.status == "COMPLETED" and t.score is not None else math.nan for t in ended]
        return [trial.hyperparameters.values for trial in ended], np.array(scores)

    def _ranked(self, axes, done, scores, rng):
        """Points by expected improvement, the greatest first."""
        points = axes.snap(np.array([axes.point(values) for values in done]))
        process = GaussianProcess(axes.groups, axes.categories)
        if self._theta is not None and len(self._theta) == len(process.theta):
            process.theta = self._theta
        features = axes.features(points)
        scores = settled(scores)
        process.fit(features, scores)
        self._theta = process.theta
        best = scores.max()
        running = [trial.hyperparameters.values for trial in self.ongoing_trials.values()]
        if running:
            more = axes.features(axes.snap(np.array([axes.point(values) for values in running])))
            believed, _ = process.predict(more)
            process.condition(np.concatenate([features, more]), np.concatenate([scores, believed]))

        def improvement(candidates):
            return log_expected_improvement(*process.predict(axes.features(axes.snap(candidates))), best)

        return axes.snap(self._search(axes, improvement, points[np.argsort(-scores)[:5]], rng))

    def _search(self, axes, improvement, bests, rng):
        """Candidates by improvement: a look everywhere and near the best, then closer and closer, then by slope."""
        d = len(axes)
        around = _Around(axes, rng)
        candidates = np.concatenate(
            [rng.random((SPREAD, d)), *(around(bests, sd, 60, max(0.3, 1.5 / d)) for sd in NEAR)]
        )
        for _ in range(ROUNDS):
            values = improvement(candidates)
            top = candidates[np.argsort(-values)[:KEPT]]
            candidates = np.concatenate([top, *(around(top, sd, 4, 0.5) for sd in REFINED)])
        values = improvement(candidates)
        candidates = candidates[np.argsort(-values)]
        polished = [self._climb(axes, improvement, point) for point in candidates[:2]]
        candidates = np.concatenate([polished, candidates])
        return candidates[np.argsort(-improvement(candidates), kind="stable")]

    @staticmethod
    def _climb(axes, improvement, point):
        """A point from here on up, along the axes without steps."""
        free = np.flatnonzero([axis.points is None for axis in axes.axes])
        if not len(free):
            return point
        h = 1e-6

        def loss(u):
            batch = np.tile(point, (len(free) + 1, 1))
            batch[:, free] = u
            batch[np.arange(1, len(free) + 1), free] += h
            values = -improvement(batch)
            return values[0], (values[1:] - values[0]) / h

        found = minimize(loss, point[free], jac=True, method="L-BFGS-B", bounds=[(0.0, 1.0 - 1e-9)] * len(free))
        better = point.copy()
        better[free] = found.x
        return better


def initial_points(width, n_iter):
    """How many candidates to scatter before a process is asked: four and one for each parameter, if they are few."""
    return max(3, min(width + 4, n_iter // 3))


def settled(scores):
    """Compressed scores to learn from; a failure lies as far below the worst score as that lies below the best."""
    good = np.isfinite(scores)
    if not good.any():
        return np.zeros(len(scores))
    found = compressed(np.where(good, scores, scores[good].min()))
    worst = found[good].min()
    return np.where(good, found, 2 * worst - found.max())


def compressed(scores):
    """Scores of which those below the median lie logarithmically closer to it, on the scale of the good ones' spread.

    Otherwise a few disasters flatten the differences that matter; compare the warped outputs of A. I. Cowen-Rivers et
    al., "HEBO: Pushing the Limits of Sample-Efficient Hyperparameter Optimisation", JAIR 74 (2022).
    """
    median, high = np.quantile(scores, [0.5, 0.9])
    scale, gap = high - median or 1.0, np.maximum(median - scores, 0.0)
    return np.maximum(scores, median) - scale * np.log1p(gap / scale)


class _Around:
    """Candidates around others: along a share of the axes they are moved, and of the categories some drawn anew."""

    def __init__(self, axes, rng):
        self._rng, self._categories = rng, axes.categories

    def __call__(self, points, sd, n, share):
        points = np.repeat(points, n, axis=0)
        moved = np.clip(points + sd * self._rng.standard_normal(points.shape), 0.0, 1.0 - 1e-9)
        drawn = self._rng.random(points.shape)
        moved = np.where(self._categories, np.where(self._rng.random(points.shape) < 0.5, drawn, points), moved)
        return np.where(self._rng.random(points.shape) < share, moved, points)
