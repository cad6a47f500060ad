"""The range test: a short training at ever larger learning rates, and what its losses say."""

import contextlib
from numbers import Integral

import keras
import numpy as np

from kopt._checks import check_range, pyplot


class LearningRateFinder:
    """Losses at ever larger learning rates: what `find_learning_rate` returns, to read and to plot.

    The loss is level while the rate is too small to matter, then it falls, and then it rises. `suggestion` is the rate
    at which the smoothed loss falls fastest per decade.

    Args:
        rates: the learning rates, ascending, in (0, inf).
        losses: the loss before the step of each rate.
        smoothing: standard deviation of the smoothing in decades of the rate, in (0, inf).

    Attributes:
        rates: the rates whose losses are finite, an array.
        losses: their losses, an array.
        ax_: the axes of the last plot.
        figure_: its figure.

    Raises:
        TypeError: `smoothing` is no number.
        ValueError: `smoothing` is out of its range, or fewer than three losses are finite.

    References:
        Smith, *Cyclical Learning Rates for Training Neural Networks*, 2017. https://arxiv.org/abs/1506.01186
    """

    def __init__(self, rates, losses, *, smoothing: float = 0.4):
        self.smoothing = check_range(self, "(0, inf)", smoothing=smoothing)
        rates, losses = np.asarray(rates, "float64"), np.asarray(losses, "float64")
        finite = np.isfinite(losses)
        if finite.sum() < 3:
            raise ValueError(
                f"{type(self).__name__}: losses must hold at least 3 finite numbers, got {losses.tolist()}. "
                "Begin at a lower rate, and look for numbers that are not finite in the data."
            )
        self.rates, self.losses = rates[finite], losses[finite]

    @property
    def smoothed(self):
        """The losses, each averaged with those at the rates below and above it, as an array."""
        highest = self.losses[: np.argmin(self.losses) + 1].max()  # what diverges must not weigh on its neighbours
        decades = np.log10(self.rates)
        weights = np.exp(-(((decades - decades[:, None]) / self.smoothing) ** 2) / 2)
        return weights @ np.minimum(self.losses, highest) / weights.sum(axis=1)

    @property
    def suggestion(self):
        """A learning rate to train with."""
        return float(self.rates[np.argmin(np.gradient(self.smoothed, np.log10(self.rates)))])

    def plot(self, ax=None):
        """Draws the losses and the suggestion over the rates, with matplotlib.

        Args:
            ax: matplotlib axes to draw on; None makes a figure.

        Returns:
            This object, with `ax_` and `figure_`.

        Raises:
            ModuleNotFoundError: matplotlib is not installed.
        """
        if ax is None:
            ax = pyplot(self).subplots()[1]
        lowest, highest = self.smoothed.min(), self.smoothed.max()
        margin = 0.15 * (highest - lowest) or 1.0
        ax.plot(self.rates, self.losses, ".", color="0.7", label="loss of a batch")
        ax.plot(self.rates, self.smoothed, label="smoothed")
        ax.axvline(self.suggestion, color="C1", linestyle="--", label=f"suggestion {self.suggestion:.1e}")
        ax.set(xscale="log", xlabel="learning rate", ylabel="loss", ylim=(lowest - margin, highest + margin))
        ax.legend()
        self.ax_, self.figure_ = ax, ax.figure
        return self

    def __repr__(self):
        return f"{type(self).__name__}(suggestion={self.suggestion:.3g})"


def find_learning_rate(
    model,
    x,
    y=None,
    *,
    low: float = 1e-6,
    high: float = 10.0,
    steps: int = 100,
    divergence: float = 4.0,
    smoothing: float = 0.4,
    **fit,
) -> LearningRateFinder:
    """Trains at ever larger learning rates, from `low` to `high`, and then puts everything back.

    Each rate is the one before times the same factor, and gets one batch. The run ends early where a loss is not
    finite, or where their running mean is `divergence` times its lowest. Weights, optimizer and metrics are then what
    they were before, also after an error or Ctrl-C. Works with kopt's optimizers and Keras's.

    Args:
        model: a built and compiled `keras.Model` whose optimizer has a number for its learning rate.
        x: the data, as `model.fit` takes it: arrays, a dataset, a generator.
        y: the targets, where `x` does not hold them.
        low: the first rate, in (0, inf).
        high: the last rate, in (low, inf).
        steps: number of rates, an integer, at least 10; they may take several epochs.
        divergence: how many times its lowest the loss may become, in (1, inf).
        smoothing: standard deviation of the smoothing in decades of the rate, in (0, inf).
        **fit: what else `model.fit` takes, but for `epochs`, `callbacks` and `verbose`: `batch_size` and so on.

    Returns:
        A `LearningRateFinder`.

    Raises:
        TypeError: an argument is no number.
        ValueError: an argument is out of its range, the model is not built or not compiled, its learning rate is
            scheduled, or fewer than three losses are finite.

    References:
        Smith, *Cyclical Learning Rates for Training Neural Networks*, 2017. https://arxiv.org/abs/1506.01186
    """
    owner = "find_learning_rate"
    check_range(owner, "(0, inf)", low=low)
    check_range(owner, f"({low}, inf)", high=high)
    check_range(owner, "[10, inf)", kind=Integral, steps=steps)
    check_range(owner, "(1, inf)", divergence=divergence)
    check_range(owner, "(0, inf)", smoothing=smoothing)
    _check_model(owner, model)
    climb = _Climb(np.geomspace(low, high, steps), divergence)
    with _put_back(model):
        model.fit(x, y, epochs=steps, callbacks=[climb], verbose=0, **fit)
    return LearningRateFinder(climb.rates[: len(climb.losses)], climb.losses, smoothing=smoothing)


def _check_model(owner, model):
    remedies = {"built": "Give it a keras.Input, or call it on a batch.", "compiled": "Call model.compile."}
    for state, remedy in remedies.items():
        if not getattr(model, state):
            raise ValueError(f"{owner}: model must be {state}, got {model!r}. {remedy}")
    rate = model.optimizer.learning_rate
    if not isinstance(rate, keras.Variable):
        raise ValueError(
            f"{owner}: the optimizer's learning_rate must be a number, got a schedule, which begins at "
            f"{float(rate):.3g}. Compile with a number first, and with the schedule once its peak is found."
        )


@contextlib.contextmanager
def _put_back(model):
    """On leaving, all variables are what they were."""
    if not model.optimizer.built:
        strategy = getattr(model, "distribute_strategy", None)
        with strategy.scope() if strategy else contextlib.nullcontext():
            model.optimizer.build(model.trainable_variables)
    variables = [*model.variables, *model.optimizer.variables]
    values = [keras.ops.convert_to_numpy(variable).copy() for variable in variables]
    try:
        yield
    finally:
        _sync(model)
        for variable, value in zip(variables, values, strict=True):
            variable.assign(value)
        model.reset_metrics()


def _sync(model):
    """On JAX, Keras keeps the state out of the variables while it trains: brings it in."""
    if hasattr(model, "jax_state_sync"):
        model.jax_state_sync()


class _Climb(keras.callbacks.Callback):
    """Raises the learning rate with each batch, and notes the batch's loss."""

    def __init__(self, rates, divergence):
        super().__init__()
        self.rates, self.divergence = rates, divergence
        self.losses, self.mean, self.lowest = [], 0.0, np.inf

    def on_train_batch_begin(self, batch, logs=None):
        _sync(self.model)
        self.model.reset_metrics()  # else the loss would be a mean over the epoch so far
        self.model.optimizer.learning_rate.assign(self.rates[len(self.losses)])

    def on_train_batch_end(self, batch, logs):
        self.losses.append(loss := float(logs["loss"]))
        self.mean += 0.1 * (loss - self.mean)
        seen, diverged = len(self.losses), False
        if seen >= 10:  # the mean of fewer is noise
            mean = self.mean / (1 - 0.9**seen)
            self.lowest = min(self.lowest, mean)
            diverged = mean - self.lowest > (self.divergence - 1) * abs(self.lowest)
        self.model.stop_training = diverged or not np.isfinite(loss) or seen == len(self.rates)
