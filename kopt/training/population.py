"""`kopt.fit_population`: several like models trained as one program."""

import itertools
import math
from numbers import Integral

import keras
import numpy as np
import tensorflow as tf
from keras import tree

from kopt._checks import check_choice, check_range
from kopt.training import stacked
from kopt.training.alike import OWNER, check_alike
from kopt.training.memory import advised
from kopt.training.progress import order_of
from kopt.training.stacked import StackedModels


def fit_population(
    models,
    x,
    y=None,
    *,
    batch_size=32,
    epochs=1,
    verbose="auto",
    validation_data=None,
    shuffle=True,
    sample_weight=None,
    validation_batch_size=None,
    seed=None,
    jit_compile="auto",
):
    """Trains several models that differ in weights, seeds and hyperparameters at once, each as if it were alone.

    What they have in variables is stacked, and each step is one computation for all of them: a population trains at a
    fraction of the cost of its models one after the other, where a model alone leaves the machine idle. Results
    are those of training them apart, to rounding: with Keras's own steps, the same batches and the same random numbers.

        models = [make_model(learning_rate) for learning_rate in (1e-4, 1e-3, 1e-2)]
        histories = kopt.fit_population(models, x, y, epochs=10, validation_data=(x_val, y_val))

    Args:
        models: a list of compiled `keras.Model`s, of kopt or not, of one structure: layers, loss, metrics and
            optimizer. They may differ in weights, in the seeds of dropout and the like, and in the optimizer's
            numbers: all of a kopt optimizer's, the learning rate of one of Keras's.
        x: all rows: an array, or a list or dict of arrays.
        y: their targets, likewise.
        batch_size: rows in a step; the last one of an epoch takes what is left.
        epochs: how often to go over the rows.
        verbose: 0 for silence, 1 for a progress bar with the lowest losses; "auto" is 1.
        validation_data: `(x, y)` or `(x, y, sample_weight)`, to evaluate at the end of each epoch.
        shuffle: whether to visit rows in another order in each epoch.
        sample_weight: weights of the rows.
        validation_batch_size: rows to evaluate at a time; None for `batch_size`.
        seed: of the order: an integer, with which all models see the same batches, or a list with an integer for each
            model. None draws one for all.
        jit_compile: whether XLA compiles the program: True, False, or "auto", which is True from a thousand steps on,
            unless XLA cannot.

    Returns:
        A `keras.callbacks.History` for each model. A model whose loss is no longer finite stops none of the others.

    Raises:
        TypeError: `models` is no list of Keras models, or `x` no arrays.
        ValueError: an argument is out of range, a model differs from the first in more than numbers and seeds, or its
            step cannot be taken for several models at once; the message names what does not fit.
    """
    validation_batch_size = batch_size if validation_batch_size is None else validation_batch_size
    for name, value in dict(batch_size=batch_size, validation_batch_size=validation_batch_size, epochs=epochs).items():
        check_range(OWNER, "[1, inf)", kind=Integral, **{name: value})
    check_choice(OWNER, (0, 1, "auto"), verbose=verbose)
    check_choice(OWNER, (True, False), shuffle=shuffle)
    check_choice(OWNER, (True, False, "auto"), jit_compile=jit_compile)
    data, held_out = _tensors(x, y, sample_weight), None
    if validation_data is not None:
        x, y, sample_weight = keras.utils.unpack_x_y_sample_weight(tuple(validation_data))
        held_out = _tensors(x, y, sample_weight, "validation_data")
    first_row = tree.map_structure(lambda a: a[:1], data)
    check_alike(models, first_row[0])
    orders = _orders(seed, len(models), _rows(data), shuffle)
    for model in models:
        if getattr(model.optimizer, "averages", False):
            model.optimizer.swap("training")
    models[0].test_step(first_row)  # makes the metrics
    if epochs * math.ceil(_rows(data) / batch_size) < stacked.MANY and jit_compile == "auto":
        jit_compile = False
    population = StackedModels(models, batch_size, validation_batch_size, jit_compile)
    histories = [_history(model, epochs) for model in models]
    bar = keras.utils.Progbar(
        epochs, unit_name="epoch", verbose=int(verbose != 0), stateful_metrics=["loss", "val_loss"]
    )
    try:
        for epoch in range(epochs):
            with advised("Lower batch_size, or train fewer models at once."):
                logs = population.train(data, next(orders))
            if held_out is not None:
                logs |= {f"val_{name}": values for name, values in population.evaluate(held_out).items()}
            logs = tree.map_structure(np.asarray, logs)
            for number, history in enumerate(histories):
                history.on_epoch_end(epoch, tree.map_structure(lambda values, i=number: _number(values[i]), logs))
            bar.update(epoch + 1, [(name, _lowest(logs[name])) for name in ("loss", "val_loss") if name in logs])
    finally:
        population.write_back()
        models[0].reset_metrics()
    for model in models:
        model.optimizer.finalize_variable_values(model.trainable_variables)  # as Keras's fit does: averages, if any
    return histories


def _tensors(x, y, sample_weight, who="x"):
    """The data as tensors in a tuple of x, y and weights, as far as given; numbers in Keras's float type."""
    parts = x, y, sample_weight
    if sample_weight is None:
        parts = (x,) if y is None else (x, y)
    if not all(hasattr(a, "__array__") and not isinstance(a, str) for a in tree.flatten(parts)):
        raise TypeError(
            f"{OWNER}: {who} must be arrays, or lists or dicts of them, got {x!r}. Use fit for data that stream."
        )
    data = tree.map_structure(_tensor, parts)
    lengths = {a.shape[0] if a.shape.rank else 0 for a in tree.flatten(data)}
    if len(lengths) > 1 or 0 in lengths:
        raise ValueError(f"{OWNER}: {who} and what goes with it must have equally many rows, got {sorted(lengths)}.")
    return data


def _tensor(array):
    array = np.asarray(array)
    return tf.constant(array, keras.config.floatx() if array.dtype.kind == "f" else None)


def _rows(data):
    return tree.flatten(data)[0].shape[0]


def _orders(seed, models, rows, shuffle):
    """Yields the order of the rows in each epoch: numbers, or a row of them for each model."""
    own = isinstance(seed, list | tuple)
    if own and len(seed) != models:
        raise ValueError(f"{OWNER}: seed must have a number for each of {models} models, got {len(seed)}.")
    seeds = seed if own else [np.random.randint(2**31) if seed is None else seed]
    for each in seeds:
        check_range(OWNER, "[0, inf)", kind=Integral, seed=each)
    return _rows_in_order(seeds if own else seeds[0], rows, shuffle)


def _rows_in_order(seeds, rows, shuffle):
    for epoch in itertools.count():
        orders = [order_of(rows, 1, shuffle, seed, epoch) for seed in np.atleast_1d(seeds)]
        yield tf.constant(orders if isinstance(seeds, list | tuple) else orders[0], "int32")


def _history(model, epochs):
    """A callback that has begun to keep what the epochs of a model give."""
    history = keras.callbacks.History()
    history.set_model(model)
    history.set_params({"epochs": epochs})
    history.on_train_begin()
    return history


def _lowest(values):
    """The lowest of the values that are finite; one that is not where none is."""
    return min(values, key=lambda value: (not np.isfinite(value), value))


def _number(value):
    """A metric's value as Keras's histories have it."""
    return value if value.ndim else float(value)
