"""A callback that saves where a fit stands, and goes on from there to bitwise the same weights."""

import contextlib
import json
import pathlib
from typing import Any

import numpy as np

from kopt._checks import check_choice
from kopt.distribute.workers import END, Ending, is_chief
from kopt.training import loop
from kopt.training.files import read_as, write_arrays
from kopt.training.model import Model
from kopt.training.program import weights
from kopt.training.state import Regular, entries_of, parts_of, restore_entries, restore_parts

FORMAT = 2
"""Of the files. A later one says what it is, so that nothing is read as what it is not."""


class Checkpoint(Regular):
    """Saves a fit while it runs; the same `fit` called again goes on where the file has it, from within an epoch, too.

    The weights, the optimizer's state with the step that schedules ask for, the random states of layers, the order of
    rows and how many of them were seen, metrics and history are saved. After a crash, a `kill -9` or Ctrl-C, the
    same program, run again, ends with bitwise the same weights and history as if nothing had happened, on the same
    machine. Where the fit was finished, `fit` with more `epochs` adds them.

    Files are written beside and then renamed, so that there is always a whole one. SIGTERM, which schedulers send
    before they take a machine away, saves at the end of the step, and ends the process with code 143.

    Of several workers the chief writes, and all read: the folder has to be one that all of them see. When one is told
    to end, all do.

    The file does not depend on where variables lie: a fit may go on over another mesh, or on one device.

    It needs a `kopt.Model`, whose `fit` can begin within an epoch; `keras.callbacks.BackupAndRestore` does the same for
    whole epochs of any model. Put it last among the callbacks: their own state, as the patience of `EarlyStopping`,
    it does not save. Data that come as a `tf.data.Dataset`, or from a generator, must come in the same order again: the
    batches that were seen are skipped.

    Args:
        path: of the file, as in `"run.ckpt"`. Directories are made.
        every: when to save: `"epoch"`, at the end of each, or a number of steps.
        resume: whether to go on from a file that is there. If not, it is overwritten.

    Raises:
        ValueError: the model is no `kopt.Model`, or its steps are Keras's to take; or the file is of another model.

    Example:
        >>> model.fit(x, y, epochs=100, callbacks=[kopt.Checkpoint("run.ckpt", every=1000)])  # doctest: +SKIP
    """

    def __init__(self, path, *, every="epoch", resume=True):
        super().__init__(every)
        self.path = pathlib.Path(path)
        self.resume = check_choice(self, (True, False), resume=resume)
        self._metrics, self._ending = [], False
        self._history: Any = None
        self._end = Ending(None)

    @contextlib.contextmanager
    def fitting(self):
        """The context that `fit` runs in: one in which SIGTERM lets a process save."""
        with Ending(self.model.distribute_strategy) as self._end:
            yield
        self._end = Ending(None)

    def on_train_begin(self, logs=None):
        """Goes on from the file, if there is one."""
        super().on_train_begin(logs)
        self._check_model()
        if not self.model.optimizer.built:  # a loss-scale wrapper would make its variables once more
            self.model.optimizer.build(self.model.trainable_variables)
        self._metrics, self._history, self._ending = [], None, False
        self.path.parent.mkdir(parents=True, exist_ok=True)
        if self.resume and self.path.exists():
            self._read()

    def _check_model(self):
        if not isinstance(self.model, Model) or not loop.in_one_program(self.model, "train"):
            raise ValueError(
                "Checkpoint: the model must be a kopt.Model that is not run eagerly or by a train function of its own, "
                f"got {self.model.name}. Try kopt.Model(model.inputs, model.outputs), or "
                "keras.callbacks.BackupAndRestore."
            )
        if not self.model.built:
            raise ValueError(f"Checkpoint: {self.model.name} must be built before fit. Call it on some rows, or build.")

    def on_epoch_begin(self, epoch, logs=None):
        """Gives the history back: Keras's own callback clears it before."""
        self._give_history()

    def on_train_batch_begin(self, batch, logs=None):
        """Gives the metrics back: `fit` resets them before, and makes some in the first step's trace."""
        super().on_train_batch_begin(batch, logs)
        if self._metrics:
            restore_parts(self.model.metrics_variables, self._metrics, self.model.distribute_strategy)
            self._metrics = []

    def on_train_batch_end(self, batch, logs=None):
        """Saves, where it is time; after the last batch, the end of the epoch does."""
        told, steps = self._end.told(now=False), self.params.get("steps")
        due = self.is_due(batch) or told
        self._ending = due and (steps is None or batch + 1 == steps)
        if due and batch + 1 != steps:
            self._write(self.model.history.history, self.model.history.epoch)
            _end_if(told)

    def on_epoch_end(self, epoch, logs=None):
        """Saves, where it is time."""
        told = self._end.told()
        if self.every == "epoch" or self._ending or told:
            self._ending = False
            past = self.model.history.history
            history = {name: [*past.get(name, []), value] for name, value in (logs or {}).items()}
            self._write(past | history, [*self.model.history.epoch, epoch])
            _end_if(told)

    def on_train_end(self, logs=None):
        """Gives the history back where no epoch was left to do."""
        self._give_history()

    def _give_history(self):
        if self._history is not None:
            self.model.history.history, self.model.history.epoch = self._history
            self._history = None

    def _write(self, history, epochs):
        progress, strategy = self.model.progress, self.model.distribute_strategy
        where = dict(seed=progress.seed, epoch=progress.epoch, step=progress.step)
        kept: dict[str, Any] = {"metrics": parts_of(self.model.metrics_variables, strategy)}  # of all workers
        if not is_chief(strategy):
            return
        entries = entries_of(self.model)
        kept["variables"] = entries.values()
        about: dict[str, Any] = dict(format=FORMAT, progress=where, history=_plain(history), epochs=epochs)
        about["variables"] = _specs(entries)
        arrays: Any = {f"{kind}/{i}": x for kind, each in kept.items() for i, x in enumerate(each)}
        write_arrays(self.path, arrays | {"about": np.array(json.dumps(about))})

    def _read(self):
        with np.load(self.path, allow_pickle=False) as file:
            about = json.loads(str(file["about"])) if "about" in file else {}
            if about.get("format") != FORMAT:
                raise ValueError(f"Checkpoint: {self.path} must be a file that Checkpoint wrote. Choose another path.")
            own = entries_of(self.model)
            self._check_variables(about["variables"], _specs(own))
            numbers = {name: i for i, (name, *_) in enumerate(about["variables"])}
            found = {name: read_as(file[f"variables/{numbers[name]}"], array.dtype) for name, array in own.items()}
            restore_entries(self.model, found)
            within = about["progress"]["step"] > 0
            self._metrics = [file[name] for name in file.files if name.startswith("metrics/") and within]
        for name, value in about["progress"].items():
            setattr(self.model.progress, name, value)
        self._history = about["history"], about["epochs"]
        optimizer = getattr(self.model.optimizer, "inner_optimizer", self.model.optimizer)
        if getattr(optimizer, "averages", False):
            optimizer.swap("training")

    def _check_variables(self, saved, own):
        there, here = ({name: what for name, *what in specs} for specs in (saved, own))
        paths = {f"weight {number}": variable.path for number, variable in enumerate(weights(self.model))}
        for name in [*there, *here]:
            if there.get(name) != here.get(name):
                raise ValueError(
                    f"Checkpoint: {self.path} must be of this model and optimizer, and has {_told(there.get(name))} "
                    f"for {paths.get(name, name)!r}, where the model has {_told(here.get(name))}. Delete it, or set "
                    "resume=False."
                )


def _end_if(told):
    if told:
        raise SystemExit(END)


def _specs(entries):
    """The name, shape and type of each entry."""
    return [[name, list(array.shape), str(array.dtype)] for name, array in entries.items()]


def _told(what):
    return "nothing" if what is None else f"shape {what[0]} and type {what[1]}"


def _plain(history):
    """A history in JSON's types."""
    return {name: [np.asarray(value).tolist() for value in values] for name, values in history.items()}
