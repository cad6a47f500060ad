"""The Gaussian process and its oracle: the algebra against others' arithmetic, the oracle in KerasTuner's tuners."""

import math
import warnings

import keras_tuner
import numpy as np
import pytest
from scipy import integrate, stats
from scipy.optimize import approx_fprime
from sklearn.gaussian_process import GaussianProcessRegressor
from sklearn.gaussian_process.kernels import ConstantKernel, Matern, WhiteKernel

import kopt
from kopt.search.axes import Axes
from kopt.search.gaussian_process import JITTER, GaussianProcess, log_expected_improvement
from kopt.search.gaussian_process_oracle import compressed

RNG = np.random.default_rng(0)
X = RNG.random((15, 4))
Y = np.sin(3 * X).sum(axis=1) * 4 + 9
GROUPS = [0, 0, 1, 2]


def test_the_posterior_is_scikit_learns():
    process = GaussianProcess(GROUPS, [False] * 3).fit(X, Y)
    lengths = np.exp(process.theta[:3])[GROUPS]
    kernel = ConstantKernel(math.exp(process.theta[3])) * Matern(lengths, nu=2.5)
    kernel += WhiteKernel(math.exp(process.theta[4]) + JITTER)
    reference = GaussianProcessRegressor(kernel, optimizer=None, alpha=0, normalize_y=True).fit(X, Y)
    new = RNG.random((6, 4))
    mean, deviation = reference.predict(new, return_std=True)  # of an observation, with its noise
    found, without_noise = process.predict(new)
    np.testing.assert_allclose(found, mean, rtol=1e-8)
    noise = math.exp(process.theta[4]) + JITTER
    np.testing.assert_allclose(np.hypot(without_noise, math.sqrt(noise) * Y.std()), deviation, rtol=1e-6)


@pytest.mark.parametrize("categories", [[False] * 3, [True, False, False], [True] * 3])
def test_gradients_of_the_posterior_density(categories):
    process = GaussianProcess(GROUPS, categories)
    squares = (X[:, None] - X[None]) ** 2
    distances = np.stack([squares[:, :, process.groups == i].sum(axis=-1) for i in range(3)])
    theta, z = np.array([-0.3, 0.2, 0.1, 0.4, -3.0]), (Y - Y.mean()) / Y.std()
    slopes = approx_fprime(theta, lambda t: process._loss(t, distances, z)[0], 1e-6)
    np.testing.assert_allclose(process._loss(theta, distances, z)[1], slopes, rtol=1e-4)


def test_the_kernel_of_numbers_and_categories():
    """Term by term, as it is written in the paper."""
    process = GaussianProcess([0, 0, 1], [True, False])
    process.theta = np.array([0.3, -0.4, 0.7, -5.0])
    a, b = np.array([[1.0, 0.0, 0.2]]), np.array([[0.0, 1.0, 0.9]])
    k_h = math.exp(-2 * math.exp(-0.6))
    r = math.sqrt(5) * 0.7 * math.exp(0.4)
    k_x = (1 + r + r * r / 3) * math.exp(-r)
    expected = math.exp(0.7) * (0.25 * (k_h + k_x) + 0.5 * k_h * k_x)
    assert process._covariance(a, b)[0, 0] == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("z", [3.0, 0.0, -0.99, -1.01, -5.0])
def test_expected_improvement_is_the_integral(z):
    mean, deviation, best = 2.0 + 0.7 * z, 0.7, 2.0
    integral, _ = integrate.quad(lambda f: (f - best) * stats.norm.pdf(f, mean, deviation), best, best + 12)
    found = log_expected_improvement(np.array([mean]), np.array([deviation]), best)[0]
    assert found == pytest.approx(math.log(integral), rel=1e-6)


def test_expected_improvement_does_not_underflow():
    z = np.array([-30.0, -900.0, -9e3, -1.1e4, -1e6])
    found = log_expected_improvement(z, np.ones(5), 0.0)
    # log φ(z) - 2 log |z| + log(1 - 3/z²) + ... is the asymptotic series.
    expected = -z * z / 2 - math.log(2 * math.pi) / 2 - 2 * np.log(-z) + np.log1p(-3 / z**2)
    np.testing.assert_allclose(found, expected, rtol=1e-5)


def test_disasters_are_compressed():
    scores = np.array([-1e6, -2.0, -1.0, 0.0, 1.0])
    found = compressed(scores)
    assert found[2:].tolist() == [-1.0, 0.0, 1.0]
    assert -25 < found[0] < found[1] < -1.0
    assert compressed(np.zeros(4)).tolist() == [0.0] * 4


# ---- axes ------------------------------------------------------------------------------------------------------------


def space():
    hp = keras_tuner.HyperParameters()
    hp.Fixed("fixed", 7)
    hp.Choice("kind", ["linear", "net"])
    hp.Float("rate", 1e-4, 1e-1, sampling="log")
    hp.Int("batch", 16, 128, step=2, sampling="log")
    with hp.conditional_scope("kind", ["net"]):
        hp.Int("layers", 1, 4)
        hp.Boolean("bias")
    hp.Float("share", 0.0, 1.0, step=0.25)
    return hp


def test_axes_go_forth_and_back():
    axes = Axes(space().space)
    for point in axes.snap(RNG.random((50, len(axes)))):
        values = axes.values(point)
        assert set(values) >= {"fixed", "kind", "rate", "batch", "share"}
        assert ("layers" in values) == ("bias" in values) == (values["kind"] == "net")
        assert values["batch"] in (16, 32, 64, 128)
        assert 1e-4 <= values["rate"] <= 1e-1
        assert values["share"] in (0, 0.25, 0.5, 0.75, 1)
        again = axes.values(axes.point(values))
        assert again.pop("rate") == pytest.approx(values.pop("rate"))
        assert again == values


def test_what_is_not_active_makes_no_difference():
    axes = Axes(space().space)
    names = [axis.name for axis in axes.axes]
    points = np.tile(axes.snap(RNG.random((1, len(axes)))), (3, 1))
    points[:, names.index("kind")] = axes.axes[names.index("kind")].points[[0, 0, 1]]
    points[:, names.index("layers")] = 0.1, 0.9, 0.1
    features = axes.features(points)
    assert np.array_equal(features[0], features[1])
    column = features[:, axes.groups == names.index("layers")]
    assert np.linalg.norm(column, axis=1) == pytest.approx([0, 0, 1])


# ---- in KerasTuner ---------------------------------------------------------------------------------------------------


class Tuner(keras_tuner.engine.base_tuner.BaseTuner):
    """Scores without a model."""

    def run_trial(self, trial, *args, **kwargs):
        values = trial.hyperparameters.values
        layers = values.get("layers", 0)
        return (math.log10(values["rate"]) + 2.5) ** 2 + (layers - 3) ** 2 + (values["share"] - 0.5) ** 2


def tuned(directory, trials, **options):
    oracle = kopt.GaussianProcessOracle(keras_tuner.Objective("default_objective", "min"), trials, **options)
    tuner = Tuner(oracle, hypermodel=lambda hp: None, directory=directory, project_name="p", overwrite=False)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        tuner.search(verbose=0)
    return [oracle.trials[id].hyperparameters.values for id in oracle.start_order], oracle


def test_in_a_plain_tuner_from_a_seed_of_zero(tmp_path):
    tried, oracle = tuned(tmp_path / "a", 18, hyperparameters=space(), seed=0)
    assert len({str(values) for values in tried}) == 18
    assert oracle.get_best_trials(1)[0].score < 0.1
    again, _ = tuned(tmp_path / "b", 18, hyperparameters=space(), seed=0)
    assert again == tried
    other, _ = tuned(tmp_path / "c", 4, hyperparameters=space(), seed=1, num_initial_points=4)
    assert not {values["rate"] for values in other} & {values["rate"] for values in tried}
    part, _ = tuned(tmp_path / "d", 12, hyperparameters=space(), seed=0, num_initial_points=6)
    assert part == tried[:12]
    whole, _ = tuned(tmp_path / "d", 18, hyperparameters=space(), seed=0, num_initial_points=6)
    assert whole == tried  # as though never closed


def test_a_finite_space_stops(tmp_path):
    hp = keras_tuner.HyperParameters()
    hp.Choice("a", ["x", "y", "z"])
    hp.Int("b", 0, 3)
    oracle = kopt.GaussianProcessOracle(keras_tuner.Objective("score", "max"), 40, hyperparameters=hp, seed=0)
    tuner = Tuner(oracle, hypermodel=lambda hp: None, directory=tmp_path, project_name="p")
    tuner.run_trial = lambda trial, **options: {"score": trial.hyperparameters.values["b"]}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        tuner.search(verbose=0)
    assert len({str(trial.hyperparameters.values) for trial in oracle.trials.values()}) == len(oracle.trials) == 12
