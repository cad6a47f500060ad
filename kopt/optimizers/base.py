"""The contract of every optimizer: a pure rule (`slots`, `direction`, `finish`); the base class does the rest."""

import re
from collections.abc import Iterable
from types import SimpleNamespace
from typing import Any, ClassVar, NamedTuple, TypeAlias, TypedDict, Unpack

import keras
from keras import ops
from keras.optimizers.schedules import LearningRateSchedule

from kopt._backend import dense, is_mirrored, outside_the_trace
from kopt.optimizers.hyperparameters import Hyperparameters

Scheduled: TypeAlias = float | LearningRateSchedule
"""What a float of a signature may be given: a number, or a schedule that is asked for one at each step."""


class Slot(NamedTuple):
    """State kept for a weight.

    Attributes:
        shape: its shape, usually the weight's.
        initial: the number that fills it at the start.
    """

    shape: tuple[int, ...]
    initial: float = 0.0


class CommonButDecay(TypedDict, total=False):
    """What optimizers take that name `weight_decay` in their own signature."""

    no_decay: str | Iterable[str]
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
    """What every optimizer takes: the options of `keras.optimizers.Optimizer`, and `no_decay`."""

    weight_decay: Scheduled | None


class _Kept(NamedTuple):
    """What the base keeps for one weight."""

    slots: dict[str, Any]
    dtype: str  # in which its rule computes
    decays: bool


class Optimizer(Hyperparameters, keras.optimizers.Optimizer):
    """Base class of all kopt optimizers.

    A subclass writes its hyperparameters (the signature of `__init__`), its `slots` and its `direction`, and
    where needed `finish` and `shared`. They read tensors and return tensors; only this base class assigns:

        u, slots ← direction(g, w, t, h, **slots)
        w ← w - learning_rate · finish(u, w, h)        with finish(u, w, h) = u + weight_decay · w

    In every rule `g` is the gradient, `w` the weight, `t` the step (a float, from 1), `h` this step's
    hyperparameters by name, `u` the direction, `m` and `v` the first and second moments. The floats of the
    signature are inputs of the compiled step: each may be a number or a
    `keras.optimizers.schedules.LearningRateSchedule`, and each may be set at any time
    (`optimizer.beta_1 = 0.95`) without tracing again.

    Weights in float16 and bfloat16 are updated in float32, the type of their slots too. Sparse gradients are made
    dense: every row takes part in every step, as the papers have it. Gradients are summed over replicas before they
    are clipped. Schedules count optimizer steps, also while gradients accumulate over several batches.

    Args:
        learning_rate: a number in [0, inf), a schedule, or a callable without arguments.
        **common: `weight_decay`, decoupled and multiplied by the learning rate; `no_decay`, a regular expression or
            several: a weight whose `path` one of them matches is not decayed; `clipnorm`, `clipvalue`,
            `global_clipnorm`, `use_ema`, `ema_momentum`, `ema_overwrite_frequency`, `loss_scale_factor`,
            `gradient_accumulation_steps` and `name` as in `keras.optimizers.Optimizer`.

    Raises:
        TypeError: a hyperparameter is neither a number nor a schedule.
        ValueError: a hyperparameter is out of its range, or `no_decay` is no regular expression.
    """

    elementwise: ClassVar[bool] = False
    """Whether each entry of the direction depends on that same entry of `g`, `w` and the slots alone."""

    def __init__(self, learning_rate: Scheduled = 1e-3, **common: Unpack[Common]):
        self.__dict__.update(_given={}, _inputs=None)
        if unknown := common.keys() - Common.__annotations__.keys():
            known = ", ".join(self._signature())
            raise TypeError(f"{type(self).__name__} takes no argument {min(unknown)!r}, but {known}.")
        learning_rate = self._given["learning_rate"] = self._checked("learning_rate", learning_rate)
        no_decay = common.pop("no_decay", ())
        super().__init__(learning_rate, **common)  # pyright: ignore[reportCallIssue]
        self.no_decay = no_decay

    def __init_subclass__(cls, **kwargs):
        """Makes the class known to `keras.saving` under its package's name, as in `kopt>Adam`."""
        super().__init_subclass__(**kwargs)
        keras.saving.register_keras_serializable(cls.__module__.partition(".")[0])(cls)

    # ---- what an algorithm writes --------------------------------------------------------------------------------

    def slots(self, shape) -> dict[str, Slot | tuple[int, ...]]:
        """The state kept for a weight of this shape, by name; a bare shape starts at zero."""
        return {}

    def direction(self, g, w, t, h, **slots):
        """Returns `(u, slots)`: the direction, and the new value of each slot."""
        raise NotImplementedError(f"{type(self).__name__} must define direction(g, w, t, h, **slots).")

    def finish(self, u, w, h):
        """u + weight_decay * w"""
        return u if h.weight_decay is None else u + h.weight_decay * w

    def shared(self) -> dict[str, float]:
        """Scalars kept once for all weights, by name, with their initial values. Rules find them in `h`."""
        return {}

    def advance(self, t, h):
        """Returns the new value of each shared scalar: once a step, before the directions."""
        return {}

    # ---- what the base does --------------------------------------------------------------------------------------

    def build(self, variables):
        """Makes the state for these variables, once.

        Args:
            variables: the trainable `keras.Variable`s, each with a fully known shape.

        Raises:
            ValueError: an option cannot be had under the strategy in whose scope the optimizer was made.
        """
        if self.built:
            return
        for name in ("gradient_accumulation_steps", "ema_overwrite_frequency"):
            if getattr(self, name) and is_mirrored(self):
                raise ValueError(
                    f"{type(self).__name__}: {name} must be None under a mirrored strategy, whose replicas cannot "
                    f"decide alone whether to step, got {getattr(self, name)}."
                )
        with outside_the_trace():
            super().build(variables)
            dtypes = [keras.backend.standardize_dtype(v.dtype) for v in variables]
            wide = "float64" if "float64" in dtypes else "float32"
            if isinstance(rate := self._given["learning_rate"], float) and self._learning_rate.dtype != wide:
                self._untrack_variable(self._learning_rate)  # Keras made a float32 of it
                self._learning_rate = self._scalar("learning_rate", rate, wide)
            inputs = {name: self._scalar(name, self._given[name], wide) for name in self._float_inputs()}
            shared = {name: self._scalar(name, value, wide) for name, value in self.shared().items()}
            kept = [self._keep(v) for v in variables]
        self.__dict__.update(_wide=wide, _inputs=inputs, _shared=shared, _kept=kept)

    def _scalar(self, name, value, dtype):
        def initial(shape, dtype):
            return ops.convert_to_tensor(value, dtype)

        return self.add_variable((), initial, dtype, aggregation="only_first_replica", name=name)

    def _keep(self, variable):
        if self._overwrite_variable_with_gradient(variable):
            return _Kept({}, variable.dtype, False)
        path = getattr(variable, "path", variable.name)
        dtype = keras.backend.standardize_dtype(variable.dtype)
        wide = dtype if dtype == "float64" else "float32"
        slots = {}
        for name, slot in self.slots(tuple(variable.shape)).items():
            slot = slot if isinstance(slot, Slot) else Slot(slot)

            def initial(shape, dtype, value=slot.initial):
                return ops.full(shape, value, dtype)

            if slot.shape == tuple(variable.shape) and wide == dtype:  # laid out over devices as the weight is
                slots[name] = self.add_variable_from_reference(variable, name, initial)
            else:
                slots[name] = self.add_variable(slot.shape, initial, wide, name=f"{path.replace('/', '_')}_{name}")
        return _Kept(slots, wide, not any(re.search(pattern, path) for pattern in self.no_decay))

    def _same_slots(self):
        """Whether the hyperparameters, as they are now, ask for the slots that were built."""
        return all(
            self.slots(tuple(v.shape)).keys() == kept.slots.keys()
            for v, kept in zip(self._trainable_variables, self._kept, strict=True)
            if not self._overwrite_variable_with_gradient(v)
        )

    def _backend_apply_gradients(self, grads, trainable_variables):
        """Sums gradients over replicas and rows first: what clips and accumulates sees them as one device has them."""
        if hasattr(super(), "_all_reduce_sum_gradients"):
            pairs = super()._all_reduce_sum_gradients(zip(grads, trainable_variables, strict=True))
            grads = [gradient for gradient, _ in pairs]
        super()._backend_apply_gradients([dense(gradient) for gradient in grads], trainable_variables)

    def _all_reduce_sum_gradients(self, grads_and_vars):
        """Nothing is left to sum: see `_backend_apply_gradients`."""
        return grads_and_vars

    def _backend_update_step(self, grads, trainable_variables, learning_rate):
        """Hands `update_step` this step's number and hyperparameters in the place of the learning rate."""
        now = {n: x(self.iterations) for n, x in self._given.items() if isinstance(x, LearningRateSchedule)}
        now |= {name: dense(variable) for name, variable in (self._inputs | self._shared).items()}
        now |= {"t": self.iterations + 1, "learning_rate": dense(learning_rate)}
        now = {name: ops.cast(x, self._wide) for name, x in now.items()}
        shared = self.advance(now["t"], SimpleNamespace(**now))
        for name, value in shared.items():
            self.assign(self._shared[name], value)
        super()._backend_update_step(grads, trainable_variables, now | shared)

    def update_step(self, gradient, variable, now):
        """Updates one weight and its slots."""
        kept = self._kept[self._get_variable_index(variable)]
        h = SimpleNamespace(**{name: ops.cast(x, kept.dtype) for name, x in now.items()})
        h.weight_decay = h.weight_decay if kept.decays and "weight_decay" in now else None
        g = ops.cast(gradient, kept.dtype)
        w = ops.cast(dense(variable), kept.dtype)
        u, new = self.direction(g, w, h.t, h, **{name: dense(slot) for name, slot in kept.slots.items()})
        if new.keys() != kept.slots.keys():
            raise ValueError(
                f"{type(self).__name__}: direction must return the slots {sorted(kept.slots)}, got {sorted(new)}."
            )
        for name, value in new.items():
            self.assign(kept.slots[name], value)
        self.assign(variable, ops.cast(w - h.learning_rate * self.finish(u, w, h), variable.dtype))

    def _get_current_learning_rate(self):
        if isinstance(self._learning_rate, LearningRateSchedule):
            return self._learning_rate(self.iterations)
        return super()._get_current_learning_rate()

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

    def _apply_weight_decay(self, variables):
        """Decay is a part of the step (see `finish`), so Keras must not apply it again."""
