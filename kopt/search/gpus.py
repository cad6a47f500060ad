"""The GPUs of a machine, shared out among the processes of a search: one for each, as far as there are."""

import contextlib
import functools
import itertools
import os
import pathlib
import tempfile

from joblib import effective_n_jobs

from kopt._forks import tensorflow_has_started
from kopt._locks import lock
from kopt.search.networks import networks_in

_held = contextlib.ExitStack()
"""Files that this process keeps open and locked: what it has claimed."""


def number_of_jobs(n_jobs, estimator):
    """How many fits there are at a time: for networks, where `n_jobs` counts from all, all means the GPUs."""
    if n_jobs is not None and n_jobs < 0 and networks_in(estimator) and (gpus := _gpus()):
        return max(len(gpus) + 1 + n_jobs, 1)
    return effective_n_jobs(n_jobs)


def give_one(networks):
    """Lets networks that name no device train on the GPU that is this process's own, if the machine has any."""
    for network in networks:
        if network.device is None and network.strategy is None:
            network.device = _own()


def claim(names, directory):
    """Returns the one among the names that the fewest processes have claimed, and claims it as long as this one lives.

    Args:
        names: file names.
        directory: where the claims of all processes are.
    """
    directory.mkdir(mode=0o700, exist_ok=True)
    for turn in itertools.count():
        for name in names:
            file = _held.enter_context(open(directory / f"{name}-{turn}", "w"))  # noqa: SIM115
            try:
                lock(file, wait=False)
            except OSError:
                file.close()
            else:
                return name


@functools.cache
def _own():
    """The device that this process has claimed; None where it sees no other, or the machine has none."""
    import tensorflow as tf

    if not (gpus := _gpus()):
        return None
    user = os.getuid() if hasattr(os, "getuid") else "all"
    number = claim(range(len(gpus)), pathlib.Path(tempfile.gettempdir()) / f"kopt-gpus-{user}")
    if tensorflow_has_started():  # in an earlier life of this process
        return f"GPU:{number}"
    tf.config.set_visible_devices(gpus[number], "GPU")
    tf.config.experimental.set_memory_growth(gpus[number], True)  # it may be shared after all, with the final fit
    return None


def _gpus():
    import tensorflow as tf

    return tf.config.list_physical_devices("GPU")
