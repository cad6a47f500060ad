"""Processes that train together: which of them writes, what they agree on, and how all end when one is told to."""

import contextlib
import functools
import signal
import threading
import time

import numpy as np
import tensorflow as tf

END = 128 + signal.SIGTERM
"""The exit code of a process that was told to end."""

SAME_FILE = "Give kopt.Checkpoint a path that all of them see."


def several(strategy):
    """Whether a strategy is of several processes."""
    kind = tf.distribute.MultiWorkerMirroredStrategy
    return isinstance(strategy, kind) and len(strategy.cluster_resolver.cluster_spec().as_dict()) > 0


def is_chief(strategy):
    """Whether this process is the one that writes files: the only one, or the first of several."""
    if not several(strategy):
        return True
    resolver = strategy.cluster_resolver
    return resolver.task_type == "chief" or (resolver.task_id == 0 and "chief" not in resolver.cluster_spec().jobs)


def of_all(strategy, *numbers):
    """Returns the integers that processes have, a row for each replica, the chief's first. All have to ask at once."""
    return _of_all(strategy)(tf.constant(numbers, tf.int64)).numpy() if several(strategy) else np.array([numbers])


@functools.cache
def _of_all(strategy):
    """The collective, compiled once."""

    def on_replica(numbers):
        here = tf.distribute.get_replica_context()
        own = tf.one_hot(here.replica_id_in_sync_group, here.num_replicas_in_sync, dtype=tf.int64)
        return here.all_reduce("SUM", own[:, None] * numbers)

    def run(numbers):
        return strategy.experimental_local_results(strategy.run(on_replica, (numbers,)))[0]

    return tf.function(run, [tf.TensorSpec([None], tf.int64)], autograph=False)


def agree(random, strategy):
    """Gives a `numpy.random.RandomState` of each process the state of the chief's."""
    if several(strategy):
        kind, keys, place, *_ = random.get_state()
        *keys, place = of_all(strategy, *keys, place)[0]
        random.set_state((kind, np.array(keys, "uint32"), int(place)))


def check_alike(strategy, progress, data):
    """Raises ValueError where processes do not begin at the same step, or have not the same number of rows or batches.

    Args:
        strategy: that they train with.
        progress: of the fit.
        data: `kopt.training.rows.Rows`, or a `kopt.training.stream.Stream`.
    """
    facts = (
        ("have the same number of rows", getattr(data, "number", 0), "kopt shares out the rows of each batch."),
        ("take the same number of steps", data.steps or 0, "kopt shares out the rows of each batch."),
        ("begin in the same epoch", progress.epoch, SAME_FILE),
        ("begin at the same step of an epoch", progress.step, SAME_FILE),
        ("have the same seed", progress.seed, SAME_FILE),
    )
    found = of_all(strategy, *(number for _, number, _ in facts)).T
    for (what, _, hint), numbers in zip(facts, found, strict=True):
        if len(different := np.unique(numbers)) > 1:
            raise ValueError(f"kopt.Model: all workers must {what}, got {' and '.join(map(str, different))}. {hint}")


@contextlib.contextmanager
def apart(model, owner):
    """A context in which each of several processes computes by itself, as if its model were on one device.

    Raises:
        ValueError: the scope of their strategy is entered.
    """
    strategy = model._distribute_strategy
    if not several(strategy):
        yield
        return
    if tf.distribute.has_strategy():
        raise ValueError(
            f"{owner} must be called outside of the strategy's scope, since each worker does so by itself."
        )
    model._distribute_strategy = None
    try:
        yield
    finally:
        model._distribute_strategy = strategy


class Ending:
    """A context in which SIGTERM does not end the process at once: it is told, and ends where it is in order.

    Schedulers send it some time before they take a machine away. Of several processes that train together all end when
    one is told to. It listens in the main thread alone, as Python has it, and where nobody else does.

    Args:
        strategy: that they train with.
    """

    def __init__(self, strategy):
        self._several, self._strategy, self._told = several(strategy), strategy, False
        self._calls, self._wait, self._asked = 0, 1, time.monotonic()

    def __enter__(self):
        in_main = threading.current_thread() is threading.main_thread()
        self._listens = in_main and signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
        if self._listens:
            signal.signal(signal.SIGTERM, self._note)
        return self

    def __exit__(self, kind, error, _):
        if self._listens:
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
        if self._told and (error is None or isinstance(error, tf.errors.OpError)):  # the others have ended before
            raise SystemExit(END) from None

    def _note(self, *_):
        self._told = True

    def told(self, now=True):
        """Whether this process or another one was told to end. All have to call it at once.

        Args:
            now: whether to ask the others in any case; else they are asked about once a second.
        """
        if not self._several:
            return self._told
        self._calls += 1
        if self._calls < self._wait and not now:
            return False
        calls = self._calls / max(time.monotonic() - self._asked, 1e-3)
        found = of_all(self._strategy, -1 if self._told else max(int(calls), 1))
        self._calls, self._wait, self._asked = 0, int(found[0, 0]), time.monotonic()
        return bool((found < 0).any())
