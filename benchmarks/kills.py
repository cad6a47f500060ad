"""Kills one of several workers at a random moment, and compares what all come to with a launch that nobody disturbs.

Workers train a network with random masks, moving averages and a schedule on scikit-learn's digits, under
`python -m kopt launch`, and `kopt.Checkpoint` saves every 25 steps. `kill -9` ends one of them at a moment that is
drawn from the whole time of an undisturbed launch: while TensorFlow starts, in the first steps, while a file is
written. All weights, the optimizer's state and the history of losses have to be the same, bit by bit.

    python benchmarks/kills.py
    python benchmarks/kills.py --times 3 --workers 2
"""

import argparse
import os
import pathlib
import random
import re
import signal
import subprocess
import sys
import tempfile
import threading
import time

os.environ["CUDA_VISIBLE_DEVICES"] = "-1"
os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"

import numpy as np

EPOCHS, EVERY = 30, 25


def work(folder):
    """Trains as one of the workers; the chief writes what comes of it."""
    import keras
    import tensorflow as tf
    from sklearn.datasets import load_digits

    import kopt

    strategy = tf.distribute.MultiWorkerMirroredStrategy()
    x, y = load_digits(return_X_y=True)
    keras.utils.set_random_seed(0)
    with strategy.scope():
        inputs = keras.Input((64,))
        h = keras.layers.BatchNormalization()(keras.layers.Dense(64, "relu")(inputs))
        model = kopt.Model(inputs, keras.layers.Dense(10, "softmax")(keras.layers.Dropout(0.3)(h)))
        optimizer = kopt.AdamW(keras.optimizers.schedules.CosineDecay(1e-2, 600))
        model.compile(optimizer, "sparse_categorical_crossentropy", metrics=["accuracy"])

    def say():
        print("begins at step", 23 * model.progress.epoch + model.progress.step)

    said = keras.callbacks.LambdaCallback(on_train_begin=lambda logs: say())
    callbacks = [kopt.Checkpoint(folder / "run.ckpt", every=EVERY), said]
    history = model.fit((x / 16).astype("float32"), y, 64, EPOCHS, verbose=0, callbacks=callbacks, validation_split=0.2)
    if strategy.cluster_resolver.task_id == 0:
        values = [v.numpy() for v in [*model.variables, *model.optimizer.variables]] + [*history.history.values()]
        np.savez(folder / "end.npz", *values)


def launch(folder, workers, moment=None, victim=0):
    """Launches the workers, and kills one after so many seconds; returns what they came to, and what was said."""
    command = [sys.executable, "-m", "kopt", "launch", "--workers", str(workers), __file__, "--work", str(folder)]
    launched = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    began, said = time.monotonic(), ""

    def kill():
        processes = re.search(r"processes (.*)\.", said)[1].split(", ")
        os.kill(int(processes[victim]), signal.SIGKILL)

    timer = threading.Timer(moment, kill) if moment is not None else None
    if timer:
        timer.start()
    for line in launched.stdout:
        said += line
    if launched.wait() or (timer and "was ended by SIGKILL" not in said):
        raise SystemExit(said)
    with np.load(folder / "end.npz") as file:
        return [file[name] for name in file.files], said, time.monotonic() - began


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--times", type=int, default=10, metavar="N")
    parser.add_argument("--workers", type=int, default=3, metavar="N")
    parser.add_argument("--seed", type=int, default=0, metavar="N")
    parser.add_argument("--work", type=pathlib.Path, help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.work:
        return work(asked.work)
    random.seed(asked.seed)
    print(f"{asked.workers} workers, {EPOCHS} epochs of 23 steps, a file every {EVERY}")
    with tempfile.TemporaryDirectory() as folder:
        expected, _, seconds = launch(pathlib.Path(folder), asked.workers)
    print(f"undisturbed: {seconds:.1f} s")
    print(f"{'kill':>4} {'worker':>6} {'after s':>8} {'goes on at step':>16} {'all s':>6}  bits")
    equal = 0
    for number in range(1, asked.times + 1):
        victim, moment = random.randrange(asked.workers), random.uniform(0.2, seconds - 1)
        with tempfile.TemporaryDirectory() as folder:
            found, said, total = launch(pathlib.Path(folder), asked.workers, moment, victim)
        same = len(found) == len(expected) and all(map(np.array_equal, found, expected))
        equal += same
        step = re.findall(r"begins at step (\d+)", said)[-1]
        print(
            f"{number:4} {victim:6} {moment:8.2f} {step:>16} {total:6.1f}  {'the same' if same else 'OTHERS'}",
            flush=True,
        )
    print(f"{equal} of {asked.times} came to the same bits")


if __name__ == "__main__":
    main()
