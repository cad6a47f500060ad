"""Keras's `fit`, `evaluate` and `predict`, around compiled programs of many steps: callbacks, validation, progress."""

import contextlib
import functools
import time
import warnings
from numbers import Integral

import keras
import numpy as np
import tensorflow as tf
from keras import tree

from kopt._checks import check_range
from kopt._keras import batches_of, numbers
from kopt.distribute import strategy as distributed
from kopt.distribute.checks import loops, strategy_of
from kopt.distribute.workers import check_alike, is_chief, of_all, several
from kopt.training.cache import Cache
from kopt.training.epochs import Epochs, Predictions, Step, Streamed, over_replicas
from kopt.training.memory import advised
from kopt.training.progress import Progress
from kopt.training.rows import Rows, are_rows, split_rows
from kopt.training.stream import Stream

LIVE, QUIET = 0.15, 1.0
"""Seconds that a call takes, about, where a progress bar waits for it, and where Ctrl-C may."""

SMALLER = (
    "Lower batch_size; gradient_accumulation_steps in the optimizer takes the same steps from several smaller batches. "
    "For kopt.LBFGS and other methods that take all rows at once, use kopt.minimize(micro_batch_size=...)."
)
FEWER = "Lower batch_size, or validation_batch_size in fit: the result is the same."
"""What helps when training runs out of memory, and when evaluation or prediction does."""


class Engine:
    """What a model keeps of its compiled programs from call to call.

    Attributes:
        jit: True, False or "auto": whether to compile with XLA.
        validation: what a `fit` under way validates on, and how many steps it will take there.
    """

    def __init__(self, jit="auto"):
        self.jit, self.validation = jit, None
        self.forget()

    def forget(self):
        """Leaves all programs behind: they will be made anew."""
        self._programs = Cache(size=8)

    def program(self, model, task, data):
        """The program for a task on data of these types, from the cache or made anew."""

        def make():
            strategy, step = model.distribute_strategy, getattr(model, f"{task}_step")
            if tf.distribute.has_strategy():
                model._symbolic_build(data_batch=_packed(data.structure, data.specs))  # replicas make no variables
                step = over_replicas(strategy, model, task)
            step = Step(step, data.structure, data.specs, loops(strategy))
            if task == "predict":
                return Predictions(step)
            return (Epochs if isinstance(data, Rows) else Streamed)(model, step)

        return self._programs.find((task, *data.key), make)


def _packed(structure, parts):
    """A batch with these in the place of its tensors."""
    rest = iter(parts)
    return tree.map_structure(lambda part: None if part is None else next(rest), structure)


def in_one_program(model, task):
    """Whether a model's steps can be put into programs: else Keras's own loop has them, which the user asked for.

    That is: eager execution, or a `make_train_function` (..., a `train_function`) of the user's.

    Raises:
        ValueError: several processes are to take them, over which Keras's own loop fails.
    """
    libraries = "keras.", "kopt."
    own = not getattr(type(model), f"make_{task}_function").__module__.startswith(libraries)
    function = getattr(model, f"{task}_function")
    given = getattr(function, "python_function", function)  # Keras puts its own there too
    own = own or (given is not None and not given.__module__.startswith(libraries))
    if several(model.distribute_strategy) and (own or model.run_eagerly):
        got = "run_eagerly=True" if model.run_eagerly else f"a make_{task}_function of its own"
        raise ValueError(f"kopt.Model: steps of several workers must be compiled by kopt, got {got}.")
    return not own and not model.run_eagerly


@contextlib.contextmanager
def placed(model):
    """The context in which a model's programs are made and run: its strategy's scope, if it was made in one.

    Raises:
        ValueError: see `kopt.distribute.checks.strategy_of`.
    """
    strategy = strategy_of(model, "kopt.Model")
    alone = distributed.replicas(strategy) == 1
    device = strategy.extended.worker_devices[0] if strategy is not None and alone else None
    with contextlib.nullcontext() if strategy is None else strategy.scope(), tf.device(device):
        yield


def fit(
    model,
    *,
    x,
    y,
    batch_size,
    epochs,
    verbose,
    callbacks,
    validation_split,
    validation_data,
    shuffle,
    class_weight,
    sample_weight,
    initial_epoch,
    steps_per_epoch,
    validation_steps,
    validation_batch_size,
    validation_freq,
):
    """`keras.Model.fit` in compiled programs: arguments and result are the same."""
    model._assert_compile_called("fit")
    most = keras.config.max_epochs()
    if most and most < epochs:
        warnings.warn(f"Limiting epochs to {most}", stacklevel=3)
        epochs = most
    check_range("kopt.Model", "[0, 1)", validation_split=validation_split)
    if validation_split and validation_data is None:
        (x, y, sample_weight), validation_data = split_rows((x, y, sample_weight), validation_split)
    how = dict(steps_per_epoch=steps_per_epoch, class_weight=class_weight)
    data = _data(model, shuffle, x=x, y=y, sample_weight=sample_weight, batch_size=batch_size, **how)
    validation = None
    if validation_data is not None:
        x, y, sample_weight = keras.utils.unpack_x_y_sample_weight(validation_data)
        size = validation_batch_size or batch_size
        validation = dict(x=x, y=y, sample_weight=sample_weight, batch_size=size, steps=validation_steps)
    planned = epochs - initial_epoch  # from wherever it begins: the same steps are compiled in the same way
    with _validating(model, validation, planned), contextlib.ExitStack() as stack:
        callbacks = _listed(callbacks, model, verbose, epochs, data.steps, add_history=True)
        for callback in callbacks.callbacks:
            stack.enter_context(getattr(callback, "fitting", contextlib.nullcontext)())
        model.stop_training = False
        model.progress = Progress.begin(initial_epoch)
        model.progress.seed = int(of_all(model.distribute_strategy, model.progress.seed)[0, 0])
        callbacks.on_train_begin()
        progress = model.progress
        check_alike(model.distribute_strategy, progress, data)
        progress.epoch = model._initial_epoch or progress.epoch
        remaining, logs = range(progress.epoch, epochs), None
        for epoch in remaining:
            model.reset_metrics()
            callbacks.on_epoch_begin(epoch)
            with advised(SMALLER):
                logs = _epoch("train", model, data, callbacks, progress, planned * (data.steps or 0))
            if validation is not None and model._should_eval(epoch, validation_freq):
                how = dict(callbacks=callbacks, return_dict=True, _use_cached_eval_dataset=True)
                logs |= {f"val_{name}": value for name, value in model.evaluate(**validation, **how).items()}
            progress.epoch, progress.step = epoch + 1, 0
            callbacks.on_epoch_end(epoch, logs)
            if model.stop_training:
                break
    if isinstance(model.optimizer, keras.optimizers.Optimizer) and epochs > 0:
        model.optimizer.finalize_variable_values(model.trainable_weights)
    callbacks.on_train_end(logs=logs)
    return model.history


@contextlib.contextmanager
def _validating(model, arguments, times):
    """Keeps the data of these arguments of `evaluate` while it is called so many times."""
    if arguments is not None:
        how = dict(arguments)
        data = _data(model, False, steps_per_epoch=how.pop("steps"), **how)
        model._engine.validation = data, times * (data.steps or 0)
    try:
        yield
    finally:
        model._engine.validation = None


def _data(model, shuffle, *, x, y=None, sample_weight=None, **how):
    """The data, as rows or as a stream."""
    if (size := how["batch_size"]) is not None:
        check_range("kopt.Model", "[1, inf)", kind=Integral, batch_size=size)
    if any(tuple(getattr(array, "shape", ()))[:1] == (0,) for array in tree.flatten(x)):
        raise ValueError("kopt.Model: x must have rows, got none.")
    iterator = batches_of(x, y, sample_weight, shuffle=shuffle, **how)
    return Rows(iterator, shuffle) if are_rows(model, x, y, sample_weight) else Stream(iterator)


def evaluate(model, *, x, y, batch_size, verbose, sample_weight, steps, callbacks, return_dict, cached):
    """`keras.Model.evaluate` in compiled programs; where `cached`, on the data that `fit` validates on."""
    model._assert_compile_called("evaluate")
    if cached:
        data, planned = model._engine.validation
        data.rewind()
    else:
        how = dict(sample_weight=sample_weight, batch_size=batch_size, steps_per_epoch=steps)
        data = _data(model, False, x=x, y=y, **how)
        planned = data.steps or 0
    callbacks = _listed(callbacks, model, verbose, 1, data.steps)
    model.stop_evaluating = False
    callbacks.on_test_begin()
    model.reset_metrics()
    with advised(FEWER):
        logs = _epoch("test", model, data, callbacks, Progress(0), planned)
    callbacks.on_test_end(logs)
    return logs if return_dict else model._flatten_metrics_in_order(logs)


def _listed(callbacks, model, verbose, epochs, steps, add_history=False):
    """Callbacks as Keras calls them."""
    if isinstance(callbacks, keras.callbacks.CallbackList):
        return callbacks
    how = dict(
        add_history=add_history,
        add_progbar=verbose != 0 and is_chief(model.distribute_strategy),
        verbose=verbose,
        epochs=epochs,
        steps=steps,
    )
    return keras.callbacks.CallbackList(callbacks, model=model, **how)


def _epoch(task, model, data, callbacks, progress, planned):
    """Takes what is left of an epoch's steps, and returns the logs after them."""
    logs = None
    for found in _calls(task, model, data, callbacks, progress, planned, numbers):
        logs = found
    return numbers(model.get_metrics_result()) if logs is None else logs


def predict(model, *, x, batch_size, verbose, steps, callbacks):
    """`keras.Model.predict` in compiled programs; NotImplemented where Keras's own is to do it."""
    if not are_rows(model, x):
        return NotImplemented
    data = _data(model, False, x=x, batch_size=batch_size, steps_per_epoch=steps)
    if not model._engine.program(model, "predict", data).joins:
        return NotImplemented
    callbacks = _listed(callbacks, model, verbose, 1, data.steps)
    model.stop_predicting = False
    callbacks.on_predict_begin()
    found = _calls("predict", model, data, callbacks, Progress(0), data.steps, lambda outputs: {"outputs": outputs})
    with advised(FEWER):
        parts = [tree.map_structure(lambda x: x.numpy(), logs["outputs"]) for logs in found]
    callbacks.on_predict_end()
    return parts[0] if len(parts) == 1 else tree.map_structure(lambda *some: np.concatenate(some), *parts)


def _calls(task, model, data, callbacks, progress, planned, logs_of):
    """Calls a task's program until an epoch is over, or stopped, and yields the logs of each call."""
    begin, end = (getattr(callbacks, f"on_{task}_batch_{when}") for when in ("begin", "end"))
    stop = {"train": "stop_training", "test": "stop_evaluating", "predict": "stop_predicting"}[task]
    each = any(asks_for_batches(callback, task) for callback in callbacks.callbacks)
    seconds = LIVE if any(_is_live(callback) for callback in callbacks.callbacks) else QUIET
    program = model._engine.program(model, task, data)
    jit = model._engine.jit if distributed.replicas(model.distribute_strategy) == 1 else False
    run = functools.partial(program, jit=jit, planned=planned)
    with contextlib.closing(data.walk(progress)) as walk:
        taken = 0
        while walk.goes_on() and not (taken and getattr(model, stop)):
            begin(progress.step)
            start = time.perf_counter()
            steps = min(model.steps_per_execution, program.pace.most) if each else program.pace.steps(seconds)
            taken, found = walk.take(run, min([steps, *(_steps_to_go(callbacks) if task == "train" else ())]))
            if taken:
                logs = logs_of(found)
                program.pace.learn(taken, time.perf_counter() - start)
                progress.step += taken
                end(progress.step - 1, logs)
                yield logs


def _is_live(callback):
    """Whether a callback is a progress bar that moves."""
    return isinstance(callback, keras.callbacks.ProgbarLogger) and callback.verbose == 1


def _steps_to_go(callbacks):
    """After how many steps callbacks want to be called at the latest, as far as they say so."""
    found = (getattr(callback, "steps_to_go", None) for callback in callbacks.callbacks)
    return [steps for steps in found if steps is not None]


def asks_for_batches(callback, task):
    """Whether a callback wants to be called for every batch. A progress bar takes what it gets.

    So does one with an attribute `steps_to_go`: after how many steps it wants to be called at the latest, or None.
    """
    if hasattr(callback, "steps_to_go"):
        return False
    kinds = [keras.callbacks.Callback, keras.callbacks.ProgbarLogger]
    if getattr(callback, "save_freq", None) == "epoch":
        kinds += [keras.callbacks.ModelCheckpoint, keras.callbacks.BackupAndRestore]
    names = [f"on_{task}_batch_{when}" for when in ("begin", "end")]
    if task == "train":
        names += ["on_batch_begin", "on_batch_end"]
    for name in names:
        method = getattr(callback, name)
        if getattr(method, "__func__", method) not in [getattr(kind, name) for kind in kinds]:
            return True
    return False
