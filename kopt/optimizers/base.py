"""The base class of every optimizer: a pure rule in Keras's clothes."""

import re
from collections.abc import Iterable, Mapping
from types import SimpleNamespace
from typing import TypeAlias, TypedDict, Unpack

import keras
from keras.optimizers.schedules import LearningRateSchedule

from kopt.optimizers.hyperparameters import OPTIONS
from kopt.optimizers.step import Step

Scheduled: TypeAlias = float | LearningRateSchedule
"""What a float of a signature may be given: a number, or a schedule that is asked for one at each step."""


class CommonButDecay(TypedDict, total=False):
    """What optimizers take that name `weight_decay` in their own signature."""

    no_decay: str | Iterable[str]
    groups: Mapping[str, Mapping[str, float]]
    skip_nonfinite: bool
    clipnorm: float | None
    clipvalue: float | None
    global_clipnorm: float | None
    use_ema: bool
    ema_momentum: float
    ema_overwrite_frequency: int | None
    loss_scale_factor: float | None
    gradient_accumulation_steps: int | None
    name: str | None


class Common(CommonButDecay, total=False):
    """What every optimizer takes: the options of `keras.optimizers.Optimizer`, and kopt's."""

    weight_decay: Scheduled | None


class Optimizer(Step):
    """Base class of all kopt optimizers.

    A subclass writes its hyperparameters (the signature of `__init__`), its `slots` and its `direction`, and
    where needed `finish`, `settle`, `shared` with `measure` and `advance`, or `evaluation` with `training`. They read
    tensors and return tensors; only this base class assigns:

        u, slots ← direction(g, w, t, h, **slots)
        w ← settle(w - learning_rate · finish(u, w, h), h)        with finish(u, w, h) = u + weight_decay · w

    In every rule `g` is the gradient, `w` the weight, `t` the step (a float, from 1), `h` this step's
    hyperparameters by name, `u` the direction, `m` and `v` the first and second moments.

    A rule updates many weights at once. Those of one shape come stacked: `g`, `w` and the slots have a first axis
    that counts weights, and a rule that looks at a weight as a whole (`kopt.math.norm`) looks along the other axes.
    An `elementwise` rule gets weights of any shape, laid end to end or not.

    The floats of the signature are inputs of the compiled step: each may be a number or a
    `keras.optimizers.schedules.LearningRateSchedule`, and each may be set at any time
    (`optimizer.beta_1 = 0.95`) without tracing again.

    Weights in float16 and bfloat16 are updated in float32, the type of their slots too. Sparse gradients are made
    dense: every row takes part in every step, as the papers have it. Gradients are summed over replicas before they
    are clipped. Schedules count optimizer steps, also while gradients accumulate over several batches.

    Args:
        learning_rate: a number in [0, inf), a schedule, or a callable without arguments.
        **common: `weight_decay`, decoupled and multiplied by the learning rate; `no_decay`, a regular expression or
            several: a weight whose `path` one of them matches is not decayed; `groups`, factors for the weights
            whose `path` a regular expression matches, as in
            `{"^backbone/": {"learning_rate": 0.1}, "bias$": {"weight_decay": 0}}`: all that match a weight are
            multiplied, and a factor 0 of the learning rate freezes it; `skip_nonfinite`, whether to leave out steps
            whose gradients are not finite (`skipped_steps` counts them); `clipnorm`, `clipvalue`, `global_clipnorm`,
            `use_ema`, `ema_momentum`, `ema_overwrite_frequency`, `loss_scale_factor`, `gradient_accumulation_steps`
            and `name` as in `keras.optimizers.Optimizer`.

    Raises:
        TypeError: a hyperparameter is neither a number nor a schedule.
        ValueError: a hyperparameter is out of its range, or `no_decay` or `groups` holds no regular expressions.
    """

    def __init__(self, learning_rate: Scheduled = 1e-3, **common: Unpack[Common]):
        kept = SimpleNamespace(packs=[])
        self.__dict__.update(_given={}, _inputs=None, _wide=keras.config.floatx(), _kept=kept)
        if unknown := common.keys() - Common.__annotations__.keys():
            raise TypeError(self._no_such("argument", min(unknown)))
        learning_rate = self._given["learning_rate"] = self._checked("learning_rate", learning_rate)
        own = {name: common.pop(name, default) for name, default in OPTIONS.items()}
        super().__init__(learning_rate, **common)  # pyright: ignore[reportCallIssue]
        for name, value in own.items():
            setattr(self, name, value)

    def __init_subclass__(cls, **kwargs):
        """Makes the class known to `keras.saving` under its package's name, as in `kopt>Adam`."""
        super().__init_subclass__(**kwargs)
        keras.saving.register_keras_serializable(cls.__module__.partition(".")[0])(cls)

    def _view(self, kind=None, **changes):
        """A rule for some of the weights: this optimizer with the same hyperparameters and other attributes."""
        view = object.__new__(kind or type(self))
        view.__dict__.update(vars(self), **changes)
        return view

    def _get_current_learning_rate(self):
        return self._rate_after(self.iterations)

    def _rate_after(self, steps):
        """The learning rate after so many steps: a tensor, or the variable that holds it."""
        rate = self._learning_rate
        if isinstance(rate, LearningRateSchedule):
            return rate(steps)
        return rate() if callable(rate) and not isinstance(rate, keras.Variable) else rate

    def exclude_from_weight_decay(self, var_list=None, var_names=None):
        """Adds to `no_decay`, which is saved with the optimizer: Keras's way to say it.

        Args:
            var_list: variables that are not to decay.
            var_names: regular expressions; a weight whose path one of them matches does not decay.

        Raises:
            ValueError: the optimizer is built already.
        """
        exact = tuple(f"^{re.escape(variable.path)}$" for variable in var_list or ())
        self.no_decay = (*self.no_decay, *exact, *(var_names or ()))
