"""Which strategy is meant, and how a batch is shared among its replicas."""

import contextlib
import copyreg
import logging

import tensorflow as tf
from keras import tree
from tensorflow.python.eager import context  # pyright: ignore[reportMissingImports]

from kopt.distribute.checks import MIRRORED, RUNS_ON, check_collectives, check_keras_distribution, loops
from kopt.distribute.shares import number_of, sharing

CHOICES = f"None, 'auto', 'mirrored', 'multi_worker' or {RUNS_ON}"

NO_TPUS = (
    "kopt does not train on TPUs yet. TensorFlow's last build for them is tensorflow-tpu 2.20.0, for TPU VMs: try "
    "Keras's own fit there, in the scope of a tf.distribute.TPUStrategy, where kopt's optimizers have not been tried."
)

_kept = {}  # one strategy object for each kind and set of devices: a second one could not share its variables


def _of_devices(kind, devices):
    if issubclass(kind, tf.distribute.OneDeviceStrategy):
        return kind(devices[0])
    return kind(devices, cross_device_ops=_sums(devices))


def _sums(devices):
    """How replicas on these devices sum: TensorFlow's default aborts where a process uses two sets of CPUs."""
    return tf.distribute.ReductionToOneDevice() if "CPU" in devices[0].upper() else None


def _described(strategy):
    return _of_devices, (type(strategy), strategy.extended.worker_devices)


for _kind in (tf.distribute.MirroredStrategy, tf.distribute.OneDeviceStrategy):
    copyreg.pickle(_kind, _described)  # an estimator travels to workers with its strategy: its kind and its devices


def _of_workers(owner="kopt"):
    """The strategy of the processes that TF_CONFIG names: there is one in a process.

    Raises:
        ValueError: it is too late for it, or there is another one.
    """
    for strategy in _kept.values():
        if isinstance(strategy, tf.distribute.MultiWorkerMirroredStrategy):
            return strategy
    if context.context().coordination_service is not None:
        raise ValueError(
            f"{owner}: strategy must be the MultiWorkerMirroredStrategy that there is, as a process can have but one, "
            "got 'multi_worker'."
        )
    try:
        return _keep(tf.distribute.MultiWorkerMirroredStrategy())
    except RuntimeError as error:
        raise ValueError(
            f"{owner}: strategy='multi_worker' must be the first that TensorFlow hears in a process. Make "
            "tf.distribute.MultiWorkerMirroredStrategy() at the beginning of the script, and give that."
        ) from error


def _keep(strategy):
    return _kept.setdefault((type(strategy), strategy.extended.worker_devices, loops(strategy)), strategy)


def _workers_described(strategy):
    _keep(strategy)
    return _of_workers, ()


copyreg.pickle(tf.distribute.MultiWorkerMirroredStrategy, _workers_described)


def resolve(strategy, owner="kopt", device=None):
    """Returns the strategy that is meant, or None for plain single-device training.

    Args:
        strategy: None (one device), `"auto"` (all devices of the best kind if there are several, else one),
            `"mirrored"` (all GPUs, or all logical CPUs where there is no GPU), `"multi_worker"` (the processes that the
            environment variable TF_CONFIG names), or an instance.
        owner: who asks, for the error.
        device: the one device to compute on, as in `"CPU"` and `"GPU:1"`; None for TensorFlow's choice.

    Raises:
        ValueError: the strategy is none of these, there is no such device, or a strategy's scope is already entered.
    """
    check_keras_distribution(owner)
    if tf.distribute.has_strategy():
        raise ValueError(f"{owner}: fit must run outside of any strategy's scope. Try {owner}(strategy='mirrored').")
    if device is not None:
        return _one_device(device, owner)
    if isinstance(strategy, str) and strategy == "multi_worker":
        return _of_workers(owner)
    if isinstance(strategy, str) and strategy == "tpu":
        raise ValueError(f"{owner}: strategy must be {CHOICES}, got 'tpu'. {NO_TPUS}")
    devices = tf.config.list_logical_devices("GPU") or tf.config.list_logical_devices("CPU")
    if strategy == "auto":
        names = ", ".join(device.name.removeprefix("/device:") for device in devices)
        logging.getLogger("kopt").info("%s: strategy='auto' trains on %s.", owner, names)
    if strategy is None or strategy is tf.distribute.get_strategy() or (strategy == "auto" and len(devices) == 1):
        return None
    if strategy in ("auto", "mirrored"):
        strategy = _of_devices(tf.distribute.MirroredStrategy, [device.name for device in devices])
    elif not isinstance(strategy, MIRRORED | tf.distribute.OneDeviceStrategy):
        raise ValueError(f"{owner}: strategy must be {CHOICES}, got {strategy!r}.")
    check_collectives(kept := _keep(strategy), owner)
    return kept


def _one_device(device, owner):
    """The strategy of one device, which its name means with or without slash, type in capitals, and number."""
    names = {each.name.removeprefix("/device:"): each.name for each in tf.config.list_logical_devices()}
    kind, _, number = device.upper().lstrip("/").removeprefix("DEVICE:").partition(":")
    if (name := names.get(f"{kind}:{number or 0}")) is None:
        raise ValueError(f"{owner}: device must be one of {', '.join(names)}, got {device!r}.")
    return _keep(tf.distribute.OneDeviceStrategy(name))


def replicas(strategy):
    """The number of devices that compute each step."""
    return 1 if strategy is None else strategy.num_replicas_in_sync


def scope(strategy):
    """The context to make variables and to run programs in. A strategy of one device is a plain device."""
    if strategy is None:
        return contextlib.nullcontext()
    if replicas(strategy) == 1:
        return tf.device(strategy.extended.worker_devices[0])
    return strategy.scope()


def run_shared(strategy, step, batch):
    """Runs `step` on every replica, each on its share of a batch, and returns what they return, a value per replica.

    Shares differ by one row at most, and are empty where there are fewer rows than replicas. Keras's losses of them add
    up to that of the batch: see `kopt.distribute.shares`.

    Args:
        strategy: of any number of replicas.
        step: a function of a batch, called on each replica with its share.
        batch: tensors with equally long first axes, or None, in tuples, lists and dicts.
    """

    def on_replica():
        context = tf.distribute.get_replica_context()
        number, count = context.replica_id_in_sync_group, context.num_replicas_in_sync
        with tf.device("CPU"):  # so that only the share travels to the replica
            share = batch if count == 1 else _share(batch, number, count)
        with sharing(share):
            return step(share)

    return strategy.run(on_replica)


def _share(batch, number, count):
    """A replica's rows of a batch."""
    rows = number_of(next(x for x in tree.flatten(batch) if x is not None))
    begin, end = rows * number // count, rows * (number + 1) // count
    return tree.map_structure(lambda x: None if x is None else _between(x, begin, end), batch)


def _between(x, begin, end):
    if not isinstance(x, tf.SparseTensor):
        return x[begin:end]
    start = tf.concat([[begin], tf.zeros_like(x.dense_shape[1:])], 0)
    return tf.sparse.slice(x, start, tf.concat([[end - begin], x.dense_shape[1:]], 0))


def joined(strategy, outputs):
    """The outputs of a batch: those of the replicas' shares in their order."""
    parts = [strategy.experimental_local_results(x) for x in tree.flatten(outputs)]
    return tree.pack_sequence_as(outputs, [tf.concat(part, 0) for part in parts])
