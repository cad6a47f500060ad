"""A Gaussian process over hyperparameters, and how much better a candidate may be expected to be.

Sources:
    C. E. Rasmussen and C. K. I. Williams, "Gaussian Processes for Machine Learning" (2006), chapters 2, 4 and 5.
    S. Ament et al., "Unexpected Improvements to Expected Improvement for Bayesian Optimization", NeurIPS (2023).
"""

import math

import numpy as np
from scipy.linalg import cho_solve, cholesky, solve_triangular
from scipy.optimize import minimize
from scipy.special import erfcx, ndtr

JITTER = 1e-7
"""The least noise, without which the matrix of two points close by is singular in floating point."""

# Of standardized scores: where the logarithms of length scales, of the amplitude and of the noise are expected, and how
# surely. Wide enough for parameters that do not matter, and for noise of a tenth of the scores' spread.
MEANS, DEVIATIONS = (0.0, 0.0, -9.0), (1.5, 1.0, 3.0)
BOUNDS = (-4.0, 4.0), (-4.0, 4.0), (-16.0, 0.0)
START = -0.7, 0.0, -8.0


def _matern(squares):
    """(1 + √5 r + 5/3 r²) exp(-√5 r), from r², and its derivative by r²"""
    r = np.sqrt(5 * np.maximum(squares, 0.0))
    e = np.exp(-r)
    return (1 + r + r * r / 3) * e, -5 / 6 * (1 + r) * e


def _squares(A, B):
    """Squared distances between the rows of A and of B."""
    return (A * A).sum(axis=1)[:, None] + (B * B).sum(axis=1) - 2 * A @ B.T


class GaussianProcess:
    """Regression on numbers and categories, with a length scale for each group of columns, an amplitude and noise.

    The kernel is a (k_h + k_x) / 4 + a k_h k_x / 2, with a Matérn 5/2 kernel k_x of the numbers and with
    k_h = exp(-Σ d_i² / l_i²) of the categories: that of B. Ru et al., "Bayesian Optimisation over Multiple Continuous
    and Categorical Inputs", ICML (2020), with λ = 1/2. Without categories it is a k_x, and without numbers a k_h. Its
    hyperparameters maximize their posterior density, by its gradient.

    Args:
        groups: the group of each column of X, from 0 on. Columns of a group share a length scale.
        categories: of each group, whether it is of categories.

    Attributes:
        theta: the logarithms of the length scales, of the amplitude and of the noise's variance.
    """

    def __init__(self, groups, categories):
        self.groups, self._p = np.asarray(groups), int(max(groups)) + 1
        self._h = np.asarray(categories, bool)
        self._mix = (0.25, 0.25, 0.5) if self._h.any() and not self._h.all() else (0.0, 0.0, 1.0)
        self.theta = self._start = np.array([START[0]] * self._p + [*START[1:]])
        self._bounds = [BOUNDS[0]] * self._p + [*BOUNDS[1:]]
        self._mean, self._sd = 0.0, 1.0

    def fit(self, X, y, steps=25):
        """Learns from points X of shape (n, columns) with scores y, from `theta` and from a common start."""
        self._mean, self._sd = y.mean(), y.std() or 1.0
        squares = (X[:, None, :] - X[None]) ** 2
        distances = np.stack([squares[:, :, self.groups == i].sum(axis=-1) for i in range(self._p)])
        z = (y - self._mean) / self._sd
        options = dict(method="L-BFGS-B", jac=True, bounds=self._bounds, options={"maxiter": steps})
        starts = [self._start] if self.theta is self._start else [self._start, self.theta]
        found = [minimize(self._loss, start, args=(distances, z), **options) for start in starts]
        self.theta = min(found, key=lambda each: each.fun).x
        return self.condition(X, y)

    def condition(self, X, y):
        """Takes these points and scores, with `theta` and the scale of the last fit as they are."""
        self._X, self._z = X, (y - self._mean) / self._sd
        covariance = self._covariance(X, X) + (math.exp(self.theta[-1]) + JITTER) * np.eye(len(X))
        self._factor = cholesky(covariance, lower=True)
        self._alpha = cho_solve((self._factor, True), self._z)
        return self

    def predict(self, X):
        """Mean and standard deviation of the score without noise, at points X."""
        k = self._covariance(X, self._X)
        v = solve_triangular(self._factor, k.T, lower=True, check_finite=False)
        variance = np.maximum(math.exp(self.theta[-2]) - np.einsum("ij,ij->j", v, v), 1e-12)
        return self._mean + self._sd * (k @ self._alpha), self._sd * np.sqrt(variance)

    def _covariance(self, A, B):
        scale = np.exp(-self.theta[: self._p])[self.groups]
        A, B, h = A * scale, B * scale, self._h[self.groups]
        k_h = np.exp(-_squares(A[:, h], B[:, h])) if self._h.any() else 1.0
        k_x = _matern(_squares(A[:, ~h], B[:, ~h]))[0]
        return math.exp(self.theta[-2]) * self._mixed(k_h, k_x)

    def _mixed(self, k_h, k_x):
        both, alone, product = self._mix
        return both * k_h + alone * k_x + product * k_h * k_x

    def _loss(self, theta, distances, z):
        """The negative logarithm of the posterior density of theta, less a constant, and its gradient."""
        p, n = self._p, len(z)
        weights, amplitude, noise = np.exp(-2 * theta[:p]), math.exp(theta[-2]), math.exp(theta[-1])
        k_h = np.exp(-np.tensordot(weights[self._h], distances[self._h], 1)) if self._h.any() else 1.0
        k_x, slope_x = _matern(np.tensordot(weights[~self._h], distances[~self._h], 1))
        k = amplitude * self._mixed(k_h, k_x)
        try:
            factor = cholesky(k + (noise + JITTER) * np.eye(n), lower=True, check_finite=False)
        except np.linalg.LinAlgError:
            return 1e10, np.zeros_like(theta)
        inverse = cho_solve((factor, True), np.eye(n), check_finite=False)
        alpha = inverse @ z
        loss = z @ alpha / 2 + np.log(np.diag(factor)).sum()
        slope = inverse - np.outer(alpha, alpha)  # twice the derivative of the loss by the matrix
        gradient = np.empty_like(theta)
        both, alone, product = self._mix
        by_h, by_x = -k_h * (both + product * k_x), slope_x * (alone + product * k_h)
        for part, by_squares in ((self._h, by_h), (~self._h, by_x)):
            # A sum of d² / l² has the derivative -2 d² / l² by log l.
            gradient[:p][part] = -weights[part] * np.tensordot(distances[part], amplitude * slope * by_squares, 2)
        gradient[-2] = (slope * k).sum() / 2
        gradient[-1] = np.trace(slope) * noise / 2
        mean, deviation = (np.array([each[0]] * p + [*each[1:]]) for each in (MEANS, DEVIATIONS))
        off = (theta - mean) / deviation
        return loss + off @ off / 2, gradient + off / deviation


def log_expected_improvement(mean, sd, best):
    """log E[max(f - best, 0)] for f ~ N(mean, sd²), without the underflow of the expectation (Ament et al., eq. 9)."""
    z = (mean - best) / sd
    near, far = np.maximum(z, -1.0), np.minimum(z, -1.0)
    density = -0.5 * math.log(2 * math.pi)
    above = np.log(np.exp(density - near * near / 2) + near * ndtr(near))
    # φ(z) + z Φ(z) = φ(z) (1 - |z| √(π/2) erfcx(|z| / √2)); the bracket is 1 / z² to rounding where z is below -1e4
    bracket = np.where(far > -1e4, -math.sqrt(math.pi / 2) * -far * erfcx(-far / math.sqrt(2)), -1.0)
    with np.errstate(divide="ignore"):
        below = np.where(far > -1e4, np.log1p(bracket), -2 * np.log(-far))
    return np.log(sd) + np.where(z > -1, above, density - far * far / 2 + below)
